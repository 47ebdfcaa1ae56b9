package main

import (
	"fmt"
	"slices"
)

// deliveredWays are how the delivered rows' events go.
var (
	withFunction = way{value: "delivered", name: "delivered: filter, C function, signed webhook", function: true}
	withFilter   = way{value: "passed", name: "delivered: filter, signed webhook"}
	withBatches  = way{value: "batched", name: "delivered: filter, signed webhooks of 50 events", batch: 50}
)

// bento's figures are recorded: HTTP in, filter, HTTP out, nothing stored, on two shared cores.
const (
	bentoPlain = 8000
	bentoWasm  = 7400
)

// measurements are all there are, in the order of a round; what one needs stands before it. What is compared with each
// other stands side by side.
func measurements() []measurement {
	return append([]measurement{
		measureIdle(), measureFsync(), measurePost(),
		measureNothing(64), measureAccept(64), measureTLS(64), measureAccess(64), measureNothing(256), measureAccept(256), measureRedis(256), measureBatch(),
		measureWebhook(), measureDelivered(withFunction), measureLatency(withFunction), measureDelivered(withFilter), measureDelivered(untraced), measureDelivered(withBatches),
		measurePebble(64), measureStore(64), measurePebble(256), measureStore(256),
		measureFilters(), measureWritten(), measureBacklog(), measureReload(), measureSources(), measureBacktest(), measureMQTT(),
	}, slices.Concat(grpcMeasurements(), deliveryMeasurements(), pullMeasurements(), streamMeasurements(), functionMeasurements(), mqttMeasurements())...)
}

func value(name string) func(func(string) float64) float64 {
	return func(of func(string) float64) float64 { return of(name) }
}

func constant(v float64) func(func(string) float64) float64 {
	return func(func(string) float64) float64 { return v }
}

// rows are the table.
func rows() []row {
	pair := func(key, name, figure, limit string, r row) row {
		r.key, r.name, r.values, r.figure, r.limit = key, name, []string{figure, limit}, value(figure), value(limit)
		if r.show == nil {
			r.show = rate
		}
		return r
	}
	limit := func(of func(string) float64) float64 { return composite(of("accept-64"), of("webhook")) }
	latency := func(of func(string) float64, p string) float64 { return of("fsync-"+p) + of("post-"+p) }
	return append([]row{
		pair("accept-64", "durable accept / do-nothing server, 64 connections", "accept-64", "nothing-64", row{floor: 0.40, aim: 0.55}),
		pair("accept-256", "durable accept / do-nothing server, 256 connections", "accept-256", "nothing-256", row{floor: 0.50, aim: 0.70}),
		pair("tls-64", "durable accept over TLS / plain, 64 connections", "tls-64", "accept-64", row{floor: 0.60, aim: 0.80}),
		pair("key-64", "durable accept with an API key / without access control, 64 connections", "keyed-64", "open-64", row{floor: 0.90, aim: 0.98}),
		pair("jwt-64", "durable accept with a JWT / without access control, 64 connections", "jwt-64", "open-64", row{floor: 0.87, aim: 0.95}),
		pair("redis", "durable accept / Redis Streams synced always, 256 connections", "accept-256", "redis-256", row{floor: 0.9, aim: 1.1}),
		pair("batch", fmt.Sprintf("batch of %d / single accept, events", batchEvents), "batch", "accept-64", row{floor: 4, aim: 6, ratio: times}),
		{key: "bento-wasm", name: "one event delivered / Bento with its wasm processor (recorded)", values: []string{"delivered"}, figure: value("delivered"),
			limit: constant(bentoWasm), show: rate, ratio: times, floor: 3, aim: 5,
			note: "Delivered: published singly over 64 connections, durable, filtered, changed by a C function, sent as a signed webhook over 64 connections. " +
				"Metering the function: not yet. Bento's 7.4k/s with wasm and 8.0k/s without were recorded elsewhere, not in this run; it stores nothing."},
		{key: "composite", name: "one event delivered / composite limit", values: []string{"delivered", "accept-64", "webhook"}, figure: value("delivered"),
			limit: limit, show: rate, floor: 0.7, aim: 0.9,
			note: "Composite limit: 1 / (1/durable accept + 1/webhook client), the client being the sink's own at the same receiver, unsigned, over 64 connections."},
		{key: "bento", name: "the same without a function / Bento without (recorded)", values: []string{"passed"}, figure: value("passed"),
			limit: constant(bentoPlain), show: rate, ratio: times},
		{key: "composite-plain", name: "the same without a function / composite limit", values: []string{"passed", "accept-64", "webhook"}, figure: value("passed"),
			limit: limit, show: rate},
		pair("filters", "1,000 filters: indexed / naive, an event", "indexed-1000", "naive-1000",
			row{show: micros, ratio: part, lower: true, floor: 1.0 / 40, aim: 1.0 / 60,
				note: "Naive: each filter is evaluated on fields that are read once. Five filters match."}),
		pair("subscriptions", "1,000 subscriptions / 10 with the same hits, an event", "indexed-1000", "indexed-10",
			row{show: micros, ratio: times, lower: true, floor: 2, aim: 1.3}),
		pair("written", "bytes written / byte of records, with retention", "written", "user",
			row{show: func(v float64) string { return mebibytes(v / (1 << 20)) }, lower: true, floor: 2.4, aim: 2.05,
				note: "While a full ring of 256 MiB turns over six times (-quick: 64 MiB, three times), published in batches; from the router's own metrics."}),
		pair("written-kernel", "the same as the kernel counts it", "written-kernel", "user",
			row{show: func(v float64) string { return mebibytes(v / (1 << 20)) }, lower: true}),
		pair("disk-used", "bytes on the disk / the ring's bound, thereafter", "disk-used", "ring",
			row{show: func(v float64) string { return mebibytes(v / (1 << 20)) }, lower: true,
				note: "Logs of up to two memtables and what is dropped but not given back yet included."}),
		{key: "latency-p50", name: "publish to delivery at half of the peak, p50 / fsync + POST", values: []string{"late-p50", "fsync-p50", "post-p50"},
			figure: value("late-p50"), limit: func(of func(string) float64) float64 { return latency(of, "p50") }, show: micros, ratio: times,
			lower: true, floor: 3, aim: 1.5, note: "From the start of the request to the arrival at the receiver. Its limit: one append with fdatasync plus one loopback POST, each alone on the machine."},
		{key: "latency-p99", name: "the same, p99", values: []string{"late-p99", "fsync-p99", "post-p99"},
			figure: value("late-p99"), limit: func(of func(string) float64) float64 { return latency(of, "p99") }, show: micros, ratio: times,
			lower: true, floor: 6, aim: 3},
		pair("store-64", "the store's Commit / Pebble's group commit, 64 callers", "store-64", "pebble-64", row{}),
		pair("store-256", "the store's Commit / Pebble's group commit, 256 callers", "store-256", "pebble-256", row{}),
		pair("cpu-accept", "the router's CPU for an accepted event / a do-nothing server's, 64 connections", "accept-64-cpu", "nothing-64-cpu", row{show: micros, ratio: times, lower: true,
			note: "CPU of one process for one event tells where time goes even when others use the machine or the disk."}),
		pair("cpu-batch", "the same of a batch's event / of a single one", "batch-cpu", "accept-64-cpu", row{show: micros, lower: true}),
		{key: "cpu-delivered", name: "the router's CPU for a delivered event / for accepting it + the webhook client's", values: []string{"delivered-cpu", "accept-64-cpu", "webhook-cpu"},
			figure: value("delivered-cpu"), limit: func(of func(string) float64) float64 { return of("accept-64-cpu") + of("webhook-cpu") }, show: micros, ratio: times, lower: true},
		pair("cpu-store", "CPU of the store's Commit / of Pebble's group commit, 64 callers", "store-64-cpu", "pebble-64-cpu", row{show: micros, lower: true}),
		{key: "idle", name: "resident memory of an idle router / bound", values: []string{"idle"}, figure: value("idle"), limit: constant(60),
			show: mebibytes, lower: true, floor: 1},
		pair("backlog-heap", "live heap with the backlog / before it", "heap-after", "heap-before", row{show: mebibytes, ratio: times, lower: true, floor: 1.25,
			note: "A million events of 1 KiB (-backlog) behind a paused subscription, after a fifth of that, which fills the caches of a router with 400 MiB."}),
		pair("backlog-rss", "resident memory with the backlog / before it", "rss-after", "rss-before", row{show: mebibytes, ratio: times, lower: true}),
		pair("behind", "a subscription that is behind reads / live rate", "behind", "accept-64", row{ratio: times, floor: 3,
			note: "It reads the backlog with a filter that looks at the data and lets nothing pass. Live rate: durable accept, 64 connections."}),
	}, slices.Concat(deliveryRows(), pullRows(), streamRows(), mqttRows(), functionRows(), reloadRows(), backtestRows(), explainRows(), sourceRows(), grpcRows(), mqttLoadRows())...)
}
