package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func TestBackoff(t *testing.T) {
	x := event.Exponential{First: time.Second, Max: time.Minute}.WithDefaults()
	for _, c := range []struct {
		policy event.RetryPolicy
		want   []time.Duration
	}{
		{event.RetryPolicy{Exponential: &x}, []time.Duration{1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute}},
		{event.RetryPolicy{Schedule: []time.Duration{time.Second, time.Hour}}, []time.Duration{time.Second, time.Hour, time.Hour}},
	} {
		for i, want := range c.want {
			if got := backoff(c.policy, i+1); got != want {
				t.Errorf("%+v after %d tries: %s, want %s", c.policy, i+1, got, want)
			}
		}
	}
	least, most := time.Hour, time.Duration(0)
	for range 10_000 {
		d := backoff(event.RetryPolicy{Exponential: &x, Jitter: 0.2}, 2)
		least, most = min(least, d), max(most, d)
	}
	if least < 1600*time.Millisecond || most > 2400*time.Millisecond || most-least < 700*time.Millisecond {
		t.Errorf("jitter of 0.2 about 2 s gave %s to %s", least, most)
	}
	if got := backoff(event.RetryPolicy{Exponential: &x}, 1_000_000); got != time.Minute {
		t.Errorf("after a million tries: %s", got)
	}
}

// The dead letter tells every try with its time and answer, the first and the last ones where there were many,
// whether the router restarted in between or not.
func TestDeadLetterTellsItsStory(t *testing.T) {
	w := newWorld(t, Options{CircuitFailures: -1})
	var tries atomic.Int32
	sink := &recorder{answer: func(event.Delivery) error {
		n := tries.Add(1)
		return &event.RetryAfter{Err: fmt.Errorf("answered %d: %s", 500+n, strings.Repeat("long ", 200)), Code: int(500 + n)}
	}}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 25, Schedule: []time.Duration{5 * time.Millisecond}}
	spec := specOf(s)
	spec.Revision = "rev-1"
	w.apply(spec)
	began := time.Now().Add(-time.Second)
	w.publish("orders", "a")
	eventually(t, "a few tries", func() bool { return tries.Load() >= 3 })
	w.restart()
	eventually(t, "a dead letter", func() bool { return len(w.ids("s.dead")) == 1 })
	rec := w.records("s.dead")[0]
	a, _ := rec.Extension("deadletterstory")
	var story []struct {
		At     time.Time
		Code   int
		Detail string
	}
	if err := json.Unmarshal([]byte(a.Value), &story); err != nil {
		t.Fatalf("%v: %s", err, a.Value)
	}
	if len(story) != storyTries || len(a.Value) > 4096 {
		t.Fatalf("%d tries in %d bytes: %s", len(story), len(a.Value), a.Value)
	}
	for i, x := range story {
		want := 501
		if i > 0 {
			want = 525 - storyTries + 1 + i
		}
		if x.Code != want || !strings.HasPrefix(x.Detail, fmt.Sprint("answered ", want)) {
			t.Errorf("try %d of the story: %+v, want code %d", i, x, want)
		}
		if x.At.Before(began) || x.At.After(time.Now().Add(time.Second)) || i > 0 && x.At.Before(story[i-1].At) {
			t.Errorf("try %d of the story was at %s", i, x.At)
		}
	}
	if a, _ := rec.Extension("deadletterrevision"); a.Value != "rev-1" {
		t.Errorf("revision %q", a.Value)
	}
}

// maxAge ends an event's tries when the next one would come too late, or came too late because the
// subscription stood still.
func TestMaxAge(t *testing.T) {
	var ahead atomic.Int64
	w := newWorld(t, Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	var tries atomic.Int32
	sink := &recorder{answer: func(event.Delivery) error { tries.Add(1); return errors.New("down") }}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Millisecond, time.Hour}, MaxAge: 30 * time.Minute}
	w.apply(specOf(s))
	w.publish("orders", "late")
	eventually(t, "a dead letter", func() bool { return len(w.ids("s.dead")) == 1 })
	if n := tries.Load(); n != 2 {
		t.Errorf("%d tries, want 2: the third would come after an hour", n)
	}
	s.Retry.Schedule = []time.Duration{time.Minute}
	s.Fingerprint = "slower"
	w.apply(specOf(s))
	tries.Store(0)
	w.publish("orders", "stood")
	eventually(t, "the event is parked", func() bool { return w.info("s").Parked == 1 })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(time.Hour))
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a dead letter", func() bool { return len(w.ids("s.dead")) == 2 })
	if n := tries.Load(); n != 1 {
		t.Errorf("%d tries, want 1", n)
	}
	for i, want := range []int{2, 1} {
		rec := w.records("s.dead")[i]
		reason, _ := rec.Extension("deadletterreason")
		attempts, _ := rec.Extension("deadletterattempts")
		story, _ := rec.Extension("deadletterstory")
		if reason.Value != "age" || attempts.Value != fmt.Sprint(want) || strings.Count(story.Value, `"at"`) != want {
			t.Errorf("dead letter %d: reason %q, attempts %s, story %s", i, reason.Value, attempts.Value, story.Value)
		}
	}
	eventually(t, "all is settled", func() bool { return w.settled("s") })
}

// The age of a delayed event counts from when it was to be delivered.
func TestMaxAgeOfDelayedEvents(t *testing.T) {
	var ahead atomic.Int64
	w := newWorld(t, Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	var tries atomic.Int32
	sink := &recorder{answer: func(event.Delivery) error {
		if tries.Add(1) < 3 {
			return errors.New("down")
		}
		return nil
	}}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 5, Schedule: []time.Duration{time.Millisecond}, MaxAge: 30 * time.Minute}
	w.apply(specOf(s))
	evs := []event.Event{{ID: "a", Extensions: []event.Attribute{{Name: "deliverat", Value: time.Now().Add(2 * time.Hour).UTC().Format(time.RFC3339)}}}}
	if err := w.e.Publish(t.Context(), "orders", evs, make([]event.Position, 1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits", func() bool { return w.info("s").Parked == 1 })
	ahead.Store(int64(2 * time.Hour))
	w.e.parked.nudge()
	eventually(t, "it is delivered", func() bool { return len(sink.ids()) == 1 })
	if got := w.ids("s.dead"); len(got) > 0 {
		t.Errorf("dead letters %v", got)
	}
}

func TestOn4xx(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{answer: func(d event.Delivery) error {
		var code int
		if _, err := fmt.Sscanf(d.Event.Attr(event.TagID), "c%d", &code); err != nil {
			t.Error(err)
		}
		return &event.RetryAfter{Err: errors.New("answered"), Code: code}
	}}
	s := push("s", "orders", "", sink)
	s.Retry.On4xx = event.DeadLetter4xx
	w.apply(specOf(s))
	want := map[string]string{"c400": "1 permanent", "c404": "1 permanent", "c422": "1 permanent", "c499": "1 permanent",
		"c408": "3 attempts", "c425": "3 attempts", "c429": "3 attempts", "c500": "3 attempts", "c302": "3 attempts", "c0": "3 attempts"}
	for id := range want {
		w.publish("orders", id)
	}
	eventually(t, "dead letters", func() bool { return len(w.ids("s.dead")) == len(want) })
	for _, rec := range w.records("s.dead") {
		reason, _ := rec.Extension("deadletterreason")
		attempts, _ := rec.Extension("deadletterattempts")
		if got := attempts.Value + " " + reason.Value; got != want[rec.Attr(event.TagID)] {
			t.Errorf("%s: %s, want %s", rec.Attr(event.TagID), got, want[rec.Attr(event.TagID)])
		}
	}
}

// A parked row keeps all that is known of an event, and rows of before are still read.
func TestParkedRows(t *testing.T) {
	ev := event.Event{ID: "a", Source: "/s", Type: "t", Data: []byte("x")}
	rec := event.Record(ev.AppendRecord(nil))
	p := &parkedEvent{due: 5, attempt: 3, code: 503, reason: "down", done: []uint32{1, 4}, hash: 9, digests: []byte("digests"),
		lane: 1 << 63, batch: 77, lives: 2, with: "f@sha256:ab", story: []try{{1, 500, "one"}, {2, 0, "two"}}}
	row := p.appendRow(nil, rec)
	got, back, err := parseParked(parkedKey(1, 5, event.Position{}), row)
	if err != nil || string(back) != string(rec) {
		t.Fatal(err)
	}
	p.size = int64(len(row))
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", p) {
		t.Errorf("read %+v\nwant %+v", got, p)
	}
	plain := &parkedEvent{due: 5, attempt: 1, reason: "down"}
	if row := plain.appendRow(nil, rec); len(row) != 16+1+1+4+len(rec) {
		t.Errorf("a row without anything special has %d bytes", len(row))
	}
	for n := range len(row) - len(rec) {
		if _, _, err := parseParked(parkedKey(1, 5, event.Position{}), row[:n]); err == nil {
			t.Fatalf("a row cut off at %d was read", n)
		}
	}
}
