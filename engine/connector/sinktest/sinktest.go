// Package sinktest holds what every sink must keep, whatever it sends to. A sink's own test gives a
// Harness that plays the other side.
package sinktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Sink is what is tested: engine.Sink.
type Sink interface {
	Deliver(ctx context.Context, ds []event.Delivery) error
	Close() error
}

// Behaviour is how the other side answers.
type Behaviour int

const (
	Accept Behaviour = iota // take the delivery
	Fail                    // refuse it for now, without saying when to come back
	Busy                    // refuse it and ask to come back in BusyWait
	Gone                    // say that nobody will ever take deliveries here again
	Silent                  // take the bytes and never answer
)

// BusyWait is what Busy asks for.
const BusyWait = 7 * time.Second

// Received is one delivery as the other side got it, attempts that it refused included.
type Received struct {
	ID    string      // the delivery's
	Event event.Event // as far as the sink's format carries it
}

// Harness plays the other side of one kind of sink.
type Harness struct {
	// Open starts a fresh other side, which accepts, and a sink that delivers to it. Both end with t,
	// the sink possibly after the suite has closed it.
	Open func(t *testing.T) Target

	Features Features
}

// Features say what the outside system has; what is false is not tested.
type Features struct {
	Attributes bool // attributes arrive, not the data alone
	NoData     bool // no data differs from empty data
	Busy       bool // the other side can name a wait
	Gone       bool // it can say Gone
	Silent     bool // it can be Silent
	Batch      bool // the sink takes several deliveries at once; Received names the ids of the events then
}

// Target is one other side and its sink.
type Target struct {
	Sink     Sink
	Set      func(Behaviour)   // from now on
	Received func() []Received // so far
}

// prompt bounds what must happen soon after a context's end.
const prompt = 5 * time.Second

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	t.Run("Intact", func(t *testing.T) { intact(t, h) })
	t.Run("SameIDInEveryAttempt", func(t *testing.T) { sameID(t, h) })
	t.Run("Concurrent", func(t *testing.T) { concurrent(t, h) })
	t.Run("ReadOnly", func(t *testing.T) { readOnly(t, h) })
	t.Run("Several", func(t *testing.T) { several(t, h) })
	t.Run("Errors", func(t *testing.T) { kinds(t, h) })
	t.Run("ContextEnds", func(t *testing.T) { contextEnds(t, h) })
	t.Run("Close", func(t *testing.T) { closes(t, h) })
}

// samples are the events that must arrive as they are, by what is special in them.
func samples() map[string]event.Event {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	with := func(f func(*event.Event)) event.Event {
		e := event.Event{ID: "id-1", Source: "/sinktest", Type: "sink.test", DataContentType: "application/json", Data: []byte(`{"a":1}`)}
		f(&e)
		return e
	}
	return map[string]event.Event{
		"plain": with(func(e *event.Event) {}),
		"every attr": with(func(e *event.Event) {
			e.Subject, e.DataSchema, e.Time = "s/1", "https://example.com/schema", "2026-03-01T12:00:00.123456789+02:00"
			e.PartitionKey, e.TraceParent = "k", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			e.Extensions = []event.Attribute{{Name: "tenant", Value: "acme"}, {Name: "empty", Value: ""}}
		}),
		"unicode": with(func(e *event.Event) {
			e.ID, e.Subject, e.Data = "ключ-€", `Grüße "quoted" 100% 🚚`, []byte(`{"name":"Zoë 🚚","line":"  "}`)
		}),
		"exact number": with(func(e *event.Event) { e.Data = []byte(`{"n": 9007199254740993.10, "n" : 2}`) }),
		"text":         with(func(e *event.Event) { e.DataContentType, e.Data = "text/plain", []byte("a\r\nb\x00\"c\"") }),
		"bytes": with(func(e *event.Event) {
			e.DataContentType, e.Data, e.Binary = "application/octet-stream", all, true
		}),
		"empty data": with(func(e *event.Event) { e.DataContentType, e.Data = "text/plain", []byte{} }),
		"no data":    with(func(e *event.Event) { e.DataContentType, e.Data = "", nil }),
		"large":      with(func(e *event.Event) { e.Data = []byte(`"` + strings.Repeat("x", 900<<10) + `"`) }),
	}
}

func one(id string, e event.Event) []event.Delivery {
	return []event.Delivery{{ID: id, Subscription: "sub", Topic: "top", Event: e.AppendRecord(nil), Attempt: 1}}
}

func intact(t *testing.T, h Harness) {
	for name, e := range samples() {
		t.Run(name, func(t *testing.T) {
			to := h.Open(t)
			id := "sub:top@1:0-42:" + strings.ReplaceAll(name, " ", "-")
			if err := to.Sink.Deliver(t.Context(), one(id, e)); err != nil {
				t.Fatal(err)
			}
			got := to.Received()
			if len(got) != 1 || got[0].ID != id {
				t.Fatalf("received %d deliveries, the first %.60q; want one, %q", len(got), first(got).ID, id)
			}
			g := got[0].Event
			if string(g.Data) != string(e.Data) {
				t.Errorf("data %.200q, want %.200q", g.Data, e.Data)
			}
			if h.Features.NoData && (g.Data == nil) != (e.Data == nil) {
				t.Errorf("no data is %v, want %v", g.Data == nil, e.Data == nil)
			}
			if !h.Features.Attributes {
				return
			}
			if a, b := attributes(&g), attributes(&e); !slices.Equal(a, b) {
				t.Errorf("attributes\n%q, want\n%q", a, b)
			}
		})
	}
}

func first(rs []Received) Received {
	if len(rs) == 0 {
		return Received{}
	}
	return rs[0]
}

func attributes(e *event.Event) []string {
	list := []string{"id " + e.ID, "source " + e.Source, "type " + e.Type, "subject " + e.Subject, "datacontenttype " + e.DataContentType,
		"dataschema " + e.DataSchema, "time " + e.Time, "partitionkey " + e.PartitionKey, "traceparent " + e.TraceParent}
	for _, x := range e.Extensions {
		list = append(list, x.Name+" "+x.Value)
	}
	slices.Sort(list)
	return list
}

func sameID(t *testing.T, h Harness) {
	to := h.Open(t)
	ds := one("same", samples()["plain"])
	to.Set(Fail)
	if err := to.Sink.Deliver(t.Context(), ds); err == nil {
		t.Fatal("a refused delivery gives no error")
	}
	to.Set(Accept)
	ds[0].Attempt = 2
	ds[0].Event.SetAttempt(2, event.FlagRedeliver)
	if err := to.Sink.Deliver(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	got := to.Received()
	if len(got) != 2 || got[0].ID != "same" || got[1].ID != "same" {
		t.Errorf("received %+v, want the id twice", got)
	}
}

func concurrent(t *testing.T, h Harness) {
	to := h.Open(t)
	const workers, each = 16, 25
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				e := samples()["plain"]
				e.Data = fmt.Appendf(nil, `{"worker":%d,"i":%d,"pad":"%s"}`, w, i, strings.Repeat("p", w*i))
				if err := to.Sink.Deliver(t.Context(), one(fmt.Sprintf("%d-%d", w, i), e)); err != nil {
					t.Errorf("worker %d, delivery %d: %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]string{}
	for _, r := range to.Received() {
		seen[r.ID] = string(r.Event.Data)
	}
	for w := range workers {
		for i := range each {
			want := fmt.Sprintf(`{"worker":%d,"i":%d,"pad":"%s"}`, w, i, strings.Repeat("p", w*i))
			if got := seen[fmt.Sprintf("%d-%d", w, i)]; got != want {
				t.Fatalf("delivery %d-%d has %.80q, want %.80q", w, i, got, want)
			}
		}
	}
}

func readOnly(t *testing.T, h Harness) {
	to := h.Open(t)
	ds := one("ro", samples()["every attr"])
	before := slices.Clone(ds[0].Event)
	if err := to.Sink.Deliver(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, ds[0].Event) || ds[0].ID != "ro" {
		t.Error("the sink wrote to what it borrows")
	}
	// What it sent must not change with the buffer that it borrowed.
	got := first(to.Received())
	data := string(got.Event.Data)
	clear(ds[0].Event)
	if again := string(first(to.Received()).Event.Data); again != data {
		t.Error("the sink kept what it borrows")
	}
	if err := to.Sink.Deliver(t.Context(), nil); err != nil {
		t.Errorf("no deliveries: %v", err)
	}
}

// several deliveries at once arrive in their order, each once, and fail together where the other side refuses all.
func several(t *testing.T, h Harness) {
	if !h.Features.Batch {
		return
	}
	to := h.Open(t)
	var ds []event.Delivery
	var want []string
	for i := range 20 {
		e := samples()["every attr"]
		e.ID = fmt.Sprint("several-", i)
		e.Data = fmt.Appendf(nil, `{"i":%d}`, i)
		ds = append(ds, one(fmt.Sprint("d-", i), e)...)
		want = append(want, e.ID+string(e.Data))
	}
	to.Set(Fail)
	var p *event.Partial
	if err := to.Sink.Deliver(t.Context(), ds); err == nil || errors.As(err, &p) || event.IsPermanent(err) {
		t.Errorf("Fail: %v; want one error for all, and that they are tried again", err)
	}
	to.Set(Accept)
	before := len(to.Received())
	if err := to.Sink.Deliver(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range to.Received()[before:] {
		got = append(got, r.Event.ID+string(r.Event.Data))
	}
	if !slices.Equal(got, want) {
		t.Errorf("received %q, want %q", got, want)
	}
}

func kinds(t *testing.T, h Harness) {
	to := h.Open(t)
	send := func(b Behaviour) error {
		to.Set(b)
		return to.Sink.Deliver(t.Context(), one("kind", samples()["plain"]))
	}
	err := send(Fail)
	if err == nil || event.IsPermanent(err) || event.IsDisable(err) {
		t.Errorf("Fail: %v; want an error that is retried", err)
	}
	if h.Features.Busy {
		var r *event.RetryAfter
		if err := send(Busy); !errors.As(err, &r) || r.Wait != BusyWait {
			t.Errorf("Busy: %v (%+v); want a RetryAfter of %s", err, r, BusyWait)
		}
	}
	if h.Features.Gone {
		if err := send(Gone); !event.IsDisable(err) {
			t.Errorf("Gone: %v; want one that disables", err)
		}
	}
	if err := send(Accept); err != nil {
		t.Errorf("after failures: %v", err)
	}
}

func contextEnds(t *testing.T, h Harness) {
	to := h.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := to.Sink.Deliver(ctx, one("c", samples()["plain"])); !errors.Is(err, context.Canceled) {
		t.Errorf("ended before: %v; want context.Canceled", err)
	}
	if n := len(to.Received()); n != 0 {
		t.Errorf("ended before: %d were sent", n)
	}
	if !h.Features.Silent {
		return
	}
	to.Set(Silent)
	for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"cancelled": func(p context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(p)
			sent := len(to.Received())
			go func() { // once the delivery is under way
				defer cancel()
				for end := time.Now().Add(prompt); len(to.Received()) == sent && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
			}()
			return ctx, cancel
		},
		"deadline": func(p context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(p, 50*time.Millisecond)
		},
	} {
		ctx, cancel := end(t.Context())
		returned := make(chan error, 1)
		go func() { returned <- to.Sink.Deliver(ctx, one("c-"+name, samples()["plain"])) }()
		<-ctx.Done()
		select {
		case err := <-returned:
			if !errors.Is(err, ctx.Err()) {
				t.Errorf("%s: %v; want %v", name, err, ctx.Err())
			}
		case <-time.After(prompt):
			t.Errorf("%s: Deliver has not returned %s after the context ended", name, prompt)
		}
		cancel()
	}
	to.Set(Accept)
	if err := to.Sink.Deliver(t.Context(), one("after", samples()["plain"])); err != nil {
		t.Errorf("after a context ended: %v", err)
	}
}

func closes(t *testing.T, h Harness) {
	to := h.Open(t)
	if err := to.Sink.Deliver(t.Context(), one("x", samples()["plain"])); err != nil {
		t.Fatal(err)
	}
	if err := to.Sink.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := to.Sink.Deliver(t.Context(), one("y", samples()["plain"])); err == nil {
		t.Error("Deliver after Close gives no error")
	}
}
