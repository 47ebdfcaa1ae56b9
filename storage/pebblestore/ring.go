package pebblestore

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/engine/event"
)

const (
	minChunk   = 256 << 10
	maxChunk   = 16 << 20
	ringChunks = 64
)

// chunkSize is the size at which a chunk is sealed: a ring has about 64 of them, never fewer than 4.
func (l *plog) chunkSize() int64 {
	size := min(max(l.opts.Bytes/ringChunks, minChunk), maxChunk)
	return max(min(size, l.opts.Bytes/4), 4<<10)
}

// chunkFull says whether the open chunk is to be sealed.
func (l *plog) chunkFull() bool {
	c := &l.open
	return c.bytes >= l.chunkSize() ||
		l.opts.Events > 0 && c.count >= uint64(max(1, l.opts.Events/ringChunks)) ||
		l.opts.Age > 0 && c.count > 0 && l.last-c.begin >= int64(l.opts.Age)/ringChunks
}

// seal ends the open chunk and writes its row. mu is held.
func (l *plog) seal(w *writer) {
	if l.open.count == 0 {
		return
	}
	w.key = appendKey(w.key[:0], kindChunk, l.id, l.open.first)
	w.val = l.open.append(w.val[:0])
	w.set()
	l.sealed = append(l.sealed, l.open)
	l.open = chunk{}
}

// grow counts a block into the open chunk. mu is held.
func (l *plog) grow(w *writer, first event.Offset, count int, bytes int64, begin, end int64) {
	if l.open.count == 0 {
		l.open = chunk{first: first, begin: begin}
	}
	l.open.count += uint64(count)
	l.open.bytes += bytes
	l.open.end = end
	l.bytes += bytes
	if l.chunkFull() {
		l.seal(w)
	}
}

// dropWhere drops the oldest chunks as long as ok says so, the open one too, and writes where reading
// starts from now on. The deleted ranges are disjoint: each begins where the one before ended (Pebble's
// memory grows with overlapping ones, pebble#2415). It says how many chunks went.
//
// Readers are told of the new head before it is durable. A crash in between brings the old events
// back, which harms nobody; the other order would let a reader meet a hole.
func (l *plog) dropWhere(w *writer, ok func(*chunk) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	before := l.bytes
	defer func() { l.s.dropped.Add(before - l.bytes) }()
	for n < len(l.sealed) && ok(&l.sealed[n]) {
		l.bytes -= l.sealed[n].bytes
		n++
	}
	old, oldest, rows := l.head, l.head, n > 0
	if n > 0 {
		oldest = l.sealed[0].first
		l.head = l.sealed[n-1].next()
		l.sealed = append(l.sealed[:0], l.sealed[n:]...)
	}
	// The open chunk has no row. It may be dropped only once readers can see all of it, else the head
	// would pass what is committed.
	if len(l.sealed) == 0 && l.open.count > 0 && l.group == nil && l.open.next() <= l.view && ok(&l.open) {
		l.bytes -= l.open.bytes
		l.head = l.open.next()
		l.open = chunk{}
		n++
	}
	if n == 0 {
		return 0
	}
	w.deleteRange(kindBlock, l.id, old, l.head)
	if rows {
		w.deleteRange(kindChunk, l.id, oldest, l.head)
	}
	l.trimFresh()
	w.putLogRow(l)
	return n
}

// trimFresh lets go of blocks below the head; the store's own count of them is settled when their turn
// in its queue comes. mu is held.
func (l *plog) trimFresh() {
	n := 0
	for n < len(l.fresh) && l.fresh[n].End() <= l.head {
		n++
	}
	l.fresh = l.fresh[n:]
}

// over says whether holding bytes and events more would exceed the ring.
func (l *plog) over(bytes int64, events uint64) bool {
	return l.bytes+l.buffered+bytes > l.opts.Bytes || l.opts.Events > 0 && (l.next-l.head)+events > uint64(l.opts.Events)
}

// makeRoom drops what must go before bytes and events more fit. On a log that rejects, only chunks wholly
// below its hold may go, and not fitting is ErrFull.
func (l *plog) makeRoom(w *writer, bytes int64, events uint64) error {
	if !l.over(bytes, events) {
		return nil
	}
	hold := ^event.Offset(0)
	if l.opts.Reject {
		hold = l.hold.Load()
		if !l.fits(hold, bytes, events) {
			return fmt.Errorf("log %s: %w: it holds %d of %d bytes, %d events (bound %d; 0 is none), and nothing below offset %d is left to drop; finish, redrive or purge what it holds, or raise its retain",
				logName(l.id), event.ErrFull, l.bytes, l.opts.Bytes, l.next-l.head, l.opts.Events, hold)
		}
	}
	l.dropWhere(w, func(c *chunk) bool {
		return c.next() <= hold && l.overAt(c, bytes, events) && !l.heldAt(c, bytes)
	})
	return nil
}

// heldAt says whether chunk c, the oldest, stays for who has not read it yet: see storage.LogOptions.Held.
func (l *plog) heldAt(c *chunk, bytes int64) bool {
	return l.opts.Held > 0 && !l.opts.Reject && c.next() > l.hold.Load() && l.bytes+l.buffered+bytes <= l.opts.Held
}

// overAt is over while chunk c is the oldest: dropWhere has already taken the older ones off bytes.
func (l *plog) overAt(c *chunk, bytes int64, events uint64) bool {
	return l.bytes+l.buffered+bytes > l.opts.Bytes || l.opts.Events > 0 && (l.next-c.first)+events > uint64(l.opts.Events)
}

// fits says whether dropping everything that ends at or below hold makes enough room.
func (l *plog) fits(hold event.Offset, bytes int64, events uint64) bool {
	free, head := int64(0), l.head
	for i := range l.sealed {
		if c := &l.sealed[i]; c.next() <= hold {
			free, head = free+c.bytes, c.next()
		}
	}
	if c := &l.open; c.count > 0 && head == c.first && c.next() <= hold && l.group == nil && c.next() <= l.visible() {
		free, head = free+c.bytes, c.next()
	}
	return l.bytes+l.buffered-free+bytes <= l.opts.Bytes && (l.opts.Events == 0 || (l.next-head)+events <= uint64(l.opts.Events))
}

func (l *plog) visible() event.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.view
}

// retain drops what the log's age bound and a lowered size bound let go, and expires its dedupe window.
func (l *plog) retain(w *writer, now int64) {
	hold := ^event.Offset(0)
	if l.opts.Reject {
		hold = l.hold.Load()
	}
	oldest := now - int64(l.opts.Age)
	l.dropWhere(w, func(c *chunk) bool {
		return c.next() <= hold && (l.opts.Age > 0 && c.end < oldest || l.overAt(c, 0, 0)) && !l.heldAt(c, 0)
	})
	l.expireDedupe(w, now)
}

func (l *plog) expireDedupe(w *writer, now int64) {
	oldest := now - int64(l.opts.Dedupe)
	l.dedupe.expire(oldest, &w.s.dedupeHeld)
	if from := l.dedupe.persistedFrom(oldest); from > l.dedupe.from {
		w.deleteRange(kindDedupe, l.id, l.dedupe.from, from)
		l.dedupe.from = from
		l.mu.Lock()
		w.putLogRow(l)
		l.mu.Unlock()
	}
}

// maintainEvery is how often ages are looked at.
const maintainEvery = time.Second
