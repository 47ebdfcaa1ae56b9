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
	host *Host
	def  event.Function
	abi  ABI
	code *compiled
	cfg  wazero.ModuleConfig // what all instances share
	logs logBudget
	say  func(level int, message string) // takes what passes the budget

	slots   chan struct{} // a token for every call at work
	closing chan struct{}
	once    sync.Once
	closes  sync.Mutex // one Close at a time
	held    int        // slots that Close has taken; under closes

	mu   sync.Mutex
	idle []*Instance // the last used is the next

	stats counters
}

type counters struct {
	calls, events, reruns, created, retired atomic.Uint64
	trap, memory, output, rejects           atomic.Uint64
	stateReads, stateWrites                 atomic.Uint64
	nanos, instances, bytes                 atomic.Int64
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

	StateReads, StateWrites uint64 // of its kv_ functions; kv_add is one of each
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
	f, err := h.newFunction(ctx, def, say)
	if err != nil {
		return nil, fmt.Errorf("function %s: %w", def.Name, err)
	}
	return f, nil
}

func (h *Host) newFunction(ctx context.Context, def event.Function, say func(int, string)) (*Function, error) {
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
	code, err := h.compile(ctx, m, def.Digest, def.Limits.Memory)
	if err != nil {
		return nil, err
	}
	f := &Function{host: h, def: def, say: say, abi: abi, code: code, slots: make(chan struct{}, h.o.Instances), closing: make(chan struct{})}
	f.logs.now = h.o.Now
	f.cfg = wazero.NewModuleConfig().WithName("").WithStartFunctions()
	in, err := f.instantiate(ctx)
	if err != nil {
		return nil, errors.Join(event.Bad(event.ErrInvalid, "module", err.Error()), h.release(ctx, code))
	}
	f.idle = append(f.idle, in)
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
	return FunctionStats{
		Calls: s.calls.Load(), Events: s.events.Load(), Reruns: s.reruns.Load(), Rejects: s.rejects.Load(),
		Failures:  map[Reason]uint64{ReasonTrap: s.trap.Load(), ReasonMemory: s.memory.Load(), ReasonOutput: s.output.Load()},
		Instances: int(s.instances.Load()), Memory: s.bytes.Load(),
		Created: s.created.Load(), Retired: s.retired.Load(), Time: time.Duration(s.nanos.Load()),
		StateReads: s.stateReads.Load(), StateWrites: s.stateWrites.Load(),
	}
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
	for _, in := range f.idle {
		err = errors.Join(err, in.close(ctx))
	}
	f.idle = nil
	f.host.mu.Lock()
	delete(f.host.open, f)
	f.host.mu.Unlock()
	return errors.Join(err, f.host.release(ctx, f.code))
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

// take returns an idle instance or a new one.
func (f *Function) take(ctx context.Context) (*Instance, error) {
	f.mu.Lock()
	if n := len(f.idle); n > 0 {
		in := f.idle[n-1]
		f.idle[n-1] = nil
		f.idle = f.idle[:n-1]
		f.mu.Unlock()
		return in, nil
	}
	f.mu.Unlock()
	return f.instance(ctx)
}

// instance makes a new instance for a call.
func (f *Function) instance(ctx context.Context) (*Instance, error) {
	in, err := f.instantiate(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("function %s is unhealthy: %w: %w", f.def.Name, event.ErrUnavailable, err)
	}
	return in, nil
}

// put keeps an instance for the next call, unless its memory, which never shrinks, has grown so far that
// a later event would pay for it.
func (f *Function) put(ctx context.Context, in *Instance) {
	if in.grown() {
		f.retire(ctx, in)
		return
	}
	f.mu.Lock()
	f.idle = append(f.idle, in)
	f.mu.Unlock()
}

func (f *Function) retire(ctx context.Context, in *Instance) {
	f.stats.retired.Add(1)
	_ = in.close(ctx) // without files an instance has nothing whose closing could fail
}
