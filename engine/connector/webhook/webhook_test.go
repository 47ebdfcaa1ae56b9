package webhook

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

const (
	secretA = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	secretB = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDsEdTnwVzvEk="
)

func private(t testing.TB) *egress.Dialer {
	t.Helper()
	d, err := egress.New(egress.Options{AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func open(t testing.TB, o Options) *Sink {
	t.Helper()
	if o.Dialer == nil {
		o.Dialer = private(t)
	}
	s, err := OpenSink(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func delivery(id string, e event.Event) []event.Delivery {
	return []event.Delivery{{ID: id, Subscription: "s", Topic: "t", Event: e.AppendRecord(nil), Attempt: 1}}
}

var order = event.Event{ID: "e1", Source: "/shop", Type: "order.created", Subject: "söme thing", Topic: "t",
	DataContentType: "application/json", Data: []byte(`{"total":250,"name":"Grüße"}`),
	Extensions: []event.Attribute{{Name: "tenant", Kind: event.String, Value: "a b"}}}

// request is one that a receiver took.
type request struct {
	header http.Header
	body   string
	host   string
	uri    string
}

// receiver keeps what it is sent and answers with answer, if there is one.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	reqs []request
}

func newReceiver(t testing.TB, answer http.HandlerFunc) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(r.handler(answer))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) handler(answer http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		r.reqs = append(r.reqs, request{req.Header.Clone(), string(b), req.Host, req.RequestURI})
		r.mu.Unlock()
		if answer != nil {
			answer(w, req)
		}
	})
}

func (r *receiver) all() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]request(nil), r.reqs...)
}

// serve runs f on each connection of a listener on loopback until the test ends, and returns its URL.
func serve(t testing.TB, f func(n int, c net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				f(n, c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "http://" + ln.Addr().String() + "/hook?key=topsecret"
}

func TestFormats(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for format, check := range map[string]func(t *testing.T, r request){
		Structured: func(t *testing.T, r request) {
			if got := r.header.Get("Content-Type"); got != "application/cloudevents+json; charset=utf-8" {
				t.Errorf("Content-Type %q", got)
			}
			var e event.Event
			if err := event.ParseStructured([]byte(r.body), event.Limits{}, &e); err != nil {
				t.Fatal(err)
			}
			if e.ID != "e1" || e.Subject != order.Subject || string(e.Data) != string(order.Data) || e.Extensions[0].Value != "a b" {
				t.Errorf("got %+v", e)
			}
		},
		Binary: func(t *testing.T, r request) {
			if r.body != string(order.Data) {
				t.Errorf("body %q", r.body)
			}
			for name, want := range map[string]string{"Content-Type": "application/json", "ce-id": "e1", "ce-type": "order.created",
				"ce-specversion": "1.0", "ce-source": "/shop", "ce-subject": "s%C3%B6me%20thing", "ce-tenant": "a%20b"} {
				if got := r.header.Get(name); got != want {
					t.Errorf("%s %q, want %q", name, got, want)
				}
			}
		},
		Data: func(t *testing.T, r request) {
			if r.body != string(order.Data) || r.header.Get("Content-Type") != "application/json" || r.header.Get("ce-id") != "" {
				t.Errorf("got %+v", r)
			}
		},
	} {
		t.Run(format, func(t *testing.T) {
			r := newReceiver(t, nil)
			s := open(t, Options{URL: r.URL + "/a%20b?x=1", Format: format, Secrets: []string{secretA, secretB},
				Headers: map[string]string{"authorization": "Bearer x"}, Now: func() time.Time { return now }})
			for range 2 { // the second on the first's connection
				if err := s.Deliver(context.Background(), delivery("s:t@1:0-42:0", order)); err != nil {
					t.Fatal(err)
				}
			}
			reqs := r.all()
			if len(reqs) != 2 {
				t.Fatalf("%d requests", len(reqs))
			}
			for _, q := range reqs {
				check(t, q)
				h := q.header
				if h.Get("webhook-id") != "s:t@1:0-42:0" || h.Get("webhook-timestamp") != "1700000000" ||
					h.Get("authorization") != "Bearer x" || h.Get("user-agent") != "millrace" || h.Get("Accept-Encoding") != "" {
					t.Errorf("headers %v", h)
				}
				if q.uri != "/a%20b?x=1" || "http://"+q.host != r.URL {
					t.Errorf("uri %q host %q", q.uri, q.host)
				}
				want := Sign(secretA, "s:t@1:0-42:0", 1_700_000_000, []byte(q.body)) + " " + Sign(secretB, "s:t@1:0-42:0", 1_700_000_000, []byte(q.body))
				if got := h.Get("webhook-signature"); got != want {
					t.Errorf("signature\n%s, want\n%s", got, want)
				}
			}
		})
	}
}

func TestUnsigned(t *testing.T) {
	r := newReceiver(t, nil)
	s := open(t, Options{URL: r.URL})
	if err := s.Deliver(context.Background(), delivery("i", order)); err != nil {
		t.Fatal(err)
	}
	if h := r.all()[0].header; h.Get("webhook-id") != "i" || len(h.Values("webhook-signature")) != 0 {
		t.Errorf("headers %v", h)
	}
}

func TestContentType(t *testing.T) {
	for name, c := range map[string]struct {
		format string
		e      event.Event
		want   string
	}{
		"binary mode leaves it out":    {Binary, event.Event{Data: []byte("1")}, ""},
		"data alone is JSON":           {Data, event.Event{Data: []byte("1")}, "application/json"},
		"data alone, bytes":            {Data, event.Event{Data: []byte("1"), Binary: true}, "application/octet-stream"},
		"data alone, none":             {Data, event.Event{}, ""},
		"data alone, as the event has": {Data, event.Event{DataContentType: "text/plain", Data: []byte("x")}, "text/plain"},
	} {
		t.Run(name, func(t *testing.T) {
			c.e.ID, c.e.Source, c.e.Type = "e", "/s", "t"
			r := newReceiver(t, nil)
			s := open(t, Options{URL: r.URL, Format: c.format})
			if err := s.Deliver(context.Background(), delivery("i", c.e)); err != nil {
				t.Fatal(err)
			}
			q := r.all()[0]
			if got := q.header.Get("Content-Type"); got != c.want || q.body != string(c.e.Data) {
				t.Errorf("Content-Type %q, want %q; body %q", got, c.want, q.body)
			}
		})
	}
}

// What an event carries must not become a header line of its own.
func TestNoHeaderInjection(t *testing.T) {
	r := newReceiver(t, nil)
	evil := "x\r\nwebhook-id: forged"
	for name, c := range map[string]struct {
		format string
		e      event.Event
		id     string
		sent   bool
	}{
		"id":           {Structured, order, evil, false},
		"content type": {Data, event.Event{ID: "e", Source: "/s", Type: "t", DataContentType: evil}, "i", false},
		"attribute":    {Binary, event.Event{ID: "e", Source: "/s", Type: evil}, "i", true}, // percent-encoded
		"extension":    {Binary, event.Event{ID: "e", Source: "/s", Type: "t", Extensions: []event.Attribute{{Name: "a\r\nb", Value: "v"}}}, "i", true},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(r.all())
			s := open(t, Options{URL: r.URL, Format: c.format})
			err := s.Deliver(context.Background(), delivery(c.id, c.e))
			if !c.sent {
				if !event.IsPermanent(err) {
					t.Fatalf("error %v, want a permanent one", err)
				}
				if len(r.all()) != before {
					t.Fatal("it was sent")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range r.all()[before].header {
				if strings.Contains(strings.Join(v, ""), "forged") && !strings.Contains(v[0], "%0D%0A") {
					t.Errorf("header %q", v)
				}
			}
			if ids := r.all()[before].header.Values("webhook-id"); len(ids) != 1 || ids[0] != "i" {
				t.Errorf("webhook-id %q", ids)
			}
		})
	}
}
