package engine

import (
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// recall gives back what functions put out for senders or pullers when events go into a topic from now on:
// nobody would take it. The functions run again. An output that is in hand ends its step the same way.
func (s *subscription) recall() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.config.Load().Deliver.Face; f == event.Push || f == event.Pull {
		return
	}
	for s.sends.len() > 0 {
		j := s.sends.pop()
		if j.it.gen != s.gen {
			continue
		}
		if j.step != nil {
			j.step.recalled = true
			if j.step.left--; j.step.left > 0 {
				continue
			}
		}
		s.again(j.it)
	}
}

// again queues an item that is to be worked on before what is new. The caller holds s.mu.
func (s *subscription) again(it item) {
	if it.parked == nil && it.gen == s.gen {
		if m := s.cursors[it.rec.Partition()].out.at(it.rec.Offset()); m != nil {
			m.taken = false
		}
	}
	s.due.push(it)
	s.dueBytes += len(it.rec)
}

// offer hands the subscription an event of the live feed; if it cannot take it, it leaves the feed. The
// caller holds the partition's mu.
func (s *subscription) offer(e *Engine, p *partition, rec event.Record, b *storage.Block) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[p.id.Partition]
	off := rec.Offset()
	if !c.attached || off < c.read {
		return
	}
	if s.full() {
		c.attached, c.read = false, off
		s.touch(c)
		s.feedLocked(p, c)
		return
	}
	s.enqueue(c, rec, b)
}

func (s *subscription) enqueue(c *cursor, rec event.Record, b *storage.Block) {
	off := rec.Offset()
	s.queue.push(item{rec: rec, block: b, attempt: 1, gen: s.gen})
	c.read = off + 1
	c.out.add(off)
	s.c.Matched++
	s.touch(c)
	s.kick()
}

// fallBehind takes the subscription off the live feed where it stands. The caller holds p.mu.
func (s *subscription) fallBehind(_ *Engine, p *partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[p.id.Partition]
	if c.attached {
		c.read, c.attached = max(c.read, p.live.Load()), false
		s.touch(c)
		s.feedLocked(p, c)
	}
}

// full reports whether the subscription takes no further event now.
func (s *subscription) full() bool {
	return s.crowded() || s.parked.bytes >= s.config.Load().Parked
}
