package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/edge"
	"github.com/millrace/millrace/engine/protocol/httpapi"
)

// edgeStats are the figures of the addresses that a router listens on.
type edgeStats struct {
	server   *httpapi.Server
	door     *admission.Door
	expiries []edge.Expiry
}

var (
	descConns       = describe("connections", "Connections that are open, streams among them.")
	descRefused     = describe("limit_refusals_total", "Requests and connections refused because of a limit.", "limit")
	descHandshakes  = describe("tls_handshake_failures_total", "TLS handshakes that failed.")
	descExpiry      = describe("tls_certificate_expiry_seconds", "Seconds until the certificate expires; below 0 it has.", "name")
	descInFlight    = describe("bodies_in_flight_bytes", "Bytes of large bodies that are being read or answered.")
	descSendBytes   = describe("send_bytes", "Bytes of events over 4 KiB that are being sent.")
	descSendWaiting = describe("send_bytes_waiting", "Bytes of those that wait for room, of each subscription the next send alone.")
	descSendLimit   = describe("send_bytes_limit", "How many may be sent at once.")
	descBudget      = describe("bodies_in_flight_limit_bytes", "How many there may be.")
)

// edgeStats reads them.
func (r *router) edgeStats() (s edgeStats) {
	s.server, s.door = r.http, r.door
	if r.edge != nil {
		s.expiries = r.edge.Expiries()
	}
	return s
}

func (m *metrics) collectEdge(out chan<- prometheus.Metric) {
	if m.edge == nil {
		return
	}
	s := m.edge()
	gauge := func(d *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	gauge(descConns, float64(s.server.Connections()))
	used, budget := s.server.BodiesInFlight()
	gauge(descInFlight, float64(used))
	gauge(descBudget, float64(budget))
	s.door.Refusals(func(limit string, n uint64) {
		out <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(n), limit)
	})
	out <- prometheus.MustNewConstMetric(descHandshakes, prometheus.CounterValue, float64(s.server.HandshakesFailed()))
	// Two certificates may have one name, as of two algorithms: the one that ends first counts.
	left := tally{}
	for _, x := range s.expiries {
		v := time.Until(x.At).Seconds()
		if before, ok := left.values[x.Name]; ok {
			v = min(v, before) - before
		}
		left.add(x.Name, v)
	}
	left.send(out, descExpiry, prometheus.GaugeValue)
}
