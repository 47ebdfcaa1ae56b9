package engine

import (
	"context"
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// With `order: key` the deliveries of one partitionkey are a lane: one at a time, in the order of the topic. A
// lane exists while one of its events is in hand or waits; a key without either costs nothing, however many
// there are. Behind an event in hand the others wait in memory, as part of the subscription's bounded queue.
// Behind one that is parked, or when one key fills the queue, they become rows in the store: so a key that
// fails or is slow holds up itself alone. Once a lane has rows every further event of it becomes one, and they
// are read back in order of their offsets.

// laneBook is a subscription's lanes, by hash of the key. Two keys of one hash share a lane, which is as right
// and slower. The subscription's mutex guards it.
type laneBook struct {
	open        map[uint64]*lane
	free        []*lane // for keys to come: most are idle again at once
	held        int     // events that wait in memory, in all lanes
	bytes       int     // of their records, and of those in moving
	moving      []settlement
	movingBytes int          // of their records
	mover       bool         // somebody settles what is in moving
	fetch       fifo[uint64] // lanes whose next row is to be read
	fetching    bool
	rereads     int // events that were in memory when the router stopped and are still to be read again: rows wait for them
}

type lane struct {
	busy    bool // one of its events is in hand, or queued to be
	parked  bool // its first event waits in tableParked for its due time
	rows    bool // there may be rows of it in tableLanes
	writing int  // rows on the way there
	wrote   int  // rows that came there: a scan that began before may have missed them
	older   int  // of writing, those that were read again: they may belong in front of the rows
	held    []item

	from event.Position // the rows below it have been read: what the store has not cleaned up of them is passed over
}

// back reaches back to an event that becomes a row again, or for the first time.
func (l *lane) back(p event.Position) {
	if p.Partition < l.from.Partition || p.Partition == l.from.Partition && p.Offset < l.from.Offset {
		l.from = p
	}
}

// laneOf is the lane of an event, 0 for none.
func laneOf(c *subConfig, rec event.Record) uint64 {
	if c.Order != event.ByKey {
		return 0
	}
	key := rec.Attr(event.TagPartitionKey)
	if key == "" {
		return 0
	}
	return max(xxh3.HashString(key), 1)
}

// A row of tableLanes begins with its kind. A marker says that the lane's first event is parked; its row is in
// tableParked.
const (
	laneMarker byte = iota
	laneRow
)

// laneKey sorts a lane's rows by offset. Due tells rows of one position apart: a seek back or a redrive may
// make a second.
func laneKey(sub uint32, hash uint64, p event.Position, due int64) []byte {
	k := be.AppendUint32(make([]byte, 0, 32), sub)
	k = be.AppendUint64(k, hash)
	k = be.AppendUint32(k, p.Partition)
	k = be.AppendUint64(k, p.Offset)
	return be.AppendUint64(k, uint64(due))
}

func splitLaneKey(k []byte) (hash uint64, p event.Position, due int64) {
	return be.Uint64(k[4:]), event.Position{Partition: be.Uint32(k[12:]), Offset: be.Uint64(k[16:])}, int64(be.Uint64(k[24:]))
}

// laneRange is the keys of one lane.
func laneRange(sub uint32, hash uint64) (from, to []byte) {
	from = be.AppendUint64(key32(sub), hash)
	if hash+1 == 0 {
		return from, key32(sub + 1)
	}
	return from, be.AppendUint64(key32(sub), hash+1)
}

// admit decides whether an event that was taken from the queue, or is due, may be worked on now. If not it
// waits behind others of its key, or for its time. The caller holds s.mu.
func (s *subscription) admit(c *subConfig, it *item) bool {
	if it.parked == nil {
		if due, later := s.e.delayed(it.rec); later {
			s.move(settlement{it: *it, park: &parkedEvent{due: due, born: due, attempt: it.attempt - 1}})
			return false
		}
	}
	it.lane = laneOf(c, it.rec)
	if it.lane == 0 {
		return true
	}
	l := s.lanes.open[it.lane]
	switch {
	case l == nil:
		s.lanes.enter(it.lane).busy = true
		return true
	case l.parked || l.rows || l.writing > 0:
		s.behind(l, *it)
	default:
		s.hold(l, *it)
	}
	return false
}

// hold lets an event wait in memory.
func (s *subscription) hold(l *lane, it item) {
	if it.block != nil { // a lane may wait long, and a block is much larger than an event
		it.rec, it.block = slices.Clone(it.rec), nil
	}
	l.held = append(l.held, it)
	s.lanes.held++
	s.lanes.bytes += len(it.rec)
	// Other keys wait behind what slow ones have in the queue. Half of the parked space stays for retries.
	if s.holdsMuch(l) && s.parked.bytes < s.config.Load().Parked/2 {
		s.unhold(l)
	}
}

// holdsMuch reports whether lanes hold half of what the queue may, and this one its part of that. So few events in a
// lane are enough that not all of those in hand can have fewer: else slow keys together would keep the others out.
func (s *subscription) holdsMuch(l *lane) bool {
	if s.lanes.bytes-s.lanes.movingBytes >= s.e.o.QueueBytes/2 {
		return true
	}
	part := 1 // consumers may have any number in hand, and pumps
	if c := s.config.Load(); c.Deliver.Face == event.Push && !s.transforms(c) {
		part = s.e.o.Queue / 2 / (c.Concurrency * c.limits.events)
	}
	return s.lanes.held >= s.e.o.Queue/2 && len(l.held) >= part
}

// unhold turns what a lane holds in memory into rows.
func (s *subscription) unhold(l *lane) {
	for _, it := range l.held {
		s.lanes.held--
		s.lanes.bytes -= len(it.rec)
		if it.parked != nil && it.parked.behind { // it is one already
			s.parked.release(it.parked.key(s.serial, it.rec))
			l.rows = true
			l.back(it.rec.Position())
			continue
		}
		s.behind(l, it)
	}
	l.held = nil
}

// behind makes an event a row of its lane.
func (s *subscription) behind(l *lane, it item) {
	l.writing++
	l.back(it.rec.Position())
	if it.reread {
		l.older++
	}
	row := parkedEvent{behind: true}
	if p := it.parked; p != nil {
		row = *p
		row.behind = true
	}
	row.attempt = it.attempt - 1
	s.move(settlement{it: it, park: &row})
}

// move settles something that is not in anybody's hand. The caller holds s.mu.
func (s *subscription) move(st settlement) {
	if st.it.block != nil {
		st.it.rec, st.it.block = slices.Clone(st.it.rec), nil
	}
	s.lanes.moving = append(s.lanes.moving, st)
	s.lanes.bytes += len(st.it.rec)
	s.lanes.movingBytes += len(st.it.rec)
	if !s.lanes.mover && !s.ended {
		s.lanes.mover = true
		s.workers.Go(s.moveAll)
	}
}

// A commit of what is moved is done when either bound is reached.
const (
	moveEvents = 512
	moveBytes  = 1 << 20
)

// moveAll settles what is in moving until it is empty.
func (s *subscription) moveAll() {
	ctx := s.e.working()
	for {
		s.mu.Lock()
		if len(s.lanes.moving) == 0 || s.ended { // what is left is read again after the next start
			s.lanes.mover = false
			s.mu.Unlock()
			return
		}
		n, bytes := 0, 0
		for n < len(s.lanes.moving) && n < moveEvents && bytes < moveBytes {
			bytes += len(s.lanes.moving[n].it.rec)
			n++
		}
		sts := slices.Clone(s.lanes.moving[:n])
		s.lanes.moving = slices.Delete(s.lanes.moving, 0, n)
		s.mu.Unlock()
		s.settleUntil(ctx, sts)
		s.mu.Lock()
		if len(sts) > 0 && sts[0].it.gen == s.gen {
			s.lanes.bytes -= bytes
			s.lanes.movingBytes -= bytes
		}
		if s.parked.next != 0 { // what is due may have waited for this
			s.lookNow()
		}
		s.fetchLanes()
		s.room.Broadcast()
		s.mu.Unlock()
	}
}

// left takes note that an event is not in hand any more: it is settled, or, with park, waits for its next try
// or behind others. The caller holds s.mu.
func (s *subscription) left(it item, park *parkedEvent) {
	l := s.lanes.open[it.lane]
	if it.lane == 0 || l == nil || it.gen != s.gen {
		return
	}
	switch {
	case park == nil:
		l.busy = false
		s.advance(it.lane, l)
	case park.behind:
		l.writing--
		l.wrote++
		l.rows = true
		l.back(it.rec.Position()) // rows behind it may have been read while it was written
		if it.reread {
			l.older--
		}
		if !l.busy && !l.parked && (l.writing == 0 || it.reread && l.older == 0) {
			s.advance(it.lane, l)
		}
	default:
		l.busy, l.parked = false, true
		s.unhold(l)
	}
}

// advance lets the next event of a lane go on.
func (s *subscription) advance(hash uint64, l *lane) {
	for len(l.held) > 0 {
		it := l.held[0]
		l.held[0] = item{}
		l.held = l.held[1:]
		s.lanes.held--
		s.lanes.bytes -= len(it.rec)
		if s.lanes.held == s.e.o.Queue/2 || s.lanes.held == 0 {
			s.room.Broadcast()
		}
		if it.parked == nil && !s.cursors[it.rec.Partition()].out.has(it.rec.Offset()) {
			continue // settled by an acknowledgement of the run before
		}
		l.busy = true
		s.again(it)
		s.kick()
		return
	}
	l.held = nil
	switch {
	case l.rows || l.writing > 0:
		s.lanes.fetch.push(hash)
		s.fetchLanes()
	default:
		s.lanes.close(hash, l)
	}
}

// enter opens a lane.
func (b *laneBook) enter(hash uint64) *lane {
	if b.open == nil {
		b.open = map[uint64]*lane{}
	}
	var l *lane
	if n := len(b.free); n > 0 {
		l = b.free[n-1]
		b.free = b.free[:n-1]
	} else {
		l = &lane{}
	}
	b.open[hash] = l
	return l
}

// freeLanes is how many lanes are kept for keys to come.
const freeLanes = 256

func (b *laneBook) close(hash uint64, l *lane) {
	delete(b.open, hash)
	if len(b.free) < freeLanes {
		*l = lane{}
		b.free = append(b.free, l)
	}
}

// fetchLanes reads on where lanes have rows, unless enough waits to be worked on. The caller holds s.mu.
func (s *subscription) fetchLanes() {
	if s.lanes.fetch.len() > 0 && s.lanes.rereads == 0 && !s.lanes.fetching && !s.ended && !s.seeking && !s.dueBusy() {
		s.lanes.fetching = true
		s.workers.Go(s.fetchAll)
	}
}

func (s *subscription) fetchAll() {
	ctx := s.e.working()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.lanes.fetching = false }()
	for s.lanes.fetch.len() > 0 && !s.ended && !s.seeking && !s.dueBusy() && ctx.Err() == nil {
		hash := s.lanes.fetch.pop()
		if l := s.lanes.open[hash]; l != nil && !l.busy && !l.parked && l.older == 0 {
			s.fetchLane(ctx, hash, l)
		}
	}
}

// laneBatch is how many rows of a lane are read at once, at most.
const laneBatch = 16

// fetchLane queues the next event of a lane, and holds a few behind it. The caller holds s.mu, which is
// released while the store is read.
func (s *subscription) fetchLane(ctx context.Context, hash uint64, l *lane) {
	gen, wrote := s.gen, l.wrote
	most, mostBytes := min(laneBatch, max(1, s.e.o.Queue/16)), s.e.o.QueueBytes/8
	if s.lanes.held >= s.e.o.Queue/4 || s.lanes.bytes >= s.e.o.QueueBytes/4 { // slow keys must not fill the queue this way either
		most = 1
	}
	s.beginScan()
	s.mu.Unlock()
	var items []item
	bytes := 0
	parked := false
	_, to := laneRange(s.serial, hash)
	from := laneKey(s.serial, hash, l.from, 0)
	err := s.e.store.Scan(ctx, tableLanes, from, to, func(k, v []byte) error {
		marker := len(v) > 0 && v[0] == laneMarker
		row := k
		if marker {
			_, pos, due := splitLaneKey(k)
			row = parkedKey(s.serial, due, pos)
		}
		s.mu.Lock()
		_, taken := s.parked.busy[string(row)]
		s.mu.Unlock()
		if taken {
			return nil
		}
		if marker {
			parked = len(items) == 0
			return storage.ErrStop
		}
		p, rec, err := parseLaneRow(k, v)
		if err != nil {
			s.e.o.Log.Error("an event that waits behind others of its key cannot be read and stays where it is", "subscription", s.name, "error", err)
			return nil
		}
		items = append(items, item{rec: rec, parked: p, attempt: p.attempt + 1, gen: gen, lane: hash})
		if bytes += len(rec); len(items) == most || bytes >= mostBytes {
			return storage.ErrStop
		}
		return nil
	})
	s.mu.Lock()
	s.endScan()
	if s.gen != gen || s.ended {
		return
	}
	switch {
	case err != nil:
		if ctx.Err() == nil {
			s.e.o.Log.Error("events that wait behind others of their key cannot be read", "subscription", s.name, "error", err)
		}
		s.lanes.fetch.push(hash)
		s.mu.Unlock()
		pause(ctx, breath)
		s.mu.Lock()
	case len(items) > 0:
		for i, it := range items {
			s.takeRow(it.parked.key(s.serial, it.rec))
			if i > 0 {
				l.held = append(l.held, it)
				s.lanes.held++
				s.lanes.bytes += len(it.rec)
			}
		}
		// A row that came meanwhile may lie in front, and a second one of the last position is not read yet.
		if l.wrote == wrote {
			l.from = items[len(items)-1].rec.Position()
		}
		l.busy = true
		s.again(items[0])
		s.kick()
	case parked:
		l.parked = true
	case l.writing > 0: // it comes back when they are there
	case l.wrote != wrote:
		s.lanes.fetch.push(hash)
	default:
		l.rows = false
		s.advance(hash, l)
	}
}

func parseLaneRow(key, row []byte) (*parkedEvent, event.Record, error) {
	if len(key) != 32 || len(row) == 0 || row[0] != laneRow {
		return nil, nil, errParkedRow
	}
	p, rec, err := parseParked(parkedKey(0, int64(be.Uint64(key[24:])), event.Position{}), row[1:])
	if err != nil {
		return nil, nil, err
	}
	p.size++
	p.behind, p.lane = true, be.Uint64(key[4:])
	return p, rec, nil
}

// restoreLanes finds the keys that have rows. The caller holds s.mu or is the only one who knows s.
func (s *subscription) restoreLanes(ctx context.Context) error {
	s.lanes = laneBook{mover: s.lanes.mover, fetching: s.lanes.fetching}
	for _, c := range s.cursors {
		s.lanes.rereads += len(c.recover)
	}
	if s.parked.count == 0 {
		return nil
	}
	return s.e.store.Scan(ctx, tableLanes, key32(s.serial), key32(s.serial+1), func(k, v []byte) error {
		hash, _, _ := splitLaneKey(k)
		s.lanes.found(hash, len(v) > 0 && v[0] == laneMarker)
		return nil
	})
}

// found enters a lane that has rows, as they come in order.
func (b *laneBook) found(hash uint64, marker bool) {
	l := b.open[hash]
	if l == nil {
		l = b.enter(hash)
		l.rows = true
		if !marker {
			b.fetch.push(hash)
		}
	}
	l.parked = l.parked || marker
}
