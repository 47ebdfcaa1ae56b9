package mqtt

import (
	"context"
	"errors"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

// A batch is what a connection has sent and what is stored and answered together. One is gathered while another is stored;
// its events borrow its memory.
type batch struct {
	arena  []byte // of the packets
	held   int    // bytes of packets in arena or in memory of their own
	large  int    // bytes that room was reserved for
	items  []item
	evs    []event.Event // of the items that have one
	topics []string      // of the router that they go to

	pos    []event.Position
	errs   []error
	sorted []event.Event // evs by topic, where there are several
	place  []int         // of evs in sorted

	pk packets.Packet // the one that is read or written
	in intake
}

// An item is something to be answered, in its turn.
type item struct {
	err     error
	in      *received // of QoS 2
	name    string    // that a message was published under
	id      uint16
	ev      int32 // its event's place in evs; -1: none
	topic   int32 // its place in topics
	qos     byte
	release bool // PUBREL, else PUBLISH
	retain  bool
	empty   bool // the payload was
}

func newBatchPool() *sync.Pool { return &sync.Pool{New: func() any { return new(batch) }} }

// full reports whether nothing more is to go into b.
func (b *batch) full() bool { return len(b.items) >= batchMessages || b.held >= batchBytes }

// keep returns body in memory that is as long there as b is not recycled; with room, which is what is reserved for it, it is
// body's own already.
func (b *batch) keep(body []byte, room int) []byte {
	b.held += len(body)
	if room > 0 {
		b.large += room
		return body
	}
	from := len(b.arena)
	b.arena = append(b.arena, body...) // what moves stays where it was for those who borrow it
	return b.arena[from:len(b.arena):len(b.arena)]
}

// next is room for another event, zero but for memory that it may use again.
func (b *batch) next() *event.Event {
	n := len(b.evs)
	if n < cap(b.evs) {
		b.evs = b.evs[:n+1]
	} else {
		b.evs = append(b.evs, event.Event{})
	}
	ev := &b.evs[n]
	*ev = event.Event{Extensions: ev.Extensions[:0]}
	return ev
}

// topic is a topic's place in topics.
func (b *batch) topic(name string) int32 {
	for i := len(b.topics) - 1; i >= 0; i-- {
		if b.topics[i] == name {
			return int32(i)
		}
	}
	b.topics = append(b.topics, name)
	return int32(len(b.topics) - 1)
}

// packet is what the next packet is read into.
func (b *batch) packet() *packets.Packet {
	user := b.pk.Properties.User
	clear(user)
	b.pk = packets.Packet{}
	b.pk.Properties.User = user[:0]
	return &b.pk
}

// recycle lets go of everything that b borrows, and of memory that only a large batch needs.
func (b *batch) recycle(p *sync.Pool) {
	b.packet()
	for i := range b.evs {
		clear(b.evs[i].Extensions)
		b.evs[i] = event.Event{Extensions: b.evs[i].Extensions[:0]}
	}
	clear(b.items)
	clear(b.topics)
	clear(b.errs)
	clear(b.sorted)
	b.in.reset()
	if cap(b.arena) > 128<<10 {
		b.arena = nil
	}
	b.arena, b.items, b.evs, b.topics, b.pos, b.errs, b.sorted, b.place = b.arena[:0], b.items[:0], b.evs[:0], b.topics[:0], b.pos[:0], b.errs[:0], b.sorted[:0], b.place[:0]
	b.held, b.large = 0, 0
	p.Put(b)
}

// store publishes the events, each topic's in one go and in the order in which they came, and leaves in items what became of
// each. Those of several topics are stored at once.
func (b *batch) store(ctx context.Context, backend Backend) {
	n := len(b.evs)
	if n == 0 {
		return
	}
	b.pos = append(b.pos[:0], make([]event.Position, n)...)
	b.errs = append(b.errs[:0], make([]error, n)...)
	evs := b.evs
	if len(b.topics) == 1 {
		storeAll(ctx, backend, b.topics[0], evs, b.pos, b.errs)
	} else {
		evs = b.sort()
		var all sync.WaitGroup
		for t, from := 0, 0; t < len(b.topics); t++ {
			to := from
			for to < n && evs[to].Topic == b.topics[t] {
				to++
			}
			topic, evs, pos, errs := b.topics[t], evs[from:to], b.pos[from:to], b.errs[from:to]
			all.Go(func() { storeAll(ctx, backend, topic, evs, pos, errs) })
			from = to
		}
		all.Wait()
	}
	for i := range b.items {
		x := &b.items[i]
		if x.ev < 0 {
			continue
		}
		at := int(x.ev)
		if len(b.topics) > 1 {
			at = b.place[at]
			x.ev = int32(at)
		}
		if x.err = b.errs[at]; x.in != nil && !x.in.stored && errors.Is(x.err, event.ErrConflict) && evs[at].ID == x.in.event {
			x.err = nil // only this message has this id: what differs is what depends on when it came
		}
	}
}

// sort puts the events in the order of topics, each in its Topic's.
func (b *batch) sort() []event.Event {
	b.place = append(b.place[:0], make([]int, len(b.evs))...)
	b.sorted = b.sorted[:0]
	for t := range b.topics {
		for i := range b.items {
			if x := &b.items[i]; x.ev >= 0 && int(x.topic) == t {
				b.place[x.ev] = len(b.sorted)
				b.sorted = append(b.sorted, b.evs[x.ev])
				b.sorted[len(b.sorted)-1].Topic = b.topics[t]
			}
		}
	}
	return b.sorted
}

// stored is the event of an item, where it lies and its topic.
func (b *batch) stored(x *item) (*event.Event, event.Position, string) {
	evs := b.evs
	if len(b.topics) > 1 {
		evs = b.sorted
	}
	return &evs[x.ev], b.pos[x.ev], b.topics[x.topic]
}

// storeAll stores events, and where one of them is at fault all that are not: of halves, each for itself.
func storeAll(ctx context.Context, backend Backend, topic string, evs []event.Event, pos []event.Position, errs []error) {
	err := backend.Publish(ctx, topic, evs, pos)
	switch {
	case err == nil:
	case len(evs) > 1 && ofOne(err):
		half := len(evs) / 2
		storeAll(ctx, backend, topic, evs[:half], pos[:half], errs[:half])
		storeAll(ctx, backend, topic, evs[half:], pos[half:], errs[half:])
	default:
		for i := range errs {
			errs[i] = err
		}
	}
}

// ofOne reports whether an error of several events may be that of one of them only.
func ofOne(err error) bool {
	for _, kind := range [...]error{event.ErrInvalid, event.ErrTooLarge, event.ErrSchema, event.ErrConflict} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
