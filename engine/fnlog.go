package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// What functions say, and how their calls end, is kept in memory for who looks: the last lines of each
// function, in bounds. Good calls are summed up, so that the log costs a call no allocation.

const (
	logLines    = 1000      // kept of one function
	logBytes    = 256 << 10 // of them
	allLogBytes = 16 << 20  // of all functions together
	sumEvery    = time.Second
	badCalls    = 50 // calls with failures, rejections or retries that have a line of their own in a second
	sumFailures = 8  // failures told of one line
)

// callLog is the log of a function. Lines are numbered from 0 and never change.
type callLog struct {
	name string
	all  *atomic.Int64 // bytes of all functions' lines
	now  func() time.Time

	mu    sync.Mutex
	ring  fifo[[]byte]
	first uint64 // number of the first line in ring
	bytes int
	moved chan struct{} // closed with the next line; nil while nobody waits
	ended bool

	sum    callSum // of the calls that have no line yet
	summed time.Time
	bad    int // calls with a line of their own since summed
}

// callSum is what became of one call or of several.
type callSum struct {
	digest   string
	calls    int
	events   int
	fuel     int64
	took     time.Duration
	results  [verdictKinds]uint64
	failed   int
	failures []callFailure
}

const verdictKinds = 6 // as plugins numbers verdicts

var verdictNames = [verdictKinds]string{"pass", "emit", "drop", "retry", "reject", "reply"}

type callFailure struct {
	Reason string `json:"reason"`
	Detail string `json:"detail,omitempty"`
}

func (l *callLog) open(e *Engine, name string) { l.name, l.all, l.now = name, &e.logged, e.now }

// logLine is a line of a function's log, as it is read.
type logLine struct {
	Time     time.Time         `json:"time"`
	Function string            `json:"function"`
	Digest   string            `json:"digest,omitempty"`
	Level    string            `json:"level"`
	Shadow   bool              `json:"shadow,omitempty"`
	Message  string            `json:"message,omitempty"`
	Calls    int               `json:"calls,omitempty"`
	Events   int               `json:"events,omitempty"`
	Fuel     *int64            `json:"fuel,omitempty"`
	Duration string            `json:"duration,omitempty"`
	Results  map[string]uint64 `json:"results,omitempty"`
	Failed   int               `json:"failed,omitempty"`
	Failures []callFailure     `json:"failures,omitempty"`
}

var logLevels = [...]string{"debug", "info", "warn", "error"}

func levelName(level int) string { return logLevels[min(max(level, 0), len(logLevels)-1)] }

func slogLevel(level int) slog.Level { return slog.Level(level*4 - 4) }

// said adds a message of the function.
func (l *callLog) said(digest string, level int, message string) {
	l.message(logLine{Digest: digest, Level: levelName(level), Message: message})
}

func (l *callLog) message(line logLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(line)
}

// called takes note of a call that has ended.
func (l *callLog) called(digest string, events int, took time.Duration, out *plugins.Outcome) {
	results := countVerdicts(out)
	bad := len(out.Failures) > 0 || results[plugins.Retry] > 0 || results[plugins.Reject] > 0
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.sum.calls > 0 && l.sum.digest != digest {
		l.endSum(now)
	}
	if bad && l.bad < badCalls {
		l.bad++
		s := callSum{digest: digest}
		s.take(events, took, results, out)
		l.add(s.line())
		return
	}
	l.sum.digest = digest
	l.sum.take(events, took, results, out)
	l.trim(now)
}

func countVerdicts(out *plugins.Outcome) (n [verdictKinds]uint64) {
	for i := range out.Results {
		if v := out.Results[i].Verdict; int(v) < len(n) {
			n[v]++
		}
	}
	return n
}

func (s *callSum) take(events int, took time.Duration, results [verdictKinds]uint64, out *plugins.Outcome) {
	s.calls++
	s.events += events
	s.fuel += out.Fuel
	s.took += took
	for i, n := range results {
		s.results[i] += n
	}
	s.failed += len(out.Failures)
	for _, f := range out.Failures {
		if len(s.failures) >= sumFailures {
			break
		}
		s.failures = append(s.failures, callFailure{string(f.Reason), clip(errText(f.Err), 512)})
	}
	for i := range out.Results {
		r := &out.Results[i]
		if r.Verdict == plugins.Reject && len(s.failures) < sumFailures {
			s.failures = append(s.failures, callFailure{string(plugins.ReasonReject), fmt.Sprintf("%d %s", r.Arg, clip(string(r.Data), 512))})
		}
	}
}

func (s *callSum) line() logLine {
	line := logLine{Digest: s.digest, Level: "call", Events: s.events, Fuel: &s.fuel, Duration: s.took.String(), Failed: s.failed, Failures: s.failures}
	if s.calls > 1 {
		line.Calls = s.calls
	}
	for i, n := range s.results {
		if n > 0 {
			if line.Results == nil {
				line.Results = map[string]uint64{}
			}
			line.Results[verdictNames[i]] = n
		}
	}
	return line
}

// trim writes the line of what was summed up, at most one in a second. The caller holds mu.
func (l *callLog) trim(now time.Time) {
	if now.Sub(l.summed) < sumEvery {
		return
	}
	l.endSum(now)
}

func (l *callLog) endSum(now time.Time) {
	l.summed, l.bad = now, 0
	if l.sum.calls > 0 {
		s := l.sum
		l.sum = callSum{}
		l.add(s.line())
	}
}

// add appends a line; the oldest leave. The caller holds mu.
func (l *callLog) add(line logLine) {
	if l.ended {
		return
	}
	line.Function = l.name
	if line.Time.IsZero() {
		line.Time = l.now().UTC()
	}
	text, err := json.Marshal(line)
	if err != nil {
		return // strings and numbers always marshal
	}
	l.ring.push(text)
	l.grow(len(text))
	for l.ring.len() > logLines || l.bytes > logBytes || l.ring.len() > 1 && l.all.Load() > allLogBytes {
		l.grow(-len(l.ring.pop()))
		l.first++
	}
	if l.moved != nil {
		close(l.moved)
		l.moved = nil
	}
}

func (l *callLog) grow(n int) {
	l.bytes += n
	l.all.Add(int64(n))
}

// end ends the log with its function; followers are told.
func (l *callLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.first += uint64(l.ring.len())
	l.ring.clear()
	l.grow(-l.bytes)
	if l.moved != nil {
		close(l.moved)
		l.moved = nil
	}
}

// A LogReader reads a function's log, across versions. It belongs to one goroutine and holds nothing that
// must be given back: a reader that is slow misses lines, and is told how many.
type LogReader struct {
	l    *callLog
	next uint64
}

// FunctionLog begins to read the last lines of a function's log, at most limit; all that are kept where
// limit is negative.
func (e *Engine) FunctionLog(name string, limit int) (*LogReader, error) {
	f := e.plan.Load().functions[name]
	if f == nil {
		_, err := e.Function(name) // says so, with the nearest name
		return nil, err
	}
	l := &f.book.callLog
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trim(l.now())
	n := l.ring.len()
	if limit >= 0 {
		n = min(n, limit)
	}
	return &LogReader{l: l, next: l.first + uint64(l.ring.len()-n)}, nil
}

// TryNext returns the next line, a JSON object without a line end; ok is false at the end. The line is
// read-only.
func (r *LogReader) TryNext() (line []byte, ok bool) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	return r.take()
}

func (r *LogReader) take() ([]byte, bool) {
	l := r.l
	if missed := l.first - min(r.next, l.first); missed > 0 && !l.ended {
		r.next = l.first
		line, err := json.Marshal(logLine{Time: l.now().UTC(), Function: l.name, Level: "warn",
			Message: fmt.Sprintf("%d lines were left out: they came faster than they were read", missed)})
		return line, err == nil
	}
	if i := r.next - l.first; r.next >= l.first && i < uint64(l.ring.len()) {
		r.next++
		return l.ring.at(int(i)), true
	}
	return nil, false
}

// Next waits for the next line until ctx ends, or the function is removed or the router closes
// (event.ErrGone).
func (r *LogReader) Next(ctx context.Context) ([]byte, error) {
	tick := time.NewTicker(sumEvery)
	defer tick.Stop()
	for {
		r.l.mu.Lock()
		line, ok := r.take()
		if !ok && r.l.moved == nil {
			r.l.moved = make(chan struct{})
		}
		moved, ended := r.l.moved, r.l.ended
		r.l.mu.Unlock()
		if ok {
			return line, nil
		}
		if ended {
			return nil, event.Bad(event.ErrGone, "function", fmt.Sprintf("%q is not defined any more", r.l.name))
		}
		select {
		case <-moved:
		case <-tick.C: // what was summed up is told when calls have stopped, too
			r.l.mu.Lock()
			r.l.trim(r.l.now())
			r.l.mu.Unlock()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tallies count what a function has done since the router started, its versions together.
type tallies struct {
	calls, events, swaps, nanos, fuel atomic.Uint64
	verdicts                          [verdictKinds]atomic.Uint64
	failures                          [len(failureReasons)]atomic.Uint64
	stateReads, stateWrites           atomic.Uint64
}

// failureReasons are why a function fails at an event; what is none of them counts as the last.
var failureReasons = [...]plugins.Reason{plugins.ReasonTrap, plugins.ReasonMemory, plugins.ReasonDeadline, plugins.ReasonFuel, plugins.ReasonOutput}

func (t *tallies) count(events int, took time.Duration, out *plugins.Outcome) {
	t.calls.Add(1)
	t.events.Add(uint64(events))
	t.nanos.Add(uint64(max(took, 0)))
	t.fuel.Add(uint64(max(out.Fuel, 0)))
	if reads, writes := out.StateOps(); reads+writes > 0 {
		t.stateReads.Add(reads)
		t.stateWrites.Add(writes)
	}
	for i, n := range countVerdicts(out) {
		if n > 0 {
			t.verdicts[i].Add(n)
		}
	}
	for _, f := range out.Failures {
		i := 0
		for i < len(failureReasons)-1 && failureReasons[i] != f.Reason {
			i++
		}
		t.failures[i].Add(1)
	}
}

// FunctionCounts are what a function has done since the router started, all its versions together.
type FunctionCounts struct {
	Calls, Events, Fuel uint64
	Swaps               uint64 // changes of the version
	Time                time.Duration
	Results             map[string]uint64 // by verdict: pass, emit, drop, retry, reject, reply
	Failures            map[string]uint64 // events that failed, by reason

	StateReads, StateWrites uint64 // of its state; an addition is one of each
}

func (t *tallies) counts() FunctionCounts {
	c := FunctionCounts{Calls: t.calls.Load(), Events: t.events.Load(), Fuel: t.fuel.Load(), Swaps: t.swaps.Load(),
		Time: time.Duration(t.nanos.Load()), Results: map[string]uint64{}, Failures: map[string]uint64{},
		StateReads: t.stateReads.Load(), StateWrites: t.stateWrites.Load()}
	for i := range t.verdicts {
		c.Results[verdictNames[i]] = t.verdicts[i].Load()
	}
	for i := range t.failures {
		c.Failures[string(failureReasons[i])] = t.failures[i].Load()
	}
	return c
}

// called takes note of a call of a function.
func (b *book) called(digest string, events int, took time.Duration, out *plugins.Outcome) {
	b.count(events, took, out)
	b.callLog.called(digest, events, took, out)
}
