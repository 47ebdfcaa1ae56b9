package plugins

import (
	"context"
	"errors"
	"slices"
	"time"
)

// maxBlamed is how many times in one call the cursor is believed. A guest whose cursor lies costs a
// bounded number of runs: after these, what fails is halved.
const maxBlamed = 8

// Call hands events to the function and fills out with what became of each. It waits for its turn. An
// error means that nothing was decided, and the events wait: ctx ended, the function is closed, or it
// is unhealthy (event.ErrUnavailable). Faults of the guest are failures in out: an event fails only if
// it fails alone on a fresh instance.
func (f *Function) Call(ctx context.Context, c *Call, out *Outcome) error {
	out.Reset()
	out.staged.reader = c.State
	if len(c.Events) == 0 {
		return ctx.Err()
	}
	if err := f.enter(ctx); err != nil {
		return err
	}
	defer func() { <-f.slots }()
	start := time.Now()
	f.stats.calls.Add(1)
	f.stats.events.Add(uint64(len(c.Events)))
	err := f.call(ctx, c, out)
	f.stats.nanos.Add(int64(time.Since(start)))
	if err != nil {
		out.Reset()
		return err
	}
	f.veil.outcome(out)
	for i := range out.Results {
		if out.Results[i].Verdict == Reject {
			f.stats.rejects.Add(1)
		}
	}
	for i := range out.Failures {
		f.stats.failed(out.Failures[i].Reason)
	}
	return nil
}

func (s *counters) failed(r Reason) {
	switch r {
	case ReasonTrap:
		s.trap.Add(1)
	case ReasonMemory:
		s.memory.Add(1)
	case ReasonDeadline:
		s.deadline.Add(1)
	case ReasonFuel:
		s.fuelled.Add(1)
	default:
		s.output.Add(1)
	}
}

// Bounds of a run of a guest, beside the time that it aims at: a guest at work holds up the collector and
// whoever waits for the processor until its next slice, and a fault in it costs a run again.
const (
	aimedRun = time.Millisecond
	firstRun = 16 // events, while nothing is known of the function's pace
	maxRun   = 256
	maxBytes = 1 << 20 // or one event
)

// extent is how many of a call's events from at on make a run.
func (f *Function) extent(c *Call, at int) int {
	most := firstRun
	aim := aimedRun
	if f.single {
		aim = aimedProgram
	}
	if pace := f.pace.Load(); pace > 0 {
		most = int(min(max(int64(aim)/pace, 1), maxRun))
	}
	if f.def.Limits.Fuel > 0 {
		most = 1 // so that whether an event's fuel suffices does not depend on its neighbours
	}
	most = min(most, len(c.Events)-at)
	n, bytes := 1, c.Events[at].Len()
	for n < most && bytes+c.Events[at+n].Len() <= maxBytes {
		bytes += c.Events[at+n].Len()
		n++
	}
	return n
}

// learn moves the function's pace towards that of a run.
func (f *Function) learn(took time.Duration, events int) {
	last := max(int64(took)/int64(events), 1)
	if pace := f.pace.Load(); pace > 0 {
		last = max((3*pace+last)/4, 1)
	}
	f.pace.Store(last)
}

// call runs the events in batches of the length that the function's pace suggests.
func (f *Function) call(ctx context.Context, c *Call, out *Outcome) (err error) {
	var in *Instance
	var s *isolation
	defer func() {
		if in != nil {
			f.put(ctx, in)
		}
	}()
	for at := 0; at < len(c.Events); {
		if err := ctx.Err(); err != nil {
			return err
		}
		if in == nil {
			if in, err = f.take(ctx); err != nil {
				return err
			}
		}
		n := f.extent(c, at)
		fresh := in.runs == 0
		fault, err := in.run(ctx, Batch{call: c, from: at, to: at + n}, out)
		if err == nil && fault == nil {
			f.learn(in.spent.all, n)
			at += n
			in = f.reuse(ctx, in)
			continue
		}
		f.retire(ctx, in)
		in = nil
		if err != nil {
			return err
		}
		if s == nil {
			s = &isolation{f: f, c: c, out: out}
		}
		picks := make([]int32, n)
		for i := range picks {
			picks[i] = int32(at + i)
		}
		err = s.settle(ctx, picks, fault, fresh)
		in, s.in = s.in, nil
		if err != nil {
			return err
		}
		at += n
	}
	if s != nil {
		slices.SortStableFunc(out.Results, func(a, b Result) int { return a.Index - b.Index })
		slices.SortFunc(out.Failures, func(a, b Failure) int { return a.Index - b.Index })
	}
	return nil
}

// isolation finds the events of a call that a function cannot handle.
type isolation struct {
	f      *Function
	c      *Call
	out    *Outcome
	in     *Instance // nil after a fault
	blamed int
}

// solve runs the picked events, and whatever smaller runs their fate then takes.
func (s *isolation) solve(ctx context.Context, picks []int32) (err error) {
	if len(picks) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.in == nil {
		if s.in, err = s.f.instance(ctx); err != nil {
			return err
		}
	}
	fresh := s.in.runs == 0
	s.f.stats.reruns.Add(1)
	fault, err := s.in.run(ctx, Batch{call: s.c, picks: picks}, s.out)
	if err == nil && fault == nil {
		s.in = s.f.reuse(ctx, s.in)
		return nil
	}
	s.f.retire(ctx, s.in)
	s.in = nil
	if err != nil {
		return err
	}
	return s.settle(ctx, picks, fault, fresh)
}

// settle decides what to do about a run of picks that failed, on an instance that was fresh or not.
func (s *isolation) settle(ctx context.Context, picks []int32, fault *GuestError, fresh bool) error {
	if len(picks) == 1 {
		if !fresh { // what earlier events left behind is not this one's fault
			return s.solve(ctx, picks)
		}
		s.out.Failures = append(s.out.Failures, Failure{Index: int(picks[0]), Reason: fault.Reason, Err: errors.New(bounded(fault.Err.Error()))})
		return nil
	}
	if k := fault.Index; k >= 0 && k < len(picks) && s.blamed < maxBlamed {
		s.blamed++
		rest := slices.Concat(picks[:k], picks[k+1:])
		if err := s.solve(ctx, rest); err != nil {
			return err
		}
		return s.solve(ctx, picks[k:k+1])
	}
	half := len(picks) / 2
	if err := s.solve(ctx, picks[:half]); err != nil {
		return err
	}
	return s.solve(ctx, picks[half:])
}
