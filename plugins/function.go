package plugins

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/millrace/millrace/engine/event"
)

// A Function is one version of a function, ready to be called from many goroutines.
type Function struct {
	host   *Host
	def    event.Function
	abi    ABI
	cfg    wazero.ModuleConfig // what all instances share
	single bool                // an instance serves one run: see Programs
	logs   logBudget
	script []byte                          // what its engine runs; nil of a module
	say    func(level int, message string) // takes what passes the budget
	veil   veil

	offline bool        // it sends no requests: see OpenTrial
	timed   atomic.Bool // it has asked for the true time while it had an event
	asked   atomic.Bool // it has asked for a request

	pace    atomic.Int64  // guest time of an event in ns, about; 0: unknown
	slots   chan struct{} // a token for every call at work
	closing chan struct{}
	once    sync.Once
	closes  sync.Mutex // one Close at a time
	held    int        // slots that Close has taken; under closes

	mu   sync.Mutex
	idle []*Instance // the last used is the next
	code *compiled   // nil: given up until it is needed
	live int         // instances that are there or being made

	counted map[string]uint64 // what its guests count

	loading sync.Mutex   // one at a time brings code back
	used    atomic.Int64 // when an instance was put back last, as Host.now counts

	stats counters
}

type counters struct {
	calls, events, reruns, created, retired atomic.Uint64
	trap, memory, output, rejects           atomic.Uint64
	deadline, fuelled                       atomic.Uint64
	nanos, guest, fuel, instances, bytes    atomic.Int64
}

// FunctionStats are what a function has done since it was opened.
type FunctionStats struct {
	Calls    uint64            // calls, whatever came of them
	Events   uint64            // events in them
	Reruns   uint64            // runs of a guest beyond the first of a call, to find who is at fault
	Rejects  uint64            // REJECT verdicts
	Failures map[Reason]uint64 // events that failed, by reason

	Instances int           // alive
	Memory    int64         // bytes of linear memory of those
	Created   uint64        // instances made
	Retired   uint64        // of them, given up: a fault, or memory that had grown too far
	Time      time.Duration // spent in calls
	Guest     time.Duration // of it in guest code
	Fuel      int64         // spent

	Counters map[string]uint64 // what the guests counted by counter_add
}

// Open compiles the module of def (from the cache, if it was compiled before) and instantiates it once
// to show that it works. A module that is not here is event.ErrNotFound; one that does not work is
// event.ErrInvalid or ErrUnsupported, in words.
func (h *Host) Open(ctx context.Context, def event.Function) (*Function, error) {
	return h.OpenLogged(ctx, def, nil)
}

// OpenLogged is Open of a function whose log goes to say instead of to Options.Log. Calls of say may overlap.
func (h *Host) OpenLogged(ctx context.Context, def event.Function, say func(level int, message string)) (*Function, error) {
	if say == nil {
		say = func(level int, message string) { h.o.Log(def.Name, level, message) }
	}
	return h.openNamed(ctx, def, say, false)
}

// OpenTrial is OpenLogged of a function that is tried: its requests to other hosts fail, and it is told why. say
// must not be nil.
func (h *Host) OpenTrial(ctx context.Context, def event.Function, say func(level int, message string)) (*Function, error) {
	return h.openNamed(ctx, def, say, true)
}

func (h *Host) openNamed(ctx context.Context, def event.Function, say func(int, string), offline bool) (*Function, error) {
	f, err := h.newFunction(ctx, def, say, offline)
	if err != nil {
		return nil, fmt.Errorf("function %s: %w", def.Name, err)
	}
	return f, nil
}

func (h *Host) newFunction(ctx context.Context, def event.Function, say func(int, string), offline bool) (*Function, error) {
	if err := event.CheckName("function", def.Name); err != nil {
		return nil, err
	}
	file, err := h.Module(def.Digest)
	if err != nil {
		return nil, err
	}
	m, abi, err := h.inspect(file)
	if err != nil {
		return nil, err
	}
	def.Limits, def.Config = def.Limits.WithDefaults(), maps.Clone(def.Config)
	if def.Limits.Output < 0 {
		return nil, event.Invalid("limits.output", fmt.Sprintf("is %d bytes; want 1 or more", def.Limits.Output))
	}
	f := &Function{host: h, def: def, say: say, veil: veilOf(def.Secrets), offline: offline, abi: abi, script: m.script, slots: make(chan struct{}, h.o.Instances), closing: make(chan struct{})}
	f.logs.now = h.o.Now
	f.cfg = wazero.NewModuleConfig().WithName("").WithStartFunctions()
	if err := f.start(); err != nil {
		return nil, err
	}
	if f.code, err = h.compile(ctx, m, def.Digest, def.Limits.Memory); err != nil {
		return nil, err
	}
	h.busy.Add(1)
	in, err := f.instantiate(ctx)
	if err != nil {
		h.freed()
		var fault *GuestError
		if f.script != nil && errors.As(err, &fault) { // its author knows nothing of the engine
			err = fault
		}
		return nil, errors.Join(event.Bad(event.ErrInvalid, "module", f.veil.text(err.Error())), h.release(ctx, f.code))
	}
	f.put(ctx, in)
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.open[f] = struct{}{}
	}
	h.mu.Unlock()
	if closed {
		return nil, errors.Join(errClosed, f.Close(ctx))
	}
	return f, nil
}

// Name is the function's name.
func (f *Function) Name() string { return f.def.Name }

// Digest is the version: that of the module's bytes.
func (f *Function) Digest() string { return f.def.Digest }

// Stats reads the counters. It may be called at any time.
func (f *Function) Stats() FunctionStats {
	s := &f.stats
	f.mu.Lock()
	counted := maps.Clone(f.counted)
	f.mu.Unlock()
	return FunctionStats{
		Counters: counted,

		Calls: s.calls.Load(), Events: s.events.Load(), Reruns: s.reruns.Load(), Rejects: s.rejects.Load(),
		Failures: map[Reason]uint64{ReasonTrap: s.trap.Load(), ReasonMemory: s.memory.Load(), ReasonOutput: s.output.Load(),
			ReasonDeadline: s.deadline.Load(), ReasonFuel: s.fuelled.Load()},
		Instances: int(s.instances.Load()), Memory: s.bytes.Load(),
		Created: s.created.Load(), Retired: s.retired.Load(), Time: time.Duration(s.nanos.Load()),
		Guest: time.Duration(s.guest.Load()), Fuel: s.fuel.Load(),
	}
}

// Unrepeatable is why what the function said until now may differ another time; "" if nothing is known that
// makes it so.
func (f *Function) Unrepeatable() string {
	switch {
	case f.def.Allow.KV:
		return "it keeps state"
	case f.asked.Load():
		return "it calls other hosts"
	case f.timed.Load():
		return "it reads the clock"
	}
	return ""
}

// Close ends the function: calls under way finish, later ones fail. If ctx ends first it says so and
// may be called again.
func (f *Function) Close(ctx context.Context) error {
	f.once.Do(func() { close(f.closing) })
	f.closes.Lock()
	defer f.closes.Unlock()
	if f.held > cap(f.slots) {
		return nil // closed before
	}
	for ; f.held < cap(f.slots); f.held++ {
		select {
		case f.slots <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("function %s: close: calls are still under way: %w", f.def.Name, ctx.Err())
		}
	}
	f.held++
	var err error
	f.mu.Lock()
	idle := f.idle
	f.idle = nil
	f.mu.Unlock()
	for _, in := range idle {
		err = errors.Join(err, in.close(ctx))
	}
	f.host.mu.Lock()
	delete(f.host.open, f)
	f.host.mu.Unlock()
	f.mu.Lock()
	code := f.code
	f.code = nil
	f.mu.Unlock()
	return errors.Join(err, f.host.release(ctx, code))
}

// enter waits for a turn to work.
func (f *Function) enter(ctx context.Context) error {
	select { // a closed function must not be entered even where a slot is free
	case <-f.closing:
		return fmt.Errorf("function %s: %w", f.def.Name, errClosed)
	default:
	}
	select {
	case f.slots <- struct{}{}:
		return nil
	case <-f.closing:
		return fmt.Errorf("function %s: %w", f.def.Name, errClosed)
	case <-ctx.Done():
		return ctx.Err()
	}
}
