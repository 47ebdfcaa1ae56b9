package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
)

// replayOf is a subscription's replay as its state shows it; nil if there was none.
func replayOf(x *event.ReplayInfo) *httpapi.ReplayDoc {
	if x == nil {
		return nil
	}
	d := httpapi.ShowReplay(*x)
	return &d
}

// replayOptions are the flags of the command.
type replayOptions struct {
	since, until, from, to, filter, function string
	rate                                     perSecond
	dryRun, cancel, status, wait             bool
}

func replayCommand(p *program) *cobra.Command {
	var o replayOptions
	cmd := &cobra.Command{
		Use:   "replay SUBSCRIPTION",
		Short: "Deliver events of the past to one subscription once more",
		Long: `Replay delivers a range of a subscription's topic to this subscription once more, and to no other. What it delivers
carries the attribute millracereplay, and a webhook-id that ends in the replay's id. The subscription's cursor stays where
it is. A replay goes on in the router when this command ends, and after a restart; there is one at a time.`,
		Example: `  router replay orders --since 24h --dry-run
  router replay orders --since 2026-01-31T12:00:00Z --until 2026-01-31T13:00:00Z --filter 'data.total > 100' --rate 100/s --wait
  router replay orders --from 0-42 --to 0-42
  router replay orders --since 7d --function redact@sha256:9f86d081
  router replay orders --status
  router replay orders --cancel`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.since, "since", "", "events received at this `time` or later (RFC 3339, a duration back such as 24h, or earliest)")
	f.StringVar(&o.until, "until", "", "events received before this `time`")
	f.StringVar(&o.from, "from", "", "from this `position` on, in its partition alone, or from behind this cursor")
	f.StringVar(&o.to, "to", "", "up to this `position`, itself included, or to before this cursor")
	f.StringVar(&o.filter, "filter", "", "only those for which this `expression` is true, of those that the subscription's filter takes")
	f.StringVar(&o.function, "function", "", "run this version, `NAME@DIGEST`, instead of the one in force")
	f.Var(&o.rate, "rate", "at most so many events: `N` a second, 50/s or 10/m")
	f.BoolVar(&o.dryRun, "dry-run", false, "count and show, start nothing")
	f.BoolVar(&o.status, "status", false, "show how far the replay is that runs, or how the last one ended")
	f.BoolVar(&o.cancel, "cancel", false, "end the replay that runs")
	f.BoolVar(&o.wait, "wait", false, "wait until it ends")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ranged := o.since != "" || o.until != "" || o.from != "" || o.to != "" || o.filter != "" || o.function != "" || o.rate != 0 || o.dryRun
		switch {
		case o.status && o.cancel:
			return usagef(cmd, "--status and --cancel: want one of them")
		case (o.status || o.cancel) && ranged:
			return usagef(cmd, "--status and --cancel are about the replay that runs: give no range")
		case o.dryRun && o.wait:
			return usagef(cmd, "--dry-run starts nothing to --wait for")
		case !o.status && !o.cancel && o.since == "" && o.from == "":
			return usagef(cmd, "from where? Give --since or --from (--since earliest for all that is kept); or --status or --cancel")
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		return p.runReplay(cmd.Context(), c, args[0], o)
	}
	return cmd
}

func (p *program) runReplay(ctx context.Context, c *client, name string, o replayOptions) error {
	method, doc := "POST", map[string]any{}
	switch {
	case o.cancel:
		method, doc = "DELETE", nil
	case o.status:
		method, doc = "GET", nil
	default:
		for key, v := range map[string]string{"since": o.since, "until": o.until, "from": o.from, "to": o.to, "filter": o.filter, "function": o.function} {
			setIf(doc, key, v)
		}
		setIf(doc, "rate", float64(o.rate))
		setIf(doc, "dryRun", o.dryRun)
	}
	x, err := c.replay(ctx, method, name, doc)
	if err != nil {
		return err
	}
	if o.wait && !o.cancel {
		if x, err = p.waitReplay(ctx, c, name, x); err != nil {
			return err
		}
	}
	if c.json {
		text, err := json.Marshal(x)
		if err != nil {
			return err
		}
		if err := printJSON(p.stdout, text); err != nil {
			return err
		}
	} else {
		p.sayReplay(name, x)
	}
	if x.State == string(event.ReplayFailed) {
		return errors.New("the replay failed: " + clean(x.Reason))
	}
	return nil
}

// replay does one call about a subscription's replay.
func (c *client) replay(ctx context.Context, method, name string, doc map[string]any) (x httpapi.ReplayDoc, err error) {
	var in any
	if doc != nil {
		in = doc
	}
	return x, c.callJSON(ctx, method, c.path("subscriptions", name, "replay"), in, &x)
}

// replayEvery is how often --wait asks.
const replayEvery = 500 * time.Millisecond

// waitReplay asks until the replay ends.
func (p *program) waitReplay(ctx context.Context, c *client, name string, x httpapi.ReplayDoc) (httpapi.ReplayDoc, error) {
	id := x.ID
	for wait := replayEvery / 20; x.State == string(event.ReplayRunning); wait = min(2*wait, replayEvery) {
		if isTerminal(p.stderr) {
			fmt.Fprintf(p.stderr, "\r\x1b[Kreplay: %d done, about %d left %s", x.Done, x.Left, clean(x.Reason))
		}
		select {
		case <-ctx.Done():
			return x, ctx.Err()
		case <-time.After(wait):
		}
		next, err := c.replay(ctx, "GET", name, nil)
		if err != nil {
			return x, err
		}
		if next.ID != id {
			return x, fmt.Errorf("replay %s ended, and %s has begun since", clean(id), clean(next.ID))
		}
		x = next
	}
	if isTerminal(p.stderr) {
		fmt.Fprint(p.stderr, "\r\x1b[K")
	}
	return x, nil
}

func (p *program) sayReplay(name string, x httpapi.ReplayDoc) {
	name = clean(name)
	switch {
	case x.DryRun:
		say(p.stdout, "%s of %s would be delivered to %s again", plural(int(x.Matched), "event"), strconv.FormatUint(x.Looked, 10), name)
		for _, doc := range x.First {
			var ev struct{ ID, Type, MillracePosition string }
			if json.Unmarshal(doc, &ev) == nil {
				say(p.stdout, "  %s %s %s", clean(ev.MillracePosition), clean(ev.Type), clean(ev.ID))
			}
		}
		if more := int(x.Matched) - len(x.First); more > 0 {
			say(p.stdout, "  and %d more", more)
		}
	default:
		say(p.stdout, "replay %s of %s: %s; %d done, %d left", clean(x.ID), name, clean(x.State), x.Done, x.Left)
	}
	if x.Reason != "" && x.State != string(event.ReplayFailed) {
		say(p.stderr, "it stands still: %s", clean(x.Reason))
	}
	if x.Lost > 0 {
		say(p.stderr, "%s had left the topic before the replay came to them", plural(int(x.Lost), "event"))
	}
	if x.Unread > 0 {
		say(p.stderr, "%s of the range are not delivered for the first time yet; they come by themselves", plural(int(x.Unread), "event"))
	}
}
