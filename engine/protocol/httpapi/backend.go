package httpapi

import (
	"context"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// Backend is what the HTTP face needs of the router behind it. Errors are event's; see the table in
// errors.go for the status each becomes.
type Backend interface {
	Publisher
	Readers
	Puller
	Definitions
	Operator
	Functions
	DeadLetters
	Explainer
	Backtester
	Revisions
	Replays
	Schedules
	Backups
}

// DeadLetters is what a subscription gave up and what becomes of it. What was done when a call ends, for whatever
// reason, is durable.
type DeadLetters interface {
	// DeadLetters lists unfinished ones, at most limit, from where the page before ended.
	DeadLetters(ctx context.Context, subscription string, q event.LetterQuery, after string, limit int) (event.LetterPage, error)
	// Redrive delivers them again, to the subscription alone; it works until ctx ends.
	Redrive(ctx context.Context, subscription string, r event.Redrive) (event.LettersDone, error)
	// Purge drops them for good; it works until ctx ends.
	Purge(ctx context.Context, subscription string, p event.Purge) (event.LettersDone, error)
}

// Functions is what there is to functions besides their definitions.
type Functions interface {
	// Rollback puts another version of a function in force: the one before, or the one that a digest, which
	// may be abbreviated, names.
	Rollback(ctx context.Context, name, to string) (shown []byte, err error)
	// FunctionLog begins to read the last lines of a function's log, at most limit.
	FunctionLog(ctx context.Context, name string, limit int) (LogReader, error)
	// Shadow returns how the versions that run beside a subscription's own compare, as JSON.
	Shadow(ctx context.Context, subscription string) ([]byte, error)
}

// LogReader reads a function's log, a JSON object a line without its end. It belongs to one goroutine and
// holds nothing that must be given back. Lines are read-only.
type LogReader interface {
	// Next waits for the next line; an error is ctx's, or event.ErrGone when the function is.
	Next(ctx context.Context) ([]byte, error)
	TryNext() (line []byte, ok bool)
}

// Publisher takes events in.
type Publisher interface {
	// Publish stores all events or none and fills in pos, which has their number. It fills the attributes
	// that a client left out (see event.Event) in the caller's events. Once it returns nil the events are durable. The
	// events may be borrowed from a request; nothing is kept of them.
	Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error
	// PublishForwarded is Publish of what another router forwards, of which it may have stored some before; pos is zero
	// for what was not stored.
	PublishForwarded(ctx context.Context, topic string, evs []event.Event, pos []event.Position, from event.Forwarded) (event.Taken, error)
	// Name tells this router from others; it says nothing else.
	Name() string
	// Stamp tells a topic from another of its name, made later; it says nothing else.
	Stamp(topic string) (string, error)
	// Ask is Publish of one event whose producer waits for a reply until end closes; nil if none came by then, or
	// none can come. Where too many wait already nothing is stored: event.ErrUnavailable.
	Ask(ctx context.Context, topic string, evs []event.Event, pos []event.Position, end <-chan struct{}) (*event.Reply, error)
	// Reply returns the reply to an event that asked for one, waiting until end closes: event.ErrNotFound if there is
	// none yet, event.ErrGone if it is not kept any more.
	Reply(ctx context.Context, topic string, pos event.Position, end <-chan struct{}) (*event.Reply, error)
	// Invoke shows one event to a function and stores nothing; version "" is the one in force. A function that
	// fails is event.ErrFunction, at the typed reason.
	Invoke(ctx context.Context, function, version string, ev *event.Event) (*event.Invocation, error)
	// DryRun stores nothing and says for every event which subscriptions of the topic would match and why.
	DryRun(ctx context.Context, topic string, evs []event.Event) ([][]event.Match, error)
}

// Readers reads topics and what subscriptions put out.
type Readers interface {
	// OpenTopic begins to read a topic; filter "" passes all. Close the reader.
	OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (Reader, error)
	// OpenSubscription is the same over the topic that a subscription puts its outputs into.
	OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (Reader, error)
	// Event returns one event of a topic.
	Event(ctx context.Context, topic string, pos event.Position) (event.Record, error)
	// Schema returns a topic's JSON Schema, nil if it has none.
	Schema(ctx context.Context, topic string) ([]byte, error)
}

// Reader walks a topic. It belongs to one goroutine.
type Reader interface {
	// Next returns the next event that passes the filter, waiting until there is one or ctx ends (then
	// ctx's error). An event that the ring overtook is event.ErrGone. The record is read-only and stays valid.
	Next(ctx context.Context) (event.Record, error)
	// TryNext does not wait: ok is false at the end of what is stored now. It looks at no more than a bounded
	// number of events, so that a selective filter cannot hold a request for long; more tells that it stopped early.
	TryNext(ctx context.Context) (rec event.Record, ok, more bool, err error)
	// Cursor is the opaque position after everything that was returned or passed over.
	Cursor() string
	Close()
}

// Puller hands deliveries of a pull subscription to consumers.
type Puller interface {
	// Pull leases up to max deliveries, waiting up to wait for the first.
	Pull(ctx context.Context, subscription string, max int, wait time.Duration) ([]event.Lease, error)
	// Unpull takes back leases that never reached their consumer.
	Unpull(subscription string, leases []string) error
	// Settle settles leases durably or prolongs them; lost are those that were no longer held, in the order given.
	Settle(ctx context.Context, subscription string, leases []string, how event.Settling) (lost []event.Lost, err error)
	// AckReply settles leases durably; lost lists those that were no longer held. reply, if not nil, goes to
	// the producers of those events that asked for one.
	AckReply(ctx context.Context, subscription string, leases []string, reply *event.Reply) (lost []string, err error)
	// Nack gives deliveries back, due again after delay.
	Nack(ctx context.Context, subscription string, leases []string, delay time.Duration) (lost []string, err error)
	// Extend moves the deadlines to d from now.
	Extend(ctx context.Context, subscription string, leases []string, d time.Duration) (lost []string, err error)
}

// Definitions shows and changes topics, subscriptions and functions. Kind is "topics", "subscriptions" or
// "functions"; documents are JSON, key for key as in rules files, plus "name" and read-only state.
//
// Contexts carry who asks (access.From): what he may not see is not listed, and of what a definition names he must be
// allowed to do what it makes of it.
type Definitions interface {
	// Has says whether something exists.
	Has(kind access.Kind, name string) bool
	List(ctx context.Context, kind string) ([]byte, error) // a JSON array
	Show(ctx context.Context, kind, name string) ([]byte, error)
	Create(ctx context.Context, kind string, doc []byte) (shown []byte, err error)
	Change(ctx context.Context, kind, name string, patch []byte) (shown []byte, err error) // RFC 7396 merge patch
	Delete(ctx context.Context, kind, name string) error
	// PushFunction stores a module (or a JSON document of settings, by contentType) as a function's version.
	PushFunction(ctx context.Context, name, contentType string, body []byte) (shown []byte, err error)
	// Rules returns the rules in force as JSON.
	Rules(ctx context.Context) ([]byte, error)
	// CheckRules says what is wrong with a YAML rules file; nil when nothing is.
	CheckRules(ctx context.Context, yaml []byte) error
}

// Operator moves and stops subscriptions and tells how the router is.
type Operator interface {
	Seek(ctx context.Context, subscription string, to event.Start) error
	// PauseFor pauses; reason is shown with the state and may be empty.
	PauseFor(ctx context.Context, subscription, reason string) error
	Resume(ctx context.Context, subscription string) error
	// Ready returns a JSON document of details if they are asked for, and an error while the router should get no traffic.
	Ready(ctx context.Context, details bool) ([]byte, error)
}
