package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/pebblestore"
)

// backtestSubs are the subscriptions of either side of the backtest that is measured; one differs.
const backtestSubs = 100

// backtestBatch is how many events a call of the function alone has: as many as a backtest's.
const backtestBatch = 256

// measureBacktest measures a backtest over a data directory on the disk: filters alone beside a scan that looks at
// nothing, and a function beside itself.
func measureBacktest() measurement {
	return measurement{name: "backtest", gives: []string{"backtest-filters", "backtest-scan", "backtest-function", "backtest-own"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) (err error) {
			n := 50_000
			if l.o.quick {
				n = 5_000
			}
			past, done, err := l.past(ctx, n)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			h, err := l.host(ctx, plugins.Options{})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
			module, err := l.module(ctx, "C")
			if err != nil {
				return err
			}
			digest, err := h.Put(ctx, module)
			if err != nil {
				return err
			}
			def := event.Function{Name: "enrich", Digest: digest}
			f, err := h.Open(ctx, def)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close(context.WithoutCancel(ctx))) }()

			before, err := backtestRules("250")
			if err != nil {
				return err
			}
			after, err := backtestRules("300")
			if err != nil {
				return err
			}
			through := engine.BacktestRules{Functions: []event.Function{def}, Subscriptions: []engine.SubscriptionSpec{{
				Subscription: event.Subscription{Name: "enriched", Topic: "bench", Functions: []string{def.Name}}}}}
			run := func(o engine.BacktestOptions) func() error {
				o.Past = past
				return func() error {
					r, err := engine.Backtest(ctx, o)
					if err == nil && (r.Events != uint64(n) || !r.Complete || r.Failed > 0) {
						err = fmt.Errorf("the backtest looked at %d of %d events, %d failed", r.Events, n, r.Failed)
					}
					return err
				}
			}
			took, err := cpuInTurns(ctx, l.length(), []func() error{
				run(engine.BacktestOptions{Before: before, After: after}),
				func() error { return scan(ctx, past[0].Logs[0], n, nil) },
				run(engine.BacktestOptions{Before: through, After: through, Host: h, Functions: engine.BacktestAllFunctions}),
				func() error { return calls(ctx, past[0].Logs[0], n, f) },
			})
			if err != nil {
				return err
			}
			for i, name := range []string{"backtest-filters", "backtest-scan", "backtest-function", "backtest-own"} {
				put(name, float64(n)/took[i])
			}
			return nil
		}}
}

// cpuInTurns calls each in turn for a time and returns the seconds of processor that each takes: the quickest tenth of
// its turns. Others on the machine then make it little slower, and what a core does in a second is what is asked for.
func cpuInTurns(ctx context.Context, d time.Duration, do []func() error) ([]float64, error) {
	turns := make([][]float64, len(do))
	for begin := time.Now(); time.Since(begin) < d || len(turns[0]) < 5; {
		for i, f := range do {
			start := ownCPU()
			if err := errors.Join(ctx.Err(), f()); err != nil {
				return nil, err
			}
			turns[i] = append(turns[i], ownCPU()-start)
		}
	}
	took := make([]float64, len(do))
	for i := range turns {
		slices.Sort(turns[i])
		took[i] = percentile(turns[i], 0.1)
	}
	return took, nil
}

// backtestRules are many subscriptions with a filter each, of which one lets most events pass.
func backtestRules(total string) (engine.BacktestRules, error) {
	var r engine.BacktestRules
	for i := range backtestSubs {
		source := fmt.Sprintf(`type == "order.created" && data.kind == "kind-%d" && data.total > 100`, i)
		if i == 0 {
			source = `type == "order.created" && data.country in ["DE", "FR"] && data.total >= ` + total
		}
		program, err := filters.Compile(source)
		if err != nil {
			return r, err
		}
		r.Subscriptions = append(r.Subscriptions, engine.SubscriptionSpec{Program: program,
			Subscription: event.Subscription{Name: fmt.Sprintf("s%d", i), Topic: "bench", Filter: source}})
	}
	return r, nil
}

// past writes n events and opens them for reading alone.
func (l *lab) past(ctx context.Context, n int) (_ []engine.PastTopic, done func() error, err error) {
	dir := filepath.Join(l.dir, "past")
	s, err := pebblestore.Open(ctx, pebblestore.Options{Dir: dir})
	if err != nil {
		return nil, nil, err
	}
	id, o := storage.LogID{Topic: 1}, storage.LogOptions{Bytes: 8 << 30}
	_, err = s.OpenLog(ctx, id, o)
	for at := 0; at < n && err == nil; at += batchEvents {
		a := storage.Append{Log: id}
		for i := at; i < min(at+batchEvents, n); i++ {
			a.Entries = append(a.Entries, storage.Entry{Event: &event.Event{ID: fmt.Sprintf("id-%020d", i), Source: "/bench", Type: "order.created", Topic: "bench",
				DataContentType: "application/json", Data: eventData(i)}})
		}
		err = s.Commit(ctx, &storage.Batch{Appends: []storage.Append{a}})
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	r, err := pebblestore.OpenReadOnly(ctx, dir)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	done = func() error { return errors.Join(r.Close(), os.RemoveAll(dir)) }
	log, err := r.OpenLog(ctx, id, o)
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return []engine.PastTopic{{Name: "bench", Logs: []storage.Log{log}}}, done, nil
}

// scan reads a log of n events and hands them on, if anybody wants them.
func scan(ctx context.Context, log storage.Log, n int, do func(event.Record) error) error {
	var blocks []*storage.Block
	seen := 0
	for from := event.Offset(0); from < event.Offset(n); {
		var err error
		if blocks, err = log.Read(ctx, from, 1<<20, blocks[:0]); err != nil {
			return err
		}
		for _, b := range blocks {
			for rest := event.Record(b.Records); len(rest) > 0; seen++ {
				rec := rest[:rest.Len():rest.Len()]
				rest = rest[len(rec):]
				if do != nil {
					if err := do(rec); err != nil {
						return err
					}
				}
			}
			from = b.End()
		}
	}
	if seen != n {
		return fmt.Errorf("%d events in the log, want %d", seen, n)
	}
	return nil
}

// calls hands all events of a log to a function.
func calls(ctx context.Context, log storage.Log, n int, f *plugins.Function) error {
	var c plugins.Call
	var out plugins.Outcome
	call := func() error {
		if len(c.Events) == 0 {
			return nil
		}
		err := f.Call(ctx, &c, &out)
		if err == nil && len(out.Failures) > 0 {
			err = fmt.Errorf("event %d failed: %s: %w", out.Failures[0].Index, out.Failures[0].Reason, out.Failures[0].Err)
		}
		c.Events, c.Attempts = c.Events[:0], c.Attempts[:0]
		return err
	}
	err := scan(ctx, log, n, func(rec event.Record) error {
		c.Events, c.Attempts = append(c.Events, rec), append(c.Attempts, 1)
		if len(c.Events) < backtestBatch {
			return nil
		}
		return call()
	})
	return errors.Join(err, call())
}

// backtestRows are the rows about backtests.
func backtestRows() []row {
	r := func(key, name, figure string, r row) row {
		r.key, r.name, r.group, r.figure, r.show = key, name, "backtests", value(figure), rate
		return r
	}
	return []row{
		r("backtest-filters", fmt.Sprintf("events a backtest of %d subscriptions looks at in a second of one core / floor", backtestSubs), "backtest-filters",
			row{values: []string{"backtest-filters"}, limit: constant(200_000), ratio: times, floor: 1,
				note: "By processor time, events of 1 KiB from a data directory opened for reading; a filter differs between the sides and looks at the data of every event."}),
		r("backtest-scan", "the same / reading the log and doing nothing", "backtest-filters",
			row{values: []string{"backtest-filters", "backtest-scan"}, limit: value("backtest-scan")}),
		r("backtest-function", "events a backtest runs through a C function in a second of one core / the function's own rate", "backtest-function",
			row{values: []string{"backtest-function", "backtest-own"}, limit: value("backtest-own"), floor: 0.8,
				note: fmt.Sprintf("Its own rate: the same events from the same log, in calls of %d.", backtestBatch)}),
	}
}
