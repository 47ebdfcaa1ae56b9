package httpapi

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// A Mount is a call that another package answers: a protocol beside this one, on the same listener and behind the same
// checks of framing, Host, Origin, caller and query.
type Mount struct {
	Method, Path string   // GET answers HEAD too; {name} stands for one segment
	Query        []string // the parameters it acts on; others are refused
	AnyQuery     bool     // others are not: whoever calls chooses them
	// Stream says that the call takes its connection over, as browsers do without headers of their own: the token
	// may come as ?access_token=.
	Stream bool
	// What it asks of its caller, as every route says: Of and May where In is not Anyone or Known. Of a connection that
	// was taken over Caller says who is there, now and later.
	May access.Action
	Of  access.Kind
	In  Where
	// Serve answers. An error is answered as a problem document (see ProblemOf). take, which only a Stream may call
	// and as the last thing, leaves HTTP: no response is sent, and serve gets the connection until it returns. Its
	// context ends when the router begins to drain; ahead is what the client sent behind its request
	// without waiting for an answer. take's error is to be returned.
	Serve func(ctx *fasthttp.RequestCtx, take func(serve func(ctx context.Context, nc net.Conn, ahead []byte)) error) error
}

// mounted are the routes of mounts.
func mounted(mounts []Mount) []*route {
	rs := make([]*route, 0, len(mounts))
	for _, m := range mounts {
		rs = append(rs, &route{method: m.Method, path: m.Path, query: m.Query, anyQuery: m.AnyQuery, stream: m.Stream, mounted: true, needs: needs{may: m.May, of: m.Of, in: m.In}, handle: func(c *call) error {
			return m.Serve(c.ctx, func(serve func(context.Context, net.Conn, []byte)) error {
				return c.takeOver(&takeover{serve: serve, never: func() {}})
			})
		}})
	}
	return rs
}

// A takeover is what becomes of a connection that leaves HTTP: exactly one of its functions is called.
type takeover struct {
	serve func(ctx context.Context, nc net.Conn, ahead []byte)
	never func() // the connection ended first
}

// roomForStream says whether another connection may leave HTTP: fasthttp does not count those.
func (s *Server) roomForStream() error {
	if s.Streams() >= s.o.MaxConns {
		return fmt.Errorf("%d streams are open, which is the limit; try again later: %w", s.o.MaxConns, event.ErrUnavailable)
	}
	return nil
}

// streamUnread bounds what the kernel holds of a stream for a client that does not read, some megabytes otherwise. Linux
// doubles it for its bookkeeping.
const streamUnread = 256 << 10

// takeOver takes the connection from fasthttp once the call has returned. It is served by a goroutine of its own, with
// a small stack, so that fasthttp's buffers and the request, some 20 KiB, are not kept for as long as a stream lasts.
func (c *call) takeOver(t *takeover) error {
	nc, ok := c.ctx.Conn().(*conn)
	if !ok {
		t.never()
		return fmt.Errorf("take over: the connection is a %T, not this server's", c.ctx.Conn())
	}
	s, se := c.s, c.session()
	if err := s.roomForStream(); err != nil {
		t.never()
		return err
	}
	nc.pending.Store(t) // until the hijacker begins, closing nc says so
	c.ctx.HijackSetNoResponse(true)
	c.ctx.Hijack(func(hijacked net.Conn) {
		if !nc.pending.CompareAndSwap(t, nil) {
			return // closed
		}
		if !s.streamBegins() {
			t.never()
			_ = nc.Close()
			return
		}
		ahead := buffered(hijacked, nc)
		if w, ok := nc.raw.(interface{ SetWriteBuffer(int) error }); ok {
			_ = w.SetWriteBuffer(streamUnread)
		}
		go func() {
			defer s.streamEnded()
			defer nc.Close()
			defer func() {
				if p := recover(); p != nil { // as in handle: one connection must not end the process
					s.o.Log.Error("panic on a connection that was taken over", "panic", p, "stack", string(debug.Stack()))
				}
			}()
			ctx, stop := se.hold(s.wait)
			defer stop()
			t.serve(ctx, nc, ahead)
		}()
	})
	return nil
}

// watch reads a stream's connection, on which the client has nothing to say: its end is what matters, and ends the
// context. Call stop before the connection is used otherwise.
func watch(ctx context.Context, nc net.Conn) (_ context.Context, stop func()) {
	ctx, gone := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer gone()
		var b [64]byte // a stream is idle for most of its life: it keeps no more
		for left := 1 << 20; left > 0; {
			n, err := nc.Read(b[:])
			if left -= n; err != nil {
				return
			}
		}
	}()
	return ctx, func() {
		gone()
		_ = nc.SetReadDeadline(time.Unix(1, 0))
		<-done
	}
}

// buffered returns what fasthttp had read of a connection beyond the request. A read past its deadline does not touch
// the connection.
func buffered(hijacked net.Conn, nc *conn) []byte {
	if nc.SetReadDeadline(time.Unix(1, 0)) != nil {
		return nil
	}
	var ahead []byte
	for {
		b := make([]byte, 512)
		n, err := hijacked.Read(b)
		ahead = append(ahead, b[:n]...)
		if err != nil || n == 0 {
			break
		}
	}
	_ = nc.SetReadDeadline(time.Time{})
	return ahead
}
