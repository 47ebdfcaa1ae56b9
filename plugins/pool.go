package plugins

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Machine code that nobody uses is kept ten times as long as instances are, where that is little: beyond warmCode
// of all functions together it goes with the instances.
const (
	coldAfter = 10
	warmCode  = 40 << 20
)

// take returns an idle instance or a new one.
func (f *Function) take(ctx context.Context) (*Instance, error) {
	f.mu.Lock()
	if n := len(f.idle); n > 0 {
		in := f.idle[n-1]
		f.idle[n-1] = nil
		f.idle = f.idle[:n-1]
		f.mu.Unlock()
		f.host.busy.Add(1)
		return in, nil
	}
	f.mu.Unlock()
	return f.instance(ctx)
}

// instance makes a new instance for a call, when the memory of all functions together allows one.
func (f *Function) instance(ctx context.Context) (*Instance, error) {
	if err := f.host.admit(ctx, f); err != nil {
		return nil, err
	}
	f.host.busy.Add(1)
	in, err := f.instantiate(ctx)
	if err != nil {
		f.host.freed()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("function %s is unhealthy: %w: %w", f.def.Name, event.ErrUnavailable, err)
	}
	return in, nil
}

// put keeps an instance for the next call, unless its memory, which never shrinks, has grown so far that
// a later event would pay for it, or it is spent after one run.
func (f *Function) put(ctx context.Context, in *Instance) {
	if in.isSpent() {
		_ = in.close(ctx)
		f.host.freed()
		return
	}
	if in.grown() {
		f.retire(ctx, in)
		return
	}
	in.used = f.host.now()
	f.used.Store(int64(in.used))
	f.mu.Lock()
	f.idle = append(f.idle, in)
	f.mu.Unlock()
	f.host.freed()
}

func (f *Function) retire(ctx context.Context, in *Instance) {
	f.stats.retired.Add(1)
	_ = in.close(ctx) // without files an instance has nothing whose closing could fail
	f.host.freed()
}

// Compiled reports whether the function's machine code is in memory. A call brings it back.
func (f *Function) Compiled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.code != nil
}

// hold keeps the function's machine code until drop, compiling it anew if it was given up.
func (f *Function) hold(ctx context.Context) (*compiled, error) {
	f.mu.Lock()
	f.live++
	code := f.code
	f.mu.Unlock()
	if code != nil {
		return code, nil
	}
	f.loading.Lock()
	defer f.loading.Unlock()
	f.mu.Lock()
	code = f.code
	f.mu.Unlock()
	if code != nil {
		return code, nil
	}
	code, err := f.load(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.live--
		return nil, err
	}
	f.code = code
	return code, nil
}

func (f *Function) drop() {
	f.mu.Lock()
	f.live--
	f.mu.Unlock()
}

// load compiles the function's module, as a rule from the cache.
func (f *Function) load(ctx context.Context) (*compiled, error) {
	file, err := f.host.Module(f.def.Digest)
	if err != nil {
		return nil, err
	}
	m, _, err := f.host.inspect(file)
	if err != nil {
		return nil, err
	}
	return f.host.compile(ctx, m, f.def.Digest, f.def.Limits.Memory)
}

// expel closes what the function has idle since before, and gives up its machine code too if cold.
func (f *Function) expel(ctx context.Context, before time.Duration, cold bool) {
	f.mu.Lock()
	n := 0 // the longest unused come first
	for n < len(f.idle) && f.idle[n].used <= before {
		n++
	}
	gone := slices.Clone(f.idle[:n])
	f.idle = slices.Delete(f.idle, 0, n)
	f.mu.Unlock()
	for _, in := range gone {
		_ = in.close(ctx)
	}
	var code *compiled
	f.mu.Lock()
	if cold && f.live == 0 && f.code != nil {
		code, f.code = f.code, nil
	}
	f.mu.Unlock()
	_ = f.host.release(ctx, code) // nothing of the module is open
}

// admit waits until the memory of all functions leaves room for another instance of f: idle ones make it,
// the longest unused first. While no other instance is at work there is always room.
func (h *Host) admit(ctx context.Context, f *Function) error {
	if h.bytes.Load() < h.o.Memory {
		return nil
	}
	h.waiters.Add(1)
	defer h.waiters.Add(-1)
	for {
		h.mu.Lock()
		room := h.room
		h.mu.Unlock()
		if h.shrink(ctx, f); h.bytes.Load() < h.o.Memory || h.busy.Load() == 0 {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// freed tells those who wait for room that there may be some.
func (h *Host) freed() {
	h.busy.Add(-1)
	over := h.bytes.Load() >= h.o.Memory
	if over {
		h.shrink(context.Background(), nil)
	}
	if h.waiters.Load() == 0 {
		return
	}
	h.mu.Lock()
	close(h.room)
	h.room = make(chan struct{})
	h.mu.Unlock()
}

// shrink closes what is idle, the longest unused first, until all functions fit into their memory.
func (h *Host) shrink(ctx context.Context, except *Function) {
	h.mu.Lock()
	open := make([]*Function, 0, len(h.open))
	for f := range h.open {
		if f != except {
			open = append(open, f)
		}
	}
	h.mu.Unlock()
	slices.SortFunc(open, func(a, b *Function) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
	for _, f := range open {
		if h.bytes.Load() < h.o.Memory {
			return
		}
		f.expel(ctx, h.now(), true)
	}
}

// reap gives up what nobody has used for a while, until the host is closed.
func (h *Host) reap() {
	defer close(h.reaped)
	t := time.NewTicker(max(h.o.Idle/4, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-h.closing:
			return
		}
		h.mu.Lock()
		open := make([]*Function, 0, len(h.open))
		for f := range h.open {
			open = append(open, f)
		}
		h.mu.Unlock()
		now := h.now()
		h.mu.Lock()
		var cold *compiled
		if h.warmed < now-h.o.Idle {
			cold, h.warm = h.warm, nil
		}
		h.mu.Unlock()
		_ = h.release(context.Background(), cold) // no instance has it alone
		slices.SortFunc(open, func(a, b *Function) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
		for _, f := range open {
			idle := now - time.Duration(f.used.Load())
			f.expel(context.Background(), now-h.o.Idle, idle > coldAfter*h.o.Idle || idle > h.o.Idle && h.bytes.Load() > warmCode)
		}
	}
}
