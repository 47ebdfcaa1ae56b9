package engine

import (
	"slices"

	"github.com/millrace/millrace/engine/event"
)

// redemptions are deliveries that acknowledgements of the run before are settling, each with what came up of it
// meanwhile: nobody gets it before the commit has ended.
type redemptions map[event.Position]*item

// redeem reports whether an acknowledgement of the run before still counts: soon after the start, for a
// delivery that is neither settled nor in anybody's hand again, nor being settled. One of several outputs does not:
// which of the others were settled is not known any more. If so it is kept from others until redeemed.
func (s *subscription) redeem(ref leaseRef) bool {
	if ref.epoch >= s.epoch(ref.key.pos.Partition) || s.e.o.Now().Sub(s.e.start) > graceForOldLeases || ref.key.n != 0 || int(ref.key.pos.Partition) >= len(s.cursors) {
		return false
	}
	if len(s.config.Load().functions) > 0 || ref.gen != s.gen {
		return false
	}
	m := s.cursors[ref.key.pos.Partition].out.at(ref.key.pos.Offset)
	if _, under := s.redeems[ref.key.pos]; m == nil || m.taken || under {
		return false
	}
	if s.redeems == nil {
		s.redeems = redemptions{}
	}
	s.redeems[ref.key.pos] = nil
	return true
}

// awaits reports whether an acknowledgement of the run before is settling an item that came up, and keeps it until
// that has ended. The caller holds s.mu.
func (s *subscription) awaits(it item) bool {
	if len(s.redeems) == 0 || it.parked != nil {
		return false
	}
	if _, under := s.redeems[it.rec.Position()]; !under {
		return false
	}
	kept := it // a copy: it stays off the heap for everybody else
	s.redeems[it.rec.Position()] = &kept
	return true
}

// redeemed ends what redeem began: what came up meanwhile is due again unless it is settled. The caller holds s.mu.
func (s *subscription) redeemed(l *lease) {
	pos := l.job.it.rec.Position()
	it := s.redeems[pos]
	if l.job.it.gen != s.gen { // a seek has forgotten it
		return
	}
	delete(s.redeems, pos)
	if it != nil {
		s.again(*it) // next drops what is settled
		s.kick()
	}
}

// sortAs puts lost into the order of ids.
func sortAs(lost []event.Lost, ids []string) {
	at := make(map[string]int, len(ids))
	for i, id := range ids {
		at[id] = i
	}
	slices.SortStableFunc(lost, func(a, b event.Lost) int { return at[a.Lease] - at[b.Lease] })
}
