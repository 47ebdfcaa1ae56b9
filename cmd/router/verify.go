package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// verifying is the flags of verify.
type verifying struct {
	events, kills, connections  int
	duration, patience          time.Duration
	topic, payload, listen, dir string
	size                        int64
	serve, keep                 bool
}

func verifyCommand(p *program) *cobra.Command {
	var o verifying
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that nothing acknowledged is lost: publish, kill -9, and account for every event",
		Long: `Verify publishes numbered events from several connections, has the router killed with kill -9 under that load, and then
accounts for every event that was acknowledged at three receivers of its own: a webhook with signatures, a webhook in order per
key, and a pull queue. Some deliveries are refused on purpose, so that retries live through the kill too.

Without --server (or MILLRACE_URL) it starts a router on a temporary directory (below --data, to try that disk), kills and starts it by itself at
random moments, and removes everything. With --server it asks for the kill, notices by itself that the router went and came back, and
removes the topic and subscriptions that it made. Such a router needs --allow-private-targets to deliver to this machine.

It exits with 0 only if no acknowledged event is missing anywhere, none came altered, and no key's events were first delivered out
of order.`,
		Example: `  router verify
  router verify --events 1000000 --kills 20 --data /var/lib/millrace
  router verify --server http://127.0.0.1:8080`,
		Args: cobra.NoArgs,
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.serve, "serve", false, "start a router for the purpose, and kill it (default without --server or MILLRACE_URL)")
	f.StringVar(&o.dir, "data", "", "with --serve: make the temporary directory below `DIR`, on the disk to try")
	f.IntVar(&o.events, "events", 20_000, "publish `N` events at least")
	f.DurationVar(&o.duration, "duration", 0, "publish for this long at least")
	f.IntVar(&o.kills, "kills", 3, "kill the router, or ask for it, `K` times; 0: never (with --server: 1)")
	f.StringVar(&o.topic, "topic", "", "publish to this `topic`; whoever else subscribes to it gets the events too (default: one made for it)")
	f.StringVar(&o.payload, "payload", "1KiB", "`size` of an event's data")
	f.IntVar(&o.connections, "connections", 8, "publish over `N` connections")
	f.StringVar(&o.listen, "listen", "127.0.0.1:0", "`address` of the receivers, which the router must reach")
	f.DurationVar(&o.patience, "patience", 2*time.Minute, "wait this long for a kill, for the router's return, and for a delivery")
	f.BoolVar(&o.keep, "keep", false, "remove nothing afterwards")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.check(cmd, r.server != "" || p.env("MILLRACE_URL") != ""); err != nil {
			return err
		}
		asJSON, err := asJSON(cmd, r.output)
		if err != nil {
			return err
		}
		v := &verification{p: p, o: &o, began: time.Now()}
		defer v.tidy(cmd.Context())
		if o.serve {
			if err := v.startRouter(cmd.Context()); err != nil {
				return err
			}
			r.server, r.token = v.child.url, v.child.token
		}
		if v.c, err = p.client(cmd, r); err != nil {
			return err
		}
		report, err := v.run(cmd.Context())
		if err != nil {
			return err
		}
		return p.printVerdict(report, asJSON)
	}
	return cmd
}

// check refuses what makes no sense, and fills in what follows from the rest.
func (o *verifying) check(cmd *cobra.Command, server bool) (err error) {
	switch {
	case o.serve && cmd.Flags().Changed("server"):
		return usagef(cmd, "--serve starts a router, --server names one; want one of them")
	case !o.serve && !server:
		o.serve = true
	}
	if !o.serve && !cmd.Flags().Changed("kills") {
		o.kills = 1 // by hand
	}
	switch {
	case o.dir != "" && !o.serve:
		return usagef(cmd, "--data goes with a router that verify starts, not with --server or MILLRACE_URL; --serve in place of them starts one")
	case o.events < 1:
		return usagef(cmd, "--events %d: want 1 or more", o.events)
	case o.kills < 0:
		return usagef(cmd, "--kills %d: want 0 or more", o.kills)
	case o.connections < 1 || o.connections > 256:
		return usagef(cmd, "--connections %d: want 1 to 256", o.connections)
	case o.duration < 0:
		return usagef(cmd, "--duration %s: want 0 or more", o.duration)
	case o.patience < time.Second:
		return usagef(cmd, "--patience %s: want 1s or more", o.patience)
	}
	if o.size, err = parseSize(o.payload); err != nil || o.size > 512<<10 {
		return usagef(cmd, "--payload %q: want such as 1KiB, at most 512KiB", o.payload)
	}
	return nil
}

// A verification is one run of verify: the router that it may have started, its receivers, and its ledger.
type verification struct {
	p      *program
	c      *client
	o      *verifying
	began  time.Time
	name   string // of the topic, and how the subscriptions' names begin
	secret string // of the webhooks' signatures
	ledger *ledger
	child  *servedRouter // nil with --server
	hooks  string        // the receivers' URL
	made   [][2]string   // kind and name, to be removed
	kills  []outage
}

// The three ways that every event takes.
const (
	wayHook    = "webhook"
	wayOrdered = "ordered"
	wayPull    = "pull"
)

// run is the whole of it, but for tidying up.
func (v *verification) run(ctx context.Context) (*verdict, error) {
	var random [40]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	runID := hex.EncodeToString(random[:4])
	v.secret = "whsec_" + base64.StdEncoding.EncodeToString(random[8:])
	v.name = "verify-" + runID
	v.ledger = newLedger(runID, v.o.connections*keysEach, int(v.o.size))

	ln, err := net.Listen("tcp", v.o.listen)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	v.hooks = "http://" + ln.Addr().String()
	receiving := &http.Server{Handler: &verifyReceiver{v.ledger, v.secret}, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = receiving.Serve(ln) // until it is closed
	}()
	defer func() {
		_ = receiving.Close() // its listener is all that it holds
		<-served
	}()
	if err := v.define(ctx); err != nil {
		return nil, err
	}
	pulling, stopPulling := context.WithCancel(ctx)
	pulled := v.pullers(pulling)
	defer func() {
		stopPulling()
		pulled.Wait()
	}()
	if err := v.probe(ctx); err != nil {
		return nil, err
	}
	if err := v.load(ctx); err != nil {
		return nil, err
	}
	if err := v.settle(ctx); err != nil {
		return nil, err
	}
	return v.verdict(ctx)
}

// define makes the topic and the subscriptions.
func (v *verification) define(ctx context.Context) error {
	topic := v.name
	if v.o.topic != "" {
		topic = v.o.topic
	}
	v.ledger.topic = topic
	// Nothing may leave the ring unfinished, or the bounds would look like a loss.
	err := v.make(ctx, kindTopics, map[string]any{"name": topic, "whenFull": "reject"})
	if err != nil && (v.o.topic == "" || !hasStatus(err, 409)) {
		return err
	}
	retry := map[string]any{"attempts": 50, "schedule": []string{"100ms", "500ms", "2s"}}
	hook := func(way string) map[string]any {
		return map[string]any{"webhook": map[string]any{"url": v.hooks + "/" + way, "secrets": []string{v.secret}}}
	}
	only := fmt.Sprintf("source == %q", v.ledger.source())
	for _, doc := range []map[string]any{
		{"name": v.name + "-" + wayHook, "deliver": hook(wayHook), "concurrency": 64},
		{"name": v.name + "-" + wayOrdered, "deliver": hook(wayOrdered), "concurrency": 64, "order": "key"},
		{"name": v.name + "-" + wayPull, "deliver": map[string]any{"pull": map[string]any{}}},
	} {
		doc["topic"], doc["filter"], doc["retry"] = topic, only, retry
		err := v.make(ctx, kindSubscriptions, doc)
		var p *problem
		if errors.As(err, &p) && strings.Contains(p.Detail, "private") {
			return fmt.Errorf("%w\nstart the router with --allow-private-targets so that it may deliver to this machine", err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *verification) make(ctx context.Context, kind string, doc map[string]any) error {
	if err := v.c.callJSON(ctx, "POST", v.c.path(kind), doc, nil); err != nil {
		return err
	}
	v.made = append(v.made, [2]string{kind, doc["name"].(string)})
	if kind == kindSubscriptions {
		v.made = append(v.made, [2]string{kindTopics, doc["name"].(string) + ".dead"})
	}
	return nil
}

// probe sees that an event gets through at all, before much is published.
func (v *verification) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, min(v.o.patience, 20*time.Second))
	defer cancel()
	body := v.ledger.appendEvent(nil, probeKey, 0)
	if _, err := v.c.call(ctx, "POST", v.c.path("topics", v.ledger.topic, "events"), body, "Content-Type", "application/x-ndjson"); err != nil {
		return err
	}
	for _, way := range v.ledger.ways {
		select {
		case <-way.probed:
		case <-ctx.Done():
			return fmt.Errorf("a first event did not come by way of %s within 20 s; the router must reach %s (--listen), "+
				"which takes --allow-private-targets; 'router subscriptions show %s-%s' says how it stands", way.name, v.hooks, v.name, way.name)
		}
	}
	return nil
}

// tidy ends what run left behind, also where it failed; what cannot be removed is said.
func (v *verification) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime+5*time.Second)
	defer cancel()
	if v.child != nil {
		if err := v.child.end(ctx); err != nil {
			say(v.p.stderr, "router: ending the router that was started: %s", lines(err.Error()))
		}
		if v.o.keep {
			say(v.p.stderr, "kept %s", clean(v.child.dir))
		} else if err := os.RemoveAll(v.child.dir); err != nil {
			say(v.p.stderr, "router: %s", clean(err.Error()))
		}
		return
	}
	if v.c == nil || v.o.keep {
		return
	}
	for i := len(v.made) - 1; i >= 0; i-- { // subscriptions before their topics
		kind, name := v.made[i][0], v.made[i][1]
		if strings.HasSuffix(name, ".dead") {
			continue
		}
		if _, err := v.c.call(ctx, "DELETE", v.c.path(kind, name), nil); err != nil && !hasStatus(err, 404) {
			say(v.p.stderr, "router: %s %s remains: %s", strings.TrimSuffix(kind, "s"), clean(name), lines(err.Error()))
		}
	}
	for _, m := range v.made {
		if strings.HasSuffix(m[1], ".dead") {
			_, _ = v.c.call(ctx, "DELETE", v.c.path(m[0], m[1]), nil) // it need not exist
		}
	}
}

// deadLetters counts what ended in a subscription's dead-letter topic.
func (v *verification) deadLetters(ctx context.Context, way string) (n int, err error) {
	u := v.c.path("topics", v.name+"-"+way+".dead", "events")
	after := ""
	for {
		q := u.Query()
		q.Set("limit", "1000")
		if after != "" {
			q.Set("after", after)
		}
		u.RawQuery = q.Encode()
		var page struct {
			Events []json.RawMessage
			Next   string
		}
		if err := v.c.callJSON(ctx, "GET", u, nil, &page); hasStatus(err, 404) {
			return n, nil
		} else if err != nil {
			return n, err
		}
		n += len(page.Events)
		if len(page.Events) == 0 || page.Next == after {
			return n, nil
		}
		after = page.Next
	}
}
