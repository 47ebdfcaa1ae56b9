// Package engine is the router's core: it publishes events into topics, matches them, runs functions,
// delivers, settles, retries and dead-letters. Protocols, connectors and rules stand around it and do not
// know each other.
package engine

import (
	"context"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A Sink sends deliveries to one outside place. Deliver may be called from several goroutines at once.
type Sink interface {
	// Deliver returns nil once the other side has taken every delivery of ds: one, or as many as a Batcher
	// says. An error counts as one failed attempt of each, or an *event.Partial says which failed and how:
	// event.Permanent dead-letters without further tries, event.Disable disables the subscription,
	// *event.RetryAfter moves the due time; anything else is retried by schedule. It must return soon after ctx ends. ds and the records in it are read-only and borrowed
	// until it returns.
	Deliver(ctx context.Context, ds []event.Delivery) error
	// Close frees what the sink holds, once no Deliver is under way.
	Close() error
}

// A Batcher is a sink that takes several deliveries at once: so many events, with so many bytes of records, and
// waiting at most so long for more after the first. It is asked once, when it is opened. It gets no deliveries that
// want a reply.
type Batcher interface {
	Batch() (events, bytes int, wait time.Duration)
}
