package engine

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// What another router forwards is taken once, however long the link was down: beside the dedupe window, which forgets, a
// row tells how far each of those who forward has come, written in the commit that stores his events.

// forwarding keeps two requests of one who forwards from passing each other.
type forwarding struct{ stripes [64]sync.Mutex }

// maxForwarders bounds the rows of a topic: the one that was written longest ago goes.
const maxForwarders = 1024

// Name is what this router is called in lists of the routers that an event has passed. Of two that were restored from one
// backup each has its own.
func (e *Engine) Name() string { return nameOf("name", e.leaseKey) }

// Origin is what this router is called where it forwards to. One that was restored from a backup goes on with it, and what it
// sends again is known as such.
func (e *Engine) Origin() string { return nameOf("origin", e.secret) }

func nameOf(what string, secret [32]byte) string {
	sum := sha256.Sum256(append([]byte("millrace bridge "+what+"\x00"), secret[:]...))
	return hex.EncodeToString(sum[:6])
}

// PublishForwarded is Publish of events that another router forwards. Those that it has forwarded before, and those that
// have been here, are dropped; pos is the zero position for them.
func (e *Engine) PublishForwarded(ctx context.Context, topic string, evs []event.Event, pos []event.Position, from event.Forwarded) (event.Taken, error) {
	var taken event.Taken
	if len(evs) > e.o.Limits.Events {
		return taken, event.Bad(event.ErrTooLarge, "events", fmt.Sprintf("%d events in one request; the limit is %d: split it", len(evs), e.o.Limits.Events))
	}
	t, err := e.open(ctx, topic)
	if err != nil {
		return taken, err
	}
	key := forwardKey(t, from.By)
	stripe := &e.forwarding.stripes[key[4]%uint8(len(e.forwarding.stripes))]
	stripe.Lock()
	defer stripe.Unlock()
	row, err := e.store.Load(ctx, tableForwarded, key)
	if err != nil {
		return taken, fmt.Errorf("store: %w", err)
	}
	marks := parseForward(row, from.Line)
	name := e.Name()
	keep := make([]int, 0, len(evs))
	for i := range evs {
		at := from.At[i]
		pos[i] = event.Position{}
		if next, known := marks[at.Partition]; known && at.Offset < next {
			taken.Repeats++
			continue
		}
		marks[at.Partition] = at.Offset + 1
		if loops(&evs[i], name) {
			taken.Loops++
			continue
		}
		keep = append(keep, i)
	}
	if taken.Repeats == len(evs) {
		return taken, nil
	}
	ops := []storage.Op{put(tableForwarded, key, appendForward(nil, from.Line, e.now().Unix(), marks))}
	if row == nil {
		if ops, err = e.makeRoomForForwarder(ctx, t, ops); err != nil {
			return taken, err
		}
	}
	_, err = e.publishKept(ctx, t, evs, keep, pos, ops)
	return taken, err
}

func loops(ev *event.Event, name string) bool {
	for i := range ev.Extensions {
		if a := &ev.Extensions[i]; a.Name == event.ViaAttribute {
			return event.Loops(a.Value, name)
		}
	}
	return false
}

// open returns a topic that clients may write to.
func (e *Engine) open(ctx context.Context, name string) (*topic, error) {
	if e.draining.Load() {
		return nil, fmt.Errorf("the router is shutting down: %w", event.ErrUnavailable)
	}
	if err := e.sealed(name); err != nil {
		return nil, err
	}
	if t := e.plan.Load().topics[name]; t != nil {
		return t, nil
	}
	return e.lookup(ctx, name)
}

// publishKept stores those of evs that keep lists, and ops in the same commit. It returns how many the dedupe window had.
func (e *Engine) publishKept(ctx context.Context, t *topic, evs []event.Event, keep []int, pos []event.Position, ops []storage.Op) (repeats int, err error) {
	p := publications.Get().(*publication)
	defer func() {
		p.batch.Ops = nil
		p.recycle()
	}()
	e.turn.Add(1)
	bytes := 0
	for _, i := range keep {
		if err := e.admit(t, p, &evs[i]); err != nil {
			return 0, event.At(fmt.Sprintf("events[%d]", i), err)
		}
		bytes += len(evs[i].Data)
	}
	p.batch.Ops = ops
	if err := e.store.Commit(ctx, &p.batch); err != nil {
		return 0, p.explainKept(err, keep)
	}
	for n, w := range p.where {
		entry := &p.batch.Appends[w.append].Entries[w.entry]
		if pos[keep[n]] = entry.Position; entry.Repeat {
			repeats++
		}
	}
	if len(keep) > 0 {
		e.o.Observer.Published(t.name, len(keep), bytes)
	}
	return repeats, nil
}

// explainKept is explain with the indexes that the caller knows.
func (p *publication) explainKept(err error, keep []int) error {
	var c *storage.ConflictError
	if errors.As(err, &c) {
		for n, w := range p.where {
			if w.append == c.Append && w.entry == c.Entry {
				return event.At(fmt.Sprintf("events[%d]", keep[n]), p.explain(err, 1))
			}
		}
	}
	return p.explain(err, len(keep))
}

// forwardKey is the topic's incarnation and a hash of who forwards.
func forwardKey(t *topic, by string) []byte {
	sum := sha256.Sum256([]byte(by))
	return append(key32(t.serial), sum[:16]...)
}

// A row of who forwards: seconds i64 of when it was written, uvarint-sized line, then for each partition uvarint number and
// uvarint offset of the first that was not forwarded.
func appendForward(b []byte, line string, now int64, marks map[event.Partition]event.Offset) []byte {
	b = be.AppendUint64(b, uint64(now))
	b = append(binary.AppendUvarint(b, uint64(len(line))), line...)
	for p, off := range marks {
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(p)), off)
	}
	return b
}

// parseForward returns how far a row has come in a line; of another line it says nothing.
func parseForward(row []byte, line string) map[event.Partition]event.Offset {
	marks := map[event.Partition]event.Offset{}
	if len(row) < 8 {
		return marks
	}
	r := rowReader{b: row[8:]}
	if string(r.sized()) != line {
		return marks
	}
	for len(r.b) > 0 {
		p, off := r.uvarint(), r.uvarint()
		if !r.bad {
			marks[event.Partition(p)] = off
		}
	}
	return marks
}

// makeRoomForForwarder adds the removal of the oldest row of a topic that has as many as it may.
func (e *Engine) makeRoomForForwarder(ctx context.Context, t *topic, ops []storage.Op) ([]storage.Op, error) {
	n, oldest, at := 0, "", uint64(0)
	err := e.store.Scan(ctx, tableForwarded, key32(t.serial), key32(t.serial+1), func(k, v []byte) error {
		n++
		if len(v) >= 8 && (oldest == "" || be.Uint64(v) < at) {
			oldest, at = string(k), be.Uint64(v)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if n >= maxForwarders {
		ops = append(ops, del(tableForwarded, []byte(oldest)))
	}
	return ops, nil
}
