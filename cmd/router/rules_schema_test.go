package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/millrace/millrace/engine/rules"
)

// The rules reference is what the descriptions say: UPDATE_GOLDEN writes it anew.
func TestRulesReference(t *testing.T) {
	const path = "../../docs/rules-reference.md"
	got := rules.Reference(sinkKinds(nil), sourceSchemes(nil), bridgeKinds(linkProcess{}))
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the descriptions say (%v): UPDATE_GOLDEN=1 go test ./cmd/router -run TestRulesReference", path, err)
	}
	if n := bytes.Count(got, []byte("|  |\n")); n > 0 {
		t.Errorf("%d keys are not described", n)
	}
}
