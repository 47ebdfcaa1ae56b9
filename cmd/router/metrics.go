package main

import (
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/grpcapi"
	"github.com/millrace/millrace/engine/protocol/hooks"
	"github.com/millrace/millrace/engine/protocol/mqtt"
	"github.com/millrace/millrace/storage"
)

// metrics turns what the engine and the store tell into Prometheus' text format. Names begin with
// millrace_; labels are topic and subscription names, bounded by maxSeries.
type metrics struct {
	registry  *prometheus.Registry
	published *prometheus.CounterVec
	bytes     prometheus.Counter
	took      prometheus.Histogram
	batched   prometheus.Histogram
	replies   replyMetrics
	engine    func() *engine.Engine
	store     func() storage.Stats
	streams   func() streamStats
	grpc      *grpcapi.Server // nil: none
	mqtt      *mqtt.Server    // nil: none
	sources   func() (list []hooks.Stats, unknown uint64)
	inlets    func() []bridgeState
	callers   func() []access.Refusal     // refused, by reason
	issuers   func() []access.IssuerState // whose tokens are let in
	edge      func() edgeStats
	rules     func() (counts loadCounts, state rulesState, ok bool)
	revision  func() (id, source string) // of the rules; set with rules
	refusals  func() map[string]uint64   // of targets, by reason
	backups   func() (last lastBackup, made, failed uint64)
}

// maxSeries bounds the topics and subscriptions that have series of their own; the rest add up under
// "_other", so that a million topics do not become a million series.
const maxSeries = 1000

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		published: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_published_events_total", Help: "Events accepted from publishers, durable."}, []string{"topic"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_published_bytes_total", Help: "Bytes of data of accepted events."}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_delivery_seconds", Help: "How long successful deliveries took at their sink.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
	}
	m.batched = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "millrace_delivery_batch_events", Help: "Events of sends that had several.",
		Buckets: []float64{2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000}})
	m.replies = newReplyMetrics(m.registry)
	m.registry.MustRegister(m.published, m.bytes, m.took, m.batched, m, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observer feeds the counters that are not read off the engine's own.
func (m *metrics) observer() engine.Observer {
	topics := &bounded{seen: map[string]prometheus.Counter{}, of: m.published}
	return engine.Observer{
		Published: func(topic string, events, bytes int) {
			topics.counter(topic).Add(float64(events))
			m.bytes.Add(float64(bytes))
		},
		Batched:   func(_ string, events int) { m.batched.Observe(float64(events)) },
		Delivered: func(_ string, took time.Duration) { m.took.Observe(took.Seconds()) },
		Replied:   m.replies.replied, ReplyDiscarded: m.replies.discarded,
	}
}

// write appends the text exposition to w.
func (m *metrics) write(w io.Writer) error {
	families, err := m.registry.Gather()
	if err != nil {
		return fmt.Errorf("gather metrics: %w", err)
	}
	enc := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

// Each description is made once: Collect runs at every scrape.
var (
	descTopicBytes  = describe("topic_bytes", "Bytes of records that the topic keeps.", "topic")
	descFilterErrs  = describe("filter_errors_total", "Times that a filter ran out of its bounds at an event, which is no match.", "topic")
	descFilterMiss  = describe("filter_missing_total", "Comparisons that were false because a path was missing or of another type.", "topic")
	descTraceBytes  = describe("trace_bytes", "Bytes that are kept of how tries at the topic's events ended.", "topic")
	descTraceDrop   = describe("trace_dropped_total", "Tries of which the trace left early, for want of room.", "topic")
	descTraceLost   = describe("trace_lost_total", "Tries that could not be noted or written.")
	descTopicEvents = describe("topic_events", "Events that the topic keeps.", "topic")
	descSub         = map[string]*prometheus.Desc{
		"matched":      describe("subscription_matched_total", "Events that matched.", "subscription"),
		"delivered":    describe("subscription_delivered_total", "Deliveries that succeeded.", "subscription"),
		"failed":       describe("subscription_failed_total", "Attempts that failed.", "subscription"),
		"retried":      describe("subscription_retried_total", "Events parked for another try.", "subscription"),
		"dead":         describe("subscription_dead_lettered_total", "Events dead-lettered.", "subscription"),
		"redriven":     describe("subscription_redriven_total", "Dead letters delivered again.", "subscription"),
		"replayed":     describe("replay_events_total", "Events that replays have handed to it.", "subscription"),
		"purged":       describe("subscription_purged_total", "Dead letters dropped for good.", "subscription"),
		"deadletters":  describe("subscription_deadletters", "Dead letters that are neither redriven nor purged.", "subscription"),
		"dropped":      describe("subscription_dropped_total", "Events that a function dropped.", "subscription"),
		"lost":         describe("subscription_lost_total", "Events that the ring dropped before the subscription read them.", "subscription"),
		"lag":          describe("subscription_lag_events", "Events of the topic that it has not looked at.", "subscription"),
		"outstanding":  describe("subscription_outstanding", "Events in hand, not settled.", "subscription"),
		"parked":       describe("subscription_parked", "Events that wait for their next try.", "subscription"),
		"parked_bytes": describe("subscription_parked_bytes", "Bytes of them.", "subscription"),
		"leased":       describe("subscription_leased", "Leases out.", "subscription"),
		"state_keys":   describe("subscription_state_keys", "Keys that its functions keep.", "subscription"),
		"state_bytes":  describe("subscription_state_bytes", "Bytes of keys and values that its functions keep.", "subscription"),
		"stopped":      describe("subscription_stopped", "1 while paused, disabled or waiting, or while its circuit is open.", "subscription"),
		"circuit_open": describe("subscription_circuit_open", "1 while the circuit of its target, or of its target's host, is open or half-open.", "subscription"),
		"rate_waits":   describe("subscription_rate_waits_total", "Sends that its rate has put off.", "subscription"),
		"host_waits":   describe("subscription_host_waits_total", "Sends that its host's limits or circuit have put off.", "subscription"),
	}
	descCommits   = describe("store_commits_total", "Synced group commits.")
	descBatches   = describe("store_batches_total", "Callers' batches in them.")
	descWritten   = describe("store_written_bytes_total", "Bytes written to disk for everything.")
	descUser      = describe("store_user_bytes_total", "Bytes of records appended.")
	descFree      = describe("store_disk_free_bytes", "Free bytes of the data directory's disk.")
	descUsed      = describe("store_disk_used_bytes", "Bytes that the data directory takes.")
	descDedupe    = describe("store_dedupe_bytes", "Bytes of the dedupe index.")
	descShortened = describe("store_dedupe_shortened_total", "Ids that left the dedupe window early because the index was full.")
	descDegraded  = describe("store_degraded", "1 while the store refuses to write.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("millrace_"+name, help, labels, nil)
}

// Describe sends nothing: the collector is unchecked, since what there is changes with the rules.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect reads the engine's and the store's numbers.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	e := m.engine()
	if e == nil {
		return
	}
	m.collectTopics(e, out)
	m.collectSubscriptions(e, out)
	m.collectFunctions(e, out)
	m.collectShadows(e, out)
	m.collectStreams(out)
	m.collectGRPC(out)
	m.collectMQTT(out)
	m.collectEdge(out)
	m.collectRules(out)
	m.collectEgress(out)
	m.collectBackups(out)
	m.collectCallers(out)
	m.collectIssuers(out)
	collectSchedules(e, out)
	m.collectSources(out)
	m.collectBridges(out)
	s := m.store()
	count := func(d *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v)
	}
	gauge := func(d *prometheus.Desc, v float64) { out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	count(descCommits, float64(s.Commits))
	count(descBatches, float64(s.CommittedBatches))
	count(descWritten, float64(s.WrittenBytes))
	count(descUser, float64(s.UserBytes))
	count(descShortened, float64(s.DedupeShortened))
	gauge(descFree, float64(s.DiskFree))
	gauge(descUsed, float64(s.DiskUsed))
	gauge(descDedupe, float64(s.DedupeBytes))
	gauge(descDegraded, truth(s.Degraded != ""))
	gauge(descWaiters, float64(e.Waiters()))
	used, waiting, limit := e.SendBytes()
	gauge(descSendBytes, float64(used))
	gauge(descSendWaiting, float64(waiting))
	gauge(descSendLimit, float64(limit))
}

func (m *metrics) collectTopics(e *engine.Engine, out chan<- prometheus.Metric) {
	var bytes, events, errs, missing, traces, dropped tally
	for _, t := range e.Topics() {
		errs.add(t.Name, float64(t.FilterErrors))
		missing.add(t.Name, float64(t.FilterMissing))
		traces.add(t.Name, float64(t.Traces.Bytes))
		dropped.add(t.Name, float64(t.Traces.Dropped))
		for _, p := range t.Partition {
			bytes.add(t.Name, float64(p.Bytes))
			events.add(t.Name, float64(p.Next-p.Head))
		}
	}
	errs.send(out, descFilterErrs, prometheus.CounterValue)
	missing.send(out, descFilterMiss, prometheus.CounterValue)
	traces.send(out, descTraceBytes, prometheus.GaugeValue)
	dropped.send(out, descTraceDrop, prometheus.CounterValue)
	out <- prometheus.MustNewConstMetric(descTraceLost, prometheus.CounterValue, float64(e.TracesLost()))
	bytes.send(out, descTopicBytes, prometheus.GaugeValue)
	events.send(out, descTopicEvents, prometheus.GaugeValue)
}

func (m *metrics) collectSubscriptions(e *engine.Engine, out chan<- prometheus.Metric) {
	counters, gauges := map[string]*tally{}, map[string]*tally{}
	for _, s := range e.Subscriptions() {
		for kind, v := range map[string]uint64{"matched": s.Matched, "delivered": s.Delivered, "failed": s.Failed,
			"retried": s.Retried, "dead": s.DeadLettered, "dropped": s.Dropped, "lost": s.Lost,
			"redriven": s.Redriven, "purged": s.Purged, "replayed": s.Replayed} {
			tallyOf(counters, kind).add(s.Name, float64(v))
		}
		if s.StateKeys > 0 {
			tallyOf(gauges, "state_keys").add(s.Name, float64(s.StateKeys))
			tallyOf(gauges, "state_bytes").add(s.Name, float64(s.StateBytes))
		}
		if s.Deliver.Face == event.Push {
			tallyOf(gauges, "circuit_open").add(s.Name, truth(s.Circuit.State != "closed"))
			tallyOf(counters, "rate_waits").add(s.Name, float64(s.Circuit.RateWaits))
			tallyOf(counters, "host_waits").add(s.Name, float64(s.Circuit.HostWaits))
		}
		for kind, v := range map[string]float64{"lag": float64(s.Lag), "outstanding": float64(s.Outstanding), "parked": float64(s.Parked),
			"parked_bytes": float64(s.ParkedBytes), "leased": float64(s.Leased), "deadletters": float64(s.DeadLetters), "stopped": truth(s.State != "running")} {
			tallyOf(gauges, kind).add(s.Name, v)
		}
	}
	for kind, t := range counters {
		t.send(out, descSub[kind], prometheus.CounterValue)
	}
	for kind, t := range gauges {
		t.send(out, descSub[kind], prometheus.GaugeValue)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// tally adds values up by name, with what is beyond maxSeries under one name.
type tally struct {
	names  []string
	values map[string]float64
}

func tallyOf(m map[string]*tally, kind string) *tally {
	if m[kind] == nil {
		m[kind] = &tally{}
	}
	return m[kind]
}

func (t *tally) add(name string, v float64) {
	if t.values == nil {
		t.values = map[string]float64{}
	}
	if _, ok := t.values[name]; !ok {
		if len(t.names) >= maxSeries {
			name = "_other"
		}
		if _, ok := t.values[name]; !ok {
			t.names = append(t.names, name)
		}
	}
	t.values[name] += v
}

func (t *tally) send(out chan<- prometheus.Metric, d *prometheus.Desc, kind prometheus.ValueType) {
	for _, n := range t.names {
		out <- prometheus.MustNewConstMetric(d, kind, t.values[n], n)
	}
}
