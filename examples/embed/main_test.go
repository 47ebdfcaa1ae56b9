package main

import (
	"bytes"
	"testing"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), t.TempDir(), &out); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "b: {\"total\":250}\n"; got != want {
		t.Errorf("the sink printed %q, want %q", got, want)
	}
}
