package plugins

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/plugins/meter"
)

// longestSlice is the most that one slice of fuel counts as guest time. A slice takes some 50 µs; one that
// took longer was put off by the machine, which is no fault of the guest's.
const longestSlice = time.Millisecond

// What host functions do costs no fuel, so the time that they take is looked at by itself: once they have done
// workSlice bytes of work, each of which counts no more than longestByte.
const (
	workSlice   = 64 << 10
	longestByte = 4 * time.Nanosecond
)

// yieldEvery is how often a run that takes long lets others have the processor.
const yieldEvery = 200 * time.Microsecond

// callShare is how many events' worth of guest time a call of many events has.
const callShare = 10

// spending is what a guest has used up since its run began.
type spending struct {
	fuel   int64
	all    time.Duration // guest time: what the guest waits for is not in it
	event  time.Duration // of it since the cursor moved
	cursor int           // the event it counts for
	work   int64         // of host functions since mark, in bytes
	mark   time.Duration // when the guest had control last, on the host's monotonic clock
	start  time.Duration

	yielded time.Duration // when it let others have the processor last

	budget struct {
		fuel             int64
		event, all, wall time.Duration
	}
}

// now is the host's monotonic clock.
func (h *Host) now() time.Duration { return time.Since(h.made) }

// linkMeter makes the function known that metered guests call when a slice is spent.
func linkMeter(ctx context.Context, r wazero.Runtime) error {
	i64 := []api.ValueType{api.ValueTypeI64}
	_, err := r.NewHostModuleBuilder(meter.TickModule).NewFunctionBuilder().
		WithGoFunction(api.GoFunc(func(ctx context.Context, s []uint64) {
			s[0] = uint64(InstanceOf(ctx).tick(int64(s[0])))
		}), i64, i64).Export(meter.TickName).Instantiate(ctx)
	return err
}

// tick is called by a guest that has spent a slice of fuel. It grants the next or ends the run.
func (in *Instance) tick(spent int64) int64 {
	s := &in.spent
	s.fuel += spent
	in.granted = 0
	in.check()
	// Whoever waits, the collector's workers among them, need not wait for the end of the scheduler's time slice. A
	// yield to nobody is the guest's own time, since hundreds of them add up.
	if s.all > aimedRun && s.mark-s.yielded > yieldEvery {
		runtime.Gosched()
		s.yielded = in.fn.host.now()
		if s.yielded-s.mark > yieldEvery {
			s.mark = s.yielded
		}
	}
	return in.grant()
}

// check ends the run if its time is over.
func (in *Instance) check() {
	in.meet()
	if err := in.ctx.Err(); err != nil {
		in.End(err)
	}
	if err := in.overspent(); err != nil {
		in.End(err)
	}
}

// Work counts n bytes that a host function is about to read, write or look through for the guest; what takes
// longer for other reasons counts as bytes that take as long. If the work before this has used up the time of
// the call, it ends the call and does not return. Do work of many pages in parts, and count each.
func (in *Instance) Work(n int) {
	if in.spent.work >= workSlice {
		in.check()
	}
	in.spent.work += int64(n)
}

// grant is the next slice: whole, or what is left of the run's fuel, so that where a run ends does not
// depend on where slices do.
func (in *Instance) grant() int64 {
	in.granted = meter.Slice
	if may := in.spent.budget.fuel; may > 0 {
		in.granted = min(in.granted, may-in.spent.fuel)
	}
	return in.granted
}

// meet counts the time since the guest got control, for the event at work.
func (in *Instance) meet() {
	s := &in.spent
	now := in.fn.host.now()
	d := min(now-s.mark, longestSlice+time.Duration(s.work)*longestByte)
	s.mark, s.work = now, 0
	s.all += d
	s.event += d
	if in.guest != nil {
		if c := in.guest.Cursor(); c != s.cursor {
			s.cursor, s.event = c, 0
		}
	}
}

// overspent says which budget the guest is over.
func (in *Instance) overspent() error {
	s := &in.spent
	late := func(limit string, spent, may time.Duration) error {
		return &GuestError{Reason: ReasonDeadline, Index: -1, Err: fmt.Errorf("%s: %s is spent, %s is allowed", limit, spent.Round(time.Millisecond/10), may)}
	}
	switch b := &s.budget; {
	case b.fuel > 0 && s.fuel > b.fuel:
		return &GuestError{Reason: ReasonFuel, Index: -1, Err: fmt.Errorf("limits.fuel: %d is spent, %d is allowed", s.fuel, b.fuel)}
	case s.event > b.event:
		return late("limits.cpu", s.event, b.event)
	case s.all > b.all:
		return late("limits.cpu of a whole call", s.all, b.all)
	case s.mark-s.start > b.wall:
		return late("limits.wall", s.mark-s.start, b.wall)
	}
	return nil
}

// begin starts a run with fresh budgets: for n events, or for 0 the initialisation of the guest.
func (in *Instance) begin(n int) {
	l := &in.fn.def.Limits
	s := &in.spent
	now := in.fn.host.now()
	*s = spending{mark: now, start: now}
	s.budget.fuel, s.budget.event, s.budget.all, s.budget.wall = l.Fuel, l.CPU, callShare*l.CPU, l.Wall
	if in.fn.single { // its cursor does not tell when it goes on to the next event
		s.budget.event = time.Duration(min(n, callShare)) * l.CPU
	}
	if n == 0 {
		// What a guest does once is no event's fault; runtimes of languages take their time.
		s.budget.fuel = 0
		s.budget.event = max(callShare*l.CPU, initTime)
		s.budget.all = s.budget.event
	}
	in.granted = 0
	if in.fuel != nil { // a guest that only starts asks for its first slice
		grant := uint64(in.grant())
		in.fuel.Set(grant)
		in.grantOf.Set(grant)
	}
}

// end finishes a run: what was spent of the last slice counts too.
func (in *Instance) end() {
	in.meet()
	if in.fuel != nil {
		in.spent.fuel += in.granted - int64(in.fuel.Get())
		in.granted = 0
	}
	in.fn.stats.fuel.Add(in.spent.fuel)
	in.fn.stats.guest.Add(int64(in.spent.all))
}

// initTime is what a guest may at least take to begin.
const initTime = 2 * time.Second

// Wait lets a host function wait for do: the time counts for limits.wall and not for limits.cpu. The
// context ends when the call must. An error of do is returned, unless the call is over: then the guest is.
func (in *Instance) Wait(do func(ctx context.Context) error) error {
	in.meet()
	s := &in.spent
	rest := s.budget.wall - (s.mark - s.start)
	// Not the instance's own context, which changes after the run: what do leaves behind may still look at it.
	ctx, cancel := context.WithTimeout(in.ctx.Context, rest)
	err := do(ctx)
	late := errors.Is(ctx.Err(), context.DeadlineExceeded) && in.ctx.Err() == nil
	cancel()
	s.mark = in.fn.host.now()
	if err := in.ctx.Err(); err != nil {
		in.End(err)
	}
	if late {
		in.End(&GuestError{Reason: ReasonDeadline, Index: -1, Err: fmt.Errorf("limits.wall: %s is spent, %s is allowed", (s.mark - s.start).Round(time.Millisecond/10), s.budget.wall)})
	}
	return err
}
