package main

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/grpcapi"
)

// grpcFace is where a router speaks gRPC.
type grpcFace struct {
	listen string // "": nowhere
	server *grpcapi.Server
	ln     net.Listener // nil once it is served, or if there is none
}

func grpcFlags(f *pflag.FlagSet, listen *string) {
	f.StringVar(listen, "grpc-listen", "", "speak gRPC too, at this `address`, such as 127.0.0.1:8085")
}

// A grpcBackend is the router as the gRPC face sees it; the interface wants its own type of reader.
type grpcBackend struct{ backend }

var _ grpcapi.Backend = grpcBackend{}

// OpenTopic opens a reader.
func (b grpcBackend) OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (grpcapi.Reader, error) {
	return b.backend.OpenTopic(ctx, topic, start, filter)
}

// OpenSubscription is the same over a subscription's outputs.
func (b grpcBackend) OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (grpcapi.Reader, error) {
	return b.backend.OpenSubscription(ctx, name, start, filter)
}

// openGRPC listens where gRPC is to be spoken; nothing is served until run.
func (r *router) openGRPC(ctx context.Context, b backend, m *metrics) (err error) {
	o := r.o
	if o.grpcListen == "" {
		return nil
	}
	g := grpcapi.Options{Backend: grpcBackend{b}, Door: r.door, Limits: o.edge.limits, Log: o.log, Insecure: o.insecure, Public: o.edge.admin != "",
		HeaderBytes: o.edge.server.HeaderBytes, ConnectTimeout: o.edge.server.HeaderTimeout, IdleTimeout: o.edge.server.IdleTimeout, WriteTimeout: o.edge.server.WriteTimeout, MessageTimeout: o.edge.server.BodyTimeout}
	if r.edge != nil {
		g.TLS = r.edge.ConfigOf("h2")
	}
	if r.grpc.server, err = grpcapi.New(g); err != nil {
		return err
	}
	if r.grpc.ln, err = listenAt(ctx, o.grpcListen); err != nil {
		return fmt.Errorf("--grpc-listen: %w", err)
	}
	r.grpc.listen = r.grpc.ln.Addr().String()
	m.grpc = r.grpc.server
	return nil
}

// serve speaks gRPC until shutdown.
func (g *grpcFace) serve() error {
	if g.server == nil {
		return nil
	}
	ln := g.ln
	g.ln = nil
	return g.server.Serve(ln)
}

// shutdown lets calls finish until ctx ends.
func (g *grpcFace) shutdown(ctx context.Context) error {
	if g.server == nil {
		return nil
	}
	return g.server.Shutdown(ctx)
}

// close closes what was opened and never served.
func (g *grpcFace) close() error {
	if g.ln == nil {
		return nil
	}
	return g.ln.Close()
}

// shown is the line of serve's beginning, "" without gRPC.
func (g *grpcFace) shown(secure bool) string {
	switch {
	case g.server == nil:
		return ""
	case strings.HasPrefix(g.listen, "/"):
		return fmt.Sprintf("grpc    %s%s\n", unixPrefix, g.listen)
	case secure:
		return fmt.Sprintf("grpc    %s, TLS\n", g.listen)
	}
	return fmt.Sprintf("grpc    %s\n", g.listen)
}

var (
	descGRPCCalls    = describe("grpc_calls_total", "gRPC calls by method and by the code that they ended with.", "method", "code")
	descGRPCStreams  = describe("grpc_streams", "Open gRPC streams.")
	descGRPCMessages = describe("grpc_messages_total", "Messages of gRPC calls, in and out.", "direction")
	descGRPCDropped  = describe("grpc_dropped_total", "gRPC streams that were ended because their client did not read.")
)

func (m *metrics) collectGRPC(out chan<- prometheus.Metric) {
	if m.grpc == nil {
		return
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	m.grpc.Calls(func(method, code string, n uint64) { count(descGRPCCalls, n, method, code) })
	s := m.grpc.Stats()
	out <- prometheus.MustNewConstMetric(descGRPCStreams, prometheus.GaugeValue, float64(s.Streams))
	count(descGRPCMessages, s.In, "in")
	count(descGRPCMessages, s.Out, "out")
	count(descGRPCDropped, s.Dropped)
}
