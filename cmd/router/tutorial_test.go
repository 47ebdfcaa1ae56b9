package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/millrace/millrace/cmd/router/templates"
)

// A block is one fenced part of a page.
type block struct {
	section string // the heading of second level that it stands under
	kind    string // what stands behind the opening fence
	text    string
}

func blocksOf(page string) (all []block) {
	section, fence := "", -1
	lines := strings.Split(page, "\n")
	for i, line := range lines {
		switch {
		case fence < 0 && strings.HasPrefix(line, "## "):
			section = line[3:]
		case fence < 0 && strings.HasPrefix(line, "```"):
			fence = i
		case fence >= 0 && line == "```":
			all = append(all, block{section, lines[fence][3:], strings.Join(lines[fence+1:i], "\n")})
			fence = -1
		}
	}
	return all
}

// tutorialScript turns the tutorial's blocks for one language into a script:
//
//	```sh           commands, each a line that begins with "$ "
//	```sh fails     the same, of which the last exits with 1
//	```sh change    what to do under "Change it"
//	```text         lines that the last command prints; … stands for anything
//	```text receiver  a line that the receiver prints, sooner or later
//
// Anything else is source, which the project must have; source gets it.
func tutorialScript(blocks []block, title string, source func(text string)) string {
	var b strings.Builder
	change := ""
	for _, x := range blocks {
		if strings.HasPrefix(x.section, "In ") && x.section != "In "+title {
			continue
		}
		switch x.kind {
		case "sh", "sh fails":
			if x.section == "Change it" && change != "" {
				b.WriteString(change)
				change = ""
			}
			commands := tutorialCommands(x.text)
			if x.kind == "sh fails" {
				at := strings.LastIndex(strings.TrimSuffix(commands, "\n"), "\n") + 1
				commands = commands[:at] + "! " + commands[at:]
			}
			b.WriteString(commands)
		case "sh change":
			change = tutorialCommands(x.text)
		case "text":
			for line := range strings.SplitSeq(x.text, "\n") {
				fmt.Fprintf(&b, "stdout '%s'\n", pattern(line))
			}
		case "text receiver":
			fmt.Fprintf(&b, "eventually '%s' cat HOOK.out\n", pattern(x.text))
		default:
			source(x.text)
		}
	}
	b.WriteString("finish HOOK\nfinish MILLRACE_URL\n")
	return b.String()
}

// pattern is the regular expression for a line of the page, in a script's quotes.
func pattern(line string) string {
	p := regexp.QuoteMeta(line)
	p = strings.ReplaceAll(p, "…", ".*")
	p = regexp.MustCompile(` {2,}`).ReplaceAllString(p, " +") // columns
	return strings.ReplaceAll(p, "'", "''")
}

// tutorialCommands makes a shell's lines those of a script: servers run in the background at ports of their
// own, and packages come from where `make deps` put them.
func tutorialCommands(text string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		command, _ := strings.CutPrefix(line, "$ ")
		switch {
		case strings.HasPrefix(command, "router serve"):
			command = `start MILLRACE_URL 'listen +(http://\S+)' ` + command + " --listen 127.0.0.1:0"
		case command == "router receive":
			command = `start HOOK 'receiving at (http://\S+)' router receive --listen 127.0.0.1:0`
		case strings.HasPrefix(command, "npm install"):
			command = "symlink redact/node_modules -> $ROOT/scripts/npm/node_modules"
		case !strings.HasPrefix(command, "router "):
			command = "exec " + command
		}
		b.WriteString(strings.ReplaceAll(command, "http://127.0.0.1:9000", "$HOOK") + "\n")
	}
	return b.String()
}

// The tutorial does what it says, in every language that projects can be made in.
func TestTutorial(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "tutorial-functions.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := blocksOf(string(page))
	dir := t.TempDir()
	for _, language := range templates.Languages() {
		title := toolchains[language].title
		files, err := templates.Project(language, "redact")
		if err != nil {
			t.Fatal(err)
		}
		sources := 0
		script := tutorialScript(blocks, title, func(text string) {
			for _, f := range files {
				if strings.Contains(string(f.Text), text) {
					sources++
					return
				}
			}
			t.Errorf("no file of a new project in %s has this, which the tutorial shows:\n%s", title, text)
		})
		if sources == 0 || !strings.Contains(script, "--lang "+language) {
			t.Errorf("the tutorial has no part with source and commands for %s (section \"In %s\"):\n%s", language, title, script)
		}
		if err := os.WriteFile(filepath.Join(dir, language+".txtar"), []byte(script), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	testscript.Run(t, scriptParams(dir))
}
