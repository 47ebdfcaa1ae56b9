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

// whereabouts counts, for each event id, unfinished letters and parked rows.
func (w *world) whereabouts(name string) map[string]int {
	w.t.Helper()
	at := map[string]int{}
	for _, l := range w.letters(name, event.LetterQuery{}) {
		at[strings.Clone(l.ID)]++
	}
	err := w.e.store.Scan(w.t.Context(), tableParked, nil, nil, func(k, v []byte) error {
		_, rec, err := parseParked(k, v)
		if err == nil {
			at[strings.Clone(rec.Attr(event.TagID))]++
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return at
}

// A power cut at any moment of a redrive, of two at the same time even: every event is an unfinished letter or
// a parked row, and never both or neither. The count of what is parked is right, too.
func TestRedriveThroughPowerCuts(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { redriveThroughPowerCuts(t, rand.New(rand.NewPCG(seed, 11))) })
	}
}

func redriveThroughPowerCuts(t *testing.T, r *rand.Rand) {
	const n = 700 // several batches
	disk := vfs.NewCrashableMem()
	sink := newMending()
	sub := push("s", "orders", "", sink)
	spec := specOf(sub)
	spec.Topics[1].Partitions = 1 + r.IntN(2)
	w := &world{t: t, fs: disk}
	cut := make(chan *vfs.MemFS, 1)
	var mu sync.Mutex
	commits := -1 // of letters that are finished, until the power goes
	power := vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(80), RNG: rand.New(rand.NewPCG(r.Uint64(), 2))}
	w.wrap = func(s storage.Store) storage.Store {
		return &cutStore{Store: s, after: func(b *storage.Batch) {
			mu.Lock()
			defer mu.Unlock()
			if commits > 0 && (writes(b, tableLettersDone) || writes(b, tableLetterFloor)) {
				if commits--; commits == 0 {
					cut <- disk.CrashClone(power)
				}
			}
		}}
	}
	w.open()
	w.apply(spec)
	w.publish("orders", number("e", n)...)
	w.dies("s", n)
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	commits = 1 + r.IntN(5)
	mu.Unlock()
	var redrives sync.WaitGroup
	for range 2 {
		redrives.Go(func() {
			if _, err := w.e.Redrive(t.Context(), "s", event.Redrive{}); err != nil {
				t.Error(err)
			}
		})
	}
	redrives.Wait()
	if got := w.info("s"); got.Parked != n || got.DeadLetters != 0 || got.Redriven != n {
		t.Errorf("two redrives at a time: %+v", got)
	}
	crashed := <-cut
	w.stop()

	after := &world{t: t, fs: crashed}
	after.open()
	defer after.stop()
	after.apply(spec)
	at := after.whereabouts("s")
	for _, id := range number("e", n) {
		if at[id] != 1 {
			t.Fatalf("%s is in %d places", id, at[id])
		}
	}
	rows, left := after.rows(tableParked), len(after.letters("s", event.LetterQuery{}))
	if i := after.info("s"); rows == 0 || rows+left != n || i.Parked != int64(rows) {
		t.Errorf("%d rows and %d letters, %d parked", rows, left, i.Parked)
	}
	after.dies("s", int64(left))
	sink.down.Store(false)
	if d := after.redrive("s", event.Redrive{}); d.Done != int64(left) {
		t.Errorf("%+v of %d", d, left)
	}
	if err := after.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all delivered", func() bool { return after.settled("s") })
	if got := slices.Sorted(slices.Values(sink.ids())); !slices.Equal(got, number("e", n)) {
		t.Errorf("%d deliveries of %d events", len(got), n)
	}
}

// A store that refuses leaves letters as they were, and what is parked is counted right.
func TestRedriveOfRefusedCommits(t *testing.T) {
	var refuse atomic.Bool
	w := &world{t: t, fs: vfs.NewMem()}
	w.wrap = func(s storage.Store) storage.Store { return &lettersRefused{s, &refuse} }
	w.open()
	defer w.stop()
	sink := newMending()
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", number("e", 10)...)
	w.dies("s", 10)
	refuse.Store(true)
	if d, err := w.e.Redrive(t.Context(), "s", event.Redrive{}); !errors.Is(err, event.ErrUnavailable) || d.Done != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := w.e.Purge(t.Context(), "s", event.Purge{All: true}); !errors.Is(err, event.ErrUnavailable) {
		t.Error(err)
	}
	if i := w.info("s"); i.Parked != 0 || i.ParkedBytes != 0 || i.DeadLetters != 10 || i.Redriven != 0 || i.Purged != 0 {
		t.Errorf("%+v", i)
	}
	refuse.Store(false)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := w.e.Redrive(ended, "s", event.Redrive{}); err == nil && d.Done != 0 {
		t.Errorf("%+v of a call that had ended", d)
	}
	sink.down.Store(false)
	w.redrive("s", event.Redrive{})
	eventually(t, "all delivered", func() bool { return w.settled("s") && len(sink.ids()) == 10 })
}

type lettersRefused struct {
	storage.Store
	refuse *atomic.Bool
}

func (s *lettersRefused) Commit(ctx context.Context, b *storage.Batch) error {
	if s.refuse.Load() && writes(b, tableLettersDone) {
		return event.ErrUnavailable
	}
	return s.Store.Commit(ctx, b)
}

// Of a subscription whose functions keep state each letter enters where it failed: a delivery is not counted
// again, and what the function rejected is shown to it again.
func TestRedriveOfHalves(t *testing.T) {
	w, digests := stateWorld(t)
	sink := newMending()
	w.apply(keeping(through(digests[0], 1, sink, nil)))
	w.publish("orders", "a=an=1", "b=an=1;x", "c=an=1")
	w.dies("s", 3)
	halves := map[string]string{}
	for _, l := range w.letters("s", event.LetterQuery{}) {
		halves[strings.Clone(l.ID)] = l.Half
	}
	if len(halves) != 3 || halves["b"] != "function" || halves["a~s~0"] != "delivery" || halves["c~s~0"] != "delivery" {
		t.Fatalf("%v", halves)
	}
	if d := w.redrive("s", event.Redrive{Function: "f0"}); d.Done != 1 || d.Skipped != 2 || d.Why == "" {
		t.Errorf("with a version: %+v", d)
	}
	eventually(t, "rejected again", func() bool { return w.info("s").DeadLettered == 4 && w.info("s").DeadLetters == 3 })
	sink.down.Store(false)
	if d := w.redrive("s", event.Redrive{}); d.Done != 3 {
		t.Errorf("%+v", d)
	}
	eventually(t, "delivered, and rejected again", func() bool { return w.rest("s") && w.info("s").DeadLettered == 5 })
	w.dies("s", 1)
	if got := sink.sorted(); !slices.Equal(got, []string{"a~s~0=1", "c~s~0=2"}) || w.value("s", "f0", "n") != "2" {
		t.Errorf("delivered %q, n is %q", got, w.value("s", "f0", "n"))
	}
	dids := sink.deliveryIDs()
	if slices.Sort(dids); len(dids) != 4 || len(slices.Compact(dids)) != 2 {
		t.Errorf("delivery ids %q", dids)
	}
	if l := w.letters("s", event.LetterQuery{})[0]; l.Redrives != 2 || l.Half != "function" || l.Reason != "reject" || strings.Count(string(l.Story), `"at"`) != 3 {
		t.Errorf("%+v, story %s", l, l.Story)
	}
}

// A redrive with a version runs that one, retries and restarts included, while all else runs the one in force.
func TestRedriveWithAVersion(t *testing.T) {
	w, host, d := versionWorld(t, Options{}, versionGuest(t, version("bad", "TRAP=1")...), versionGuest(t, version("good")...))
	sink := newMending()
	answer := sink.answer
	var failing atomic.Bool
	failing.Store(true)
	sink.answer = func(x event.Delivery) error {
		if failing.Load() {
			return errors.New("busy")
		}
		return answer(x)
	}
	sink.down.Store(false)
	change := func(s *SubscriptionSpec) { s.Retry.Attempts = 1000 }
	once := func(s *SubscriptionSpec) { s.Retry.Attempts = 1 }
	w.apply(through(d[0], 2, sink, once))
	w.publish("orders", "x=1", "y=2")
	w.dies("s", 2)
	w.spec = through(d[0], 2, sink, change)
	w.spec.Subscriptions[0].Fingerprint = "more attempts"
	w.apply(w.spec)

	for f, kind := range map[string]error{"f0@sha256:00000000": event.ErrNotFound, "f0@" + d[1][:12]: event.ErrInvalid, "other@" + d[1]: event.ErrConflict} {
		if _, err := w.e.Redrive(t.Context(), "s", event.Redrive{Function: f}); !errors.Is(err, kind) {
			t.Errorf("%s: %v", f, err)
		}
	}
	// Of the chain of two the first is chosen; the second traps for good, until it is chosen as well.
	w.spec.Functions[1].Digest = d[1]
	w.apply(w.spec)
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if r := w.redrive("s", event.Redrive{Function: "f0@" + d[1][:15], LetterQuery: event.LetterQuery{Filter: `id == "x"`}}); r.Done != 1 {
		t.Errorf("%+v", r)
	}
	named := map[string]bool{}
	if err := parkedDigests(t.Context(), w.e.store, named); err != nil || !named[d[1]] {
		t.Errorf("what is parked names %v, %v", named, err)
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is tried again and again", func() bool { return w.info("s").Retried > 3 })
	w.restart()
	if _, err := w.e.CollectModules(t.Context(), time.Now().Add(time.Hour)); err != nil || !host.Has(d[1]) {
		t.Errorf("the version was collected: %v", err)
	}
	failing.Store(false)
	eventually(t, "delivered", func() bool { return len(sink.ids()) == 1 && w.settled("s") })
	if got := sink.sorted(); strings.Count(got[0], `"version":"good"`) != 2 || strings.Contains(got[0], "bad") {
		t.Errorf("delivered %q", got)
	}
	w.publish("orders", "z=3")
	w.redrive("s", event.Redrive{}) // with the one in force
	eventually(t, "the one in force traps", func() bool { return w.info("s").Parked == 2 && len(sink.ids()) == 1 })
	w.e.choices.rest(t.Context(), w.e, w.e.now().Add(time.Hour))
	if n := len(w.e.choices.open); n != 0 {
		t.Errorf("%d versions stay open", n)
	}
}

// With order: key redriven events of a key go out one at a time, in their order.
func TestRedriveInOrder(t *testing.T) {
	w := newWorld(t, Options{})
	var down atomic.Bool
	down.Store(true)
	sink := newKeyed(t, func(event.Delivery) error {
		if down.Load() {
			return event.Permanent(400, errors.New("no"))
		}
		time.Sleep(100 * time.Microsecond) // so that two of a key would meet
		return nil
	})
	w.apply(specOf(ordered("s", sink)))
	var events []string
	for i := range 120 {
		events = append(events, fmt.Sprintf("k%d/e%03d", i%3, i))
	}
	w.publishKeys("orders", events...)
	w.dies("s", 120)
	down.Store(false)
	sink.kmu.Lock()
	clear(sink.first) // they went out for the first time before
	sink.kmu.Unlock()
	w.redrive("s", event.Redrive{})
	eventually(t, "all delivered", func() bool { return len(sink.ids()) == 120 && w.settled("s") && w.idle("s") })
	if got := slices.Sorted(slices.Values(sink.ids())); len(slices.Compact(got)) != 120 {
		t.Errorf("%d different events", len(slices.Compact(got)))
	}
}

// Dead letters whose ways go round are refused, whoever defines them; what functions put out is bounded by hops,
// and what has gone too far is a dead letter that stays one.
func TestDeadLettersDoNotGoRound(t *testing.T) {
	w := newWorld(t, Options{})
	a, b := push("s", "orders", "", newMending()), push("mend", "s.dead", "", newMending())
	b.DeadLetter = "orders"
	err := w.e.Apply(t.Context(), specOf(a, b))
	if !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "s reads orders and puts its dead letters into s.dead; mend reads s.dead and puts its dead letters into orders") {
		t.Errorf("%v", err)
	}
	self := push("s", "orders", "", newMending())
	self.DeadLetter = "orders"
	if err := w.e.Apply(t.Context(), specOf(self)); !errors.Is(err, event.ErrInvalid) {
		t.Errorf("%v", err)
	}
	// A way round by deliveries to topics ends by hops, in a dead letter, which can be looked at and purged.
	there, back := push("there", "orders", "", nil), push("back", "pong", "", nil)
	there.OpenSink, there.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: "pong"}
	back.OpenSink, back.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: "orders"}
	w.apply(specOf(there, back))
	w.publish("orders", "e=1")
	eventually(t, "it is given up", func() bool { return w.info("there").DeadLetters+w.info("back").DeadLetters == 1 })
	name := "there"
	if w.info("back").DeadLetters == 1 {
		name = "back"
	}
	l := w.letters(name, event.LetterQuery{})[0]
	if l.Reason != "hops" || l.ID != "e" || l.Event.Hops() != maxHops+1 {
		t.Errorf("%+v after %d hops", l, l.Event.Hops())
	}
	if d := w.redrive(name, event.Redrive{}); d.Done != 1 {
		t.Errorf("%+v", d)
	}
	eventually(t, "it is given up again, once", func() bool { return w.info(name).DeadLettered == 2 && w.settled(name) && w.info(name).DeadLetters == 1 })
	if l := w.letters(name, event.LetterQuery{})[0]; l.Redrives != 1 || l.Event.Hops() != maxHops+1 {
		t.Errorf("%+v after %d hops", l, l.Event.Hops())
	}
}

// Two dead letters of one event, as a seek back makes them, and the event itself once more, are three
// deliveries; none gets lost in another, for pullers neither.
func TestRedriveOfOnePositionTwice(t *testing.T) {
	w := newWorld(t, Options{})
	sub := pullSpec("s", "orders", "s.dead")
	w.apply(specOf(sub))
	w.publish("orders", "a", "b")
	kill := func() {
		for range 2 * leaseAttempts {
			leases := w.pull("s", 1)
			if lost, err := w.e.Nack(t.Context(), "s", leaseIDs(leases), 0); err != nil || len(lost) > 0 {
				t.Fatal(lost, err)
			}
		}
	}
	kill()
	for n := range 2 {
		if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			kill()
		}
	}
	w.dies("s", 4)
	if d := w.redrive("s", event.Redrive{}); d.Done != 4 {
		t.Errorf("%+v", d)
	}
	leases := w.pull("s", 6)
	if ids := slices.Sorted(slices.Values(eventIDs(leases))); !slices.Equal(ids, []string{"a", "a", "a", "b", "b", "b"}) {
		t.Errorf("leased %q", ids)
	}
	if ids := leaseIDs(leases); len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 6 {
		t.Errorf("leases %q", ids)
	}
	if lost := w.ack("s", leases); len(lost) > 0 {
		t.Errorf("lost %q", lost)
	}
	eventually(t, "all settled", func() bool { return w.settled("s") })
}

// The place of an event in a topic that was deleted and made again is another event's now: the redriven one
// takes neither its delivery id nor its fate.
func TestRedriveAfterTheTopicWasMadeAnew(t *testing.T) {
	w := newWorld(t, Options{})
	sink := newMending()
	spec := specOf(push("s", "orders", "", sink))
	w.apply(spec)
	w.publish("orders", "old")
	w.dies("s", 1)
	w.apply(Spec{})
	if err := w.e.DeleteTopic(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	w.apply(spec)
	sink.down.Store(false)
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "new")
	w.dies("s", 1)
	w.redrive("s", event.Redrive{})
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil { // reads again what can be
		t.Fatal(err)
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both delivered", func() bool { return len(sink.ids()) == 2 })
	dids := slices.Compact(slices.Sorted(slices.Values(sink.deliveryIDs())))
	if len(dids) != 3 || slices.Compact(slices.Sorted(slices.Values(sink.ids())))[0] != "new" {
		t.Errorf("delivery ids %q", dids)
	}
}
