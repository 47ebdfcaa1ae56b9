package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
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

// admit judges a call by its headers, before any of its messages are read. It runs on the goroutine that reads the
// connection: what it waits for, its client waits for.
func (s *Server) admit(ctx context.Context, call *tap.Info) (context.Context, error) {
	ctx, err := s.identify(ctx, call)
	if err != nil {
		st := s.told(call.FullMethodName, err)
		s.calls.count(call.FullMethodName, st.Code())
		return ctx, st.Err()
	}
	return ctx, nil
}

func (s *Server) identify(ctx context.Context, call *tap.Info) (context.Context, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ctx, errors.New("a call came in without a connection")
	}
	from, ok := p.AuthInfo.(*authInfo)
	if !ok {
		return ctx, fmt.Errorf("a call came in over a %T, not this server's", p.AuthInfo)
	}
	if strings.HasPrefix(call.FullMethodName, healthPrefix) {
		addr := addrOf(p.Addr)
		if !addr.IsValid() {
			return ctx, nil
		}
		return ctx, s.o.Door.Stranger(s.o.Door.Account(addr))
	}
	if s.draining.Err() != nil {
		return ctx, errDraining
	}
	bearer, err := bearerOf(call.Header)
	if err != nil {
		return ctx, err
	}
	se, err := from.in.Open(ctx, access.Credentials{Bearer: bearer, Certificate: from.leaf, Addr: addrOf(p.Addr)})
	if err != nil {
		return ctx, err
	}
	if err := se.Spend(); err != nil {
		se.Close()
		return ctx, err
	}
	context.AfterFunc(ctx, se.Close)
	return context.WithValue(access.WithAddr(ctx, se.Addr()), sessionKey{}, se), nil
}

// bearerOf is the token of metadata "authorization: Bearer …", "" if there is none.
func bearerOf(md metadata.MD) (string, error) {
	const scheme = "bearer "
	values := md["authorization"]
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

// unary runs a call of one message.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() { err = s.end(info.FullMethod, err, recover()) }()
	s.in.Add(1)
	if m, ok := req.(proto.Message); ok {
		if se, known := ctx.Value(sessionKey{}).(*admission.Session); known {
			if err := room(se, proto.Size(m)); err != nil {
				return nil, err
			}
		}
	}
	if resp, err = handler(ctx, req); err == nil {
		s.out.Add(1)
	}
	return resp, err
}

// stream runs a call of many messages.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	s.open.Add(1)
	defer s.open.Add(-1)
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
