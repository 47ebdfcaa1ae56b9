package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage/pebblestore"
)

// testClock stands still until it is moved.
type testClock struct{ ns atomic.Int64 }

func (c *testClock) now() time.Time     { return time.Unix(0, c.ns.Load()).UTC() }
func (c *testClock) move(to time.Time)  { c.ns.Store(to.UnixNano()) }
func (c *testClock) start(at time.Time) { c.move(at) }

// A ruleWorld is a router in memory for one test: the real store, engine, functions and connectors, a clock that
// jumps to whatever is due next, and receivers and consumers that the test plays.
type ruleWorld struct {
	clock  testClock
	began  time.Time
	store  *pebblestore.Store
	engine *engine.Engine
	subs   map[string]engine.SubscriptionSpec
	pulled []string // subscriptions to pull
	test   *rules.Test
	counts bool          // events are counted and not kept
	stored chan struct{} // has room for one: something was published

	mu      sync.Mutex
	seen    map[string]*seenSubscription
	landed  map[string][]event.Record // what subscriptions put into topics, by topic
	given   map[string][]event.Record // what the test published, by topic
	refused []string                  // of given: why, those that were expected to be and were not too
	reply   *event.Reply
	left    time.Time // what was due next when the clock stopped; zero: nothing
}

// seenSubscription is what was seen of one subscription.
type seenSubscription struct {
	delivered, dead           []event.Record
	deliveredCount, deadCount int
	deadReason                string // of the first
	attempts                  []madeAttempt
}

// madeAttempt is one request.
type madeAttempt struct {
	after  time.Duration
	answer string
	events int
}

// The store of a test is small and forgets everything.
const (
	testMemTable = 1 << 20
	testCache    = 4 << 20
)

// openWorld puts a specification in force in a router of its own.
func openWorld(ctx context.Context, lab *ruleLab, test *rules.Test) (w *ruleWorld, err error) {
	w = &ruleWorld{test: test, began: test.At, stored: make(chan struct{}, 1), subs: map[string]engine.SubscriptionSpec{}, seen: map[string]*seenSubscription{},
		landed: map[string][]event.Record{}, given: map[string][]event.Record{}}
	w.clock.start(test.At)
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close(ctx))
		}
	}()
	w.store, err = pebblestore.Open(ctx, pebblestore.Options{Dir: "data", FS: vfs.NewMem(), Now: w.clock.now, AcceptClock: true,
		MemTable: testMemTable, Cache: testCache, BlockCache: testCache, DedupeBytes: testCache})
	if err != nil {
		return w, err
	}
	w.engine, err = engine.Open(ctx, engine.Options{Store: w.store, Host: lab.host, Now: w.clock.now, AcceptClock: true,
		Secret: testSecret, Log: lab.log.With("test", test.Name), Observer: engine.Observer{Appended: w.appended, Published: w.published}})
	if err != nil {
		return w, err
	}
	spec := lab.spec
	spec.Subscriptions = slices.Clone(spec.Subscriptions)
	for i := range spec.Subscriptions {
		w.adopt(&spec.Subscriptions[i])
	}
	if test.For == 0 {
		spec.Schedules = nil // they would go on as long as the clock
	}
	slices.Sort(w.pulled)
	return w, w.engine.Apply(ctx, spec)
}

// testSecret is the same in every run, so that what functions see as random is.
var testSecret = [32]byte{'m', 'i', 'l', 'l', 'r', 'a', 'c', 'e'}

// adopt makes a subscription one of the test's: it begins with the test, its retries come when the schedule says, to
// the moment, and the test plays its receiver.
func (w *ruleWorld) adopt(s *engine.SubscriptionSpec) {
	s.Start, s.Retry.Jitter = event.Start{At: event.Latest}, 0
	w.subs[s.Name] = *s
	w.seen[s.Name] = &seenSubscription{}
	if s.Deliver.Face == event.Pull {
		w.pulled = append(w.pulled, s.Name)
	}
	if open := s.OpenSink; open != nil {
		r := &testReceiver{w: w, subscription: s.Name, answers: w.test.Answers[s.Name], tries: map[string]int{}}
		s.OpenSink = func(ctx context.Context) (engine.Sink, error) {
			planned, err := open(ctx)
			if err != nil {
				return nil, err
			}
			return openPlanned(ctx, planned, r)
		}
	}
}

// close ends everything. Where the test has ended in time nothing is in hand; else it is broken off.
func (w *ruleWorld) close(ctx context.Context) error {
	var errs []error
	if w.engine != nil {
		if ctx.Err() == nil {
			ending, cancel := context.WithTimeout(ctx, drainTime)
			defer cancel()
			ctx = ending
		}
		errs = append(errs, w.engine.Close(ctx))
	}
	if w.store != nil {
		errs = append(errs, w.store.Close())
	}
	return errors.Join(errs...)
}

// delivered notes that a subscription's receiver or consumer has taken an event.
func (w *ruleWorld) delivered(subscription string, rec event.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen[subscription]
	if s.deliveredCount++; !w.counts {
		s.delivered = append(s.delivered, slices.Clone(rec))
	}
}

// attempted notes a request.
func (w *ruleWorld) attempted(subscription string, a rules.Answer, events int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.seen[subscription]; !w.counts {
		s.attempts = append(s.attempts, madeAttempt{w.clock.now().Sub(w.began), answerText(a), events})
	}
}

// published lets go who waits for the event whose producer waits for a reply to be stored.
func (w *ruleWorld) published(string, int, int) {
	select {
	case w.stored <- struct{}{}:
	default:
	}
}

// appended notes what a subscription put into a topic.
func (w *ruleWorld) appended(subscription, topic string, ev *event.Event) {
	rec := event.Record(ev.AppendRecord(nil))
	rec.SetPlace(event.Position{}, w.clock.now().UnixNano())
	w.mu.Lock()
	defer w.mu.Unlock()
	def, s := w.subs[subscription], w.seen[subscription]
	if s == nil {
		return
	}
	dead := false
	if by, ok := rec.Extension("deadlettersub"); ok && topic == def.DeadLetter {
		dead = by.Value == subscription
	}
	into := def.Deliver.Face == event.ToTopic || def.Deliver.Face == event.Stream
	switch {
	case dead:
		if s.deadCount++; s.deadCount == 1 {
			s.deadReason = deadReason(rec)
		}
	case into && topic == def.Deliver.Topic:
		s.deliveredCount++
	}
	if w.counts {
		return
	}
	w.landed[topic] = append(w.landed[topic], rec)
	switch {
	case dead:
		s.dead = append(s.dead, rec)
	case into && topic == def.Deliver.Topic:
		s.delivered = append(s.delivered, rec)
	}
}

// run publishes what the test gives and lets the clock run until nothing waits any more, or as far as the test says.
func (w *ruleWorld) run(ctx context.Context) error {
	end := w.began.Add(w.test.For)
	given := w.test.Given
	if w.test.For == 0 {
		end = w.began.Add(longestTest)
		if len(given) > 0 {
			end = end.Add(given[len(given)-1].After)
		}
	}
	ask := asking{ended: make(chan struct{}), done: make(chan struct{})}
	defer ask.end()
	for jumps := 0; ; {
		if err := w.rest(ctx); err != nil {
			return err
		}
		worked, err := w.pull(ctx)
		if err != nil {
			return err
		}
		if len(given) > 0 && !w.began.Add(given[0].After).After(w.clock.now()) {
			if err := w.publish(ctx, &given[0], &ask); err != nil {
				return err
			}
			given, worked = given[1:], true
		}
		if worked {
			continue
		}
		next, resting := w.engine.Resting()
		if !resting {
			continue
		}
		if len(given) > 0 {
			if at := w.began.Add(given[0].After); next.IsZero() || at.Before(next) {
				next = at
			}
		}
		if next.IsZero() || next.After(end) || jumps == mostJumps {
			if w.left = next; w.test.For > 0 {
				w.clock.move(end)
			}
			break
		}
		jumps++
		w.clock.move(next)
		w.engine.ClockMoved()
	}
	ask.end()
	w.reply = ask.reply
	return ask.err
}

// Without `for` a test's clock goes on for as long as an event can be held back, or for so many things that were due:
// what is tried without end would go on without end.
const (
	longestTest = 31 * 24 * time.Hour
	mostJumps   = 20_000
)

// rest waits until nothing moves.
func (w *ruleWorld) rest(ctx context.Context) error {
	for i := 0; ; i++ {
		if _, ok := w.engine.Resting(); ok {
			return nil
		}
		if i < 20 {
			runtime.Gosched()
		} else if err := sleep(ctx, 100*time.Microsecond); err != nil {
			return w.stuck()
		}
		if ctx.Err() != nil {
			return w.stuck()
		}
	}
}

// stuck says what did not come to an end.
func (w *ruleWorld) stuck() error {
	var busy []string
	for _, i := range w.engine.Subscriptions() {
		if i.Lag > 0 || i.Outstanding > 0 || i.Parked > 0 {
			why := ""
			if i.Reason != "" {
				why = ": " + i.State + ", " + i.Reason
			}
			busy = append(busy, fmt.Sprintf("%s (%d not read, %d in hand, %d waiting for their time%s)", i.Name, i.Lag, i.Outstanding, i.Parked, why))
		}
	}
	return fmt.Errorf("it did not come to an end in time (--timeout) and is %s after its start; `for` in the test bounds that; at work: %s",
		w.clock.now().Sub(w.began).Round(time.Second), strings.Join(busy, ", "))
}

// pull plays the consumers of subscriptions that are pulled; worked reports whether there was something to take.
func (w *ruleWorld) pull(ctx context.Context) (worked bool, err error) {
	for _, name := range w.pulled {
		leases, err := w.engine.Pull(ctx, name, 1000, 0)
		if err != nil {
			return worked, fmt.Errorf("pull %s: %w", name, err)
		}
		for _, l := range leases {
			worked = true
			a := nthAnswer(w.test.Answers[name], l.Attempt-1)
			w.attempted(name, a, 1)
			switch {
			case a.Timeout: // the lease expires
			case a.Status < 300:
				if _, err = w.engine.Ack(ctx, name, []string{l.ID}); err == nil {
					w.delivered(name, l.Event)
				}
			default:
				_, err = w.engine.Nack(ctx, name, []string{l.ID}, a.RetryAfter)
			}
			if err != nil {
				return worked, fmt.Errorf("pull %s: %w", name, err)
			}
		}
	}
	return worked, nil
}

// asking is a producer that waits for a reply.
type asking struct {
	once        sync.Once
	ended, done chan struct{}
	begun       bool
	reply       *event.Reply
	err         error
}

// end has the producer wait no longer.
func (a *asking) end() {
	a.once.Do(func() { close(a.ended) })
	if a.begun {
		<-a.done
	}
}

// publish stores what is given.
func (w *ruleWorld) publish(ctx context.Context, g *rules.Given, ask *asking) error {
	for evs := range slices.Chunk(g.Events, event.Limits{}.WithDefaults().Events) {
		evs = slices.Clone(evs)
		pos := make([]event.Position, len(evs))
		err := error(nil)
		if w.test.Reply != nil {
			err = w.ask(ctx, g.Topic, evs, pos, ask)
		} else {
			err = w.engine.Publish(ctx, g.Topic, evs, pos)
		}
		switch {
		case g.Refused && err == nil:
			w.refused = append(w.refused, fmt.Sprintf("%s was taken, and should have been refused", plural(len(evs), "event")))
		case g.Refused:
			return nil
		case err != nil:
			return fmt.Errorf("publish to %s: %w", g.Topic, err)
		}
		for i := range evs {
			if w.counts {
				break
			}
			rec := event.Record(evs[i].AppendRecord(nil))
			rec.SetPlace(pos[i], w.clock.now().UnixNano())
			w.given[g.Topic] = append(w.given[g.Topic], rec)
		}
	}
	return nil
}

// ask publishes an event whose producer waits for a reply.
func (w *ruleWorld) ask(ctx context.Context, topic string, evs []event.Event, pos []event.Position, ask *asking) error {
	ask.begun = true
	go func() {
		defer close(ask.done)
		ask.reply, ask.err = w.engine.Ask(ctx, topic, evs, pos, ask.ended)
	}()
	select {
	case <-ask.done:
		return ask.err
	case <-w.stored:
		return nil
	}
}

// functionLogs are the lines that functions logged, by function.
func (w *ruleWorld) functionLogs() (lines []string) {
	for _, f := range w.engine.Functions() {
		r, err := w.engine.FunctionLog(f.Name, -1)
		for err == nil {
			doc, ok := r.TryNext()
			if !ok {
				break
			}
			var line struct{ Level, Message string }
			if json.Unmarshal(doc, &line) == nil && line.Message != "" { // others sum up calls
				lines = append(lines, fmt.Sprintf("%s %s: %s", f.Name, line.Level, line.Message))
			}
		}
	}
	return lines
}

// deadReason is why a dead letter is one.
func deadReason(rec event.Record) string {
	e := shown(rec)
	return fmt.Sprintf("%v: %v", e["reason"], e["ext.deadletterdetail"])
}

// A ruleLab is what the tests of one set of rules share: the functions, compiled once.
type ruleLab struct {
	set  *rules.Set
	host *plugins.Host
	spec engine.Spec
	log  *slog.Logger
}

// specOf is what rules put in force, apart from receivers.
func specOf(set *rules.Set, functions []event.Function) engine.Spec {
	spec := engine.Spec{Functions: functions, Revision: revision(set, nil)}
	for _, t := range set.Topics {
		spec.Topics = append(spec.Topics, t.Topic)
	}
	for _, s := range set.Subscriptions {
		one := subscriptionSpec(s)
		one.Shadow = nil // it decides nothing, and its module is the router's
		spec.Subscriptions = append(spec.Subscriptions, one)
	}
	for _, s := range set.Schedules {
		spec.Schedules = append(spec.Schedules, s.Schedule)
	}
	for _, h := range set.Hosts {
		spec.Hosts = append(spec.Hosts, h.Host)
	}
	return spec
}

// sortedKeys are a map's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
