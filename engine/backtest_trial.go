package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// pastChain runs a subscription's functions, of one side or of both.
type pastChain struct {
	specs  [2]*SubscriptionSpec // nil: there is nothing to run on this side
	defs   [2][]event.Function
	rules  [2]*BacktestRules
	same   bool // both sides are the same chain: one run stands for both
	opened bool
	trials [2]*Trial // nil: no functions on this side, which delivers events as they are
	broken bool      // a side cannot run; the report says why

	recs  []event.Record // that wait for a run: they keep their blocks in memory
	marks []uint8        // who took them
	bytes int
	took  [2][]event.Record // by a side, of a run
}

// planChains decides whose functions are run.
func (b *backtest) planChains(context.Context) error {
	if b.o.Functions == BacktestNoFunctions || b.o.Host == nil {
		return nil
	}
	rules := [2]*BacktestRules{&b.o.Before, &b.o.After}
	defs := [2]map[string]event.Function{{}, {}}
	for side := range rules {
		for _, f := range rules[side].Functions {
			defs[side][f.Name] = f
		}
	}
	for _, s := range b.slots {
		c := &pastChain{specs: s.sides, rules: rules}
		print := [2]string{}
		for side, spec := range s.sides {
			if spec == nil {
				continue
			}
			for _, name := range spec.Functions {
				f, ok := defs[side][name]
				if !ok {
					f = event.Function{Name: name} // opening it says that it does not exist
				} else {
					c.defs[side] = append(c.defs[side], f)
				}
				print[side] += name + " " + printOf(f) + "\n"
			}
		}
		was, is := s.sides[sideBefore], s.sides[sideAfter]
		both := was != nil && is != nil
		if both && print[sideBefore] != print[sideAfter] && s.out.Change == "same" {
			s.out.Change = "changed"
		}
		c.same = both && print[sideBefore] == print[sideAfter]
		switch {
		case print[sideBefore] == "" && print[sideAfter] == "":
			continue
		case c.same && b.o.Functions != BacktestAllFunctions:
			continue
		case is == nil: // what is gone is not compared with anything
			continue
		}
		if c.same {
			c.specs[sideBefore] = nil
		}
		s.chain = c
		s.out.Functions = &BacktestOutcome{Before: versionsOf(was, c.defs[sideBefore]), After: versionsOf(is, c.defs[sideAfter])}
	}
	return nil
}

// versionsOf is name@digest of each function of a chain.
func versionsOf(spec *SubscriptionSpec, defs []event.Function) (names []string) {
	if spec == nil {
		return nil
	}
	for _, name := range spec.Functions {
		if i := slices.IndexFunc(defs, func(f event.Function) bool { return f.Name == name }); i >= 0 && defs[i].Digest != "" {
			name += "@" + defs[i].Digest
		}
		names = append(names, name)
	}
	return names
}

// offer lets an event wait for its subscription's functions, and runs them when enough do.
func (b *backtest) offer(ctx context.Context, s *pastSlot, mark uint8, rec event.Record) error {
	c := s.chain
	if c.broken {
		return nil
	}
	c.recs, c.marks = append(c.recs, rec), append(c.marks, mark)
	if c.bytes += len(rec); len(c.recs) < batchEvents && c.bytes < batchBytes {
		return nil
	}
	return b.run(ctx, s)
}

// flush runs all that waits.
func (b *backtest) flush(ctx context.Context) error {
	for _, s := range b.slots {
		if s.chain == nil || len(s.chain.recs) == 0 {
			continue
		}
		if ctx.Err() != nil {
			return nil // what waits was counted as taken; the report says that it was cut off
		}
		if err := b.run(ctx, s); err != nil && !errors.Is(err, errBudget) {
			return err
		}
	}
	return nil
}

// open opens the functions of both sides, the first time that an event comes to them.
func (c *pastChain) open(ctx context.Context, b *backtest) error {
	c.opened = true
	for side, spec := range c.specs {
		if spec == nil || len(spec.Functions) == 0 {
			continue
		}
		t, err := OpenTrial(ctx, TrialOptions{Host: b.o.Host, Secret: b.o.Secret, Subscription: spec.Subscription, Functions: c.defs[side],
			Topics: withSchemas(c.rules[side].Topics), AnyTopic: true, Reuse: true})
		if err != nil {
			return fmt.Errorf("%s: %w", [2]string{"before", "after"}[side], err)
		}
		c.trials[side] = t
	}
	return nil
}

// withSchemas are the topics that refuse anything.
func withSchemas(topics []event.Topic) (some []event.Topic) {
	for _, t := range topics {
		if t.Schema != nil {
			some = append(some, t)
		}
	}
	return some
}

// run takes what waits through the functions and compares.
func (b *backtest) run(ctx context.Context, s *pastSlot) error {
	c := s.chain
	defer func() {
		clear(c.recs)
		c.recs, c.marks, c.bytes = c.recs[:0], c.marks[:0], 0
	}()
	if !c.opened {
		if err := c.open(ctx, b); err != nil {
			return b.breaks(ctx, s, err)
		}
	}
	var results [2][]TrialResult
	for side, t := range c.trials {
		took := c.took[side][:0]
		for i, rec := range c.recs {
			if c.runs(side, c.marks[i]) {
				took = append(took, rec)
			}
		}
		c.took[side] = took
		if t == nil || len(took) == 0 {
			continue
		}
		var err error
		if results[side], err = t.Run(ctx, took); err != nil {
			return b.breaks(ctx, s, err)
		}
	}
	at := [2]int{}
	var plain [2][1]event.Record // of a side without functions
	for i, rec := range c.recs {
		var said [2]*TrialResult
		for side := range said {
			switch {
			case !c.runs(side, c.marks[i]):
			case c.trials[side] == nil:
				plain[side][0] = rec
				said[side] = &TrialResult{Deliver: plain[side][:]}
			default:
				said[side] = &results[side][at[side]]
				at[side]++
			}
		}
		if c.same { // one run for both
			said[sideBefore] = said[sideAfter]
			for side := range said {
				if c.marks[i]&(1<<side) == 0 {
					said[side] = nil
				}
			}
		}
		b.said(s, rec, said)
	}
	for i := range c.took {
		clear(c.took[i])
	}
	return b.between(ctx)
}

// runs reports whether an event goes through the functions of a side: whoever took it, where one chain stands for both.
func (c *pastChain) runs(side int, mark uint8) bool {
	if c.same {
		return side == sideAfter
	}
	return mark&(1<<side) != 0
}

// breaks notes that a chain cannot run: the rest of the backtest goes on.
func (b *backtest) breaks(ctx context.Context, s *pastSlot, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.chain.broken = true
	s.out.Functions.Error = clip(err.Error(), exampleText)
	return nil
}

// said books what the functions of each side made of an event; nil where the side did not take it.
func (b *backtest) said(s *pastSlot, rec event.Record, said [2]*TrialResult) {
	out := s.out.Functions
	was, is := said[sideBefore], said[sideAfter]
	topic := s.sides[sideAfter].Topic
	if was != nil {
		out.FuelBefore += was.Fuel
		out.OutputsBefore += uint64(len(was.Deliver) + len(was.Outputs))
		out.FailedBefore = countFailure(out.FailedBefore, was.Failure)
		if was != is {
			b.fuel += was.Fuel
		}
	}
	if is == nil {
		return
	}
	out.Fuel += is.Fuel
	b.fuel += is.Fuel
	out.Outputs += uint64(len(is.Deliver) + len(is.Outputs))
	if is.Failure != nil {
		out.Failed = countFailure(out.Failed, is.Failure)
		b.failed++
	}
	kind := "failed"
	var d *difference
	if was != nil && was != is {
		switch d = differTrials(was, is); {
		case d == nil:
			out.Equal++
		case d.json:
			out.JSONEqual++
			d = nil
		default:
			kind = "different"
			out.Different++
			b.changed++
		}
	} else if was == is {
		out.Equal++
	}
	if d == nil {
		if is.Failure == nil {
			return
		}
		d = &difference{path: "outcome", was: "it was not taken", is: toldResult(is)}
		if was != nil {
			d.was = toldResult(was)
		}
	}
	if x := b.example(s, kind, topic, rec); x != nil {
		x.Path = clip(d.path, 256)
		x.Before, x.After = strings.Clone(clip(shown(d.was), exampleText)), strings.Clone(clip(shown(d.is), exampleText)) // the next run overwrites what they are of
	}
}

func countFailure(by map[string]uint64, f *TrialFailure) map[string]uint64 {
	if f == nil {
		return by
	}
	if by == nil {
		by = map[string]uint64{}
	}
	by[f.Reason]++
	return by
}

// toldResult is what became of an event, in a few words.
func toldResult(r *TrialResult) string {
	if r.Failure != nil {
		return r.Failure.Reason + ": " + r.Failure.Error
	}
	var parts []string
	if n := len(r.Deliver); n > 0 {
		parts = append(parts, fmt.Sprintf("%d delivered", n))
	}
	for _, o := range r.Outputs {
		parts = append(parts, "1 to topic "+o.Topic)
	}
	if r.Reply != nil {
		parts = append(parts, fmt.Sprintf("replied %d", r.Reply.Status))
	}
	if parts == nil {
		return "dropped"
	}
	return strings.Join(parts, ", ")
}

// differTrials finds the first difference between what two chains made of an event; nil where there is none.
func differTrials(was, is *TrialResult) *difference {
	switch {
	case was.Failure != nil || is.Failure != nil:
		if was.Failure != nil && is.Failure != nil && was.Failure.Reason == is.Failure.Reason {
			return nil // two versions trap in words of their own
		}
		return &difference{path: "outcome", was: toldResult(was), is: toldResult(is)}
	case len(was.Deliver) != len(is.Deliver), len(was.Outputs) != len(is.Outputs), (was.Reply == nil) != (is.Reply == nil):
		return &difference{path: "outcome", was: toldResult(was), is: toldResult(is)}
	}
	var spelling *difference
	for i, rec := range was.Deliver {
		d := differRecords(rec, is.Deliver[i])
		if d != nil && len(was.Deliver) > 1 {
			d.path = fmt.Sprintf("events[%d].%s", i, d.path)
		}
		if d != nil && !d.json {
			return d
		}
		spelling = firstOf(spelling, d)
	}
	for i, o := range was.Outputs {
		at := fmt.Sprintf("outputs[%d].", i)
		if o.Topic != is.Outputs[i].Topic {
			return &difference{path: at + "topic", was: o.Topic, is: is.Outputs[i].Topic}
		}
		d := differRecords(o.Event, is.Outputs[i].Event)
		if d != nil {
			d.path = at + d.path
		}
		if d != nil && !d.json {
			return d
		}
		spelling = firstOf(spelling, d)
	}
	if was.Reply == nil {
		return spelling
	}
	if a, b := was.Reply, is.Reply; a.Status != b.Status || a.ContentType != b.ContentType {
		return &difference{path: "reply", was: fmt.Sprint(a.Status, " ", a.ContentType), is: fmt.Sprint(b.Status, " ", b.ContentType)}
	}
	d := differData("reply.data", was.Reply.Data, is.Reply.Data)
	if d != nil && !d.json {
		return d
	}
	return firstOf(spelling, d)
}

func firstOf(a, b *difference) *difference {
	if a != nil {
		return a
	}
	return b
}

// differRecords compares two events: their attributes, then their data, then their ids, which differ wherever one side
// passes an event on and the other makes one of it.
func differRecords(a, b event.Record) *difference {
	if bytes.Equal(a, b) {
		return nil
	}
	var was, is event.Event
	a.Decode(&was)
	b.Decode(&is)
	wasID, isID := was.ID, is.ID
	was.ID, is.ID = "", ""
	was.Topic, is.Topic = "", "" // where it was read, which is no part of what is delivered
	if d := differAttributes(&was, &is); d != nil {
		return d
	}
	d := differData("data", was.Data, is.Data)
	if d != nil && !d.json {
		return d
	}
	if wasID != isID {
		return &difference{path: "id", was: wasID, is: isID}
	}
	return d
}

// close ends the functions, and notes which of them may say something else in a delivery.
func (b *backtest) close(ctx context.Context) error {
	var errs []error
	for _, s := range b.slots {
		if s.chain == nil {
			continue
		}
		for _, t := range s.chain.trials {
			if t == nil {
				continue
			}
			if why := t.Unrepeatable(); why != "" {
				why += ": what it says in a backtest may differ from a delivery"
				if !slices.Contains(b.notes, why) {
					b.notes = append(b.notes, why)
				}
			}
			errs = append(errs, t.Close(ctx))
		}
	}
	return errors.Join(errs...)
}
