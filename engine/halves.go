package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A subscription whose functions keep state must not run them again because a delivery failed. It is two:
// one runs the functions and puts what comes out into the topic <name>.out, in one commit with state and
// cursor; the other delivers from there. To everybody outside they are one subscription with one name.

// half is which of the two a subscription is.
type half uint8

const (
	whole half = iota
	functionHalf
	deliveryHalf
)

func (h half) String() string { return [...]string{"", "function", "delivery"}[h] }

// deliveryKey is what a delivery half goes by within the engine and in the store; no name has a slash.
func deliveryKey(name string) string { return name + "/delivery" }

// key is what a subscription goes by within the engine and in the store.
func (s *SubscriptionSpec) key() string {
	if s.half == deliveryHalf {
		return deliveryKey(s.Name)
	}
	return s.Name
}

// shown is the definition as its owner wrote it.
func (s *SubscriptionSpec) shown() *event.Subscription {
	if s.half == functionHalf {
		return &s.asked
	}
	return &s.Subscription
}

// split makes two of every subscription that needs it, with the topic between them. One that was made two
// stays so until it is deleted, or delivers to that very topic: what lies there is still to be delivered.
func (e *Engine) split(ctx context.Context, c *change, old *Plan, spec Spec) (Spec, error) {
	keeps := map[string]bool{}
	for i := range spec.Functions {
		keeps[spec.Functions[i].Name] = spec.Functions[i].Allow.KV
	}
	defined := map[string]event.Topic{}
	for _, t := range spec.Topics {
		defined[t.Name] = t
	}
	c.made = map[string]string{}
	next := spec
	next.Topics, next.Subscriptions = slices.Clone(spec.Topics), nil
	next.Subscriptions = make([]SubscriptionSpec, 0, len(spec.Subscriptions))
	for _, s := range spec.Subscriptions {
		out := s.Name + ".out"
		if s.Deliver.Topic == out {
			next.Subscriptions = append(next.Subscriptions, s)
			continue
		}
		needs := slices.ContainsFunc(s.Functions, func(f string) bool { return keeps[f] }) &&
			(s.Deliver.Face == event.Push || s.Deliver.Face == event.Pull)
		was, err := e.wasSplit(ctx, old, s.Name)
		if err != nil {
			return Spec{}, err
		}
		if !needs && !was {
			next.Subscriptions = append(next.Subscriptions, s)
			continue
		}
		if !was && s.Owner.File == "" && somebodys(old, defined, out) {
			return Spec{}, event.Bad(event.ErrConflict, "subscriptions."+s.Name+".functions", fmt.Sprintf("keep state, so that what they make has to wait in topic %q, which is somebody's; "+
				"delete that topic, or give the subscription another name", out))
		}
		next.Subscriptions = append(next.Subscriptions, functionsOf(s, out), deliveryOf(s, out))
		if t, ok := c.between(old, defined, s, out); ok {
			next.Topics = append(next.Topics, t)
		}
	}
	return next, nil
}

func (e *Engine) wasSplit(ctx context.Context, old *Plan, name string) (bool, error) {
	if old.subs[name] != nil {
		return old.subs[deliveryKey(name)] != nil, nil
	}
	row, err := e.store.Load(ctx, tableSubs, []byte(deliveryKey(name)))
	return row != nil, err
}

// somebodys reports whether there is a topic that the router has not made between two halves. Whoever may make a
// subscription of a name may not, by that, read the topic and write to it; rules files are whole, and may say both.
func somebodys(old *Plan, defined map[string]event.Topic, name string) bool {
	if _, ok := defined[name]; ok {
		return true
	}
	t := old.topics[name]
	return t != nil && t.of == ""
}

func functionsOf(s SubscriptionSpec, out string) SubscriptionSpec {
	s.half, s.asked = functionHalf, s.Subscription
	s.OpenSink, s.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: out}
	if s.Fingerprint != "" {
		s.Fingerprint += "/function"
	}
	return s
}

// deliveryOf starts at the end of the topic: what is there before it belongs to nobody.
func deliveryOf(s SubscriptionSpec, out string) SubscriptionSpec {
	s.half, s.Topic, s.Start = deliveryHalf, out, event.Start{}
	s.Functions, s.Filter, s.Program = nil, "", nil
	if s.Fingerprint != "" {
		s.Fingerprint += "/delivery"
	}
	return s
}

// between defines the topic between two halves like the one that is read, unless somebody else defined it.
func (c *change) between(old *Plan, defined map[string]event.Topic, s SubscriptionSpec, out string) (event.Topic, bool) {
	if _, ok := defined[out]; ok {
		return event.Topic{}, false
	}
	source, ok := defined[s.Topic]
	if t := old.topics[s.Topic]; !ok && t != nil {
		source, ok = t.def.Load().Topic, true
	}
	if !ok {
		return event.Topic{}, false // refused with the subscription
	}
	source = source.WithDefaults()
	def := event.Topic{Name: out, Partitions: source.Partitions, Retain: source.Retain, WhenFull: source.WhenFull}
	if t := old.topics[out]; t != nil {
		if t.of == "" {
			return event.Topic{}, false // somebody's, whose definition is gone
		}
		def.Partitions = t.def.Load().Partitions
	}
	c.made[out] = s.Name
	return def, true
}

// dropBetween removes the topics that were made between halves which are not there any more, unless another
// subscription uses them.
func (c *change) dropBetween(spec Spec) {
	used := map[string]bool{}
	for i := range spec.Subscriptions {
		s := &spec.Subscriptions[i]
		used[s.Topic], used[s.Deliver.Topic], used[s.DeadLetter] = true, true, true
	}
	for i := range spec.Topics {
		used[spec.Topics[i].Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(c.next.topics)) {
		if t := c.next.topics[name]; t.of != "" && !used[name] {
			delete(c.next.topics, name)
			c.dropped = append(c.dropped, t)
			c.ops = append(c.ops, del(tableTopics, []byte(name)), delPrefix(tableCheckpoints, t.serial), delPrefix(tableTraces, t.serial))
			c.ops = append(c.ops, removalOfLetters(t.serial)...)
		}
	}
}

// endDropped ends topics that a plan removed, once nobody works on them any more.
func (e *Engine) endDropped(c *change) {
	for _, t := range c.dropped {
		close(t.ended)
		t.wakeAll()
	}
	if len(c.dropped) == 0 {
		return
	}
	gone, dropped := c.gone, c.dropped
	e.spawn(func(ctx context.Context) {
		for _, s := range gone {
			s.workers.Wait()
		}
		for _, t := range dropped {
			e.dropLogs(context.WithoutCancel(ctx), t)
		}
	})
}

// delivering is the subscription, or the half of it, that hands events over.
func (e *Engine) delivering(name string) (*subscription, error) {
	if s := e.plan.Load().subs[deliveryKey(name)]; s != nil {
		return s, nil
	}
	return e.subscription(name)
}

// with adds what the delivery half of a subscription does to what its function half does.
func (i SubscriptionInfo) with(d SubscriptionInfo) SubscriptionInfo {
	if i.State == "running" {
		i.State, i.Reason, i.Since = d.State, d.Reason, d.Since
	}
	i.Circuit = d.Circuit
	i.Lag += d.Lag
	i.Outstanding += d.Outstanding
	i.Parked += d.Parked
	i.ParkedBytes += d.ParkedBytes
	i.Leased += d.Leased
	i.Delivered += d.Delivered
	i.Failed += d.Failed
	i.Retried += d.Retried
	i.DeadLettered += d.DeadLettered
	i.Dropped += d.Dropped
	i.Lost += d.Lost
	i.Loss = i.Loss.with(d.Loss)
	i.Redriven += d.Redriven
	i.Purged += d.Purged
	return i
}

// removalOfState deletes what the functions of a subscription have kept.
func removalOfState(serial uint32) []storage.Op {
	return []storage.Op{delPrefix(tableState, serial), delPrefix(tableStateExpiry, serial), del(tableStateSize, key32(serial))}
}
