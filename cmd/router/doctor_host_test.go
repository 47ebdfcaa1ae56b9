package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/pebblestore"
)

// examined runs a part of doctor and returns its findings as "what state detail → do", a line each.
func examined(look func(e *examination)) string {
	e := &examination{w: &bytes.Buffer{}}
	look(e)
	var b strings.Builder
	for _, f := range e.findings {
		b.WriteString(f.What + " " + f.State + " " + f.Detail + " → " + f.Do + "\n")
	}
	return b.String()
}

// Doctor names what of the machine a router would suffer from, and only that as a fault which would lose or stop something.
func TestDoctorLooksAtTheMachine(t *testing.T) {
	now := time.Now()
	root := t.TempDir()
	backlog := func(text string) func(*examination) {
		return func(e *examination) {
			path := filepath.Join(root, "proc/sys/net/core/somaxconn")
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			e.kernel(root)
		}
	}
	on := func(kind string) func(*examination) { return func(e *examination) { e.onFilesystem(kind, "/data") } }
	for _, c := range []struct {
		name string
		look func(*examination)
		want string // "": nothing is said
	}{
		{"another system", func(e *examination) { e.kernel(filepath.Join(root, "none")) }, ""},
		{"a short queue", backlog("128\n"), "backlog note at most 128"},
		{"a long one", backlog("4096\n"), "backlog good"},
		{"an odd one", backlog("many"), "backlog note"},
		{"memory", on("tmpfs"), "filesystem note /data is on tmpfs, in memory"},
		{"the network", on("nfs"), "filesystem note /data is on nfs: what a sync"},
		{"a container", on("overlay"), "filesystem note /data is on overlay"},
		{"a disk", on("a disk's"), "filesystem good"},
		{"who knows", on(""), ""},
		{"a steady clock", func(e *examination) { e.steady(time.Minute, time.Minute, true, true) }, ""},
		{"a clock that was set", func(e *examination) { e.steady(-time.Hour, time.Second, true, true) }, "clock bad it was set by"},
		{"no NTP", func(e *examination) { e.steady(0, 0, false, true) }, "clock note the kernel says"},
		{"no word of NTP", func(e *examination) { e.steady(0, 0, false, false) }, ""},
		{"no store", func(e *examination) { e.clock(root, now) }, ""},
	} {
		if got := examined(c.look); c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if at := existing(filepath.Join(root, "to", "be", "made")); at != root {
		t.Errorf("it will be made at %s", at)
	}
}

// The store's clock never goes back and follows no step of a year: doctor says so before the router does it.
func TestDoctorHoldsTheClockAgainstTheStore(t *testing.T) {
	data := t.TempDir()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s, err := pebblestore.Open(t.Context(), pebblestore.Options{Dir: filepath.Join(data, storeDir), MemTable: 1 << 20, Now: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for now, want := range map[time.Time]string{
		at.Add(-time.Hour):           "clock bad it is 2026-03-01T11:00:00Z, 1h0m0s before what the store has written (2026-03-01T12:00:00Z)",
		at.Add(-time.Second):         "clock good",
		at.Add(300 * 24 * time.Hour): "clock good",
		at.Add(400 * 24 * time.Hour): "clock bad it is 2027-04-05T12:00:00Z, 400 days after",
	} {
		if got := examined(func(e *examination) { e.clock(data, now) }); !strings.HasPrefix(got, want) {
			t.Errorf("at %s: %q, want %q", now, got, want)
		}
	}
}

// A certificate that an ACME authority should have renewed by now is named, whatever else lies there.
func TestDoctorLooksAtACMECertificates(t *testing.T) {
	data := t.TempDir()
	if got := examined(func(e *examination) { e.acme(data, time.Now()) }); got != "" {
		t.Errorf("without any: %q", got)
	}
	cert, key, _ := certified(t, "router") // for 48 hours
	text := ""
	for _, path := range []string{key, cert} { // as autocert writes them
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text += string(b)
	}
	for name, text := range map[string]string{"events.example.com": text, "acme_account+key": "x", "token+http-01": "y", "events.example.com+token": text} {
		path := filepath.Join(data, "acme", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for after, want := range map[time.Duration]string{
		-30 * 24 * time.Hour: "certificate good events.example.com, of",
		0:                    "certificate note events.example.com, of",
		72 * time.Hour:       "certificate note events.example.com, of the ACME authority: until",
	} {
		got := examined(func(e *examination) { e.acme(data, time.Now().Add(after)) })
		if !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 1 {
			t.Errorf("%s from now: %q, want %q", after, got, want)
		}
	}
}

// Modules that a definition names, or that were put lately, are no litter; those that nothing stored names are.
func TestDoctorNamesOrphanedModules(t *testing.T) {
	data := t.TempDir()
	s, err := pebblestore.Open(t.Context(), pebblestore.Options{Dir: filepath.Join(data, storeDir), MemTable: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	named, orphan, fresh := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
	def := engine.Define("functions", "f", []byte(`{"digest":"sha256:`+named+`"}`))
	if err := s.Commit(t.Context(), &storage.Batch{Ops: []storage.Op{def}}); err != nil {
		t.Fatal(err)
	}
	for sum, age := range map[string]time.Duration{named: 3 * time.Hour, orphan: 3 * time.Hour, fresh: 0} {
		path := filepath.Join(data, "functions", "modules", sum+".wasm")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got := examined(func(e *examination) { e.modules(t.Context(), data) })
	if !strings.HasPrefix(got, "modules note 1 module of ") || !strings.Contains(got, orphan) {
		t.Errorf("%q", got)
	}
}
