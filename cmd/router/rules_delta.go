package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/rules"
)

// rulesDelta is what other rules would change, as the API tells it.
type rulesDelta struct {
	Revision string       `json:"revision"` // in force; "0": there are no rules
	Changes  []ruleChange `json:"changes"`
	Refused  []string     `json:"refused,omitempty"` // why the rules cannot be put in force as they are
}

// ruleChange is a change with what it does to what is there.
type ruleChange struct {
	rules.Change
	Effects     []string     `json:"effects,omitempty"`
	Undelivered *undelivered `json:"undelivered,omitempty"` // that goes with a subscription

	dead string // the dead-letter topic of a subscription that goes
}

// undelivered counts what a subscription has not delivered.
type undelivered struct {
	Total      uint64 `json:"total"`
	Behind     uint64 `json:"behind"` // events of the topic that it has not looked at
	InHand     uint64 `json:"inHand"`
	Parked     uint64 `json:"parked"`               // that wait for their next try
	DeadLetter string `json:"deadLetter,omitempty"` // the topic that keeps them if it is asked to
}

// DiffRules tells what a bundle would change.
func (d *definitions) DiffRules(ctx context.Context, bundle []byte) ([]byte, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	o := d.bundleOptions(d.api)
	o.Unresolved = true
	set, err := rules.ParseBundle(ctx, bundle, o)
	if err != nil {
		return nil, err
	}
	return json.Marshal(d.delta(ctx, set))
}

// delta compares a set with the rules in force. Whoever calls it holds changing.
func (d *definitions) delta(ctx context.Context, set *rules.Set) *rulesDelta {
	delta := &rulesDelta{Revision: d.revisionID(), Changes: []ruleChange{}}
	for _, c := range rules.Diff(d.file, set) {
		x := ruleChange{Change: c}
		switch c.Kind {
		case "topic":
			d.topicEffects(ctx, &x, set, delta)
		case "subscription":
			d.subscriptionEffects(&x)
		case "function":
			d.functionEffects(&x, set)
		}
		delta.Changes = append(delta.Changes, x)
	}
	if err := d.conflicts(set); err != nil {
		delta.Refused = append(delta.Refused, strings.Split(err.Error(), "\n")...)
	}
	return delta
}

func (c *ruleChange) effect(format string, args ...any) {
	c.Effects = append(c.Effects, fmt.Sprintf(format, args...))
}

func (d *definitions) topicEffects(ctx context.Context, c *ruleChange, set *rules.Set, delta *rulesDelta) {
	info, err := d.eng.Topic(c.Name)
	if err != nil {
		return // it is new
	}
	var events uint64
	for _, p := range info.Partition {
		events += p.Next - p.Head
	}
	if c.Change.Change == rules.Removed {
		c.effect("the topic is kept as it is, with its %s; `router topics delete %s` deletes it", countEvents(events), c.Name)
		return
	}
	i := slices.IndexFunc(set.Topics, func(t rules.Topic) bool { return t.Name == c.Name })
	if i < 0 {
		return
	}
	next := set.Topics[i].Topic.WithDefaults()
	if c.Change.Change == rules.Created {
		c.effect("the topic exists, with %s: it is kept, and is as these rules say from now on", countEvents(events))
	}
	if next.Partitions != info.Topic.Partitions {
		delta.Refused = append(delta.Refused, fmt.Sprintf("topic %q was made with %s, and the number is fixed: make another topic, or write partitions: %d", c.Name, plural(info.Topic.Partitions, "partition"), info.Topic.Partitions))
		return
	}
	if n, err := d.eng.Leaving(ctx, next); err != nil {
		c.effect("how many events leave at once cannot be told: %v", err)
	} else if n > 0 {
		c.effect("about %s of %s leave at once: the new bounds are smaller", countNumber(n), countEvents(events))
	}
	if c.Key("schema") != nil && events > 0 {
		c.effect("events that are there already are not held against the new schema")
	}
}

func (d *definitions) subscriptionEffects(c *ruleChange) {
	info, err := d.eng.Subscription(c.Name)
	if err != nil {
		return
	}
	switch {
	case c.Change.Change == rules.Created:
		c.effect("the subscription exists, made over the API, and says the same: these rules take it over where it stands")
		return
	case c.Change.Change == rules.Removed:
		c.goes(info, "it is removed")
		return
	}
	if k := c.Key("topic"); k != nil {
		c.goes(info, "it begins anew on another topic")
		return
	}
	if c.Key("start") != nil {
		c.effect("start counts where a subscription is made: this one stays where it is; `router subscriptions seek` moves it")
	}
	if c.Key("filter") != nil {
		if info.Parked > 0 {
			c.effect("%s that wait for their next try are not matched again: they are delivered as before", countEvents(uint64(info.Parked)))
		}
		if info.Outstanding > 0 {
			c.effect("%s in hand are not matched again", countEvents(uint64(info.Outstanding)))
		}
	}
	if k := c.Key("deadLetter"); k != nil && info.DeadLetters > 0 {
		c.effect("%s stay in %s: `router deadletters` finds them with --topic %s", plural(int(info.DeadLetters), "dead letter"), k.Old, k.Old)
	}
	if c.Key("deliver") != nil && info.Parked > 0 {
		c.effect("%s that wait for their next try are delivered the new way", countEvents(uint64(info.Parked)))
	}
}

// goes says what is lost with a subscription.
func (c *ruleChange) goes(info engine.SubscriptionInfo, why string) {
	c.dead = info.DeadLetter
	u := &undelivered{Behind: info.Lag, InHand: uint64(info.Outstanding), Parked: uint64(max(info.Parked, 0)), DeadLetter: info.DeadLetter}
	if u.Total = u.Behind + u.InHand + u.Parked; u.Total > 0 {
		c.Undelivered = u
		keep := fmt.Sprintf("--keep moves them to its dead-letter topic %s", u.DeadLetter)
		if u.DeadLetter == "" {
			keep = "it has no dead-letter topic that could keep them"
		}
		c.effect("%s: %s go with it (%s not looked at, %s in hand, %s waiting for their next try); %s",
			why, strings.Replace(countEvents(u.Total), "event", "undelivered event", 1), countNumber(u.Behind), countNumber(u.InHand), countNumber(u.Parked), keep)
	}
	if info.StateKeys > 0 {
		c.effect("what its functions have kept goes with it: %s", plural(int(info.StateKeys), "key"))
	}
	if info.DeadLetters > 0 {
		c.effect("its %s stay in %s", plural(int(info.DeadLetters), "dead letter"), info.DeadLetter)
	}
}

func (d *definitions) functionEffects(c *ruleChange, set *rules.Set) {
	if c.Change.Change != rules.Changed {
		return
	}
	var users []string
	for _, s := range set.Subscriptions {
		if slices.Contains(s.Functions, c.Name) {
			users = append(users, s.Name)
		}
	}
	if len(users) > 0 {
		c.effect("it runs from the next event on in %s", strings.Join(users, ", "))
	}
}

// losing lists the subscriptions that go and whose events can be kept. Some may have none yet.
func (x *rulesDelta) losing() (names []string) {
	for _, c := range x.Changes {
		if c.dead != "" {
			names = append(names, c.Name)
		}
	}
	return names
}

// refusal is why rules are not put in force.
func (x *rulesDelta) refusal(how httpapi.RulesChange) error {
	f := &event.Faults{Is: event.ErrConflict}
	for _, text := range x.Refused {
		f.List = append(f.List, event.Fault{At: "rules", Detail: text})
	}
	for _, c := range x.Changes {
		u := c.Undelivered
		switch {
		case u == nil || how.Drop:
		case how.Keep && u.DeadLetter == "":
			f.List = append(f.List, event.Fault{At: "subscriptions." + c.Name, Detail: fmt.Sprintf("has %s undelivered and no dead-letter topic to keep them in: give it one with `deadLetter: NAME` first, or let them go (--drop, ?undelivered=drop)", countEvents(u.Total))})
		case !how.Keep:
			f.List = append(f.List, event.Fault{At: "subscriptions." + c.Name, Detail: fmt.Sprintf("would go with %s undelivered (%s not looked at, %s in hand, %s waiting for their next try): "+
				"keep them in its dead-letter topic (--keep, ?undelivered=keep), or let them go (--drop, ?undelivered=drop)", countEvents(u.Total), countNumber(u.Behind), countNumber(u.InHand), countNumber(u.Parked))})
		}
	}
	if len(f.List) == 0 {
		return nil
	}
	return f
}

// countNumber is a number with commas.
func countNumber(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func countEvents(n uint64) string {
	if n == 1 {
		return "1 event"
	}
	return countNumber(n) + " events"
}
