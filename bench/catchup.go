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

// measureCatchUp lets a pull subscription begin at the first event of a backlog: with nobody publishing, then while single
// events are published at half of the rate that publishing alone reaches, then while they are published as fast as the
// router takes them. Generator, consumers and router share the machine, so the last tells how the cores are divided.
func measureCatchUp() measurement {
	var r *routerProcess
	backlog := 0
	return measurement{name: "catch-up", gives: []string{"catch-up", "catch-up-busy", "publish-alone", "publish-offered", "publish-meanwhile", "publish-saturated"},
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
			to := func(where string) error {
				return r.call(ctx, "POST", "/v1/subscriptions/late/seek", "application/json", fmt.Appendf(nil, `{"to":%q}`, where), nil)
			}
			open := func(int) (drainer, error) { return newHTTPPuller(ctx, r.addr, "late", catchUpBatch) }
			if err := to("earliest"); err != nil {
				return err
			}
			rate, err := drained(ctx, catchUpConsumers, backlog, open)
			if err != nil {
				return err
			}
			put("catch-up", rate)
			if err := to("latest"); err != nil {
				return err
			}
			alone, err := r.publishing(ctx, 0, func() error { return sleep(ctx, l.length()) })
			if err != nil {
				return err
			}
			put("publish-alone", alone)
			put("publish-offered", alone/2)
			for _, half := range []bool{true, false} {
				if err := to("earliest"); err != nil {
					return err
				}
				offered, value := 0.0, "publish-saturated"
				if half {
					offered, value = alone/2, "publish-meanwhile"
				}
				var busy float64
				meanwhile, err := r.publishing(ctx, offered, func() (err error) {
					busy, err = drained(ctx, catchUpConsumers, backlog, open)
					return err
				})
				if err != nil {
					return err
				}
				put(value, meanwhile)
				if half {
					put("catch-up-busy", busy)
				}
			}
			return r.gone()
		}}
}

// publishing publishes single events to the backlog's topic over 64 connections until during has ended, as many a second
// as offered or, with 0, as fast as they are taken. It returns how many a second there were.
func (b *routerProcess) publishing(ctx context.Context, offered float64, during func() error) (float64, error) {
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
			for n := i; publish.Err() == nil; n += len(errs) {
				if offered > 0 && sleep(publish, time.Until(begin.Add(time.Duration(float64(n)/offered*float64(time.Second))))) != nil {
					return
				}
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
