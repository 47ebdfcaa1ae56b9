package pebblestore

import (
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// blockSize is at what size of records a block is cut. Larger ones gain nothing that can be measured, and
// Pebble looks for a flipped bit in a corrupt block in time that grows with its size: 4 s for this one.
const blockSize = 256 << 10

// A writer builds one Pebble batch at a time for the committer, which owns it.
type writer struct {
	s     *Store
	batch *pebble.Batch
	g     *group
	now   int64
	key   []byte // scratch
	val   []byte
	end   []byte
}

func (w *writer) set() { w.must(w.batch.Set(w.key, w.val, nil)) }

// must notes an error of adding to a batch in memory: it has none but for a closed database.
func (w *writer) must(err error) {
	if err != nil {
		w.s.fail("a write could not be prepared: " + err.Error())
	}
}

func (w *writer) deleteRange(kind byte, id storage.LogID, from, to event.Offset) {
	w.key = appendKey(w.key[:0], kind, id, from)
	w.end = appendKey(w.end[:0], kind, id, to)
	w.must(w.batch.DeleteRange(w.key, w.end, nil))
}

// putLogRow writes where a log's reading starts. The log's mu is held.
func (w *writer) putLogRow(l *plog) {
	w.key = appendLogKey(w.key[:0], kindLog, l.id)
	w.val = logRow{l.head, l.next, l.last, l.dedupe.from}.append(w.val[:0])
	w.set()
}

// take adds a caller's batch to the group, or refuses it without a trace.
func (w *writer) take(r *request) error {
	b := r.b
	if err := w.s.space.admit(r.total, len(b.Appends) == 0); err != nil {
		return err
	}
	for i := range b.Appends {
		if err := w.check(r, i); err != nil {
			w.undo(r, i)
			return err
		}
	}
	for i := range b.Appends {
		if err := w.append(r.logs[i], &b.Appends[i]); err != nil {
			return err
		}
	}
	for i := range b.Ops {
		w.op(&b.Ops[i])
	}
	return nil
}

// check gives the entries of an append their positions, tells repeats, and refuses conflicts and full logs.
func (w *writer) check(r *request, i int) error {
	a, l, size := &r.b.Appends[i], r.logs[i], r.sizes[i]
	if l == nil || l.dropped {
		return fmt.Errorf("append %d: log %s: %w: it is not open", i, logName(a.Log), event.ErrNotFound)
	}
	oldest := w.now - int64(l.opts.Dedupe)
	received := max(w.now, l.last)
	for j := range a.Entries {
		e := &a.Entries[j]
		e.Repeat = false
		if e.Client && l.opts.Dedupe > 0 {
			if v, ok := l.dedupe.find(e.ID, oldest); ok {
				e.Position = event.Position{Partition: a.Log.Partition, Offset: v.offset}
				if v.content != e.Content {
					return &storage.ConflictError{Append: i, Entry: j, Position: e.Position}
				}
				e.Repeat = true
				size -= int64(e.Event.RecordSize())
				continue
			}
			l.dedupe.add(e.ID, dedupeValue{e.Content, l.tent, received}, &w.s.dedupeHeld)
		}
		e.Position = event.Position{Partition: a.Log.Partition, Offset: l.tent}
		l.tent++
	}
	l.want += size
	if n := l.tent - l.next; n > 0 && l.opts.Reject {
		return l.makeRoom(w, l.want, n)
	}
	return nil
}

// undo takes back what check did for appends up to and including last.
func (w *writer) undo(r *request, last int) {
	for _, l := range r.logs[:last+1] {
		if l != nil {
			l.dedupe.undo(l.next, &w.s.dedupeHeld)
			l.tent, l.want = l.next, 0
		}
	}
}

// append encodes what check has placed.
func (w *writer) append(l *plog, a *storage.Append) error {
	var g *logGroup
	for j := range a.Entries {
		e := &a.Entries[j]
		if e.Repeat {
			continue
		}
		if g == nil {
			g = w.part(l)
			if l.want > 0 && !l.opts.Reject {
				// A log that drops its oldest never refuses.
				if err := l.makeRoom(w, l.want, l.tent-l.next); err != nil {
					return err
				}
			}
			l.want = 0
		}
		if g.count > 0 && (w.s.o.keyPerEvent || len(g.buf) >= l.cutAt || len(g.buf)+len(e.Event.Data) > l.cutAt+l.cutAt/4) {
			w.cut(g)
		}
		if g.count == 0 {
			g.first, g.begin = e.Position.Offset, max(w.now, l.last)
			size := min(max(int(l.coming), 512), l.cutAt+l.cutAt/4)
			if w.s.o.keyPerEvent {
				size = e.Event.RecordSize()
			}
			g.buf = append(make([]byte, 0, blockHeader+size), blockPad[:]...)
		}
		at := len(g.buf)
		l.last = max(w.now, l.last)
		g.buf = e.Event.AppendRecord(g.buf)
		event.Record(g.buf[at:]).SetPlace(e.Position, l.last)
		n := int64(len(g.buf) - at)
		l.coming -= n
		l.buffered += n
		g.count++
		l.next++
		w.g.events++
		w.g.bytes += n
		if e.Client && l.opts.Dedupe > 0 {
			if len(g.ids) == 0 {
				g.idBase = e.Position.Offset
				g.ids = le.AppendUint64(g.ids, uint64(l.last))
			}
			g.ids = append(g.ids, e.ID[:]...)
			g.ids = le.AppendUint64(g.ids, e.Content)
			g.ids = le.AppendUint32(g.ids, uint32(e.Position.Offset-g.idBase))
		}
	}
	return nil
}

// blockPad is room for a block's header.
var blockPad [blockHeader]byte

// part is the log's part of the group.
func (w *writer) part(l *plog) *logGroup {
	if l.group == nil {
		if n := len(w.g.spare); n > 0 {
			l.group, w.g.spare = w.g.spare[n-1], w.g.spare[:n-1]
		} else {
			l.group = &logGroup{}
		}
		l.group.log, l.group.ids = l, l.group.ids[:0]
		w.g.logs = append(w.g.logs, l.group)
		l.dedupe.expire(w.now-int64(l.opts.Dedupe), &w.s.dedupeHeld)
	}
	return l.group
}

// cut writes the block being built.
func (w *writer) cut(g *logGroup) {
	if g.count == 0 {
		return
	}
	l := g.log
	le.PutUint32(g.buf, uint32(g.count))
	le.PutUint64(g.buf[8:], uint64(l.last))
	w.key = appendKey(w.key[:0], kindBlock, l.id, g.first)
	w.must(w.batch.Set(w.key, g.buf, nil))
	n := len(g.buf)
	b := &storage.Block{First: g.first, Count: g.count, Records: g.buf[blockHeader:n:n]}
	g.blocks = append(g.blocks, b)
	l.mu.Lock()
	l.buffered -= int64(len(b.Records))
	l.grow(w, g.first, g.count, int64(len(b.Records)), g.begin, l.last)
	l.mu.Unlock()
	g.buf, g.count = nil, 0
}

// finish writes what the group's logs have under construction.
func (w *writer) finish() {
	for _, g := range w.g.logs {
		w.cut(g)
		l := g.log
		if len(g.ids) > 0 {
			w.key = appendKey(w.key[:0], kindDedupe, l.id, g.idBase)
			w.must(w.batch.Set(w.key, g.ids, nil))
			l.dedupe.mark(g.idBase, w.now, l.opts.Dedupe)
			g.ids = g.ids[:0]
		}
		g.next, g.last = l.next, l.last
		l.coming = 0
	}
	w.s.boundDedupe()
}

func (w *writer) op(o *storage.Op) {
	w.key = appendTableKey(w.key[:0], o.Table, o.Key)
	switch o.Kind {
	case storage.Put:
		w.must(w.batch.Set(w.key, o.Value, nil))
	case storage.Delete:
		w.must(w.batch.Delete(w.key, nil))
	case storage.DeleteRange:
		if o.Value == nil {
			w.end = append(w.end[:0], kindTable+byte(o.Table)+1)
		} else {
			w.end = appendTableKey(w.end[:0], o.Table, o.Value)
		}
		w.must(w.batch.DeleteRange(w.key, w.end, nil))
	}
}

// boundDedupe keeps the index within its bytes: the log with the most ids gives up its oldest, a
// hundredth at a time.
func (s *Store) boundDedupe() {
	for s.dedupeHeld.Load() > s.o.DedupeBytes {
		var most *plog
		s.eachLog(func(l *plog) {
			if most == nil || l.dedupe.len() > most.dedupe.len() {
				most = l
			}
		})
		if most == nil || most.dedupe.len() == 0 {
			return
		}
		n := most.dedupe.shorten(max(1024, most.dedupe.len()/100), &s.dedupeHeld)
		s.stats.shortened.Add(uint64(n))
	}
}

// maintain is the committer's periodic work.
func (s *Store) maintain(w *writer) error {
	s.eachLog(func(l *plog) { l.retain(w, w.now) })
	return nil
}

// watchEvery is how often a hanging write is looked for.
const watchEvery = 250 * time.Millisecond
