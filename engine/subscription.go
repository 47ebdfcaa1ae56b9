package engine

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// subscription is a subscription at work: its cursors, its one bounded queue, and who works on it. Its
// definition can be swapped (config) while it keeps its cursors.
type subscription struct {
	e      *Engine
	name   string // as its owner knows it
	key    string // as the engine does: see SubscriptionSpec.key
	serial uint32 // its incarnation
	topic  *topic
	seed   [32]byte // what its functions' random numbers derive from
	config atomic.Pointer[subConfig]

	commits sync.Mutex // one write of its rows under way at a time: rows of the same key must not overtake each other
	gone    bool       // removed: no row of it may be written any more; guarded by commits

	mu       sync.Mutex
	cursors  []*cursor  // by partition
	queue    backlog    // first tries, in order
	due      fifo[item] // tries again, and what was put back
	dueBytes int        // of the records in due
	seeking  bool       // a seek is being written
	sends    fifo[job]  // what functions put out and is not in hand yet
	gen      uint32     // grows with every seek: what was taken before is void
	row      subRow
	waiting  string // why nothing moves although it should; "" when all is well
	ended    bool   // closing: nothing is begun
	dirty    bool
	pumps    crew
	senders  crew
	filler   filler
	room     *sync.Cond // the queue or sends has room again
	pullers  pullerLine
	acks     *ackGroup  // of settlements of leases whose commit has not begun
	acking   sync.Mutex // one commit of acks at a time; taken before commits
	parked   parkedSize
	looking  alarm // of the schedule
	spread   int64 // until when redrives at a rate have spread what they took, Unix ns; of this run
	state    stateSize
	leases   leaseBook
	redeems  redemptions
	lanes    laneBook
	replay   replayBook
	gate     gate
	gathered *gathered  // replies whose commit has not begun
	replying sync.Mutex // one commit of gathered replies at a time; taken before commits
	workers  sync.WaitGroup
	c        counters
	losing   losing
	traces   tracer
}

// counters are a subscription's since the start. The mutex guards them.
type counters struct {
	Matched, Delivered, Failed, Parked, DeadLettered, Dropped uint64
	Redriven, Purged, Replayed                                uint64
}

// subRow is what the store keeps of a subscription besides its cursors.
type subRow struct {
	Serial   uint32
	Topic    uint32         // serial of the topic
	Starts   []event.Offset // by partition: where it began
	Seeks    uint32         `json:",omitempty"` // how many there were: leases of before are not held after a restart either
	Paused   *time.Time     `json:",omitempty"`
	Why      string         `json:",omitempty"` // Paused
	Disabled string         `json:",omitempty"` // why
	Since    *time.Time     `json:",omitempty"` // Disabled
	Loss     Loss           `json:",omitzero"`
}

// subConfig is a subscription's definition with all that it needs open. It is closed when the last step
// that runs under it has ended.
type subConfig struct {
	SubscriptionSpec
	functions []*function
	stateful  bool // one of them keeps state
	sink      Sink
	host      *hostGate  // that the sink sends to; nil: it names none
	limits    sinkLimits // of one Deliver
	refs      atomic.Int32
	digests   []byte // of the functions' versions, one after the other
	versions  string // name@digest of each, by comma
	shadows   []*shadow
}

func (e *Engine) openConfig(ctx context.Context, functions map[string]*function, spec SubscriptionSpec) (*subConfig, error) {
	c := &subConfig{SubscriptionSpec: spec}
	if c.Retry.Attempts == 0 {
		c.Retry.Attempts = 10
	}
	if len(c.Retry.Schedule) == 0 {
		c.Retry.Schedule = event.DefaultSchedule
	}
	if x := c.Retry.Exponential; x != nil {
		full := x.WithDefaults()
		c.Retry.Exponential = &full
	}
	if c.Concurrency == 0 {
		c.Concurrency = 16
	}
	if c.Parked == 0 {
		c.Parked = 256 << 20
	}
	if c.Deliver.AckDeadline == 0 {
		c.Deliver.AckDeadline = 10 * time.Second
	}
	for i, name := range spec.Functions {
		f := functions[name]
		if f == nil {
			have := make([]string, 0, len(functions))
			for n := range functions {
				have = append(have, n)
			}
			return nil, event.At(fmt.Sprintf("functions[%d]", i), unknown("function", name, have, ""))
		}
		c.functions = append(c.functions, f)
		c.stateful = c.stateful || f.def.Allow.KV
	}
	if spec.Deliver.Face == event.Push {
		if spec.OpenSink == nil {
			return nil, event.Invalid("deliver", "no sink to push to")
		}
		sink, err := spec.OpenSink(ctx)
		if err != nil {
			return nil, event.At("deliver", err)
		}
		c.sink, c.limits = sink, limitsOf(sink)
		if h, ok := sink.(Hosted); ok {
			c.host = e.hosts.use(h.Host())
		}
	}
	c.pin()
	for _, f := range c.functions {
		f.refs.Add(1)
	}
	c.refs.Store(1)
	return c, nil
}

// same reports whether spec would change nothing.
func (c *subConfig) same(spec SubscriptionSpec, functions map[string]*function) bool {
	for i, f := range c.functions {
		if i >= len(spec.Functions) || functions[spec.Functions[i]] != f {
			return false
		}
	}
	return c.Fingerprint == spec.Fingerprint && len(c.functions) == len(spec.Functions) && spec.Fingerprint != ""
}

func (c *subConfig) release() error {
	if c.refs.Add(-1) > 0 {
		return nil
	}
	var errs []error
	if c.sink != nil {
		errs = append(errs, c.sink.Close())
	}
	if c.host != nil {
		c.host.e.hosts.leave(c.host)
	}
	for _, f := range c.functions {
		errs = append(errs, f.release(context.Background()))
	}
	for _, sh := range c.shadows {
		sh.release()
	}
	return errors.Join(errs...)
}

// under takes a reference on the definition in force.
func (s *subscription) under() *subConfig {
	for {
		c := s.config.Load()
		for n := c.refs.Load(); n > 0; n = c.refs.Load() {
			if c.refs.CompareAndSwap(n, n+1) {
				return c
			}
		}
		if s.config.Load() == c { // removed: the last reference is gone for good
			return nil
		}
	}
}

// leaveLocked is leave for who holds s.mu: the last to leave closes the sink, and that may take a while.
func (s *subscription) leaveLocked(c *subConfig) {
	if c.refs.Add(-1) == 0 {
		c.refs.Add(1)
		s.workers.Go(func() { s.leave(c) })
	}
}

func (s *subscription) leave(c *subConfig) {
	if err := c.release(); err != nil {
		s.e.o.Log.Warn("a sink that was replaced did not close", "subscription", s.name, "error", err)
	}
}

// openSubscription makes the state of a subscription that is new to this run: as the store has it, or new
// where the definition says that it starts.
func (e *Engine) openSubscription(ctx context.Context, c *change, t *topic, config *subConfig) (*subscription, error) {
	s := &subscription{e: e, name: config.Name, key: config.key(), topic: t}
	s.room = sync.NewCond(&s.mu)
	s.pumps.wake, s.senders.wake = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	s.filler.wake = sync.NewCond(&s.mu)
	s.config.Store(config)
	s.looking.ring = s.ringSchedule
	s.gate.alarm.ring, s.gate.target = s.ringGate, targetOf(config.sink)
	s.state.next = make([]int64, len(t.parts))
	for range t.parts {
		s.cursors = append(s.cursors, &cursor{})
	}
	value, err := e.store.Load(ctx, tableSubs, []byte(s.key))
	if err != nil {
		return nil, err
	}
	if value != nil {
		if err := json.Unmarshal(value, &s.row); err != nil {
			return nil, fmt.Errorf("row of subscription %s: %w", s.name, err)
		}
	}
	s.losing.stored = s.row.Loss.Events
	if value != nil && s.row.Topic == t.serial && len(s.row.Starts) == len(t.parts) {
		s.serial, s.gen = s.row.Serial, s.row.Seeks
		err = s.restore(ctx)
	} else {
		if value != nil { // its topic was deleted and made again
			s.serial = s.row.Serial
			c.remove(s)
			c.gone = c.gone[:len(c.gone)-1]
		}
		e.serial++
		s.serial = e.serial
		err = s.begin(ctx, c, config.Start)
	}
	s.seed = seedOf(e.secret, s.name)
	return s, err
}

// seedOf is what the random numbers of a subscription's functions derive from.
func seedOf(secret [32]byte, name string) [32]byte {
	return sha256.Sum256(append(append([]byte("seed\x00"), secret[:]...), name...))
}

func (s *subscription) begin(ctx context.Context, c *change, start event.Start) error {
	s.row, s.losing = subRow{Serial: s.serial, Topic: s.topic.serial}, losing{}
	c.pin(s.topic, start)
	offsets, err := s.topic.resolve(ctx, start)
	if err != nil {
		return event.At("start", err)
	}
	s.row.Starts = offsets
	for i, off := range offsets {
		// Without a row the cursor would be the checkpoint, which may lie ahead of the start.
		s.cursors[i].read, s.cursors[i].hasRow = off, true
		c.ops = append(c.ops, put(tableCursors, key32x2(s.serial, uint32(i)), s.cursors[i].appendRow(nil, off)))
	}
	return c.putSub(s)
}

func (c *change) putSub(s *subscription) error {
	op, err := s.rowOp()
	c.ops = append(c.ops, op)
	return err
}

func (s *subscription) rowOp() (storage.Op, error) {
	value, err := json.Marshal(s.row)
	return put(tableSubs, []byte(s.key), value), err
}

func (s *subscription) restore(ctx context.Context) error {
	for i, c := range s.cursors {
		c.read = max(s.row.Starts[i], s.topic.parts[i].saved) // not the head: what the ring has dropped since counts as lost
		row, err := s.e.store.Load(ctx, tableCursors, key32x2(s.serial, uint32(i)))
		if err != nil {
			return err
		}
		if row == nil {
			s.passSettled(c, s.topic.parts[i])
			continue
		}
		read, out, err := parseCursorRow(row)
		if err != nil {
			return fmt.Errorf("subscription %s, partition %d: %w", s.name, i, err)
		}
		c.read, c.hasRow, c.recover = read, true, out
		s.passSettled(c, s.topic.parts[i])
		for _, off := range c.recover {
			c.out.add(off)
		}
	}
	if err := s.restoreState(ctx); err != nil {
		return err
	}
	if err := s.restoreParked(ctx); err != nil {
		return err
	}
	if err := s.restoreReplay(ctx); err != nil {
		return err
	}
	return s.restoreLanes(ctx)
}

// startSubscription sets a subscription to work; one that works is left alone.
func (e *Engine) startSubscription(s *subscription) {
	for _, p := range s.topic.parts {
		s.feed(p)
	}
	s.mu.Lock()
	s.room.Broadcast() // a bound may have been raised
	s.startReplay()
	s.fetchLanes()
	s.kick()
	s.lookNow()
	s.mu.Unlock()
}

// join puts a subscription that is new to this run onto the live feed if it has read everything; if not its
// cursor must not count as covered by the checkpoint. The caller holds p.mu.
func (s *subscription) join(p *partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[p.id.Partition]
	switch {
	case c.attached || c.feeding:
	case c.read >= p.live.Load() && len(c.recover) == 0:
		c.attached = true
		s.touch(c)
	default:
		s.touch(c)
	}
}

// crowded reports whether it has as much in memory as it may.
func (s *subscription) crowded() bool {
	return s.queue.len()+s.lanes.held+len(s.lanes.moving) >= s.e.o.Queue || s.queue.pinned+s.lanes.bytes >= s.e.o.QueueBytes
}

// reach is the offset below which the subscription has looked at everything.
func (c *cursor) reach(p *partition) event.Offset {
	if c.attached {
		return max(c.read, p.live.Load())
	}
	return c.read
}

// watermark is the offset below which everything is settled.
func (s *subscription) watermark(p *partition) event.Offset {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[p.id.Partition]
	if c.out.live > 0 {
		return c.out.list[c.out.head].off
	}
	return c.reach(p)
}

// touch notes that a cursor's row must be written.
func (s *subscription) touch(c *cursor) {
	c.dirty = true
	s.soil()
}

func (s *subscription) soil() {
	if !s.dirty {
		s.dirty = true
		s.e.dirty.add(s)
	}
}

func (s *subscription) stopped() bool { return s.row.Paused != nil || s.row.Disabled != "" }

// disabledFor reports whether the subscription has been disabled for longer than d.
func (s *subscription) disabledFor(now time.Time, d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.row.Disabled != "" && s.row.Since != nil && now.Sub(*s.row.Since) > d
}

// close ends the subscription's workers after what they have in hand.
func (s *subscription) close() {
	s.mu.Lock()
	s.ended = true
	s.e.alarms.set(&s.gate.alarm, 0)
	s.e.parked.set(&s.looking, 0)
	s.e.alarms.set(&s.replay.alarm, 0)
	s.wakeReplay()
	s.pumps.idle, s.senders.idle = 0, 0
	s.pumps.wake.Broadcast()
	s.senders.wake.Broadcast()
	s.filler.wake.Broadcast()
	s.room.Broadcast()
	s.dismissPullers()
	s.mu.Unlock()
}

// next is the next event to work on: what is due again before what is new. The caller holds s.mu.
func (s *subscription) next() (item, bool) { return s.nextThat(nil) }

// nextThat is next if fits (nil: anything) agrees; else the event stays where it is.
func (s *subscription) nextThat(fits func(item) bool) (item, bool) {
	if s.seeking { // which keys have rows is not known yet
		return item{}, false
	}
	for s.due.len() > 0 {
		if it := s.due.at(0); fits != nil && it.gen == s.gen && !fits(it) {
			return item{}, false
		}
		it := s.due.pop()
		s.dueBytes -= len(it.rec)
		if s.due.len() == 0 && s.parked.next != 0 {
			s.lookNow()
		}
		if s.due.len() <= dueBatch/4 {
			s.fetchLanes()
		}
		switch {
		case it.gen != s.gen:
		case it.parked == nil && !s.cursors[it.rec.Partition()].out.has(it.rec.Offset()):
			s.left(it, nil) // settled by an acknowledgement of the run before
		case s.awaits(it):
		case s.dropped(it):
			s.finish(it)
		default:
			if it.parked == nil {
				s.cursors[it.rec.Partition()].out.at(it.rec.Offset()).taken = true
			}
			return it, true
		}
	}
	for s.queue.len() > 0 {
		if it := s.queue.at(0); fits != nil && it.gen == s.gen && !fits(it) {
			return item{}, false
		}
		it := s.queue.pop()
		if s.queue.len() == s.e.o.Queue/2 || s.queue.len() == 0 {
			s.room.Broadcast()
		}
		if it.gen != s.gen {
			continue
		}
		if m := s.cursors[it.rec.Partition()].out.at(it.rec.Offset()); m != nil && s.admit(s.config.Load(), &it) && !s.awaits(it) {
			m.taken = true
			return it, true
		}
	}
	return item{}, false
}
