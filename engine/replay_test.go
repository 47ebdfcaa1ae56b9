package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

func (w *world) replay(name string, r event.Replay) event.ReplayInfo {
	w.t.Helper()
	info, err := w.e.Replay(w.t.Context(), name, r)
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

func (w *world) replayed(name string) event.ReplayInfo {
	w.t.Helper()
	info, err := w.e.ReplayInfo(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

func (w *world) replayIs(name string, state event.ReplayState) func() bool {
	return func() bool { return w.replayed(name).State == state }
}

// marks is a sink that keeps the mark of what it is given.
type marks struct {
	recorder
	at     sync.Mutex
	byMark map[string][]string // ids of events
}

func newMarks() *marks {
	return &marks{byMark: map[string][]string{}}
}

func (m *marks) Deliver(ctx context.Context, ds []event.Delivery) error {
	err := m.recorder.Deliver(ctx, ds)
	if err == nil {
		a, _ := ds[0].Event.Extension(event.ReplayAttribute)
		m.at.Lock()
		m.byMark[strings.Clone(a.Value)] = append(m.byMark[strings.Clone(a.Value)], strings.Clone(ds[0].Event.Attr(event.TagID)))
		m.at.Unlock()
	}
	return err
}

func (m *marks) of(mark string) []string {
	m.at.Lock()
	defer m.at.Unlock()
	return slices.Sorted(slices.Values(m.byMark[mark]))
}

var everything = event.Replay{From: earliest}

// A replay delivers what matches of its range once more, marked, under ids of its own, to its subscription alone.
func TestReplay(t *testing.T) {
	w := newWorld(t, Options{})
	sink, other := newMarks(), &recorder{}
	w.apply(specOf(push("s", "orders", "data.n % 2 == 0", sink), push("other", "orders", "", other)))
	var events []string
	for i, id := range number("e", 20) {
		events = append(events, fmt.Sprintf(`%s={"n":%d}`, id, i))
	}
	pos := w.publish("orders", events...)
	eventually(t, "all delivered", func() bool { return len(sink.of("")) == 10 && len(other.ids()) == 20 && w.settled("s") })
	first := sink.deliveryIDs()
	cursor := w.e.plan.Load().subs["s"].watermark(w.e.plan.Load().topics["orders"].parts[0])

	dry := w.replay("s", event.Replay{From: pos[4].String(), To: pos[13].String(), Filter: "data.n != 6", DryRun: true})
	if dry.Matched != 4 || dry.Looked != 10 || len(dry.First) != 4 || dry.First[0].Attr(event.TagID) != "e00004" || dry.ID != "" {
		t.Errorf("dry run: %+v", dry)
	}
	if _, err := w.e.ReplayInfo("s"); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("a dry run began: %v", err)
	}
	r := w.replay("s", event.Replay{From: pos[4].String(), To: pos[13].String(), Filter: "data.n != 6"})
	eventually(t, "it is done", w.replayIs("s", event.ReplayDone))
	if got, want := sink.of(r.ID), []string{"e00004", "e00008", "e00010", "e00012"}; !slices.Equal(got, want) {
		t.Errorf("replayed %v, want %v", got, want)
	}
	for _, id := range sink.deliveryIDs()[len(first):] {
		if !strings.HasSuffix(id, ":"+r.ID) || slices.Contains(first, id) {
			t.Errorf("webhook-id %s", id)
		}
	}
	if got := w.replayed("s"); got.Matched != 4 || got.Done != 4 || got.Left != 0 || got.Looked != 10 || got.Ended.IsZero() {
		t.Errorf("%+v", got)
	}
	i := w.info("s")
	if len(other.ids()) != 20 || len(sink.of("")) != 10 || i.Replayed != 4 || i.Replay == nil || i.Matched != 10 ||
		w.e.plan.Load().subs["s"].watermark(w.e.plan.Load().topics["orders"].parts[0]) != cursor {
		t.Errorf("others were touched: %+v", i)
	}
	eventually(t, "nothing is left", func() bool { return w.settled("s") && w.rows(tableParked) == 0 })
}

func TestReplayRanges(t *testing.T) {
	clock := newHands("2026-11-21T10:00:00Z")
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Now: clock.now}, now: clock.now}
	w.open()
	defer w.stop()
	sink := &recorder{}
	spec := specOf(push("s", "orders", "", sink))
	spec.Topics[0].Partitions = 3
	w.apply(spec)
	for hour := range 4 {
		clock.set(fmt.Sprintf("2026-11-21T%d:00:00Z", 10+hour))
		w.publish("orders", number(fmt.Sprintf("h%d-", hour), 6)...)
	}
	eventually(t, "all read", func() bool { return w.settled("s") })
	at := func(hour int) time.Time { return time.Date(2026, 11, 21, 10+hour, 0, 0, 0, time.UTC) }
	topic := w.e.plan.Load().topics["orders"]
	middle, err := topic.resolve(t.Context(), event.Start{At: event.AtTime, Time: at(2)})
	if err != nil {
		t.Fatal(err)
	}
	cursor := topic.cursor(middle)
	kept := topic.parts[1].log.Bounds().Next
	for _, x := range []struct {
		r    event.Replay
		want uint64
	}{
		{everything, 24}, {event.Replay{Since: at(1)}, 18}, {event.Replay{Since: at(1), Until: at(3)}, 12}, {event.Replay{Since: at(1), To: cursor}, 6},
		{event.Replay{From: cursor}, 12}, {event.Replay{From: "1-0"}, kept}, {event.Replay{From: "1-1", To: "1-2"}, 2},
		{event.Replay{From: "1-1", To: "1-1"}, 1}, {event.Replay{From: earliest, To: "1-0"}, 1}, {event.Replay{Since: at(3), Until: at(3)}, 0},
	} {
		x.r.DryRun = true
		if got := w.replay("s", x.r); got.Matched != x.want {
			t.Errorf("%+v: %d, want %d", x.r, got.Matched, x.want)
		}
	}
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		r    event.Replay
		is   error
		want string
	}{
		{event.Replay{}, event.ErrInvalid, "say where to begin"},
		{event.Replay{Since: at(2), Until: at(1)}, event.ErrInvalid, "lies before since"},
		{event.Replay{From: "9-0"}, event.ErrNotFound, "has 3 partitions"},
		{event.Replay{From: "0-99"}, event.ErrNotFound, "next offset is"},
		{event.Replay{From: "x"}, event.ErrInvalid, "from"},
		{event.Replay{From: earliest, Filter: "data."}, event.ErrInvalid, "filter"},
		{event.Replay{From: earliest, Rate: 1e7}, event.ErrInvalid, "rate"},
		{event.Replay{From: earliest, Function: "f@sha256:00"}, event.ErrConflict, "is no function of subscription s"},
	} {
		if _, err := w.e.Replay(t.Context(), "s", x.r); !errors.Is(err, x.is) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v; want %q", x.r, err, x.want)
		}
	}
	if _, err := w.e.Replay(t.Context(), "t", everything); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("an unknown subscription: %v", err)
	}
	r := w.replay("s", everything)
	if _, err := w.e.Replay(t.Context(), "s", everything); !errors.Is(err, event.ErrConflict) || !strings.Contains(err.Error(), r.ID) {
		t.Errorf("a second one: %v; want a conflict that names %s", err, r.ID)
	}
	if got := w.replayed("s"); got.Reason != "the subscription is paused" {
		t.Errorf("paused: %+v", got)
	}
}

// What the subscription has not read yet comes by itself, and once.
func TestReplayLeavesTheUnread(t *testing.T) {
	w := newWorld(t, Options{Queue: 4})
	gate := make(chan struct{})
	sink := &recorder{answer: func(event.Delivery) error { <-gate; return nil }}
	s := push("s", "orders", "", sink)
	s.Concurrency = 1
	w.apply(specOf(s))
	w.publish("orders", number("e", 50)...)
	eventually(t, "its queue is full", func() bool { return w.info("s").Outstanding > 0 })
	r := w.replay("s", everything)
	if r.Unread == 0 || r.Unread >= 50 {
		t.Errorf("%+v", r)
	}
	close(gate)
	eventually(t, "all of it", func() bool { return w.replayed("s").State == event.ReplayDone && w.settled("s") })
	if got, want := len(sink.ids()), 100-int(r.Unread); got != want {
		t.Errorf("%d deliveries, want %d", got, want)
	}
}

// The power goes at any moment of a replay: it goes on where it was, every event of the range comes at least once
// more, and what was settled long before does not come again.
func TestReplayThroughPowerCuts(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { replayThroughPowerCuts(t, rand.New(rand.NewPCG(seed, 3))) })
	}
}

func replayThroughPowerCuts(t *testing.T, r *rand.Rand) {
	const n = 3000
	disk := vfs.NewCrashableMem()
	sink := newMarks()
	spec := specOf(push("s", "orders", "", sink))
	spec.Topics[0].Partitions = 1 + r.IntN(3)
	w := &world{t: t, fs: disk}
	cut := make(chan *vfs.MemFS, 1)
	var mu sync.Mutex
	commits := -1 // of the replay's rows, until the power goes
	power := vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(80), RNG: rand.New(rand.NewPCG(r.Uint64(), 2))}
	w.wrap = func(s storage.Store) storage.Store {
		return &cutStore{Store: s, after: func(b *storage.Batch) {
			mu.Lock()
			defer mu.Unlock()
			if commits > 0 && writes(b, tableReplays) {
				if commits--; commits == 0 {
					cut <- disk.CrashClone(power)
				}
			}
		}}
	}
	w.open()
	w.apply(spec)
	w.publish("orders", number("e", n)...)
	eventually(t, "all delivered", func() bool { return w.settled("s") && len(sink.ids()) == n })
	w.flush()
	mu.Lock()
	commits = 2 + r.IntN(4)
	mu.Unlock()
	id := w.replay("s", everything).ID
	var crashed *vfs.MemFS
	eventually(t, "the power goes", func() bool {
		select {
		case crashed = <-cut:
			return true
		default:
			return false
		}
	})
	w.stop()
	if len(sink.of("")) != n {
		t.Fatalf("%d first deliveries", len(sink.of("")))
	}

	again, gate := newMarks(), make(chan struct{})
	again.answer = func(event.Delivery) error { <-gate; return nil }
	spec = specOf(push("s", "orders", "", again))
	spec.Topics[0].Partitions = w.spec.Topics[0].Partitions
	after := &world{t: t, fs: crashed}
	after.open()
	defer after.stop()
	after.apply(spec)
	at := after.replayed("s")
	close(gate)
	if at.ID != id || at.Matched == 0 {
		t.Fatalf("%+v, want replay %s and more than nothing of it", at, id)
	}
	eventually(t, "it is done", after.replayIs("s", event.ReplayDone))
	eventually(t, "all is settled", func() bool { return after.settled("s") })
	if rest := again.of(""); len(rest) != 0 {
		t.Errorf("%d events came again without the mark: the cursor moved", len(rest))
	}
	seen := map[string]bool{}
	for _, x := range append(sink.of(id), again.of(id)...) {
		seen[x] = true
	}
	if got := after.replayed("s"); len(seen) != n || got.Matched != n || got.Done != n {
		t.Errorf("%d of %d events were replayed: %+v", len(seen), n, got)
	}
	if got, want := len(again.of(id)), n-int(at.Done); got != want {
		t.Errorf("%d deliveries after the cut, want %d: it was at %+v", got, want, at)
	}
}

// A cancelled replay delivers what is in hand and nothing else, after a restart neither; the next one is another.
func TestCancelReplay(t *testing.T) {
	w := newWorld(t, Options{})
	gate := make(chan struct{})
	var closed sync.Once
	sink := newMarks()
	sink.answer = func(d event.Delivery) error {
		if _, ok := d.Event.Extension(event.ReplayAttribute); ok {
			<-gate
		}
		return nil
	}
	defer closed.Do(func() { close(gate) })
	s := push("s", "orders", "", sink)
	s.Concurrency = 2
	w.apply(specOf(s))
	w.publish("orders", number("e", 300)...)
	eventually(t, "all delivered", func() bool { return w.settled("s") && len(sink.ids()) == 300 })
	first := w.replay("s", everything)
	eventually(t, "it waits", func() bool { return w.info("s").Parked == 300 })
	got, err := w.e.CancelReplay(t.Context(), "s")
	if err != nil || got.State != event.ReplayCancelled || got.ID != first.ID || got.Ended.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	if again, err := w.e.CancelReplay(t.Context(), "s"); err != nil || again.Ended != got.Ended {
		t.Errorf("cancelled twice: %+v, %v", again, err)
	}
	second := w.replay("s", event.Replay{From: "0-0", To: "0-4"})
	closed.Do(func() { close(gate) })
	eventually(t, "the second is done", w.replayIs("s", event.ReplayDone))
	eventually(t, "nothing waits", func() bool { return w.settled("s") })
	if n := len(sink.of(first.ID)); n > 2 {
		t.Errorf("%d deliveries of a cancelled replay", n)
	}
	if got := sink.of(second.ID); len(got) != 5 {
		t.Errorf("the second replayed %v", got)
	}
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	third := w.replay("s", everything)
	eventually(t, "it is paused", func() bool { return w.replayed("s").Reason == "the subscription is paused" })
	if n := w.info("s").Parked; n != 0 {
		t.Errorf("a paused one made %d rows", n)
	}
	if _, err := w.e.CancelReplay(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if got := w.replayed("s"); got.ID != third.ID || got.State != event.ReplayCancelled {
		t.Errorf("after a restart: %+v", got)
	}
}

// flaky fails, and may be tried again, while down is set.
func flaky(down *atomic.Bool) *marks {
	m := newMarks()
	m.answer = func(event.Delivery) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}
	return m
}

// Rows of a cancelled replay are dropped after a restart as well, also behind others of their key.
func TestCancelledStaysSo(t *testing.T) {
	w := newWorld(t, Options{CircuitFailures: 1 << 20})
	var down atomic.Bool
	sink := flaky(&down)
	s := push("s", "orders", "", sink)
	s.Order, s.Retry = event.ByKey, event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{200 * time.Millisecond}}
	w.apply(specOf(s))
	w.keyed("orders", "k", number("e", 30)...)
	eventually(t, "all delivered", func() bool { return w.settled("s") && len(sink.ids()) == 30 })
	down.Store(true)
	r := w.replay("s", everything)
	eventually(t, "they wait behind the first", func() bool { return w.info("s").Retried > 0 && w.info("s").Parked == 30 && w.rows(tableLanes) == 30 })
	if _, err := w.e.CancelReplay(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	down.Store(false)
	w.restart()
	eventually(t, "nothing waits", func() bool { return w.settled("s") && w.rows(tableLanes) == 0 })
	if n := len(sink.of(r.ID)); n > 1 {
		t.Errorf("%d deliveries of a cancelled replay", n)
	}
}

// A rate is kept on the engine's clock.
func TestReplayRate(t *testing.T) {
	w, h := clocked(t, "2026-11-21T10:00:00Z")
	sink := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", number("e", 40)...)
	eventually(t, "all delivered", func() bool { return w.settled("s") && len(sink.ids()) == 40 })
	w.replay("s", event.Replay{From: earliest, Rate: 10})
	for second, want := range []int{1, 11, 21, 31, 40} {
		w.at(h, fmt.Sprintf("2026-11-21T10:00:0%dZ", second))
		eventually(t, fmt.Sprintf("%d after %d s", want, second), func() bool {
			w.e.alarms.nudge()
			w.e.parked.nudge()
			return len(sink.ids()) == 40+want
		})
		if second == 1 {
			eventually(t, "29 are left", func() bool { return w.replayed("s").Left == 29 })
			w.restart() // and it goes on at the same pace
		}
		eventually(t, "what the next second delivers is placed", func() bool { // a clock that jumps over it would delay the rest
			w.e.alarms.nudge()
			s, err := w.e.subscription("s")
			if err != nil {
				t.Fatal(err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			row := s.replay.row
			return row.left() == 0 || row.Spread-h.now().UnixNano() >= int64(replayAhead)
		})
	}
	eventually(t, "it is done", w.replayIs("s", event.ReplayDone))
}

// A ring that overtakes a replay is counted.
func TestReplayIsOvertaken(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &recorder{}
	spec := specOf(push("s", "orders", "", sink))
	spec.Topics[0].Retain.Events = 20
	w.apply(spec)
	for _, id := range number("e", 10) {
		w.publish("orders", id)
	}
	eventually(t, "all delivered", func() bool { return w.settled("s") })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.replay("s", everything)
	for _, id := range number("f", 200) {
		w.publish("orders", id)
	}
	eventually(t, "the ring turns over", func() bool { return w.e.plan.Load().topics["orders"].parts[0].log.Bounds().Head >= 10 })
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is done", w.replayIs("s", event.ReplayDone))
	if got := w.replayed("s"); got.Lost != 10 || got.Matched != 0 || got.Looked != 0 {
		t.Errorf("%+v; want 10 lost", got)
	}
}

// A replay holds no more than half of the parked space, and goes on when there is room.
func TestReplayWithinParkedSpace(t *testing.T) {
	w := newWorld(t, Options{CircuitFailures: 1 << 20})
	var down atomic.Bool
	sink := flaky(&down)
	s := push("s", "orders", "", sink)
	s.Retry, s.Parked = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{20 * time.Millisecond}}, 16<<10
	w.apply(specOf(s))
	w.publish("orders", number("e", 300)...)
	eventually(t, "all delivered", func() bool { return w.settled("s") && len(sink.ids()) == 300 })
	down.Store(true)
	w.replay("s", everything)
	eventually(t, "it waits for room", func() bool { return strings.Contains(w.replayed("s").Reason, "parked.bytes") })
	if i := w.info("s"); i.ParkedBytes > 12<<10 || i.Parked < 10 { // half of it, and what was in hand by then
		t.Errorf("%+v", i)
	}
	down.Store(false)
	eventually(t, "it is done", w.replayIs("s", event.ReplayDone))
	if n := len(sink.ids()); n != 600 {
		t.Errorf("%d deliveries", n)
	}
}

// A seek moves the cursor, and the replay goes on; what failed and is redriven keeps its id.
func TestReplayThroughSeekAndDeadLetters(t *testing.T) {
	w := newWorld(t, Options{})
	sink := newMarks()
	var down atomic.Bool
	sink.answer = func(d event.Delivery) error {
		if down.Load() {
			return event.Permanent(400, errors.New("no"))
		}
		return nil
	}
	s := push("s", "orders", "", sink)
	w.apply(specOf(s))
	w.publish("orders", number("e", 20)...)
	eventually(t, "all delivered", func() bool { return w.settled("s") && len(sink.ids()) == 20 })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	down.Store(true)
	r := w.replay("s", everything)
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has begun", func() bool { return w.replayed("s").Matched == 20 })
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Latest}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "dead letters", func() bool { return w.info("s").DeadLetters == 20 })
	eventually(t, "it is done", w.replayIs("s", event.ReplayDone))
	down.Store(false)
	w.redrive("s", event.Redrive{})
	eventually(t, "they are delivered", func() bool { return w.settled("s") && len(sink.of(r.ID)) == 20 })
	for _, id := range sink.deliveryIDs()[20:] {
		if !strings.HasSuffix(id, ":"+r.ID) {
			t.Errorf("webhook-id %s", id)
		}
	}
}

// With order: key a replayed event and a live one of the same key are never in hand at the same time.
func TestReplayKeepsLanes(t *testing.T) {
	w := newWorld(t, Options{})
	var mu sync.Mutex
	busy, most := map[string]int{}, 0
	sink := newMarks()
	var order []string
	sink.answer = func(d event.Delivery) error {
		key := strings.Clone(d.Event.Attr(event.TagPartitionKey))
		mu.Lock()
		busy[key]++
		most = max(most, busy[key])
		if _, ok := d.Event.Extension(event.ReplayAttribute); ok && key == "a" {
			order = append(order, strings.Clone(d.Event.Attr(event.TagID)))
		}
		mu.Unlock()
		defer func() { mu.Lock(); busy[key]--; mu.Unlock() }()
		time.Sleep(50 * time.Microsecond)
		return nil
	}
	s := push("s", "orders", "", sink)
	s.Order = event.ByKey
	w.apply(specOf(s))
	w.keyed("orders", "a", number("a", 200)...)
	w.keyed("orders", "b", number("b", 200)...)
	eventually(t, "all delivered", func() bool { return w.settled("s") })
	r := w.replay("s", everything)
	for i := range 20 {
		w.keyed("orders", "a", number(fmt.Sprintf("c%d-", i), 10)...)
	}
	eventually(t, "it is done", w.replayIs("s", event.ReplayDone))
	eventually(t, "all is settled", func() bool { return w.settled("s") })
	if most != 1 {
		t.Errorf("%d of a key in hand", most)
	}
	if !slices.IsSorted(order) || len(order) != 200 {
		t.Errorf("%d in the order %v", len(order), order)
	}
	if n := len(sink.of(r.ID)); n != 400 {
		t.Errorf("%d were replayed", n)
	}
}
