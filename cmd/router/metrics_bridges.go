package main

import "github.com/prometheus/client_golang/prometheus"

var (
	descBridgeEvents = describe("bridge_events_total", "Events that the bridge has brought in, by what became of them: stored, repeat (of the topic's dedupe window), loop (has been here, or passed too many routers), refused (the topic does not take it), lost (the other side did not have it any more). Bridges that forward are subscriptions, bridge.NAME.", "bridge", "outcome")
	descBridgeUp     = describe("bridge_up", "1 while the other side answers the bridge that brings events in, 0 while it waits.", "bridge")
	descBridgeLast   = describe("bridge_last_success_timestamp_seconds", "When the other side last answered the bridge that brings events in, Unix seconds.", "bridge")
)

func (m *metrics) collectBridges(out chan<- prometheus.Metric) {
	if m.inlets == nil {
		return
	}
	for i, b := range m.inlets() {
		if i == maxSeries {
			return
		}
		for _, x := range []struct {
			outcome string
			n       uint64
		}{{"stored", b.Events}, {"repeat", b.Repeats}, {"loop", b.Loops}, {"refused", b.Refused}, {"lost", b.Lost}} {
			out <- prometheus.MustNewConstMetric(descBridgeEvents, prometheus.CounterValue, float64(x.n), b.Name, x.outcome)
		}
		up := 0.0
		if b.State == "running" && b.Last != nil {
			up = 1
		}
		out <- prometheus.MustNewConstMetric(descBridgeUp, prometheus.GaugeValue, up, b.Name)
		if b.Last != nil {
			out <- prometheus.MustNewConstMetric(descBridgeLast, prometheus.GaugeValue, float64(b.Last.UnixMilli())/1000, b.Name)
		}
	}
}
