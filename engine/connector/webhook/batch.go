package webhook

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/millrace/millrace/engine/event"
)

// Batch lets a request carry several events, as one batch of CloudEvents in JSON. Zero: no batches.
type Batch struct {
	Events int           `yaml:"events" about:"Of one request; 1 to 10,000. 1 is no batches."`            // of one request; 1 to 10000, 1: no batches
	Bytes  int64         `yaml:"bytes" about:"Of its body. An event that is larger goes alone."`          // of its body; 1 MiB. An event that is larger goes alone
	Wait   time.Duration `yaml:"wait" about:"For more events once there is one; 0s: what is there goes."` // for more events once there is one; 0: what is there goes
}

// Bounds of Batch.
const (
	maxBatch      = 10_000
	minBatchBytes = 1 << 10
	maxBatchBytes = 16 << 20
	maxBatchWait  = time.Minute
)

const batchType = "application/cloudevents-batch+json; charset=utf-8"

func (b Batch) several() bool { return b.Events > 1 }

func (b Batch) withDefaults() Batch {
	if b != (Batch{}) && b.Bytes == 0 {
		b.Bytes = 1 << 20
	}
	return b
}

func (b Batch) check(o Options, fault func(at, format string, args ...any)) {
	if b == (Batch{}) {
		return
	}
	if b.Events < 1 || b.Events > maxBatch {
		fault("batch.events", "is %d; want 1 (no batches) to %d", b.Events, maxBatch)
	}
	if b.Bytes < minBatchBytes || b.Bytes > maxBatchBytes {
		fault("batch.bytes", "is %d; want 1KiB to 16MiB", b.Bytes)
	}
	if b.Wait < 0 || b.Wait > maxBatchWait {
		fault("batch.wait", "is %s; want 0s to %s", b.Wait, maxBatchWait)
	}
	if !b.several() {
		return
	}
	if o.Format == Binary || o.Format == Data {
		fault("batch", "does not go with format: %s, whose requests have room for one event; use format: %s or remove batch", o.Format, Structured)
	}
	if o.Reply {
		fault("batch", "does not go with reply: true, for an answer to a batch is the reply to none of its events; remove one of them")
	}
}

// Batch is how many events Deliver takes at once, how many bytes, and how long to wait for more.
func (s *Sink) Batch() (events, bytes int, wait time.Duration) {
	b := s.o.Batch
	return max(b.Events, 1), int(b.Bytes), b.Wait
}

// deliverBatch posts ds as one batch, or as several where one would be larger than the receiver takes.
func (s *Sink) deliverBatch(ctx context.Context, ds []event.Delivery) error {
	var errs []error // by delivery, once one has failed
	fail := func(from, to int, err error) {
		if errs == nil {
			errs = make([]error, len(ds))
		}
		for i := from; i < to; i++ {
			errs[i] = err
		}
	}
	for from := 0; from < len(ds); {
		n, failed, err := s.postBatch(ctx, ds[from:])
		switch {
		case err == errCut: // it is cut smaller
			continue
		case err != nil && n == 1 && alone(err): // another event may well be taken
			fail(from, from+1, err)
		case err != nil && from == 0:
			return err
		case err != nil: // what was taken stays taken
			fail(from, len(ds), err)
			return &event.Partial{Errs: errs}
		case failed != nil:
			fail(from, from, nil)
			copy(errs[from:], failed)
		}
		from += n
	}
	if errs == nil {
		return nil
	}
	if len(ds) == 1 {
		return errs[0]
	}
	return &event.Partial{Errs: errs}
}

// alone reports whether an error is about the event that was sent rather than about the receiver.
func alone(err error) bool {
	return event.Code(err) == 413 || event.IsPermanent(err) && !event.IsDisable(err)
}

// errCut means that the receiver takes less at once, and that Sink.fits says so now.
var errCut = errors.New("the receiver takes less at once")

// postBatch posts as many of ds as one body takes, at least one, and returns how many. failed, if not nil, says of each
// of them whether it was taken.
func (s *Sink) postBatch(ctx context.Context, ds []event.Delivery) (n int, failed []error, err error) {
	l, deadline, err := s.begin(ctx)
	if err != nil {
		return len(ds), nil, err
	}
	defer s.release(l)
	if err := s.authorize(ctx, l, deadline); err != nil {
		return len(ds), nil, err
	}
	wire, body, n, err := s.target.buildBatch(l, ds, int(s.fits.Load()), s.o.Now().Unix())
	if err != nil {
		return n, nil, err
	}
	l.listen, l.batch = false, true
	if err := s.post(ctx, l, wire, deadline); err != nil {
		return n, nil, s.failed(ctx, err)
	}
	if l.resp.StatusCode() == 413 && n > 1 {
		s.takesLess(int64(body))
		return n, nil, errCut
	}
	if err := s.outcome(l); err != nil {
		return n, nil, err
	}
	failed, err = s.fates(l, n)
	return n, failed, err
}

// takesLess halves what is sent at once after a body that the receiver found too large.
func (s *Sink) takesLess(body int64) {
	for half := body / 2; ; {
		was := s.fits.Load()
		if was <= half || s.fits.CompareAndSwap(was, half) {
			return
		}
	}
}

// buildBatch makes the whole request for as many of ds as fit into limit bytes of body, at least one, in l's
// buffers. An error is about the first of ds alone.
func (t *target) buildBatch(l *lane, ds []event.Delivery, limit int, ts int64) (wire []byte, body, n int, err error) {
	if !plainID(ds[0].ID) {
		return nil, 0, 1, event.Permanent(0, fmt.Errorf("webhook-id %.80q is empty or not printable ASCII", ds[0].ID))
	}
	room := t.leaveRoom(l, len(ds[0].ID)+idSuffix)
	l.buf = append(l.buf, '[')
	for n < len(ds) {
		before := len(l.buf)
		if n > 0 {
			l.buf = append(l.buf, ',')
		}
		l.buf = ds[n].Event.AppendStructured(l.buf)
		if n > 0 && (len(l.buf)+1-room > limit || !plainID(ds[n].ID)) {
			l.buf = l.buf[:before]
			break
		}
		n++
	}
	l.buf = append(l.buf, ']')
	id := l.batchID(ds[:n])
	return t.precede(l, room, batchType, id, ts), len(l.buf) - room, n, nil
}

// idSuffix is the length of what batchID adds to an id.
const idSuffix = 1 + 16

// batchID is the webhook-id of a batch: that of a single event, or the first's, + and a hash of the ids of all. The
// same events in the same order have the same. It is valid until the next.
func (l *lane) batchID(ds []event.Delivery) string {
	if len(ds) == 1 {
		return ds[0].ID
	}
	l.signed = l.signed[:0]
	for i := range ds {
		l.signed = append(append(l.signed, ds[i].ID...), '\n')
	}
	sum := sha256.Sum256(l.signed)
	l.id = append(append(l.id[:0], ds[0].ID...), '+')
	l.id = hex.AppendEncode(l.id, sum[:(idSuffix-1)/2])
	return unsafe.String(unsafe.SliceData(l.id), len(l.id))
}

// refused is the error of one event of a batch.
func (s *Sink) refused(l *lane, f fate) error {
	text := "failed"
	if f.status != 0 {
		text = "answered " + statusText(f.status)
	}
	if f.says != "" {
		text += "; it says " + s.quote(l, f.says)
	}
	err := fmt.Errorf("webhook %s answered %s: event %d of the batch %s", s.target.name, statusText(l.resp.StatusCode()), f.index, text)
	code := f.status
	if code == 0 {
		code = l.resp.StatusCode()
	}
	if code == 410 { // of one event; the subscription has others
		return event.Permanent(code, err)
	}
	wait := f.wait
	if wait == 0 {
		wait = retryAfter(string(l.resp.Header.Peek("Retry-After")), s.o.Now())
	}
	return &event.RetryAfter{Err: err, Code: code, Wait: wait}
}
