package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/connector/webhook"
	"github.com/millrace/millrace/examples/quickstart"
)

func demoCommand(p *program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show one event's way through a router on a temporary directory",
		Long: `Start a router on a temporary directory with the quickstart's rules and a webhook receiver, publish a few
orders over HTTP, show every stop of their way, check the result, and exit 0 if all of it is as it should be.
Nothing else needs to be installed.`,
		Args: cobra.NoArgs,
	}
	stay := cmd.Flags().Bool("stay", false, "keep everything running afterwards, with commands to try")
	listen := cmd.Flags().String("listen", "127.0.0.1:0", "`address` of the demo's router")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return p.demo(cmd.Context(), *listen, *stay) }
	return cmd
}

// demo is one run: its router, its receiver, and what it has seen.
type demo struct {
	out      io.Writer
	secret   string
	base     string // of the router
	receiver *demoReceiver
	missing  []string // what was not as it should be
}

func (p *program) demo(ctx context.Context, listen string, stay bool) (err error) {
	dir, err := os.MkdirTemp("", "millrace-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	d := &demo{out: p.stdout, secret: "whsec_" + base64.StdEncoding.EncodeToString(key)}
	d.receiver = newDemoReceiver(d.secret)
	hook, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	receiving := &http.Server{Handler: d.receiver, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- receiving.Serve(hook) }()
	defer func() {
		_ = receiving.Close() // its listener is all that it holds
		<-served
	}()

	o := routerOptions{
		rules: "rules.yaml", data: dir, listen: listen, private: true, autoCreate: true, memory: splitMemory(256 << 20), compiler: p.compiler(),
		env: func(name string) string {
			return map[string]string{"HOOK_URL": "http://" + hook.Addr().String() + "/hook", "HOOK_SECRET": d.secret}[name]
		},
		files: func(path string) ([]byte, error) { return fs.ReadFile(quickstart.Files, path) },
		log:   slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	}
	r, err := openRouter(ctx, o)
	if err != nil {
		return err
	}
	d.base = "http://" + r.ln.Addr().String()
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.run(running, nil) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()

	if err := d.walk(ctx); err != nil {
		return err
	}
	if stay {
		d.commands()
		<-ctx.Done()
		return nil
	}
	if len(d.missing) > 0 {
		fmt.Fprintf(d.out, "\nNot as it should be:\n  %s\n", strings.Join(d.missing, "\n  "))
		return errSaid
	}
	fmt.Fprintf(d.out, "\nEverything arrived as it should. `router demo --stay` keeps it running; examples/quickstart has the files.\n")
	return nil
}

func (d *demo) step(n int, format string, args ...any) {
	fmt.Fprintf(d.out, "\n%d  %s\n", n, fmt.Sprintf(format, args...))
}

func (d *demo) line(format string, args ...any) { fmt.Fprintf(d.out, "   "+format+"\n", args...) }

func (d *demo) expect(ok bool, format string, args ...any) {
	if !ok {
		d.missing = append(d.missing, fmt.Sprintf(format, args...))
	}
}

// walk shows the stops of an event's way in order.
func (d *demo) walk(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	fmt.Fprintf(d.out, "A router on %s: topic orders, function redact (WASM), subscriptions big-eu-orders, workers and audit.\n", d.base)
	stream, err := d.openStream(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	events, err := fs.ReadFile(quickstart.Files, "events.ndjson")
	if err != nil {
		return err
	}
	steps := []func(context.Context, []byte) error{d.publish, d.why, d.deliveries, d.pull,
		func(ctx context.Context, _ []byte) error { return d.stream(stream) }, d.retried, d.deadLetter}
	for _, step := range steps {
		if err := step(ctx, events); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) publish(ctx context.Context, events []byte) error {
	d.step(1, "Published over HTTP; the answer comes when the events are on disk")
	var answer struct {
		Accepted int `json:"accepted"`
		Events   []struct{ ID, Position string }
	}
	if err := d.call(ctx, "POST", "/v1/topics/orders/events", "application/x-ndjson", events, &answer); err != nil {
		return err
	}
	for _, e := range answer.Events {
		d.line("%s at %s", e.ID, e.Position)
	}
	d.expect(answer.Accepted == 6, "6 events accepted, not %d", answer.Accepted)
	return nil
}

func (d *demo) why(ctx context.Context, events []byte) error {
	d.step(2, "Which subscriptions take an order, and why (a dry run of two of them)")
	lines := bytes.SplitN(events, []byte("\n"), 3)
	var answer struct {
		Events []struct {
			Matches []struct {
				Subscription string
				Matched      bool
				Why          string
			}
		}
	}
	body := append(append(slices.Clone(lines[0]), '\n'), lines[1]...)
	if err := d.call(ctx, "POST", "/v1/topics/orders/events?dryRun=true", "application/x-ndjson", body, &answer); err != nil {
		return err
	}
	matched := 0
	for i, e := range answer.Events {
		for _, s := range e.Matches {
			mark := "no "
			if s.Matched {
				mark = "yes"
				matched++
			}
			d.line("order-%d  %s  %-14s %s", i+1, mark, s.Subscription, s.Why)
		}
	}
	d.expect(matched == 5, "5 matches in the dry run, not %d", matched)
	return nil
}

func (d *demo) deliveries(ctx context.Context, _ []byte) error {
	d.step(3, "Delivered to the webhook: filtered, redacted by the function, signed (Standard Webhooks)")
	got, err := d.receiver.wait(ctx, "order-1")
	if err != nil {
		return err
	}
	d.line("%s  signature verified, attempt %d: %s", got.id, got.attempts, got.data)
	d.expect(strings.Contains(got.data, `"email":"***"`), "the e-mail address redacted in %s", got.data)
	for _, id := range []string{"order-2", "order-3", "order-5"} {
		d.expect(d.receiver.attempts(id) == 0, "%s filtered out, not delivered", id)
	}
	return nil
}

func (d *demo) pull(ctx context.Context, _ []byte) error {
	d.step(4, "Pulled from the queue of subscription workers, and acknowledged")
	seen := map[string]bool{}
	for len(seen) < 5 {
		var answer struct {
			Deliveries []struct {
				Lease string
				Event struct{ ID string }
			}
		}
		if err := d.call(ctx, "POST", "/v1/subscriptions/workers/pull", "application/json", []byte(`{"max": 10, "wait": "5s"}`), &answer); err != nil {
			return err
		}
		if len(answer.Deliveries) == 0 {
			break
		}
		var leases []string
		for _, x := range answer.Deliveries {
			leases = append(leases, x.Lease)
			seen[x.Event.ID] = true
		}
		body, err := json.Marshal(map[string]any{"leases": leases})
		if err != nil {
			return err
		}
		if err := d.call(ctx, "POST", "/v1/subscriptions/workers/ack", "application/json", body, nil); err != nil {
			return err
		}
	}
	ids := make([]string, 0, len(seen))
	for id := range seen {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	d.line("%s", strings.Join(ids, " "))
	d.expect(slices.Equal(ids, []string{"order-1", "order-2", "order-3", "order-4", "order-6"}), "workers got every order.created, not %v", ids)
	return nil
}

func (d *demo) stream(s *demoStream) error {
	d.step(5, "Streamed over SSE from topic audit, where subscription audit puts every order")
	for n := range 6 {
		data, err := s.next()
		if err != nil {
			return fmt.Errorf("stream of topic audit ended after %d of 6 events: %w", n, err)
		}
		d.line("%s", data)
		d.expect(!strings.Contains(data, "@example.com"), "no e-mail address in the audit copy %s", data)
	}
	return nil
}

func (d *demo) retried(ctx context.Context, _ []byte) error {
	d.step(6, "A delivery whose receiver failed twice is tried again by schedule")
	got, err := d.receiver.wait(ctx, "order-4")
	if err != nil {
		return err
	}
	d.line("%s  answered %v, delivered at attempt %d with the same webhook-id", got.id, got.answers, got.attempts)
	d.expect(got.attempts == 3, "order-4 delivered at attempt 3, not %d", got.attempts)
	d.expect(len(got.webhookIDs) == 1, "one webhook-id for all attempts of order-4, not %v", got.webhookIDs)
	return nil
}

func (d *demo) deadLetter(ctx context.Context, _ []byte) error {
	d.step(7, "A delivery that fails every time ends in the dead-letter topic big-eu-orders.dead, with its reason")
	var answer struct{ Events []map[string]any }
	if err := d.call(ctx, "GET", "/v1/topics/big-eu-orders.dead/events?wait=20s", "", nil, &answer); err != nil {
		return err
	}
	for _, e := range answer.Events {
		d.line("%v  reason %v, code %v, after %v attempts", e["id"], e["deadletterreason"], e["deadlettercode"], e["deadletterattempts"])
	}
	d.expect(len(answer.Events) == 1 && answer.Events[0]["id"] == "order-6", "order-6 dead-lettered, not %v", answer.Events)
	d.expect(d.receiver.attempts("order-6") == 4, "4 attempts of order-6, not %d", d.receiver.attempts("order-6"))
	return nil
}

func (d *demo) commands() {
	fmt.Fprintf(d.out, `
Still running; Ctrl-C ends it. To try, in another terminal:

  export MILLRACE_URL=%s
  router tail audit
  router publish orders --type order.created '{"total": 999, "country": "FR", "email": "me@example.com"}'
  router pull workers --ack
  router subscriptions show big-eu-orders
  curl -s $MILLRACE_URL/v1/topics
`, d.base)
}

// call speaks HTTP to the router and decodes its answer.
func (d *demo) call(ctx context.Context, method, path, contentType string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, d.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// demoReceiver is a webhook receiver that verifies signatures. It fails order-4 twice and order-6 always.
type demoReceiver struct {
	secret string

	mu    sync.Mutex
	seen  map[string]*demoDelivery
	moved chan struct{} // closed at the next delivery
}

type demoDelivery struct {
	id, data   string
	attempts   int
	answers    []int
	webhookIDs map[string]bool
	taken      bool
}

func newDemoReceiver(secret string) *demoReceiver {
	return &demoReceiver{secret: secret, seen: map[string]*demoDelivery{}, moved: make(chan struct{})}
}

func (r *demoReceiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h := req.Header
	if err := webhook.Verify([]string{r.secret}, h.Get("webhook-id"), h.Get("webhook-timestamp"), h.Get("webhook-signature"), body, time.Now(), 5*time.Minute); err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	var ev struct {
		ID   string
		Data json.RawMessage
	}
	if err := json.Unmarshal(body, &ev); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	order, _, _ := strings.Cut(ev.ID, "~") // what a function emits is <id>~<subscription>~<n>
	w.WriteHeader(r.take(order, string(ev.Data), h.Get("webhook-id")))
}

func (r *demoReceiver) take(id, data, webhookID string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.seen[id]
	if x == nil {
		x = &demoDelivery{id: id, webhookIDs: map[string]bool{}}
		r.seen[id] = x
	}
	x.attempts++
	x.webhookIDs[webhookID] = true
	status := http.StatusNoContent
	if id == "order-6" || id == "order-4" && x.attempts <= 2 {
		status = http.StatusServiceUnavailable
	} else {
		x.data, x.taken = data, true
	}
	x.answers = append(x.answers, status)
	close(r.moved)
	r.moved = make(chan struct{})
	return status
}

func (r *demoReceiver) attempts(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.seen[id]; x != nil {
		return x.attempts
	}
	return 0
}

// wait returns a delivery once it was taken.
func (r *demoReceiver) wait(ctx context.Context, id string) (demoDelivery, error) {
	for {
		r.mu.Lock()
		x, moved := r.seen[id], r.moved
		if x != nil && x.taken {
			defer r.mu.Unlock()
			return *x, nil
		}
		r.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return demoDelivery{}, fmt.Errorf("%s did not reach the receiver: %w", id, ctx.Err())
		}
	}
}
