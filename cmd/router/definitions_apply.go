package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/storage"
)

// applying is what shall be in force.
type applying struct {
	set  *rules.Set // nil: no rules
	api  owned
	ops  []storage.Op // to be committed with it
	keep []string     // subscriptions that go, of which what is not delivered is kept
	kept func(subscription string, events int)

	lossless bool // nothing else that is not delivered may go
}

func (d *definitions) apply(ctx context.Context, set *rules.Set, api owned, ops ...storage.Op) error {
	return d.applyWith(ctx, applying{set: set, api: api, ops: ops})
}

// applyWith builds the specification of the rules and the API's definitions together.
func (d *definitions) applyWith(ctx context.Context, a applying) error {
	set, api := a.set, a.api
	var spec engine.Spec
	var errs []error
	functions := []string{}
	topics := d.eng.TopicDefinitions() // kept although nothing names them any more
	kept := maps.Clone(topics)
	if set != nil {
		for _, t := range set.Topics {
			if _, exists := topics[t.Name]; exists && t.Implied {
				continue // only named in the file; whoever made it said more
			}
			topics[t.Name] = t.Topic
		}
		for _, f := range set.Functions {
			def, err := d.function(ctx, f, api)
			errs = append(errs, err)
			spec.Functions = append(spec.Functions, def)
			functions = append(functions, def.Name)
		}
		spec.Subscriptions = make([]engine.SubscriptionSpec, 0, len(set.Subscriptions)+len(api[kindSubscriptions]))
		for _, s := range set.Subscriptions {
			spec.Subscriptions = append(spec.Subscriptions, subscriptionSpec(s))
		}
		for _, b := range set.Bridges {
			if b.Push != nil {
				spec.Subscriptions = append(spec.Subscriptions, subscriptionSpec(*b.Push))
			}
		}
		for _, h := range set.Hosts {
			spec.Hosts = append(spec.Hosts, h.Host)
		}
		for _, s := range set.Schedules {
			spec.Schedules = append(spec.Schedules, s.Schedule)
		}
	}
	errs = append(errs, d.applyAPI(set, api, topics, functions, &spec))
	for name, t := range topics {
		if was, same := kept[name]; !same || !sameTopic(was, t) {
			spec.Topics = append(spec.Topics, t)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	spec.Revision = revision(set, api)
	slices.SortFunc(spec.Topics, func(a, b event.Topic) int { return strings.Compare(a.Name, b.Name) })
	spec.Keep, spec.Kept, spec.Lossless = a.keep, a.kept, a.lossless
	opened, err := d.inlets.open(ctx, set)
	if err != nil {
		return err
	}
	if err := d.eng.Apply(ctx, spec, a.ops...); err != nil {
		return err
	}
	d.inlets.set(ctx, set, opened)
	d.applySources(set)
	d.applyNames(set, spec.Subscriptions)
	return nil
}

// revision names what the rules file and the API define together, variables aside: two routers with the same
// definitions have the same one. It is made from digests, for it is asked for at every change.
func revision(set *rules.Set, api owned) string {
	h := sha256.New()
	if set != nil {
		_, _ = io.WriteString(h, set.Revision)
	}
	for _, kind := range slices.Sorted(maps.Keys(api)) {
		for _, name := range slices.Sorted(maps.Keys(api[kind])) {
			_, _ = fmt.Fprintf(h, "\n%s/%s ", kind, name)
			_, _ = h.Write(api[kind][name])
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// applyAPI adds what the API owns.
func (d *definitions) applyAPI(set *rules.Set, api owned, topics map[string]event.Topic, functions []string, spec *engine.Spec) error {
	var errs []error
	for _, doc := range api[kindTopics] {
		t, err := rules.ParseTopic(doc, d.remote(nil))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		topics[t.Name] = t.Topic
	}
	for name, doc := range api[kindFunctions] {
		if _, ok := d.fileFunction(set, name); ok {
			continue // `wasm: pushed`: the file has the definition, the API the version
		}
		f, err := rules.ParseFunction(doc, d.remote(nil))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, pushedWithin(api, &f.Function))
		spec.Functions = append(spec.Functions, f.Function)
		functions = append(functions, f.Name)
	}
	changed := ""
	for name, doc := range api[kindSubscriptions] {
		o := d.remote(functions)
		if !bytes.Equal(doc, d.api[kindSubscriptions][name]) { // what is in force stays so when a schema changes
			changed = name
			o.Schema = func(topic string) []byte { return topics[topic].Schema }
		}
		s, err := rules.ParseSubscription(doc, o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		made := subscriptionSpec(s)
		if tenant := api[kindWithin][name]; tenant != nil {
			errs = append(errs, json.Unmarshal(tenant, &made.Within))
			made.Fingerprint += "\x00" + made.Within
		}
		spec.Subscriptions = append(spec.Subscriptions, made)
		for _, t := range rules.TopicsOf(s.Subscription, topics[s.Topic]) {
			if _, exists := topics[t.Name]; !exists {
				topics[t.Name] = t.Topic
			}
		}
	}
	if changed != "" {
		errs = append(errs, closesCircle(spec.Subscriptions, changed))
	}
	return errors.Join(errs...)
}

// closesCircle refuses a subscription by which topics are delivered into each other all round.
func closesCircle(specs []engine.SubscriptionSpec, name string) error {
	subs := make([]event.Subscription, len(specs))
	for i := range specs {
		subs[i] = specs[i].Subscription
	}
	for range 20 { // circles that are in force already are not its fault
		way := event.DeliveryCircle(subs)
		if way == nil {
			return nil
		}
		if slices.ContainsFunc(way, func(i int) bool { return subs[i].Name == name }) {
			return event.InCircle(kindSubscriptions+"."+name+".deliver", event.TellDeliveryCircle(subs, way), subs, way)
		}
		subs[way[0]].Deliver = event.Deliver{}
	}
	return nil
}

func subscriptionSpec(s rules.Subscription) engine.SubscriptionSpec {
	return engine.SubscriptionSpec{Subscription: s.Subscription, Program: s.Program, OpenSink: s.OpenSink, Fingerprint: s.Fingerprint}
}

// sameTopic reports whether two definitions say the same, wherever they were written.
func sameTopic(a, b event.Topic) bool {
	a, b = a.WithDefaults(), b.WithDefaults()
	a.Owner, b.Owner = event.Owner{}, event.Owner{}
	same := bytes.Equal(a.Schema, b.Schema)
	a.Schema, b.Schema = nil, nil
	return same && reflect.DeepEqual(a, b) // so that a field to come counts as well
}

// function resolves the module of a function of the rules file to its digest.
func (d *definitions) function(ctx context.Context, f rules.Function, api owned) (event.Function, error) {
	def := f.Function
	switch {
	case def.Pushed:
		if doc := api[kindFunctions][def.Name]; doc != nil {
			pushed, err := rules.ParseFunction(doc, d.remote(nil))
			if err != nil {
				return def, err
			}
			def.Digest = pushed.Digest
			if err := pushedWithin(api, &def); err != nil {
				return def, err
			}
		}
	case f.Module != nil && !d.host.Has(def.Digest):
		digest, err := d.host.Put(ctx, f.Module)
		if err != nil {
			return def, event.At(fmt.Sprintf("%s:%d: functions.%s", def.Owner.File, def.Owner.Line, def.Name), err)
		}
		def.Digest = digest
	}
	return def, nil
}

// pushedWithin confines a function that a tenant has pushed to its topics.
func pushedWithin(api owned, f *event.Function) error {
	if tenant := api[kindWithinPushed][f.Name]; tenant != nil {
		return json.Unmarshal(tenant, &f.Within)
	}
	return nil
}

func (d *definitions) fileFunction(set *rules.Set, name string) (event.Function, bool) {
	if set != nil {
		for _, f := range set.Functions {
			if f.Name == name {
				return f.Function, true
			}
		}
	}
	return event.Function{}, false
}
