package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A folder of rules as it looks while it is replaced: nothing changes, what is wrong is said, and the next good one
// is taken.
func TestHalfWrittenRules(t *testing.T) {
	// A program that does nothing: a memory, and a _start that returns.
	module := []byte("\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x05\x03\x01\x00\x01\x07\x13\x02\x06memory\x02\x00\x06_start\x00\x00\x0a\x04\x01\x02\x00\x0b")
	p := newProcess(t)
	p.o.rules = filepath.Join(t.TempDir(), "rules")
	// As a mounted folder: what is in it leads through one link, which is turned.
	turn := func(version, rules string, module []byte) {
		t.Helper()
		dir := filepath.Join(p.o.rules, version)
		err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte(rules), 0o600), os.WriteFile(filepath.Join(dir, "redact.wasm"), module, 0o600),
			os.Symlink(version, filepath.Join(p.o.rules, "..new")), os.Rename(filepath.Join(p.o.rules, "..new"), filepath.Join(p.o.rules, "..data")))
		if err != nil {
			t.Fatal(err)
		}
	}
	const good = "version: 1\nfunctions: {redact: {wasm: redact.wasm}}\nsubscriptions:\n  copy: {topic: orders, deliver: {topic: copies}}\n"
	also := func(name string) string { return good + "  " + name + ": {topic: orders, deliver: {pull: {}}}\n" }
	turn("..v1", also("v1"), module)
	rules, wasm := filepath.Join(p.o.rules, "rules.yaml"), filepath.Join(p.o.rules, "redact.wasm")
	if err := errors.Join(os.Symlink("..data/rules.yaml", rules), os.Symlink("..data/redact.wasm", wasm)); err != nil {
		t.Fatal(err)
	}
	p.start()
	t.Cleanup(func() { p.stop() })
	in := "v1"
	refused := func(what, want string) {
		t.Helper()
		until(t, what+" is refused: "+want, func() bool { return strings.Contains(p.ready(), want) })
		p.must(200, "GET", "/v1/subscriptions/"+in, "", "")
		p.must(202, "POST", "/v1/topics/orders/events", "application/json", `{"total":1,"email":"a@example.com"}`)
		if text := p.must(200, "GET", "/metrics", "", ""); !strings.Contains(text, "\nmillrace_rules_reload_failed 1\n") {
			t.Errorf("%s: the metrics do not tell of it", what)
		}
	}
	taken := func(what, name string) {
		t.Helper()
		until(t, what+" is taken", func() bool {
			status, _ := p.call("GET", "/v1/subscriptions/"+name, "", "")
			return status == 200 && !strings.Contains(p.ready(), `"error"`)
		})
		in = name
	}
	turn("..v2", also("v2")[:len(good)-10], module)
	refused("a file that is cut off", "rules.yaml:4:")
	turn("..v3", also("v3"), module)
	taken("a good one behind the link", "v3")
	turn("..v4", also("v4"), module[:len(module)/2])
	refused("half a module", "redact")
	if err := os.WriteFile(wasm, module, 0o600); err != nil {
		t.Fatal(err)
	}
	taken("the rest of the module, the rules untouched", "v4")
	if err := os.Remove(filepath.Join(p.o.rules, "..data")); err != nil {
		t.Fatal(err)
	}
	refused("a link that leads nowhere", "no such file")
	turn("..v5", strings.Replace(also("v5"), "redact.wasm", "late.wasm", 1), module)
	refused("a module that is not there", "late.wasm")
	if err := os.WriteFile(filepath.Join(p.o.rules, "late.wasm"), module, 0o600); err != nil {
		t.Fatal(err)
	}
	taken("the module that came", "v5")
	if err := os.Remove(rules); err != nil {
		t.Fatal(err)
	}
	refused("an empty folder", "has no *.yaml")
	if err := os.Symlink("..data/rules.yaml", rules); err != nil {
		t.Fatal(err)
	}
	taken("the file that came back", "v5")
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", `{"total":2,"email":"b@example.com"}`)
	until(t, "no event is lost", func() bool {
		_, text := p.call("GET", "/v1/topics/copies/events", "", "")
		return strings.Count(text, `"total":2`) == 1 && strings.Count(text, `"id"`) == 6
	})
}

// Files that change while they are read may be half of two versions, each of them good: nothing is put in force,
// and nothing is reported.
func TestRulesThatChangeWhileTheyAreRead(t *testing.T) {
	p := newProcess(t)
	p.o.look = time.Hour
	p.o.rules = filepath.Join(t.TempDir(), "rules.yaml")
	note := filepath.Join(filepath.Dir(p.o.rules), "note")
	if err := os.WriteFile(note, []byte("orders"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := with("kept") + "  named: {topic: '${file:note}', deliver: {pull: {}}}\n"
	p.write(text)
	p.start()
	t.Cleanup(func() { p.stop() })
	d := p.r.defs
	d.o.ReadFile = func(path string) ([]byte, error) { // nobody else reloads
		p.write(text + "# more\n")
		return os.ReadFile(path)
	}
	p.write(strings.Replace(text, "kept", "gone", 1))
	if err := d.reload(t.Context()); !errors.Is(err, errChanging) {
		t.Errorf("reload: %v; want %v", err, errChanging)
	}
	p.must(200, "GET", "/v1/subscriptions/kept", "", "")
	if text := p.ready(); strings.Contains(text, `"error"`) {
		t.Errorf("it is reported: %s", text)
	}
	if !d.changed() {
		t.Error("the next look does not find it changed")
	}
	d.o.ReadFile = nil
	if err := d.reload(t.Context()); err != nil || d.changed() {
		t.Errorf("the next reload: %v, changed %v", err, d.changed())
	}
}

// A file that is written in two halves, the first of which is good by itself, loses no subscription.
func TestRulesInTwoHalves(t *testing.T) {
	p := startProcess(t, with("more"))
	rounds := 0
	for n := range 20 {
		begin := time.Now()
		p.write(twoTopics)
		if sleep(t.Context(), 40*time.Millisecond) != nil {
			return
		}
		status, _ := p.call("GET", "/v1/subscriptions/more", "", "")
		p.write(with("more") + fmt.Sprintf("# %d\n", n))
		if time.Since(begin) < settleTime { // else it was left alone for so long that it counted as written
			rounds++
			if status != 200 {
				t.Fatalf("round %d: half of the file was put in force: %d", n, status)
			}
		}
	}
	t.Logf("%d rounds", rounds)
}

// One signal has every file read again at once: rules, policies and certificates.
func TestOneSignalReadsEveryFile(t *testing.T) {
	var log lockedBuffer
	cert, key, _ := certified(t, "before")
	newCert, newKey, _ := certified(t, "after")
	p := newProcess(t)
	dir := t.TempDir()
	p.o.look, p.o.log = time.Hour, slog.New(slog.NewTextHandler(&log, nil))
	p.o.rules, p.o.accessFile, p.o.egress = filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "access.yaml"), filepath.Join(dir, "egress.yaml")
	p.o.edge = edgeOptions{certs: []string{cert}, keys: []string{key}}
	for _, path := range []string{p.o.rules, p.o.accessFile, p.o.egress} {
		if err := os.WriteFile(path, []byte("version: 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.start()
	defer func() { p.stop() }()
	logged := func(what string) {
		t.Helper()
		until(t, "the log says "+what, func() bool { return strings.Contains(log.String(), what) })
	}
	if err := os.Rename(newCert, cert); err != nil { // which does not fit its key yet
		t.Fatal(err)
	}
	p.hangup <- syscall.SIGHUP
	logged("rules reloaded")
	logged("detail=reloaded")
	logged("the egress policy was reloaded")
	logged("the TLS files cannot be used")
	if err := os.Rename(newKey, key); err != nil {
		t.Fatal(err)
	}
	p.hangup <- syscall.SIGHUP
	logged("a TLS certificate was loaded")
}
