package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/hooks"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/rules"
)

// sourceMounts are the calls of sources: webhooks come from strangers, who are told by their signatures.
func sourceMounts(s *hooks.Server) []httpapi.Mount {
	return []httpapi.Mount{
		{Method: "POST", Path: hooks.Path, AnyQuery: true, In: httpapi.Anyone, Serve: s.Serve},
		{Method: "OPTIONS", Path: hooks.Path, AnyQuery: true, In: httpapi.Anyone, Serve: s.Serve},
		{Method: "GET", Path: hooks.Path, AnyQuery: true, Query: []string{"hub.mode", "hub.verify_token", "hub.challenge"}, In: httpapi.Anyone, Serve: s.Serve},
		{Method: "GET", Path: "/v1/sources", May: access.Admin, Of: access.Router, In: httpapi.Whole, Serve: s.ServeList},
		{Method: "POST", Path: hooks.Path + "/test", May: access.Admin, Of: access.Router, In: httpapi.Whole, Serve: s.ServeTest},
	}
}

// invokeWith runs the version of a function that is in force, for the source that the event is of.
func invokeWith(e *engine.Engine) hooks.Invoke {
	return func(ctx context.Context, name string, ev *event.Event) (*event.Invocation, error) {
		return e.Judge(ctx, name, ev)
	}
}

// trust is where certificates that sign webhooks are fetched and which roots vouch for them. The zero value means through
// the process's dialer, and the system's.
type trust struct {
	fetch hooks.Fetch
	roots *x509.CertPool
}

// schemesOf is the schemes of a process that verifies.
func schemesOf(e *engine.Engine, dialer *egress.Dialer, t trust) (map[string]rules.SchemeKind, error) {
	if t.fetch == nil {
		t.fetch = getter(dialer.Client(), "*/*")
	}
	certificates, err := hooks.NewCertificates(hooks.CertificateOptions{Fetch: t.fetch, Roots: t.roots})
	if err != nil {
		return nil, err
	}
	return sourceSchemes(&schemeNeeds{invoke: invokeWith(e), certificates: certificates}), nil
}

// applySources puts the sources of rules in force.
func (d *definitions) applySources(set *rules.Set) {
	if d.sources == nil {
		return
	}
	var list []hooks.Source
	if set != nil {
		for _, x := range set.Hooks {
			list = append(list, hooks.Source{Source: x.Source, Verifier: x.Verifier, Fill: x.Fill, Doc: x.Effective})
		}
	}
	d.sources(list)
}

var descSourceRequests = describe("source_requests_total", "Requests to the source, by what became of them: accepted, repeat, renamed (a repeat by what was signed, under another id), handshake, refused (not verified), invalid, failed; _unknown is for sources that there are not.", "source", "outcome")

func (m *metrics) collectSources(out chan<- prometheus.Metric) {
	if m.sources == nil {
		return
	}
	list, unknown := m.sources()
	beyond := hooks.Stats{Name: "_other"}
	for i, s := range list {
		if i < maxSeries {
			sendSource(out, s)
			continue
		}
		for o, n := range s.Counts {
			beyond.Counts[o] += n
		}
	}
	if len(list) > maxSeries {
		sendSource(out, beyond)
	}
	out <- prometheus.MustNewConstMetric(descSourceRequests, prometheus.CounterValue, float64(unknown), "_unknown", "refused")
}

func sendSource(out chan<- prometheus.Metric, s hooks.Stats) {
	for i, outcome := range hooks.Outcomes() {
		out <- prometheus.MustNewConstMetric(descSourceRequests, prometheus.CounterValue, float64(s.Counts[i]), s.Name, outcome)
	}
}

func sourcesCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "sources",
		Aliases: []string{"source"},
		Short:   "List the senders whose webhooks come in, and try a webhook",
		Long: `A source takes the webhooks of one sender at /v1/sources/NAME, verifies them and makes events of them. Sources are defined in
rules alone; see router rules show.`,
	})
	cmd.AddCommand(p.listCommand("sources", []column{{"NAME", "name"}, {"SCHEME", "scheme"}, {"TOPIC", "topic"}, {"ACCEPTED", "state.requests.accepted"},
		{"REPEATS", "state.requests.repeat"}, {"REFUSED", "state.requests.refused"}, {"LAST REFUSAL", "state.lastRefusal.why"}}),
		sourcesShow(p), sourcesTest(p))
	return cmd
}

func sourcesShow(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show NAME",
		Short:   "Print a source with its defaults and how it stands",
		Example: "  router sources show github",
		Args:    cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		doc, err := c.call(cmd.Context(), "GET", c.path("sources"), nil)
		if err != nil {
			return err
		}
		var list struct{ Sources []json.RawMessage }
		if err := json.Unmarshal(doc, &list); err != nil {
			return fmt.Errorf("%s answered something other than a list of sources (%w); is it a router?", c.base.Host, err)
		}
		var names []string
		for _, x := range list.Sources {
			var head struct{ Name string }
			if err := json.Unmarshal(x, &head); err != nil {
				return err
			}
			if head.Name == args[0] {
				return p.printDocument(c.json, x)
			}
			names = append(names, head.Name)
		}
		return fmt.Errorf("%.80q is no source; there are: %s", args[0], strings.Join(names, ", "))
	}
	return cmd
}

func sourcesTest(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "test NAME",
		Short: "Say what a source would do with a webhook, step by step",
		Long: `Test has a running router look at a webhook as if it had just come in to a source: whether it is verified, or which step
refuses it and why, and which event would be stored. Nothing is stored, and secrets are not shown.

The body is what --file names, byte for byte, or what comes in on standard input. Headers are those that the sender sent; --at
is when, so that an old sample's timestamp is not stale. It exits with 1 where the webhook is refused.`,
		Example: `  router sources test github --file push.json --header 'X-Hub-Signature-256: sha256=…' --header 'X-GitHub-Event: push'
  router sources test stripe --file event.json --header 'Stripe-Signature: t=1700000000,v1=…' --at 2023-11-14T22:13:20Z
  router sources test sms --file body --header 'X-Twilio-Signature: …' --url https://hooks.example.com/v1/sources/sms`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	var file, url, at, method string
	var headers []string
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "read the body from `F`; - is standard input")
	f.StringArrayVarP(&headers, "header", "H", nil, "a header, `\"Name: value\"`; may be repeated")
	f.StringVar(&url, "url", "", "the `URL` that was called, with its query (the source's own)")
	f.StringVar(&method, "method", "POST", "`POST or GET`, which is a handshake")
	f.StringVar(&at, "at", "", "the `time` at which it came, RFC 3339 (now)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		in := map[string]any{"method": method}
		var list [][2]string
		for _, x := range headers {
			name, value, ok := strings.Cut(x, ":")
			if !ok || name == "" {
				return usagef(cmd, "--header %q: want \"Name: value\"", x)
			}
			list = append(list, [2]string{name, strings.TrimSpace(value)})
		}
		in["headers"] = list
		if url != "" {
			in["url"] = url
		}
		if at != "" {
			t, err := event.ParseTime(at)
			if err != nil {
				return usagef(cmd, "--at %v", err)
			}
			in["time"] = t.Format(time.RFC3339Nano)
		}
		var body []byte
		switch {
		case file == "-" || file == "" && method == "POST" && !isTerminal(p.stdin):
			body, err = io.ReadAll(io.LimitReader(p.stdin, maxAnswer))
		case file != "":
			body, err = os.ReadFile(file)
		case method == "POST":
			return usagef(cmd, "no body: give --file F, or pipe it in")
		}
		if err != nil {
			return err
		}
		in["body"] = body
		doc, err := json.Marshal(in)
		if err != nil {
			return err
		}
		answer, err := c.call(cmd.Context(), http.MethodPost, c.path("sources", args[0], "test"), doc)
		if err != nil {
			return err
		}
		return p.showTrial(c, answer)
	}
	return cmd
}

func (p *program) showTrial(c *client, answer []byte) error {
	var t struct {
		Taken                   bool
		Steps                   []string
		Refused, Topic, Repeats string
		Answer                  *string
		Event                   json.RawMessage
	}
	if err := json.Unmarshal(answer, &t); err != nil {
		return fmt.Errorf("%s answered something other than a trial (%w); is it a router?", c.base.Host, err)
	}
	if c.json {
		if err := printJSON(p.stdout, answer); err != nil {
			return err
		}
	} else {
		for _, step := range t.Steps {
			fmt.Fprintf(p.stdout, "ok       %s\n", clean(step))
		}
		switch {
		case t.Answer != nil:
			fmt.Fprintf(p.stdout, "answer   %s\n", clean(*t.Answer))
		case t.Event != nil:
			fmt.Fprintf(p.stdout, "topic    %s\nrepeats  are told by %s\nevent    %s\n", t.Topic, t.Repeats, clean(string(t.Event)))
		}
	}
	if !t.Taken {
		return errors.New("refused: " + clean(t.Refused))
	}
	return nil
}
