package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// Options configure a Server. The zero value of a field means its default.
type Options struct {
	Backend Backend
	// Guard says who callers are and what they may. One that is off, which nil is as well, lets everybody do everything,
	// which only a loopback listener may do unless Insecure is set.
	Guard    *access.Guard
	Insecure bool
	// CORSOrigins are the origins ("https://app.example.com") whose pages may call; "*" is all. Pages of
	// every other origin but the router's own are refused.
	CORSOrigins []string
	// Hosts are the names that the Host header may have besides IP literals and localhost. Away from
	// loopback an empty list allows all.
	Hosts  []string
	Limits event.Limits
	// Metrics writes the text exposition of all metrics; nil: /metrics is empty.
	Metrics func(w io.Writer) error
	Version string // shown by /healthz
	Log     *slog.Logger
	Now     func() time.Time

	HeaderBytes   int           // of a request line with its headers, past it 431; 16 KiB
	HeaderTimeout time.Duration // to send the headers and a small body; 10 s
	BodyTimeout   time.Duration // to send a large body; 60 s
	IdleTimeout   time.Duration // between two requests; 120 s
	WriteTimeout  time.Duration // of an answer, and of one write to a stream; 15 s
	Heartbeat     time.Duration // between two comments of an idle stream; 15 s
	Recheck       time.Duration // between two looks whether the reader of a stream may go on; 10 s
	MaxConns      int           // connections at once, and as many streams; 10,000
	// DrainGrace is how long Shutdown lets half-sent requests arrive; 2 s.
	DrainGrace time.Duration

	Clients ClientLimits
	// Door is that of all faces of a router; nil: one of this server's own, by Guard, Clients, MaxConns and BodyBytes.
	Door *admission.Door
	// BodyBytes is what bodies over HeaderBytes may take together while they are read and answered, a body's limit at
	// least; 256 MiB. Past it, and while memory is short, large bodies are refused with 503.
	BodyBytes int64

	HSTS time.Duration // for which browsers are told, over TLS, to come by TLS only; a year; below zero: not told
	// Secure says to which hosts a Redirect face may send; nil: none. SecurePort is where it sends them; 443.
	Secure     func(host string) bool
	SecurePort int
	// Challenge answers an ACME authority on a Redirect face; nil: none does.
	Challenge func(ctx context.Context, host, path string) (answer []byte, ok bool)

	// Mounts are calls that other packages answer, on this listener and behind the same checks.
	Mounts []Mount
}

func (o Options) withDefaults() Options {
	o.Limits = o.Limits.WithDefaults()
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	fill := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	fill(&o.HeaderTimeout, 10*time.Second)
	fill(&o.BodyTimeout, time.Minute)
	fill(&o.IdleTimeout, 2*time.Minute)
	fill(&o.WriteTimeout, 15*time.Second)
	fill(&o.Heartbeat, 15*time.Second)
	fill(&o.Recheck, 10*time.Second)
	fill(&o.DrainGrace, 2*time.Second)
	if o.HeaderBytes == 0 {
		o.HeaderBytes = 16 << 10
	}
	if o.MaxConns == 0 {
		o.MaxConns = 10_000
	}
	if o.BodyBytes == 0 {
		o.BodyBytes = 256 << 20
	}
	o.BodyBytes = max(o.BodyBytes, int64(o.Limits.Body))
	fill(&o.HSTS, 365*24*time.Hour)
	if o.SecurePort == 0 {
		o.SecurePort = 443
	}
	o.Clients = o.Clients.withDefaults()
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.Backend == nil {
		errs = append(errs, errors.New("options: Backend is missing"))
	}
	for _, origin := range o.CORSOrigins {
		scheme, host, ok := strings.Cut(origin, "://")
		if origin != "*" && (!ok || scheme == "" || host == "" || strings.ContainsAny(host, "/ ")) {
			errs = append(errs, fmt.Errorf("options: CORSOrigins has %q; an origin is scheme://host[:port] without a path, or *", origin))
		}
	}
	if o.HeaderBytes < 1<<10 || o.HeaderBytes > 1<<20 {
		errs = append(errs, fmt.Errorf("options: HeaderBytes is %d; allowed are 1024 to 1048576", o.HeaderBytes))
	}
	return errors.Join(errs...)
}

// NewDoor makes the door that the options describe.
func (o Options) NewDoor() (*admission.Door, error) {
	o = o.withDefaults()
	return admission.New(admission.Options{Limits: o.Clients.Limits, Guard: o.Guard, MaxConns: o.MaxConns, Bytes: o.BodyBytes, Recheck: o.Recheck, Now: o.Now})
}

// A Server answers HTTP. Its methods may be called from several goroutines.
type Server struct {
	o      Options
	fh     *fasthttp.Server
	routes *node
	public *node  // of faces that answer no administration
	hsts   string // the header's value; "" is none

	door       *admission.Door
	handshakes atomic.Uint64 // that failed
	turning    chan struct{} // connections that are being turned away politely
	turned     sync.WaitGroup

	calls sync.Pool // *call
	zip   func() *zstd.Encoder

	drainAt atomic.Int64 // Unix ns past which nothing is read any more; 0 while not draining

	bundles    atomic.Int64 // calls that hold one
	sseReaders atomic.Int64
	sseDropped atomic.Uint64
	shown      shown

	work     context.Context // of requests; ends when Shutdown gives up
	stopWork context.CancelFunc
	wait     context.Context // of what waits for events; ends when draining begins
	stopWait context.CancelFunc

	mu      sync.Mutex
	conns   map[*conn]struct{}
	streams int           // hijacked connections being served
	idle    chan struct{} // closed while draining when streams is 0
	down    chan struct{} // closed when Shutdown has ended
	faces   []*listener   // nil before Serve
	nowhere *listener     // of a call without a connection
}

// New returns a server that is ready to Serve.
func New(o Options) (*Server, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("httpapi: %w", err)
	}
	if o.Guard == nil {
		var err error
		if o.Guard, err = access.New(access.Options{Off: true}); err != nil {
			return nil, fmt.Errorf("httpapi: %w", err)
		}
	}
	if o.Door == nil {
		var err error
		if o.Door, err = o.NewDoor(); err != nil {
			return nil, fmt.Errorf("httpapi: %w", err)
		}
	}
	rs := append(routes(), mounted(o.Mounts)...)
	for _, r := range rs {
		if err := r.needs.validate(); err != nil {
			return nil, fmt.Errorf("httpapi: %s %s: %w", r.method, r.path, err)
		}
	}
	s := &Server{o: o, conns: map[*conn]struct{}{},
		door: o.Door, turning: make(chan struct{}, 64),
		idle: make(chan struct{}), down: make(chan struct{}), zip: sync.OnceValue(newEncoder)}
	s.nowhere = &listener{s: s}
	if o.HSTS > 0 {
		s.hsts = fmt.Sprintf("max-age=%d", int64(o.HSTS/time.Second))
	}
	s.routes, s.public = tree(rs), tree(slices.DeleteFunc(slices.Clone(rs), func(r *route) bool { return r.administers() }))
	s.nowhere.routes = s.routes
	s.calls.New = func() any { return &call{s: s} }
	s.work, s.stopWork = context.WithCancel(context.Background())
	s.wait, s.stopWait = context.WithCancel(s.work)
	s.fh = &fasthttp.Server{
		Handler:                      s.handle,
		ErrorHandler:                 s.readFailed,
		HeaderReceived:               s.headerReceived,
		ConnState:                    connState,
		Logger:                       fhLogger{o.Log},
		Name:                         "millrace",
		Concurrency:                  2*o.MaxConns + 64, // enter counts: fasthttp would answer before a handshake, and wait
		ReadBufferSize:               o.HeaderBytes,
		ReadTimeout:                  o.HeaderTimeout,
		WriteTimeout:                 o.WriteTimeout,
		IdleTimeout:                  o.IdleTimeout,
		MaxRequestBodySize:           o.Limits.Body,
		DisablePreParseMultipartForm: true,
		NoDefaultContentType:         true,
		NoDefaultServerHeader:        true,
		SecureErrorLogMessage:        true,
		CloseOnShutdown:              true,
		KeepHijackedConns:            true, // see takeOver
	}
	return s, nil
}

// fhLogger takes what fasthttp reports; it is about connections, so debug.
type fhLogger struct{ log *slog.Logger }

func (l fhLogger) Printf(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }

// Shutdown refuses new work with 503, ends streams at a cursor from which their clients resume, lets
// requests finish and closes. Requests that are still half sent after the grace get 503 as well. When ctx
// ends first, what is left is cut off and ctx's error returned. A second call waits for the first.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if s.draining() {
		s.mu.Unlock()
		select {
		case <-s.down:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.drainAt.Store(time.Now().Add(s.o.DrainGrace).UnixNano())
	for c := range s.conns {
		_ = c.SetReadDeadline(time.Time{}) // clamped to drainAt
	}
	if s.streams == 0 {
		close(s.idle)
	}
	s.mu.Unlock()
	defer close(s.down)
	defer s.stopWork()
	s.stopWait()

	s.mu.Lock()
	for _, l := range s.faces { // fasthttp may not know them yet
		_ = l.Close()
	}
	s.mu.Unlock()
	err := s.fh.ShutdownWithContext(ctx)
	select {
	case <-s.idle:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if ctx.Err() != nil {
		s.stopWork()
		s.mu.Lock()
		for c := range s.conns {
			_ = c.raw.Close() // TLS would say goodbye first, and wait for one who does not read
		}
		s.mu.Unlock()
	}
	s.turned.Wait()
	s.awaitLingering(ctx)
	if err != nil {
		return fmt.Errorf("httpapi: shutdown: %w", err)
	}
	return nil
}

// awaitLingering waits for connections that are being closed gently; fasthttp does not count them any more.
func (s *Server) awaitLingering(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*lingerTime)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		s.mu.Lock()
		left := len(s.conns)
		s.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) draining() bool { return s.drainAt.Load() != 0 }

// streamBegins counts a hijacked connection; false: the server is draining, do not begin.
func (s *Server) streamBegins() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining() {
		return false
	}
	s.streams++
	return true
}

func (s *Server) streamEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams--; s.streams == 0 && s.draining() {
		close(s.idle)
	}
}

// SSE is the number of readers of server-sent events, and of those, since the start, that were dropped because their
// client did not read.
func (s *Server) SSE() (readers int, dropped uint64) {
	return int(s.sseReaders.Load()), s.sseDropped.Load()
}

// Streams is the number of open streams, WebSockets included.
func (s *Server) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams
}

// handle answers one request. fasthttp recovers from no panic, so one would end the process.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	c := s.calls.Get().(*call)
	c.ctx = ctx
	defer func() {
		if p := recover(); p != nil {
			s.o.Log.Error("panic while answering a request", "method", string(ctx.Method()), "panic", p, "stack", string(debug.Stack()))
			ctx.Response.Reset()
			c.problem(fmt.Errorf("panic: %v", p))
			s.finish(ctx)
			return // c may be in any state: not back to the pool
		}
		c.reset()
		s.calls.Put(c)
	}()
	if err := c.serve(); err != nil {
		c.problem(err)
	}
	s.finish(ctx)
}

// idleBody is the largest buffer for bodies that a connection keeps between two requests, in bytes.
const idleBody = 64 << 10

// finish ends a request that has its answer.
func (s *Server) finish(ctx *fasthttp.RequestCtx) {
	nc := connOf(ctx)
	if nc == nil {
		return
	}
	if nc.tls != nil && s.hsts != "" {
		ctx.Response.Header.Set("Strict-Transport-Security", s.hsts)
	}
	ctx.Request.ReleaseBody(idleBody) // fasthttp would keep it for as long as the connection lasts
	nc.requestEnds()
}

// readFailed answers a request that fasthttp could not read; the connection closes after it.
func (s *Server) readFailed(ctx *fasthttp.RequestCtx, err error) {
	linger(ctx)
	defer s.finish(ctx)
	var small *fasthttp.ErrSmallBuffer
	var timeout net.Error
	refused := s.door.Refused
	nc := connOf(ctx)
	switch {
	case nc != nil && nc.refusal != nil:
		err = nc.refusal
	case s.draining():
		err = errDraining
	case errors.As(err, &small):
		refused(admission.HeaderSize)
		err = refuse(fasthttp.StatusRequestHeaderFieldsTooLarge,
			"the request line and headers are longer than %d bytes; send large attributes in structured mode (application/cloudevents+json)", s.o.HeaderBytes)
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		refused(admission.BodySize)
		err = bodyTooLarge(s.o.Limits.Body)
	case errors.As(err, &timeout) && timeout.Timeout():
		refused(admission.Slow)
		err = refuse(fasthttp.StatusRequestTimeout, "the request did not arrive in time: %s for the headers, %s for a body", s.o.HeaderTimeout, s.o.BodyTimeout)
	default:
		// fasthttp's words may quote what was sent; the kind is enough.
		err = refuse(fasthttp.StatusBadRequest, "the request is not well-formed HTTP/1.1 (RFC 9112): check the request line, the headers, Content-Length and the chunks")
	}
	c := &call{s: s, ctx: ctx}
	c.problem(err)
}
