package main

import (
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
		"a test failed":  {strings.ReplaceAll(good, `"pass"`, `"fail"`), "0 passed, 1 failed\n", 1},
		"did not build":  {good + `{"Action":"start","Package":"b"}` + "\n" + `{"Action":"fail","Package":"b"}`, "1 passed, 1 failed\n", 1},
		"died half way":  {good + `{"Action":"start","Package":"b"}`, "1 passed, 1 failed\n", 1},
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
	if code := run([]string{"-tally", tally, "-sum"}, nil, &out, &errs); code != 1 || out.String() != "2 passed, 1 failed\n" {
		t.Errorf("exit %d, %q", code, out.String())
	}
	if code := run([]string{"-tally", filepath.Join(t.TempDir(), "none"), "-sum"}, nil, &out, &errs); code != 1 {
		t.Errorf("a missing tally exits with %d", code)
	}
}
