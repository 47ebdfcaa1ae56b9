package mqtt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
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
	fail   error // of reading; nil: none
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

func (r *logRouter) broken(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
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
	if r.fail != nil {
		return nil, r.fail
	}
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
	if f.r.fail != nil {
		return nil, false, false, f.r.fail
	}
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

// newOut is a server over a router, without connections.
func newOut(t testing.TB, r *logRouter, o Options) *Server {
	t.Helper()
	guard, err := access.New(access.Options{Off: true})
	if err != nil {
		t.Fatal(err)
	}
	o.Backend, o.Door = r, &fakeDoor{guard: guard}
	s, err := New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeOut(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// A device is a client's side of a session: a packetWriter whose packets it keeps.
type device struct {
	t    testing.TB
	s    *Server
	sess *session

	mu     sync.Mutex
	got    []packets.Packet
	auto   bool // everything is acknowledged at once
	hold   chan struct{}
	closed bool
	most   int // messages that were under way at once
	flies  map[uint16]bool
}

// The caller of devices; nil in tests of access alone.
func anybody(t testing.TB) Caller {
	t.Helper()
	guard, err := access.New(access.Options{Off: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&fakeDoor{guard: guard}).Open(context.Background(), access.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type deviceOptions struct {
	id      string
	clean   bool
	expiry  time.Duration
	window  uint16
	version byte
	caller  Caller
	auto    bool
	hold    chan struct{}
}

// join connects a device, and tells whether its session was there.
func join(t testing.TB, s *Server, o deviceOptions) (*device, bool) {
	t.Helper()
	if o.caller == nil {
		o.caller = anybody(t)
	}
	if o.version == 0 {
		o.version = 5
	}
	if o.window == 0 {
		o.window = 65535
	}
	d := &device{t: t, s: s, auto: o.auto, hold: o.hold, flies: map[uint16]bool{}}
	sess, present, err := s.sessions.take(context.Background(), o.caller, o.id, o.clean, o.expiry)
	if err != nil {
		t.Fatal(err)
	}
	d.sess = sess
	if err := sess.out.attach(d, connectParams{version: o.version, receiveMaximum: o.window, caller: o.caller, present: present}); err != nil {
		t.Fatal(err)
	}
	return d, present
}

// part ends the connection.
func (d *device) part() {
	d.mu.Lock()
	d.closed = true
	if d.hold != nil {
		close(d.hold)
		d.hold = nil
	}
	d.mu.Unlock()
	d.sess.out.detach()
	d.s.sessions.leave(d.sess)
}

func (d *device) write(pk *packets.Packet) (bool, error) {
	d.mu.Lock()
	hold, closed := d.hold, d.closed
	d.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if closed {
		return false, errors.New("closed")
	}
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type { // what cannot be encoded must not be sent
	case packets.Publish:
		err = pk.PublishEncode(&b)
	case packets.Pubrel:
		err = pk.PubrelEncode(&b)
	}
	if err != nil {
		d.t.Errorf("encode: %v", err)
	}
	d.mu.Lock()
	d.got = append(d.got, *pk)
	if pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos > 0 {
		d.flies[pk.PacketID] = true
		d.most = max(d.most, len(d.flies))
	}
	auto := d.auto
	d.mu.Unlock()
	if auto {
		d.answer(pk)
	}
	return true, nil
}

func (d *device) flush() error { return nil }

// answer acknowledges a packet.
func (d *device) answer(pk *packets.Packet) {
	switch {
	case pk.FixedHeader.Type == packets.Pubrel:
		d.landed(pk.PacketID)
		d.sess.out.acked(packets.Pubcomp, pk.PacketID, 0)
	case pk.FixedHeader.Qos == 1:
		d.landed(pk.PacketID)
		d.sess.out.acked(packets.Puback, pk.PacketID, 0)
	case pk.FixedHeader.Qos == 2:
		d.sess.out.acked(packets.Pubrec, pk.PacketID, 0)
	}
}

func (d *device) landed(id uint16) {
	d.mu.Lock()
	delete(d.flies, id)
	d.mu.Unlock()
}

func (d *device) sub(filter string, qos byte, with ...func(*packets.Subscription)) byte {
	d.t.Helper()
	code, _ := d.subReason(filter, qos, with...)
	return code
}

func (d *device) subReason(filter string, qos byte, with ...func(*packets.Subscription)) (byte, string) {
	s := packets.Subscription{Filter: filter, Qos: qos}
	for _, f := range with {
		f(&s)
	}
	codes, reason := d.sess.out.subscribe([]packets.Subscription{s})
	d.sess.out.subscribed([]packets.Subscription{s})
	return codes[0], reason
}

// published are the PUBLISHes that came, and payloads what they carried.
func (d *device) published() (all []packets.Packet) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, pk := range d.got {
		if pk.FixedHeader.Type == packets.Publish {
			all = append(all, pk)
		}
	}
	return all
}

func (d *device) payloads() (all []string) {
	for _, pk := range d.published() {
		all = append(all, string(pk.Payload))
	}
	return all
}

// gets waits until payloads are exactly want.
func (d *device) gets(want ...string) {
	d.t.Helper()
	for end := time.Now().Add(20 * time.Second); !slices.Equal(d.payloads(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatalf("got %q, want %q", d.payloads(), want)
		}
	}
}

// idle waits until nothing is left to be sent to a session, and it is live.
func (d *device) idle() {
	d.t.Helper()
	o := d.sess.out
	eventually(d.t, "the session is idle", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, f := range o.feeds {
			if !f.live {
				return false
			}
		}
		return !o.pumping && o.queue.len() == 0
	})
}
