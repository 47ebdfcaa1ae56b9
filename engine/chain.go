package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// A chain runs a batch of items through a subscription's functions. It belongs to one pump and is reused.
// The whole chain is one step of each item: a RETRY, a REJECT or a failure anywhere discards what the
// others made of that item.
type chain struct {
	s       *subscription
	c       *subConfig
	items   []item
	fates   []fate // by item
	level   []link // what goes into the next function, in order of items
	next    []link
	call    plugins.Call
	out     plugins.Outcome
	buf     []byte // records made by this batch; they outlive it
	ev      event.Event
	scratch []byte
	took    time.Duration // of the last run, where none of the functions keeps state
	view    *stateView    // of functions that keep state; nil where none does
}

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

// maxHops bounds an event's way through topics.
const maxHops = 16

// run fills fates and leaves in level what is to be delivered. It fails only if a function cannot run at
// all; then nothing is decided.
func (h *chain) run(ctx context.Context) error {
	h.level, h.fates = h.level[:0], h.fates[:0]
	h.buf = make([]byte, 0, cap(h.buf)*3/4)
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
	h.call.Key = h.s.seed
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
	for _, sh := range h.c.shadows {
		if sh.function == f.def.Name {
			sh.offer(&h.call, &h.out)
		}
	}
	f.book.called(f.digest(), len(h.call.Events), time.Since(began), &h.out)
	if h.call.State != nil {
		h.view.stage(h.out.Writes())
	}
	for _, x := range h.out.Failures {
		h.failed(h.level[x.Index].origin, failure{reason: string(x.Reason), err: x.Err, digest: f.digest()})
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
			h.failed(in.origin, failure{reason: "attempts", err: errRetry, digest: f.digest(), wait: time.Duration(r.Arg) * time.Millisecond})
		case plugins.Reject:
			err := event.Permanent(int(r.Arg), fmt.Errorf("rejected by %s: %s", f.def.Name, clip(string(r.Data), 512)))
			h.failed(in.origin, failure{reason: string(plugins.ReasonReject), err: err, digest: f.digest(), final: true})
		case plugins.Reply:
			h.reply(in, r)
		case plugins.Drop:
		}
	}
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
		b = append(append(append(b, '~'), h.s.name...), '~')
		h.scratch = strconv.AppendInt(b, int64(x.made), 10)
		h.ev.ID = string(h.scratch)
	}
	x.made++
	if h.ev.Source == "" {
		h.ev.Source = in.rec.Attr(event.TagSource)
	}
	if h.ev.Type == "" {
		h.ev.Type = in.rec.Attr(event.TagType)
	}
	if h.ev.Topic == "" {
		h.ev.Topic = h.s.topic.name
		at := len(h.buf)
		h.buf = h.ev.AppendRecord(h.buf)
		rec := event.Record(h.buf[at:len(h.buf):len(h.buf)])
		rec.SetPlace(origin.Position(), origin.Received())
		rec.SetAttempt(0, origin.Flags()&event.FlagReply) // the next function may reply as well
		h.next = append(h.next, link{rec, in.origin})
		return
	}
	out, err := h.s.e.outputTo(ctx, h.ev.Topic, &h.ev)
	if err != nil {
		h.failed(in.origin, outputFailure(err, f.digest()))
		return
	}
	x.outputs = append(x.outputs, out)
}

// outputTo checks an event that a step puts into a topic and makes it its own.
func (e *Engine) outputTo(ctx context.Context, name string, ev *event.Event) (output, error) {
	t, err := e.lookup(ctx, name)
	if err != nil {
		return output{}, err
	}
	own := ev.Clone()
	own.Topic = t.name
	own.Hops++
	if own.Hops > maxHops {
		return output{}, fmt.Errorf("%w: the event has passed %d topics, more than a way without a circle needs", errHops, maxHops)
	}
	if err := own.Validate(e.o.Limits); err != nil {
		return output{}, err
	}
	if err := e.checkDelay(&own); err != nil {
		return output{}, err
	}
	if err := t.def.Load().checkSchema(own.Data); err != nil {
		return output{}, err
	}
	return output{t, &own}, nil
}

var errHops = errors.New("hops")

// outputFailure: another try may find the topic made or its schema changed, but not fewer hops.
func outputFailure(err error, digest string) failure {
	f := failure{reason: string(plugins.ReasonOutput), err: err, digest: digest}
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
