package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/connector/webhook"
)

// A received is one webhook request that the receiver got and what it answered.
type received struct {
	ID        string // webhook-id: the same in every attempt
	Try       int    // the how-manieth request with this id
	Signature string // "verified", "not checked", or what is wrong with it
	Verified  bool
	Status    int // what was answered
	Header    http.Header
	Body      []byte
}

// A receiver answers webhooks: it verifies their signatures and fails when it is told to. It serves many
// requests at once.
type receiver struct {
	secrets []string
	fail    int // this many first tries of each id fail
	status  int // what failing requests are answered, or all if fail is 0; 0: 500, or 204
	now     func() time.Time
	got     func(received) // called one at a time, before the answer

	mu    sync.Mutex
	tries map[string]int
	order []string // the ids of tries, oldest first
}

// maxTries bounds how many ids a receiver remembers.
const maxTries = 100_000

// ServeHTTP takes one delivery.
func (rc *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxAnswer))
	if err != nil {
		http.Error(w, "the body could not be read", http.StatusBadRequest)
		return
	}
	h := req.Header
	d := received{ID: h.Get("Webhook-Id"), Signature: "not checked", Header: h, Body: body}
	if len(rc.secrets) > 0 {
		err := webhook.Verify(rc.secrets, d.ID, h.Get("Webhook-Timestamp"), h.Get("Webhook-Signature"), body, rc.now(), 0)
		d.Verified = err == nil
		d.Signature = "verified"
		if err != nil {
			d.Signature = err.Error()
		}
	}
	rc.mu.Lock()
	d.Try = rc.count(d.ID)
	d.Status = rc.answer(d)
	rc.got(d)
	rc.mu.Unlock()
	w.WriteHeader(d.Status)
}

// answer is the status for a delivery.
func (rc *receiver) answer(d received) int {
	switch {
	case len(rc.secrets) > 0 && !d.Verified:
		return http.StatusUnauthorized
	case d.Try <= rc.fail && rc.status != 0:
		return rc.status
	case d.Try <= rc.fail:
		return http.StatusInternalServerError
	case rc.fail == 0 && rc.status != 0:
		return rc.status
	}
	return http.StatusNoContent
}

// count returns how often an id has come, this time included. The oldest ids are forgotten.
func (rc *receiver) count(id string) int {
	if rc.tries == nil {
		rc.tries = map[string]int{}
	}
	if rc.tries[id] == 0 {
		if len(rc.order) >= maxTries {
			delete(rc.tries, rc.order[0])
			rc.order = rc.order[1:]
		}
		rc.order = append(rc.order, id)
	}
	rc.tries[id]++
	return rc.tries[id]
}

func receiveCommand(p *program) *cobra.Command {
	var listen, output string
	var headers bool
	var max int
	rc := &receiver{now: time.Now}
	cmd := &cobra.Command{
		Use:   "receive",
		Short: "Receive webhooks and print them, to try things with",
		Long: `Receive is a web server that prints each webhook it gets and answers 204. With --secret it verifies the signature
(Standard Webhooks) and answers 401 to what does not carry it. A batch is printed event by event. With --fail it shows how a router tries again.
A router delivers to an address such as this one only when it was started with --allow-private-targets.`,
		Example: `  router receive --listen 127.0.0.1:9000 --secret whsec_…
  router receive --fail 2
  router receive --status 410`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:9000", "`address` to listen on; port 0 takes a free one")
	f.StringArrayVar(&rc.secrets, "secret", nil, "verify with this `whsec_…` secret; again for several")
	f.IntVar(&rc.fail, "fail", 0, "fail the first `N` tries of every delivery")
	f.IntVar(&rc.status, "status", 0, "answer failing tries with this `code`; without --fail answer all with it")
	f.BoolVar(&headers, "headers", false, "print the headers too")
	f.IntVarP(&max, "max", "n", 0, "stop after `N` requests; 0: never")
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		if rc.status != 0 && (rc.status < 200 || rc.status > 599) {
			return usagef(cmd, "--status %d: want 200 to 599", rc.status)
		}
		if rc.fail < 0 {
			return usagef(cmd, "--fail %d: want 0 or more", rc.fail)
		}
		ctx, enough := context.WithCancel(cmd.Context())
		defer enough()
		n := 0
		rc.got = func(d received) {
			n++
			if max > 0 && n > max {
				return
			}
			p.printReceived(d, asJSON, headers)
			if n == max {
				enough()
			}
		}
		ln, err := net.Listen("tcp", listen)
		if err != nil {
			return fmt.Errorf("%w; name a free address with --listen", err)
		}
		say(p.stderr, "receiving at http://%s", ln.Addr())
		return serveHTTP(ctx, ln, rc)
	}
	return cmd
}

// serveHTTP answers on ln until ctx ends, then lets requests under way finish.
func serveHTTP(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		done <- srv.Shutdown(last)
	})
	err := srv.Serve(ln)
	if stop() { // Serve ended by itself
		return err
	}
	if err := <-done; err != nil {
		return errors.Join(err, srv.Close())
	}
	return nil
}

// events are the events of a batch of CloudEvents as they stand in the body; nil if it is none, or not readable.
func (d *received) events() []json.RawMessage {
	kind, _, err := mime.ParseMediaType(d.Header.Get("Content-Type"))
	var list []json.RawMessage
	if err != nil || kind != "application/cloudevents-batch+json" || json.Unmarshal(d.Body, &list) != nil || len(list) == 0 {
		return nil
	}
	return list
}

// printReceived prints one delivery on one line, a batch on a line for each event, with the headers below where
// they are asked for.
func (p *program) printReceived(d received, asJSON, headers bool) {
	events := d.events()
	if asJSON {
		shown := map[string]any{"id": d.ID, "try": d.Try, "signature": d.Signature, "verified": d.Verified,
			"status": d.Status, "headers": d.Header, "body": string(d.Body)}
		for i := range max(len(events), 1) {
			if events != nil {
				shown["index"], shown["events"], shown["body"] = i, len(events), string(events[i])
			}
			doc, err := json.Marshal(shown)
			if err == nil { // strings, numbers and lists of strings: nothing can fail
				_ = printJSON(p.stdout, doc)
			}
		}
		return
	}
	id := "-"
	if d.ID != "" {
		id = clean(d.ID)
	}
	line := fmt.Sprintf("%d  %s  try %d  signature %s", d.Status, id, d.Try, clean(d.Signature))
	if events == nil {
		say(p.stdout, "%s  %s", line, clean(strings.TrimSpace(string(d.Body))))
	}
	for i, e := range events {
		say(p.stdout, "%s  %d of %d  %s", line, i+1, len(events), clean(string(e)))
	}
	if !headers {
		return
	}
	names := make([]string, 0, len(d.Header))
	for name := range d.Header {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		for _, v := range d.Header[name] {
			say(p.stdout, "    %s: %s", strings.ToLower(clean(name)), clean(v))
		}
	}
}
