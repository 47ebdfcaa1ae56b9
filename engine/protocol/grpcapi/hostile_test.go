package grpcapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcgzip "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/proto"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// A raw client speaks HTTP/2 in frames, as no library would.
type raw struct {
	t  *testing.T
	nc net.Conn
	*http2.Framer
	hp  *hpack.Encoder
	buf bytes.Buffer
}

func (h *harness) raw() *raw {
	h.t.Helper()
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	r := &raw{t: h.t, nc: nc, Framer: http2.NewFramer(nc, nc)}
	r.hp = hpack.NewEncoder(&r.buf)
	if _, err := nc.Write([]byte(http2.ClientPreface)); err != nil {
		h.t.Fatal(err)
	}
	if err := r.WriteSettings(); err != nil {
		h.t.Fatal(err)
	}
	return r
}

// call opens a stream with a call's headers and what is besides them.
func (r *raw) call(id uint32, method string, more ...string) {
	r.t.Helper()
	r.buf.Reset()
	fields := append([]string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}, more...)
	for i := 0; i < len(fields); i += 2 {
		if err := r.hp.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			r.t.Fatal(err)
		}
	}
	block := r.buf.Bytes()
	first := block[:min(len(block), 16<<10)]
	err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: len(first) == len(block)})
	for rest := block[len(first):]; err == nil && len(rest) > 0; {
		some := rest[:min(len(rest), 16<<10)]
		rest = rest[len(some):]
		err = r.WriteContinuation(id, len(rest) == 0, some)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// until reads frames until one is what is waited for, or the connection ends.
func (r *raw) until(what string, is func(http2.Frame) bool) {
	r.t.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			if ne, ok := err.(net.Error); is(nil) && (!ok || !ne.Timeout()) {
				return
			}
			r.t.Fatalf("%s: %v", what, err)
		}
		if is(f) {
			return
		}
	}
}

// prefixed is a message with its prefix.
func prefixed(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

const publishing = "/millrace.v1.Events/PublishStream"

// TestCutMidMessage: what a client had not sent whole is not stored, and what it had sent whole is, whatever cuts it off.
func TestCutMidMessage(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	whole := prefixed(&millracev1.PublishStreamRequest{Topic: "orders", Events: some(1)})
	for name, cut := range map[string]func(*raw){
		"the connection": func(r *raw) { r.nc.Close() },
		"a reset":        func(r *raw) { _ = r.WriteRSTStream(1, http2.ErrCodeCancel) },
		"an end":         func(r *raw) { _ = r.WriteData(1, true, nil) },
	} {
		before := h.f.get(func() int { return len(h.f.topics["orders"]) })
		r := h.raw()
		r.call(1, publishing)
		if err := r.WriteData(1, false, append(bytes.Clone(whole), whole[:len(whole)-3]...)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the whole one is stored", func() bool { return h.f.get(func() int { return len(h.f.topics["orders"]) }) == before+1 })
		cut(r)
		eventually(t, name+" ends the stream", func() bool { return h.s.Stats().Streams == 0 })
		if n := h.f.get(func() int { return len(h.f.topics["orders"]) }); n != before+1 {
			t.Errorf("%s: %d events", name, n-before)
		}
	}
}

// TestHostileCalls: each ends the call or the connection, and nothing else.
func TestHostileCalls(t *testing.T) {
	h := serve(t, Options{Limits: event.Limits{Body: 64 << 10}}, admission.Options{})
	ends := func(id uint32) func(http2.Frame) bool {
		return func(f http2.Frame) bool {
			switch f := f.(type) {
			case nil, *http2.GoAwayFrame:
				return true
			case *http2.RSTStreamFrame:
				return f.StreamID == id
			case *http2.HeadersFrame:
				return f.StreamID == id && f.StreamEnded()
			}
			return false
		}
	}
	data := func(b []byte) func(*raw) {
		return func(r *raw) {
			r.call(1, publishing)
			_ = r.WriteData(1, false, b)
		}
	}
	for name, do := range map[string]func(*raw){
		"a message that says 4 GiB":    data([]byte{0, 255, 255, 255, 255}),
		"one byte over the limit":      data([]byte{0, 0, 1, 0, 1}),
		"a flag that is none":          data([]byte{7, 0, 0, 0, 1, 0}),
		"compressed by nothing":        data([]byte{1, 0, 0, 0, 1, 0}),
		"no protobuf":                  data([]byte{0, 0, 0, 0, 3, 255, 255, 255}),
		"an unknown service":           func(r *raw) { r.call(1, "/no.Service/Method") },
		"an unknown method":            func(r *raw) { r.call(1, "/millrace.v1.Events/Nothing") },
		"a method that is none":        func(r *raw) { r.call(1, "nonsense") },
		"an unknown encoding":          func(r *raw) { r.call(1, publishing, "grpc-encoding", "br") },
		"a timeout of nonsense":        func(r *raw) { r.call(1, publishing, "grpc-timeout", "soon") },
		"metadata that is no base64":   func(r *raw) { r.call(1, publishing, "x-bin", "%%%") },
		"a header list over the limit": func(r *raw) { r.call(1, publishing, "x", strings.Repeat("a", 20<<10)) },
		"many headers":                 func(r *raw) { r.call(1, publishing, strings.Fields(strings.Repeat("x y ", 2000))...) },
		"data on a stream of nobody":   func(r *raw) { r.call(1, publishing); _ = r.WriteRawFrame(http2.FrameData, 0, 0, []byte{1}) },
		"an even stream":               func(r *raw) { r.call(2, publishing) },
		"a window update of nothing": func(r *raw) {
			r.call(1, publishing)
			_ = r.WriteRawFrame(http2.FrameWindowUpdate, 0, 1, []byte{0, 0, 0, 0})
		},
		"settings of half a setting": func(r *raw) { _ = r.WriteRawFrame(http2.FrameSettings, 0, 0, []byte{1, 2, 3}) },
		"a frame larger than any":    func(r *raw) { _, _ = r.nc.Write([]byte{255, 255, 255, 0, 0, 0, 0, 0, 1}) },
		"HTTP/1.1":                   func(r *raw) { _, _ = r.nc.Write([]byte("GET / HTTP/1.1\r\n\r\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			r := h.raw()
			r.t = t
			do(r)
			r.until(name, ends(1))
			r.nc.Close()
		})
	}
	eventually(t, "nothing of it is left", func() bool { return h.s.Stats().Streams == 0 })
	h.publish(h.events(), 1)
}

// TestFloodOfPings: a client that pings and does not read what it is answered is cut off.
func TestFloodOfPings(t *testing.T) {
	h := serve(t, Options{WriteTimeout: 100 * time.Millisecond}, admission.Options{})
	r := h.raw()
	ping := append([]byte{0, 0, 8, byte(http2.FramePing), 0, 0, 0, 0, 0}, make([]byte, 8)...)
	many := bytes.Repeat(ping, 10_000)
	for range 10_000 {
		if _, err := r.nc.Write(many); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatal("it is still there")
			}
			return
		}
	}
	t.Error("it may ping for ever")
}

// TestSilentConnections: who opens a connection and says nothing does not keep it.
func TestSilentConnections(t *testing.T) {
	h := serve(t, Options{ConnectTimeout: 50 * time.Millisecond, IdleTimeout: 50 * time.Millisecond}, admission.Options{MaxConns: 2})
	for range 4 { // were they kept, the third would not come in
		nc, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_ = nc.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 1024)
		for err == nil {
			_, err = nc.Read(b)
		}
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatal("a silent connection is kept")
		}
	}
	r := h.raw() // HTTP/2, and no call
	r.until("an idle connection is told to go", func(f http2.Frame) bool {
		_, ok := f.(*http2.GoAwayFrame)
		return f == nil || ok
	})
}

// TestTooManyConnections of all are closed before anything is read of them.
func TestTooManyConnections(t *testing.T) {
	h := serve(t, Options{}, admission.Options{MaxConns: 1})
	h.publish(h.events(), 1)
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := nc.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("one connection too many is spoken to")
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Error("one connection too many is kept")
	}
}

// TestStreamsOfAConnection: another call than so many waits until one has ended, with the library; without it is refused.
func TestStreamsOfAConnection(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	r := h.raw()
	for i := range uint32(maxStreams + 1) {
		r.call(1+2*i, publishing)
	}
	r.until("one too many is refused", func(f http2.Frame) bool {
		rst, ok := f.(*http2.RSTStreamFrame)
		return ok && rst.StreamID == 1+2*maxStreams && rst.ErrCode == http2.ErrCodeRefusedStream
	})
}

// TestMessageBombs: a message is bounded after it is decompressed.
func TestMessageBombs(t *testing.T) {
	h := serve(t, Options{Limits: event.Limits{Body: 64 << 10}}, admission.Options{})
	c := h.events(grpc.WithDefaultCallOptions(grpc.UseCompressor(grpcgzip.Name)))
	zeros := func(n int) *millracev1.PublishRequest {
		return &millracev1.PublishRequest{Topic: "orders", Events: []*pb.CloudEvent{{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, n)}}}}
	}
	if _, err := c.Publish(t.Context(), zeros(60<<10)); err != nil {
		t.Error(err)
	}
	_, err := c.Publish(t.Context(), zeros(1<<20))
	told(t, err, codes.ResourceExhausted, "")
	_, err = h.events().Publish(t.Context(), zeros(64<<10)) // and without
	told(t, err, codes.ResourceExhausted, "")
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 2<<20))
	_ = z.Close()
	// In layers of a message that says that it is small.
	r := h.raw()
	r.call(1, publishing, "grpc-encoding", "gzip")
	if bomb.Len() > 60<<10 {
		bomb.Truncate(60 << 10)
	}
	b := append(binary.BigEndian.AppendUint32([]byte{1}, uint32(bomb.Len())), bomb.Bytes()...)
	for len(b) > 0 {
		n := min(len(b), 16<<10)
		if err := r.WriteData(1, false, b[:n]); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
	r.until("the bomb is refused", func(f http2.Frame) bool {
		h, ok := f.(*http2.HeadersFrame)
		return ok && h.StreamEnded()
	})
}

// TestLargeMessagesNeedRoom: where there is none they are refused, and what they took is given back.
func TestLargeMessagesNeedRoom(t *testing.T) {
	h := serve(t, Options{}, admission.Options{Bytes: 100 << 10})
	c := h.events()
	large := func(n int) *millracev1.PublishRequest {
		return &millracev1.PublishRequest{Topic: "orders", Events: []*pb.CloudEvent{{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, n)}}}}
	}
	_, err := c.Publish(t.Context(), large(200<<10))
	told(t, err, codes.Unavailable, "UNAVAILABLE")
	for range 3 {
		if _, err := c.Publish(t.Context(), large(60<<10)); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the room is given back", func() bool { used, _, _ := h.door.InFlight(); return used == 0 })
}

// TestErrorsFitIntoHeaders, whatever is wrong with however many fields.
func TestErrorsFitIntoHeaders(t *testing.T) {
	faults := &event.Faults{Is: event.ErrInvalid}
	for i := range 200 {
		faults.List = append(faults.List, event.Fault{At: fmt.Sprintf("%s[%d]", strings.Repeat("ü", 200), i), Detail: strings.Repeat("\x1b\u202e☃", 100)})
	}
	st, internal := statusOf(fmt.Errorf("x: %w", faults))
	b, err := proto.Marshal(st.Proto())
	if err != nil || internal || len(b)*4/3+3*len(st.Message()) > 8<<10-512 {
		t.Errorf("%d bytes of details, %d of message; %v", len(b), len(st.Message()), err)
	}
	if strings.ContainsAny(st.Message(), "\x1b\u202e") {
		t.Error("what a terminal would act on is told")
	}
}

// TestNobodyPanics: a call that panics is one that fails.
func TestNobodyPanics(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	h.f.reply = &event.Reply{Status: 200}
	h.f.change(func() { h.f.topics = nil }) // of which the fake wants the first
	c := h.events()
	_, err := c.Publish(t.Context(), &millracev1.PublishRequest{Topic: "orders", Events: some(1)})
	st := told(t, err, codes.Internal, "INTERNAL")
	if st.Message() != "the router failed; its log says why" {
		t.Error(st.Message())
	}
	conn, err := grpc.NewClient(h.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	_, err = millracev1.NewEventsClient(conn).Pull(ctx, &millracev1.PullRequest{Subscription: "workers", Wait: nil})
	told(t, err, codes.DeadlineExceeded, "")
}
