package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"time"
)

const (
	parkedBatch   = 500 // events a request
	parkedWriters = 4
)

// measureParked lets events of many keys wait behind a first one of each that failed: the target answers 404, so that
// no circuit opens. Then it looks at the router's memory, restarts it and takes the time until it is ready.
func measureParked() measurement {
	return measurement{name: "parked deliveries", gives: []string{"parked-idle", "parked-rss", "parked-heap", "parked-ready"}, once: true,
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			dir := []string{"--memory", "192MiB", "--data", filepath.Join(l.dir, "parked")}
			r, err := l.router(dir...)
			if err != nil {
				return err
			}
			defer func() { r.stop() }()
			if err := r.call(ctx, "POST", "/v1/topics", "application/json", []byte(`{"name":"parked","retain":{"bytes":"8GiB"}}`), nil); err != nil {
				return err
			}
			doc := fmt.Sprintf(`{"name":"ordered","topic":"parked","order":"key","concurrency":64,"parked":{"bytes":"4GiB"},`+
				`"retry":{"schedule":["12h"]},"deliver":{"webhook":{"url":"http://%s/nowhere"}}}`, r.addr)
			if err := r.call(ctx, "POST", "/v1/subscriptions", "application/json", []byte(doc), nil); err != nil {
				return err
			}
			if err := sleep(ctx, 2*time.Second); err != nil {
				return err
			}
			idle, err := r.rss()
			if err != nil {
				return err
			}
			put("parked-idle", idle)
			if err := r.fillKeys(ctx, "parked", l.o.backlog); err != nil {
				return err
			}
			if err := r.await(ctx, `millrace_subscription_parked{subscription="ordered"}`, float64(l.o.backlog)); err != nil {
				return err
			}
			v, err := r.rss()
			if err != nil {
				return err
			}
			put("parked-rss", v-idle)
			m, err := r.metrics(ctx)
			if err != nil {
				return err
			}
			put("parked-heap", m["go_memstats_next_gc_bytes"]/2/(1<<20))
			r.stop()
			begin := time.Now()
			if r, err = l.router(dir...); err != nil {
				return err
			}
			if err := r.ready(ctx); err != nil {
				return err
			}
			put("parked-ready", time.Since(begin).Seconds())
			return r.await(ctx, `millrace_subscription_parked{subscription="ordered"}`, float64(l.o.backlog))
		}}
}

// fillKeys publishes n events of n/10 keys in turn.
func (b *routerProcess) fillKeys(ctx context.Context, topic string, n int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	data := bytes.Repeat([]byte("x"), 200)
	for w := range parkedWriters {
		wg.Go(func() {
			var body bytes.Buffer
			for at := w * parkedBatch; at < n && ctx.Err() == nil; at += parkedWriters * parkedBatch {
				body.Reset()
				for i := at; i < min(at+parkedBatch, n); i++ {
					fmt.Fprintf(&body, `%c{"specversion":"1.0","id":"%d","source":"/bench","type":"t","partitionkey":"key-%d","data":"%s"}`, separator(i == at), i, i%max(n/10, 1), data)
				}
				body.WriteByte(']')
				if err := b.call(ctx, "POST", "/v1/topics/"+topic+"/events", "application/cloudevents-batch+json", body.Bytes(), nil); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func separator(first bool) byte {
	if first {
		return '['
	}
	return ','
}

// await waits until a metric has a value.
func (b *routerProcess) await(ctx context.Context, name string, want float64) error {
	var got float64
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); {
		m, err := b.metrics(ctx)
		if err != nil {
			return err
		}
		if got = m[name]; got == want {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s is %.0f after ten minutes, not %.0f", name, got, want)
}

// ready waits until the router says that it is.
func (b *routerProcess) ready(ctx context.Context) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		res, err := b.http.Get("http://" + b.addr + "/readyz")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("the router was not ready within a minute")
}
