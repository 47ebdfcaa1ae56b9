// Package redpanda runs data transforms that were built with an SDK of Redpanda, as they are. Records are events in
// the binary mode of CloudEvents' Kafka binding. docs/abi-others.md says how.
package redpanda

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi"
)

// ABI is the convention. The zero value is ready.
type ABI struct{}

const (
	transformModule = "redpanda_transform"
	registryModule  = "redpanda_schema_registry"
	startFn         = "_start"
)

// Speaks reports whether m imports what Redpanda's SDKs import.
func (ABI) Speaks(m *plugins.Module) bool { return m.ImportsFrom(transformModule) }

// Check wants a program.
func (ABI) Check(m *plugins.Module) error {
	if !m.Export(plugins.Func, startFn) {
		return event.Invalid("export "+startFn, "is missing; a data transform is a program: build it with GOOS=wasip1 GOARCH=wasm go build -o f.wasm .")
	}
	if !m.Export(plugins.Memory, "memory") {
		return event.Invalid("export memory", "is missing; a data transform exports its memory")
	}
	return nil
}

// Once reports that a transform goes on to the next batch when it is done with one.
func (ABI) Once() bool { return false }

// Start gives a transform its configuration as its environment, as Redpanda does.
func (ABI) Start(name string, config map[string]string) (args, env []string, err error) {
	for key, value := range config {
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.ContainsRune(value, 0) {
			return nil, nil, event.Invalid("config", fmt.Sprintf("%.60q cannot be in a transform's environment; leave out = and zero bytes", key))
		}
		env = append(env, key+"="+value)
	}
	slices.Sort(env)
	return []string{name}, env, nil
}

// Link makes the host's functions known.
func (ABI) Link(ctx context.Context, r wazero.Runtime) error { return link(ctx, r) }

// Bind finds the transform's entry.
func (ABI) Bind(in *plugins.Instance) (plugins.Guest, error) {
	start := in.Export(startFn)
	if start == nil || len(start.Definition().ParamTypes())+len(start.Definition().ResultTypes()) != 0 {
		return nil, fmt.Errorf("%s is missing or has parameters or results; a program's has none", startFn)
	}
	g := &guest{in: in}
	// A transform asks for batches in a loop that never ends. It is a coroutine: asking suspends it in the middle of
	// a host function, and Handle goes on with it.
	g.next, g.stop = iter.Pull(func(yield func(struct{}) bool) {
		g.yield = yield
		g.err = in.Invoke(start, nil)
	})
	return g, nil
}

var (
	errStopped = errors.New("the transform is no longer needed")
	errEarly   = errors.New("the module calls the host before it was started")
	errEnded   = errors.New("the transform ended instead of asking for records; it must call OnRecordWritten, which does not return")
)

// guest is a transform at work.
type guest struct {
	in    *plugins.Instance
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	err   error // why the transform ended

	b       *plugins.Batch // nil between runs
	out     *plugins.Outcome
	at      int // the event at work; -1: none was read
	first   int // of the run's results
	written int // bytes
	said    abi.Said
	payload []byte // of the event at work
	scratch event.Event
}

// Start runs the transform up to where it asks for its first batch.
func (g *guest) Start() error {
	if _, waits := g.next(); waits {
		return nil
	}
	return g.ended()
}

// End ends the transform where it waits.
func (g *guest) End() { g.stop() }

func (g *guest) ended() error {
	if g.err != nil {
		return g.err
	}
	return &plugins.GuestError{Reason: plugins.ReasonTrap, Index: -1, Err: errEnded}
}

// Cursor is the event that was read last.
func (g *guest) Cursor() int { return max(g.at, 0) }

// Handle gives the transform its batch, and takes what it writes until it asks for the next.
func (g *guest) Handle(b *plugins.Batch, out *plugins.Outcome) error {
	g.b, g.out, g.at, g.first, g.written = b, out, -1, len(out.Results), 0
	_, waits := g.next()
	g.b, g.out = nil, nil
	if !waits {
		return g.ended()
	}
	if g.at+1 < b.Len() {
		return plugins.BadOutput(g.at+1, "the transform asked for another batch after %d of %d records", g.at+1, b.Len())
	}
	return nil
}

// settle says of the event at work what its silence means: it is dropped.
func (g *guest) settle() {
	if g.b != nil && g.at >= 0 && g.at < g.b.Len() && g.said.Nothing() {
		g.add(plugins.Result{Verdict: plugins.Drop})
	}
}

// add appends a result of the event at work, or ends the call.
func (g *guest) add(r plugins.Result) {
	bad := func(format string, args ...any) { g.in.End(plugins.BadOutput(g.at, format, args...)) }
	if len(g.out.Results)-g.first >= g.b.MaxResults {
		bad("more than %d results of one call", g.b.MaxResults)
	}
	r.Index = g.b.Index(g.at)
	if err := g.said.Add(&r, g.out); err != nil {
		bad("%w", err)
	}
	if r.Verdict == plugins.Emit {
		if err := abi.CheckEmit(&r, g.b.Event(g.at), &g.scratch); err != nil {
			bad("the record written for event %d: %w", g.at, err)
		}
	}
	g.out.Results = append(g.out.Results, r)
}

// hostFunction is a function that transforms import. All its parameters are i32; its result, if it has one, too.
type hostFunction struct {
	module, name string
	params       int
	result       bool
	fn           func(g *guest, s []uint64)
}

func link(ctx context.Context, r wazero.Runtime) error {
	nothing := func(*guest, []uint64) {}
	absent := func(_ *guest, s []uint64) { s[0] = code(-1) } // there is no registry
	list := []hostFunction{
		{transformModule, "check_abi_version_1", 0, false, nothing},
		{transformModule, "check_abi_version_2", 0, false, nothing},
		{transformModule, "read_batch_header", 10, true, (*guest).readBatchHeader},
		{transformModule, "read_next_record", 5, true, (*guest).readNextRecord},
		{transformModule, "write_record", 2, true, (*guest).writeRecord},
		{transformModule, "write_record_with_options", 4, true, (*guest).writeRecordWithOptions},
		{registryModule, "check_abi_version_0", 0, false, nothing},
		{registryModule, "get_schema_definition_len", 2, true, absent},
		{registryModule, "get_schema_definition", 3, true, absent},
		{registryModule, "get_subject_schema_len", 4, true, absent},
		{registryModule, "get_subject_schema", 5, true, absent},
		{registryModule, "create_subject_schema", 5, true, absent},
	}
	for _, module := range []string{transformModule, registryModule} {
		b := r.NewHostModuleBuilder(module)
		for _, f := range list {
			if f.module != module {
				continue
			}
			var results []api.ValueType
			if f.result {
				results = []api.ValueType{api.ValueTypeI32}
			}
			b.NewFunctionBuilder().WithGoFunction(api.GoFunc(func(ctx context.Context, s []uint64) {
				in := plugins.InstanceOf(ctx)
				g, ok := in.Guest().(*guest)
				if !ok {
					in.End(errEarly)
				}
				f.fn(g, s)
			}), slices.Repeat([]api.ValueType{api.ValueTypeI32}, f.params), results).Export(f.name)
		}
		if _, err := b.Instantiate(ctx); err != nil {
			return err
		}
	}
	return nil
}

func code(n int32) uint64 { return uint64(uint32(n)) }
