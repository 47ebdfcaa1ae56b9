package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// progress shows on a terminal what is measured and how far the run is; elsewhere only what goes wrong.
type progress struct {
	w        io.Writer
	terminal bool
	all, at  int
	begin    time.Time
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && term.IsTerminal(int(f.Fd())), begin: time.Now()}
}

func (p *progress) steps(n int) { p.all, p.at, p.begin = n, 0, time.Now() }

// step begins the next step.
func (p *progress) step(what string) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K[%d/%d %s] %s", p.at+1, max(p.all, p.at+1), time.Since(p.begin).Round(time.Second), what)
	}
	p.at++
}

// say writes a line of its own.
func (p *progress) say(format string, args ...any) {
	p.end()
	fmt.Fprintf(p.w, "bench: "+format+"\n", args...)
}

// end clears the line.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
