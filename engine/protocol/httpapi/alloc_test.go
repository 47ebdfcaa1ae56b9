//go:build !race

// The race detector makes sync.Pool forget at random.

package httpapi

import (
	"bufio"
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// quiet is a fake that stores nothing and allocates nothing.
type quiet struct{ *fake }

func (quiet) Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error {
	for i := range evs {
		if evs[i].ID == "" {
			evs[i].ID = "01J00000000000000000000000"
		}
		pos[i] = event.Position{Offset: uint64(i)}
	}
	return nil
}

func handlerOf(tb testing.TB, send string) func() {
	return handlerWith(tb, tokenGuard(tb, "secret"), send)
}

func handlerWith(tb testing.TB, g *access.Guard, send string) func() {
	tb.Helper()
	s, err := New(Options{Backend: quiet{newFake("orders")}, Guard: g})
	if err != nil {
		tb.Fatal(err)
	}
	ctx := &fasthttp.RequestCtx{}
	ctx.Init2(&conn{s: s, on: s.nowhere, peer: netip.MustParseAddr("192.0.2.1"), counted: &admission.Account{}}, nil, true)
	if err := ctx.Request.Read(bufio.NewReaderSize(strings.NewReader(send), 16<<10)); err != nil {
		tb.Fatal(err)
	}
	run := func() {
		ctx.Response.Reset()
		s.handle(ctx)
		if ctx.Response.StatusCode() != 202 {
			tb.Fatalf("%d %s", ctx.Response.StatusCode(), ctx.Response.Body())
		}
	}
	run()
	return run
}

const auth = " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"

var published = map[string]string{
	"json":   "POST /v1/topics/orders/events" + auth + "Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"total\":250}",
	"query":  "POST /v1/topics/orders/events?type=order.created&key=7" + auth + "Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"total\":250}",
	"binary": "POST /v1/topics/orders/events" + auth + "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t\r\nce-partitionkey: k\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"total\":250}",
	"structured": "POST /v1/topics/orders/events" + auth + "Content-Type: application/cloudevents+json\r\nContent-Length: 74\r\n\r\n" +
		`{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"total":2}}`,
	"lines": "POST /v1/topics/orders/events" + auth + "Content-Type: application/x-ndjson\r\nIdempotency-Key: k\r\nContent-Length: 8\r\n\r\n1 2 3 4\n",
}

// TestPublishAllocates holds the hot path: what this layer adds to the publish of an event.
func TestPublishAllocates(t *testing.T) {
	for name, max := range map[string]float64{"json": 0, "query": 0, "binary": 0, "structured": 0, "lines": 0} {
		if n := testing.AllocsPerRun(200, handlerOf(t, published[name])); n > max {
			t.Errorf("%s: %v allocations, want %v", name, n, max)
		}
	}
}

// TestPublishWithAKeyAllocates: nor does finding out whose key it is and what its roles allow.
func TestPublishWithAKeyAllocates(t *testing.T) {
	g, _, key := keyed(t, access.Options{}, access.Key{Roles: []string{"publisher", "reader"}, Tenant: "ord"})
	_, other, err := g.CreateKey(t.Context(), nil, access.Key{Name: "all", Roles: []string{"publisher"}})
	if err != nil {
		t.Fatal(err)
	}
	for text, topic := range map[string]string{key: "ord.ers", other: "orders"} {
		send := strings.NewReplacer("Bearer secret", "Bearer "+text, "/orders/", "/"+topic+"/").Replace(published["json"])
		if n := testing.AllocsPerRun(200, handlerWith(t, g, send)); n > 0 {
			t.Errorf("%v allocations, want none", n)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, name := range []string{"json", "query", "binary", "structured", "lines"} {
		b.Run(name, func(b *testing.B) {
			run := handlerOf(b, published[name])
			b.ReportAllocs()
			for b.Loop() {
				run()
			}
		})
	}
}
