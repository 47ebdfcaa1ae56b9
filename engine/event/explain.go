package event

import (
	"encoding/base64"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// An Explained says what a subscription makes of an event, and why.
type Explained struct {
	Subscription string          `json:"subscription"`
	Topic        string          `json:"topic"`
	Position     string          `json:"position,omitempty"` // none in a dry run
	Event        json.RawMessage `json:"event"`              // as CloudEvents in JSON
	MQTT         *MQTTTaken      `json:"mqtt,omitempty"`     // of what an MQTT client would publish

	Matched    bool        `json:"matched"`
	Why        string      `json:"why"`                  // in one line: what decided
	Filter     string      `json:"filter,omitempty"`     // as it is written
	Conditions []Condition `json:"conditions,omitempty"` // every one of the filter, outermost first
	Missing    []string    `json:"missing,omitempty"`    // what the filter reads and the event has not

	State  string   `json:"state"`           // of the event at the subscription: see Whereabouts
	Detail string   `json:"detail"`          // in words
	Notes  []string `json:"notes,omitempty"` // what else keeps it from going on: paused, disabled, its circuit open

	Due        *time.Time `json:"due,omitempty"`        // parked, held
	Attempts   int        `json:"attempts,omitempty"`   // that were made
	DeadLetter string     `json:"deadLetter,omitempty"` // its place, topic/position

	Functions *ExplainedChain `json:"functions,omitempty"` // where it has some
	Requests  []Request       `json:"requests,omitempty"`  // that are sent, or would be
	Outputs   []Placed        `json:"outputs,omitempty"`   // what it puts, or would put, into topics
	Tries     []Tried         `json:"tries,omitempty"`     // oldest first
	TriesFrom string          `json:"triesFrom,omitempty"` // trace, parked or deadletter: who remembers them
}

// Whereabouts of an event at a subscription, the values of Explained.State.
const (
	StateDry       = "dry"           // nothing was sent: this is a dry run
	StateOther     = "other-topic"   // the subscription reads another topic
	StateUnmatched = "not-matched"   // the filter does not take it
	StateBefore    = "before-start"  // the subscription begins, or was moved, behind it
	StateUnread    = "not-read"      // the subscription has not come to it
	StateInHand    = "in-hand"       // queued, in the functions, or being sent
	StateLeased    = "leased"        // a consumer has it
	StateParked    = "parked"        // it waits for its next try
	StateHeld      = "held"          // it waits for those of its key, or for its time
	StateDelivered = "delivered"     // taken, or acknowledged, or in its topic
	StateFiltered  = "filtered"      // the functions put nothing out
	StateDead      = "dead-lettered" // given up
	StateSettled   = "settled"       // done with; nobody remembers how
)

// MQTTTaken says which mapping takes a topic name.
type MQTTTaken struct {
	Name string `json:"name"`
	By   string `json:"by"` // the mapping's filter
}

// A Condition is a part of a filter.
type Condition struct {
	Expression string  `json:"expression"`
	Depth      int     `json:"depth"` // 0 is the whole filter
	Value      bool    `json:"value"`
	Decided    bool    `json:"decided,omitempty"` // it settled the whole
	Reads      []Field `json:"reads,omitempty"`
}

// A Field is what a condition reads of an event; Missing where the event has none.
type Field struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	Missing bool   `json:"missing,omitempty"`
}

// An ExplainedChain is what a subscription's functions make of an event, worked out anew.
type ExplainedChain struct {
	Recomputed   bool            `json:"recomputed"`             // true: what follows was not recorded when it ran
	Version      string          `json:"version"`                // which versions ran, in words
	Unrepeatable string          `json:"unrepeatable,omitempty"` // why the result may not be that of the delivery; then Steps have no events
	Failure      string          `json:"failure,omitempty"`      // "trap: …"
	Fuel         uint64          `json:"fuel"`
	Logs         []string        `json:"logs,omitempty"`
	Steps        []ExplainedStep `json:"steps,omitempty"`
	Error        string          `json:"error,omitempty"` // why they could not be run
}

// An ExplainedStep is one result of one function.
type ExplainedStep struct {
	Function string          `json:"function"`
	Digest   string          `json:"digest"`
	Verdict  string          `json:"verdict"` // pass, emit, drop, retry, reject, reply or failed
	Detail   string          `json:"detail,omitempty"`
	Input    json.RawMessage `json:"input,omitempty"`
	Output   json.RawMessage `json:"output,omitempty"`
	Changes  []Change        `json:"changes,omitempty"` // from input to output
}

// A Change is a difference between two JSON documents at a path: data.email, time, data.items[2]. Was or Is is
// nil where there is no such value.
type Change struct {
	Path string          `json:"path"`
	Was  json.RawMessage `json:"was,omitempty"`
	Is   json.RawMessage `json:"is,omitempty"`
}

// A Request is what a sink sends for a delivery, or would; signatures and secrets are hidden.
type Request struct {
	Method  string   `json:"method"`
	URL     string   `json:"url"`
	Headers []Header `json:"headers"`
	Body    string   `json:"body"`           // text; base64 where it is none
	Binary  bool     `json:"binary"`         // Body is base64
	Note    string   `json:"note,omitempty"` // such as: in a batch with others
}

// With returns r with a body.
func (r Request) With(body []byte) Request {
	r.Body, r.Binary = string(body), !utf8.Valid(body)
	if r.Binary {
		r.Body = base64.StdEncoding.EncodeToString(body)
	}
	return r
}

// A Header is a header of a Request.
type Header struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Hidden bool   `json:"hidden,omitempty"` // Value stands for a secret
}

// Placed is an event in a topic. The position is known of what is there.
type Placed struct {
	Topic    string          `json:"topic"`
	Position string          `json:"position,omitempty"`
	Event    json.RawMessage `json:"event,omitempty"` // what would be put there
	State    string          `json:"state,omitempty"` // of one that the same subscription delivers from there
	Detail   string          `json:"detail,omitempty"`
	Tries    []Tried         `json:"tries,omitempty"`
}

// Tried is how one try ended, or a wait.
type Tried struct {
	At       time.Time  `json:"at"`      // to 100 ms
	Verdict  string     `json:"verdict"` // delivered, filtered, retry, dead-lettered or held
	Attempt  int        `json:"attempt,omitempty"`
	Code     int        `json:"code,omitempty"`   // what the target answered to one that failed
	Reason   string     `json:"reason,omitempty"` // typed: trap, permanent, …
	Function string     `json:"function,omitempty"`
	Error    string     `json:"error,omitempty"` // clipped
	Due      *time.Time `json:"due,omitempty"`   // of the next try
	Outputs  []string   `json:"outputs,omitempty"`
	Versions []string   `json:"versions,omitempty"` // of the functions; digests, cut
	Revision string     `json:"revision,omitempty"` // of the rules
}

// An EventTrace is what became of an event at the subscriptions of its topic.
type EventTrace struct {
	Topic    string          `json:"topic"`
	Position string          `json:"position"`
	Received time.Time       `json:"received"`
	Event    json.RawMessage `json:"event"`
	Traced   bool            `json:"traced"` // false: the topic's trace is off, or the event is none of its sample

	Matched       int           `json:"matched"`    // subscriptions whose filter takes it now
	NotMatched    int           `json:"notMatched"` // others
	Subscriptions []TracedEvent `json:"subscriptions"`
	More          int           `json:"more,omitempty"` // that are not in Subscriptions, which is bounded
}

// TracedEvent is an event at one subscription: one that it matches or that has a trace of it.
type TracedEvent struct {
	Subscription string  `json:"subscription"`
	Matched      bool    `json:"matched"`
	State        string  `json:"state"`
	Tries        []Tried `json:"tries,omitempty"`
}
