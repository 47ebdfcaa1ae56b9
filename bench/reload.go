package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	reloadSubs   = 10_000
	reloadEvery  = 2 * time.Millisecond // between two events
	reloadRounds = 5
)

// measureReload is about a rules file of 10,000 subscriptions: how long it takes to check, to change one of them, and
// what that does to the deliveries of a subscription that gets every event meanwhile.
func measureReload() measurement {
	return measurement{name: "rules of 10,000 subscriptions", gives: []string{"rules-parse", "rules-reload-parse", "rules-reload",
		"rules-stall", "rules-stall-none", "rules-stall-p999", "rules-stall-none-p999", "explain-10k"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			to, err := newGaps()
			if err != nil {
				return err
			}
			defer to.close()
			dir := filepath.Join(l.dir, fmt.Sprintf("reload-%d", l.routers))
			if err := writeManyRules(dir, to.addr()); err != nil {
				return err
			}
			begin := time.Now()
			out, err := exec.CommandContext(ctx, l.binary, "rules", "validate", dir).CombinedOutput()
			if err != nil {
				return fmt.Errorf("validate the rules: %w\n%s", err, out)
			}
			put("rules-parse", time.Since(begin).Seconds())
			r, err := l.router("--rules", dir)
			if err != nil {
				return err
			}
			defer r.stop()
			if err := r.ready(ctx); err != nil {
				return err
			}
			if err := reloads(ctx, l, r, dir, to, put); err != nil {
				return err
			}
			return explains(ctx, r, put)
		}}
}

// reloads publishes for a while, and again while the rules change.
func reloads(ctx context.Context, l *lab, r *routerProcess, dir string, to *gaps, put func(string, float64)) error {
	phase := func(name string, work func(ctx context.Context) error) error {
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		var publisher sync.WaitGroup
		publisher.Go(func() {
			tick := time.NewTicker(reloadEvery)
			defer tick.Stop()
			for ctx.Err() == nil {
				<-tick.C
				if err := r.call(ctx, "POST", "/v1/topics/many/events", "application/json", []byte(`{"k":-1}`), nil); err != nil && ctx.Err() == nil {
					end(err)
				}
			}
		})
		err := sleep(ctx, time.Second) // until it runs evenly
		to.begin()
		if err == nil {
			err = work(ctx)
		}
		longest, p999 := to.end()
		if err == nil {
			err = context.Cause(ctx)
		}
		end(nil)
		publisher.Wait()
		put(name, longest)
		put(name+"-p999", p999)
		return err
	}
	start := time.Now()
	var parse, apply []float64
	during := func(ctx context.Context) error {
		for round := range reloadRounds {
			before, err := r.metrics(ctx)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("subscriptions:\n  changed: {topic: many, filter: data.k == %d, deadLetter: many.dead, deliver: {webhook: {url: \"http://%s/\"}}}\n", round, to.addr())
			if err := replace(filepath.Join(dir, "changed.yaml"), text); err != nil {
				return err
			}
			if err := r.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				return err
			}
			const count = `millrace_rules_reloads_total{result="applied"}`
			m := before
			for m[count] == before[count] {
				if err := sleep(ctx, 50*time.Millisecond); err != nil {
					return err
				}
				if m, err = r.metrics(ctx); err != nil {
					return err
				}
			}
			parse = append(parse, 1e6*m[`millrace_rules_load_seconds{step="parse"}`])
			apply = append(apply, 1e6*m[`millrace_rules_load_seconds{step="apply"}`])
		}
		return nil
	}
	err := phase("rules-stall", during)
	took := time.Since(start)
	if err == nil {
		err = phase("rules-stall-none", func(ctx context.Context) error { // but for the reloads the same, asking for metrics included
			for end := time.Now().Add(took); time.Now().Before(end); {
				if err := sleep(ctx, 50*time.Millisecond); err != nil {
					return err
				}
				if _, err := r.metrics(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	put("rules-reload-parse", median(parse))
	put("rules-reload", median(apply))
	return err
}

// writeManyRules makes 10,000 subscriptions that match nothing, one that matches every event, and one that will change.
func writeManyRules(dir, addr string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	const each = 1000
	for first := 0; first < reloadSubs; first += each {
		var b strings.Builder
		b.WriteString("subscriptions:\n")
		for i := first; i < first+each; i++ {
			fmt.Fprintf(&b, "  s%d:\n    topic: many\n    filter: type == \"order.created\" && data.customer == %d && data.total > 100\n    deadLetter: many.dead\n"+
				"    retry: {attempts: 5, schedule: [5s, 1m, 10m]}\n    deliver:\n      webhook: {url: \"http://127.2.0.%d:9/%d\", timeout: 5s}\n", i, i, 1+i%100, i)
		}
		if err := replace(filepath.Join(dir, fmt.Sprintf("%05d.yaml", first)), b.String()); err != nil {
			return err
		}
	}
	return replace(filepath.Join(dir, "all.yaml"), fmt.Sprintf("subscriptions:\n  all: {topic: many, deadLetter: many.dead, deliver: {webhook: {url: \"http://%s/\"}}}\n", addr))
}

func replace(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// gaps is a receiver that knows how long nothing came.
type gaps struct {
	server *http.Server
	ln     net.Listener
	wg     sync.WaitGroup

	mu   sync.Mutex
	last time.Time // zero: not measuring
	list []float64 // µs
}

func newGaps() (*gaps, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &gaps{ln: ln}
	g.server = &http.Server{Handler: g, ReadHeaderTimeout: time.Minute}
	g.wg.Go(func() { _ = g.server.Serve(ln) })
	return g, nil
}

func (g *gaps) addr() string { return g.ln.Addr().String() }

func (g *gaps) ServeHTTP(http.ResponseWriter, *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); !g.last.IsZero() {
		g.list, g.last = append(g.list, float64(now.Sub(g.last))/1e3), now
	}
}

func (g *gaps) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list, g.last = nil, time.Now()
}

// end returns the longest gap and the one that a thousandth were longer than, in microseconds.
func (g *gaps) end() (longest, p999 float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list = append(g.list, float64(time.Since(g.last))/1e3)
	g.last = time.Time{}
	slices.Sort(g.list)
	return g.list[len(g.list)-1], percentile(g.list, 0.999)
}

func (g *gaps) close() {
	_ = g.server.Close()
	g.wg.Wait()
}

// reloadRows are the rows about rules that are many and change.
func reloadRows() []row {
	seconds := func(v float64) string { return fmt.Sprintf("%.2f s", v) }
	const ms = 1e3
	return []row{
		{key: "rules-parse", name: "10,000 subscriptions parsed, checked and compiled / bound", group: "rules", values: []string{"rules-parse"},
			figure: value("rules-parse"), limit: constant(2), show: seconds, lower: true, floor: 1, note: "`router rules validate` of eleven files, the program's start included."},
		{key: "rules-reload", name: "one of 10,000 subscriptions changed, until it is in force / bound", group: "rules", values: []string{"rules-reload"},
			figure: value("rules-reload"), limit: constant(100 * ms), show: micros, lower: true, floor: 1, note: "After the rules are read again, which goes on beside deliveries: see the next row."},
		{key: "rules-reload-parse", name: "reading them again", group: "rules", values: []string{"rules-reload-parse"}, figure: value("rules-reload-parse"), show: micros},
		{key: "rules-stall", name: "longest gap between deliveries during reloads / 10 ms more than without", group: "rules", values: []string{"rules-stall", "rules-stall-none"},
			figure: value("rules-stall"), limit: func(of func(string) float64) float64 { return of("rules-stall-none") + 10*ms }, show: micros, ratio: times, lower: true, floor: 1,
			note: "500 events a second to a subscription that gets all, among the 10,000; five reloads, then as long without."},
		{key: "rules-stall-p999", name: "p99.9 of the gaps / the same without reloads", group: "rules", values: []string{"rules-stall-p999", "rules-stall-none-p999"},
			figure: value("rules-stall-p999"), limit: value("rules-stall-none-p999"), show: micros, ratio: times, lower: true},
	}
}
