package mqtt

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
)

// fanouts are the readers at the ends of what MQTT clients read: one for each source that somebody reads, however many
// do. So an event costs what the sessions cost that it matches, and those that it does not match nothing.
type fanouts struct {
	s *Server

	mu    sync.Mutex
	by    map[string]*fanout   // by key of the source
	out   map[*outbox]struct{} // that have a connection
	stop  context.CancelFunc   // of run
	ended chan struct{}
	runs  sync.WaitGroup // of fan-outs

	reading chan struct{} // room for sessions that read by themselves at the same moment

	most, low int // messages that wait for a client, and past which nothing is read ahead

	queued    atomic.Int64  // bytes that wait in all queues
	dropped   atomic.Uint64 // messages of QoS 0 for which there was no room
	overtaken atomic.Uint64 // events that the ring dropped before a session had read them
	expired   atomic.Uint64 // messages that were past their expiry when it was their turn
}

// Bounds of what waits for clients.
const (
	queueMax    = 1000
	queueLow    = 256
	readers     = 8         // sessions that read by themselves at the same moment; the others wait
	allQueues   = 256 << 20 // bytes that wait in all queues, past which each has room for little
	reopenEvery = time.Second
)

func newFanouts(s *Server) *fanouts {
	return &fanouts{s: s, by: map[string]*fanout{}, out: map[*outbox]struct{}{}, reading: make(chan struct{}, readers), most: queueMax, low: queueLow}
}

// open begins what is done now and then.
func (x *fanouts) open() {
	var ctx context.Context
	ctx, x.stop = context.WithCancel(context.Background())
	x.ended = make(chan struct{})
	go x.run(ctx)
}

// sourceKey tells a source from all others, and from itself with another topic.
func sourceKey(src *Source) string { return src.ID + "\x00" + src.Topic }

// enter returns the fan-out of a source, begun if nobody was there. Each enter needs one leave.
func (x *fanouts) enter(ctx context.Context, src *Source) (*fanout, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.by[sourceKey(src)]
	if f == nil {
		r, err := x.s.o.Backend.OpenTopic(ctx, src.Topic, event.Start{At: event.Latest}, "")
		if err != nil {
			return nil, err
		}
		f = &fanout{all: x, live: map[*feed]bool{}}
		f.visit = f.hit
		f.src.Store(src)
		f.begin(r)
		var run context.Context
		run, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		x.by[sourceKey(src)] = f
		x.runs.Go(func() { f.run(run, r) })
	}
	f.users++
	return f, nil
}

// leave gives back what enter returned; the last one ends it.
func (x *fanouts) leave(f *fanout) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if f.users--; f.users == 0 {
		delete(x.by, sourceKey(f.src.Load()))
		f.cancel()
	}
}

// replaced takes the sources that are in force now: events have other names from here on.
func (x *fanouts) replaced(sources []Source) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range sources {
		if f := x.by[sourceKey(&sources[i])]; f != nil {
			f.mu.Lock()
			f.src.Store(&sources[i])
			f.mu.Unlock()
		}
	}
}

// close ends all and waits for them.
func (x *fanouts) close() {
	if x.stop != nil {
		x.stop()
		<-x.ended
	}
	x.mu.Lock()
	for _, f := range x.by {
		f.cancel()
	}
	x.mu.Unlock()
	x.runs.Wait()
}

// A fanout reads a source at its end and hands each event to the sessions whose filters match its name.
//
// Locks are taken in this order: outbox.admin, fanout.mu, outbox.mu.
type fanout struct {
	all    *fanouts
	src    atomic.Pointer[Source]
	cancel context.CancelFunc
	users  int // fanouts.mu guards it

	mu     sync.Mutex
	reader Reader         // makes cursors; run's own otherwise
	pos    []event.Offset // next to be handed on, by partition
	live   map[*feed]bool // feeds that get what matches
	subs   mqttname.Trie[*interest]
	turn   uint64  // counts events
	hits   []*feed // that the event at work matched
	name   []byte
	visit  func(*interest) bool
}

// An interest is one filter of a feed.
type interest struct {
	feed *feed
	sub  *subscription
}

// begin notes where a reader starts. The caller holds f.mu, or nobody else knows f.
func (f *fanout) begin(r Reader) { f.reader, f.pos = r, r.Offsets(f.pos[:0]) }

// run hands on what a reader returns until ctx ends. While it cannot be read the sessions read by themselves, and are
// told so by their own reader.
func (f *fanout) run(ctx context.Context, r Reader) {
	for {
		err := f.read(ctx, r)
		r.Close()
		if ctx.Err() != nil {
			return
		}
		src := f.src.Load()
		log := f.all.s.o.Log.With("source", src.ID, "topic", src.Topic)
		if !errors.Is(err, event.ErrUnavailable) {
			log.Warn("events cannot be read for MQTT clients and are tried again", "error", err)
		}
		f.behind()
		for r = nil; r == nil; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(reopenEvery):
			}
			if r, err = f.all.s.o.Backend.OpenTopic(ctx, src.Topic, event.Start{At: event.Latest}, ""); err != nil {
				log.Debug("events cannot be read for MQTT clients", "error", err)
				r = nil
			}
		}
		f.mu.Lock()
		f.begin(r)
		f.mu.Unlock()
	}
}

func (f *fanout) read(ctx context.Context, r Reader) error {
	for {
		rec, err := r.Next(ctx)
		if err != nil {
			return err
		}
		f.dispatch(rec)
	}
}

// dispatch hands one event to whom it matches. Nothing is done, and nothing allocated, for anybody else.
func (f *fanout) dispatch(rec event.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if name, ok := f.src.Load().NameOf(f.name[:0], rec); ok {
		f.name = name
		f.turn++
		f.hits = f.hits[:0]
		f.subs.MatchBytes(name, f.visit)
		if len(f.hits) > 0 {
			// One copy for all of them: what waits for a slow client holds its own bytes and not the block's, which may be
			// a thousand times as large.
			p := passing{rec: slices.Clone(rec), name: string(name), made: madeOf(rec)}
			for _, d := range f.hits {
				if !d.offer(&p) {
					f.fallBehind(d)
				}
			}
		}
	}
	f.pos[rec.Partition()] = rec.Offset() + 1
}

// hit notes that the event at work matched a filter.
func (f *fanout) hit(in *interest) bool {
	if d := in.feed; d.turn != f.turn {
		d.turn = f.turn
		d.match = match{ids: d.match.ids[:0]}
		f.hits = append(f.hits, d)
	}
	in.feed.match.add(in.sub)
	return true
}

// fallBehind lets a feed read by itself from the event at work on. The caller holds f.mu.
func (f *fanout) fallBehind(d *feed) {
	f.remove(d)
	d.o.mu.Lock()
	d.at = ahead(f.pos, d.at)
	d.live = false
	d.o.kick()
	d.o.mu.Unlock()
}

// behind does so with all of them.
func (f *fanout) behind() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for d := range f.live {
		f.fallBehind(d)
	}
}

// add begins to hand events to a feed. The caller holds f.mu.
func (f *fanout) add(d *feed) {
	f.live[d] = true
	d.turn = 0 // another fan-out, at whose end it was before, had turns of its own
	for _, in := range d.in {
		f.subs.Add(in.sub.filter, in)
	}
}

// remove ends it. The caller holds f.mu.
func (f *fanout) remove(d *feed) {
	if !f.live[d] {
		return
	}
	delete(f.live, d)
	for _, in := range d.in {
		f.subs.Remove(in.sub.filter, in)
	}
}

// ahead is the later of two positions, by partition.
func ahead(a, b []event.Offset) []event.Offset {
	later := slices.Clone(a)
	for i := range min(len(a), len(b)) {
		later[i] = max(a[i], b[i])
	}
	return later
}

// passing is an event on its way to sessions.
type passing struct {
	rec  event.Record
	name string
	made made
}

// A match is what the filters of a session that an event matched ask for together (3.3.4: one message, with the highest
// QoS and all identifiers).
type match struct {
	qos         byte
	asPublished bool
	noLocal     bool // all of them
	any         bool
	ids         []int
}

func (m *match) add(sub *subscription) {
	m.qos = max(m.qos, sub.QoS)
	m.asPublished = m.asPublished || sub.AsPublished
	m.noLocal = sub.NoLocal && (!m.any || m.noLocal)
	m.any = true
	if sub.ID != 0 && !slices.Contains(m.ids, sub.ID) {
		m.ids = append(m.ids, sub.ID)
	}
}
