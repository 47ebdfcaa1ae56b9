package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// receiver is where a push subscription of one run delivers to.
type receiver struct {
	d    *driver
	b    *account
	name string
	run  int
	sky  *atomic.Int32
}

func (r *receiver) Close() error { return nil }

func (r *receiver) Deliver(ctx context.Context, ds []event.Delivery) error {
	d := ds[0]
	id := strings.Clone(d.Event.Attr(event.TagID))
	tok := r.d.l.begin(r.b, r.run, id, d.Attempt)
	how, wait, err := r.answer(ctx, id, d.Attempt)
	r.d.l.end(tok, how, wait, false)
	if err != nil && how == failed && r.d.bug == ackOn500 {
		return nil
	}
	if err == errPanic {
		panic("a receiver's")
	}
	return err
}

// severalReceiver is a receiver that takes several at once, and answers for each.
type severalReceiver struct{ *receiver }

func (r *severalReceiver) Batch() (events, bytes int, wait time.Duration) {
	return 4, 1 << 20, time.Second
}

func (r *severalReceiver) Deliver(ctx context.Context, ds []event.Delivery) error {
	toks, ids := make([]*token, len(ds)), make([]string, len(ds))
	for i, d := range ds {
		ids[i] = strings.Clone(d.Event.Attr(event.TagID))
		toks[i] = r.d.l.begin(r.b, r.run, ids[i], d.Attempt)
	}
	part := &event.Partial{Errs: make([]error, len(ds))}
	hows, waits := make([]outcome, len(ds)), make([]time.Duration, len(ds))
	bad := false
	for i, d := range ds {
		hows[i], waits[i], part.Errs[i] = r.answer(ctx, ids[i], d.Attempt)
		if hows[i] == stopped || part.Errs[i] == errPanic { // 410 of one event dead-letters it
			hows[i], waits[i], part.Errs[i] = failed, 0, event.Permanent(422, errors.New("no"))
		}
		bad = bad || part.Errs[i] != nil
	}
	for i, tok := range toks {
		if ctx.Err() != nil { // all of it is sent again
			hows[i] = stopped
		}
		r.d.l.end(tok, hows[i], waits[i], false)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bad:
		return part
	}
	return nil
}

var errPanic = errors.New("panic")

// answer is what the receiver does with a delivery: the same for the same delivery in the same weather.
func (r *receiver) answer(ctx context.Context, id string, attempt int) (outcome, time.Duration, error) {
	h := fnv.New64a()
	fmt.Fprint(h, r.d.seed, r.name, id, attempt)
	luck := int(h.Sum64() % 100)
	slow := func(d time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
			return true
		}
	}
	sky := r.sky.Load()
	if bad := []int{0, 40, 100}[sky%3]; luck >= bad {
		if luck%4 == 3 && !slow(2*time.Second) {
			return stopped, 0, ctx.Err()
		}
		return taken, 0, nil
	}
	switch luck % 8 {
	case 0:
		return failed, 90 * time.Second, &event.RetryAfter{Err: errors.New("busy"), Wait: 90 * time.Second, Code: 503}
	case 1:
		if !slow(5 * time.Second) {
			return stopped, 0, ctx.Err()
		}
		return failed, 0, errors.New("timeout")
	case 2:
		return failed, 0, event.Permanent(422, errors.New("no"))
	case 3:
		if luck%16 == 3 {
			return stopped, 0, event.Disable(410, errors.New("gone"))
		}
	case 4:
		if luck%16 == 4 {
			return failed, 0, errPanic
		}
	}
	return failed, 0, errors.New("answered 500")
}
