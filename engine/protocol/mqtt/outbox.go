package mqtt

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Bounds of a session's way out.
const (
	maxSubs     = 1000    // subscriptions of a session
	queueBytes  = 1 << 20 // and their bytes; one message may be larger
	queueTight  = 64 << 10
	flightMax   = 1000    // messages of QoS 1 and 2 under way to a client that allows more
	flightBytes = 1 << 20 // and their bytes; one may be larger
	doneMax     = 10_000  // messages of QoS 2 done, of which an earlier one is not
	batchOut    = 64      // messages written between two flushes
	retryRowsIn = time.Second
	letGoWithin = 5 * time.Second // for what is stored when a connection ends
)

// A subscription is one filter of a session (3.8.3). It does not change; another takes its place.
type subscription struct {
	Filter      string `json:"filter"` // as the client wrote it
	QoS         byte   `json:"qos,omitempty"`
	NoLocal     bool   `json:"noLocal,omitempty"`
	AsPublished bool   `json:"asPublished,omitempty"`
	Retain      byte   `json:"retain,omitempty"` // retain handling
	ID          int    `json:"id,omitempty"`     // subscription identifier; 0: none
	Since       int64  `json:"since,omitempty"`  // Unix ns; what was received before is not for it

	filter string // what names are matched with: without $share/NAME
	share  string // NAME; "" for one that is not shared
	fresh  bool   // it was not there before the SUBSCRIBE
	since  int64
}

// An outbox is one session's way out: its subscriptions and what is under way to the client. Between the methods that
// connections call one at a time, the pump sends: a goroutine that runs while there is something to send, and no longer.
type outbox struct {
	s    *Server
	sess *session
	mark string // of events that the client published

	admin   sync.Mutex // one change of subscriptions and connection at a time
	subs    map[string]*subscription
	shares  map[string]*share
	params  connectParams
	cancel  context.CancelFunc // of what runs for the connection; nil: there is none
	ended   bool
	missed  atomic.Bool // a change of the rules came while something else changed
	allowed uint64      // what readable returned when the feeds were made
	unfit   bool        // a feed could not be made

	rows sync.Mutex // one write of the session's rows at a time

	mu        sync.Mutex
	feeds     map[string]*feed // by source; admin guards changes as well
	w         packetWriter     // nil: no connection
	start     func()           // runs the pump
	pumping   bool
	stopped   chan struct{} // closed once the pump has ended, if somebody waits
	broken    bool          // the connection failed, or waits for its rows
	window    int           // messages of QoS 1 and 2 that may be under way
	queue     queue
	queued    int64     // bytes of queue
	kept      []found   // retained messages to be sent
	keptFirst *outgoing // of the first of them
	flight    flight
	flying    int      // messages that take a place of the client's receive maximum
	bytes     int64    // of those
	again     int      // messages to be sent again on this connection
	starved   []*share // that wait for room
	lastID    uint16
	stale     []string // keys of rows that are not needed any more
	dirty     bool     // there is something to be written
}

// An outbox is made for every session, most of which get little: maps are made when there is something in them.
func newOutbox(s *Server, sess *session) *outbox {
	return &outbox{s: s, sess: sess, mark: s.mark(sess.owner, sess.clientID)}
}

// attach says that a connection is there: what was under way is sent again, and it goes on from there.
func (o *outbox) attach(w packetWriter, p connectParams) error {
	o.admin.Lock()
	defer o.admin.Unlock()
	if o.ended {
		return fmt.Errorf("the session has ended: %w", event.ErrGone)
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.params, o.cancel = p, cancel
	o.mu.Lock()
	o.w, o.broken = w, true // until its feeds are there
	o.start = func() { go o.pump(ctx) }
	o.window = min(int(p.receiveMaximum), flightMax)
	if p.receiveMaximum == 0 {
		o.window = flightMax
	}
	o.again = 0
	for m := o.flight.head; m != nil; {
		following := m.next
		m.again = true
		o.again++
		if m.topic != "" && m.state < heard && !o.reads(m.topic, m.name) { // retained, and not his to read any more
			o.complete(m)
		}
		m = following
	}
	o.mu.Unlock()
	o.fit(ctx, true)
	if err := o.settled(ctx); err != nil {
		o.s.o.Log.Warn("where an MQTT session begins to read cannot be stored: after a crash it begins later", "client", o.sess.clientID, "error", err)
	}
	for _, sub := range o.subs {
		if sub.share != "" {
			o.share(ctx, sub)
		}
	}
	o.s.fan.attached(o, true)
	o.mu.Lock()
	o.broken = false
	o.kick()
	o.mu.Unlock()
	return nil
}

// detach says that it is gone; w of attach is not used any more once it returns.
func (o *outbox) detach() {
	o.admin.Lock()
	defer o.admin.Unlock()
	if o.cancel == nil {
		return
	}
	o.s.fan.attached(o, false)
	o.cancel()
	o.cancel = nil
	o.mu.Lock()
	o.w = nil
	for o.pumping {
		if o.stopped == nil {
			o.stopped = make(chan struct{})
		}
		ch := o.stopped
		o.mu.Unlock()
		<-ch
		o.mu.Lock()
	}
	o.mu.Unlock()
	for _, h := range o.shares {
		h.stop()
	}
	o.shares = nil
	for _, d := range o.feeds {
		d.shut()
		d.part()
	}
	o.mu.Lock()
	o.empty(func(*outgoing) bool { return true })
	o.flying, o.bytes = 0, 0
	for m := o.flight.head; m != nil; m = m.next {
		m.counted = false
		if m.feed != nil {
			m.rec = nil // it is read again: who is away holds no memory
		}
	}
	o.mu.Unlock()
}

// subscribe adds subscriptions and returns a reason code for each; they share the subscription identifier of the packet.
// Retained messages follow once the codes have been written: see subscribed.
func (o *outbox) subscribe(subs []packets.Subscription) (codes []byte, reason string) {
	o.admin.Lock()
	defer o.admin.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), letGoWithin)
	defer cancel()
	codes = make([]byte, len(subs))
	next := make(map[string]*subscription, len(o.subs)+len(subs))
	for f, sub := range o.subs {
		next[f] = sub
	}
	for i := range subs {
		sub, code, why := o.admit(&subs[i], next)
		if codes[i] = code; code < 0x80 {
			next[sub.Filter] = sub
		} else if reason == "" {
			reason = why
		}
	}
	before := o.subs
	o.subs = next
	o.fit(ctx, false)
	// Where the feeds begin has to be durable as well: what comes from here on is theirs.
	if err := o.saveSubs(ctx); err != nil {
		o.s.o.Log.Warn("subscriptions of an MQTT session cannot be stored", "client", o.sess.clientID, "error", err)
		o.subs = before
		o.fit(ctx, false)
		for i := range codes {
			codes[i] = packets.ErrImplementationSpecificError.Code
		}
		return codes, "the subscriptions cannot be stored now"
	}
	for f, sub := range next {
		if sub.share != "" && before[f] != sub {
			o.share(ctx, sub)
		}
	}
	return codes, reason
}

// admit checks one subscription and says what is granted.
func (o *outbox) admit(p *packets.Subscription, have map[string]*subscription) (sub *subscription, code byte, reason string) {
	filter := p.Filter
	sub = &subscription{Filter: filter, QoS: min(p.Qos, 2), NoLocal: p.NoLocal, AsPublished: p.RetainAsPublished,
		Retain: p.RetainHandling, ID: p.Identifier, Since: o.s.o.Now().UnixNano()}
	old := have[filter]
	sub.fresh = old == nil
	if old != nil && (old.QoS > 0 || sub.QoS == 0) {
		sub.Since = old.Since
	}
	if err := sub.parse(); err != nil {
		return nil, packets.ErrTopicFilterInvalid.Code, err.Error()
	}
	if old == nil && len(have) >= maxSubs {
		return nil, packets.ErrQuotaExceeded.Code, fmt.Sprintf("a session has at most %d subscriptions", maxSubs)
	}
	if sub.share != "" {
		sub.QoS = min(sub.QoS, 1) // the lease is what is known of it, and that is at least once
		if _, code, reason := o.shareable(sub); code != 0 {
			return nil, code, reason
		}
		return sub, sub.QoS, ""
	}
	any := false
	sources := o.s.o.Backend.MQTT().Sources()
	for i := range sources {
		src := &sources[i]
		if !src.Overlaps(sub.filter) {
			continue
		}
		if o.may(access.Read, src.Kind, src.Name) {
			return sub, sub.QoS, ""
		}
		any = true
	}
	if any {
		return nil, packets.ErrNotAuthorized.Code, fmt.Sprintf("nothing under %q is yours to read", shownFilter(filter))
	}
	return sub, sub.QoS, "" // there may be something after the next change of the rules
}

// parse fills in what the filter says.
func (sub *subscription) parse() error {
	sub.filter, sub.since = sub.Filter, sub.Since
	if rest, ok := strings.CutPrefix(sub.Filter, "$share/"); ok {
		name, filter, ok := strings.Cut(rest, "/")
		if !ok || name == "" || strings.ContainsAny(name, "+#") {
			return fmt.Errorf("a shared subscription is $share/NAME/FILTER, and NAME has no + or #")
		}
		sub.share, sub.filter = name, filter
	}
	return mqttname.CheckFilter(sub.filter)
}

// shownFilter is a filter as reasons show it, which must be short.
func shownFilter(filter string) string {
	if len(filter) > 80 {
		return strings.ToValidUTF8(filter[:80], "") + "…"
	}
	return filter
}

func matches(filter, name string) bool { return mqttname.Match(filter, name) }

// may asks about the connection's caller; a refusal is not one to be audited, as lists leave out what one may not see.
func (o *outbox) may(a access.Action, k access.Kind, name string) bool {
	return o.params.caller != nil && o.params.caller.Principal().Check(a, k, name) == nil
}

// subscribed is called once the SUBACK has been written: retained messages follow (3.3.1.3).
func (o *outbox) subscribed(subs []packets.Subscription) {
	o.admin.Lock()
	defer o.admin.Unlock()
	for i := range subs {
		sub := o.subs[subs[i].Filter]
		if sub == nil || sub.share != "" || sub.Retain == 2 || sub.Retain == 1 && !sub.fresh {
			continue
		}
		all := o.s.retained.match(o, sub, o.reads)
		o.mu.Lock()
		if o.w != nil {
			o.keep(all)
			o.kick()
		}
		o.mu.Unlock()
	}
}

// keep has retained messages wait. Where they are too many, those that wait already under another filter come once (3.3.4),
// and what is still too many is counted. The caller holds o.mu.
func (o *outbox) keep(all []found) {
	if len(o.kept)+len(all) > maxKept {
		waits := make(map[*retainedMessage]bool, len(o.kept))
		for _, f := range o.kept {
			waits[f.r] = true
		}
		all = slices.DeleteFunc(all, func(f found) bool { return waits[f.r] })
	}
	if n := min(len(all), maxKept-len(o.kept)); n < len(all) {
		o.s.fan.dropped.Add(uint64(len(all) - n))
		all = all[:n]
	}
	o.kept = append(o.kept, all...)
}

// late takes a message that was kept after the subscription had been answered.
func (o *outbox) late(f found) {
	o.admin.Lock()
	defer o.admin.Unlock()
	if o.subs[f.sub.Filter] != f.sub || !o.reads(f.r.topic, f.r.name) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.w != nil && len(o.kept) < maxKept {
		o.kept = append(o.kept, f)
		o.kick()
	}
}

// reads reports whether the caller may read what is published into a topic under a name.
func (o *outbox) reads(topic, name string) bool {
	sources := o.s.o.Backend.MQTT().Sources()
	return slices.ContainsFunc(sources, func(src Source) bool {
		return src.Topic == topic && src.Overlaps(name) && o.may(access.Read, src.Kind, src.Name)
	})
}

// unsubscribe takes subscriptions away and returns a reason code for each.
func (o *outbox) unsubscribe(filters []string) (codes []byte) {
	o.admin.Lock()
	defer o.admin.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), letGoWithin)
	defer cancel()
	codes = make([]byte, len(filters))
	next := make(map[string]*subscription, len(o.subs))
	for f, sub := range o.subs {
		next[f] = sub
	}
	for i, f := range filters {
		if next[f] == nil {
			codes[i] = packets.CodeNoSubscriptionExisted.Code
		}
		delete(next, f)
	}
	before := o.subs
	o.subs = next
	o.fit(ctx, false)
	if err := o.saveSubs(ctx); err != nil {
		o.s.o.Log.Warn("subscriptions of an MQTT session cannot be stored", "client", o.sess.clientID, "error", err)
		o.subs = before
		o.fit(ctx, false)
		for i := range codes {
			codes[i] = packets.ErrImplementationSpecificError.Code
		}
		return codes
	}
	for f := range before {
		if h := o.shares[f]; h != nil && next[f] == nil {
			h.stop()
			delete(o.shares, f)
		}
	}
	return codes
}

// end says that the session is over: its rows go.
func (o *outbox) end() {
	o.detach()
	o.admin.Lock()
	defer o.admin.Unlock()
	o.ended = true
	o.mu.Lock()
	o.flight, o.again, o.stale, o.dirty = flight{}, 0, nil, false
	o.kept, o.keptFirst = nil, nil
	o.mu.Unlock()
}

// mark is how events tell which client published them, for no local (3.8.3.1), without telling others who it is: under a key of
// the router's, so that nobody makes one for somebody else's client, and a client of that name of another router has another.
func (s *Server) mark(owner, clientID string) string {
	m := hmac.New(sha256.New, s.o.Key[:])
	_, _ = m.Write([]byte(owner + "\x00" + clientID))
	return hex.EncodeToString(m.Sum(nil)[:8])
}
