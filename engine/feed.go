package engine

import (
	"context"
	"errors"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// A feeder reads the log for one subscription that is behind in one partition: after a restart, a seek, or
// when its queue was full. When it has caught up it puts the subscription back on the live feed and ends.

// feed starts a feeder unless one runs.
func (s *subscription) feed(p *partition) {
	s.mu.Lock()
	s.feedLocked(p, s.cursors[p.id.Partition])
	s.mu.Unlock()
}

func (s *subscription) feedLocked(p *partition, c *cursor) {
	if !c.feeding && !c.attached && !s.ended {
		c.feeding = true
		s.e.spawn(func(ctx context.Context) { s.catchUp(ctx, p, c) })
	}
}

// feedBytes is how much of the log a feeder takes at once; it bounds what one that waits keeps in memory.
const feedBytes = 256 << 10

func (s *subscription) catchUp(ctx context.Context, p *partition, c *cursor) {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.room.Broadcast()
		s.mu.Unlock()
	})
	defer stop()
	var scratch filters.Scratch
	var blocks []*storage.Block
	pace := pace{e: s.e}
	for s.rereads(ctx, p, c) && !p.attach(s) {
		from, gen, ok := s.waitRoom(ctx, c)
		if !ok {
			break
		}
		pace.begin()
		var err error
		blocks, err = p.log.Read(ctx, from, feedBytes, blocks[:0])
		var trimmed *storage.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			s.lose(p, c, gen, trimmed.Head)
		case err != nil:
			s.stall(ctx, p, err)
		}
		for _, b := range blocks {
			if !s.feedBlock(ctx, c, b, from, gen, &scratch) {
				break
			}
		}
		clear(blocks)
		if read, hungry := s.hungry(c); hungry {
			pace.end(ctx, read, p.log.Bounds())
		}
	}
}

// hungry reports how far c has come, and whether what the queue holds is less than what a feeder goes on at.
func (s *subscription) hungry(c *cursor) (event.Offset, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.read, s.queue.len() <= s.e.o.Queue/2
}

// waitRoom waits until the queue has room for a good while, so that a feeder does not read a block for
// every event that is settled.
func (s *subscription) waitRoom(ctx context.Context, c *cursor) (event.Offset, uint32, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.ended && ctx.Err() == nil && (s.full() || s.queue.len() > s.e.o.Queue/2) {
		s.room.Wait()
	}
	return c.read, s.gen, !s.ended && ctx.Err() == nil
}

// feedBlock queues what matches of a block from an offset on, waiting for room; false if the subscription
// ended or was moved.
func (s *subscription) feedBlock(ctx context.Context, c *cursor, b *storage.Block, from event.Offset, gen uint32, scratch *filters.Scratch) bool {
	program := s.config.Load().Program
	for rest := event.Record(b.Records); len(rest) > 0; {
		rec := rest[:rest.Len():rest.Len()]
		rest = rest[len(rec):]
		if rec.Offset() < from || !program.Match(rec, scratch) {
			continue
		}
		s.mu.Lock()
		for s.full() && !s.ended && ctx.Err() == nil && s.gen == gen {
			s.room.Wait()
		}
		if s.ended || ctx.Err() != nil || s.gen != gen {
			s.mu.Unlock()
			return false
		}
		s.enqueue(c, rec, b)
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen != gen {
		return false
	}
	c.read = max(c.read, b.End())
	s.touch(c)
	return true
}

// rereads queues the events that the cursor's row named as not settled when the router last stopped.
func (s *subscription) rereads(ctx context.Context, p *partition, c *cursor) bool {
	for {
		s.mu.Lock()
		for len(c.recover) > 0 && s.crowded() && !s.ended && ctx.Err() == nil { // not for parked ones: they may wait for these
			s.room.Wait()
		}
		if s.ended || ctx.Err() != nil {
			s.mu.Unlock()
			return false
		}
		if len(c.recover) == 0 {
			s.mu.Unlock()
			return true
		}
		off, gen := c.recover[0], s.gen
		s.mu.Unlock()
		b, rec, err := readOne(ctx, p.log, off)
		var trimmed *storage.TrimmedError
		if err != nil && !errors.As(err, &trimmed) {
			s.stall(ctx, p, err)
			continue
		}
		begins := false
		s.mu.Lock()
		if s.gen == gen && len(c.recover) > 0 {
			c.recover = c.recover[1:]
			it := item{rec: rec, block: b, attempt: 1, gen: gen, reread: true}
			switch {
			case err != nil:
				if c.out.settle(off) {
					begins = s.noteLoss(p, off, off+1)
				}
				s.touch(c)
			case !c.out.has(off):
			case laneOf(s.config.Load(), rec) == 0:
				s.queue.push(it)
				s.kick()
			case s.admit(s.config.Load(), &it):
				s.again(it)
				s.kick()
			}
			if s.lanes.rereads--; s.lanes.rereads == 0 {
				s.fetchLanes()
			}
		}
		s.mu.Unlock()
		if begins {
			s.sayLosing(p, off, off+1)
		}
	}
}

// readOne reads one event.
func readOne(ctx context.Context, log storage.Log, off event.Offset) (*storage.Block, event.Record, error) {
	blocks, err := log.Read(ctx, off, 1, nil)
	if err != nil {
		return nil, nil, err
	}
	if len(blocks) == 0 {
		return nil, nil, event.ErrNotFound
	}
	b := blocks[0]
	for rest := event.Record(b.Records); len(rest) > 0; {
		rec := rest[:rest.Len():rest.Len()]
		if rec.Offset() == off {
			return b, rec, nil
		}
		rest = rest[len(rec):]
	}
	return nil, nil, event.ErrNotFound
}

// lose moves a cursor that the ring has overtaken to the head, and counts.
func (s *subscription) lose(p *partition, c *cursor, gen uint32, head event.Offset) {
	s.mu.Lock()
	from, begins := c.read, false
	if s.gen == gen && from < head {
		begins = s.noteLoss(p, from, head)
		c.read = head
		s.touch(c)
	}
	s.mu.Unlock()
	if begins {
		s.sayLosing(p, from, head)
	}
}

func (s *subscription) stall(ctx context.Context, p *partition, err error) {
	s.mu.Lock()
	ended := s.ended // its topic may be gone
	s.mu.Unlock()
	if ctx.Err() != nil || ended {
		return
	}
	s.e.o.Log.Error("a subscription cannot read its topic", "subscription", s.name, "topic", s.topic.name, "partition", p.id.Partition, "error", err)
	pause(ctx, time.Second)
}
