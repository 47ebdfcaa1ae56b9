package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/sdk/client/millracev1"
)

// What the gRPC rows use: streams, each over a connection of its own.
const (
	grpcInFlight  = 4                                // requests of a publishing stream that are not answered yet
	grpcConsumers = 16                               // streams that take deliveries
	grpcCredit    = 2000                             // of each
	grpcWrite     = batchEvents * eventBytes * 5 / 4 // bytes that are written at once: a batch, as over HTTP
)

// encoded passes messages on as the bytes that they are, so that the generator takes nothing apart that it does not use.
type encoded struct{}

func (encoded) Name() string { return "proto" }

func (encoded) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (encoded) Unmarshal(b mem.BufferSlice, v any) error {
	*v.(*[]byte) = b.Materialize()
	return nil
}

// openStream opens a stream of a router on a connection of its own.
func openStream(ctx context.Context, addr, method string) (stream grpc.ClientStream, done func(), err error) {
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithWriteBufferSize(grpcWrite), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(encoded{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	if stream, err = c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method); err != nil {
		cancel()
		return nil, nil, errors.Join(err, c.Close())
	}
	return stream, func() {
		cancel()
		_ = c.Close()
	}, nil
}

// grpcRouter is a router that speaks gRPC as well.
type grpcRouter struct {
	*routerProcess
	grpc string // host:port
}

func (l *lab) grpcRouter(ctx context.Context, calls ...[2]string) (*grpcRouter, error) {
	l.routers++
	name := fmt.Sprintf("router-%d", l.routers)
	args := []string{"serve", "--data", filepath.Join(l.dir, name), "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"}
	if l.o.profile != "" {
		args = append(args, "--cpuprofile", filepath.Join(l.o.profile, name+".pprof"))
	}
	r := &grpcRouter{}
	c, err := l.start("the router over gRPC", func(line string) (string, bool) {
		kind, rest, _ := strings.Cut(line, " ")
		if kind == "grpc" {
			r.grpc = strings.TrimSpace(rest)
		}
		return routerListensAt(line)
	}, l.binary, args...)
	if err != nil {
		return nil, err
	}
	r.routerProcess = &routerProcess{child: c, http: &http.Client{Timeout: time.Minute}}
	for _, c := range calls {
		if err := r.call(ctx, "POST", c[0], "application/json", []byte(c[1]), nil); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// measureGRPCBatch is measureBatch over gRPC: as many streams as there connections, the same data in as large batches.
func measureGRPCBatch() measurement {
	var r *grpcRouter
	return measurement{name: fmt.Sprintf("durable batches of %d over gRPC, %d streams", batchEvents, batchConnections), gives: []string{"grpc-batch", "grpc-batch-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) (err error) {
			if r == nil {
				if r, err = l.grpcRouter(ctx, [2]string{"/v1/topics", `{"name":"accepted"}`}); err != nil {
					return err
				}
			}
			p, err := closed(ctx, batchConnections, window{l.length(), r.cpu}, func(i int) (worker, error) {
				in := &millracev1.PublishStreamRequest{Topic: "accepted"}
				for j := range batchEvents {
					in.Events = append(in.Events, &pb.CloudEvent{Type: "order.created", Data: &pb.CloudEvent_BinaryData{BinaryData: eventData(i*batchEvents + j)},
						Attributes: map[string]*pb.CloudEventAttributeValue{"datacontenttype": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "application/json"}}}})
				}
				request, err := proto.Marshal(in)
				if err != nil {
					return worker{}, err
				}
				stream, done, err := openStream(ctx, r.grpc, millracev1.Events_PublishStream_FullMethodName)
				if err != nil {
					return worker{}, err
				}
				waiting := 0
				return worker{close: done, do: func() error {
					for ; waiting < grpcInFlight; waiting++ {
						if err := stream.SendMsg(request); err != nil {
							return err
						}
					}
					var answer []byte
					if err := stream.RecvMsg(&answer); err != nil {
						return err
					}
					waiting--
					stored, failed := 0, false
					each(answer, func(field protowire.Number, _ []byte) {
						switch field {
						case 2:
							stored++
						case 3:
							failed = true
						}
					})
					if failed || stored != batchEvents {
						return fmt.Errorf("the router answered %.200q", answer)
					}
					return nil
				}}, nil
			})
			put("grpc-batch", p.perSecond*batchEvents)
			put("grpc-batch-cpu", p.cpu/batchEvents)
			return errors.Join(err, r.gone())
		}}
}

// each calls f with the fields of an encoded message that hold bytes.
func each(b []byte, f func(field protowire.Number, v []byte)) {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		size := protowire.ConsumeFieldValue(field, kind, b[n:])
		if size < 0 {
			return
		}
		if kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[n:])
			f(field, v)
		}
		b = b[n+size:]
	}
}

// measureGRPCSubscribe measures how fast streams empty a pull subscription: what is counted is acknowledged, and that is
// durable.
func measureGRPCSubscribe() measurement {
	var r *grpcRouter
	return measurement{name: fmt.Sprintf("deliveries and acks over gRPC, %d streams", grpcConsumers), gives: []string{"grpc-subscribe", "grpc-subscribe-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) (err error) {
			if r == nil {
				if r, err = l.grpcRouter(ctx, [2]string{"/v1/topics", `{"name":"pulled"}`}, [2]string{"/v1/subscriptions", `{"name":"pullers","topic":"pulled","deliver":{"pull":{}}}`}); err != nil {
					return err
				}
				if err := r.fill(ctx, "pulled", l.pullEvents()); err != nil {
					return err
				}
			}
			if err := r.call(ctx, "POST", "/v1/subscriptions/pullers/seek", "application/json", []byte(`{"to":"earliest"}`), nil); err != nil {
				return err
			}
			used, n := r.cpu(), l.pullEvents()
			perSecond, err := drained(ctx, grpcConsumers, n, func(int) (drainer, error) { return newGRPCPuller(ctx, r.grpc, "pullers") })
			put("grpc-subscribe", perSecond)
			put("grpc-subscribe-cpu", (r.cpu()-used)*1e6/float64(n))
			return errors.Join(err, r.gone())
		}}
}

// grpcPuller acknowledges each message of deliveries as it comes.
type grpcPuller struct {
	stream grpc.ClientStream
	done   func()
	heard  chan []byte // closed with the stream
	err    error       // of it
	asked  []int       // leases of the settles that are not answered yet
}

func newGRPCPuller(ctx context.Context, addr, name string) (*grpcPuller, error) {
	stream, done, err := openStream(ctx, addr, millracev1.Events_Subscribe_FullMethodName)
	if err != nil {
		return nil, err
	}
	credit := uint32(grpcCredit)
	begin, err := proto.Marshal(&millracev1.SubscribeRequest{Request: &millracev1.SubscribeRequest_Begin{Begin: &millracev1.SubscribeBegin{From: &millracev1.SubscribeBegin_Subscription{Subscription: name}, Credit: &credit}}})
	if err == nil {
		err = stream.SendMsg(begin)
	}
	if err != nil {
		done()
		return nil, err
	}
	p := &grpcPuller{stream: stream, done: done, heard: make(chan []byte, 16)}
	go func() {
		defer close(p.heard)
		for {
			var m []byte
			if p.err = stream.RecvMsg(&m); p.err != nil {
				return
			}
			select {
			case p.heard <- m:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	return p, nil
}

func (p *grpcPuller) close() { p.done() }

// batch works on one message: deliveries are acknowledged, and counted once that is answered.
func (p *grpcPuller) batch() (int, error) {
	var m []byte
	select {
	case m = <-p.heard:
	case <-time.After(200 * time.Millisecond): // others may have taken the rest
		return 0, nil
	}
	if m == nil {
		if p.err == nil || errors.Is(p.err, io.EOF) {
			p.err = errors.New("the stream ended")
		}
		return 0, p.err
	}
	acked := 0
	var err error
	each(m, func(kind protowire.Number, m []byte) {
		switch kind {
		case 3:
			err = p.ack(m)
		case 4:
			each(m, func(field protowire.Number, v []byte) { err = fmt.Errorf("acknowledging: %.200q", v) })
			acked, p.asked = p.asked[0], p.asked[1:]
		}
	})
	return acked, err
}

// ack acknowledges a message's deliveries and grants as many more.
func (p *grpcPuller) ack(deliveries []byte) error {
	settle := &millracev1.Settling{Verb: &millracev1.Settling_Ack{Ack: &millracev1.Ack{}}}
	each(deliveries, func(_ protowire.Number, delivery []byte) {
		each(delivery, func(field protowire.Number, v []byte) {
			if field == 1 {
				settle.Leases = append(settle.Leases, string(v))
			}
		})
	})
	for _, in := range []*millracev1.SubscribeRequest{{Request: &millracev1.SubscribeRequest_Settle{Settle: settle}},
		{Request: &millracev1.SubscribeRequest_Credit{Credit: &millracev1.SubscribeCredit{Add: uint32(len(settle.Leases))}}}} {
		b, err := proto.Marshal(in)
		if err == nil {
			err = p.stream.SendMsg(b)
		}
		if err != nil {
			return err
		}
	}
	p.asked = append(p.asked, len(settle.Leases))
	return nil
}

func grpcMeasurements() []measurement {
	return []measurement{measureGRPCBatch(), measureGRPCSubscribe()}
}

func grpcRows() []row {
	return []row{
		{key: "grpc-batch", group: "grpc", name: fmt.Sprintf("batches of %d over gRPC / over HTTP, bytes of events", batchEvents), values: []string{"grpc-batch", "batch"}, figure: value("grpc-batch"), limit: value("batch"),
			show: rate, floor: 0.8, aim: 1, note: fmt.Sprintf("Client-streaming, %d streams with %d requests on the way each; HTTP: as many connections. Every batch durable before it is answered.", batchConnections, grpcInFlight)},
		{key: "grpc-subscribe", group: "grpc", name: "deliveries over gRPC, each acknowledged durably / floor", values: []string{"grpc-subscribe"}, figure: value("grpc-subscribe"), limit: constant(50_000),
			show: rate, ratio: times, floor: 1, note: fmt.Sprintf("A backlog is emptied (-backlog/5 events) by %d streams that acknowledge each message.", grpcConsumers)},
		{key: "grpc-cpu", group: "grpc", name: "the router's CPU for an event of a batch over gRPC / over HTTP", values: []string{"grpc-batch-cpu", "batch-cpu"}, figure: value("grpc-batch-cpu"), limit: value("batch-cpu"),
			show: micros, ratio: times, lower: true},
	}
}
