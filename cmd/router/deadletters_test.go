package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The page on dead letters does what it says, from its first command to its last.
func TestDeadLettersPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "deadletters.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	waiting := "" // the command whose output the next text is, sooner or later
	commands := 0
	for _, x := range blocksOf(string(page)) {
		switch x.kind {
		case "sh":
			for line := range strings.SplitSeq(tutorialCommands(x.text), "\n") {
				if rest, ok := strings.CutPrefix(line, "router receive"); ok {
					line = `start HOOK 'receiving at (http://\S+)' router receive --listen 127.0.0.1:0` + rest
				}
				script.WriteString(line + "\n")
				commands++
			}
		case "sh eventually":
			waiting = strings.TrimSpace(tutorialCommands(x.text))
		case "text":
			var all []string
			for line := range strings.SplitSeq(x.text, "\n") {
				all = append(all, pattern(line))
			}
			if waiting != "" {
				fmt.Fprintf(&script, "eventually '%s' %s\n", strings.Join(all, `\n`), waiting)
				waiting = ""
				continue
			}
			for _, p := range all {
				fmt.Fprintf(&script, "stdout '%s'\n", p)
			}
		default:
			t.Errorf("a block of kind %q that this test does not run:\n%s", x.kind, x.text)
		}
	}
	if commands < 8 {
		t.Errorf("the page has %d commands", commands)
	}
	script.WriteString("router deadletters list shop\nstderr 'shop has no dead letters'\nfinish HOOK\nfinish MILLRACE_URL\n")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "page.txtar"), []byte(script.String()), 0o666); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, scriptParams(dir))
}
