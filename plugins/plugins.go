// Package plugins hosts WASM functions: it compiles and caches modules, pools instances, hands batches of
// records to them by one of the calling conventions below plugins/abi, and returns what became of every
// event. A function's fault is an outcome, never an error of the host.
package plugins

import (
	"fmt"

	"github.com/millrace/millrace/engine/event"
)

// Verdict is what a function says about an event.
type Verdict uint8

// The verdicts, numbered as results carry them.
const (
	Pass   Verdict = iota // deliver the input unchanged
	Emit                  // a new event; several allowed
	Drop                  // filtered: acknowledged, delivered nowhere
	Retry                 // again later; Arg is the delay in ms, 0 by policy
	Reject                // dead-letter now; Arg is a code, Data the reason
	Reply                 // answer of a synchronous call; Arg is the status, Data the body
)

func (v Verdict) String() string {
	if int(v) < len(verdicts) {
		return verdicts[v]
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

var verdicts = [...]string{"PASS", "EMIT", "DROP", "RETRY", "REJECT", "REPLY"}

// Flags of a Result.
const (
	Inherit  = 1 // inherit the input's attributes except id and topic
	SameData = 2 // the input's data is the output's
)

// A Result is one verdict about one event of a call.
type Result struct {
	Index   int // of the input in Call.Events
	Verdict Verdict
	Flags   uint8
	Arg     uint32
	Attrs   []byte // encoded attributes, checked
	Count   int    // how many
	Data    []byte
}

// Event fills e with the event that an Emit makes of its input. It borrows both. The id is empty where
// the function gave none: the caller names it.
func (r *Result) Event(in event.Record, e *event.Event) {
	if r.Flags&Inherit != 0 {
		in.Decode(e)
		e.ID, e.Topic = "", ""
	} else {
		*e = event.Event{Extensions: e.Extensions[:0], Hops: in.Hops()}
	}
	if r.Flags&SameData != 0 {
		e.Data, e.Binary = in.Data(), in.Flags()&event.FlagBinary != 0
	} else {
		e.Data, e.Binary = r.Data, false
	}
	event.AttrsOf(r.Attrs, r.Count, func(a event.Attr) bool {
		if a.Unset {
			a.Value = ""
		}
		e.Set(a)
		return true
	})
	e.ClientID = false
}

// Reason is why a function failed at an event: the typed reason of its dead letter.
type Reason string

// The reasons.
const (
	ReasonTrap     Reason = "trap"
	ReasonMemory   Reason = "memory"
	ReasonOutput   Reason = "output"
	ReasonReject   Reason = "reject"
	ReasonDeadline Reason = "deadline" // limits.cpu or limits.wall
	ReasonFuel     Reason = "fuel"     // limits.fuel
)

// A Failure is an event that a function could not handle, even when it ran alone.
type Failure struct {
	Index  int
	Reason Reason
	Err    error // bounded; safe to show
}

// A Call is a batch of events for one function.
type Call struct {
	Events   []event.Record // shared and read-only; the host patches its copies
	Attempts []uint32       // of each event; 1 is the first
	Key      [32]byte       // derived by the engine from (store secret, subscription): the seed of `random`
	// State is that of this function, if it may keep some; nil: empty. The events of a call see what those
	// before them have written: where what came of one may be given up for itself, hand them over one by one.
	State StateReader
}

// An Outcome is what became of a call's events. Reuse it from call to call; what it holds is valid until
// then. Every input has at least one result or exactly one failure; results are in order of Index.
type Outcome struct {
	Results  []Result
	Failures []Failure
	Buf      []byte // holds Attrs and Data of the results
	Fuel     int64  // spent by the call, runs that failed included; see docs/metering.md

	staged staging
}

// Reset empties o, keeping its memory.
func (o *Outcome) Reset() {
	o.Results, o.Failures, o.Buf = o.Results[:0], o.Failures[:0], o.Buf[:0]
	o.Fuel = 0
	o.staged.reset()
}
