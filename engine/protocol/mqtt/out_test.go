package mqtt

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

const never = expiresNever

func serveOut(t *testing.T, parts int) (*logRouter, *Server) {
	t.Helper()
	r := newLogRouter(t, parts)
	s := newOut(t, r, Options{})
	t.Cleanup(func() { closeOut(t, s) })
	return r, s
}

func TestDeliversWhatMatches(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "a", auto: true})
	for qos := range byte(3) {
		if code := d.sub(fmt.Sprintf("plant/%d/temp", qos), qos); code != qos {
			t.Fatalf("granted %#x", code)
		}
	}
	r.say("plant/0/temp", "zero")
	r.say("plant/1/temp", "one")
	r.say("plant/9/temp", "nobody's")
	r.say("plant/2/temp", "two")
	d.gets("zero", "one", "two")
	for i, pk := range d.published() {
		if pk.FixedHeader.Qos != byte(i) || pk.TopicName != fmt.Sprintf("plant/%d/temp", i) || pk.FixedHeader.Retain || pk.FixedHeader.Dup {
			t.Errorf("message %d: %+v of %q", i, pk.FixedHeader, pk.TopicName)
		}
	}
	codes := d.sess.out.unsubscribe([]string{"plant/0/temp", "none"})
	if codes[0] != 0 || codes[1] != packets.CodeNoSubscriptionExisted.Code {
		t.Errorf("unsubscribe: %x", codes)
	}
	r.say("plant/0/temp", "after")
	r.say("plant/1/temp", "more")
	d.gets("zero", "one", "two", "more")
}

// One message for a client whose filters overlap, with the highest QoS and all identifiers (3.3.4).
func TestOverlappingSubscriptions(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "a", auto: true})
	id := func(n int) func(*packets.Subscription) { return func(s *packets.Subscription) { s.Identifier = n } }
	d.sub("plant/#", 0, id(7))
	d.sub("plant/+/temp", 1, id(8))
	d.sub("+/1/temp", 0, id(7))
	d.sub("log/x", 2, id(9))
	r.say("plant/1/temp", "once")
	d.gets("once") // of two topics nothing is said about the order
	r.say("log/x", "x")
	d.gets("once", "x")
	pk := d.published()[0]
	ids := slices.Clone(pk.Properties.SubscriptionIdentifier)
	slices.Sort(ids)
	if pk.FixedHeader.Qos != 1 || !slices.Equal(ids, []int{7, 8}) {
		t.Errorf("QoS %d, identifiers %v", pk.FixedHeader.Qos, ids)
	}
	// Another subscription to the same filter takes its place.
	d.sub("log/x", 0, id(3))
	r.say("log/x", "again")
	d.gets("once", "x", "again")
	if pk := d.published()[2]; pk.FixedHeader.Qos != 0 || !slices.Equal(pk.Properties.SubscriptionIdentifier, []int{3}) {
		t.Errorf("QoS %d, identifiers %v", pk.FixedHeader.Qos, pk.Properties.SubscriptionIdentifier)
	}
}

func TestNoLocalAndAsPublished(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "a", auto: true})
	d.sub("log/#", 2, func(s *packets.Subscription) { s.NoLocal, s.RetainAsPublished = true, true })
	r.say("log/x", "mine", event.Attribute{Name: fromExtension, Value: s.mark(d.sess.owner, "a")})
	r.say("log/x", "other", event.Attribute{Name: fromExtension, Value: s.mark(d.sess.owner, "b")}, event.Attribute{Name: retainExtension, Kind: event.Boolean, Value: "true"},
		event.Attribute{Name: qosExtension, Kind: event.Integer, Value: "1"})
	r.say("log/x", "plain")
	d.gets("other", "plain")
	all := d.published()
	if h := all[0].FixedHeader; !h.Retain || h.Qos != 1 {
		t.Errorf("as published: %+v", h)
	}
	if h := all[1].FixedHeader; h.Retain || h.Qos != 2 {
		t.Errorf("that did not come by MQTT: %+v", h)
	}
	for _, pk := range all {
		for _, u := range pk.Properties.User {
			if u.Key == fromExtension || u.Key == qosExtension || u.Key == retainExtension {
				t.Errorf("the client sees %v", u)
			}
		}
	}
}

// A mark is made under the router's key: nobody else can tell or make one, and the same client of another router has another.
func TestMarksAreTheRoutersOwn(t *testing.T) {
	s, again, other := &Server{o: Options{Key: [32]byte{1}}}, &Server{o: Options{Key: [32]byte{1}}}, &Server{o: Options{Key: [32]byte{2}}}
	bare := sha256.Sum256([]byte("owner\x00a"))
	switch mark := s.mark("owner", "a"); {
	case len(mark) != 16 || mark != again.mark("owner", "a"):
		t.Errorf("%q after a restart", mark)
	case mark == other.mark("owner", "a") || mark == hex.EncodeToString(bare[:8]) || mark == s.mark("owner", "b") || mark == s.mark("b", "a"):
		t.Errorf("%q is another's as well", mark)
	}
	if a, b := (Options{}).withDefaults(), (Options{}).withDefaults(); a.Key == b.Key {
		t.Error("without a key all have the same")
	}
}

// What was not acknowledged comes again with DUP and its packet id, what came meanwhile after it.
func TestQoS1OverReconnect(t *testing.T) {
	r, s := serveOut(t, 1)
	d, present := join(t, s, deviceOptions{id: "a", expiry: never})
	if present {
		t.Fatal("a new session was present")
	}
	d.sub("log/#", 1)
	for i := range 3 {
		r.say("log/x", fmt.Sprint(i))
	}
	d.gets("0", "1", "2")
	first := d.published()
	d.answer(&first[1])
	d.part()
	r.say("log/x", "3")
	r.say("plant/1/temp", "not his")
	d, present = join(t, s, deviceOptions{id: "a", expiry: never, auto: true})
	if !present {
		t.Fatal("the session is gone")
	}
	d.gets("0", "2", "3")
	for i, pk := range d.published() {
		if dup := i < 2; pk.FixedHeader.Dup != dup || dup && pk.PacketID != first[2*i].PacketID {
			t.Errorf("message %d: DUP %v, packet id %d; was %d", i, pk.FixedHeader.Dup, pk.PacketID, first[i].PacketID)
		}
	}
	r.say("log/x", "4")
	d.gets("0", "2", "3", "4")
}

// The last reader of a source ends its fan-out: who comes back to a new one, at which as many events have passed as at the
// old one before, gets the next event all the same.
func TestAnotherFanout(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "a", expiry: never, auto: true})
	d.sub("log/#", 1)
	for i := range 3 {
		r.say("log/x", fmt.Sprint(i))
		d.gets(fmt.Sprint(i))
		d.part()
		d, _ = join(t, s, deviceOptions{id: "a", expiry: never, auto: true})
		d.idle() // it has joined the fan-out
	}
}

// A message that came QoS 0 while nobody was there is not kept, and a session that ends with its connection keeps nothing.
func TestWhatIsNotKept(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "a", expiry: never})
	d.sub("log/0", 0)
	d.sub("log/1", 1)
	e, _ := join(t, s, deviceOptions{id: "b"})
	e.sub("log/#", 1)
	d.part()
	e.part()
	r.say("log/0", "gone")
	r.say("log/1", "kept")
	d, _ = join(t, s, deviceOptions{id: "a", expiry: never, auto: true})
	d.gets("kept")
	d.idle()
	r.say("log/0", "now")
	d.gets("kept", "now")
	if e, present := join(t, s, deviceOptions{id: "b"}); present || len(e.sess.out.subs) != 0 {
		t.Error("a session without an expiry is there after its connection")
	}
}

// Under a new connection everything under way is the window's as well (4.9), also with a smaller one.
func TestWindow(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "a", expiry: never, window: 5})
	d.sub("log/#", 1)
	for i := range 12 {
		r.say("log/x", fmt.Sprint(i))
	}
	d.gets("0", "1", "2", "3", "4")
	d.part()
	d, _ = join(t, s, deviceOptions{id: "a", expiry: never, window: 2})
	d.gets("0", "1")
	for i := range 12 {
		eventually(t, "the next comes", func() bool { return len(d.published()) > i })
		pk := d.published()[i]
		if want := fmt.Sprint(i); string(pk.Payload) != want {
			t.Fatalf("got %s, want %s", pk.Payload, want)
		}
		d.answer(&pk)
	}
	if d.most > 2 {
		t.Errorf("%d messages were under way; the client takes 2", d.most)
	}
}

// PUBREL is resumed after a reconnect and after a restart, and nothing that was released comes again.
func TestQoS2Resumed(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			r := newLogRouter(t, 1)
			s := newOut(t, r, Options{})
			d, _ := join(t, s, deviceOptions{id: "a", expiry: never})
			d.sub("log/#", 2)
			for i := range 3 {
				r.say("log/x", fmt.Sprint(i))
			}
			d.gets("0", "1", "2")
			first := d.published()
			d.sess.out.acked(packets.Pubrec, first[1].PacketID, 0)
			eventually(t, "PUBREL", func() bool { return len(d.rels()) == 1 })
			if restart {
				after := r.crash() // nothing was written but what had to be
				d.part()
				closeOut(t, s)
				r, s = after, newOut(t, after, Options{})
			} else {
				d.part()
			}
			d, present := join(t, s, deviceOptions{id: "a", expiry: never, auto: true})
			if !present {
				t.Fatal("the session is gone")
			}
			d.gets("0", "2")
			eventually(t, "all are released", func() bool { return len(d.rels()) == 3 })
			if d.rels()[0] != first[1].PacketID && !slices.Contains(d.rels(), first[1].PacketID) {
				t.Errorf("released %v; PUBREL of %d was to be resumed", d.rels(), first[1].PacketID)
			}
			for i, pk := range d.published() {
				if !pk.FixedHeader.Dup || pk.PacketID != first[2*i].PacketID {
					t.Errorf("%s: DUP %v, packet id %d; was %d", pk.Payload, pk.FixedHeader.Dup, pk.PacketID, first[2*i].PacketID)
				}
			}
			r.say("log/x", "3")
			d.gets("0", "2", "3")
			d.part()
			closeOut(t, s)
		})
	}
}

func (d *device) rels() (ids []uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, pk := range d.got {
		if pk.FixedHeader.Type == packets.Pubrel {
			ids = append(ids, pk.PacketID)
		}
	}
	return ids
}

// PUBLISH of QoS 2 waits for its row, and so does PUBREL.
func TestQoS2WaitsForItsRow(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "a", expiry: never})
	d.sub("log/#", 2)
	d.idle()
	enter, goOn := make(chan struct{}, 10), make(chan error)
	r.hook(nil, func(rows []event.ShelfRow) error {
		if slices.ContainsFunc(rows, func(x event.ShelfRow) bool { return x.Shelf == event.ShelfPackets }) {
			enter <- struct{}{}
			return <-goOn
		}
		return nil
	})
	r.say("log/x", "0")
	<-enter
	if got := d.payloads(); len(got) > 0 {
		t.Fatalf("%q went out before its row was durable", got)
	}
	goOn <- nil
	d.gets("0")
	d.sess.out.acked(packets.Pubrec, d.published()[0].PacketID, 0)
	<-enter
	if got := d.rels(); len(got) > 0 {
		t.Fatalf("PUBREL of %v went out before its row was durable", got)
	}
	goOn <- event.ErrUnavailable // and is tried again
	<-enter
	if got := d.rels(); len(got) > 0 {
		t.Fatalf("PUBREL of %v went out though its row could not be written", got)
	}
	r.hook(nil, nil)
	goOn <- nil
	eventually(t, "PUBREL", func() bool { return len(d.rels()) == 1 })
}

func TestSessionExpiry(t *testing.T) {
	r := newLogRouter(t, 1)
	clock := newHandClock()
	s := newOut(t, r, Options{Now: clock.now})
	for id, expiry := range map[string]time.Duration{"none": 0, "hour": time.Hour, "ever": never} {
		d, _ := join(t, s, deviceOptions{id: id, expiry: expiry})
		d.sub("log/#", 1)
		d.part()
	}
	there := func(id string) bool {
		t.Helper()
		d, present := join(t, s, deviceOptions{id: id, expiry: time.Hour})
		if present != (len(d.sess.out.subs) == 1) {
			t.Errorf("%s: present %v with %d subscriptions", id, present, len(d.sess.out.subs))
		}
		d.part()
		return present
	}
	if there("none") || !there("hour") || !there("ever") {
		t.Error("right after the connection")
	}
	// Whose time passes while nobody runs is over at the start; a session that was connected then loses its connection.
	d, _ := join(t, s, deviceOptions{id: "ever", expiry: never})
	d.part()
	after := r.crash()
	closeOut(t, s)
	clock.forward(2 * time.Hour)
	r, s = after, newOut(t, after, Options{Now: clock.now})
	defer func() { closeOut(t, s) }()
	if n := s.sessions.count(); n != 1 {
		t.Errorf("%d sessions are left; want the one that never ends", n)
	}
	for key := range r.rows {
		if strings.Contains(key, "hour") {
			t.Errorf("a row of a session that ended: %q", key)
		}
	}
	// Clean start ends what was there, with its rows.
	d, present := join(t, s, deviceOptions{id: "ever", clean: true, expiry: time.Minute})
	if present || len(d.sess.out.subs) > 0 {
		t.Error("clean start found a session")
	}
	d.part()
	clock.forward(2 * time.Minute)
	s.sessions.expire(t.Context())
	if n, rows := s.sessions.count(), len(r.rows); n != 0 || rows != 0 {
		t.Errorf("%d sessions and %d rows are left: %q", n, rows, r.rows)
	}
}

// A client that does not read costs bounded memory, and nobody else's delivery.
func TestSlowClient(t *testing.T) {
	r, s := serveOut(t, 1)
	slow, _ := join(t, s, deviceOptions{id: "slow", hold: make(chan struct{})})
	slow.sub("log/#", 1)
	zero, _ := join(t, s, deviceOptions{id: "zero", hold: make(chan struct{})})
	zero.sub("log/#", 0)
	quick, _ := join(t, s, deviceOptions{id: "quick", auto: true})
	quick.sub("log/#", 1)
	const n = 3000
	for i := range n {
		r.say("log/x", fmt.Sprint(i))
	}
	eventually(t, "the quick client has all", func() bool { return len(quick.published()) == n })
	for i, p := range quick.payloads() {
		if p != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, p)
		}
	}
	for _, d := range []*device{slow, zero} {
		d.sess.out.mu.Lock()
		if q, b := d.sess.out.queue.len(), d.sess.out.queued; q > s.fan.most || b > queueBytes {
			t.Errorf("%s: %d messages wait with %d bytes", d.sess.clientID, q, b)
		}
		d.sess.out.mu.Unlock()
	}
	if s.fan.dropped.Load() == 0 {
		t.Error("no message of QoS 0 was counted as dropped")
	}
	// It reads again: of QoS 1 nothing was lost.
	slow.mu.Lock()
	slow.auto = true
	close(slow.hold)
	slow.hold = nil
	slow.mu.Unlock()
	eventually(t, "the slow client has all", func() bool {
		for _, pk := range slow.published() {
			slow.answer(&pk)
		}
		return len(slow.published()) >= n
	})
	for i, p := range slow.payloads() {
		if p != fmt.Sprint(i) {
			t.Fatalf("message %d of the slow client is %s", i, p)
		}
	}
	slow.idle()
	r.say("log/x", "live")
	eventually(t, "it is live again", func() bool { return slices.Contains(slow.payloads(), "live") })
	zero.part()
}

// Bytes bound the queue as well.
func TestSlowClientBytes(t *testing.T) {
	r, s := serveOut(t, 1)
	slow, _ := join(t, s, deviceOptions{id: "slow", window: 1})
	slow.sub("log/#", 1)
	big := string(make([]byte, 300<<10))
	for range 10 {
		r.say("log/x", big)
	}
	eventually(t, "it falls behind", func() bool {
		slow.sess.out.mu.Lock()
		defer slow.sess.out.mu.Unlock()
		for _, f := range slow.sess.out.feeds {
			return !f.live && slow.sess.out.queued <= queueBytes
		}
		return false
	})
	if n := s.fan.queued.Load(); n > queueBytes {
		t.Errorf("%d bytes wait in all", n)
	}
	for i := range 10 {
		eventually(t, "the next comes", func() bool { return len(slow.published()) > i })
		slow.answer(&slow.published()[i])
	}
	if n := s.fan.queued.Load(); n != 0 {
		t.Errorf("%d bytes wait of nothing", n)
	}
}

// Events that the ring dropped before a session had read them are counted and named, and it goes on behind them.
func TestOvertaken(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "a", expiry: never})
	d.sub("log/#", 1)
	d.part()
	for i := range 5 {
		r.say("log/x", fmt.Sprint(i))
	}
	r.overtake("logs")
	r.say("log/x", "5")
	d, _ = join(t, s, deviceOptions{id: "a", expiry: never, auto: true})
	d.gets("5")
	if n := s.fan.overtaken.Load(); n != 5 {
		t.Errorf("%d events were counted; 5 were overtaken", n)
	}
}
