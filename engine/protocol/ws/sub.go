package ws

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	frames "github.com/gobwas/ws"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// A sub is one subscription of a socket: a reader of a topic, or a puller of a subscription.
type sub struct {
	ref    string
	quoted []byte // ref as JSON
	reader Reader // nil for a puller; its pump's alone
	name   string // of what is read
	kind   access.Kind
	may    access.Action // on it, for as long as it is read
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when the pump has ended
	cursor string        // thereafter: from where to resume

	mu     sync.Mutex
	credit int                  // events that may still be sent
	leased map[string]time.Time // deliveries that the client holds, by lease, until their deadline
	more   chan struct{}        // holds one when there is more credit or room
}

// gathered is how many bytes of events are written at once; more wait for nobody.
const gathered = 64 << 10

// buffers are a pump's while it writes, so that one that waits keeps none.
type buffers struct{ payload, out []byte }

func (b *buffers) frame() {
	b.out = appendFrame(b.out, frames.OpText, b.payload)
	b.payload = b.payload[:0]
}

// grant adds credit; false if that would be more than maxCredit.
func (u *sub) grant(n int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.credit+n > maxCredit {
		return false
	}
	u.credit += n
	u.wake()
	return true
}

func (u *sub) wake() {
	select {
	case u.more <- struct{}{}:
	default:
	}
}

// allowed asks whether the client may read what a subscription reads, or still may.
func (k *socket) allowed(ctx context.Context, u *sub) error {
	return k.s.o.May(ctx, u.may, u.kind, u.name)
}

// allowed waits until events may be sent and says how many. Deliveries that the client holds count against maxLeased
// until they are settled or expire.
func (u *sub) allowed(ctx context.Context, now func() time.Time) (int, error) {
	for {
		u.mu.Lock()
		n, full := u.credit, false
		if u.reader == nil {
			if len(u.leased) >= maxLeased {
				maps.DeleteFunc(u.leased, func(_ string, deadline time.Time) bool { return deadline.Before(now()) })
			}
			full = len(u.leased) >= maxLeased
			n = min(n, maxLeased-len(u.leased), pullBatch)
		}
		u.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		var expired <-chan time.Time
		if full {
			expired = time.After(time.Second) // some leases may be
		}
		select {
		case <-u.more:
		case <-expired:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
}

func (u *sub) spent(n int) {
	u.mu.Lock()
	u.credit -= n
	u.mu.Unlock()
}

// pump sends what a subscription has until it ends, and says how it ended unless the client knows.
func (k *socket) pump(ctx context.Context, u *sub) {
	defer k.pumps.Done()
	defer close(u.ended)
	var err error
	if u.reader != nil {
		err = k.read(ctx, u)
		u.cursor = u.reader.Cursor()
		u.reader.Close()
	} else {
		err = k.pull(ctx, u)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, event.ErrDenied) || errors.Is(err, event.ErrNotFound) {
		u.cursor = "" // it may be behind an event that was read and not sent
	}
	k.mu.Lock()
	if k.subs[u.ref] == u {
		delete(k.subs, u.ref)
	}
	k.mu.Unlock()
	// A router that stops leaves leases as they are: they can be settled after its restart.
	if u.reader == nil && !errors.Is(err, errDraining) {
		k.giveBack(ctx, u)
	}
	if errors.Is(err, errUnsubscribed) || errors.Is(err, errClosed) {
		return
	}
	doc, internal := k.s.o.Problem(err)
	if internal {
		k.s.o.Log.Error("a WebSocket subscription failed", "ref", u.ref, "error", err)
	}
	out := append([]byte(`{"op":"end","ref":`), u.quoted...)
	if u.cursor != "" {
		out = append(append(append(out, `,"cursor":"`...), u.cursor...), '"')
	}
	_ = k.text(append(append(out, ','), doc[1:]...))
}

// giveBack makes deliveries that were not settled due again.
func (k *socket) giveBack(ctx context.Context, u *sub) {
	u.mu.Lock()
	held := slices.Collect(maps.Keys(u.leased))
	u.leased = nil
	u.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	for some := range slices.Chunk(held, 1000) {
		if _, err := k.s.o.Backend.Settle(ctx, u.name, some, event.Settling{Verb: event.Nack}); err != nil {
			k.s.o.Log.Warn("deliveries of a closed WebSocket come again when their leases expire", "subscription", u.name, "error", err)
			return
		}
	}
}

// read sends events of a reader.
func (k *socket) read(ctx context.Context, u *sub) error {
	told := u.reader.Cursor()
	for {
		n, err := u.allowed(ctx, k.s.o.Now)
		if err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, k.s.o.Ping)
		rec, err := u.reader.Next(wait)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			if at := u.reader.Cursor(); at != told { // a filter has passed over events: the ring must not overtake who resumes
				told = at
				err = k.text([]byte(`{"op":"cursor","ref":` + string(u.quoted) + `,"cursor":"` + at + `"}`))
			} else {
				err = nil
			}
			if err != nil {
				return err
			}
			continue
		}
		if err == nil {
			if err := k.allowed(ctx, u); err != nil { // what he may do can have changed since the batch before
				return err
			}
		}
		b := k.s.buffers.Get().(*buffers)
		sent := 0
		for err == nil {
			told = u.reader.Cursor()
			k.event(b, u, told, rec)
			if sent++; sent == n || len(b.out) >= gathered {
				break
			}
			var ok bool
			if rec, ok, _, err = u.reader.TryNext(ctx); !ok {
				break
			}
		}
		if sent > 0 {
			u.spent(sent)
			// Were events sent, then what came behind them is told by the next call, which begins with it.
			err = k.send(b.out)
		}
		k.s.release(b)
		if err != nil {
			return err
		}
	}
}

// event appends a frame with an event of a reader.
func (k *socket) event(b *buffers, u *sub, cursor string, rec event.Record) {
	p := append(append(b.payload[:0], `{"op":"event","ref":`...), u.quoted...)
	p = append(append(append(p, `,"cursor":"`...), cursor...), `","position":"`...)
	p = append(rec.Position().Append(p), `","event":`...)
	b.payload = append(k.s.o.Render(p, rec), '}')
	b.frame()
}

// pull sends deliveries.
func (k *socket) pull(ctx context.Context, u *sub) error {
	for {
		n, err := u.allowed(ctx, k.s.o.Now)
		if err != nil {
			return err
		}
		began := time.Now()
		leases, err := k.s.o.Backend.Pull(ctx, u.name, n, pullWait)
		if err != nil {
			return err
		}
		if len(leases) == 0 {
			if time.Since(began) < 10*time.Millisecond { // it did not wait: the router begins to drain
				pause(ctx, 50*time.Millisecond)
			}
			continue
		}
		u.mu.Lock()
		u.credit -= len(leases)
		for i := range leases {
			u.leased[leases[i].ID] = leases[i].Deadline
		}
		u.mu.Unlock()
		if err := k.allowed(ctx, u); err != nil { // what he may do can have changed while he waited
			return errors.Join(err, k.unsent(u, leases))
		}
		b := k.s.buffers.Get().(*buffers)
		for i := range leases {
			k.delivery(b, u, &leases[i])
			if len(b.out) >= gathered || i == len(leases)-1 {
				if err = k.send(b.out); err != nil {
					err = errors.Join(err, k.unsent(u, leases[i+1:]))
					break
				}
				b.out = b.out[:0]
			}
		}
		k.s.release(b)
		if err != nil {
			return err
		}
	}
}

// unsent returns what the client was not sent: it was no attempt.
func (k *socket) unsent(u *sub, leases []event.Lease) error {
	if len(leases) == 0 {
		return nil
	}
	ids := make([]string, len(leases))
	u.mu.Lock()
	for i := range leases {
		ids[i] = leases[i].ID
		delete(u.leased, ids[i])
	}
	u.mu.Unlock()
	return k.s.o.Backend.Unpull(u.name, ids)
}

// delivery appends a frame with a delivery.
func (k *socket) delivery(b *buffers, u *sub, l *event.Lease) {
	p := append(append(b.payload[:0], `{"op":"event","ref":`...), u.quoted...)
	p = append(append(append(p, `,"lease":"`...), l.ID...), `","id":"`...)
	p = append(append(p, l.Delivery...), `","attempt":`...)
	p = append(strconv.AppendInt(p, int64(l.Attempt), 10), `,"deadline":"`...)
	p = append(l.Deadline.UTC().AppendFormat(p, time.RFC3339Nano), `","position":"`...)
	p = append(l.Event.Position().Append(p), `","event":`...)
	b.payload = append(k.s.o.Render(p, l.Event), '}')
	b.frame()
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
