package mqtt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

// keep publishes with RETAIN, as connections do.
func (r *logRouter) keepSaid(t *testing.T, s *Server, name, data string, ext ...event.Attribute) error {
	t.Helper()
	pos := r.say(name, data, append(ext, event.Attribute{Name: retainExtension, Kind: event.Boolean, Value: "true"}, event.Attribute{Name: qosExtension, Kind: event.Integer, Value: "1"})...)
	m, _, _ := r.MQTT().Route(name, nil)
	return s.retained.store(context.Background(), name, m.Topic, pos, nil, data == "")
}

func withRetain(handling byte) func(*packets.Subscription) {
	return func(s *packets.Subscription) { s.RetainHandling = handling }
}

func TestRetained(t *testing.T) {
	r := newLogRouter(t, 2)
	s := newOut(t, r, Options{})
	for _, x := range [][2]string{{"log/a", "old"}, {"log/a", "a"}, {"log/b", "b"}, {"log/b/c", "bc"}, {"plant/1/temp", "1"}, {"log/gone", "x"}, {"log/gone", ""}} {
		if err := r.keepSaid(t, s, x[0], x[1]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 { // also after a restart
		for filter, want := range map[string][]string{
			"log/a": {"a"}, "log/+": {"a", "b"}, "log/#": {"a", "b", "bc"}, "log/b/#": {"b", "bc"}, "#": {"1", "a", "b", "bc"}, "+/+/temp": {"1"}, "log/gone": nil, "log/b/+": {"bc"}, "+": nil,
		} {
			d, _ := join(t, s, deviceOptions{id: fmt.Sprint(i, filter), auto: true})
			d.sub(filter, 2, func(s *packets.Subscription) { s.Identifier = 5 })
			eventually(t, filter, func() bool { return len(d.published()) == len(want) })
			d.idle()
			got := d.payloads()
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", filter, got, want)
			}
			for _, pk := range d.published() {
				if !pk.FixedHeader.Retain || pk.FixedHeader.Qos != 1 || !slices.Equal(pk.Properties.SubscriptionIdentifier, []int{5}) {
					t.Errorf("%s: %+v", filter, pk.FixedHeader)
				}
			}
			d.part()
		}
		if n := s.retained.count(); n != 4 {
			t.Errorf("%d names; want 4", n)
		}
		after := r.crash()
		closeOut(t, s)
		r, s = after, newOut(t, after, Options{})
	}
	closeOut(t, s)
}

func TestRetainHandling(t *testing.T) {
	r, s := serveOut(t, 1)
	if err := r.keepSaid(t, s, "log/a", "a"); err != nil {
		t.Fatal(err)
	}
	d, _ := join(t, s, deviceOptions{id: "d", auto: true})
	d.sub("log/a", 1, withRetain(2))
	d.sub("log/a", 1, withRetain(1)) // it is there
	d.idle()
	d.gets()
	d.sub("log/+", 1, withRetain(1))
	d.gets("a")
	d.sub("log/+", 1, withRetain(0))
	d.gets("a", "a")
}

// What waits of retained messages comes before newer events of the name, within the window.
func TestRetainedInOrder(t *testing.T) {
	r, s := serveOut(t, 1)
	for i := range 3 {
		if err := r.keepSaid(t, s, fmt.Sprintf("log/%d", i), "kept"); err != nil {
			t.Fatal(err)
		}
	}
	d, _ := join(t, s, deviceOptions{id: "d", window: 1})
	d.sub("log/#", 1)
	r.say("log/1", "live")
	for i, want := range []string{"kept", "kept", "kept", "live"} {
		eventually(t, "the next comes", func() bool { return len(d.published()) > i })
		pk := d.published()[i]
		if string(pk.Payload) != want || pk.FixedHeader.Retain != (want == "kept") {
			t.Errorf("message %d is %q, RETAIN %v", i, pk.Payload, pk.FixedHeader.Retain)
		}
		d.answer(&pk)
	}
	if d.most > 1 {
		t.Errorf("%d under way", d.most)
	}
}

func TestRetainedBounds(t *testing.T) {
	r, s := serveOut(t, 1)
	for i := range maxRetained {
		s.retained.set(fmt.Sprintf("log/x/%d", i), &retainedMessage{name: "x", topic: "logs", rec: record(event.Event{ID: "1"})})
	}
	if err := r.keepSaid(t, s, "log/one-more", "x"); !errors.Is(err, event.ErrFull) || s.retained.refused.Load() != 1 {
		t.Errorf("one name too many: %v, %d counted", err, s.retained.refused.Load())
	}
	if err := r.keepSaid(t, s, "log/x/7", "replaced"); err != nil {
		t.Errorf("replacing one: %v", err)
	}
	if err := r.keepSaid(t, s, "log/x/7", ""); err != nil {
		t.Errorf("clearing one: %v", err)
	}
	if err := r.keepSaid(t, s, "log/one-more", "x"); err != nil {
		t.Errorf("after one was cleared: %v", err)
	}
}

// The later one stays, whichever is kept first; a clearing too.
func TestRetainedLate(t *testing.T) {
	r, s := serveOut(t, 1)
	first, second := r.say("log/a", "1"), r.say("log/a", "2")
	cleared := r.say("log/b", "1")
	wiped := r.say("log/b", "")
	store := func(name string, pos event.Position, empty bool) {
		t.Helper()
		if err := s.retained.store(context.Background(), name, "logs", pos, nil, empty); err != nil {
			t.Fatal(err)
		}
	}
	store("log/a", second, false)
	store("log/a", first, false)
	store("log/b", wiped, true)
	store("log/b", cleared, false)
	if m := s.retained.get("log/a"); m == nil || string(m.rec.Data()) != "2" {
		t.Errorf("log/a keeps %v", m)
	}
	if m := s.retained.get("log/b"); m != nil {
		t.Error("log/b was cleared, and keeps what was before")
	}
	// Who subscribed after an event and before it was kept gets it when it is.
	pos := r.say("log/c", "late")
	d, _ := join(t, s, deviceOptions{id: "d", auto: true})
	d.sub("log/c", 1)
	d.idle()
	d.gets()
	store("log/c", pos, false)
	d.gets("late")
}

func TestMessageExpiry(t *testing.T) {
	r := newLogRouter(t, 1)
	clock := newHandClock()
	s := newOut(t, r, Options{Now: clock.now})
	defer closeOut(t, s)
	ends := event.Attribute{Name: expiryExtension, Kind: event.Timestamp, Value: clock.now().Add(10 * time.Second).UTC().Format(time.RFC3339)}
	d, _ := join(t, s, deviceOptions{id: "a", expiry: never})
	d.sub("log/#", 2)
	d.part()
	r.say("log/x", "ends", ends)
	r.say("log/x", "stays")
	if err := r.keepSaid(t, s, "log/kept", "ends too", ends); err != nil {
		t.Fatal(err)
	}
	clock.forward(5 * time.Second)
	e, _ := join(t, s, deviceOptions{id: "e", auto: true})
	e.sub("log/kept", 1)
	e.gets("ends too")
	if left := e.published()[0].Properties.MessageExpiryInterval; left < 4 || left > 6 {
		t.Errorf("%d seconds are left", left)
	}
	clock.forward(6 * time.Second)
	d, _ = join(t, s, deviceOptions{id: "a", expiry: never, auto: true})
	d.gets("stays")
	f, _ := join(t, s, deviceOptions{id: "f", auto: true})
	f.sub("log/kept", 1)
	f.idle()
	f.gets()
	s.retained.mu.Lock()
	s.retained.next = time.Time{}
	s.retained.mu.Unlock()
	s.retained.expire(t.Context())
	if n := s.retained.count(); n != 0 {
		t.Errorf("%d retained messages; the one there was is past its expiry", n)
	}
	if s.fan.expired.Load() == 0 {
		t.Error("nothing was counted as expired")
	}
}

// Filters that overlap do not take the room of retained messages from one another.
func TestRetainedOfManyFilters(t *testing.T) {
	_, s := serveOut(t, 1)
	const half = maxKept/2 + 1000
	for i := range maxKept {
		name := fmt.Sprintf("log/a/%d", i)
		if i >= half {
			name = fmt.Sprintf("log/b/%d", i)
		}
		s.retained.set(name, &retainedMessage{name: name, topic: "logs", rec: record(event.Event{ID: strconv.Itoa(i)})})
	}
	d, _ := join(t, s, deviceOptions{id: "d", window: 1})
	d.sub("log/a/#", 1)
	d.sub("log/#", 1)
	o := d.sess.out
	o.mu.Lock()
	defer o.mu.Unlock()
	waits := map[string]bool{}
	for _, f := range o.kept {
		waits[f.r.name] = true
	}
	if n := len(waits); n < maxKept-1 || s.fan.dropped.Load() > 0 { // one may have gone
		t.Errorf("%d of %d names wait, %d are dropped", n, maxKept, s.fan.dropped.Load())
	}
}
