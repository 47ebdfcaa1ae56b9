package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// partition is a partition at work: one reader takes each block once and hands what matches to the
// subscriptions that keep up.
type partition struct {
	topic *topic
	id    storage.LogID
	log   storage.Log
	claim storage.Claim

	mu    sync.Mutex    // held by the reader for a block; who attaches or changes feeds holds it
	live  atomic.Uint64 // the reader has handed on everything below; written under mu
	feeds atomic.Pointer[feeds]

	floor floor // of a topic that rejects

	filterErrors, filterMissing atomic.Uint64 // since the start: see TopicInfo
	saved                       event.Offset  // checkpoint as last written; guarded by mu
	unsaved                     bool          // writing it failed; guarded by mu

	traces tracesOf
}

// feeds is whom a topic's events go to: immutable, replaced under every partition's mu.
type feeds struct {
	subs  []*subscription
	index *filters.Index // over the subscriptions' filters, same order as subs
}

// readBytes is how much of the log a reader takes at once.
const readBytes = 1 << 20

// readPartition follows the log until ctx ends. It never waits for a subscription.
func (e *Engine) readPartition(ctx context.Context, p *partition) {
	var scratch filters.Scratch
	var blocks []*storage.Block
	var hits []int
	for ctx.Err() == nil {
		from := p.live.Load()
		if err := p.log.Wait(ctx, from); err != nil {
			if ctx.Err() == nil {
				e.o.Log.Error("partition reader waits", "topic", p.topic.name, "partition", p.id.Partition, "error", err)
				pause(ctx, time.Second)
			}
			continue
		}
		var err error
		blocks, err = p.log.Read(ctx, from, readBytes, blocks[:0])
		var trimmed *storage.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			// The subscriptions that keep up have lost these; each counts its own when it reads on.
			p.mu.Lock()
			for _, s := range p.feeds.Load().subs {
				s.fallBehind(e, p)
			}
			p.live.Store(trimmed.Head)
			p.mu.Unlock()
			continue
		case err != nil:
			if ctx.Err() == nil {
				e.o.Log.Error("partition reader cannot read", "topic", p.topic.name, "partition", p.id.Partition, "offset", from, "error", err)
				pause(ctx, time.Second)
			}
			continue
		}
		for _, b := range blocks {
			hits = e.handOn(p, b, &scratch, hits)
		}
		clear(blocks)
		p.filterErrors.Store(scratch.Errors)
		p.filterMissing.Store(scratch.Missing)
		p.topic.changed()
	}
}

// handOn gives a block's events to the subscriptions that match them and are attached.
func (e *Engine) handOn(p *partition, b *storage.Block, scratch *filters.Scratch, hits []int) []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := p.live.Load()
	if b.End() <= live {
		return hits
	}
	f := p.feeds.Load()
	if len(f.subs) > 0 {
		for rest := event.Record(b.Records); len(rest) > 0; {
			rec := rest[:rest.Len():rest.Len()]
			rest = rest[len(rec):]
			if rec.Offset() < live {
				continue
			}
			hits = f.index.Match(rec, scratch, hits[:0])
			for _, i := range hits {
				f.subs[i].offer(e, p, rec, b)
			}
		}
	}
	p.live.Store(b.End())
	return hits
}

// attach puts a subscription that has read everything onto the live feed; false if it has not. Only the
// feeder of that cursor calls it: an event between the feeder's place and the live feed's must have one way.
func (p *partition) attach(s *subscription) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[p.id.Partition]
	if c.read < p.live.Load() || len(c.recover) > 0 {
		return false
	}
	c.attached, c.feeding = true, false
	return true
}

// pause waits d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
