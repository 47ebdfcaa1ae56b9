package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every command that docs/cli.md shows is run by a script, and every command has its place there.
func TestDocumentedCommandsAreRun(t *testing.T) {
	script, err := os.ReadFile(filepath.Join("testdata", "script", "docs.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	// What a script needs and a reader does not.
	run := strings.NewReplacer(" --listen 127.0.0.1:0", "", "$HOOK", "http://127.0.0.1:9000").Replace(string(script))
	docs, err := os.ReadFile(filepath.Join("..", "..", "docs", "cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for line := range strings.Lines(string(docs)) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "$ router ")
		if !ok || command == "demo" || command == "demo --stay" { // of which scripts of their own tell
			continue
		}
		shown++
		if !regexp.MustCompile(`(?m)(^|[ '])router ` + regexp.QuoteMeta(command) + `$`).MatchString(run) {
			t.Errorf("docs/cli.md shows what no script runs: router %s", command)
		}
	}
	if shown < 20 {
		t.Errorf("docs/cli.md shows %d commands", shown)
	}
	for _, page := range []struct{ file, script string }{{"webhooks.md", "listen.txtar"}, {"operations.md", "verify.txtar"}} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", page.file))
		if err != nil {
			t.Fatal(err)
		}
		script, err := os.ReadFile(filepath.Join("testdata", "script", page.script))
		if err != nil {
			t.Fatal(err)
		}
		run := strings.ReplaceAll(string(script), "http://$HOOK/", "http://localhost:3000/")
		shown := regexp.MustCompile(`(?m)^\$ (router .*)$`).FindStringSubmatch(string(text))
		if shown == nil || !strings.Contains(run, shown[1]+"\n") {
			t.Errorf("docs/%s shows %q, which %s does not run", page.file, shown, page.script)
		}
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "rules-remote.md"))
	if err != nil {
		t.Fatal(err)
	}
	if script, err = os.ReadFile(filepath.Join("testdata", "script", "rules_remote.txtar")); err != nil {
		t.Fatal(err)
	}
	run = strings.NewReplacer(" --listen 127.0.0.1:0", "", "$WEB", "https://config.example.com").Replace(string(script))
	for _, m := range regexp.MustCompile(`(?m)^\$ (router .*)$`).FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(run, m[1]+"\n") {
			t.Errorf("docs/rules-remote.md shows %q, which rules_remote.txtar does not run", m[1])
		}
	}
	if text, err = os.ReadFile(filepath.Join("..", "..", "docs", "rules-apply.md")); err != nil {
		t.Fatal(err)
	}
	if script, err = os.ReadFile(filepath.Join("testdata", "script", "rules_apply.txtar")); err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\$ (router .*)$`).FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(string(script), m[1]+"\n") {
			t.Errorf("docs/rules-apply.md shows %q, which rules_apply.txtar does not run", m[1])
		}
	}
	text, err = os.ReadFile(filepath.Join("..", "..", "docs", "explain.md"))
	if err != nil {
		t.Fatal(err)
	}
	if script, err = os.ReadFile(filepath.Join("testdata", "script", "explain.txtar")); err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?ms)^```(\\w*)\\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		if block[1] == "text" { // the script looks for it, with what differs from run to run left open
			continue
		}
		for line := range strings.Lines(block[2]) {
			if !strings.Contains(string(script), strings.TrimPrefix(line, "$ ")) {
				t.Errorf("docs/explain.md shows %q, which explain.txtar has not", line)
			}
		}
	}
	if text, err = os.ReadFile(filepath.Join("..", "..", "docs", "backup.md")); err != nil {
		t.Fatal(err)
	}
	if script, err = os.ReadFile(filepath.Join("testdata", "script", "backup.txtar")); err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\$ (router .*)$`).FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(string(script), m[1]+"\n") {
			t.Errorf("docs/backup.md shows %q, which backup.txtar does not run", m[1])
		}
	}
	if text, err = os.ReadFile(filepath.Join("..", "..", "docs", "tls.md")); err != nil {
		t.Fatal(err)
	}
	if script, err = os.ReadFile(filepath.Join("testdata", "script", "edge.txtar")); err != nil {
		t.Fatal(err)
	}
	run = strings.NewReplacer(" --listen 127.0.0.1:0", "", "exec ", "", "$URL", "https://127.0.0.1:8080").Replace(string(script))
	block := regexp.MustCompile("(?s)To try it here.*?```\n(.*?)```").FindStringSubmatch(string(text))
	for line := range strings.Lines(block[1]) {
		if line = strings.NewReplacer("$ ", "", "SSL_CERT_FILE=tls.crt ", "").Replace(strings.TrimSpace(line)); !strings.Contains(run, line) {
			t.Errorf("docs/tls.md shows %q, which edge.txtar does not run", line)
		}
	}
	p := &program{env: func(string) string { return "" }}
	for _, c := range rootCommand(p).Commands() {
		if !strings.Contains(string(docs), "\n## `router "+c.Name()+"`") {
			t.Errorf("docs/cli.md has no section on router %s", c.Name())
		}
		for _, sub := range c.Commands() {
			if !strings.Contains(string(docs), "router "+c.Name()+" "+sub.Name()) {
				t.Errorf("docs/cli.md does not mention router %s %s", c.Name(), sub.Name())
			}
		}
	}
}

// What the other pages and the README show of the command line exists: the command, and each of its flags.
func TestDocumentedFlagsExist(t *testing.T) {
	root := filepath.Join("..", "..")
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?m)(?:^|`)(?:\\$ )?(?:[A-Z_]+=\\S+ )?(?:bin/)?router ([a-z][^`\n]*)")
	flag := regexp.MustCompile(`(?:^|\s)--([a-z][a-z-]*)`)
	p := &program{env: func(string) string { return "" }}
	seen := 0
	for _, page := range append(pages, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range shown.FindAllSubmatch(text, -1) {
			line, _, _ := strings.Cut(string(m[1]), " # ")
			cmd, _, err := rootCommand(p).Find(strings.Fields(line))
			if err != nil {
				t.Errorf("%s shows router %s: %v", page, line, err)
				continue
			}
			for _, f := range flag.FindAllStringSubmatch(line, -1) {
				seen++
				if f[1] != "help" && cmd.Flags().Lookup(f[1]) == nil {
					t.Errorf("%s shows router %s: %s has no flag --%s", page, line, cmd.CommandPath(), f[1])
				}
			}
		}
	}
	if seen < 60 {
		t.Errorf("the documents show %d flags", seen)
	}
}
