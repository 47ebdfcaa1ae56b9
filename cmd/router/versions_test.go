package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine"
)

// versionModule builds a guest that tells its version; see engine/testdata/version.c.
func versionModule(t *testing.T, name string, defines ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name+".wasm")
	args := []string{"--target=wasm32-wasi", "-mexec-model=reactor", "-O2", "-mbulk-memory", "-Wl,--strip-all", `-DVERSION="` + name + `"`, "-o", out}
	for _, d := range defines {
		args = append(args, "-D"+d)
	}
	if text, err := exec.Command("clang-19", append(args, "../../engine/testdata/version.c")...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// shownFunction is what the API shows of a function.
type shownFunction struct {
	State    struct{ Digest string }
	Versions []struct {
		Digest, State string
		Since         time.Time
	}
}

func (p *process) function(name string) (f shownFunction) {
	p.t.Helper()
	if err := json.Unmarshal([]byte(p.must(200, "GET", "/v1/functions/"+name, "", "")), &f); err != nil {
		p.t.Fatal(err)
	}
	return f
}

// states are the versions as digest letters and states, newest first.
func (f shownFunction) states(names map[string]string) string {
	var b strings.Builder
	for _, v := range f.Versions {
		fmt.Fprintf(&b, "%s %s, ", names[v.Digest], v.State)
	}
	return strings.TrimSuffix(b.String(), ", ")
}

const versionRules = `version: 1
topics: {orders: {}, audit: {}}
functions:
  f: {wasm: pushed}
  own: {wasm: own.wasm}
subscriptions:
  s:
    topic: orders
    functions: [f]
%s    deliver: {topic: audit}
`

// Versions of a pushed function come and go over the API and survive a restart and a reload of the rules;
// those of the file belong to the file.
func TestVersionsOverTheAPI(t *testing.T) {
	a, b := versionModule(t, "a"), versionModule(t, "b")
	p := startProcessWith(t, fmt.Sprintf(versionRules, ""), map[string]string{"own.wasm": a})
	wasm := "application/wasm"
	names := map[string]string{}
	push := func(name, module string) {
		t.Helper()
		p.must(200, "PUT", "/v1/functions/f", wasm, module)
		names[p.function("f").State.Digest] = name
	}
	push("a", a)
	push("b", b)
	if got := p.function("f").states(names); got != "b current, a previous" {
		t.Errorf("versions %s", got)
	}
	before := p.function("f")
	push("b", b) // the same again is nothing
	if after := p.function("f"); !after.Versions[0].Since.Equal(before.Versions[0].Since) {
		t.Errorf("pushing the same made another version: %+v", after)
	}
	began := time.Now()
	p.must(200, "POST", "/v1/functions/f/rollback", "", "")
	t.Logf("rollback over HTTP: %s", time.Since(began))
	if got := p.function("f").states(names); got != "a current, b previous" {
		t.Errorf("versions %s", got)
	}
	tells := func(version string) {
		t.Helper()
		p.must(202, "POST", "/v1/topics/orders/events?id="+version+fmt.Sprint(time.Now().UnixNano()), "application/json", "7")
		until(t, "the last event is of version "+version, func() bool {
			_, text := p.call("GET", "/v1/topics/audit/events", "", "")
			all := regexp.MustCompile(`"version":"(.)"`).FindAllStringSubmatch(text, -1)
			return len(all) > 0 && all[len(all)-1][1] == version
		})
	}
	tells("a")
	short := before.State.Digest[:len("sha256:")+10]
	p.must(200, "POST", "/v1/functions/f/rollback", "application/json", `{"to":"`+short+`"}`)
	tells("b")

	for path, want := range map[string]struct {
		body   string
		status int
		text   string
	}{
		"own":  {"", 409, "rules.yaml:5"},
		"none": {"", 404, "none"},
		"f":    {`{"to":"sha256:00000000"}`, 404, "/v1/functions/f"},
	} {
		status, text := p.call("POST", "/v1/functions/"+path+"/rollback", "application/json", want.body)
		if status != want.status || !strings.Contains(text, want.text) {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	status, text := p.call("PUT", "/v1/functions/f", wasm, versionModule(t, "c", "BROKEN=1"))
	if status/100 != 4 || !strings.Contains(text, "unreachable") {
		t.Errorf("a module that does not start: %d %s", status, text)
	}
	tells("b")

	// Whoever looks does not wait for whoever changes: a change may have a module to compile.
	p.r.defs.changing.Lock()
	for _, path := range []string{"/v1/functions", "/v1/functions/f", "/v1/subscriptions/s", "/v1/rules", "/readyz"} {
		p.must(200, "GET", path, "", "")
	}
	p.r.defs.changing.Unlock()

	p.stop()
	p.start()
	if got := p.function("f").states(names); got != "b current, a previous" {
		t.Errorf("versions after a restart: %s", got)
	}
	tells("b")
	p.must(200, "POST", "/v1/functions/f/rollback", "", "")
	if err := p.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	tells("a")
}

// startProcessWith is startProcess with files beside the rules.
func startProcessWith(t *testing.T, rules string, files map[string]string) *process {
	t.Helper()
	p := startProcess(t, "version: 1\n")
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(filepath.Dir(p.o.rules), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.write(rules)
	if err := p.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// A version named in the rules runs beside the one in force; the API, the metrics and the log tell of it.
func TestShadowOverTheAPI(t *testing.T) {
	a, b := versionModule(t, "a"), versionModule(t, "b")
	p := startProcessWith(t, fmt.Sprintf(versionRules, ""), map[string]string{"own.wasm": a})
	p.must(200, "PUT", "/v1/functions/f", "application/wasm", b)
	digest := p.function("f").State.Digest
	p.must(200, "PUT", "/v1/functions/f", "application/wasm", a)
	p.write(fmt.Sprintf(versionRules, "    shadow: f@"+digest[:len("sha256:")+8]+"\n"))
	if err := p.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	shadow := func() string { return p.must(200, "GET", "/v1/subscriptions/s/shadow", "", "") }
	until(t, "the shadow runs", func() bool { return strings.Contains(shadow(), `"state":"running"`) })
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", `"hello"`)
	until(t, "it is compared", func() bool { return strings.Contains(shadow(), `"runs":1`) })
	for _, want := range []string{`"subscription":"s"`, digest, `"different":1`, `"path":"data.by.version"`, `"old":"\"a\""`, `"new":"\"b\""`, `"position":"0-0"`} {
		if !strings.Contains(shadow(), want) {
			t.Errorf("%s is not in %s", want, shadow())
		}
	}
	metrics := p.must(200, "GET", "/metrics", "", "")
	for _, want := range []string{
		`millrace_shadow_total{result="different",subscription="s"} 1`, `millrace_function_calls_total{function="f"} 1`,
		`millrace_function_events_total{function="f"} 1`, `millrace_function_results_total{function="f",verdict="emit"} 1`,
		`millrace_function_failures_total{function="f",reason="trap"} 0`, `millrace_function_swaps_total{function="f"} 1`,
		`millrace_function_info{digest="` + shortDigest(p.function("f").State.Digest) + `",function="f"} 1`, `millrace_function_seconds_total{function="f"}`,
		`millrace_function_instances{function="f"}`, `millrace_function_memory_bytes{function="f"}`, `millrace_function_fuel_total{function="f"}`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("%s is not in /metrics", want)
		}
	}
	log := p.must(200, "GET", "/v1/functions/f/logs", "", "")
	for _, want := range []string{`"level":"info","message":"\"hello\""`, `"level":"info","shadow":true,"message":"\"hello\""`, `"level":"call","events":1`} {
		if !strings.Contains(log, want) {
			t.Errorf("%s is not in %s", want, log)
		}
	}
	// A follower hears of what happens next, and of the end.
	resp, err := http.Get(p.base + "/v1/functions/f/logs?follow=true&limit=0")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", `"again"`)
	var line struct{ Message string }
	for d := json.NewDecoder(resp.Body); line.Message != `"again"`; {
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
	}
	p.write(fmt.Sprintf(versionRules, ""))
	if err := p.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := shadow(); !strings.Contains(got, `"shadows":[]`) {
		t.Errorf("without the key: %s", got)
	}
}

// What docs/functions.md shows of versions, shadows and logs is run by a script.
func TestFunctionsPageIsRun(t *testing.T) {
	script, err := os.ReadFile(filepath.Join("testdata", "script", "functions_versions.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "functions.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(page), "\n## Versions\n")
	shown := 0
	for line := range strings.Lines(part) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "$ "); ok {
			shown++
			if !strings.Contains("\n"+string(script), "\n"+command+"\n") && !strings.Contains(string(script), "! "+command+"\n") {
				t.Errorf("no script runs: %s", command)
			}
		}
	}
	if shown < 7 {
		t.Errorf("%d commands are shown", shown)
	}
}

// What the page shows of a shadow is what the command prints.
func TestShadowIsPrintedAsDocumented(t *testing.T) {
	var out strings.Builder
	p := &program{stdout: &out}
	p.printShadow(engine.ShadowInfo{Function: "redact", Digest: "sha256:0f343b0931126a20", Against: "sha256:9f86d081884c7d65", State: "running",
		Runs: 1000, Equal: 990, JSONEqual: 6, Different: 3, Failed: 1,
		Examples: []engine.ShadowExample{{Position: "0-42", Path: "data.email", Old: `"***"`, New: `"a@b.c"`}}})
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "functions.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "```text\n"+out.String()+"```\n") {
		t.Errorf("docs/functions.md does not show\n%s", out.String())
	}
}
