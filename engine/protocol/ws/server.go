package ws

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// A Server speaks to WebSocket clients. Its methods may be called from several goroutines.
type Server struct {
	o       Options
	open    atomic.Int64
	dropped atomic.Uint64
	buffers sync.Pool // *buffers
}

// New returns a server whose Serve is to be mounted at GET /v1/ws.
func New(o Options) (*Server, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("ws: %w", err)
	}
	s := &Server{o: o}
	s.buffers.New = func() any { return &buffers{} }
	return s, nil
}

// release gives buffers back, unless a large event has made them large.
func (s *Server) release(b *buffers) {
	if b.out = b.out[:0]; cap(b.out)+cap(b.payload) <= 4*gathered {
		s.buffers.Put(b)
	}
}

// Stats are a server's figures.
type Stats struct {
	Connections int    // open sockets
	Dropped     uint64 // sockets, since the start, that were closed because their client did not read
}

// Stats returns the figures of now.
func (s *Server) Stats() Stats { return Stats{int(s.open.Load()), s.dropped.Load()} }

// Serve makes the handshake (RFC 6455, 4.2) and takes the connection over. The listener has judged Host, Origin and
// token. No extension is negotiated, so no compression either.
func (s *Server) Serve(ctx *fasthttp.RequestCtx, take func(serve func(ctx context.Context, nc net.Conn, ahead []byte)) error) error {
	accept, err := handshake(ctx)
	if err != nil {
		ctx.Response.Header.Set("Upgrade", "websocket")
		ctx.Response.Header.Set("Sec-WebSocket-Version", "13")
		return err
	}
	return take(func(draining context.Context, nc net.Conn, ahead []byte) {
		if len(ahead) > 0 { // 4.1: a client waits for the answer
			return
		}
		_ = nc.SetWriteDeadline(time.Now().Add(s.o.WriteTimeout))
		if _, err := nc.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nServer: millrace\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + "\r\n\r\n")); err != nil {
			return
		}
		s.open.Add(1)
		defer s.open.Add(-1)
		newSocket(s, nc).run(draining)
	})
}

// handshake checks a client's request and returns the value of Sec-WebSocket-Accept.
func handshake(ctx *fasthttp.RequestCtx) (accept string, err error) {
	h := &ctx.Request.Header
	key := string(h.Peek("Sec-WebSocket-Key"))
	nonce, broken := base64.StdEncoding.DecodeString(key)
	switch {
	case !ctx.IsGet() || !h.IsHTTP11():
		return "", event.Invalid("", "a WebSocket is opened by GET in HTTP/1.1 (RFC 6455, 4.1)")
	case !hasToken(string(h.Peek("Upgrade")), "websocket") || !hasToken(string(h.Peek("Connection")), "upgrade"):
		return "", event.Invalid("Upgrade", "this is a WebSocket: open it with a WebSocket client, which sends Upgrade: websocket and Connection: Upgrade")
	case string(h.Peek("Sec-WebSocket-Version")) != "13":
		return "", event.Invalid("Sec-WebSocket-Version", fmt.Sprintf("is %.20q; want 13", h.Peek("Sec-WebSocket-Version")))
	case broken != nil || len(nonce) != 16:
		return "", event.Invalid("Sec-WebSocket-Key", fmt.Sprintf("is %.60q; want 16 bytes in base64", key))
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:]), nil
}

// hasToken reports whether a header that is a list of tokens has one.
func hasToken(list, token string) bool {
	for t := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(t), token) {
			return true
		}
	}
	return false
}
