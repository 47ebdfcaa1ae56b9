package meter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/millrace/millrace/plugins/meter"
)

// TestSpecification runs WebAssembly's own test suite, as the wazero that we build with ships it, plain and metered:
// whatever wazero takes is taken, and every action has the same results, traps and effects.
func TestSpecification(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		files, err := filepath.Glob(wazeroFile(t, "spectest", version, "testdata", "*.json"))
		if err != nil || len(files) < 50 {
			t.Fatalf("%d test files of %s, %v", len(files), version, err)
		}
		for _, file := range files {
			t.Run(version+"/"+strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) { runScript(t, file) })
		}
	}
}

type script struct {
	Commands []struct {
		Type     string
		Line     int
		Name     string
		Filename string
		As       string
		Action   struct {
			Type   string
			Args   []scriptValue
			Field  string
			Module string
		}
	}
}

type scriptValue struct {
	Type string
	Lane string `json:"lane_type"`
	V    any    `json:"value"`
}

// A side is one of the two worlds that a script runs in.
type side struct {
	r          wazero.Runtime
	ctx        context.Context
	tank       *tank
	named      map[string]api.Module
	registered map[string]api.Module
	last       api.Module
	all        []api.Module
}

func newSide(t *testing.T, metered bool) *side {
	s := &side{named: map[string]api.Module{}, registered: map[string]api.Module{}}
	s.ctx = experimental.WithImportResolver(context.Background(), func(name string) api.Module { return s.registered[name] })
	s.r = wazero.NewRuntimeWithConfig(s.ctx, wazero.NewRuntimeConfigCompiler())
	t.Cleanup(func() {
		if err := s.r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if metered {
		s.tank = &tank{}
		if err := s.tank.install(s.ctx, s.r); err != nil {
			t.Fatal(err)
		}
	}
	spectest, err := os.ReadFile(wazeroFile(t, "spectest", "testdata", "spectest.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := s.r.InstantiateWithConfig(s.ctx, spectest, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		t.Fatal(err)
	}
	s.registered["spectest"] = mod
	return s
}

// load compiles and instantiates; compiled is whether it got that far.
func (s *side) load(wasm []byte) (mod api.Module, compiled bool, err error) {
	if s.tank != nil {
		if wasm, err = meter.Instrument(wasm, meter.Options{}); err != nil {
			return nil, false, err
		}
	}
	c, err := s.r.CompileModule(s.ctx, wasm)
	if err != nil {
		return nil, false, err
	}
	mod, err = s.r.InstantiateModule(s.ctx, c, wazero.NewModuleConfig().WithName(""))
	return mod, true, err
}

func (s *side) module(name string) api.Module {
	if name == "" {
		return s.last
	}
	return s.named[name]
}

func runScript(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var sc script
	if err := json.Unmarshal(raw, &sc); err != nil {
		t.Fatal(err)
	}
	plain, metered := newSide(t, false), newSide(t, true)
	for _, c := range sc.Commands {
		switch c.Type {
		case "module", "assert_trap", "assert_unlinkable", "assert_uninstantiable", "assert_invalid", "assert_malformed", "assert_return", "action", "assert_exhaustion", "assert_exception":
		case "register":
			for _, s := range []*side{plain, metered} {
				s.registered[c.As] = s.module(c.Name)
			}
			continue
		default:
			t.Fatalf("line %d: command %q is not known to this test", c.Line, c.Type)
		}
		if c.Filename != "" {
			if strings.HasSuffix(c.Filename, ".wat") {
				continue // about the text format
			}
			wasm, err := os.ReadFile(filepath.Join(filepath.Dir(file), c.Filename))
			if err != nil {
				t.Fatal(err)
			}
			a, compiledA, errA := plain.load(wasm)
			b, compiledB, errB := metered.load(wasm)
			if c.Type == "assert_invalid" || c.Type == "assert_malformed" {
				// What wazero lets through although the suite calls it malformed may be refused.
				if compiledB && !compiledA {
					t.Errorf("line %d: %s became valid by rewriting; plain: %v", c.Line, c.Filename, errA)
				}
				continue
			}
			if compiledA != compiledB || (errA == nil) != (errB == nil) {
				t.Errorf("line %d: %s: plain: %v; metered: %v", c.Line, c.Filename, errA, errB)
			}
			if a != nil && b != nil {
				plain.all, metered.all = append(plain.all, a), append(metered.all, b)
				plain.last, metered.last = a, b
				if c.Name != "" {
					plain.named[c.Name], metered.named[c.Name] = a, b
				}
			}
			continue
		}
		a, b := plain.module(c.Action.Module), metered.module(c.Action.Module)
		if a == nil || b == nil {
			t.Fatalf("line %d: module %q is not there", c.Line, c.Action.Module)
		}
		if c.Action.Type == "get" {
			ga, gb := a.ExportedGlobal(c.Action.Field), b.ExportedGlobal(c.Action.Field)
			if ga == nil || gb == nil || !sameValue(ga.Type(), ga.Get(), gb.Get()) {
				t.Errorf("line %d: global %s: %v and %v", c.Line, c.Action.Field, ga, gb)
			}
			continue
		}
		var args []uint64
		for _, v := range c.Action.Args {
			args = append(args, v.words(t)...)
		}
		fa, fb := a.ExportedFunction(c.Action.Field), b.ExportedFunction(c.Action.Field)
		if fa == nil || fb == nil {
			t.Fatalf("line %d: function %q: %v and %v", c.Line, c.Action.Field, fa, fb)
		}
		ra, errA := fa.Call(plain.ctx, args...)
		rb, errB := fb.Call(metered.ctx, args...)
		if kind(errA) != kind(errB) {
			t.Errorf("line %d: %s: plain: %v; metered: %v", c.Line, c.Action.Field, errA, errB)
		}
		sameResults(t, c.Line, fa.Definition().ResultTypes(), ra, rb)
	}
	for i := range plain.all {
		sameState(t, plain.all[i], metered.all[i])
	}
}

func sameResults(t *testing.T, line int, types []api.ValueType, a, b []uint64) {
	t.Helper()
	if len(a) != len(b) {
		t.Errorf("line %d: %d and %d results", line, len(a), len(b))
		return
	}
	for i := range a {
		typ := api.ValueType(api.ValueTypeI64)
		if len(types) == len(a) { // else vectors, which take two words
			typ = types[i]
		}
		if !sameValue(typ, a[i], b[i]) {
			t.Errorf("line %d: result %d is %#x plain and %#x metered", line, i, a[i], b[i])
		}
	}
}

// sameState compares what a guest leaves behind: its memory.
func sameState(t testing.TB, a, b api.Module) {
	t.Helper()
	ma, mb := memoryOf(a), memoryOf(b)
	if (ma == nil) != (mb == nil) {
		t.Errorf("a memory on one side only: %v, %v", ma == nil, mb == nil)
	}
	if ma == nil || mb == nil {
		return
	}
	x, okX := ma.Read(0, ma.Size())
	y, okY := mb.Read(0, mb.Size())
	if okX != okY || !bytes.Equal(x, y) {
		t.Errorf("memories of %d and %d bytes differ", len(x), len(y))
	}
}

// memoryOf is a module's memory, or nil: wazero answers a nil in an interface.
func memoryOf(m api.Module) api.Memory {
	if mem := m.Memory(); mem != nil && !reflect.ValueOf(mem).IsNil() {
		return mem
	}
	return nil
}

func (v scriptValue) words(t *testing.T) []uint64 {
	t.Helper()
	if v.Type != "v128" {
		return []uint64{v.word(t, v.V, v.Type)}
	}
	lanes, ok := v.V.([]any)
	if !ok {
		t.Fatalf("vector %v", v.V)
	}
	width := 128 / len(lanes)
	var out [2]uint64
	for i, l := range lanes {
		w := v.word(t, l, v.Lane)
		if width < 64 {
			w &= 1<<width - 1
		}
		out[i*width/64] |= w << (i * width % 64)
	}
	return out[:]
}

func (v scriptValue) word(t *testing.T, val any, typ string) uint64 {
	t.Helper()
	s, _ := val.(string)
	switch {
	case val == nil, s == "null":
		return 0
	case typ == "externref":
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n + 1 // 0 is null to wazero
	case strings.HasPrefix(s, "nan"):
		if strings.HasSuffix(typ, "32") {
			return 0x7FC00000
		}
		return 0x7FF8000000000000
	case strings.HasPrefix(s, "-"):
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(typ, "32") {
			return uint64(uint32(n))
		}
		return uint64(n)
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
