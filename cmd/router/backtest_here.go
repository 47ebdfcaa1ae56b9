package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage/pebblestore"
)

// backtestHere runs a backtest in this process, over a data directory or recorded events.
func (p *program) backtestHere(cmd *cobra.Command, o *rehearsal, tell func(engine.BacktestProgress)) (_ *engine.BacktestReport, err error) {
	ctx := cmd.Context()
	bo := engine.BacktestOptions{Last: o.limit, Examples: o.examples, Topics: o.topics, Subscriptions: o.subscriptions, Progress: tell, Budget: engine.BacktestBudget{Time: o.budget}}
	for at, text := range map[*time.Time]string{&bo.Since: o.since, &bo.Until: o.until} {
		if text != "" {
			if *at, err = event.ParseSince(text, time.Now()); err != nil {
				return nil, err
			}
		}
	}
	switch o.functions {
	case "all":
		bo.Functions = engine.BacktestAllFunctions
	case "none":
		bo.Functions = engine.BacktestNoFunctions
	}
	if bo.Host, err = authorHost(ctx, plugins.Options{}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bo.Host.Close(context.WithoutCancel(ctx))) }()
	modules := moduleShelf{host: bo.Host, dir: filepath.Join(o.data, "functions", "modules"), has: o.data != ""}
	if bo.After, err = p.pastRules(cmd, o.after, modules); err != nil {
		return nil, err
	}
	if o.before != "" {
		if bo.Before, err = p.pastRules(cmd, o.before, modules); err != nil {
			return nil, fmt.Errorf("--before: %w", err)
		}
	}
	if o.events != "" {
		topic, err := o.topicOf(cmd, bo.Before, bo.After)
		if err != nil {
			return nil, err
		}
		if bo.Feed, err = p.backtestEvents(o, topic); err != nil {
			return nil, err
		}
		return engine.Backtest(ctx, bo)
	}
	dir := filepath.Join(o.data, storeDir)
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("--data %s: %w; it is no data directory of a router", o.data, err)
	}
	store, err := pebblestore.OpenReadOnly(ctx, dir)
	if err != nil {
		if strings.Contains(err.Error(), "locked") {
			err = fmt.Errorf("%w\nA router that runs can do it itself: `router rules backtest %s --server URL`, without --data", err, o.after)
		}
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if bo.Past, bo.Secret, err = engine.PastOf(ctx, store); err != nil {
		return nil, err
	}
	if bo.Past == nil {
		return nil, fmt.Errorf("--data %s: the router has no topics yet", o.data)
	}
	return engine.Backtest(ctx, bo)
}

// topicOf is the topic that recorded events are of: the only one that the rules read, unless it is named.
func (o *rehearsal) topicOf(cmd *cobra.Command, sides ...engine.BacktestRules) (string, error) {
	if o.topic != "" {
		return o.topic, nil
	}
	read := map[string]bool{}
	topic := ""
	for _, side := range sides {
		for i := range side.Subscriptions {
			topic = side.Subscriptions[i].Topic
			read[topic] = true
		}
	}
	if len(read) != 1 {
		return "", usagef(cmd, "--topic is missing: the rules read %s, and the file does not say of which its events are", plural(len(read), "topic"))
	}
	return topic, nil
}

// moduleShelf is where modules come from that rules name by digest alone: the data directory.
type moduleShelf struct {
	host *plugins.Host
	dir  string
	has  bool
}

// pastRules reads rules for a backtest and puts their modules into the host.
func (p *program) pastRules(cmd *cobra.Command, path string, modules moduleShelf) (engine.BacktestRules, error) {
	var r engine.BacktestRules
	set, err := p.parseRules(cmd, path, nil)
	if err != nil {
		return r, err
	}
	for _, f := range set.Functions {
		def, err := modules.put(cmd.Context(), f)
		if err != nil {
			return r, event.At(fmt.Sprintf("%s:%d: functions.%s", f.Owner.File, f.Owner.Line, f.Name), err)
		}
		r.Functions = append(r.Functions, def)
	}
	for _, s := range set.Subscriptions {
		r.Subscriptions = append(r.Subscriptions, subscriptionSpec(s))
	}
	for _, t := range set.Topics {
		r.Topics = append(r.Topics, t.Topic)
	}
	return r, nil
}

func (m moduleShelf) put(ctx context.Context, f rules.Function) (event.Function, error) {
	def, module := f.Function, f.Module
	if m.host.Has(def.Digest) || def.Digest == "" { // a function that is to be pushed is missing where it would run
		return def, nil
	}
	if module == nil && m.has {
		var err error
		if module, err = os.ReadFile(filepath.Join(m.dir, strings.TrimPrefix(def.Digest, "sha256:")+".wasm")); err != nil && !os.IsNotExist(err) {
			return def, err
		}
	}
	if module == nil {
		return def, nil
	}
	digest, err := m.host.Put(ctx, module)
	def.Digest = digest
	return def, err
}
