package mqtt

import (
	"context"
	"errors"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// An outgoing message is an event on its way to one session.
type outgoing struct {
	feed   *feed        // that it came by; nil: it is a retained one, or one that is shared
	share  *share       // that it came by
	lease  string       // of share
	topic  string       // of a retained one
	rec    event.Record // nil: it is read again before it is sent again
	name   string
	pos    event.Position
	ids    []int // subscription identifiers
	qos    byte
	retain bool

	// Under outbox.mu, of what is under way.
	prev, next *outgoing
	id         uint16
	state      state
	stored     state // what its row says; unsent: it has none
	rowed      bool  // it may have one
	flies      int64 // bytes that it counts for
	again      bool  // to be sent on this connection, where something of it was before
	counted    bool  // it takes a place of the client's receive maximum
	tried      bool
}

// state is how far a message has come that is under way (4.3).
type state byte

const (
	unsent state = iota
	sent         // PUBLISH
	heard        // PUBREC came; PUBREL has to go out, or did
	done         // QoS 2: PUBCOMP came
)

// messageCost is what a message takes beside its event, about, in bytes.
const messageCost = 256

func (m *outgoing) size() int64 { return int64(len(m.rec)) + int64(len(m.name)) + messageCost }

// row is the state that a message's row has to say before more of it goes out.
func (m *outgoing) row() state { return max(m.state, sent) }

// structured reports whether it goes out as a CloudEvent even where it came plain.
func (m *outgoing) structured(names *Names) bool {
	switch {
	case m.feed != nil:
		return m.feed.src.Load().structured(m.name)
	case m.share != nil:
		return m.share.src.structured(m.name)
	}
	for i := range names.Sources() {
		if src := &names.Sources()[i]; src.Topic == m.topic && src.Overlaps(m.name) {
			return src.structured(m.name)
		}
	}
	return false
}

// A queue is messages in order. The zero value is empty.
type queue struct {
	list []*outgoing
	head int
}

func (q *queue) len() int           { return len(q.list) - q.head }
func (q *queue) at(i int) *outgoing { return q.list[q.head+i] }
func (q *queue) push(m *outgoing)   { q.list = append(q.list, m) }

func (q *queue) pop() *outgoing {
	m := q.list[q.head]
	q.list[q.head] = nil
	q.head++
	switch {
	case q.head == len(q.list):
		// An idle session holds no room for what it may get one day.
		q.list, q.head = nil, 0
	case q.head >= 64 && q.head*2 >= len(q.list):
		q.list, q.head = append(make([]*outgoing, 0, q.len()*2), q.list[q.head:]...), 0
	}
	return m
}

// keep drops what f is false for.
func (q *queue) keep(f func(*outgoing) bool) {
	var left []*outgoing
	for i := range q.len() {
		if m := q.at(i); f(m) {
			left = append(left, m)
		}
	}
	q.list, q.head = left, 0
}

// A flight is what is under way, in the order in which it was sent first.
type flight struct {
	head, tail *outgoing
	byID       map[uint16]*outgoing
}

func (l *flight) add(m *outgoing) {
	if l.byID == nil {
		l.byID = map[uint16]*outgoing{}
	}
	l.byID[m.id] = m
	m.prev, m.next = l.tail, nil
	if l.tail != nil {
		l.tail.next = m
	} else {
		l.head = m
	}
	l.tail = m
}

func (l *flight) remove(m *outgoing) {
	if l.byID[m.id] != m {
		return
	}
	if delete(l.byID, m.id); len(l.byID) == 0 {
		l.byID = nil
	}
	if m.prev != nil {
		m.prev.next = m.next
	} else {
		l.head = m.next
	}
	if m.next != nil {
		m.next.prev = m.prev
	} else {
		l.tail = m.prev
	}
	m.prev, m.next = nil, nil
}

// load reads the event of a message that is sent again. False: it is not there any more, or has no name any more.
func (o *outbox) load(ctx context.Context, m *outgoing) (bool, error) {
	if m.rec != nil {
		return true, nil
	}
	rec, err := o.s.o.Backend.Event(ctx, m.feed.src.Load().Topic, m.pos)
	if errors.Is(err, event.ErrGone) || errors.Is(err, event.ErrNotFound) || errors.Is(err, event.ErrInvalid) {
		o.s.fan.overtaken.Add(1)
		o.s.o.Log.Warn("a message that an MQTT client has not acknowledged is not sent again: the ring has overtaken it",
			"client", o.sess.clientID, "source", m.feed.src.Load().ID, "position", m.pos.String())
		return false, nil
	}
	if err != nil {
		return false, err
	}
	name, ok := m.feed.src.Load().NameOf(nil, rec)
	if !ok {
		return false, nil
	}
	o.mu.Lock()
	in := m.feed.in
	o.mu.Unlock()
	var by match
	for _, i := range in {
		if matches(i.sub.filter, string(name)) {
			by.add(i.sub)
		}
	}
	m.rec, m.name, m.ids = append(event.Record(nil), rec...), strings.Clone(string(name)), by.ids
	m.retain = by.asPublished && madeOf(rec).retain
	return true, nil
}
