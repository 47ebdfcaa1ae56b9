package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/millrace/millrace/plugins/meter"
)

// samples are the languages whose sample function is metered, with what metering may cost.
var samples = []struct {
	name  string
	floor float64
}{{"Rust", 1.10}, {"AssemblyScript", 1.10}, {"Go", 1.10}, {"C", 1.30}}

// meterBatch is how many events a call of a sample has.
const meterBatch = 16

// variantOptions say how a guest is run without the host of functions.
type variantOptions struct {
	metered bool
	checked bool // by the engine's own deadline check, with the calls' context, which may be cancelled
}

// A variant is one guest on an engine of its own, without the host of functions: its host functions know nothing.
type variant struct {
	runtime wazero.Runtime
	mod     api.Module
	gauge   meter.Gauge // if it is metered
}

func newVariant(ctx context.Context, module []byte, o variantOptions) (_ *variant, err error) {
	v := &variant{}
	v.runtime = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithCloseOnContextDone(o.checked))
	defer func() {
		if err != nil {
			v.close(ctx)
		}
	}()
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, v.runtime); err != nil {
		return nil, err
	}
	if o.metered {
		if module, err = meter.Instrument(module, meter.Options{}); err != nil {
			return nil, err
		}
	}
	code, err := v.runtime.CompileModule(ctx, module)
	if err != nil {
		return nil, err
	}
	if err := v.link(ctx, code); err != nil {
		return nil, err
	}
	start := wazero.NewModuleConfig().WithStartFunctions("_initialize")
	if v.mod, err = v.runtime.InstantiateModule(ctx, code, start); err != nil {
		return nil, err
	}
	if _, err := v.mod.ExportedFunction("millrace_abi_v1").Call(ctx); err != nil { // the first that the convention's guests are asked
		return nil, err
	}
	if o.metered {
		var ok bool
		if v.gauge, ok = meter.GaugeOf(v.mod); !ok {
			return nil, errors.New("the metered module has no gauge")
		}
	}
	return v, nil
}

// link gives a guest what it imports: a tick that grants slice after slice, and functions that answer "not found".
func (v *variant) link(ctx context.Context, code wazero.CompiledModule) error {
	hosts := map[string]wazero.HostModuleBuilder{}
	for _, f := range code.ImportedFunctions() {
		module, name, _ := f.Import()
		if module == wasi_snapshot_preview1.ModuleName {
			continue
		}
		if hosts[module] == nil {
			hosts[module] = v.runtime.NewHostModuleBuilder(module)
		}
		answer := uint64(1<<64 - 1)
		if module == meter.TickModule {
			answer = meter.Slice
		}
		hosts[module].NewFunctionBuilder().WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) {
			if len(stack) > 0 {
				stack[0] = answer
			}
		}), f.ParamTypes(), f.ResultTypes()).Export(name)
	}
	for _, h := range hosts {
		if _, err := h.Instantiate(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (v *variant) close(ctx context.Context) {
	_ = v.runtime.Close(context.WithoutCancel(ctx)) // nothing of its guests is open
}

// handler makes a call that hands a batch to the guest, as the native convention does, and returns the guest's answer.
func (v *variant) handler(ctx context.Context, batch []byte) func() ([]byte, error) {
	buffer, handle := v.mod.ExportedFunction("millrace_buffer"), v.mod.ExportedFunction("millrace_handle")
	_, metered := meter.GaugeOf(v.mod)
	memory, stack := v.mod.Memory(), make([]uint64, 2)
	return func() ([]byte, error) {
		if metered {
			v.gauge.Grant(meter.Slice)
		}
		stack[0] = uint64(len(batch))
		if err := buffer.CallWithStack(ctx, stack); err != nil {
			return nil, err
		}
		at := uint32(stack[0])
		if at == 0 || !memory.Write(at, batch) {
			return nil, fmt.Errorf("millrace_buffer(%d) returned %d: there is no room for the events", len(batch), at)
		}
		stack[0], stack[1] = uint64(at), uint64(len(batch))
		if err := handle.CallWithStack(ctx, stack); err != nil {
			return nil, err
		}
		answer, ok := memory.Read(uint32(stack[0]>>32), uint32(stack[0]))
		if !ok || len(answer) == 0 {
			return nil, fmt.Errorf("millrace_handle returned %#x, which is no answer", stack[0])
		}
		return answer, nil
	}
}

// nativeBatch is a batch as the native convention lays it out; see docs/abi.md.
func nativeBatch(n int, data []byte) []byte {
	b := make([]byte, 24)
	for _, r := range orders(n, data).Events {
		b = append(b, r...)
	}
	binary.LittleEndian.PutUint16(b, 1)
	binary.LittleEndian.PutUint32(b[4:], uint32(n))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)))
	return b
}

// enrichData is an order of 1 KiB and some with many members, of which the sample function changes one and adds another.
func enrichData() []byte { return append([]byte(`{"email":"ann@example.com",`), filterData()[1:]...) }

// measureMeter measures the sample function of a language as it is, metered, and with the engine's own deadline check.
func measureMeter(language string) measurement {
	key := strings.ToLower(language)
	return measurement{name: "metering, " + language, gives: []string{"plain-" + key, "metered-" + key, "checked-" + key},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			module, err := l.module(ctx, language)
			if err != nil {
				return err
			}
			batch := nativeBatch(meterBatch, enrichData())
			var calls []func() error
			var want []byte
			for _, o := range []variantOptions{{}, {metered: true}, {checked: true}} {
				v, err := newVariant(ctx, module, o)
				if err != nil {
					return err
				}
				defer v.close(ctx)
				call := v.handler(ctx, batch)
				got, err := call()
				if err != nil {
					return err
				}
				if n := bytes.Count(got, []byte(`"enriched":true`)); n != meterBatch {
					return fmt.Errorf("the guest enriched %d of %d events", n, meterBatch)
				}
				if want == nil {
					want = bytes.Clone(got)
				} else if !bytes.Equal(got, want) {
					return fmt.Errorf("the guest's answer differs with %+v", o)
				}
				calls = append(calls, func() error {
					_, err := call()
					return err
				})
			}
			took, err := inTurns(ctx, l.length(), calls)
			if err != nil {
				return err
			}
			for i, kind := range []string{"plain-", "metered-", "checked-"} {
				put(kind+key, took[i]/meterBatch)
			}
			return nil
		}}
}
