package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// catchUpConsumers take what a subscription that is behind hands out, in the largest batches.
const (
	catchUpConsumers = 4
	catchUpBatch     = 1000
)

// measureCatchUp lets a pull subscription hand out a backlog from its first event on. Then single events are published as
// fast as the router takes them: alone; while another subscription reads the backlog with a filter that lets nothing
// pass; and while consumers empty it. Generator, consumers and router share the machine, so the last tells how the cores
// are divided rather than what the router makes of them.
func measureCatchUp() measurement {
	var r *routerProcess
	backlog := 0
	return measurement{name: "catch-up", gives: []string{"catch-up", "publish-alone", "publish-meanwhile", "publish-pulled"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			var err error
			if r == nil {
				if r, err = l.router(); err != nil {
					return err
				}
				for _, c := range [][2]string{{"/v1/topics", `{"name":"lagging","retain":{"bytes":"16GiB"}}`},
					{"/v1/subscriptions", `{"name":"late","topic":"lagging","start":"latest","deliver":{"pull":{}}}`}} {
					if err := r.call(ctx, "POST", c[0], "application/json", []byte(c[1]), nil); err != nil {
						return err
					}
				}
				backlog = l.o.backlog
				if err := r.fill(ctx, "lagging", backlog); err != nil {
					return err
				}
			}
			to, err := l.receiver()
			if err != nil {
				return err
			}
			seek := func(where string) error {
				return r.call(ctx, "POST", "/v1/subscriptions/late/seek", "application/json", fmt.Appendf(nil, `{"to":%q}`, where), nil)
			}
			open := func(int) (drainer, error) { return newHTTPPuller(ctx, r.addr, "late", catchUpBatch) }
			if err := seek("earliest"); err != nil {
				return err
			}
			rate, err := drained(ctx, catchUpConsumers, backlog, open)
			if err != nil {
				return err
			}
			put("catch-up", rate)
			if err := seek("latest"); err != nil {
				return err
			}
			if rate, err = r.publishing(ctx, func() error { return sleep(ctx, l.length()) }); err != nil {
				return err
			}
			put("publish-alone", rate)
			rate, err = r.publishing(ctx, func() error {
				for end := time.Now().Add(l.length()); time.Now().Before(end); {
					if _, err := r.readAll(ctx, "lagging", to.addr); err != nil {
						return err
					}
					if err := r.call(ctx, "DELETE", "/v1/subscriptions/behind", "", nil, nil); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			put("publish-meanwhile", rate)
			if err := seek("earliest"); err != nil {
				return err
			}
			rate, err = r.publishing(ctx, func() error {
				_, err := drained(ctx, catchUpConsumers, backlog, open)
				return err
			})
			if err != nil {
				return err
			}
			put("publish-pulled", rate)
			return r.gone()
		}}
}

// publishing publishes single events to the backlog's topic over 64 connections, as fast as they are taken, until during
// has ended. It returns how many a second there were.
func (b *routerProcess) publishing(ctx context.Context, during func() error) (float64, error) {
	var sent atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, deliverConnections)
	publish, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		wg.Wait()
	}()
	begin := time.Now()
	for i := range errs {
		p, err := newPoster(ctx, b.addr, postRequest(b.addr, "/v1/topics/lagging/events?type=order.created", "application/json", eventData(i)))
		if err != nil {
			return 0, err
		}
		wg.Go(func() {
			defer p.conn.Close()
			for publish.Err() == nil {
				if errs[i] = p.post(); errs[i] != nil {
					return
				}
				sent.Add(1)
			}
		})
	}
	err := during()
	n, took := sent.Load(), time.Since(begin)
	stop()
	wg.Wait()
	return float64(n) / took.Seconds(), errors.Join(append(errs, err)...)
}
