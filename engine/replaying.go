package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

const (
	replayBatch = 512              // rows of one commit, at most
	replayBytes = 1 << 20          // of their events
	replayFresh = 4 * replayBatch  // rows that nobody has tried yet, at most
	replayAhead = time.Second      // that rows with a rate are written before they are due
	replaySave  = 10 * time.Second // between two writes of how far it came where nothing matches
	replayAgain = time.Second      // after a store that refused
)

// replayAll works until no replay runs.
func (s *subscription) replayAll() {
	ctx := s.e.working()
	w := replaying{s: s}
	for w.step(ctx) {
	}
}

// replaying is the worker of a replay.
type replaying struct {
	s       *subscription
	id      string
	ask     *filters.Program // besides the subscription's own
	scratch filters.Scratch
	turn    int // the partition to read next
	blocks  []*storage.Block
	saved   time.Time // when the store last heard how far it came
}

// read is what one step has read.
type replayRead struct {
	part     int
	from, to event.Offset // looked at
	lost     uint64
	recs     []event.Record // marked; they match
}

// step does what can be done now, or waits; false if there is nothing left to do.
func (w *replaying) step(ctx context.Context) bool {
	s := w.s
	s.mu.Lock()
	row := s.replay.row
	if s.ended || ctx.Err() != nil || !row.running() {
		s.replay.works = false
		s.mu.Unlock()
		return false
	}
	held, at := s.replayHeld(row)
	done := row.left() == 0
	all := s.replay.rows[row.ID].all
	s.replay.why = held
	s.mu.Unlock()
	switch {
	case done && all <= 0:
		w.tell(ctx, s.endReplay(ctx, row.ID, event.ReplayDone, ""))
		return true
	case done || held != "":
		w.wait(ctx, at)
		return true
	}
	if err := w.prepare(row); err != nil {
		w.tell(ctx, s.endReplay(ctx, row.ID, event.ReplayFailed, err.Error()))
		return true
	}
	got, err := w.read(ctx, row)
	if err == nil {
		err = w.commit(ctx, row, got)
	}
	w.tell(ctx, err)
	return true
}

// replayHeld says why a replay stands still, "" if it does not, and when to look again, 0 for when woken. The caller
// holds s.mu.
func (s *subscription) replayHeld(row *replayRow) (why string, at int64) {
	c := s.config.Load()
	switch {
	case s.stopped():
		return "the subscription is stopped", 0
	case s.parked.count > 0 && s.parked.bytes+s.replay.need > c.Parked/2:
		return fmt.Sprintf("parked.bytes: %d bytes wait for their next try, and a replay takes no more than half of %d", s.parked.bytes, c.Parked), 0
	case s.replay.rows[row.ID].fresh > replayFresh-replayBatch:
		return "enough of it waits to be delivered", 0
	case row.Rate > 0 && row.Spread-s.e.now().UnixNano() > int64(replayAhead)/2:
		return "its rate", row.Spread - int64(replayAhead)/2
	}
	return "", 0
}

// wait waits until the worker is woken, at a time at the latest.
func (w *replaying) wait(ctx context.Context, at int64) {
	s := w.s
	s.mu.Lock()
	if at != 0 && !s.ended {
		s.e.alarms.set(&s.replay.alarm, at)
	}
	s.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-s.replay.wake:
	}
}

// tell logs what went wrong, and waits a while.
func (w *replaying) tell(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	s := w.s
	s.mu.Lock()
	ended := s.ended
	s.replay.why = err.Error()
	s.mu.Unlock()
	if ended {
		return
	}
	s.e.o.Log.Warn("a replay waits", "subscription", s.name, "error", err)
	pause(ctx, replayAgain)
}

// prepare compiles the replay's own filter, once.
func (w *replaying) prepare(row *replayRow) (err error) {
	if err := w.s.replayable(); err != nil { // the definition was changed meanwhile
		return err
	}
	if w.id == row.ID {
		return nil
	}
	if w.ask = nil; row.Filter != "" {
		if w.ask, err = filters.Compile(row.Filter); err != nil {
			return event.Invalid("filter", err.Error())
		}
	}
	w.id, w.saved = row.ID, w.s.e.now()
	return nil
}

// read reads on in one of the partitions, in turn.
func (w *replaying) read(ctx context.Context, row *replayRow) (got replayRead, err error) {
	s := w.s
	for w.turn = (w.turn + 1) % len(row.Next); row.Next[w.turn] >= row.Ends[w.turn]; w.turn = (w.turn + 1) % len(row.Next) {
	}
	got = replayRead{part: w.turn, from: row.Next[w.turn]}
	end := row.Ends[w.turn]
	got.to = got.from
	w.blocks, err = s.topic.parts[w.turn].log.Read(ctx, got.from, feedBytes, w.blocks[:0])
	defer clear(w.blocks)
	var trimmed *storage.TrimmedError
	switch {
	case errors.As(err, &trimmed):
		got.to = min(trimmed.Head, end)
		got.lost = got.to - got.from
		return got, nil
	case err != nil:
		return got, err
	case len(w.blocks) == 0:
		return got, fmt.Errorf("offset %d of topic %s, partition %d, is not there", got.from, s.topic.name, w.turn)
	}
	most := replayBatch
	if row.Rate > 0 {
		most = min(most, 1+int(row.Rate*replayAhead.Seconds()))
	}
	own, bytes := s.config.Load().Program, 0
	for _, b := range w.blocks {
		for rest := event.Record(b.Records); len(rest) > 0; {
			rec := rest[:rest.Len():rest.Len()]
			rest = rest[len(rec):]
			off := rec.Offset()
			if off < got.from || off >= end {
				continue
			}
			if len(got.recs) == most || bytes >= replayBytes {
				return got, nil
			}
			got.to = off + 1
			if own.Match(rec, &w.scratch) && w.ask.Match(rec, &w.scratch) {
				rec = marked(rec, row.ID)
				got.recs = append(got.recs, rec)
				bytes += len(rec)
			}
		}
		got.to = max(got.to, min(b.End(), end))
	}
	return got, nil
}

// marked is an event as a replay delivers it.
func marked(rec event.Record, id string) event.Record {
	var ev event.Event
	rec.Decode(&ev)
	ev.Set(event.Attr{Name: event.ReplayAttribute, Value: id})
	out := event.Record(ev.AppendRecord(nil))
	out.SetPlace(rec.Position(), rec.Received())
	return out
}

// mark marks what a function made of an item of a replay.
func (it *item) mark(ev *event.Event) {
	if it.parked != nil && it.parked.replay != "" {
		ev.Set(event.Attr{Name: event.ReplayAttribute, Value: it.parked.replay})
	}
}

// commit writes rows and how far the replay has come, as much as there is room for.
func (w *replaying) commit(ctx context.Context, row *replayRow, got replayRead) error {
	s := w.s
	s.commits.Lock()
	defer s.commits.Unlock()
	now := s.e.now()
	s.mu.Lock()
	same := s.replay.row == row && !s.gone
	size, bound := s.parked.size, s.config.Load().Parked/2
	s.mu.Unlock()
	if !same { // it was cancelled meanwhile
		return nil
	}
	next := *row
	next.Next = slices.Clone(row.Next)
	next.Lost += got.lost
	var b storage.Batch
	due, need, taken := max(now.UnixNano(), min(row.Spread, now.Add(maxSpread).UnixNano())), int64(0), replayRows{}
	first := due
	for _, rec := range got.recs {
		if row.Rate > 0 && taken.all > 0 && due > now.Add(replayAhead).UnixNano() {
			got.to = rec.Offset()
			break
		}
		p := &parkedEvent{due: due, born: due, with: row.Function, replay: row.ID}
		if err := s.place(ctx, p, rec, nil); err != nil {
			return err
		}
		ops, n := p.put(b.Ops, s.serial, rec)
		if size.count > 0 && size.bytes+n > bound {
			got.to, need = rec.Offset(), n
			break
		}
		b.Ops = ops
		size.count++
		size.bytes += n
		taken.add(p, 1)
		if row.Rate > 0 {
			due += int64(float64(time.Second) / row.Rate)
		}
	}
	next.Next[got.part] = got.to
	next.Matched += uint64(taken.all)
	next.Spread = due
	if taken.all > 0 {
		b.Ops = append(b.Ops, size.op(s.serial))
	}
	if taken.all > 0 || got.lost > 0 || now.Sub(w.saved) >= replaySave {
		op, err := s.putReplay(&next)
		if err == nil {
			b.Ops = append(b.Ops, op)
			err = s.e.store.Commit(ctx, &b)
		}
		if err != nil {
			return err
		}
		w.saved = now
	}
	if got.lost > 0 && row.Lost == 0 {
		s.e.o.Log.Warn("the ring has dropped events of a replay before it came to them; a larger retain keeps more", "subscription", s.name, "replay", row.ID,
			"topic", s.topic.name, "partition", got.part, "events", got.lost)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replay.row, s.replay.need = &next, need
	if taken.all > 0 {
		s.parked.size = size // only who holds commits changes it
		n := s.replay.rows[row.ID]
		n.all += taken.all
		n.fresh += taken.fresh
		s.c.Replayed += uint64(taken.all)
		s.dueAt(first)
	}
	return nil
}

// maxSpread bounds how far ahead a row is due: a clock that was set back must not put a replay off for long.
const maxSpread = time.Hour

// place gives a row a key that no other of the subscription has.
func (s *subscription) place(ctx context.Context, p *parkedEvent, rec event.Record, taken map[string]bool) error {
	for {
		key := p.key(s.serial, rec)
		there, err := s.e.store.Load(ctx, tableParked, []byte(key))
		if err != nil {
			return err
		}
		if there == nil && !taken[key] {
			return nil
		}
		p.due++ // the same event is parked for the same time already
	}
}
