package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// Request and reply. An event whose producer waits has its flag FlagReply in the record, so it survives
// restarts. The first reply of any subscription to it is written in one commit with the settlement of the
// step that gave it, is handed to who waits once that commit is through, and is kept for a while for those
// who ask later. What a step says that is given up is no reply.

// waitReply returns the reply to an event, nil if end closes, the router drains or the topic is deleted before there is one, and
// event.ErrGone if there was one. Whoever calls it has a slot, or does not wait: end nil.
func (e *Engine) waitReply(ctx context.Context, t *topic, pos event.Position, end <-chan struct{}) (*event.Reply, error) {
	b, key := e.replies, replyKey{t.serial, pos}
	b.mu.Lock()
	k := b.known[key]
	switch {
	case k != nil && k.state == replyKept:
		b.mu.Unlock()
		row, err := e.store.Load(ctx, tableReplies, key.row())
		if err == nil && row != nil {
			return parseReplyRow(row)
		}
		if err != nil {
			return nil, err
		}
		return nil, errReplyGone
	case k != nil && k.state == replyGone:
		b.mu.Unlock()
		return nil, errReplyGone
	case end == nil:
		b.mu.Unlock()
		return nil, nil
	}
	w := make(chan *event.Reply, 1)
	b.waiting[key] = append(b.waiting[key], w)
	b.mu.Unlock()
	select {
	case r := <-w:
		return r, nil
	case <-end:
	case <-b.ended:
	case <-t.ended:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case r := <-w: // it came at that moment
		return r, nil
	default:
	}
	if rest := slices.DeleteFunc(b.waiting[key], func(x chan *event.Reply) bool { return x == w }); len(rest) > 0 {
		b.waiting[key] = rest
	} else {
		delete(b.waiting, key)
	}
	return nil, ctx.Err()
}

var errReplyGone = event.Bad(event.ErrGone, "reply", "there was a reply, and it is not kept any more")

// Ask is Publish of one event whose producer waits for a reply until end closes. It returns nil, and no
// error, if none came by then, the router drains, or no subscription would give one; the event is durable all the
// same, and a later reply is found by Reply. Past Options.Waiters it is event.ErrUnavailable and nothing is
// stored.
func (e *Engine) Ask(ctx context.Context, name string, evs []event.Event, pos []event.Position, end <-chan struct{}) (*event.Reply, error) {
	if len(evs) != 1 {
		return nil, event.Invalid("events", fmt.Sprintf("%d events ask for one reply; send each alone", len(evs)))
	}
	if err := e.replies.take(); err != nil {
		return nil, err
	}
	defer e.replies.leave()
	ev := &evs[0]
	ev.WantsReply = true
	if err := e.Publish(ctx, name, evs, pos); err != nil {
		return nil, err
	}
	t, err := e.topic(name)
	if err != nil {
		return nil, nil // deleted at this moment
	}
	if ev.ClientID {
		// It may repeat an event that is stored already: that one has a reply, or did not ask for one.
		r, err := e.waitReply(ctx, t, pos[0], nil)
		if r != nil {
			return r, nil
		}
		first, err2 := e.Event(ctx, name, pos[0])
		if errors.Is(err, event.ErrGone) || err2 == nil && first.Flags()&event.FlagReply == 0 {
			return nil, nil
		}
	}
	rec := event.Record(ev.AppendRecord(nil))
	rec.SetPlace(pos[0], e.now().UnixNano())
	if !t.answers(rec) {
		return nil, nil
	}
	r, err := e.waitReply(ctx, t, pos[0], end)
	if err != nil {
		e.o.Log.Warn("a reply cannot be read", "topic", name, "position", pos[0], "error", err)
	}
	return r, nil // the event is stored, whatever became of the waiting
}

// answers reports whether a subscription of the topic takes the event and may reply.
func (t *topic) answers(rec event.Record) bool {
	var scratch filters.Scratch
	for _, s := range t.parts[0].feeds.Load().subs {
		if c := s.config.Load(); c.replies() && c.Program.Match(rec, &scratch) {
			return true
		}
	}
	return false
}

// A Replier is a Sink that may hand back what the receiver answered, in event.Delivery's Reply.
type Replier interface {
	Sink
	Replies() bool
}

// replies reports whether the subscription may answer events.
func (c *subConfig) replies() bool {
	r, ok := c.sink.(Replier)
	return len(c.functions) > 0 || c.Deliver.Face == event.Pull || ok && r.Replies()
}

// Reply returns the reply to an event that asked for one, waiting until end closes. Errors: event.ErrNotFound
// (none yet; the event did not ask; no such event), ErrGone (it is not kept any more), ErrUnavailable (too many
// wait).
func (e *Engine) Reply(ctx context.Context, name string, pos event.Position, end <-chan struct{}) (*event.Reply, error) {
	t, err := e.topic(name)
	if err != nil {
		return nil, err
	}
	if r, err := e.waitReply(ctx, t, pos, nil); r != nil || err != nil {
		return r, err
	}
	rec, err := e.Event(ctx, name, pos)
	if err != nil {
		return nil, err
	}
	if rec.Flags()&event.FlagReply == 0 {
		return nil, event.Bad(event.ErrNotFound, "reply", fmt.Sprintf("event %s did not ask for a reply; publish with `Prefer: wait=10`", pos))
	}
	if err := e.replies.take(); err != nil {
		return nil, err
	}
	defer e.replies.leave()
	r, err := e.waitReply(ctx, t, pos, end)
	if r == nil && err == nil {
		err = event.Bad(event.ErrNotFound, "reply", fmt.Sprintf("event %s has none yet; ask again, or wait for it with ?wait=10s", pos))
	}
	return r, err
}

// Waiters is how many requests wait for replies now.
func (e *Engine) Waiters() int {
	e.replies.mu.Lock()
	defer e.replies.mu.Unlock()
	return e.replies.taken
}

// claimReply adds a settlement's reply to its commit; false if it has none that counts. The caller holds s.mu.
func (s *subscription) claimReply(b *storage.Batch, st settlement) bool {
	if st.reply == nil {
		return false
	}
	if s.e.replies.claim(b, replyKey{s.topic.serial, st.it.rec.Position()}, st.reply, s.e.now()) {
		return true
	}
	s.e.replies.discarded(replySecond)
	return false
}

// tellReply ends what claimReply began.
func (s *subscription) tellReply(st settlement, err error) {
	s.e.replies.settled(replyKey{s.topic.serial, st.it.rec.Position()}, st.reply, err)
	if err == nil {
		s.e.o.Observer.Replied(st.reply.From, time.Duration(s.e.now().UnixNano()-st.it.rec.Received()))
	}
}

// reply takes what a function answers to an item. The first answer of a chain counts.
func (h *chain) reply(in link, r *plugins.Result) {
	x, it := &h.fates[in.origin], h.items[in.origin]
	switch {
	case it.rec.Flags()&event.FlagReply == 0:
		h.at.discarded(replyUnasked)
	case x.reply != nil:
		h.at.discarded(replySecond)
	case !x.failed:
		x.reply = replyOf(r)
	}
}

// replyOf is what a function's REPLY says: status 200 and JSON unless it says otherwise. It borrows nothing.
func replyOf(r *plugins.Result) *event.Reply {
	own := &event.Reply{Status: int(r.Arg), From: "function"}
	if own.Status == 0 {
		own.Status = 200
	}
	if len(r.Data) > 0 {
		own.ContentType = "application/json"
	}
	event.AttrsOf(r.Attrs, r.Count, func(a event.Attr) bool {
		if a.Tag == event.TagDataContentType {
			own.ContentType = strings.Clone(a.Value)
		}
		return true
	})
	if len(r.Data) <= event.MaxReply {
		own.Data = bytes.Clone(r.Data)
		return fit(own, own.Check())
	}
	return fit(own, (&event.Reply{Status: own.Status, Data: r.Data}).Check())
}

// fit replaces a reply that cannot be passed on by one that says why: who waits learns it at once.
func fit(r *event.Reply, err error) *event.Reply {
	if err == nil {
		switch r.Status {
		case 204, 205, 304: // HTTP has no body there
			r.Data, r.ContentType = nil, ""
		}
		return r
	}
	return &event.Reply{Status: 502, ContentType: "text/plain; charset=utf-8", From: r.From,
		Data: []byte("a reply came and cannot be passed on: " + err.Error() + "\n")}
}

// wantsReply reports whether the receiver of a delivery is to be listened to. The caller holds the
// subscription's mutex.
func (c *subConfig) wantsReply(j job) bool {
	if j.it.rec.Flags()&event.FlagReply == 0 || j.given() != nil {
		return false
	}
	r, ok := c.sink.(Replier)
	return ok && r.Replies()
}

// given is the reply that the step has so far. The caller holds the subscription's mutex.
func (j *job) given() *event.Reply {
	if j.step != nil {
		return j.step.reply
	}
	return j.reply
}

// answered takes what the receiver said, unless the step has a reply. The caller holds the subscription's mutex.
func (j *job) answered(r event.Reply) {
	if j.given() != nil {
		return
	}
	r.From = "push"
	own := fit(&r, r.Check())
	if j.step != nil {
		j.step.reply = own
	} else {
		j.reply = own
	}
}

// replyTo notes a puller's reply on its leases.
func (e *Engine) replyTo(ctx context.Context, s *subscription, held []*lease, reply *event.Reply) {
	for _, l := range held {
		if l.config == nil { // of the run before: what it leased is not here any more, but whether it asked is stored
			if rec, err := e.Event(ctx, s.topic.name, l.job.it.rec.Position()); err == nil {
				l.job.it.rec.SetAttempt(l.job.it.attempt, rec.Flags()&event.FlagReply)
			}
		}
		if l.job.it.rec.Flags()&event.FlagReply == 0 {
			e.replies.discarded(replyUnasked)
			continue
		}
		s.mu.Lock()
		switch {
		case l.job.given() != nil: // a function replied
			e.replies.discarded(replySecond)
		case l.job.step != nil:
			l.job.step.reply = reply
		default:
			l.job.reply = reply
		}
		s.mu.Unlock()
	}
}

// gathered are settlements that are committed together.
type gathered struct {
	sts  []settlement
	done chan struct{}
}

// settleReply settles a delivery that succeeded and was answered, together with those that come while the
// commit before is under way: senders reply side by side, and each commit waits for the disk. The caller holds
// s.mu, which is released meanwhile.
func (s *subscription) settleReply(ctx context.Context, st settlement) {
	g := s.gathered
	if g != nil {
		g.sts = append(g.sts, st)
		s.mu.Unlock()
		<-g.done
		s.mu.Lock()
		return
	}
	g = &gathered{sts: []settlement{st}, done: make(chan struct{})}
	s.gathered = g
	s.mu.Unlock()
	s.replying.Lock()
	s.mu.Lock()
	s.gathered = nil
	s.mu.Unlock()
	s.settleUntil(ctx, g.sts)
	s.replying.Unlock()
	close(g.done)
	s.mu.Lock()
}
