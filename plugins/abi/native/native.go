// Package native is the router's own calling convention, millrace_v1: a batch of records in, results out,
// both in the guest's memory, copied once each way. docs/functions.md has the layout.
package native

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// ABI is the convention. The zero value is ready.
type ABI struct{}

// What a guest exports.
const (
	marker   = "millrace_abi_v1"
	bufferFn = "millrace_buffer"
	handleFn = "millrace_handle"
	memoryOf = "memory"
)

// Feature bits that the marker returns: what a guest cannot do without.
const (
	featureKV = 1 << iota
	featureHTTP
	featureReply
	featureSecrets

	supported = featureKV | featureHTTP | featureReply | featureSecrets
)

var features = [...]string{"kv", "http", "reply", "secrets"}

var le = binary.LittleEndian

// Speaks reports whether m exports the marker.
func (ABI) Speaks(m *plugins.Module) bool { return m.Export(plugins.Func, marker) }

// Check names the exports that are missing.
func (ABI) Check(m *plugins.Module) error {
	f := &event.Faults{Is: event.ErrInvalid}
	for _, name := range []string{bufferFn, handleFn} {
		if !m.Export(plugins.Func, name) {
			f.List = append(f.List, event.Fault{At: "export " + name, Detail: "is missing; " + marker + " promises it"})
		}
	}
	if !m.Export(plugins.Memory, memoryOf) {
		f.List = append(f.List, event.Fault{At: "export " + memoryOf, Detail: "is missing; the host reads and writes the guest's memory"})
	}
	if m.Export(plugins.Func, "_start") && !m.Export(plugins.Func, "_initialize") {
		f.List = append(f.List, event.Fault{At: "export _initialize", Detail: "is missing while there is _start: the module was built as a program, whose runtime would never begin; build it so: " + plugins.HowToBuild + " (C: -mexec-model=reactor)"})
	}
	if len(f.List) > 0 {
		return f
	}
	return nil
}

// Bind checks the exports' types and the features that the guest asks for.
func (ABI) Bind(in *plugins.Instance) (plugins.Guest, error) {
	i32, i64 := api.ValueTypeI32, api.ValueTypeI64
	g := &guest{in: in}
	var mark api.Function
	for _, e := range []struct {
		fn      *api.Function
		name    string
		in, out []api.ValueType
		is      string
	}{
		{&mark, marker, nil, []api.ValueType{i32}, "() -> i32"},
		{&g.buffer, bufferFn, []api.ValueType{i32}, []api.ValueType{i32}, "(i32) -> i32"},
		{&g.handle, handleFn, []api.ValueType{i32, i32}, []api.ValueType{i64}, "(i32, i32) -> i64"},
	} {
		fn := in.Export(e.name)
		if fn == nil {
			return nil, fmt.Errorf("export %s is missing", e.name)
		}
		if d := fn.Definition(); string(d.ParamTypes()) != string(e.in) || string(d.ResultTypes()) != string(e.out) {
			return nil, fmt.Errorf("export %s has another type than %s", e.name, e.is)
		}
		*e.fn = fn
	}
	if err := in.Invoke(mark, g.stack[:1]); err != nil {
		return nil, fmt.Errorf("%s failed: %w", marker, err)
	}
	wanted := uint32(g.stack[0])
	var missing []string
	for rest := wanted &^ supported; rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros32(rest)
		if bit < len(features) {
			missing = append(missing, fmt.Sprintf("%s (bit %d)", features[bit], 1<<bit))
		} else {
			missing = append(missing, fmt.Sprintf("bit %d, which is unknown", uint32(1)<<bit))
		}
	}
	if missing != nil {
		return nil, fmt.Errorf("%s asks for features that are not in this build: %s", marker, strings.Join(missing, ", "))
	}
	if wanted&featureKV != 0 && !in.AllowsState() {
		return nil, fmt.Errorf("%s asks for state (bit %d), which the function may not keep; give it `allow: {kv: true}`", marker, featureKV)
	}
	return g, nil
}

// guest is an instance that speaks the convention.
type guest struct {
	in             *plugins.Instance
	buffer, handle api.Function
	stack          [2]uint64
	batch          uint32      // where the batch at work lies; 0: none
	scratch        event.Event // an Emit under examination

	answer   string // of the last http call, until it was fetched whole or another event is at work
	answerOf int    // the event that it was for, by Instance.At
}

// Layout of a batch's header.
const (
	batchHeader  = 24
	batchVersion = 1
	cursorAt     = 12
)

// Cursor reads what the guest says to be working on.
func (g *guest) Cursor() int {
	if g.batch == 0 {
		return 0
	}
	c, ok := g.in.Memory().ReadUint32Le(g.batch + cursorAt)
	if !ok {
		return -1
	}
	return int(c)
}

// Handle copies the batch into the guest, calls it, and copies its results out.
func (g *guest) Handle(b *plugins.Batch, out *plugins.Outcome) error {
	g.batch = 0
	n := batchHeader
	for i := range b.Len() {
		n += b.Event(i).Len()
	}
	g.stack[0] = uint64(n)
	if err := g.in.Invoke(g.buffer, g.stack[:1]); err != nil {
		return err
	}
	ptr := uint32(g.stack[0])
	if ptr == 0 {
		return &plugins.GuestError{Reason: plugins.ReasonMemory, Index: -1,
			Err: fmt.Errorf("%s(%d) returned 0: the guest has no memory left for the events", bufferFn, n)}
	}
	view, ok := g.in.Memory().Read(ptr, uint32(n))
	if !ok || ptr%8 != 0 {
		return plugins.BadOutput(-1, "%s(%d) returned %d; want a multiple of 8 with %d bytes inside the memory of %d bytes",
			bufferFn, n, ptr, n, g.in.Memory().Size())
	}
	clear(view[:batchHeader])
	le.PutUint16(view, batchVersion)
	le.PutUint32(view[4:], uint32(b.Len()))
	le.PutUint32(view[8:], uint32(n))
	at := batchHeader
	for i := range b.Len() {
		rec := event.Record(view[at : at+copy(view[at:], b.Event(i)[:b.Event(i).Len()])])
		flags := uint16(0)
		if b.Attempt(i) > 1 {
			flags = event.FlagRedeliver
		}
		rec.SetAttempt(b.Attempt(i), flags)
		at += len(rec)
	}
	g.batch = ptr
	g.stack[0], g.stack[1] = uint64(ptr), uint64(n)
	if err := g.in.Invoke(g.handle, g.stack[:2]); err != nil {
		return err
	}
	return g.results(b, g.stack[0], out)
}

// Link makes the host module millrace_v1 known to r.
func (ABI) Link(ctx context.Context, r runtime) error { return link(ctx, r) }
