package native

import (
	"context"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/plugins"
)

const hostModule = "millrace_v1"

// What the i64 results of host functions say besides a size.
const (
	notFound    = -1
	denied      = -2
	tooBig      = -3
	deadline    = -4
	ioError     = -5
	badArgument = -6
)

type runtime = wazero.Runtime

// link makes the host functions. A pointer out of bounds is badArgument where there is a result to say
// so, else nothing happens: a guest harms only itself.
func link(ctx context.Context, r runtime) error {
	i32, i64 := api.ValueTypeI32, api.ValueTypeI64
	b := r.NewHostModuleBuilder(hostModule)
	for _, f := range append(stateFunctions(), []hostFunction{
		{"log", []api.ValueType{i32, i32, i32}, nil, logMessage},
		{"config_get", []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i64}, configGet},
		{"now", nil, []api.ValueType{i64}, func(ctx context.Context, s []uint64) { s[0] = uint64(plugins.InstanceOf(ctx).Now()) }},
		{"clock", nil, []api.ValueType{i64}, func(ctx context.Context, s []uint64) { s[0] = uint64(plugins.InstanceOf(ctx).Clock()) }},
		{"random", []api.ValueType{i32, i32}, nil, random},
		{"secret_get", []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i64}, secretGet},
		{"counter_add", []api.ValueType{i32, i32, i64}, nil, counterAdd},
		{"http", []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i64}, httpCall},
	}...) {
		b.NewFunctionBuilder().WithGoFunction(f.fn, f.in, f.out).Export(f.name)
	}
	_, err := b.Instantiate(ctx)
	return err
}

// logMessage is log(level, ptr, len).
func logMessage(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	if msg, ok := in.Memory().Read(uint32(s[1]), uint32(s[2])); ok {
		in.Log(int(int32(s[0])), msg)
	}
}

// configGet is config_get(k, klen, buf, cap) -> size.
func configGet(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	key, ok := in.Memory().Read(uint32(s[0]), uint32(s[1]))
	if !ok {
		s[0] = code(badArgument)
		return
	}
	value, ok := in.Config(key)
	if !ok {
		s[0] = code(notFound)
		return
	}
	s[0] = give(in, value, uint32(s[2]), uint32(s[3]))
}

// random is random(ptr, len).
func random(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	if p, ok := in.Memory().Read(uint32(s[0]), uint32(s[1])); ok {
		in.Random(p)
	}
}

func code(n int64) uint64 { return uint64(n) }
