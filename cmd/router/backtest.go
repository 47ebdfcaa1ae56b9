package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/rules"
)

// A backtesting runs backtests on a router at work, one at a time: each takes a core for as long as others leave it one.
type backtesting struct {
	*definitions
	place chan struct{} // has room for one
}

func newBacktesting(d *definitions) *backtesting { return &backtesting{d, make(chan struct{}, 1)} }

// OpenBacktest checks rules and reserves the place.
func (b *backtesting) OpenBacktest(ctx context.Context, bundle []byte, q httpapi.BacktestQuery) (httpapi.BacktestRun, error) {
	select {
	case b.place <- struct{}{}:
	default:
		return nil, fmt.Errorf("another backtest is at work, and a router runs one at a time; try again later: %w", event.ErrUnavailable)
	}
	run := &backtestRun{place: b.place}
	o, err := b.options(ctx, bundle, q)
	if err != nil {
		run.Close()
		return nil, err
	}
	run.o = o
	return run, nil
}

func (b *backtesting) options(ctx context.Context, bundle []byte, q httpapi.BacktestQuery) (o engine.BacktestOptions, err error) {
	o = engine.BacktestOptions{Past: b.eng.Past(), Before: b.eng.InForce(), Host: b.host, Secret: b.eng.Secret(), Rest: b.eng.Yielding(),
		Since: q.Since, Until: q.Until, Last: q.Last, Topics: q.Topics, Subscriptions: q.Subscriptions, Examples: q.Examples,
		Budget: engine.BacktestBudget{Time: q.Budget}}
	switch q.Functions {
	case "true":
		o.Functions = engine.BacktestAllFunctions
	case "false":
		o.Functions = engine.BacktestNoFunctions
	}
	b.changing.Lock() // so that the API's definitions are of one moment
	defer b.changing.Unlock()
	set, err := rules.ParseBundle(ctx, bundle, b.bundleOptions(b.api))
	if err != nil {
		return o, err
	}
	if err = b.known(set, &o); err != nil {
		return o, err
	}
	if o.After, err = b.rulesOf(ctx, set); err != nil || q.Before == "" {
		return o, err
	}
	r, err := engine.FindRevision(b.revisions, q.Before)
	if err != nil {
		return o, event.At("?before", err)
	}
	if set, err = b.revised(ctx, r); err != nil {
		return o, event.At("?before", err)
	}
	if err = b.known(set, &o); err != nil {
		return o, event.At("?before", err)
	}
	o.Before, err = b.rulesOf(ctx, set)
	return o, err
}

// known gives a set whose variables are held back those of the rules in force, where what has them is the same there,
// and refuses it where it would be compared by others. What filters have by reference is not shown.
func (b *backtesting) known(set *rules.Set, o *engine.BacktestOptions) error {
	hide := func(s *rules.Set) {
		for _, x := range s.Subscriptions {
			o.Hide = append(o.Hide, x.Values...)
		}
	}
	inForce := b.file
	if inForce == nil {
		inForce = &rules.Set{}
	}
	hide(set)
	hide(inForce)
	slices.SortFunc(o.Hide, func(a, b string) int { return len(b) - len(a) }) // one may be part of another
	if b.path == "" {
		return nil
	}
	changes := map[string]rules.Change{}
	for _, c := range rules.Diff(inForce, set) {
		changes[c.Kind+" "+c.Name] = c
	}
	f := &event.Faults{Is: event.ErrInvalid}
	for i := range set.Subscriptions {
		s := &set.Subscriptions[i]
		c := changes["subscription "+s.Name]
		at := slices.IndexFunc(inForce.Subscriptions, func(x rules.Subscription) bool { return x.Name == s.Name })
		if at >= 0 && c.Key("topic") == nil && c.Key("filter") == nil && c.Key("functions") == nil {
			is := inForce.Subscriptions[at]
			s.Topic, s.Filter, s.Program, s.Functions = is.Topic, is.Filter, is.Program, is.Functions
			continue
		}
		var wrote struct {
			Filter    json.RawMessage   `json:"filter"`
			Functions []json.RawMessage `json:"functions"`
		}
		if err := json.Unmarshal(s.Subscription.Source, &wrote); err != nil || strings.Contains(s.Topic, "${") || len(wrote.Filter) > len(`""`) && s.Program == nil || len(wrote.Functions) != len(s.Functions) {
			f.List = append(f.List, event.Fault{At: "subscriptions." + s.Name, Detail: "its topic, filter or functions are new or changed, and refer to variables, which this router gives to its rules file alone; " +
				"write the values, or run the backtest on a copy of the data directory (--data)"})
		}
	}
	for i := range set.Functions {
		def := &set.Functions[i]
		at := slices.IndexFunc(inForce.Functions, func(x rules.Function) bool { return x.Name == def.Name })
		if c := changes["function "+def.Name]; at >= 0 && c.Name == "" {
			def.Config, def.Secrets = inForce.Functions[at].Config, inForce.Functions[at].Secrets
		} else if bytes.Contains(def.Source, []byte("${")) {
			o.Notes = append(o.Notes, fmt.Sprintf("function %s is new or changed, and ran without the values that it refers to: variables are the rules file's alone", def.Name))
		}
	}
	if len(f.List) > 0 {
		return f
	}
	return nil
}

// rulesOf is what would be in force with other rules of the file's: these and the API's.
func (b *backtesting) rulesOf(ctx context.Context, set *rules.Set) (engine.BacktestRules, error) {
	var r engine.BacktestRules
	var errs []error
	api, _ := b.adopt(set) // what both define is the rules' from then on
	for _, f := range set.Functions {
		def, err := b.function(ctx, f, api)
		errs = append(errs, err)
		r.Functions = append(r.Functions, def)
	}
	var names []string
	for _, f := range r.Functions {
		names = append(names, f.Name)
	}
	for _, s := range set.Subscriptions {
		r.Subscriptions = append(r.Subscriptions, subscriptionSpec(s))
	}
	for _, t := range set.Topics {
		r.Topics = append(r.Topics, t.Topic)
	}
	var spec engine.Spec
	errs = append(errs, b.applyAPI(set, api, map[string]event.Topic{}, names, &spec))
	r.Functions = append(r.Functions, spec.Functions...)
	r.Subscriptions = append(r.Subscriptions, spec.Subscriptions...)
	return r, errors.Join(errs...)
}

type backtestRun struct {
	o     engine.BacktestOptions
	place chan struct{}
}

// Run runs it.
func (r *backtestRun) Run(ctx context.Context, tell func([]byte)) ([]byte, error) {
	r.o.Progress = func(p engine.BacktestProgress) {
		if doc, err := json.Marshal(p); err == nil {
			tell(doc)
		}
	}
	report, err := engine.Backtest(ctx, r.o)
	if err != nil {
		return nil, err
	}
	return json.Marshal(report)
}

// Close gives the place back.
func (r *backtestRun) Close() { <-r.place }
