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

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// mending is a sink that refuses for good while down is set.
type mending struct {
	outputs
	down atomic.Bool
	code atomic.Int64
}

func newMending() *mending {
	m := &mending{}
	m.down.Store(true)
	m.code.Store(400)
	m.answer = func(event.Delivery) error {
		if m.down.Load() {
			return event.Permanent(int(m.code.Load()), errors.New("no"))
		}
		return nil
	}
	return m
}

func (w *world) letters(name string, q event.LetterQuery) []event.DeadLetter {
	w.t.Helper()
	var all []event.DeadLetter
	for after := ""; ; {
		page, err := w.e.DeadLetters(w.t.Context(), name, q, after, 100)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, page.Letters...)
		if after = page.Next; after == "" {
			return all
		}
	}
}

func (w *world) redrive(name string, r event.Redrive) event.LettersDone {
	w.t.Helper()
	done, err := w.e.Redrive(w.t.Context(), name, r)
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

func (w *world) dies(name string, n int64) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%d dead letters", n), func() bool { return w.info(name).DeadLetters == n })
}

// A redriven event is what it was: id, delivery id, attributes and data; it goes to its subscription alone, and
// its story goes on.
func TestRedrive(t *testing.T) {
	w := newWorld(t, Options{})
	sink, other := newMending(), &recorder{}
	w.apply(specOf(push("s", "orders", "", sink), push("t", "orders", "", other)))
	if err := w.e.Publish(t.Context(), "orders", []event.Event{{ID: "a", ClientID: true, Type: "made", Subject: "x", PartitionKey: "k", Time: "2026-01-02T03:04:05Z",
		Extensions: []event.Attribute{{Name: "color", Value: "red"}}, Data: []byte(`{"n":1}`)}}, make([]event.Position, 1)); err != nil {
		t.Fatal(err)
	}
	w.dies("s", 1) // dead letters stand in the order of their deaths, and keys keep none between them
	w.publish("orders", "b=2")
	w.dies("s", 2)
	letters := w.letters("s", event.LetterQuery{})
	l := letters[0]
	if l.ID != "a" || l.Type != "made" || l.Reason != "permanent" || l.Code != 400 || l.Attempts != 1 || l.Redrives != 0 || l.Origin != "orders/0-0" ||
		l.Detail != "no" || !strings.Contains(string(l.Story), `"code":400`) || len(letters) != 2 || time.Since(l.At) > time.Minute {
		t.Errorf("dead letter %+v", l)
	}

	if d := w.redrive("s", event.Redrive{DryRun: true}); d.Done != 2 || len(d.First) != 2 || d.First[0].ID != "a" || w.info("s").DeadLetters != 2 {
		t.Errorf("dry run: %+v", d)
	}
	if d := w.redrive("s", event.Redrive{}); d.Done != 2 || d.Left != 0 || d.Stopped != "" {
		t.Errorf("%+v", d)
	}
	w.dies("s", 2) // again
	eventually(t, "both failed twice", func() bool { return w.info("s").DeadLettered == 4 })
	letters = w.letters("s", event.LetterQuery{Filter: `id == "a"`})
	if l = letters[0]; len(letters) != 1 || l.Redrives != 1 || l.Attempts != 1 || strings.Count(string(l.Story), `"code":400`) != 2 || l.Origin != "orders/0-0" {
		t.Errorf("the dead letter of its second life: %+v, story %s", l, l.Story)
	}
	sink.down.Store(false)
	if d := w.redrive("s", event.Redrive{LetterQuery: event.LetterQuery{Filter: "ext.deadlettercode == 400"}}); d.Done != 2 {
		t.Errorf("%+v", d)
	}
	eventually(t, "both delivered", func() bool { return w.settled("s") && w.info("s").DeadLetters == 0 })
	if got := sink.sorted(); !slices.Equal(got, []string{`a={"n":1}`, "b=2"}) {
		t.Errorf("delivered %q", got)
	}
	dids := sink.deliveryIDs()
	if slices.Sort(dids); len(dids) != 6 || len(slices.Compact(dids)) != 2 {
		t.Errorf("delivery ids %q", dids)
	}
	if got := other.ids(); len(got) != 2 {
		t.Errorf("the other subscription got %q", got)
	}
	i := w.info("s")
	if i.Redriven != 4 || i.DeadLettered != 4 || i.Parked != 0 || i.ParkedBytes != 0 {
		t.Errorf("%+v", i)
	}
	if len(w.letters("s", event.LetterQuery{})) != 0 || w.rows(tableLettersDone) != 0 || w.rows(tableLetterFloor) != 1 {
		t.Errorf("%d rows of letters that are finished", w.rows(tableLettersDone))
	}
	if d := w.redrive("s", event.Redrive{}); d.Done != 0 {
		t.Errorf("redriven again: %+v", d)
	}
	w.restart()
	if n := len(w.letters("s", event.LetterQuery{})); n != 0 || w.info("s").DeadLetters != 0 {
		t.Errorf("%d dead letters after a restart", n)
	}
	w.apply(specOf(push("t", "orders", "", other)))
	if err := w.e.DeleteTopic(t.Context(), "s.dead"); err != nil || w.rows(tableLetterFloor) != 0 {
		t.Errorf("%v, rows of a topic that was deleted: %d", err, w.rows(tableLetterFloor))
	}
}

// What a redriven event is to functions and receivers is the event that the subscription read, dead letters of
// dead letters included.
func TestRedrivenEventIsAsItWas(t *testing.T) {
	w := newWorld(t, Options{})
	first, second := newMending(), newMending()
	var before, after string
	see := second.answer
	second.answer = func(d event.Delivery) error {
		text := strings.Clone(string(d.Event.AppendStructured(nil))) + fmt.Sprint(d.Event.Hops(), d.Event.Received(), d.Event.Position())
		if before == "" {
			before = text
		} else {
			after = text
		}
		return see(d)
	}
	alert := push("alert", "s.dead", "", second)
	w.apply(specOf(push("s", "orders", "", first), alert))
	w.publish("orders", "a=1")
	w.dies("alert", 1)
	l := w.letters("alert", event.LetterQuery{})[0]
	if a, _ := l.Event.Extension("deadlettersub"); a.Value != "alert" || l.Event.Hops() != 2 || l.Origin != "s.dead/0-0" {
		t.Errorf("the dead letter of a dead letter is %s's, %d hops, from %s", a.Value, l.Event.Hops(), l.Origin)
	}
	second.down.Store(false)
	w.redrive("alert", event.Redrive{})
	eventually(t, "delivered", func() bool { return len(second.ids()) == 1 })
	if before != after || !strings.Contains(before, `"deadlettersub":"s"`) {
		t.Errorf("delivered\n%s\nafter\n%s", after, before)
	}
	if n := w.info("s").DeadLetters; n != 1 {
		t.Errorf("%d dead letters of the first", n)
	}
}

// Filters, times, limits and pages choose.
func TestChooseDeadLetters(t *testing.T) {
	w := newWorld(t, Options{})
	sink := newMending()
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", number("a", 300)...)
	w.dies("s", 300)
	time.Sleep(2 * time.Millisecond) // received times of the two must differ
	middle := time.Now()
	sink.code.Store(422)
	w.publish("orders", number("b", 200)...)
	w.dies("s", 500)

	count := func(q event.LetterQuery) int { return len(w.letters("s", q)) }
	if a, b, c, d := count(event.LetterQuery{}), count(event.LetterQuery{Since: middle}), count(event.LetterQuery{Before: middle}),
		count(event.LetterQuery{Filter: "ext.deadlettercode == 422"}); a != 500 || b != 200 || c != 300 || d != 200 {
		t.Errorf("%d letters: %d since, %d before, %d by code", a, b, c, d)
	}
	page, err := w.e.DeadLetters(t.Context(), "s", event.LetterQuery{}, "", 7)
	if err != nil || page.Total != 500 || len(page.Letters) != 7 || page.Next != "0-7" {
		t.Errorf("%d of %d, next %s, %v", len(page.Letters), page.Total, page.Next, err)
	}
	if d := w.redrive("s", event.Redrive{LetterQuery: event.LetterQuery{Filter: "ext.deadlettercode == 400"}, Limit: 100}); d.Done != 100 || d.Left != 200 || d.Stopped != "limit" {
		t.Errorf("limited: %+v", d)
	}
	eventually(t, "they died again", func() bool { return w.info("s").DeadLettered == 600 && w.info("s").DeadLetters == 500 })
	purge := func(p event.Purge) event.LettersDone {
		d, err := w.e.Purge(t.Context(), "s", p)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := purge(event.Purge{LetterQuery: event.LetterQuery{Before: middle}, DryRun: true}); d.Done != 200 || len(d.First) != 10 {
		t.Errorf("dry purge: %d, %d", d.Done, len(d.First))
	}
	if d := purge(event.Purge{LetterQuery: event.LetterQuery{Before: middle}}); d.Done != 200 || w.info("s").DeadLetters != 300 {
		t.Errorf("purged %+v, %d left", d, w.info("s").DeadLetters)
	}
	if _, err := w.e.Purge(t.Context(), "s", event.Purge{}); !errors.Is(err, event.ErrInvalid) {
		t.Errorf("a purge of all by mistake: %v", err)
	}
	if d := purge(event.Purge{All: true}); d.Done != 300 || w.info("s").DeadLetters != 0 || w.info("s").Purged != 500 {
		t.Errorf("purged %+v, %+v", d, w.info("s"))
	}
	for what, err := range map[string]error{
		"rate": func() error { _, err := w.e.Redrive(t.Context(), "s", event.Redrive{Rate: -1}); return err }(),
		"filter": func() error {
			_, err := w.e.Redrive(t.Context(), "s", event.Redrive{LetterQuery: event.LetterQuery{Filter: "("}})
			return err
		}(),
		"after": func() error { _, err := w.e.DeadLetters(t.Context(), "s", event.LetterQuery{}, "7-1", 1); return err }(),
	} {
		if !errors.Is(err, event.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := w.e.Redrive(t.Context(), "nobody", event.Redrive{}); !errors.Is(err, event.ErrNotFound) {
		t.Error(err)
	}
	if _, err := w.e.Redrive(t.Context(), "s", event.Redrive{Function: "f@sha256:00000000"}); !errors.Is(err, event.ErrConflict) {
		t.Error(err)
	}
}

// Subscriptions that share a dead-letter topic touch their own letters alone, and each other's hold the topic.
func TestSharedDeadLetterTopic(t *testing.T) {
	w := newWorld(t, Options{})
	sinks := []*mending{newMending(), newMending()}
	var subs []SubscriptionSpec
	for i, name := range []string{"s", "t"} {
		sub := push(name, "orders", "", sinks[i])
		sub.DeadLetter = "dead"
		subs = append(subs, sub)
	}
	spec := specOf(subs...)
	spec.Topics = append(spec.Topics, event.Topic{Name: "other"})
	w.apply(spec)
	w.publish("dead", "stranger=1") // no dead letter
	w.publish("orders", number("a", 50)...)
	w.dies("s", 50)
	w.dies("t", 50)
	sinks[0].down.Store(false)
	if d := w.redrive("s", event.Redrive{}); d.Done != 50 {
		t.Errorf("%+v", d)
	}
	eventually(t, "delivered", func() bool { return len(sinks[0].ids()) == 50 })
	if s, u := w.info("s").DeadLetters, w.info("t").DeadLetters; s != 0 || u != 50 || len(sinks[1].ids()) != 0 {
		t.Errorf("%d and %d dead letters", s, u)
	}
	if len(w.letters("t", event.LetterQuery{})) != 50 || len(w.letters("s", event.LetterQuery{})) != 0 {
		t.Error("the lists are not each one's own")
	}
	floor := w.e.plan.Load().topics["dead"].parts[0].lettersFloor()
	first := w.letters("t", event.LetterQuery{})[0].Position.Offset
	if rows := w.rows(tableLettersDone); floor != first || rows != int(101-floor-50) { // of 101 events 50 are unfinished
		t.Errorf("floor %d, %d rows; the first unfinished letter is %d", floor, rows, first)
	}
	w.restart()
	w.dies("t", 50)
	if n := w.info("s").DeadLetters; n != 0 {
		t.Errorf("%d dead letters after a restart", n)
	}
	// What is left of a subscription that is gone, or has another dead-letter topic now, is reached by the topic.
	w.spec.Subscriptions = []SubscriptionSpec{subs[0]}
	w.spec.Subscriptions[0].DeadLetter, w.spec.Subscriptions[0].Fingerprint = "other", "other"
	w.apply(w.spec)
	if n := len(w.letters("t", event.LetterQuery{Topic: "dead"})); n != 50 {
		t.Errorf("%d letters of a subscription that is gone", n)
	}
	if d, err := w.e.Purge(t.Context(), "t", event.Purge{LetterQuery: event.LetterQuery{Topic: "dead"}, All: true}); err != nil || d.Done != 50 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := w.e.Redrive(t.Context(), "t", event.Redrive{LetterQuery: event.LetterQuery{Topic: "dead"}}); !errors.Is(err, event.ErrNotFound) {
		t.Error(err)
	}
	if floor := w.e.plan.Load().topics["dead"].parts[0].lettersFloor(); floor != 101 || w.rows(tableLettersDone) != 0 {
		t.Errorf("floor %d, %d rows", floor, w.rows(tableLettersDone))
	}
}

// Of a dead-letter topic that drops what is oldest, what it has dropped is neither counted nor redriven.
func TestDeadLettersThatTheRingDropped(t *testing.T) {
	w := newWorld(t, Options{})
	sink := newMending()
	spec := specOf(push("s", "orders", "", sink))
	spec.Topics[1].WhenFull, spec.Topics[1].Retain.Events = event.DropOldest, 50
	w.apply(spec)
	for i := range 10 {
		w.publish("orders", number(fmt.Sprint(i), 20)...)
		eventually(t, "they die", func() bool { return w.info("s").DeadLettered == uint64(20*(i+1)) })
	}
	left := int64(len(w.records("s.dead")))
	w.dies("s", left)
	if n := len(w.letters("s", event.LetterQuery{})); left > 60 || int64(n) != left {
		t.Errorf("%d letters listed of %d", n, left)
	}
	sink.down.Store(false)
	if d := w.redrive("s", event.Redrive{}); d.Done != left || w.info("s").DeadLetters != 0 {
		t.Errorf("%+v of %d", d, left)
	}
	w.restart()
	w.dies("s", 0)
}

// A call that ends early has done what it says, and the next goes on where it was; what dies meanwhile is left
// out by the time that the first one told.
func TestRedriveInSeveralCalls(t *testing.T) {
	w := &world{t: t, fs: vfs.NewMem()}
	var end atomic.Pointer[context.CancelFunc]
	w.wrap = func(s storage.Store) storage.Store {
		return &cutStore{Store: s, after: func(b *storage.Batch) {
			if f := end.Load(); f != nil && writes(b, tableLettersDone) && writes(b, tableParked) {
				(*f)()
			}
		}}
	}
	w.open()
	defer w.stop()
	sink := newMending()
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", number("e", 600)...)
	w.dies("s", 600)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	end.Store(&cancel)
	first, err := w.e.Redrive(ctx, "s", event.Redrive{})
	if err != nil || first.Stopped != "time" || first.Done != redriveBatch || first.Left != 600-redriveBatch {
		t.Fatalf("%+v, %v", first, err)
	}
	end.Store(nil)
	eventually(t, "they died again", func() bool { return w.info("s").DeadLettered == 600+redriveBatch })
	if d := w.redrive("s", event.Redrive{LetterQuery: event.LetterQuery{Before: first.Until}}); d.Done != 600-redriveBatch || d.Stopped != "" {
		t.Errorf("%+v", d)
	}
	eventually(t, "all died twice", func() bool { return w.info("s").DeadLettered == 1200 && w.info("s").DeadLetters == 600 })
	if n := len(w.letters("s", event.LetterQuery{Filter: "ext.deadletterredrives == 1"})); n != 600 {
		t.Errorf("%d of 600 were redriven once", n)
	}
}

// A dead-letter topic that is full stops its subscription, visibly; a redrive or a purge lets it go on.
func TestFullDeadLetterTopic(t *testing.T) {
	for _, how := range []string{"redrive", "purge"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, Options{})
			sink := newMending()
			spec := specOf(push("s", "orders", "", sink))
			spec.Topics[1].Retain = event.Retain{Events: 20}
			if spec.Topics[1].Name != "s.dead" {
				t.Fatal(spec.Topics)
			}
			w.apply(spec)
			w.publish("orders", number("a", 40)...)
			eventually(t, "it waits", func() bool {
				i := w.info("s")
				return i.State == "waiting" && strings.Contains(i.Reason, "s.dead") || strings.Contains(i.Reason, "full")
			})
			eventually(t, "they are counted", func() bool { n := w.info("s").DeadLetters; return n > 0 && n <= 20 })
			if how == "redrive" {
				sink.down.Store(false)
				w.redrive("s", event.Redrive{})
				eventually(t, "all delivered or dead", func() bool { return w.settled("s") })
				w.redrive("s", event.Redrive{})
				eventually(t, "all delivered", func() bool { return len(sink.ids()) == 40 && w.settled("s") })
				if got := slices.Sorted(slices.Values(sink.ids())); !slices.Equal(got, number("a", 40)) {
					t.Errorf("delivered %q", got)
				}
				return
			}
			eventually(t, "all purged", func() bool {
				if _, err := w.e.Purge(t.Context(), "s", event.Purge{All: true}); err != nil {
					t.Fatal(err)
				}
				return w.info("s").Purged == 40 && w.settled("s")
			})
			if i := w.info("s"); i.DeadLetters != 0 || i.State != "running" {
				t.Errorf("%+v", i)
			}
		})
	}
}

// A rate spreads what is redriven over time, durably: a restart in the middle changes nothing, and a second
// redrive goes behind the first.
func TestRedriveRate(t *testing.T) {
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	w := newWorld(t, Options{Now: clock})
	sink := newMending()
	sub := push("s", "orders", "", sink)
	sub.Retry.MaxAge = time.Hour // of a life: the first try of each event of the second fails
	answer := sink.answer
	sink.answer = func(d event.Delivery) error {
		if !sink.down.Load() && d.Attempt == 1 {
			return errors.New("busy")
		}
		return answer(d)
	}
	w.apply(specOf(sub))
	w.publish("orders", number("a", 10)...)
	w.dies("s", 10)
	sink.down.Store(false)
	ahead.Store(int64(24 * time.Hour))
	rate := 1.0 / 600 // one in ten minutes
	if d := w.redrive("s", event.Redrive{Rate: rate, Limit: 6}); d.Done != 6 || d.Left != 4 {
		t.Errorf("%+v", d)
	}
	if d := w.redrive("s", event.Redrive{Rate: rate}); d.Done != 4 {
		t.Errorf("%+v", d)
	}
	for i := range 10 {
		eventually(t, "the next is delivered", func() bool { return len(sink.ids()) == i+1 && w.info("s").Parked == int64(9-i) })
		if i == 4 {
			w.restart()
		}
		ahead.Add(int64(5 * time.Minute))
		w.e.parked.nudge()
		if n := len(sink.ids()); n > i+1 {
			t.Fatalf("%d delivered after %d slots", n, i+1)
		}
		ahead.Add(int64(5 * time.Minute))
		w.e.parked.nudge()
	}
	if got := slices.Sorted(slices.Values(sink.ids())); !slices.Equal(got, number("a", 10)) || w.info("s").DeadLetters != 0 {
		t.Errorf("delivered %q", got)
	}
}

// A redrive takes no more than half of the space for parked events, and says so.
func TestRedriveStopsWhereThereIsNoRoom(t *testing.T) {
	w := newWorld(t, Options{})
	sink := newMending()
	sub := push("s", "orders", "", sink)
	sub.Parked = 8 << 10
	w.apply(specOf(sub))
	w.publish("orders", number("a", 60)...)
	w.dies("s", 60)
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	d := w.redrive("s", event.Redrive{})
	if i := w.info("s"); !strings.HasPrefix(d.Stopped, "parked.bytes: ") || d.Done == 0 || d.Left != 60-d.Done || i.ParkedBytes > 4<<10 || i.Parked != d.Done || i.DeadLetters != d.Left {
		t.Errorf("%+v, %+v", d, i)
	}
	if again := w.redrive("s", event.Redrive{}); again.Done != 0 || again.Left != d.Left {
		t.Errorf("%+v", again)
	}
	sink.down.Store(false)
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all delivered", func() bool {
		if w.settled("s") {
			w.redrive("s", event.Redrive{})
		}
		return len(sink.ids()) == 60
	})
}
