package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every command of docs/pull.md does what the page says, with its rules.
func TestDocumentedPull(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "pull.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string) string {
		_, rest, _ := strings.Cut(string(doc), "```"+kind+"\n")
		text, _, _ := strings.Cut(rest, "```")
		return text
	}
	p := startProcess(t, block("yaml"))
	lease, answer, ran := "", "", 0
	found := regexp.MustCompile(`"lease":"([^"]+)"`)
	for line := range strings.Lines(block("sh")) {
		if want, ok := strings.CutPrefix(line, "# "); ok {
			pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(want)), "…", ".*") + "$"
			if !regexp.MustCompile(pattern).MatchString(strings.TrimSpace(answer)) {
				t.Errorf("%s", answer)
				t.Errorf("the page says %s", want)
			}
			continue
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(line, "curl ", "curl -sS ", 1))
		cmd.Env = append(os.Environ(), "MILLRACE_URL="+p.base, "LEASE="+lease)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v %s", line, err, out)
		}
		answer = string(out)
		if m := found.FindStringSubmatch(answer); m != nil {
			lease = m[1]
		}
		ran++
	}
	if ran < 7 {
		t.Errorf("the page has %d commands", ran)
	}
}
