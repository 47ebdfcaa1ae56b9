package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A mosquitto is a broker that can be stopped and started.
type mosquitto struct {
	t    *testing.T
	addr string
	conf string
	cmd  *exec.Cmd
}

// startMosquitto starts a broker that keeps its sessions on the disk and knows one user.
func startMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	dir := t.TempDir()
	port, addr := "", ""
	until(t, "there is a free port", func() bool {
		// One that systems do not hand out by themselves: nobody takes it while the broker is down.
		port = strconv.Itoa(10_000 + rand.IntN(20_000))
		addr = net.JoinHostPort("127.0.0.1", port)
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			ln.Close()
		}
		return err == nil
	})
	passwords := filepath.Join(dir, "passwords")
	if out, err := exec.Command("mosquitto_passwd", "-b", "-c", passwords, "bridge", "broker-password").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conf := fmt.Sprintf("listener %s 127.0.0.1\npersistence true\npersistence_location %s/\nallow_anonymous false\npassword_file %s\nmax_queued_messages 0\nuser %s\n", port, dir, passwords, userName(t))
	b := &mosquitto{t: t, addr: addr, conf: filepath.Join(dir, "mosquitto.conf")}
	if err := os.WriteFile(b.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	t.Cleanup(b.stop)
	return b
}

// userName keeps a broker that root starts from becoming somebody who cannot read the test's folder.
func userName(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("id", "-un").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func (b *mosquitto) start() {
	b.t.Helper()
	b.cmd = exec.Command("mosquitto", "-c", b.conf)
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	until(b.t, "the broker listens", func() bool {
		c, err := net.Dial("tcp", b.addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// stop ends it as an operator does: its sessions are written.
func (b *mosquitto) stop() {
	if b.cmd != nil {
		_ = b.cmd.Process.Signal(syscall.SIGTERM)
		_ = b.cmd.Wait()
		b.cmd = nil
	}
}

// printed gathers what a program prints.
type printed struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *printed) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *printed) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSuffix(l.buf.String(), "\n"), "\n")
}

// subscribe runs mosquitto_sub with a session that outlives outages of the broker.
func (b *mosquitto) subscribe(args ...string) *printed {
	b.t.Helper()
	host, port, _ := net.SplitHostPort(b.addr)
	out := &printed{}
	cmd := exec.Command("mosquitto_sub", append([]string{"-h", host, "-p", port, "-u", "bridge", "-P", "broker-password", "-q", "1", "-c", "-i", "watcher", "-V", "5", "-x", "3600"}, args...)...)
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return out
}

// Events reach a broker that nobody here wrote, in their order and through its outages; what it is told is the event.
func TestBridgeForwardsToABroker(t *testing.T) {
	b := startMosquitto(t)
	got := b.subscribe("-t", "site1/#", "-F", "%t %p %P")
	edge := startProcess(t, `version: 1
topics: {telemetry: {retain: {bytes: 64KiB}}}
bridges:
  to-broker:
    topic: telemetry
    start: earliest
    to: {mqtt: "mqtt://`+b.addr+`", topic: "site1/{subject}", format: cloudevents, user: bridge, password: broker-password}
  wrong:
    topic: telemetry
    start: earliest
    to: {mqtt: "mqtt://`+b.addr+`", topic: "site1/wrong", user: bridge, password: other-password}
`)
	publish := func(from, to int) {
		var body strings.Builder
		for i := from; i < to; i++ {
			fmt.Fprintf(&body, `{"specversion":"1.0","id":"e%d","source":"/a","type":"t","subject":"s%d","data":{"n":%d,"text":%q}}`+"\n", i, i%3, i, strings.Repeat("x", 300))
		}
		edge.must(202, "POST", "/v1/topics/telemetry/events", "application/x-ndjson", body.String())
	}
	first := func() bool {
		edge.must(202, "POST", "/v1/topics/telemetry/events?subject=first", "application/json", "1")
		return len(got.all()) > 1
	}
	until(t, "the watcher hears", first)
	publish(0, 600)
	count := func(n int) func() bool {
		return func() bool {
			found := map[string]bool{} // a message may come twice
			for _, line := range got.all() {
				if _, data, ok := strings.Cut(line, `{"n":`); ok {
					n, _, _ := strings.Cut(data, ",")
					found[n] = true
				}
			}
			return len(found) >= n
		}
	}
	until(t, "they arrive", count(600))
	b.stop()
	publish(600, 1500)
	until(t, "the circuit opens", func() bool { return edge.subscriptionState("bridge.to-broker").Circuit.State == "open" })
	edge.stop()
	edge.start()
	b.start()
	until(t, "the rest arrives", count(1500))
	last := map[string]int{}
	seen := map[int]bool{}
	for _, line := range got.all() {
		var name string
		var n int
		if k, _ := fmt.Sscanf(line, `%s {"n":%d,`, &name, &n); k != 2 {
			continue
		}
		if name != fmt.Sprintf("site1/s%d", n%3) || !strings.Contains(line, fmt.Sprintf("id:e%d ", n)) || !strings.Contains(line, "specversion:1.0") {
			t.Fatalf("%s", line)
		}
		if n < last[name] && !seen[n] {
			t.Errorf("%d comes after %d", n, last[name])
		}
		last[name], seen[n] = n, true
	}
	if len(seen) != 1500 {
		t.Errorf("%d of 1500 events", len(seen))
	}
	if s := edge.subscriptionState("bridge.wrong"); s.Circuit.State == "closed" || !strings.Contains(s.Circuit.Reason, "refuses the connection") || strings.Contains(s.Circuit.Reason, "password\"") {
		t.Errorf("%+v", s)
	}
	edge.must(202, "POST", "/v1/topics/telemetry/events", "application/json", `"without a subject"`)
	until(t, "what cannot go becomes a dead letter", func() bool { return len(edge.events("bridge.to-broker.dead")) > 0 })
	if !slices.Contains([]string{"open", "half-open"}, edge.subscriptionState("bridge.wrong").Circuit.State) {
		t.Error("it is not waited for")
	}
	edge.stop()
	if log := edge.log.String(); strings.Contains(log, "other-password") || strings.Contains(log, "broker-password") {
		t.Error("a password is in the log")
	}
}
