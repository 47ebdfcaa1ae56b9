package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A harness is a server on loopback over a fake.
type harness struct {
	t    *testing.T
	f    *fake
	s    *Server
	door *admission.Door
	addr string
}

// serve starts a server; o is filled up. It is shut down with the test, and nothing of it may be left then.
func serve(t *testing.T, o Options, door admission.Options) *harness {
	t.Helper()
	h := &harness{t: t, f: newFake("orders", "other")}
	var err error
	if h.door, err = admission.New(door); err != nil {
		t.Fatal(err)
	}
	o.Backend, o.Door = h.f, h.door
	if h.s, err = New(o); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	done := make(chan error, 1)
	go func() { done <- h.s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = h.s.Shutdown(ctx) // clients that a test left are cut off
		if err := <-done; err != nil {
			t.Error(err)
		}
		eventually(t, "readers are closed", func() bool { return h.f.get(func() int { return h.f.open }) == 0 })
	})
	return h
}

// bearer is a client's token.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearer) RequireTransportSecurity() bool { return false }

// dial connects a client.
func (h *harness) dial(options ...grpc.DialOption) *grpc.ClientConn {
	h.t.Helper()
	c, err := grpc.NewClient(h.addr, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

func (h *harness) events(options ...grpc.DialOption) millracev1.EventsClient {
	return millracev1.NewEventsClient(h.dial(options...))
}

// publish publishes n events to orders.
func (h *harness) publish(c millracev1.EventsClient, n int) []*millracev1.Published {
	h.t.Helper()
	out, err := c.Publish(h.t.Context(), &millracev1.PublishRequest{Topic: "orders", Events: some(n)})
	if err != nil {
		h.t.Fatal(err)
	}
	return out.Events
}

// some are n events.
func some(n int) []*pb.CloudEvent {
	out := make([]*pb.CloudEvent, n)
	for i := range out {
		out[i] = &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: fmt.Appendf(nil, `{"n":%d}`, i)},
			Attributes: map[string]*pb.CloudEventAttributeValue{"subject": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: fmt.Sprint("s", i%2)}}}}
	}
	return out
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); {
		if time.Now().After(end) {
			t.Fatal(what + ": not in a minute")
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// told checks how an error is told, and returns the details.
func told(t *testing.T, err error, code codes.Code, reason string) *status.Status {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != code {
		t.Fatalf("told %v; want %s", err, code)
	}
	if info := detail[*errdetails.ErrorInfo](st); reason != "" && (info == nil || info.Reason != reason || info.Domain != domain) {
		t.Fatalf("told %v with %v; want the reason %s", err, st.Details(), reason)
	}
	return st
}

func detail[T any](st *status.Status) (none T) {
	for _, d := range st.Details() {
		if x, ok := d.(T); ok {
			return x
		}
	}
	return none
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func TestPublishAndRead(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	published := h.publish(c, 600)
	if len(published) != 600 || published[599].Position.Offset != 599 || published[0].Id != "made-0" {
		t.Fatal(len(published), published[0])
	}
	in, err := c.Read(t.Context(), &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: "orders"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []*millracev1.Received
	for {
		m, err := in.Recv()
		if err != nil {
			if len(got) != 600 {
				t.Fatalf("%d events, then %v", len(got), err)
			}
			break
		}
		if len(m.Events) > batchEvents {
			t.Fatalf("%d events in a message", len(m.Events))
		}
		got = append(got, m.Events...)
	}
	last := got[599]
	if last.Cursor != "600" || last.Position.Offset != 599 || last.Event.Source != "/topics/orders" || string(last.Event.GetBinaryData()) != `{"n":599}` || last.RecordedTime.AsTime().Year() != 2026 {
		t.Fatal(last)
	}
}

// TestManyReaders: each has its own messages, whoever else is sent some at the same time, compressed or not.
func TestManyReaders(t *testing.T) {
	h := serve(t, Options{}, admission.Options{})
	c := h.events()
	h.publish(c, 500)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var o []grpc.CallOption
			if i%2 == 0 {
				o = append(o, grpc.UseCompressor(gzip.Name))
			}
			in, err := c.Read(t.Context(), &millracev1.ReadRequest{From: &millracev1.ReadRequest_Topic{Topic: "orders"}}, o...)
			next := 0
			for err == nil {
				var m *millracev1.ReadResponse
				if m, err = in.Recv(); err != nil {
					break
				}
				for _, e := range m.Events {
					if string(e.Event.GetBinaryData()) != fmt.Sprintf(`{"n":%d}`, next) || e.Position.GetOffset() != uint64(next) {
						t.Errorf("reader %d: %v at %d", i, e, next)
						return
					}
					next++
				}
			}
			if !errors.Is(err, io.EOF) || next != 500 {
				t.Errorf("reader %d: %d events, then %v", i, next, err)
			}
		})
	}
	wg.Wait()
}
