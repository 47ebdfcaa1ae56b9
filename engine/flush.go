package engine

import (
	"context"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// dirtySet gathers the subscriptions whose cursors differ from the store.
type dirtySet struct {
	mu   sync.Mutex
	subs []*subscription
}

func (d *dirtySet) add(s *subscription) {
	d.mu.Lock()
	d.subs = append(d.subs, s)
	d.mu.Unlock()
}

func (d *dirtySet) take() []*subscription {
	d.mu.Lock()
	defer d.mu.Unlock()
	subs := d.subs
	d.subs = nil
	return subs
}

// trimEvery is how often workers without work are sent home.
const trimEvery = 10 * time.Second

// flushLoop writes what was settled, about every Options.Flush.
func (e *Engine) flushLoop(ctx context.Context) {
	ticker := time.NewTicker(e.o.Flush)
	defer ticker.Stop()
	lastTrim, failing := e.now(), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := e.flush(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			e.o.Log.Warn("cursors cannot be written now; a restart would deliver again what they cover", "error", err)
		}
		failing = err != nil
		if now := e.now(); now.Sub(lastTrim) > trimEvery {
			lastTrim = now
			for _, s := range e.plan.Load().subs {
				s.trim()
				s.watchLosses()
				s.refresh()
			}
			e.choices.rest(ctx, e, now.Add(-chosenRest))
		}
	}
}

// folded is a subscription whose rows are in a flush; its commits lock is held until the flush is written.
type folded struct {
	s       *subscription
	rows    []rowChange
	cleared []cleared
	lost    uint64 // Loss.Events as it is written
}

type rowChange struct {
	c   *cursor
	has bool // afterwards
}

// flush writes in one commit, for each partition, a checkpoint that covers every subscription with nothing
// outstanding, and a row of its own for each of the others. Subscriptions that nothing matched since the
// last flush cost nothing, however many they are.
func (e *Engine) flush(ctx context.Context) error {
	e.flushing.Lock() // what one trims the next must find committed
	defer e.flushing.Unlock()
	ops := e.trimTraces(ctx, e.plan.Load(), nil) // it reads the disk: before any subscription is held up
	dirty := e.dirty.take()
	fold := make(map[*subscription]*folded, len(dirty))
	skipped := map[*subscription]bool{}
	var order []*folded
	for _, s := range dirty {
		// A subscription whose settlement is under way writes its own rows; it comes next time.
		if s.commits.TryLock() {
			f := &folded{s: s}
			fold[s] = f
			order = append(order, f)
			s.mu.Lock()
			s.dirty = false // what changes from here on counts for the next flush as well
			s.mu.Unlock()
		} else {
			skipped[s] = true
			e.dirty.add(s)
		}
	}
	var moved []*partition
	plan := e.plan.Load()
	for _, t := range plan.topics {
		for _, p := range t.parts {
			ops, moved = e.flushPartition(p, fold, skipped, ops, moved)
		}
	}
	for _, f := range order {
		ops = f.fold(ops, plan)
	}
	ops, litter := e.replies.sweep(e.now().UnixNano(), ops)
	ops = e.traces.take(dirty, plan.revision, e.now().UnixNano(), ops)
	var err error
	if len(ops) > 0 {
		err = e.store.Commit(ctx, &storage.Batch{Ops: ops})
	}
	e.replies.swept(litter, err)
	e.traces.written(err)
	for _, f := range order {
		f.end(err)
	}
	for _, p := range moved {
		p.mu.Lock()
		p.unsaved = err != nil
		p.mu.Unlock()
	}
	for _, t := range plan.topics {
		e.refloor(plan, t)
	}
	return err
}

// flushPartition holds the reader off for a moment, so that what is live and what was handed on agree.
func (e *Engine) flushPartition(p *partition, fold map[*subscription]*folded, skipped map[*subscription]bool, ops []storage.Op, moved []*partition) ([]storage.Op, []*partition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := p.live.Load()
	checkpoint := live
	if subs := p.feeds.Load().subs; len(skipped) > 0 || live != p.saved || len(fold) > 0 {
		for _, s := range subs {
			if fold[s] == nil && (skipped[s] || s.isDirty()) {
				// It has something outstanding that no row tells of yet: the checkpoint must not pass it.
				checkpoint = min(checkpoint, max(s.watermarkUnlessRow(p, live), p.saved))
			} // any other is covered by the checkpoint, by its row as it stands, or by the row that follows
		}
		for _, s := range subs {
			if f := fold[s]; f != nil {
				ops = f.row(p, live, checkpoint, ops)
			}
		}
	}
	if checkpoint != p.saved || p.unsaved {
		p.saved, p.unsaved = checkpoint, true
		ops = append(ops, put(tableCheckpoints, key32x2(p.id.Topic, p.id.Partition), be.AppendUint64(nil, checkpoint)))
		moved = append(moved, p)
	}
	return ops, moved
}

func (s *subscription) isDirty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirty
}

func (s *subscription) watermarkUnlessRow(p *partition, live event.Offset) event.Offset {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[p.id.Partition]
	switch {
	case c.hasRow:
		return live
	case c.out.live > 0:
		return c.out.list[c.out.head].off
	}
	return c.reach(p)
}

// row adds the write or the removal of a cursor's row. Without one the cursor is the checkpoint: if that is
// held back, a row keeps the subscription from doing again what it has done since.
func (f *folded) row(p *partition, live, checkpoint event.Offset, ops []storage.Op) []storage.Op {
	s := f.s
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[p.id.Partition]
	if !c.dirty {
		return ops
	}
	c.dirty = false
	key := key32x2(s.serial, p.id.Partition)
	if c.attached && c.out.live == 0 && c.read <= live && checkpoint == live {
		if c.hasRow {
			ops = append(ops, del(tableCursors, key))
		}
		f.rows = append(f.rows, rowChange{c, false})
		return ops
	}
	f.rows = append(f.rows, rowChange{c, true})
	return append(ops, put(tableCursors, key, c.appendRow(nil, c.reach(p))))
}

// fold adds what is not of one partition: parked rows that were delivered.
func (f *folded) fold(ops []storage.Op, plan *Plan) []storage.Op {
	s := f.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if plan.subs[s.key] != s {
		return ops // removed: its rows are gone and must stay so
	}
	ops, f.lost = s.appendLoss(ops), s.row.Loss.Events
	f.cleared, s.parked.cleared = s.parked.cleared, nil
	for _, c := range f.cleared {
		ops = c.row.drop(ops, s.serial, c.pos)
		s.parked.count--
		s.parked.bytes -= c.row.size
	}
	if len(f.cleared) > 0 {
		ops = append(ops, s.parked.op(s.serial))
	}
	return ops
}

// end takes note of what the flush came to.
func (f *folded) end(err error) {
	s := f.s
	s.mu.Lock()
	switch {
	case err == nil:
		s.losing.stored = max(s.losing.stored, f.lost)
	case f.lost > s.losing.stored:
		s.soil()
	}
	for _, r := range f.rows {
		if err != nil {
			s.touch(r.c)
		} else {
			r.c.hasRow = r.has
		}
	}
	for _, c := range f.cleared {
		if err != nil {
			s.parked.count++
			s.parked.bytes += c.row.size
			s.parked.cleared = append(s.parked.cleared, c)
			s.soil()
		} else {
			s.parked.forget(c.row.keyAt(s.serial, c.pos))
		}
	}
	if len(f.cleared) > 0 {
		s.room.Broadcast()
		s.wakeReplay()
	}
	s.mu.Unlock()
	s.commits.Unlock()
}
