package client

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/millrace/millrace/sdk/client/millracev1"
)

// Backoff is how long to wait before the next try: Min, then twice as long each time up to Max, each wait shortened at
// random by up to a half, so that clients which were cut off together do not come back together.
type Backoff struct {
	Min time.Duration // 100 ms
	Max time.Duration // 10 s
}

func (b Backoff) withDefaults() Backoff {
	if b.Min <= 0 {
		b.Min = 100 * time.Millisecond
	}
	if b.Max <= 0 {
		b.Max = max(10*time.Second, b.Min)
	}
	return b
}

// wait is how long to wait before try number n (1 is the first repeat), at least after.
func (b Backoff) wait(n int, after time.Duration) time.Duration {
	d := b.Max
	if shift := n - 1; shift < 30 && b.Min<<shift < b.Max && b.Min<<shift > 0 {
		d = b.Min << shift
	}
	d -= rand.N(d/2 + 1)
	if after > 0 {
		return after + rand.N(d+1)
	}
	return d
}

// sleep waits for d; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unary is the interceptor of all calls that are no streams: it bounds them in time, tries again where that is safe, and
// returns an *Error.
func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, bounded := ctx.Deadline(); !bounded && c.o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.o.Timeout+waitOf(req))
		defer cancel()
	}
	for try := 1; ; try++ {
		err := asError(invoke(ctx, method, req, reply, cc, opts...))
		if err == nil || try >= c.o.Attempts || !repeatable(method, req) {
			return err
		}
		ok, after := temporary(err)
		if !ok {
			return err
		}
		wait := c.o.Backoff.wait(try, after)
		if until, bounded := ctx.Deadline(); bounded && time.Until(until) < wait {
			return err // it says more than that time is over
		}
		c.o.Log.Debug("millrace: a call is tried again", "method", method, "error", err, "in", wait)
		if !sleep(ctx, wait) {
			return err
		}
	}
}

// waitOf is how long the router may wait by the request's own wish.
func waitOf(req any) time.Duration {
	switch r := req.(type) {
	case *millracev1.PublishRequest:
		return r.Wait.AsDuration()
	case *millracev1.PullRequest:
		return r.Wait.AsDuration()
	case *millracev1.GetReplyRequest:
		return r.Wait.AsDuration()
	}
	return 0
}

// repeatable reports whether a call that may have been worked on can be made again: whatever reads, what comes to the same
// twice, and publishing what has ids.
func repeatable(method string, req any) bool {
	if r, ok := req.(*millracev1.PublishRequest); ok {
		for _, e := range r.Events {
			if e.GetId() == "" {
				return false
			}
		}
		return true
	}
	switch method[strings.LastIndexByte(method, '/')+1:] {
	case "CreateDefinition", "UpdateDefinition", "DeleteDefinition", "Invoke":
		return false
	}
	return strings.HasPrefix(method, "/millrace.v1.")
}
