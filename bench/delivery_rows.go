package main

import "fmt"

// deliveryMeasurements are those that the rows about delivery need.
func deliveryMeasurements() []measurement {
	return []measurement{measureIsolation(slowAmongFast), measureIsolation(deadAmongMany), measureParked()}
}

// deliveryRows are the rows about what waits and how it leaves.
func deliveryRows() []row {
	bound := func(key, name, figure string, limit float64, show func(float64) string, note string) row {
		return row{key: key, name: name, group: "delivery", values: []string{figure}, figure: value(figure), limit: constant(limit), show: show, lower: true, floor: 1, note: note}
	}
	seconds := func(v float64) string { return fmt.Sprintf("%.1f s", v) }
	return []row{
		{key: "webhook-batch", name: "delivered in webhook batches of 50 / singly, events", group: "delivery", values: []string{"batched", "passed"},
			figure: value("batched"), limit: value("passed"), show: rate, ratio: times, floor: 1.15, aim: 1.36,
			note: "Both published singly over 64 connections, durable, filtered, signed; batches with `wait: 5ms`."},
		{key: "slow-p99", name: "p99 of 90 fast receivers beside 5 that drip and 5 that hold / beside fast ones", group: "delivery", values: []string{"slow-p99", "slow-none-p99"},
			figure: value("slow-p99"), limit: value("slow-none-p99"), show: micros, ratio: times, lower: true, floor: 1.2, aim: 1,
			note: "From publishing to arrival, 20 events a second for each of the 100 subscriptions."},
		{key: "slow-rate", name: "the same of a burst, deliveries", group: "delivery", values: []string{"slow-rate", "slow-none-rate"},
			figure: value("slow-rate"), limit: value("slow-none-rate"), show: rate, floor: 0.95, aim: 1},
		{key: "dead-p99", name: "10,000 subscriptions, 1 % to hosts that are gone: p99 of the others / of none gone", group: "delivery", values: []string{"dead-p99", "dead-none-p99"},
			figure: value("dead-p99"), limit: value("dead-none-p99"), show: micros, ratio: times, lower: true, floor: 1.2, aim: 1,
			note: "100 events a second, each for ten of the subscriptions."},
		bound("parked-rss", "resident memory for a million parked deliveries of 100k keys, over idle / bound", "parked-rss", 200, mebibytes,
			"`order: key`; the first of each key has failed, the others wait behind it. -backlog sets how many. A router with `--memory 192MiB`, whose caches are full by then."),
		bound("parked-heap", "live heap with them / bound", "parked-heap", 200, mebibytes, ""),
		bound("parked-ready", "a restart with them until the router is ready / bound", "parked-ready", 5, seconds, ""),
	}
}
