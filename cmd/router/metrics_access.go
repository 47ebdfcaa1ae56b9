package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/engine/access"
)

var (
	descIssuerKeys    = describe("access_issuer_keys", "Keys in use of an issuer of JWTs.", "issuer")
	descIssuerFailed  = describe("access_issuer_failed", "1 while the last fetch of an issuer's keys has failed; those before stay in use.", "issuer")
	descIssuerFetched = describe("access_issuer_fetched_timestamp_seconds", "When an issuer's keys came last; 0 if not yet.", "issuer")
)

// collectIssuers tells of the issuers of the policy; those whose keys come from a file or a secret are not fetched.
func (m *metrics) collectIssuers(out chan<- prometheus.Metric) {
	if m.issuers == nil {
		return
	}
	for _, is := range m.issuers() {
		out <- prometheus.MustNewConstMetric(descIssuerKeys, prometheus.GaugeValue, float64(is.Keys), is.Name)
		if is.URL == "" {
			continue
		}
		at := 0.0
		if !is.Fetched.IsZero() {
			at = float64(is.Fetched.Unix())
		}
		out <- prometheus.MustNewConstMetric(descIssuerFailed, prometheus.GaugeValue, truth(is.Err != nil), is.Name)
		out <- prometheus.MustNewConstMetric(descIssuerFetched, prometheus.GaugeValue, at, is.Name)
	}
}

// fetched logs how a fetch of keys went: with none, nobody comes in by the issuer's tokens.
func (g *guard) fetched(st access.IssuerState) {
	if st.Err != nil {
		g.log.Warn("the keys of an issuer of JWTs could not be fetched; those before stay in use", "issuer", st.Name, "url", st.URL, "keys", st.Keys, "error", st.Err)
		return
	}
	g.log.Debug("fetched the keys of an issuer of JWTs", "issuer", st.Name, "keys", st.Keys)
}
