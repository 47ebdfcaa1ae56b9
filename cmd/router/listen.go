package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/connector/webhook"
	"github.com/millrace/millrace/engine/egress"
)

// listening is the flags of listen.
type listening struct {
	to, since, topic, filter, as, format string
	secrets, headers                     []string
	timeout                              time.Duration
	concurrency                          int
	print, forget                        bool
}

func listenCommand(p *program) *cobra.Command {
	var o listening
	cmd := &cobra.Command{
		Use:   "listen SUBSCRIPTION --forward-to URL",
		Short: "Forward a subscription's deliveries to a program on this desk",
		Long: `Listen takes a subscription's deliveries and sends each to the program at URL, as the router would send a webhook: same
body, same headers, same signature. A delivery is acknowledged when the program has answered 2xx, and not before: what a
crash, a sleeping laptop or kill -9 leaves behind comes again.

A pull subscription is used as it is. Beside any other one, and where there is none but a --topic, listen makes a subscription
of its own, SUBSCRIPTION.listen-USER-HOST, with the same topic, filter, functions and order: nothing is taken away from
production. It stays when listen ends and keeps what is published meanwhile; the next listen goes on there. --forget
removes it.

An answer other than 2xx gives the delivery back, to come again after 1 s, 2 s and so on up to 30 s, or when Retry-After says.
While nothing listens at URL, listen holds what it has and tries again here; no attempt is spent.`,
		Example: `  router listen orders-hook --forward-to http://localhost:3000/hook --secret whsec_…
  router listen orders-hook --forward-to http://localhost:3000/hook --since 24h
  router listen mine --topic orders --filter 'data.total > 100' --forward-to http://localhost:3000/
  router listen mine --forget`,
		Args: cobra.ExactArgs(1),
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.to, "forward-to", "", "`URL` of the program: http or https, on this machine or another")
	f.StringVar(&o.since, "since", "", "begin at `T`: a time, a duration back such as 24h, earliest, latest or a cursor")
	f.StringVar(&o.topic, "topic", "", "make a subscription to this `topic` if there is none of the name")
	f.StringVar(&o.filter, "filter", "", "with --topic: only events for which this `expression` is true")
	f.StringVar(&o.as, "as", "", "make or use SUBSCRIPTION.listen-`DESK` (default: USER-HOST)")
	f.StringArrayVar(&o.secrets, "secret", nil, "sign with this `whsec_…`; again for several (or HOOK_SECRET)")
	f.StringVar(&o.format, "format", "", "`structured, binary or data` (default: as SUBSCRIPTION's webhook, else structured)")
	f.StringArrayVar(&o.headers, "header", nil, "send this header too: `NAME=VALUE`; may be repeated")
	f.DurationVar(&o.timeout, "timeout", 0, "wait this long for an answer (default: as SUBSCRIPTION's webhook, else 15s)")
	f.IntVar(&o.concurrency, "concurrency", 0, "at most `N` deliveries under way (default: as SUBSCRIPTION, else 16)")
	f.BoolVar(&o.print, "print", false, "print the events too")
	f.BoolVar(&o.forget, "forget", false, "remove the subscription that listen made, with what waits in it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if err := o.check(cmd); err != nil {
			return err
		}
		if o.forget {
			return p.forgetListener(cmd.Context(), c, &o, args[0])
		}
		return p.listen(cmd, c, &o, args[0])
	}
	return cmd
}

// check refuses what needs no router to be refused.
func (o *listening) check(cmd *cobra.Command) error {
	switch {
	case o.forget && (o.to != "" || o.since != "" || o.topic != ""):
		return usagef(cmd, "--forget goes with nothing but --as")
	case o.forget:
		return nil
	case o.to == "":
		return usagef(cmd, "--forward-to is missing: want the URL of the program, such as http://localhost:3000/hook")
	case o.filter != "" && o.topic == "":
		return usagef(cmd, "--filter goes with --topic")
	case o.concurrency < 0 || o.concurrency > maxSinkConns:
		return usagef(cmd, "--concurrency %d: want 1 to %d", o.concurrency, maxSinkConns)
	}
	for _, h := range o.headers {
		if _, _, ok := strings.Cut(h, "="); !ok {
			return usagef(cmd, "--header: want NAME=VALUE") // what was given may be a secret
		}
	}
	return nil
}

// listen forwards until the command's context ends.
func (p *program) listen(cmd *cobra.Command, c *client, o *listening, name string) error {
	ctx := cmd.Context()
	s, err := p.listenTo(ctx, c, o, name)
	if err != nil {
		return err
	}
	sink, err := o.sink(ctx, p, s)
	if err != nil {
		return err
	}
	defer sink.Close()
	if len(s.source.secrets()) > 0 && len(o.secrets) == 0 && p.env("HOOK_SECRET") == "" {
		say(p.stderr, "%s signs what it sends, and this is not signed: give its secret with --secret or HOOK_SECRET", clean(s.source.Name))
	}
	l := newListener(p, c, o, s, sink)
	say(p.stderr, "forwarding %s to %s, %s waiting; Ctrl-C ends it", clean(s.name), clean(shownURL(o.to)), plural(s.waiting, "event"))
	err = l.run(ctx)
	l.summary()
	return err
}

// sink is the connector that a router delivers with, as the flags and the subscription listened to say.
func (o *listening) sink(ctx context.Context, p *program, s *listened) (*webhook.Sink, error) {
	dialer, err := egress.New(egress.Options{AllowPrivate: true}) // the target is the user's own machine, named by the user
	if err != nil {
		return nil, err
	}
	w := webhook.Options{URL: o.to, Format: o.format, Secrets: o.secrets, Timeout: o.timeout, Dialer: dialer,
		UserAgent: "millrace/" + thisBuild().Version, MaxConns: s.concurrency,
		Reply: true} // an answer's code is read from the reply
	if secret := p.env("HOOK_SECRET"); len(w.Secrets) == 0 && secret != "" {
		w.Secrets = []string{secret}
	}
	if hook := s.source.Deliver.Webhook; hook != nil {
		if w.Format == "" {
			w.Format = hook.Format
		}
		if w.Timeout == 0 {
			w.Timeout, _ = time.ParseDuration(hook.Timeout) // rules wrote it; 0 is the default
		}
	}
	for _, h := range o.headers {
		if w.Headers == nil {
			w.Headers = map[string]string{}
		}
		name, value, _ := strings.Cut(h, "=")
		w.Headers[http.CanonicalHeaderKey(strings.TrimSpace(name))] = value
	}
	sink, err := webhook.OpenSink(ctx, w)
	if err != nil {
		return nil, &usageError{nil, fmt.Errorf("cannot forward like that:\n%w", err)}
	}
	return sink, nil
}

// shownURL is a URL without what may be secret: its query.
func shownURL(u string) string {
	base, _, found := strings.Cut(u, "?")
	if found {
		base += "?***"
	}
	return base
}

// deskName is what tells this desk's listener from others': user and host.
func (p *program) deskName() string {
	user := p.env("USER")
	if user == "" {
		user = p.env("LOGNAME")
	}
	host, _ := os.Hostname() // without one the user's name stands alone
	host, _, _ = strings.Cut(host, ".")
	name := strings.Trim(user+"-"+host, "-")
	name = strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z') {
			return r
		}
		return '-'
	}, name)
	if name == "" {
		return "desk"
	}
	return name[:min(len(name), 60)]
}
