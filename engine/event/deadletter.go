package event

import (
	"encoding/json"
	"time"
)

// A DeadLetter is an event that a subscription gave up, as its dead-letter topic keeps it until it is
// redriven or purged.
type DeadLetter struct {
	Position  Position  // of the dead letter
	At        time.Time // when it was given up
	Origin    string    // topic/position of the event
	ID, Type  string
	Reason    string // typed: attempts, permanent, leases, age, trap, memory, output, reject, hops
	Code      int    // what the target answered last; 0 if it answered nothing
	Attempts  int    // of its last life
	Redrives  int    // how often it was redriven before
	Detail    string
	Story     json.RawMessage // the list of tries; nil if there is none
	Function  string          // digest of the function at fault
	Versions  string          // name@digest of the functions that were at work, by comma
	Half      string          // function or delivery: of a subscription whose functions keep state
	Revision  string          // of the rules in force
	Event     Record          // the dead letter itself; read-only
	Condensed bool            // Event is left out: of an example
}

// LetterQuery chooses among a subscription's unfinished dead letters. The zero value takes all.
type LetterQuery struct {
	Filter string    // over the dead letter, as in subscriptions: `ext.deadlettercode == 503`
	Since  time.Time // received then or later
	Before time.Time // received earlier
	Topic  string    // where they lie; "": the dead-letter topic that the subscription has now
}

// LetterPage is a page of dead letters, oldest first within each partition.
type LetterPage struct {
	Letters []DeadLetter
	Next    string // give it as after for the next page; "" at the end
	Total   int64  // unfinished ones of the subscription in that topic, whatever the query
}

// Redrive says which dead letters are delivered again, and how.
type Redrive struct {
	LetterQuery
	Function string  // "name@sha256:…", which may be abbreviated: run this version; "": the one in force
	Rate     float64 // events a second; 0: as fast as they are taken
	Limit    int     // of events; 0: all
	DryRun   bool    // count and show, change nothing
}

// Purge says which dead letters are dropped.
type Purge struct {
	LetterQuery
	All    bool // needed where nothing else of the query chooses
	DryRun bool
}

// LettersDone is how far a redrive or a purge came. All that is counted as done is durable.
type LettersDone struct {
	Done    int64
	Skipped int64        // chosen, but they cannot be redriven like this; Why says so
	Left    int64        // chosen and not done, because it stopped
	Stopped string       // "", or why: "time", "limit", "parked.bytes: …"
	Why     string       // of Skipped
	Until   time.Time    // letters received at this time or later were not looked at: Before for going on
	First   []DeadLetter // of a dry run: the first ten, Condensed
}
