package engine

import (
	"errors"
	"log/slog"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// Options configure an Engine. Zero means default; Store is required.
type Options struct {
	Store storage.Store
	Host  *plugins.Host // nil: a plan with functions is refused

	// Sealed is a topic that PublishSealed alone writes to: no client, subscription, function, schedule or source does. "" for
	// none.
	Sealed string
	// AutoCreate makes an unknown topic on its first publish instead of refusing it.
	AutoCreate bool
	Limits     event.Limits
	Observer   Observer
	Log        *slog.Logger // nothing is logged per event; discarded if nil
	// Now is the wall clock; within a run ages and due times advance with the monotonic part of the time
	// it returned first. time.Now.
	Now func() time.Time
	// Secret is that of a new store, from which comes what functions see as random; the zero value makes a random one.
	Secret [32]byte
	// Fork is a number that a restoration from a backup drew, 0 where there was none; the store remembers it.
	Fork uint32
	// AcceptClock believes a wall clock that is over a year ahead of the last event.
	AcceptClock bool

	Queue      int           // deliveries that wait in memory, per subscription; 1,024
	QueueBytes int           // bytes of log that they keep in memory, per subscription; 4 MiB
	Flush      time.Duration // how often cursors are gathered and written; 100 ms
	MaxLeases  int           // leases out at once, per subscription; 10,000
	SendBytes  int64         // bytes of events larger than 4 KiB that are being sent at once, of all subscriptions; 256 MiB

	// A target's circuit opens after so many failures in a row (10; negative: never), for CircuitWait (5 s), which
	// doubles up to CircuitMaxWait (5 min).
	CircuitFailures             int
	CircuitWait, CircuitMaxWait time.Duration

	TraceBytes int64 // of the stored traces of a topic; 64 MiB

	Waiters    int           // requests that wait for replies at once; 4,096
	ReplyKeep  time.Duration // how long a reply is kept; 10 min
	Replies    int           // replies that are kept at once; 10,000
	ReplyBytes int64         // of those, in the store; 64 MiB
}

// Observer is told what happened. Calls are synchronous and come from many goroutines; return at once.
type Observer struct {
	Published    func(topic string, events, bytes int)
	Delivered    func(subscription string, took time.Duration)
	Batched      func(subscription string, events int) // a send of several events
	Failed       func(subscription string, attempt int, err error)
	DeadLettered func(subscription string, reason string)
	// Appended is told of each event that a subscription put into a topic, dead letters included, once it is durable. It
	// is borrowed.
	Appended func(subscription, topic string, ev *event.Event)

	Replied        func(from string, took time.Duration) // from "function", "push" or "pull"; since the event was received
	ReplyDiscarded func(why string)                      // "unasked" or "second"
}

func (o Options) withDefaults() Options {
	fill := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	fill(&o.Queue, 1024)
	fill(&o.QueueBytes, 4<<20)
	fill(&o.MaxLeases, 10_000)
	fill(&o.Waiters, 4096)
	fill(&o.Replies, 10_000)
	fill(&o.CircuitFailures, 10)
	if o.SendBytes == 0 {
		o.SendBytes = 256 << 20
	}
	if o.CircuitWait == 0 {
		o.CircuitWait = 5 * time.Second
	}
	if o.CircuitMaxWait == 0 {
		o.CircuitMaxWait = max(5*time.Minute, o.CircuitWait)
	}
	if o.ReplyBytes == 0 {
		o.ReplyBytes = 64 << 20
	}
	if o.TraceBytes == 0 {
		o.TraceBytes = 64 << 20
	}
	if o.ReplyKeep == 0 {
		o.ReplyKeep = 10 * time.Minute
	}
	if o.Flush == 0 {
		o.Flush = 100 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Limits = o.Limits.WithDefaults()
	b := &o.Observer
	if b.Published == nil {
		b.Published = func(string, int, int) {}
	}
	if b.Delivered == nil {
		b.Delivered = func(string, time.Duration) {}
	}
	if b.Batched == nil {
		b.Batched = func(string, int) {}
	}
	if b.Failed == nil {
		b.Failed = func(string, int, error) {}
	}
	if b.DeadLettered == nil {
		b.DeadLettered = func(string, string) {}
	}
	if b.Appended == nil {
		b.Appended = func(string, string, *event.Event) {}
	}
	if b.Replied == nil {
		b.Replied = func(string, time.Duration) {}
	}
	if b.ReplyDiscarded == nil {
		b.ReplyDiscarded = func(string) {}
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.Store == nil {
		errs = append(errs, errors.New("option Store is missing"))
	}
	if o.Queue < 1 || o.QueueBytes < 1 || o.MaxLeases < 1 || o.SendBytes < 1 {
		errs = append(errs, errors.New("options Queue, QueueBytes, MaxLeases and SendBytes: want at least 1"))
	}
	if o.CircuitWait < 0 || o.CircuitMaxWait < o.CircuitWait {
		errs = append(errs, errors.New("options CircuitWait and CircuitMaxWait: want positive times, the second not below the first"))
	}
	if o.Flush < time.Millisecond {
		errs = append(errs, errors.New("option Flush: want at least 1ms"))
	}
	if o.Waiters < 1 || o.Replies < 1 || o.ReplyBytes < 1 || o.TraceBytes < 1 || o.ReplyKeep < 0 {
		errs = append(errs, errors.New("options Waiters, Replies, ReplyBytes, TraceBytes and ReplyKeep: want at least 1"))
	}
	return errors.Join(errs...)
}
