package main

import (
	"testing"

	"github.com/millrace/millrace/engine/egress"
)

// testDialer connects to the public Internet, and for the operator anywhere.
func testDialer(t *testing.T) *egress.Dialer {
	t.Helper()
	d, err := egress.New(egress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
