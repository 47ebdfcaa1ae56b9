package main

import "github.com/prometheus/client_golang/prometheus"

var (
	descReloads      = describe("rules_reloads_total", "Loads of the rules, the first included: applied, or refused, which changed nothing.", "result")
	descReloadFailed = describe("rules_reload_failed", "1 while the last load of the rules has failed, or what a URL serves cannot be had; those before are in force.")
	descRulesLoaded  = describe("rules_loaded_timestamp_seconds", "When the rules in force were loaded, Unix seconds.")
	descRulesLoad    = describe("rules_load_seconds", "How long the last load of the rules that was applied took: to parse them, and to apply them.", "step")
	descRevision     = describe("rules_revision_info", "1; the revision of the rules in force and where it comes from are labels.", "revision", "source")
)

// collectRules sends nothing of a router without rules.
func (m *metrics) collectRules(out chan<- prometheus.Metric) {
	if m.rules == nil {
		return
	}
	if id, source := m.revision(); id != "" {
		out <- prometheus.MustNewConstMetric(descRevision, prometheus.GaugeValue, 1, id, source)
	}
	counts, state, ok := m.rules()
	if !ok {
		return
	}
	out <- prometheus.MustNewConstMetric(descReloads, prometheus.CounterValue, float64(counts.applied), "applied")
	out <- prometheus.MustNewConstMetric(descReloads, prometheus.CounterValue, float64(counts.refused), "refused")
	out <- prometheus.MustNewConstMetric(descReloadFailed, prometheus.GaugeValue, truth(state.Error != ""))
	out <- prometheus.MustNewConstMetric(descRulesLoad, prometheus.GaugeValue, counts.parse.Seconds(), "parse")
	out <- prometheus.MustNewConstMetric(descRulesLoad, prometheus.GaugeValue, counts.apply.Seconds(), "apply")
	if !state.Loaded.IsZero() {
		out <- prometheus.MustNewConstMetric(descRulesLoaded, prometheus.GaugeValue, float64(state.Loaded.UnixNano())/1e9)
	}
}
