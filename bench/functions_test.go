package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// A group stands for all its rows and no other; every row about functions is in it.
func TestGroup(t *testing.T) {
	picked, err := chosen(functionsGroup)
	if err != nil || len(picked) != len(functionRows()) {
		t.Fatalf("%d rows of %d, %v", len(picked), len(functionRows()), err)
	}
	run, err := needed(picked, measurements())
	if err != nil || len(run) != len(functionMeasurements()) {
		t.Errorf("they need %d measurements of %d, %v", len(run), len(functionMeasurements()), err)
	}
	if picked, err = chosen("fn-cold, idle"); err != nil || len(picked) != 2 {
		t.Errorf("%d rows, %v", len(picked), err)
	}
	if _, err := chosen(" "); err == nil {
		t.Error("an empty key is taken")
	}
}

// testLab is a lab that builds guests; this test's program is its child, if it is told what to do.
func testLab(t *testing.T) *lab {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &lab{o: options{quick: true, seconds: 0.02}, dir: t.TempDir(), self: self}
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == compileCommand || os.Args[1] == idleCommand) {
		os.Exit(doMain(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// take makes a measurement and holds it to what it promises to give.
func take(t *testing.T, l *lab, m measurement) map[string]float64 {
	t.Helper()
	got := map[string]float64{}
	if err := m.run(t.Context(), l, func(name string) float64 { return got[name] }, func(name string, v float64) { got[name] = v }); err != nil {
		t.Fatalf("%s: %v", m.name, err)
	}
	for _, name := range m.gives {
		if v, ok := got[name]; !ok || name != "fn-allocs" && v == 0 {
			t.Errorf("%s gives %v of %s", m.name, v, name)
		}
	}
	if len(got) != len(m.gives) {
		t.Errorf("%s gives %v, promised %v", m.name, got, m.gives)
	}
	return got
}

// The measurements measure what they say: calls that pass, guests that answer alike however they are run, spinners that
// were ended after their time and not before, collections beside one.
func TestFunctionMeasurements(t *testing.T) {
	l := testLab(t)
	got := take(t, l, measureCalls())
	if got["fn-call"] <= got["fn-bare"] || got["fn-event"] >= got["fn-call"] {
		t.Errorf("a call takes %v, an empty one %v, an event of many %v", got["fn-call"], got["fn-bare"], got["fn-event"])
	}
	take(t, l, measureMeter("C"))
	for name, past := range take(t, l, measureDeadline()) {
		if past < 0 {
			t.Errorf("%s: ended %v µs before its deadline", name, -past)
		}
	}
	take(t, l, measureCollection())
}

// A module with another custom section is another module that does the same.
func TestVariantOf(t *testing.T) {
	ctx, l := t.Context(), testLab(t)
	module, err := l.module(ctx, "pass")
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(module)
	digests := map[string]bool{}
	for i := range 3 {
		digest, err := l.keep(ctx, l.dir, variantOf(module, i))
		if err != nil {
			t.Fatal(err)
		}
		digests[digest] = true
		if took, err := l.coldStart(ctx, l.dir, digest); err != nil || took <= 0 {
			t.Errorf("it took %s, %v", took, err)
		}
	}
	if len(digests) != 3 || !bytes.Equal(module, before) {
		t.Errorf("%d modules; the first has changed: %v", len(digests), !bytes.Equal(module, before))
	}
	// The process of the idle functions opens them all and sees them given up.
	var out bytes.Buffer
	const idle = 50 * time.Millisecond
	start := time.Now()
	if err := openAndIdle(ctx, []string{l.dir, idle.String()}, &out); err != nil {
		t.Fatal(err)
	}
	var r idleReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Functions != 3 || r.Before <= 0 || r.Idle <= 0 || r.Cold <= 0 {
		t.Errorf("%s, %v", &out, err)
	}
	if waited := time.Since(start); waited < idle {
		t.Errorf("it waited for %s", waited)
	}
}

// A guest whose compiler is not here is a row without a figure; one whose source does not compile is a failure.
func TestMissingCompiler(t *testing.T) {
	l := testLab(t)
	for name, r := range recipes() {
		if r.dir == "" || len(r.command) == 0 || !strings.Contains(strings.Join(r.command, " "), "{out}") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if _, err := l.build(t.Context(), "x", recipe{dir: "bench", needs: "no/such/compiler"}); err == nil || !strings.Contains(err.Error(), errMissing.Error()) {
		t.Errorf("%v", err)
	}
	if _, err := l.build(t.Context(), "x", recipe{dir: "bench", command: []string{"sh", "-c", "echo no; false"}}); err == nil || strings.Contains(err.Error(), errMissing.Error()) {
		t.Errorf("%v", err)
	}
}

// What a function makes of an event counts only if it is one result.
func TestPassIsStrict(t *testing.T) {
	ctx, l := t.Context(), testLab(t)
	h, err := l.host(ctx, plugins.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(ctx)
	f, err := l.function(ctx, h, "hostile", event.FunctionLimits{})
	if err != nil {
		t.Fatal(err)
	}
	var out plugins.Outcome
	if err := pass(ctx, f, orders(2, []byte("p")), &out); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"t", "E"} { // traps; emits and passes
		if err := pass(ctx, f, orders(2, []byte(bad)), &out); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestNanosOfEvents(t *testing.T) {
	got := nanosOfEvents("goos: linux\nBenchmarkPlugin/C/router-2 \t 100\t 50 ns/op\t 3.5 ns/event\nBenchmarkPlugin/Go/extism-16  7  9 ns/event  1 ns/op\nPASS\nns/event\n")
	if len(got) != 2 || got["BenchmarkPlugin/C/router"] != 3.5 || got["BenchmarkPlugin/Go/extism"] != 9 {
		t.Errorf("%v", got)
	}
}
