package meter_test

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/millrace/millrace/plugins/meter"
)

// A subject is a guest whose cost is measured: call does one piece of work.
type subject struct {
	name string
	call func(t testing.TB, mod api.Module) func()
	wasm []byte
}

func build(t testing.TB, source string, command func(out string) *exec.Cmd) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "guest.wasm")
	if msg, err := command(out).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", source, err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func kernels(t testing.TB) []byte {
	return build(t, "kernels.c", func(out string) *exec.Cmd {
		return exec.Command("clang-19", "--target=wasm32-unknown-unknown", "-nostdlib", "-O2", "-mbulk-memory", "-Wl,--no-entry", "-o", out, "testdata/kernels.c")
	})
}

func rustGuest(t testing.TB) []byte {
	return build(t, "scan.rs", func(out string) *exec.Cmd {
		return exec.Command("/usr/bin/rustc", "--edition", "2021", "-O", "-C", "panic=abort", "-C", "lto", "-C", "strip=symbols",
			"--target", "wasm32-unknown-unknown", "--crate-type", "cdylib", "-o", out, "testdata/scan.rs")
	})
}

func redactC(t testing.TB) []byte {
	return build(t, "redact.c", func(out string) *exec.Cmd {
		return exec.Command("clang-19", "--target=wasm32-wasi", "-mexec-model=reactor", "-O3", "-mbulk-memory", "-Wl,--strip-all", "-o", out, "../abi/native/testdata/redact.c")
	})
}

func redactGo(t testing.TB) []byte {
	b, err := os.ReadFile("../../examples/quickstart/functions/redact.wasm")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// export calls an exported function without parameters, prepare() having been called once.
func export(name string) func(t testing.TB, mod api.Module) func() {
	return func(t testing.TB, mod api.Module) func() {
		ctx := context.Background()
		if _, err := mod.ExportedFunction("prepare").Call(ctx); err != nil {
			t.Fatal(err)
		}
		f := mod.ExportedFunction(name)
		stack := make([]uint64, 1)
		return func() {
			if err := f.CallWithStack(ctx, stack); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// handle gives a guest of the native ABI a batch of 16 events of 1 KiB.
func handle(t testing.TB, mod api.Module) func() {
	ctx := context.Background()
	data := `{"order":"o-1","total":12.5,"note":"` + strings.Repeat("lorem ipsum ", 70) + `","email":"ann@example.com","items":[{"sku":"a","n":1},{"sku":"b","n":2}]}`
	const n = 16
	batch := make([]byte, 24)
	for range n {
		rec := make([]byte, 48)
		rec = append(rec, data...)
		for len(rec)%8 != 0 {
			rec = append(rec, 0)
		}
		binary.LittleEndian.PutUint32(rec, uint32(len(rec)))
		binary.LittleEndian.PutUint32(rec[32:], 48)
		binary.LittleEndian.PutUint32(rec[36:], uint32(len(data)))
		binary.LittleEndian.PutUint32(rec[40:], 48)
		batch = append(batch, rec...)
	}
	binary.LittleEndian.PutUint16(batch, 1)
	binary.LittleEndian.PutUint32(batch[4:], n)
	binary.LittleEndian.PutUint32(batch[8:], uint32(len(batch)))
	buffer, run := mod.ExportedFunction("millrace_buffer"), mod.ExportedFunction("millrace_handle")
	stack := make([]uint64, 2)
	return func() {
		stack[0] = uint64(len(batch))
		if err := buffer.CallWithStack(ctx, stack); err != nil {
			t.Fatal(err)
		}
		if !mod.Memory().Write(uint32(stack[0]), batch) {
			t.Fatal("no room")
		}
		stack[1] = uint64(len(batch))
		if err := run.CallWithStack(ctx, stack); err != nil {
			t.Fatal(err)
		}
		if stack[0] == 0 {
			t.Fatal("the guest gave up")
		}
	}
}

// subjects are the guests that the documentation's table is about.
func subjects(t testing.TB) []subject {
	k, rs := kernels(t), rustGuest(t)
	list := []subject{
		{"C/redact", handle, redactC(t)},
		{"Go/redact", handle, redactGo(t)},
		{"Rust/scan", export("scan"), rs},
		{"Rust/numbers", export("numbers"), rs},
	}
	for _, name := range []string{"find", "scan", "hash", "matrix", "fib", "calls", "sieve", "copies"} {
		list = append(list, subject{"C/" + name, export(name), k})
	}
	return list
}

// launch instantiates a guest with whatever it imports: WASI, the meter, and functions that answer "not found".
func launch(t testing.TB, wasm []byte, k *tank) api.Module {
	t.Helper()
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler())
	t.Cleanup(func() {
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	if k != nil {
		wasm = instrument(t, wasm)
		if err := k.install(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	c, err := r.CompileModule(ctx, wasm)
	if err != nil {
		t.Fatal(err)
	}
	stubs := map[string]wazero.HostModuleBuilder{}
	for _, f := range c.ImportedFunctions() {
		module, name, _ := f.Import()
		if module == meter.TickModule || module == wasi_snapshot_preview1.ModuleName {
			continue
		}
		if stubs[module] == nil {
			stubs[module] = r.NewHostModuleBuilder(module)
		}
		stubs[module].NewFunctionBuilder().WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) {
			stack[0] = ^uint64(0)
		}), f.ParamTypes(), f.ResultTypes()).Export(name)
	}
	for _, b := range stubs {
		if _, err := b.Instantiate(ctx); err != nil {
			t.Fatal(err)
		}
	}
	mod, err := r.InstantiateModule(ctx, c, wazero.NewModuleConfig().WithStartFunctions("_initialize").WithStdout(os.Stderr).WithStderr(os.Stderr))
	if err != nil {
		t.Fatal(err)
	}
	return mod
}

// BenchmarkCost prints, for each guest, how much longer it takes metered. The two run in turns, so that what
// else the machine does hits both; each counts with its quickest turns.
func BenchmarkCost(b *testing.B) {
	for _, s := range subjects(b) {
		b.Run(s.name, func(b *testing.B) {
			k := &tank{}
			p, m := launch(b, s.wasm, nil), launch(b, s.wasm, k)
			plain, metered := s.call(b, p), s.call(b, m)
			plain()
			metered()
			const turn = 500 * time.Microsecond
			var turns [2][]float64
			before, ticks := k.total(m), k.ticks
			calls := 0
			for b.Loop() {
				for i, f := range []func(){plain, metered} {
					n, begin := 0, time.Now()
					for time.Since(begin) < turn {
						f()
						n++
					}
					turns[i] = append(turns[i], float64(time.Since(begin).Nanoseconds())/float64(n))
					calls += n * i
				}
			}
			fast := func(v []float64) float64 {
				slices.Sort(v)
				return v[len(v)/10]
			}
			was, is := fast(turns[0]), fast(turns[1])
			b.ReportMetric(was/1000, "µs-plain")
			b.ReportMetric((is/was-1)*100, "%-more")
			b.ReportMetric(float64(k.total(m)-before)/float64(calls)/is*1, "fuel/ns")
			if n := k.ticks - ticks; n > 0 {
				b.ReportMetric(is*float64(calls)/float64(n)/1000, "µs/tick")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// TestGuests: real guests do the same work metered, and spend the same fuel each time.
func TestGuests(t *testing.T) {
	for _, s := range subjects(t) {
		t.Run(s.name, func(t *testing.T) {
			k := &tank{}
			p, m := launch(t, s.wasm, nil), launch(t, s.wasm, k)
			plain, metered := s.call(t, p), s.call(t, m)
			for range 3 {
				plain()
				metered()
			}
			sameState(t, p, m)
			if k.total(m) == 0 {
				t.Error("no fuel was spent")
			}
			t.Logf("%d bytes, %d metered", len(s.wasm), len(instrument(t, s.wasm)))
		})
	}
}
