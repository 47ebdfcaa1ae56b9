package webhook

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

var fifty = Batch{Events: 50, Bytes: 1 << 20}

// deliveries are n events with the given data, of ids e0, e1, …
func deliveries(n int, data func(i int) string) []event.Delivery {
	var ds []event.Delivery
	for i := range n {
		e := event.Event{ID: fmt.Sprintf("e%d", i), Source: "/shop", Type: "order.created", DataContentType: "application/json", Data: []byte(data(i))}
		ds = append(ds, event.Delivery{ID: fmt.Sprintf("s:t@1:0-%d:0", i), Subscription: "s", Topic: "t", Event: e.AppendRecord(nil), Attempt: 1})
	}
	return ds
}

func plain(int) string { return `{"total":250}` }

func eventIDs(t *testing.T, body string) []string {
	t.Helper()
	evs, err := event.ParseBatch([]byte(body), event.Limits{Event: 2 << 20}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range evs {
		ids = append(ids, strings.Clone(e.ID))
	}
	return ids
}

func TestBatchIsOneSignedRequest(t *testing.T) {
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	s := open(t, Options{URL: r.URL, Secrets: []string{secretA}, Batch: fifty})
	if n, bytes, wait := s.Batch(); n != 50 || bytes != 1<<20 || wait != 0 {
		t.Errorf("batches of %d events, %d bytes, %s", n, bytes, wait)
	}
	three := deliveries(3, plain)
	for _, ds := range [][]event.Delivery{three, three, three[:2], three[:1]} {
		if err := s.Deliver(t.Context(), ds); err != nil {
			t.Fatal(err)
		}
	}
	got := r.all()
	if len(got) != 4 {
		t.Fatalf("%d requests for 4 batches", len(got))
	}
	for i, q := range got {
		id := q.header.Get("webhook-id")
		if err := Verify([]string{secretA}, id, q.header.Get("webhook-timestamp"), q.header.Get("webhook-signature"), []byte(q.body), time.Now(), 0); err != nil {
			t.Error(err)
		}
		if ct := q.header.Get("Content-Type"); ct != "application/cloudevents-batch+json; charset=utf-8" {
			t.Errorf("Content-Type %q", ct)
		}
		if want := []string{"e0", "e1", "e2"}[:[]int{3, 3, 2, 1}[i]]; !slices.Equal(eventIDs(t, q.body), want) {
			t.Errorf("request %d holds %s, want %v", i, q.body, want)
		}
	}
	ids := []string{got[0].header.Get("webhook-id"), got[1].header.Get("webhook-id"), got[2].header.Get("webhook-id"), got[3].header.Get("webhook-id")}
	if ids[0] != ids[1] || got[0].body != got[1].body || ids[0] == ids[2] || !strings.HasPrefix(ids[0], "s:t@1:0-0:0+") || ids[3] != "s:t@1:0-0:0" {
		t.Errorf("ids %q: want one for one set of members, of the first's id", ids)
	}
	want := string(event.AppendBatch(nil, []event.Record{three[0].Event, three[1].Event, three[2].Event}))
	if got[0].body != want {
		t.Errorf("the body is\n%s, want\n%s", got[0].body, want)
	}
}

// What an answer to a batch of four means: "ok", or for each event.
func TestBatchAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		status  int
		ct      string
		body    string
		want    string // by event: . taken, code+wait of one that failed, ! where no retry mends it; or an error of the whole
		retryIn string // header
	}{
		"204":                      {status: 204, want: "...."},
		"200 with words":           {status: 200, ct: "text/plain", body: "[1]", want: "...."},
		"200 with other JSON":      {status: 200, ct: "application/json", body: `{"ok":true,"failed":0}`, want: "...."},
		"200 with a list of names": {status: 200, ct: "application/json", body: `["e1","e2"]`, want: "...."},
		"200 with objects":         {status: 200, ct: "application/json", body: `[{"id":"e1"}]`, want: "...."},
		"200 with a string":        {status: 200, ct: "application/json", body: `"stored"`, want: "...."},
		"200 with an empty list":   {status: 200, ct: "application/json", body: `[]`, want: "...."},
		"200 empty JSON":           {status: 200, ct: "application/json", want: "...."},
		"200 failed indexes":       {status: 200, ct: "application/json", body: `{"failed":[1,3]}`, want: ".200.200"},
		"200 a list of indexes":    {status: 200, ct: "application/json; charset=utf-8", body: ` [0, 2] `, want: "200.200."},
		"202 objects": {status: 202, ct: "application/json", body: `[{"index":1,"status":503,"error":"busy","retryAfter":7},{"index":2,"status":200}]`,
			want: ".503+7s.."},
		"207 objects":         {status: 207, body: `[{"index":0,"status":429,"retryAfter":30},{"index":3,"status":422,"error":{"why":1}}]`, want: "429+30s..422"},
		"207 under failed":    {status: 207, body: `{"failed":[{"index":2},3]}`, want: "..207207"},
		"207 all":             {status: 207, body: `[0,1,2,3]`, want: "207207207207"},
		"207 none":            {status: 207, body: `{"failed":[]}`, want: "...."},
		"207 all taken":       {status: 207, body: `[{"index":0,"status":201},{"index":1,"status":201}]`, want: "...."},
		"207 one is gone":     {status: 207, body: `[{"index":1,"status":410}]`, want: ".410!.."},
		"207 named twice":     {status: 207, body: `[{"index":1,"status":200},{"index":1,"status":500}]`, want: ".500.."},
		"207 a far wait":      {status: 207, body: `[{"index":1,"status":503,"retryAfter":99999999999999999999}]`, want: ".503+24h0m0s.."},
		"207 wait for all":    {status: 207, body: `[{"index":1,"retryAfter":2},2]`, want: ".207+2s207+9s.", retryIn: "9"},
		"207 nothing":         {status: 207, want: "all count as failed: it is not JSON"},
		"207 an object":       {status: 207, body: `{"ok":true}`, want: `neither a list nor an object with a list under "failed"`},
		"207 a string":        {status: 207, body: `"no"`, want: "neither a list"},
		"207 of words":        {status: 207, body: `["x"]`, want: "neither a list"},
		"207 out of range":    {status: 207, body: `[0,4]`, want: "[1]: index 4; the batch has 0 to 3"},
		"207 negative":        {status: 207, body: `[-1]`, want: "index -1; the batch has 0 to 3"},
		"207 a fraction":      {status: 207, body: `[1.5]`, want: "index 1.5; want a whole number"},
		"207 a huge index":    {status: 207, body: `[1e99]`, want: "index 1e99; want a whole number"},
		"207 an index string": {status: 207, body: `[{"index":"1"}]`, want: "want a whole number"},
		"207 a bad status":    {status: 207, body: `[{"index":1,"status":42}]`, want: "status 42; want an HTTP status"},
		"207 a bad wait":      {status: 207, body: `[{"index":1,"retryAfter":-1}]`, want: "retryAfter -1; want whole seconds"},
		"207 later no index":  {status: 207, body: `[1,{"status":500}]`, want: "[1]: "},
		"207 broken JSON":     {status: 207, body: `[1,2`, want: "it is not JSON"},
		"200 broken JSON":     {status: 200, ct: "application/json", body: `{"failed":[1`, want: "it is not JSON"},
		"200 out of range":    {status: 200, ct: "application/json", body: `{"failed":[9]}`, want: "index 9"},
		"200 too long":        {status: 200, ct: "application/json", body: `["` + strings.Repeat("x", answerLimit) + `"]`, want: "over 65536 bytes"},
		"207 deep":            {status: 207, body: strings.Repeat("[", 60_000), want: "it is not JSON"},
		"503":                 {status: 503, body: `[1]`, want: "answered 503", retryIn: "11"},
		"410":                 {status: 410, want: "is disabled until it is resumed"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.ct != "" {
					w.Header().Set("Content-Type", c.ct)
				} else {
					w.Header()["Content-Type"] = nil
				}
				if c.retryIn != "" {
					w.Header().Set("Retry-After", c.retryIn)
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			s := open(t, Options{URL: r.URL, Batch: fifty})
			err := s.Deliver(t.Context(), deliveries(4, plain))
			if got := fatesOf(t, err, 4); got != c.want && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s (%v), want %s", got, err, c.want)
			}
			if err != nil && len(err.Error()) > 1200 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if event.IsDisable(err) != (c.status == 410) {
				t.Errorf("disables: %v", err)
			}
			if len(r.all()) != 1 {
				t.Errorf("%d requests", len(r.all()))
			}
		})
	}
}

// fatesOf writes down what an error says of n events.
func fatesOf(t *testing.T, err error, n int) string {
	t.Helper()
	if err == nil {
		return strings.Repeat(".", n)
	}
	var p *event.Partial
	if !errors.As(err, &p) {
		return "whole"
	}
	if len(p.Errs) != n {
		t.Fatalf("%d errors for %d events", len(p.Errs), n)
	}
	text := ""
	for i, err := range p.Errs {
		if err == nil {
			text += "."
			continue
		}
		if !strings.Contains(err.Error(), fmt.Sprintf("event %d of the batch", i)) {
			t.Errorf("event %d: %v", i, err)
		}
		text += strconv.Itoa(event.Code(err))
		var after *event.RetryAfter
		switch {
		case event.IsPermanent(err):
			text += "!"
		case errors.As(err, &after) && after.Wait > 0:
			text += "+" + after.Wait.String()
		}
	}
	return text
}

// Answers whose body never ends, breaks off or comes in drops: all in bounded time and memory, and what might have
// told of failures is none of success.
func TestHostileBatchAnswers(t *testing.T) {
	mega := strings.Repeat("1,", 1<<19)
	for name, c := range map[string]struct {
		f    func(net.Conn)
		want string // "" for all taken
	}{
		"endless 207": {func(c net.Conn) { endless(c, "HTTP/1.1 207 X\r\nContent-Length: 10737418240\r\n\r\n[", mega) }, "over 65536 bytes"},
		"endless JSON": {func(c net.Conn) {
			endless(c, "HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 10737418240\r\n\r\n[", mega)
		}, "over 65536 bytes"},
		"endless words": {func(c net.Conn) {
			endless(c, "HTTP/1.1 200 X\r\nContent-Type: text/plain\r\nContent-Length: 10737418240\r\n\r\n[", mega)
		}, ""},
		"207 breaks off": {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 207 X\r\nContent-Length: 10\r\n\r\n[1]") }, "broke off"},
		"200 breaks off": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n")
		}, "all count as failed"},
		"207 closes":        {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 207 X\r\nConnection: close\r\n\r\n[1]") }, "1 of 3 deliveries failed"},
		"closes at once":    {func(net.Conn) {}, "closed the connection without an answer"},
		"closes the header": {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 207 X\r\nContent-") }, "reading response headers"},
		"drips 207": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 207 X\r\nContent-Length: 3000\r\n\r\n[")
			drip(c, mega[:2999])
		}, "broke off"},
		"compressed": {func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 207 X\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n[1]")
		}, "no encoding was asked for"},
		"huge headers of 207": {func(c net.Conn) {
			endless(c, "HTTP/1.1 207 X\r\n", "X-Pad: "+mega[:1000]+"\r\n")
		}, "all count as failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(_ int, conn net.Conn) {
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err == nil {
					_, _ = io.Copy(io.Discard, req.Body)
					c.f(conn)
				}
			})
			s := open(t, Options{URL: url, Timeout: 400 * time.Millisecond, Batch: fifty})
			err := s.Deliver(context.Background(), deliveries(3, plain))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// Records are no larger than bytes allows, their JSON may be: then a batch is cut, and what is larger goes alone.
func TestBatchBytes(t *testing.T) {
	r := newReceiver(t, nil)
	s := open(t, Options{URL: r.URL, Batch: Batch{Events: 50, Bytes: 2000}})
	ds := deliveries(12, func(i int) string {
		return `"` + strings.Repeat("x", map[bool]int{true: 5000, false: 400}[i == 5]) + `"`
	})
	if err := s.Deliver(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, q := range r.all() {
		ids := eventIDs(t, q.body)
		if len(q.body) > 2000 && len(ids) > 1 {
			t.Errorf("%d events in %d bytes", len(ids), len(q.body))
		}
		all = append(all, ids...)
	}
	if want := eventIDs(t, string(event.AppendBatch(nil, recordsOf(ds)))); !slices.Equal(all, want) {
		t.Errorf("received %v, want %v", all, want)
	}
	if n := len(r.all()); n < 5 || n > 8 {
		t.Errorf("%d requests for 5, 1 and 6 events of 500 bytes", n)
	}
}

func recordsOf(ds []event.Delivery) []event.Record {
	var recs []event.Record
	for _, d := range ds {
		recs = append(recs, d.Event)
	}
	return recs
}

// A receiver that refuses what is too large gets less at once, at once and from then on; an event that is too large
// by itself fails alone.
func TestTooLargeBatchIsCut(t *testing.T) {
	var refused atomic.Int32
	r := newReceiver(t, nil)
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.ContentLength > 3000 {
			refused.Add(1)
			w.WriteHeader(413)
			return
		}
		r.handler(nil).ServeHTTP(w, req)
	})
	s := open(t, Options{URL: r.URL, Batch: fifty})
	if err := s.Deliver(t.Context(), deliveries(40, plain)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, q := range r.all() {
		got = append(got, eventIDs(t, q.body)...)
	}
	if n := refused.Load(); len(got) != 40 || n < 1 || n > 3 {
		t.Errorf("%d of 40 events, %d requests refused", len(got), n)
	}
	before := refused.Load()
	if err := s.Deliver(t.Context(), deliveries(40, plain)); err != nil || refused.Load() != before {
		t.Errorf("%v; %d more refused although the size is known", err, refused.Load()-before)
	}
	err := s.Deliver(t.Context(), deliveries(5, func(i int) string {
		return `"` + strings.Repeat("x", map[bool]int{true: 4000, false: 10}[i == 2]) + `"`
	}))
	var p *event.Partial
	if !errors.As(err, &p) || !reflect.DeepEqual([]bool{p.Errs[0] != nil, p.Errs[1] != nil, p.Errs[2] != nil, p.Errs[3] != nil, p.Errs[4] != nil},
		[]bool{false, false, true, false, false}) || event.Code(p.Errs[2]) != 413 {
		t.Errorf("%v, want the large one alone to fail", err)
	}
}

// What was taken before a request failed stays taken.
func TestLaterPartOfBatchFails(t *testing.T) {
	var n atomic.Int32
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) > 1 {
			w.WriteHeader(500)
		}
	})
	s := open(t, Options{URL: r.URL, Batch: Batch{Events: 50, Bytes: 1024}})
	err := s.Deliver(t.Context(), deliveries(4, func(int) string { return `"` + strings.Repeat("x", 250) + `"` }))
	var p *event.Partial
	if !errors.As(err, &p) || p.Errs[0] != nil || p.Errs[1] != nil || event.Code(p.Errs[2]) != 500 || event.Code(p.Errs[3]) != 500 || n.Load() != 2 {
		t.Errorf("%v after %d requests", err, n.Load())
	}
}

func TestBatchOptions(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"one":         {Options{Batch: Batch{Events: 1}}, ""},
		"most":        {Options{Batch: Batch{Events: 10_000, Bytes: 16 << 20, Wait: time.Minute}}, ""},
		"without":     {Options{Batch: Batch{Wait: time.Second}}, "batch.events: is 0; want 1 (no batches) to 10000"},
		"too many":    {Options{Batch: Batch{Events: 10_001}}, "batch.events: is 10001"},
		"negative":    {Options{Batch: Batch{Events: -1}}, "batch.events: is -1"},
		"few bytes":   {Options{Batch: Batch{Events: 2, Bytes: 10}}, "batch.bytes: is 10; want 1KiB to 16MiB"},
		"many bytes":  {Options{Batch: Batch{Events: 2, Bytes: 16<<20 + 1}}, "batch.bytes: is 16777217"},
		"long":        {Options{Batch: Batch{Events: 2, Wait: time.Minute + 1}}, "batch.wait: is 1m0.000000001s"},
		"back":        {Options{Batch: Batch{Events: 2, Wait: -1}}, "batch.wait: is -1ns"},
		"binary":      {Options{Batch: Batch{Events: 2}, Format: Binary}, "batch: does not go with format: binary"},
		"data":        {Options{Batch: Batch{Events: 2}, Format: Data}, "batch: does not go with format: data"},
		"reply":       {Options{Batch: Batch{Events: 2}, Reply: true}, "batch: does not go with reply: true"},
		"binary, one": {Options{Batch: Batch{Events: 1}, Format: Binary, Reply: true}, ""},
	} {
		c.o.URL = "https://example.com/"
		switch err := c.o.Validate(); {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if b := (Options{Batch: Batch{Events: 5}}).WithDefaults().Batch; b != (Batch{Events: 5, Bytes: 1 << 20}) {
		t.Errorf("by default %+v", b)
	}
}

func TestDeliveringBatchAllocatesNothing(t *testing.T) {
	s := open(t, Options{URL: plainReceiver(t), Secrets: []string{secretA}, Batch: fifty})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ds := deliveries(50, plain)
	if n := testing.AllocsPerRun(100, func() {
		if err := s.Deliver(ctx, ds); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a batch of 50 allocates %v times", n)
	}
}

// The receiver that the documents show runs as it stands, with the CloudEvents SDK and the library of Standard
// Webhooks: it parses the batch, verifies it, and names the one that it could not work on.
func TestDocumentedBatchReceiver(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/webhooks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(doc), "<!-- batch receiver -->\n```js\n")
	program, _, ok := strings.Cut(after, "```")
	if !ok {
		t.Fatal("no batch receiver in the documents")
	}
	dir := t.TempDir()
	modules, err := filepath.Abs("../../../scripts/npm/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "receiver.mjs"), []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(dir, "receiver.mjs"))
	cmd.Env = append(os.Environ(), "HOOK_SECRET="+secretA, "PORT=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewReader(out)
	line := func() string {
		s, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(s)
	}
	url := "http://127.0.0.1:" + strings.TrimPrefix(line(), "listening on port ") + "/hook"
	ds := deliveries(3, func(i int) string {
		return []string{`{"total":250,"name":"Grüße"}`, `{"total":-1}`, `{"total":7}`}[i]
	})
	s := open(t, Options{URL: url, Secrets: []string{secretA}, Batch: fifty})
	err = s.Deliver(t.Context(), ds)
	if got := fatesOf(t, err, 3); got != ".422." {
		t.Errorf("%s (%v), want the second to fail", got, err)
	}
	if a, b := line(), line(); a != "e0 order.created 250 Grüße" || !strings.HasPrefix(b, "e2 order.created 7") {
		t.Errorf("the SDK read %q and %q", a, b)
	}
	other := open(t, Options{URL: url, Secrets: []string{secretB}, Batch: fifty})
	if err := other.Deliver(t.Context(), ds); event.Code(err) != 401 {
		t.Errorf("a batch signed with another secret: %v", err)
	}
	if err := s.Deliver(t.Context(), ds[:1]); err != nil {
		t.Errorf("a batch of one: %v", err)
	}
}
