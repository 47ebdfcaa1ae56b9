package mqtt

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A logRouter is a fakeRouter whose topics can be read: logs in memory, with partitions and a ring.
type logRouter struct {
	*fakeRouter
	parts int

	mu     *sync.Mutex // the same one after a crash: the logs are
	topics map[string]*fakeLog
	regs   *Register
	pulls  []PullSource
	leases map[string]*fakePull
}

type fakeLog struct {
	gen   int
	parts [][]event.Record
	head  []event.Offset
	moved chan struct{}
}

var mappings = []event.MQTTMapping{
	{Filter: "plant/+/temp", Topic: "temps", Type: "temp", Subject: "{1}"},
	{Filter: "log/#", Topic: "logs", Type: "log", Subject: "{1}"},
	{Filter: "secret/#", Topic: "secret", Type: "s", Subject: "{1}"},
}

func newLogRouter(t testing.TB, parts int) *logRouter {
	t.Helper()
	r := &logRouter{fakeRouter: &fakeRouter{rows: map[string][]byte{}}, mu: &sync.Mutex{}, parts: parts, topics: map[string]*fakeLog{}, regs: &Register{}, leases: map[string]*fakePull{}}
	r.rules(t, mappings)
	return r
}

func (r *logRouter) rules(t testing.TB, ms []event.MQTTMapping, subs ...event.Subscription) {
	t.Helper()
	n, err := NewNames(ms, subs)
	if err != nil {
		t.Fatal(err)
	}
	r.regs.Replace(n)
}

func (r *logRouter) MQTT() *Names { return r.regs.Names() }
func (r *logRouter) Rows() Rows   { return r.fakeRouter }

func (r *logRouter) log(topic string) *fakeLog {
	l := r.topics[topic]
	if l == nil {
		l = &fakeLog{parts: make([][]event.Record, r.parts), head: make([]event.Offset, r.parts), moved: make(chan struct{})}
		r.topics[topic] = l
	}
	return l
}

// put stores an event and returns where it lies.
func (r *logRouter) put(topic string, ev event.Event) event.Position {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log(topic)
	h := fnv.New32a()
	h.Write([]byte(ev.Subject))
	p := h.Sum32() % uint32(r.parts)
	pos := event.Position{Partition: p, Offset: uint64(len(l.parts[p]))}
	rec := event.Record(ev.AppendRecord(nil))
	rec.SetPlace(pos, time.Now().UnixNano())
	l.parts[p] = append(l.parts[p], rec)
	close(l.moved)
	l.moved = make(chan struct{})
	return pos
}

// say publishes data under a name, as a client that came by MQTT did.
func (r *logRouter) say(name, data string, ext ...event.Attribute) event.Position {
	m, pieces, ok := r.MQTT().Route(name, nil)
	if !ok {
		panic("no mapping takes " + name)
	}
	ev := event.Event{ID: "x", Source: "/s", Type: "t", Time: "2026-01-01T00:00:00Z", Data: []byte(data), Extensions: append([]event.Attribute{{Name: TopicExtension, Value: name}, {Name: plainExtension, Value: untyped}}, ext...)}
	if len(pieces) > 0 {
		ev.Subject = pieces[0]
	}
	return r.put(m.Topic, ev)
}

// overtake drops everything stored so far of a topic.
func (r *logRouter) overtake(topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log(topic)
	for p := range l.parts {
		l.head[p] = uint64(len(l.parts[p]))
	}
}

// crash is the router after a power cut: the rows that are there now, and the logs.
func (r *logRouter) crash() *logRouter {
	r.fakeRouter.mu.Lock()
	rows := maps.Clone(r.rows)
	r.fakeRouter.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	return &logRouter{fakeRouter: &fakeRouter{rows: rows}, mu: r.mu, parts: r.parts, topics: r.topics, regs: r.regs, leases: r.leases, pulls: r.pulls}
}

type fakeReader struct {
	r    *logRouter
	l    *fakeLog
	next []event.Offset
	turn int
}

func (r *logRouter) OpenTopic(_ context.Context, topic string, start event.Start, _ string) (Reader, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log(topic)
	f := &fakeReader{r: r, l: l}
	for p := range l.parts {
		off := uint64(len(l.parts[p]))
		switch start.At {
		case event.Earliest:
			off = l.head[p]
		case event.AtTime:
			off = l.head[p]
			for off < uint64(len(l.parts[p])) && l.parts[p][off].Received() < start.Time.UnixNano() {
				off++
			}
		}
		f.next = append(f.next, off)
	}
	if start.At == event.AtCursor {
		parts := strings.Split(start.Cursor, ",")
		if parts[0] != strconv.Itoa(l.gen) || len(parts) != len(l.parts)+1 {
			return nil, event.ErrGone
		}
		for p := range f.next {
			f.next[p], _ = strconv.ParseUint(parts[p+1], 10, 64)
			if f.next[p] < l.head[p] || f.next[p] > uint64(len(l.parts[p])) {
				return nil, event.ErrGone
			}
		}
	}
	return f, nil
}

func (f *fakeReader) Next(ctx context.Context) (event.Record, error) {
	for {
		f.r.mu.Lock()
		moved := f.l.moved
		f.r.mu.Unlock()
		rec, ok, _, err := f.TryNext(ctx)
		if ok || err != nil {
			return rec, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *fakeReader) TryNext(context.Context) (event.Record, bool, bool, error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	for range f.next {
		p := f.turn
		if f.next[p] < f.l.head[p] {
			return nil, false, false, event.ErrGone
		}
		if f.next[p] < uint64(len(f.l.parts[p])) {
			f.next[p]++
			return f.l.parts[p][f.next[p]-1], true, false, nil
		}
		f.turn = (f.turn + 1) % len(f.next)
	}
	return nil, false, false, nil
}

func (f *fakeReader) Cursor() string                            { return f.CursorAt(f.next) }
func (f *fakeReader) Offsets(dst []event.Offset) []event.Offset { return append(dst, f.next...) }
func (f *fakeReader) Close()                                    {}
func (f *fakeReader) CursorAt(at []event.Offset) string {
	s := strconv.Itoa(f.l.gen)
	for _, off := range at {
		s += "," + strconv.FormatUint(off, 10)
	}
	return s
}

func (r *logRouter) Event(_ context.Context, topic string, pos event.Position) (event.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log(topic)
	switch {
	case pos.Offset < l.head[pos.Partition]:
		return nil, event.ErrGone
	case pos.Offset >= uint64(len(l.parts[pos.Partition])):
		return nil, event.ErrNotFound
	}
	return l.parts[pos.Partition][pos.Offset], nil
}

// A fakePull is a subscription that delivers by pull: events that wait, and leases.
type fakePull struct {
	wait   []event.Record
	out    map[string]event.Record
	acked  []string // data
	nacked int
	n      int
	more   chan struct{}
}

func (r *logRouter) shared(name, topic string) *fakePull {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &fakePull{out: map[string]event.Record{}, more: make(chan struct{})}
	r.leases[name] = p
	r.pulls = append(r.pulls, PullSource{Name: name, Topic: topic})
	return p
}

// offer puts the event at pos of topic before a subscription.
func (r *logRouter) offer(name, topic string, pos event.Position) {
	rec, err := r.Event(context.Background(), topic, pos)
	if err != nil {
		panic(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.leases[name]
	p.wait = append(p.wait, rec)
	close(p.more)
	p.more = make(chan struct{})
}

func (r *logRouter) Pulls() []PullSource {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pulls)
}

func (r *logRouter) Pull(ctx context.Context, name string, max int, wait time.Duration) ([]event.Lease, error) {
	for {
		r.mu.Lock()
		p := r.leases[name]
		var got []event.Lease
		for len(p.wait) > 0 && len(got) < max {
			p.n++
			id := fmt.Sprintf("%s-%d", name, p.n)
			p.out[id] = p.wait[0]
			got = append(got, event.Lease{ID: id, Event: p.wait[0]})
			p.wait = p.wait[1:]
		}
		more := p.more
		r.mu.Unlock()
		if len(got) > 0 {
			return got, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
			return nil, nil
		}
	}
}

func (r *logRouter) Unpull(name string, leases []string) error {
	_, err := r.Settle(context.Background(), name, leases, event.Settling{Verb: event.Nack})
	return err
}

func (r *logRouter) Settle(_ context.Context, name string, leases []string, how event.Settling) (lost []event.Lost, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.leases[name]
	for _, id := range leases {
		rec, ok := p.out[id]
		if !ok {
			lost = append(lost, event.Lost{Lease: id})
			continue
		}
		delete(p.out, id)
		if how.Verb == event.Ack {
			p.acked = append(p.acked, string(rec.Data()))
			continue
		}
		p.nacked++
		p.wait = append(p.wait, rec)
	}
	close(p.more)
	p.more = make(chan struct{})
	return lost, nil
}
