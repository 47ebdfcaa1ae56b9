package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The page on backtests does what it says, from its first command to its last; its files are those that it shows.
func TestBacktestPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "backtest.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script, files strings.Builder
	commands, fails := 0, false
	for _, x := range blocksOf(string(page)) {
		kind, name, _ := strings.Cut(x.kind, " ")
		switch kind {
		case "yaml", "ndjson":
			fmt.Fprintf(&files, "-- %s --\n%s\n", name, x.text)
		case "sh":
			fails = name == "fails"
			for line := range strings.Lines(tutorialCommands(x.text)) {
				if fails {
					line = "! " + line
				}
				script.WriteString(line)
				commands++
			}
		case "text":
			for line := range strings.SplitSeq(x.text, "\n") {
				fmt.Fprintf(&script, "stdout '%s'\n", pattern(line))
			}
		default:
			t.Errorf("a block of kind %q that this test does not run:\n%s", x.kind, x.text)
		}
	}
	if commands < 7 {
		t.Errorf("the page has %d commands", commands)
	}
	text := strings.Replace(script.String(), "exec cp -r data copy\n", "finish MILLRACE_URL\nexec cp -r data copy\n", 1)
	if !regexp.MustCompile(`(?m)^finish MILLRACE_URL$`).MatchString(text) {
		t.Error("the page copies no data directory")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "page.txtar"), []byte(text+files.String()), 0o666); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, scriptParams(dir))
}
