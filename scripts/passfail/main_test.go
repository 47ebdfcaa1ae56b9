package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

const good = `{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"TestX"}
{"Action":"pass","Package":"a","Test":"TestX"}
{"Action":"skip","Package":"a","Test":"TestY"}
{"Action":"pass","Package":"a","Elapsed":0.5}
`

func TestExitStatusIsFaithful(t *testing.T) {
	for name, c := range map[string]struct {
		in, want string
		code     int
	}{
		"good":           {good, "1 passed, 0 failed\n", 0},
		"nothing ran":    {"", "0 passed, 0 failed\n", 1},
		"only skipped":   {strings.ReplaceAll(good, `"pass","Package":"a","Test"`, `"skip","Package":"a","Test"`), "0 passed, 0 failed\n", 1},
		"a test failed":  {strings.ReplaceAll(good, `"pass"`, `"fail"`), "FAIL  a TestX\n0 passed, 1 failed\n", 1},
		"did not build":  {good + `{"Action":"start","Package":"b"}` + "\n" + `{"Action":"fail","Package":"b"}`, "FAIL  b\n1 passed, 1 failed\n", 1},
		"died half way":  {good + `{"Action":"start","Package":"b"}`, "FAIL  b never ended\n1 passed, 1 failed\n", 1},
		"foreign output": {"go: downloading something\n" + good, "1 passed, 0 failed\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			tally := filepath.Join(t.TempDir(), "tally")
			var out, sum, errs strings.Builder
			if code := run([]string{"-tally", tally}, strings.NewReader(c.in), &out, &errs); code != c.code {
				t.Errorf("exit %d, want %d: %s", code, c.code, errs.String())
			}
			code := run([]string{"-tally", tally, "-sum"}, nil, &sum, &errs)
			if sum.String() != c.want || code != c.code {
				t.Errorf("sum %q exit %d, want %q exit %d", sum.String(), code, c.want, c.code)
			}
		})
	}
}

func TestTallySumsRuns(t *testing.T) {
	tally := filepath.Join(t.TempDir(), "tally")
	var out, errs strings.Builder
	for _, args := range [][]string{{"-name", "one"}, {"-check", "pass", "-name", "vet"}, {"-check", "fail", "-name", "staticcheck"}} {
		run(append([]string{"-tally", tally}, args...), strings.NewReader(good), &out, &errs)
	}
	out.Reset()
	if code := run([]string{"-tally", tally, "-sum"}, nil, &out, &errs); code != 1 || out.String() != "FAIL  staticcheck\n2 passed, 1 failed\n" {
		t.Errorf("exit %d, %q", code, out.String())
	}
	if code := run([]string{"-tally", filepath.Join(t.TempDir(), "none"), "-sum"}, nil, &out, &errs); code != 1 {
		t.Errorf("a missing tally exits with %d", code)
	}
}

// What a log of megabytes would bury is told at the end: which test, and the first that it said itself.
func TestSumTellsWhatFailedInShort(t *testing.T) {
	tally := filepath.Join(t.TempDir(), "tally")
	said := []string{"=== RUN   TestX\n", "    x_test.go:7: 3 events are missing\n", "        and more of it\n", "    harness_test.go:131: the log of the router at http://127.0.0.1:1:\n", "        level=INFO\n",
		"    x_test.go:9: " + strings.Repeat("long ", 1000) + "\n"}
	for range 100 {
		said = append(said, "    x_test.go:10: again\n")
	}
	var in strings.Builder
	for _, line := range append([]testEvent{{Action: "start", Package: "a"}}, events(said)...) {
		b, err := json.Marshal(line)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(append(b, '\n'))
	}
	var out, sum, errs strings.Builder
	run([]string{"-tally", tally}, strings.NewReader(in.String()), &out, &errs)
	run([]string{"-tally", tally, "-sum"}, nil, &sum, &errs)
	lines := strings.Split(sum.String(), "\n")
	if len(lines) != 1+shortLines+2 || lines[0] != "FAIL  a TestX" || lines[1] != "    x_test.go:7: 3 events are missing" || len(lines[2]) > shortLine+len("…") || lines[3] != "    x_test.go:10: again" {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
}

func events(said []string) (es []testEvent) {
	for _, words := range said {
		es = append(es, testEvent{Action: "output", Package: "a", Test: "TestX", Output: words})
	}
	return append(es, testEvent{Action: "fail", Package: "a", Test: "TestX"}, testEvent{Action: "fail", Package: "a"})
}
