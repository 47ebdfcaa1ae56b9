package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// load publishes until there were events, time and kills enough. It returns when every request is answered.
func (v *verification) load(ctx context.Context) error {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	enough := make(chan struct{})
	for connection := range v.o.connections {
		g.Go(func() error { return v.publish(ctx, connection, enough) })
	}
	g.Go(func() error {
		defer close(enough)
		if err := v.disturb(ctx, began); err != nil {
			return err
		}
		for v.share(began) < 1 {
			if err := sleep(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	})
	err := g.Wait()
	v.ledger.took = time.Since(began)
	return err
}

// share is how much of what was asked for is done: 1 is all of it.
func (v *verification) share(began time.Time) float64 {
	share := float64(v.ledger.acknowledged()) / float64(v.o.events)
	if v.o.duration > 0 {
		share = min(share, float64(time.Since(began))/float64(v.o.duration))
	}
	return share
}

// publish is one connection: small requests, one after the other, each repeated until it is acknowledged, as a careful
// client does; the router drops the repeats.
func (v *verification) publish(ctx context.Context, connection int, enough <-chan struct{}) error {
	rnd := rand.New(rand.NewPCG(uint64(connection), rand.Uint64()))
	next := make([]int, keysEach)
	var body []byte
	for {
		select {
		case <-enough:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if v.ledger.acknowledged() > 2*v.o.events { // while it waits for a kill a trickle is load enough
			if err := sleep(ctx, 20*time.Millisecond); err != nil {
				return err
			}
		}
		body = body[:0]
		size := 1 + rnd.IntN(16)
		for range size {
			k := rnd.IntN(keysEach)
			body = v.ledger.appendEvent(body, connection*keysEach+k, next[k])
			next[k]++
		}
		for k, to := range next {
			v.ledger.publish(connection*keysEach+k, to)
		}
		if err := v.acknowledged(ctx, body, size); err != nil {
			return err
		}
		for k, to := range next {
			v.ledger.acknowledge(connection*keysEach+k, to)
		}
	}
}

// acknowledged publishes one request until the router acknowledges it.
func (v *verification) acknowledged(ctx context.Context, body []byte, size int) error {
	for gone := time.Now(); ; {
		answer, err := v.c.call(ctx, "POST", v.c.path("topics", v.ledger.topic, "events"), body, "Content-Type", "application/x-ndjson")
		if err == nil {
			var n struct{ Accepted int }
			if json.Unmarshal(answer, &n) != nil || n.Accepted != size {
				return fmt.Errorf("publishing %d events was answered %.200q", size, answer)
			}
			return nil
		}
		var p *problem
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &p) && p.Status < 500 && p.Status != http.StatusTooManyRequests:
			return fmt.Errorf("publishing: %w", err)
		case time.Since(gone) > v.o.patience:
			return fmt.Errorf("nothing could be published for %s: %w", v.o.patience, err)
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// pullers takes from the pull subscription until ctx ends.
func (v *verification) pullers(ctx context.Context) *sync.WaitGroup {
	w := v.ledger.way(wayPull)
	var pulling sync.WaitGroup
	for range 2 {
		pulling.Go(func() {
			for ctx.Err() == nil {
				if err := v.pull(ctx, w); err != nil {
					_ = sleep(ctx, 20*time.Millisecond) // the router is away, or just comes back
				}
			}
		})
	}
	return &pulling
}

func (v *verification) pull(ctx context.Context, w *way) error {
	var got struct{ Deliveries []leased }
	name := v.name + "-" + wayPull
	if err := v.c.callJSON(ctx, "POST", v.c.path(kindSubscriptions, name, "pull"), map[string]any{"max": 500, "wait": "2s"}, &got); err != nil {
		return err
	}
	if len(got.Deliveries) == 0 {
		return nil
	}
	leases := make([]string, len(got.Deliveries))
	for i, d := range got.Deliveries {
		leases[i] = d.Lease
		var e arrived
		if err := json.Unmarshal(d.Event, &e); err != nil {
			return err
		}
		v.ledger.take(w, e)
	}
	return v.c.callJSON(ctx, "POST", v.c.path(kindSubscriptions, name, "ack"), map[string]any{"leases": leases}, nil)
}

// settle waits until everything acknowledged has come by every way, or nothing comes any more.
func (v *verification) settle(ctx context.Context) error {
	begin := time.Now()
	for {
		left := 0
		last := begin
		for _, w := range v.ledger.ways {
			_, n := v.ledger.missing(w)
			left += n
			w.mu.Lock()
			if w.came.After(last) {
				last = w.came
			}
			w.mu.Unlock()
		}
		if left == 0 || time.Since(last) > v.o.patience {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}
