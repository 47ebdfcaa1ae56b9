package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// errEnded ends what still runs of a stream that is over.
var errEnded = errors.New("the stream is over")

// A line is the way to a stream's client. What the client does not take waits in its flow-control window alone: a message
// that is not gone within the timeout makes the stream late, which ends it.
type line struct {
	stream interface{ SendMsg(any) error }
	patience
	mu sync.Mutex // one message after the other
}

// patience is how long one message may take.
type patience struct {
	timeout time.Duration
	late    chan struct{} // closed once a message has taken longer
	once    sync.Once
	timer   *time.Timer
}

func newLine(s *Server, stream interface{ SendMsg(any) error }) *line {
	l := &line{stream: stream, patience: patience{timeout: s.o.WriteTimeout, late: make(chan struct{})}}
	l.timer = time.AfterFunc(time.Hour, func() { l.once.Do(func() { close(l.late) }) })
	l.timer.Stop()
	return l
}

// send sends a message. It may be called from several goroutines.
func (l *line) send(m any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.late:
		return errEnded
	default:
	}
	l.timer.Reset(l.timeout)
	defer l.timer.Stop()
	return l.stream.SendMsg(m)
}

// supervise runs the work of a stream, on a goroutine of its own: only the return of a call can free one whose client does
// not read. The work's context ends with the call, where the caller may not go on any more, which is also asked by still,
// and when the router drains; the work then ends by itself, and what it is sending may take its time. It must not use the
// stream after its context has ended but to answer what was taken.
func (s *Server) supervise(ctx context.Context, se *admission.Session, still func() error, late <-chan struct{}, work func(context.Context) error) error {
	ctx, release := se.Hold(ctx, still)
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errEnded)
	defer context.AfterFunc(s.draining, func() { cancel(errDraining) })()

	done := make(chan error, 1)
	s.detached.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				s.o.Log.Error("a gRPC stream panicked", "panic", p, "stack", string(debug.Stack()))
				done <- errors.New("the stream panicked")
			}
		}()
		done <- work(ctx)
	})
	select {
	case err := <-done:
		cause := context.Cause(ctx)
		if err != nil && cause != nil && (errors.Is(cause, event.ErrDenied) || errors.Is(cause, event.ErrUnavailable)) {
			return cause
		}
		return err
	case <-late:
		s.dropped.Add(1)
		return fmt.Errorf("you have not read for %s: come back, and resume after the cursor: %w", s.o.WriteTimeout, event.ErrUnavailable)
	}
}

// paced waits until the caller may send another message: a stream is slowed to its sender's rate, not cut. An error is
// ctx's, or of whoever may not go on.
func paced(ctx context.Context, se *admission.Session) error {
	for {
		err := se.Spend()
		var many *admission.TooMany
		if !errors.As(err, &many) {
			return err
		}
		t := time.NewTimer(max(many.Wait, time.Millisecond))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}
