// Package engine is the router's core: it publishes events into topics, matches them, runs functions,
// delivers, settles, retries and dead-letters. Protocols, connectors and rules stand around it and do not
// know each other.
package engine

import (
	"context"

	"github.com/millrace/millrace/engine/event"
)

// A Sink sends deliveries to one outside place. Deliver may be called from several goroutines at once.
type Sink interface {
	// Deliver returns nil once the other side has taken every delivery of ds (today always one). An error
	// counts as one failed attempt: event.Permanent dead-letters without further tries, event.Disable
	// disables the subscription, *event.RetryAfter moves the due time; anything else is retried by
	// schedule. It must return soon after ctx ends. ds and the records in it are read-only and borrowed
	// until it returns.
	Deliver(ctx context.Context, ds []event.Delivery) error
	// Close frees what the sink holds, once no Deliver is under way.
	Close() error
}
