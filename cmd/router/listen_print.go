package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A forwarded is one delivery that listen has forwarded, as -o json prints it.
type forwarded struct {
	Time    time.Time       `json:"time"`
	Outcome string          `json:"outcome"` // acknowledged, failed, or late: answered 2xx too late for its lease, so that it comes again
	Status  int             `json:"status"`  // 0: no answer
	MS      float64         `json:"ms"`
	ID      string          `json:"id"`
	Type    string          `json:"type"`
	Key     string          `json:"key,omitempty"`
	Attempt int             `json:"attempt"`
	Again   string          `json:"again,omitempty"` // a failed one: when
	Error   string          `json:"error,omitempty"`
	Event   json.RawMessage `json:"event,omitempty"` // with --print
}

// What colours say on a terminal.
const (
	green  = "\x1b[32m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// report counts and prints what became of one delivery: err nil means acknowledged.
func (l *listener) report(e *event.Event, d leased, status int, took time.Duration, err error, again time.Duration) {
	f := forwarded{Time: time.Now().UTC(), Outcome: "acknowledged", Status: status, MS: float64(took.Microseconds()) / 1000,
		ID: e.ID, Type: e.Type, Key: e.PartitionKey, Attempt: d.Attempt}
	colour := green
	switch {
	case err != nil && again > 0:
		f.Outcome, f.Again, f.Error, colour = "failed", again.String(), err.Error(), red
	case err != nil:
		f.Outcome, f.Error, colour = "late", err.Error(), yellow
	}
	if l.o.print {
		f.Event = withoutPlace(d.Event)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch f.Outcome {
	case "acknowledged":
		l.n.taken++
	case "late":
		l.n.late++
	default:
		l.n.failed++
	}
	if d.Attempt > 1 {
		l.n.again++
	}
	if l.c.json {
		if doc, err := json.Marshal(f); err == nil { // strings and numbers, and JSON that was parsed
			_ = printJSON(l.p.stdout, doc)
		}
		return
	}
	l.printLine(f, colour, isTerminal(l.p.stdout))
}

// printLine prints a delivery for people. The caller holds l.mu.
func (l *listener) printLine(f forwarded, colour string, colours bool) {
	status := statusOf(f.Status)
	if colours {
		status = colour + status + plain
	}
	tail := ""
	if f.Key != "" {
		tail = "  key=" + clean(f.Key)
	}
	if f.Attempt > 1 {
		tail += fmt.Sprintf("  try %d", f.Attempt)
	}
	if f.Again != "" {
		tail += "  again in " + f.Again
	}
	say(l.p.stdout, "%s  POST  %s  %.1f ms  %s  %s%s", f.Time.Local().Format("15:04:05"), status, f.MS, clean(f.Type), clean(f.ID), tail)
	if f.Error != "" {
		say(l.p.stdout, "          %s", clean(f.Error))
	}
	if len(f.Event) > 0 {
		if line, err := eventLine(f.Event); err == nil {
			say(l.p.stdout, "          %s", line)
		}
	}
}

// summary says what was done, at the end.
func (l *listener) summary() {
	l.mu.Lock()
	n := l.n
	l.mu.Unlock()
	text := fmt.Sprintf("%s acknowledged", plural(n.taken, "delivery"))
	if n.taken != 1 {
		text = fmt.Sprintf("%d deliveries acknowledged", n.taken)
	}
	for _, x := range []struct {
		n    int
		what string
	}{{n.failed, "failed"}, {n.late, "answered too late"}, {n.again, "not the first try"}} {
		if x.n > 0 {
			text += fmt.Sprintf(", %d %s", x.n, x.what)
		}
	}
	say(l.p.stderr, "%s; %s keeps what comes now", text, clean(l.s.name))
}
