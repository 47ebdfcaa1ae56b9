package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// A subscription that is removed takes what it has not delivered with it, unless Spec.Keep names it: then all that
// becomes dead letters before the commit that removes it. Each batch is one commit with the rows and the cursor that
// it is taken from, so that a router which is killed in between, or a plan that fails after all, has every event
// either here or there. The subscription ends where it stood when the work on it began: what is published after that is
// not its any more.

// Bounds of a commit of what is kept.
const (
	keepBatch = 512
	keepBytes = 1 << 20
)

// errRemoved is what the dead letters of a removed subscription say.
var errRemoved = errors.New("the subscription was removed, and what it had not delivered was kept")

// keepGone makes dead letters of what the subscriptions that go, and are to be kept, have not delivered.
func (e *Engine) keepGone(ctx context.Context, c *change, spec Spec) error {
	// What a function half still puts out comes before its delivery half is looked at.
	slices.SortFunc(c.gone, func(a, b *subscription) int { return strings.Compare(a.key, b.key) })
	var all []salvage
	var errs []error
	for _, s := range c.gone {
		if !slices.Contains(spec.Keep, s.name) {
			continue
		}
		t := c.next.topics[s.config.Load().DeadLetter]
		if t == nil || slices.Contains(c.dropped, t) {
			errs = append(errs, event.Bad(event.ErrConflict, "subscriptions."+s.name, "has no dead-letter topic to move what it has not delivered to: give it one with `deadLetter: NAME` first, or let its events go with it"))
			continue
		}
		all = append(all, salvage{s: s, to: t, told: spec.Kept})
	}
	if len(errs) > 0 { // nothing of the others is moved for a change that is refused
		return errors.Join(errs...)
	}
	for i := range all {
		if err := all[i].run(ctx); err != nil {
			return event.At("subscriptions."+all[i].s.name, fmt.Errorf("keeping what it has not delivered: %w", err))
		}
	}
	return nil
}

// salvage is the work on one subscription. It holds the subscription's commits.
type salvage struct {
	s    *subscription
	to   *topic
	told func(subscription string, events int)

	parts []keptPart
	size  size            // of the rows that are left
	next  size            // once the batch is through
	done  map[string]bool // keys of rows that were delivered and only wait to be deleted

	batch storage.Batch
	n     int
	bytes int
}

// keptPart is what a cursor row says, as far as the work has come.
type keptPart struct {
	read, end event.Offset // what lies from read to end is not looked at
	out       []event.Offset
	row       bool // the store holds it
}

func (k *salvage) run(ctx context.Context) error {
	s := k.s
	s.commits.Lock()
	defer s.commits.Unlock()
	if s.gone {
		return nil
	}
	k.begin()
	err := k.rows(ctx, tableParked)
	if err == nil {
		err = k.rows(ctx, tableLanes)
	}
	for i := range k.parts {
		if err == nil {
			err = k.log(ctx, i)
		}
	}
	k.end(context.WithoutCancel(ctx))
	return err
}

// begin takes the subscription off the feed and notes where it stands. Nothing is taken of it until end; what is in
// hand by then is void, and is kept or done again.
func (k *salvage) begin() {
	s := k.s
	k.parts, k.done = make([]keptPart, len(s.cursors)), map[string]bool{}
	for i, p := range s.topic.parts {
		p.mu.Lock() // what is live and what was handed on agree
		s.mu.Lock()
		s.seeking = true
		c := s.cursors[i]
		c.read, c.attached = c.reach(p), false
		k.parts[i] = keptPart{read: c.read, end: p.log.Bounds().Next, row: c.hasRow}
		for _, m := range c.out.list[c.out.head:] {
			if !m.done {
				k.parts[i].out = append(k.parts[i].out, m.off)
			}
		}
		s.touch(c)
		s.mu.Unlock()
		p.mu.Unlock()
	}
	s.mu.Lock()
	k.size, k.next = s.parked.size, s.parked.size
	for _, c := range s.parked.cleared {
		k.done[c.row.keyAt(s.serial, c.pos)] = true
	}
	s.mu.Unlock()
}

// end lets the subscription go on from what is left, as after a restart.
func (k *salvage) end(ctx context.Context) {
	s := k.s
	left := rowsLeft{size: k.size}
	err := s.e.store.Scan(ctx, tableLanes, key32(s.serial), key32(s.serial+1), func(key, v []byte) error {
		hash, _, _ := splitLaneKey(key)
		left.lanes.found(hash, len(v) > 0 && v[0] == laneMarker)
		return nil
	})
	if err != nil {
		s.e.o.Log.Error("what waits behind others of its key is not read before the next start", "subscription", s.name, "error", err)
	}
	s.mu.Lock()
	replays, replay := s.replay.rows, s.replay.row
	s.mu.Unlock()
	if replay != nil {
		// Counted anew: rows are gone, and those that were delivered and are not deleted come once more.
		if counted, err := s.countReplays(ctx, replay); err == nil {
			replays = counted
		} else {
			s.e.o.Log.Error("what waits of a replay cannot be counted: its end may not be seen before the next start", "subscription", s.name, "replay", replay.ID, "error", err)
		}
	}
	offsets := make([]event.Offset, len(k.parts))
	for i, p := range k.parts {
		offsets[i] = p.read
	}
	s.mu.Lock()
	held := s.moved(offsets, left)
	for i, c := range s.cursors {
		c.recover, c.hasRow = k.parts[i].out, k.parts[i].row // a part that the work did not reach may have none
		for _, off := range c.recover {
			c.out.add(off)
		}
		s.lanes.rereads += len(c.recover)
	}
	s.replay.rows = replays
	s.wakeReplay()
	s.goOn(held)
}

// rows keeps what waits for its next try, or behind others of its key.
func (k *salvage) rows(ctx context.Context, table storage.Table) error {
	s := k.s
	from, to := key32(s.serial), key32(s.serial+1)
	for {
		more := false
		err := s.e.store.Scan(ctx, table, from, to, func(key, v []byte) error {
			if more = k.n >= keepBatch || k.bytes >= keepBytes; more {
				return storage.ErrStop
			}
			from = append(slices.Clone(key), 0)
			k.row(table, key, v)
			return nil
		})
		if err != nil {
			return err
		}
		if len(k.batch.Ops) > 0 {
			k.batch.Ops = append(k.batch.Ops, k.next.op(s.serial))
			if err := k.commit(ctx, nil); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

// row adds one row to the batch. With what is parked goes the marker in its lane: those behind it go on if this is
// as far as the work comes.
func (k *salvage) row(table storage.Table, key, v []byte) {
	s, read := k.s, parseParked
	if table == tableLanes {
		read = parseLaneRow
	}
	k.batch.Ops = append(k.batch.Ops, del(table, slices.Clone(key)))
	if table == tableLanes && len(v) > 0 && v[0] == laneMarker {
		return // its row was not there
	}
	k.next.count--
	k.next.bytes -= int64(len(v))
	p, rec, err := read(key, v)
	if err != nil {
		s.e.o.Log.Error("a parked event cannot be read and is not kept", "subscription", s.name, "error", err)
		return
	}
	k.batch.Ops = p.drop(k.batch.Ops, s.serial, rec.Position())
	if !k.done[string(key)] {
		k.letter(item{rec: rec, parked: p, attempt: p.attempt})
	}
}

// letter adds the dead letter of one event to the batch.
func (k *salvage) letter(it item) {
	st := k.s.bury(k.to, it, failure{reason: "removed", err: errRemoved, made: k.s.config.Load(), untried: true})
	for _, o := range st.outputs {
		k.s.e.appendTo(&k.batch, o.topic, storage.Entry{Event: o.event})
	}
	k.n++
	k.bytes += len(it.rec)
}

// log keeps what is in hand of one partition, and what matches of the rest.
func (k *salvage) log(ctx context.Context, part int) error {
	s := k.s
	log, program := s.topic.parts[part].log, s.config.Load().Program
	at := k.parts[part]
	from := at.read
	if len(at.out) > 0 {
		from = at.out[0]
	}
	var scratch filters.Scratch
	var blocks []*storage.Block
	for from < at.end {
		var err error
		blocks, err = log.Read(ctx, from, feedBytes, blocks[:0])
		var trimmed *storage.TrimmedError
		switch {
		case errors.As(err, &trimmed): // lost to the ring, as it would have been
			from = trimmed.Head
			continue
		case err != nil:
			return err
		case len(blocks) == 0:
			from = at.end
		}
		for _, b := range blocks {
			for rest := event.Record(b.Records); len(rest) > 0; {
				rec := rest[:rest.Len():rest.Len()]
				rest = rest[len(rec):]
				off := rec.Offset()
				if off < from || off >= at.end {
					continue
				}
				from = off + 1
				if _, out := slices.BinarySearch(at.out, off); !out && (off < at.read || !program.Match(rec, &scratch)) {
					continue
				}
				k.letter(item{rec: rec, attempt: 0})
				if k.n >= keepBatch || k.bytes >= keepBytes {
					if err := k.passed(ctx, part, from); err != nil {
						return err
					}
				}
			}
			from = max(from, min(b.End(), at.end))
		}
		clear(blocks)
	}
	return k.passed(ctx, part, max(from, at.end))
}

// passed commits the batch with the row of a cursor that has come to an offset.
func (k *salvage) passed(ctx context.Context, part int, off event.Offset) error {
	p := &k.parts[part]
	next := keptPart{read: max(p.read, off), end: p.end, row: true}
	i, _ := slices.BinarySearch(p.out, off)
	next.out = p.out[i:]
	var row cursor
	for _, o := range next.out {
		row.out.add(o)
	}
	op := put(tableCursors, key32x2(k.s.serial, uint32(part)), row.appendRow(nil, next.read))
	return k.commit(ctx, func() { *p = next }, op)
}

// commit writes the batch; then is called once it is through. A batch that fails leaves everything as it was.
func (k *salvage) commit(ctx context.Context, then func(), ops ...storage.Op) error {
	s, n, b := k.s, k.n, k.batch
	b.Ops = append(b.Ops, ops...)
	k.batch, k.n, k.bytes = storage.Batch{}, 0, 0
	if err := s.e.store.Commit(ctx, &b); err != nil {
		return err
	}
	k.size = k.next
	if then != nil {
		then()
	}
	if n == 0 {
		return nil
	}
	s.e.uncounted.add(k.to)
	s.mu.Lock()
	s.c.DeadLettered += uint64(n)
	s.mu.Unlock()
	for range n {
		s.e.o.Observer.DeadLettered(strings.Clone(s.name), "removed")
	}
	if k.told != nil {
		k.told(s.name, n)
	}
	return nil
}
