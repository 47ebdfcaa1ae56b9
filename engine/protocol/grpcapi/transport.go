package grpcapi

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
)

// Bounds of what comes in on a connection and is not read yet, in bytes: of one call, and of all together. They do not grow
// with the line: what one client leaves unread would grow with them.
const (
	streamWindow = 512 << 10
	connWindow   = 2 << 20
)

// serving makes the HTTP/2 server below gRPC. It is net/http's and not grpc's own, which reads messages whole before
// anybody is asked whether there is room for them, and which forgets to end the deadline of a call that it refuses.
func (s *Server) serving() *http.Server {
	var speaks http.Protocols
	speaks.SetHTTP2(true)
	speaks.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           http.HandlerFunc(s.call),
		Protocols:         &speaks,
		MaxHeaderBytes:    s.o.HeaderBytes,
		ReadHeaderTimeout: s.o.ConnectTimeout,
		IdleTimeout:       s.o.IdleTimeout,
		ConnContext:       withConn,
		ErrorLog:          log.New(debugWriter{s.o.Log}, "", 0),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               30 * time.Second, // of silence
			PingTimeout:                   20 * time.Second,
			WriteByteTimeout:              s.o.WriteTimeout,
		},
	}
}

// debugWriter takes what net/http reports; it is about connections, so debug.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(b []byte) (int, error) {
	w.log.Debug("gRPC: " + strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// A listener lets in no more connections than the door does.
type listener struct {
	net.Listener
	door *admission.Door
}

// Accept waits for a connection that may come in. One that is one too many is closed before a byte of it is read: there is
// no stream yet on which it could be told why.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		in, err := l.door.Enter(addrOf(nc.RemoteAddr()))
		if err != nil {
			nc.Close()
			continue
		}
		return &conn{Conn: nc, in: in}, nil
	}
}

// conn is a connection that was let in.
type conn struct {
	net.Conn
	in *admission.Conn
}

// Close may be called again.
func (c *conn) Close() error {
	c.in.Leave()
	return c.Conn.Close()
}

type connKey struct{}

// withConn puts the connection of calls into their contexts.
func withConn(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, nc)
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// call judges a call by its headers, before any of its messages are read, and has gRPC answer it.
func (s *Server) call(w http.ResponseWriter, r *http.Request) {
	method := r.URL.Path
	se, err := s.identify(r)
	if err != nil {
		st := s.told(method, err)
		s.calls.count(method, st.Code())
		refuse(w, st)
		return
	}
	ctx := r.Context()
	if se != nil {
		defer se.Close()
		ctx = context.WithValue(access.WithAddr(ctx, se.Addr()), sessionKey{}, se)
	}
	if !supervised(method) { // grpc's own, which do not end by themselves
		var cancel context.CancelFunc
		if se != nil {
			ctx, cancel = context.WithCancel(ctx)
		} else { // a stranger's connection is idle however long he watches
			ctx, cancel = context.WithTimeout(ctx, s.o.IdleTimeout)
		}
		defer cancel()
		defer context.AfterFunc(s.draining, cancel)()
	}
	ctl := http.NewResponseController(w)
	in := newArriving(s, se, r.Body, ctl)
	defer in.release()
	r = r.WithContext(context.WithValue(ctx, arrivingKey{}, in))
	r.Body = in
	out := newPatient(s, w, ctl)
	defer out.timer.Stop()
	s.grpc.ServeHTTP(out, r)
}

// supervised reports whether a method's streams end by themselves when the router drains.
func supervised(method string) bool { return strings.HasPrefix(method, "/millrace.v1.") }

// refuse answers a call of which nothing was read, with trailers alone.
func refuse(w http.ResponseWriter, st *status.Status) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(st.Code())))
	h.Set("Grpc-Message", percent(st.Message()))
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if b, err := proto.Marshal(p); err == nil {
			h.Set("Grpc-Status-Details-Bin", base64.RawStdEncoding.EncodeToString(b))
		}
	}
	w.WriteHeader(http.StatusOK)
}

// percent encodes a message as gRPC does in headers: bytes that are not printable ASCII, and %.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// patient is a call's answer, which is cut off once its client has not taken a part of it for the write timeout.
type patient struct {
	http.ResponseWriter
	s     *Server
	timer *time.Timer
}

func newPatient(s *Server, w http.ResponseWriter, ctl *http.ResponseController) *patient {
	p := &patient{ResponseWriter: w, s: s}
	p.timer = time.AfterFunc(time.Hour, func() {
		s.dropped.Add(1)
		s.o.Log.Debug("the answer to a gRPC call is cut off: its client does not read")
		_ = ctl.SetWriteDeadline(time.Unix(1, 0)) // resets the stream, which frees whoever writes
	})
	p.timer.Stop()
	return p
}

func (p *patient) Write(b []byte) (int, error) {
	p.timer.Reset(p.s.o.WriteTimeout)
	defer p.timer.Stop()
	return p.ResponseWriter.Write(b)
}

// Flush sends what was written.
func (p *patient) Flush() {
	p.timer.Reset(p.s.o.WriteTimeout)
	defer p.timer.Stop()
	_ = http.NewResponseController(p.ResponseWriter).Flush()
}
