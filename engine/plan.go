package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// Spec is the whole of what shall be in force: what rules and the API define together. Topics that exist
// but are not in it are kept as they are.
type Spec struct {
	Topics        []event.Topic
	Functions     []event.Function
	Subscriptions []SubscriptionSpec
	Hosts         []event.Host
	Schedules     []event.Schedule
	Revision      string // of the rules and definitions, for dead letters to name; "" for none

	// Lossless refuses, with event.ErrConflict, to remove a subscription that has not delivered all it has to, unless
	// Keep names it.
	Lossless bool

	Keep []string                              // subscriptions of which, if they are removed, all that is not delivered becomes dead letters first
	Kept func(subscription string, events int) // told of each batch of that; may be nil
}

// SubscriptionSpec is a subscription with its filter compiled and its sink ready to be opened.
type SubscriptionSpec struct {
	event.Subscription
	Program     *filters.Program                        // nil matches all
	OpenSink    func(ctx context.Context) (Sink, error) // Push only
	Fingerprint string                                  // of all that matters, secrets included: equal ones keep running

	half  half               // of the subscription as its owner wrote it
	asked event.Subscription // which is this, for a function half
}

// Plan is what is in force. It is immutable: Apply builds the next one and swaps.
type Plan struct {
	topics    map[string]*topic
	functions map[string]*function
	subs      map[string]*subscription
	spares    map[string]*function // by name: the version before the one in force, for a rollback at once

	deadLetters map[string]bool // topics that hold dead letters
	revision    string          // of the rules that it was made of
}

// function is an opened module, shared by the plan and the subscriptions that use it, closed with the
// last of them.
type function struct {
	def   event.Function
	print string
	code  *plugins.Function // nil while nothing was pushed
	book  *book
	refs  atomic.Int32
}

// digest is the version, "" while nothing was pushed.
func (f *function) digest() string { return f.def.Digest }

func (f *function) release(ctx context.Context) error {
	if f.refs.Add(-1) > 0 {
		return nil
	}
	if f.code == nil {
		return nil
	}
	return f.code.Close(ctx)
}

// change collects what Apply opened, so that a plan that fails to build changes nothing.
type change struct {
	next    Plan
	ops     []storage.Op
	topics  []*topic          // new
	defs    []redefined       // topics whose definition changes once the commit is through
	subs    []*subscription   // new
	made    map[string]string // topics between two halves → their subscription
	dropped []*topic          // such topics that go
	swaps   []swap
	gone    []*subscription
	undo    []func()
	pins    []pinned
	touched map[*topic]bool // their subscriptions, or what those ask for, change: see Engine.touch

	versions []versioned
	held     map[string]int64 // see Engine.held

	schedules map[string]*schedule
}

// redefined is a topic with its next definition. It is put in force after the commit: a ring that was made
// smaller by a plan that then failed would have dropped events for nothing.
type redefined struct {
	t    *topic
	next *topicDef
	of   string
}

type swap struct {
	s    *subscription
	next *subConfig
}

// Apply puts spec in force as a whole, or changes nothing and says why. ops are written in the same commit:
// the API's own definitions. New subscriptions begin where their Start says, taken now; changed ones keep
// their cursor; those that are not in spec any more are removed with their cursors and parked deliveries.
func (e *Engine) Apply(ctx context.Context, spec Spec, ops ...storage.Op) error {
	opened := e.openAhead(ctx, spec.Functions)
	defer func() {
		for name, a := range opened {
			if a.code != nil {
				e.logClose("function", name, a.code.Close(context.WithoutCancel(ctx)))
			}
		}
	}()
	e.applying.Lock()
	defer e.applying.Unlock()
	if e.draining.Load() {
		return fmt.Errorf("apply: the router is draining: %w", event.ErrUnavailable)
	}
	e.schedules.firing.Lock() // no time is dealt with under two definitions
	defer e.schedules.firing.Unlock()
	old := e.plan.Load()
	c := &change{
		next: Plan{revision: spec.Revision, topics: maps.Clone(old.topics), functions: map[string]*function{}, subs: map[string]*subscription{}, spares: map[string]*function{}},
		ops:  ops,
	}
	if c.next.topics == nil {
		c.next.topics = map[string]*topic{}
	}
	defer func() { e.settleFloors(c, old) }()
	err := spec.checkNames()
	if err == nil {
		spec, err = e.split(ctx, c, old, spec)
	}
	if err == nil {
		err = e.checkSealed(spec)
	}
	if err == nil {
		err = errors.Join(e.planTopics(ctx, c, spec.Topics), e.planFunctions(ctx, c, old, spec.Functions, opened))
	}
	if err == nil {
		err = e.planSubscriptions(ctx, c, old, spec.Subscriptions)
	}
	if err == nil {
		err = e.planSchedules(ctx, c, spec.Schedules)
	}
	if err == nil {
		err = e.planHeld(c, spec)
	}
	if err == nil {
		c.dropBetween(spec)
	}
	if err == nil && len(spec.Keep) > 0 {
		err = e.keepGone(ctx, c, spec)
	}
	if err == nil && len(c.ops) > 0 {
		err = e.commitChange(ctx, c, spec)
	}
	if err != nil {
		for _, f := range slices.Backward(c.undo) {
			f()
		}
		return fmt.Errorf("apply: %w", err)
	}
	e.swap(ctx, c, old, spec.Topics, spec.Hosts)
	return nil
}

// commitChange writes a change. Rows of the subscriptions that go must not be written after it: whoever
// changes their state waits, and then finds them gone.
func (e *Engine) commitChange(ctx context.Context, c *change, spec Spec) error {
	slices.SortFunc(c.gone, func(a, b *subscription) int { return strings.Compare(a.key, b.key) }) // as Seek locks two halves
	for _, s := range c.gone {
		s.commits.Lock()
		defer s.commits.Unlock()
	}
	if spec.Lossless {
		if err := c.losesNothing(spec.Keep); err != nil {
			return err
		}
	}
	c.ops = append(c.ops, put(tableMeta, []byte("serial"), key32(e.serial)))
	err := e.store.Commit(ctx, &storage.Batch{Ops: c.ops})
	for _, s := range c.gone {
		s.gone = err == nil
	}
	return err
}

// losesNothing fails if one of the subscriptions that go has something to deliver. Their commits are held.
func (c *change) losesNothing(kept []string) error {
	var errs []error
	for _, s := range c.gone {
		if slices.Contains(kept, s.name) {
			continue
		}
		s.mu.Lock()
		lag, outstanding := s.ahead()
		n := lag + uint64(outstanding) + uint64(max(0, s.parked.count))
		s.mu.Unlock()
		if n > 0 {
			errs = append(errs, event.Bad(event.ErrConflict, "subscriptions."+s.name, fmt.Sprintf("has %d undelivered events by now: keep them or let them go, and apply again", n)))
		}
	}
	return errors.Join(errs...)
}

// checkNames refuses a name that is defined twice.
func (s *Spec) checkNames() error {
	var errs []error
	seen := map[string]bool{}
	once := func(kind, name string) {
		if at := kind + "." + name; seen[at] {
			errs = append(errs, event.Bad(event.ErrConflict, at, "is defined twice; names are unique"))
		} else {
			seen[at] = true
		}
	}
	for i := range s.Topics {
		once("topics", s.Topics[i].Name)
	}
	for i := range s.Functions {
		once("functions", s.Functions[i].Name)
	}
	for i := range s.Subscriptions {
		once("subscriptions", s.Subscriptions[i].Name)
	}
	return errors.Join(errs...)
}

// redefine puts changed definitions of topics in force.
func (e *Engine) redefine(ctx context.Context, c *change) {
	for _, r := range c.defs {
		r.t.def.Store(r.next)
		r.t.of = r.of
		for _, p := range r.t.parts {
			if _, err := e.store.OpenLog(ctx, p.id, r.t.logOptions(r.next.Topic)); err != nil {
				e.o.Log.Error("a topic's bounds are not in force before the next start", "topic", r.t.name, "error", err)
			}
		}
	}
}

// swap cannot fail: everything is open and the store knows of it.
func (e *Engine) swap(ctx context.Context, c *change, old *Plan, topics []event.Topic, hosts []event.Host) {
	e.redefine(context.WithoutCancel(ctx), c)
	e.hosts.set(hosts)
	for _, s := range c.gone {
		s.close()
	}
	for _, w := range c.swaps {
		if err := w.s.config.Swap(w.next).release(); err != nil {
			e.o.Log.Warn("a sink that was replaced did not close", "subscription", w.s.name, "error", err)
		}
		w.s.recall()
		w.s.retarget(w.next)
	}
	c.next.deadLetters = map[string]bool{}
	for _, s := range c.next.subs {
		c.next.deadLetters[s.config.Load().DeadLetter] = true
	}
	var letters []*topic // that hold dead letters from now on
	for name := range c.next.deadLetters {
		if t := c.next.topics[name]; t != nil && !old.deadLetters[name] {
			letters = append(letters, t)
			c.pin(t, event.Start{At: event.Latest}) // unfinished from the first on
		}
	}
	e.holdTopics(context.WithoutCancel(ctx), c)
	e.plan.Store(&c.next)
	for _, t := range letters {
		e.uncounted.add(t)
	}
	e.endDropped(c)
	e.feedTouched(c)
	for _, t := range topics {
		c.next.topics[t.Name].changed()
	}
	// The others work as before: what a plan leaves as it was costs it next to nothing.
	for _, s := range c.subs {
		e.startSubscription(s)
	}
	for _, w := range c.swaps {
		e.startSubscription(w.s)
	}
	for _, t := range c.next.topics { // after their subscriptions: those that have read all join the live feed where they stand
		e.startTopic(t)
	}
	for _, s := range c.gone {
		e.spawn(func(context.Context) {
			s.workers.Wait()
			s.dropLeases()
			// What was under way may have written rows after they were deleted.
			if err := e.store.Commit(context.WithoutCancel(ctx), &storage.Batch{Ops: s.removal()}); err != nil {
				e.o.Log.Warn("a removed subscription's rows stay behind", "subscription", s.name, "error", err)
			}
			if err := s.config.Load().release(); err != nil {
				e.o.Log.Warn("a removed subscription's sink did not close", "subscription", s.name, "error", err)
			}
		})
	}
	c.turn()
	e.schedules.set(e, c.schedules)
	for name, f := range old.functions {
		if c.next.functions[name] == nil {
			f.book.end()
		}
		e.logClose("function", name, release(context.WithoutCancel(ctx), f, old.spares[name]))
	}
	e.collect()
}

func (e *Engine) planFunctions(ctx context.Context, c *change, old *Plan, defs []event.Function, opened map[string]*ahead) error {
	var errs []error
	for _, def := range defs {
		if err := e.planFunction(ctx, c, old, def, opened); err != nil {
			errs = append(errs, event.At("functions."+def.Name, err))
		}
	}
	return errors.Join(append(errs, e.forgetFunctions(ctx, c))...)
}

func (e *Engine) logClose(kind, name string, err error) {
	if err != nil {
		e.o.Log.Warn("could not close a "+kind, "name", name, "error", err)
	}
}

func (e *Engine) planSubscriptions(ctx context.Context, c *change, old *Plan, specs []SubscriptionSpec) error {
	errs := []error{checkCircle(specs)}
	for _, spec := range specs {
		if err := e.planSubscription(ctx, c, old, spec); err != nil {
			errs = append(errs, event.At("subscriptions."+spec.Name, err))
		}
	}
	for name, s := range old.subs {
		if c.next.subs[name] == nil {
			c.remove(s)
		}
	}
	if old.subs == nil { // the first plan of this run
		errs = append(errs, e.removeStale(ctx, c))
	}
	return errors.Join(errs...)
}

func (c *change) remove(s *subscription) {
	c.gone = append(c.gone, s)
	c.ops = append(append(c.ops, del(tableSubs, []byte(s.key))), s.removal()...)
}

// removal deletes all rows that go by the subscription's number.
func (s *subscription) removal() []storage.Op { return removal(s.serial) }

func removal(serial uint32) []storage.Op {
	return append(removalOfState(serial), delPrefix(tableCursors, serial), delPrefix(tableParked, serial), delPrefix(tableLanes, serial), del(tableParkedSize, key32(serial)), del(tableReplays, key32(serial)))
}

// removeStale deletes what the store has of subscriptions that were in force before this start and are not
// any more.
func (e *Engine) removeStale(ctx context.Context, c *change) error {
	return e.store.Scan(ctx, tableSubs, nil, nil, func(k, v []byte) error {
		name := string(k)
		if c.next.subs[name] != nil {
			return nil
		}
		var row subRow
		if err := json.Unmarshal(v, &row); err != nil {
			return fmt.Errorf("row of subscription %s: %w", name, err)
		}
		e.o.Log.Warn("a subscription is not defined any more: it is removed with its cursor and parked deliveries", "subscription", name)
		c.ops = append(append(c.ops, del(tableSubs, []byte(name))), removal(row.Serial)...)
		return nil
	})
}

func (e *Engine) planSubscription(ctx context.Context, c *change, old *Plan, spec SubscriptionSpec) error {
	if err := event.CheckName("subscription", spec.Name); err != nil {
		return err
	}
	t := c.next.topics[spec.Topic]
	for _, need := range []struct{ at, name string }{{"topic", spec.Topic}, {"deliver.topic", spec.Deliver.Topic}, {"deadLetter", spec.DeadLetter}} {
		if need.name != "" && c.next.topics[need.name] == nil {
			return event.At(need.at, unknown("topic", need.name, slices.Collect(maps.Keys(c.next.topics)), ""))
		}
	}
	if t == nil {
		return event.Invalid("topic", "missing")
	}
	key := spec.key()
	s := old.subs[key]
	if s != nil && s.topic != t {
		c.remove(s) // another topic is another subscription: its cursor means nothing here
		s = nil
	}
	if s != nil && s.config.Load().same(spec, c.next.functions) {
		c.next.subs[key] = s
		return nil
	}
	next, err := e.openConfig(ctx, c.next.functions, spec)
	if err != nil {
		return err
	}
	c.undo = append(c.undo, func() { e.logClose("sink", spec.Name, next.release()) })
	var before *subConfig
	if s != nil {
		before = s.config.Load()
	}
	if err := e.planShadows(next, before); err != nil {
		return err
	}
	if s != nil {
		c.next.subs[key] = s
		c.swaps = append(c.swaps, swap{s, next})
		return nil
	}
	if s, err = e.openSubscription(ctx, c, t, next); err != nil {
		return err
	}
	c.next.subs[key] = s
	c.subs = append(c.subs, s)
	return nil
}

// Definitions returns the definitions that the API owns, by kind and name, as Apply's ops stored them.
func (e *Engine) Definitions(ctx context.Context, fn func(kind, name string, doc []byte) error) error {
	return e.store.Scan(ctx, tableDefinitions, nil, nil, func(k, v []byte) error {
		for i, b := range k {
			if b == 0 {
				return fn(string(k[:i]), string(k[i+1:]), append([]byte(nil), v...))
			}
		}
		return fmt.Errorf("definition key %q is damaged", k)
	})
}

// Define is the operation that stores a definition of the API's, for Apply; doc nil removes it.
func Define(kind, name string, doc []byte) storage.Op {
	key := append(append([]byte(kind), 0), name...)
	if doc == nil {
		return del(tableDefinitions, key)
	}
	return put(tableDefinitions, key, doc)
}

// checkCircle refuses subscriptions whose dead letters go round.
func checkCircle(specs []SubscriptionSpec) error {
	subs := make([]event.Subscription, len(specs))
	for i := range specs {
		subs[i] = specs[i].Subscription
	}
	way := event.DeadLetterCircle(subs)
	if way == nil {
		return nil
	}
	return event.InCircle("subscriptions."+subs[way[0]].Name+".deadLetter", event.TellCircle(subs, way), subs, way)
}
