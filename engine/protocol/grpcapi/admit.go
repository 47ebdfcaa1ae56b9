package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// healthPrefix begins the methods that strangers may call.
const healthPrefix = "/grpc.health.v1.Health/"

type sessionKey struct{}

// sessionOf is who makes a call.
func sessionOf(ctx context.Context) (*admission.Session, error) {
	if se, ok := ctx.Value(sessionKey{}).(*admission.Session); ok {
		return se, nil
	}
	return nil, errors.New("a call came in that nobody was asked for")
}

// identify finds out who makes a call; nil: a stranger, of whom nothing is asked.
func (s *Server) identify(r *http.Request) (*admission.Session, error) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return nil, errors.New("a call came in over a connection that is not this server's")
	}
	if strings.HasPrefix(r.URL.Path, healthPrefix) { // of balancers, at whose addresses others guess
		return nil, nil
	}
	if s.draining.Err() != nil {
		return nil, errDraining
	}
	bearer, err := bearerOf(r.Header["Authorization"])
	if err != nil {
		return nil, err
	}
	addr := s.o.Door.Client(addrOf(c.RemoteAddr()), r.Header.Get("X-Forwarded-For"), r.Header.Get("Forwarded"))
	cred := access.Credentials{Bearer: bearer, Addr: addr}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		cred.Certificate = r.TLS.PeerCertificates[0]
	}
	se, err := c.in.Open(r.Context(), cred)
	if err != nil {
		return nil, err
	}
	if err := se.Spend(); err != nil {
		se.Close()
		return nil, err
	}
	return se, nil
}

// bearerOf is the token of metadata "authorization: Bearer …", "" if there is none.
func bearerOf(values []string) (string, error) {
	const scheme = "bearer "
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", fmt.Errorf("%w: authorization is given twice; send one", access.ErrUnauthenticated)
	}
	v := values[0]
	if len(v) <= len(scheme) || !strings.EqualFold(v[:len(scheme)], scheme) {
		return "", fmt.Errorf("%w: authorization is not Bearer with an API key or a token", access.ErrUnauthenticated)
	}
	if v = strings.TrimLeft(v[len(scheme):], " "); v == "" {
		return "", fmt.Errorf("%w: authorization is Bearer with nothing behind it", access.ErrUnauthenticated)
	}
	return v, nil
}

// told is err as the client is told it; the router's own are logged.
func (s *Server) told(method string, err error) *status.Status {
	st, internal := statusOf(err)
	if internal {
		s.o.Log.Error("a gRPC call failed", "method", method, "error", err)
	}
	return st
}

// single makes calls of one message streams of one, of which grpc lets a client end before it has sent any: so what keeps the
// message from being read can be told as what it is, and one way leads to all calls.
func (s *Server) single(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	d := *desc
	d.Methods, d.Streams = nil, slices.Clone(desc.Streams)
	for _, m := range desc.Methods {
		s.singles["/"+desc.ServiceName+"/"+m.MethodName] = true
		d.Streams = append(d.Streams, grpc.StreamDesc{StreamName: m.MethodName, ClientStreams: true, Handler: func(srv any, ss grpc.ServerStream) error {
			out, err := m.Handler(srv, ss.Context(), func(in any) error { return takeOne(ss, in) }, nil)
			if err != nil {
				return err
			}
			return ss.SendMsg(out)
		}})
	}
	return &d
}

// takeOne reads the one message of a call, and takes room for a large one until the call ends.
func takeOne(ss grpc.ServerStream, in any) error {
	if err := ss.RecvMsg(in); errors.Is(err, io.EOF) {
		return event.Invalid("", "the request is missing: the call ended before its message")
	} else if err != nil {
		return err
	}
	m, ok := in.(proto.Message)
	se, known := ss.Context().Value(sessionKey{}).(*admission.Session)
	if !ok || !known {
		return nil
	}
	return room(se, proto.Size(m))
}

// stream runs a call.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	if !s.singles[info.FullMethod] {
		s.open.Add(1)
		defer s.open.Add(-1)
	}
	defer func() { err = s.end(info.FullMethod, err, recover()) }()
	return handler(srv, &counted{ss, s})
}

// end turns what a call came to into what its client is told. One call that panics does not end the process.
func (s *Server) end(method string, err error, panicked any) error {
	if panicked != nil {
		s.o.Log.Error("a gRPC call panicked", "method", method, "panic", panicked, "stack", string(debug.Stack()))
		err = errors.New("the call panicked")
	}
	if err == nil {
		s.calls.count(method, codes.OK)
		return nil
	}
	st := s.told(method, err)
	s.calls.count(method, st.Code())
	return st.Err()
}

// counted counts a stream's messages.
type counted struct {
	grpc.ServerStream
	s *Server
}

// RecvMsg reads the next message.
func (c *counted) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if err == nil {
		c.s.in.Add(1)
		return c.s.codec.refusal(m)
	}
	if in, ok := c.Context().Value(arrivingKey{}).(*arriving); ok {
		if why := in.failure(); why != nil {
			return why
		}
	}
	return err
}

// SendMsg sends a message.
func (c *counted) SendMsg(m any) error {
	err := c.ServerStream.SendMsg(m)
	if err == nil {
		c.s.out.Add(1)
	}
	return err
}

// room takes room for a large message, until the session's Release or the end of the call.
func room(se *admission.Session, size int) error {
	if size <= largeMessage {
		return nil
	}
	return se.Reserve(size, size)
}

// may asks whether the caller may do something with what a request names.
func may(ctx context.Context, a access.Action, k access.Kind, name string) (*admission.Session, error) {
	se, err := sessionOf(ctx)
	if err != nil {
		return nil, err
	}
	if k != access.Router {
		if err := event.CheckName(k.String(), name); err != nil {
			return nil, err
		}
	}
	return se, about(k, name, se.May(a, k, name))
}

// unseen takes other names out of what a caller is told of a name that does not exist.
func (s *Server) unseen(se *admission.Session, k access.Kind, name string, err error) error {
	if err == nil {
		return nil
	}
	p := se.Principal()
	if p == nil { // not any more: what he may see is not known
		return admission.ErrRevoked
	}
	return about(k, name, access.Unseen(p, k, name, err, s.o.Backend.Has))
}
