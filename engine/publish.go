package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/zeebo/xxh3"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// publication is what a Publish needs besides the caller's events; pooled.
type publication struct {
	batch storage.Batch
	where []place // of each event in batch
	hash  xxh3.Hasher
}

type place struct{ append, entry int }

var publications = sync.Pool{New: func() any { return new(publication) }}

// Publish stores all events in a topic, or none, and fills in pos, which has their number; they are durable
// when it returns nil. It fills in the attributes that a client left out, in the caller's events: id, type,
// source and time. Events may be borrowed: nothing is kept of them.
//
// Errors: event.ErrNotFound (topic), ErrInvalid, ErrTooLarge, ErrSchema, ErrConflict (an id that was used
// for other content), ErrDenied (the sealed topic), ErrFull, ErrUnavailable; where one of several events is at fault, with
// its index.
func (e *Engine) Publish(ctx context.Context, name string, evs []event.Event, pos []event.Position) error {
	if err := e.sealed(name); err != nil {
		return err
	}
	return e.publish(ctx, name, evs, pos)
}

// PublishSealed is Publish for who keeps the sealed topic, to that topic.
func (e *Engine) PublishSealed(ctx context.Context, evs []event.Event, pos []event.Position) error {
	return e.publish(ctx, e.o.Sealed, evs, pos)
}

func (e *Engine) publish(ctx context.Context, name string, evs []event.Event, pos []event.Position) error {
	if e.draining.Load() {
		return fmt.Errorf("the router is shutting down: %w", event.ErrUnavailable)
	}
	t := e.plan.Load().topics[name]
	if t == nil {
		var err error
		if t, err = e.lookup(ctx, name); err != nil {
			return err
		}
	}
	if len(evs) > e.o.Limits.Events {
		return event.Bad(event.ErrTooLarge, "events", fmt.Sprintf("%d events in one request; the limit is %d: split it", len(evs), e.o.Limits.Events))
	}
	p := publications.Get().(*publication)
	defer p.recycle()
	e.turn.Add(1)
	bytes := 0
	for i := range evs {
		if err := e.admit(t, p, &evs[i]); err != nil {
			if len(evs) > 1 {
				return event.At(fmt.Sprintf("events[%d]", i), err)
			}
			return err
		}
		bytes += len(evs[i].Data)
	}
	if err := e.store.Commit(ctx, &p.batch); err != nil {
		return p.explain(err, len(evs))
	}
	for i, w := range p.where {
		pos[i] = p.batch.Appends[w.append].Entries[w.entry].Position
	}
	e.o.Observer.Published(t.name, len(evs), bytes)
	return nil
}

// admit checks an event, fills in what is missing and enters it into the batch.
func (e *Engine) admit(t *topic, p *publication, ev *event.Event) error {
	entry := storage.Entry{Event: ev}
	ev.Topic, ev.Hops = t.name, 0
	if ev.ClientID {
		// What the client sent is hashed before anything is filled in: a repeat is told by that.
		entry.Client, entry.Content = true, p.content(ev)
	}
	e.fill(t, ev)
	if err := ev.Validate(e.o.Limits); err != nil {
		return err
	}
	if err := checkDelay(ev, e.now()); err != nil {
		return err
	}
	if d := t.def.Load(); d.schema != nil {
		if err := d.checkSchema(ev.Data); err != nil {
			return err
		}
	}
	if entry.Client {
		p.hash.Reset()
		hashID(&p.hash, ev)
		entry.ID = p.hash.Sum128().Bytes()
	}
	p.add(t.parts[e.place(t, ev, ev.ClientID)].id, entry)
	return nil
}

func (p *publication) add(id storage.LogID, entry storage.Entry) {
	b := &p.batch
	for i := range b.Appends {
		if b.Appends[i].Log == id {
			p.where = append(p.where, place{i, len(b.Appends[i].Entries)})
			b.Appends[i].Entries = append(b.Appends[i].Entries, entry)
			return
		}
	}
	n := len(b.Appends)
	if n < cap(b.Appends) { // keep the entries' memory of an earlier use
		b.Appends = b.Appends[:n+1]
		b.Appends[n] = storage.Append{Log: id, Entries: append(b.Appends[n].Entries[:0], entry)}
	} else {
		b.Appends = append(b.Appends, storage.Append{Log: id, Entries: []storage.Entry{entry}})
	}
	p.where = append(p.where, place{n, 0})
}

func (p *publication) recycle() {
	p.reset()
	publications.Put(p)
}

func (p *publication) reset() {
	for i := range p.batch.Appends {
		clear(p.batch.Appends[i].Entries)
	}
	p.batch.Appends, p.where = p.batch.Appends[:0], p.where[:0]
}

// explain says which event a refusal is about.
func (p *publication) explain(err error, n int) error {
	var c *storage.ConflictError
	if !errors.As(err, &c) {
		return fmt.Errorf("store: %w", err)
	}
	for i, w := range p.where {
		if w.append == c.Append && w.entry == c.Entry {
			id := p.batch.Appends[w.append].Entries[w.entry].Event.ID
			fault := event.Bad(event.ErrConflict, "id", fmt.Sprintf("%.80q was used within the dedupe window for other content, at %s; use another id", id, c.Position))
			if n > 1 {
				return event.At(fmt.Sprintf("events[%d]", i), fault)
			}
			return fault
		}
	}
	return err
}

// content hashes what a client sent.
func (p *publication) content(ev *event.Event) uint64 {
	h := &p.hash
	h.Reset()
	for _, s := range [...]string{ev.Source, ev.Type, ev.Subject, ev.DataContentType, ev.DataSchema, ev.Time, ev.PartitionKey, ev.TraceParent} {
		_, _ = h.WriteString(s)
		_, _ = h.WriteString("\x00")
	}
	for _, a := range ev.Extensions {
		if event.IsWay(a.Name) { // by whichever way it comes it is the same event
			continue
		}
		_, _ = h.WriteString(a.Name)
		_, _ = h.WriteString("\x00")
		_, _ = h.WriteString(a.Value)
		_, _ = h.WriteString("\x00")
	}
	if ev.Data == nil {
		_, _ = h.WriteString("none")
	}
	_, _ = h.Write(ev.Data)
	return h.Sum64()
}

func (e *Engine) fill(t *topic, ev *event.Event) {
	if ev.ID == "" {
		ev.ID = newID(e.now())
	}
	if ev.Type == "" {
		ev.Type = "event"
	}
	if ev.Source == "" {
		ev.Source = t.source
	}
	if ev.Time == "" {
		ev.Time = e.clock.text(e.now())
	}
}

// newID is a ULID. Its random part comes from the runtime's generator, which takes no global lock.
func newID(now time.Time) string {
	var id ulid.ULID
	_ = id.SetTime(ulid.Timestamp(now)) // fails past the year 10889
	be.PutUint16(id[6:], uint16(rand.Uint32()))
	be.PutUint64(id[8:], rand.Uint64())
	return id.String()
}

// timeText is the current time in RFC 3339, made once a millisecond: thousands of events share it.
type timeText struct{ last atomic.Pointer[stamped] }

type stamped struct {
	ms   int64
	text string
}

func (t *timeText) text(now time.Time) string {
	ms := now.UnixMilli()
	if s := t.last.Load(); s != nil && s.ms == ms {
		return s.text
	}
	s := &stamped{ms, time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")}
	t.last.Store(s)
	return s.text
}

// lookup finds a topic, or makes it where Options.AutoCreate says so.
func (e *Engine) lookup(ctx context.Context, name string) (*topic, error) {
	t, err := e.topic(name)
	if err == nil || !e.o.AutoCreate || !errors.Is(err, event.ErrNotFound) {
		return t, err
	}
	name = strings.Clone(name)                    // it may be a request's, and the topic stays
	return e.autoCreate(ctx, strings.Clone(name)) // it may be borrowed
}

// autoCreate makes a topic with defaults unless it exists by now: one that was defined meanwhile stays as it
// is. It never waits for Close, which may wait for the caller.
func (e *Engine) autoCreate(ctx context.Context, name string) (*topic, error) {
	for !e.applying.TryLock() {
		if e.draining.Load() || ctx.Err() != nil {
			return nil, fmt.Errorf("topic %s cannot be made now: %w", name, event.ErrUnavailable)
		}
		pause(ctx, time.Millisecond)
	}
	defer e.applying.Unlock()
	if t := e.plan.Load().topics[name]; t != nil {
		return t, nil
	}
	if err := e.createTopic(ctx, event.Topic{Name: name}, nil); err != nil {
		return nil, err
	}
	return e.topic(name)
}

// CreateTopic makes a topic, or changes one's bounds; the number of partitions is fixed when it is made.
func (e *Engine) CreateTopic(ctx context.Context, def event.Topic, ops ...storage.Op) error {
	e.applying.Lock()
	defer e.applying.Unlock()
	return e.createTopic(ctx, def, ops)
}

func (e *Engine) createTopic(ctx context.Context, def event.Topic, ops []storage.Op) error {
	if e.draining.Load() {
		return fmt.Errorf("the router is shutting down: %w", event.ErrUnavailable)
	}
	old := e.plan.Load()
	c := &change{next: *old, ops: ops}
	c.next.topics = cloneTopics(old.topics)
	err := e.planTopic(ctx, c, def.WithDefaults())
	if err == nil {
		err = e.commitChange(ctx, c, Spec{})
	}
	if err != nil {
		for _, undo := range c.undo {
			undo()
		}
		return err
	}
	e.redefine(context.WithoutCancel(ctx), c)
	e.plan.Store(&c.next)
	for _, t := range c.topics {
		e.startTopic(t)
	}
	return nil
}

func cloneTopics(m map[string]*topic) map[string]*topic {
	next := make(map[string]*topic, len(m)+1)
	for k, v := range m {
		next[k] = v
	}
	return next
}

// DryRun stores nothing and says for each event which of the topic's subscriptions would match, and why.
func (e *Engine) DryRun(_ context.Context, name string, evs []event.Event) ([][]event.Match, error) {
	t, err := e.topic(name)
	if err != nil {
		return nil, err
	}
	var p publication
	all := make([][]event.Match, len(evs))
	for i := range evs {
		if err := e.admit(t, &p, &evs[i]); err != nil {
			return nil, event.At(fmt.Sprintf("events[%d]", i), err)
		}
		rec := event.Record(evs[i].AppendRecord(nil))
		rec.SetPlace(event.Position{}, e.now().UnixNano())
		all[i] = []event.Match{}
		for _, s := range t.parts[0].feeds.Load().subs {
			x := s.config.Load().Program.Explain(rec)
			all[i] = append(all[i], event.Match{Subscription: s.name, Matched: x.Matched, Why: x.String()})
		}
	}
	return all, nil
}
