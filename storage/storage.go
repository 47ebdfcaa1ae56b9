// Package storage is the contract between the engine and whatever keeps its events: one write (Commit),
// reads of the log and of small tables, and claims. It holds no code; storage/pebblestore implements it,
// storage/storetest holds its promises.
package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A Store keeps logs of events and small ordered tables. All methods may be called at the same time.
type Store interface {
	// Commit returns once the whole batch would survive a power cut, or keeps none of it. It fills in the
	// Position of every entry; an entry that repeats one of the dedupe window (same id, same content) is
	// not stored again: it gets the old position and Repeat. Offsets of a partition are dense and handed
	// out in commit order; received times never fall along a partition.
	//
	// Everything the batch refers to is borrowed until Commit returns, and not longer. Batches of several
	// callers are gathered into one synced write; one that is refused does not hold up the others.
	//
	// Errors: *ConflictError (an id of the window with other content; the whole batch is refused),
	// event.ErrFull (a topic that rejects, or the disk's watermark), event.ErrNotFound (a log that is not
	// open), event.ErrUnavailable (closed, read-only, or a write failed: nothing after it is acknowledged).
	// Once ctx ends a batch that is still waiting is withdrawn; one that is being written is waited for.
	Commit(ctx context.Context, b *Batch) error

	// OpenLog makes a log ready, creating it if it is new, or changes the options of an open one.
	OpenLog(ctx context.Context, id LogID, o LogOptions) (Log, error)
	// DropLog removes a log with all its events. Its id must not be used again.
	DropLog(ctx context.Context, id LogID) error

	// Load returns a copy of a table's value, nil if the key is absent.
	Load(ctx context.Context, t Table, key []byte) ([]byte, error)
	// Scan calls fn for the keys in [from, to) in order (to nil: to the table's end) until fn returns an
	// error, which Scan returns; ErrStop ends it without one. key and value are valid during the call.
	Scan(ctx context.Context, t Table, from, to []byte, fn func(key, value []byte) error) error

	// Claim makes this process the owner of a log, or says who is. On a store of one process it always
	// succeeds: the data directory's lock is the claim.
	Claim(ctx context.Context, id LogID) (Claim, error)

	// Stats returns gauges and counters for metrics.
	Stats() Stats
	// Close waits for commits under way and closes. Later calls return event.ErrUnavailable.
	Close() error
}

// ErrStop ends a Scan early.
var ErrStop = errors.New("stop")

// LogID names a log: the incarnation of a topic (a number that is never given twice, so that a topic that
// is deleted and made again is another log) and a partition.
type LogID struct {
	Topic     uint32
	Partition event.Partition
}

// LogOptions bound a log. Values are per log: a topic's bounds divided by its partitions.
type LogOptions struct {
	Bytes  int64         // of records; the ring's size
	Age    time.Duration // by received time
	Events int64         // 0: no bound
	Reject bool          // refuse an append rather than drop events at or above the log's hold
	Held   int64         // bytes up to which a log that does not reject drops nothing at or above its hold, whatever else bounds it
	Dedupe time.Duration // window in which ids are unique
}

// A Batch is what one Commit writes, all or nothing.
type Batch struct {
	Appends []Append
	Ops     []Op
}

// An Append adds events to one log. A batch may hold several for the same log; they keep their order.
type Append struct {
	Log     LogID
	Entries []Entry
}

// An Entry is one event to append. Position and Repeat are results.
type Entry struct {
	Event *event.Event

	// Client marks an event whose id the client gave: ID is a 128-bit hash of (source, id), Content a hash of
	// what the client sent before anything was filled in. Others bypass the dedupe window.
	Client  bool
	ID      [16]byte
	Content uint64

	Position event.Position
	Repeat   bool
}

// ConflictError refuses a batch: an id within the dedupe window came with other content.
type ConflictError struct {
	Append, Entry int            // indexes into Batch
	Position      event.Position // of the event that has the id
}

func (c *ConflictError) Error() string {
	return fmt.Sprintf("the id was used at %s for other content", c.Position)
}

// Unwrap returns event.ErrConflict.
func (c *ConflictError) Unwrap() error { return event.ErrConflict }

// A Table is one of the small ordered maps beside the logs. The engine numbers them.
type Table uint8

// An Op changes one key of a table, or a range of keys.
type Op struct {
	Table Table
	Kind  OpKind
	Key   []byte
	Value []byte // Put: the value; DeleteRange: the exclusive end
}

// OpKind is what an Op does.
type OpKind uint8

// The kinds of Op.
const (
	Put OpKind = iota
	Delete
	DeleteRange
)

// A Block is a run of consecutive events of a partition, as one commit packed them. It is shared and
// read-only, and stays valid as long as somebody refers to it.
type Block struct {
	First   event.Offset
	Count   int
	Records []byte // Count records, one after the other; walk them with Record.Len
}

// End is the offset after the block's last event.
func (b *Block) End() event.Offset { return b.First + event.Offset(b.Count) }

// Log reads one log.
type Log interface {
	// Bounds returns what the log holds now.
	Bounds() Bounds
	// Read appends blocks to dst, beginning with the one that holds offset from, until they hold more than
	// max bytes or the log ends; at least one if there is an event at or after from. Blocks that were just
	// committed come from memory. The first block may begin before from. A from below the head is a
	// *TrimmedError.
	Read(ctx context.Context, from event.Offset, max int, dst []*Block) ([]*Block, error)
	// Wait returns nil once an event at or after from is committed.
	Wait(ctx context.Context, from event.Offset) error
	// Since returns the offset of the first event received at or after t, or the log's next offset.
	Since(ctx context.Context, t time.Time) (event.Offset, error)
	// Trim drops whole chunks of events below before; Bounds tells how far it came.
	Trim(ctx context.Context, before event.Offset) error
	// Hold sets the offset at and above which a log that rejects, or holds some bytes, drops nothing. It starts at 0.
	Hold(floor event.Offset)
}

// Bounds are what a log holds: offsets [Head, Next).
type Bounds struct {
	Head, Next event.Offset
	Bytes      int64 // of records
	HeadTime   int64 // received time at or before that of the first event, Unix ns; 0 if empty
	LastTime   int64 // received time of the last event ever, Unix ns
}

// TrimmedError says that the ring has overtaken an offset.
type TrimmedError struct{ From, Head event.Offset }

func (t *TrimmedError) Error() string {
	return fmt.Sprintf("offset %d has left the ring; the earliest is %d", t.From, t.Head)
}

// Unwrap returns event.ErrGone.
func (t *TrimmedError) Unwrap() error { return event.ErrGone }

// A Claim is this process's ownership of a log.
type Claim interface {
	// Epoch grows with every new owner.
	Epoch() uint64
	// Lost is closed when the ownership has ended.
	Lost() <-chan struct{}
	// Release ends it.
	Release()
}

// Stats are a store's gauges and counters.
type Stats struct {
	Commits, CommittedBatches, Syncs uint64 // group commits; callers' batches in them
	Events                           uint64 // appended since the start
	UserBytes, WrittenBytes          uint64 // record bytes appended; bytes written to disk for everything
	DiskFree, DiskUsed               uint64 // bytes
	DedupeBytes                      int64
	DedupeShortened                  uint64 // ids that left the window early because the index was full
	Degraded                         string // why commits are refused; "" when all is well
}
