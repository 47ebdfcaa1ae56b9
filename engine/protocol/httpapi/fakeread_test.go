package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

type fakeReader struct {
	f      *fake
	t      *fakeTopic
	at     int
	filter string
}

func (f *fake) OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.topic(topic)
	if err != nil {
		return nil, err
	}
	r := &fakeReader{f: f, t: t}
	if filter != "" {
		typ, ok := strings.CutPrefix(filter, "type == ")
		if r.filter, err = strconv.Unquote(typ); !ok || err != nil {
			return nil, event.Invalid("filter", fmt.Sprintf("%q: this fake knows type == \"x\" alone", filter))
		}
	}
	switch start.At {
	case event.Latest:
		r.at = len(t.recs)
	case event.Earliest:
		r.at = t.head
	case event.AtTime:
		for r.at = t.head; r.at < len(t.recs) && t.recs[r.at].ReceivedAt().Before(start.Time); {
			r.at++
		}
	case event.AtCursor:
		n, ok := strings.CutPrefix(start.Cursor, "c")
		if r.at, err = strconv.Atoi(n); !ok || err != nil {
			return nil, event.Invalid("cursor", fmt.Sprintf("%q is none of this topic's", start.Cursor))
		}
		if r.at < t.head {
			return nil, fmt.Errorf("cursor %q: %w; the earliest is c%d", start.Cursor, event.ErrGone, t.head)
		}
	}
	f.open++
	return r, nil
}

func (f *fake) OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (Reader, error) {
	return f.OpenTopic(ctx, name+".out", start, filter)
}

func (r *fakeReader) Next(ctx context.Context) (event.Record, error) {
	for {
		r.f.mu.Lock()
		grown := r.f.grown
		r.f.mu.Unlock()
		rec, ok, _, err := r.TryNext(ctx)
		if ok || err != nil {
			return rec, err
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *fakeReader) TryNext(ctx context.Context) (event.Record, bool, bool, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if r.at < r.t.head {
		return nil, false, false, fmt.Errorf("c%d: %w; the earliest is c%d", r.at, event.ErrGone, r.t.head)
	}
	for r.at < len(r.t.recs) {
		rec := r.t.recs[r.at]
		r.at++
		if r.filter == "" || rec.Attr(event.TagType) == r.filter {
			return rec, true, false, nil
		}
	}
	return nil, false, false, nil
}

func (r *fakeReader) Cursor() string { return "c" + strconv.Itoa(r.at) }

func (r *fakeReader) Close() {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.open--
}

func (f *fake) Event(ctx context.Context, topic string, pos event.Position) (event.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.topic(topic)
	if err != nil {
		return nil, err
	}
	if pos.Partition != 0 || pos.Offset >= uint64(len(t.recs)) {
		return nil, fmt.Errorf("event %s: %w", pos, event.ErrNotFound)
	}
	return t.recs[pos.Offset], nil
}

func (f *fake) Schema(ctx context.Context, topic string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.topic(topic)
	if err != nil {
		return nil, err
	}
	return t.schema, nil
}

// A subscription of this fake pulls from the topic of its name.
func (f *fake) Pull(ctx context.Context, sub string, max int, wait time.Duration) ([]event.Lease, error) {
	end := time.After(wait)
	for {
		f.mu.Lock()
		f.waited = wait
		grown := f.grown
		t, err := f.topic(sub)
		if err != nil {
			f.mu.Unlock()
			return nil, err
		}
		var out []event.Lease
		for i := 0; i < len(t.recs) && len(out) < max; i++ {
			id := sub + "/" + strconv.Itoa(i)
			if _, held := f.leases[id]; held {
				continue
			}
			f.leases[id] = t.recs[i]
			out = append(out, event.Lease{ID: id, Delivery: id, Attempt: 1, Deadline: f.epoch.Add(10 * time.Second), Event: t.recs[i]})
		}
		f.mu.Unlock()
		if len(out) > 0 || wait <= 0 {
			if f.pulled != nil && len(out) > 0 {
				f.pulled()
			}
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

func (f *fake) Unpull(sub string, leases []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range leases {
		delete(f.leases, id)
	}
	return nil
}

func (f *fake) Settle(ctx context.Context, sub string, leases []string, how event.Settling) (lost []event.Lost, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replied, f.waited = how.Reply, how.Delay+how.Deadline
	if f.fail != nil {
		return nil, f.fail
	}
	for _, id := range leases {
		if _, ok := f.leases[id]; !ok {
			lost = append(lost, event.Lost{Lease: id, Why: event.LostExpired})
		}
	}
	return lost, nil
}

func (f *fake) AckReply(ctx context.Context, sub string, leases []string, reply *event.Reply) ([]string, error) {
	_, err := f.Settle(ctx, sub, leases, event.Settling{Reply: reply})
	return nil, err
}

func (f *fake) Nack(ctx context.Context, sub string, leases []string, delay time.Duration) ([]string, error) {
	_, err := f.Settle(ctx, sub, leases, event.Settling{Verb: event.Nack, Delay: delay})
	return nil, err
}

func (f *fake) Extend(ctx context.Context, sub string, leases []string, d time.Duration) ([]string, error) {
	_, err := f.Settle(ctx, sub, leases, event.Settling{Verb: event.Extend, Deadline: d})
	return nil, err
}

func (f *fake) List(ctx context.Context, kind string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := []string{}
	for n := range f.docs[kind] {
		names = append(names, n)
	}
	slices.Sort(names)
	docs := []json.RawMessage{}
	for _, n := range names {
		docs = append(docs, f.docs[kind][n])
	}
	return json.Marshal(docs)
}

func (f *fake) Show(ctx context.Context, kind, name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.docs[kind][name]
	if d == nil {
		return nil, fmt.Errorf("%s %q: %w", kind, name, event.ErrNotFound)
	}
	return d, nil
}

func (f *fake) Create(ctx context.Context, kind string, doc []byte) ([]byte, error) {
	var x struct{ Name string }
	if err := json.Unmarshal(doc, &x); err != nil {
		return nil, event.Invalid("", err.Error())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.docs[kind][x.Name] != nil {
		return nil, fmt.Errorf("%s %q exists: %w with millrace.yaml:7", kind, x.Name, event.ErrConflict)
	}
	f.docs[kind][x.Name] = append([]byte{}, doc...)
	return f.docs[kind][x.Name], nil
}

func (f *fake) Change(ctx context.Context, kind, name string, patch []byte) ([]byte, error) {
	doc, err := f.Show(ctx, kind, name)
	if err != nil {
		return nil, err
	}
	m, p := map[string]any{}, map[string]any{}
	if err := json.Unmarshal(doc, &m); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return nil, event.Invalid("", err.Error())
	}
	for k, v := range p {
		m[k] = v
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.docs[kind][name], err = json.Marshal(m)
	return f.docs[kind][name], err
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

func (f *fake) PushFunction(ctx context.Context, name, contentType string, body []byte) ([]byte, error) {
	doc := fmt.Appendf(nil, `{"name":%q,"fake":true,"contentType":%q,"bytes":%d}`, name, contentType, len(body))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.docs["functions"][name] = doc
	return doc, nil
}

func (f *fake) Rules(ctx context.Context) ([]byte, error) {
	return []byte(`{"version":1,"topics":{}}`), nil
}

func (f *fake) CheckRules(ctx context.Context, yaml []byte) error {
	if strings.Contains(string(yaml), "webhok") {
		return event.Invalid("rules.yaml:7:5", `unknown sink "webhok"; did you mean "webhook"?`)
	}
	return nil
}

func (f *fake) Seek(ctx context.Context, sub string, to event.Start) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seeks = append(f.seeks, to)
	return f.fail
}

func (f *fake) PauseFor(ctx context.Context, sub, reason string) error {
	f.mu.Lock()
	f.paused = append(f.paused, reason)
	f.mu.Unlock()
	_, err := f.Show(ctx, "subscriptions", sub)
	return err
}
func (f *fake) Resume(ctx context.Context, sub string) error {
	_, err := f.Show(ctx, "subscriptions", sub)
	return err
}

func (f *fake) Ready(ctx context.Context, details bool) ([]byte, error) {
	if !details {
		return nil, f.notWell
	}
	return []byte(`{"status":"a fake"}`), f.notWell
}

func (f *fake) Has(kind access.Kind, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.topics[name] != nil || f.docs[kind.String()+"s"][name] != nil
}
