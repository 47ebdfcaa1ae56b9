package ws

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	frames "github.com/gobwas/ws"
	"github.com/millrace/millrace/engine/event"
)

// A socket is one client's connection after the handshake. One goroutine reads it and works on what the client asks
// for, in the order in which it asks; each subscription has one that writes.
type socket struct {
	s  *Server
	nc net.Conn
	r  *bufio.Reader

	writing sync.Mutex // one whole frame after the other
	shut    bool       // no frame follows; guarded by writing

	reading sync.Mutex // of the read deadline
	ending  bool       // only the client's close frame is waited for; guarded by reading

	working sync.Mutex // held while a request is worked on
	drained bool       // requests are not taken any more; guarded by working

	mu   sync.Mutex
	subs map[string]*sub // by ref

	pumps  sync.WaitGroup
	events []event.Event
	pos    []event.Position
}

// readBuffer is as small as frames of settling allow: it is kept for as long as a socket is open.
const readBuffer = 512

func newSocket(s *Server, nc net.Conn) *socket {
	return &socket{s: s, nc: nc, r: bufio.NewReaderSize(nc, readBuffer), subs: map[string]*sub{}}
}

// Why a socket or a subscription ends.
var (
	errClosed       = errors.New("the socket is closed")
	errSilent       = errors.New("the client has answered no ping")
	errDraining     = fmt.Errorf("this router is shutting down: come back and resume after the cursor: %w", event.ErrUnavailable)
	errUnsubscribed = errors.New("unsubscribed")
)

// tryAgainLater is 1013 of the IANA's close codes.
const tryAgainLater frames.StatusCode = 1013

// A violation is what a client did against RFC 6455; the socket closes with the code.
type violation struct {
	code   frames.StatusCode
	reason string
}

func (v *violation) Error() string { return v.reason }

// run serves until the client goes, breaks the protocol, is too slow, or the router drains. When it returns nothing of
// the socket runs any more, and what it had leased is given back.
func (k *socket) run(draining context.Context) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(draining))
	told := make(chan struct{})
	stop := context.AfterFunc(draining, func() {
		defer close(told)
		k.drain(cancel, context.Cause(draining))
	})
	err := k.serve(ctx)
	var v *violation
	if errors.As(err, &v) {
		k.close(v.code, v.reason)
		k.deadline(time.Now().Add(k.s.o.CloseTimeout))
		_, _ = io.CopyN(io.Discard, k.nc, 1<<20) // closing with bytes unread would reset the connection and with it the reason
	}
	cancel(errClosed)
	k.writing.Lock()
	k.shut = true
	k.writing.Unlock()
	if !stop() {
		<-told
	}
	k.pumps.Wait()
}

// drain ends the subscriptions, each with its cursor, and asks the client to go: the router stops, or, where why is
// event.ErrDenied, the client may not go on.
func (k *socket) drain(cancel context.CancelCauseFunc, why error) {
	k.working.Lock() // what is under way is still answered
	defer k.working.Unlock()
	k.drained = true
	code, reason := frames.StatusGoingAway, "the router is shutting down"
	if errors.Is(why, event.ErrDenied) {
		code, reason = frames.StatusPolicyViolation, "what was shown to open this socket is not valid any more"
	} else {
		why = errDraining
	}
	cancel(why)
	k.pumps.Wait()
	k.close(code, reason)
	k.deadline(time.Now().Add(k.s.o.CloseTimeout))
	k.reading.Lock()
	k.ending = true
	k.reading.Unlock()
}

// serve reads messages and works on them.
func (k *socket) serve(ctx context.Context) error {
	var message []byte
	for {
		var err error
		if message, err = k.message(ctx, message[:0]); err != nil {
			return err
		}
		k.working.Lock()
		if !k.drained {
			err = k.request(ctx, message)
		}
		k.working.Unlock()
		if err != nil {
			return err
		}
		if cap(message) > 4<<10 {
			message = nil
			k.s.o.Release(ctx)
		}
	}
}

// message reads one message, answering pings on the way.
func (k *socket) message(ctx context.Context, dst []byte) ([]byte, error) {
	var until time.Time // the message's last frame must have come; zero before its first
	state := frames.StateServerSide
	for n := 0; ; {
		if err := k.awaitFrame(until); err != nil {
			return nil, err
		}
		if end := time.Now().Add(k.s.o.MessageTimeout); until.IsZero() {
			k.deadline(end)
		} else {
			k.deadline(until)
		}
		h, err := frames.ReadHeader(k.r)
		if errors.Is(err, frames.ErrHeaderLengthMSB) { // RFC 6455, 5.2
			return nil, &violation{frames.StatusProtocolError, "a frame's length has its most significant bit set"}
		} else if err != nil {
			return nil, err
		}
		if err := frames.CheckHeader(h, state); err != nil {
			return nil, &violation{frames.StatusProtocolError, err.Error()}
		}
		if h.OpCode.IsControl() {
			if err := k.control(ctx, h); err != nil {
				return nil, err
			}
			continue
		}
		if until.IsZero() {
			until = time.Now().Add(k.s.o.MessageTimeout)
		}
		limit := int64(k.s.o.Limits.Body)
		switch n++; {
		case h.OpCode == frames.OpBinary:
			return nil, &violation{frames.StatusUnsupportedData, "messages are JSON text, not binary"}
		case h.Length > limit-int64(len(dst)):
			return nil, &violation{frames.StatusMessageTooBig, fmt.Sprintf("the limit is %d bytes a message", limit)}
		case n > maxFragments:
			return nil, &violation{frames.StatusPolicyViolation, fmt.Sprintf("the limit is %d frames a message", maxFragments)}
		}
		if dst, err = k.payload(ctx, dst, h); err != nil {
			return nil, err
		}
		if h.Fin {
			if !utf8.Valid(dst) {
				return nil, &violation{frames.StatusInvalidFramePayloadData, "the text is not UTF-8"}
			}
			return dst, nil
		}
		state = state.Set(frames.StateFragmented)
	}
}

// awaitFrame returns once a frame has begun, by until if that is not zero. A client that says nothing is asked whether it is there.
func (k *socket) awaitFrame(until time.Time) error {
	for silent := 0; ; silent++ {
		end := time.Now().Add(k.s.o.Ping)
		if !until.IsZero() && until.Before(end) {
			end = until
		}
		k.deadline(end)
		_, err := k.r.Peek(1)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, os.ErrDeadlineExceeded) || k.isEnding() || !until.IsZero() && !time.Now().Before(until):
			return err
		case silent == 1:
			return errSilent
		}
		if err := k.send(frames.CompiledPing); err != nil {
			return err
		}
	}
}

// payload appends a frame's payload, taking memory only for what has arrived.
func (k *socket) payload(ctx context.Context, dst []byte, h frames.Header) ([]byte, error) {
	for from := len(dst); h.Length > int64(len(dst)-from); {
		at := len(dst)
		n := int(min(h.Length-int64(at-from), int64(max(readBuffer, at))))
		if at+n > largeMessage {
			if err := k.s.o.Reserve(ctx, n, at+n); err != nil {
				return nil, &violation{tryAgainLater, "there is no room for large messages now; come back, or send smaller ones"}
			}
		}
		dst = slices.Grow(dst, n)[:at+n]
		if _, err := io.ReadFull(k.r, dst[at:]); err != nil {
			return nil, err
		}
		frames.Cipher(dst[at:], h.Mask, at-from)
	}
	return dst, nil
}

// control answers a control frame (RFC 6455, 5.5); io.EOF after the client's close frame.
func (k *socket) control(ctx context.Context, h frames.Header) error {
	p, err := k.payload(ctx, nil, h)
	if err != nil {
		return err
	}
	switch h.OpCode {
	case frames.OpPing:
		return k.send(appendFrame(nil, frames.OpPong, p))
	case frames.OpClose:
		code, reason := frames.ParseCloseFrameData(p)
		switch {
		case len(p) == 0:
			code = frames.StatusNormalClosure
		case len(p) == 1:
			return &violation{frames.StatusProtocolError, "a close frame of one byte"}
		default:
			if err := frames.CheckCloseFrameData(code, reason); err != nil {
				return &violation{frames.StatusProtocolError, err.Error()}
			}
		}
		k.close(code, "")
		return io.EOF
	}
	return nil
}

// appendFrame appends one whole frame of the server's.
func appendFrame(dst []byte, op frames.OpCode, payload []byte) []byte {
	dst = append(dst, 0x80|byte(op))
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, byte(n))
	case n < 1<<16:
		dst = append(dst, 126, byte(n>>8), byte(n))
	default:
		dst = append(dst, 127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(dst, payload...)
}

// send writes whole frames. What a client does not take waits in the connection alone: a write that ends
// late drops the client, which may resume.
func (k *socket) send(b []byte) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	if k.shut {
		return errClosed
	}
	err := k.nc.SetWriteDeadline(time.Now().Add(k.s.o.WriteTimeout))
	if err == nil {
		_, err = k.nc.Write(b)
	}
	if err != nil {
		k.shut = true
		if errors.Is(err, os.ErrDeadlineExceeded) {
			k.s.dropped.Add(1)
		}
		k.deadline(time.Unix(1, 0)) // the reader ends
		return errClosed
	}
	return nil
}

// text sends one message.
func (k *socket) text(payload []byte) error {
	return k.send(appendFrame(make([]byte, 0, len(payload)+10), frames.OpText, payload))
}

// close sends a close frame, behind which nothing follows.
func (k *socket) close(code frames.StatusCode, reason string) {
	k.writing.Lock()
	defer k.writing.Unlock()
	if k.shut {
		return
	}
	k.shut = true
	reason = reason[:min(len(reason), 123)]
	_ = k.nc.SetWriteDeadline(time.Now().Add(k.s.o.CloseTimeout))
	_, _ = k.nc.Write(appendFrame(nil, frames.OpClose, frames.NewCloseFrameBody(code, reason)))
}

// deadline sets by when the reader must have read, unless that was set for good.
func (k *socket) deadline(t time.Time) {
	k.reading.Lock()
	defer k.reading.Unlock()
	if !k.ending {
		_ = k.nc.SetReadDeadline(t)
	}
	if t.Unix() == 1 {
		k.ending = true
	}
}

func (k *socket) isEnding() bool {
	k.reading.Lock()
	defer k.reading.Unlock()
	return k.ending
}
