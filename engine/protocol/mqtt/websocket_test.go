package mqtt

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	frames "github.com/gobwas/ws"
	"github.com/valyala/fasthttp"
)

// webSockets serves a rig's MQTT at the URL that it returns.
func webSockets(t *testing.T, r *rig) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
		take := func(serve func(context.Context, net.Conn, []byte)) error {
			ctx.HijackSetNoResponse(true)
			ctx.Hijack(func(nc net.Conn) { serve(context.Background(), nc, nil) })
			return nil
		}
		if err := r.s.ServeWebSocket(ctx, func(context.Context) Visit { return r.door }, take); err != nil {
			ctx.Error(err.Error(), 400)
		}
	}}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		r.stop()
		if err := srv.Shutdown(); err != nil {
			t.Error(err)
		}
		<-served
	})
	return "ws://" + ln.Addr().String() + "/mqtt"
}

func dialWebSocket(t *testing.T, url string) net.Conn {
	t.Helper()
	nc, _, hs, err := frames.Dialer{Protocols: []string{"mqttv3.1", "mqtt"}}.Dial(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if hs.Protocol != "mqtt" { // [MQTT-6.0.0-4]
		t.Errorf("subprotocol %q", hs.Protocol)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return nc
}

func writeFrames(t *testing.T, nc net.Conn, list ...frames.Frame) {
	t.Helper()
	var b bytes.Buffer
	for _, f := range list {
		if err := frames.WriteFrame(&b, frames.MaskFrame(f)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nc.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
}

// wantFrame reads a frame of op, past pongs if that is another.
func wantFrame(t *testing.T, nc net.Conn, op frames.OpCode) []byte {
	t.Helper()
	for {
		f, err := frames.ReadFrame(nc)
		switch {
		case err != nil:
			t.Fatalf("want a frame of opcode %d: %v", op, err)
		case f.Header.OpCode == op:
			return f.Payload
		case f.Header.OpCode != frames.OpPong:
			t.Fatalf("a frame of opcode %d; want %d", f.Header.OpCode, op)
		}
	}
}

// Packets may span frames, fragments and pings, and several may be in one.
func TestWebSocket(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	nc := dialWebSocket(t, webSockets(t, r))
	hello := encode(t, connectPacket(4, "ws", nil))
	var list []frames.Frame
	for i := range hello { // a fragment a byte, and a ping between
		op := frames.OpContinuation
		if i == 0 {
			op = frames.OpBinary
		}
		list = append(list, frames.NewFrame(op, i == len(hello)-1, hello[i:i+1]), frames.NewPingFrame([]byte("there?")))
	}
	writeFrames(t, nc, list...)
	if b := wantFrame(t, nc, frames.OpPong); string(b) != "there?" {
		t.Errorf("a pong with %q", b)
	}
	if b := wantFrame(t, nc, frames.OpBinary); !bytes.Equal(b, []byte{0x20, 2, 0, 0}) {
		t.Fatalf("CONNACK % x", b)
	}
	var both []byte
	for i, data := range []string{"one", string(bytes.Repeat([]byte("large "), 20<<10))} {
		pk := message(1, uint16(i+1), "plant/a/temp", data)
		pk.ProtocolVersion = 4
		both = append(both, encode(t, pk)...)
	}
	writeFrames(t, nc, frames.NewBinaryFrame(both[:10]), frames.NewBinaryFrame(both[10:70000]), frames.NewBinaryFrame(both[70000:]))
	var acks []byte
	for len(acks) < 8 {
		acks = append(acks, wantFrame(t, nc, frames.OpBinary)...)
	}
	if !bytes.Equal(acks, []byte{0x40, 2, 0, 1, 0x40, 2, 0, 2}) {
		t.Errorf("acknowledged by % x", acks)
	}
	if got := f.stored("temps"); len(got) != 2 || got[0] != "one" || len(got[1]) != 6*20<<10 {
		t.Errorf("%d are stored", len(got))
	}
	writeFrames(t, nc, frames.NewCloseFrame(frames.NewCloseFrameBody(frames.StatusNormalClosure, "")))
	if b := wantFrame(t, nc, frames.OpClose); binary.BigEndian.Uint16(b) != 1000 {
		t.Errorf("closed with % x", b)
	}
	if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the close frame: %v", err)
	}
}

// What is against RFC 6455 or not binary ends the connection with a code that says so.
func TestWebSocketViolations(t *testing.T) {
	url := webSockets(t, newRig(t, newFakeRouter(t), nil, Options{}))
	masked := func(f frames.Frame) []byte { return frames.MustCompileFrame(frames.MaskFrame(f)) }
	for _, x := range []struct {
		name string
		sent []byte
		code uint16
	}{
		{"text", masked(frames.NewTextFrame([]byte("hello"))), 1003},
		{"not masked", frames.MustCompileFrame(frames.NewBinaryFrame([]byte("hello"))), 1002},
		{"reserved bit", []byte{0xC2, 0x80, 0, 0, 0, 0}, 1002},
		{"reserved opcode", []byte{0x83, 0x80, 0, 0, 0, 0}, 1002},
		{"continues nothing", masked(frames.NewFrame(frames.OpContinuation, true, []byte("x"))), 1002},
		{"begins within", append(masked(frames.NewFrame(frames.OpBinary, false, nil)), masked(frames.NewBinaryFrame([]byte("x")))...), 1002},
		{"length with its top bit", []byte{0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 1002},
		{"too large", []byte{0x82, 0xFF, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0}, 1009},
		{"large ping", []byte{0x89, 0xFE, 0, 126, 0, 0, 0, 0}, 1002},
		{"close of a byte", masked(frames.NewCloseFrame([]byte{3})), 1002},
		{"first packet is no CONNECT", masked(frames.NewBinaryFrame([]byte{0xC0, 0})), 1000},
	} {
		nc := dialWebSocket(t, url)
		if _, err := nc.Write(x.sent); err != nil {
			t.Fatal(err)
		}
		if b := wantFrame(t, nc, frames.OpClose); len(b) < 2 || binary.BigEndian.Uint16(b) != x.code {
			t.Errorf("%s: closed with % x; want %d", x.name, b, x.code)
		}
		_ = nc.Close()
	}
}

func TestWebSocketHandshake(t *testing.T) {
	for _, x := range []struct {
		name, header, value string
		ok                  bool
	}{
		{"as it is", "X-Other", "x", true},
		{"several subprotocols", "Sec-WebSocket-Protocol", "other, MQTT", true},
		{"another subprotocol", "Sec-WebSocket-Protocol", "mqttv3.1", false},
		{"no subprotocol", "Sec-WebSocket-Protocol", "", false},
		{"no upgrade", "Upgrade", "h2c", false},
		{"no connection", "Connection", "close", false},
		{"version", "Sec-WebSocket-Version", "8", false},
		{"nonce", "Sec-WebSocket-Key", "AAAA", false},
	} {
		var ctx fasthttp.RequestCtx
		ctx.Init(&fasthttp.Request{}, nil, nil)
		h := &ctx.Request.Header
		for _, kv := range [][2]string{{"Upgrade", "websocket"}, {"Connection", "keep-alive, Upgrade"}, {"Sec-WebSocket-Version", "13"},
			{"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}, {"Sec-WebSocket-Protocol", "mqtt"}, {x.header, x.value}} {
			h.Set(kv[0], kv[1])
		}
		accept, err := upgrade(&ctx)
		if x.ok != (err == nil) || x.ok && accept != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455, 1.3
			t.Errorf("%s: %q, %v", x.name, accept, err)
		}
	}
}

// Frames come out as they went in, or end in an error, whatever they are and however they are cut.
func FuzzWebSocket(f *testing.F) {
	f.Add([]byte{0x82, 0x82, 1, 2, 3, 4, 5, 6, 0x89, 0x80, 0, 0, 0, 0, 0x88, 0x80, 0, 0, 0, 0}, byte(3))
	f.Add([]byte{0x02, 0x80, 0, 0, 0, 0, 0x80, 0xFE, 0, 1, 0, 0, 0, 0, 7}, byte(1))
	f.Add([]byte{0x82, 0xFF, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0}, byte(200))
	s := &Server{o: Options{}.withDefaults(), writes: newWritePool()}
	f.Fuzz(func(t *testing.T, data []byte, cut byte) {
		read := func(size int) (all []byte) {
			w := newWebSocket(s, &heldConn{r: bytes.NewReader(data)})
			for p := make([]byte, size); ; {
				n, err := w.Read(p)
				if all = append(all, p[:n]...); err != nil {
					return all
				}
			}
		}
		if a, b := read(1+int(cut)), read(4096); !bytes.Equal(a, b) || len(a) > len(data) {
			t.Errorf("read in pieces % x, at once % x", a, b)
		}
	})
}

// A heldConn reads what it holds and writes nowhere.
type heldConn struct {
	net.Conn
	r io.Reader
}

func (c *heldConn) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *heldConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *heldConn) SetWriteDeadline(time.Time) error { return nil }
