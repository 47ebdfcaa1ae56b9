package meter_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins/meter"
)

// TestFuel holds what documentation says of fuel against modules small enough to count by hand.
func TestFuel(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		fuel       int64
	}{
		{"nothing", ``, 0},
		{"free instructions", `(drop (i32.const 1)) (nop) (block)`, 0},
		{"an addition", `(drop (i32.add (i32.const 1) (i32.const 2)))`, 1},
		{"a division", `(drop (i32.div_u (i32.const 9) (i32.const 2)))`, 8},
		{"the costlier arm is charged", `(if (i32.const 0) (then (drop (i32.div_u (i32.const 9) (i32.const 2)))) (else))`, 9},
		// A round: 1 for itself, 1 each for add, set (tee), compare and branch. Nothing else of the function weighs.
		{"ten rounds", `(local $i i32) (loop (br_if 0 (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10))))`, 50},
		{"a small function", `(call $leaf) (call $leaf)`, 10},
		{"a recursive one", `(call $down (i32.const 3))`, 4 + 4*(1+1+4)},
		{"a short copy", `(memory.copy (i32.const 0) (i32.const 9) (i32.const 100))`, 40},
		{"a long copy", `(memory.copy (i32.const 0) (i32.const 9) (i32.const 100000))`, 40 + 65536/8 + (100000-65536)/8},
		{"a long fill", `(memory.fill (i32.const 0) (i32.const 9) (i32.const 100000))`, 40 + 65536/4 + (100000-65536)/4},
		{"growth", `(drop (memory.grow (i32.const 2)))`, 64 + 2*1024},
		{"growth refused", `(drop (memory.grow (i32.const 2000)))`, 64},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wasm := assemble(t, `(module (memory 2 10)
				(func $leaf (drop (i32.add (i32.const 1) (i32.const 2))))
				(func $down (param i32) (if (local.get 0) (then (call $down (i32.sub (local.get 0) (i32.const 1))))))
				(func (export "run") `+tt.body+`))`)
			for _, grant := range []int64{1, 1000, meter.Slice} {
				k := &tank{grant: grant}
				mod := start(t, wasm, k)
				if _, err := mod.ExportedFunction("run").Call(context.Background()); err != nil {
					t.Fatal(err)
				}
				if got := k.total(mod); got != tt.fuel {
					t.Errorf("in slices of %d: %d fuel, want %d", grant, got, tt.fuel)
				}
			}
		})
	}
}

// TestFuelOfTrap: what a call spent before it trapped is there to be read.
func TestFuelOfTrap(t *testing.T) {
	k := &tank{}
	mod := start(t, assemble(t, `(module (func (export "run") (local $i i32)
		(loop (drop (i32.div_u (i32.const 1) (i32.sub (i32.const 1000) (local.tee $i (i32.add (local.get $i) (i32.const 1)))))) (br 0))))`), k)
	g, _ := meter.GaugeOf(mod)
	g.Grant(1_000_000)
	if _, err := mod.ExportedFunction("run").Call(context.Background()); err == nil {
		t.Fatal("did not trap")
	}
	// 1,000 rounds of 1 + add, tee, sub, div (8) and branch.
	if got := g.Spent(); got != 1000*13 || k.ticks != 0 || g.Left() != 1_000_000-got {
		t.Errorf("%d fuel spent, %d left, %d ticks", got, g.Left(), k.ticks)
	}
}

// TestRefused: what could cheat the meter, or the compiler, is refused in words.
func TestRefused(t *testing.T) {
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	for _, tt := range []struct{ name, wat, says string }{
		{"imports the meter", `(module (import "millrace:meter" "tick" (func (param i64) (result i64))))`, "the host's own"},
		{"exports fuel", `(module (global (export "millrace:fuel") (mut i64) (i64.const 0)))`, "millrace:fuel"},
		{"deep", `(module (func ` + many(2100, "(block ") + many(2100, ")") + `))`, "deeper than 2000"},
		{"returns", `(module (func (param i32) ` + many(9000, "(if (local.get 0) (then (return)))") + `))`, "function 0 branches in 27000 ways; at most 16000"},
		{"loops and locals", `(module (func (local ` + many(2000, "i32 ") + `) ` + many(200, "(loop (br_if 0 (local.get 0)))") + `))`, "function 0 has 2000 locals and branches in 1400 ways"},
		{"locals", `(module (func (local ` + many(3_001, "i32 ") + `)))`, "more than 3000 locals"},
		{"parameters", `(module (type (func (param ` + many(1001, "i32 ") + `))))`, "1001 parameters or results; at most 1000"},
		{"labels", `(module (func (block (br_table ` + many(100_001, "0 ") + `(i32.const 0)))))`, "more than 100000 labels"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := meter.Instrument(assemble(t, tt.wat), meter.Options{})
			if !errors.Is(err, event.ErrInvalid) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("%v; want %q", err, tt.says)
			}
		})
	}
	raw := func(code ...byte) []byte { // one function () -> () with a body
		code = append(append([]byte{0}, code...), 0x0B)
		b := []byte("\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x0a")
		return append(append(b, byte(len(code)+2), 1, byte(len(code))), code...)
	}
	if _, err := meter.Instrument(raw(), meter.Options{}); err != nil {
		t.Fatal(err)
	}
	for name, code := range map[string][]byte{
		"sets the fuel":         {0x42, 0, 0x24, 0},
		"sets the grant":        {0x42, 0, 0x24, 1},
		"sets the counter":      {0x42, 0, 0x21, 0},
		"calls tick's helper":   {0x10, 1},
		"throws":                {0x08, 0},
		"tail call":             {0x12, 0},
		"atomic":                {0xFE, 3, 0},
		"relaxed SIMD":          {0xFD, 0x80, 2},
		"vector spelt long":     {0xFD, 0x8C, 0},
		"memory 1":              {0x3F, 1, 0x1A},
		"unknown bulk":          {0xFC, 0x12},
		"code behind the end":   {0x0B, 0x01},
		"branch out of nowhere": {0x0C, 7},
	} {
		if _, err := meter.Instrument(raw(code...), meter.Options{}); !errors.Is(err, event.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
