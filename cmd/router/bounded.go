package main

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// bounded hands out one counter a name, up to maxSeries, without a lock on the common path.
type bounded struct {
	of   *prometheus.CounterVec
	fast sync.Map // name → prometheus.Counter

	mu   sync.Mutex
	seen map[string]prometheus.Counter
}

func (b *bounded) counter(name string) prometheus.Counter {
	if c, ok := b.fast.Load(name); ok {
		return c.(prometheus.Counter)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.seen[name]
	if c == nil {
		label := name
		if len(b.seen) >= maxSeries {
			label = "_other"
		}
		c = b.of.WithLabelValues(label)
		if label == name {
			b.seen[name] = c
			b.fast.Store(name, c)
		}
	}
	return c
}
