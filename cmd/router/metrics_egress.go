package main

import "github.com/prometheus/client_golang/prometheus"

var descRefusals = describe("egress_refusals_total", "Connections to targets that were refused: special addresses, denied, unlisted, or a host in a notation that programs read differently.", "reason")

func (m *metrics) collectEgress(out chan<- prometheus.Metric) {
	if m.refusals == nil {
		return
	}
	for reason, n := range m.refusals() {
		out <- prometheus.MustNewConstMetric(descRefusals, prometheus.CounterValue, float64(n), reason)
	}
}
