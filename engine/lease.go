package engine

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Leases are the pull face of a subscription. They live in memory; their ids carry enough, under a MAC,
// that an acknowledgement given before a restart still counts after it.

// leaseBook is a subscription's leases. The mutex guards it.
type leaseBook struct {
	out  map[leaseKey]*lease
	next int64 // earliest deadline or earlier, Unix ns; 0 if none is out
}

type leaseKey struct {
	pos  event.Position
	n    int
	twin uint64 // number of a lease whose place is taken: a redrive, or a seek back, made the event's delivery twice
}

type lease struct {
	job      job
	config   *subConfig
	deadline int64
	seq      uint64 // its number in this run

	redeems string // id of the lease of the run before that is acknowledged; then config is nil
	void    bool   // its settlement was skipped
}

// graceForOldLeases is how long after the start acknowledgements of the run before count.
const graceForOldLeases = 600 * time.Second

const leaseIDSize = 4 + 4 + 4 + 8 + 4 + 4 + 8 + 4 + 8

// leaseID: subscription, topic incarnation, partition, offset, n, attempt, boot epoch, generation, number in the
// run; then 12 bytes of HMAC-SHA-256.
func (s *subscription) leaseID(j job, seq uint64) string {
	b := make([]byte, 0, leaseIDSize+12)
	b = be.AppendUint32(b, s.serial)
	b = be.AppendUint32(b, s.topic.serial)
	b = be.AppendUint32(b, j.it.rec.Partition())
	b = be.AppendUint64(b, j.it.rec.Offset())
	b = be.AppendUint32(b, uint32(j.n))
	b = be.AppendUint32(b, j.it.attempt)
	b = be.AppendUint64(b, s.epoch(j.it.rec.Partition()))
	b = be.AppendUint32(b, j.it.gen)
	b = be.AppendUint64(b, seq)
	return base64.RawURLEncoding.EncodeToString(s.e.seal(b))
}

// epoch is counted by the store with every start rather than timed: a clock that was set back must not make
// two runs alike.
func (s *subscription) epoch(p event.Partition) uint64 { return s.topic.parts[p].claim.Epoch() }

// Key is a key of this router's own for what is outside of the engine. One that was restored from a backup goes on with it.
func (e *Engine) Key(use string) [sha256.Size]byte {
	m := hmac.New(sha256.New, e.secret[:])
	_, _ = m.Write([]byte("key\x00" + use))
	return [sha256.Size]byte(m.Sum(nil))
}

// seal appends a lease's MAC. A key schedule is most of what a MAC of so little costs, so they are used again.
func (e *Engine) seal(b []byte) []byte {
	m, ok := e.macs.Get().(hash.Hash)
	if !ok {
		m = hmac.New(sha256.New, e.leaseKey[:])
	}
	m.Reset()
	_, _ = m.Write([]byte("lease\x00"))
	_, _ = m.Write(b)
	var sum [sha256.Size]byte
	b = append(b, m.Sum(sum[:0])[:12]...)
	e.macs.Put(m)
	return b
}

type leaseRef struct {
	key     leaseKey
	attempt uint32
	epoch   uint64
	gen     uint32
	seq     uint64
	why     event.LostWhy // why it cannot be one of this subscription's, "" if it can
}

// openLease reads a lease id. It needs no lock.
func (s *subscription) openLease(id string) leaseRef {
	var buf [leaseIDSize + 12]byte
	if len(id) != base64.RawURLEncoding.EncodedLen(leaseIDSize+12) { // Decode passes over line breaks
		return leaseRef{why: event.LostUnknown}
	}
	n, err := base64.RawURLEncoding.Decode(buf[:], []byte(id))
	if err != nil || n != leaseIDSize+12 {
		return leaseRef{why: event.LostUnknown}
	}
	b, body := buf[:n], buf[:leaseIDSize:leaseIDSize]
	switch {
	case !hmac.Equal(s.e.seal(body), b):
		return leaseRef{why: event.LostUnknown}
	case be.Uint32(b) != s.serial || be.Uint32(b[4:]) != s.topic.serial || int(be.Uint32(b[8:])) >= len(s.topic.parts):
		return leaseRef{why: event.LostForeign}
	}
	return leaseRef{
		key:     leaseKey{pos: event.Position{Partition: be.Uint32(b[8:]), Offset: be.Uint64(b[12:])}, n: int(be.Uint32(b[20:]))},
		attempt: be.Uint32(b[24:]), epoch: be.Uint64(b[28:]), gen: be.Uint32(b[36:]), seq: be.Uint64(b[40:]),
	}
}

func (e *Engine) pullable(name string) (*subscription, *subConfig, error) {
	s, err := e.delivering(name)
	if err != nil {
		return nil, nil, err
	}
	c := s.under()
	if c == nil {
		return nil, nil, fmt.Errorf("subscription %s was just removed: %w", name, event.ErrNotFound)
	}
	if c.Deliver.Face != event.Pull {
		s.leave(c)
		return nil, nil, event.Bad(event.ErrConflict, "subscription", fmt.Sprintf("%q delivers by %s; only one with `deliver: {pull: …}` can be pulled", name, c.Deliver.Face))
	}
	return s, c, nil
}

func (s *subscription) nextPull(c *subConfig) (job, bool) {
	for s.sends.len() > 0 { // also where the functions are gone from the definition meanwhile
		j := s.sends.pop()
		s.kickPump(c)
		if j.it.gen == s.gen {
			return j, true
		}
	}
	if s.transforms(c) {
		return job{}, false
	}
	it, ok := s.next()
	return job{it: it, rec: it.rec}, ok
}

func (s *subscription) lend(l *lease) {
	if s.leases.out == nil {
		s.leases.out = map[leaseKey]*lease{}
	}
	key := leaseKey{pos: l.job.it.rec.Position(), n: l.job.n}
	if s.leases.out[key] != nil {
		key.twin = l.seq
	}
	s.leases.out[key] = l
	if s.leases.next == 0 || l.deadline < s.leases.next {
		s.leases.next = l.deadline
		s.look(l.deadline)
	}
}

// settleLeases takes the named leases out of the book and says which were not held, in the order of ids. how
// is what later callers are told of those that were.
func (s *subscription) settleLeases(ids []string, ack bool, how ending) (held []*lease, lost []event.Lost) {
	refs := make([]leaseRef, len(ids))
	for i, id := range ids {
		refs[i] = s.openLease(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.leases.out) >= s.e.o.MaxLeases {
		defer s.kick() // pullers may wait for room in the book
	}
	for i, ref := range refs {
		switch l := s.leaseOf(&ref); {
		case ref.why != "":
			lost = append(lost, event.Lost{Lease: ids[i], Why: ref.why})
		case s.holds(l, ref):
			delete(s.leases.out, ref.key)
			s.e.ended.note(ref.seq, how)
			held = append(held, l)
		case l == nil && ack && s.redeem(ref):
			rec := placeholder(ref.key.pos)
			held = append(held, &lease{job: job{it: item{rec: rec, attempt: ref.attempt, gen: s.gen}, rec: rec}, redeems: ids[i]})
		default:
			lost = append(lost, event.Lost{Lease: ids[i], Why: s.whyLost(ref)})
		}
	}
	return held, lost
}

// holds reports whether l is the very lease that ref names. The caller holds s.mu.
func (s *subscription) holds(l *lease, ref leaseRef) bool {
	return l != nil && ref.seq == l.seq && ref.epoch == s.epoch(ref.key.pos.Partition) && ref.gen == s.gen
}

// leaseOf finds the lease that ref names, or one of the same event. The caller holds s.mu.
func (s *subscription) leaseOf(ref *leaseRef) *lease {
	l := s.leases.out[ref.key]
	if l != nil && l.seq == ref.seq {
		return l
	}
	twin := ref.key
	twin.twin = ref.seq
	if x := s.leases.out[twin]; x != nil {
		ref.key = twin
		return x
	}
	return l
}

// whyLost says why a lease that was handed out once is not held. The caller holds s.mu.
func (s *subscription) whyLost(ref leaseRef) event.LostWhy {
	switch {
	case ref.epoch != s.epoch(ref.key.pos.Partition):
		return event.LostRestart
	case ref.gen != s.gen:
		return event.LostSeek
	}
	return s.e.ended.why(ref.seq)
}

// placeholder is a record that has a position and nothing else: what settling needs.
func placeholder(p event.Position) event.Record {
	rec := event.Record((&event.Event{}).AppendRecord(nil))
	rec.SetPlace(p, 0)
	return rec
}

// ack settles leases, with a reply to the producers of their events if reply is not nil.
func (s *subscription) ack(ctx context.Context, c *subConfig, ids []string, reply *event.Reply) (lost []event.Lost, err error) {
	held, lost := s.settleLeases(ids, true, settled)
	if reply != nil {
		s.e.replyTo(ctx, s, held, reply)
	}
	var sts []settlement
	s.mu.Lock()
	for _, l := range held {
		if st := l.job.step; st != nil {
			st.left--
			st.done = append(st.done, uint32(l.job.n))
			if st.left > 0 {
				continue
			}
			if st.bad {
				st.failed.done, st.failed.hash, st.failed.made = st.done, hashOutputs(st.recs), l.job.made
				sts = append(sts, s.failAfter(c, leaseLimit(c), l.job.it, st.failed))
				continue
			}
			sts = append(sts, settlement{it: l.job.it, outputs: st.outputs, reply: st.reply, made: l.job.made})
			continue
		}
		st := settlement{it: l.job.it, reply: l.job.reply, made: l.job.made}
		if l.redeems != "" {
			st.void = &l.void
		}
		sts = append(sts, st)
	}
	s.mu.Unlock()
	if err := s.settleTogether(ctx, sts); err != nil {
		s.restoreLeases(held, true)
		return nil, fmt.Errorf("ack: %w", err)
	}
	void := false
	s.mu.Lock()
	for _, l := range held {
		if l.redeems != "" {
			s.redeemed(l)
		}
		if !l.void {
			s.c.Delivered++
			continue
		}
		lost = append(lost, event.Lost{Lease: l.redeems, Why: event.LostRestart})
		void = true
	}
	s.mu.Unlock()
	s.free(held)
	if void {
		sortAs(lost, ids)
	}
	return lost, nil
}

// restoreLeases puts leases back whose settlement failed: they expire, or are acknowledged again.
func (s *subscription) restoreLeases(held []*lease, acked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range held {
		if st := l.job.step; st != nil {
			st.left++
			if acked {
				st.done = slices.DeleteFunc(st.done, func(n uint32) bool { return n == uint32(l.job.n) })
			}
		}
		switch {
		case l.redeems != "":
			s.redeemed(l)
		case l.job.it.gen == s.gen && !s.ended:
			s.e.ended.forget(l.seq)
			s.lend(l)
		default:
			s.leaveLocked(l.config)
		}
	}
}

// dropLeases forgets all leases of a subscription that has ended.
func (s *subscription) dropLeases() {
	s.mu.Lock()
	out := s.leases.out
	s.leases = leaseBook{}
	s.mu.Unlock()
	for _, l := range out {
		s.leave(l.config)
	}
}

func (s *subscription) free(held []*lease) {
	for _, l := range held {
		if l.config != nil {
			s.leave(l.config)
		}
	}
}

// leaseAttempts is how many leases a delivery gets where there is a dead-letter topic (Google Pub/Sub's
// max_delivery_attempts).
const leaseAttempts = 5

// leaseLimit lets `attempts: unlimited` hold for leases too: who asked for that wants no dead letters.
func leaseLimit(c *subConfig) int {
	if c.Retry.Attempts == event.Unlimited {
		return event.Unlimited
	}
	return leaseAttempts
}

var (
	errNacked  = errors.New("the consumer gave it back")
	errExpired = errors.New("the lease expired before it was acknowledged")
)

// nack gives leases back, due again after delay.
func (s *subscription) nack(ctx context.Context, ids []string, delay time.Duration) (lost []event.Lost, err error) {
	held, lost := s.settleLeases(ids, false, returned)
	if err := s.giveBack(ctx, held, errNacked, max(delay, time.Nanosecond)); err != nil {
		s.restoreLeases(held, false)
		return nil, fmt.Errorf("nack: %w", err)
	}
	s.free(held)
	return lost, nil
}

// giveBack parks what was leased, or buries it after its last attempt.
func (s *subscription) giveBack(ctx context.Context, held []*lease, why error, delay time.Duration) error {
	var sts []settlement
	s.mu.Lock()
	for _, l := range held {
		s.c.Failed++
		f := failure{err: why, reason: "leases", wait: delay, made: l.job.made}
		if st := l.job.step; st != nil {
			st.left--
			st.bad, st.failed = true, f
			if st.left > 0 {
				continue
			}
			f.done, f.hash = st.done, hashOutputs(st.recs)
		}
		c := s.config.Load()
		sts = append(sts, s.failAfter(c, leaseLimit(c), l.job.it, f))
	}
	s.mu.Unlock()
	return s.settleTogether(ctx, sts)
}

// extend moves the leases' deadlines to d from now.
func (s *subscription) extend(ids []string, d time.Duration) (lost []event.Lost) {
	refs := make([]leaseRef, len(ids))
	for i, id := range ids {
		refs[i] = s.openLease(id)
	}
	deadline := s.e.now().Add(d).UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, ref := range refs {
		l := s.leaseOf(&ref)
		if ref.why == "" && !s.holds(l, ref) {
			ref.why = s.whyLost(ref)
		}
		if ref.why != "" {
			lost = append(lost, event.Lost{Lease: ids[i], Why: ref.why})
			continue
		}
		l.deadline = deadline
		if deadline < s.leases.next {
			s.leases.next = deadline
		}
	}
	s.look(deadline)
	return lost
}

// expire ends the leases that ran out and returns when to look again, 0 if none is out.
func (s *subscription) expire(ctx context.Context, now time.Time) int64 {
	s.mu.Lock()
	at := now.UnixNano()
	if s.leases.next == 0 || s.leases.next > at {
		next := s.leases.next
		s.mu.Unlock()
		return next
	}
	var held []*lease
	s.leases.next = 0
	for k, l := range s.leases.out {
		switch {
		case l.deadline <= at:
			held = append(held, l)
			s.e.ended.note(l.seq, expired)
			delete(s.leases.out, k)
		case s.leases.next == 0 || l.deadline < s.leases.next:
			s.leases.next = l.deadline
		}
	}
	next := s.leases.next
	s.mu.Unlock()
	if len(held) == 0 {
		return next
	}
	err := s.giveBack(ctx, held, errExpired, time.Nanosecond)
	s.mu.Lock()
	was := s.waiting
	s.waiting = ""
	if err != nil {
		s.waiting = "cannot settle expired leases: " + err.Error()
	}
	s.mu.Unlock()
	if err == nil {
		s.free(held)
		return next
	}
	if ctx.Err() == nil && was == "" {
		s.e.o.Log.Warn("a subscription waits: expired leases cannot be written", "subscription", s.name, "error", err)
	}
	again := now.Add(time.Second).UnixNano()
	for _, l := range held { // or the next round would begin at once
		l.deadline = again
	}
	s.restoreLeases(held, false)
	return again
}
