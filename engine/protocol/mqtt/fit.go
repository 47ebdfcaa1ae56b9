package mqtt

import (
	"context"
	"hash/fnv"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/access"
)

// fit makes the session's feeds those that its subscriptions, the rules in force and what its caller may read ask for. With
// resumed a connection has just come: what the session keeps goes on from where it stood; otherwise a feed that is new
// begins now. The caller holds o.admin.
func (o *outbox) fit(ctx context.Context, resumed bool) {
	if o.cancel == nil {
		return
	}
	sources := o.s.o.Backend.MQTT().Sources()
	before := o.allowed
	if o.allowed, o.unfit = o.readable(), false; o.allowed != before {
		o.forgetKept()
	}
	wanted := make(map[string]bool, len(o.feeds))
	for i := range sources {
		src := &sources[i]
		var in []*interest
		for _, sub := range o.subs {
			if sub.share == "" && src.Overlaps(sub.filter) {
				in = append(in, &interest{sub: sub})
			}
		}
		if len(in) == 0 || !o.may(access.Read, src.Kind, src.Name) {
			continue
		}
		key := sourceKey(src)
		d := o.feeds[key]
		known := d != nil
		if !known {
			d = &feed{o: o, key: key}
		}
		for _, x := range in {
			x.feed = d
		}
		if known && d.src.Load() == src && d.f != nil && sameSubs(d.in, in) {
			wanted[key] = true
			continue
		}
		d.src.Store(src)
		d.wants(in)
		if d.f == nil && !o.begin(ctx, d, src, known, resumed) {
			o.unfit = true // it is tried again: see refit
			wanted[key] = known
			continue
		}
		wanted[key] = true
	}
	for key, d := range o.feeds {
		if !wanted[key] {
			o.drop(key, d)
		}
	}
}

// readable tells one set of sources that the caller may read from another.
func (o *outbox) readable() uint64 {
	sources := o.s.o.Backend.MQTT().Sources()
	h := fnv.New64a()
	var bit [1]byte
	for i := range sources {
		bit[0] = 0
		if o.may(access.Read, sources[i].Kind, sources[i].Name) {
			bit[0] = 1
		}
		_, _ = h.Write(bit[:])
	}
	return h.Sum64()
}

// forgetKept drops the retained messages that wait and that the caller may not read any more. The caller holds o.admin.
func (o *outbox) forgetKept() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.kept) > 0 && o.keptFirst != nil && !o.reads(o.kept[0].r.topic, o.kept[0].r.name) {
		o.keptFirst = nil
	}
	o.kept = slices.DeleteFunc(o.kept, func(f found) bool { return !o.reads(f.r.topic, f.r.name) })
}

func sameSubs(a, b []*interest) bool {
	if len(a) != len(b) {
		return false
	}
	have := make(map[*subscription]bool, len(a))
	for _, x := range a {
		have[x.sub] = true
	}
	for _, x := range b {
		if !have[x.sub] {
			return false
		}
	}
	return true
}

// begin brings a feed to its fan-out.
func (o *outbox) begin(ctx context.Context, d *feed, src *Source, known, resumed bool) bool {
	f, err := o.s.fan.enter(ctx, src)
	if err != nil {
		o.s.o.Log.Warn("a source of MQTT messages cannot be read", "client", o.sess.clientID, "source", src.ID, "topic", src.Topic, "error", err)
		return known
	}
	left := o.sess.leftAt()
	f.mu.Lock()
	defer f.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.feeds == nil {
		o.feeds = map[string]*feed{}
	}
	o.feeds[sourceKey(src)] = d
	d.f, o.dirty = f, true
	if !resumed || !d.keeps() || d.at == nil && d.row.Cursor == "" && left.IsZero() {
		d.goLive()
		return true
	}
	if d.at == nil && d.row.Cursor == "" {
		d.from = left // it came into the rules meanwhile, or had nothing to keep
	}
	d.zero = o.s.o.Now().UnixNano()
	return true
}

// drop ends a feed: nothing of it is sent that was not before.
func (o *outbox) drop(key string, d *feed) {
	d.part()
	o.mu.Lock()
	d.gone = true
	delete(o.feeds, key)
	o.empty(func(m *outgoing) bool { return m.feed == d })
	if d.row.Cursor != "" {
		o.stale = append(o.stale, o.cursorKey(key))
	}
	for _, m := range d.done {
		o.stale = append(o.stale, o.messageKey(m))
	}
	o.dirty = true
	o.mu.Unlock()
}

// empty drops what f is true for from the queue. The caller holds o.mu.
func (o *outbox) empty(f func(*outgoing) bool) {
	o.queue.keep(func(m *outgoing) bool {
		if !f(m) {
			return true
		}
		o.queued -= m.size()
		o.s.fan.queued.Add(-m.size())
		return false
	})
}

// leftAt is when the session's last connection went; zero if it has not been without one.
func (s *session) leftAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}
