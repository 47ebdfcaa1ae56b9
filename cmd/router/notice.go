package main

import (
	"fmt"
	"io"
	"time"
)

// A notice is one line that long work says how far it is on. It shows on a terminal only.
type notice struct {
	w    io.Writer // nil: not a terminal
	last time.Time
	said bool
}

func (p *program) notice() *notice {
	if !isTerminal(p.stderr) {
		return &notice{}
	}
	return &notice{w: p.stderr}
}

// say replaces the line, at most ten times a second.
func (n *notice) say(format string, args ...any) {
	if n.w == nil || time.Since(n.last) < 100*time.Millisecond {
		return
	}
	n.last, n.said = time.Now(), true
	fmt.Fprintf(n.w, "\r\x1b[K"+format, args...)
}

// end clears the line.
func (n *notice) end() {
	if n.said {
		fmt.Fprint(n.w, "\r\x1b[K")
	}
}
