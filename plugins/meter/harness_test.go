package meter_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/millrace/millrace/plugins/meter"
)

var index = regexp.MustCompile(`function\[\d+\]`)

// errSpent is what the tests' tick ends a call with.
var errSpent = fmt.Errorf("fuel is spent")

// A tank counts what guests spend and ends them when most is reached.
type tank struct {
	grant int64
	most  int64       // 0: no end
	ended func() bool // nil: by most only
	first func()      // called at the first tick

	spent int64
	ticks int
}

func (k *tank) tick(ctx context.Context, mod api.Module, stack []uint64) {
	k.ticks++
	k.spent += int64(stack[0])
	if k.first != nil {
		k.first()
		k.first = nil
	}
	if k.most > 0 && k.spent > k.most || k.ended != nil && k.ended() {
		panic(errSpent)
	}
	stack[0] = uint64(k.grant)
}

// total is everything that mod spent, its unreported rest included.
func (k *tank) total(mod api.Module) int64 {
	return k.spent + int64(mod.ExportedGlobal(meter.GlobalGrant).Get()-mod.ExportedGlobal(meter.GlobalFuel).Get())
}

// install makes the tank's tick what guests in r import.
func (k *tank) install(ctx context.Context, r wazero.Runtime) error {
	if k.grant == 0 {
		k.grant = meter.Slice
	}
	_, err := r.NewHostModuleBuilder(meter.TickModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(k.tick), []api.ValueType{api.ValueTypeI64}, []api.ValueType{api.ValueTypeI64}).
		Export(meter.TickName).Instantiate(ctx)
	return err
}

// start compiles and instantiates a module, metered through k unless k is nil.
func start(t testing.TB, wasm []byte, k *tank) api.Module {
	t.Helper()
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler())
	t.Cleanup(func() {
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	if k != nil {
		wasm = instrument(t, wasm)
		if err := k.install(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	mod, err := r.Instantiate(ctx, wasm)
	if err != nil {
		t.Fatal(err)
	}
	return mod
}

func instrument(t testing.TB, wasm []byte) []byte {
	t.Helper()
	before := bytes.Clone(wasm)
	out, err := meter.Instrument(wasm, meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, wasm) {
		t.Fatal("Instrument changed what it was given")
	}
	return out
}

// wazeroDir is where the module that we build with lies in Go's module cache.
var wazeroDir = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	return strings.TrimSpace(string(out)), err
})

func wazeroFile(t testing.TB, parts ...string) string {
	t.Helper()
	dir, err := wazeroDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(append([]string{dir, "internal", "integration_test"}, parts...)...)
}

// kind is an error's first line, but for the function's index: what follows is a stack trace, in which addresses
// and helpers differ.
func kind(err error) string {
	if err == nil {
		return ""
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return index.ReplaceAllString(line, "function[…]")
}

// sameValue compares results; of a NaN the payload is not defined.
func sameValue(t api.ValueType, a, b uint64) bool {
	switch {
	case a == b:
		return true
	case t == api.ValueTypeF32:
		return math.IsNaN(float64(math.Float32frombits(uint32(a)))) && math.IsNaN(float64(math.Float32frombits(uint32(b))))
	case t == api.ValueTypeF64:
		return math.IsNaN(math.Float64frombits(a)) && math.IsNaN(math.Float64frombits(b))
	case t == api.ValueTypeI64, t == api.ValueTypeI32:
		return false
	case t == 0x7B: // v128, of unknown lanes
		return false
	}
	return a != 0 && b != 0 // references: addresses
}

// assemble turns WebAssembly text into a module.
func assemble(t testing.TB, wat string) []byte {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.wat"), filepath.Join(dir, "out.wasm")
	if err := os.WriteFile(in, []byte(wat), 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command("wat2wasm", "-o", out, in).CombinedOutput(); err != nil {
		t.Fatalf("wat2wasm: %v: %s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
