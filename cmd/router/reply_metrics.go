package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// replyMetrics count replies to events whose producers wait.
type replyMetrics struct {
	given   *prometheus.CounterVec
	dropped *prometheus.CounterVec
	took    prometheus.Histogram
}

var descWaiters = describe("reply_waiters", "Requests that wait for a reply.")

func newReplyMetrics(r *prometheus.Registry) replyMetrics {
	m := replyMetrics{
		given: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_replies_total", Help: "Replies to events whose producers asked for one."}, []string{"from"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_replies_discarded_total", Help: "Replies that nobody had asked for, or that were not the first."}, []string{"why"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_reply_seconds", Help: "From when an event was stored to when its reply was.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
	}
	for _, from := range []string{"function", "push", "pull"} { // so that a rate begins at 0
		m.given.WithLabelValues(from)
	}
	for _, why := range []string{"unasked", "second"} {
		m.dropped.WithLabelValues(why)
	}
	r.MustRegister(m.given, m.dropped, m.took)
	return m
}

func (m *replyMetrics) replied(from string, took time.Duration) {
	m.given.WithLabelValues(from).Inc()
	m.took.Observe(took.Seconds())
}

func (m *replyMetrics) discarded(why string) { m.dropped.WithLabelValues(why).Inc() }
