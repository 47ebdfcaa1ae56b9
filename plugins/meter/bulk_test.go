package meter_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// TestBulk: ranges that are handled in pieces end as whole ones do, overlapping, at the edges and out of bounds,
// where nothing may be written.
func TestBulk(t *testing.T) {
	ctx := context.Background()
	const pages, segment = 8, 200_000
	var data strings.Builder
	for i := range segment {
		fmt.Fprintf(&data, `\%02x`, byte(i*i>>7^i))
	}
	wasm := assemble(t, fmt.Sprintf(`(module (memory (export "memory") %d) (data $d "%s")
		(func (export "copy") (param i32 i32 i32) (memory.copy (local.get 0) (local.get 1) (local.get 2)))
		(func (export "fill") (param i32 i32 i32) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
		(func (export "init") (param i32 i32 i32) (memory.init $d (local.get 0) (local.get 1) (local.get 2)))
		(func (export "drop") (param i32 i32 i32) (data.drop $d)))`, pages, data.String()))
	plain, metered := start(t, wasm, nil), start(t, wasm, &tank{grant: 100})
	const size, all = pages << 16, 0xFFFFFFFF
	trapped := 0
	for _, c := range []struct {
		name    string
		d, s, n uint64
	}{
		{"init", 0, 0, segment}, {"init", 100, 50_000, 150_000}, {"init", 0, 50_001, 150_000}, {"init", size - 100_000, 0, 100_001},
		{"init", 0, all, all}, {"init", 5, 0xFFFFF000, 0x20000}, {"init", 3, 7, 65536}, {"init", 300_000, 7, 65537},
		{"copy", 1, 0, 300_000}, {"copy", 0, 1, 300_000}, {"copy", 70_000, 0, 200_000}, {"copy", 0, 70_000, 200_000},
		{"copy", 1000, 1000, 200_000}, {"copy", size - 100_000, 0, 100_000}, {"copy", size - 100_000, 0, 100_001},
		{"copy", 0, size - 100_000, 100_001}, {"copy", 0, size - 100_000, 100_000}, {"copy", 0, 0, all}, {"copy", all, 0, 100_000},
		{"copy", 0, all, 100_000}, {"copy", size, size, 0}, {"copy", size + 1, 0, 0}, {"copy", 9, 4, 257}, {"copy", size - 10, 0, 100},
		{"fill", 10, 0xAB, 256}, {"fill", 10, 0x1CD, 257}, {"fill", 1000, 7, 250_000}, {"fill", size - 200_000, 8, 200_000},
		{"fill", size - 200_000, 9, 200_001}, {"fill", all, 9, 200_000}, {"fill", 0, 9, all}, {"fill", size, 0, 0}, {"fill", size - 5, 1, 6},
		{"copy", 0, size - 150_000, 150_001}, {"drop", 0, 0, 0}, {"init", 0, 0, 0}, {"init", 0, 0, 100_000}, {"init", 0, 0, 1},
	} {
		_, a := plain.ExportedFunction(c.name).Call(ctx, c.d, c.s, c.n)
		_, b := metered.ExportedFunction(c.name).Call(ctx, c.d, c.s, c.n)
		if kind(a) != kind(b) {
			t.Errorf("%s(%d, %d, %d): plain: %v; metered: %v", c.name, c.d, c.s, c.n, a, b)
		}
		if a != nil {
			trapped++
		}
		sameState(t, plain, metered)
		if t.Failed() {
			t.Fatalf("after %s(%d, %d, %d)", c.name, c.d, c.s, c.n)
		}
	}
	if trapped < 10 {
		t.Errorf("only %d traps", trapped)
	}
}
