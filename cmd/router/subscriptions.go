package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func subscriptionsCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "subscriptions",
		Aliases: []string{"subscription", "subs", "sub"},
		Short:   "List, show, create, delete, pause, resume and seek subscriptions",
	})
	columns := []column{
		{"NAME", "name"}, {"TOPIC", "topic"}, {"STATE", "state.state"}, {"LAG", "state.lag"}, {"FILTER", "filter"}, {"DELIVER", "deliver"},
	}
	cmd.AddCommand(
		p.listCommand("subscriptions", columns),
		p.showCommand("subscriptions", "workers"),
		subscriptionsCreate(p),
		p.deleteCommand("subscriptions", "workers"),
		subscriptionsDo(p, "pause", "Stop delivering until resumed; events keep"),
		subscriptionsDo(p, "resume", "Deliver again; also after a target answered 410, or at once while its circuit is open"),
		subscriptionsSeek(p),
		subscriptionsShadow(p),
	)
	return cmd
}

// subscribing is the flags of subscriptions create.
type subscribing struct {
	file, topic, filter, start, format, toTopic, url, deadLetter, order, rate, batchWait, mqtt string
	functions, secrets                                                                         []string
	pull, stream                                                                               bool
	concurrency, attempts, batch                                                               int
}

func subscriptionsCreate(p *program) *cobra.Command {
	var o subscribing
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a subscription",
		Long: `Create makes a subscription from flags, or from a file that holds its keys as a rules file would, in YAML or JSON.
It delivers to a webhook (--to), a pull queue (--pull), a topic (--to-topic), a stream (--stream) or
MQTT clients (--mqtt).`,
		Example: `  router subscriptions create workers --topic orders --pull
  router subscriptions create big --topic orders --filter 'data.total > 100' --to https://example.com/hook --secret whsec_…
  router subscriptions create audit --topic orders --function redact --to-topic audit`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "read the definition from `F`; - is standard input")
	f.StringVar(&o.topic, "topic", "", "the `topic` it reads")
	f.StringVar(&o.filter, "filter", "", "take only events for which this `expression` is true")
	f.StringVar(&o.start, "start", "", "begin at `WHERE`: latest, earliest, a time (RFC 3339) or a duration back such as 24h (default latest)")
	f.StringArrayVar(&o.functions, "function", nil, "run this `function` on each event; again for a chain")
	f.StringVar(&o.url, "to", "", "deliver to the webhook at this `URL`")
	f.StringVar(&o.format, "format", "", "webhook: `structured, binary or data`")
	f.StringArrayVar(&o.secrets, "secret", nil, "webhook: sign with this `whsec_…`; again while rotating")
	f.IntVar(&o.batch, "batch", 0, "webhook: send up to `N` events in a request")
	f.StringVar(&o.batchWait, "batch-wait", "", "webhook: wait this `long` for more events of a batch, such as 50ms")
	f.BoolVar(&o.pull, "pull", false, "deliver to whoever pulls")
	f.StringVar(&o.toTopic, "to-topic", "", "deliver into this `topic`")
	f.BoolVar(&o.stream, "stream", false, "deliver to whoever streams")
	f.StringVar(&o.mqtt, "mqtt", "", "deliver to MQTT clients under these `NAMES`, such as alerts/{subject}")
	f.IntVar(&o.concurrency, "concurrency", 0, "at most `N` deliveries under way (default 16)")
	f.StringVar(&o.order, "order", "", "`none or key`; key: one event of a partitionkey at a time, in the topic's order (default none)")
	f.StringVar(&o.rate, "rate", "", "send at most so many, such as `500/s` or 10/m (default unlimited)")
	f.IntVar(&o.attempts, "attempts", 0, "try `N` times before the dead-letter topic (default 10)")
	f.StringVar(&o.deadLetter, "dead-letter", "", "the dead-letter `topic` (default NAME.dead)")
	cmd.MarkFlagsMutuallyExclusive("to", "pull", "to-topic", "stream", "mqtt")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		doc, err := p.definition(cmd, o.file, args[0])
		if err != nil {
			return err
		}
		if err := o.fill(cmd, doc); err != nil {
			return err
		}
		return p.create(cmd, r, "subscriptions", doc)
	}
	return cmd
}

// fill puts what flags say into a definition.
func (o *subscribing) fill(cmd *cobra.Command, doc map[string]any) error {
	setIf(doc, "topic", o.topic)
	setIf(doc, "filter", o.filter)
	setIf(doc, "start", o.start)
	setIf(doc, "order", o.order)
	setIf(doc, "concurrency", o.concurrency)
	setIf(doc, "rate", o.rate)
	setIf(doc, "deadLetter", o.deadLetter)
	if len(o.functions) > 0 {
		doc["functions"] = o.functions
	}
	retry := child(doc, "retry")
	setIf(retry, "attempts", o.attempts)
	putChild(doc, "retry", retry)
	if o.url == "" && (o.format != "" || len(o.secrets) > 0 || o.batch != 0 || o.batchWait != "") {
		return usagef(cmd, "--format, --secret and --batch belong to a webhook: give its URL with --to")
	}
	switch {
	case o.url != "":
		hook := map[string]any{"url": o.url}
		setIf(hook, "format", o.format)
		if len(o.secrets) > 0 {
			hook["secrets"] = o.secrets
		}
		batch := map[string]any{}
		setIf(batch, "events", o.batch)
		setIf(batch, "wait", o.batchWait)
		if len(batch) > 0 {
			hook["batch"] = batch
		}
		doc["deliver"] = map[string]any{"webhook": hook}
	case o.pull:
		doc["deliver"] = map[string]any{"pull": map[string]any{}}
	case o.toTopic != "":
		doc["deliver"] = map[string]any{"topic": o.toTopic}
	case o.stream:
		doc["deliver"] = map[string]any{"stream": map[string]any{}}
	case o.mqtt != "":
		doc["deliver"] = map[string]any{"mqtt": map[string]any{"topic": o.mqtt}}
	}
	if doc["topic"] == nil {
		return usagef(cmd, "no topic: say which one it reads with --topic")
	}
	if doc["deliver"] == nil {
		return usagef(cmd, "nowhere to deliver: give one of --to URL, --pull, --to-topic TOPIC, --stream, --mqtt NAMES")
	}
	return nil
}

func subscriptionsDo(p *program, verb, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     verb + " NAME",
		Short:   short,
		Example: fmt.Sprintf("  router subscriptions %s workers", verb),
		Args:    cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	var reason string
	if verb == "pause" {
		cmd.Flags().StringVar(&reason, "reason", "", "show this `text` with the state")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		var in any
		if reason != "" {
			in = map[string]string{"reason": reason}
		}
		if err := c.callJSON(cmd.Context(), "POST", c.path("subscriptions", args[0], verb), in, nil); err != nil {
			return err
		}
		say(p.stderr, "%sd %s", verb, clean(args[0]))
		return nil
	}
	return cmd
}

func subscriptionsSeek(p *program) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "seek NAME --to WHERE",
		Short: "Move a subscription: deliver again from there, or skip",
		Example: `  router subscriptions seek workers --to earliest
  router subscriptions seek workers --to 2026-01-31T08:00:00Z
  router subscriptions seek workers --to 2h`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.Flags().StringVar(&to, "to", "", "move to `WHERE`: earliest, latest, a time (RFC 3339), a duration back or a cursor")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if to == "" {
			return usagef(cmd, "--to is missing: want earliest, latest, a time, a duration back or a cursor")
		}
		if err := c.callJSON(cmd.Context(), "POST", c.path("subscriptions", args[0], "seek"), map[string]string{"to": to}, nil); err != nil {
			return err
		}
		say(p.stderr, "%s now continues from %s", clean(args[0]), clean(to))
		return nil
	}
	return cmd
}
