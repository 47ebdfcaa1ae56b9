package main

import (
	"strings"
	"testing"
)

// Every test that docs/security.md names is there, and each attack that its tables list names one.
func TestSecurityNamesItsProofs(t *testing.T) {
	page, _ := proofsOf(t, "security.md")
	rows, proofs := 0, false
	for line := range strings.Lines(page) {
		switch {
		case strings.HasPrefix(line, "| Attack |"):
			proofs = true
		case !strings.HasPrefix(line, "|"):
			proofs = false
		case proofs && !strings.HasPrefix(line, "|-"):
			if rows++; !strings.Contains(line, "`Test") {
				t.Errorf("docs/security.md promises without a test: %s", line)
			}
		}
	}
	if rows < 35 {
		t.Errorf("docs/security.md lists %d attacks", rows)
	}
}
