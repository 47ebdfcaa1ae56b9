package plugins_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
)

// heavy is a guest with n more functions of some hundred instructions each.
func heavy(n int) []byte {
	const i32 = 0x7f
	g := guest()
	code := bytes.Repeat([]byte{0x20, 0, 0x41, 3, 0x6c, 0x41, 5, 0x6a, 0x21, 0}, 60) // x = x*3 + 5
	one := body(vec(), append(code, 0x20, 0)...)
	types, funcs, bodies := g[1], g[3], g[10]
	g[1] = append(leb(int(types[0])+1), append(types[1:], 0x60, 1, i32, 1, i32)...)
	g[3] = append(leb(int(funcs[0])+n), append(funcs[1:], bytes.Repeat([]byte{types[0]}, n)...)...)
	g[10] = append(leb(int(bodies[0])+n), append(bodies[1:], bytes.Repeat(one, n)...)...)
	return g.bytes()
}

func TestCompilesApart(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put := func(o plugins.Options, module []byte) (string, error) {
		t.Helper()
		o.ABIs = []plugins.ABI{native.ABI{}}
		h, err := plugins.NewHost(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close(context.Background())
		return h.Put(context.Background(), module)
	}
	apart := []string{self, "compile"}
	if _, err := put(plugins.Options{Dir: dir, Compiler: apart}, heavy(10)); err != nil {
		t.Fatal(err)
	}
	if made, _ := filepath.Glob(filepath.Join(dir, "compiled", "wazero*", "*")); len(made) != 1 {
		t.Errorf("the child left %q in the cache", made)
	}
	// Of the rewritten module what was damaged is made again.
	kept, _ := filepath.Glob(filepath.Join(dir, "compiled", "metered", "*"))
	if len(kept) != 1 {
		t.Fatalf("rewritten modules: %q", kept)
	}
	good, err := os.ReadFile(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept[0], append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := []string{filepath.Join(dir, "no such program")}
	if _, err := put(plugins.Options{Dir: dir, Compiler: gone}, heavy(10)); err != nil {
		t.Errorf("what was compiled before was compiled apart again: %v", err)
	}
	if again, err := os.ReadFile(kept[0]); err != nil || !bytes.Equal(again, good) {
		t.Errorf("the damaged file was left: %v", err)
	}
	if _, err := put(plugins.Options{Dir: dir, Compiler: gone}, heavy(11)); err == nil || errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("without the program: %v", err)
	}
	broken := bytes.Replace(heavy(1), []byte{0x20, 0, 0x41, 3, 0x6c}, []byte{0x01, 0x01, 0x41, 3, 0x6c}, 1) // a product of one
	if _, err := put(plugins.Options{Dir: dir, Compiler: apart}, broken); !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "does not compile") {
		t.Errorf("broken: %v", err)
	}
	start := time.Now()
	for says, o := range map[string]plugins.Options{
		"takes too long to compile":         {Compiler: apart, CompileTime: time.Second},
		"takes more than 32 MiB to compile": {Compiler: apart, CompileMemory: 32 << 20},
	} {
		if _, err := put(o, heavy(100_000)); !errors.Is(err, event.ErrTooLarge) || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q, got %v", says, err)
		}
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("two bombs took %s", took)
	}
}

// Machine code counts for the memory of all functions: who was not called for longest gives it up.
func TestMachineCodeCountsAsMemory(t *testing.T) {
	ctx := context.Background()
	h, err := plugins.NewHost(ctx, plugins.Options{Memory: 4 << 20, ABIs: []plugins.ABI{native.ABI{}}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(ctx)
	var all []*plugins.Function
	for i, n := range []int{800, 801} { // some 2.5 MiB of code each, and a page of memory
		digest, err := h.Put(ctx, heavy(n))
		if err != nil {
			t.Fatal(err)
		}
		f, err := h.Open(ctx, event.Function{Name: "f" + string(rune('a'+i)), Digest: digest})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	if all[0].Compiled() || !all[1].Compiled() {
		t.Errorf("compiled: the first %v, the second %v", all[0].Compiled(), all[1].Compiled())
	}
}

// While a new module is compiled apart, code that was given up comes back.
func TestCodeComesBackBesideACompilation(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	began, hold := filepath.Join(dir, "began"), filepath.Join(dir, "hold")
	h, err := plugins.NewHost(ctx, plugins.Options{Idle: time.Millisecond, ABIs: []plugins.ABI{native.ABI{}}, Dir: dir,
		Compiler: []string{"sh", "-c", `if [ -e "$2" ]; then : > "$1"; fi; while [ -e "$2" ]; do sleep 0.02; done; self=$3; shift 3; exec "$self" compile "$@"`, "sh", began, hold, self}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(context.Background())
	digest, err := h.Put(ctx, heavy(1))
	if err != nil {
		t.Fatal(err)
	}
	f, err := h.Open(ctx, event.Function{Name: "f", Digest: digest})
	if err != nil {
		t.Fatal(err)
	}
	until := func(done func() bool) {
		t.Helper()
		for !done() {
			if ctx.Err() != nil {
				t.Fatal("it takes over a minute")
			}
			time.Sleep(time.Millisecond) // polls: there is nothing to wait on
		}
	}
	until(func() bool { return !f.Compiled() })
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	put := make(chan error, 1)
	go func() {
		_, err := h.Put(ctx, heavy(2))
		put <- err
	}()
	until(func() bool { _, err := os.Stat(began); return err == nil })
	short, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	e := event.Event{ID: "1", Source: "s", Type: "t", Topic: "t"}
	back := make(chan error, 1)
	go func() {
		var out plugins.Outcome
		back <- f.Call(short, &plugins.Call{Events: []event.Record{event.Record(e.AppendRecord(nil))}}, &out)
	}()
	select {
	case err := <-back:
		if err != nil {
			t.Error(err)
		}
	case <-short.Done():
		t.Error("the call waits for another module's compilation")
	}
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
	if err := <-put; err != nil {
		t.Error(err)
	}
}
