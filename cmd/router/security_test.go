package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that docs/security.md names is there, and each attack that its tables list names one.
func TestSecurityNamesItsProofs(t *testing.T) {
	root := filepath.Join("..", "..")
	have := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			have[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(string(page), -1) {
		if !have[m[1]] {
			t.Errorf("docs/security.md names %s, which is no test of this project", m[1])
		}
	}
	rows, proofs := 0, false
	for line := range strings.Lines(string(page)) {
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
