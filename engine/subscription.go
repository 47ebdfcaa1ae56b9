package engine

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
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
	name   string
	serial uint32 // its incarnation
	topic  *topic
	seed   [32]byte // what its functions' random numbers derive from
	config atomic.Pointer[subConfig]

	commits sync.Mutex // one write of its rows under way at a time: rows of the same key must not overtake each other

	mu      sync.Mutex
	cursors []*cursor // by partition
	queue   backlog   // first tries, in order
	due     fifo[item]
	sends   fifo[job] // what functions put out and is not in hand yet
	gen     uint32    // grows with every seek: what was taken before is void
	row     subRow
	waiting string // why nothing moves although it should; "" when all is well
	ended   bool   // closing: nothing is begun
	dirty   bool
	pumps   crew
	senders crew
	room    *sync.Cond    // the queue or sends has room again
	pullers chan struct{} // closed when there is something to pull; nil when nobody waits
	parked  parkedSize
	leases  leaseBook
	workers sync.WaitGroup
	c       counters
}

// counters are a subscription's since the start. The mutex guards them.
type counters struct {
	Matched, Delivered, Failed, Parked, DeadLettered, Dropped, Lost uint64
}

// subRow is what the store keeps of a subscription besides its cursors.
type subRow struct {
	Serial   uint32
	Topic    uint32         // serial of the topic
	Starts   []event.Offset // by partition: where it began
	Paused   *time.Time     `json:",omitempty"`
	Disabled string         `json:",omitempty"` // why
	Since    *time.Time     `json:",omitempty"` // Disabled
}

// subConfig is a subscription's definition with all that it needs open. It is closed when the last step
// that runs under it has ended.
type subConfig struct {
	SubscriptionSpec
	functions []*function
	sink      Sink
	refs      atomic.Int32
}

func (e *Engine) openConfig(ctx context.Context, functions map[string]*function, spec SubscriptionSpec) (*subConfig, error) {
	c := &subConfig{SubscriptionSpec: spec}
	if c.Retry.Attempts == 0 {
		c.Retry.Attempts = 10
	}
	if len(c.Retry.Schedule) == 0 {
		c.Retry.Schedule = event.DefaultSchedule
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
	}
	if spec.Deliver.Face == event.Push {
		if spec.OpenSink == nil {
			return nil, event.Invalid("deliver", "no sink to push to")
		}
		sink, err := spec.OpenSink(ctx)
		if err != nil {
			return nil, event.At("deliver", err)
		}
		c.sink = sink
	}
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
	for _, f := range c.functions {
		errs = append(errs, f.release(context.Background()))
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

func (s *subscription) leave(c *subConfig) {
	if err := c.release(); err != nil {
		s.e.o.Log.Warn("a sink that was replaced did not close", "subscription", s.name, "error", err)
	}
}

// openSubscription makes the state of a subscription that is new to this run: as the store has it, or new
// where the definition says that it starts.
func (e *Engine) openSubscription(ctx context.Context, c *change, t *topic, config *subConfig) (*subscription, error) {
	s := &subscription{e: e, name: config.Name, topic: t}
	s.room = sync.NewCond(&s.mu)
	s.pumps.wake, s.senders.wake = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	s.config.Store(config)
	for range t.parts {
		s.cursors = append(s.cursors, &cursor{})
	}
	value, err := e.store.Load(ctx, tableSubs, []byte(s.name))
	if err != nil {
		return nil, err
	}
	if value != nil {
		if err := json.Unmarshal(value, &s.row); err != nil {
			return nil, fmt.Errorf("row of subscription %s: %w", s.name, err)
		}
	}
	if value != nil && s.row.Topic == t.serial && len(s.row.Starts) == len(t.parts) {
		s.serial = s.row.Serial
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
	s.seed = sha256.Sum256(append(append([]byte("seed\x00"), e.secret[:]...), s.name...))
	return s, err
}

func (s *subscription) begin(ctx context.Context, c *change, start event.Start) error {
	s.row = subRow{Serial: s.serial, Topic: s.topic.serial}
	offsets, err := s.topic.resolve(ctx, start)
	if err != nil {
		return event.At("start", err)
	}
	s.row.Starts = offsets
	for i, off := range offsets {
		s.cursors[i].read = off
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
	return put(tableSubs, []byte(s.name), value), err
}

func (s *subscription) restore(ctx context.Context) error {
	for i, c := range s.cursors {
		c.read = max(s.row.Starts[i], s.topic.parts[i].live.Load())
		row, err := s.e.store.Load(ctx, tableCursors, key32x2(s.serial, uint32(i)))
		if err != nil {
			return err
		}
		if row == nil {
			continue
		}
		read, out, err := parseCursorRow(row)
		if err != nil {
			return fmt.Errorf("subscription %s, partition %d: %w", s.name, i, err)
		}
		c.read, c.hasRow, c.recover = read, true, out
		for _, off := range out {
			c.out.add(off)
		}
	}
	return s.restoreParked(ctx)
}

// startSubscription sets a subscription to work; one that works is left alone.
func (e *Engine) startSubscription(s *subscription) {
	for _, p := range s.topic.parts {
		if !p.attach(s) {
			s.feed(p)
		}
	}
	s.mu.Lock()
	s.kick()
	s.mu.Unlock()
	e.parked.nudge()
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
	return s.queue.len() >= s.e.o.Queue || s.queue.pinned >= s.e.o.QueueBytes || s.parked.bytes >= s.config.Load().Parked
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

// A crew is a set of goroutines that do one kind of work of a subscription, started when there is work.
type crew struct {
	running, idle int
	shrink        bool // the idle ones shall end
	wake          *sync.Cond
}

// kick sees to it that somebody works on what is queued. The caller holds s.mu.
func (s *subscription) kick() {
	if s.ended || s.stopped() {
		return
	}
	c := s.config.Load()
	switch {
	case s.transforms(c):
		if s.queue.len()+s.due.len() > 0 {
			s.call(&s.pumps, s.pumpLimit(c), s.pump)
		}
		if s.sends.len() > 0 {
			if c.Deliver.Face == event.Push {
				s.call(&s.senders, c.Concurrency, s.send)
			} else {
				s.wakePullers()
			}
		}
	case c.Deliver.Face == event.Pull:
		if s.queue.len()+s.due.len() > 0 {
			s.wakePullers()
		}
	default:
		if s.queue.len()+s.due.len()+s.sends.len() > 0 {
			s.call(&s.senders, c.Concurrency, s.send)
		}
	}
}

func (s *subscription) call(crew *crew, limit int, work func(*crew)) {
	crew.shrink = false
	if crew.idle > 0 {
		crew.idle-- // here rather than by who wakes: a second call must not count on the same one
		crew.wake.Signal()
		return
	}
	if crew.running < limit {
		crew.running++
		s.workers.Go(func() { work(crew) })
	}
}

// rest waits for work; false tells the worker to end. The caller holds s.mu.
func (s *subscription) rest(crew *crew) bool {
	if s.ended || crew.shrink {
		return false
	}
	crew.idle++
	crew.wake.Wait()
	return !s.ended
}

// trim ends the workers that have nothing to do.
func (s *subscription) trim() {
	s.mu.Lock()
	for _, c := range []*crew{&s.pumps, &s.senders} {
		if c.idle > 0 {
			c.shrink, c.idle = true, 0
			c.wake.Broadcast()
		}
	}
	s.mu.Unlock()
}

// transforms reports whether events pass a pump rather than go out as they are.
func (s *subscription) transforms(c *subConfig) bool {
	return len(c.functions) > 0 || c.Deliver.Face == event.ToTopic || c.Deliver.Face == event.Stream
}

// pumpLimit: topics keep the order of what is put into them, so one pump; sends run side by side anyway.
func (s *subscription) pumpLimit(c *subConfig) int {
	if c.Deliver.Face == event.Push {
		return runtime.GOMAXPROCS(0)
	}
	return 1
}

func (s *subscription) stopped() bool { return s.row.Paused != nil || s.row.Disabled != "" }

// close ends the subscription's workers after what they have in hand.
func (s *subscription) close() {
	s.mu.Lock()
	s.ended = true
	s.pumps.idle, s.senders.idle = 0, 0
	s.pumps.wake.Broadcast()
	s.senders.wake.Broadcast()
	s.room.Broadcast()
	s.wakePullers()
	s.mu.Unlock()
}

// next is the next event to work on: what is due again before what is new. The caller holds s.mu.
func (s *subscription) next() (item, bool) {
	for s.due.len() > 0 {
		it := s.due.pop()
		if s.due.len() == 0 && s.parked.next != 0 {
			s.e.parked.nudge()
		}
		if it.gen == s.gen {
			return it, true
		}
	}
	for s.queue.len() > 0 {
		it := s.queue.pop()
		if s.queue.len() == s.e.o.Queue/2 || s.queue.len() == 0 {
			s.room.Broadcast()
		}
		if it.gen == s.gen && s.cursors[it.rec.Partition()].out.has(it.rec.Offset()) {
			return it, true
		}
	}
	return item{}, false
}
