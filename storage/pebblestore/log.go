package pebblestore

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A plog is one log. Two parties change it: the committer assigns (next, last, dedupe, the chunks), and
// the publisher, after the sync, lets readers see what was assigned (view). Readers only take mu.
type plog struct {
	s    *Store
	id   storage.LogID
	hold atomic.Uint64

	// The committer's own.
	opts     storage.LogOptions
	cutAt    int          // size of records at which a block is cut
	next     event.Offset // the next offset to be handed out
	last     int64        // the last received time
	tent     event.Offset // next, while a request is checked
	want     int64        // bytes of the request being checked
	coming   int64        // bytes of the requests of this gathering that are not encoded yet
	buffered int64        // bytes encoded into a block that is not in the batch yet
	dedupe   dedupeIndex
	group    *logGroup // its part of the group being built, nil if it has none
	dropped  bool

	mu      sync.Mutex
	freed   event.Offset // from here to the head lies what was dropped and may still take space on the disk
	head    event.Offset
	sealed  []chunk // oldest first
	open    chunk   // the one that grows; count 0: there is none
	bytes   int64   // of all chunks
	view    event.Offset
	viewEnd int64 // received time of the event before view
	fresh   []*storage.Block
	wake    chan struct{} // closed when view moves; nil while nobody waits
	gone    bool
}

var _ storage.Log = (*plog)(nil)

// Bounds implements storage.Log.
func (l *plog) Bounds() storage.Bounds {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := storage.Bounds{Head: min(l.head, l.view), Next: l.view, Bytes: l.bytes, LastTime: l.viewEnd}
	if l.head < l.view {
		if b.HeadTime = l.open.begin; len(l.sealed) > 0 {
			b.HeadTime = l.sealed[0].begin
		}
	}
	return b
}

// Hold implements storage.Log.
func (l *plog) Hold(floor event.Offset) { l.hold.Store(floor) }

// Wait implements storage.Log.
func (l *plog) Wait(ctx context.Context, from event.Offset) error {
	for {
		l.mu.Lock()
		if l.view > from {
			l.mu.Unlock()
			return nil
		}
		if l.gone {
			l.mu.Unlock()
			return l.missing()
		}
		if l.wake == nil {
			l.wake = make(chan struct{})
		}
		wake := l.wake
		l.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-l.s.closing:
			return errClosed
		}
	}
}

func (l *plog) missing() error {
	return fmt.Errorf("log %s: %w: it was dropped or never opened", logName(l.id), event.ErrNotFound)
}

// Read implements storage.Log.
func (l *plog) Read(ctx context.Context, from event.Offset, limit int, dst []*storage.Block) ([]*storage.Block, error) {
	if err := ctx.Err(); err != nil {
		return dst, err
	}
	l.mu.Lock()
	head, next := l.head, l.view
	if l.gone {
		l.mu.Unlock()
		return dst, l.missing()
	}
	if from < head {
		l.mu.Unlock()
		return dst, &storage.TrimmedError{From: from, Head: head}
	}
	if n := len(l.fresh); n > 0 && l.fresh[0].First <= from && from < next {
		i := sort.Search(n, func(i int) bool { return l.fresh[i].First > from }) - 1
		for size := 0; i < n && size <= limit; i++ {
			dst = append(dst, l.fresh[i])
			size += len(l.fresh[i].Records)
		}
		l.mu.Unlock()
		return dst, nil
	}
	l.mu.Unlock()
	if from >= next {
		return dst, nil
	}
	return l.readDisk(ctx, from, next, limit, dst)
}

// readDisk reads what has left memory. The iterator lives no longer than this call, and begins at a block
// at or above the head, never among what was deleted.
func (l *plog) readDisk(ctx context.Context, from, next event.Offset, limit int, dst []*storage.Block) ([]*storage.Block, error) {
	if err := l.s.enter(); err != nil {
		return dst, err
	}
	defer l.s.leave()
	it, err := l.iter(next)
	if err != nil {
		return dst, err
	}
	defer it.Close()
	start := len(dst)
	var keyBuf [keySize]byte
	ok := it.SeekLT(appendKey(keyBuf[:0], kindBlock, l.id, from+1))
	for size := 0; ok && size <= limit; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return dst[:start], err
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return dst[:start], l.s.readFault(err)
		}
		b := &storage.Block{First: keyOffset(it.Key())}
		count, _, records, err := parseBlock(l.id, b.First, v)
		if err != nil {
			return dst[:start], l.s.readFault(err)
		}
		b.Count, b.Records = count, append([]byte(nil), records...)
		if len(dst) == start && b.End() <= from {
			continue // the events from here on were trimmed meanwhile
		}
		dst = append(dst, b)
		size += len(b.Records)
	}
	if err := it.Error(); err != nil {
		return dst[:start], l.s.readFault(err)
	}
	if len(dst) == start || dst[start].First > from {
		l.mu.Lock()
		head := l.head
		l.mu.Unlock()
		if head > from {
			return dst[:start], &storage.TrimmedError{From: from, Head: head}
		}
		return dst[:start], l.s.readFault(fmt.Errorf("log %s: no block holds offset %d of [%d, %d)", logName(l.id), from, head, next))
	}
	return dst, nil
}

func (l *plog) iter(next event.Offset) (*pebble.Iterator, error) {
	l.mu.Lock()
	head := l.head
	l.mu.Unlock()
	it, err := l.s.db.NewIter(&pebble.IterOptions{
		LowerBound: appendKey(nil, kindBlock, l.id, head),
		UpperBound: appendKey(nil, kindBlock, l.id, next),
	})
	if err != nil {
		return nil, l.s.readFault(err)
	}
	return it, nil
}

// Since implements storage.Log.
func (l *plog) Since(ctx context.Context, t time.Time) (event.Offset, error) {
	want := t.UnixNano()
	if t.Before(time.Unix(0, 0)) {
		want = 0 // UnixNano of a distant past wraps around
	}
	l.mu.Lock()
	lo, hi, next := l.head, l.view, l.view
	if i := sort.Search(len(l.sealed), func(i int) bool { return l.sealed[i].end >= want }); i < len(l.sealed) {
		lo, hi = l.sealed[i].first, min(hi, l.sealed[i].next())
	} else if n := len(l.sealed); n > 0 {
		lo = min(hi, l.sealed[n-1].next())
	}
	l.mu.Unlock()
	for lo < hi {
		mid := lo + (hi-lo)/2
		bs, err := l.Read(ctx, mid, 0, nil)
		if err != nil || len(bs) == 0 {
			return next, err
		}
		b := bs[0]
		var first, last int64
		first = event.Record(b.Records).Received()
		off := b.First
		at := off // the first event of the block received at or after t
		found := false
		for r := b.Records; len(r) > 0; r = r[event.Record(r).Len():] {
			if last = event.Record(r).Received(); !found && last >= want {
				at, found = off, true
			}
			off++
		}
		switch {
		case !found:
			lo = b.End()
		case first >= want:
			if b.First <= lo {
				return max(lo, b.First), nil
			}
			hi = b.First
		default:
			return at, nil
		}
	}
	return lo, nil
}

// Trim implements storage.Log.
func (l *plog) Trim(ctx context.Context, before event.Offset) error {
	return l.s.do(ctx, func(w *writer) error {
		if l.dropped {
			return l.missing()
		}
		l.dropWhere(w, func(c *chunk) bool { return c.next() <= before })
		return nil
	})
}

// publish lets readers see a group's blocks.
func (l *plog) publish(g *logGroup) {
	l.mu.Lock()
	l.view, l.viewEnd = g.next, g.last
	l.fresh = append(l.fresh, g.blocks...)
	wake := l.wake
	l.wake = nil
	l.mu.Unlock()
	if wake != nil {
		close(wake)
	}
}

// forget lets go of the oldest block in memory if it is b.
func (l *plog) forget(b *storage.Block) {
	l.mu.Lock()
	if len(l.fresh) > 0 && l.fresh[0] == b {
		l.fresh[0] = nil
		if l.fresh = l.fresh[1:]; len(l.fresh) == 0 {
			l.fresh = nil
		}
	}
	l.mu.Unlock()
}

// end tells readers and waiters that the log is gone.
func (l *plog) end() {
	l.mu.Lock()
	l.gone, l.fresh = true, nil
	wake := l.wake
	l.wake = nil
	l.mu.Unlock()
	if wake != nil {
		close(wake)
	}
}
