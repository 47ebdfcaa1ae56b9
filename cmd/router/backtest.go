package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

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
	o.Before, err = b.rulesOf(ctx, set)
	return o, err
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
