package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

func parseLine(t *testing.T, line []byte) (l logLine) {
	t.Helper()
	if err := json.Unmarshal(line, &l); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return l
}

// What a guest says and how its calls end, in order, with the version that it was.
func TestFunctionLog(t *testing.T) {
	w, _, d := versionWorld(t, Options{}, versionGuest(t, version("a")...))
	sink := &outputs{}
	w.apply(through(d[0], 1, sink, nil))
	log, err := w.e.FunctionLog("f0", -1)
	if err != nil {
		t.Fatal(err)
	}
	w.publish("orders", `x="hello there"`)
	first, err := log.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	said := parseLine(t, first)
	if said.Level != "info" || said.Message != `"hello there"` || said.Function != "f0" || said.Digest != d[0] || said.Time.IsZero() {
		t.Errorf("%s", first)
	}
	second, err := log.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	call := parseLine(t, second)
	if took, err := time.ParseDuration(call.Duration); err != nil || took <= 0 || call.Level != "call" || call.Events != 1 || call.Results["emit"] != 1 || call.Fuel == nil {
		t.Errorf("%s", second)
	}
	f, err := w.e.Function("f0")
	if err != nil || f.Counts.Calls != 1 || f.Counts.Events != 1 || f.Counts.Results["emit"] != 1 || f.Counts.Time <= 0 {
		t.Errorf("%+v, %v", f.Counts, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if line, err := log.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%s, %v", line, err)
	}
	next := through(d[0], 1, sink, nil)
	next.Functions, next.Subscriptions = nil, nil
	w.apply(next)
	if line, err := log.Next(t.Context()); !errors.Is(err, event.ErrGone) {
		t.Errorf("%s, %v; want that the function is gone", line, err)
	}
	if _, err := w.e.FunctionLog("f0", -1); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if n := w.e.logged.Load(); n != 0 {
		t.Errorf("%d bytes are counted of no log", n)
	}
}

// A call that failed, was rejected or asks for another try has a line of its own, and says why.
func TestFunctionLogTellsOfFailures(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	w.apply(through(digest, 1, &outputs{}, nil))
	log, err := w.e.FunctionLog("f0", -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ data, reason, detail string }{{"x42", "reject", "42 refused here"}, {"t", "trap", "unreachable"}} {
		w.publish("orders", want.data+"="+want.data)
		line, err := log.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l := parseLine(t, line)
		if l.Level != "call" || len(l.Failures) != 1 || l.Failures[0].Reason != want.reason || !strings.Contains(l.Failures[0].Detail, want.detail) {
			t.Errorf("%s: %s", want.data, line)
		}
		eventually(t, "settled", func() bool { return w.settled("s") })
	}
	f, err := w.e.Function("f0")
	if err != nil || f.Counts.Failures["trap"] == 0 || f.Counts.Results["reject"] != 1 {
		t.Errorf("%+v, %v", f.Counts, err)
	}
}

// testLog is a log on a clock of its own.
func testLog() (l *callLog, clock *time.Time) {
	clock = new(time.Time)
	*clock = time.Unix(1000, 0)
	return &callLog{name: "f", all: &atomic.Int64{}, now: func() time.Time { return *clock }}, clock
}

func reader(l *callLog) *LogReader { return &LogReader{l: l} }

func all(t *testing.T, r *LogReader) (ls []logLine) {
	t.Helper()
	for line, ok := r.TryNext(); ok; line, ok = r.TryNext() {
		ls = append(ls, parseLine(t, line))
	}
	return ls
}

func TestFunctionLogIsBounded(t *testing.T) {
	l, _ := testLog()
	slow := reader(l)
	for i := range 2 * logLines {
		l.said("sha256:x", 0, fmt.Sprint(i))
	}
	if n := l.ring.len(); n != logLines {
		t.Errorf("%d lines are kept, want %d", n, logLines)
	}
	got := all(t, slow)
	if len(got) != logLines+1 || got[0].Level != "warn" || !strings.HasPrefix(got[0].Message, "1000 lines were left out") || got[1].Message != "1000" {
		t.Errorf("a slow reader got %d lines, first %+v", len(got), got[0])
	}
	long := strings.Repeat("x", 4<<10)
	for range 100 {
		l.said("sha256:x", 0, long)
	}
	if l.bytes > logBytes || l.all.Load() != int64(l.bytes) {
		t.Errorf("%d bytes are kept, %d counted, want at most %d", l.bytes, l.all.Load(), logBytes)
	}
	l.all.Store(2 * allLogBytes) // others have taken it all
	l.said("sha256:x", 0, "last")
	if n := l.ring.len(); n != 1 {
		t.Errorf("%d lines are kept while all logs are full, want the last", n)
	}
}

// Good calls are summed up: one line at once, then at most one in a second; nothing is lost between.
func TestGoodCallsAreSummedUp(t *testing.T) {
	l, clock := testLog()
	out := &plugins.Outcome{Results: []plugins.Result{{}, {Verdict: plugins.Drop}}, Fuel: 7}
	for range 100 {
		l.called("sha256:x", 2, time.Millisecond, out)
	}
	*clock = clock.Add(sumEvery)
	l.called("sha256:x", 2, time.Millisecond, out)
	l.called("sha256:x", 2, time.Millisecond, out)
	l.called("sha256:y", 2, time.Millisecond, out) // another version is another line
	got := all(t, reader(l))
	if len(got) != 3 {
		t.Fatalf("%d lines: %+v", len(got), got)
	}
	if g := got[1]; g.Calls != 100 || g.Events != 200 || *g.Fuel != 700 || g.Results["pass"] != 100 || g.Results["drop"] != 100 || g.Duration != "100ms" {
		t.Errorf("%+v", g)
	}
	if g := got[2]; g.Digest != "sha256:x" || g.Events != 2 {
		t.Errorf("%+v", g)
	}
	bad := &plugins.Outcome{Failures: []plugins.Failure{{Reason: plugins.ReasonTrap, Err: errors.New("boom")}}}
	for range 10 * badCalls {
		l.called("sha256:y", 1, time.Millisecond, bad)
	}
	*clock = clock.Add(sumEvery)
	l.called("sha256:y", 1, time.Millisecond, bad)
	own, failed := 0, 0
	for _, g := range all(t, reader(l))[3:] {
		failed += g.Failed
		if g.Calls == 0 && g.Failed == 1 {
			own++
		}
	}
	if own > 2*badCalls {
		t.Errorf("%d lines of their own", own)
	}
	l.mu.Lock()
	failed += l.sum.failed
	l.mu.Unlock()
	if failed != 10*badCalls+1 {
		t.Errorf("%d failures are told, want %d", failed, 10*badCalls+1)
	}
}

func TestCallsAreNotedWithoutAllocating(t *testing.T) {
	l, _ := testLog()
	b := &book{callLog: callLog{name: l.name, all: l.all, now: l.now}}
	out := &plugins.Outcome{Results: make([]plugins.Result, 256), Fuel: 7}
	b.called("sha256:x", 256, time.Millisecond, out) // the first has its line at once
	if n := testing.AllocsPerRun(1000, func() { b.called("sha256:x", 256, time.Millisecond, out) }); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}
