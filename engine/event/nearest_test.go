package event

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	names := []string{"orders", "order-lines", "audit", "a"}
	for name, want := range map[string]string{"ordres": "orders", "ORDERS": "orders", "order_lines": "order-lines", "audi": "audit",
		"zebra": "", "": "", "b": "a", strings.Repeat("x", 1000): ""} {
		if got := Nearest(name, names); got != want {
			t.Errorf("nearest to %q is %q, want %q", name, got, want)
		}
	}
}
