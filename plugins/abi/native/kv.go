package native

import (
	"context"
	"errors"

	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/plugins"
)

// The functions of a guest's state. What they answer besides 0 or a size is in docs/state.md.

// hostFunction is one function of the host module.
type hostFunction struct {
	name    string
	in, out []api.ValueType
	fn      api.GoFunc
}

func stateFunctions() []hostFunction {
	i32, i64 := api.ValueTypeI32, api.ValueTypeI64
	return []hostFunction{
		{"kv_get", []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i64}, kvGet},
		{"kv_put", []api.ValueType{i32, i32, i32, i32, i64}, []api.ValueType{i32}, kvPut},
		{"kv_del", []api.ValueType{i32, i32}, []api.ValueType{i32}, kvDel},
		{"kv_add", []api.ValueType{i32, i32, i64, i32}, []api.ValueType{i32}, kvAdd},
	}
}

// stateCode is what a guest is told of an error.
func stateCode(err error) int64 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, plugins.ErrStateNotFound):
		return notFound
	case errors.Is(err, plugins.ErrStateDenied):
		return denied
	case errors.Is(err, plugins.ErrStateTooBig):
		return tooBig
	}
	return badArgument
}

// code32 is an i32 result on the stack, where the upper half must be zero.
func code32(n int64) uint64 { return uint64(uint32(int32(n))) }

// kvGet is kv_get(k, klen, buf, cap) -> size. Above cap nothing is written.
func kvGet(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	buf, room := uint32(s[2]), uint32(s[3])
	key, ok := in.Memory().Read(uint32(s[0]), uint32(s[1]))
	if !ok {
		s[0] = code(badArgument)
		return
	}
	value, err := in.StateGet(key)
	if err != nil {
		s[0] = code(stateCode(err))
		return
	}
	in.Work(len(value))
	s[0] = uint64(len(value))
	if uint64(len(value)) <= uint64(room) && len(value) > 0 && !in.Memory().Write(buf, value) {
		s[0] = code(badArgument)
	}
}

// kvPut is kv_put(k, klen, v, vlen, ttl_ms) -> code.
func kvPut(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	key, okKey := in.Memory().Read(uint32(s[0]), uint32(s[1]))
	value, okValue := in.Memory().Read(uint32(s[2]), uint32(s[3]))
	if !okKey || !okValue {
		s[0] = code32(badArgument)
		return
	}
	s[0] = code32(stateCode(in.StatePut(key, value, int64(s[4]))))
}

// kvDel is kv_del(k, klen) -> code.
func kvDel(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	key, ok := in.Memory().Read(uint32(s[0]), uint32(s[1]))
	if !ok {
		s[0] = code32(badArgument)
		return
	}
	s[0] = code32(stateCode(in.StateDelete(key)))
}

// kvAdd is kv_add(k, klen, delta, out) -> code; at out, 8 bytes, it puts the new number. out is looked at
// first: a guest that is told of a bad argument has changed nothing.
func kvAdd(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	out := uint32(s[3])
	key, okKey := in.Memory().Read(uint32(s[0]), uint32(s[1]))
	_, okOut := in.Memory().Read(out, 8)
	if !okKey || !okOut {
		s[0] = code32(badArgument)
		return
	}
	n, err := in.StateAdd(key, int64(s[2]))
	if err == nil {
		in.Memory().WriteUint64Le(out, uint64(n))
	}
	s[0] = code32(stateCode(err))
}
