package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// Backend is what this face needs of the router. Errors are event's. Contexts carry who asks (access.From) and from where.
type Backend interface {
	// OpenTopic begins to read a topic; filter "" passes all. Close the reader.
	OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (Reader, error)
	// OpenSubscription is the same over the topic that a subscription puts its outputs into; event.ErrConflict for
	// one that delivers otherwise.
	OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (Reader, error)
	// Publish stores all events or none and fills in pos, which has their number. Once it returns nil they are
	// durable. Nothing is kept of the events.
	Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error
	// Ask is Publish of one event whose producer waits for a reply until end closes; nil if none came by then, or
	// none can come.
	Ask(ctx context.Context, topic string, evs []event.Event, pos []event.Position, end <-chan struct{}) (*event.Reply, error)
	// Reply returns the reply to an event that asked for one, waiting until end closes: event.ErrNotFound if there is
	// none yet, event.ErrGone if it is not kept any more.
	Reply(ctx context.Context, topic string, pos event.Position, end <-chan struct{}) (*event.Reply, error)
	// DryRun stores nothing and says for every event which subscriptions of the topic would match and why.
	DryRun(ctx context.Context, topic string, evs []event.Event) ([][]event.Match, error)
	// Event returns one event of a topic.
	Event(ctx context.Context, topic string, pos event.Position) (event.Record, error)
	// Pull leases up to max deliveries, waiting up to wait for the first; event.ErrConflict if the subscription
	// does not deliver by pull, which is also found with a max of 0.
	Pull(ctx context.Context, subscription string, max int, wait time.Duration) ([]event.Lease, error)
	// Unpull takes back leases that never reached their consumer.
	Unpull(subscription string, leases []string) error
	// Settle settles leases durably or prolongs them; lost are those that were no longer held, in the order given.
	Settle(ctx context.Context, subscription string, leases []string, how event.Settling) (lost []event.Lost, err error)
	// Invoke shows one event to a function and stores nothing; version "" is the one in force. A function that
	// fails is event.ErrFunction, at the typed reason.
	Invoke(ctx context.Context, function, version string, ev *event.Event) (*event.Invocation, error)

	// Has says whether something exists.
	Has(kind access.Kind, name string) bool
	// List, Show, Create, Change and Delete are about "topics", "subscriptions" and "functions". Documents are JSON;
	// a list is an array of what whoever asks may see. A patch is RFC 7396's.
	List(ctx context.Context, kind string) ([]byte, error)
	Show(ctx context.Context, kind, name string) ([]byte, error)
	Create(ctx context.Context, kind string, doc []byte) (shown []byte, err error)
	Change(ctx context.Context, kind, name string, patch []byte) (shown []byte, err error)
	Delete(ctx context.Context, kind, name string) error
	// RulesRevision is the id of the revision in force, "0" while there are no rules.
	RulesRevision() string
	// Rules returns the rules in force as JSON, and CheckRules says what is wrong with a YAML rules file.
	Rules(ctx context.Context) ([]byte, error)
	CheckRules(ctx context.Context, yaml []byte) error

	Seek(ctx context.Context, subscription string, to event.Start) error
	// PauseFor pauses; reason is shown with the state and may be empty.
	PauseFor(ctx context.Context, subscription, reason string) error
	Resume(ctx context.Context, subscription string) error
	// Ready returns a JSON document of details if they are asked for, and an error while the router should get no traffic.
	Ready(ctx context.Context, details bool) ([]byte, error)
}

// Reader walks a topic. It belongs to one goroutine.
type Reader interface {
	// Next returns the next event that passes the filter, waiting until there is one or ctx ends (then ctx's
	// error). An event that the ring overtook is event.ErrGone. The record is read-only and stays valid.
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
	Door    *admission.Door // in common with the router's other faces
	TLS     *tls.Config     // speaks "h2" alone (RFC 9113, 3.2); nil: HTTP/2 without TLS
	Limits  event.Limits    // Body bounds a message after decompression
	Log     *slog.Logger
	Now     func() time.Time
	// Insecure lets a listener that others can reach serve everybody where no access control is on.
	Insecure bool
	// Public leaves administration out: it has an address of its own.
	Public bool

	HeaderBytes    int           // of a call's headers; 16 KiB
	ConnectTimeout time.Duration // for TLS and HTTP/2's first frames; 10 s
	IdleTimeout    time.Duration // of a connection without calls; 2 min
	WriteTimeout   time.Duration // until a message has gone; a stream whose client does not read for longer is ended; 15 s
	Heartbeat      time.Duration // between two messages of a reader, empty ones where nothing comes; 20 s
	MessageTimeout time.Duration // from a message's first byte to its last; 60 s
	LookEvery      time.Duration // between two looks whether the router is ready, for health; 1 s
}

// Bounds of a connection and of its streams.
const (
	maxStreams   = 100 // calls of one connection at once
	maxCredit    = 10_000
	maxLeased    = 10_000    // deliveries of one stream that are not settled
	batchEvents  = 256       // of one message
	batchBytes   = 256 << 10 // of one message, past which no event is added
	largeMessage = 16 << 10  // bytes past which a message needs room
	maxInFlight  = 64        // requests of a publishing stream that are not answered yet
	pullBatch    = 100
	pullWait     = 30 * time.Second
	maxPull      = 1000
	minDeadline  = 10 * time.Second
	maxDeadline  = 600 * time.Second
	maxDelay     = 24 * time.Hour
	unpullTime   = 10 * time.Second
)

func (o Options) withDefaults() Options {
	o.Limits = o.Limits.WithDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.HeaderBytes == 0 {
		o.HeaderBytes = 16 << 10
	}
	fill := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	fill(&o.ConnectTimeout, 10*time.Second)
	fill(&o.IdleTimeout, 2*time.Minute)
	fill(&o.WriteTimeout, 15*time.Second)
	fill(&o.Heartbeat, 20*time.Second)
	fill(&o.MessageTimeout, time.Minute)
	fill(&o.LookEvery, time.Second)
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.Backend == nil {
		errs = append(errs, errors.New("options: Backend is missing"))
	}
	if o.Door == nil {
		errs = append(errs, errors.New("options: Door is missing"))
	}
	if o.TLS != nil && !slices.Equal(o.TLS.NextProtos, []string{"h2"}) {
		errs = append(errs, fmt.Errorf("options: TLS speaks %q; want \"h2\" alone", o.TLS.NextProtos))
	}
	if o.HeaderBytes < 0 {
		errs = append(errs, fmt.Errorf("options: HeaderBytes is %d; want a positive number, or 0 for the default", o.HeaderBytes))
	}
	for _, x := range []struct {
		d    time.Duration
		name string
	}{{o.ConnectTimeout, "ConnectTimeout"}, {o.IdleTimeout, "IdleTimeout"}, {o.WriteTimeout, "WriteTimeout"}, {o.Heartbeat, "Heartbeat"}, {o.MessageTimeout, "MessageTimeout"}, {o.LookEvery, "LookEvery"}} {
		if x.d < 0 {
			errs = append(errs, fmt.Errorf("options: %s is %s; want a positive duration, or 0 for the default", x.name, x.d))
		}
	}
	return errors.Join(errs...)
}
