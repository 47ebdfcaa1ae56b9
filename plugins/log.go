package plugins

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Bounds of what a function may say.
const (
	maxMessage = 4 << 10 // bytes of one message or line
	logBurst   = 200     // messages at once
	logRate    = 50      // messages a second after these
	maxError   = 1000    // bytes of a guest's words in an error
)

// logBudget is a bucket of messages, one for all instances of a function.
type logBudget struct {
	now func() time.Time

	mu      sync.Mutex
	spent   float64
	at      time.Time
	omitted uint64
}

// take reports whether a message may pass, and how many before it did not.
func (b *logBudget) take() (ok bool, omitted uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.spent = max(0, b.spent-logRate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	if b.spent+1 > logBurst {
		b.omitted++
		return false, 0
	}
	b.spent++
	omitted, b.omitted = b.omitted, 0
	return true, omitted
}

func (f *Function) log(level int, message []byte) {
	ok, omitted := f.logs.take()
	if !ok {
		return
	}
	if omitted > 0 {
		f.say(2, fmt.Sprintf("%d messages were left out: a function may log %d at once and %d a second", omitted, logBurst, logRate))
	}
	more := ""
	message = f.veil.bytes(message[:min(len(message), 16*maxMessage)]) // before it is cut: half a secret is one too
	if len(message) > maxMessage {
		more = fmt.Sprintf("… (%d bytes left out)", len(message)-maxMessage)
		message = message[:maxMessage]
	}
	f.say(level, strings.ToValidUTF8(string(message), "�")+more)
}

// lines turns what a guest prints into messages, one a line.
type lines struct {
	in    *Instance
	level int
	buf   []byte    // the line under way
	head  []byte    // the first line of a call
	oom   bool      // a line of the call speaks of running out of memory
	to    io.Writer // takes it all instead; nil: nobody
}

func (l *lines) Write(p []byte) (int, error) {
	if l.to != nil {
		return l.to.Write(p)
	}
	for rest := p; len(rest) > 0; { // in parts: a guest may hand over its whole memory a million times at once
		part := rest[:min(len(rest), workSlice)]
		l.in.Work(len(part))
		l.take(part)
		rest = rest[len(part):]
	}
	return len(p), nil
}

func (l *lines) take(p []byte) {
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		fit := min(len(line), maxMessage-len(l.buf))
		l.buf = append(l.buf, line[:fit]...)
		if whole {
			l.end()
		}
		p = rest
	}
}

// end finishes a line.
func (l *lines) end() {
	if len(l.buf) == 0 {
		return
	}
	if len(l.head) == 0 {
		l.head = append(l.head[:0], l.buf[:min(len(l.buf), maxError)]...)
	}
	// The words of the runtimes of Go and Rust when memory.grow says no.
	l.oom = l.oom || bytes.Contains(l.buf, []byte("out of memory")) || bytes.Contains(l.buf, []byte("memory allocation of"))
	l.in.fn.log(l.level, l.buf)
	l.buf = l.buf[:0]
}

// first is the first line since the last reset, the line under way included.
func (l *lines) first() string {
	l.end()
	return bounded(string(l.head))
}

// reset forgets a call's lines.
func (l *lines) reset() {
	l.end()
	l.head, l.oom = l.head[:0], false
}

func (in *Instance) flush() {
	in.stdout.reset()
	in.stderr.reset()
}

// bounded makes a guest's words fit to be shown: one line, printable, not long.
func bounded(s string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < 0x20 || r >= 0x7F && r < 0xA0:
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), 2*maxError)], "�"))
	if len(clean) > maxError {
		clean = strings.ToValidUTF8(clean[:maxError], "") + "…"
	}
	return clean
}
