package grpcapi

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// attributed is a request of events with so many attributes each; one that protobuf has to decode has a field that nobody knows in front.
func attributed(events, attrs int, byProtobuf bool) []byte {
	of := func(field protowire.Number, of []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), of)
	}
	var ev []byte
	for i := range attrs {
		ev = append(ev, of(5, append(of(1, fmt.Appendf(nil, "%02x", i)), of(2, of(3, nil))...))...)
	}
	var wire []byte
	if byProtobuf {
		wire = of(9, nil)
	}
	for range events {
		wire = append(wire, of(2, ev)...)
	}
	return wire
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// What a request holds is about what is counted of it, also where protobuf's own decoder reads it.
func TestRequestsHoldWhatIsCounted(t *testing.T) {
	c := &codec{limits: event.Limits{}.WithDefaults()}
	for _, x := range []struct {
		name                    string
		requests, events, attrs int
		unknown                 bool
	}{
		{"small, read by hand", 64, 12, 120, false},
		{"small, by protobuf", 64, 12, 120, true},
		{"large, read by hand", 1, 1600, 120, false},
		{"large, by protobuf", 1, 1600, 120, true},
		{"empty events by protobuf", 16, 8000, 0, true},
	} {
		wire := attributed(x.events, x.attrs, x.unknown)
		before := heap()
		var all []*taken
		counted := 0
		for range x.requests {
			tk := new(taken)
			if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, tk); err != nil || c.refusal(tk) != nil {
				t.Fatal(x.name, err)
			}
			if (tk.asked != nil) != x.unknown {
				t.Fatal(x.name, "read otherwise")
			}
			counted += tk.holds()
			if tk.asked != nil {
				var err error
				if tk.events, err = eventsOf(tk.asked.GetEvents(), c.limits); err != nil {
					t.Fatal(err)
				}
			}
			all = append(all, tk)
		}
		held := heap() - before
		if float64(held) > 3*float64(counted) {
			t.Errorf("%s: holds %.1f times what is counted", x.name, float64(held)/float64(counted))
		}
		runtime.KeepAlive(all)
	}
}

// A reader that comes to take room when its call is over leaves none taken.
func TestNoRoomAfterTheEnd(t *testing.T) {
	guard, err := access.New(access.Options{Off: true})
	if err != nil {
		t.Fatal(err)
	}
	d, err := admission.New(admission.Options{Guard: guard, Bytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	cn, err := d.Enter(netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	se, err := cn.Open(context.Background(), access.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	p := &pipeline{s: &Server{o: Options{Limits: event.Limits{}.WithDefaults()}}, se: se, fewer: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()   // supervise has returned
	se.Close() // and call
	err = p.hold(ctx, 1<<20)
	if used, _, _ := d.InFlight(); used != 0 {
		t.Errorf("%d bytes are held of a call that is over (%v)", used, err)
	}
}

// A request of more parts than a batch may have is refused before it is decoded, in whichever form it comes.
func TestPartsAreCountedInEveryForm(t *testing.T) {
	c := &codec{limits: event.Limits{}.WithDefaults()}
	for _, unknown := range []bool{true, false} {
		wire := attributed(10_000, 128, unknown)
		before := heap()
		tk := new(taken)
		if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, tk); err != nil {
			t.Fatal(err)
		}
		why := c.refusal(tk)
		held := heap() - before
		if why == nil {
			t.Errorf("decoded; %d MiB before any room is asked for", held>>20)
		}
		runtime.KeepAlive(tk)
	}
}

// A large message that waits for its sender's rate is counted.
func TestWaitingForARateIsCounted(t *testing.T) {
	p, err := access.ParsePolicy("policy.yaml", []byte("version: 1\nroles:\n  slow:\n    - {allow: [publish], topics: [\"orders\"]}\nlimits:\n  slow: {rate: 1/h, burst: 2}\n"), nil, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	g, err := access.New(access.Options{Token: "the-token", Policy: p, Keys: &keyring{keys: map[string]access.Key{}}})
	if err != nil {
		t.Fatal(err)
	}
	_, text, err := g.CreateKey(t.Context(), nil, access.Key{Name: "slow", Roles: []string{"slow"}})
	if err != nil {
		t.Fatal(err)
	}
	h := serve(t, Options{}, admission.Options{Guard: g})
	stream, err := h.events(grpc.WithPerRPCCredentials(bearer(text))).PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := stream.Send(&millracev1.PublishStreamRequest{Topic: "orders", Events: []*pb.CloudEvent{{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 900<<10)}}}}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if m, err := stream.Recv(); err != nil || m.Error != nil {
			t.Fatal(m, err)
		}
	}
	eventually(t, "the third is read", func() bool { return h.s.Stats().In == 3 })
	eventually(t, "what waits is counted", func() bool { used, _, _ := h.door.InFlight(); return used >= 900<<10-largeMessage })
}
