package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
)

// explainFile explains an event that no router has.
func (p *program) explainFile(cmd *cobra.Command, r *remote, o explaining, args []string) (err error) {
	ctx := cmd.Context()
	switch {
	case o.file == "" || o.rules == "":
		return usagef(cmd, "--file and --rules go together: an event, and the rules that it is held against")
	case len(args) > 1:
		return usagef(cmd, "%q: with --file the event is that of the file; want at most SUBSCRIPTION", args[1])
	}
	asJSON, err := asJSON(cmd, r.output)
	if err != nil {
		return err
	}
	rec, err := p.eventFile(o.file)
	if err != nil {
		return err
	}
	set, err := p.ruleSet(ctx, o.rules)
	if err != nil {
		return err
	}
	subs, err := chosenSubscriptions(set, o.topic, args)
	if err != nil {
		return err
	}
	i := 0
	return explainDry(ctx, set, subs, o.topic, rec, func(x *event.Explained) error {
		if asJSON {
			doc, err := json.Marshal(x)
			if err != nil {
				return err
			}
			return printJSON(p.stdout, doc)
		}
		if i++; i > 1 {
			fmt.Fprintln(p.stdout)
		}
		writeExplained(p.stdout, x)
		return nil
	})
}

// ruleSet reads rules of files; nothing is dialled.
func (p *program) ruleSet(ctx context.Context, path string) (*rules.Set, error) {
	dialer, err := egress.New(egress.Options{})
	if err != nil {
		return nil, err
	}
	getenv := func(name string) (string, bool) { v := p.env(name); return v, v != "" }
	return rules.Parse(ctx, path, rules.Options{Sinks: sinkKinds(dialer), Schemes: sourceSchemes(nil), Bridges: bridgeKinds(linkProcess{}), Getenv: getenv})
}

// explainDry tells what each of subs would make of an event in topic, or, if that is "", in its own.
func explainDry(ctx context.Context, set *rules.Set, subs []rules.Subscription, topic string, rec event.Record, tell func(*event.Explained) error) (err error) {
	host, err := authorHost(ctx, plugins.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close(context.WithoutCancel(ctx))) }()
	t := engine.TrialOptions{Host: host}
	for _, f := range set.Functions {
		def, err := moduleShelf{host: host}.put(ctx, f)
		if err != nil {
			return event.At(fmt.Sprintf("%s:%d: functions.%s", f.Owner.File, f.Owner.Line, f.Name), err)
		}
		t.Functions = append(t.Functions, def)
	}
	for _, topic := range set.Topics {
		t.Topics = append(t.Topics, topic.Topic)
	}
	for _, s := range subs {
		in := topic
		if in == "" {
			in = s.Topic
		}
		x, err := engine.ExplainDry(ctx, t, subscriptionSpec(s), in, rec)
		if err != nil {
			return event.At("subscriptions."+s.Name, err)
		}
		if err := tell(x); err != nil {
			return err
		}
	}
	return nil
}

// eventFile reads the one event of a file.
func (p *program) eventFile(file string) (event.Record, error) {
	var doc []byte
	var err error
	if file == "-" {
		doc, err = io.ReadAll(io.LimitReader(p.stdin, 64<<20))
	} else {
		doc, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	recs, array, err := readSamples("event", doc, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", clean(file), err)
	}
	if array && len(recs) != 1 {
		return nil, fmt.Errorf("%s has %s; want one", clean(file), plural(len(recs), "event"))
	}
	return recs[0], nil
}

// chosenSubscriptions are the one that is named, or those of a topic, or all.
func chosenSubscriptions(set *rules.Set, topic string, args []string) ([]rules.Subscription, error) {
	if len(args) == 1 {
		at := slices.IndexFunc(set.Subscriptions, func(s rules.Subscription) bool { return s.Name == args[0] })
		if at < 0 {
			var have []string
			for _, s := range set.Subscriptions {
				have = append(have, s.Name)
			}
			return nil, fmt.Errorf("the rules have no subscription %q; they have: %s", clean(args[0]), clean(strings.Join(have, ", ")))
		}
		return set.Subscriptions[at : at+1], nil
	}
	var subs []rules.Subscription
	read := map[string]bool{}
	for _, s := range set.Subscriptions {
		read[s.Topic] = true
		if topic == "" || s.Topic == topic {
			subs = append(subs, s)
		}
	}
	if len(subs) == 0 {
		topics := strings.Join(slices.Sorted(maps.Keys(read)), ", ")
		if topics == "" {
			return nil, errors.New("the rules have no subscription: nothing reads any event")
		}
		return nil, fmt.Errorf("no subscription of the rules reads topic %q, so nothing would become of the event; they read: %s", clean(topic), clean(topics))
	}
	return subs, nil
}
