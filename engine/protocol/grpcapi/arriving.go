package grpcapi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// readAhead is how many bytes of a call's messages are read before the call asks for them.
const readAhead = 256 << 10

// arriving is what comes in of a call: messages, each of which says its length first. gRPC reads it on a goroutine that knows
// no bound. So it is held back here until the call has taken what came before, and until there is room for a large message,
// which then has to come to its end in time.
type arriving struct {
	s     *Server
	se    *admission.Session // nil: a stranger's
	body  io.ReadCloser
	timer *time.Timer // until the message that is being read must be there

	// Of the goroutine that reads.
	head  [5]byte // of the message that has just begun: compressed u8, length u32
	got   int     // bytes of head that have come, if not all have
	left  int     // bytes of the message that are still to come
	size  int     // of it
	moves bool    // a message has begun and timer runs

	mu     sync.Mutex
	moved  sync.Cond
	sizes  []int // of messages that are there and not taken
	ahead  int   // their bytes
	closed bool
	room   admission.Room
	failed error // why nothing more is read
}

type arrivingKey struct{}

func newArriving(s *Server, se *admission.Session, body io.ReadCloser, ctl *http.ResponseController) *arriving {
	a := &arriving{s: s, se: se, body: body}
	a.moved.L = &a.mu
	a.timer = time.AfterFunc(time.Hour, func() { _ = ctl.SetReadDeadline(time.Unix(1, 0)) })
	a.timer.Stop()
	return a
}

// Read reads on once there is room for what comes.
func (a *arriving) Read(p []byte) (int, error) {
	a.mu.Lock()
	for a.ahead > readAhead && !a.closed && a.failed == nil {
		a.moved.Wait()
	}
	over := a.closed || a.failed != nil
	a.mu.Unlock()
	if over {
		return 0, io.EOF
	}
	for {
		n, err := a.body.Read(p[copy(p, a.head[:a.got]):])
		n += a.got
		a.got = 0
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, a.fail(fmt.Errorf("a message did not come to its end within %s: %w", a.s.o.MessageTimeout, event.ErrUnavailable))
		}
		if shown := a.scan(p[:n]); shown > 0 || err != nil {
			return shown, err
		} else if a.failure() != nil {
			return 0, io.EOF
		}
	}
}

// scan finds out where messages begin and end, and returns how much of b may be shown: up to the header of a message that is
// not to be read, or of which the rest is still to come.
func (a *arriving) scan(b []byte) (shown int) {
	for all := len(b); ; {
		if a.left == 0 {
			if len(b) < len(a.head) {
				if a.got = copy(a.head[:], b); a.got > 0 {
					a.begun()
				}
				return all - len(b)
			}
			a.size = int(binary.BigEndian.Uint32(b[1:]))
			if !a.reserve() {
				return all - len(b)
			}
			a.left, b = a.size, b[len(a.head):]
		}
		n := min(a.left, len(b))
		if a.left, b = a.left-n, b[n:]; a.left > 0 {
			a.begun()
			return all
		}
		a.there()
	}
}

// begun has the message that has begun come to its end in time.
func (a *arriving) begun() {
	if !a.moves {
		a.moves = true
		a.timer.Reset(a.s.o.MessageTimeout)
	}
}

// reserve takes room for a large message before it is read; false: it is not to be. Strangers have nothing large to say.
func (a *arriving) reserve() bool {
	if a.size <= largeMessage {
		return true
	}
	limit := a.s.o.Limits.Body
	if a.se == nil {
		limit = largeMessage
	}
	if a.size > limit {
		a.s.o.Door.Refused(admission.BodySize)
		_ = a.fail(status.Errorf(codes.ResourceExhausted, "a message of %d bytes; at most %d", a.size, limit))
		return false
	}
	err := a.s.o.Door.Shed(int64(a.size))
	a.mu.Lock()
	if err == nil && !a.closed {
		err = a.s.o.Door.Reserve(&a.room, int64(a.size), false)
	}
	a.mu.Unlock()
	if err != nil {
		_ = a.fail(err)
	}
	return err == nil
}

// there notes that a message has come to its end.
func (a *arriving) there() {
	if a.moves {
		a.moves = false
		a.timer.Stop()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sizes = append(a.sizes, a.size)
	a.ahead += a.size
}

// taken notes that the call has taken a message. What it holds of it then is the call's to reserve.
func (a *arriving) taken() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.sizes) == 0 {
		return
	}
	size := a.sizes[0]
	if a.sizes = a.sizes[1:]; len(a.sizes) == 0 {
		a.sizes = nil
	}
	if a.ahead -= size; size > largeMessage && !a.closed {
		a.s.o.Door.Return(&a.room, int64(size))
	}
	a.moved.Broadcast()
}

func (a *arriving) fail(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed == nil {
		a.failed = err
	}
	return a.failed
}

// failure is why reading ended; nil if by the client's doing, or not.
func (a *arriving) failure() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed
}

// Close ends reading.
func (a *arriving) Close() error {
	a.release()
	return a.body.Close()
}

// release gives back the room, and frees whoever reads.
func (a *arriving) release() {
	a.timer.Stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.s.o.Door.Release(&a.room)
	a.moved.Broadcast()
}

// takes tells what arrives when a call has taken a message.
type takes struct{}

// TagRPC leaves the context as it is.
func (takes) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC hears of messages.
func (takes) HandleRPC(ctx context.Context, x stats.RPCStats) {
	if _, ok := x.(*stats.InPayload); !ok {
		return
	}
	if a, ok := ctx.Value(arrivingKey{}).(*arriving); ok {
		a.taken()
	}
}

// TagConn leaves the context as it is.
func (takes) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing: connections are net/http's.
func (takes) HandleConn(context.Context, stats.ConnStats) {}
