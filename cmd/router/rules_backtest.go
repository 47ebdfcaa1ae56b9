package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
)

// rehearsal is the flags of rules backtest.
type rehearsal struct {
	after, before string
	data, events  string
	topic         string
	since, until  string
	limit         int64
	topics        []string
	subscriptions []string
	functions     string
	examples      int
	budget        time.Duration
	failOn        []string
	markdown      bool
	conditions    []failCondition
}

func rulesBacktest(p *program) *cobra.Command {
	o := &rehearsal{}
	cmd := &cobra.Command{
		Use:   "backtest PATH",
		Short: "Try rules on the events that a router keeps, and compare with the rules before",
		Long: `Backtest runs the rules in PATH and the rules before over events of the past and tells the difference: how many events each
subscription took before and takes after, which events changed sides and why, what its functions make of them, and where they
fail. Nothing is delivered, stored or kept as state.

The events are those that a running router keeps, compared with the rules that are in force there (--before REVISION: with an earlier
revision); or, with --data, those of the data directory of a router that does not run, or of a copy; or, with --events, those of a
file, as 'router export' writes them. With these two --before is the PATH of the rules before, and without it there were none.

Functions run where they differ, or a subscription is new. With --functions all every chain runs, with --functions none none. Calls out of
functions fail, and state begins empty. What rules would have put into another topic is not looked at again there.

The budget ends it early; the report says how far it got. On a running router one backtest runs at a time, and makes way for deliveries.
--fail-on exits with 1 after the report: changed, gained, lost, different or failures, each with an optional >N, or incomplete.`,
		Example: `  router rules backtest rules.yaml
  router rules backtest rules.yaml --since 24h --fail-on 'lost>0,failures' -o markdown
  router rules backtest new.yaml --before old.yaml --data /var/backups/millrace
  router rules backtest new.yaml --before old.yaml --events sample.ndjson --topic orders`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.Lookup("output").Usage = "print `text, json or markdown`"
	f.StringVar(&o.before, "before", "", "the rules to compare with: a `PATH`, with a running router a REVISION")
	f.StringVar(&o.data, "data", "", "read the data `directory` of a router that does not run, or a copy of one")
	f.StringVar(&o.events, "events", "", "read events from an NDJSON `file`; - is standard input")
	f.StringVar(&o.topic, "topic", "", "with --events: the `topic` that they are of (default: the one that the rules read)")
	f.StringVar(&o.since, "since", "", "begin at this `time` (RFC 3339) or this long ago (24h); default: the earliest")
	f.StringVar(&o.until, "until", "", "end before this `time` or this long ago")
	f.Int64Var(&o.limit, "limit", 0, "only the last `N` events of each topic")
	f.StringSliceVar(&o.topics, "topics", nil, "only events of these `topics`")
	f.StringSliceVar(&o.subscriptions, "subscriptions", nil, "only these `subscriptions`")
	f.StringVar(&o.functions, "functions", "differing", "run the functions of `differing, all or none` of the subscriptions")
	f.IntVar(&o.examples, "examples", 5, "show so many `events` of each subscription and kind of change, up to 1000")
	f.DurationVar(&o.budget, "budget", time.Minute, "stop after this `time`")
	f.StringSliceVar(&o.failOn, "fail-on", nil, "exit with 1 on this `condition`, such as lost>0 or failures")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.after = args[0]
		if r.output == "markdown" {
			o.markdown, r.output = true, "text"
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if err := o.check(cmd); err != nil {
			return err
		}
		said := p.notice()
		tell := func(g engine.BacktestProgress) {
			of := ""
			if g.InRange > 0 {
				of = fmt.Sprintf(" of %d", g.InRange)
			}
			said.say("%d%s events, %d changed, %d failed", g.Events, of, g.Changed, g.Failed)
		}
		var report *engine.BacktestReport
		before, after := o.before, o.after
		switch {
		case o.data != "" || o.events != "":
			report, err = p.backtestHere(cmd, o, tell)
			if before == "" {
				before = "no rules"
			}
		default:
			report, err = p.backtestThere(cmd.Context(), c, o, tell)
			if before == "" {
				before = "the rules in force at " + c.base.Redacted()
			}
		}
		said.end()
		if err != nil {
			return err
		}
		switch {
		case c.json:
			doc, err := json.Marshal(report)
			if err != nil {
				return err
			}
			if err := printJSON(p.stdout, doc); err != nil {
				return err
			}
		case o.markdown:
			markdownBacktest(p.stdout, report, before, after)
		default:
			showBacktest(p.stdout, report, before, after)
		}
		return p.failOn(o, report)
	}
	return cmd
}

func (o *rehearsal) check(cmd *cobra.Command) error {
	if o.data != "" && o.events != "" {
		return usagef(cmd, "--data and --events: want one of them")
	}
	if o.events != "" && (o.since != "" || o.until != "" || o.limit != 0) {
		return usagef(cmd, "--since, --until and --limit choose among events that are kept; with --events cut the file")
	}
	if o.topic != "" && o.events == "" {
		return usagef(cmd, "--topic goes with --events")
	}
	if o.limit < 0 || o.budget <= 0 {
		return usagef(cmd, "--limit and --budget: want more than 0")
	}
	if o.examples < 1 || o.examples > 1000 {
		return usagef(cmd, "--examples %d: want 1 to 1000", o.examples)
	}
	switch o.functions {
	case "differing", "all", "none":
	default:
		return usagef(cmd, "--functions %q: want differing, all or none", o.functions)
	}
	for _, text := range o.failOn {
		c, err := parseFailOn(text)
		if err != nil {
			return usagef(cmd, "--fail-on: %v", err)
		}
		o.conditions = append(o.conditions, c)
	}
	return nil
}

// failCondition is one that makes a backtest exit with 1.
type failCondition struct {
	name string
	over uint64
}

func parseFailOn(text string) (failCondition, error) {
	name, over, given := strings.Cut(strings.TrimSpace(text), ">")
	c := failCondition{name: strings.TrimSpace(name)}
	if given {
		var err error
		if c.over, err = strconv.ParseUint(strings.TrimSpace(over), 10, 64); err != nil {
			return c, fmt.Errorf("%.60q: after > stands a whole number", text)
		}
	}
	switch c.name {
	case "changed", "gained", "lost", "different", "failures":
		return c, nil
	case "incomplete":
		if !given {
			return c, nil
		}
	}
	return c, fmt.Errorf("%.60q: want changed, gained, lost, different or failures, each with an optional >N, or incomplete", text)
}

// failOn says which conditions are met.
func (p *program) failOn(o *rehearsal, r *engine.BacktestReport) error {
	broken := uint64(0)
	for _, s := range r.Subscriptions {
		if s.Functions != nil && s.Functions.Error != "" {
			broken++
		}
	}
	of := map[string]uint64{"changed": r.Changed, "gained": r.Gained, "lost": r.Lost, "different": r.Different, "failures": r.Failed + broken}
	met := false
	for _, c := range o.conditions {
		switch n := of[c.name]; {
		case c.name == "incomplete" && !r.Complete:
			say(p.stderr, "router: --fail-on incomplete: %s", clean(r.Stopped))
			met = true
		case c.name != "incomplete" && n > c.over:
			say(p.stderr, "router: --fail-on %s>%d: %d", c.name, c.over, n)
			met = true
		}
	}
	if met {
		return errSaid
	}
	return nil
}

// backtestThere has a running router do it.
func (p *program) backtestThere(ctx context.Context, c *client, o *rehearsal, tell func(engine.BacktestProgress)) (*engine.BacktestReport, error) {
	bundle, err := p.packRules(ctx, o.after)
	if err != nil {
		return nil, err
	}
	q := url.Values{"budget": {o.budget.String()}, "examples": {strconv.Itoa(o.examples)}}
	for name, v := range map[string]string{"since": o.since, "until": o.until, "before": o.before,
		"topics": strings.Join(o.topics, ","), "subscriptions": strings.Join(o.subscriptions, ",")} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if o.limit > 0 {
		q.Set("limit", strconv.FormatInt(o.limit, 10))
	}
	switch o.functions {
	case "all":
		q.Set("functions", "true")
	case "none":
		q.Set("functions", "false")
	}
	u := c.path("rules", "backtest")
	u.RawQuery = q.Encode()
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := zip.Write(bundle); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	req, err := c.request(ctx, http.MethodPost, u, &packed, "Content-Type", "application/octet-stream", "Content-Encoding", "gzip", "Accept", ndjsonType)
	if err != nil {
		return nil, err
	}
	res, err := c.send(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	d := json.NewDecoder(res.Body)
	for {
		var line struct {
			Progress *engine.BacktestProgress `json:"progress"`
			Report   *engine.BacktestReport   `json:"report"`
			Problem  *problem                 `json:"problem"`
		}
		switch err := d.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%s ended its answer before the report", c.base.Host)
		case err != nil:
			return nil, fmt.Errorf("reading the answer of %s: %w", c.base.Host, err)
		case line.Problem != nil:
			return nil, line.Problem
		case line.Report != nil:
			return line.Report, nil
		case line.Progress != nil:
			tell(*line.Progress)
		}
	}
}

// backtestEvents reads recorded events. Their places are the lines of the file.
func (p *program) backtestEvents(o *rehearsal, topic string) (func(yield func(string, []event.Record) bool) error, error) {
	in := p.stdin
	if o.events != "-" {
		file, err := os.Open(o.events)
		if err != nil {
			return nil, err
		}
		in = file
	}
	return func(yield func(string, []event.Record) bool) (err error) {
		if c, ok := in.(io.Closer); ok && o.events != "-" {
			defer func() { err = errors.Join(err, c.Close()) }()
		}
		lines := newLineLumper(bufio.NewReader(in), o.events, &importState{})
		var recs []event.Record
		for {
			text, err := lines.read(event.Limits{}.WithDefaults().Body)
			if errors.Is(err, io.EOF) {
				if len(recs) > 0 {
					yield(topic, recs)
				}
				return nil
			}
			if err != nil {
				return err
			}
			if len(text) == 0 {
				continue
			}
			rec, err := recorded(text, topic, uint64(lines.line))
			if err != nil {
				return fmt.Errorf("%s:%d: %w", o.events, lines.line, err)
			}
			if recs = append(recs, rec); len(recs) == backtestFeed {
				if !yield(topic, recs) {
					return nil
				}
				recs = nil
			}
		}
	}, nil
}

// backtestFeed is how many recorded events are handed over at once.
const backtestFeed = 256

// recorded makes a line of a recording the event that it was.
func recorded(text []byte, topic string, line uint64) (event.Record, error) {
	if err := event.CheckJSON(text); err != nil {
		return nil, err
	}
	if !event.HasSpecVersion(text) {
		text = dataEvent(text, "", int(line))
	}
	var e event.Event
	if err := event.ParseStructured(text, event.Limits{}, &e); err != nil {
		return nil, err
	}
	received := time.Time{}
	if x, ok := extensionOf(&e, "recordedtime"); ok {
		received, _ = event.ParseTime(x) // of another recorder, perhaps in another form
	}
	pos := event.Position{Offset: line}
	if x, ok := extensionOf(&e, "millraceposition"); ok {
		if at, err := event.ParsePosition(x); err == nil {
			pos = at
		}
	}
	e.Set(event.Attr{Name: "millraceposition", Unset: true})
	e.Set(event.Attr{Name: "recordedtime", Unset: true})
	e.Topic = topic
	rec := event.Record(e.AppendRecord(nil))
	ns := int64(0)
	if !received.IsZero() {
		ns = received.UnixNano()
	}
	rec.SetPlace(pos, ns)
	return rec, nil
}

func extensionOf(e *event.Event, name string) (string, bool) {
	for _, x := range e.Extensions {
		if x.Name == name {
			return x.Value, true
		}
	}
	return "", false
}
