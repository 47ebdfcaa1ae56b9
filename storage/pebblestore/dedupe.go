package pebblestore

import (
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// dedupeEntryCost is what one id costs in memory: a map slot of 40 bytes at the load that Go's map keeps,
// and its place in the queue, with the slack of doubling.
const dedupeEntryCost = 112

// dedupeKeyEntry is the size of one id in the key beside a block: id, content, offset from the first.
const dedupeKeyEntry = 16 + 8 + 4

// A dedupeValue is what an id of the window stands for.
type dedupeValue struct {
	content uint64
	offset  event.Offset
	time    int64
}

type dedupeAge struct {
	id     [16]byte
	offset event.Offset
}

// A dedupeIndex holds the ids of one log's window, oldest first in a queue. Only the committer touches it,
// so that check and insert are one step without a lock.
type dedupeIndex struct {
	ids   map[[16]byte]dedupeValue
	queue []dedupeAge // from at; sorted by offset, hence by time
	at    int

	// marks remember at which offset the persisted entries of some time start, coarsely, so that expiring
	// them is one range delete now and then. from is where the first persisted entry may lie.
	marks []dedupeMark
	from  event.Offset
}

type dedupeMark struct {
	first event.Offset
	time  int64
}

// find returns what an id stands for, if it is inside the window.
func (d *dedupeIndex) find(id [16]byte, oldest int64) (dedupeValue, bool) {
	v, ok := d.ids[id]
	return v, ok && v.time >= oldest
}

// add inserts an id with the next offset.
func (d *dedupeIndex) add(id [16]byte, v dedupeValue, held *atomic.Int64) {
	if d.ids == nil {
		d.ids = make(map[[16]byte]dedupeValue)
	}
	if _, ok := d.ids[id]; !ok {
		held.Add(dedupeEntryCost)
	}
	d.ids[id] = v
	d.queue = append(d.queue, dedupeAge{id, v.offset})
}

// undo takes back the ids that were added at or above an offset: those of a refused batch.
func (d *dedupeIndex) undo(from event.Offset, held *atomic.Int64) {
	for n := len(d.queue); n > d.at && d.queue[n-1].offset >= from; n-- {
		d.drop(d.queue[n-1], held)
		d.queue = d.queue[:n-1]
	}
}

func (d *dedupeIndex) drop(a dedupeAge, held *atomic.Int64) {
	if v, ok := d.ids[a.id]; ok && v.offset == a.offset {
		delete(d.ids, a.id)
		held.Add(-dedupeEntryCost)
	}
}

// expire forgets the ids that were received before oldest.
func (d *dedupeIndex) expire(oldest int64, held *atomic.Int64) {
	for d.at < len(d.queue) {
		a := d.queue[d.at]
		if v, ok := d.ids[a.id]; ok && v.offset == a.offset && v.time >= oldest {
			break
		}
		d.drop(a, held)
		d.at++
	}
	d.compact()
}

// shorten forgets the n oldest ids and returns how many there were.
func (d *dedupeIndex) shorten(n int, held *atomic.Int64) int {
	n = min(n, len(d.queue)-d.at)
	for range n {
		d.drop(d.queue[d.at], held)
		d.at++
	}
	d.compact()
	return n
}

func (d *dedupeIndex) compact() {
	switch {
	case d.at == len(d.queue):
		d.at, d.queue = 0, d.queue[:0]
		if len(d.ids) == 0 && cap(d.queue) > 4096 {
			d.queue, d.ids = nil, nil // a map never shrinks by itself
		}
	case d.at > len(d.queue)/2:
		d.queue = d.queue[:copy(d.queue, d.queue[d.at:])]
		d.at = 0
	}
}

func (d *dedupeIndex) clear(held *atomic.Int64) {
	held.Add(-int64(len(d.ids)) * dedupeEntryCost)
	*d = dedupeIndex{from: d.from, marks: d.marks}
}

func (d *dedupeIndex) len() int { return len(d.queue) - d.at }

// mark notes that entries received at now were persisted from first on.
func (d *dedupeIndex) mark(first event.Offset, now int64, window time.Duration) {
	n := len(d.marks)
	if n == 0 {
		d.from = max(d.from, first) // nothing persisted lies below
	}
	if n == 0 || now-d.marks[n-1].time >= int64(window)/16 {
		d.marks = append(d.marks, dedupeMark{first, now})
	}
}

// persistedFrom returns below which offset no persisted entry is inside the window: entries before a mark
// are older than the mark.
func (d *dedupeIndex) persistedFrom(oldest int64) event.Offset {
	from := d.from
	for len(d.marks) > 1 && d.marks[1].time < oldest {
		d.marks = d.marks[1:]
	}
	if len(d.marks) > 0 {
		from = max(from, d.marks[0].first)
	}
	return from
}
