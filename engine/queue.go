package engine

import (
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// An item is one event that a subscription has to settle.
type item struct {
	rec     event.Record
	block   *storage.Block // what rec keeps in memory; nil for a parked event
	parked  *parkedEvent   // nil unless it came from a parked row
	attempt uint32         // 1 on the first try
	gen     uint32         // the subscription's generation: a seek makes older ones void
	lane    uint64         // in which it is the one in hand; 0 where it waits for no other

	reread bool // it was in memory when the router stopped: it may be older than its lane's rows
}

// fifo is a ring of T that grows to its largest use. The zero value is empty.
type fifo[T any] struct {
	ring []T
	head int
	n    int
}

func (f *fifo[T]) len() int { return f.n }

func (f *fifo[T]) push(v T) {
	if f.n == len(f.ring) {
		bigger := make([]T, max(16, 2*len(f.ring)))
		for i := range f.n {
			bigger[i] = f.ring[(f.head+i)%len(f.ring)]
		}
		f.ring, f.head = bigger, 0
	}
	f.ring[(f.head+f.n)%len(f.ring)] = v
	f.n++
}

// at is the i-th value from the head.
func (f *fifo[T]) at(i int) T { return f.ring[(f.head+i)%len(f.ring)] }

func (f *fifo[T]) pop() T {
	var zero T
	v := f.ring[f.head]
	f.ring[f.head] = zero
	f.head = (f.head + 1) % len(f.ring)
	f.n--
	return v
}

func (f *fifo[T]) clear() { *f = fifo[T]{} }

// backlog is the one bounded queue of a subscription: its bound is items, and bytes of the blocks that
// they keep in memory (a block stays as long as one of its events does).
type backlog struct {
	fifo[item]
	pinned int
	last   *storage.Block // of the item pushed last
}

func (b *backlog) push(it item) {
	if it.block != b.last {
		b.last = it.block
		b.pinned += len(it.block.Records)
	}
	b.fifo.push(it)
}

func (b *backlog) pop() item {
	it := b.fifo.pop()
	if b.n == 0 {
		b.pinned, b.last = 0, nil
		return it
	}
	if next := b.ring[b.head].block; next != it.block {
		b.pinned -= len(it.block.Records)
	}
	return it
}

func (b *backlog) clear() { *b = backlog{} }
