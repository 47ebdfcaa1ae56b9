package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/engine/protocol/ws"
)

// streamStats are the figures of connections that stay open.
type streamStats struct {
	readers int    // of server-sent events
	dropped uint64 // of them, because they did not read
	sockets ws.Stats
}

var (
	descSSEReaders = describe("sse_readers", "Readers of server-sent events.")
	descSSEDropped = describe("sse_dropped_total", "Readers of server-sent events that were dropped because they did not read.")
	descSockets    = describe("ws_connections", "Open WebSockets.")
	descWSDropped  = describe("ws_dropped_total", "WebSockets that were closed because their client did not read.")
)

func (m *metrics) collectStreams(out chan<- prometheus.Metric) {
	s := m.streams()
	for _, x := range []struct {
		of    *prometheus.Desc
		kind  prometheus.ValueType
		value float64
	}{
		{descSSEReaders, prometheus.GaugeValue, float64(s.readers)},
		{descSSEDropped, prometheus.CounterValue, float64(s.dropped)},
		{descSockets, prometheus.GaugeValue, float64(s.sockets.Connections)},
		{descWSDropped, prometheus.CounterValue, float64(s.sockets.Dropped)},
	} {
		out <- prometheus.MustNewConstMetric(x.of, x.kind, x.value)
	}
}
