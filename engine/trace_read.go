package engine

import (
	"context"
	"maps"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
)

// triesOf are the tries that are remembered of an event; of one subscription if only is not 0.
func (e *Engine) triesOf(ctx context.Context, t *topic, pos event.Position, only uint32) (*toldTries, error) {
	p := t.parts[pos.Partition]
	tell := &toldTries{topics: e.topicNames(), pos: pos, only: only, first: map[uint32]int32{}}
	low, block := int(pos.Offset&(1<<traceBlock-1)), pos.Offset>>traceBlock

	b, seen := &e.traces, map[string]bool{}
	b.mu.Lock()
	revision := e.plan.Load().revision
	for _, s := range p.feeds.Load().subs {
		if only != 0 && s.serial != only {
			continue
		}
		s.mu.Lock()
		for i := range s.traces.list {
			if x := &s.traces.list[i]; x.part == pos.Partition && x.base == pos.Offset&^63 && x.mask>>(pos.Offset&63)&1 != 0 {
				tell.add(tryRow{*x, s.serial, shortDigests(x.by), revision})
			}
		}
		s.mu.Unlock()
	}
	var err error
	if row := b.rows[traceRowAt{p, block}]; row != nil { // its bytes stay as they are
		seen[string(row.key)] = true
		err = readTraces(row.key, row.value, low, tell.add)
	}
	asked := e.now().UnixNano() // rows that are made from here on tell once more what is told already
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	err = e.store.Scan(ctx, tableTraces, traceKey(t.serial, pos.Partition, block, 0), traceKey(t.serial, pos.Partition, block, math.MaxInt64), func(k, v []byte) error {
		if _, at := splitTraceKey(k); seen[string(k)] || at > asked {
			return nil
		}
		return readTraces(k, slices.Clone(v), low, tell.add)
	})
	return tell, err
}

func (e *Engine) topicNames() map[uint32]string {
	names := map[uint32]string{}
	for _, t := range e.plan.Load().topics {
		names[t.serial] = t.name
	}
	return names
}

// toldTries are the tries at one event, by the number of the subscription. They become readable when they are
// asked for: many subscriptions may have some, of which few are shown.
type toldTries struct {
	topics map[uint32]string
	pos    event.Position
	only   uint32
	rows   []tryRow
	first  map[uint32]int32 // by subscription, in rows, from 1
	next   []int32          // of rows: the same subscription's before it, from 1; 0: none
}

func (l *toldTries) add(x tryRow) {
	if l.only != 0 && x.sub != l.only {
		return
	}
	l.rows, l.next = append(l.rows, x), append(l.next, l.first[x.sub])
	l.first[x.sub] = int32(len(l.rows))
}

// of are the tries of a subscription, oldest first.
func (l *toldTries) of(sub uint32) (tries []event.Tried) {
	for i := l.first[sub]; i > 0; i = l.next[i-1] {
		tries = append(tries, l.tell(&l.rows[i-1]))
	}
	slices.SortStableFunc(tries, func(a, b event.Tried) int { return a.At.Compare(b.At) })
	return tries
}

func (l *toldTries) tell(x *tryRow) event.Tried {
	t := event.Tried{At: time.Unix(0, x.at).UTC(), Verdict: x.what.String(), Attempt: int(x.attempt), Versions: digestTexts(x.digests), Revision: x.revision}
	if x.outs > 0 {
		name, ok := l.topics[x.out.topic]
		if !ok {
			name = "(deleted)"
		}
		before := bits.OnesCount64(x.mask & (1<<(l.pos.Offset&63) - 1))
		first := x.out.pos
		first.Offset += event.Offset(before) * event.Offset(x.outs)
		t.Outputs = append(t.Outputs, name+"/"+first.String()) // the others of one step may lie in other topics
	}
	if w := x.why; w != nil {
		t.Reason, t.Function, t.Error, t.Code = w.reason, w.function, w.text, w.code
		if w.due != 0 {
			due := time.Unix(0, w.due).UTC()
			t.Due = &due
		}
	}
	return t
}

// maxTracedSubs bounds the list of EventTrace.
const maxTracedSubs = 1000

// EventTrace says what became of an event at the subscriptions of its topic. Errors are those of Event.
func (e *Engine) EventTrace(ctx context.Context, name string, pos event.Position, sees func(subscription string) bool) (*event.EventTrace, error) {
	rec, err := e.Event(ctx, name, pos)
	if err != nil {
		return nil, err
	}
	t, err := e.topic(name)
	if err != nil {
		return nil, err
	}
	tries, err := e.triesOf(ctx, t, pos, 0)
	if err != nil {
		return nil, err
	}
	p := t.parts[pos.Partition]
	f := p.feeds.Load()
	matched := make([]bool, len(f.subs))
	for _, i := range f.index.Match(rec, &filters.Scratch{}, nil) {
		matched[i] = true
	}
	out := &event.EventTrace{Topic: name, Position: pos.String(), Received: rec.ReceivedAt(), Event: rec.AppendStructured(nil),
		Traced: sampled(t.def.Load().Trace, pos), Subscriptions: []event.TracedEvent{}}
	here := map[uint32]bool{}
	for i, s := range f.subs {
		here[s.serial] = true
		if sees != nil && !sees(s.name) {
			continue
		}
		if matched[i] {
			out.Matched++
		} else {
			out.NotMatched++
		}
		has := tries.first[s.serial] > 0
		switch {
		case !matched[i] && !has:
		case len(out.Subscriptions) == maxTracedSubs:
			out.More++
		default:
			told := tries.of(s.serial)
			state, _ := s.standing(p, pos, told, matched[i])
			out.Subscriptions = append(out.Subscriptions, event.TracedEvent{Subscription: s.name, Matched: matched[i], State: state, Tries: told})
		}
	}
	for _, sub := range slices.Sorted(maps.Keys(tries.first)) {
		if here[sub] || sees != nil { // whose it was is not known
			continue
		}
		if len(out.Subscriptions) == maxTracedSubs {
			out.More++
			continue
		}
		told := tries.of(sub)
		out.Subscriptions = append(out.Subscriptions, event.TracedEvent{Subscription: "(removed)", State: stateAfter(told), Tries: told})
	}
	return out, nil
}

// stateAfter is what the last try came to, "" without one.
func stateAfter(tries []event.Tried) string {
	if len(tries) == 0 {
		return ""
	}
	switch v := tries[len(tries)-1].Verdict; v {
	case traceRetry.String():
		return event.StateParked
	default:
		return v // the other verdicts are states too
	}
}

// standing is where an event is at a subscription, as far as memory tells, and the same in words.
func (s *subscription) standing(p *partition, pos event.Position, tries []event.Tried, matched bool) (state, words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cursors[pos.Partition]
	after := stateAfter(tries)
	switch {
	case pos.Offset >= c.reach(p) && matched:
		if after != "" {
			return event.StateUnread, "the subscription was moved back, and will read it again"
		}
		return event.StateUnread, "the subscription has not come to it yet"
	case c.out.has(pos.Offset):
		if l := s.leases.out[leaseKey{pos: pos}]; l != nil {
			return event.StateLeased, "a consumer has it until " + time.Unix(0, l.deadline).UTC().Format(time.RFC3339)
		}
		return event.StateInHand, "it is queued, in the functions, or being sent"
	case after == event.StateParked || after == event.StateHeld:
		return after, "it waits for its next try"
	case after != "":
		return after, ""
	case !matched:
		return event.StateUnmatched, "the filter does not take it"
	case pos.Offset < s.row.Starts[pos.Partition]:
		return event.StateBefore, "the subscription begins behind it: see `start`"
	}
	return event.StateSettled, "it is done with, or a seek has passed over it; how is not remembered: no trace of it is kept (`trace` of the topic)"
}
