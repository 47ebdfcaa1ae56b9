package meter_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/millrace/millrace/plugins/meter"
)

// endless are guests that never come back by themselves.
var endless = map[string]string{
	"loop":               `(module (func (export "run") (loop (br 0))))`,
	"loop of nothing":    `(module (func (export "run") (loop (nop) (block (br 1)))))`,
	"loop with a result": `(module (func (export "run") (drop (loop (result i32) (br 0)))))`,
	"br_table loop":      `(module (func (export "run") (loop (br_table 0 0 0 (i32.const 1)))))`,
	"nested loops": `(module (func (export "run") (local $i i32)
		(loop $a (local.set $i (i32.const 0)) (loop $b (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if $b (i32.lt_u (local.get $i) (i32.const 3)))) (br $a))))`,
	"tree": "(module " + tree(60) + ")",
	"indirect tree": `(module (table 1 funcref) (elem (i32.const 0) 0) (type $t (func (param i32)))
		(func $f (type $t) (if (local.get 0) (then
			(call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))
			(call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0)))))
		(func (export "run") (call $f (i32.const 60))))`,
	"fill":                 `(module (memory 160) (func (export "run") (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 10485760)) (br 0))))`,
	"copy":                 `(module (memory 160) (func (export "run") (loop (memory.copy (i32.const 1) (i32.const 0) (i32.const 10485759)) (br 0))))`,
	"table fill":           `(module (table 65536 funcref) (func (export "run") (loop (table.fill 0 (i32.const 0) (ref.null func) (i32.const 65536)) (br 0))))`,
	"grow by nothing":      `(module (memory 1 1) (func (export "run") (loop (drop (memory.grow (i32.const 1))) (br 0))))`,
	"calls in a loop":      `(module (func $f) (func (export "run") (loop (call $f) (br 0))))`,
	"host calls in a loop": `(module (import "host" "nothing" (func $f)) (func (export "run") (loop (call $f) (br 0))))`,
}

// tree is n functions each of which calls the one before twice.
func tree(n int) string {
	var b strings.Builder
	b.WriteString("(func $f0)")
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, "(func $f%d (call $f%d) (call $f%d))\n", i, i-1, i-1)
	}
	fmt.Fprintf(&b, `(export "run" (func $f%d))`, n-1)
	return b.String()
}

// TestEndless: whatever a guest does, tick ends it.
func TestEndless(t *testing.T) {
	for name, wat := range endless {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler())
			defer r.Close(ctx)
			begin := time.Now()
			k := &tank{ended: func() bool { return time.Since(begin) > 20*time.Millisecond }}
			if err := k.install(ctx, r); err != nil {
				t.Fatal(err)
			}
			if _, err := r.NewHostModuleBuilder("host").NewFunctionBuilder().WithFunc(func() {}).Export("nothing").Instantiate(ctx); err != nil {
				t.Fatal(err)
			}
			mod, err := r.Instantiate(ctx, instrument(t, assemble(t, wat)))
			if err != nil {
				t.Fatal(err)
			}
			g, ok := meter.GaugeOf(mod)
			if !ok {
				t.Fatal("no gauge")
			}
			begin = time.Now()
			_, err = mod.ExportedFunction("run").Call(ctx)
			took := time.Since(begin)
			if !errors.Is(err, errSpent) {
				t.Fatalf("ended with %v", err)
			}
			if took > 2*time.Second {
				t.Errorf("ended after %s", took)
			}
			if g.Spent() != 0 {
				t.Errorf("%d fuel unreported after tick ended the call", g.Spent())
			}
			t.Logf("ended after %s, %d ticks, %d fuel: a tick every %s, a unit %s", took, k.ticks, k.spent,
				took/time.Duration(k.ticks), time.Duration(float64(took)/float64(k.spent)*1000)*time.Nanosecond/1000)
		})
	}
}

// TestEndlessStart: a start function is under the meter before the host has given it anything.
func TestEndlessStart(t *testing.T) {
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler())
	defer r.Close(ctx)
	k := &tank{most: 1_000_000}
	if err := k.install(ctx, r); err != nil {
		t.Fatal(err)
	}
	_, err := r.Instantiate(ctx, instrument(t, assemble(t, `(module (func $s (loop (br 0))) (start $s))`)))
	if !errors.Is(err, errSpent) {
		t.Fatalf("ended with %v", err)
	}
}

// TestEndlessRecursion: it ends by itself, when the stack is full, plain as well as metered.
func TestEndlessRecursion(t *testing.T) {
	wat := assemble(t, `(module (func $f (export "run") (call $f)))`)
	k := &tank{}
	_, plain := start(t, wat, nil).ExportedFunction("run").Call(context.Background())
	_, metered := start(t, wat, k).ExportedFunction("run").Call(context.Background())
	if plain == nil || kind(plain) != kind(metered) {
		t.Fatalf("plain: %v; metered: %v", plain, metered)
	}
}

// TestCollectorBesideGuest: a collection has to wait for the guest's next tick only.
func TestCollectorBesideGuest(t *testing.T) {
	for _, name := range []string{"loop", "nested loops", "tree", "fill", "table fill"} {
		t.Run(name, func(t *testing.T) {
			k := &tank{}
			stop := make(chan struct{})
			k.ended = func() bool {
				select {
				case <-stop:
					return true
				default:
					return false
				}
			}
			mod := start(t, assemble(t, endless[name]), k)
			done := make(chan error, 1)
			running := make(chan struct{})
			k.first = func() { close(running) }
			go func() {
				_, err := mod.ExportedFunction("run").Call(context.Background())
				done <- err
			}()
			<-running
			var worst, sum time.Duration
			const times = 20
			for range times {
				begin := time.Now()
				runtime.GC()
				took := time.Since(begin)
				worst, sum = max(worst, took), sum+took
			}
			close(stop)
			if err := <-done; !errors.Is(err, errSpent) {
				t.Errorf("ended with %v", err)
			}
			t.Logf("a collection takes %s on average, %s at worst", sum/times, worst)
			if worst > time.Second {
				t.Errorf("a collection beside the guest took %s", worst)
			}
		})
	}
}
