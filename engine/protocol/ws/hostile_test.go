package ws

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	frames "github.com/gobwas/ws"
)

// header is a frame's header of any length that its 64 bits can say.
func header(first byte, masked bool, length uint64) []byte {
	b := []byte{first, 127}
	if masked {
		b[1] |= 0x80
	}
	b = binary.BigEndian.AppendUint64(b, length)
	if masked {
		b = append(b, 1, 2, 3, 4)
	}
	return b
}

// TestHostileFrames sends what no client should: each socket is closed with a code, takes no memory, and another socket goes on.
func TestHostileFrames(t *testing.T) {
	h := start(t, Options{CloseTimeout: 200 * time.Millisecond})
	good := h.dial(t)
	good.say(`{"op":"subscribe","ref":"a","topic":"orders","credit":10000}`)
	good.want("ok", "a")
	p := h.dial(t)
	for name, tt := range map[string]struct {
		send   []byte
		code   frames.StatusCode
		reason string
	}{
		"2^63":                         {header(0x81, true, 1<<63), 1002, "most significant bit"},
		"2^63-1":                       {header(0x81, true, 1<<63-1), 1009, "bytes a message"},
		"one over the limit":           {header(0x81, true, 16<<20+1), 1009, "bytes a message"},
		"2^62 in a continuation":       {append(frames.MustCompileFrame(frames.MaskFrame(frames.NewFrame(frames.OpText, false, []byte("x")))), header(0x80, true, 1<<62)...), 1009, "bytes a message"},
		"unmasked":                     {[]byte{0x81, 2, '{', '}'}, 1002, "masked"},
		"unmasked 2^62":                {header(0x81, false, 1<<62), 1002, "masked"},
		"compressed":                   {append([]byte{0xC1, 0x80 | 4, 0, 0, 0, 0}, 1, 2, 3, 4), 1002, "rsv"},
		"reserved op":                  {[]byte{0x83, 0x80, 0, 0, 0, 0}, 1002, "reserved"},
		"reserved control":             {[]byte{0x8B, 0x80, 0, 0, 0, 0}, 1002, "reserved"},
		"binary":                       {[]byte{0x82, 0x80, 0, 0, 0, 0}, 1003, "not binary"},
		"ping of 126":                  {append([]byte{0x89, 0x80 | 126, 0, 126, 0, 0, 0, 0}, make([]byte, 126)...), 1002, "control"},
		"ping in parts":                {[]byte{0x09, 0x80, 0, 0, 0, 0}, 1002, "final"},
		"continuation of nothing":      {[]byte{0x80, 0x80, 0, 0, 0, 0}, 1002, "continuation"},
		"a message in a message":       {[]byte{0x01, 0x80, 0, 0, 0, 0, 0x81, 0x80, 0, 0, 0, 0}, 1002, "continuation"},
		"text that is not UTF-8":       {[]byte{0x81, 0x81, 0, 0, 0, 0, 0xFF}, 1007, "UTF-8"},
		"close of one byte":            {[]byte{0x88, 0x81, 0, 0, 0, 0, 3}, 1002, "one byte"},
		"close with a code of no use":  {[]byte{0x88, 0x82, 0, 0, 0, 0, 0x03, 0xED}, 1002, "status code"}, // 1005
		"close whose reason is broken": {[]byte{0x88, 0x83, 0, 0, 0, 0, 0x03, 0xE8, 0xFF}, 1002, "utf8"},
		"a flood of empty fragments":   {append([]byte{0x01, 0x80, 0, 0, 0, 0}, bytes.Repeat([]byte{0x00, 0x80, 0, 0, 0, 0}, maxFragments+1)...), 1008, "frames a message"},
		"bytes that are no frame":      {[]byte("GET / HTTP/1.1\r\n\r\n"), 1002, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := h.dial(t)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c.raw(tt.send)
			c.closes(tt.code, tt.reason)
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
				t.Errorf("took %d bytes of memory", took)
			}
			p.publish(1)
			good.want("event", "a")
		})
	}
	eventually(t, "only the good are left", func() bool { return h.Stats().Connections == 2 })
}

// TestHalfAMessage cuts off a message that does not end, however busily its socket pings; memory is taken for what came alone.
func TestHalfAMessage(t *testing.T) {
	h := start(t, Options{MessageTimeout: 200 * time.Millisecond})
	for name, first := range map[string][]byte{
		"half a frame":             append(header(0x81, true, 10<<20), 'x'),
		"half a header":            {0x81},
		"a message without an end": {0x01, 0x80, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := h.dial(t)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c.raw(first)
			if name == "a message without an end" {
				for range 5 {
					c.frame(frames.OpPing, true, "")
				}
			}
			for {
				if _, _, err := c.next(); err != nil {
					break
				}
			}
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
				t.Errorf("took %d bytes of memory", took)
			}
		})
	}
	eventually(t, "all are closed", func() bool { return h.Stats().Connections == 0 })
}

// TestPingFlood answers pings for as long as their sender reads, and drops it when it does not; pings between fragments are allowed.
func TestPingFlood(t *testing.T) {
	h := start(t, Options{WriteTimeout: 100 * time.Millisecond})
	c := h.dial(t)
	c.frame(frames.OpText, false, `{"op":"publish","ref":"p",`)
	c.frame(frames.OpPing, true, "hello")
	if m := c.hear(); m.Op != "pong" || m.Detail != "hello" {
		t.Fatal(m)
	}
	c.frame(frames.OpContinuation, false, `"topic":"orders",`)
	c.frame(frames.OpContinuation, true, `"events":[1]}`)
	c.want("ok", "p")

	flood := h.dial(t)
	ping := bytes.Repeat(frames.MustCompileFrame(frames.MaskFrame(frames.NewPingFrame(make([]byte, 125)))), 1000)
	_ = flood.nc.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for err := error(nil); err == nil; {
		_, err = flood.nc.Write(ping)
	}
	eventually(t, "the flood is dropped", func() bool { return h.Stats().Dropped == 1 })
	c.publish(1)
}

// TestSilence drops a client that answers no ping, and keeps one that does.
func TestSilence(t *testing.T) {
	h := start(t, Options{Ping: 300 * time.Millisecond})
	h.dial(t) // says nothing
	alive := h.dial(t)
	heard := make(chan error, 1)
	go func() {
		m, _, err := alive.next() // answers pings
		if err == nil && m.Op != "event" {
			err = fmt.Errorf("heard %+v", m)
		}
		heard <- err
	}()
	eventually(t, "the silent one is gone", func() bool { return h.Stats().Connections == 1 })
	h.drain()
	<-heard
}

// TestLargest takes a message of the limit.
func TestLargest(t *testing.T) {
	h := start(t, Options{})
	c := h.dial(t)
	begin, end := `{"op":"publish","ref":"p","topic":"orders","events":["`, `"]}`
	c.say("%s%s%s", begin, strings.Repeat("x", 16<<20-len(begin)-len(end)), end)
	c.want("ok", "p")
}

// TestHandshakeRefused answers what is no WebSocket with 400 and what to do.
func TestHandshakeRefused(t *testing.T) {
	h := start(t, Options{})
	for name, header := range map[string][2]string{
		"no upgrade":  {"Upgrade", "h2c"},
		"no option":   {"Connection", "close"},
		"old version": {"Sec-WebSocket-Version", "8"},
		"no key":      {"Sec-WebSocket-Key", ""},
		"short key":   {"Sec-WebSocket-Key", "AAAA"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequest("GET", "http://"+h.addr+"/v1/ws", nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range map[string]string{"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", header[0]: header[1]} {
				req.Header.Set(k, v)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 400 || resp.Header.Get("Sec-WebSocket-Version") != "13" {
				t.Error(resp)
			}
		})
	}
}

// TestMessagesAreBound: each is taken from what the client may send, and a large one needs room, which it gives back.
func TestMessagesAreBound(t *testing.T) {
	var spent, room atomic.Int64
	room.Store(100_000)
	h := start(t, Options{
		Spend: func(context.Context) error {
			if spent.Add(1) > 4 {
				return errors.New("too many")
			}
			return nil
		},
		Reserve: func(_ context.Context, n, size int) error {
			if room.Add(int64(-n)) < 0 || size > 100_000 {
				return errors.New("no room")
			}
			return nil
		},
		Release: func(context.Context) { room.Store(100_000) },
	})
	c := h.dial(t)
	publish := func(n int) {
		c.say(`{"op":"publish","ref":"p","topic":"orders","events":[%q]}`, strings.Repeat("x", n))
	}
	for range 3 { // one after the other there is room for all
		publish(60_000)
		c.want("ok", "p")
	}
	publish(10)
	c.want("ok", "p")
	publish(10)
	c.want("error", "p")
	publish(200_000)
	c.closes(1013, "no room for large messages")
}
