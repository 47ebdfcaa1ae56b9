package engine

import (
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// Loss is what the ring dropped before a subscription had read it, since the subscription was made. It is
// written with the cursor that passed the gap, so it survives restarts; a crash may count once more what was
// delivered within the last flush before it and dropped since.
type Loss struct {
	Events uint64    // of the topic, whether or not they would have matched
	Since  time.Time // when the first was noticed
	Last   time.Time // the latest

	// The latest gap: offsets [From, To) of a partition.
	Partition event.Partition
	From, To  event.Offset
}

// with adds the loss of a subscription's other half.
func (l Loss) with(o Loss) Loss {
	if l.Events == 0 || o.Events > 0 && o.Last.After(l.Last) {
		l, o = o, l
	}
	l.Events += o.Events
	if o.Events > 0 && o.Since.Before(l.Since) {
		l.Since = o.Since
	}
	return l
}

// losing is the episode of losses that goes on: its beginning and its end are logged, not what lies between.
// The subscription's mutex guards it.
type losing struct {
	stored uint64 // Loss.Events as the store has it
	on     bool
	begun  uint64 // Loss.Events before it
	seen   uint64 // Loss.Events and what is to come, when it was last looked at
}

// noteLoss counts what the ring has dropped and reports whether that begins an episode: then call sayLosing.
// The caller holds s.mu and moves the cursor.
func (s *subscription) noteLoss(p *partition, from, to event.Offset) (begins bool) {
	now, l := s.e.now().UTC(), &s.row.Loss
	begins = s.beginLoss()
	if l.Events == 0 {
		l.Since = now
	}
	if l.Partition != p.id.Partition || l.To != from || l.Events == 0 {
		l.Partition, l.From = p.id.Partition, from
	}
	l.Events += to - from
	l.Last, l.To = now, to
	s.soil()
	return begins
}

func (s *subscription) beginLoss() bool {
	if s.losing.on {
		return false
	}
	s.losing.on, s.losing.begun = true, s.row.Loss.Events
	return true
}

// sayLosing logs the beginning of an episode. The caller does not hold s.mu: a log may be slow.
func (s *subscription) sayLosing(p *partition, from, to event.Offset) {
	s.e.o.Log.Warn("the ring overtakes a subscription, which loses events: raise the topic's retain, or see why it is behind; its `lost` counts them",
		"subscription", s.name, "topic", s.topic.name, "partition", p.id.Partition, "from", from, "to", to)
}

// overtaken is how many events the ring has dropped that the subscription will find gone when it reads on.
// The caller holds s.mu.
func (s *subscription) overtaken() (n uint64) {
	for i, p := range s.topic.parts {
		if c := s.cursors[i]; !c.attached {
			if head := p.log.Bounds().Head; c.read < head {
				n += head - c.read
			}
		}
	}
	return n
}

// appendLoss adds the subscription's row if it has lost more than the store knows of: in the same commit as
// a cursor that passed the gap. The caller holds s.mu.
func (s *subscription) appendLoss(ops []storage.Op) []storage.Op {
	if s.row.Loss.Events == s.losing.stored {
		return ops
	}
	op, err := s.rowOp()
	if err != nil {
		return ops // it is tried with the next
	}
	return append(ops, op)
}

// watchLosses tells of a subscription that stands still and is overtaken, and of the end of an episode.
func (s *subscription) watchLosses() {
	s.mu.Lock()
	gone := s.overtaken()
	all, seen := s.row.Loss.Events+gone, s.losing.seen
	s.losing.seen = all
	begins := gone > 0 && s.beginLoss()
	ends := s.losing.on && !begins && all == seen
	s.losing.on = s.losing.on && !ends
	lost := all - s.losing.begun
	s.mu.Unlock()
	switch {
	case begins:
		s.e.o.Log.Warn("the ring overtakes a subscription that stands still, which loses events: raise the topic's retain, or see why; its `lost` counts them",
			"subscription", s.name, "topic", s.topic.name, "gone", gone)
	case ends:
		s.e.o.Log.Warn("a subscription that was overtaken by the ring loses no more now", "subscription", s.name, "topic", s.topic.name, "lost", lost)
	}
}

// refresh has rows written anew that tell of less than the subscription has read since: after a crash, what
// it has passed over without a match would count as lost.
func (s *subscription) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.cursors {
		if c.hasRow && c.attached {
			s.touch(c)
		}
	}
}

// passSettled moves a cursor of a topic that rejects, as it was written last, to the head: such a ring drops
// nothing that was not settled, only the rows that said so may not have been written before a crash. A
// disabled subscription is not waited for.
func (s *subscription) passSettled(c *cursor, p *partition) {
	if s.topic.def.Load().WhenFull != event.Reject || s.row.Disabled != "" {
		return
	}
	head := p.log.Bounds().Head
	c.read = max(c.read, head)
	for len(c.recover) > 0 && c.recover[0] < head {
		c.recover = c.recover[1:]
	}
}
