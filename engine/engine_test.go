package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/pebblestore"
)

// world is an engine over a real store on an in-memory file system, that can be restarted.
type world struct {
	t     testing.TB
	fs    vfs.FS
	o     Options
	store *pebblestore.Store
	e     *Engine
	spec  Spec
	now   func() time.Time // the store's clock; nil: time.Now
	wrap  func(storage.Store) storage.Store
}

func newWorld(t testing.TB, o Options) *world {
	w := &world{t: t, fs: vfs.NewMem(), o: o}
	w.open()
	t.Cleanup(w.stop)
	return w
}

func (w *world) open() {
	w.t.Helper()
	store, err := pebblestore.Open(w.t.Context(), pebblestore.Options{Dir: "store", FS: w.fs, Now: w.now})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = store
	o := w.o
	o.Store = store
	if w.wrap != nil {
		o.Store = w.wrap(store)
	}
	if o.Flush == 0 {
		o.Flush = 5 * time.Millisecond
	}
	if w.e, err = Open(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) stop() {
	w.t.Helper()
	if w.e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.e.Close(ctx); err != nil {
		w.t.Errorf("close engine: %v", err)
	}
	if err := w.store.Close(); err != nil {
		w.t.Errorf("close store: %v", err)
	}
	w.e = nil
}

// restart closes everything and opens it again with the same definitions.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.open()
	w.apply(w.spec)
}

func (w *world) apply(spec Spec) {
	w.t.Helper()
	w.spec = spec
	if err := w.e.Apply(w.t.Context(), spec); err != nil {
		w.t.Fatal(err)
	}
}

// publish stores events whose ids and data are given as "id" or "id=json".
func (w *world) publish(topic string, events ...string) []event.Position {
	w.t.Helper()
	evs := make([]event.Event, len(events))
	for i, s := range events {
		id, data, _ := strings.Cut(s, "=")
		evs[i] = event.Event{ID: id, ClientID: true}
		if data != "" {
			evs[i].Data = []byte(data)
		}
	}
	pos := make([]event.Position, len(evs))
	if err := w.e.Publish(w.t.Context(), topic, evs, pos); err != nil {
		w.t.Fatal(err)
	}
	return pos
}

// ids reads the ids of all events of a topic.
func (w *world) ids(topic string) []string {
	w.t.Helper()
	var ids []string
	for _, r := range w.records(topic) {
		ids = append(ids, strings.Clone(r.Attr(event.TagID)))
	}
	return ids
}

func (w *world) records(topic string) []event.Record {
	w.t.Helper()
	r, err := w.e.OpenTopic(w.t.Context(), topic, event.Start{At: event.Earliest}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	var recs []event.Record
	for {
		rec, ok, _, err := r.TryNext(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		if !ok {
			return recs
		}
		recs = append(recs, rec)
	}
}

func (w *world) info(name string) SubscriptionInfo {
	w.t.Helper()
	info, err := w.e.Subscription(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

// settled reports whether a subscription has nothing left to do. Parked deliveries leave the count when their
// commit begins, so it waits for the one under way.
func (w *world) settled(name string) bool {
	s := w.e.plan.Load().subs[name]
	s.commits.Lock()
	defer s.commits.Unlock()
	i := s.info()
	return i.Lag == 0 && i.Outstanding == 0 && i.Parked == 0
}

// eventually polls a condition, for at most a minute: a machine may be busy with other things.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// recorder is a sink of the test's own, so that it decides what each delivery comes to.
type recorder struct {
	answer func(d event.Delivery) error // nil: every delivery succeeds

	mu     sync.Mutex
	got    []string // ids, in order of arrival
	dids   []string // delivery ids
	closed int
}

func (r *recorder) Deliver(ctx context.Context, ds []event.Delivery) error {
	d := ds[0]
	var err error
	if r.answer != nil {
		err = r.answer(d)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dids = append(r.dids, strings.Clone(d.ID))
	if err == nil {
		r.got = append(r.got, strings.Clone(d.Event.Attr(event.TagID)))
	}
	return err
}

func (r *recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed++
	return nil
}

func (r *recorder) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *recorder) deliveryIDs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.dids)
}

func push(name, topic, filter string, sink Sink) SubscriptionSpec {
	s := SubscriptionSpec{
		Subscription: event.Subscription{Name: name, Topic: topic, DeadLetter: name + ".dead", Filter: filter, Start: event.Start{At: event.Earliest},
			Retry: event.RetryPolicy{Attempts: 3, Schedule: []time.Duration{10 * time.Millisecond}}},
		OpenSink: func(context.Context) (Sink, error) { return sink, nil }, Fingerprint: name + topic + filter,
	}
	if filter != "" {
		var err error
		if s.Program, err = filters.Compile(filter); err != nil {
			panic(err)
		}
	}
	return s
}

// specOf makes a specification with the topics that the subscriptions need.
func specOf(subs ...SubscriptionSpec) Spec {
	var spec Spec
	seen := map[string]bool{"": true}
	for _, s := range subs {
		for _, t := range []event.Topic{{Name: s.Topic}, {Name: s.Deliver.Topic}, {Name: s.DeadLetter, WhenFull: event.Reject}} {
			if !seen[t.Name] {
				seen[t.Name] = true
				spec.Topics = append(spec.Topics, t)
			}
		}
	}
	spec.Subscriptions = subs
	return spec
}

func number(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s%05d", prefix, i)
	}
	return ids
}

func TestOneEventsWay(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{}
	w.apply(specOf(push("big", "orders", "data.total > 100", sink)))
	w.publish("orders", `a={"total":40}`, `b={"total":250}`, `c={}`)
	eventually(t, "b is delivered", func() bool { return slices.Equal(sink.ids(), []string{"b"}) })
	if got, want := sink.deliveryIDs()[0], "big:orders@1:0-1:0"; got != want {
		t.Errorf("webhook-id %q, want %q", got, want)
	}
	eventually(t, "everything is settled", func() bool { i := w.info("big"); return i.Lag == 0 && i.Outstanding == 0 })
}

func TestPublishFillsWhatIsMissing(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	evs := []event.Event{{Data: []byte("1")}}
	if err := w.e.Publish(t.Context(), "orders", evs, make([]event.Position, 1)); err != nil {
		t.Fatal(err)
	}
	rec := w.records("orders")[0]
	if len(evs[0].ID) != 26 || rec.Attr(event.TagID) != evs[0].ID {
		t.Errorf("id %q in the caller's event, %q stored; want one ULID", evs[0].ID, rec.Attr(event.TagID))
	}
	if rec.Attr(event.TagType) != "event" || rec.Attr(event.TagSource) != "/topics/orders" || rec.Attr(event.TagTime) == "" {
		t.Errorf("type %q, source %q, time %q", rec.Attr(event.TagType), rec.Attr(event.TagSource), rec.Attr(event.TagTime))
	}
}

func TestRepeatsAndConflicts(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	first := w.publish("orders", "a=1", "b=2")
	if again := w.publish("orders", "b=2", "c=3"); again[0] != first[1] {
		t.Errorf("the repeat lies at %v, the first at %v", again[0], first[1])
	}
	err := w.e.Publish(t.Context(), "orders", []event.Event{{ID: "d", ClientID: true}, {ID: "a", ClientID: true, Data: []byte("9")}}, make([]event.Position, 2))
	if !errors.Is(err, event.ErrConflict) || !strings.Contains(err.Error(), "events[1]") {
		t.Errorf("an id with other content: %v; want a conflict that names events[1]", err)
	}
	if got := w.ids("orders"); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("stored %v: a refused request must store nothing", got)
	}
}

// A client that repeats an event over MQTT sends it later, and maybe with another QoS, or under another name: what the router
// notes of that is no other content.
func TestRepeatsByAnotherWay(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	publish := func(value string, names ...string) error {
		ev := event.Event{ID: "a", ClientID: true, Data: []byte("1")}
		for _, name := range names {
			ev.Extensions = append(ev.Extensions, event.Attribute{Name: name, Value: value})
		}
		return w.e.Publish(t.Context(), "orders", []event.Event{ev}, make([]event.Position, 1))
	}
	way := []string{"mqtttopic", "mqttqos", "mqttexpiry", "mqttretain", "mqttfrom"}
	for _, err := range []error{publish("1", way...), publish("2", way...), publish("1")} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := publish("1", "color"); !errors.Is(err, event.ErrConflict) {
		t.Errorf("another extension: %v; want a conflict", err)
	}
	if got := w.ids("orders"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("stored %v", got)
	}
}

func TestUnknownTopic(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	err := w.e.Publish(t.Context(), "ordes", []event.Event{{}}, make([]event.Position, 1))
	if !errors.Is(err, event.ErrNotFound) || !strings.Contains(err.Error(), `did you mean "orders"`) {
		t.Errorf("%v; want not found with the nearest name", err)
	}
}

func TestRestartDeliversWhatWasNotSettled(t *testing.T) {
	w := newWorld(t, Options{})
	block := make(chan struct{})
	var open sync.Once
	sink := &recorder{answer: func(d event.Delivery) error {
		if d.Event.Attr(event.TagID) == "b" {
			<-block
			return errors.New("aborted")
		}
		return nil
	}}
	defer open.Do(func() { close(block) })
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", "a", "b", "c")
	eventually(t, "a and c", func() bool { return len(sink.ids()) == 2 })
	eventually(t, "the cursor is written", func() bool {
		row, err := w.store.Load(t.Context(), tableCursors, key32x2(w.e.plan.Load().subs["s"].serial, 0))
		return err == nil && string(row) == string((&cursor{out: pending{list: []mark{{off: 1}}, live: 1}}).appendRow(nil, 3))
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // the drain is over at once: b is aborted
	time.AfterFunc(50*time.Millisecond, func() { open.Do(func() { close(block) }) })
	if err := w.e.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	again := &recorder{}
	w.open()
	w.apply(specOf(push("s", "orders", "", again)))
	eventually(t, "b again", func() bool { return len(again.ids()) > 0 && w.info("s").Outstanding == 0 })
	if got := again.ids(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("after the restart %v were delivered, want b alone", got)
	}
}

func TestIdleSubscriptionsCostOneRow(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{}
	subs := []SubscriptionSpec{push("busy", "orders", `data.k == "yes"`, sink)}
	for i := range 500 {
		subs = append(subs, push(fmt.Sprintf("idle%d", i), "orders", fmt.Sprintf(`data.k == "no%d"`, i), sink))
	}
	for i := range subs {
		subs[i].DeadLetter = "dead"
	}
	w.apply(specOf(subs...))
	for range 20 {
		w.publish("orders", fmt.Sprintf(`%s={"k":"yes"}`, newID(time.Now())))
	}
	eventually(t, "20 deliveries", func() bool { return len(sink.ids()) == 20 })
	rows := func(table storage.Table) (n int) {
		err := w.store.Scan(t.Context(), table, nil, nil, func(_, _ []byte) error { n++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the checkpoint covers all", func() bool {
		v, err := w.store.Load(t.Context(), tableCheckpoints, key32x2(w.e.plan.Load().topics["orders"].serial, 0))
		return err == nil && len(v) == 8 && be.Uint64(v) == 20 && rows(tableCursors) == 0
	})
	w.restart()
	eventually(t, "all have caught up", func() bool { return w.info("idle7").Lag == 0 && w.info("busy").Lag == 0 })
	if n := len(sink.ids()); n != 20 {
		t.Errorf("%d deliveries after the restart, want the 20 from before", n)
	}
}

// Names and filters may be borrowed from a request whose memory is used again.
func TestBorrowedNamesAreNotKept(t *testing.T) {
	w := newWorld(t, Options{AutoCreate: true})
	w.apply(Spec{})
	name := []byte("orders")
	if err := w.e.Publish(t.Context(), unsafe.String(&name[0], len(name)), []event.Event{{Data: []byte("1")}}, make([]event.Position, 1)); err != nil {
		t.Fatal(err)
	}
	filter := []byte(`type == "event"`)
	r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.Earliest}, unsafe.String(&filter[0], len(filter)))
	if err != nil {
		t.Fatal(err)
	}
	copy(name, "XXXXXX")
	copy(filter, "XXXXXXXXXXXXXXX")
	w.publish("orders", "a")
	if n := len(w.ids("orders")); n != 2 {
		t.Errorf("%d events in topic orders", n)
	}
	if _, ok, _, err := r.TryNext(t.Context()); !ok || err != nil {
		t.Errorf("the filter does not match any more: %v", err)
	}
}
