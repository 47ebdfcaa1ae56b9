package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
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

// What docs/security.md says to put on the internet starts as it stands there, but for paths, ports and the authority of its
// certificate; and its next command makes a key at the address for administration.
func TestTheExampleForTheInternetServes(t *testing.T) {
	etc := t.TempDir()
	if err := os.Mkdir(filepath.Join(etc, "policy"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		text := codeBlock(t, "security.md", "yaml", i)
		path := regexp.MustCompile(`/etc/millrace/([a-z/]+\.yaml)`).FindStringSubmatch(text)
		if err := os.WriteFile(filepath.Join(etc, path[1]), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	line := func(pattern string) []string {
		m := regexp.MustCompile(`(?m)^` + pattern + `$`).FindStringSubmatch(string(page))
		if m == nil {
			t.Fatalf("docs/security.md has no line of %s", pattern)
		}
		m[1] = strings.NewReplacer("/etc/millrace", etc, "--listen :443", "--listen 127.0.0.1:0", ":80 ", "127.0.0.1:0 ", "127.0.0.1:8081", "127.0.0.1:0").Replace(m[1])
		return strings.Fields(m[1])
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	data := filepath.Join(t.TempDir(), "data")
	env := func(url string) func(string) string {
		all := map[string]string{"MILLRACE_TOKEN": "the-operator's-own-token", "STATE_DIRECTORY": data, "MILLRACE_URL": url}
		return func(name string) string { return all[name] }
	}
	out, in := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		args := append(line(`ExecStart=/usr/local/bin/router (serve .*)`), "--acme-dir", "https://127.0.0.1:1/")
		ended <- run(ctx, "", args, nil, in, in, env(""))
		in.Close()
	}()
	said, admin := "", make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			said += lines.Text() + "\n"
			if at, ok := strings.CutPrefix(lines.Text(), "admin   "); ok {
				admin <- at
			}
		}
		close(admin)
	}()
	at, ok := <-admin
	if !ok {
		t.Fatalf("it does not serve: %s", said)
	}
	var key strings.Builder
	for _, create := range []string{`\$ router (keys create ada .*)`, `\$ router (keys create shop .*)`} {
		if code := run(ctx, "", line(create), nil, &key, &key, env(at)); code != 0 || !strings.Contains(key.String(), "mrk_") {
			t.Errorf("%s exits with %d: %s", create, code, key.String())
		}
	}
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("serve exits with %d", code)
	}
	for range admin { // until what it said is complete
	}
	if want := "access  on: MILLRACE_TOKEN, " + filepath.Join(etc, "policy", "access.yaml"); !strings.Contains(said, want) {
		t.Errorf("no line %q in %s", want, said)
	}
}

// The policy of docs/access.md reads as the page shows it, and its commands print what stands there.
func TestTheExampleOfAccessIsTrue(t *testing.T) {
	policy, shown, commands := codeBlock(t, "access.md", "yaml", 0), codeBlock(t, "access.md", "text", 0), accessCommands(t)
	t.Chdir(t.TempDir())
	if err := os.WriteFile("access.yaml", []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(name string) string { return map[string]string{"SHARED": strings.Repeat("0123", 16)}[name] }
	for command, want := range map[string]string{"access show access.yaml": shown, commands[0]: commands[1] + "\n"} {
		var out strings.Builder
		code := run(t.Context(), "", strings.Fields(command), nil, &out, &out, env)
		if got := regexp.MustCompile(`(?m) +$`).ReplaceAllString(out.String(), ""); code != 0 || got != want {
			t.Errorf("router %s exits with %d and prints\n%s\nwant\n%s", command, code, got, want)
		}
	}
}

// accessCommands is the page's `router access check` and the line that it prints.
func accessCommands(t *testing.T) []string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "access.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\$ router (access check .*)\n(.*)$`).FindStringSubmatch(string(page))
	if m == nil {
		t.Fatal("docs/access.md has no router access check")
	}
	return m[1:]
}
