package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/engine"
)

// Functions count over all their versions, so that a new version resets nothing; the version in force is a
// label of millrace_function_info alone, one series a function.
var (
	descFunction = map[string]*prometheus.Desc{
		"calls":     describe("function_calls_total", "Calls of the function.", "function"),
		"events":    describe("function_events_total", "Events in them.", "function"),
		"seconds":   describe("function_seconds_total", "Time spent in them.", "function"),
		"guest":     describe("function_guest_seconds_total", "Time spent in guest code, what it waited for left out, since its version was opened.", "function"),
		"fuel":      describe("function_fuel_total", "Fuel spent in them.", "function"),
		"swaps":     describe("function_swaps_total", "Changes of the function's version.", "function"),
		"instances": describe("function_instances", "Instances of the version in force.", "function"),
		"memory":    describe("function_memory_bytes", "Linear memory of those.", "function"),
	}
	descFunctionResults  = describe("function_results_total", "Results, by verdict.", "function", "verdict")
	descFunctionFailures = describe("function_failures_total", "Events that failed, by reason.", "function", "reason")
	descFunctionState    = describe("function_state_total", "Values that the function read and wrote of its state.", "function", "op")
	descFunctionCounter  = describe("function_counter_total", "What the function itself counts, since its version was opened.", "function", "counter")
	descFunctionInfo     = describe("function_info", "1; the version in force, abbreviated, is a label.", "function", "digest")
	descShadow           = describe("shadow_total", "Events that a shadow was compared at, by result.", "subscription", "result")
)

// shortDigest is enough of a digest to tell versions apart, and to name one.
func shortDigest(digest string) string {
	if len(digest) > len("sha256:")+12 {
		digest = digest[:len("sha256:")+12]
	}
	return digest
}

func (m *metrics) collectFunctions(e *engine.Engine, out chan<- prometheus.Metric) {
	counters, gauges := map[string]*tally{}, map[string]*tally{}
	results, failures, state, counted := pairs{}, pairs{}, pairs{}, pairs{}
	for i, f := range e.Functions() {
		c := f.Counts
		for kind, v := range map[string]float64{"calls": float64(c.Calls), "events": float64(c.Events), "seconds": c.Time.Seconds(),
			"guest": f.Stats.Guest.Seconds(), "fuel": float64(c.Fuel), "swaps": float64(c.Swaps)} {
			tallyOf(counters, kind).add(f.Name, v)
		}
		tallyOf(gauges, "instances").add(f.Name, float64(f.Stats.Instances))
		tallyOf(gauges, "memory").add(f.Name, float64(f.Stats.Memory))
		results.add(f.Name, c.Results)
		failures.add(f.Name, c.Failures)
		if f.Allow.KV {
			state.add(f.Name, map[string]uint64{"read": c.StateReads, "write": c.StateWrites})
		}
		counted.add(f.Name, f.Stats.Counters)
		if i < maxSeries && f.Digest != "" {
			out <- prometheus.MustNewConstMetric(descFunctionInfo, prometheus.GaugeValue, 1, f.Name, shortDigest(f.Digest))
		}
	}
	for kind, t := range counters {
		t.send(out, descFunction[kind], prometheus.CounterValue)
	}
	for kind, t := range gauges {
		t.send(out, descFunction[kind], prometheus.GaugeValue)
	}
	results.send(out, descFunctionResults)
	failures.send(out, descFunctionFailures)
	state.send(out, descFunctionState)
	counted.send(out, descFunctionCounter)
}

func (m *metrics) collectShadows(e *engine.Engine, out chan<- prometheus.Metric) {
	all := pairs{}
	for _, s := range e.Subscriptions() {
		shadows, err := e.Shadows(s.Name)
		if err != nil { // removed meanwhile
			continue
		}
		for _, h := range shadows {
			all.add(s.Name, map[string]uint64{"equal": h.Equal, "json_equal": h.JSONEqual, "different": h.Different, "failed": h.Failed, "skipped": h.Skipped})
		}
	}
	all.send(out, descShadow)
}

// pairs are counters by a name, bounded as tally does, and a second label with few values.
type pairs map[string]*tally

func (p pairs) add(name string, values map[string]uint64) {
	for label, v := range values {
		tallyOf(p, label).add(name, float64(v))
	}
}

func (p pairs) send(out chan<- prometheus.Metric, d *prometheus.Desc) {
	for label, t := range p {
		for _, name := range t.names {
			out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, t.values[name], name, label)
		}
	}
}
