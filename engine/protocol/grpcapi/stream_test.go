package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// TestStreamIsCommittedTogether: what comes while one commit runs is stored by the next, answered in its order; a request
// at fault is answered so, those beside it are stored, and the stream goes on.
func TestStreamIsCommittedTogether(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	stream, err := h.events().PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	say := func(topic string, evs ...*pb.CloudEvent) {
		t.Helper()
		if err := stream.Send(&millracev1.PublishStreamRequest{Topic: topic, Events: evs}); err != nil {
			t.Fatal(err)
		}
	}
	hold := make(chan struct{})
	h.f.change(func() { h.f.hold = hold })
	say("orders", some(2)...) // is stored alone, and that takes until all others are there
	eventually(t, "the first is taken", func() bool { return h.s.Stats().In == 1 })
	for range 20 {
		say("", some(3)...)
	}
	eventually(t, "all are taken", func() bool { return h.s.Stats().In == 21 })
	close(hold)
	next := uint64(0)
	for i := range 21 {
		m, err := stream.Recv()
		if err != nil || m.Sequence != uint64(i+1) || m.Error != nil {
			t.Fatal(m, err)
		}
		for _, p := range m.Events {
			if p.Position.Offset != next || p.Id != fmt.Sprint("made-", next) {
				t.Fatalf("request %d: %v; want offset %d", i, p, next)
			}
			next++
		}
	}
	// The first has a commit of its own, and the one whose turn came beside it may have.
	if n := h.f.get(func() int { return h.f.commits }); n > 3 {
		t.Errorf("%d commits of 21 requests", n)
	}

	hold = make(chan struct{})
	h.f.change(func() { h.f.hold = hold })
	say("", some(1)...)
	say("", &pb.CloudEvent{SpecVersion: "1.0"})
	say("")
	say("nowhere", some(1)...)
	say("other", some(1)...)
	say("orders", &pb.CloudEvent{Type: "a\x00"})
	say("", some(1)...)
	eventually(t, "all are taken", func() bool { return h.s.Stats().In == 28 })
	close(hold)
	for _, want := range []codes.Code{0, codes.InvalidArgument, codes.InvalidArgument, codes.NotFound, 0, codes.InvalidArgument, 0} {
		m, err := stream.Recv()
		if err != nil || m.Error.GetCode() != int32(want) || (m.Error == nil) != (len(m.Events) == 1) {
			t.Fatalf("%v, %v; want %s", m, err, want)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// stalled is a server of small limits that stores nothing before release, and a stream to it.
func stalled(t *testing.T) (h *harness, stream millracev1.Events_PublishStreamClient, release func()) {
	t.Helper()
	h = serve(t, Options{Limits: event.Limits{Body: 64 << 10}}, admission.Options{Bytes: 1 << 20})
	hold := make(chan struct{})
	h.f.change(func() { h.f.hold = hold })
	release = sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release) // before the server's: it waits for what is held
	stream, err := h.events().PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h, stream, release
}

// TestStreamHoldsSoMuch: what a stream has not been answered is bounded, in requests and in bytes.
func TestStreamHoldsSoMuch(t *testing.T) {
	h, stream, release := stalled(t)
	large := &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 20<<10)}}
	go func() {
		for range 20 {
			if stream.Send(&millracev1.PublishStreamRequest{Topic: "orders", Events: []*pb.CloudEvent{large}}) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	eventually(t, "some wait", func() bool { used, _, _ := h.door.InFlight(); return used > 30<<10 })
	if used, _, _ := h.door.InFlight(); used > 64<<10+readAhead+2*21<<10 { // read ahead
		t.Errorf("%d bytes are held", used)
	}
	release()
	for i := range 20 {
		if m, err := stream.Recv(); err != nil || m.Error != nil || m.Sequence != uint64(i+1) {
			t.Fatal(i, m, err)
		}
	}
	eventually(t, "the room is given back", func() bool { used, _, _ := h.door.InFlight(); return used == 0 })
}

// TestSmallEventsAreCounted: events of two bytes take a hundred times that, and count as much.
func TestSmallEventsAreCounted(t *testing.T) {
	h, stream, release := stalled(t)
	const requests, events = 20, 200 // 400 bytes each
	many := make([]*pb.CloudEvent, events)
	for i := range many {
		many[i] = &pb.CloudEvent{}
	}
	for range requests {
		if err := stream.Send(&millracev1.PublishStreamRequest{Topic: "orders", Events: many}); err != nil {
			t.Fatal(err)
		}
	}
	least := events * int(unsafe.Sizeof(event.Event{}))
	eventually(t, "one takes its room", func() bool { used, _, _ := h.door.InFlight(); return used > int64(least-largeMessage) })
	if used, _, _ := h.door.InFlight(); used > 64<<10 {
		t.Errorf("%d bytes are held", used)
	}
	release()
	for i := range requests {
		if m, err := stream.Recv(); err != nil || m.Error != nil || m.Sequence != uint64(i+1) || len(m.Events) != events {
			t.Fatal(i, m, err)
		}
	}
	eventually(t, "the room is given back", func() bool { used, _, _ := h.door.InFlight(); return used == 0 })
}

// begin opens a stream of events.
func begin(t *testing.T, c millracev1.EventsClient, b *millracev1.SubscribeBegin) (millracev1.Events_SubscribeClient, *millracev1.SubscribeBegun) {
	t.Helper()
	stream, err := c.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Begin{Begin: b}}) // it may have ended already: Recv says why
	m, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return stream, m.GetBegun()
}

func grant(n uint32) *millracev1.SubscribeRequest {
	return &millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Credit{Credit: &millracev1.SubscribeCredit{Add: n}}}
}

func settle(s *millracev1.Settling) *millracev1.SubscribeRequest {
	return &millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Settle{Settle: s}}
}

func ack(leases ...string) *millracev1.Settling {
	return &millracev1.Settling{Leases: leases, Verb: &millracev1.Settling_Ack{Ack: &millracev1.Ack{}}}
}

func ptr(n uint32) *uint32 { return &n }

// deliveries are the next n.
func deliveries(t *testing.T, stream millracev1.Events_SubscribeClient, n int) (out []*millracev1.Delivery) {
	t.Helper()
	for len(out) < n {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetDeliveries() == nil {
			t.Fatalf("%v; want deliveries", m)
		}
		out = append(out, m.GetDeliveries().Deliveries...)
	}
	if len(out) != n {
		t.Fatalf("%d deliveries; want %d", len(out), n)
	}
	return out
}

func TestSubscribePulls(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	h.publish(c, 10)
	stream, begun := begin(t, c, &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "workers"}, Credit: ptr(4)})
	if begun.Credit != 4 || begun.Cursor != "" {
		t.Fatal(begun)
	}
	got := deliveries(t, stream, 4)
	if got[3].Attempt != 1 || got[3].Position.Offset != 3 || got[3].Id != "delivery-3" || string(got[3].Event.GetBinaryData()) != `{"n":3}` || got[3].Deadline.AsTime().Before(time.Now()) {
		t.Fatal(got[3])
	}
	for i, x := range []struct {
		ask  *millracev1.Settling
		lost []millracev1.LostReason
		code codes.Code
	}{
		{ack(got[0].Lease, "invented"), []millracev1.LostReason{millracev1.LostReason_LOST_REASON_UNKNOWN}, 0},
		{ack(got[0].Lease), []millracev1.LostReason{millracev1.LostReason_LOST_REASON_SETTLED}, 0},
		{ack(), nil, codes.InvalidArgument},
		{ack(make([]string, 10_001)...), nil, codes.InvalidArgument},
		{&millracev1.Settling{Leases: []string{got[1].Lease}}, nil, codes.InvalidArgument},
		{nil, nil, codes.InvalidArgument},
		{&millracev1.Settling{Leases: []string{got[1].Lease}, Verb: &millracev1.Settling_Nack{Nack: &millracev1.Nack{Delay: durationpb.New(-time.Second)}}}, nil, codes.InvalidArgument},
		{&millracev1.Settling{Leases: []string{got[1].Lease}, Verb: &millracev1.Settling_Extend{Extend: &millracev1.Extend{Deadline: durationpb.New(time.Second)}}}, nil, codes.InvalidArgument},
		{&millracev1.Settling{Leases: []string{got[1].Lease}, Verb: &millracev1.Settling_Ack{Ack: &millracev1.Ack{Reply: &millracev1.Reply{Status: 99}}}}, nil, codes.InvalidArgument},
		{&millracev1.Settling{Leases: []string{got[1].Lease}, Verb: &millracev1.Settling_Extend{Extend: &millracev1.Extend{Deadline: durationpb.New(time.Minute)}}}, nil, 0},
	} {
		if err := stream.Send(settle(x.ask)); err != nil {
			t.Fatal(err)
		}
		m, err := stream.Recv()
		s := m.GetSettled()
		if err != nil || s == nil || s.Sequence != uint64(i+1) || s.Error.GetCode() != int32(x.code) {
			t.Fatalf("settle %d: %v, %v", i, m, err)
		}
		var lost []millracev1.LostReason
		for _, l := range s.Lost {
			lost = append(lost, l.Reason)
		}
		if !slices.Equal(lost, x.lost) {
			t.Errorf("settle %d: %v", i, lost)
		}
	}
	if err := stream.Send(grant(3)); err != nil { // and no delivery came before it
		t.Fatal(err)
	}
	deliveries(t, stream, 3)
	if err := stream.CloseSend(); err != nil { // it settles no more, and still reads
		t.Fatal(err)
	}
	other, begun := begin(t, c, &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "workers"}})
	if begun.Credit != defaultCredit {
		t.Fatal(begun)
	}
	deliveries(t, other, 3)
}

// TestUnsettledIsGivenBack when the stream ends, however it does.
func TestUnsettledIsGivenBack(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	h.publish(c, 5)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := c.Subscribe(ctx)
	if err == nil {
		err = stream.Send(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Begin{Begin: &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "workers"}}}})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	got := deliveries(t, stream, 5)
	if err := stream.Send(settle(ack(got[0].Lease))); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	eventually(t, "four are given back", func() bool { return h.f.get(func() int { return len(h.f.due) }) == 4 })
	if n := h.f.get(func() int {
		n := 0
		for _, is := range h.f.leased {
			if is == "nacked" {
				n++
			}
		}
		return n
	}); n != 4 {
		t.Errorf("%d of them as what was delivered", n)
	}
}

func TestSubscribeReads(t *testing.T) {
	h := serve(t, Options{Heartbeat: 50 * time.Millisecond}, admission.Options{})
	c := h.events()
	for _, from := range []*millracev1.SubscribeBegin{{From: &millracev1.SubscribeBegin_Topic{Topic: "orders"}}, {From: &millracev1.SubscribeBegin_Subscription{Subscription: "out"}}} {
		from.Credit = ptr(0)
		stream, begun := begin(t, c, from)
		at := h.f.get(func() int { return len(h.f.topics["orders"]) })
		if begun.Credit != 0 || begun.Cursor != fmt.Sprint(at) {
			t.Fatal(begun)
		}
		h.publish(c, 10)
		var got []*millracev1.Received
		for _, n := range []uint32{3, 2} {
			if err := stream.Send(grant(n)); err != nil {
				t.Fatal(err)
			}
			for left := int(n); left > 0; {
				m, err := stream.Recv()
				if err != nil || m.GetEvents() == nil {
					t.Fatal(m, err)
				}
				got = append(got, m.GetEvents().Events...)
				left -= len(m.GetEvents().Events)
			}
		}
		if len(got) != 5 || got[4].Position.Offset != uint64(at+4) {
			t.Fatal(len(got), got[len(got)-1])
		}
		if err := stream.Send(settle(ack("x"))); err != nil { // which no stream of a reader takes
			t.Fatal(err)
		}
		if m, err := stream.Recv(); err != nil || m.GetSettled().GetError().GetCode() != int32(codes.InvalidArgument) {
			t.Fatal(m, err)
		}
		// After its last cursor another goes on, and hears from time to time how far a filter is.
		next, _ := begin(t, c, &millracev1.SubscribeBegin{From: from.From, Start: &millracev1.Start{Start: &millracev1.Start_After{After: got[4].Cursor}}, Filter: "s1"})
		m, err := next.Recv()
		if err != nil || m.GetEvents().GetEvents()[0].Position.Offset != uint64(at+5) {
			t.Fatal(m, err)
		}
		for m.GetHeartbeat() == nil {
			if m, err = next.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		if m.GetHeartbeat().Cursor != fmt.Sprint(at+10) {
			t.Fatal(m)
		}
	}
}

// TestWrongWords: what a client may not say on a stream ends it, with the field's name.
func TestWrongWords(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	workers := &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "workers"}}
	first := func(b *millracev1.SubscribeBegin) []*millracev1.SubscribeRequest {
		return []*millracev1.SubscribeRequest{{Request: &millracev1.SubscribeRequest_Begin{Begin: b}}}
	}
	for name, x := range map[string]struct {
		say    []*millracev1.SubscribeRequest
		code   codes.Code
		reason string
	}{
		"nothing":            {nil, codes.InvalidArgument, "INVALID"},
		"empty":              {[]*millracev1.SubscribeRequest{{}}, codes.InvalidArgument, "INVALID"},
		"credit first":       {[]*millracev1.SubscribeRequest{grant(1)}, codes.InvalidArgument, "INVALID"},
		"settle first":       {[]*millracev1.SubscribeRequest{settle(ack("x"))}, codes.InvalidArgument, "INVALID"},
		"begin twice":        {append(first(workers), first(workers)...), codes.InvalidArgument, "INVALID"},
		"empty later":        {append(first(workers), &millracev1.SubscribeRequest{}), codes.InvalidArgument, "INVALID"},
		"nothing in begin":   {first(&millracev1.SubscribeBegin{}), codes.InvalidArgument, "INVALID"},
		"too much credit":    {first(&millracev1.SubscribeBegin{From: workers.From, Credit: ptr(10_001)}), codes.InvalidArgument, "INVALID"},
		"endless credit":     {append(first(workers), grant(1<<32-1)), codes.InvalidArgument, "INVALID"},
		"credit that adds":   {append(first(workers), grant(9_900), grant(1)), codes.InvalidArgument, "INVALID"},
		"unknown":            {first(&millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "none"}}), codes.NotFound, "NOT_FOUND"},
		"no name":            {first(&millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Topic{Topic: "../x"}}), codes.InvalidArgument, "INVALID"},
		"a pull's start":     {first(&millracev1.SubscribeBegin{From: workers.From, Start: &millracev1.Start{}}), codes.InvalidArgument, "INVALID"},
		"a cursor of no one": {first(&millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Topic{Topic: "orders"}, Start: &millracev1.Start{Start: &millracev1.Start_After{After: "x"}}}), codes.InvalidArgument, "INVALID"},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := c.Subscribe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range x.say {
				_ = stream.Send(m) // it may have ended already
			}
			if len(x.say) == 0 {
				_ = stream.CloseSend()
			}
			for {
				if _, err := stream.Recv(); err != nil {
					told(t, err, x.code, x.reason)
					return
				}
			}
		})
	}
}

// TestOvertaken: a cursor that the ring has overtaken is out of range, and so is a reader in the midst of it.
func TestOvertaken(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	h.publish(c, 10)
	h.f.change(func() { h.f.head = 5 })
	in, err := c.Read(t.Context(), &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: "orders"}, Start: &millracev1.Start{Start: &millracev1.Start_After{After: "2"}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = in.Recv()
	if st := told(t, err, codes.OutOfRange, "GONE"); st.Message() != "cursor 2: gone: the earliest is 5" {
		t.Error(st.Message())
	}
}

// TestReadFollows: a reader that follows hears a cursor before anything comes, what comes at once, and the cursor when
// nothing does; with a limit it ends there.
func TestReadFollows(t *testing.T) {
	h := serve(t, Options{Heartbeat: 50 * time.Millisecond}, admission.Options{})
	c := h.events()
	h.publish(c, 3)
	in, err := c.Read(t.Context(), &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: "orders"}, Follow: true, Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := in.Recv(); err != nil || len(m.Events) != 0 || m.Cursor != "3" {
		t.Fatal(m, err)
	}
	if m, err := in.Recv(); err != nil || len(m.Events) != 0 || m.Cursor != "3" { // a heartbeat
		t.Fatal(m, err)
	}
	h.publish(c, 5)
	for got := 0; got < 2; {
		m, err := in.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got += len(m.Events)
	}
	if m, err := in.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(m, err)
	}
}

// TestDrain: what was taken is answered, streams end with UNAVAILABLE, leases stay as they are, and nothing new is taken.
func TestDrain(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	conn := h.dial()
	c := millracev1.NewEventsClient(conn)
	h.publish(c, 3)
	sub, _ := begin(t, c, &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "workers"}})
	deliveries(t, sub, 3)
	in, err := c.Read(t.Context(), &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: "orders"}, Follow: true})
	if err == nil {
		_, err = in.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	before := h.s.Stats().In
	hold := make(chan struct{})
	h.f.change(func() { h.f.hold = hold })
	out, err := c.PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := out.Send(&millracev1.PublishStreamRequest{Topic: "orders", Events: some(1)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are taken", func() bool { return h.s.Stats().In == before+5 })
	silent, err := c.Subscribe(t.Context()) // says nothing at all
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "four streams", func() bool { return h.s.Stats().Streams == 4 })
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		done <- h.s.Shutdown(ctx)
	}()
	for _, s := range []interface {
		grpc.ClientStream
	}{sub, in, silent} {
		for {
			if err := s.RecvMsg(new(millracev1.SubscribeResponse)); err != nil {
				told(t, err, codes.Unavailable, "UNAVAILABLE")
				break
			}
		}
	}
	close(hold)
	for i := range 5 {
		if m, err := out.Recv(); err != nil || m.Error != nil || m.Sequence != uint64(i+1) {
			t.Fatal(i, m, err)
		}
	}
	_, err = out.Recv()
	told(t, err, codes.Unavailable, "UNAVAILABLE")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := h.f.get(func() int { return len(h.f.due) }); n != 0 {
		t.Errorf("%d leases were given back: after a restart they can be settled", n)
	}
	if _, err := c.Publish(t.Context(), &millracev1.PublishRequest{Topic: "orders", Events: some(1)}); err == nil {
		t.Error("a drained server takes events")
	}
}

// TestSlowClient: a client that does not read is dropped, and what it was not sent is not lost.
func TestSlowClient(t *testing.T) {
	h := serve(t, Options{WriteTimeout: 100 * time.Millisecond}, admission.Options{})
	c := h.events(grpc.WithInitialWindowSize(64<<10), grpc.WithStaticStreamWindowSize(64<<10))
	large := &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 200<<10)}}
	if _, err := c.Publish(t.Context(), &millracev1.PublishRequest{Topic: "orders", Events: []*pb.CloudEvent{large, large, large, large, large}}); err != nil {
		t.Fatal(err)
	}
	begin(t, c, &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: "workers"}})
	eventually(t, "the stream is dropped", func() bool { return h.s.Stats().Dropped == 1 && h.s.Stats().Streams == 0 })
	eventually(t, "all deliveries are due again", func() bool { return h.f.get(func() int { return len(h.f.due) }) == 5 })
	if _, err := c.Read(t.Context(), &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: "orders"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reader is dropped", func() bool { return h.s.Stats().Dropped == 2 && h.f.get(func() int { return h.f.open }) == 0 })
}
