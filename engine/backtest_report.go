package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// BacktestReport is what a backtest found.
type BacktestReport struct {
	Events   uint64  `json:"events"`   // that were looked at
	InRange  uint64  `json:"inRange"`  // that there were to look at; 0: not known
	Bytes    uint64  `json:"bytes"`    // of their records
	Seconds  float64 `json:"seconds"`  // that it took
	Complete bool    `json:"complete"` // the whole range was looked at
	Stopped  string  `json:"stopped,omitempty"`

	Before    uint64 `json:"before"`    // deliveries: events that a subscription took, of all
	After     uint64 `json:"after"`     // with the rules after
	Gained    uint64 `json:"gained"`    // taken with the rules after alone
	Lost      uint64 `json:"lost"`      // taken with the rules before alone
	Different uint64 `json:"different"` // taken by both, and the functions make something else of them
	Changed   uint64 `json:"changed"`   // the three together
	Failed    uint64 `json:"failed"`    // that a function failed with the rules after
	Fuel      uint64 `json:"fuel,omitempty"`

	Topics        []BacktestTopic        `json:"topics"`
	Subscriptions []BacktestSubscription `json:"subscriptions"`
	Notes         []string               `json:"notes,omitempty"` // what the figures do not say
}

// BacktestTopic is how much of a topic was looked at.
type BacktestTopic struct {
	Name       string              `json:"name"`
	Events     uint64              `json:"events"`
	Partitions []BacktestPartition `json:"partitions,omitempty"`
}

// BacktestPartition is a range [From, To) of offsets, of which [From, At) was looked at.
type BacktestPartition struct {
	From      event.Offset `json:"from"`
	To        event.Offset `json:"to"`
	At        event.Offset `json:"at"`
	First     string       `json:"first,omitempty"` // received times of what was looked at, RFC 3339
	Last      string       `json:"last,omitempty"`
	Overtaken event.Offset `json:"overtaken,omitempty"` // events that left the ring before they were looked at
}

// BacktestSubscription compares the two sides of a subscription.
type BacktestSubscription struct {
	Name         string `json:"name"`
	Topic        string `json:"topic"`
	TopicBefore  string `json:"topicBefore,omitempty"`  // where it is another
	Change       string `json:"change"`                 // created, removed, changed (topic, filter or functions) or same
	Filter       string `json:"filter,omitempty"`       // with the rules after; "" takes all
	FilterBefore string `json:"filterBefore,omitempty"` // where it is another

	Before uint64 `json:"before"` // events that it took
	After  uint64 `json:"after"`
	Gained uint64 `json:"gained"`
	Lost   uint64 `json:"lost"`

	Functions *BacktestOutcome  `json:"functions,omitempty"` // where they were run
	Examples  []BacktestExample `json:"examples,omitempty"`
}

// BacktestOutcome compares what the functions of both sides make of the events that both took.
type BacktestOutcome struct {
	Before    []string `json:"before,omitempty"` // name@digest, in order
	After     []string `json:"after,omitempty"`
	Equal     uint64   `json:"equal"`
	JSONEqual uint64   `json:"jsonEqual,omitempty"` // apart from how JSON is written
	Different uint64   `json:"different"`

	FailedBefore  map[string]uint64 `json:"failedBefore,omitempty"` // by reason
	Failed        map[string]uint64 `json:"failed,omitempty"`
	OutputsBefore uint64            `json:"outputsBefore"` // events that come out, for other topics included
	Outputs       uint64            `json:"outputs"`
	FuelBefore    uint64            `json:"fuelBefore,omitempty"`
	Fuel          uint64            `json:"fuel,omitempty"`
	Error         string            `json:"error,omitempty"` // why they could not be run
}

// BacktestExample is an event of which the two sides make something else.
type BacktestExample struct {
	Kind    string `json:"kind"`  // gained, lost, different or failed
	Event   string `json:"event"` // topic/position
	ID      string `json:"id"`
	Type    string `json:"type"`
	At      string `json:"at,omitempty"`   // received
	Path    string `json:"path,omitempty"` // the first difference: outcome, data.email, subject, outputs[1].data
	Before  string `json:"before"`
	After   string `json:"after"`
	Explain string `json:"explain,omitempty"` // the command that tells all about it
}

const (
	exampleText  = 512   // bytes of a value in an example
	examplesKept = 2_000 // in all
)

// example makes room for an example of a kind, nil where there are enough.
func (b *backtest) example(s *pastSlot, kind, topic string, rec event.Record) *BacktestExample {
	if s.kept[kind] >= b.o.Examples || b.examples >= examplesKept {
		return nil
	}
	s.kept[kind]++
	b.examples++
	at := topic + "/" + rec.Position().String()
	x := BacktestExample{Kind: kind, Event: at, ID: strings.Clone(shown(rec.Attr(event.TagID))), // rec is a block's
		Type: strings.Clone(shown(rec.Attr(event.TagType)))}
	if rec.Received() != 0 {
		x.At = rec.ReceivedAt().Format(time.RFC3339Nano)
	}
	if b.o.Feed == nil {
		x.Explain = fmt.Sprintf("router explain %s %s", s.name, at)
	}
	s.out.Examples = append(s.out.Examples, x)
	return &s.out.Examples[len(s.out.Examples)-1]
}

func (b *backtest) report() *BacktestReport {
	r := &BacktestReport{Events: b.events, InRange: b.inRange, Bytes: b.bytes, Seconds: time.Since(b.began).Seconds(), Complete: b.stopped == "",
		Stopped: b.stopped, Fuel: b.fuel, Failed: b.failed, Changed: b.changed, Topics: []BacktestTopic{}, Subscriptions: []BacktestSubscription{}, Notes: b.notes}
	overtaken := event.Offset(0)
	for _, p := range b.parts {
		if p.partition == 0 {
			r.Topics = append(r.Topics, BacktestTopic{Name: p.rules.name, Events: p.rules.events})
		}
		t := &r.Topics[len(r.Topics)-1]
		part := BacktestPartition{From: p.from, To: p.to, At: p.at, Overtaken: p.overtaken}
		if p.first != 0 {
			part.First, part.Last = timeOf(p.first), timeOf(p.last)
		}
		t.Partitions = append(t.Partitions, part)
		overtaken += p.overtaken
	}
	if b.o.Feed != nil {
		for _, name := range slices.Sorted(maps.Keys(b.topics)) {
			r.Topics = append(r.Topics, BacktestTopic{Name: name, Events: b.topics[name].events})
		}
	}
	if overtaken > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d events left their ring before the backtest came to them", overtaken))
	}
	if n := b.scratch.Errors; n > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d times a filter was given up because it ran out of its bounds: that is no match, as it is in force", n))
	}
	if b.examples >= examplesKept {
		r.Notes = append(r.Notes, fmt.Sprintf("only the first %d examples are kept; name a few subscriptions for more of theirs", examplesKept))
	}
	for _, s := range b.slots {
		s.out.Before, s.out.After = s.matched[sideBefore], s.matched[sideAfter]
		r.Before += s.out.Before
		r.After += s.out.After
		r.Gained += s.out.Gained
		r.Lost += s.out.Lost
		if f := s.out.Functions; f != nil {
			r.Different += f.Different
		}
		r.Subscriptions = append(r.Subscriptions, s.out)
	}
	return r
}

func timeOf(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }
