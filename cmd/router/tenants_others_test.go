package main

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	frames "github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// others asks with what is acme's own in hand: a lease, cursors, rules that name its topics. The audit topic is nobody's.
func (w *tenancy) others() {
	w.t.Helper()
	const js = "application/json"
	same := func(what string, a, b toldAnswer) {
		w.t.Helper()
		if a != b || strings.Contains(a.body, acme) {
			w.t.Errorf("%s: %+v\nof what there is not: %+v", what, a, b)
		}
	}
	for _, who := range []string{glbx, patterned} {
		// A lease that was handed to somebody else is one that nobody was handed.
		for verb, more := range map[string]string{"ack": "", "nack": "", "extend": `,"deadline":"60s"`} {
			a := w.ask(who, "POST", "/v1/subscriptions/glbx.mine/"+verb, js, `{"leases":["`+w.lease+`"]`+more+`}`)
			b := w.ask(who, "POST", "/v1/subscriptions/glbx.mine/"+verb, js, `{"leases":["`+strings.Repeat("A", len(w.lease))+`"]`+more+`}`)
			a.body = strings.ReplaceAll(a.body, w.lease, "·")
			b.body = strings.ReplaceAll(b.body, strings.Repeat("A", len(w.lease)), "·")
			if a.status != 200 || !strings.Contains(a.body, `"lost":["·"]`) {
				w.t.Errorf("%s of another's lease: %+v", verb, a)
			}
			same(verb+" of another's lease", a, b)
		}
		// A cursor names a topic by number, and nothing keeps a client from writing its own.
		page := w.as("", 200, "GET", "/v1/topics/acme.orders/events", "", "")
		var read struct{ Next string }
		if err := json.Unmarshal([]byte(page), &read); err != nil {
			w.t.Fatal(err)
		}
		b, err := base64.RawURLEncoding.DecodeString(read.Next)
		if err != nil {
			w.t.Fatal(err)
		}
		serial, n := binary.Uvarint(b)
		none := base64.RawURLEncoding.EncodeToString(append(binary.AppendUvarint(nil, serial^0x55), b[n:]...))
		for _, path := range []string{"/v1/topics/glbx.own/events?after=", "/v1/topics/glbx.own/stream?after=", "/v1/topics/glbx.own/events?wait=0s&after=", "/v1/subscriptions/glbx.parks/stream?after=", "/v1/subscriptions/glbx.mine/deadletters?after="} {
			x, y := w.ask(who, "GET", path+read.Next, "", ""), w.ask(who, "GET", path+none, "", "")
			x.body, y.body = strings.ReplaceAll(x.body, read.Next, "·"), strings.ReplaceAll(y.body, none, "·")
			if x.status/100 != 4 {
				w.t.Errorf("%s with another's cursor: %+v", path, x)
			}
			same(path+" with another's cursor", x, y)
		}
		seek := func(cursor string) toldAnswer {
			a := w.ask(who, "POST", "/v1/subscriptions/glbx.mine/seek", js, `{"to":"`+cursor+`"}`)
			a.body = strings.ReplaceAll(a.body, cursor, "·")
			return a
		}
		same("a seek to another's cursor", seek(read.Next), seek(none))
		again := func(cursor string) (a toldAnswer) {
			req, err := http.NewRequestWithContext(w.t.Context(), "GET", w.base+"/v1/topics/glbx.own/stream", nil)
			if err != nil {
				w.t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+w.keys[who])
			req.Header.Set("Last-Event-ID", cursor)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				w.t.Fatal(err)
			}
			defer resp.Body.Close()
			if a.status = resp.StatusCode; a.status == 200 {
				return a
			}
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				w.t.Fatal(err)
			}
			a.body = strings.ReplaceAll(string(text), cursor, "·")
			return a
		}
		if a := again(read.Next); a.status/100 != 4 {
			w.t.Errorf("a stream resumed with another's cursor: %+v", a)
		}
		same("a stream resumed with another's cursor", again(read.Next), again(none))

		for _, c := range []struct{ method, path string }{{"PUT", "/v1/rules"}, {"POST", "/v1/rules/diff"}, {"POST", "/v1/rules/validate"}, {"POST", "/v1/rules/backtest"}} {
			ask := func(name string) toldAnswer {
				a := w.ask(who, c.method, c.path, "application/yaml", "version: 1\nsubscriptions: {glbx.x: {topic: "+name+", deliver: {pull: {}}}}\n")
				a.body = strings.ReplaceAll(a.body, name, "·")
				return a
			}
			a := ask("acme.orders")
			if a.status != 403 {
				w.t.Errorf("%s: %+v", c.path, a)
			}
			same(c.path, a, ask("acme.orderz"))
		}
		for _, c := range []struct{ method, path, body string }{
			{"GET", "/v1/topics/NAME/events", ""}, {"GET", "/v1/topics/NAME", ""}, {"GET", "/v1/topics/NAME/events/0-0", ""}, {"DELETE", "/v1/topics/NAME", ""},
			{"POST", "/v1/topics/NAME/events", `{}`}, {"POST", "/v1/subscriptions", `{"name":"glbx.a","topic":"NAME","deliver":{"pull":{}}}`},
			{"GET", "/v1/subscriptions/glbx.mine/deadletters?topic=NAME", ""}, {"GET", "/v1/subscriptions/glbx.mine/explain?event=NAME/0-0", ""},
		} {
			ask := func(name string) toldAnswer {
				a := w.ask(who, c.method, strings.Replace(c.path, "NAME", name, 1), js, strings.Replace(c.body, "NAME", name, 1))
				a.body = strings.ReplaceAll(a.body, name, "·")
				return a
			}
			same(c.method+" "+c.path+" of the audit topic", ask("audit"), ask("audix"))
		}
	}
	// After all that the delivery is still acme's.
	if body := w.as(acme, 200, "POST", "/v1/subscriptions/acme.workers/extend", js, `{"leases":["`+w.lease+`"],"deadline":"60s"}`); !strings.Contains(body, `"lost":[]`) {
		w.t.Errorf("acme's lease: %s", body)
	}
}

// A tenantSocket is a WebSocket of one of the tenants'.
type tenantSocket struct {
	t  *testing.T
	nc net.Conn
	br *bufio.Reader
}

func (w *tenancy) socket(who string) *tenantSocket {
	w.t.Helper()
	dialer := frames.Dialer{Header: frames.HandshakeHeaderHTTP{"Authorization": {"Bearer " + w.keys[who]}}}
	nc, br, _, err := dialer.Dial(w.t.Context(), strings.Replace(w.base, "http://", "ws://", 1)+"/v1/ws")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	if br == nil {
		br = bufio.NewReader(nc)
	}
	return &tenantSocket{w.t, nc, br}
}

// hear waits for the next frame.
func (s *tenantSocket) hear() (frames.OpCode, []byte) {
	s.t.Helper()
	h, err := frames.ReadHeader(s.br)
	if err != nil {
		s.t.Fatal("the socket: ", err)
	}
	b := make([]byte, h.Length)
	if _, err := io.ReadFull(s.br, b); err != nil {
		s.t.Fatal(err)
	}
	return h.OpCode, b
}

// ask says something and waits for the answer.
func (s *tenantSocket) ask(message string) string {
	s.t.Helper()
	if err := wsutil.WriteClientText(s.nc, []byte(message)); err != nil {
		s.t.Fatal(err)
	}
	for {
		if op, b := s.hear(); op == frames.OpText {
			return string(b)
		}
	}
}

// sockets asks over a WebSocket.
func (w *tenancy) sockets() {
	w.t.Helper()
	socket := w.socket(glbx)
	ask := socket.ask
	for _, c := range []struct{ kind, message string }{
		{"topic", `{"op":"subscribe","ref":"1","topic":"NAME"}`},
		{"subscription", `{"op":"subscribe","ref":"1","subscription":"NAME"}`},
		{"topic", `{"op":"publish","topic":"NAME","events":[1]}`},
		{"subscription", `{"op":"ack","subscription":"NAME","leases":["x"]}`},
		{"subscription", `{"op":"nack","subscription":"NAME","leases":["x"]}`},
		{"subscription", `{"op":"extend","subscription":"NAME","leases":["x"],"deadline":"60s"}`},
		{"subscription", `{"op":"ack","subscription":"NAME","leases":["` + w.lease + `"]}`},
	} {
		names := []string{has[c.kind][0], has[c.kind][1]}
		if !strings.Contains(c.message, "publish") { // which makes topics
			names = append(names, strings.Replace(names[0], acme, glbx, 1))
		}
		first := ""
		for i, name := range names {
			got := strings.ReplaceAll(ask(strings.ReplaceAll(c.message, "NAME", name)), name, strings.Repeat("·", len(name)))
			if i == 0 {
				first = got
			}
			if got != first || !strings.Contains(got, `"status":404`) || strings.Contains(got, acme) {
				w.t.Errorf("%s of %s: %s\nof %s: %s", c.message, names[0], first, name, got)
			}
		}
	}
	for _, lease := range []string{w.lease, strings.Repeat("A", len(w.lease))} {
		if got := ask(`{"op":"ack","subscription":"glbx.mine","leases":["` + lease + `"]}`); !strings.Contains(got, `"reasons":["unknown"]`) {
			w.t.Error("a lease that it was not handed: ", got)
		}
	}
	if got := ask(`{"op":"publish","topic":"glbx.own","events":[1]}`); !strings.Contains(got, `"accepted":1`) {
		w.t.Error("its own topic: ", got)
	}
	// With the key goes the socket.
	for _, k := range w.r.guard.ListKeys() {
		if k.Tenant == glbx {
			if err := w.r.guard.RevokeKey(w.t.Context(), nil, k.ID); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	for {
		op, b := socket.hear()
		if op != frames.OpClose {
			continue
		}
		if code, reason := frames.ParseCloseFrameData(b); code != frames.StatusPolicyViolation {
			w.t.Errorf("closed with %d %s; want 1008", code, reason)
		}
		return
	}
}
