package grpcapi

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// errEnded ends what still runs of a stream that is over.
var errEnded = errors.New("the stream is over")

// A line is the way to a stream's client. What the client does not take waits in its flow-control window alone; one that
// takes nothing for the write timeout is cut off: see patient.
type line struct {
	stream interface{ SendMsg(any) error }
	mu     sync.Mutex // one message after the other
}

// send sends a message. It may be called from several goroutines.
func (l *line) send(m any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stream.SendMsg(m)
}

// supervise runs the work of a stream. The work's context ends with the call, where the caller may not go on any more, which
// is also asked by still, and when the router drains; the work then ends by itself, and what it is sending may take its
// time.
func (s *Server) supervise(ctx context.Context, se *admission.Session, still func() error, work func(context.Context) error) error {
	ctx, release := se.Hold(ctx, still)
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errEnded)
	defer context.AfterFunc(s.draining, func() { cancel(errDraining) })()
	err := work(ctx)
	cause := context.Cause(ctx)
	if err != nil && cause != nil && (errors.Is(cause, event.ErrDenied) || errors.Is(cause, event.ErrUnavailable)) {
		return cause
	}
	return err
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
