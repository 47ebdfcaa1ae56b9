package mqtt

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
)

// A feed is what one session reads of one source. It is live, when the fan-out hands it what matches, or behind, when the
// session reads by itself from where it stopped: it has come back, or its queue was full. Who is behind and finds nothing
// more to read becomes live under the fan-out's lock, at a position that both agree on, so that no event is missed and
// none comes twice.
type feed struct {
	o   *outbox
	key string                 // of the source
	src atomic.Pointer[Source] // nil: it was loaded, and nobody has come for it

	// Under fanout.mu alone.
	turn  uint64
	match match

	// Written under fanout.mu and outbox.mu, read under either.
	f    *fanout // nil: the session has no connection
	in   []*interest
	live bool
	at   []event.Offset // behind: to be read next, by partition; live: what lies below was had already; nil: see row

	// Under outbox.mu.
	gone   bool                // it is read no more; what is under way ends
	paused bool                // it could not be read and is tried again
	from   time.Time           // it begins with what was received then; zero: at its row
	zero   int64               // Unix ns: messages of QoS 0 from before are past (4.1: they need not be kept)
	had    map[place]bool      // read before the last restart, and under way or done since
	done   map[place]*outgoing // of QoS 2 and done, while the cursor has not passed them
	row    position            // as stored
	stood  position            // without a connection: where it stood

	reader Reader // behind: the pump's alone
	name   []byte
}

// place is where an event lies in its topic.
type place = event.Position

// position is where a session stands in a source, as a row of it.
type position struct {
	Cursor  string         `json:"cursor"`
	Offsets []event.Offset `json:"offsets"`
}

// offer takes an event from the fan-out, which holds its lock; false: there is no room, and it has to be read again.
func (d *feed) offer(p *passing) bool {
	o := d.o
	o.mu.Lock()
	defer o.mu.Unlock()
	pos := p.rec.Position()
	if int(pos.Partition) < len(d.at) && pos.Offset < d.at[pos.Partition] {
		return true
	}
	m := d.message(p, &d.match)
	if m == nil {
		return true
	}
	if !o.room(m) {
		if m.qos > 0 {
			return false
		}
		o.s.fan.dropped.Add(1)
		return true
	}
	o.push(m)
	o.kick()
	return true
}

// message is what the session is sent of an event that matched; nil: nothing.
func (d *feed) message(p *passing, by *match) *outgoing {
	if by.noLocal && p.made.from != "" && p.made.from == d.o.mark {
		return nil
	}
	m := &outgoing{feed: d, rec: p.rec, name: p.name, pos: p.rec.Position(), qos: min(by.qos, p.made.qos), retain: by.asPublished && p.made.retain}
	if len(by.ids) > 0 {
		m.ids = slices.Clone(by.ids)
	}
	return m
}

// keeps reports whether the session wants what it missed without a connection.
func (d *feed) keeps() bool {
	return slices.ContainsFunc(d.in, func(in *interest) bool { return in.sub.QoS > 0 })
}

// readSome is how many events a feed that is behind reads before other work of the session is looked at.
const readSome = 256

// catchUp reads on for a feed that is behind until the session has enough to send or the feed is live. The pump calls it.
func (d *feed) catchUp(ctx context.Context) {
	select {
	case d.o.s.fan.reading <- struct{}{}:
		defer func() { <-d.o.s.fan.reading }()
	case <-ctx.Done():
		return
	}
	if d.reader == nil && !d.open(ctx) {
		return
	}
	for range readSome {
		rec, ok, more, err := d.reader.TryNext(ctx)
		switch {
		case err != nil:
			d.shut()
			if !errors.Is(err, event.ErrGone) {
				d.pause(ctx, err)
			}
			return // open finds what is still there
		case ok && d.take(rec):
		case ok || more || d.join():
			return
		}
	}
}

// open begins to read at the feed's place, or at the earliest that is left; false: not now.
func (d *feed) open(ctx context.Context) bool {
	o := d.o
	o.mu.Lock()
	f := d.f
	o.mu.Unlock()
	if f == nil {
		return false
	}
	start := event.Start{At: event.AtCursor}
	f.mu.Lock()
	o.mu.Lock()
	at, over := d.at, d.gone || d.live
	switch {
	case at != nil:
		start.Cursor = f.reader.CursorAt(at)
	case !d.from.IsZero():
		start = event.Start{At: event.AtTime, Time: d.from}
	default:
		start.Cursor, at = d.row.Cursor, d.row.Offsets
	}
	o.mu.Unlock()
	f.mu.Unlock()
	if over {
		return false
	}
	r, err := o.s.o.Backend.OpenTopic(ctx, d.src.Load().Topic, start, "")
	if errors.Is(err, event.ErrGone) || errors.Is(err, event.ErrInvalid) {
		if r, err = o.s.o.Backend.OpenTopic(ctx, d.src.Load().Topic, event.Start{At: event.Earliest}, ""); err == nil {
			d.lost(at, r.Offsets(nil))
		}
	}
	if err != nil {
		d.pause(ctx, err)
		return false
	}
	o.mu.Lock()
	d.reader, d.at = r, r.Offsets(nil)
	o.mu.Unlock()
	return true
}

// lost counts and names what the ring dropped before the session had read it.
func (d *feed) lost(at, heads []event.Offset) {
	n := uint64(0)
	for i := range min(len(at), len(heads)) {
		if heads[i] > at[i] {
			n += heads[i] - at[i]
		}
	}
	d.o.s.fan.overtaken.Add(n)
	d.o.s.o.Log.Warn("an MQTT session goes on at the earliest event that is left: the ring has overtaken it, or its topic was made again",
		"client", d.o.sess.clientID, "source", d.src.Load().ID, "topic", d.src.Load().Topic, "events", n)
}

func (d *feed) shut() {
	if d.reader != nil {
		d.reader.Close()
		d.reader = nil
	}
}

// pause leaves a feed that cannot be read alone for a while.
func (d *feed) pause(ctx context.Context, err error) {
	o := d.o
	if ctx.Err() != nil {
		return
	}
	o.s.o.Log.Debug("an MQTT session cannot be read for and is tried again", "client", o.sess.clientID, "source", d.src.Load().ID, "error", err)
	o.mu.Lock()
	d.paused = true
	o.mu.Unlock()
	time.AfterFunc(reopenEvery, func() {
		o.mu.Lock()
		d.paused = false
		o.kick()
		o.mu.Unlock()
	})
}

// take puts one event that was read into the queue if it matches; false: the session has enough for now.
func (d *feed) take(rec event.Record) bool {
	o, pos := d.o, rec.Position()
	var m *outgoing
	if name, ok := d.src.Load().NameOf(d.name[:0], rec); ok {
		d.name = name
		m = d.matching(rec, name)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if d.gone {
		return false
	}
	d.at[pos.Partition] = pos.Offset + 1
	if d.had[pos] {
		delete(d.had, pos)
		return true
	}
	if m != nil {
		o.push(m)
	}
	return o.hungry()
}

// matching is the message that the session gets of an event that was read, nil if none.
func (d *feed) matching(rec event.Record, name []byte) *outgoing {
	o := d.o
	o.mu.Lock()
	in, zero := d.in, d.zero
	o.mu.Unlock()
	text := borrow(name)
	var by match
	for _, i := range in {
		if rec.Received() >= i.sub.since && mqttname.Match(i.sub.filter, text) {
			by.add(i.sub)
		}
	}
	if !by.any {
		return nil
	}
	m := d.message(&passing{rec: rec, name: text, made: madeOf(rec)}, &by)
	if m == nil || m.qos == 0 && rec.Received() < zero {
		return nil
	}
	m.rec, m.name = slices.Clone(rec), string(name)
	return m
}

// join makes a feed live that has read everything: unless the fan-out has handed on what it has not read.
func (d *feed) join() bool {
	o := d.o
	o.mu.Lock()
	f := d.f
	o.mu.Unlock()
	if f == nil {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if d.f != f || d.gone || d.live {
		return true
	}
	d.at = d.reader.Offsets(d.at[:0])
	if len(d.at) != len(f.pos) { // the topic was made again
		d.shut()
		return true
	}
	for i := range f.pos {
		if d.at[i] < f.pos[i] {
			return false
		}
	}
	d.live, d.had = true, nil
	f.add(d)
	d.shut()
	return true
}

// goLive makes a feed live from now on. The caller holds both locks.
func (d *feed) goLive() {
	d.live, d.at, d.had, d.from = true, nil, nil, time.Time{}
	d.f.add(d)
}

// wants replaces the filters of a feed.
func (d *feed) wants(in []*interest) {
	if f := d.f; f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		live := f.live[d]
		f.remove(d)
		d.o.mu.Lock()
		d.in = in
		d.o.mu.Unlock()
		if live {
			f.add(d)
		}
		return
	}
	d.o.mu.Lock()
	d.in = in
	d.o.mu.Unlock()
}

// part takes a feed off its fan-out: it will be behind from what was not sent on. The outbox's queue is dropped next.
func (d *feed) part() {
	f := d.f
	if f == nil {
		return
	}
	f.mu.Lock()
	f.remove(d)
	d.o.mu.Lock()
	d.stood, d.at = d.standing(f)
	d.live, d.f = false, nil
	d.o.mu.Unlock()
	f.mu.Unlock()
	d.o.s.fan.leave(f)
}

// stands is where the session stands: before the first event of each partition that it has not done with. ok is false
// where nothing is known beyond the row.
func (d *feed) stands() (p position, ok bool) {
	o := d.o
	o.mu.Lock()
	f := d.f
	o.mu.Unlock()
	if f == nil {
		return d.stood, d.stood.Cursor != ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	p, at := d.standing(f)
	return p, at != nil
}

// standing is where the session stands, and what of it has to be read when it comes back: what is in its queue, but not
// what is under way. The caller holds both locks.
func (d *feed) standing(f *fanout) (p position, at []event.Offset) {
	switch {
	case d.live:
		at = ahead(f.pos, d.at)
	case d.at == nil:
		return d.stood, nil
	default:
		at = slices.Clone(d.at)
	}
	before := func(at []event.Offset, m *outgoing) {
		if m.feed == d && m.qos > 0 && int(m.pos.Partition) < len(at) {
			at[m.pos.Partition] = min(at[m.pos.Partition], m.pos.Offset)
		}
	}
	for i := range d.o.queue.len() {
		before(at, d.o.queue.at(i))
	}
	p.Offsets = slices.Clone(at)
	for m := d.o.flight.head; m != nil; m = m.next {
		before(p.Offsets, m)
	}
	p.Cursor = f.reader.CursorAt(p.Offsets)
	return p, at
}
