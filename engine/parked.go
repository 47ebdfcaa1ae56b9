package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A parked event waits in the store for its next try, with a copy of its record: the ring may turn over
// before it is due. In memory there is only what is due now, and when the next one is.

type parkedEvent struct {
	due     int64  // Unix ns
	attempt uint32 // tries made
	code    int    // what the last try was answered
	reason  string // why it failed
	done    []uint32
	hash    uint64 // of the outputs of which done are sent
	size    int64  // of its row, once stored
	digests []byte // of the versions of the functions that were at work, one after the other

	lane   uint64 // that it heads; 0 where no other waits for it
	behind bool   // it waits in tableLanes for those before it, and due only tells it from others
	batch  uint64 // of deliveries that failed as one and are sent again as one; 0: none
	with   string // "name@sha256:…": the version that a redrive chose
	lives  uint32 // how often it was redriven
	born   int64  // Unix ns: its age counts from then; 0: from when it was received
	story  []try  // the tries so far, those of earlier lives included
	replay string // id of the replay that made it; "": none
}

// try is one failed try of an event.
type try struct {
	at     int64 // Unix ns
	code   int   // what the target answered; 0 if it answered nothing
	reason string
}

// The story of an event keeps its first try and the last ones, each in few words.
const (
	storyTries  = 10
	storyReason = 160
)

// told returns the story with one more try.
func told(story []try, t try) []try {
	t.reason = clip(t.reason, storyReason)
	if len(story) >= storyTries {
		story = slices.Concat(story[:1], story[len(story)-storyTries+2:])
	}
	return append(slices.Clip(story), t)
}

func (p *parkedEvent) key(sub uint32, rec event.Record) string { return p.keyAt(sub, rec.Position()) }

// keyAt is the key of its row.
func (p *parkedEvent) keyAt(sub uint32, pos event.Position) string {
	if p.behind {
		return string(laneKey(sub, p.lane, pos, p.due))
	}
	return string(parkedKey(sub, p.due, pos))
}

// put adds the writes of a row.
func (p *parkedEvent) put(ops []storage.Op, sub uint32, rec event.Record) (_ []storage.Op, size int64) {
	if p.behind {
		row := p.appendRow([]byte{laneRow}, rec)
		return append(ops, put(tableLanes, []byte(p.key(sub, rec)), row)), int64(len(row))
	}
	row := p.appendRow(nil, rec)
	ops = append(ops, put(tableParked, []byte(p.key(sub, rec)), row))
	if p.lane != 0 {
		ops = append(ops, put(tableLanes, laneKey(sub, p.lane, rec.Position(), p.due), []byte{laneMarker}))
	}
	return ops, int64(len(row))
}

// drop adds the removal of a row.
func (p *parkedEvent) drop(ops []storage.Op, sub uint32, pos event.Position) []storage.Op {
	if !p.behind {
		ops = append(ops, del(tableParked, parkedKey(sub, p.due, pos)))
	}
	if p.behind || p.lane != 0 {
		ops = append(ops, del(tableLanes, laneKey(sub, p.lane, pos, p.due)))
	}
	return ops
}

// A parked row: u32 attempt, u32 code, u64 hash, uvarint-counted done, uvarint-sized reason, with the bit
// parkedRefs of attempt uvarint-sized digests, with parkedMore uvarint-sized further fields (u64 lane, u64 batch, uvarint
// lives, u64 born, uvarint-sized with, uvarint-counted tries: i64 at, uvarint code, uvarint-sized reason; of a replay
// uvarint-sized its id), then the record.
func (p *parkedEvent) appendRow(dst []byte, rec event.Record) []byte {
	attempt := p.attempt
	if len(p.digests) > 0 {
		attempt |= parkedRefs
	}
	var more []byte
	if p.lane != 0 || p.batch != 0 || p.lives != 0 || p.born != 0 || p.with != "" || len(p.story) > 0 || p.replay != "" {
		attempt |= parkedMore
		more = p.appendMore(nil)
	}
	dst = be.AppendUint32(dst, attempt)
	dst = be.AppendUint32(dst, uint32(p.code))
	dst = be.AppendUint64(dst, p.hash)
	dst = binary.AppendUvarint(dst, uint64(len(p.done)))
	for _, n := range p.done {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	dst = binary.AppendUvarint(dst, uint64(len(p.reason)))
	dst = append(dst, p.reason...)
	if len(p.digests) > 0 {
		dst = append(binary.AppendUvarint(dst, uint64(len(p.digests))), p.digests...)
	}
	if more != nil {
		dst = append(binary.AppendUvarint(dst, uint64(len(more))), more...)
	}
	return append(dst, rec...)
}

func (p *parkedEvent) appendMore(dst []byte) []byte {
	sized := func(s string) { dst = append(binary.AppendUvarint(dst, uint64(len(s))), s...) }
	dst = be.AppendUint64(be.AppendUint64(dst, p.lane), p.batch)
	dst = be.AppendUint64(binary.AppendUvarint(dst, uint64(p.lives)), uint64(p.born))
	sized(p.with)
	dst = binary.AppendUvarint(dst, uint64(len(p.story)))
	for _, t := range p.story {
		dst = binary.AppendUvarint(be.AppendUint64(dst, uint64(t.at)), uint64(t.code))
		sized(t.reason)
	}
	if p.replay != "" {
		sized(p.replay)
	}
	return dst
}

var errParkedRow = errors.New("parked row is damaged")

func parseParked(key, row []byte) (*parkedEvent, event.Record, error) {
	p, reason, record, err := parseParkedHead(key, row)
	if err != nil {
		return nil, nil, err
	}
	p.reason, p.digests = string(reason), slices.Clone(p.digests)
	p.with, p.replay = strings.Clone(p.with), strings.Clone(p.replay)
	for i := range p.story {
		p.story[i].reason = strings.Clone(p.story[i].reason)
	}
	rec, rest, err := event.CutRecord(slices.Clone(record))
	if err != nil || len(rest) != 0 {
		return nil, nil, errParkedRow
	}
	return p, rec, nil
}

// parseParkedHead reads what stands before the record. It borrows row.
func parseParkedHead(key, row []byte) (p *parkedEvent, reason, record []byte, err error) {
	if len(key) != 24 || len(row) < 16 {
		return nil, nil, nil, errParkedRow
	}
	p = &parkedEvent{attempt: be.Uint32(row), code: int(be.Uint32(row[4:])), hash: be.Uint64(row[8:]), size: int64(len(row))}
	p.due, _ = splitParkedKey(key)
	r := rowReader{b: row[16:]}
	for range r.count() {
		p.done = append(p.done, uint32(r.uvarint()))
	}
	reason = r.sized()
	if p.attempt&parkedRefs != 0 {
		p.attempt &^= parkedRefs
		p.digests = r.sized()
	}
	if p.attempt&parkedMore != 0 {
		p.attempt &^= parkedMore
		m := rowReader{b: r.sized(), bad: r.bad}
		p.lane, p.batch, p.lives = m.u64(), m.u64(), uint32(m.uvarint())
		p.born = int64(m.u64())
		p.with = borrow(m.sized())
		for range m.count() {
			p.story = append(p.story, try{at: int64(m.u64()), code: int(m.uvarint()), reason: borrow(m.sized())})
		}
		if len(m.b) > 0 {
			p.replay = borrow(m.sized())
		}
		r.bad = r.bad || m.bad
	}
	if r.bad {
		return nil, nil, nil, errParkedRow
	}
	return p, reason, r.b, nil
}

// rowReader takes a row apart; what it reads past the end is zero, and bad.
type rowReader struct {
	b   []byte
	bad bool
}

func (r *rowReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count is a number of things that take a byte each at least.
func (r *rowReader) count() uint64 {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return n
}

func (r *rowReader) u64() uint64 {
	if len(r.b) < 8 {
		r.bad, r.b = true, nil
		return 0
	}
	v := be.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

func (r *rowReader) sized() []byte {
	n := r.count()
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// parkedSize is what a subscription has parked: the numbers the store keeps, and what is in hand of it.
type parkedSize struct {
	size
	next    int64               // when the next one is due, Unix ns; 0 if none waits
	low     int64               // no row is due before it, Unix ns
	busy    map[string]struct{} // keys of those in hand, or delivered and not yet deleted
	cleared []cleared           // delivered: rows to delete with the next flush

	// A scan sees the rows as they were when it began: what is deleted meanwhile stays in busy until it ends,
	// or the scan would take it for due.
	scanning int
	gone     []string
}

func (s *subscription) beginScan() { s.parked.scanning++ }

func (s *subscription) endScan() {
	if s.parked.scanning--; s.parked.scanning == 0 {
		for _, key := range s.parked.gone {
			delete(s.parked.busy, key)
		}
		s.parked.gone = nil
	}
}

// inHand reports whether a row is in hand, or being written.
func (s *subscription) inHand(key string) bool {
	_, taken := s.parked.busy[key]
	return taken
}

// takeRow notes that a row is in hand.
func (s *subscription) takeRow(key string) {
	if s.parked.busy == nil {
		s.parked.busy = map[string]struct{}{}
	}
	s.parked.busy[key] = struct{}{}
}

// release drops the key of a row that stays. At once, unlike forget: whoever reads next must find it.
func (p *parkedSize) release(key string) { delete(p.busy, key) }

// forget drops the key of a row that was deleted.
func (p *parkedSize) forget(key string) {
	if p.scanning > 0 {
		p.gone = append(p.gone, key)
	} else {
		delete(p.busy, key)
	}
}

type size struct{ count, bytes int64 }

type cleared struct {
	pos event.Position
	row *parkedEvent
}

func (z size) op(sub uint32) storage.Op {
	v := be.AppendUint64(nil, uint64(z.count))
	return put(tableParkedSize, key32(sub), be.AppendUint64(v, uint64(z.bytes)))
}

func (s *subscription) restoreParked(ctx context.Context) error {
	v, err := s.e.store.Load(ctx, tableParkedSize, key32(s.serial))
	if err != nil || len(v) != 16 {
		return err
	}
	s.parked.size = size{int64(be.Uint64(v)), int64(be.Uint64(v[8:]))}
	if s.parked.count > 0 {
		s.parked.next = 1
	}
	return nil
}

// dueAt notes that a parked event is due at a time. The caller holds s.mu.
func (s *subscription) dueAt(due int64) {
	s.parked.low = min(s.parked.low, due)
	if s.parked.next == 0 || due < s.parked.next {
		s.parked.next = due
		s.look(due)
	}
}

// look has the schedule look at the subscription at a time, or earlier. The caller holds s.mu.
func (s *subscription) look(at int64) {
	if !s.ended {
		s.e.parked.sooner(&s.looking, at)
	}
}

// lookNow has the schedule look at the subscription at once. The caller holds s.mu.
func (s *subscription) lookNow() { s.look(s.e.now().UnixNano()) }

// breath is the shortest time between two looks: it bounds their cost where every event parks.
const breath = time.Millisecond

// ringSchedule fetches parked events that are due and ends leases that ran out.
func (s *subscription) ringSchedule(ctx context.Context) {
	now := s.e.now()
	if at := s.tick(ctx, now); at != 0 {
		s.mu.Lock()
		s.look(max(at, now.Add(breath).UnixNano()))
		s.mu.Unlock()
	}
}

// tick returns when the subscription wants the next one, 0 for never.
func (s *subscription) tick(ctx context.Context, now time.Time) int64 {
	s.mu.Lock()
	seeking := s.seeking
	s.mu.Unlock()
	if seeking { // which may hold the commits for long, voids the leases, and has it looked at in the end
		return 0
	}
	expiry := s.expire(ctx, now)
	s.mu.Lock()
	due, busy := s.parked.next, s.dueBusy() || s.stopped() || s.ended || s.seeking
	s.mu.Unlock()
	if due != 0 && !busy && due <= now.UnixNano() {
		due = s.fetchDue(ctx, now)
	} else if busy {
		due = 0 // next is asked for again when the queue is worked off or the subscription resumes
	}
	switch {
	case due == 0:
		return expiry
	case expiry == 0:
		return due
	}
	return min(due, expiry)
}

// dueBusy reports whether enough of what is due is in memory. The caller holds s.mu.
func (s *subscription) dueBusy() bool {
	return s.due.len() > dueBatch/2 || s.due.len() > 0 && s.dueBytes >= s.e.o.QueueBytes/2 ||
		len(s.lanes.moving) >= moveEvents || s.lanes.movingBytes >= s.e.o.QueueBytes/2 // of which much may have been due
}

// dueBatch is how many parked events of a subscription are fetched at once, at most, within the bytes of its
// queue; more only when half of them are worked off.
const dueBatch = 256

// fetchDue queues what is due and returns when the next one is.
func (s *subscription) fetchDue(ctx context.Context, now time.Time) int64 {
	s.mu.Lock()
	gen, low := s.gen, s.parked.low
	s.parked.next, s.parked.low = 0, math.MaxInt64
	s.beginScan()
	s.mu.Unlock()
	var next int64
	var found []item // queued at once: who takes the first of a batch finds all of it
	bytes, last, passed := 0, uint64(0), uint64(0)
	var again int64
	// Rows leave at the front; what the store has not cleaned up of them yet is passed over by beginning behind it.
	first := int64(math.MaxInt64)
	err := s.e.store.Scan(ctx, tableParked, parkedKey(s.serial, low, event.Position{}), key32(s.serial+1), func(k, v []byte) error {
		due, _ := splitParkedKey(k)
		first = min(first, due)
		if due > now.UnixNano() {
			next = due
			return storage.ErrStop
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, taken := s.parked.busy[string(k)]; taken || s.gen != gen {
			if head, _, _, err := parseParkedHead(k, v); err == nil {
				passed = head.batch
			}
			return nil
		}
		p, rec, err := parseParked(k, v)
		if err != nil {
			s.e.o.Log.Error("a parked event cannot be read and stays where it is", "subscription", s.name, "error", err)
			return nil
		}
		if p.batch != 0 && p.batch == passed { // its commit was taken note of between two rows: all of it next time
			again = due
			return nil
		}
		if (len(found) >= dueBatch || bytes >= s.e.o.QueueBytes) && (p.batch == 0 || p.batch != last) {
			next = due
			return storage.ErrStop
		}
		last = p.batch
		s.takeRow(string(k))
		found = append(found, item{rec: rec, parked: p, attempt: p.attempt + 1, gen: gen, lane: p.lane})
		bytes += len(rec)
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endScan()
	if err != nil {
		first = low
		found = s.withoutLast(found) // of a batch that is sent again there may be more
	}
	s.parked.low = min(s.parked.low, first)
	for _, it := range found {
		if it.gen == s.gen {
			s.arrive(it)
		}
	}
	if err != nil && ctx.Err() == nil {
		s.e.o.Log.Error("parked events cannot be read", "subscription", s.name, "error", err)
		next = now.Add(time.Second).UnixNano()
	}
	if again != 0 {
		next = again
	}
	if next != 0 && (s.parked.next == 0 || next < s.parked.next) {
		s.parked.next = next
	}
	s.kick()
	return s.parked.next
}

// withoutLast lets go of the batch that the last of found is of. The caller holds s.mu.
func (s *subscription) withoutLast(found []item) []item {
	for n := len(found); n > 0; n-- {
		if b := batchOf(found[n-1]); b == 0 || b != batchOf(found[len(found)-1]) {
			return found[:n]
		}
		s.parked.release(found[n-1].parked.key(s.serial, found[n-1].rec))
	}
	return nil
}

// arrive takes a parked event that is due. The caller holds s.mu.
func (s *subscription) arrive(it item) {
	c := s.config.Load()
	l := s.lanes.open[it.lane]
	switch {
	case it.lane == 0:
	case l == nil:
		it.lane = 0
	case l.busy:
		l.parked = false
		s.hold(l, it)
		return
	default:
		l.busy, l.parked = true, false
	}
	if t := s.e.plan.Load().topics[c.DeadLetter]; t != nil && it.attempt > 1 && c.tooOld(it, s.e.now()) {
		s.move(s.expired(c, t, it))
		return
	}
	if it.lane != 0 || s.admit(c, &it) {
		s.again(it)
	}
}
