package httpapi

import (
	"bytes"
	"context"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// Backtester tries rules on the events that topics keep. Nothing is delivered, stored or kept as state.
type Backtester interface {
	// OpenBacktest checks a bundle of rules, or a YAML file, and reserves the place that a backtest takes: a router runs
	// one at a time, another is event.ErrUnavailable. Close what it returns.
	OpenBacktest(ctx context.Context, bundle []byte, q BacktestQuery) (BacktestRun, error)
}

// BacktestRun is one that may run once. It belongs to one goroutine.
type BacktestRun interface {
	// Run calls tell with progress, a JSON object without line breaks, and returns the report as another.
	Run(ctx context.Context, tell func(progress []byte)) (report []byte, err error)
	Close()
}

// BacktestQuery is what a backtest is asked for. Zero means all.
type BacktestQuery struct {
	Since, Until  time.Time
	Last          int64 // events of each topic
	Topics        []string
	Subscriptions []string
	Functions     string // "" where the two sides differ, true or false
	Budget        time.Duration
	Examples      int    // of each subscription and kind; 0: a few
	Before        string // a revision to compare with; "" is what is in force
}

// Bounds of how long a backtest may take, and of its answer.
const (
	backtestTime        = time.Minute
	maxBacktestTime     = 10 * time.Minute
	maxBacktestExamples = 1000
)

// backtest is POST /v1/rules/backtest.
func (c *call) backtest() error {
	q, err := c.backtestQuery()
	if err != nil {
		return err
	}
	if err := c.s.roomForStream(); err != nil {
		return err
	}
	var run BacktestRun
	err = c.withBundle(func(bundle []byte) (err error) {
		run, err = c.s.o.Backend.OpenBacktest(c.s.work, bundle, q)
		return err
	})
	if err != nil {
		return err
	}
	if accept := c.ctx.Request.Header.Peek("Accept"); bytes.Contains(accept, jsonType) {
		defer run.Close()
		report, err := run.Run(c.s.wait, func([]byte) {})
		if c.s.draining() {
			err = errDraining
		}
		return c.shown(fasthttp.StatusOK, append(report, '\n'), err)
	}
	st := &backtestStream{outStream: c.outStream(), run: run}
	return c.takeOver(&takeover{serve: st.serve, never: run.Close})
}

func (c *call) backtestQuery() (q BacktestQuery, err error) {
	for name, at := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if v := c.query(name); v != "" {
			if *at, err = event.ParseSince(v, c.s.o.Now()); err != nil {
				return q, event.Invalid("?"+name, err.Error())
			}
		}
	}
	if v := c.query("limit"); v != "" {
		if q.Last, err = strconv.ParseInt(v, 10, 64); err != nil || q.Last < 1 {
			return q, invalidf("?limit", "is %.20q; want a number of events, at least 1", v)
		}
	}
	if v := c.query("examples"); v != "" {
		if q.Examples, err = strconv.Atoi(v); err != nil || q.Examples < 1 || q.Examples > maxBacktestExamples {
			return q, invalidf("?examples", "is %.20q; want 1 to %d", v, maxBacktestExamples)
		}
	}
	q.Budget = backtestTime
	if v := c.query("budget"); v != "" {
		if q.Budget, err = event.ParseDuration(v); err != nil || q.Budget <= 0 || q.Budget > maxBacktestTime {
			return q, invalidf("?budget", "is %.20q; want a duration up to %s", v, maxBacktestTime)
		}
	}
	switch q.Functions = strings.Clone(c.query("functions")); q.Functions {
	case "", "true", "false":
	default:
		return q, invalidf("?functions", "is %.20q; want true (run all), false (run none), or leave it out for those that differ", q.Functions)
	}
	names := func(v string) []string {
		if v == "" {
			return nil
		}
		return strings.Split(strings.Clone(v), ",")
	}
	q.Topics, q.Subscriptions = names(c.query("topics")), names(c.query("subscriptions"))
	q.Before = strings.Clone(c.query("before"))
	return q, nil
}

// A backtestStream sends progress, a line each, and the report last: {"progress": …}, then {"report": …} or
// {"problem": …}. It holds a connection that was taken from fasthttp, so that a client that goes ends the work.
type backtestStream struct {
	outStream
	run BacktestRun
}

func (st *backtestStream) serve(draining context.Context, nc net.Conn, _ []byte) {
	defer st.run.Close()
	ctx, stop := watch(draining, nc)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st.begin("application/x-ndjson")
	report, err := st.run.Run(ctx, func(progress []byte) {
		st.line("progress", progress)
		if st.flush(nc) != nil {
			cancel() // the client has gone or takes nothing
		}
	})
	switch {
	case err == nil:
		st.line("report", report)
	case ctx.Err() != nil && !st.s.draining():
		return // the client has gone
	default:
		if st.s.draining() {
			err = errDraining
		}
		doc, internal := ProblemOf(err)
		if internal {
			st.s.o.Log.Error("a backtest failed", "error", err)
		}
		st.line("problem", doc)
	}
	_ = st.flush(nc) // nobody is left to tell
}

func (st *backtestStream) line(name string, doc []byte) {
	st.out = append(append(append(append(st.out, `{"`...), name...), `":`...), doc...)
	st.out = append(st.out, '}', '\n')
}
