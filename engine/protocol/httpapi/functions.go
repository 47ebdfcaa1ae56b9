package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// rollback is POST /v1/functions/{name}/rollback.
func (c *call) rollback() error {
	var in struct {
		To string `json:"to"`
	}
	if err := c.members(&in); err != nil {
		return err
	}
	shown, err := c.s.o.Backend.Rollback(c.context(), strings.Clone(c.params[0]), in.To)
	return c.shown(fasthttp.StatusOK, shown, err)
}

// shadow is GET /v1/subscriptions/{name}/shadow.
func (c *call) shadow() error {
	doc, err := c.s.o.Backend.Shadow(c.s.work, c.params[0])
	return c.shown(fasthttp.StatusOK, doc, err)
}

// maxLogLimit is as many lines as a router keeps of a function.
const maxLogLimit = 1000

var ndjsonType = []byte("application/x-ndjson")

// functionLogs is GET /v1/functions/{name}/logs.
func (c *call) functionLogs() error {
	follow, limit := false, maxLogLimit
	switch v := c.query("follow"); v {
	case "", "false":
	case "true":
		follow = true
	default:
		return invalidf("?follow", "is %.20q; want true or false", v)
	}
	if v := c.query("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > maxLogLimit {
			return invalidf("?limit", "is %.20q; want 0 to %d lines", v, maxLogLimit)
		}
		limit = n
	}
	if follow && c.s.Streams() >= c.s.o.MaxConns { // fasthttp does not count connections that were taken from it
		return fmt.Errorf("%d streams are open, which is the limit; try again later: %w", c.s.o.MaxConns, event.ErrUnavailable)
	}
	log, err := c.s.o.Backend.FunctionLog(c.s.work, c.params[0], limit)
	if err != nil {
		return err
	}
	if !follow || c.ctx.IsHead() {
		out := c.out[:0]
		for line, ok := log.TryNext(); ok; line, ok = log.TryNext() {
			out = append(append(out, line...), '\n')
		}
		c.out = out
		c.ctx.Response.Header.SetContentTypeBytes(ndjsonType)
		c.ctx.Response.SetBody(out)
		return nil
	}
	st := &logStream{outStream: c.outStream(), log: log}
	return c.takeOver(&takeover{serve: st.serve, never: func() {}})
}

// A logStream sends a log as it grows.
type logStream struct {
	outStream
	log LogReader
}

// serve sends lines until the client is gone, too slow, or the server drains.
func (st *logStream) serve(draining context.Context, nc net.Conn, _ []byte) {
	ctx, stop := watch(draining, nc)
	defer stop()
	st.begin("application/x-ndjson")
	for st.flush(nc) == nil {
		wait, cancel := context.WithTimeout(ctx, st.s.o.Heartbeat)
		line, err := st.log.Next(wait)
		cancel()
		switch {
		case err == nil:
			for ok := true; ok && len(st.out) < streamFlush; line, ok = st.log.TryNext() {
				st.out = append(append(st.out, line...), '\n')
			}
			continue
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			st.out = append(st.out, '\n') // so that what lies between keeps the connection
			continue
		}
		return // the client has gone, the router drains, or the function was removed
	}
}
