package acceptance

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soakFor is how long the soak goes on: MILLRACE_SOAK minutes, or some seconds if that is not set.
func soakFor(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("MILLRACE_SOAK")
	if text == "" {
		return 6 * time.Second
	}
	minutes, err := strconv.Atoi(text)
	if err != nil || minutes < 1 {
		t.Fatalf("MILLRACE_SOAK is %q; want whole minutes", text)
	}
	return time.Duration(minutes) * time.Minute
}

// Load on one router for a while, with many subscriptions of which one in twenty has a bad receiver (503, or slow beyond
// the timeout), and readers of a stream: good receivers get everything, no reader sees an event twice, and in ten minutes
// or more the memory at the end is less than a tenth over that in the middle.
func TestSoak(t *testing.T) {
	lasting := soakFor(t)
	subs, readers := 40, 10
	if lasting >= 10*time.Minute {
		subs, readers = 400, 200
	}
	rc := newReceiver(t, func(d delivery, try int) int {
		switch {
		case strings.HasPrefix(d.path, "/bad0"):
			return http.StatusServiceUnavailable
		case strings.HasPrefix(d.path, "/bad1"):
			<-time.After(2 * time.Second) // slow, and in the end it does not take it
			return http.StatusInternalServerError
		}
		return http.StatusNoContent
	})
	rc.forget = true
	var rules strings.Builder
	rules.WriteString("version: 1\ntopics:\n  load: {retain: {bytes: 32MiB}}\nsubscriptions:\n")
	for n := range subs {
		path, share := fmt.Sprintf("good%d", n), 20
		if n%20 == 19 {
			path = fmt.Sprintf("bad%d", n/20%2)
		}
		fmt.Fprintf(&rules, "  s%d:\n    topic: load\n    filter: data.n %% %d == %d\n    order: %s\n    deliver: {webhook: {url: \"${env:HOOK_URL}/%s\", secrets: [\"${env:HOOK_SECRET}\"], timeout: 1s}}\n    parked: {bytes: 1MiB}\n",
			n, share, n%share, []string{"none", "key"}[n%2], path)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "rules.yaml")
	write(t, path, rules.String())
	r := serve(t, filepath.Join(dir, "data"), []string{"HOOK_URL=" + rc.URL, "HOOK_SECRET=" + secret}, "--rules", path, "--memory", "400MiB")
	var current atomic.Pointer[router]
	current.Store(r)
	l := &ledger{forget: true}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for p := range 2 {
		clients.Go(func() { publishLoad(l, &current, p, stop) })
	}
	followers := make([]*follower, readers)
	for i := range followers {
		followers[i] = &follower{seen: map[string]bool{}, forget: true}
		clients.Go(func() { followers[i].follow(&current, stop) })
	}
	began := time.Now()
	var sizes []int64
	tick := time.NewTicker(lasting / 20)
	defer tick.Stop()
	for len(sizes) < 20 {
		<-tick.C
		sizes = append(sizes, r.resident(t))
		l.mu.Lock()
		acked := l.count
		l.mu.Unlock()
		if lasting >= time.Minute {
			t.Logf("%s: %d events acknowledged, %d MiB resident", time.Since(began).Round(time.Second), acked, sizes[len(sizes)-1]>>20)
		}
	}
	close(stop)
	clients.Wait()
	for _, f := range l.failed {
		t.Error(f)
	}
	middle, end := average(sizes[10:13]), average(sizes[17:])
	growth := float64(end-middle) / float64(middle)
	t.Logf("%d events in %s; from %d MiB in the middle to %d MiB at the end: %+.1f %%", l.count, lasting, middle>>20, end>>20, 100*growth)
	if allowed := 0.1; lasting >= 10*time.Minute && growth > allowed {
		t.Errorf("memory grew by %.1f %% from the middle to the end; want at most %.0f %%", 100*growth, 100*allowed)
	}
	if l.count == 0 {
		t.Fatal("nothing was published")
	}
	var good []string
	for n := range subs {
		if n%20 != 19 {
			good = append(good, fmt.Sprintf("s%d", n))
		}
	}
	r.settled(time.Minute, good...)
	for _, name := range good {
		if s := r.subscription(name); s.Lost != 0 || s.DeadLettered != 0 || s.Delivered < s.Matched {
			t.Errorf("subscription %s beside bad ones: %+v", name, s)
		}
	}
	for i, f := range followers {
		if len(f.twice) > 0 || f.count == 0 {
			t.Errorf("reader %d had %d events, %d of them twice", i, f.count, len(f.twice))
		}
	}
	r.stop(30 * time.Second)
}

func average(v []int64) (sum int64) {
	for _, x := range v {
		sum += x
	}
	return sum / int64(len(v))
}

// resident is the router's resident memory, in bytes.
func (r *router) resident(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
