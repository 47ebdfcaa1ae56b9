package webhook

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/millrace/millrace/engine/event"
)

const (
	headerLimit = 8 << 10  // bytes of an answer's headers; past it the status line alone counts
	answerLimit = 64 << 10 // bytes of an answer's body that are read
	drainLimit  = time.Second
	idleLimit   = 30 * time.Second // an idle connection is closed after; most receivers do after 60 s
	ageLimit    = 5 * time.Minute  // a connection is not reused after, so that DNS changes are followed
)

// A keeper is a connection that may be taken away while idle (egress.Conn).
type keeper interface {
	Idle() bool
	Busy() bool
}

// A lane is what one delivery under way needs: at most one connection, kept alive between deliveries, and
// the buffers. One goroutine has it at a time; besides it only interrupt touches the connection.
type lane struct {
	conn   net.Conn // TLS over raw, or raw itself; nil: none
	keep   keeper   // raw, if it is one
	opened time.Time
	idle   time.Time // since when

	br     *bufio.Reader
	resp   fasthttp.Response
	macs   []hash.Hash // one a key; nil for those that sign with ed25519
	auth   string      // the value of Authorization; "": none
	sum    [sha256.Size]byte
	signed []byte // what is signed before the body
	head   []byte
	buf    []byte // the request
	answer []byte // the beginning of the last answer's body
	id     []byte // the webhook-id of a batch
	batch  bool   // the answer to come may tell of single events: then its body is read whole, up to answerLimit
	listen bool   // the answer to come is a reply: its body is read whole, up to event.MaxReply
	whole  bool   // the last answer's body is all there

	// An end of the context must end a delivery at once, without a goroutine each: while contexts stay
	// the same, as a subscription's do, one registration serves all deliveries of a lane.
	stop func() bool
	mu   sync.Mutex // guards done and raw against interrupt
	done <-chan struct{}
	raw  net.Conn
}

func newLane(t *target) *lane {
	l := &lane{}
	for _, k := range t.keys {
		l.macs = append(l.macs, k.mac())
	}
	return l
}

// past is a deadline that ends reads and writes under way.
var past = time.Unix(1, 0)

// watch makes ctx's end interrupt whatever l does.
func (l *lane) watch(ctx context.Context) {
	done := ctx.Done()
	if done == l.done { // only this goroutine writes it
		return
	}
	l.unwatch()
	if done == nil {
		return
	}
	l.mu.Lock()
	l.done = done
	l.mu.Unlock()
	l.stop = context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.done == done && l.raw != nil { // else a late call for an earlier context
			_ = l.raw.SetDeadline(past)
		}
	})
}

func (l *lane) unwatch() {
	if l.stop != nil {
		l.stop()
		l.stop = nil
	}
	l.mu.Lock()
	l.done = nil
	l.mu.Unlock()
}

// until sets the deadline, unless ctx has ended.
func (l *lane) until(ctx context.Context, deadline time.Time) error {
	if err := l.conn.SetDeadline(deadline); err != nil {
		return err
	}
	// In this order: an end before the check is seen here, one after it overrides the deadline.
	return ctx.Err()
}

// dial connects; deadline bounds the handshake too.
func (l *lane) dial(ctx context.Context, s *Sink, deadline time.Time) error {
	dctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	raw, err := s.o.Dialer.DialContext(dctx, "tcp", s.target.addr)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.raw = raw
	l.mu.Unlock()
	l.conn, l.opened = raw, time.Now()
	l.keep, _ = raw.(keeper)
	if l.br == nil {
		l.br = bufio.NewReaderSize(raw, headerLimit)
	}
	if s.tls != nil {
		config, err := s.tls()
		if err != nil {
			l.hangUp()
			return fmt.Errorf("TLS: %w", err)
		}
		if err := l.until(ctx, deadline); err != nil {
			l.hangUp()
			return err
		}
		c := tls.Client(raw, config)
		// Not HandshakeContext: the deadline bounds it, interrupt ends it, and no goroutine is needed.
		if err := c.Handshake(); err != nil {
			l.hangUp()
			return fmt.Errorf("TLS handshake: %w", err)
		}
		l.conn = c
	}
	l.br.Reset(l.conn)
	return nil
}

// hangUp closes the connection, if there is one.
func (l *lane) hangUp() {
	if l.conn == nil {
		return
	}
	l.mu.Lock()
	raw := l.raw
	l.raw = nil
	l.mu.Unlock()
	_ = raw.Close() // not TLS's: its close_notify could block
	l.conn, l.keep = nil, nil
}

// errStale means that a connection that was kept alive turned out to be closed, before any byte of an
// answer: the request may be sent once more.
var errStale = errors.New("the receiver closed the connection that was kept alive")

// exchange sends a request and reads the answer: l.resp, its status, and the beginning of its body in
// l.answer. Afterwards the connection is fit for another request or closed.
func (l *lane) exchange(ctx context.Context, wire []byte, deadline time.Time, reused bool) error {
	if err := l.until(ctx, deadline); err != nil {
		l.hangUp()
		return err
	}
	_, sent := l.conn.Write(wire)
	if sent != nil {
		if isTimeout(sent) {
			l.hangUp()
			return sent
		}
		// Who refuses a request (413) may answer and close before it has read it all.
		if err := l.until(ctx, earlier(deadline, time.Now().Add(drainLimit))); err != nil {
			l.hangUp()
			return sent
		}
	}
	if err := l.readHeader(); err != nil {
		if err == io.EOF {
			err = l.alert()
		}
		l.hangUp()
		switch {
		case err == io.EOF && reused && !isTimeout(sent):
			return errStale
		case sent != nil:
			return fmt.Errorf("send: %w", sent)
		case err == io.EOF:
			return errors.New("the receiver closed the connection without an answer")
		}
		return err
	}
	if !l.readBody(ctx, deadline) || sent != nil || l.resp.ConnectionClose() ||
		l.br.Buffered() > 0 || time.Since(l.opened) > ageLimit {
		l.hangUp()
	}
	return nil
}

// alert is why TLS ended, which the reader of headers takes for an end: in TLS 1.3 a receiver refuses a client's
// certificate, or the lack of one, only after the handshake. It stays what the connection says to every read.
func (l *lane) alert() error {
	if c, ok := l.conn.(*tls.Conn); ok {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return err
		}
	}
	return io.EOF
}

// readHeader reads up to the end of the headers of the final answer. Headers past headerLimit leave the
// status: the receiver has taken the delivery, or not, whatever it says besides.
func (l *lane) readHeader() error {
	l.resp.Reset()
	for i := range 8 { // interim answers, 1xx
		err := l.resp.Header.Read(l.br)
		if err == io.EOF && i > 0 {
			return io.ErrUnexpectedEOF // there was an answer: not a stale connection
		}
		if err != nil && tooLong(err) {
			code, ok := statusLine(l.br)
			if !ok {
				return errors.New("the answer's first line is not that of HTTP/1.1")
			}
			l.resp.Header.Reset()
			l.resp.SetStatusCode(code)
			l.resp.SetConnectionClose()
			return nil
		}
		if err != nil {
			return err
		}
		if code := l.resp.StatusCode(); code < 100 || code > 199 || code == fasthttp.StatusSwitchingProtocols {
			return nil
		}
	}
	return errors.New("more than 8 interim answers (1xx) and no final one")
}

func tooLong(err error) bool {
	var small *fasthttp.ErrSmallBuffer
	return errors.As(err, &small)
}

// statusLine reads the code of a status line at the start of what br has buffered.
func statusLine(br *bufio.Reader) (int, bool) {
	b, _ := br.Peek(min(br.Buffered(), 13))
	if len(b) < 13 || string(b[:7]) != "HTTP/1." || b[8] != ' ' || b[12] != ' ' && b[12] != '\r' {
		return 0, false
	}
	code := 0
	for _, c := range b[9:12] {
		if c < '0' || c > '9' {
			return 0, false
		}
		code = code*10 + int(c-'0')
	}
	return code, code >= 200
}

// readBody reads the body. Where what it says changes nothing about the outcome that is at most answerLimit, and
// not for longer than drainLimit. It reports whether the body ended.
func (l *lane) readBody(ctx context.Context, deadline time.Time) bool {
	l.answer = l.answer[:0]
	limit, wait := answerLimit, drainLimit
	l.whole = false
	switch taken := l.resp.StatusCode() < 300; {
	case taken && l.listen:
		limit, wait = event.MaxReply+1, time.Until(deadline)
	case taken && l.batch && l.tells():
		limit, wait = answerLimit+1, time.Until(deadline)
	case taken && l.resp.Header.ConnectionClose():
		return false
	}
	n := l.resp.Header.ContentLength()
	switch code := l.resp.StatusCode(); {
	case n == 0, code == fasthttp.StatusNoContent, code == fasthttp.StatusNotModified:
		l.whole = true
		return true
	case code == fasthttp.StatusSwitchingProtocols:
		return false
	case n > 0 && n <= l.br.Buffered(): // it all came with the headers
		b, _ := l.br.Peek(n)
		l.answer = append(l.answer, b...)
		_, err := l.br.Discard(n)
		l.whole = err == nil
		return l.whole
	}
	if l.until(ctx, earlier(deadline, time.Now().Add(wait))) != nil {
		return false
	}
	l.resp.StreamBody = true
	if l.resp.ReadBody(l.br, 0) != nil {
		return false
	}
	body := l.resp.BodyStream()
	l.answer = grow(l.answer, 4<<10)
	read, ended := 0, false
	for !ended {
		if read == len(l.answer) {
			if read >= limit {
				break
			}
			l.answer = append(l.answer, make([]byte, min(read, limit-read))...)
		}
		k, err := body.Read(l.answer[read:])
		read += k
		if err != nil {
			ended = err == io.EOF
			break
		}
	}
	l.answer, l.whole = l.answer[:read], ended
	// Closing the stream itself would read on without bound.
	return ended && n != -2 // -2: the body ends with the connection
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
