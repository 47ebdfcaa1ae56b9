package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A restoration and a router that opens its store keep each other out: the one would find the directory empty, and the
// other would begin with what the first had moved so far.
func TestRestorationsAndStartsKeepEachOtherOut(t *testing.T) {
	data := t.TempDir()
	restoring, err := lockRestore(data)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openData(data); err == nil || !strings.Contains(err.Error(), "a restoration is at work") {
		t.Errorf("a start beside a restoration: %v", err)
	}
	if err := restoring(); err != nil {
		t.Fatal(err)
	}
	_, opened, err := openData(data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRestore(data); err == nil || !strings.Contains(err.Error(), "a router that starts") {
		t.Errorf("a restoration beside a start: %v", err)
	}
	if err := opened(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
		t.Errorf("a start leaves %v, %v", entries, err)
	}
	// A start that is refused leaves no lock either.
	if err := os.WriteFile(filepath.Join(data, restoredName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := openData(data); err == nil || !strings.Contains(err.Error(), "restore again") {
			t.Errorf("a start on a note that cannot be read: %v", err)
		}
	}
}

// Into the directory of a router that came in between nothing is moved, not even what comes before the store.
func TestSettlingMovesNothingBesideAStore(t *testing.T) {
	data := t.TempDir()
	r := &restoration{data: data, stage: filepath.Join(data, restoreStage)}
	for _, dir := range []string{filepath.Join(r.stage, "acme"), filepath.Join(r.stage, storeDir), filepath.Join(data, storeDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.settle(&backupHead{}); err == nil || !strings.Contains(err.Error(), "has a store by now") {
		t.Errorf("settled beside a store: %v", err)
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) != 1 || entries[0].Name() != storeDir {
		t.Errorf("it left %v, %v", entries, err)
	}
}

// What a file system without locks says is not taken for another process.
func TestAMissingLockIsNotAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	release, err := lockRestore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = release() }()
	f, err := os.OpenFile(filepath.Join(dir, restoreLock), os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		err  error
		want string
	}{{lockFile(f), "is at work here"}, {syscall.ENOLCK, "whose file system has locks"}, {syscall.ENOSYS, "whose file system has locks"}} {
		if err := noLock("/data", c.err); c.err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.err) {
			t.Errorf("%v: %v; want %q", c.err, err, c.want)
		}
	}
}
