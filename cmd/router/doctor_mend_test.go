package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/storage/pebblestore"
)

// Doctor names what it could mend and changes nothing; with --fix it mends that and nothing else, and not while a router runs.
func TestDoctorMends(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	store := filepath.Join(data, storeDir)
	s, err := pebblestore.Open(t.Context(), pebblestore.Options{Dir: store, MemTable: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, mode os.FileMode) string {
		path := filepath.Join(data, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	gone := []string{put(".backup/rules.last", 0o600), put("store/snapshot/offsets", 0o600), put("functions/modules/1.tmp", 0o600), put(".restore/x", 0o600), put("backup.last.12.tmp", 0o600), put("rules.last.3.tmp", 0o600)}
	stay := []string{put("functions/modules/a.wasm", 0o644), put("store/pebble/000001.tmp", 0o600), put("rules.last", 0o644), put("mine/thesis.tmp", 0o600), put("notes.tmp", 0o600)}
	if err := os.Chmod(data, 0o755); err != nil {
		t.Fatal(err)
	}
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	look := func(fix bool) *examination {
		e := &examination{w: &bytes.Buffer{}}
		e.mend(context.Background(), data, fix)
		return e
	}
	elsewhere := data
	data = t.TempDir() // no store: nobody knows whose these are
	others := []string{put("deep/thesis.tmp", 0o600), put("index.html", 0o644), put("functions/x.tmp", 0o600), put(".restore/x", 0o600)}
	if err := os.Chmod(data, 0o755); err != nil {
		t.Fatal(err)
	}
	look(true)
	for i, path := range append(others, data) {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != []os.FileMode{0o600, 0o644, 0o600, 0o600, 0o755}[i] {
			t.Errorf("%s, beside no store: %v, %v", path, info, err)
		}
	}
	data = elsewhere
	if e := look(true); e.bad != 1 || !strings.Contains(e.findings[0].Do, "stop the router first") {
		t.Errorf("with a router at work: %+v", e.findings)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dry := look(false)
	if dry.bad != 0 || len(dry.findings) != len(gone)+2 {
		t.Errorf("found %+v", dry.findings)
	}
	for _, f := range dry.findings {
		if !strings.HasPrefix(f.Do, "router doctor --fix ") {
			t.Errorf("%+v does not say what to do", f)
		}
	}
	for _, path := range slices.Concat(gone, stay) {
		if !there(path) {
			t.Errorf("looking alone removed %s", path)
		}
	}
	if e := look(true); e.bad != 0 {
		t.Errorf("mending: %+v", e.findings)
	}
	for _, path := range gone {
		if there(path) {
			t.Errorf("%s is still there", path)
		}
	}
	for _, path := range stay {
		if !there(path) {
			t.Errorf("%s was in use and is gone", path)
		}
	}
	for path, want := range map[string]os.FileMode{data: 0o700, filepath.Join(data, "rules.last"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, info.Mode().Perm(), err, want)
		}
	}
	if e := look(false); len(e.findings) != 0 {
		t.Errorf("a second look finds %+v", e.findings)
	}
}

// Doctor names what of a running router waits for somebody, with the command that goes on from there.
func TestDoctorNamesWhatWaits(t *testing.T) {
	p := startProcess(t, backedUp)
	p.must(202, "POST", "/v1/topics/letters/events", "application/json", `{}`)
	p.must(204, "POST", "/v1/subscriptions/work/pause", "application/json", `{"reason":"at lunch"}`)
	until(t, "a dead letter", func() bool {
		return strings.Contains(p.must(200, "GET", "/v1/subscriptions/fails", "", ""), `"deadLetters":1`)
	})
	_, out, errs := runAt(t, p.base, "doctor", "--data", filepath.Join(t.TempDir(), "none"))
	for _, want := range []string{"work is paused: at lunch", "router subscriptions resume work", "fails has 1 dead letter", "redriven or purged, 1 of them of the last hour: they grow", "router deadletters list fails"} {
		if !strings.Contains(out, want) {
			t.Errorf("doctor does not say %q:\n%s%s", want, out, errs)
		}
	}
}
