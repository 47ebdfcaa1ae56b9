package plugins

import (
	"context"
	"fmt"

	"github.com/tetratelabs/wazero"

	"github.com/millrace/millrace/engine/event"
)

// An ABI is a calling convention between the host and its guests. One value serves every function; its
// methods may be called at the same time.
type ABI interface {
	// Speaks reports whether m is written for this convention, by what it imports and exports.
	Speaks(m *Module) bool
	// Check says in words what m asks for that this build does not have or that the convention forbids.
	Check(m *Module) error
	// Link makes the convention's host functions known to r. They find who called by InstanceOf.
	Link(ctx context.Context, r wazero.Runtime) error
	// Bind readies an instance that has been initialised. An error means that the module is unhealthy.
	Bind(in *Instance) (Guest, error)
}

// A Guest is an instance seen through its ABI. It is used by one goroutine at a time.
type Guest interface {
	// Handle hands b over, and appends one or more results for every event to out, in order, their Index
	// by Batch.Index, their bytes copied. An error is a *GuestError or that of Instance.Invoke; what was
	// appended is then discarded.
	Handle(b *Batch, out *Outcome) error
	// Cursor is the index within the batch of the event at work, or what the guest claims it to be: any
	// number. It works while Handle runs and after it failed.
	Cursor() int
}

// A Batch is what one run of a guest works on: some of the events of a call.
type Batch struct {
	MaxOutput  int // bytes of results
	MaxResults int

	call     *Call
	from, to int     // these of the call,
	picks    []int32 // unless these are given
}

// Len is the number of events.
func (b *Batch) Len() int {
	if b.picks != nil {
		return len(b.picks)
	}
	return b.to - b.from
}

// Index is where event i of the batch lies in Call.Events.
func (b *Batch) Index(i int) int {
	if b.picks != nil {
		return int(b.picks[i])
	}
	return b.from + i
}

// Event is event i of the batch, shared and read-only.
func (b *Batch) Event(i int) event.Record { return b.call.Events[b.Index(i)] }

// Attempt is the attempt of event i; 1 is the first.
func (b *Batch) Attempt(i int) uint32 {
	if k := b.Index(i); k < len(b.call.Attempts) {
		return max(b.call.Attempts[k], 1)
	}
	return 1
}

// A GuestError is a fault of a guest: it becomes a Failure if the event, alone on a fresh instance,
// meets it again.
type GuestError struct {
	Reason Reason
	Index  int // of the event in the batch; -1: whatever the cursor says
	Err    error
}

func (e *GuestError) Error() string { return fmt.Sprintf("%s: %v", e.Reason, e.Err) }
func (e *GuestError) Unwrap() error { return e.Err }

// BadOutput is a GuestError about what a guest returned for event i of a batch, -1 for the whole.
func BadOutput(i int, format string, args ...any) *GuestError {
	return &GuestError{Reason: ReasonOutput, Index: i, Err: fmt.Errorf(format, args...)}
}

// Limits of what any guest may hand back and of its module, beside those of event.FunctionLimits.
const (
	maxResults = 1024 // of one run
	pageSize   = 64 << 10
)
