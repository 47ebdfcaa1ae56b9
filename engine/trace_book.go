package engine

import (
	"context"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// traceBook writes what the subscriptions have noted, in the flush's commit, and keeps it within its bounds:
// Options.TraceBytes for a topic, where the traces of the oldest events leave first, and event.Trace.Keep. Only the
// flush writes it.
type traceBook struct {
	swept time.Time
	lost  atomic.Uint64 // tries that could not be noted or written

	// What a flush has taken from the subscriptions is in rows until it is in the store. Who looks for an event
	// holds mu while it looks into both, and then reads the store.
	mu   sync.Mutex
	rows map[traceRowAt]*traceRow
	done []*traceRow // of rows, in the order that they were begun

	freed []freedTraces // of the flush under way
}

type freedTraces struct {
	p     *partition
	bytes int64
}

type traceRowAt struct {
	p     *partition
	block uint64
}

// tracesOf are the stored traces of a partition.
type tracesOf struct {
	bytes   atomic.Int64
	dropped atomic.Uint64 // tries that left because there were too many
	low     uint64        // no row is of a block below it; the flush's
}

func (p *partition) loadTraces(ctx context.Context, store storage.Store) error {
	v, err := store.Load(ctx, tableTraces, key32x2(p.id.Topic, p.id.Partition))
	if err == nil && len(v) == 8 {
		p.traces.bytes.Store(int64(be.Uint64(v)))
	}
	return err
}

// take adds the rows of what dirty subscriptions have noted.
func (b *traceBook) take(dirty []*subscription, revision string, at int64, ops []storage.Op) []storage.Op {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(revision) > 64 {
		revision = revision[:64]
	}
	for _, s := range dirty {
		s.mu.Lock()
		b.write(s, revision, at)
		s.mu.Unlock()
	}
	for _, row := range b.done {
		ops = append(ops, put(tableTraces, row.key, row.value))
	}
	for i, row := range b.done {
		p := row.p
		p.traces.bytes.Add(int64(len(row.key) + len(row.value)))
		p.traces.low = min(p.traces.low, row.block)
		if i+1 == len(b.done) || b.done[i+1].p != p {
			ops = append(ops, p.tracesOp())
		}
	}
	return ops
}

func (p *partition) tracesOp() storage.Op {
	return put(tableTraces, key32x2(p.id.Topic, p.id.Partition), be.AppendUint64(nil, uint64(max(0, p.traces.bytes.Load()))))
}

// write makes rows of what a subscription has noted. The caller holds b.mu and s.mu.
func (b *traceBook) write(s *subscription, revision string, at int64) {
	t := &s.traces
	b.lost.Add(t.lost)
	t.lost = 0
	if len(t.list) == 0 {
		return
	}
	select {
	case <-s.topic.ended:
		t.list = nil
		return
	default:
	}
	if b.rows == nil {
		b.rows = map[traceRowAt]*traceRow{}
	}
	var short []byte
	var shortOf *subConfig
	for i := range t.list {
		x := &t.list[i]
		where := traceRowAt{s.topic.parts[x.part], x.base >> traceBlock}
		row := b.rows[where]
		if row == nil {
			row = &traceRow{traceRowAt: where, key: traceKey(s.topic.serial, x.part, where.block, at)}
			row.value = append(append(append(row.value, traceVersion), byte(len(revision))), revision...)
			b.rows[where] = row
			b.done = append(b.done, row)
		}
		if row.sub != s.serial || row.by != x.by {
			row.sub, row.by = s.serial, x.by
			if x.by != shortOf {
				short, shortOf = shortDigests(x.by), x.by
			}
			row.value = appendTraceBy(row.value, s.serial, short)
		}
		row.value = appendTraced(row.value, x, at)
	}
	clear(t.list)
	if t.list = t.list[:0]; cap(t.list) > 256 {
		t.list = nil // many subscriptions may have had a burst
	}
}

// written forgets the rows, which are in the store or lost.
func (b *traceBook) written(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		for _, row := range b.done {
			row.p.traces.bytes.Add(-int64(len(row.key) + len(row.value)))
			b.lost.Add(triesIn(row.key, row.value))
		}
	}
	for _, f := range b.freed {
		if err != nil {
			f.p.traces.bytes.Add(f.bytes)
			f.p.traces.low = 0
		}
	}
	b.freed = b.freed[:0]
	clear(b.rows)
	clear(b.done)
	b.done = b.done[:0]
}

func triesIn(key, value []byte) (n uint64) {
	_ = readTraces(key, value, -1, func(x tryRow) { n += uint64(bits.OnesCount64(x.mask)) })
	return n
}

// Looking for what is too old or too much is bounded, so that the flush is not held up.
const (
	traceSweep = 10 * time.Second
	sweptRows  = 4096 // of one partition and flush
)

// trimTraces adds the removal of what is past the bounds: bytes at every flush, age now and then.
func (e *Engine) trimTraces(ctx context.Context, plan *Plan, ops []storage.Op) []storage.Op {
	now := e.now()
	aged := now.Sub(e.traces.swept) >= traceSweep
	if aged {
		e.traces.swept = now
	}
	for _, t := range plan.topics {
		def := t.def.Load().Trace.WithDefaults()
		bound := max(e.o.TraceBytes/int64(len(t.parts)), 1)
		for _, p := range t.parts {
			held := p.traces.bytes.Load()
			if held == 0 || !aged && held <= bound {
				continue
			}
			cut := trimTo{bytes: held - bound + bound/16, all: def.Off()}
			if held <= bound {
				cut.bytes = 0
			}
			if aged && !def.Off() {
				old := now.Add(-def.Keep)
				off, err := p.log.Since(ctx, old)
				if err != nil {
					continue
				}
				cut.below, cut.old = off>>traceBlock+1, old.UnixNano() // what is of later blocks cannot be older
			}
			ops = e.traces.trim(ctx, e.store, p, cut, ops)
		}
	}
	return ops
}

// trimTo says what is to leave: the first rows until so many bytes are free, all, and of the blocks below one
// those rows that are older than a time.
type trimTo struct {
	bytes int64
	all   bool
	below uint64
	old   int64
}

func (b *traceBook) trim(ctx context.Context, store storage.Store, p *partition, cut trimTo, ops []storage.Op) []storage.Op {
	prefix := key32x2(p.id.Topic, p.id.Partition)
	from := be.AppendUint64(slices.Clone(prefix), p.traces.low)
	to := key32x2(p.id.Topic, p.id.Partition+1) // partitions are far fewer than numbers
	var freed int64
	var dropped uint64
	low, kept, seen := p.traces.low, false, 0
	err := store.Scan(ctx, tableTraces, from, to, func(k, v []byte) error {
		if len(k) != 24 {
			return nil
		}
		block, at := splitTraceKey(k)
		over := freed < cut.bytes
		aged := block < cut.below
		if seen++; seen > sweptRows || !over && !aged && !cut.all {
			if !kept {
				low, kept = block, true
			}
			return storage.ErrStop
		}
		if !over && !cut.all && at >= cut.old {
			if !kept {
				low, kept = block, true
			}
			return nil
		}
		if over && !cut.all && at >= cut.old {
			dropped += triesIn(k, v)
		}
		freed += int64(len(k) + len(v))
		ops = append(ops, del(tableTraces, slices.Clone(k)))
		return nil
	})
	if err != nil {
		return ops // the next sweep finds them again
	}
	if !kept { // nothing is left
		low = 0
	}
	p.traces.low = low
	if freed > 0 {
		p.traces.bytes.Add(-freed)
		b.freed = append(b.freed, freedTraces{p, freed})
		p.traces.dropped.Add(dropped)
		ops = append(ops, p.tracesOp())
	}
	return ops
}

// TraceInfo is how the traces of a topic stand.
type TraceInfo struct {
	event.Trace
	Bytes   int64  // stored
	Dropped uint64 // tries that left before their time, since the start: there were more than fit
}

func (t *topic) traceInfo() TraceInfo {
	info := TraceInfo{Trace: t.def.Load().Trace.WithDefaults()}
	for _, p := range t.parts {
		info.Bytes += p.traces.bytes.Load()
		info.Dropped += p.traces.dropped.Load()
	}
	return info
}

// TracesLost is how many tries could not be noted or written, since the start.
func (e *Engine) TracesLost() uint64 { return e.traces.lost.Load() }
