package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
)

// explaining is the flags of explain.
type explaining struct{ file, rules, topic, name, data string }

func explainCommand(p *program) *cobra.Command {
	var o explaining
	cmd := &cobra.Command{
		Use:   "explain [SUBSCRIPTION] [TOPIC/POSITION]",
		Short: "Say what a subscription makes of an event, and why",
		Long: `Explain says whether the subscription's filter takes the event, with the value of every part and the one that decided; where the
event is now; what the functions make of it, worked out once more without effects; the request that is sent; and how each try
ended. With TOPIC/POSITION alone it lists what became of the event at every subscription of its topic.

With --file and --rules it is a dry run without a router: of the subscription that is named, or of all that read --topic, or of all
there are. The file is an event as CloudEvents JSON, or the data of one. Secrets and signatures are never shown.

With --mqtt-name it begins where an MQTT client publishes: which mapping takes the name and why the others do not, the event that the
payload in --data or --file becomes, under which names MQTT clients read it, and what subscriptions make of it: with --rules as in
a dry run, else which of the router's take it. Nothing is published. With SUBSCRIPTION and without --rules the payload goes into a URL:
at most 8 KiB of it as it stands there, where each byte but letters and digits may take three.`,
		Example: `  router explain big-eu-orders orders/0-42
  router explain orders/0-42
  router explain --file event.json --rules millrace.yaml big-eu-orders
  router explain --file event.json --rules millrace.yaml --topic orders -o json
  router explain --mqtt-name plants/north/pump-7/temp --data '{"celsius": 95}'
  router explain --mqtt-name plants/north/pump-7/temp --data '{"celsius": 95}' --rules millrace.yaml hot`,
		Args: cobra.RangeArgs(0, 2),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.file, "file", "", "explain the event in this `file` (-: standard input) without a router; goes with --rules")
	f.StringVar(&o.rules, "rules", "", "the rules file or folder (`path`) for --file")
	f.StringVar(&o.topic, "topic", "", "the `topic` that the event of --file would be in")
	f.StringVar(&o.name, "mqtt-name", "", "explain what an MQTT client would publish under this `name`")
	f.StringVar(&o.data, "data", "", "the payload for --mqtt-name, as `text`; with SUBSCRIPTION at a router at most 8 KiB in a URL")
	cmd.MarkFlagsMutuallyExclusive("data", "file")
	cmd.MarkFlagsMutuallyExclusive("mqtt-name", "topic")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("mqtt-name") {
			return p.explainName(cmd, r, o, args)
		}
		if o.data != "" {
			return usagef(cmd, "--data is the payload of what is published under --mqtt-name; an event is read from --file")
		}
		if o.file != "" || o.rules != "" || o.topic != "" {
			return p.explainFile(cmd, r, o, args)
		}
		if len(args) == 0 {
			return usagef(cmd, "nothing to explain: want SUBSCRIPTION TOPIC/POSITION, or --file and --rules")
		}
		at := args[len(args)-1]
		topic, position, ok := strings.Cut(at, "/")
		if _, err := event.ParsePosition(position); !ok || err != nil {
			return usagef(cmd, "%q is no event: want TOPIC/POSITION, such as orders/0-42", clean(at))
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if len(args) == 1 {
			doc, err := c.call(cmd.Context(), "GET", c.path("topics", topic, "events", position, "trace"), nil)
			if err != nil {
				return err
			}
			return showAs(p, c.json, doc, writeTrace)
		}
		u := c.path("subscriptions", args[0], "explain")
		q := u.Query()
		q.Set("event", at)
		u.RawQuery = q.Encode()
		doc, err := c.call(cmd.Context(), "GET", u, nil)
		if err != nil {
			return err
		}
		return showAs(p, c.json, doc, writeExplained)
	}
	return cmd
}

// showAs prints a document as JSON, or as text by write.
func showAs[T any](p *program, asJSON bool, doc []byte, write func(io.Writer, *T)) error {
	if asJSON {
		return printJSON(p.stdout, doc)
	}
	var x T
	if err := json.Unmarshal(doc, &x); err != nil {
		return fmt.Errorf("the router answered with what cannot be read (%w); is it a router?", err)
	}
	write(p.stdout, &x)
	return nil
}

// bodyShown bounds what is shown of a request's body, in bytes, and of a value that a function changed.
const (
	bodyShown  = 4 << 10
	valueShown = 200
)

// writeExplained prints an explanation for people.
func writeExplained(w io.Writer, x *event.Explained) {
	line := func(format string, args ...any) { fmt.Fprintln(w, clean(fmt.Sprintf(format, args...))) }
	at := x.Topic
	if x.Position != "" {
		at += "/" + x.Position
	}
	line("%s, %s%s", x.Subscription, at, eventName(x.Event))
	line("  %s", x.Why)
	if len(x.Conditions) > 1 || len(x.Conditions) == 1 && len(x.Conditions[0].Reads) > 0 {
		for _, c := range x.Conditions {
			mark, reads := " ", ""
			if c.Decided {
				mark = ">"
			}
			for _, f := range c.Reads {
				reads += fmt.Sprintf("  %s is %s", f.Name, short(f.Value, valueShown))
			}
			if c.Depth == 0 && len(x.Conditions) > 1 { // its parts say it
				reads = ""
			}
			line("  %s %s%-5t  %s%s", mark, strings.Repeat("  ", c.Depth), c.Value, c.Expression, reads)
		}
	}
	if len(x.Missing) > 0 {
		line("  missing: %s", strings.Join(x.Missing, ", "))
	}
	line("now: %s: %s", x.State, x.Detail)
	for _, n := range x.Notes {
		line("  %s", n)
	}
	if f := x.Functions; f != nil {
		writeChain(line, f)
	}
	for _, o := range x.Outputs {
		place := o.Topic
		if o.Position != "" {
			place += "/" + o.Position
		}
		state := ""
		if o.State != "" {
			state = ": " + o.State
		}
		if o.Detail != "" {
			state += ": " + o.Detail
		}
		line("puts into %s%s%s", place, eventName(o.Event), state)
		writeTries(line, o.Tries)
	}
	for i := range x.Requests {
		writeRequest(w, line, &x.Requests[i], x.State)
	}
	if len(x.Tries) > 0 {
		from := map[string]string{"trace": "", "parked": " (as its parked row tells)", "deadletter": " (as its dead letter tells)"}[x.TriesFrom]
		line("tries%s:", from)
		writeTries(line, x.Tries)
	}
}

func writeChain(line func(string, ...any), f *event.ExplainedChain) {
	line("functions, worked out anew with %s; fuel %d:", f.Version, f.Fuel)
	if f.Error != "" {
		line("  they cannot be run: %s", f.Error)
	}
	if f.Unrepeatable != "" {
		line("  another run is not the one that counts: %s. What it says is left out", f.Unrepeatable)
	}
	for _, s := range f.Steps {
		detail := ""
		if s.Detail != "" {
			detail = ": " + s.Detail
		}
		line("  %s@%s: %s%s", s.Function, short(s.Digest, len("sha256:")+12), s.Verdict, detail)
		for _, c := range s.Changes {
			value := func(v json.RawMessage) string {
				if v == nil {
					return "(missing)"
				}
				return short(string(v), valueShown)
			}
			line("    %s: %s -> %s", c.Path, value(c.Was), value(c.Is))
		}
	}
	if f.Failure != "" {
		line("  failed: %s", f.Failure)
	}
	for _, l := range f.Logs {
		line("  log: %s", l)
	}
}

func writeRequest(w io.Writer, line func(string, ...any), r *event.Request, state string) {
	verb := "would send"
	if state == event.StateDelivered || state == event.StateParked || state == event.StateDead {
		verb = "sends"
	}
	note := ""
	if r.Note != "" {
		note = " (" + r.Note + ")"
	}
	if r.Method == "" {
		line("%s nothing%s", verb, note)
		return
	}
	line("%s%s:", verb, note)
	line("  %s %s", r.Method, r.URL)
	for _, h := range r.Headers {
		line("  %s: %s", h.Name, h.Value)
	}
	fmt.Fprintln(w)
	if r.Binary {
		line("  (base64) %s", short(r.Body, bodyShown))
		return
	}
	for l := range strings.SplitSeq(short(r.Body, bodyShown), "\n") {
		line("  %s", l)
	}
}

func writeTries(line func(string, ...any), tries []event.Tried) {
	for _, t := range tries {
		text := t.Verdict
		if t.Reason != "" {
			text += " (" + t.Reason + ")"
		}
		if t.Function != "" {
			text += " by " + t.Function
		}
		if t.Code != 0 {
			text += fmt.Sprintf(", answered %d", t.Code)
		}
		if t.Error != "" {
			text += ": " + t.Error
		}
		if len(t.Outputs) > 0 {
			text += " -> " + strings.Join(t.Outputs, ", ")
		}
		if t.Due != nil {
			text += "; due again " + t.Due.UTC().Format(time.RFC3339)
		}
		line("  %s  try %d  %s", t.At.UTC().Format("2006-01-02T15:04:05.0Z"), t.Attempt, text)
	}
}

// writeTrace prints what became of an event at the subscriptions of its topic.
func writeTrace(w io.Writer, x *event.EventTrace) {
	line := func(format string, args ...any) { fmt.Fprintln(w, clean(fmt.Sprintf(format, args...))) }
	line("%s/%s%s: taken by %d of %s", x.Topic, x.Position, eventName(x.Event), x.Matched, plural(x.Matched+x.NotMatched, "subscription"))
	if !x.Traced {
		line("  no trace of it is kept: the topic's trace is off, or the event is none of its sample")
	}
	for _, s := range x.Subscriptions {
		match := ""
		if !s.Matched {
			match = " (its filter does not take it now)"
		}
		line("%s: %s%s", s.Subscription, s.State, match)
		writeTries(line, s.Tries)
	}
	if x.More > 0 {
		line("and %s", plural(x.More, "more subscription"))
	}
}

// eventName is type and id of an event, in brackets.
func eventName(doc json.RawMessage) string {
	var e struct{ ID, Type string }
	if json.Unmarshal(doc, &e) != nil || e.Type == "" {
		return ""
	}
	return " (" + e.Type + ", " + e.ID + ")"
}

// short cuts a text.
func short(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
