package ws

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// Backend is what this face needs of the router. Errors are event's.
type Backend interface {
	// OpenTopic begins to read a topic; filter "" passes all. Close the reader.
	OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (Reader, error)
	// OpenSubscription is the same over the topic that a subscription puts its outputs into; event.ErrConflict for
	// one that delivers otherwise.
	OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (Reader, error)
	// Publish stores all events or none and fills in pos, which has their number. Once it returns nil they are
	// durable. Nothing is kept of the events.
	Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error
	// Pull leases up to max deliveries, waiting up to wait for the first; event.ErrConflict if the subscription
	// does not deliver by pull, which is also found with a max of 0.
	Pull(ctx context.Context, subscription string, max int, wait time.Duration) ([]event.Lease, error)
	// Unpull takes back leases that never reached their consumer.
	Unpull(subscription string, leases []string) error
	// Settle settles leases durably or prolongs them; lost are those that were no longer held, in the order given.
	Settle(ctx context.Context, subscription string, leases []string, how event.Settling) (lost []event.Lost, err error)
}

// Reader walks a topic. It belongs to one goroutine.
type Reader interface {
	// Next returns the next event that passes the filter, waiting until there is one or ctx ends (then ctx's
	// error). An event that the ring overtook is event.ErrGone. The record is read-only.
	Next(ctx context.Context) (event.Record, error)
	// TryNext does not wait: ok is false at the end of what is stored now, or, with more, after a bounded number
	// of events that the filter did not pass.
	TryNext(ctx context.Context) (rec event.Record, ok, more bool, err error)
	// Cursor is the opaque position after everything that was returned or passed over.
	Cursor() string
	Close()
}

// Options configure a Server. The zero value of a field means its default.
type Options struct {
	Backend Backend
	// May asks whether the client of a socket's context may do something, whenever it is about to; nil: everything.
	May func(ctx context.Context, a access.Action, k access.Kind, name string) error
	// Spend takes a message from what the client may send, Reserve n bytes for one that has size with them from the room
	// that there is for large ones, and Release gives back all that was reserved; nil: nothing is bounded.
	Spend   func(ctx context.Context) error
	Reserve func(ctx context.Context, n, size int) error
	Release func(ctx context.Context)
	// Problem tells an error as one JSON object (RFC 9457), and whether it is the router's own fault, to be logged.
	Problem func(err error) (doc []byte, internal bool)
	// Render appends an event as structured JSON.
	Render func(dst []byte, rec event.Record) []byte
	Limits event.Limits // Body bounds a message
	Log    *slog.Logger
	Now    func() time.Time

	WriteTimeout   time.Duration // of one write; a client that takes longer is dropped; 15 s
	MessageTimeout time.Duration // from a message's first frame to its last; 60 s
	Ping           time.Duration // between two pings; a client that is silent for twice as long is dropped; 20 s
	CloseTimeout   time.Duration // for the client's close frame after ours; 1 s
}

// Bounds of a socket.
const (
	maxSubscriptions = 64
	maxCredit        = 10_000
	defaultCredit    = 100
	maxRef           = 256      // bytes
	maxFragments     = 10_000   // frames of one message
	largeMessage     = 16 << 10 // bytes past which a message needs room
	maxLeased        = 10_000   // deliveries of one subscription that a socket holds unsettled
	pullBatch        = 100
	pullWait         = 30 * time.Second
)

func (o Options) withDefaults() Options {
	o.Limits = o.Limits.WithDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.May == nil {
		o.May = func(context.Context, access.Action, access.Kind, string) error { return nil }
	}
	if o.Spend == nil {
		o.Spend = func(context.Context) error { return nil }
	}
	if o.Reserve == nil || o.Release == nil {
		o.Reserve, o.Release = func(context.Context, int, int) error { return nil }, func(context.Context) {}
	}
	fill := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	fill(&o.WriteTimeout, 15*time.Second)
	fill(&o.MessageTimeout, time.Minute)
	fill(&o.Ping, 20*time.Second)
	fill(&o.CloseTimeout, time.Second)
	return o
}

func (o Options) validate() error {
	var errs []error
	for _, x := range []struct {
		missing bool
		name    string
	}{{o.Backend == nil, "Backend"}, {o.Problem == nil, "Problem"}, {o.Render == nil, "Render"}} {
		if x.missing {
			errs = append(errs, fmt.Errorf("options: %s is missing", x.name))
		}
	}
	for _, x := range []struct {
		d    time.Duration
		name string
	}{{o.WriteTimeout, "WriteTimeout"}, {o.MessageTimeout, "MessageTimeout"}, {o.Ping, "Ping"}, {o.CloseTimeout, "CloseTimeout"}} {
		if x.d < 0 {
			errs = append(errs, fmt.Errorf("options: %s is %s; want a positive duration, or 0 for the default", x.name, x.d))
		}
	}
	return errors.Join(errs...)
}
