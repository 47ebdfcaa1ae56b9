package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
)

// systemd is told that the router is ready, that it lives, and that it stops; without it nothing is told.
func TestNotifySystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	env := map[string]string{"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000"}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- newNotifier(func(k string) string { return env[k] }).live(ctx, func() bool { return true })
	}()
	b := make([]byte, 64)
	for _, want := range []string{"READY=1", "WATCHDOG=1", "STOPPING=1"} {
		if want == "STOPPING=1" {
			cancel()
		}
		for got := ""; got != want; {
			n, err := c.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if got = string(b[:n]); got != want && got != "WATCHDOG=1" {
				t.Fatalf("told %q; want %q", got, want)
			}
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	delete(env, "NOTIFY_SOCKET")
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if err := newNotifier(func(k string) string { return env[k] }).live(ctx, func() bool { return true }); err != nil {
		t.Error(err)
	}
}
