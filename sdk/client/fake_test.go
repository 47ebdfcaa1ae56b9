package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fake is a router of one topic, which is also the subscription "jobs" that is pulled. trouble, if set, is asked at every
// step whether it shall go wrong, with the name of the step: an error is answered, errCut breaks all connections.
type fake struct {
	millracev1.UnimplementedEventsServer
	millracev1.UnimplementedFunctionsServer
	millracev1.UnimplementedAdminServer

	troubles sync.Mutex
	trouble  func(step string) error

	mu       sync.Mutex
	changed  chan struct{}
	events   []*Event
	at       map[string]int // by id
	requests int
	repeats  int
	calls    map[string]int
	token    string
	pulled   []*job
	leases   int
	extends  int

	listener *listener
}

type job struct {
	lease   string
	held    string // by which stream
	attempt uint32
	acked   int
}

var errCut = errors.New("cut")

// listener keeps its connections, to break them.
type listener struct {
	*bufconn.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

// serve starts a router and a client of it.
func serve(t *testing.T, o Options, router ...grpc.ServerOption) (*fake, *Client) {
	t.Helper()
	f := &fake{changed: make(chan struct{}), at: map[string]int{}, calls: map[string]int{}, listener: &listener{Listener: bufconn.Listen(64 << 10)}}
	s := grpc.NewServer(router...)
	millracev1.RegisterEventsServer(s, f)
	millracev1.RegisterFunctionsServer(s, f)
	millracev1.RegisterAdminServer(s, f)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(f.listener)
	}()
	o.Plaintext = true
	o.Dial = append(o.Dial, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return f.listener.DialContext(ctx) }))
	c, err := New("passthrough:///router", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		s.Stop()
		<-served
	})
	return f, c
}

// step is where something may go wrong.
func (f *fake) step(name string) error {
	f.mu.Lock()
	f.calls[name]++
	f.mu.Unlock()
	err := f.wrong(name)
	if errors.Is(err, errCut) {
		f.listener.cut()
	}
	return err
}

func (f *fake) wrong(step string) error {
	f.troubles.Lock()
	trouble := f.trouble
	f.troubles.Unlock()
	if trouble == nil {
		return nil
	}
	return trouble(step)
}

// make says what goes wrong from now on; nil: nothing.
func (f *fake) make(trouble func(string) error) {
	f.troubles.Lock()
	defer f.troubles.Unlock()
	f.trouble = trouble
}

// stored is what is stored.
func (f *fake) stored() []*Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

func (f *fake) count(step string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[step]
}

func (f *fake) signal() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// store stores events all or none, as routers do: what has the id of one that is there is that.
func (f *fake) store(evs []*Event) ([]*millracev1.Published, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests++
	for i, e := range evs {
		if e.Type == "bad" {
			return nil, invalid(fmt.Sprintf("events[%d].type", i), "is bad")
		}
	}
	out := make([]*millracev1.Published, len(evs))
	for i, e := range evs {
		at, repeat := f.at[e.Id]
		if e.Id == "" || !repeat {
			at = len(f.events)
			f.events = append(f.events, e)
			f.pulled = append(f.pulled, &job{})
			f.at[e.Id] = at
		} else {
			f.repeats++
		}
		out[i] = &millracev1.Published{Id: e.Id, Position: &millracev1.Position{Offset: uint64(at)}}
	}
	f.signal()
	return out, nil
}

func invalid(field, what string) error {
	s, _ := status.New(codes.InvalidArgument, "the request is malformed").WithDetails(
		&errdetails.ErrorInfo{Reason: "INVALID", Domain: "millrace"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: what}}})
	return s.Err()
}

func busy(after time.Duration) error {
	s, _ := status.New(codes.ResourceExhausted, "too many requests").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	return s.Err()
}

func (f *fake) Publish(ctx context.Context, r *millracev1.PublishRequest) (*millracev1.PublishResponse, error) {
	if md, _ := metadata.FromIncomingContext(ctx); len(md["authorization"]) == 1 {
		f.mu.Lock()
		f.token = md["authorization"][0]
		f.mu.Unlock()
	}
	if err := f.step("publish"); err != nil {
		return nil, err
	}
	out, err := f.store(r.Events)
	if err == nil {
		err = f.step("published")
	}
	if err != nil {
		return nil, err
	}
	return &millracev1.PublishResponse{Events: out}, nil
}

func (f *fake) PublishStream(s millracev1.Events_PublishStreamServer) error {
	if err := f.step("open"); err != nil {
		return err
	}
	for n := uint64(1); ; n++ {
		r, err := s.Recv()
		if err != nil {
			return nil
		}
		if err := f.step("request"); err != nil {
			return err
		}
		answer := &millracev1.PublishStreamResponse{Sequence: n}
		if err = f.step("store"); err == nil {
			answer.Events, err = f.store(r.Events)
		}
		if err != nil {
			answer.Error = status.Convert(err).Proto()
		}
		if err := f.step("answer"); err != nil {
			return err
		}
		if err := s.Send(answer); err != nil {
			return err
		}
	}
}

func cursorOf(n int) string { return "after-" + strconv.Itoa(n) }

func (f *fake) Read(r *millracev1.ReadRequest, s millracev1.Events_ReadServer) error {
	if err := f.step("read"); err != nil {
		return err
	}
	f.mu.Lock()
	next := 0
	if r.Follow {
		next = len(f.events)
	}
	switch at := r.Start.GetStart().(type) {
	case *millracev1.Start_After:
		if _, err := fmt.Sscanf(at.After, "after-%d", &next); err != nil {
			f.mu.Unlock()
			return invalid("start.after", "is no cursor")
		}
	case *millracev1.Start_Point:
		if next = 0; at.Point == millracev1.StartPoint_START_POINT_LATEST {
			next = len(f.events)
		}
	}
	f.mu.Unlock()
	first := true
	for sent := uint64(0); ; {
		f.mu.Lock()
		batch := &millracev1.ReadResponse{}
		for next < len(f.events) && len(batch.Events) < 7 && (r.Limit == 0 || sent < r.Limit) {
			e := f.events[next]
			next++
			if r.Filter == "" || e.Type == r.Filter {
				batch.Events = append(batch.Events, &Received{Event: e, Position: &millracev1.Position{Offset: uint64(next - 1)}, RecordedTime: timestamppb.Now(), Cursor: cursorOf(next)})
				sent++
			}
		}
		batch.Cursor = cursorOf(next)
		changed, end := f.changed, next >= len(f.events)
		f.mu.Unlock()
		if len(batch.Events) > 0 || first || end && !r.Follow {
			first = false
			if err := s.Send(batch); err != nil {
				return err
			}
			if err := f.step("batch"); err != nil {
				return err
			}
		}
		if end && !r.Follow || r.Limit > 0 && sent >= r.Limit {
			return nil
		}
		if end {
			select {
			case <-changed:
			case <-s.Context().Done():
				return s.Context().Err()
			}
		}
	}
}

func (f *fake) Subscribe(s millracev1.Events_SubscribeServer) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	if err := f.step("subscribe"); err != nil {
		return err
	}
	if m.GetBegin().GetSubscription() != "jobs" {
		return status.Errorf(codes.NotFound, "no subscription %q", m.GetBegin().GetSubscription())
	}
	f.mu.Lock()
	f.leases++
	me := fmt.Sprintf("stream-%d", f.leases)
	credit := int(m.GetBegin().GetCredit())
	f.mu.Unlock()
	var write sync.Mutex
	say := func(m *millracev1.SubscribeResponse) error {
		write.Lock()
		defer write.Unlock()
		return s.Send(m)
	}
	if err := say(&millracev1.SubscribeResponse{Response: &millracev1.SubscribeResponse_Begun{Begun: &millracev1.SubscribeBegun{Credit: uint32(credit)}}}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(s.Context())
	defer func() { // what is unsettled is given back
		f.mu.Lock()
		for _, j := range f.pulled {
			if j.held == me {
				j.held, j.lease = "", ""
			}
		}
		f.signal()
		f.mu.Unlock()
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for n := uint64(0); ; {
			m, err := s.Recv()
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				cancel(err)
				return
			}
			switch m := m.Request.(type) {
			case *millracev1.SubscribeRequest_Credit:
				f.mu.Lock()
				credit += int(m.Credit.Add)
				f.signal()
				f.mu.Unlock()
			case *millracev1.SubscribeRequest_Settle:
				n++
				a := &millracev1.SubscribeSettled{Sequence: n}
				err := f.step("settle")
				if err == nil {
					a.Lost = f.settle(m.Settle)
					err = f.step("settled")
				}
				if status.Code(err) == codes.ResourceExhausted {
					a.Error = status.Convert(err).Proto()
				} else if err != nil {
					cancel(err)
					return
				}
				_ = say(&millracev1.SubscribeResponse{Response: &millracev1.SubscribeResponse_Settled{Settled: a}})
			}
		}
	}()
	for {
		f.mu.Lock()
		batch := &millracev1.SubscribeDeliveries{}
		for i, j := range f.pulled {
			if credit == 0 || len(batch.Deliveries) == 5 {
				break
			}
			if j.acked > 0 || j.lease != "" {
				continue
			}
			f.leases++
			j.lease, j.held = fmt.Sprintf("lease-%d", f.leases), me
			j.attempt++
			credit--
			batch.Deliveries = append(batch.Deliveries, &Delivery{Lease: j.lease, Id: "jobs:" + strconv.Itoa(i), Attempt: j.attempt, Event: f.events[i], Deadline: timestamppb.New(time.Now().Add(10 * time.Second))})
		}
		changed := f.changed
		f.mu.Unlock()
		if len(batch.Deliveries) > 0 {
			if err := f.step("deliver"); err != nil {
				cancel(nil)
				return err
			}
			if err := say(&millracev1.SubscribeResponse{Response: &millracev1.SubscribeResponse_Deliveries{Deliveries: batch}}); err != nil {
				cancel(nil)
				return err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return nil
		}
	}
}

// settle does what a router does with leases.
func (f *fake) settle(s *millracev1.Settling) (lost []*millracev1.Lost) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.signal()
	held := map[string]*job{}
	for _, j := range f.pulled {
		held[j.lease] = j
	}
	for _, lease := range s.Leases {
		j := held[lease]
		switch {
		case j == nil:
			lost = append(lost, &millracev1.Lost{Lease: lease, Reason: millracev1.LostReason_LOST_REASON_RETURNED})
		case j.acked > 0:
			lost = append(lost, &millracev1.Lost{Lease: lease, Reason: millracev1.LostReason_LOST_REASON_SETTLED})
		default:
			switch s.Verb.(type) {
			case *millracev1.Settling_Ack:
				j.acked++
				j.held = ""
			case *millracev1.Settling_Nack:
				j.lease, j.held = "", ""
			case *millracev1.Settling_Extend:
				f.extends++
			}
		}
	}
	return lost
}
