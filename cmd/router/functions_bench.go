package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// batchSizes are how many events a call has in the measurements of functions bench.
var batchSizes = []int{1, 16, 64}

// maxTimes bounds the calls of which the time is kept; the quantiles are those of the last ones.
const maxTimes = 1 << 18

func functionsBench(p *program) *cobra.Command {
	var events, output string
	var duration time.Duration
	cmd := &cobra.Command{
		Use:   "bench [DIR|MODULE]",
		Short: "Measure a function: time, fuel and memory per event",
		Long: `Bench takes the project in DIR, by default the working directory, and builds it if one of its files is newer than the module; or it
takes a MODULE as it is. It calls it over and over with the events of its golden pairs, or those of --events: one at a time, then
in batches. It prints what an event costs in each, and how the times of single calls are spread.`,
		Example: `  router functions bench ./redact
  router fn bench redact.wasm --events orders.ndjson --duration 10s`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&events, "events", "", "NDJSON `file` of events, or of data (default: the inputs of the golden pairs)")
	cmd.Flags().DurationVar(&duration, "duration", 3*time.Second, "measure for this long altogether")
	p.outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asJSON, err := asJSON(cmd, output)
		if err != nil {
			return err
		}
		if duration <= 0 {
			return usagef(cmd, "--duration %s: want more than 0", duration)
		}
		pr, err := openProject(args)
		if err != nil {
			return err
		}
		records, err := benchEvents(pr, events)
		if err != nil {
			return err
		}
		module, err := p.loadModule(cmd.Context(), pr, !asJSON)
		if err != nil {
			return err
		}
		m, err := p.measureFunction(cmd.Context(), pr, module, records, duration)
		if err != nil {
			return err
		}
		if asJSON {
			doc, err := json.Marshal(m)
			if err != nil {
				return err
			}
			return printJSON(p.stdout, doc)
		}
		m.print(p)
		return nil
	}
	return cmd
}

// benchEvents reads what to call a function with.
func benchEvents(pr *project, file string) ([]event.Record, error) {
	var records []event.Record
	if file == "" {
		goldens, err := readGoldens(casesIn(pr), func(string) bool { return true }, false)
		if err != nil {
			return nil, fmt.Errorf("%w; or name events with --events", err)
		}
		for _, g := range goldens {
			records = append(records, g.events...)
		}
		return records, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, len(b)+1)
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		name := fmt.Sprintf("%s:%d", filepath.Base(file), n)
		one, _, err := readSamples(name, slices.Clone(line), uint64(len(records)))
		if err != nil {
			return nil, err
		}
		records = append(records, one...)
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("%s holds no events", file)
	}
	return records, nil
}

// functionBench is what bench found.
type functionBench struct {
	Digest   string         `json:"digest"`
	Events   int            `json:"events"` // that were cycled through
	Bytes    int            `json:"averageBytes"`
	Batches  []batchBench   `json:"batches"`
	Memory   int64          `json:"memoryBytes"` // of an instance before its first event
	After    int64          `json:"memoryBytesAfter"`
	Verdicts map[string]int `json:"verdicts"` // of one round through the events
	Calls    []timeBucket   `json:"calls"`    // of one event, by time
}

type batchBench struct {
	Size   int     `json:"size"`
	Events int     `json:"events"`
	NS     float64 `json:"nsPerEvent"`
	Fuel   float64 `json:"fuelPerEvent"`
	Rate   float64 `json:"eventsPerSecond"`
	P50    int64   `json:"callNsP50"`
	P99    int64   `json:"callNsP99"`
	Most   int64   `json:"callNsMax"`
}

type timeBucket struct {
	Below int64 `json:"belowNs"`
	Calls int   `json:"calls"`
}

// measureFunction calls a module on a host of its own.
func (p *program) measureFunction(ctx context.Context, pr *project, module []byte, records []event.Record, d time.Duration) (m *functionBench, err error) {
	host, err := authorHost(ctx, plugins.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, host.Close(context.WithoutCancel(ctx))) }()
	stop := p.busy("compiling")
	digest, err := host.Put(ctx, module)
	stop()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pr.module, err)
	}
	def, err := pr.definition(digest)
	if err != nil {
		return nil, err
	}
	f, err := host.Open(ctx, def)
	if err != nil {
		return nil, err
	}
	m = &functionBench{Digest: digest, Events: len(records), Memory: f.Stats().Memory, Verdicts: map[string]int{}}
	for _, r := range records {
		m.Bytes += len(r) / len(records)
	}
	if err := m.round(ctx, f, records); err != nil {
		return nil, err
	}
	defer p.busy("measuring")()
	for _, size := range batchSizes {
		b, times, err := measureBatch(ctx, f, records, size, d/time.Duration(len(batchSizes)))
		if err != nil {
			return nil, err
		}
		if m.Batches = append(m.Batches, b); size == 1 {
			m.Calls = histogram(times)
		}
	}
	m.After = f.Stats().Memory
	return m, nil
}

// round calls the function once with every event, to warm it up and to see what it says.
func (m *functionBench) round(ctx context.Context, f *plugins.Function, records []event.Record) error {
	var out plugins.Outcome
	for _, r := range records {
		if err := f.Call(ctx, &plugins.Call{Events: []event.Record{r}}, &out); err != nil {
			return err
		}
		for i := range out.Results {
			m.Verdicts[strings.ToLower(out.Results[i].Verdict.String())]++
		}
		for i := range out.Failures {
			m.Verdicts["fail: "+string(out.Failures[i].Reason)]++
		}
	}
	return nil
}

// measureBatch calls with batches of one size for a while, of which the first tenth does not count.
func measureBatch(ctx context.Context, f *plugins.Function, records []event.Record, size int, d time.Duration) (batchBench, []int64, error) {
	b := batchBench{Size: size}
	var out plugins.Outcome
	call := plugins.Call{Events: make([]event.Record, size), Attempts: make([]uint32, size)}
	for i := range call.Attempts {
		call.Attempts[i] = 1
	}
	times := make([]int64, 0, 1024)
	var spent time.Duration
	var fuel int64
	next, calls := 0, 0
	begin := time.Now()
	for {
		for i := range call.Events {
			call.Events[i] = records[next]
			next = (next + 1) % len(records)
		}
		start := time.Now()
		if err := f.Call(ctx, &call, &out); err != nil {
			return b, nil, err
		}
		end := time.Now()
		if end.Sub(begin) < d/10 {
			continue
		}
		took := end.Sub(start)
		spent += took
		fuel += out.Fuel
		b.Events += size
		if len(times) < maxTimes {
			times = append(times, int64(took))
		} else {
			times[calls%maxTimes] = int64(took)
		}
		calls++
		if end.Sub(begin) >= d {
			break
		}
	}
	slices.Sort(times)
	b.NS = math.Round(float64(spent) / float64(b.Events))
	b.Fuel = math.Round(float64(fuel) / float64(b.Events))
	b.Rate = math.Round(float64(b.Events) / spent.Seconds())
	b.P50, b.P99, b.Most = times[len(times)/2], times[len(times)*99/100], times[len(times)-1]
	return b, times, nil
}

// histogram counts sorted times in steps of 1, 2 and 5.
func histogram(times []int64) []timeBucket {
	var all []timeBucket
	for decade, i := int64(100), 0; i < len(times); decade *= 10 {
		for _, step := range []int64{1, 2, 5} {
			n := i
			for i < len(times) && times[i] < decade*step {
				i++
			}
			if i > n || len(all) > 0 && i < len(times) {
				all = append(all, timeBucket{decade * step, i - n})
			}
		}
	}
	return all
}

func (m *functionBench) print(p *program) {
	say(p.stdout, "%s of %s on average, %s", plural(m.Events, "event"), sizeText(int64(m.Bytes)), m.Digest)
	var said []string
	for _, v := range slices.Sorted(maps.Keys(m.Verdicts)) {
		said = append(said, fmt.Sprintf("%s %d", v, m.Verdicts[v]))
	}
	say(p.stdout, "a round through them: %s", strings.Join(said, ", "))
	say(p.stdout, "\n%8s %12s %14s %14s %10s %10s %10s", "batch", "ns/event", "events/s", "fuel/event", "call p50", "p99", "max")
	for _, b := range m.Batches {
		fuel := "-"
		if b.Fuel > 0 {
			fuel = fmt.Sprintf("%.0f", b.Fuel)
		}
		say(p.stdout, "%8d %12.0f %14.0f %14s %10s %10s %10s", b.Size, b.NS, b.Rate, fuel, roughly(b.P50), roughly(b.P99), roughly(b.Most))
	}
	total := 0
	for _, b := range m.Batches {
		total += b.Events
	}
	say(p.stdout, "\nmemory: %s an instance, %s after %s (%.1f bytes an event)", sizeText(m.Memory), sizeText(m.After),
		plural(total, "event"), float64(m.After-m.Memory)/float64(total))
	say(p.stdout, "\ncalls of one event, by time")
	most := 1
	for _, b := range m.Calls {
		most = max(most, b.Calls)
	}
	for _, b := range m.Calls {
		const width = 50
		bar := strings.Repeat("█", b.Calls*width/most)
		if bar == "" && b.Calls > 0 {
			bar = "▏"
		}
		say(p.stdout, "  < %-6s %9d %s", roughly(b.Below), b.Calls, bar)
	}
}

// roughly is a time in ns with three digits.
func roughly(ns int64) string {
	d := time.Duration(ns)
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d >= time.Microsecond:
		return d.Round(10 * time.Nanosecond).String()
	}
	return d.String()
}
