package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Sink posts deliveries to one URL. Deliver may be called from several goroutines at once.
type Sink struct {
	o       Options
	target  *target
	tls     func() (*tls.Config, error) // nil: http
	auth    authorization               // nil: none
	secrets *strings.Replacer           // hides them in what receivers answer

	fits  atomic.Int64  // bytes of a batch's body at most; less than the options say where the receiver refused that (413)
	slots chan struct{} // one for each lane in use; its capacity is MaxConns

	mu     sync.Mutex
	live   []*lane // idle, with a connection; the longest idle first
	bare   []*lane // idle, without
	timer  *time.Timer
	armed  bool // timer will run
	closed bool
}

// OpenSink returns a sink for o, or everything that is wrong in it. It connects to nothing yet.
func OpenSink(ctx context.Context, o Options) (*Sink, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.WithDefaults()
	if o.Dialer == nil {
		return nil, errors.New("webhook: Options.Dialer: missing")
	}
	t, err := newTarget(o)
	if err != nil {
		return nil, err
	}
	s := &Sink{o: o, target: t, secrets: secretsOf(o), slots: make(chan struct{}, o.MaxConns)}
	s.fits.Store(o.Batch.Bytes)
	if t.https {
		if s.tls, err = tlsOf(o, t.host); err != nil {
			return nil, err
		}
	}
	if s.auth, err = o.Auth.open(o); err != nil {
		return nil, err
	}
	return s, nil
}

// Deliver posts ds and returns nil once all were answered 2xx: each on its own, or with Options.Batch as one
// batch, in more requests only where one would be too large. An error is one failed attempt, of the whole or, as
// *event.Partial, of single ones: event.Disable for 410, event.Permanent for what cannot be written as a request or
// was answered 410 inside a batch, else an *event.RetryAfter with the status and the wait that the receiver asked
// for; ctx's error if ctx ended. It names scheme and host of the URL only.
func (s *Sink) Deliver(ctx context.Context, ds []event.Delivery) error {
	if s.o.Batch.several() {
		return s.deliverBatch(ctx, ds)
	}
	for i := range ds {
		if err := s.deliver(ctx, &ds[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sink) deliver(ctx context.Context, d *event.Delivery) error {
	l, deadline, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer s.release(l)
	if err := s.authorize(ctx, l, deadline); err != nil {
		return err
	}
	wire, err := s.target.build(l, d, s.o.Now().Unix())
	if err != nil {
		return err
	}
	l.listen, l.batch = d.Reply != nil, false
	if err := s.post(ctx, l, wire, deadline); err != nil {
		return s.failed(ctx, err)
	}
	if d.Reply != nil {
		l.reply(d.Reply)
	}
	return s.outcome(l)
}

// begin takes a lane for one request that must be answered by deadline.
func (s *Sink) begin(ctx context.Context) (l *lane, deadline time.Time, err error) {
	if err := ctx.Err(); err != nil {
		return nil, deadline, fmt.Errorf("webhook %s: %w", s.target.name, err)
	}
	deadline = time.Now().Add(s.o.Timeout)
	if t, ok := ctx.Deadline(); ok {
		deadline = earlier(deadline, t)
	}
	if l, err = s.acquire(ctx, deadline); err != nil {
		return nil, deadline, s.failed(ctx, err)
	}
	return l, deadline, nil
}

// post sends a request and reads its answer into l.
func (s *Sink) post(ctx context.Context, l *lane, wire []byte, deadline time.Time) error {
	l.watch(ctx)
	reused := l.conn != nil
	for {
		if l.conn == nil {
			if err := l.dial(ctx, s, deadline); err != nil {
				return err
			}
		}
		err := l.exchange(ctx, wire, deadline, reused)
		if err == errStale {
			// Receivers close idle connections when they like. Sent once more, on a new connection: at
			// worst the receiver sees one webhook-id twice.
			reused = false
			continue
		}
		return err
	}
}

// Replies reports whether Deliver fills in Delivery.Reply: an answer of 2xx, with its content type and body.
func (s *Sink) Replies() bool { return s.o.Reply }

// Host is what the sink connects to, as host:port. A name is in lower case.
func (s *Sink) Host() string { return s.target.addr }

// Target is the URL, secrets in it included: to be compared, not to be shown.
func (s *Sink) Target() string { return s.o.URL }

// acquire takes an idle lane, rather with a connection, and makes one if there is none. It waits while
// MaxConns are in use.
func (s *Sink) acquire(ctx context.Context, deadline time.Time) (*lane, error) {
	select {
	case s.slots <- struct{}{}:
	default:
		wait, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		select {
		case s.slots <- struct{}{}:
		case <-wait.Done():
			return nil, fmt.Errorf("all %d connections to it are in use: %w", cap(s.slots), wait.Err())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		<-s.slots
		return nil, errors.New("the sink is closed")
	}
	if n := len(s.live); n > 0 {
		l := s.live[n-1]
		s.live[n-1] = nil
		s.live = s.live[:n-1]
		if l.keep != nil && !l.keep.Busy() {
			l.hangUp() // another sink needed its place
		}
		return l, nil
	}
	if n := len(s.bare); n > 0 {
		l := s.bare[n-1]
		s.bare = s.bare[:n-1]
		return l, nil
	}
	return newLane(s.target), nil
}

func (s *Sink) release(l *lane) {
	if l.conn != nil && l.keep != nil && !l.keep.Idle() {
		l.hangUp()
	}
	if cap(l.answer) > 4<<10 {
		l.answer = nil
	}
	if cap(l.buf) > s.target.keep || l.conn == nil && cap(l.buf) > 4<<10 { // a lane may rest for long, one of thousands
		l.buf = nil
	}
	s.mu.Lock()
	if l.conn == nil || s.closed {
		l.hangUp()
		s.bare = append(s.bare, l)
	} else {
		l.idle = time.Now()
		s.live = append(s.live, l)
		if !s.armed {
			s.armed = true
			if s.timer == nil {
				s.timer = time.AfterFunc(idleLimit, s.reap)
			} else {
				s.timer.Reset(idleLimit)
			}
		}
	}
	s.mu.Unlock()
	<-s.slots
}

// reap closes the connections that were idle for too long, and drops their buffers.
func (s *Sink) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	n := 0
	for n < len(s.live) && now.Sub(s.live[n].idle) >= idleLimit {
		s.live[n].hangUp()
		s.live[n].unwatch()
		n++
	}
	s.live = append(s.live[:0], s.live[n:]...) // the lanes that were cut off go, buffers and all
	s.armed = len(s.live) > 0 && !s.closed
	if s.armed {
		s.timer.Reset(s.live[0].idle.Add(idleLimit).Sub(now))
	}
}

// Close closes the idle connections. A Deliver that is still under way ends as it would have, and its
// connection with it; later ones fail.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	for _, l := range append(s.live, s.bare...) {
		l.hangUp()
		l.unwatch()
	}
	s.live, s.bare = nil, nil
	return nil
}
