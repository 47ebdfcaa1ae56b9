package event

import (
	"encoding/json"
	"time"
)

// Owner says who may change a definition: the rules file or the API.
type Owner struct {
	File string // "" when the API owns it
	Line int
}

// Topic is the definition of a topic: a ring of events in one or more partitions.
type Topic struct {
	Name       string
	Partitions int // fixed when the topic is made; 1
	Retain     Retain
	WhenFull   WhenFull
	Dedupe     time.Duration // window in which (source, id) is unique; 2 min
	Schema     []byte        // JSON Schema for the data; nil: none
	Trace      Trace
	Owner      Owner
}

// Retain bounds a topic: past any of them the oldest events leave.
type Retain struct {
	Bytes  int64         // 1 GiB; over all partitions
	Age    time.Duration // 7 d
	Events int64         // 0: no bound
}

// WhenFull says what a topic does when a bound is reached.
type WhenFull uint8

// DropOldest lets the oldest events go; Reject refuses new ones while an unfinished subscription would
// lose an event.
const (
	DropOldest WhenFull = iota
	Reject
)

// WithDefaults returns t with its zero fields filled.
func (t Topic) WithDefaults() Topic {
	if t.Partitions == 0 {
		t.Partitions = 1
	}
	if t.Retain.Bytes == 0 {
		t.Retain.Bytes = 1 << 30
	}
	if t.Retain.Age == 0 {
		t.Retain.Age = 7 * 24 * time.Hour
	}
	if t.Dedupe == 0 {
		t.Dedupe = 2 * time.Minute
	}
	t.Trace = t.Trace.WithDefaults()
	return t
}

// Function is the definition of a function: which module, within what limits, with what configuration.
type Function struct {
	Name   string
	Digest string // "sha256:<hex>" of the module's bytes: the function's version
	Pushed bool   // rules: `wasm: pushed`; the API may set the version
	Limits FunctionLimits
	Config map[string]string

	Secrets map[string]string // what secret_get answers; never shown
	Allow   Allow
	Within  string // what the names of topics begin with that it may emit to; "" for any
	Owner   Owner
}

// Allow says what a function may do besides looking at its events.
type Allow struct {
	HTTP []string // hosts that it may call: "api.example.com", "api.example.com:8443" or "*.example.com"
	KV   bool     // keep state
}

// FunctionLimits bound one function. Zero means the default.
type FunctionLimits struct {
	Memory int64 // bytes of linear memory of one instance; 64 MiB
	Output int   // bytes of results of one call; 4 MiB

	CPU  time.Duration // of guest code for one event; 100 ms. A call of many events has ten times that
	Wall time.Duration // of one call, what it waits for included; 10 s
	Fuel int64         // of one event, in the units that metering counts; 0: unlimited
}

// WithDefaults returns l with its zero fields filled.
func (l FunctionLimits) WithDefaults() FunctionLimits {
	if l.Memory == 0 {
		l.Memory = 64 << 20
	}
	if l.Output == 0 {
		l.Output = 4 << 20
	}
	if l.CPU == 0 {
		l.CPU = 100 * time.Millisecond
	}
	if l.Wall == 0 {
		l.Wall = 10 * time.Second
	}
	return l
}

// Subscription is the definition of a subscription: which events of a topic, through which functions, to
// where.
type Subscription struct {
	Name        string
	Topic       string
	Start       Start
	Filter      string   // "" matches all
	Functions   []string // a chain
	Shadow      []string // "name@sha256:…": versions that run beside those of the chain, for comparison alone
	Deliver     Deliver
	Order       Order
	Concurrency int     // sends under way at once; 16
	Rate        float64 // events sent a second; 0: unlimited
	Retry       RetryPolicy
	Parked      int64  // bytes of parked deliveries; 256 MiB
	DeadLetter  string // topic; "" only where none is due: a pull subscription without functions
	// Backlog marks a bridge, which forwards a topic in its order: a send that the other side could not take goes back to
	// where it was taken from, with no attempt spent, and so many bytes of the topic do not leave before it has sent them,
	// whatever the topic's retain says. 0: none.
	Backlog int64
	Within  string // what the names of topics begin with that its functions may emit to; "" for any
	Owner   Owner
	Source  json.RawMessage // the definition as JSON, as the API shows it; secrets are references
}

// Deliver says how a subscription's deliveries leave.
type Deliver struct {
	Face        Face
	Kind        string        // Push: the sink's kind, such as "webhook"
	Topic       string        // ToTopic and Stream: where outputs go
	StreamKeep  Retain        // Stream: bounds of its topic
	MQTT        MQTTNames     // Stream: under which names MQTT clients read it
	AckDeadline time.Duration // Pull: 10 s; 10 s to 600 s
}

// Host bounds what all subscriptions together send to one host.
type Host struct {
	Name        string  // "api.example.com", each of its ports by itself, or "api.example.com:8443"
	Concurrency int     // sends under way at once; 0: no bound
	Rate        float64 // sends begun a second, a batch being one; 0: no bound
	Owner       Owner
}

// Face is one of the ways to read a subscription.
type Face uint8

// The faces. ToTopic and Stream append what comes out to a topic.
const (
	Push Face = iota
	Pull
	ToTopic
	Stream
)

func (f Face) String() string { return [...]string{"push", "pull", "topic", "stream"}[f] }

// Order says which deliveries of a subscription wait for each other.
type Order uint8

// Unordered deliveries wait for none. ByKey: those of one partitionkey go out one at a time, in the order of
// their topic; one that fails holds back those behind it until it succeeds or is dead-lettered. Other keys,
// and events without a key, go on.
const (
	Unordered Order = iota
	ByKey
)

// Start says where a new subscription or a reader begins.
type Start struct {
	At     StartAt
	Time   time.Time // AtTime
	Cursor string    // AtCursor: exclusive
}

// StartAt is a kind of start.
type StartAt uint8

// Latest is what is published from now on; the default.
const (
	Latest StartAt = iota
	Earliest
	AtTime
	AtCursor
)

// RetryPolicy says when a failed delivery is tried again.
type RetryPolicy struct {
	Attempts int             // tries in all, the first included; Unlimited; 0 means the default of 10
	Schedule []time.Duration // waits after the first try, the second…; the last repeats
	Jitter   float64         // ± share of the wait; 0.2

	Exponential *Exponential  // instead of Schedule
	MaxAge      time.Duration // since the event was received: no try is begun later than that; 0: no bound
	On4xx       On4xx
}

// Exponential waits First after the first try, then Factor times the wait before, Max at most.
type Exponential struct {
	First, Max time.Duration // 1 s, 1 h
	Factor     float64       // 2
}

// WithDefaults returns x with its zero fields filled.
func (x Exponential) WithDefaults() Exponential {
	if x.First == 0 {
		x.First = time.Second
	}
	if x.Max == 0 {
		x.Max = max(time.Hour, x.First)
	}
	if x.Factor == 0 {
		x.Factor = 2
	}
	return x
}

// On4xx says what an answer of 400 to 499 means, besides those that ask for another try whatever is set (408,
// 425, 429) and 410, which disables the subscription.
type On4xx uint8

// Retry4xx tries again by schedule, as Standard Webhooks says; DeadLetter4xx dead-letters at once.
const (
	Retry4xx On4xx = iota
	DeadLetter4xx
)

// Unlimited attempts.
const Unlimited = -1

// DefaultSchedule is that of Standard Webhooks after its first, immediate try.
var DefaultSchedule = []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour,
	5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

// Delivery is one event on its way out of a subscription.
type Delivery struct {
	ID           string // webhook-id: the same in every attempt
	Subscription string
	Topic        string // the topic of the event that the subscription read
	Event        Record // what is sent: the event or an output of a function; read-only
	Attempt      int    // 1 is the first

	// Line, of a bridge: what the positions of its deliveries count in. Within a line they only grow, but for those that are
	// sent once more. "" where the delivery is none of the order: it was redriven or replayed.
	Line string

	Reply *Reply // if not nil, somebody waits: the sink puts here what the receiver answers, where it takes answers
}

// Lease is a delivery handed to a puller until Deadline.
type Lease struct {
	ID       string // of this lease; every attempt has another
	Delivery string // the same in every attempt: what a webhook would get as webhook-id
	Attempt  int
	Deadline time.Time
	Event    Record
}

// Lost is a lease that was not held any more when it was to be settled or prolonged.
type Lost struct {
	Lease string
	Why   LostWhy
}

// LostWhy says why a lease is not held.
type LostWhy string

const (
	LostExpired  LostWhy = "expired"  // its deadline passed; the delivery was handed out again, or will be
	LostReturned LostWhy = "returned" // it was given back
	LostSettled  LostWhy = "settled"  // it was acknowledged
	LostSeek     LostWhy = "seek"     // the subscription was moved since
	LostRestart  LostWhy = "restart"  // it is of an earlier run of the router
	LostForeign  LostWhy = "foreign"  // it is another subscription's
	LostUnknown  LostWhy = "unknown"  // this router never handed it out
)

// Settling is what becomes of leases.
type Settling struct {
	Verb     SettlingVerb
	Reply    *Reply        // with Ack: to the producers that asked for one; nil is none
	Delay    time.Duration // with Nack: until it is due again, 0 to 24 h
	Deadline time.Duration // with Extend: from now on, up to 600 s; 0 gives back
}

// SettlingVerb is one of Ack, Nack and Extend.
type SettlingVerb uint8

const (
	Ack SettlingVerb = iota
	Nack
	Extend
)

// Match says whether a subscription would take an event, and why.
type Match struct {
	Subscription string `json:"subscription"`
	Matched      bool   `json:"matched"`
	Why          string `json:"why"` // the sub-expression that decided, with its value
}
