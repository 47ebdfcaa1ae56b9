package mqtt

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// A known is a caller whose principal can be replaced, as one is that is authenticated again.
type known struct {
	Caller
	p atomic.Pointer[access.Principal]
}

func (k *known) Principal() *access.Principal { return k.p.Load() }

type noKeys struct{}

func (noKeys) Keys(context.Context) ([]access.Key, error) { return nil, nil }
func (noKeys) PutKey(context.Context, access.Key) error   { return nil }
func (noKeys) DeleteKey(context.Context, string) error    { return nil }

// those are principals, each of a role of its name.
func those(t *testing.T, policy string, roles ...string) map[string]*access.Principal {
	t.Helper()
	parsed, err := access.ParsePolicy("access.yaml", []byte(policy), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	g, err := access.New(access.Options{Token: "the token of this router", Keys: noKeys{}})
	if err == nil {
		err = g.SetPolicy(parsed)
	}
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*access.Principal{}
	root, err := g.Authenticate(t.Context(), access.Credentials{Bearer: "the token of this router"})
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range roles {
		_, key, err := g.CreateKey(t.Context(), root, access.Key{Name: role, Roles: []string{role}})
		if err != nil {
			t.Fatal(err)
		}
		if all[role], err = g.Authenticate(t.Context(), access.Credentials{Bearer: key}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

const rolesOfReaders = `version: 1
roles:
  logs: [{allow: [read], topics: [logs]}]
  temps: [{allow: [read], topics: [temps]}]
  worker: [{allow: [consume], subscriptions: [work]}]
`

// What one may not read is not delivered, whatever filter it lies under, nor kept; a filter of nothing else is refused.
func TestReadsWhatItMay(t *testing.T) {
	r, s := serveOut(t, 1)
	who := those(t, rolesOfReaders, "logs", "temps")
	if err := r.keepSaid(t, s, "secret/kept", "secret"); err != nil {
		t.Fatal(err)
	}
	if err := r.keepSaid(t, s, "log/kept", "kept"); err != nil {
		t.Fatal(err)
	}
	k := &known{}
	k.p.Store(who["logs"])
	d, _ := join(t, s, deviceOptions{id: "d", auto: true, caller: k})
	if code, reason := d.subReason("secret/#", 1); code != packets.ErrNotAuthorized.Code || strings.Contains(reason, "secret topic") {
		t.Errorf("secret/#: %#x, %s", code, reason)
	}
	if code := d.sub("#", 1); code != 1 {
		t.Errorf("#: %#x", code)
	}
	if code := d.sub("nothing/there", 1); code != 1 {
		t.Errorf("what no source has yet: %#x", code)
	}
	d.gets("kept")
	r.say("secret/x", "secret")
	r.say("plant/1/temp", "not his")
	r.say("log/x", "his")
	d.gets("kept", "his")
	// The right goes: what waits goes with it. Another comes.
	k.p.Store(who["temps"])
	d.sess.out.refit(t.Context(), false)
	r.say("log/x", "not his any more")
	r.say("plant/1/temp", "his now")
	d.gets("kept", "his", "his now")
	// The same for what was under way: it does not come again.
	k.p.Store(who["logs"])
	e, _ := join(t, s, deviceOptions{id: "e", expiry: never, caller: k})
	e.sub("#", 1)
	r.say("log/x", "under way")
	e.gets("kept", "under way")
	e.part()
	owner := e.sess.owner
	p := &known{}
	p.p.Store(who["temps"])
	if owner == who["temps"].Identity() {
		t.Fatal("two principals are one")
	}
	e2 := &device{t: t, s: s, auto: true, flies: map[uint16]bool{}, sess: e.sess}
	if err := e.sess.out.attach(e2, connectParams{version: 5, receiveMaximum: 10, caller: p}); err != nil {
		t.Fatal(err)
	}
	r.say("plant/1/temp", "his")
	e2.gets("his")
	e.sess.out.detach()
}

// Sessions of two principals are two, whatever their client ids.
func TestSessionsAreTheirOwners(t *testing.T) {
	_, s := serveOut(t, 1)
	who := those(t, rolesOfReaders, "logs", "temps")
	for _, role := range []string{"logs", "temps"} {
		k := &known{}
		k.p.Store(who[role])
		d, present := join(t, s, deviceOptions{id: "same", expiry: never, caller: k})
		if present {
			t.Errorf("%s found another's session", role)
		}
		d.sub("#", 1)
		d.part()
	}
}

func TestSubscriptionBomb(t *testing.T) {
	_, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "d", expiry: never})
	subs := make([]packets.Subscription, maxSubs)
	for i := range subs {
		subs[i].Filter = fmt.Sprintf("log/%d", i)
	}
	codes, _ := d.sess.out.subscribe(subs)
	if slices.ContainsFunc(codes, func(c byte) bool { return c != 0 }) {
		t.Fatalf("%x", codes)
	}
	if code, reason := d.subReason("log/more", 0); code != packets.ErrQuotaExceeded.Code || !strings.Contains(reason, "1000") {
		t.Errorf("one more: %#x, %s", code, reason)
	}
	if code := d.sub("log/7", 1); code != 1 {
		t.Errorf("one that is there: %#x", code)
	}
	for _, filter := range []string{"", "a/#/b", "a+", strings.Repeat("x", 2000), strings.Repeat("a/", 40), "$share/x", "$share//a", "$share/a+b/c"} {
		if code, _ := d.subReason(filter, 0); code != packets.ErrTopicFilterInvalid.Code {
			t.Errorf("%.40q: %#x", filter, code)
		}
	}
	d.part()
}

// Sources come and go with the rules while sessions are there.
func TestReloadOfRules(t *testing.T) {
	r, s := serveOut(t, 1)
	d, _ := join(t, s, deviceOptions{id: "d", auto: true, expiry: never})
	d.sub("#", 1)
	r.say("log/x", "1")
	d.gets("1")
	more := append(slices.Clone(mappings[:2]), event.MQTTMapping{Filter: "new/#", Topic: "new", Subject: "{1}"})
	r.rules(t, more, event.Subscription{Name: "alerts", Deliver: event.Deliver{Face: event.Stream, Topic: "alerts.out", MQTT: event.MQTTNames{Topic: "alerts/{subject}"}}})
	eventually(t, "the sources are there", func() bool {
		d.sess.out.mu.Lock()
		defer d.sess.out.mu.Unlock()
		_, ok := d.sess.out.feeds["subscription:alerts\x00alerts.out"]
		return ok && len(d.sess.out.feeds) == 4
	})
	r.say("log/x", "2")
	r.say("new/x", "3")
	r.put("alerts.out", event.Event{ID: "1", Source: "/s", Type: "t", Subject: "fire", Data: []byte("4")})
	eventually(t, "all come", func() bool { return len(d.published()) == 4 })
	r.put("secret", event.Event{ID: "1", Source: "/s", Type: "t", Subject: "x", Data: []byte("gone"), Extensions: []event.Attribute{{Name: TopicExtension, Value: "secret/x"}}})
	r.rules(t, mappings[:1])
	eventually(t, "the sources are gone", func() bool {
		d.sess.out.mu.Lock()
		defer d.sess.out.mu.Unlock()
		return len(d.sess.out.feeds) == 1
	})
	r.put("logs", event.Event{ID: "1", Source: "/s", Type: "t", Subject: "x", Data: []byte("gone"), Extensions: []event.Attribute{{Name: TopicExtension, Value: "log/x"}}})
	r.say("plant/1/temp", "5")
	got := func() []string { p := d.payloads(); slices.Sort(p); return p }
	eventually(t, "the last comes", func() bool { return len(got()) == 5 })
	if want := []string{"1", "2", "3", "4", "5"}; !slices.Equal(got(), want) {
		t.Errorf("got %q", got())
	}
	if name := d.published()[3].TopicName; name != "alerts/fire" && d.published()[2].TopicName != "alerts/fire" && d.published()[1].TopicName != "alerts/fire" {
		t.Errorf("names %v", d.published())
	}
	d.part()
}

// A shared subscription is one that delivers by pull: what is acknowledged is settled, what is not goes to another member.
func TestShared(t *testing.T) {
	r, s := serveOut(t, 1)
	work := r.shared("work", "logs")
	a, _ := join(t, s, deviceOptions{id: "a", window: 3})
	if code := a.sub("$share/work/log/#", 2, func(s *packets.Subscription) { s.Identifier = 9 }); code != 1 {
		t.Fatalf("granted %#x; QoS 1 is what a lease is", code)
	}
	for i := range 5 {
		r.offer("work", "logs", r.say("log/x", fmt.Sprint(i)))
	}
	a.gets("0", "1", "2") // no more are leased than the client takes
	first := a.published()[0]
	if !slices.Equal(first.Properties.SubscriptionIdentifier, []int{9}) {
		t.Errorf("identifiers %v", first.Properties.SubscriptionIdentifier)
	}
	a.answer(&first)
	a.gets("0", "1", "2", "3")
	refused := a.published()[1]
	a.sess.out.acked(packets.Puback, refused.PacketID, packets.ErrImplementationSpecificError.Code)
	a.landed(refused.PacketID)
	settled := func() (acked []string, nacked int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Clone(work.acked), work.nacked
	}
	eventually(t, "one is acknowledged and one refused", func() bool { acked, nacked := settled(); return slices.Equal(acked, []string{"0"}) && nacked == 1 })
	b, _ := join(t, s, deviceOptions{id: "b", auto: true})
	b.sub("$share/work/#", 1)
	a.part()
	eventually(t, "the other member has the rest", func() bool {
		acked, _ := settled()
		slices.Sort(acked)
		return slices.Equal(acked, []string{"0", "1", "2", "3", "4"})
	})
	b.part()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(work.out) > 0 {
		t.Errorf("%d leases are left", len(work.out))
	}
}

func TestSharedRefused(t *testing.T) {
	r, s := serveOut(t, 1)
	for filter, want := range map[string]byte{"$share/work/log/#": packets.ErrSharedSubscriptionsNotSupported.Code} {
		d, _ := join(t, s, deviceOptions{id: "d"})
		if code, reason := d.subReason(filter, 1); code != want || reason == "" {
			t.Errorf("%s: %#x, %q", filter, code, reason)
		}
		d.part()
	}
	r.shared("work", "logs")
	r.shared("others", "logs")
	r.shared("unnamed", "unmapped")
	d, _ := join(t, s, deviceOptions{id: "d"})
	for filter, want := range map[string]string{
		"$share/wrong/log/#":   "others, unnamed, work",
		"$share/work/log/x":    "log/#",
		"$share/unnamed/log/#": "no mapping",
	} {
		if code, reason := d.subReason(filter, 1); code != packets.ErrTopicFilterInvalid.Code || !strings.Contains(reason, want) {
			t.Errorf("%s: %#x, %q", filter, code, reason)
		}
	}
	// Whose are not his are not named, and a right that goes ends it.
	k := &known{}
	k.p.Store(those(t, rolesOfReaders, "worker")["worker"])
	e, _ := join(t, s, deviceOptions{id: "e", auto: true, caller: k})
	if code, reason := e.subReason("$share/others/log/#", 1); code != packets.ErrTopicFilterInvalid.Code || strings.Contains(reason, "unnamed") || !strings.Contains(reason, "there is work") {
		t.Errorf("another's: %#x, %q", code, reason)
	}
	if code, reason := e.subReason("$share/work/log/#", 1); code != 1 {
		t.Fatalf("his own: %#x, %q", code, reason)
	}
	r.offer("work", "logs", r.say("log/x", "1"))
	e.gets("1")
	k.p.Store(those(t, rolesOfReaders, "logs")["logs"])
	e.sess.out.refit(t.Context(), false)
	r.offer("work", "logs", r.say("log/x", "2"))
	r.mu.Lock()
	if out := len(r.leases["work"].out); out != 0 {
		t.Errorf("%d are leased to who may not", out)
	}
	r.mu.Unlock()
	e.gets("1")
	d.part()
	e.part()
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		filter, pattern string
		want            bool
	}{
		{"#", "a/#", true}, {"a/#", "a/#", true}, {"a/#", "a/+/b", true}, {"a/+", "a/b", true}, {"a/+", "a/+", true}, {"a/#", "a", true},
		{"a/+", "a/#", false}, {"a/b", "a/+", false}, {"a/+", "a/b/c", false}, {"a/b/c", "a/b", false}, {"b/#", "a/#", false}, {"+/#", "#", false}, {"+/b", "a/b", true},
	} {
		if got := covers(c.filter, c.pattern); got != c.want {
			t.Errorf("covers(%q, %q) = %v", c.filter, c.pattern, got)
		}
	}
}

// What took a client's window may be anything: a share goes on once it is acknowledged.
func TestSharedBesideOthers(t *testing.T) {
	r, s := serveOut(t, 1)
	r.shared("work", "logs")
	d, _ := join(t, s, deviceOptions{id: "d", window: 3})
	d.sub("plant/#", 1)
	for i := range 3 {
		r.say("plant/1/temp", fmt.Sprint(i))
	}
	d.gets("0", "1", "2")
	if code := d.sub("$share/work/log/#", 1); code != 1 {
		t.Fatalf("granted %#x", code)
	}
	eventually(t, "the share waits for room", func() bool {
		d.sess.out.mu.Lock()
		defer d.sess.out.mu.Unlock()
		return len(d.sess.out.starved) == 1
	})
	r.offer("work", "logs", r.say("log/x", "shared"))
	for _, pk := range d.published() {
		d.answer(&pk)
	}
	d.gets("0", "1", "2", "shared")
}

// Retained messages that wait go with the right to read them.
func TestKeptIsForgotten(t *testing.T) {
	r, s := serveOut(t, 1)
	who := those(t, rolesOfReaders, "logs", "temps")
	for i := range 5 {
		if err := r.keepSaid(t, s, fmt.Sprintf("log/%d", i), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	k := &known{}
	k.p.Store(who["logs"])
	d, _ := join(t, s, deviceOptions{id: "d", caller: k, window: 1, expiry: never})
	d.sub("#", 1)
	eventually(t, "the first comes", func() bool { return len(d.published()) == 1 })
	k.p.Store(who["temps"])
	d.sess.out.refit(t.Context(), false)
	first := d.published()[0]
	d.answer(&first)
	r.say("plant/1/temp", "his")
	eventually(t, "what he may read comes", func() bool { return len(d.published()) > 1 })
	if got := d.published()[1]; string(got.Payload) != "his" {
		t.Errorf("got %q", got.Payload)
	}
}

// What a share leased and the client is not sent, being past its expiry, is given back at once.
func TestSharedUnsent(t *testing.T) {
	r, s := serveOut(t, 1)
	work := r.shared("work", "logs")
	d, _ := join(t, s, deviceOptions{id: "d", auto: true})
	d.sub("$share/work/log/#", 1)
	r.offer("work", "logs", r.say("log/x", "late", event.Attribute{Name: expiryExtension, Value: "2020-01-01T00:00:00Z"}))
	eventually(t, "its lease is given back", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return work.nacked > 0 })
}
