package engine

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
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
	pos event.Position
	n   int
}

type lease struct {
	job      job
	config   *subConfig
	deadline int64
}

// graceForOldLeases is how long after the start acknowledgements of the run before count.
const graceForOldLeases = 600 * time.Second

const leaseIDSize = 4 + 4 + 4 + 8 + 4 + 4 + 8 + 4

// leaseID: subscription, topic incarnation, partition, offset, n, attempt, boot epoch, generation; then 12 bytes
// of HMAC-SHA-256.
func (s *subscription) leaseID(j job) string {
	b := make([]byte, 0, leaseIDSize+12)
	b = be.AppendUint32(b, s.serial)
	b = be.AppendUint32(b, s.topic.serial)
	b = be.AppendUint32(b, j.it.rec.Partition())
	b = be.AppendUint64(b, j.it.rec.Offset())
	b = be.AppendUint32(b, uint32(j.n))
	b = be.AppendUint32(b, j.it.attempt)
	b = be.AppendUint64(b, s.epoch(j.it.rec.Partition()))
	b = be.AppendUint32(b, j.it.gen)
	return base64.RawURLEncoding.EncodeToString(s.e.seal(b))
}

// epoch is counted by the store with every start rather than timed: a clock that was set back must not make
// two runs alike.
func (s *subscription) epoch(p event.Partition) uint64 { return s.topic.parts[p].claim.Epoch() }

func (e *Engine) seal(b []byte) []byte {
	m := hmac.New(sha256.New, e.secret[:])
	_, _ = m.Write([]byte("lease\x00"))
	_, _ = m.Write(b)
	return append(b, m.Sum(nil)[:12]...)
}

type leaseRef struct {
	key     leaseKey
	attempt uint32
	epoch   uint64
	gen     uint32
}

// openLease reads a lease id; false if it is not one of this subscription's.
func (s *subscription) openLease(id string) (leaseRef, bool) {
	b, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil || len(b) != leaseIDSize+12 {
		return leaseRef{}, false
	}
	body := b[:leaseIDSize:leaseIDSize]
	if !hmac.Equal(s.e.seal(body), b) || be.Uint32(b) != s.serial || be.Uint32(b[4:]) != s.topic.serial {
		return leaseRef{}, false
	}
	if int(be.Uint32(b[8:])) >= len(s.topic.parts) {
		return leaseRef{}, false
	}
	return leaseRef{
		key:     leaseKey{event.Position{Partition: be.Uint32(b[8:]), Offset: be.Uint64(b[12:])}, int(be.Uint32(b[20:]))},
		attempt: be.Uint32(b[24:]), epoch: be.Uint64(b[28:]), gen: be.Uint32(b[36:]),
	}, true
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

// Pull leases up to max deliveries until the subscription's ack deadline, waiting up to wait for the first.
// It returns none, and no error, if none came.
func (e *Engine) Pull(ctx context.Context, name string, max int, wait time.Duration) ([]event.Lease, error) {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		s, c, err := e.pullable(name)
		if err != nil {
			return nil, err
		}
		leases, more := s.take(c, max)
		s.leave(c)
		if len(leases) > 0 || wait <= 0 || e.draining.Load() {
			return leases, nil
		}
		select {
		case <-more:
		case <-timeout.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take leases what is there; the channel is closed when there may be more.
func (s *subscription) take(c *subConfig, max int) ([]event.Lease, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var leases []event.Lease
	deadline := s.e.now().Add(c.Deliver.AckDeadline)
	for len(leases) < max && len(s.leases.out) < s.e.o.MaxLeases && !s.stopped() && !s.ended {
		j, ok := s.nextPull(c)
		if !ok {
			break
		}
		c.refs.Add(1) // the caller holds one, so it is not closed meanwhile
		s.lend(&lease{job: j, config: c, deadline: deadline.UnixNano()})
		leases = append(leases, event.Lease{ID: s.leaseID(j), Attempt: int(j.it.attempt), Deadline: deadline.UTC(), Event: j.rec})
	}
	if s.pullers == nil {
		s.pullers = make(chan struct{})
	}
	return leases, s.pullers
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
	s.leases.out[leaseKey{l.job.it.rec.Position(), l.job.n}] = l
	if s.leases.next == 0 || l.deadline < s.leases.next {
		s.leases.next = l.deadline
		s.e.parked.nudge()
	}
}

func (s *subscription) wakePullers() {
	if s.pullers != nil {
		close(s.pullers)
		s.pullers = nil
	}
}

// settleLeases takes the named leases out of the book and says which were not held.
func (s *subscription) settleLeases(ids []string, ack bool) (held []*lease, lost []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.leases.out) >= s.e.o.MaxLeases {
		defer s.kick() // pullers may wait for room in the book
	}
	for _, id := range ids {
		ref, ok := s.openLease(id)
		switch l := s.leases.out[ref.key]; {
		case ok && l != nil && ref.epoch == s.epoch(ref.key.pos.Partition) && ref.gen == s.gen && l.job.it.attempt == ref.attempt:
			delete(s.leases.out, ref.key)
			held = append(held, l)
		case ok && l == nil && ack && ref.epoch < s.epoch(ref.key.pos.Partition) && s.redeem(ref):
			rec := placeholder(ref.key.pos)
			held = append(held, &lease{job: job{it: item{rec: rec, attempt: ref.attempt, gen: s.gen}, rec: rec}})
		default:
			lost = append(lost, id)
		}
	}
	return held, lost
}

// redeem reports whether an acknowledgement of the run before still counts: soon after the start, for a
// delivery that is neither settled nor leased anew. One of several outputs does not: which of the others
// were settled is not known any more.
func (s *subscription) redeem(ref leaseRef) bool {
	if s.e.o.Now().Sub(s.e.start) > graceForOldLeases || ref.key.n != 0 || int(ref.key.pos.Partition) >= len(s.cursors) {
		return false
	}
	return len(s.config.Load().functions) == 0 && s.gen == 0 && s.cursors[ref.key.pos.Partition].out.has(ref.key.pos.Offset)
}

// placeholder is a record that has a position and nothing else: what settling needs.
func placeholder(p event.Position) event.Record {
	rec := event.Record((&event.Event{}).AppendRecord(nil))
	rec.SetPlace(p, 0)
	return rec
}

// Ack settles leases and returns once that is durable. lost are those that were no longer held.
func (e *Engine) Ack(ctx context.Context, name string, ids []string) (lost []string, err error) {
	return e.AckReply(ctx, name, ids, nil)
}

// AckReply is Ack with a reply to the producers of the leased events that asked for one.
func (e *Engine) AckReply(ctx context.Context, name string, ids []string, reply *event.Reply) (lost []string, err error) {
	if reply != nil {
		if err := reply.Check(); err != nil {
			return nil, event.At("reply", err)
		}
		own := *reply
		own.From = "pull"
		reply = fit(&own, nil)
	}
	s, c, err := e.pullable(name)
	if err != nil {
		return nil, err
	}
	defer s.leave(c)
	held, lost := s.settleLeases(ids, true)
	if reply != nil {
		e.replyTo(ctx, s, held, reply)
	}
	var sts []settlement
	s.mu.Lock()
	for _, l := range held {
		s.c.Delivered++
		if st := l.job.step; st != nil {
			st.left--
			st.done = append(st.done, uint32(l.job.n))
			if st.left > 0 {
				continue
			}
			if st.bad {
				st.failed.done, st.failed.hash, st.failed.made = st.done, hashOutputs(st.recs), l.job.made
				sts = append(sts, s.failAfter(c, leaseAttempts, l.job.it, st.failed))
				continue
			}
			sts = append(sts, settlement{it: l.job.it, outputs: st.outputs, reply: st.reply})
			continue
		}
		sts = append(sts, settlement{it: l.job.it, reply: l.job.reply})
	}
	s.mu.Unlock()
	if err := s.settle(ctx, sts); err != nil {
		s.restoreLeases(held, true)
		return nil, fmt.Errorf("ack: %w", err)
	}
	s.free(held)
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
		case l.config == nil:
		case l.job.it.gen == s.gen && !s.ended:
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

var (
	errNacked  = errors.New("the consumer gave it back")
	errExpired = errors.New("the lease expired before it was acknowledged")
)

// Nack gives leases back, due again after delay.
func (e *Engine) Nack(ctx context.Context, name string, ids []string, delay time.Duration) (lost []string, err error) {
	s, c, err := e.pullable(name)
	if err != nil {
		return nil, err
	}
	defer s.leave(c)
	held, lost := s.settleLeases(ids, false)
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
		sts = append(sts, s.failAfter(s.config.Load(), leaseAttempts, l.job.it, f))
	}
	s.mu.Unlock()
	return s.settle(ctx, sts)
}

// Extend moves the leases' deadlines to d from now.
func (e *Engine) Extend(_ context.Context, name string, ids []string, d time.Duration) (lost []string, err error) {
	s, c, err := e.pullable(name)
	if err != nil {
		return nil, err
	}
	defer s.leave(c)
	deadline := e.now().Add(d).UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		ref, ok := s.openLease(id)
		l := s.leases.out[ref.key]
		if !ok || l == nil || ref.epoch != s.epoch(ref.key.pos.Partition) || l.job.it.attempt != ref.attempt {
			lost = append(lost, id)
			continue
		}
		l.deadline = deadline
		if deadline < s.leases.next {
			s.leases.next = deadline
		}
	}
	e.parked.nudge()
	return lost, nil
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
