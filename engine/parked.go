package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

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
}

func (p *parkedEvent) key(sub uint32, rec event.Record) string {
	return string(parkedKey(sub, p.due, rec.Position()))
}

// A parked row: u32 attempt, u32 code, u64 hash, uvarint-counted done, uvarint-sized reason, with the bit
// parkedRefs of attempt uvarint-sized digests, then the record.
func (p *parkedEvent) appendRow(dst []byte, rec event.Record) []byte {
	attempt := p.attempt
	if len(p.digests) > 0 {
		attempt |= parkedRefs
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
	return append(dst, rec...)
}

var errParkedRow = errors.New("parked row is damaged")

func parseParked(key, row []byte) (*parkedEvent, event.Record, error) {
	p, reason, record, err := parseParkedHead(key, row)
	if err != nil {
		return nil, nil, err
	}
	p.reason, p.digests = string(reason), slices.Clone(p.digests)
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
	b, bad := row[16:], false
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > uint64(len(row)) {
			bad = true
			return 0
		}
		b = b[n:]
		return v
	}
	sized := func() []byte {
		n := next()
		if bad || n > uint64(len(b)) {
			bad = true
			return nil
		}
		v := b[:n]
		b = b[n:]
		return v
	}
	for range next() {
		p.done = append(p.done, uint32(next()))
	}
	reason = sized()
	if p.attempt&parkedRefs != 0 {
		p.attempt &^= parkedRefs
		p.digests = sized()
	}
	if bad {
		return nil, nil, nil, errParkedRow
	}
	return p, reason, b, nil
}

// parkedSize is what a subscription has parked: the numbers the store keeps, and what is in hand of it.
type parkedSize struct {
	size
	next    int64               // when the next one is due, Unix ns; 0 if none waits
	busy    map[string]struct{} // keys of those in hand, or delivered and not yet deleted
	cleared []cleared           // delivered: rows to delete with the next flush

	// A scan sees the rows as they were when it began: what is deleted meanwhile stays in busy until it ends,
	// or the scan would take it for due.
	scanning bool
	gone     []string
}

// forget drops the key of a row that was deleted.
func (p *parkedSize) forget(key string) {
	if p.scanning {
		p.gone = append(p.gone, key)
	} else {
		delete(p.busy, key)
	}
}

type size struct{ count, bytes int64 }

type cleared struct {
	key  string
	size int64
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
	if s.parked.next == 0 || due < s.parked.next {
		s.parked.next = due
		s.e.parked.nudge()
	}
}

// schedule wakes the goroutine that fetches what is due.
type schedule struct {
	wake chan struct{}
}

func (s *schedule) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// breath is the shortest time between two rounds.
const breath = time.Millisecond

// scheduleLoop fetches parked events when they are due and ends leases that ran out.
func (e *Engine) scheduleLoop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := e.now()
		next := now.Add(time.Hour).UnixNano()
		for _, s := range e.plan.Load().subs {
			if at := s.tick(ctx, now); at != 0 {
				next = min(next, at)
			}
		}
		// A pause between rounds bounds their cost where every event parks.
		timer.Reset(max(time.Duration(next-e.now().UnixNano()), breath))
		select {
		case <-ctx.Done():
		case <-e.parked.wake:
			pause(ctx, breath)
		case <-timer.C:
		}
	}
}

// tick returns when the subscription wants the next one, 0 for never.
func (s *subscription) tick(ctx context.Context, now time.Time) int64 {
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
	return s.due.len() > dueBatch/2 || s.due.len() > 0 && s.dueBytes >= s.e.o.QueueBytes/2
}

// dueBatch is how many parked events of a subscription are fetched at once, at most, within the bytes of its
// queue; more only when half of them are worked off.
const dueBatch = 256

// fetchDue queues what is due and returns when the next one is.
func (s *subscription) fetchDue(ctx context.Context, now time.Time) int64 {
	s.mu.Lock()
	gen := s.gen
	s.parked.next, s.parked.scanning = 0, true
	s.mu.Unlock()
	var next int64
	n, bytes := 0, 0
	err := s.e.store.Scan(ctx, tableParked, key32(s.serial), key32(s.serial+1), func(k, v []byte) error {
		due, _ := splitParkedKey(k)
		if due > now.UnixNano() || n >= dueBatch || bytes >= s.e.o.QueueBytes {
			next = due
			return storage.ErrStop
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, taken := s.parked.busy[string(k)]; taken || s.gen != gen {
			return nil
		}
		p, rec, err := parseParked(k, v)
		if err != nil {
			s.e.o.Log.Error("a parked event cannot be read and stays where it is", "subscription", s.name, "error", err)
			return nil
		}
		if s.parked.busy == nil {
			s.parked.busy = map[string]struct{}{}
		}
		s.parked.busy[string(k)] = struct{}{}
		s.again(item{rec: rec, parked: p, attempt: p.attempt + 1, gen: gen})
		n++
		bytes += len(rec)
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parked.scanning = false
	for _, key := range s.parked.gone {
		delete(s.parked.busy, key)
	}
	s.parked.gone = nil
	if err != nil && ctx.Err() == nil {
		s.e.o.Log.Error("parked events cannot be read", "subscription", s.name, "error", err)
		next = now.Add(time.Second).UnixNano()
	}
	if next != 0 && (s.parked.next == 0 || next < s.parked.next) {
		s.parked.next = next
	}
	s.kick()
	return s.parked.next
}

// backoff is the wait after the given number of tries, with jitter.
func (e *Engine) backoff(r event.RetryPolicy, tries int) time.Duration {
	d := r.Schedule[min(max(tries, 1), len(r.Schedule))-1]
	return time.Duration(float64(d) * (1 + r.Jitter*(2*rand.Float64()-1)))
}
