package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // what grpc offers for compression registers itself
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
)

// A Server speaks gRPC. Its methods may be called from several goroutines.
type Server struct {
	o        Options
	grpc     *grpc.Server
	http     *http.Server // below it
	health   *health.Server
	draining context.Context // ends when the server takes no new work
	drain    context.CancelFunc
	detached sync.WaitGroup // what reads streams: it ends after their calls, since to end a read is to tell gRPC's own status

	codec   *codec
	singles map[string]bool // methods of one message
	calls   calls
	open    atomic.Int64
	in, out atomic.Uint64
	dropped atomic.Uint64
}

// New returns a server.
func New(o Options) (*Server, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("grpcapi: %w", err)
	}
	s := &Server{o: o, health: health.NewServer(), singles: map[string]bool{}, codec: &codec{CodecV2: encoding.GetCodecV2("proto"), limits: o.Limits}}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.ForceServerCodecV2(s.codec),
		grpc.StreamInterceptor(s.stream),
		grpc.StatsHandler(takes{}),
		grpc.MaxRecvMsgSize(o.Limits.Body),
		grpc.WaitForHandlers(true),
	)
	s.http = s.serving()
	s.register()
	reflectionv1.RegisterServerReflectionServer(s.grpc, reflection.NewServerV1(reflection.ServerOptions{Services: s.grpc}))
	for name, info := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
		for _, m := range info.Methods {
			s.calls.add("/" + name + "/" + m.Name)
		}
	}
	return s, nil
}

// Serve takes connections until Shutdown, or until the listener fails. It closes ln. One that others than this machine can
// reach is refused unless there is a token, a key or a policy, or Insecure says that none is wanted.
func (s *Server) Serve(ln net.Listener) error {
	if !local(ln.Addr()) && !s.o.Insecure && !s.o.Door.Guard().StayOn() {
		return errors.Join(fmt.Errorf("grpcapi: %s can be reached from other machines and no token is set: set MILLRACE_TOKEN, "+
			"or listen on 127.0.0.1, or say --insecure to serve everybody", ln.Addr()), ln.Close())
	}
	looking, stop := context.WithCancel(s.draining)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.look(looking)
	}()
	var in net.Listener = &listener{ln, s.o.Door}
	if s.o.TLS != nil {
		in = tls.NewListener(in, s.o.TLS)
	}
	err := s.http.Serve(in)
	stop()
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// local reports whether only this machine reaches an address.
func local(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return !ok || t.IP.IsLoopback()
}

// look says in what health answers, of the server and of every service, whether traffic should come here.
func (s *Server) look(ctx context.Context) {
	every := time.NewTicker(s.o.LookEvery)
	defer every.Stop()
	last := healthv1.HealthCheckResponse_UNKNOWN
	for {
		is := healthv1.HealthCheckResponse_SERVING
		if _, err := s.o.Backend.Ready(ctx, false); err != nil {
			is = healthv1.HealthCheckResponse_NOT_SERVING
		}
		if is != last {
			s.health.SetServingStatus("", is)
			for name := range s.grpc.GetServiceInfo() {
				s.health.SetServingStatus(name, is)
			}
			last = is
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// Shutdown ends streams with UNAVAILABLE once what they were sent is answered, lets calls finish until ctx ends, and
// closes what is then left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.health.Shutdown()
	s.drain()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("grpcapi: calls are cut off: %w", err), s.http.Close())
	}
	s.grpc.Stop()
	s.detached.Wait()
	return err
}

// Stats are a server's figures.
type Stats struct {
	Streams int    // open calls of many messages
	In, Out uint64 // messages since the start
	Dropped uint64 // streams, since the start, that were ended because their client did not read
}

// Stats returns the figures of now.
func (s *Server) Stats() Stats {
	return Stats{int(s.open.Load()), s.in.Load(), s.out.Load(), s.dropped.Load()}
}

// Calls calls each with every method and code that calls have ended with, and how many.
func (s *Server) Calls(each func(method, code string, n uint64)) { s.calls.each(each) }

// calls counts calls by method and code. Methods that this build does not have are "other".
type calls struct {
	of    map[string]*[codes.Unauthenticated + 1]atomic.Uint64 // not changed once calls come in
	other [codes.Unauthenticated + 1]atomic.Uint64
}

func (c *calls) add(method string) {
	if c.of == nil {
		c.of = map[string]*[codes.Unauthenticated + 1]atomic.Uint64{}
	}
	c.of[method] = new([codes.Unauthenticated + 1]atomic.Uint64)
}

func (c *calls) count(method string, code codes.Code) {
	n := c.of[method]
	if n == nil {
		n = &c.other
	}
	if int(code) >= len(n) {
		code = codes.Unknown
	}
	n[code].Add(1)
}

func (c *calls) each(f func(method, code string, n uint64)) {
	tell := func(method string, n *[codes.Unauthenticated + 1]atomic.Uint64) {
		for code := range n {
			if v := n[code].Load(); v > 0 {
				f(method, codes.Code(code).String(), v)
			}
		}
	}
	for method, n := range c.of {
		tell(method[1:], n)
	}
	tell("other", &c.other)
}
