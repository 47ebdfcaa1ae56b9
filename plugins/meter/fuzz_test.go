package meter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins/meter"
)

// A world runs one module and notes all that can be seen of it from outside.
type world struct {
	mod  api.Module
	tank *tank
	seen []string
}

// enter compiles and instantiates wasm; every function it imports is noted and answers zeros. most bounds
// what a metered one may spend.
func enter(t testing.TB, wasm []byte, k *tank) (*world, error) {
	t.Helper()
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithMemoryLimitPages(512))
	t.Cleanup(func() {
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	w := &world{tank: k}
	if k != nil {
		if err := k.install(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	c, err := r.CompileModule(ctx, wasm)
	if err != nil {
		return nil, fmt.Errorf("compile: %w", err)
	}
	stubs := map[string]wazero.HostModuleBuilder{}
	for _, f := range c.ImportedFunctions() {
		module, name, _ := f.Import()
		if module == meter.TickModule {
			continue
		}
		if stubs[module] == nil {
			stubs[module] = r.NewHostModuleBuilder(module)
		}
		params, results := words(f.ParamTypes()), words(f.ResultTypes())
		stubs[module].NewFunctionBuilder().WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) {
			args := slices.Clone(stack[:params])
			for i, p := range f.ParamTypes() {
				if len(f.ParamTypes()) == params && (p == api.ValueTypeI32 || p == api.ValueTypeF32) {
					args[i] = uint64(uint32(args[i])) // the rest of the word means nothing
				}
			}
			w.seen = append(w.seen, fmt.Sprint(name, args))
			clear(stack[:results])
		}), f.ParamTypes(), f.ResultTypes()).Export(name)
	}
	for _, b := range stubs {
		if _, err := b.Instantiate(ctx); err != nil {
			return nil, err
		}
	}
	w.mod, err = r.InstantiateModule(ctx, c, wazero.NewModuleConfig().WithStartFunctions())
	return w, err
}

// call calls an export with arguments that depend on seed alone.
func (w *world) call(name string, seed uint64) error {
	f := w.mod.ExportedFunction(name)
	rnd := rand.New(rand.NewPCG(seed, 1))
	var args []uint64
	for _, p := range f.Definition().ParamTypes() {
		v := []uint64{0, 1, 7, 1 << 16, rnd.Uint64(), ^uint64(0)}[rnd.IntN(6)]
		switch p {
		case api.ValueTypeI32, api.ValueTypeF32:
			v = uint64(uint32(v))
		case api.ValueTypeExternref, 0x70:
			v = 0
		case 0x7B:
			args = append(args, v)
		}
		args = append(args, v)
	}
	results, err := f.Call(context.Background(), args...)
	for i, t := range f.Definition().ResultTypes() {
		if t == api.ValueTypeExternref || t == 0x70 {
			if i < len(results) && len(results) == len(f.Definition().ResultTypes()) && results[i] != 0 {
				results[i] = 1 // an address
			}
		}
	}
	w.seen = append(w.seen, fmt.Sprintf("%s(%d) = %x %s", name, args, results, kind(err)))
	return err
}

// words is how many values of a call's stack the types take.
func words(types []api.ValueType) (n int) {
	for _, t := range types {
		if n++; t == 0x7B { // a vector
			n++
		}
	}
	return n
}

// exports lists a module's functions by name.
func exports(m api.Module) (names []string) {
	for name := range m.ExportedFunctionDefinitions() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// compare runs a module plain, metered with small and large slices, and charged instruction by instruction.
// All must do the same; slices must not change what is spent; and what is spent must cover every instruction.
// It reports whether the module could be run.
func compare(t testing.TB, wasm []byte) bool {
	t.Helper()
	const most = 3_000_000
	metered, err := meter.Instrument(wasm, meter.Options{})
	if err != nil {
		if w, errPlain := enter(t, wasm, nil); w != nil {
			t.Fatalf("refused: %v; plain: %v", err, errPlain)
		}
		return false
	}
	exact, err := meter.InstrumentExactly(wasm)
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	var worlds []*world
	for i, k := range []*tank{{most: most}, {grant: 97}, nil, {}} {
		bytes := metered
		switch {
		case k == nil:
			bytes = wasm
		case i == 3:
			bytes = exact
		}
		w, err := enter(t, bytes, k)
		if errors.Is(err, errSpent) {
			return false // its start function does not end
		}
		if w == nil {
			if i > 0 {
				t.Fatalf("world %d: %v; the first had none", i, err)
			}
			if _, plain := enter(t, wasm, nil); plain == nil {
				t.Fatalf("cannot be entered metered: %v", err)
			}
			return false
		}
		w.seen = append(w.seen, "start "+kind(err))
		worlds = append(worlds, w)
		if err != nil {
			continue
		}
		names := exports(w.mod)
		limiter := slices.Contains(names, "hangLimitInitializer")
		for n, name := range names {
			if limiter {
				if err := w.call("hangLimitInitializer", 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.call(name, uint64(n)); i == 0 && errors.Is(err, errSpent) {
				return false
			}
		}
	}
	first := worlds[0]
	for i, w := range worlds {
		if !slices.Equal(first.seen, w.seen) {
			for k := range first.seen {
				if k >= len(w.seen) || first.seen[k] != w.seen[k] {
					t.Fatalf("world %d: %v\nthe first: %v", i, w.seen[k:min(k+1, len(w.seen))], first.seen[k])
				}
			}
			t.Fatalf("world %d saw more: %v", i, w.seen[len(first.seen):])
		}
		if first.mod != nil && w.mod != nil {
			sameState(t, first.mod, w.mod)
		}
	}
	if first.mod != nil {
		spent, sliced, executed := first.tank.total(first.mod), worlds[1].tank.total(worlds[1].mod), worlds[3].tank.total(worlds[3].mod)
		if spent != sliced {
			t.Errorf("%d fuel in large slices, %d in small ones", spent, sliced)
		}
		if spent < executed {
			t.Errorf("%d fuel for what weighs %d", spent, executed)
		}
	}
	return true
}

// generate makes a valid module of any bytes, with binaryen. It leaves out reference types, of which binaryen
// 108 has an older idea; the specification's tests have them.
func generate(t testing.TB, seed []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "seed"), filepath.Join(dir, "out.wasm")
	if err := os.WriteFile(in, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("wasm-opt", "-ttf", in, "-o", out, "--denan", "--mvp-features", "--enable-simd", "--enable-bulk-memory", "--enable-multivalue",
		"--enable-sign-ext", "--enable-nontrapping-float-to-int", "--enable-mutable-globals")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("wasm-opt: %v: %s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func seed(n int) []byte {
	rnd := rand.New(rand.NewPCG(uint64(n), 2))
	b := make([]byte, 200+rnd.IntN(8000))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// TestGenerated runs modules that binaryen makes of random bytes.
func TestGenerated(t *testing.T) {
	ran := 0
	const modules = 40
	for i := range modules {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			if compare(t, generate(t, seed(i))) {
				ran++
			}
		})
	}
	if ran < modules*3/4 {
		t.Errorf("only %d of %d modules ran to their end", ran, modules)
	}
}

func FuzzInstrumentGenerated(f *testing.F) {
	for i := range 4 {
		f.Add(seed(i))
	}
	f.Fuzz(func(t *testing.T, b []byte) { compare(t, generate(t, b)) })
}

// TestKnownCases runs the modules that once broke wazero.
func TestKnownCases(t *testing.T) {
	files, err := filepath.Glob(wazeroFile(t, "fuzzcases", "testdata", "*.wasm"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			wasm, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r := wazero.NewRuntimeWithConfig(context.Background(), wazero.NewRuntimeConfigInterpreter())
			defer r.Close(context.Background())
			if _, err := r.CompileModule(context.Background(), wasm); err != nil {
				t.Logf("not for this configuration: %v", err)
				return
			}
			compare(t, wasm)
		})
	}
}

// FuzzInstrument: any bytes are refused or rewritten, and what is rewritten is valid if it was before.
func FuzzInstrument(f *testing.F) {
	for i := range 3 {
		f.Add(generate(f, seed(i)))
	}
	for _, wat := range endless {
		f.Add(assemble(f, wat))
	}
	f.Add([]byte("\x00asm\x01\x00\x00\x00"))
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithMemoryLimitPages(16))
	f.Cleanup(func() { r.Close(ctx) })
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		out, err := meter.Instrument(b, meter.Options{Limits: meter.Limits{Locals: 1000, AllLocals: 10_000}})
		if !bytes.Equal(before, b) {
			t.Fatal("Instrument changed what it was given")
		}
		if err != nil {
			if !errors.Is(err, event.ErrInvalid) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		plain, errPlain := r.CompileModule(ctx, b)
		metered, errMetered := r.CompileModule(ctx, out)
		if (errPlain == nil) != (errMetered == nil) {
			t.Fatalf("plain: %v; metered: %v", errPlain, errMetered)
		}
		if errPlain == nil {
			plain.Close(ctx)
			metered.Close(ctx)
		}
	})
}
