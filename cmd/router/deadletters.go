package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/rules"
)

func deadLettersCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "deadletters",
		Aliases: []string{"deadletter", "dead"},
		Short:   "List, redrive and purge what subscriptions gave up",
		Long: `A dead letter is an event that a subscription gave up: after its last attempt, or because its function or its
target refused it for good. It stays in the subscription's dead-letter topic until it is redriven or purged.`,
	})
	cmd.AddCommand(deadLettersList(p), deadLettersRedrive(p), deadLettersPurge(p))
	return cmd
}

// choosing is the flags that say which dead letters are meant.
type choosing struct{ filter, since, before, topic string }

func (o *choosing) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.filter, "filter", "", "only those for which this `expression` is true, such as 'ext.deadlettercode == 503'")
	f.StringVar(&o.since, "since", "", "only those given up at this `time` or later (RFC 3339, or a duration back: 12h, 7d)")
	f.StringVar(&o.before, "before", "", "only those given up before this `time`")
	f.StringVar(&o.topic, "topic", "", "look in this `topic` (default: the dead-letter topic that the subscription has now)")
}

func (o *choosing) fill(doc map[string]any) {
	setIf(doc, "filter", o.filter)
	setIf(doc, "since", o.since)
	setIf(doc, "before", o.before)
	setIf(doc, "topic", o.topic)
}

// deadLetter is what this program looks at of one.
type deadLetter struct {
	Position, At, ID, Type, Reason, Detail, Half string
	Code, Attempts, Redrives                     int
	Event                                        json.RawMessage
}

func deadLettersList(p *program) *cobra.Command {
	var o choosing
	limit := 100
	cmd := &cobra.Command{
		Use:     "list SUBSCRIPTION",
		Aliases: []string{"ls"},
		Short:   "List dead letters that are neither redriven nor purged, oldest first",
		Long: `List shows dead letters, oldest first within each partition. With -o json each is a line of its own, with its event
and the story of its tries.`,
		Example: `  router deadletters list orders
  router deadletters list orders --filter 'type == "order.created" && ext.deadlettercode == 503' --since 12h -o json`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	o.flags(cmd)
	cmd.Flags().IntVar(&limit, "limit", limit, "at most `N`; 0 for all")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if limit < 0 {
			return usagef(cmd, "--limit %d: want a positive number, or 0 for all", limit)
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		return p.listDeadLetters(cmd.Context(), c, args[0], o, limit)
	}
	return cmd
}

func (p *program) listDeadLetters(ctx context.Context, c *client, name string, o choosing, limit int) error {
	table := tabwriter.NewWriter(p.stdout, 0, 4, 2, ' ', 0)
	shown, total := 0, 0
	for after := ""; ; {
		n := 1000
		if limit > 0 {
			n = min(n, limit-shown)
		}
		u := c.path("subscriptions", name, "deadletters")
		q := url.Values{"limit": {strconv.Itoa(n)}}
		for key, v := range map[string]string{"after": after, "filter": o.filter, "since": o.since, "before": o.before, "topic": o.topic} {
			if v != "" {
				q.Set(key, v)
			}
		}
		u.RawQuery = q.Encode()
		var page struct {
			DeadLetters []json.RawMessage
			Next        string
			Total       int
		}
		if err := c.callJSON(ctx, "GET", u, nil, &page); err != nil {
			return err
		}
		total = page.Total
		for _, doc := range page.DeadLetters {
			if c.json {
				if err := printJSON(p.stdout, doc); err != nil {
					return err
				}
			} else if err := letterLine(table, doc, shown == 0); err != nil {
				return err
			}
			shown++
		}
		if after = page.Next; after == "" || limit > 0 && shown >= limit {
			break
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	switch {
	case total == 0:
		say(p.stderr, "%s has no dead letters", clean(name))
	case shown < total:
		say(p.stderr, "%d of %s", shown, plural(total, "dead letter"))
	}
	return nil
}

func letterLine(table *tabwriter.Writer, doc json.RawMessage, first bool) error {
	var l deadLetter
	if err := json.Unmarshal(doc, &l); err != nil {
		return fmt.Errorf("the router answered with a dead letter that cannot be read: %w", err)
	}
	if first {
		fmt.Fprintln(table, "POSITION\tAT\tID\tTYPE\tREASON\tCODE\tATTEMPTS\tREDRIVES\tDETAIL")
	}
	at := l.At
	if t, err := time.Parse(time.RFC3339Nano, at); err == nil {
		at = t.UTC().Format(time.RFC3339)
	}
	code := "-"
	if l.Code != 0 {
		code = strconv.Itoa(l.Code)
	}
	reason := l.Reason
	if l.Half != "" {
		reason += " (" + l.Half + ")"
	}
	cut := func(s string) string { return cell(map[string]any{"": s}, "") }
	_, err := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", cut(l.Position), cut(at), cut(l.ID), cut(l.Type), cut(reason), code, l.Attempts, l.Redrives, cut(l.Detail))
	return err
}

// lettersDone is the router's answer to a redrive or a purge.
type lettersDone struct {
	Redriven    int          `json:"redriven"`
	Purged      int          `json:"purged"`
	Left        int          `json:"left"`
	Skipped     int          `json:"skipped,omitempty"`
	Why         string       `json:"why,omitempty"`
	Stopped     string       `json:"stopped,omitempty"`
	Until       string       `json:"until"`
	DryRun      bool         `json:"dryRun,omitempty"`
	DeadLetters []deadLetter `json:"deadletters,omitempty"`
}

func deadLettersRedrive(p *program) *cobra.Command {
	var o choosing
	var function string
	var rate perSecond
	var limit int
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "redrive SUBSCRIPTION",
		Short: "Deliver dead letters again, to the subscription alone",
		Long: `Redrive gives dead letters back to their subscription: each once, with the id that it always had, and never into the
topic that the subscription reads. What fails meanwhile is not sent round again.`,
		Example: `  router deadletters redrive orders --dry-run
  router deadletters redrive orders --filter 'ext.deadlettercode == 503' --rate 50
  router deadletters redrive orders --function redact@sha256:9f86d081`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&function, "function", "", "run this version, `NAME@DIGEST`, instead of the one in force")
	f.Var(&rate, "rate", "at most so many events: `N` a second, 50/s or 10/m")
	f.IntVar(&limit, "limit", 0, "at most `N` events")
	f.BoolVar(&dryRun, "dry-run", false, "count and show, change nothing")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		doc := map[string]any{}
		o.fill(doc)
		setIf(doc, "function", function)
		setIf(doc, "rate", float64(rate))
		setIf(doc, "limit", limit)
		setIf(doc, "dryRun", dryRun)
		sum, err := p.workOff(cmd.Context(), c, args[0], "redrive", doc, func(d *lettersDone) *int { return &d.Redriven })
		return p.tellDone(c, args[0], "redriven", sum.Redriven, sum, err)
	}
	return cmd
}

// perSecond is a rate flag: a number of events a second, or a rate as rules write it.
type perSecond float64

func (r *perSecond) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		v, err = rules.ParseRate(s)
	}
	*r = perSecond(v)
	return err
}

func (r *perSecond) String() string {
	if *r == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(*r), 'g', -1, 64)
}

func (r *perSecond) Type() string { return "rate" }

func deadLettersPurge(p *program) *cobra.Command {
	var o choosing
	var all, yes, dryRun bool
	cmd := &cobra.Command{
		Use:   "purge SUBSCRIPTION",
		Short: "Drop dead letters for good",
		Long: `Purge drops dead letters for good. Say which with --filter, --since or --before, or --all. At a terminal it asks first,
unless --yes is given.`,
		Example: `  router deadletters purge orders --before 30d
  router deadletters purge orders --all --yes`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	o.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "all of them")
	f.BoolVar(&yes, "yes", false, "do not ask")
	f.BoolVar(&dryRun, "dry-run", false, "count and show, change nothing")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !all && o.filter == "" && o.since == "" && o.before == "" {
			return usagef(cmd, "which ones? Give --filter, --since or --before, or --all")
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		doc := map[string]any{}
		o.fill(doc)
		setIf(doc, "all", all)
		purged := func(d *lettersDone) *int { return &d.Purged }
		if !yes && !dryRun && isTerminal(p.stdin) {
			doc["dryRun"] = true
			would, err := p.workOff(cmd.Context(), c, args[0], "purge", doc, purged)
			if err != nil {
				return err
			}
			if !p.agreed(fmt.Sprintf("drop %s of %s for good?", plural(would.Purged, "dead letter"), clean(args[0]))) {
				say(p.stderr, "nothing was purged")
				return nil
			}
			delete(doc, "dryRun")
			doc["before"] = would.Until // what came since was not asked about
		}
		setIf(doc, "dryRun", dryRun)
		sum, err := p.workOff(cmd.Context(), c, args[0], "purge", doc, purged)
		return p.tellDone(c, args[0], "purged", sum.Purged, sum, err)
	}
	return cmd
}

// agreed asks a question at the terminal. No answer is a no.
func (p *program) agreed(question string) bool {
	fmt.Fprintf(p.stderr, "%s [y/N] ", question)
	answer, _ := bufio.NewReader(p.stdin).ReadString('\n')
	return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer)))
}

// workOff calls until everything is done or something but the time of a call stops it. What is given up since the
// first call began is left alone, or what fails again would go round.
func (p *program) workOff(ctx context.Context, c *client, name, verb string, doc map[string]any, count func(*lettersDone) *int) (lettersDone, error) {
	var sum lettersDone
	limit, _ := doc["limit"].(int)
	for {
		var d lettersDone
		if err := c.callJSON(ctx, "POST", c.path("subscriptions", name, verb), doc, &d); err != nil {
			return sum, err
		}
		*count(&d) += *count(&sum)
		sum = d
		if d.Stopped != "time" {
			return sum, nil
		}
		doc["before"] = d.Until
		if limit > 0 {
			doc["limit"] = limit - *count(&sum)
		}
		if isTerminal(p.stderr) {
			fmt.Fprintf(p.stderr, "\r%s: %d done, %d left ", verb, *count(&sum), d.Left)
		}
	}
}

// tellDone prints what became of it. Letters that are left for a reason to look at make the command fail.
func (p *program) tellDone(c *client, name, word string, n int, d lettersDone, err error) error {
	if isTerminal(p.stderr) {
		fmt.Fprint(p.stderr, "\r\x1b[K")
	}
	if err != nil {
		if n > 0 {
			say(p.stderr, "%s were %s before this:", plural(n, "dead letter"), word)
		}
		return err
	}
	if c.json {
		doc, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if err := printJSON(p.stdout, doc); err != nil {
			return err
		}
	} else if d.DryRun {
		say(p.stdout, "%s of %s would be %s", plural(n, "dead letter"), clean(name), word)
		for _, l := range d.DeadLetters {
			say(p.stdout, "  %s %s %s %s", clean(l.Position), clean(l.Type), clean(l.ID), clean(l.Reason))
		}
		if more := n - len(d.DeadLetters); more > 0 && len(d.DeadLetters) > 0 {
			say(p.stdout, "  and %d more", more)
		}
	} else {
		say(p.stdout, "%s %s of %s", word, plural(n, "dead letter"), clean(name))
	}
	if d.Skipped > 0 {
		say(p.stderr, "%s left where they are: %s", plural(d.Skipped, "dead letter"), clean(d.Why))
	}
	if d.Stopped != "" && d.Stopped != "limit" && !d.DryRun {
		return fmt.Errorf("%s left: %s", plural(d.Left, "dead letter"), clean(d.Stopped))
	}
	return nil
}
