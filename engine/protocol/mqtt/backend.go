package mqtt

import (
	"context"
	"net/netip"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// Backend is what this face needs of the router. Errors are event's.
type Backend interface {
	// Publish stores all events or none and fills in pos, which has their number. Once it returns nil they are durable.
	// Nothing is kept of the events.
	Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error
	// MQTT returns the mappings and sources in force; it is replaced as a whole.
	MQTT() *Names
	// Rows is where sessions keep what must outlive the process.
	Rows() Rows

	// OpenTopic begins to read a topic; filter "" passes all. Close the reader.
	OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (Reader, error)
	// Event returns one event of a topic; event.ErrGone once the ring has overtaken it.
	Event(ctx context.Context, topic string, pos event.Position) (event.Record, error)
	// Pulls are the subscriptions that deliver by pull: what clients may share.
	Pulls() []PullSource
	// Pull leases up to max deliveries, waiting up to wait for the first; event.ErrConflict if the subscription does not
	// deliver by pull.
	Pull(ctx context.Context, subscription string, max int, wait time.Duration) ([]event.Lease, error)
	// Unpull takes back leases that never reached their consumer.
	Unpull(subscription string, leases []string) error
	// Settle settles leases durably or prolongs them; lost are those that were no longer held, in the order given.
	Settle(ctx context.Context, subscription string, leases []string, how event.Settling) (lost []event.Lost, err error)
}

// Reader walks a topic. It belongs to one goroutine.
type Reader interface {
	// Next returns the next event that passes the filter, waiting until there is one or ctx ends (then ctx's error). An
	// event that the ring overtook is event.ErrGone. The record is read-only.
	Next(ctx context.Context) (event.Record, error)
	// TryNext does not wait: ok is false at the end of what is stored now, or, with more, after a bounded number of
	// events that the filter did not pass.
	TryNext(ctx context.Context) (rec event.Record, ok, more bool, err error)
	// Cursor is the opaque position after everything that was returned or passed over, and Offsets appends the next offset
	// of each partition to dst: the same in numbers. CursorAt is that of other offsets of the topic.
	Cursor() string
	Offsets(dst []event.Offset) []event.Offset
	CursorAt(offsets []event.Offset) string
	Close()
}

// A PullSource is a subscription that delivers by pull, and the topic whose events it hands out.
type PullSource struct{ Name, Topic string }

// Rows are the rows that sessions keep, each shelf of them this face's own. Its methods may be called from several
// goroutines.
type Rows interface {
	// Keep makes all changes or none; they survive a power cut once it returns nil. The rows are borrowed until then.
	Keep(ctx context.Context, rows ...event.ShelfRow) error
	// Load returns a row's value, nil if there is none.
	Load(ctx context.Context, shelf event.Shelf, key string) ([]byte, error)
	// Scan calls fn for the rows whose key begins with under, in the order of their keys, until fn returns an error, which
	// it returns. Both are fn's to keep.
	Scan(ctx context.Context, shelf event.Shelf, under string, fn func(key string, value []byte) error) error
}

// A Door lets connections in: one set of limits under every protocol. An error is one connection too many.
type Door interface {
	Enter(peer netip.Addr) (Visit, error)
	// Known is who has an identity, with what he may now, though he is not there; nil: nobody has it any more, or it cannot
	// be found out without what he showed.
	Known(identity string) Caller
}

// A Visit is a connection that was let in.
type Visit interface {
	Leave() // once or more
	// Reserve takes memory for a CONNECT that is being read, as a stranger's: event.ErrUnavailable. Release gives it back, and
	// so does Leave.
	Reserve(n int) error
	Release()
	// Open authenticates who speaks: access.ErrUnauthenticated where nobody known does.
	Open(ctx context.Context, cred access.Credentials) (Caller, error)
}

// A Caller is who speaks on a connection.
type Caller interface {
	Principal() *access.Principal // as last checked
	// May asks whether he may do something; a refusal is audited. What he may not see is event.ErrNotFound.
	May(a access.Action, k access.Kind, name string) error
	Context(ctx context.Context) context.Context // carries who he is, for the parts of the router that ask on
	Spend() error                                // takes one message from what he may send
	Reserve(n, size int) error                   // memory for a large packet: event.ErrUnavailable
	Return(n int)                                // of what was reserved; Close returns the rest
	Close()
	// Hold authenticates again now and then, asks still, and ends the context where either refuses; call the func.
	Hold(ctx context.Context, still func() error) (context.Context, func())
}
