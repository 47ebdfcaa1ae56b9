package httpapi

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// waitingPull begins a long pull over a connection of its own.
func waitingPull(t *testing.T, f *fake, base string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	body := `{"wait":"30s"}`
	fmt.Fprintf(nc, "POST /v1/subscriptions/workers/pull HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	until(t, "it waits", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.waited == 30*time.Second
	})
	return nc
}

// A client that goes away while it waits is lent nothing: what comes later is there for others at once.
func TestPullOfAClientThatIsGone(t *testing.T) {
	f := newFake("workers")
	s, base := serve(t, Options{Backend: f})
	nc := waitingPull(t, f, base)
	_ = nc.Close()
	until(t, "the server lets go of it", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns) == 0
	})
	f.put(t, "workers", "job", 1)
	if _, body := do(t, "POST", base+"/v1/subscriptions/workers/pull", ""); !strings.Contains(body, "workers/0") {
		t.Errorf("another consumer got %s", body)
	}
}

// One that goes away at the very moment gives back what it was lent.
func TestPullGivesBackWhatNobodyTakes(t *testing.T) {
	f := newFake("workers")
	_, base := serve(t, Options{Backend: f})
	nc := waitingPull(t, f, base)
	var lent atomic.Bool
	f.pulled = func() { // between the lease and the answer
		f.pulled = nil
		_ = nc.Close()
		lent.Store(true)
	}
	f.put(t, "workers", "job", 1)
	until(t, "the lease is given back", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return lent.Load() && len(f.leases) == 0
	})
	if _, body := do(t, "POST", base+"/v1/subscriptions/workers/pull", ""); !strings.Contains(body, "workers/0") {
		t.Errorf("another consumer got %s", body)
	}
}

// A pull that waits is answered when something comes, and its connection serves on.
func TestPullWaits(t *testing.T) {
	f := newFake("workers")
	_, base := serve(t, Options{Backend: f})
	nc := waitingPull(t, f, base)
	f.put(t, "workers", "job", 1)
	buf := make([]byte, 4096)
	_ = nc.SetReadDeadline(time.Now().Add(30 * time.Second))
	n, err := nc.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), "workers/0") {
		t.Fatalf("%q %v", buf[:n], err)
	}
	fmt.Fprintf(nc, "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
	if n, err = nc.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200") {
		t.Errorf("the next request: %q %v", buf[:n], err)
	}
}
