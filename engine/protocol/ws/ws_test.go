package ws

import (
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	frames "github.com/gobwas/ws"
	"go.uber.org/goleak"
)

func (c *client) publish(n int) {
	c.t.Helper()
	c.say(`{"op":"publish","ref":"p","topic":"orders","events":[%s{"n":0}]}`, strings.Repeat(`{"n":0},`, n-1))
	if m := c.want("ok", "p"); len(m.Events) != n {
		c.t.Fatal(m)
	}
}

// TestReadByCredit reads a topic: never more than was granted, each event once and in order, resumed after a cursor.
func TestReadByCredit(t *testing.T) {
	h := start(t, Options{})
	c := h.dial(t)
	c.say(`{"op":"subscribe","ref":"a","topic":"orders","credit":3}`)
	if m := c.want("ok", "a"); m.Cursor != "0" || m.Credit != 3 {
		t.Fatal(m)
	}
	p := h.dial(t)
	p.publish(10)
	var cursor string
	for i := range 3 {
		m := c.want("event", "a")
		if m.Position != fmt.Sprint("0-", i) || m.Cursor != fmt.Sprint(i+1) || m.Event.ID != fmt.Sprint("made-", i) || string(m.Event.Data) != `{"n":0}` {
			t.Fatalf("%+v", m)
		}
		cursor = m.Cursor
	}
	c.say(`{"op":"credit","ref":"a","credit":10001}`)
	c.want("error", "a")
	c.say(`{"op":"nothing","ref":"x"}`)
	c.want("error", "x") // and no event before it: the credit is spent
	c.say(`{"op":"credit","ref":"a","credit":2}`)
	var got []string
	for range 3 {
		m := c.hear()
		got = append(got, m.Op+m.Position)
		if m.Op == "event" {
			cursor = m.Cursor
		}
	}
	slices.Sort(got) // the answer to credit may come behind an event
	if !slices.Equal(got, []string{"event0-3", "event0-4", "ok"}) {
		t.Fatal(got)
	}
	c.say(`{"op":"unsubscribe","ref":"a"}`)
	if m := c.want("ok", "a"); m.Cursor != cursor {
		t.Fatalf("unsubscribed at %q; the last event's cursor is %q", m.Cursor, cursor)
	}
	c.say(`{"op":"subscribe","ref":"a","topic":"orders","after":"%s","filter":"odd"}`, cursor)
	if m := c.want("ok", "a"); m.Credit != defaultCredit {
		t.Fatal(m)
	}
	for _, want := range []string{"0-5", "0-7", "0-9"} {
		if m := c.want("event", "a"); m.Position != want {
			t.Fatalf("%+v; want %s", m, want)
		}
	}
	c.say(`{"op":"subscribe","ref":"s","subscription":"out","after":"8"}`)
	c.want("ok", "s")
	if m := c.want("event", "s"); m.Position != "0-8" {
		t.Fatal(m)
	}
}

// TestSettle pulls: deliveries are settled by their leases, and what is unsettled when the socket closes is given back.
func TestSettle(t *testing.T) {
	h := start(t, Options{})
	c := h.dial(t)
	c.publish(6)
	c.say(`{"op":"subscribe","ref":"b","subscription":"workers","credit":4}`)
	c.want("ok", "b")
	var leases []string
	for range 4 {
		m := c.want("event", "b")
		if m.Attempt != 1 || m.Lease == "" {
			t.Fatal(m)
		}
		leases = append(leases, m.Lease)
	}
	c.say(`{"op":"ack","ref":"1","leases":[%q,"invented"]}`, leases[0])
	if m := c.want("ok", "1"); !slices.Equal(m.Lost, []string{"invented"}) || !slices.Equal(m.Reasons, []string{"unknown"}) {
		t.Fatal(m)
	}
	c.say(`{"op":"ack","ref":"2","leases":[%q]}`, leases[0])
	if m := c.want("ok", "2"); !slices.Equal(m.Lost, leases[:1]) {
		t.Fatal(m)
	}
	c.say(`{"op":"extend","ref":"3","leases":[%q],"deadline":"60s"}`, leases[1])
	if m := c.want("ok", "3"); len(m.Lost) != 0 {
		t.Fatal(m)
	}
	c.say(`{"op":"nack","ref":"4","leases":[%q],"delay":"0s"}`, leases[2])
	if m := c.want("ok", "4"); len(m.Lost) != 0 {
		t.Fatal(m)
	}
	// Of a lease that another connection was handed, by the subscription's name.
	other := h.dial(t)
	other.say(`{"op":"ack","ref":"5","subscription":"workers","leases":[%q]}`, leases[3])
	if m := other.want("ok", "5"); len(m.Lost) != 0 {
		t.Fatal(m)
	}
	c.frame(frames.OpClose, true, "\x03\xe8")
	c.closes(1000, "")
	eventually(t, "what was unsettled is given back", func() bool {
		h.f.mu.Lock()
		defer h.f.mu.Unlock()
		return len(h.f.nacked) == 2
	})
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if !slices.Equal(h.f.nacked[:2], []string{leases[2], leases[1]}) {
		t.Errorf("given back: %v; want the nacked %s, then the unsettled %s", h.f.nacked, leases[2], leases[1])
	}
}

// TestUnsubscribeGivesBack gives deliveries back without the socket ending, to whoever pulls next.
func TestUnsubscribeGivesBack(t *testing.T) {
	h := start(t, Options{})
	c := h.dial(t)
	c.publish(1)
	for attempt := range 3 {
		c.say(`{"op":"subscribe","ref":"b","subscription":"workers"}`)
		c.want("ok", "b")
		if m := c.want("event", "b"); m.Attempt != attempt+1 {
			t.Fatal(m)
		}
		c.say(`{"op":"unsubscribe","ref":"b"}`)
		c.want("ok", "b")
	}
}

// TestRequestsRefused says of each what is wrong, under its ref, and goes on.
func TestRequestsRefused(t *testing.T) {
	h := start(t, Options{})
	c := h.dial(t)
	c.say(`{"op":"subscribe","ref":"open","topic":"orders"}`)
	c.want("ok", "open")
	for _, tt := range []struct{ say, ref, detail string }{
		{`{`, "", "message"},
		{`[]`, "", "not a JSON object"},
		{`"x"`, "", "not a JSON object"},
		{`{"ref":"r"}`, "r", `op: is ""`},
		{`{"op":7,"ref":"r"}`, "r", "op: is 7; want a string"},
		{`{"op":"dance","ref":"r"}`, "r", "want subscribe,"},
		{`{"op":"publish","op":"ack","ref":"r"}`, "", "given twice"},
		{`{"op":"ack","ref":5}`, "", "ref: is 5"},
		{`{"op":"ack","ref":"` + strings.Repeat("r", 257) + `"}`, "", "the limit is 256"},
		{`{"op":"subscribe","topic":"orders"}`, "", "ref: is missing"},
		{`{"op":"subscribe","ref":"open","topic":"orders"}`, "open", "unsubscribe it first"},
		{`{"op":"subscribe","ref":"r"}`, "r", "either topic or subscription"},
		{`{"op":"subscribe","ref":"r","topic":"orders","subscription":"out"}`, "r", "either topic or subscription"},
		{`{"op":"subscribe","ref":"r","topic":"../etc"}`, "r", "topic"},
		{`{"op":"subscribe","ref":"r","topic":"nowhere"}`, "r", "is not there"},
		{`{"op":"subscribe","ref":"r","topic":"orders","credit":-1}`, "r", "0 to 10000"},
		{`{"op":"subscribe","ref":"r","topic":"orders","credit":1e3}`, "r", "0 to 10000"},
		{`{"op":"subscribe","ref":"r","topic":"orders","credit":99999999999999999999}`, "r", "0 to 10000"},
		{`{"op":"subscribe","ref":"r","topic":"orders","after":"1","since":"1s"}`, "r", "since"},
		{`{"op":"subscribe","ref":"r","topic":"orders","since":"soon"}`, "r", "since"},
		{`{"op":"subscribe","ref":"r","topic":"orders","after":"x"}`, "r", "cursor"},
		{`{"op":"subscribe","ref":"r","topic":"orders","leases":["x"]}`, "r", "is not a member of subscribe"},
		{`{"op":"subscribe","ref":"r","subscription":"hook"}`, "r", "delivers by webhook"},
		{`{"op":"subscribe","ref":"r","subscription":"workers","after":"1"}`, "r", "leave after, since and filter out"},
		{`{"op":"unsubscribe","ref":"r"}`, "r", "no open subscription"},
		{`{"op":"credit","ref":"r","credit":1}`, "r", "no open subscription"},
		{`{"op":"credit","ref":"open"}`, "open", "missing or 0"},
		{`{"op":"publish","ref":"r","topic":"orders"}`, "r", "send at least one"},
		{`{"op":"publish","ref":"r","topic":"orders","events":{}}`, "r", "want an array"},
		{`{"op":"publish","ref":"r","topic":"orders","events":[{"specversion":"1.0","id":"1"}]}`, "r", "events[0]"},
		{`{"op":"ack","ref":"r"}`, "r", "leases"},
		{`{"op":"ack","ref":"r","leases":[]}`, "r", "leases"},
		{`{"op":"ack","ref":"r","leases":[1]}`, "r", "leases"},
		{`{"op":"ack","ref":"r","leases":["x"],"delay":"1s"}`, "r", "is not a member of ack"},
		{`{"op":"nack","ref":"r","leases":["x"],"delay":"-1s"}`, "r", "delay"},
		{`{"op":"nack","ref":"r","leases":["x"],"delay":"1000000h"}`, "r", "delay"},
		{`{"op":"extend","ref":"r","leases":["x"]}`, "r", "deadline"},
		{`{"op":"extend","ref":"r","leases":["x"],"deadline":"1s"}`, "r", "deadline"},
	} {
		c.say("%s", tt.say)
		if m := c.hear(); m.Op != "error" || m.Ref != tt.ref || !strings.Contains(m.Detail, tt.detail) || m.Status != 400 {
			t.Errorf("%.80s: %+v", tt.say, m)
		}
	}
	for i := range maxSubscriptions - 1 {
		c.say(`{"op":"subscribe","ref":"%d","topic":"orders"}`, i)
		c.want("ok", fmt.Sprint(i))
	}
	c.say(`{"op":"subscribe","ref":"over","topic":"orders"}`)
	c.want("error", "over")
}

// TestOvertaken ends a subscription that the ring has overtaken, by name and with its cursor.
func TestOvertaken(t *testing.T) {
	h := start(t, Options{})
	c := h.dial(t)
	c.publish(5)
	h.f.mu.Lock()
	h.f.head = 4
	h.f.mu.Unlock()
	c.say(`{"op":"subscribe","ref":"a","topic":"orders","after":"2"}`)
	c.want("ok", "a")
	if m := c.want("end", "a"); m.Cursor != "2" || !strings.Contains(m.Detail, "overtaken") {
		t.Fatal(m)
	}
	c.say(`{"op":"subscribe","ref":"a","topic":"orders","after":"4"}`) // the ref is free again
	c.want("ok", "a")
	c.want("event", "a")
}

// TestIdleCursor tells a reader whose filter passes nothing how far it has come.
func TestIdleCursor(t *testing.T) {
	h := start(t, Options{Ping: 30 * time.Millisecond})
	c := h.dial(t)
	c.say(`{"op":"subscribe","ref":"a","topic":"orders","filter":"odd"}`)
	c.want("ok", "a")
	p := h.dial(t)
	p.publish(1)
	if m := c.want("cursor", "a"); m.Cursor != "1" {
		t.Fatal(m)
	}
}

// TestDrain ends subscriptions with cursors and the socket with 1001; what was being published is answered, and leases stay.
func TestDrain(t *testing.T) {
	h := start(t, Options{CloseTimeout: 100 * time.Millisecond})
	c := h.dial(t)
	c.publish(2)
	c.say(`{"op":"subscribe","ref":"a","topic":"orders","after":"0","credit":1}`)
	c.want("ok", "a")
	c.want("event", "a")
	c.say(`{"op":"subscribe","ref":"b","subscription":"workers","credit":1}`)
	c.want("ok", "b")
	c.want("event", "b")
	h.f.mu.Lock()
	h.f.block = make(chan struct{})
	h.f.mu.Unlock()
	c.say(`{"op":"publish","ref":"p","topic":"orders","events":[1]}`)
	eventually(t, "publish", func() bool { h.f.mu.Lock(); defer h.f.mu.Unlock(); return h.f.blocked == 1 })
	h.drain()
	close(h.f.block)
	c.want("ok", "p")
	ends := map[string]string{}
	for range 2 {
		m := c.hear()
		ends[m.Op+" "+m.Ref] = m.Cursor
	}
	if len(ends) != 2 || ends["end a"] != "1" {
		t.Error(ends)
	}
	c.closes(frames.StatusGoingAway, "shutting down")
	h.live.Wait()
	if h.f.open != 0 || len(h.f.nacked) != 0 {
		t.Errorf("%d readers open, %v given back", h.f.open, h.f.nacked)
	}
}

// TestSlowReader drops a client that does not read, at a bound, while others go on; it resumes without gap or repeat.
func TestSlowReader(t *testing.T) {
	h := start(t, Options{WriteTimeout: time.Second})
	small := func(nc net.Conn) { _ = nc.(*net.TCPConn).SetReadBuffer(64 << 10) }
	slow, good := h.dial(t, small), h.dial(t)
	for _, c := range []*client{slow, good} {
		c.say(`{"op":"subscribe","ref":"a","topic":"orders","credit":10000}`)
		c.want("ok", "a")
	}
	const events = 400
	p := h.dial(t)
	go func() {
		for i := range events {
			p.say(`{"op":"publish","topic":"orders","events":["%d%s"]}`, i, strings.Repeat("x", 16<<10))
		}
	}()
	for i := range events {
		if m := good.want("event", "a"); m.Position != fmt.Sprint("0-", i) {
			t.Fatal(m.Position)
		}
	}
	eventually(t, "the slow reader is dropped", func() bool { return h.Stats().Dropped == 1 })
	h.dial(t).publish(1) // and the good one still has its time for a write
	if m := good.want("event", "a"); m.Position != fmt.Sprint("0-", events) {
		t.Fatal(m.Position)
	}
	// What had been sent is read, as far as it goes.
	at, cursor := 0, "0"
	for {
		m, code, err := slow.next()
		if err != nil || code != 0 {
			break
		}
		if m.Position != fmt.Sprint("0-", at) {
			t.Fatalf("%s after %d", m.Position, at)
		}
		at, cursor = at+1, m.Cursor
	}
	if at == events {
		t.Fatal("everything fitted into the connection: nothing was tested")
	}
	again := h.dial(t)
	again.say(`{"op":"subscribe","ref":"a","topic":"orders","after":"%s","credit":10000}`, cursor)
	again.want("ok", "a")
	for ; at < events; at++ {
		if m := again.want("event", "a"); m.Position != fmt.Sprint("0-", at) {
			t.Fatalf("%s, want 0-%d", m.Position, at)
		}
	}
}

// TestSocketLeavesNothing opens sockets with subscriptions, loses them in several ways, and counts goroutines.
func TestSocketLeavesNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"), goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		h := start(t, Options{CloseTimeout: 50 * time.Millisecond})
		for i := range 30 {
			c := h.dial(t)
			for _, ref := range []string{"a", "b"} {
				c.say(`{"op":"subscribe","ref":%q,"topic":"orders"}`, ref)
				c.want("ok", ref)
			}
			c.say(`{"op":"subscribe","ref":"w","subscription":"workers"}`)
			c.want("ok", "w")
			switch i % 3 {
			case 0:
				_ = c.nc.Close()
			case 1:
				c.raw([]byte{0xFF, 0x80, 0, 0, 0, 0})
			case 2:
				c.frame(frames.OpClose, true, "")
			}
		}
		eventually(t, "all are closed", func() bool { return h.Stats().Connections == 0 })
		h.live.Wait()
		if h.f.open != 0 {
			t.Errorf("%d readers are open", h.f.open)
		}
	})
}

// TestIdleSocketIsSmall holds what an idle socket with a subscription keeps: heap and stacks.
func TestIdleSocketIsSmall(t *testing.T) {
	const sockets, most = 200, 24 << 10 // of which some 4 KiB are this test's own client
	h := start(t, Options{})
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	h.dial(t)
	before := used()
	for range sockets {
		c := h.dial(t)
		c.say(`{"op":"subscribe","ref":"a","topic":"orders"}`)
		c.want("ok", "a")
	}
	each := (int(used()) - int(before)) / sockets
	t.Logf("%d bytes a socket", each)
	if each > most {
		t.Errorf("an idle socket keeps %d bytes; at most %d", each, most)
	}
}
