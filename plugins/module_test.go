package plugins_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "compile" { // a child of this test
		os.Exit(plugins.CompileMain(os.Args[2:], os.Stdin, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

// A wasm is a module under construction: sections by id.
type wasm map[byte][]byte

func (w wasm) bytes() []byte {
	b := []byte("\x00asm\x01\x00\x00\x00")
	for id := byte(1); id <= 12; id++ {
		if s, ok := w[id]; ok {
			b = append(append(append(b, id), leb(len(s))...), s...)
		}
	}
	return b
}

func leb(n int) (b []byte) {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func vec(items ...[]byte) []byte { return append(leb(len(items)), bytes.Join(items, nil)...) }
func str(s string) []byte        { return append(leb(len(s)), s...) }
func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func export(name string, kind byte, index int) []byte {
	return cat(str(name), []byte{kind}, leb(index))
}

func body(locals []byte, code ...byte) []byte {
	b := cat(locals, code, []byte{0x0b})
	return cat(leb(len(b)), b)
}

// guest is a minimal module that speaks the native ABI: handle traps.
func guest() wasm {
	const i32, i64 = 0x7f, 0x7e
	none := []byte{0}
	return wasm{
		1:  vec([]byte{0x60, 0, 1, i32}, []byte{0x60, 1, i32, 1, i32}, []byte{0x60, 2, i32, i32, 1, i64}, []byte{0x60, 0, 0}),
		3:  vec([]byte{0}, []byte{1}, []byte{2}),
		5:  vec([]byte{0, 1}),
		7:  vec(export("memory", 2, 0), export("millrace_abi_v1", 0, 0), export("millrace_buffer", 0, 1), export("millrace_handle", 0, 2)),
		10: vec(body(none, 0x41, 0), body(none, 0x41, 8), body(none, 0x00)),
	}
}

func (w wasm) with(id byte, section []byte) wasm {
	w[id] = section
	return w
}

func newHost(t *testing.T, o plugins.Options) *plugins.Host {
	t.Helper()
	o.ABIs = []plugins.ABI{native.ABI{}}
	h, err := plugins.NewHost(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestPutRefusesInWords(t *testing.T) {
	h := newHost(t, plugins.Options{MaxModule: 1 << 20, MaxMemory: 64 << 20})
	manyLocals := func(groups ...int) []byte {
		var g [][]byte
		for _, n := range groups {
			g = append(g, append(leb(n), 0x7f))
		}
		return vec(g...)
	}
	blocks := bytes.Repeat([]byte{0x02, 0x40, 0x0b}, 9000)
	none := []byte{0}
	code := func(locals []byte, c ...byte) []byte {
		return vec(body(none, 0x41, 0), body(none, 0x41, 8), body(locals, append(c, 0x00)...))
	}
	fn := func(module, name string) []byte { return vec(cat(str(module), str(name), []byte{0, 0})) }
	exports := func(names ...string) []byte {
		var e [][]byte
		for _, n := range names {
			e = append(e, export(n, 0, 0))
		}
		return vec(e...)
	}
	whole := guest().bytes()
	for name, c := range map[string]struct {
		file []byte
		is   error
		says string
	}{
		"empty":       {nil, event.ErrInvalid, "empty"},
		"text":        {[]byte("hello world"), event.ErrInvalid, "is not WASM"},
		"elf":         {[]byte("\x7fELF\x02\x01\x01"), event.ErrInvalid, "ELF program"},
		"component":   {[]byte("\x00asm\x0d\x00\x01\x00rest"), event.ErrInvalid, "component"},
		"other":       {[]byte("\x00asm\x02\x00\x00\x00"), event.ErrInvalid, "another version"},
		"source":      {[]byte("package main\n"), event.ErrInvalid, "Go source"},
		"wat":         {[]byte("(module)"), event.ErrInvalid, "wat2wasm"},
		"gzip":        {[]byte("\x1f\x8b\x08\x00"), event.ErrInvalid, "gzip"},
		"preamble":    {[]byte("\x00asm\x01"), event.ErrInvalid, "cut off"},
		"truncated":   {whole[:len(whole)-5], event.ErrInvalid, "cut off"},
		"big":         {make([]byte, 1<<20+1), event.ErrTooLarge, "1048577 bytes"},
		"nothing":     {wasm{}.bytes(), event.ErrInvalid, "millrace_handle"},
		"command":     {guest().with(7, exports("_start")).bytes(), event.ErrUnsupported, "WASI command"},
		"redpanda":    {guest().with(7, exports("redpanda_transform_abi_version")).bytes(), event.ErrUnsupported, "Redpanda"},
		"extism":      {guest().with(2, fn("extism:host/env", "input_length")).with(7, exports("run")).bytes(), event.ErrUnsupported, "Extism"},
		"no handle":   {guest().with(7, exports("millrace_abi_v1")).bytes(), event.ErrInvalid, "export millrace_handle: is missing"},
		"import env":  {guest().with(2, fn("env", "emscripten_x")).bytes(), event.ErrInvalid, `import "env" "emscripten_x"`},
		"import fn":   {guest().with(2, fn("millrace_v1", "teleport")).bytes(), event.ErrInvalid, `import "millrace_v1" "teleport": no such host function`},
		"import wasi": {guest().with(2, fn("wasi_snapshot_preview1", "teleport")).bytes(), event.ErrInvalid, `"teleport"`},
		"import mem":  {guest().with(2, vec(cat(str("wasi_snapshot_preview1"), str("memory"), []byte{2, 0, 1}))).bytes(), event.ErrInvalid, "a memory cannot be imported"},
		"memory min":  {guest().with(5, vec(cat([]byte{0}, leb(2000)))).bytes(), event.ErrInvalid, "wants 128000 KiB"},
		"memory 64":   {guest().with(5, vec([]byte{4, 1})).bytes(), event.ErrInvalid, "memory64"},
		"shared":      {guest().with(5, vec([]byte{3, 1, 1})).bytes(), event.ErrInvalid, "shared"},
		"table min":   {guest().with(4, vec(cat([]byte{0x70, 0}, leb(100_000_000)))).bytes(), event.ErrInvalid, "table 0 may grow to 100000000"},
		"table max":   {guest().with(4, vec(cat([]byte{0x70, 1, 0}, leb(70_000)))).bytes(), event.ErrInvalid, "table 0 may grow to 70000"},
		"tables":      {guest().with(4, vec(bytes.Repeat([]byte{0x70, 0, 0}, 9))).bytes(), event.ErrInvalid, ""},
		"locals":      {guest().with(10, code(manyLocals(9_000, 2_000))).bytes(), event.ErrInvalid, "more than 10000 locals"},
		"locals 2^32": {guest().with(10, code(manyLocals(0xFFFFFFFF, 0xFFFFFFFF))).bytes(), event.ErrInvalid, "locals"},
		"blocks":      {guest().with(10, code(manyLocals(9_000), blocks...)).bytes(), event.ErrInvalid, "more than the compiler can be trusted with"},
		"invalid":     {guest().with(10, code(none, 0x6a)).bytes(), event.ErrInvalid, "does not compile"},
	} {
		_, err := h.Put(context.Background(), c.file)
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %v and %q", name, err, c.is, c.says)
		}
	}
	if _, err := h.Put(context.Background(), whole); err != nil {
		t.Errorf("the module that the others are made of: %v", err)
	}
}

// What grows does so to the function's limit and no further, whatever the module says or leaves out.
func TestLimitsAreWrittenIntoTheModule(t *testing.T) {
	const grow = 3 // handle: grow the memory by 3 pages; trap if that works, else return 0
	handle := []byte{0x41, grow, 0x40, 0x00, 0x41, 0x7f, 0x47, 0x04, 0x40, 0x00, 0x0b, 0x42, 0x00}
	tableGrow := []byte{0xd0, 0x70, 0x41, 0xa0, 0x8d, 0x06, 0xfc, 0x0f, 0x00, 0x41, 0x7f, 0x47, 0x04, 0x40, 0x00, 0x0b, 0x42, 0x00} // by 100,000
	none := []byte{0}
	code := func(h []byte) []byte { return vec(body(none, 0x41, 0), body(none, 0x41, 8), body(none, h...)) }
	for name, c := range map[string]struct {
		module wasm
		memory int64
		want   plugins.Reason
	}{
		"no maximum, room":    {guest().with(10, code(handle)), 4 << 16, plugins.ReasonTrap},
		"no maximum, no room": {guest().with(10, code(handle)), 3 << 16, plugins.ReasonOutput},
		"maximum above":       {guest().with(10, code(handle)).with(5, vec([]byte{1, 1, 100})), 3 << 16, plugins.ReasonOutput},
		"maximum below":       {guest().with(10, code(handle)).with(5, vec([]byte{1, 1, 3})), 64 << 16, plugins.ReasonOutput},
		"table":               {guest().with(10, code(tableGrow)).with(4, vec([]byte{0x70, 0, 0})), 1 << 20, plugins.ReasonOutput},
	} {
		h := newHost(t, plugins.Options{})
		digest, err := h.Put(context.Background(), c.module.bytes())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f, err := h.Open(context.Background(), event.Function{Name: "f", Digest: digest, Limits: event.FunctionLimits{Memory: c.memory}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var out plugins.Outcome
		e := event.Event{ID: "1", Source: "/s", Type: "t"}
		if err := f.Call(context.Background(), &plugins.Call{Events: []event.Record{e.AppendRecord(nil)}}, &out); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		// The trap says that growing worked; running full is told as memory where the guest then gives up.
		if got := out.Failures[0].Reason; got != c.want && !(c.want == plugins.ReasonTrap && got == plugins.ReasonMemory) {
			t.Errorf("%s: %v, want %v", name, out.Failures[0], c.want)
		}
	}
}

func TestModulesAreKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "functions")
	ctx := context.Background()
	h := newHost(t, plugins.Options{Dir: dir})
	module := guest().bytes()
	digest, err := h.Put(ctx, module)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := h.Put(ctx, module); err != nil || again != digest {
		t.Errorf("again: %s, %v", again, err)
	}
	for _, bad := range []string{"", "sha256:", digest + "0", "sha256:" + strings.Repeat("F", 64), "sha256:../../x"} {
		if _, err := h.Module(bad); !errors.Is(err, event.ErrInvalid) {
			t.Errorf("Module(%q): %v", bad, err)
		}
	}
	missing := "sha256:" + strings.Repeat("0", 64)
	if _, err := h.Open(ctx, event.Function{Name: "f", Digest: missing}); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}

	h2 := newHost(t, plugins.Options{Dir: dir}) // as after a restart
	if got, err := h2.Module(digest); err != nil || !bytes.Equal(got, module) {
		t.Errorf("after a restart: %v", err)
	}
	// A damaged entry of the compile cache is thrown away, not the function.
	entries, err := filepath.Glob(filepath.Join(dir, "compiled", "*", "*"))
	if err != nil || len(entries) == 0 {
		t.Fatalf("compile cache: %v, %v", entries, err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(e)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(e, b[:len(b)/2], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h2.Open(ctx, event.Function{Name: "f", Digest: digest}); err != nil {
		t.Errorf("with a damaged cache: %v", err)
	}
	// A damaged module is refused by its file's name, and putting it again mends it.
	file := filepath.Join(dir, "modules", digest[7:]+".wasm")
	if err := os.WriteFile(file, module[:40], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.Module(digest); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("damaged: %v", err)
	}
	if _, err := h2.Put(ctx, module); err != nil {
		t.Error(err)
	}
	if _, err := h2.Module(digest); err != nil {
		t.Error(err)
	}
}

// Hosts with folders of their own may share what they compile.
func TestCacheIsShared(t *testing.T) {
	ctx, cache := context.Background(), t.TempDir()
	var first []string
	for i := range 2 {
		dir := t.TempDir()
		h := newHost(t, plugins.Options{Dir: dir, Cache: cache})
		digest, err := h.Put(ctx, guest().bytes())
		if err != nil {
			t.Fatal(err)
		}
		f, err := h.Open(ctx, event.Function{Name: "f", Digest: digest})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(ctx); err != nil {
			t.Error(err)
		}
		if own, _ := filepath.Glob(filepath.Join(dir, "compiled", "*")); len(own) > 0 {
			t.Errorf("compiled beside the modules: %v", own)
		}
		made, err := filepath.Glob(filepath.Join(cache, "*", "*"))
		if err != nil || len(made) == 0 {
			t.Fatalf("in the cache: %v, %v", made, err)
		}
		if i == 0 {
			first = made
		} else if !slices.Equal(made, first) {
			t.Errorf("the second host has made %v beside %v", made, first)
		}
	}
}

// The bound on locals × blocks is what keeps this module, 25 KB of it, from taking the compiler half a minute.
func TestCompileBombs(t *testing.T) {
	h := newHost(t, plugins.Options{})
	bomb := func(n, functions int) []byte {
		var code []byte
		for i := range n { // every block reads and sets locals
			code = append(code, 0x02, 0x40, 0x20)
			code = append(code, leb(i)...)
			code = append(code, 0x0d, 0x00, 0x41, 0x01, 0x21)
			code = append(code, leb(n-1-i)...)
			code = append(code, 0x0b)
		}
		none := []byte{0}
		w := guest()
		bodies := [][]byte{body(none, 0x41, 0), body(none, 0x41, 8), body(none, 0)}
		types := [][]byte{{0}, {1}, {2}}
		for range functions {
			bodies = append(bodies, body(cat(leb(1), leb(n), []byte{0x7f}), append(code, 0x00)...))
			types = append(types, []byte{3})
		}
		return w.with(3, vec(types...)).with(10, vec(bodies...)).bytes()
	}
	for name, b := range map[string][]byte{"one": bomb(2100, 1), "many": bomb(1000, 20)} {
		if _, err := h.Put(context.Background(), b); !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "be trusted with") {
			t.Errorf("%s: %v", name, err)
		}
	}
	start := time.Now()
	_, err := h.Put(context.Background(), bomb(500, 2))
	t.Logf("below the bounds: compiled in %v", time.Since(start))
	if err != nil {
		t.Error(err)
	}
}
