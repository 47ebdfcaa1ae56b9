package acceptance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A doorway is an address that stays while routers behind it come and go. Nothing else can take it meanwhile.
type doorway struct {
	ln     net.Listener
	behind atomic.Pointer[string] // nil: nobody is there
	open   sync.WaitGroup
}

func newDoorway(t *testing.T) *doorway {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &doorway{ln: ln}
	d.open.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.open.Go(func() { d.pass(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close() // closed but once
		d.open.Wait()
	})
	return d
}

// pass copies both ways until one end is gone.
func (d *doorway) pass(from net.Conn) {
	defer func() { _ = from.Close() }() // it may be closed
	behind := d.behind.Load()
	if behind == nil {
		return
	}
	to, err := net.Dial("tcp", *behind)
	if err != nil {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // an end is an end
			_, _ = from.Close(), to.Close()
		})
	}
	both.Wait()
}

// mqttSent is what the publishers of TestMQTTKill know of their messages.
type mqttSent struct {
	mu           sync.Mutex
	acknowledged map[string]byte // payload → QoS
	unknown      map[string]byte // the client gave up on it: stored or not
	n            atomic.Int64
}

// Programs that publish and that read with sessions which outlive connections connect again by themselves when the router
// is killed and started under them. All that was acknowledged is stored, of QoS 2 once, and comes to each of them.
func TestMQTTKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rules := filepath.Join(dir, "rules.yaml")
	write(t, rules, "version: 1\ntopics:\n  things: {}\nmqtt:\n  \"t/+/+\": {topic: things, type: thing, subject: \"{1}\"}\n")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	door := newDoorway(t)
	begin := func() *router {
		r := serve(t, filepath.Join(dir, "data"), []string{"MILLRACE_TOKEN=" + mqttToken}, "--rules", rules, "--mqtt-listen", "127.0.0.1:0")
		addr := r.mqtt()
		door.behind.Store(&addr)
		return r
	}
	r := begin()

	l := &mqttLab{tcp: "mqtt://" + door.ln.Addr().String(), node: startNode(t)}
	var kinds []mqttKind
	from, to := map[string]mqttClient{}, map[string]mqttClient{}
	for _, k := range mqttKinds() {
		if !k.able.stays {
			continue // a program a message, which does not connect again
		}
		kinds = append(kinds, k)
		c := &mqttCase{t, l, k, ctx, "kill"}
		to[k.name] = c.open(mqttConnect{id: "to", keep: true, again: true})
		c.subscribe(to[k.name], "t/#", 2)
		from[k.name] = c.open(mqttConnect{id: "from", keep: true, again: true})
	}

	const workers, each = 4, 20 // for each QoS of each kind
	sent := &mqttSent{acknowledged: map[string]byte{}, unknown: map[string]byte{}}
	var publishing sync.WaitGroup
	for _, k := range kinds {
		for w := range 2 * workers {
			publishing.Go(func() {
				qos := byte(1 + w%2)
				for i := range each {
					sent.publish(ctx, t, from[k.name], mqttMessage{topic: fmt.Sprintf("t/%s/%d", k.name, w), payload: fmt.Sprintf("%s, worker %d: %d", k.name, w, i), qos: qos})
				}
			})
		}
	}
	total := int64(len(kinds) * 2 * workers * each)
	for part := int64(1); part <= 2; part++ {
		eventually(t, time.Minute, func() error {
			if n := sent.n.Load(); n < total*part/3 {
				return fmt.Errorf("%d messages of %d were published", n, total)
			}
			return nil
		})
		door.behind.Store(nil)
		r.kill()
		r = begin()
	}
	publishing.Wait()

	if n := len(sent.unknown); n > int(total)/4 {
		t.Errorf("clients gave up on %d messages of %d", n, total)
	}
	received := map[string][]mqttMessage{}
	for _, k := range kinds {
		received[k.name] = sent.received(t, k, to[k.name].inbox())
	}
	stored := sent.stored(t, r)
	for _, k := range kinds {
		repeats(t, k, received[k.name], stored)
	}
	for _, k := range kinds { // sessions, and with them what waits for nobody
		for _, c := range []mqttClient{from[k.name], to[k.name]} {
			if err := c.close(); err != nil {
				t.Errorf("%s: disconnecting: %v", k.name, err)
			}
		}
	}
}

// publish publishes and notes what became of it.
func (s *mqttSent) publish(ctx context.Context, t *testing.T, by mqttClient, m mqttMessage) {
	err := by.publish(ctx, m)
	s.mu.Lock()
	if err == nil {
		s.acknowledged[m.payload] = m.qos
	} else {
		s.unknown[m.payload] = m.qos
	}
	s.mu.Unlock()
	s.n.Add(1)
	p, isPaho5 := by.(*paho5Client)
	if err == nil {
		return
	}
	if !isPaho5 { // all others wait, and send again
		t.Errorf("publishing %q: %v", m.payload, err)
		return
	}
	if err := p.m.AwaitConnection(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("after publishing %q: %v", m.payload, err)
	}
}

// received waits until a subscriber has all that was acknowledged.
func (s *mqttSent) received(t *testing.T, k mqttKind, in *mqttInbox) []mqttMessage {
	t.Helper()
	return in.until(t, "all that was acknowledged, for "+k.name, func(all []mqttMessage) bool {
		have := map[string]bool{}
		for _, m := range all {
			have[m.payload] = true
		}
		for payload := range s.acknowledged {
			if !have[payload] {
				return false
			}
		}
		return true
	})
}

// repeats looks at what a subscriber has of QoS 2. stored tells how often each message is an event.
func repeats(t *testing.T, k mqttKind, all []mqttMessage, stored map[string]int) {
	t.Helper()
	// npm's client hands a message of QoS 2 over when it is released, once; both of paho's do so when it comes, and again when
	// it is sent again because the router could not know that it had come: then it says so.
	once, times := k.name == "npm-3" || k.name == "npm-5", map[string]int{}
	for _, m := range all {
		if m.qos == 2 && (once || !m.dup) {
			times[m.payload]++
		}
		if n := times[m.payload]; n > stored[m.payload] || stored[m.payload] == 0 {
			t.Errorf("%s has %q for the %d. time, DUP %t, which is stored %d times", k.name, m.payload, n, m.dup, stored[m.payload])
		}
	}
}

// stored counts what is in the topic.
func (s *mqttSent) stored(t *testing.T, r *router) (times map[string]int) {
	t.Helper()
	times = map[string]int{}
	for _, e := range r.events("things", "Authorization", "Bearer "+mqttToken) {
		times[fmt.Sprint(e["data"])]++
	}
	for _, of := range []map[string]byte{s.acknowledged, s.unknown} {
		for payload, qos := range of {
			_, acknowledged := s.acknowledged[payload]
			n := times[payload]
			// paho.mqtt.golang sends PUBLISH after PUBREL when it has connected again, which makes another message (4.3.3).
			if n == 0 && acknowledged || n > 1 && qos == 2 && !strings.HasPrefix(payload, "paho-3") {
				t.Errorf("%q, of QoS %d, acknowledged: %t, is stored %d times", payload, qos, acknowledged, n)
			}
		}
	}
	return times
}
