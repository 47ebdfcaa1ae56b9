package main

import (
	"fmt"
	"strings"
)

// functionsGroup is what -only calls the rows about functions.
const functionsGroup = "functions"

// functionMeasurements are those that the rows about functions need.
func functionMeasurements() []measurement {
	all := []measurement{measureCalls()}
	for _, s := range samples {
		all = append(all, measureMeter(s.name))
	}
	return append(all, measureDeadline(), measureCollection(), measureCold(), measureManyIdle(), measureExtism())
}

// functionRows are the rows about functions. Where the limit is a bound, the floor is to stay within it.
func functionRows() []row {
	bound := func(key, name, figure string, limit float64, show func(float64) string, note string) row {
		return row{key: key, name: name, values: []string{figure}, figure: value(figure), limit: constant(limit), show: show, lower: true, floor: 1, note: note}
	}
	against := func(key, name, figure, limit string, floor float64, note string) row {
		return row{key: key, name: name, values: []string{figure, limit}, figure: value(figure), limit: value(limit), show: nanos, ratio: times, lower: true,
			floor: floor, note: note}
	}
	rows := []row{
		bound("fn-event", fmt.Sprintf("the host's time for an event in a call of %d / bound", hostBatch), "fn-event", 150, nanos,
			"A call of a C function that passes 1 KiB events without a look, its own few nanoseconds included."),
		bound("fn-empty", "an empty call of a metered guest / bound", "fn-metered", 60, nanos,
			"An export that does nothing, called on the engine with a fresh slice of fuel."),
		against("fn-empty-meter", "the same / the engine's call of it unmetered", "fn-metered", "fn-bare", 0, ""),
		against("fn-call", "the host's call with one event / the engine's empty call", "fn-call", "fn-bare", 0,
			"The host calls the guest twice, for a buffer and to handle it; it copies, reads clocks, sets budgets and checks what comes back."),
		{key: "fn-allocs", name: "allocations for an event in a call", values: []string{"fn-allocs"}, figure: value("fn-allocs"), limit: constant(1),
			show: few, ratio: few, lower: true, floor: 0.001, note: "Fewer than one for a thousand events: the process's other goroutines may allocate."},
	}
	for _, s := range samples {
		key := strings.ToLower(s.name)
		note := ""
		if s.name == samples[0].name {
			note = fmt.Sprintf("Time for an event of the SDK's sample function, in calls of %d events of 1 KiB, on the engine itself: metered, as it is, "+
				"and with the engine's own check (WithCloseOnContextDone), in turns; the quickest tenth of the turns counts.", meterBatch)
		}
		rows = append(rows,
			against("meter-"+key, s.name+" metered / unmetered", "metered-"+key, "plain-"+key, s.floor, note),
			against("check-"+key, s.name+" with the engine's own deadline check / without", "checked-"+key, "plain-"+key, 0, ""))
	}
	for _, s := range spinners {
		note := ""
		if s.key == spinners[0].key {
			note = fmt.Sprintf("Slowest of %d runs with limits.cpu of %s, from the guest's start to the host's answer, less the limit.", samplesOfWorst, deadlineCPU)
		}
		rows = append(rows, bound("deadline-"+s.key, "past its deadline: "+s.name+" / bound", "past-"+s.key, 2000, micros, note))
	}
	rows = append(rows,
		bound("fn-collection", "a forced collection beside a spinning guest / bound", "gc-beside", 5000, micros,
			fmt.Sprintf("Slowest of %d, of this program's small heap.", samplesOfWorst)),
		row{key: "fn-collection-alone", name: "the same / without the guest", values: []string{"gc-beside", "gc-alone"}, figure: value("gc-beside"), limit: value("gc-alone"),
			show: micros, ratio: times, lower: true},
		bound("fn-cold", "cold start of a Go function from the compile cache / bound", "cold-go", 100_000, micros,
			fmt.Sprintf("A new host on the same folder, to the answer to the first event; median of %d, files in the page cache.", coldStarts)),
		bound("fn-idle", "resident memory of 50 idle Go functions / bound", "idle-functions", 64, mebibytes,
			fmt.Sprintf("More than before they were opened, in a process of its own with the functions' share of --memory 512MiB, once their instances were given up: "+
				"after %s here, a minute in a router (-quick: 8 functions). Each has a module of its own, was opened and called once.", idleFor)),
		bound("fn-idle-code", "the same once their machine code was given up too / bound", "idle-functions-code", 64, mebibytes, "After ten times as long."))
	rows = append(rows, extismRows()...)
	for i := range rows {
		rows[i].group = functionsGroup
	}
	return rows
}

// few writes a small number of things.
func few(v float64) string { return fmt.Sprintf("%.2g", v) }
