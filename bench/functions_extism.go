package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// extismGuests are the plug-ins that both hosts run, by the name of their benchmark.
var extismGuests = []string{"C", "Go"}

// measureExtism measures the same plug-in in this router's host and in Extism's own. That one is a dependency of a module
// of its own, whose benchmark is run.
func measureExtism() measurement {
	m := measurement{name: "plug-ins of Extism", run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
		root, err := repository(ctx)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkPlugin$", "-benchtime", (l.length() / 4).Round(time.Millisecond).String(), ".")
		cmd.Dir = filepath.Join(root, "bench", "extism")
		said, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, said)
		}
		times := nanosOfEvents(string(said))
		for _, guest := range extismGuests {
			for _, host := range []string{"router", "extism"} {
				ns := times["BenchmarkPlugin/"+guest+"/"+host]
				if ns <= 0 {
					return fmt.Errorf("the benchmark says nothing of %s in %s:\n%s", guest, host, said)
				}
				put("plugin-"+host+"-"+strings.ToLower(guest), 1e9/ns)
			}
		}
		return nil
	}}
	for _, guest := range extismGuests {
		m.gives = append(m.gives, "plugin-router-"+strings.ToLower(guest), "plugin-extism-"+strings.ToLower(guest))
	}
	return m
}

// nanosOfEvents reads the figures with the unit ns/event of a run of benchmarks, by name without the number of cores.
func nanosOfEvents(text string) map[string]float64 {
	found := map[string]float64{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		for i := 2; i < len(fields); i++ {
			if v, err := strconv.ParseFloat(fields[i-1], 64); err == nil && fields[i] == "ns/event" {
				name := fields[0]
				if at := strings.LastIndexByte(name, '-'); at > 0 {
					name = name[:at]
				}
				found[name] = v
			}
		}
	}
	return found
}

// extismRows hold both hosts against each other.
func extismRows() []row {
	var rows []row
	for i, guest := range extismGuests {
		key, note := strings.ToLower(guest), ""
		if i == 0 {
			note = "A plug-in that changes 1 KiB of JSON; the router, which meters it, hands it 16 events a call, Extism's go-sdk one."
		}
		ours, theirs := "plugin-router-"+key, "plugin-extism-"+key
		rows = append(rows, row{key: "extism-" + key, name: "an Extism plug-in in " + guest + ": this router's host / Extism's go-sdk", values: []string{ours, theirs},
			figure: value(ours), limit: value(theirs), show: rate, ratio: times, floor: 4, note: note})
	}
	return rows
}
