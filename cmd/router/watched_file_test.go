package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
)

// A policy that cannot be read for a while is read once it can be, though nothing about it has changed: it may take
// somebody's rights away. The fault is told once.
func TestPolicyThatCannotBeReadIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.yaml")
	if err := os.WriteFile(path, []byte("version: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newPolicyFile(path, func(string) (string, bool) { return "", false })
	p, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	g, err := access.New(access.Options{Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil { // which opens, and fails when it is read
		t.Fatal(err)
	}
	var log lockedBuffer
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	tries := 0
	end := time.AfterFunc(30*time.Second, stop)
	defer end.Stop()
	f.watch(ctx, nil, time.Millisecond, func() {
		f.reload(g, slog.New(slog.NewTextHandler(&log, nil)))
		if tries++; tries == 5 {
			stop()
		}
	})
	if n := strings.Count(log.String(), "was not reloaded"); tries < 5 || n != 1 {
		t.Errorf("tried %d times, told %d times:\n%s", tries, n, log.String())
	}
}
