package acceptance

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A disk of 24 MiB is filled over HTTP: publishing is refused with 507 and soon, deliveries go on, and when there is room
// again publishing goes on without a restart; nothing acknowledged is lost, also after kill -9. Deliveries are plain,
// in order, in batches, delayed, pulled, and dead letters that are redriven.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("millrace-test", disk, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatalf("this test mounts a tmpfs of 24 MiB, which needs root (CAP_SYS_ADMIN): %v", err)
	}
	t.Cleanup(func() { // after the router is gone: cleanups run last in, first out
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	taking := make(chan struct{})
	var mended atomic.Bool
	rc := newReceiver(t, func(d delivery, _ int) int {
		if d.path == "/letters" && !mended.Load() {
			return http.StatusUnprocessableEntity
		}
		select {
		case <-taking:
			return http.StatusNoContent
		default:
			return http.StatusServiceUnavailable
		}
	})
	rules, data := filepath.Join(t.TempDir(), "rules.yaml"), filepath.Join(disk, "data")
	write(t, rules, `version: 1
topics:
  fill: {}
subscriptions:
  hook:
    topic: fill
    deliver: {webhook: {url: "${env:HOOK_URL}/hook", secrets: ["${env:HOOK_SECRET}"]}}
    concurrency: 2
    retry: {attempts: unlimited, schedule: [500ms]}
    parked: {bytes: 128KiB}
  keyed:
    topic: fill
    order: key
    deliver: {webhook: {url: "${env:HOOK_URL}/keyed", secrets: ["${env:HOOK_SECRET}"]}}
    retry: {attempts: unlimited, schedule: [500ms]}
    parked: {bytes: 128KiB}
  batched:
    topic: fill
    deliver: {webhook: {url: "${env:HOOK_URL}/batched", secrets: ["${env:HOOK_SECRET}"], batch: {events: 4, wait: 20ms}}}
    retry: {attempts: unlimited, schedule: [500ms]}
    parked: {bytes: 128KiB}
  jobs:
    topic: fill
    deliver: {pull: {ackDeadline: 10s}}
    parked: {bytes: 128KiB}
  letters:
    topic: fill
    filter: ext.partitionkey == "k0"
    deliver: {webhook: {url: "${env:HOOK_URL}/letters", secrets: ["${env:HOOK_SECRET}"]}}
    retry: {attempts: 2, schedule: [200ms], on4xx: deadLetter}
    parked: {bytes: 128KiB}
`)
	env := []string{"HOOK_URL=" + rc.URL, "HOOK_SECRET=" + secret}
	r := serve(t, data, env, "--rules", rules)

	var acked []string
	var slowest time.Duration
	// fill publishes until it is refused, and returns the refusal.
	fill := func(name string, most int) string {
		t.Helper()
		for n := range most {
			id := fmt.Sprintf("%s-%d", name, n)
			later := "" // what is due after a second stays parked while the disk is full
			if n%16 == 5 {
				later = fmt.Sprintf(`"deliverat":%q,`, time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano))
			}
			body := fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"source":"/s","type":"t","partitionkey":"k%d",%s"data":"%s"}`, id, n%40, later, noise(n, 64<<10))
			begin := time.Now()
			status, text, err := r.try("POST", "/v1/topics/fill/events", structuredType, body)
			slowest = max(slowest, time.Since(begin))
			switch {
			case err != nil:
				t.Fatalf("%s: %v", id, err)
			case status == 202:
				acked = append(acked, id)
			case status == 507:
				return string(text)
			default:
				t.Fatalf("%s: %d %s; want 202 or 507", id, status, text)
			}
		}
		return ""
	}
	refusal := fill("first", 400)
	if !strings.Contains(refusal, "free") {
		t.Fatalf("a full disk is refused with %q; want the free space and the reserve", refusal)
	}
	first := len(acked)
	t.Logf("%d events of 64 KiB fitted beside a file of 8 MiB; the slowest answer took %s: %s", first, slowest.Round(time.Millisecond), refusal)
	for range 20 { // it stays refused, in time
		if text := fill("refused", 1); text == "" {
			acked = acked[:len(acked)-1]
			t.Fatal("a full disk takes an event that comes later")
		}
	}
	close(taking)
	eventually(t, 40*time.Second, func() error {
		if missing := rc.missing("/hook", acked); missing != nil {
			return fmt.Errorf("on a full disk these are not delivered: %v", missing)
		}
		return nil
	})
	if status, text, err := r.try("GET", "/readyz", "", nil); err != nil || status != 200 {
		t.Logf("/readyz on a full disk: %d %s %v", status, text, err)
	}
	lines := strings.Count(r.log.String(), "\n")
	if lines > 120 {
		t.Errorf("a full disk made %d lines of log", lines)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually(t, time.Minute, func() error {
		if text := fill("after", 1); text != "" {
			return fmt.Errorf("after 8 MiB were freed: %s", text)
		}
		return nil
	})
	t.Logf("publishing went on %s after space was freed", time.Since(begin).Round(time.Millisecond))
	fill("more", 20)
	if len(acked) < first+10 {
		t.Errorf("%d events fitted into 8 MiB that were freed", len(acked)-first)
	}
	if slowest > 5*time.Second { // on a quiet machine it is milliseconds
		t.Errorf("the slowest answer took %s; want less than 5s", slowest)
	}
	r.kill()
	r = serve(t, data, env, "--rules", rules)
	stored := map[string]int{}
	for _, e := range r.events("fill") {
		stored[e["id"].(string)]++
	}
	for _, id := range acked {
		if stored[id] != 1 {
			t.Errorf("%s was acknowledged and is %d times in the topic", id, stored[id])
		}
	}
	if len(stored) != len(acked) {
		t.Errorf("the topic holds %d events, %d were acknowledged: what was refused with 507 must not be stored", len(stored), len(acked))
	}
	eventually(t, 30*time.Second, func() error {
		if missing := rc.missing("/hook", acked); missing != nil {
			return fmt.Errorf("not delivered: %v", missing)
		}
		return nil
	})
	eventually(t, 30*time.Second, func() error {
		for _, path := range []string{"/keyed", "/batched"} {
			if missing := rc.missing(path, acked); missing != nil {
				return fmt.Errorf("not delivered at %s: %v", path, missing)
			}
		}
		return nil
	})
	l := &ledger{acked: acked, pulled: map[string]bool{}}
	eventually(t, 30*time.Second, func() error {
		if pull(l, r, 50); len(l.pulled) < len(acked) {
			return fmt.Errorf("%d of %d were pulled", len(l.pulled), len(acked))
		}
		return nil
	})
	for _, f := range l.failed {
		t.Error(f)
	}
	var letters []string
	for _, e := range r.events("fill") {
		if e["partitionkey"] == "k0" {
			letters = append(letters, e["id"].(string))
		}
	}
	mended.Store(true)
	eventually(t, 30*time.Second, func() error {
		r.call("POST", "/v1/subscriptions/letters/redrive", "application/json", []byte(`{}`), nil)
		if missing := rc.missing("/letters", letters); missing != nil {
			return fmt.Errorf("not redriven: %v of %d", missing, len(letters))
		}
		return nil
	})
	for _, id := range letters {
		if n := rc.taken("/letters", id); n != 1 {
			t.Errorf("%s was redriven and taken %d times", id, n)
		}
	}
	r.stop(20 * time.Second)
}

// noise is text that does not compress to nothing, the same for the same seed.
func noise(seed, size int) []byte {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	b := make([]byte, size)
	x := uint64(seed)*2862933555777941757 + 3037000493
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = letters[x>>58]
	}
	return b
}
