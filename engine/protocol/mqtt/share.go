package mqtt

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/mochi-mqtt/server/v2/packets"
)

// A share is one session's part in a shared subscription (4.8.2), which is a subscription of the router that delivers by
// pull: its leases are what is under way. So its ack deadline, retries, dead letters and order hold, and other consumers
// may pull from it beside MQTT clients.
type share struct {
	o    *outbox
	sub  *subscription
	name string
	src  *Source

	cancel context.CancelFunc
	done   sync.WaitGroup
	room   chan struct{} // there may be room for more
	fate   chan struct{} // something is to be settled

	mu   sync.Mutex
	ack  []string
	nack []string
}

// Bounds of a share.
const (
	shareWait = 30 * time.Second
)

// shareable finds what a shared subscription is of, or says why there is none and what there is.
func (o *outbox) shareable(sub *subscription) (src *Source, code byte, reason string) {
	var names []string
	sources := o.s.o.Backend.MQTT().Sources()
	for _, pull := range o.s.o.Backend.Pulls() {
		if !o.may(access.Consume, access.Subscription, pull.Name) {
			continue
		}
		names = append(names, pull.Name)
		if pull.Name != sub.share {
			continue
		}
		for i := range sources {
			if s := &sources[i]; s.Topic == pull.Topic && s.Kind == access.Topic {
				src = s
			}
		}
		if src == nil {
			return nil, packets.ErrTopicFilterInvalid.Code, fmt.Sprintf("subscription %q is on topic %q, whose events have no names: no mapping leads there", pull.Name, pull.Topic)
		}
		if !slices.ContainsFunc(src.Patterns, func(p string) bool { return !covers(sub.filter, p) }) {
			return src, 0, ""
		}
		return nil, packets.ErrTopicFilterInvalid.Code, fmt.Sprintf("subscription %q hands out all of topic %q; a filter has to cover %s", pull.Name, pull.Topic, strings.Join(src.Patterns, " and "))
	}
	slices.Sort(names)
	if len(names) == 0 {
		return nil, packets.ErrSharedSubscriptionsNotSupported.Code, "no subscription that delivers by pull is yours to share"
	}
	if len(names) > 20 {
		names = append(names[:20], "…")
	}
	return nil, packets.ErrTopicFilterInvalid.Code, fmt.Sprintf("no subscription %q that delivers by pull; there is %s", shownFilter(sub.share), strings.Join(names, ", "))
}

// covers reports whether every name that pattern matches is one that filter does.
func covers(filter, pattern string) bool {
	for {
		if filter == "#" {
			return true
		}
		f, frest, fmore := strings.Cut(filter, "/")
		p, prest, pmore := strings.Cut(pattern, "/")
		switch {
		case p == "#", f != "+" && f != p:
			return false
		case !pmore:
			return !fmore || frest == "#"
		case !fmore:
			return false
		}
		filter, pattern = frest, prest
	}
}

// share begins the session's part in one. The caller holds o.admin.
func (o *outbox) share(ctx context.Context, sub *subscription) {
	if o.cancel == nil {
		return
	}
	if h := o.shares[sub.Filter]; h != nil {
		h.stop()
		delete(o.shares, sub.Filter)
	}
	src, code, reason := o.shareable(sub)
	if code != 0 {
		o.s.o.Log.Info("an MQTT client does not take part in a shared subscription any more", "client", o.sess.clientID, "filter", sub.Filter, "reason", reason)
		return
	}
	h := &share{o: o, sub: sub, name: sub.share, src: src, room: make(chan struct{}, 1), fate: make(chan struct{}, 1)}
	if o.shares == nil {
		o.shares = map[string]*share{}
	}
	o.shares[sub.Filter] = h
	var run context.Context
	run, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	h.done.Go(func() { h.pull(run) })
	h.done.Go(func() { h.settling(run) })
}

// fitShares ends parts that the caller may not have any more and begins those that he may again. The caller holds o.admin.
func (o *outbox) fitShares(ctx context.Context) {
	for filter, sub := range o.subs {
		if sub.share == "" {
			continue
		}
		src, code, _ := o.shareable(sub)
		switch h := o.shares[filter]; {
		case h == nil && code == 0:
			o.share(ctx, sub)
		case h != nil && code != 0:
			h.stop()
			delete(o.shares, filter)
		case h != nil && h.src != src:
			o.share(ctx, sub)
		}
	}
}

// pull leases what the client has room for.
func (h *share) pull(ctx context.Context) {
	for ctx.Err() == nil {
		n := h.free()
		if n == 0 {
			select {
			case <-h.room:
			case <-ctx.Done():
			}
			continue
		}
		leases, err := h.o.s.o.Backend.Pull(ctx, h.name, n, shareWait)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			h.o.s.o.Log.Debug("nothing can be pulled for an MQTT client", "client", h.o.sess.clientID, "subscription", h.name, "error", err)
			select {
			case <-time.After(reopenEvery):
			case <-ctx.Done():
			}
			continue
		}
		h.hand(leases)
	}
}

// free is how many messages of the share may be under way beside what is.
func (h *share) free() int {
	o := h.o
	o.mu.Lock()
	defer o.mu.Unlock()
	n := max(0, min(o.window-o.flying-o.again, o.s.fan.low)-o.queue.len())
	if n == 0 && !slices.Contains(o.starved, h) {
		o.starved = append(o.starved, h)
	}
	return n
}

// roomForShares has shares look again whether there is room for more, whatever it was that took it. The caller holds o.mu.
func (o *outbox) roomForShares() {
	for _, h := range o.starved {
		h.more()
	}
	o.starved = o.starved[:0]
}

// hand puts leases into the session's queue. An event without a name of MQTT is given back: it is tried again, and becomes a
// dead letter in the end, where it can be seen.
func (h *share) hand(leases []event.Lease) {
	o := h.o
	for i := range leases {
		l := &leases[i]
		name, ok := h.src.NameOf(nil, l.Event)
		if !ok || !matches(h.sub.filter, string(name)) {
			o.s.o.Log.Debug("a delivery has no name that an MQTT client could know it by", "subscription", h.name, "position", l.Event.Position().String())
			h.settle(l.ID, false)
			continue
		}
		m := &outgoing{share: h, lease: l.ID, rec: slices.Clone(l.Event), name: string(name), pos: l.Event.Position(), qos: h.sub.QoS,
			retain: h.sub.AsPublished && madeOf(l.Event).retain}
		if h.sub.ID != 0 {
			m.ids = []int{h.sub.ID}
		}
		o.mu.Lock()
		o.push(m)
		o.kick()
		o.mu.Unlock()
	}
}

// more says that the client may have room for another.
func (h *share) more() {
	select {
	case h.room <- struct{}{}:
	default:
	}
}

// settle decides about a lease: it was delivered, or is to be tried again.
func (h *share) settle(lease string, delivered bool) {
	h.mu.Lock()
	if delivered {
		h.ack = append(h.ack, lease)
	} else {
		h.nack = append(h.nack, lease)
	}
	h.mu.Unlock()
	select {
	case h.fate <- struct{}{}:
	default:
	}
	h.more()
}

// settling settles what was decided, all that has gathered at a time.
func (h *share) settling(ctx context.Context) {
	for {
		select {
		case <-h.fate:
			h.decided(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (h *share) decided(ctx context.Context) {
	h.mu.Lock()
	ack, nack := h.ack, h.nack
	h.ack, h.nack = nil, nil
	h.mu.Unlock()
	for _, x := range []struct {
		leases []string
		verb   event.SettlingVerb
	}{{ack, event.Ack}, {nack, event.Nack}} {
		if len(x.leases) == 0 {
			continue
		}
		lost, err := h.o.s.o.Backend.Settle(ctx, h.name, x.leases, event.Settling{Verb: x.verb})
		switch {
		case err != nil:
			h.o.s.o.Log.Warn("what an MQTT client acknowledged cannot be settled, and comes again", "client", h.o.sess.clientID, "subscription", h.name, "deliveries", len(x.leases), "error", err)
		case len(lost) > 0 && x.verb == event.Ack:
			h.o.s.o.Log.Debug("an MQTT client acknowledged deliveries that it held no more", "client", h.o.sess.clientID, "subscription", h.name, "deliveries", len(lost))
		}
	}
}

// stop ends the part: what was not sent was never leased, and what is not acknowledged goes to another consumer.
func (h *share) stop() {
	h.cancel()
	h.done.Wait()
	o := h.o
	var never []string
	o.mu.Lock()
	o.empty(func(m *outgoing) bool {
		if m.share == h {
			never = append(never, m.lease)
			return true
		}
		return false
	})
	for m := o.flight.head; m != nil; {
		following := m.next
		if m.share == h {
			h.mu.Lock()
			h.nack = append(h.nack, m.lease)
			h.mu.Unlock()
			o.complete(m)
		}
		m = following
	}
	o.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), letGoWithin)
	defer cancel()
	if len(never) > 0 {
		if err := o.s.o.Backend.Unpull(h.name, never); err != nil {
			o.s.o.Log.Debug("deliveries that did not reach an MQTT client stay leased until their deadline", "subscription", h.name, "error", err)
		}
	}
	h.decided(ctx)
}
