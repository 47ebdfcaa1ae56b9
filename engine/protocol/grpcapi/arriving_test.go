package grpcapi

import (
	"context"
	"encoding/binary"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcgzip "google.golang.org/grpc/encoding/gzip"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// TestMessagesNeedRoomBeforeTheyAreRead: by their length, and until they are there, for which they have a time.
func TestMessagesNeedRoomBeforeTheyAreRead(t *testing.T) {
	h := serve(t, Options{MessageTimeout: time.Second}, admission.Options{Bytes: 1 << 20})
	say := func(r *raw, id uint32, size int) {
		r.call(id, publishing)
		if err := r.WriteData(id, false, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)), make([]byte, 1000)...)); err != nil {
			t.Fatal(err)
		}
	}
	r := h.raw()
	say(r, 1, 900_000)
	eventually(t, "there is room for all of it", func() bool { used, _, _ := h.door.InFlight(); return used == 900_000 })
	say(r, 3, 900_000)
	r.until("another is refused, of which a thousand bytes came", func(f http2.Frame) bool {
		x, ok := f.(*http2.HeadersFrame)
		return ok && x.StreamID == 3 && x.StreamEnded()
	})
	if used, _, _ := h.door.InFlight(); used > 900_000 { // or none: the first has come to the end of its time
		t.Errorf("%d bytes are in flight", used)
	}
	eventually(t, "what does not come to its end is cut off", func() bool { used, _, _ := h.door.InFlight(); return used == 0 && h.s.Stats().Streams == 0 })
	h.publish(h.events(), 1)
}

// TestStrangersSayLittle: the calls that they may make take no large message, whatever its length says.
func TestStrangersSayLittle(t *testing.T) {
	g, _, _ := locked(t)
	h := serve(t, Options{}, admission.Options{Guard: g})
	c := healthv1.NewHealthClient(h.dial())
	if _, err := c.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.Check(t.Context(), &healthv1.HealthCheckRequest{Service: string(make([]byte, 100_000))})
	told(t, err, codes.ResourceExhausted, "")
}

// TestRefusedCallsLeaveNothing, also when they say that they have years.
func TestRefusedCallsLeaveNothing(t *testing.T) {
	g, _, _ := locked(t)
	h := serve(t, Options{}, admission.Options{Guard: g})
	r := h.raw()
	var answered atomic.Uint64
	go func() {
		for {
			f, err := r.ReadFrame()
			if err != nil {
				return
			}
			if _, reset := f.(*http2.RSTStreamFrame); reset || f.Header().Type == http2.FrameHeaders {
				answered.Add(1)
			}
		}
	}()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	id := uint32(1)
	flood := func(n int) {
		for range n / 50 {
			for range 50 {
				r.call(id, publishing, "grpc-timeout", "99999999H")
				id += 2
			}
			eventually(t, "all are refused", func() bool { return answered.Load() >= uint64(id/2) })
		}
	}
	flood(1000)
	before := heap()
	const calls = 5000
	flood(calls)
	if after := heap(); after > before+calls*300 { // each left 520 where its deadline lived on; a heap is not quiet either
		t.Errorf("%d bytes are left of each", (after-before)/calls)
	}
}

// TestShutdownEndsWhatWatches: a client that watches health, or holds reflection open, does not hold the router up.
func TestShutdownEndsWhatWatches(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	conn := h.dial()
	watch, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	reflect, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are there", func() bool { return h.s.Stats().Streams == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if _, err := reflect.Recv(); err == nil {
		t.Error("reflection goes on")
	}
}

// TestAnswersThatAreNotRead: also the answer of a call of one message is cut off in time.
func TestAnswersThatAreNotRead(t *testing.T) {
	h := serve(t, Options{WriteTimeout: 100 * time.Millisecond}, admission.Options{})
	large := &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 200<<10)}}
	if _, err := h.events().Publish(t.Context(), &millracev1.PublishRequest{Topic: "orders", Events: []*pb.CloudEvent{large}}); err != nil {
		t.Fatal(err)
	}
	r := h.raw()
	if err := r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	r.call(1, millracev1.Events_GetEvent_FullMethodName)
	if err := r.WriteData(1, true, prefixed(&millracev1.GetEventRequest{Topic: "orders", Position: &millracev1.Position{}})); err != nil {
		t.Fatal(err)
	}
	r.until("the call is reset", func(f http2.Frame) bool {
		x, ok := f.(*http2.RSTStreamFrame)
		return ok && x.StreamID == 1
	})
	if n := h.s.Stats().Dropped; n != 1 {
		t.Errorf("%d are counted", n)
	}
}

// TestPlainHTTPIsNotSpoken: who takes the address for one of HTTP/1.1 is not let wait.
func TestPlainHTTPIsNotSpoken(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	if res, err := c.Get("http://" + h.addr + "/"); err == nil {
		res.Body.Close()
		if res.StatusCode < 400 {
			t.Errorf("answered %s", res.Status)
		}
	}
}

// TestEmptyEventsAreCounted: millions of parts that are two bytes each are not decoded, compressed or not.
func TestEmptyEventsAreCounted(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	many := &millracev1.PublishRequest{Topic: "orders", Events: make([]*pb.CloudEvent, 500_000)}
	none := &pb.CloudEvent{}
	for i := range many.Events {
		many.Events[i] = none
	}
	var before, after runtime.MemStats
	for _, o := range [][]grpc.CallOption{nil, {grpc.UseCompressor(grpcgzip.Name)}} {
		c := h.events(grpc.WithDefaultCallOptions(o...))
		runtime.ReadMemStats(&before)
		_, err := c.Publish(t.Context(), many)
		runtime.ReadMemStats(&after)
		told(t, err, codes.ResourceExhausted, "")
		if n := after.TotalAlloc - before.TotalAlloc; n > 40<<20 { // the client's part and the bytes themselves; decoded they are 80 MB
			t.Errorf("%d MiB were taken for it", n>>20)
		}
	}
	h.publish(h.events(), 500)
}

// TestRefusedTopicStaysNamed: a request that is refused has still named the topic of those behind it.
func TestRefusedTopicStaysNamed(t *testing.T) {
	h := serve(t, Options{}, admission.Options{Bytes: 100 << 10})
	stream, err := h.events(grpc.WithDefaultCallOptions(grpc.UseCompressor(grpcgzip.Name))).PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	large := &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 200<<10)}} // there is no room for it once it is decompressed
	for _, r := range []*millracev1.PublishStreamRequest{{Topic: "orders", Events: some(1)}, {Topic: "other", Events: []*pb.CloudEvent{large}}, {Events: some(1)}} {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	for i, refused := range []bool{false, true, false} {
		if m, err := stream.Recv(); err != nil || (m.Error != nil) != refused {
			t.Fatal(i, m, err)
		}
	}
	if a, b := h.f.get(func() int { return len(h.f.topics["orders"]) }), h.f.get(func() int { return len(h.f.topics["other"]) }); a != 1 || b != 1 {
		t.Errorf("%d events are in orders, %d in other", a, b)
	}
}
