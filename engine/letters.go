package engine

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A dead letter is unfinished until it is redriven or purged. What is finished is a row for each letter, and of
// each partition a floor below which all are: rows below it are deleted, and a topic that rejects may drop what
// lies there. How many are unfinished is counted in memory, by reading each letter once.

// segmentEvents is how many offsets are counted as one.
const segmentEvents = 1024

// letterBook is what the engine knows of the dead letters of a topic.
type letterBook struct {
	work sync.Mutex // one change of what is finished at a time, or one step of counting; taken before commits

	mu    sync.Mutex
	parts []letterPart
}

// letterPart is a partition of it. The book's mu guards it; only who holds work changes it.
type letterPart struct {
	floor    event.Offset // all letters below are finished
	saved    event.Offset // floor as the store has it
	counted  event.Offset // what lies below is counted
	segments []letterSegment
}

// letterSegment counts the unfinished letters in [from, to).
type letterSegment struct {
	from, to event.Offset
	open     map[string]int // by subscription
}

func (g *letterSegment) empty() bool { return len(g.open) == 0 }

// take notes that one letter less is unfinished.
func (g *letterSegment) take(sub string) {
	if g.open[sub]--; g.open[sub] <= 0 {
		delete(g.open, sub)
	}
}

// at is the segment that holds an offset, nil if it is not counted.
func (p *letterPart) at(off event.Offset) *letterSegment {
	i, _ := slices.BinarySearchFunc(p.segments, off, func(g letterSegment, o event.Offset) int {
		if g.to <= o {
			return -1
		}
		return 1
	})
	if i < len(p.segments) && p.segments[i].from <= off {
		return &p.segments[i]
	}
	return nil
}

// loadLetters reads the floors of a topic.
func (e *Engine) loadLetters(ctx context.Context, t *topic) error {
	t.letters.parts = make([]letterPart, len(t.parts))
	for i, p := range t.parts {
		row, err := e.store.Load(ctx, tableLetterFloor, key32x2(p.id.Topic, p.id.Partition))
		if err != nil {
			return err
		}
		x := &t.letters.parts[i]
		if len(row) == 8 {
			x.floor = be.Uint64(row)
		}
		x.saved, x.counted = x.floor, x.floor
	}
	return nil
}

// removalOfLetters deletes what the store has of a topic's letters.
func removalOfLetters(topic uint32) []storage.Op {
	return []storage.Op{delPrefix(tableLettersDone, topic), delPrefix(tableLetterFloor, topic)}
}

// lettersFloor is the offset below which all dead letters of the partition are finished.
func (p *partition) lettersFloor() event.Offset {
	b := &p.topic.letters
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.parts[p.id.Partition].floor
}

// unfinished counts a subscription's letters in the topic, as far as they are counted. Where the ring has
// dropped some since, they are counted again soon.
func (e *Engine) unfinished(t *topic, sub string) (n int64) {
	b := &t.letters
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.parts {
		head := t.parts[i].log.Bounds().Head
		for _, g := range b.parts[i].segments {
			if g.from < head && !g.empty() {
				e.uncounted.add(t)
			}
			if g.to > head {
				n += int64(g.open[sub])
			}
		}
	}
	return n
}

// letterOf is the subscription whose dead letter a record is, "" if it is none.
func letterOf(rec event.Record) string {
	a, _ := rec.Extension("deadlettersub")
	return a.Value
}

// finishedIn is which offsets of [from, to) are finished by a row of their own, and the floor below which all
// are. The floor is read last: rows are deleted after it was raised.
func (e *Engine) finishedIn(ctx context.Context, p *partition, from, to event.Offset) (map[event.Offset]bool, event.Offset, error) {
	var done map[event.Offset]bool
	err := e.store.Scan(ctx, tableLettersDone, letterKey(p, from), letterKey(p, to), func(k, _ []byte) error {
		if done == nil {
			done = map[event.Offset]bool{}
		}
		done[be.Uint64(k[8:])] = true
		return nil
	})
	return done, p.lettersFloor(), err
}

func letterKey(p *partition, off event.Offset) []byte {
	return be.AppendUint64(key32x2(p.id.Topic, p.id.Partition), off)
}

// unfinishedIn calls fn for the unfinished letters of [from, to), whosever they are, until it returns false. It
// returns how far it came: below to only if fn ended it. What the ring has dropped is passed over.
func (e *Engine) unfinishedIn(ctx context.Context, p *partition, from, to event.Offset, fn func(rec event.Record, sub string) bool) (event.Offset, error) {
	var blocks []*storage.Block
	for from < to {
		if err := ctx.Err(); err != nil {
			return from, err
		}
		var err error
		blocks, err = p.log.Read(ctx, from, feedBytes, blocks[:0])
		var trimmed *storage.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			from = trimmed.Head
			continue
		case err != nil:
			return from, err
		case len(blocks) == 0:
			return from, nil
		}
		done, floor, err := e.finishedIn(ctx, p, max(from, blocks[0].First), min(to, blocks[len(blocks)-1].End()))
		if err != nil {
			return from, err
		}
		for _, b := range blocks {
			if from >= to {
				break
			}
			for rest := event.Record(b.Records); len(rest) > 0 && from < to; {
				rec := rest[:rest.Len():rest.Len()]
				rest = rest[len(rec):]
				off := rec.Offset()
				if off < from {
					continue
				}
				if off >= to {
					break
				}
				if sub := letterOf(rec); sub != "" && off >= floor && !done[off] && !fn(rec, sub) {
					return off, nil
				}
				from = off + 1
			}
			from = max(from, min(to, b.End()))
		}
		clear(blocks)
	}
	return from, nil
}

// count counts what a partition's letters are not counted yet, one segment, and again the one that the ring has
// cut. It reports whether there is more. The caller holds the book's work.
func (e *Engine) count(ctx context.Context, t *topic, i int) (more bool, err error) {
	p, b := t.parts[i], &t.letters
	bounds := p.log.Bounds()
	b.mu.Lock()
	x := &b.parts[i]
	for len(x.segments) > 0 && x.segments[0].to <= bounds.Head {
		x.segments = slices.Delete(x.segments, 0, 1)
	}
	x.counted = max(x.counted, bounds.Head)
	g := letterSegment{from: x.counted, to: min(bounds.Next, x.counted+segmentEvents)}
	cut := len(x.segments) > 0 && x.segments[0].from < bounds.Head
	if cut {
		g.from, g.to = bounds.Head, x.segments[0].to
	} else if n := len(x.segments); n > 0 { // the last one grows
		if last := x.segments[n-1]; last.to == x.counted && last.to-last.from < segmentEvents {
			g.to = min(bounds.Next, last.from+segmentEvents)
		}
	}
	b.mu.Unlock()
	if g.from >= g.to {
		return false, nil
	}
	if _, err := e.unfinishedIn(ctx, p, g.from, g.to, func(_ event.Record, sub string) bool {
		if g.open == nil {
			g.open = map[string]int{}
		}
		if _, ok := g.open[sub]; !ok {
			sub = strings.Clone(sub)
		}
		g.open[sub]++
		return true
	}); err != nil {
		return false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if cut {
		x.segments[0] = g
		return true, nil
	}
	x.counted = g.to
	if n := len(x.segments); n > 0 && x.segments[n-1].to == g.from && g.to-x.segments[n-1].from <= segmentEvents {
		last := &x.segments[n-1]
		last.to = g.to
		for sub, c := range g.open {
			if last.open == nil {
				last.open = map[string]int{}
			}
			last.open[sub] += c
		}
	} else {
		x.segments = append(x.segments, g)
	}
	return g.to < bounds.Next, nil
}

// countAll brings the counts of a topic up to date.
func (e *Engine) countAll(ctx context.Context, t *topic) error {
	for i := range t.parts {
		for more := true; more; {
			var err error
			t.letters.work.Lock()
			if more, err = e.count(ctx, t, i); err == nil && !more {
				err = e.raise(ctx, t, i)
			}
			t.letters.work.Unlock()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// finished takes note that letters are redriven or purged: the commit is through. The caller holds work.
func (b *letterBook) finished(letters []event.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, rec := range letters {
		if g := b.parts[rec.Partition()].at(rec.Offset()); g != nil {
			g.take(letterOf(rec))
		}
	}
}

// raise moves a partition's floor up over what is finished, and lets go of the rows below it. The caller holds
// work.
func (e *Engine) raise(ctx context.Context, t *topic, i int) error {
	p, b := t.parts[i], &t.letters
	head := p.log.Bounds().Head
	b.mu.Lock()
	x := &b.parts[i]
	n := 0
	for n < len(x.segments) && (x.segments[n].empty() || x.segments[n].to <= head) {
		n++
	}
	from, to := max(x.floor, head), x.counted
	if n < len(x.segments) {
		from, to = max(from, x.segments[n].from), x.segments[n].to
	} else {
		from = max(from, to)
	}
	b.mu.Unlock()
	floor, err := e.unfinishedIn(ctx, p, from, to, func(event.Record, string) bool { return false })
	if err != nil {
		return err
	}
	b.mu.Lock()
	x.floor = max(x.floor, floor)
	for len(x.segments) > 1 && x.segments[0].to <= x.floor {
		x.segments = slices.Delete(x.segments, 0, 1)
	}
	floor, saved := x.floor, x.saved
	b.mu.Unlock()
	if floor == saved {
		return nil
	}
	ops := []storage.Op{
		put(tableLetterFloor, key32x2(p.id.Topic, p.id.Partition), be.AppendUint64(nil, floor)),
		{Table: tableLettersDone, Kind: storage.DeleteRange, Key: letterKey(p, 0), Value: letterKey(p, floor)},
	}
	if err := t.standing(); err != nil {
		return nil // its rows went with it
	}
	if err := e.store.Commit(ctx, &storage.Batch{Ops: ops}); err != nil {
		return err
	}
	b.mu.Lock()
	x.saved = floor
	b.mu.Unlock()
	return nil
}

// standing fails if the topic was deleted.
func (t *topic) standing() error {
	select {
	case <-t.ended:
		return event.Bad(event.ErrNotFound, "topic", "the topic "+t.name+" was deleted")
	default:
		return nil
	}
}

// letterQueue is the topics with letters that are not counted.
type letterQueue struct {
	mu     sync.Mutex
	topics map[*topic]struct{}
	wake   chan struct{}
}

func (q *letterQueue) add(t *topic) {
	q.mu.Lock()
	if q.topics == nil {
		q.topics = map[*topic]struct{}{}
	}
	q.topics[t] = struct{}{}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *letterQueue) take() *topic {
	q.mu.Lock()
	defer q.mu.Unlock()
	for t := range q.topics {
		delete(q.topics, t)
		return t
	}
	return nil
}

// letterLoop counts dead letters as they come.
func (e *Engine) letterLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.uncounted.wake:
		}
		for t := e.uncounted.take(); t != nil && ctx.Err() == nil; t = e.uncounted.take() {
			if err := e.countAll(ctx, t); err != nil && ctx.Err() == nil && t.standing() == nil {
				e.o.Log.Warn("dead letters cannot be counted now", "topic", t.name, "error", err)
				e.uncounted.add(t)
				pause(ctx, breath*1000)
			}
		}
		pause(ctx, countEvery) // many that come at once are counted at once
	}
}

const countEvery = 20 * breath

// holdFloor is lettersFloor of a topic that holds dead letters; any other holds nothing back by itself.
func (p *partition) holdFloor(deadLetters bool) event.Offset {
	if deadLetters {
		return p.lettersFloor()
	}
	return event.Offset(math.MaxUint64)
}
