package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// measureIdle measures a fresh router's memory.
func measureIdle() measurement {
	return measurement{name: "memory of an idle router", gives: []string{"idle"}, once: true,
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			r, err := l.router()
			if err != nil {
				return err
			}
			defer r.stop()
			if err := sleep(ctx, 2*time.Second); err != nil {
				return err
			}
			v, err := r.rss()
			put("idle", v)
			return err
		}}
}

// measureBacklog lets events pile up behind a paused subscription and looks at the router's memory; then it measures how
// fast one reads that begins at the earliest event.
//
// The router is given little memory, so that its caches, which are bounded, are full before the first look.
func measureBacklog() measurement {
	return measurement{name: "backlog", gives: []string{"heap-before", "heap-after", "rss-before", "rss-after", "behind"}, once: true,
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			r, err := l.router("--memory", "400MiB")
			if err != nil {
				return err
			}
			defer r.stop()
			to, err := l.receiver()
			if err != nil {
				return err
			}
			for _, c := range [][2]string{
				{"/v1/topics", `{"name":"backlog","retain":{"bytes":"8GiB"}}`},
				{"/v1/subscriptions", fmt.Sprintf(`{"name":"paused","topic":"backlog","deliver":{"webhook":{"url":"http://%s/"}}}`, to.addr)},
				{"/v1/subscriptions/paused/pause", `{}`},
			} {
				if err := r.call(ctx, "POST", c[0], "application/json", []byte(c[1]), nil); err != nil {
					return err
				}
			}
			if err := r.fill(ctx, "backlog", max(l.o.backlog/5, 100_000)); err != nil {
				return err
			}
			if err := r.look(ctx, "before", put); err != nil {
				return err
			}
			if err := r.fill(ctx, "backlog", l.o.backlog); err != nil {
				return err
			}
			if err := r.look(ctx, "after", put); err != nil {
				return err
			}
			v, err := r.readAll(ctx, "backlog", to.addr)
			put("behind", v)
			return err
		}}
}

// look notes what lives in the heap after a collection, and what is resident. A collection sets the size of the heap at
// which the next begins to twice what lives.
func (b *routerProcess) look(ctx context.Context, when string, put func(string, float64)) error {
	m, err := b.metrics(ctx)
	if err != nil {
		return err
	}
	put("heap-"+when, m["go_memstats_next_gc_bytes"]/2/(1<<20))
	v, err := b.rss()
	put("rss-"+when, v)
	return err
}

// readAll makes a subscription that begins at the earliest event of a topic and whose filter, which looks at the
// data, lets none pass; it returns how many events a second are read until none is left.
func (b *routerProcess) readAll(ctx context.Context, topic, target string) (float64, error) {
	m, err := b.metrics(ctx)
	if err != nil {
		return 0, err
	}
	n := m[`millrace_topic_events{topic="`+topic+`"}`]
	doc := fmt.Sprintf(`{"name":"behind","topic":%q,"start":"earliest","filter":"data.total > 1000 && data.country == \"FR\"",`+
		`"deliver":{"webhook":{"url":"http://%s/"}}}`, topic, target)
	begin := time.Now()
	if err := b.call(ctx, "POST", "/v1/subscriptions", "application/json", []byte(doc), nil); err != nil {
		return 0, err
	}
	for end := begin.Add(2 * time.Minute); time.Now().Before(end); {
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return 0, err
		}
		if m, err = b.metrics(ctx); err != nil {
			return 0, err
		}
		lag, ok := m[`millrace_subscription_lag_events{subscription="behind"}`]
		if !ok {
			return 0, errors.New("the router's metrics say nothing of how far the subscription is behind")
		}
		if lag < n/100 { // whoever publishes meanwhile is always a few ahead
			return n / time.Since(begin).Seconds(), nil
		}
	}
	return 0, fmt.Errorf("%.0f events were not read within 2 minutes", n)
}
