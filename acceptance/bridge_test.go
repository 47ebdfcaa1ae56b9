package acceptance

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A wire leads to a router that may be another process after a while, and can be cut.
type wire struct {
	ln    net.Listener
	mu    sync.Mutex
	to    string // "": it is cut
	conns map[net.Conn]bool
	work  sync.WaitGroup
}

func newWire(t *testing.T) *wire {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{ln: ln, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		_ = ln.Close()
		w.lead("")
		w.work.Wait()
	})
	w.work.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.join(c)
		}
	})
	return w
}

// lead has what comes go to addr, and cuts what is under way.
func (w *wire) lead(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to = addr
	for c := range w.conns {
		_ = c.Close()
	}
	clear(w.conns)
}

func (w *wire) join(from net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	to, err := net.Dial("tcp", w.to) // an empty address is nobody's
	if err != nil {
		_ = from.Close()
		return
	}
	w.conns[from], w.conns[to] = true, true
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		w.work.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // it may be cut at any moment
			_ = from.Close()
			_ = to.Close()
		})
	}
}

// A teller publishes numbered events under four keys to whatever process is there, and sends again what was not answered.
type teller struct {
	topic string
	at    atomic.Pointer[router]
	told  atomic.Int64 // events that were accepted
}

func (p *teller) run(stop <-chan struct{}) {
	const batch = 20
	for n := 0; ; n += batch {
		var b bytes.Buffer
		for i := n; i < n+batch; i++ {
			fmt.Fprintf(&b, `{"specversion":"1.0","id":"%06d","source":"/a","type":"t","partitionkey":"k%d","data":%q}`+"\n", i, i%4, strings.Repeat("x", 400))
		}
		for done := false; !done; {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			status, _, err := p.at.Load().try("POST", "/v1/topics/"+p.topic+"/events", "application/x-ndjson", b.Bytes())
			done = err == nil && status == 202
		}
		p.told.Add(batch)
	}
}

// arrived says what is wrong with what has come of a teller's events: each at least once accepted is there once, in order under
// its key. What was stored and not answered may be there as well.
func arrived(r *router, topic string, told int) error {
	seen, last := map[string]bool{}, map[any]string{}
	for _, e := range r.events(topic) {
		id, key := e["id"].(string), e["partitionkey"]
		if seen[id] {
			return fmt.Errorf("%s: %s is there twice", topic, id)
		}
		if id < last[key] {
			return fmt.Errorf("%s: %s comes after %s", topic, id, last[key])
		}
		seen[id], last[key] = true, id
	}
	for i := range told {
		if id := fmt.Sprintf("%06d", i); !seen[id] {
			return fmt.Errorf("%s: %s is missing, %d of %d are there", topic, id, len(seen), told)
		}
	}
	return nil
}

// Bridges lose nothing and repeat nothing, both ways, while both routers are killed at random moments and the link is cut for so
// long that the forwarded topic's own retention is over.
func TestBridgesThroughKills(t *testing.T) {
	dir := t.TempDir()
	link := newWire(t)
	siteRules, hqRules := filepath.Join(dir, "site.yaml"), filepath.Join(dir, "hq.yaml")
	write(t, hqRules, `version: 1
topics: {telemetry: {partitions: 2}, commands: {partitions: 2}}
`)
	write(t, siteRules, fmt.Sprintf(`version: 1
topics: {readings: {partitions: 2, retain: {bytes: 64KiB}}, orders: {}}
bridges:
  up: {topic: readings, start: earliest, to: {router: "http://%[1]s", topic: telemetry}}
  down: {topic: orders, from: {router: "http://%[1]s", topic: commands, start: earliest}}
`, link.ln.Addr()))
	var site, hq *router
	up, down := &teller{topic: "readings"}, &teller{topic: "commands"}
	startHQ := func() {
		hq = serve(t, filepath.Join(dir, "hq"), nil, "--rules", hqRules)
		down.at.Store(hq)
	}
	startSite := func() {
		site = serve(t, filepath.Join(dir, "site"), nil, "--rules", siteRules)
		up.at.Store(site)
	}
	startHQ()
	link.lead(hq.addr)
	startSite()
	stop := make(chan struct{})
	var tellers sync.WaitGroup
	tellers.Go(func() { up.run(stop) })
	tellers.Go(func() { down.run(stop) })

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	wait := func() {
		moment := time.NewTimer(time.Duration(50+rnd.IntN(250)) * time.Millisecond)
		<-moment.C
	}
	for range 2 {
		wait()
		site.kill()
		startSite()
		wait()
		hq.kill()
		startHQ()
		link.lead(hq.addr)
	}
	wait()
	link.lead("")
	cut := up.told.Load()
	eventually(t, time.Minute, func() error {
		if n := up.told.Load() - cut; n < 1000 { // 400 KiB: many times what is retained
			return fmt.Errorf("%d events while the link is cut", n)
		}
		return nil
	})
	site.kill()
	hq.kill()
	startHQ()
	startSite()
	link.lead(hq.addr)
	wait()
	close(stop)
	tellers.Wait()
	for _, way := range []struct {
		to    func() *router
		topic string
		from  *teller
	}{{func() *router { return hq }, "telemetry", up}, {func() *router { return site }, "orders", down}} {
		told := int(way.from.told.Load())
		eventually(t, time.Minute, func() error {
			if n := way.to().count(way.topic); n < told { // cheaper than reading all
				return fmt.Errorf("%s: %d of %d events", way.topic, n, told)
			}
			return arrived(way.to(), way.topic, told) // what was stored and not answered is counted above, and may have come first
		})
	}
	// A log drops whole chunks, as it grows.
	more := 0
	eventually(t, time.Minute, func() error {
		more++
		body := fmt.Sprintf(`{"specversion":"1.0","id":"more-%d","source":"/a","type":"t","partitionkey":"k%d","data":%q}`, more, more%4, strings.Repeat("x", 30_000))
		if status, _, err := site.try("POST", "/v1/topics/readings/events", "application/cloudevents+json", []byte(body)); err != nil || status != 202 {
			return fmt.Errorf("one more event: %d, %v", status, err)
		}
		if n := site.count("readings"); n > int(up.told.Load())/2 {
			return fmt.Errorf("%d of %d forwarded events are still in the topic: its ring did not turn over", n, up.told.Load())
		}
		return nil
	})
	t.Logf("%d events up, %d down", up.told.Load(), down.told.Load())
}
