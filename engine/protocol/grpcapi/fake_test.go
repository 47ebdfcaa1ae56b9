package grpcapi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// fake is a Backend in memory: topics of one partition, a pull subscription "workers" over the topic orders, a stream
// subscription "out" over it, and definitions that are kept as they come.
type fake struct {
	mu      sync.Mutex
	topics  map[string][]event.Record
	head    int           // what lies below was overtaken, in all topics
	grown   chan struct{} // closed at every change
	made    int
	commits int
	leased  map[string]string // lease: "held" or why it is not held any more
	next    int               // of workers
	due     []int             // given back
	lease   int
	open    int // readers
	docs    map[string]map[string]string
	notWell error
	hold    chan struct{} // publishing waits until it is closed; nil: does not
	fail    error         // of publishing
	seeks   []event.Start
	reply   *event.Reply
}

func newFake(topics ...string) *fake {
	f := &fake{topics: map[string][]event.Record{}, grown: make(chan struct{}), leased: map[string]string{},
		docs: map[string]map[string]string{"topics": {}, "subscriptions": {}, "functions": {}}}
	for _, name := range topics {
		f.topics[name] = nil
		f.docs["topics"][name] = fmt.Sprintf(`{"name":%q}`, name)
	}
	f.docs["subscriptions"]["workers"] = `{"name":"workers"}`
	f.docs["subscriptions"]["out"] = `{"name":"out"}`
	return f
}

func (f *fake) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.grown)
	f.grown = make(chan struct{})
}

func (f *fake) get(what func() int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return what()
}

func (f *fake) missing(name string) error {
	return fmt.Errorf("topic %q: %w; did you mean %q?", name, event.ErrNotFound, slices.Sorted(maps.Keys(f.topics))[0])
}

func (f *fake) Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) (err error) {
	f.mu.Lock()
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	f.change(func() {
		f.commits++
		if _, ok := f.topics[topic]; !ok {
			err = f.missing(topic)
			return
		}
		if err = f.fail; err != nil {
			return
		}
		for i := range evs {
			e := &evs[i]
			for at, v := range map[*string]string{&e.Source: "/topics/" + topic, &e.Type: "event", &e.ID: "made-" + strconv.Itoa(f.made)} {
				if *at == "" {
					*at = v
				}
			}
			f.made++
			if err = e.Validate(event.Limits{}); err != nil {
				if len(evs) > 1 {
					err = event.At(fmt.Sprintf("events[%d]", i), err)
				}
				return
			}
		}
		for i := range evs {
			rec := event.Record(evs[i].AppendRecord(nil))
			pos[i] = event.Position{Offset: uint64(len(f.topics[topic]))}
			rec.SetPlace(pos[i], time.Date(2026, 1, 2, 3, 4, 5, len(f.topics[topic]), time.UTC).UnixNano())
			f.topics[topic] = append(f.topics[topic], rec)
		}
	})
	return err
}

func (f *fake) Ask(ctx context.Context, topic string, evs []event.Event, pos []event.Position, end <-chan struct{}) (*event.Reply, error) {
	if err := f.Publish(ctx, topic, evs, pos); err != nil {
		return nil, err
	}
	if f.reply == nil {
		<-end
	}
	return f.reply, nil
}

func (f *fake) Reply(ctx context.Context, topic string, pos event.Position, end <-chan struct{}) (*event.Reply, error) {
	if f.reply == nil {
		return nil, fmt.Errorf("event %s has no reply yet: %w", pos, event.ErrNotFound)
	}
	return f.reply, nil
}

func (f *fake) DryRun(ctx context.Context, topic string, evs []event.Event) ([][]event.Match, error) {
	out := make([][]event.Match, len(evs))
	for i := range out {
		out[i] = []event.Match{{Subscription: "workers", Matched: true, Why: "no filter"}, {Subscription: "out", Why: "a filter"}}
	}
	return out, nil
}

func (f *fake) Event(ctx context.Context, topic string, pos event.Position) (event.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if pos.Offset >= uint64(len(f.topics[topic])) {
		return nil, fmt.Errorf("event %s: %w", pos, event.ErrNotFound)
	}
	return f.topics[topic][pos.Offset], nil
}

type fakeReader struct {
	f      *fake
	topic  string
	at     int
	filter string
}

func (f *fake) OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.topics[topic]; !ok {
		return nil, f.missing(topic)
	}
	r := &fakeReader{f: f, topic: topic, filter: filter}
	switch start.At {
	case event.Latest:
		r.at = len(f.topics[topic])
	case event.Earliest:
		r.at = f.head
	case event.AtTime:
		for r.at < len(f.topics[topic]) && f.topics[topic][r.at].ReceivedAt().Before(start.Time) {
			r.at++
		}
	case event.AtCursor:
		n, err := strconv.Atoi(start.Cursor)
		if err != nil {
			return nil, event.Invalid("cursor", fmt.Sprintf("%q is none of this topic's", start.Cursor))
		}
		if r.at = n; n < f.head {
			return nil, fmt.Errorf("cursor %d: %w: the earliest is %d", n, event.ErrGone, f.head)
		}
	}
	f.open++
	return r, nil
}

func (f *fake) OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (Reader, error) {
	switch name {
	case "out":
		return f.OpenTopic(ctx, "orders", start, filter)
	case "workers":
		return nil, fmt.Errorf("subscription workers delivers by pull: %w", event.ErrConflict)
	}
	return nil, fmt.Errorf("subscription %q: %w; did you mean \"workers\"?", name, event.ErrNotFound)
}

func (r *fakeReader) TryNext(ctx context.Context) (event.Record, bool, bool, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if r.at < r.f.head {
		return nil, false, false, fmt.Errorf("cursor %d: %w: the earliest is %d", r.at, event.ErrGone, r.f.head)
	}
	for r.at < len(r.f.topics[r.topic]) {
		rec := r.f.topics[r.topic][r.at]
		r.at++
		if r.filter == "" || rec.Attr(event.TagSubject) == r.filter {
			return rec, true, false, nil
		}
		if r.at%10 == 0 {
			return nil, false, true, nil
		}
	}
	return nil, false, false, nil
}

func (r *fakeReader) Next(ctx context.Context) (event.Record, error) {
	for {
		r.f.mu.Lock()
		grown := r.f.grown
		r.f.mu.Unlock()
		if rec, ok, more, err := r.TryNext(ctx); ok || err != nil {
			return rec, err
		} else if more {
			continue
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *fakeReader) Cursor() string { return strconv.Itoa(r.at) }

func (r *fakeReader) Close() { r.f.change(func() { r.f.open-- }) }

func (f *fake) Pull(ctx context.Context, name string, max int, wait time.Duration) ([]event.Lease, error) {
	if name != "workers" {
		return nil, fmt.Errorf("subscription %q: %w; did you mean \"workers\"?", name, event.ErrNotFound)
	}
	end := time.After(wait)
	for {
		var out []event.Lease
		f.mu.Lock()
		grown := f.grown
		for len(out) < max && (len(f.due) > 0 || f.next < len(f.topics["orders"])) {
			at := f.next
			if len(f.due) > 0 {
				at, f.due = f.due[0], f.due[1:]
			} else {
				f.next++
			}
			f.lease++
			id := fmt.Sprintf("lease-%d-%d", at, f.lease)
			f.leased[id] = "held"
			out = append(out, event.Lease{ID: id, Delivery: fmt.Sprint("delivery-", at), Attempt: 1, Deadline: time.Now().Add(30 * time.Second), Event: f.topics["orders"][at]})
		}
		f.mu.Unlock()
		if len(out) > 0 || max == 0 || wait == 0 {
			return out, nil
		}
		select {
		case <-grown:
		case <-end:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *fake) back(id, why string) {
	f.leased[id] = why
	at, _ := strconv.Atoi(strings.Split(id, "-")[1])
	f.due = append(f.due, at)
}

func (f *fake) Unpull(name string, leases []string) error {
	f.change(func() {
		for _, id := range leases {
			f.back(id, "unpulled")
		}
	})
	return nil
}

func (f *fake) Settle(ctx context.Context, name string, leases []string, how event.Settling) (lost []event.Lost, err error) {
	f.change(func() {
		for _, id := range leases {
			switch is := f.leased[id]; {
			case is == "":
				lost = append(lost, event.Lost{Lease: id, Why: event.LostUnknown})
			case is == "acked":
				lost = append(lost, event.Lost{Lease: id, Why: event.LostSettled})
			case is != "held":
				lost = append(lost, event.Lost{Lease: id, Why: event.LostReturned})
			case how.Verb == event.Ack:
				f.leased[id] = "acked"
			case how.Verb == event.Nack || how.Deadline == 0:
				f.back(id, "nacked")
			}
		}
	})
	return lost, nil
}

func (f *fake) Invoke(ctx context.Context, function, version string, ev *event.Event) (*event.Invocation, error) {
	if version != "" {
		return nil, event.Bad(event.ErrFunction, "", "the function trapped: unreachable")
	}
	return &event.Invocation{Fuel: 7, Took: int64(time.Millisecond), Reply: &event.Reply{Status: 201, ContentType: "text/plain", Data: []byte("made")}, Results: []event.Invoked{
		{Verdict: "emit", Topic: "orders", Event: event.Record(ev.AppendRecord(nil))}, {Verdict: "reject", Code: 3, Reason: "no"}, {Verdict: "retry", Delay: 5}, {Verdict: "pass"}, {Verdict: "drop"}}}, nil
}

func (f *fake) Has(kind access.Kind, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.docs[kind.String()+"s"][name]
	return ok
}

func (f *fake) List(ctx context.Context, kind string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	docs := []json.RawMessage{}
	of := map[string]access.Kind{"topics": access.Topic, "subscriptions": access.Subscription, "functions": access.Function}[kind]
	for name, doc := range f.docs[kind] {
		if access.From(ctx).Sees(of, name) {
			docs = append(docs, json.RawMessage(doc))
		}
	}
	return json.Marshal(docs)
}

func (f *fake) Show(ctx context.Context, kind, name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.docs[kind][name] == "" {
		return nil, fmt.Errorf("%s %q: %w; did you mean \"secret\"?", kind, name, event.ErrNotFound)
	}
	return []byte(f.docs[kind][name]), nil
}

func (f *fake) Create(ctx context.Context, kind string, doc []byte) ([]byte, error) {
	var x struct{ Name string }
	if err := json.Unmarshal(doc, &x); err != nil || x.Name == "" {
		return nil, event.Invalid("name", "is missing")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.docs[kind][x.Name] != "" {
		return nil, fmt.Errorf("%s %q exists: %w", kind, x.Name, event.ErrConflict)
	}
	f.docs[kind][x.Name] = string(doc)
	return doc, nil
}

func (f *fake) Change(ctx context.Context, kind, name string, patch []byte) ([]byte, error) {
	if _, err := f.Show(ctx, kind, name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.docs[kind][name] = fmt.Sprintf(`{"name":%q,"patch":%s}`, name, patch)
	return []byte(f.docs[kind][name]), nil
}

func (f *fake) Delete(ctx context.Context, kind, name string) error {
	if _, err := f.Show(ctx, kind, name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.docs[kind], name)
	return nil
}

func (f *fake) RulesRevision() string                     { return "7" }
func (f *fake) Rules(ctx context.Context) ([]byte, error) { return []byte(`{"topics":{}}`), nil }

func (f *fake) CheckRules(ctx context.Context, yaml []byte) error {
	if strings.Contains(string(yaml), "webhok") {
		return &event.Faults{Is: event.ErrInvalid, List: []event.Fault{{At: "rules.yaml:7:5", Detail: `unknown sink "webhok"`}, {At: "rules.yaml:9:1", Detail: "another"}}}
	}
	return nil
}

func (f *fake) Seek(ctx context.Context, name string, to event.Start) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seeks = append(f.seeks, to)
	return nil
}

func (f *fake) PauseFor(ctx context.Context, name, reason string) error {
	_, err := f.Show(ctx, "subscriptions", name)
	return err
}
func (f *fake) Resume(ctx context.Context, name string) error { return f.PauseFor(ctx, name, "") }

func (f *fake) Ready(ctx context.Context, details bool) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if details {
		return []byte(`{"status":"a fake"}`), f.notWell
	}
	return nil, f.notWell
}
