package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"
)

// benching is the flags of bench.
type benching struct {
	events, size, connections, batch int
	rate                             int // events a second; 0: as fast as it goes
	topic, filter, secret            string
	functions                        []string
	listen, advertise                string
	timeout                          time.Duration
}

func benchCommand(p *program) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "bench",
		Short: "Measure a running router: publishing, delivering, end to end",
		Long: `Bench puts load on a running router and prints events a second and percentiles. It makes a topic and a subscription
of its own and deletes them afterwards. Generator, router and receiver share the machine when they run on one: compare
figures within one run only.`,
	})
	cmd.AddCommand(
		benchKind(p, "publish", "How fast events are stored", `  router bench publish --messages 100000 --connections 64
  router bench publish --batch 100 --size 256`, (*bench).publish),
		benchKind(p, "deliver", "How fast stored events reach a webhook", `  router bench deliver --messages 50000`, (*bench).deliver),
		benchKind(p, "e2e", "How fast, and how soon, published events reach a webhook", `  router bench e2e --messages 50000
  router bench e2e --rate 2000 --filter 'data.n >= 0'`, (*bench).endToEnd),
	)
	return cmd
}

func benchKind(p *program, kind, short, example string, measure func(*bench, context.Context) (*benchResult, error)) *cobra.Command {
	var o benching
	cmd := &cobra.Command{Use: kind, Short: short, Example: example, Args: cobra.NoArgs}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.IntVarP(&o.events, "messages", "n", 20_000, "`number` of events")
	f.IntVar(&o.size, "size", 1024, "`bytes` of data of an event, at least 32")
	f.IntVarP(&o.connections, "connections", "c", 64, "`number` of connections that publish at once")
	f.IntVar(&o.batch, "batch", 1, "events a request")
	if kind == "publish" {
		f.StringVar(&o.topic, "topic", "", "publish to this `topic` instead of one made for the purpose")
	} else {
		f.StringVar(&o.filter, "filter", "", "give the subscription this `expression`; it must match all: data is {\"n\": number, \"pad\": text}")
		f.StringArrayVar(&o.functions, "function", nil, "run this `function`, which must pass every event on with its n; again for a chain")
		f.StringVar(&o.secret, "secret", "", "sign with this `whsec_…`")
		f.StringVar(&o.listen, "listen", "127.0.0.1:0", "`address` at which webhooks are received")
		f.StringVar(&o.advertise, "advertise", "", "`URL` at which the router reaches that address (default http://ADDRESS)")
		f.DurationVar(&o.timeout, "timeout", time.Minute, "give up when nothing has been delivered for this long")
	}
	f.IntVar(&o.rate, "rate", 0, "publish at most this many events a `second`; 0: as fast as it goes")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		if err := o.check(cmd); err != nil {
			return err
		}
		b := &bench{c: c, o: o, name: "bench-" + strings.ToLower(ulid.Make().String())}
		stop := p.progress(cmd.Context(), b)
		res, err := measure(b, cmd.Context())
		stop()
		if err != nil {
			return err
		}
		res.Kind, res.Size, res.Connections, res.Batch = kind, o.size, o.connections, o.batch
		if c.json {
			doc, err := json.Marshal(res)
			if err != nil {
				return err
			}
			return printJSON(p.stdout, doc)
		}
		res.print(p.stdout)
		return nil
	}
	return cmd
}

func (o *benching) check(cmd *cobra.Command) error {
	var wrong []string
	for _, b := range []struct {
		flag            string
		value, low, top int
	}{
		{"--messages", o.events, 1, 100_000_000}, {"--size", o.size, 32, 1 << 20}, {"--connections", o.connections, 1, 10_000},
		{"--batch", o.batch, 1, 10_000}, {"--rate", o.rate, 0, 100_000_000},
	} {
		if b.value < b.low || b.value > b.top {
			wrong = append(wrong, fmt.Sprintf("%s %d: want %d to %d", b.flag, b.value, b.low, b.top))
		}
	}
	if o.batch*(o.size+2) > 16<<20 {
		wrong = append(wrong, fmt.Sprintf("--batch %d of --size %d: a request may have 16 MiB", o.batch, o.size))
	}
	if len(wrong) > 0 {
		return usagef(cmd, "%s", strings.Join(wrong, "\n"))
	}
	return nil
}

// progress shows on a terminal how far b is, until the returned function is called.
func (p *program) progress(ctx context.Context, b *bench) (stop func()) {
	if !isTerminal(p.stderr) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		begin := time.Now()
		for sleep(ctx, 200*time.Millisecond) == nil {
			n := int(b.done.Load())
			share := min(n*100/b.o.events, 100)
			fmt.Fprintf(p.stderr, "\r%-20s %3d%%  %9.0f/s ", strings.Repeat("=", share/5), share, float64(n)/time.Since(begin).Seconds())
		}
		fmt.Fprintf(p.stderr, "\r%60s\r", "")
	}()
	return func() {
		cancel()
		<-done
	}
}

// A bench is one measurement.
type bench struct {
	c    *client
	o    benching
	name string       // of the topic and the subscription that it makes
	done atomic.Int64 // events published, or delivered where that is what is measured
}

// publish measures publishing alone.
func (b *bench) publish(ctx context.Context) (res *benchResult, err error) {
	topic := b.o.topic
	if topic == "" {
		topic = b.name
		if err := b.make(ctx, "topics", map[string]any{"name": topic}); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, b.remove(ctx, "topics", topic)) }()
	}
	begin := time.Now()
	took, err := b.load(ctx, topic, nil, &b.done)
	if err != nil {
		return nil, err
	}
	return b.result(b.o.events, time.Since(begin), took), nil
}

// deliver stores all events first and then measures their way to a receiver.
func (b *bench) deliver(ctx context.Context) (res *benchResult, err error) {
	return b.withReceiver(ctx, func(sink *benchSink) (*benchResult, error) {
		var stored atomic.Int64
		if _, err := b.load(ctx, b.name, nil, &stored); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := b.subscribe(ctx, sink, "earliest"); err != nil {
			return nil, err
		}
		if err := sink.wait(ctx, b.o.timeout); err != nil {
			return nil, err
		}
		return b.result(b.o.events, sink.lastAt().Sub(begin), nil), nil
	})
}

// endToEnd measures from the start of a publishing request to the arrival at the receiver.
func (b *bench) endToEnd(ctx context.Context) (*benchResult, error) {
	return b.withReceiver(ctx, func(sink *benchSink) (*benchResult, error) {
		if err := b.subscribe(ctx, sink, "earliest"); err != nil {
			return nil, err
		}
		var sent atomic.Int64
		begin := time.Now()
		if _, err := b.load(ctx, b.name, sink, &sent); err != nil {
			return nil, err
		}
		if err := sink.wait(ctx, b.o.timeout); err != nil {
			return nil, err
		}
		return b.result(b.o.events, sink.lastAt().Sub(begin), sink.took), nil
	})
}

// withReceiver runs measure between making a topic and a receiver and removing all that was made.
func (b *bench) withReceiver(ctx context.Context, measure func(*benchSink) (*benchResult, error)) (res *benchResult, err error) {
	sink, err := openBenchSink(b.o.listen, b.o.events, &b.done)
	if err != nil {
		return nil, err
	}
	defer sink.close()
	if err := b.make(ctx, "topics", map[string]any{"name": b.name}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.cleanUp(ctx)) }()
	res, err = measure(sink)
	if res != nil {
		res.Repeats = int(sink.repeats.Load())
	}
	return res, err
}

// cleanUp removes the subscription, then its topics.
func (b *bench) cleanUp(ctx context.Context) error {
	return errors.Join(b.remove(ctx, "subscriptions", b.name), b.remove(ctx, "topics", b.name), b.remove(ctx, "topics", b.name+".dead"))
}

func (b *bench) subscribe(ctx context.Context, sink *benchSink, start string) error {
	url := b.o.advertise
	if url == "" {
		url = "http://" + sink.address()
	}
	hook := map[string]any{"url": url, "format": "data"}
	if b.o.secret != "" {
		hook["secrets"] = []string{b.o.secret}
	}
	doc := map[string]any{"name": b.name, "topic": b.name, "start": start, "concurrency": b.o.connections,
		"deliver": map[string]any{"webhook": hook}}
	setIf(doc, "filter", b.o.filter)
	if len(b.o.functions) > 0 {
		doc["functions"] = b.o.functions
	}
	err := b.make(ctx, "subscriptions", doc)
	var p *problem
	if errors.As(err, &p) && strings.Contains(p.Detail, "private") {
		return fmt.Errorf("%w\nstart the router with --allow-private-targets so that it may deliver to this machine", err)
	}
	return err
}

func (b *bench) make(ctx context.Context, kind string, doc map[string]any) error {
	return b.c.callJSON(ctx, "POST", b.c.path(kind), doc, nil)
}

// remove deletes what the bench made, also when ctx has ended. What is not there needs no deleting.
func (b *bench) remove(ctx context.Context, kind, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := b.c.call(ctx, "DELETE", b.c.path(kind, name), nil)
	if err == nil || hasStatus(err, 404) {
		return nil
	}
	return fmt.Errorf("cleaning up: %s %s remains: %w", kind, name, err)
}

// benchResult is what a measurement found.
type benchResult struct {
	Kind        string             `json:"kind"`
	Events      int                `json:"events"`
	Size        int                `json:"size"` // bytes of data of an event
	Connections int                `json:"connections"`
	Batch       int                `json:"batch"`
	Seconds     float64            `json:"seconds"`
	PerSecond   float64            `json:"eventsPerSecond"`
	MiBSecond   float64            `json:"mibPerSecond"`
	LatencyMS   map[string]float64 `json:"latencyMs,omitempty"`
	Repeats     int                `json:"repeats"` // deliveries beyond the first of an event
}

// percentiles are the shares of sorted latencies that are shown.
var percentiles = []struct {
	name  string
	share float64
}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}}

func (b *bench) result(events int, took time.Duration, latencies []time.Duration) *benchResult {
	s := took.Seconds()
	r := &benchResult{Events: events, Seconds: s, PerSecond: float64(events) / s, MiBSecond: float64(events) * float64(b.o.size) / s / (1 << 20)}
	if len(latencies) > 0 {
		slices.Sort(latencies)
		r.LatencyMS = map[string]float64{}
		for _, p := range percentiles {
			i := max(int(p.share*float64(len(latencies))+0.999999)-1, 0)
			r.LatencyMS[p.name] = float64(latencies[min(i, len(latencies)-1)].Microseconds()) / 1000
		}
	}
	return r
}

func (r *benchResult) print(w io.Writer) {
	say(w, "%s: %d events of %d bytes, %d connections, batches of %d", r.Kind, r.Events, r.Size, r.Connections, r.Batch)
	say(w, "  %.0f events/s, %.1f MiB/s, %.2f s", r.PerSecond, r.MiBSecond, r.Seconds)
	if len(r.LatencyMS) > 0 {
		what := "each request"
		if r.Kind == "e2e" {
			what = "publish to delivery"
		}
		parts := make([]string, len(percentiles))
		for i, p := range percentiles {
			parts[i] = fmt.Sprintf("%s %.2f ms", p.name, r.LatencyMS[p.name])
		}
		say(w, "  %s: %s", what, strings.Join(parts, ", "))
	}
	if r.Repeats > 0 {
		say(w, "  deliveries repeated: %d", r.Repeats)
	}
}
