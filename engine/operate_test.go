package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

func TestPauseSurvivesARestart(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink)))
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "a", "b")
	w.restart()
	if i := w.info("s"); i.State != "paused" || i.Since == nil {
		t.Fatalf("after a restart: %q since %v", i.State, i.Since)
	}
	eventually(t, "the events are read", func() bool { return w.info("s").Outstanding == 2 })
	if got := sink.ids(); len(got) != 0 {
		t.Fatalf("a paused subscription delivered %v", got)
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both", func() bool { return len(sink.ids()) == 2 })
}

func TestSeek(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink)))
	want := number("e", 50)
	w.publish("orders", want...)
	eventually(t, "all", func() bool { return len(sink.ids()) == 50 })
	r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.Earliest}, "")
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if _, err := r.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.AtCursor, Cursor: r.Cursor()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last 20 again", func() bool { return len(sink.ids()) == 70 })
	got := sink.ids()[50:]
	slices.Sort(got)
	if !slices.Equal(got, want[30:]) {
		t.Errorf("after the seek: %v", got)
	}
	w.restart()
	eventually(t, "caught up", func() bool { i := w.info("s"); return i.Lag == 0 && i.Outstanding == 0 })
	if n := len(sink.ids()); n != 70 {
		t.Errorf("%d deliveries after the restart, want 70", n)
	}
}

// Seeking to the end gives up what is parked below; seeking back reads again what the ring still holds.
func TestSeekAndParkedDeliveries(t *testing.T) {
	w := newWorld(t, Options{})
	var down atomic.Bool
	down.Store(true)
	sink := &recorder{answer: func(event.Delivery) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 100, Schedule: []time.Duration{time.Hour}}
	w.apply(specOf(s))
	w.publish("orders", "a", "b")
	eventually(t, "both are parked", func() bool { return w.info("s").Parked == 2 })
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Latest}); err != nil {
		t.Fatal(err)
	}
	if i := w.info("s"); i.Parked != 0 || i.ParkedBytes != 0 {
		t.Errorf("%d parked after seeking past them", i.Parked)
	}
	down.Store(false)
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both again", func() bool { return len(sink.ids()) == 2 && w.info("s").Outstanding == 0 })
}

// A seek while deliveries are under way: what was in hand does not settle what is read again.
func TestSeekVoidsWhatIsInHand(t *testing.T) {
	w := newWorld(t, Options{})
	gate, entered := make(chan struct{}), make(chan struct{}, 10)
	var first atomic.Bool
	first.Store(true)
	sink := &recorder{answer: func(event.Delivery) error {
		if first.Swap(false) {
			entered <- struct{}{}
			<-gate
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Concurrency = 1
	w.apply(specOf(s))
	w.publish("orders", "a", "b")
	<-entered
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
		t.Fatal(err)
	}
	close(gate)
	eventually(t, "a, then a and b", func() bool { return len(sink.ids()) == 3 && w.info("s").Outstanding == 0 })
}

func TestApplyChangesNothingWhenItFails(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink)))
	opened := &recorder{}
	bad := specOf(push("s", "orders", "", sink), push("new", "orders", "", opened))
	broken := push("broken", "orders", "", nil)
	broken.OpenSink = func(context.Context) (Sink, error) { return nil, errors.New("no such host") }
	bad.Subscriptions = append(bad.Subscriptions, broken)
	bad.Topics = append(bad.Topics, event.Topic{Name: "extra"}, event.Topic{Name: "broken.dead"})
	if err := w.e.Apply(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "subscriptions.broken") {
		t.Fatalf("%v", err)
	}
	if opened.closed != 1 {
		t.Errorf("a sink that was opened for nothing was closed %d times", opened.closed)
	}
	if _, err := w.e.Topic("extra"); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("topic extra: %v", err)
	}
	if _, err := w.e.Subscription("new"); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("subscription new: %v", err)
	}
	w.publish("orders", "a")
	eventually(t, "the old plan works on", func() bool { return len(sink.ids()) == 1 })
}

func TestChangedDefinitionKeepsItsCursor(t *testing.T) {
	w := newWorld(t, Options{})
	one, two := &recorder{}, &recorder{}
	w.apply(specOf(push("s", "orders", "", one)))
	w.publish("orders", "a")
	eventually(t, "a", func() bool { return len(one.ids()) == 1 && w.info("s").Outstanding == 0 })
	next := push("s", "orders", "", two)
	next.Fingerprint = "changed"
	w.apply(specOf(next))
	w.publish("orders", "b")
	eventually(t, "b goes to the new sink", func() bool { return slices.Equal(two.ids(), []string{"b"}) })
	eventually(t, "the old sink is closed", func() bool {
		one.mu.Lock()
		defer one.mu.Unlock()
		return one.closed == 1
	})
}

func TestRemovedSubscriptionLeavesNoRows(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{answer: func(event.Delivery) error { return errors.New("down") }}
	s := push("s", "orders", "", sink)
	s.Retry.Schedule = []time.Duration{time.Hour}
	w.apply(specOf(s))
	w.publish("orders", "a")
	eventually(t, "it is parked", func() bool { return w.info("s").Parked == 1 })
	w.apply(Spec{Topics: w.spec.Topics})
	eventually(t, "its rows are gone", func() bool {
		n := 0
		for _, table := range []storage.Table{tableSubs, tableCursors, tableParked, tableParkedSize} {
			if err := w.store.Scan(t.Context(), table, nil, nil, func(_, _ []byte) error { n++; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		return n == 0
	})
	// Made again it is another one: it starts where its definition says.
	again := &recorder{}
	w.apply(specOf(push("s", "orders", "", again)))
	eventually(t, "a, from the earliest", func() bool { return len(again.ids()) == 1 })
}

func TestTopicMadeAgainIsAnother(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	w.publish("orders", "a")
	r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.Earliest}, "")
	if err != nil {
		t.Fatal(err)
	}
	cursor := r.Cursor()
	if err := w.e.DeleteTopic(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(t.Context()); !errors.Is(err, event.ErrGone) && !errors.Is(err, event.ErrNotFound) {
		t.Errorf("reading a deleted topic: %v", err)
	}
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	if _, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.AtCursor, Cursor: cursor}, ""); !errors.Is(err, event.ErrGone) {
		t.Errorf("a cursor of the old topic: %v, want gone", err)
	}
	if got := w.ids("orders"); len(got) != 0 {
		t.Errorf("the new topic holds %v", got)
	}
}

func TestTopicInUseIsNotDeleted(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(push("s", "orders", "", &recorder{})))
	for _, name := range []string{"orders", "s.dead"} {
		if err := w.e.DeleteTopic(t.Context(), name); !errors.Is(err, event.ErrConflict) || !strings.Contains(err.Error(), `"s"`) {
			t.Errorf("delete %s: %v", name, err)
		}
	}
}

func TestReaderResumesWithoutGapOrRepeat(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders", Partitions: 3}}})
	want := number("e", 300)
	for _, id := range want {
		w.publish("orders", id)
	}
	var got []string
	start := event.Start{At: event.Earliest}
	for len(got) < len(want) {
		r, err := w.e.OpenTopic(t.Context(), "orders", start, "")
		if err != nil {
			t.Fatal(err)
		}
		for range 7 {
			if len(got) == len(want) {
				break
			}
			rec, err := r.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, strings.Clone(rec.Attr(event.TagID)))
		}
		start = event.Start{At: event.AtCursor, Cursor: r.Cursor()}
		r.Close()
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Error("resuming by cursor missed or repeated events")
	}
}

// A reader that the ring has overtaken is told so, and from where it can go on: never a silent gap.
func TestReaderThatTheRingOvertook(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders", Retain: event.Retain{Events: 200}}}})
	w.publish("orders", "first", "second")
	r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.Earliest}, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	cursor := r.Cursor()
	r.Close()
	data := fmt.Sprintf("%01000d", 1)
	for i := range 1500 {
		w.publish("orders", fmt.Sprintf("e%d=1%s", i, data))
	}
	open := func(cursor string) (string, error) {
		r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.AtCursor, Cursor: cursor}, "")
		if err != nil {
			return "", err
		}
		defer r.Close()
		rec, err := r.Next(t.Context())
		return strings.Clone(rec.Attr(event.TagID)), err
	}
	id, err := open(cursor)
	if !errors.Is(err, event.ErrGone) {
		t.Fatalf("it goes on at %q, %v; want it told that events are lost to it", id, err)
	}
	_, earliest, ok := strings.Cut(err.Error(), "the earliest cursor is ")
	if id, err := open(earliest); !ok || err != nil || id == "second" || id == "" {
		t.Errorf("from the earliest cursor it goes on at %q, %v", id, err)
	}
}

func TestReaderFollows(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{}, `data == 2`)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		rec, err := r.Next(t.Context())
		if err != nil {
			t.Error(err)
			rec = placeholder(event.Position{})
		}
		got <- rec.Attr(event.TagID)
	}()
	w.publish("orders", "a=1", "b=2")
	if id := <-got; id != "b" {
		t.Errorf("a waiting reader got %q", id)
	}
}

// What a cursor stands at is told, whether a filter took the events or not: export ends by it.
func TestCursorOffsets(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	w.publish("orders", "a=1", "b=2", "c=3")
	r, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.Earliest}, `data.nothing == 1`)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, _, err := r.TryNext(t.Context()); ok || err != nil {
		t.Fatal(ok, err)
	}
	var read event.Offset
	offsets, err := CursorOffsets(r.Cursor())
	for _, at := range offsets {
		read += at
	}
	if err != nil || len(offsets) != len(w.e.plan.Load().topics["orders"].parts) || read != 3 {
		t.Errorf("after 3 events that were passed over the cursor stands at %v, %v", offsets, err)
	}
	if _, err := CursorOffsets("x"); !errors.Is(err, event.ErrInvalid) {
		t.Errorf("of no cursor: %v", err)
	}
}

func TestDamagedCursors(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	for _, c := range []string{"", "x", "AAAA", "____________________", strings.Repeat("A", 10_000), w.e.plan.Load().topics["orders"].cursor([]event.Offset{99})} {
		if _, err := w.e.OpenTopic(t.Context(), "orders", event.Start{At: event.AtCursor, Cursor: c}, ""); !errors.Is(err, event.ErrInvalid) && !errors.Is(err, event.ErrGone) {
			t.Errorf("cursor %.30q: %v", c, err)
		}
	}
}

func TestDryRunStoresNothing(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(push("big", "orders", "data.total > 100", &recorder{}), push("all", "orders", "", &recorder{})))
	got, err := w.e.DryRun(t.Context(), "orders", []event.Event{{Data: []byte(`{"total":5}`)}})
	if err != nil {
		t.Fatal(err)
	}
	if m := got[0]; len(m) != 2 || !m[0].Matched || m[1].Matched || !strings.Contains(m[1].Why, "5") {
		t.Errorf("%+v", m)
	}
	if n := len(w.ids("orders")); n != 0 {
		t.Errorf("a dry run stored %d events", n)
	}
}
