package mqtt

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Bounds of retained messages.
const (
	maxRetained   = 10_000   // names
	retainedBytes = 64 << 20 // of events and names
	maxKept       = 10_000   // retained messages that wait for one session
	retainedWait  = time.Minute
	lateStore     = 5 * time.Second // from an event's commit to its being kept, at most
	maxAsked      = 100_000         // subscriptions of that time, the last ones
	maxCleared    = 10_000          // names that were cleared, the last ones at least
)

// retained are the last messages of names that came with RETAIN set (3.3.1.3). Each has a row, name → topic behind its
// length u16, record.
type retained struct {
	s    *Server
	seed maphash.Seed
	busy [64]sync.Mutex // by hash of the name: one change of a name at a time

	refused atomic.Uint64 // for which there was no room

	mu      sync.Mutex
	root    level
	names   int
	bytes   int64
	cleared map[string]*retainedMessage // names that were cleared just now, by what: what comes late is older
	before  map[string]*retainedMessage // those that were before cleared was begun
	asked   []asked                     // subscriptions of the last seconds
	next    time.Time                   // when expired ones are looked for
}

// A level is one level of the tree of names.
type level struct {
	below map[string]*level
	here  *retainedMessage
}

// retainedMessage is what a name keeps. It does not change.
type retainedMessage struct {
	name, topic string
	rec         event.Record
}

// found is a retained message that a subscription has found.
type found struct {
	r   *retainedMessage
	sub *subscription
}

// asked is a subscription that was answered with what was kept then.
type asked struct {
	o   *outbox
	sub *subscription
	at  time.Time
}

// message is what the client is sent. It has RETAIN set, whatever the subscription says [MQTT-3.3.1-8].
func (f found) message() *outgoing {
	m := &outgoing{topic: f.r.topic, rec: f.r.rec, name: f.r.name, pos: f.r.rec.Position(), qos: min(f.sub.QoS, madeOf(f.r.rec).qos), retain: true}
	if f.sub.ID != 0 {
		m.ids = []int{f.sub.ID}
	}
	return m
}

func (m *retainedMessage) size() int64 { return int64(len(m.rec) + len(m.name) + messageCost) }

// newer reports whether m came after other: on one partition by offset, otherwise by time.
func (m *retainedMessage) newer(other *retainedMessage) bool {
	a, b := m.rec, other.rec
	if m.topic == other.topic && a.Partition() == b.Partition() {
		return a.Offset() > b.Offset()
	}
	return a.Received() >= b.Received()
}

// expired reports whether the message is past its expiry.
func (m *retainedMessage) expired(now time.Time) bool {
	a, ok := m.rec.Extension(expiryExtension)
	if !ok {
		return false
	}
	_, left := expiry(a.Value, now)
	return !left
}

func newRetained(s *Server) *retained {
	return &retained{s: s, seed: maphash.MakeSeed(), cleared: map[string]*retainedMessage{}}
}

// open loads what is kept.
func (r *retained) open(ctx context.Context) error {
	return r.s.o.Backend.Rows().Scan(ctx, event.ShelfRetained, "", func(name string, v []byte) error {
		if len(v) < 2 || len(v) < 2+int(binary.BigEndian.Uint16(v)) {
			return fmt.Errorf("the row of %q has %d bytes", shownFilter(name), len(v))
		}
		topic := v[2 : 2+int(binary.BigEndian.Uint16(v))]
		rec, _, err := event.CutRecord(v[2+len(topic):])
		if err != nil {
			return fmt.Errorf("the row of %q: %w", shownFilter(name), err)
		}
		r.set(name, &retainedMessage{name: name, topic: string(topic), rec: rec})
		return nil
	})
}

// store keeps an event that lies at pos of a router topic as its name's retained message, or with empty, which says that
// its payload was, takes away what was kept. It is called once the event is durable, before it is acknowledged; the event
// is borrowed. An error is not the publisher's: the event is stored.
func (r *retained) store(ctx context.Context, name, topic string, pos event.Position, _ *event.Event, empty bool) error {
	rec, err := r.s.o.Backend.Event(ctx, topic, pos) // as it was stored, with its time
	if errors.Is(err, event.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	busy := &r.busy[maphash.String(r.seed, name)%uint64(len(r.busy))]
	busy.Lock()
	defer busy.Unlock()
	m := &retainedMessage{name: strings.Clone(name), topic: strings.Clone(topic), rec: slices.Clone(rec)}
	r.mu.Lock()
	old, late := r.get(name), cmp.Or(r.cleared[name], r.before[name])
	stale := old != nil && !m.newer(old) || late != nil && !m.newer(late)
	full := false
	if !stale && !empty {
		names, bytes := r.names+1, r.bytes+m.size()
		if old != nil {
			names, bytes = names-1, bytes-old.size()
		}
		full = names > maxRetained || bytes > retainedBytes
	}
	r.mu.Unlock()
	row := event.ShelfRow{Shelf: event.ShelfRetained, Key: m.name}
	switch {
	case stale:
		return nil
	case !empty && !full:
		v := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(topic)+len(rec)), uint16(len(topic)))
		row.Value = append(append(v, topic...), rec...)
	}
	if old != nil || row.Value != nil {
		if err := r.s.o.Backend.Rows().Keep(ctx, row); err != nil {
			return fmt.Errorf("the retained message of %q: %w", shownFilter(name), err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if row.Value == nil {
		r.cut(name)
		if len(r.cleared) >= maxCleared {
			r.turn()
		}
		r.cleared[m.name] = &retainedMessage{name: m.name, topic: m.topic, rec: slices.Clone(m.rec[:min(len(m.rec), event.HeaderSize)])}
		if full {
			r.refused.Add(1)
			return event.Bad(event.ErrFull, "retain", fmt.Sprintf("there are %d retained messages with %d bytes; at most %d with %d: clear some with an empty retained message", r.names, r.bytes, maxRetained, retainedBytes))
		}
		return nil
	}
	r.set(m.name, m)
	r.tell(m)
	return nil
}

// tell gives a message to those who subscribed after it was stored and before it was kept: their feeds began behind it.
// The caller holds r.mu.
func (r *retained) tell(m *retainedMessage) {
	r.pass(r.s.o.Now())
	for _, a := range r.asked {
		if a.at.UnixNano() >= m.rec.Received() && matches(a.sub.filter, m.name) {
			r.s.fan.runs.Go(func() { a.o.late(found{m, a.sub}) })
		}
	}
}

// turn forgets names that were cleared a while ago. The caller holds r.mu.
func (r *retained) turn() {
	r.before, r.cleared = r.cleared, map[string]*retainedMessage{}
}

// pass forgets subscriptions for which nothing comes late any more. The caller holds r.mu.
func (r *retained) pass(now time.Time) {
	n := max(0, len(r.asked)-maxAsked)
	clear(r.asked[:n])
	for n < len(r.asked) && now.Sub(r.asked[n].at) > lateStore {
		r.asked[n] = asked{}
		n++
	}
	if r.asked = r.asked[n:]; len(r.asked) == 0 {
		r.asked = nil
	}
}

// match returns what is kept under the names that a filter matches and that allowed lets through, for a subscription that
// begins now.
func (r *retained) match(o *outbox, sub *subscription, allowed func(topic, name string) bool) []found {
	now := r.s.o.Now()
	var all []found
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, asked{o, sub, now})
	r.pass(now)
	r.root.walk(sub.filter, true, func(m *retainedMessage) {
		if !m.expired(now) && allowed(m.topic, m.name) {
			all = append(all, found{m, sub})
		}
	})
	return all
}

// walk visits what a filter matches.
func (l *level) walk(filter string, first bool, visit func(*retainedMessage)) {
	f, rest, more := strings.Cut(filter, "/")
	if f == "#" {
		if !first && l.here != nil { // a/# matches a
			visit(l.here)
		}
		for name, b := range l.below {
			if !first || !strings.HasPrefix(name, "$") { // [MQTT-4.7.2-1]
				if b.here != nil {
					visit(b.here)
				}
				b.under(visit)
			}
		}
		return
	}
	each := func(b *level) {
		switch {
		case more:
			b.walk(rest, false, visit)
		case b.here != nil:
			visit(b.here)
		}
	}
	if f != "+" {
		if b := l.below[f]; b != nil {
			each(b)
		}
		return
	}
	for name, b := range l.below {
		if !first || !strings.HasPrefix(name, "$") {
			each(b)
		}
	}
}

// under visits everything below.
func (l *level) under(visit func(*retainedMessage)) {
	for _, b := range l.below {
		if b.here != nil {
			visit(b.here)
		}
		b.under(visit)
	}
}

func (r *retained) get(name string) *retainedMessage {
	l := &r.root
	for part := range strings.SplitSeq(name, "/") {
		if l = l.below[part]; l == nil {
			return nil
		}
	}
	return l.here
}

// set keeps m under its name. The caller holds r.mu, or nobody else knows r.
func (r *retained) set(name string, m *retainedMessage) {
	l := &r.root
	for part := range strings.SplitSeq(name, "/") {
		b := l.below[part]
		if b == nil {
			if b = (&level{}); l.below == nil {
				l.below = map[string]*level{}
			}
			l.below[part] = b
		}
		l = b
	}
	if l.here != nil {
		r.names, r.bytes = r.names-1, r.bytes-l.here.size()
	}
	l.here = m
	r.names, r.bytes = r.names+1, r.bytes+m.size()
}

// cut takes away what is under a name, and levels that nothing is below any more. The caller holds r.mu.
func (r *retained) cut(name string) {
	path := []*level{&r.root}
	parts := strings.Split(name, "/")
	for _, part := range parts {
		b := path[len(path)-1].below[part]
		if b == nil {
			return
		}
		path = append(path, b)
	}
	last := path[len(path)-1]
	if last.here == nil {
		return
	}
	r.names, r.bytes = r.names-1, r.bytes-last.here.size()
	last.here = nil
	for i := len(parts); i > 0 && path[i].here == nil && len(path[i].below) == 0; i-- {
		delete(path[i-1].below, parts[i-1])
	}
}

// expire removes what is past its expiry, now and then.
func (r *retained) expire(ctx context.Context) {
	now := r.s.o.Now()
	var over []*retainedMessage
	r.mu.Lock()
	r.pass(now)
	if now.Before(r.next) {
		r.mu.Unlock()
		return
	}
	r.next = now.Add(retainedWait)
	r.turn()
	r.root.under(func(m *retainedMessage) {
		if m.expired(now) {
			over = append(over, m)
		}
	})
	r.mu.Unlock()
	for _, m := range over {
		busy := &r.busy[maphash.String(r.seed, m.name)%uint64(len(r.busy))]
		busy.Lock()
		r.mu.Lock()
		same := r.get(m.name) == m
		r.mu.Unlock()
		if same && r.s.o.Backend.Rows().Keep(ctx, event.ShelfRow{Shelf: event.ShelfRetained, Key: m.name}) == nil {
			r.mu.Lock()
			r.cut(m.name)
			r.mu.Unlock()
		}
		busy.Unlock()
	}
}

// count is how many there are.
func (r *retained) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names
}
