package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// PastTopic is a topic whose events can be read again: a log for each of its partitions.
type PastTopic struct {
	Name string
	Logs []storage.Log
}

// Past lists the topics of an engine, by name, for a backtest.
func (e *Engine) Past() []PastTopic {
	topics := e.plan.Load().topics
	past := make([]PastTopic, 0, len(topics))
	for _, t := range topics {
		p := PastTopic{Name: t.name}
		for _, part := range t.parts {
			p.Logs = append(p.Logs, part.log)
		}
		past = append(past, p)
	}
	slices.SortFunc(past, func(a, b PastTopic) int { return strings.Compare(a.Name, b.Name) })
	return past
}

// PastOf lists the topics of a store that no engine works on, and the store's secret. It writes nothing, so the
// store may be one that is open for reading alone.
func PastOf(ctx context.Context, store storage.Store) (past []PastTopic, secret [32]byte, err error) {
	if secret, err = SecretOf(ctx, store); err != nil {
		return nil, secret, err
	}
	err = store.Scan(ctx, tableTopics, nil, nil, func(k, v []byte) error {
		var row topicRow
		if err := json.Unmarshal(v, &row); err != nil {
			return fmt.Errorf("topic row %q: %w", k, err)
		}
		t := PastTopic{Name: string(k)}
		for i := range row.Def.Partitions {
			log, err := store.OpenLog(ctx, storage.LogID{Topic: row.Serial, Partition: event.Partition(i)}, logOptions(row.Def))
			if err != nil {
				return fmt.Errorf("topic %s: %w", k, err)
			}
			t.Logs = append(t.Logs, log)
		}
		past = append(past, t)
		return nil
	})
	return past, secret, err
}

// InForce are the subscriptions and functions of now, as their owners wrote them: what a backtest compares with.
func (e *Engine) InForce() BacktestRules {
	p := e.plan.Load()
	var r BacktestRules
	for key, s := range p.subs {
		if key != s.name { // the delivery half
			continue
		}
		c := s.config.Load()
		r.Subscriptions = append(r.Subscriptions, SubscriptionSpec{Subscription: *c.shown(), Program: c.Program, Fingerprint: c.Fingerprint})
	}
	for _, f := range p.functions {
		r.Functions = append(r.Functions, f.def)
	}
	for _, t := range p.topics {
		r.Topics = append(r.Topics, t.def.Load().Topic)
	}
	slices.SortFunc(r.Subscriptions, func(a, b SubscriptionSpec) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(r.Functions, func(a, b event.Function) int { return strings.Compare(a.Name, b.Name) })
	return r
}

// Secret seeds what functions see as random: a backtest with it sees what they saw.
func (e *Engine) Secret() [32]byte { return e.secret }

// pastPart is a partition's range, read from at on.
type pastPart struct {
	rules     *pastRules
	partition int
	log       storage.Log
	from, to  event.Offset
	at        event.Offset
	overtaken event.Offset // events that the ring dropped while the backtest was at work
	first     int64        // received times of what was looked at, Unix ns; 0: nothing
	last      int64
}

// roundBytes is how much of each partition is read in a round.
const roundBytes = 1 << 20

// read takes a round of every partition in turn, so that a budget that ends early has seen something of each.
func (b *backtest) read(ctx context.Context) error {
	if err := b.open(ctx); err != nil {
		return err
	}
	var blocks []*storage.Block
	for left := true; left; {
		left = false
		for _, p := range b.parts {
			if p.at >= p.to {
				continue
			}
			left = true
			var err error
			if blocks, err = b.round(ctx, p, blocks[:0]); err != nil {
				return err
			}
			clear(blocks)
			if err := b.between(ctx); err != nil {
				return err
			}
		}
		if err := b.flush(ctx); err != nil { // what waits for a function keeps its block in memory
			return err
		}
	}
	return nil
}

// round reads what comes next of a partition.
func (b *backtest) round(ctx context.Context, p *pastPart, blocks []*storage.Block) ([]*storage.Block, error) {
	blocks, err := p.log.Read(ctx, p.at, roundBytes, blocks)
	var trimmed *storage.TrimmedError
	switch {
	case errors.As(err, &trimmed):
		head := min(trimmed.Head, p.to)
		p.overtaken += head - p.at
		p.at = head
		return blocks, nil
	case err != nil:
		return blocks, err
	case len(blocks) == 0:
		p.to = p.at // no block holds it: a store never answers so below its next offset
		return blocks, nil
	}
	for _, blk := range blocks {
		if blk.End() <= p.at || p.at >= p.to {
			continue
		}
		from := p.at
		p.at, err = b.block(ctx, p.rules, blk, from, p.to)
		p.saw(blk, from)
		if err != nil {
			return blocks, err
		}
	}
	return blocks, nil
}

// saw notes the received times of what was looked at.
func (p *pastPart) saw(blk *storage.Block, from event.Offset) {
	if p.at == from {
		return
	}
	for rest := event.Record(blk.Records); len(rest) > 0; rest = rest[rest.Len():] {
		if off := rest.Offset(); off >= from && p.first == 0 {
			p.first = rest.Received()
		} else if off >= p.at {
			return
		}
		p.last = rest.Received()
	}
}

// open finds the range of every partition, taken now: what is published meanwhile is not looked at.
func (b *backtest) open(ctx context.Context) error {
	for _, name := range b.o.Topics {
		if !slices.ContainsFunc(b.o.Past, func(t PastTopic) bool { return t.Name == name }) {
			have := make([]string, len(b.o.Past))
			for i, t := range b.o.Past {
				have[i] = t.Name
			}
			return unknown("topic", name, have, "")
		}
	}
	for _, t := range b.o.Past {
		rules := b.topics[t.Name]
		if rules == nil {
			continue // nobody reads it on either side
		}
		for i, log := range t.Logs {
			p := &pastPart{rules: rules, partition: i, log: log}
			bounds := log.Bounds()
			p.from, p.to = bounds.Head, bounds.Next
			var err error
			if !b.o.Since.IsZero() {
				if p.from, err = log.Since(ctx, b.o.Since); err != nil {
					return err
				}
			}
			if !b.o.Until.IsZero() {
				to, err := log.Since(ctx, b.o.Until)
				if err != nil {
					return err
				}
				p.to = min(p.to, to)
			}
			if n := (b.o.Last + int64(len(t.Logs)) - 1) / int64(len(t.Logs)); b.o.Last > 0 && p.from < p.to && p.to-p.from > uint64(n) {
				p.from = p.to - uint64(n)
			}
			p.to = max(p.from, p.to)
			p.at = p.from
			b.inRange += p.to - p.from
			b.parts = append(b.parts, p)
		}
	}
	for name := range b.topics {
		if !slices.ContainsFunc(b.o.Past, func(t PastTopic) bool { return t.Name == name }) {
			b.notes = append(b.notes, fmt.Sprintf("topic %s holds no events: it does not exist yet", name))
		}
	}
	slices.Sort(b.notes)
	return nil
}

// fed takes events as they are handed over.
func (b *backtest) fed(ctx context.Context) error {
	var failed error
	err := b.o.Feed(func(topic string, recs []event.Record) bool {
		t := b.topics[topic]
		if t == nil {
			return true
		}
		for _, rec := range recs {
			if failed = b.one(ctx, t, rec); failed != nil {
				return false
			}
		}
		if failed = b.flush(ctx); failed == nil {
			failed = b.between(ctx)
		}
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// Yielding returns the Rest of a backtest on a router at work. While anybody publishes it leaves them and their
// deliveries seven eighths of two cores; else it steps aside for a quarter of the time, for deliveries of a backlog.
func (e *Engine) Yielding() func(ctx context.Context, worked time.Duration) {
	turn := e.turn.Load()
	return func(ctx context.Context, worked time.Duration) {
		now := e.turn.Load()
		if now == turn {
			pause(ctx, worked/3)
			return
		}
		turn = now
		pause(ctx, 6*worked/time.Duration(runtime.GOMAXPROCS(0)))
	}
}
