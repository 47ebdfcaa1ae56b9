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

// A leaver is a subscription with events in every place where one can wait: "park" fails, and the others of its key
// wait behind it; "hold" is in hand until it is let go; the rest is not looked at.
type leaver struct {
	*world
	sink *recorder
	down atomic.Bool
	held chan struct{}
	spec SubscriptionSpec
}

var leaverIDs = []string{"park-1", "park-2", "park-3", "hold-4", "hold-5", "rest-6", "rest-7", "rest-8"}

func newLeaver(t *testing.T, fs vfs.FS, wrap func(storage.Store) storage.Store) *leaver {
	l := &leaver{world: &world{t: t, fs: fs, wrap: wrap, o: Options{Flush: time.Hour}}, held: make(chan struct{})}
	l.down.Store(true)
	l.sink = &recorder{answer: func(d event.Delivery) error {
		switch id := d.Event.Attr(event.TagID); {
		case !l.down.Load():
		case strings.HasPrefix(id, "park"):
			return errors.New("not now")
		case strings.HasPrefix(id, "hold"):
			<-l.held
		}
		return nil
	}}
	l.open()
	l.spec = push("s", "orders", `id != "other"`, l.sink)
	l.spec.Order, l.spec.Concurrency = event.ByKey, 4
	l.spec.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Hour}}
	l.apply(specOf(l.spec))
	l.publishKeys("orders", "a/park-1", "b/hold-4")
	eventually(t, "one is parked, one in hand", func() bool { return l.info("s").Parked == 1 && l.info("s").Outstanding == 1 })
	l.publishKeys("orders", "a/park-2", "a/park-3", "b/hold-5", "c/done")
	eventually(t, "others wait behind them", func() bool { return l.info("s").Parked == 3 && l.info("s").Delivered == 1 })
	if err := l.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	l.publish("orders", `rest-6={"n":6}`, `other={"n":9}`, `rest-7={"n":7}`, `rest-8={"n":8}`)
	return l
}

// letGo ends what is in hand.
func (l *leaver) letGo() {
	l.down.Store(false)
	select {
	case <-l.held:
	default:
		close(l.held)
	}
}

func (l *leaver) dead() []string {
	ids := l.ids("s.dead")
	slices.Sort(ids)
	return ids
}

func sortedIDs(ids ...string) []string { return slices.Sorted(slices.Values(ids)) }

// Whatever a subscription that is removed had not delivered becomes a dead letter, once; what it had, or would not
// have got, does not.
func TestWhatARemovedSubscriptionHadIsKept(t *testing.T) {
	l := newLeaver(t, vfs.NewMem(), nil)
	defer l.stop()
	told := 0
	without := specOf(push("t", "orders", "", &recorder{}))
	without.Keep, without.Kept = []string{"s"}, func(_ string, n int) { told += n }
	l.apply(without)
	if got, want := l.dead(), sortedIDs(leaverIDs...); !slices.Equal(got, want) || told != len(want) {
		t.Errorf("kept %q, told %d; want %q", got, told, want)
	}
	for _, rec := range l.records("s.dead") {
		d := letterFrom(rec)
		if d.Reason != "removed" || letterOf(rec) != "s" || !strings.HasPrefix(d.Origin, "orders/0-") {
			t.Errorf("dead letter %+v", d)
		}
	}
	l.letGo()
	eventually(t, "nothing of it is left", func() bool { return l.rows(tableParked)+l.rows(tableLanes)+l.rows(tableParkedSize) == 0 })
	if _, err := l.e.Subscription("s"); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}

	// Made again, it redrives them.
	again := l.spec
	again.Start = event.Start{}
	l.apply(specOf(again))
	done, err := l.e.Redrive(t.Context(), "s", event.Redrive{})
	if err != nil || done.Done != int64(len(leaverIDs)) {
		t.Errorf("redriven %+v, %v", done, err)
	}
}

// Without a dead-letter topic nothing is removed, and the reason is told.
func TestWhatCannotBeKeptStays(t *testing.T) {
	w := newWorld(t, Options{})
	s := push("s", "orders", "", &recorder{})
	s.DeadLetter = ""
	w.apply(specOf(s))
	spec := specOf(push("t", "orders", "", &recorder{}))
	spec.Keep = []string{"s"}
	if err := w.e.Apply(t.Context(), spec); !errors.Is(err, event.ErrConflict) || !strings.Contains(err.Error(), "no dead-letter topic") {
		t.Fatalf("%v", err)
	}
	w.info("s")
}

// What must not go with undelivered events stays if an event came by the time the change is written; what is kept by
// name may go.
func TestLosslessChangeRefusesWhatCameMeanwhile(t *testing.T) {
	for where, publish := range map[string][]string{"behind": {"rest-1", "rest-2"}, "parked": {"park-1"}} {
		w := newWorld(t, Options{})
		s := push("s", "orders", "", &recorder{answer: func(event.Delivery) error { return errors.New("not now") }})
		s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Hour}}
		w.apply(specOf(s))
		without := specOf(push("t", "orders", "", &recorder{}))
		without.Lossless = true
		if where == "behind" {
			if err := w.e.Pause(t.Context(), "s"); err != nil {
				t.Fatal(err)
			}
		}
		w.publish("orders", publish...)
		if where == "parked" {
			eventually(t, "it is parked", func() bool { return w.info("s").Parked == 1 && w.info("s").Outstanding == 0 })
		}
		err := w.e.Apply(t.Context(), without)
		if want := fmt.Sprintf("has %d undelivered", len(publish)); !errors.Is(err, event.ErrConflict) || !strings.Contains(err.Error(), "subscriptions.s") || !strings.Contains(err.Error(), want) {
			t.Fatalf("%s: %v, want: %s", where, err, want)
		}
		w.info("s") // still there
		without.Keep = []string{"s"}
		w.apply(without)
		if got := w.ids("s.dead"); len(got) != len(publish) {
			t.Errorf("%s: kept %q", where, got)
		}
	}
	w := newWorld(t, Options{})
	sink := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", "a")
	eventually(t, "all is delivered", func() bool { return w.settled("s") && len(sink.ids()) == 1 })
	without := specOf(push("t", "orders", "", &recorder{}))
	without.Lossless = true
	w.apply(without)
}

// failingAt refuses one commit, and all after it, once it is armed.
type failingAt struct {
	storage.Store
	left atomic.Int64 // commits that pass; below 0: all
}

var errFailing = errors.New("this store fails")

func (s *failingAt) Commit(ctx context.Context, b *storage.Batch) error {
	if n := s.left.Load(); n == 0 {
		return errFailing
	} else if n > 0 && s.left.Add(-1) < 0 {
		return errFailing
	}
	return s.Store.Commit(ctx, b)
}

// However far the work came before the store failed or the power went: every event is in one place, and the next try
// ends it.
func TestKeptOnceWhateverFails(t *testing.T) {
	for commits := range int64(4) {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(commits, crash), func(t *testing.T) {
				disk := vfs.NewCrashableMem()
				store := &failingAt{}
				store.left.Store(-1)
				l := newLeaver(t, disk, func(s storage.Store) storage.Store { store.Store = s; return store })
				without := specOf(push("t", "orders", "", &recorder{}))
				without.Keep = []string{"s"}
				store.left.Store(commits)
				if err := l.e.Apply(t.Context(), without); !errors.Is(err, errFailing) {
					t.Fatalf("after %d commits: %v", commits, err)
				}
				if crash {
					clone := disk.CrashClone(vfs.CrashCloneCfg{})
					store.left.Store(-1)
					l.letGo()
					l.stop()
					l.fs, l.wrap = clone, nil
					l.open()
					l.down.Store(true)
					l.apply(specOf(l.spec))
				}
				store.left.Store(-1)
				l.apply(without)
				got := slices.DeleteFunc(l.dead(), func(id string) bool { return crash && id == "done" }) // that it was delivered was not flushed
				if want := sortedIDs(leaverIDs...); !slices.Equal(got, want) {
					t.Errorf("kept %q; want %q", got, want)
				}
				l.letGo()
				l.stop()
			})
		}
	}
}

// What the work on a partition did not reach has no row: the checkpoint must not pass it.
func TestKeepThatFailedIsNotPassedByTheCheckpoint(t *testing.T) {
	w := crashWorld(t, Options{Flush: never})
	store := &failingAt{}
	store.left.Store(-1)
	w.stop()
	w.wrap = func(s storage.Store) storage.Store { store.Store = s; return store }
	w.open()
	spec := specOf(push("s", "orders", "", &recorder{}))
	w.apply(spec)
	w.publish("orders", "first")
	eventually(t, "it is delivered", func() bool { return w.info("s").Delivered == 1 })
	w.flush() // from here on the checkpoint is its cursor
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "a", "b")
	s := w.e.plan.Load().subs["s"]
	eventually(t, "the topic's reader has passed them", func() bool { return s.topic.parts[0].live.Load() == 3 })
	store.left.Store(0)
	without := specOf(push("t", "orders", "", &recorder{}))
	without.Keep = []string{"s"}
	if err := w.e.Apply(t.Context(), without); !errors.Is(err, errFailing) {
		t.Fatalf("%v", err)
	}
	store.left.Store(-1)
	s.commits.Lock() // a settlement is under way
	w.flush()
	s.commits.Unlock()

	after, sink := w.powerCut(Options{Flush: never}, nil), &recorder{}
	after.apply(specOf(push("s", "orders", "", sink)))
	if err := after.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was not delivered is", func() bool { return slices.Contains(sink.ids(), "a") && slices.Contains(sink.ids(), "b") })
}

// What a replay had parked and is kept before the removal fails does not keep the replay from its end.
func TestReplayEndsAfterAKeepThatFailed(t *testing.T) {
	store := &failingAt{}
	store.left.Store(-1)
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Flush: never}, wrap: func(s storage.Store) storage.Store { store.Store = s; return store }}
	w.open()
	defer w.stop()
	var down atomic.Bool
	spec := push("s", "orders", "", &recorder{answer: func(event.Delivery) error {
		if down.Load() {
			return errors.New("not now")
		}
		return nil
	}})
	spec.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Hour}}
	w.apply(specOf(spec))
	w.publish("orders", "a", "b")
	eventually(t, "they are delivered", func() bool { return w.info("s").Delivered == 2 })
	w.flush()
	down.Store(true)
	w.replay("s", everything)
	eventually(t, "the replay's are tried", func() bool { return w.info("s").Parked == 2 && w.info("s").Retried == 2 })
	without := specOf(push("t", "orders", "", &recorder{}))
	without.Keep = []string{"s"}
	store.left.Store(1) // the rows are kept, the cursor is not
	if err := w.e.Apply(t.Context(), without); !errors.Is(err, errFailing) {
		t.Fatalf("%v", err)
	}
	store.left.Store(-1)
	eventually(t, "the replay is done", w.replayIs("s", event.ReplayDone))
}

// A lease that runs out while the backlog is kept waits for that, and not the clock of all with it.
func TestLeasesWaitWhileABacklogIsKept(t *testing.T) {
	w := newWorld(t, Options{Flush: never})
	w.apply(specOf(pullSpec("s", "orders", "s.dead"), push("other", "orders", "", &recorder{})))
	w.publish("orders", "a")
	w.pull("s", 1)
	s := w.e.plan.Load().subs["s"]
	s.commits.Lock() // as salvage does
	s.mu.Lock()
	s.seeking = true
	s.mu.Unlock()
	ticked := make(chan int64, 1)
	go func() { ticked <- s.tick(t.Context(), w.e.now().Add(time.Minute)) }()
	select {
	case at := <-ticked:
		if at != 0 || w.info("s").Leased != 1 {
			t.Errorf("the next look is at %d, %d are leased", at, w.info("s").Leased)
		}
		s.commits.Unlock()
	case <-time.After(time.Minute):
		t.Error("the clock waits for the commits of one subscription")
		s.commits.Unlock()
		<-ticked
	}
	s.mu.Lock()
	s.seeking = false
	s.lookNow()
	s.mu.Unlock()
}

// A removal that is refused for one subscription has moved nothing of another.
func TestRefusedKeepMovesNothing(t *testing.T) {
	w := newWorld(t, Options{Flush: never})
	poor := push("u", "orders", "", &recorder{})
	poor.DeadLetter = ""
	w.apply(specOf(push("s", "orders", "", &recorder{}), poor))
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "a")
	without := specOf(push("t", "orders", "", &recorder{}))
	without.Keep = []string{"s", "u"}
	if err := w.e.Apply(t.Context(), without); !errors.Is(err, event.ErrConflict) {
		t.Fatalf("%v", err)
	}
	if got := w.ids("s.dead"); len(got) != 0 {
		t.Errorf("%q are dead letters of a removal that was refused", got)
	}
}

// A subscription whose removal failed goes on where it was.
func TestWhatIsNotRemovedGoesOn(t *testing.T) {
	store := &failingAt{}
	store.left.Store(-1)
	l := newLeaver(t, vfs.NewMem(), func(s storage.Store) storage.Store { store.Store = s; return store })
	defer l.stop()
	without := specOf(push("t", "orders", "", &recorder{}))
	without.Keep = []string{"s"}
	store.left.Store(1) // what was parked is kept by then
	if err := l.e.Apply(t.Context(), without); !errors.Is(err, errFailing) {
		t.Fatalf("%v", err)
	}
	store.left.Store(-1)
	l.letGo()
	if err := l.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	eventually(t, "every event is delivered or kept", func() bool {
		for _, id := range append(l.sink.ids(), l.dead()...) {
			got[id] = true
		}
		return !slices.ContainsFunc(leaverIDs, func(id string) bool { return !got[id] })
	})
	if got["other"] {
		t.Error("what does not match was delivered or kept")
	}
}

// Of a subscription that is two each half keeps what it has: events that the functions have not seen, and what they made
// of others.
func TestBothHalvesAreKept(t *testing.T) {
	w, digests := stateWorld(t)
	sink := &outputs{}
	sink.answer = func(event.Delivery) error { return errors.New("down") }
	spec := keeping(through(digests[0], 1, sink, func(s *SubscriptionSpec) { s.Retry.Attempts = 1000 }))
	w.apply(spec)
	w.publish("orders", "a=an=1", "b=an=1")
	eventually(t, "deliveries fail", func() bool { return w.info("s").Parked == 2 })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "c=an=1")
	without := Spec{Topics: spec.Topics, Keep: []string{"s"}}
	w.apply(without)
	var got []string
	for _, rec := range w.records(spec.Subscriptions[0].DeadLetter) {
		half, _ := rec.Extension("deadletterhalf")
		got = append(got, rec.Attr(event.TagID)+" "+half.Value)
	}
	if slices.Sort(got); !slices.Equal(got, []string{"a~s~0 delivery", "b~s~0 delivery", "c function"}) {
		t.Errorf("kept %q", got)
	}
	w.restart()
	if n := len(w.records(spec.Subscriptions[0].DeadLetter)); n != 3 {
		t.Errorf("%d dead letters after a restart", n)
	}
}

// Rows of revisions that are damaged are said in words, and do not end the router.
func TestDamagedRevisions(t *testing.T) {
	w := newWorld(t, Options{})
	old := slices.Repeat([]Revision{{Files: []RevisionFile{{Name: "x", Digest: "sha"}, {Name: "y", Digest: "sha256:00"}}}}, maxRevisions+1)
	if _, ops, err := w.e.KeepRevision(t.Context(), old, Revision{}, nil); err != nil || len(ops) != 3 {
		t.Errorf("%d changes, want a row and the removal of two: %v", len(ops), err)
	}
	if err := w.e.store.Commit(t.Context(), &storage.Batch{Ops: []storage.Op{put(tableRevisions, []byte("fx"), []byte("y"))}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.e.Revisions(t.Context()); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
	for _, c := range []struct {
		begins, next, ends event.Offset
		whole              bool
	}{{1, 1, 1, true}, {1, 2, 3, true}, {2, 1, 3, false}, {1, 4, 3, false}} {
		r := replayRow{Begins: []event.Offset{c.begins}, Next: []event.Offset{c.next}, Ends: []event.Offset{c.ends}}
		if r.whole(1) != c.whole || r.whole(2) {
			t.Errorf("a replay of %+v", c)
		}
	}
}

// The oldest revisions go with files that no other has.
func TestRevisionsAreBoundedAndFilesKeptOnce(t *testing.T) {
	w := newWorld(t, Options{})
	var have []Revision
	for i := range maxRevisions + 3 {
		files := map[string][]byte{"rules.yaml": fmt.Appendf(nil, "revision %d", i), "f.wasm": slices.Repeat([]byte{1}, revisionChunk+10)}
		next, ops, err := w.e.KeepRevision(t.Context(), have, Revision{Revision: fmt.Sprintf("sha256:%064d", i), Source: "api"}, files)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.e.store.Commit(t.Context(), &storage.Batch{Ops: ops}); err != nil {
			t.Fatal(err)
		}
		have = next
	}
	// Saved, and never committed: swept with the next start.
	if _, _, err := w.e.KeepRevision(t.Context(), have, Revision{}, map[string][]byte{"x": []byte("lost")}); err != nil {
		t.Fatal(err)
	}
	rows := w.rows(tableRevisions)
	w.stop()
	w.open()
	all, err := w.e.Revisions(t.Context())
	if err != nil || len(all) != maxRevisions || all[0].Number != maxRevisions+3 || all[len(all)-1].Number != 4 {
		t.Fatalf("%d revisions, %v", len(all), err)
	}
	if got := w.rows(tableRevisions); got != rows-1 || got != 2*maxRevisions+2 { // a row and a file each, and the two parts of f.wasm
		t.Errorf("%d rows, before %d", got, rows)
	}
	files, err := w.e.RevisionFiles(t.Context(), all[5])
	if err != nil || string(files["rules.yaml"]) != fmt.Sprintf("revision %d", maxRevisions+2-5) || len(files["f.wasm"]) != revisionChunk+10 {
		t.Errorf("%q, %v", files["rules.yaml"], err)
	}
	if r, err := FindRevision(all, "7"); err != nil || r.Number != 7 || r.ID() != "7-000000000000" {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := FindRevision(all, "1"); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("%v", err)
	}
}
