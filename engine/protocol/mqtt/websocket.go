package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	frames "github.com/gobwas/ws"
	"github.com/valyala/fasthttp"

	"github.com/millrace/millrace/engine/event"
)

// ServeWebSocket makes the handshake of MQTT over WebSocket (MQTT 6, RFC 6455, 4.2) and takes the connection over, which the
// listener has counted and whose Host and Origin it has judged; enter lets in who is at its other end.
func (s *Server) ServeWebSocket(ctx *fasthttp.RequestCtx, enter func(ctx context.Context) Visit, take func(serve func(ctx context.Context, nc net.Conn, ahead []byte)) error) error {
	accept, err := upgrade(ctx)
	if err != nil {
		ctx.Response.Header.Set("Upgrade", "websocket")
		ctx.Response.Header.Set("Sec-WebSocket-Version", "13")
		return err
	}
	return take(func(ctx context.Context, nc net.Conn, ahead []byte) {
		if len(ahead) > 0 { // RFC 6455, 4.1: a client waits for the answer
			return
		}
		_ = nc.SetWriteDeadline(time.Now().Add(s.o.WriteTimeout))
		if _, err := nc.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nServer: millrace\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
			accept + "\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")); err != nil {
			return
		}
		done := make(chan struct{})
		s.attend(context.WithoutCancel(ctx), newWebSocket(s, nc), enter(ctx), func() { close(done) }) // Shutdown ends it
		<-done
	})
}

// upgrade checks a client's request and returns the value of Sec-WebSocket-Accept.
func upgrade(ctx *fasthttp.RequestCtx) (accept string, err error) {
	h := &ctx.Request.Header
	nonce := string(h.Peek("Sec-WebSocket-Key"))
	raw, broken := base64.StdEncoding.DecodeString(nonce)
	switch {
	case !ctx.IsGet() || !h.IsHTTP11():
		return "", event.Invalid("", "a WebSocket is opened by GET in HTTP/1.1 (RFC 6455, 4.1)")
	case !lists(string(h.Peek("Upgrade")), "websocket") || !lists(string(h.Peek("Connection")), "upgrade"):
		return "", event.Invalid("Upgrade", "this is MQTT over WebSocket: open it with an MQTT client, which sends Upgrade: websocket and Connection: Upgrade")
	case string(h.Peek("Sec-WebSocket-Version")) != "13":
		return "", event.Invalid("Sec-WebSocket-Version", fmt.Sprintf("is %.20q; want 13", h.Peek("Sec-WebSocket-Version")))
	case broken != nil || len(raw) != 16:
		return "", event.Invalid("Sec-WebSocket-Key", fmt.Sprintf("is %.60q; want 16 bytes in base64", nonce))
	case !lists(string(h.Peek("Sec-WebSocket-Protocol")), "mqtt"): // [MQTT-6.0.0-3]
		return "", event.Invalid("Sec-WebSocket-Protocol", fmt.Sprintf("is %.60q; want mqtt among them", h.Peek("Sec-WebSocket-Protocol")))
	}
	sum := sha1.Sum([]byte(nonce + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:]), nil
}

// lists reports whether a header that is a list has a word.
func lists(list, word string) bool {
	for s := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(s), word) {
			return true
		}
	}
	return false
}

// A webSocket is a connection whose bytes are the payload of binary frames; where these begin and end means nothing
// [MQTT-6.0.0-2]. One goroutine reads it. A read past its deadline loses nothing.
type webSocket struct {
	net.Conn
	s *Server
	r *bufio.Reader

	mask  [4]byte // of the frame that is being read
	at    int     // of its payload are read,
	left  int64   // and to come
	state frames.State
	ended error // no frame follows

	writing sync.Mutex // one whole frame after the other
	shut    bool       // a close frame is written, behind which nothing follows
}

const (
	webSocketBuffer = 256      // holds a control frame; kept for as long as a connection is open
	frameSize       = 16 << 20 // bytes of a frame, which are not gathered
)

func newWebSocket(s *Server, nc net.Conn) *webSocket {
	return &webSocket{Conn: nc, s: s, r: bufio.NewReaderSize(nc, webSocketBuffer), state: frames.StateServerSide}
}

// Read reads payload; io.EOF behind the client's close frame.
func (w *webSocket) Read(p []byte) (int, error) {
	for {
		if w.ended != nil {
			return 0, w.ended
		}
		if w.left > 0 {
			n, err := w.r.Read(p[:min(int64(len(p)), w.left)])
			frames.Cipher(p[:n], w.mask, w.at)
			w.at, w.left = w.at+n, w.left-int64(n)
			if n > 0 {
				return n, nil
			}
			if err != nil {
				return 0, err
			}
			continue
		}
		if err := w.frame(); err != nil {
			return 0, err
		}
	}
}

// frame reads a frame's header, and all of a control frame.
func (w *webSocket) frame() error {
	b, err := w.r.Peek(2)
	if err != nil {
		return err
	}
	size := 2
	switch b[1] & 0x7F {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if b[1]&0x80 != 0 {
		size += 4
	}
	if b, err = w.r.Peek(size); err != nil {
		return err
	}
	h, err := frames.ReadHeader(bytes.NewReader(b))
	if err == nil {
		err = frames.CheckHeader(h, w.state)
	}
	switch {
	case err != nil:
		return w.fail(frames.StatusProtocolError, err.Error())
	case h.OpCode.IsControl():
		return w.control(h, size)
	case h.OpCode == frames.OpText: // [MQTT-6.0.0-1]
		return w.fail(frames.StatusUnsupportedData, "MQTT is in binary frames, not text")
	case h.Length > frameSize:
		return w.fail(frames.StatusMessageTooBig, fmt.Sprintf("the limit is %d bytes a frame", frameSize))
	}
	_, _ = w.r.Discard(size)
	w.mask, w.at, w.left = h.Mask, 0, h.Length
	if h.Fin {
		w.state = w.state.Clear(frames.StateFragmented)
	} else {
		w.state = w.state.Set(frames.StateFragmented)
	}
	return nil
}

// control answers a control frame (RFC 6455, 5.5) once it is there.
func (w *webSocket) control(h frames.Header, size int) error {
	b, err := w.r.Peek(size + int(h.Length))
	if err != nil {
		return err
	}
	p := bytes.Clone(b[size:])
	_, _ = w.r.Discard(len(b))
	frames.Cipher(p, h.Mask, 0)
	switch h.OpCode {
	case frames.OpPing:
		return w.write(frames.OpPong, p)
	case frames.OpClose:
		code, reason := frames.ParseCloseFrameData(p)
		switch {
		case len(p) == 0:
			code = frames.StatusNormalClosure
		case len(p) == 1:
			return w.fail(frames.StatusProtocolError, "a close frame of one byte")
		default:
			if err := frames.CheckCloseFrameData(code, reason); err != nil {
				return w.fail(frames.StatusProtocolError, err.Error())
			}
		}
		w.close(code, "")
		w.ended = io.EOF
	}
	return nil
}

// fail ends the connection for what its client did against RFC 6455.
func (w *webSocket) fail(code frames.StatusCode, reason string) error {
	w.close(code, reason)
	w.ended = fmt.Errorf("websocket: %s", reason)
	w.s.o.Log.Debug("an MQTT connection over WebSocket is ended", "error", w.ended)
	return w.ended
}

// Write writes p as one frame, by the write deadline.
func (w *webSocket) Write(p []byte) (int, error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	if w.shut {
		return 0, net.ErrClosed
	}
	if err := w.put(frames.OpBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// write writes a control frame.
func (w *webSocket) write(op frames.OpCode, p []byte) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	if w.shut {
		return net.ErrClosed
	}
	if err := w.SetWriteDeadline(time.Now().Add(w.s.o.WriteTimeout)); err != nil {
		return err
	}
	return w.put(op, p)
}

// put writes one whole frame. The caller holds writing.
func (w *webSocket) put(op frames.OpCode, p []byte) error {
	b := w.s.writes.Get().(*[]byte)
	*b = append((*b)[:0], 0x80|byte(op))
	switch n := len(p); {
	case n < 126:
		*b = append(*b, byte(n))
	case n < 1<<16:
		*b = append(*b, 126, byte(n>>8), byte(n))
	default:
		*b = append(*b, 127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	*b = append(*b, p...)
	_, err := w.Conn.Write(*b)
	if cap(*b) <= 2*gathered {
		*b = (*b)[:0]
		w.s.writes.Put(b)
	}
	return err
}

// close writes a close frame, behind which nothing follows.
func (w *webSocket) close(code frames.StatusCode, reason string) {
	w.writing.Lock()
	defer w.writing.Unlock()
	if w.shut {
		return
	}
	w.shut = true
	_ = w.SetWriteDeadline(time.Now().Add(w.s.o.CloseTimeout))
	_ = w.put(frames.OpClose, frames.NewCloseFrameBody(code, reason[:min(len(reason), 123)]))
}

// CloseWrite says that nothing follows.
func (w *webSocket) CloseWrite() error {
	w.close(frames.StatusNormalClosure, "")
	return nil
}

// Close closes the connection, with a close frame unless one was written.
func (w *webSocket) Close() error {
	return errors.Join(w.CloseWrite(), w.Conn.Close())
}
