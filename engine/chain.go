package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// A chain runs a batch of items through a subscription's functions. It belongs to one pump, or to a trial, and
// is reused. The whole chain is one step of each item: a RETRY, a REJECT or a failure anywhere discards what
// the others made of that item.
type chain struct {
	at      around
	name    string   // of the subscription
	topic   string   // that it reads
	seed    [32]byte // what its functions' random numbers derive from
	c       *subConfig
	items   []item
	fates   []fate // by item
	level   []link // what goes into the next function, in order of items
	next    []link
	call    plugins.Call
	out     plugins.Outcome
	buf     []byte // records made by this batch; they outlive it
	reuse   bool   // whoever runs batches empties buf, for nobody keeps its records
	ev      event.Event
	scratch []byte
	took    time.Duration // of the last run, where none of the functions keeps state
	view    *stateView    // of functions that keep state; nil where none does
}

// around is what a chain needs of where it runs: a subscription at work, or a trial.
type around interface {
	// outputTo checks an event that a step puts into a topic and makes it its own.
	outputTo(ctx context.Context, topic string, ev *event.Event) (output, error)
	// ran is told of a function's call, while h.level has what went in, h.next what goes on, and h.out what
	// it said.
	ran(h *chain, f *function, took time.Duration)
	// discarded is told of a reply that does not count.
	discarded(why string)
}

func newChain(s *subscription) *chain {
	return &chain{at: s, name: s.name, topic: s.topic.name, seed: s.seed}
}

func (s *subscription) outputTo(ctx context.Context, topic string, ev *event.Event) (output, error) {
	return s.e.outputTo(ctx, topic, ev)
}

func (s *subscription) ran(h *chain, f *function, took time.Duration) {
	for _, sh := range h.c.shadows {
		if sh.function == f.def.Name {
			sh.offer(&h.call, &h.out)
		}
	}
	f.book.called(f.digest(), len(h.call.Events), took, &h.out)
}

func (s *subscription) discarded(why string) { s.e.replies.discarded(why) }

// link is one event between two functions.
type link struct {
	rec    event.Record
	origin int // index of the item
}

// fate is what a chain made of an item.
type fate struct {
	failed  bool
	failure failure
	made    int // events emitted so far: the n of their ids
	outputs []output
	reply   *event.Reply
}

// settlement is that of an item which went through the functions and is not sent anywhere.
func (x *fate) settlement(c *subConfig, it item) settlement {
	return settlement{it: it, outputs: x.outputs, reply: x.reply, made: c, filtered: len(x.outputs) == 0 && x.reply == nil}
}

// maxHops bounds an event's way through topics.
const maxHops = 16

// run fills fates and leaves in level what is to be delivered. It fails only if a function cannot run at
// all; then nothing is decided.
func (h *chain) run(ctx context.Context) error {
	h.level, h.fates = h.level[:0], h.fates[:0]
	if !h.reuse {
		h.buf = make([]byte, 0, cap(h.buf)*3/4)
	}
	for i, it := range h.items {
		h.level = append(h.level, link{it.rec, i})
		h.fates = append(h.fates, fate{})
	}
	for _, f := range h.c.functions {
		if len(h.level) == 0 {
			break
		}
		if err := h.through(ctx, f); err != nil {
			return err
		}
	}
	kept := h.level[:0]
	for _, l := range h.level {
		if !h.fates[l.origin].failed {
			kept = append(kept, l)
		}
	}
	h.level = kept
	return nil
}

// through runs one function over the level.
func (h *chain) through(ctx context.Context, f *function) error {
	h.call.Key = h.seed
	h.call.Events, h.call.Attempts = h.call.Events[:0], h.call.Attempts[:0]
	for _, l := range h.level {
		h.call.Events = append(h.call.Events, l.rec)
		h.call.Attempts = append(h.call.Attempts, h.items[l.origin].attempt)
	}
	h.out.Reset()
	h.call.State = nil
	if h.view != nil && f.def.Allow.KV {
		h.view.of(h.items[0].rec.Partition(), f.def.Name)
		h.call.State = h.view
	}
	if f.code == nil {
		return fmt.Errorf("no version of function %s was pushed yet; `router functions push %s FILE` does: %w", f.def.Name, f.def.Name, event.ErrUnavailable)
	}
	began := time.Now()
	if err := f.code.Call(ctx, &h.call, &h.out); err != nil {
		return err
	}
	took := time.Since(began)
	if h.call.State != nil {
		h.view.stage(h.out.Writes())
	}
	for _, x := range h.out.Failures {
		h.failed(h.level[x.Index].origin, failure{reason: string(x.Reason), err: x.Err, function: f.def.Name, digest: f.digest()})
	}
	h.next = h.next[:0]
	for i := range h.out.Results {
		r := &h.out.Results[i]
		in := h.level[r.Index]
		switch r.Verdict {
		case plugins.Pass:
			h.next = append(h.next, in)
		case plugins.Emit:
			h.emit(ctx, in, r, f)
		case plugins.Retry:
			h.failed(in.origin, failure{reason: "attempts", err: errRetry, function: f.def.Name, digest: f.digest(), wait: time.Duration(r.Arg) * time.Millisecond})
		case plugins.Reject:
			err := event.Permanent(int(r.Arg), fmt.Errorf("rejected by %s: %s", f.def.Name, clip(string(r.Data), 512)))
			h.failed(in.origin, failure{reason: string(plugins.ReasonReject), err: err, function: f.def.Name, digest: f.digest(), final: true})
		case plugins.Reply:
			h.reply(in, r)
		case plugins.Drop:
		}
	}
	h.at.ran(h, f, took)
	h.level, h.next = h.next, h.level
	return nil
}

var errRetry = errors.New("the function asked to be called again")

func (h *chain) failed(origin int, f failure) {
	if x := &h.fates[origin]; !x.failed {
		x.failed, x.failure, x.outputs, x.reply = true, f, nil, nil
	}
}

// emit makes the event of an EMIT: one for another topic leaves the chain here.
func (h *chain) emit(ctx context.Context, in link, r *plugins.Result, f *function) {
	x, origin := &h.fates[in.origin], h.items[in.origin].rec
	r.Event(in.rec, &h.ev)
	if h.ev.ID == "" {
		b := append(h.scratch[:0], origin.Attr(event.TagID)...)
		b = append(append(append(b, '~'), h.name...), '~')
		h.scratch = strconv.AppendInt(b, int64(x.made), 10)
		h.ev.ID = string(h.scratch)
	}
	x.made++
	h.items[in.origin].mark(&h.ev)
	if h.ev.Source == "" {
		h.ev.Source = in.rec.Attr(event.TagSource)
	}
	if h.ev.Type == "" {
		h.ev.Type = in.rec.Attr(event.TagType)
	}
	if h.ev.Topic == "" {
		h.ev.Topic = h.topic
		at := len(h.buf)
		h.buf = h.ev.AppendRecord(h.buf)
		rec := event.Record(h.buf[at:len(h.buf):len(h.buf)])
		rec.SetPlace(origin.Position(), origin.Received())
		rec.SetAttempt(0, origin.Flags()&event.FlagReply) // the next function may reply as well
		h.next = append(h.next, link{rec, in.origin})
		return
	}
	out, err := h.emitTo(ctx, h.ev.Topic, f)
	if err != nil {
		h.failed(in.origin, outputFailure(err, f))
		return
	}
	x.outputs = append(x.outputs, out)
}

// emitTo is outputTo of h.ev for a topic that a function names: the subscription and the function may each be somebody's,
// whose topics alone they reach.
func (h *chain) emitTo(ctx context.Context, topic string, f *function) (output, error) {
	within := h.c.Within
	if !strings.HasPrefix(within, f.def.Within) {
		within = f.def.Within // the narrower; of two that have nothing in common both are asked below
	}
	if within == "" {
		return h.at.outputTo(ctx, topic, &h.ev)
	}
	var out output
	err := error(event.ErrNotFound)
	if strings.HasPrefix(topic, within) && strings.HasPrefix(topic, h.c.Within) {
		out, err = h.at.outputTo(ctx, topic, &h.ev)
	}
	if errors.Is(err, event.ErrNotFound) { // what others have is not to be told from what does not exist, nor suggested
		err = event.Bad(event.ErrNotFound, "topic", fmt.Sprintf("topic %.80q does not exist, or is not for %s to see: its functions may emit to topics whose names begin with %q", topic, h.name, within))
	}
	return out, err
}

// outputTo finds the topic of an output, and makes it where that is allowed.
func (e *Engine) outputTo(ctx context.Context, name string, ev *event.Event) (output, error) {
	if err := e.sealed(name); err != nil {
		return output{}, err
	}
	t, err := e.lookup(ctx, name)
	if err != nil {
		return output{}, err
	}
	own, err := ownOutput(t.def.Load(), ev, e.o.Limits, e.now())
	return output{t, own}, err
}

// ownOutput is an event as a topic takes it.
func ownOutput(t *topicDef, ev *event.Event, limits event.Limits, now time.Time) (*event.Event, error) {
	own := ev.Clone()
	own.Topic = t.Name
	own.Hops++
	if own.Hops > maxHops {
		return nil, fmt.Errorf("%w: the event has passed %d topics, more than a way without a circle needs", errHops, maxHops)
	}
	if err := own.Validate(limits); err != nil {
		return nil, err
	}
	if err := checkDelay(&own, now); err != nil {
		return nil, err
	}
	if err := t.checkSchema(own.Data); err != nil {
		return nil, err
	}
	return &own, nil
}

var errHops = errors.New("hops")

// outputFailure: another try may find the topic made or its schema changed, but not fewer hops.
func outputFailure(err error, at *function) failure {
	f := failure{reason: string(plugins.ReasonOutput), err: err}
	if at != nil {
		f.function, f.digest = at.def.Name, at.digest()
	}
	if errors.Is(err, errHops) {
		f.reason, f.final = "hops", true
	}
	return f
}

// hashOutputs tells whether a step that runs again makes the same.
func hashOutputs(recs []event.Record) uint64 {
	var h xxh3.Hasher
	for _, r := range recs {
		_, _ = h.Write(r)
	}
	return h.Sum64()
}
