package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// Engine runs topics, subscriptions and functions over one store. All methods may be called at the same
// time.
//
// What waits for what, outermost first: applying (one definition change at a time) →
// letterBook.work (what is finished of a topic's dead letters) → subscription.commits (one row of a subscription under way to the store; several are held together only by
// the flush, which never waits for one, by applying, and by a seek of two halves, in this order) → partition.mu (a reader between blocks) →
// subscription.mu (memory only, never held across a wait for the store, a function or a sink).
type Engine struct {
	o     Options
	store storage.Store
	start time.Time     // wall clock and monotonic reading at Open
	skew  time.Duration // what the wall clock is ahead by and is not believed

	secret   [32]byte // of the store: seeds what functions see as random
	leaseKey [32]byte // signs leases: the secret, or what comes of it with the last fork

	applying sync.Mutex
	plan     atomic.Pointer[Plan]
	closed   bool   // guarded by applying
	serial   uint32 // last number given to a topic or subscription; guarded by applying

	held map[string]int64 // by topic: what its bridges' backlogs may hold; guarded by applying

	draining atomic.Bool
	stop     context.CancelFunc // ends readers, feeders, pumps: nothing new is begun
	abort    context.CancelFunc // ends sends and calls under way
	spawn    func(func(ctx context.Context))
	working  func() context.Context // what sends and functions run under: ends with abort
	readers  sync.WaitGroup         // everything spawn started

	flushing sync.Mutex // held during a flush
	dirty    dirtySet
	litter   chan struct{} // modules may have become unnamed
	logged   atomic.Int64  // bytes of all functions' logs

	shadowing  sync.WaitGroup // every shadow's worker
	shadowLife func() context.Context
	endShadows context.CancelFunc
	parked     alarms // of what is due
	alarms     alarms
	hosts      hosts
	budget     sendBudget
	schedules  scheduleBook
	circuit    breakerLimits
	uncounted  letterQueue
	choices    choices
	replies    *replies
	invoking   *invocations
	judging    *turns
	ended      endedLeases
	macs       sync.Pool     // of hash.Hash, keyed: see seal
	turn       atomic.Uint32 // partitions for events without a key, in turn
	clock      timeText
	traces     traceBook
	receipts   receiving
	forwarding forwarding
}

// Open reads the store's topics and subscriptions' state. Nothing runs until Apply puts a plan in force.
func Open(ctx context.Context, o Options) (*Engine, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("engine options: %w", err)
	}
	e := &Engine{o: o, store: o.Store, start: o.Now()}
	if err := e.loadMeta(ctx); err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	work, abort := context.WithCancel(context.WithoutCancel(ctx))
	e.stop, e.abort = stop, abort
	e.working = func() context.Context { return work }
	shadowLife, endShadows := context.WithCancel(work)
	e.shadowLife, e.endShadows = func() context.Context { return shadowLife }, endShadows
	e.spawn = func(f func(context.Context)) { e.readers.Go(func() { f(life) }) }
	e.parked.wake, e.alarms.wake = make(chan struct{}, 1), make(chan struct{}, 1)
	e.schedules.wake, e.schedules.alarm.ring = make(chan struct{}, 1), e.schedules.ring
	e.budget.open(e)
	e.hosts.e, e.circuit = e, breakerLimits{o.CircuitFailures, o.CircuitWait, o.CircuitMaxWait}
	e.uncounted.wake = make(chan struct{}, 1)
	e.replies, e.invoking, e.judging = newReplies(o), newInvocations(), newTurns()
	e.plan.Store(&Plan{})
	err := e.replies.load(ctx, o.Store)
	if err == nil {
		err = e.loadTopics(ctx)
	}
	if err == nil {
		err = e.loadForks(ctx)
	}
	if err != nil {
		stop()
		abort()
		return nil, fmt.Errorf("open engine: %w", err)
	}
	e.holdClock()
	e.litter = make(chan struct{}, 1)
	e.spawn(e.collectLoop)
	e.spawn(e.flushLoop)
	e.spawn(func(ctx context.Context) { e.follow(ctx, &e.parked) })
	e.spawn(func(ctx context.Context) { e.follow(ctx, &e.alarms) })
	e.spawn(e.letterLoop)
	e.spawn(e.scheduleLoop)
	return e, nil
}

func (e *Engine) loadMeta(ctx context.Context) error {
	secret, err := e.store.Load(ctx, tableMeta, []byte("secret"))
	if err != nil {
		return err
	}
	serial, err := e.store.Load(ctx, tableMeta, []byte("serial"))
	if err != nil {
		return err
	}
	if len(serial) == 4 {
		e.serial = be.Uint32(serial)
	}
	if err := e.loadHeld(ctx); err != nil {
		return err
	}
	if copy(e.secret[:], secret) == len(e.secret) {
		return nil
	}
	if e.secret = e.o.Secret; e.secret == [32]byte{} {
		if _, err := rand.Read(e.secret[:]); err != nil {
			return err
		}
	}
	return e.store.Commit(ctx, &storage.Batch{Ops: []storage.Op{put(tableMeta, []byte("secret"), e.secret[:])}})
}

// clockJump is the forward step of the wall clock between two runs that is not believed.
const clockJump = 365 * 24 * time.Hour

// holdClock goes on from the time of the last event if the wall clock is over a year ahead of it: such a
// step would make every parked delivery due at once.
func (e *Engine) holdClock() {
	var last int64
	for _, t := range e.plan.Load().topics {
		for _, p := range t.parts {
			last = max(last, p.log.Bounds().LastTime)
		}
	}
	if ahead := time.Duration(e.start.UnixNano() - last); last != 0 && ahead > clockJump && !e.o.AcceptClock {
		e.skew = ahead
		e.o.Log.Warn("the wall clock is over a year ahead of the last event; it is not followed. If it is right, start with --accept-clock", "ahead", ahead.Round(time.Hour))
	}
}

// now is the wall clock at Open plus the time that passed since: a clock that is set while the router
// runs neither expires nor retries anything early.
func (e *Engine) now() time.Time { return e.start.Add(e.o.Now().Sub(e.start) - e.skew) }

// Draining reports whether Close has begun.
func (e *Engine) Draining() bool { return e.draining.Load() }

// Drain refuses new events from now on and ends waiting readers; Close does the same and goes on.
func (e *Engine) Drain() {
	if e.draining.CompareAndSwap(false, true) {
		e.replies.drain()
		p := e.plan.Load()
		for _, t := range p.topics {
			t.wakeAll()
		}
		for _, s := range p.subs {
			s.mu.Lock()
			s.dismissPullers()
			s.mu.Unlock()
		}
	}
}

// Close drains: it refuses new events, stops reading, lets functions and sends under way finish until ctx
// ends, writes the cursors and returns. What was not settled is delivered after the next start. The store
// is the caller's to close.
func (e *Engine) Close(ctx context.Context) error {
	e.Drain()
	e.applying.Lock() // whoever changes definitions ends first; nobody begins after Drain
	defer e.applying.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	e.stop()
	e.endShadows()
	p := e.plan.Load()
	for _, s := range p.subs {
		s.close()
	}
	done := make(chan struct{})
	go func() {
		for _, s := range p.subs {
			s.workers.Wait()
		}
		e.readers.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		e.abort()
		<-done
	}
	defer e.abort()
	for _, s := range p.subs {
		s.refresh()
	}
	errs := []error{e.flush(context.WithoutCancel(ctx))}
	for _, s := range p.subs {
		s.dropLeases()
		errs = append(errs, s.config.Load().release())
	}
	e.shadowing.Wait()
	e.choices.rest(ctx, e, e.now().Add(time.Hour))
	for name, f := range p.functions {
		f.book.end()
		errs = append(errs, release(context.WithoutCancel(ctx), f, p.spares[name]))
	}
	return errors.Join(errs...)
}

func unknown(kind, name string, have []string, hint string) error {
	s := fmt.Sprintf("%s %.80q does not exist", kind, name)
	if n := event.Nearest(name, have); n != "" {
		s += fmt.Sprintf("; did you mean %q?", n)
	}
	if hint != "" {
		s += "; " + hint
	}
	return event.Bad(event.ErrNotFound, kind, s)
}
