package httpapi

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/millrace/millrace/engine/event"
)

// fuzzed is a server without a listener; its call takes a request made of these.
func fuzzed(f *testing.F) func(method, uri, body string) *call {
	s, err := New(Options{Backend: newFake("orders"), Limits: event.Limits{Body: 1 << 20, Events: 64}})
	if err != nil {
		f.Fatal(err)
	}
	return func(method, uri, body string) *call {
		c := &call{s: s, ctx: &fasthttp.RequestCtx{}}
		c.ctx.Init(&fasthttp.Request{}, nil, nil)
		c.ctx.Request.Header.SetMethod(method)
		c.ctx.Request.Header.SetRequestURI(uri)
		c.ctx.Request.SetBodyString(body)
		return c
	}
}

// FuzzHeaders: a header block that is taken says the same to net/textproto as here, and what is read out of single
// headers keeps to its bounds.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{
		"Host: a:80\r\nContent-Length: 3\r\n\r\n", "host:a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n", "Host: a\r\nPrefer: wait=5, return=minimal\r\nPrefer: wait=\"9\"; x\r\n\r\n",
		"Host: a\r\nce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t%20%E2%82%AC\r\nCe-Time: 2026-01-02T03:04:05Z\r\nce-x: \"a\"\r\n\r\n", "Host: a\r\nHost: b\r\n\r\n", "A: b\r\n c\r\n\r\n",
		"Content-Length: 1\r\nContent-Length: 1\r\n\r\n", "Content-Length: +1\r\n\r\n", "Host: a\nb: c\r\n\r\n", "Last-Event-ID: AAEB\r\nForwarded: for=\"[::1]:5\"\r\nX-Forwarded-For: 1.2.3.4, ::1\r\n\r\n",
		"Connection: close, x\r\nIdempotency-Key: \"k\"\r\n\r\n", "Content-Length : 1\r\n\r\n", "Prefer: wait=99999999999999999999\r\n\r\n", "ce-data: x\r\nce-data_base64: eA==\r\nce-ID: %00\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	call := fuzzed(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := call("POST", "/v1/topics/orders/events", "")
		if bad := c.h.read(raw); bad != nil {
			return
		}
		size, sizeErr := sizeOf(c.h.size)
		if sizeErr == nil && size < 0 {
			t.Fatalf("Content-Length %q is read as %d", c.h.size, size)
		}
		if pref, err := c.preferences(); err == nil && (pref.wait < 0 || pref.wait > int(maxWait/time.Second)) {
			t.Fatalf("Prefer %q waits %d s", c.h.prefer, pref.wait)
		}
		if _, declared, err := c.binaryHeaders(); err == nil && declared && c.events[0].Validate(event.Limits{}) == nil {
			if err := c.events[0].CheckRecord(); err != nil {
				t.Fatalf("%q is valid and fits no record: %v", raw, err)
			}
		}
		if wellFormedHost(c.h.host) && strings.ContainsAny(c.h.host, " \t/@,\\?#") {
			t.Fatalf("the Host %q is taken", c.h.host)
		}
		if i := bytes.Index(raw, []byte("\r\n\r\n")); i >= 0 {
			raw = raw[:i+4]
		} else {
			raw = append(bytes.Clone(raw), "\r\n"...)
		}
		if bytes.HasPrefix(raw, []byte("\r\n")) {
			return // no header at all
		}
		std, err := textproto.NewReader(bufio.NewReaderSize(bytes.NewReader(raw), len(raw)+1)).ReadMIMEHeader()
		if err != nil {
			t.Fatalf("%q is taken; net/textproto says %v", raw, err)
		}
		for name, ours := range map[string]string{"Host": c.h.host, "Content-Length": c.h.size, "Transfer-Encoding": c.h.coding, "Content-Type": c.h.contentType, "Authorization": c.h.auth, "Origin": c.h.origin} {
			if theirs := std.Values(name); len(theirs) > 1 && strings.Join(theirs, "") != ours || len(theirs) == 1 && theirs[0] != ours || len(theirs) == 0 && ours != "" {
				t.Fatalf("%s is %q here, and %q to net/textproto", name, ours, theirs)
			}
		}
		for _, h := range c.h.ce {
			if len(std.Values(h.name)) == 0 {
				t.Fatalf("net/textproto has no %q", h.name)
			}
		}
	})
}

// FuzzRoute: a path is decoded once, as net/url does it, and a name that reaches a handler is a name.
func FuzzRoute(f *testing.F) {
	for _, s := range []string{"/v1/topics/orders/events/0-1", "/v1/topics/a%2fb/events", "/v1/topics/%6frders/events?id=1&id=2", "/v1/topics/%zz", "/v1/topics/%", "http://a/v1/topics", "/v1//topics", "*", "/",
		"/v1/topics/%c0%af", "/v1/topics/orders/events/%30-1", "/v1/topics/../rules", "/v1/topics/orders/events?since=7d&after=AAEB&limit=1", "?", "http:///v1/topics/x", "/v1/subscriptions/a/pull/", "/v1/topics/%252e"} {
		f.Add(uint8(0), s)
	}
	methods := []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "get"}
	call := fuzzed(f)
	f.Fuzz(func(t *testing.T, method uint8, uri string) {
		ours, err := unescape(uri)
		theirs, errStd := url.PathUnescape(uri)
		if (err == nil) != (errStd == nil) || err == nil && ours != theirs {
			t.Fatalf("%q is %q (%v) here, %q (%v) to net/url", uri, ours, err, theirs, errStd)
		}
		if uri == "" || uri[0] != '/' && uri != "*" && !strings.HasPrefix(uri, "http://") {
			return // admit refuses it
		}
		c := call(methods[int(method)%len(methods)], uri, "")
		if err := c.find(&c.ctx.Request.Header); err != nil || c.route == nil {
			return
		}
		if strings.Contains(c.route.path, "{") && !c.route.mounted {
			if err := event.CheckName("path", c.params[0]); err != nil {
				t.Fatalf("%s came for %q: %v", c.route.path, uri, err)
			}
		}
		if pos, err := event.ParsePosition(c.params[1]); err == nil {
			if again, err := event.ParsePosition(pos.String()); err != nil || again != pos {
				t.Fatalf("the position %q is %v, and %v again", c.params[1], pos, again)
			}
		}
		if c.checkQuery() == nil {
			_, _ = c.startOf(event.Start{})
			if d, err := waitOf("?wait", c.query("wait")); err == nil && (d < 0 || d > maxWait) {
				t.Fatalf("?wait=%q is %s", c.query("wait"), d)
			}
		}
	})
}

// FuzzDecode: of whatever body, under whatever type it comes, the events that are taken are as many as another reader
// finds in it, and what is called JSON is JSON.
func FuzzDecode(f *testing.F) {
	kinds := []string{"application/x-ndjson", "text/csv", "application/cloudevents-batch+json", "application/cloudevents+json", "application/json", "", "text/plain; charset=utf-8", "application/x-www-form-urlencoded", "text/csv; charset=latin1"}
	const one = `{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"a":1}}`
	for i, s := range []string{"{\"a\":1}\n2 [3]\n" + one, "a,b\n1,\"x\ny\"\n,true\n", "[" + one + "," + one + "]", one, `{"a": 1e400}`, "plain", "\xff", `a=b`, "a\n1"} {
		f.Add(uint8(i), []byte(s))
	}
	for _, s := range []string{"a,a\n", "\ufeffa\n\"\"\n", "a\r\n1,2\r\n", "a\n\"1", "a.b,\x01\n0123,-0\n9007199254740993,1e5\n"} {
		f.Add(uint8(1), []byte(s))
	}
	settling := uint8(len(kinds))
	f.Add(settling, []byte(`{"leases": ["a"], "reply": {"status": 201, "data_base64": "eA=="}}`))
	f.Add(settling, []byte(`{"leases": ["a"], "reply": {"contentType": "text/plain", "data": "x"}, "delay": "5s"}`))
	call := fuzzed(f)
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		c := call("POST", "/v1/topics/orders/events", string(body))
		if kind %= settling + 1; kind == settling {
			in, err := c.settling("ack")
			if err != nil {
				return
			}
			if len(in.Leases) == 0 || len(in.Leases) > 64 {
				t.Fatalf("%d leases are taken", len(in.Leases))
			}
			if r, err := in.reply(); err == nil && r != nil && r.Check() != nil {
				t.Fatalf("the reply %+v is taken", r)
			}
			return
		}
		c.h.contentType = kinds[kind]
		if c.decode("orders", body) != nil {
			return
		}
		if n := len(c.events); n == 0 || n > 64 {
			t.Fatalf("%d events", n)
		}
		for i := range c.events {
			if e := &c.events[i]; e.Data != nil && event.IsJSON(e.DataContentType) && !e.Binary && (!json.Valid(e.Data) || !utf8.Valid(e.Data)) {
				t.Fatalf("[%d] is %q of %s", i, e.Data, e.DataContentType)
			}
		}
		want := len(c.events)
		switch kinds[kind] {
		case "application/x-ndjson":
			d := json.NewDecoder(bytes.NewReader(body))
			for want = 0; ; want++ {
				var doc json.RawMessage
				if err := d.Decode(&doc); err == io.EOF {
					break
				} else if err != nil {
					t.Fatalf("%q is taken; encoding/json says %v", body, err)
				}
			}
		case "text/csv":
			rows, err := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(body, []byte("\ufeff")))).ReadAll()
			if err != nil {
				t.Fatal(err)
			}
			want = len(rows) - 1
			for i, row := range rows[1:] {
				var cells map[string]json.RawMessage
				if err := json.Unmarshal(c.events[i].Data, &cells); err != nil || len(cells) > len(row) {
					t.Fatalf("%q became %s: %v", row, c.events[i].Data, err)
				}
				for j, name := range rows[0] {
					if err := sameCell(cells[name], row[j]); err != nil {
						t.Fatalf("row %d, %q: %v", i, name, err)
					}
				}
			}
		}
		if len(c.events) != want {
			t.Fatalf("%q: %d events here, %d by another reader", body, len(c.events), want)
		}
	})
}

// sameCell says where a cell lost something: as text it is what it was, as a number or a truth it is spelt the same.
func sameCell(got json.RawMessage, cell string) error {
	var s string
	switch {
	case got == nil || string(got) == "null":
		if cell != "" && cell != "null" {
			return fmt.Errorf("%q is gone", cell)
		}
	case got[0] == '"':
		if err := json.Unmarshal(got, &s); err != nil || s != cell {
			return fmt.Errorf("%q became %s", cell, got)
		}
	case string(got) != cell:
		return fmt.Errorf("%q became %s", cell, got)
	}
	return nil
}
