package event

import "time"

// Replay asks for the events of a range of a subscription's topic once more, for that subscription alone. Bounds are
// of what the ring still keeps and the subscription has read; where several are given, all of them hold.
type Replay struct {
	Since    time.Time // received then or later
	Until    time.Time // received earlier
	From, To string    // positions, both included, of one partition; or cursors: what lies after From and before To; From may be "earliest"
	Filter   string    // besides the subscription's own; "": none
	Rate     float64   // events a second; 0: as fast as they are taken
	Function string    // "name@sha256:…", which may be abbreviated: run this version; "": the one in force
	DryRun   bool      // count and show, start nothing
}

// ReplayState is how a replay stands.
type ReplayState string

// A replay runs until all of its deliveries are settled.
const (
	ReplayRunning   ReplayState = "running"
	ReplayDone      ReplayState = "done"
	ReplayCancelled ReplayState = "cancelled"
	ReplayFailed    ReplayState = "failed" // Reason says why
)

// ReplayInfo is a replay and how far it came. Counts are of events.
type ReplayInfo struct {
	ID      string // what ReplayAttribute says of its deliveries; "" of a dry run
	State   ReplayState
	Reason  string    // why it stands still or failed; "" if it does neither
	Started time.Time // of a dry run: now
	Ended   time.Time // zero while it runs

	Since, Until time.Time // as asked for
	From, To     string
	Filter       string
	Rate         float64
	Function     string // name@digest of the version that was chosen

	Looked  uint64 // of the range, that it has looked at
	Matched uint64 // of those, that it has handed to the subscription; of a dry run, that it would
	Done    uint64 // of those, settled: delivered, dropped by a function, or dead letters
	Left    uint64 // still to be settled; an estimate as long as not all of the range was looked at
	Lost    uint64 // that the ring dropped before they were looked at
	Unread  uint64 // of the range asked for, that the subscription has not read yet: they come by themselves

	First []Record // of a dry run: the first ten
}

// ReplayAttribute is the CloudEvents extension of what a replay delivers: its id.
const ReplayAttribute = "millracereplay"
