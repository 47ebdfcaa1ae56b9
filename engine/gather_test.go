package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// batcher is a sink that takes several events at once.
type batcher struct {
	events, bytes int
	wait          time.Duration
	answer        func(try int, ids []string, ds []event.Delivery) error // called one at a time

	mu    sync.Mutex
	sends []sentBatch
	taken []string // ids of events, in order
}

type sentBatch struct {
	attempt    int
	ids        []string // of the events
	deliveries string   // ids of the deliveries
	keys       []string
	bytes      int
	err        error
}

func (b *batcher) Batch() (int, int, time.Duration) { return b.events, b.bytes, b.wait }
func (b *batcher) Close() error                     { return nil }

func (b *batcher) Deliver(_ context.Context, ds []event.Delivery) error {
	s := sentBatch{attempt: ds[0].Attempt}
	for _, d := range ds {
		s.ids = append(s.ids, strings.Clone(d.Event.Attr(event.TagID)))
		s.keys = append(s.keys, strings.Clone(d.Event.Attr(event.TagPartitionKey)))
		s.deliveries += d.ID + " "
		s.bytes += len(d.Event)
		if d.Attempt != s.attempt {
			s.attempt = -1
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answer != nil {
		s.err = b.answer(s.attempt, s.ids, ds)
	}
	b.sends = append(b.sends, s)
	var p *event.Partial
	for i, id := range s.ids {
		if s.err == nil || errors.As(s.err, &p) && p.Errs[i] == nil {
			b.taken = append(b.taken, id)
		}
	}
	return s.err
}

func (b *batcher) all() []sentBatch {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.sends)
}

// got are the ids that were taken, sorted.
func (b *batcher) got() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(slices.Values(b.taken))
}

// errDown is of a kind that says nothing about the target: its circuit stays closed.
var errDown = &event.RetryAfter{Err: errors.New("answered 422"), Code: 422}

func sizes(bs []sentBatch) []int {
	var n []int
	for _, b := range bs {
		n = append(n, len(b.ids))
	}
	return n
}

func TestBatchesWithinTheirBounds(t *testing.T) {
	w := newWorld(t, Options{})
	a, b := &batcher{events: 10, bytes: 1 << 20}, &batcher{events: 1000, bytes: 4000}
	w.apply(specOf(push("a", "orders", "", a), push("b", "orders", "", b)))
	ids := number("e", 200)
	var large []string
	for i, id := range ids {
		large = append(large, id+`="`+strings.Repeat("x", 1000*(i%7))+`"`)
	}
	w.publish("orders", large...)
	eventually(t, "all are delivered", func() bool { return len(a.got()) == 200 && len(b.got()) == 200 })
	if !slices.Equal(a.got(), ids) || !slices.Equal(b.got(), ids) {
		t.Error("an event is missing, or was sent twice")
	}
	if n := slices.Max(sizes(a.all())); n != 10 {
		t.Errorf("a batch of %d events, want 10 at most, and as many where they are queued", n)
	}
	for _, s := range b.all() {
		if s.bytes > 4000 && len(s.ids) > 1 {
			t.Errorf("%d events of %d bytes in one batch", len(s.ids), s.bytes)
		}
	}
	if n := len(b.all()); n > 150 {
		t.Errorf("%d batches for 200 events", n)
	}
}

// What trickles in fills one batch, however many senders there are; a full one does not wait, nor does what came in
// time wait for longer than it should.
func TestGathering(t *testing.T) {
	w := newWorld(t, Options{})
	full, timed := &batcher{events: 5, bytes: 1 << 20, wait: time.Minute}, &batcher{events: 5, bytes: 1 << 20, wait: 30 * time.Millisecond}
	a, b := push("full", "orders", `data != "z"`, full), push("timed", "orders", `data == "z"`, timed)
	w.apply(specOf(a, b))
	for _, id := range number("e", 9) {
		w.publish("orders", id+`="n"`)
	}
	eventually(t, "a full batch", func() bool { return len(full.all()) == 1 })
	w.publish("orders", `last="n"`)
	eventually(t, "another one", func() bool { return len(full.all()) == 2 })
	if got := sizes(full.all()); !slices.Equal(got, []int{5, 5}) {
		t.Errorf("batches of %v", got)
	}
	w.publish("orders", `y="z"`, `x="z"`)
	eventually(t, "what came in time", func() bool { return len(timed.got()) == 2 })
	if got := sizes(timed.all()); !slices.Equal(got, []int{2}) {
		t.Errorf("batches of %v", got)
	}
}

// The bytes bound ends the wait too, and so does as much as the queue holds.
func TestGatheringEndsWhenNoMoreFits(t *testing.T) {
	w := newWorld(t, Options{Queue: 16})
	bytes, events := &batcher{events: 1000, bytes: 3000, wait: time.Minute}, &batcher{events: 1000, bytes: 1 << 20, wait: time.Minute}
	w.apply(specOf(push("bytes", "large", "", bytes), push("events", "orders", "", events)))
	w.publish("large", `a="`+strings.Repeat("x", 1500)+`"`)
	w.publish("large", `b="`+strings.Repeat("x", 2500)+`"`)
	eventually(t, "the first went without the second", func() bool { return len(bytes.got()) == 1 })
	for i := range 10 {
		w.publish("orders", number(fmt.Sprint("e", i), 100)...)
	}
	eventually(t, "a batch larger than the queue", func() bool { return len(events.got()) == 1000 })
}

func TestPartialFailureRetriesOnlyTheFailed(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &batcher{events: 10, bytes: 1 << 20, wait: 20 * time.Millisecond}
	sink.answer = func(try int, ids []string, _ []event.Delivery) error {
		errs := make([]error, len(ids))
		for i, id := range ids {
			switch {
			case id == "e00003":
				errs[i] = event.Permanent(422, errors.New("not this one"))
			case (id == "e00005" || id == "e00007") && try < 3:
				errs[i] = &event.RetryAfter{Err: errors.New("busy"), Code: 503}
			}
		}
		if slices.IndexFunc(errs, func(err error) bool { return err != nil }) < 0 {
			return nil
		}
		return &event.Partial{Errs: errs}
	}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 3, Schedule: []time.Duration{250 * time.Millisecond}, Jitter: 0.5}
	w.apply(specOf(s))
	ids := number("e", 10)
	w.publish("orders", ids...)
	eventually(t, "all settled", func() bool { return w.settled("s") })
	want := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == "e00003" })
	if got := sink.got(); !slices.Equal(got, want) {
		t.Errorf("taken %v, want each but one, once", got)
	}
	if got := w.ids("s.dead"); !slices.Equal(got, []string{"e00003"}) {
		t.Errorf("dead letters %v", got)
	}
	for _, b := range sink.all()[1:] {
		if !slices.Equal(b.ids, []string{"e00005", "e00007"}) {
			t.Errorf("sent again: %v, want the two that failed, together", b.ids)
		}
	}
	if n := len(sink.all()); n != 3 {
		t.Errorf("%d sends, want 3: %v", n, sizes(sink.all()))
	}
	if i := w.info("s"); i.Delivered != 9 || i.Failed != 5 || i.DeadLettered != 1 {
		t.Errorf("counted %d delivered, %d failed, %d dead", i.Delivered, i.Failed, i.DeadLettered)
	}
}

// A batch that failed whole goes out again with the same members, in the same order and without others, also after a
// restart; each of its events has had one more try.
func TestWholeBatchIsResentAsItWas(t *testing.T) {
	w := newWorld(t, Options{})
	var hold bool
	sink := &batcher{events: 300, bytes: 1 << 20, wait: 5 * time.Millisecond}
	sink.answer = func(try int, ids []string, _ []event.Delivery) error {
		if try < 3 || hold {
			return errDown
		}
		return nil
	}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 50, Schedule: []time.Duration{time.Millisecond, 100 * time.Millisecond}}
	s.Concurrency = 3
	spec := specOf(s)
	spec.Topics[0].Partitions = 4 // what comes from them comes mixed
	w.apply(spec)
	sink.mu.Lock()
	hold = true
	sink.mu.Unlock()
	for i := range 20 {
		w.publish("orders", number(fmt.Sprintf("e%02d-", i), 60)...)
	}
	eventually(t, "every event has had three tries", func() bool {
		n := 0
		for _, b := range sink.all() {
			if b.attempt == 3 {
				n += len(b.ids)
			}
		}
		return n == 1200
	})
	w.restart()
	before := len(sink.all())
	sink.mu.Lock()
	hold = false
	sink.mu.Unlock()
	w.publish("orders", number("late", 30)...)
	eventually(t, "all settled", func() bool { return w.settled("s") })
	if len(sink.all()) == before || len(sink.got()) != 1230 {
		t.Errorf("%d events taken, want 1230", len(sink.got()))
	}
	first := map[string]bool{}
	for i, b := range sink.all() {
		switch {
		case b.attempt < 1:
			t.Errorf("events of several attempts in one batch: %v", b.ids)
		case b.attempt == 1:
			first[b.deliveries] = true
		case !first[b.deliveries]:
			t.Errorf("send %d, attempt %d: %d events that were no batch before: %.200s", i, b.attempt, len(b.ids), b.deliveries)
		}
	}
	if got := sizes(sink.all()); slices.Max(got) < 256 {
		t.Errorf("the largest batch had %d events: more than are fetched at once are to be tried", slices.Max(got))
	}
}

// broken is a store whose next reading of parked rows ends after some.
type broken struct {
	storage.Store
	after atomic.Int32 // rows; 0: it is whole
}

func (b *broken) Scan(ctx context.Context, t storage.Table, from, to []byte, fn func(key, value []byte) error) error {
	n := b.after.Load()
	if t != tableParked || n == 0 {
		return b.Store.Scan(ctx, t, from, to, fn)
	}
	return b.Store.Scan(ctx, t, from, to, func(k, v []byte) error {
		if n--; n < 0 {
			b.after.Store(0)
			return event.ErrUnavailable
		}
		return fn(k, v)
	})
}

// Reading may end in the middle of a batch, by a fault of the disk or because the router stops: what is read of it by
// then does not go out on its own.
func TestHalfReadBatchIsNotSent(t *testing.T) {
	w := &world{t: t, fs: vfs.NewMem()}
	store := &broken{}
	w.wrap = func(s storage.Store) storage.Store {
		store.Store = s
		return store
	}
	w.open()
	defer w.stop()
	sink := &batcher{events: 50, bytes: 1 << 20, wait: 20 * time.Millisecond}
	sink.answer = func(try int, _ []string, _ []event.Delivery) error {
		if try == 1 {
			store.after.Store(13)
			return errDown
		}
		return nil
	}
	s := push("s", "orders", "", sink)
	s.Retry = event.RetryPolicy{Attempts: 50, Schedule: []time.Duration{time.Millisecond}}
	w.apply(specOf(s))
	w.publish("orders", number("e", 50)...)
	eventually(t, "all settled", func() bool { return w.settled("s") })
	if got := sizes(sink.all()); store.after.Load() != 0 || !slices.Equal(got, []int{50, 50}) {
		t.Errorf("batches of %v", got)
	}
}

// Whatever ends the wait: what was gathered goes out at once where that is the last chance, and waits in its place
// where it shall not go now or another definition is in force.
func TestGatheringIsInterrupted(t *testing.T) {
	three := []string{"a", "b", "c"}
	for name, do := range map[string]func(t *testing.T, w *world, s SubscriptionSpec, sink *batcher){
		"pause": func(t *testing.T, w *world, _ SubscriptionSpec, sink *batcher) {
			if err := w.e.Pause(t.Context(), "s"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "they are given back", func() bool {
				s := w.e.plan.Load().subs["s"]
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.due.len() == 3 && !s.filler.waits()
			})
			w.publish("orders", number("d", 47)...)
			if len(sink.got()) != 0 {
				t.Error("a paused subscription has sent")
			}
			if err := w.e.Resume(t.Context(), "s"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a full batch", func() bool { return slices.Equal(sizes(sink.all()), []int{50}) })
		},
		"reload": func(t *testing.T, w *world, s SubscriptionSpec, sink *batcher) {
			other := &recorder{}
			s.Fingerprint, s.OpenSink = "other", func(context.Context) (Sink, error) { return other, nil }
			w.apply(specOf(s))
			eventually(t, "the new sink has them", func() bool { return slices.Equal(slices.Sorted(slices.Values(other.ids())), three) })
			if len(sink.got()) != 0 {
				t.Error("the old one too")
			}
		},
		"another face": func(t *testing.T, w *world, s SubscriptionSpec, _ *batcher) {
			s.Fingerprint, s.OpenSink, s.Deliver = "other", nil, event.Deliver{Face: event.ToTopic, Topic: "copies"}
			w.apply(specOf(s))
			eventually(t, "the topic has them", func() bool { return len(w.ids("copies")) == 3 })
		},
		"drain": func(t *testing.T, w *world, _ SubscriptionSpec, sink *batcher) {
			w.stop()
			if !slices.Equal(sink.got(), three) {
				t.Errorf("sent %v", sink.got())
			}
		},
		"remove": func(t *testing.T, w *world, _ SubscriptionSpec, sink *batcher) {
			w.apply(Spec{Topics: []event.Topic{{Name: "orders"}, {Name: "s.dead", WhenFull: event.Reject}}})
			eventually(t, "they are sent", func() bool { return slices.Equal(sink.got(), three) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Options{})
			sink := &batcher{events: 50, bytes: 1 << 20, wait: time.Minute}
			s := push("s", "orders", "", sink)
			w.apply(specOf(s))
			w.publish("orders", three...)
			sub := w.e.plan.Load().subs["s"]
			eventually(t, "three are gathered", func() bool {
				sub.mu.Lock()
				defer sub.mu.Unlock()
				return sub.filler.waits() && 50-sub.filler.events+sub.queue.len() == 3 && sub.gate.circuit.out == 0
			})
			do(t, w, s, sink)
		})
	}
	t.Run("seek", func(t *testing.T) {
		w := newWorld(t, Options{})
		sink := &batcher{events: 4, bytes: 1 << 20, wait: time.Minute}
		w.apply(specOf(push("s", "orders", "", sink)))
		w.publish("orders", "a", "b", "c")
		eventually(t, "three are gathered", func() bool {
			sub := w.e.plan.Load().subs["s"]
			sub.mu.Lock()
			defer sub.mu.Unlock()
			return sub.filler.waits() && 4-sub.filler.events+sub.queue.len() == 3
		})
		if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil {
			t.Fatal(err)
		}
		w.publish("orders", "d")
		eventually(t, "each once", func() bool { return slices.Equal(sink.got(), []string{"a", "b", "c", "d"}) })
		if got := sizes(sink.all()); !slices.Equal(got, []int{4}) {
			t.Errorf("batches of %v", got)
		}
	})
}

func TestBatchGoneDisables(t *testing.T) {
	w := newWorld(t, Options{})
	gone := true
	sink := &batcher{events: 10, bytes: 1 << 20, wait: time.Millisecond}
	sink.answer = func(try int, _ []string, _ []event.Delivery) error {
		if try != 1 {
			t.Errorf("attempt %d: what disables is none", try)
		}
		if gone {
			return event.Disable(410, errors.New("answered 410 Gone"))
		}
		return nil
	}
	w.apply(specOf(push("s", "orders", "", sink)))
	w.publish("orders", number("e", 10)...)
	eventually(t, "it is disabled", func() bool { return w.info("s").State == "disabled" })
	sink.mu.Lock()
	gone = false
	sink.mu.Unlock()
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are there", func() bool { return slices.Equal(sink.got(), number("e", 10)) })
}

// A sink that tells of more or fewer deliveries than it had has failed as a whole.
func TestPartialOfAnotherLength(t *testing.T) {
	w := newWorld(t, Options{})
	sink := &batcher{events: 10, bytes: 1 << 20, wait: time.Millisecond}
	sink.answer = func(try int, ids []string, _ []event.Delivery) error {
		if try == 1 {
			return &event.Partial{Errs: make([]error, len(ids)+1)}
		}
		return nil
	}
	s := push("s", "orders", "", sinkFunc{sink})
	w.apply(specOf(s))
	w.publish("orders", "a", "b", "c")
	eventually(t, "all are delivered", func() bool { return len(w.info("s").State) > 0 && w.info("s").Delivered == 3 })
	if i := w.info("s"); i.Failed != 3 {
		t.Errorf("%d failed tries, want 3", i.Failed)
	}
}

// sinkFunc keeps its batcher from looking into the answer.
type sinkFunc struct{ *batcher }

func (f sinkFunc) Deliver(_ context.Context, ds []event.Delivery) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answer(ds[0].Attempt, make([]string, len(ds)), ds)
}

// With `order: key` a batch never holds two events of a key, and each key goes in order whatever fails.
func TestBatchesInOrderOfKeys(t *testing.T) {
	w := newWorld(t, Options{})
	r := rand.New(rand.NewPCG(3, 3))
	sink := &batcher{events: 20, bytes: 1 << 20, wait: 2 * time.Millisecond}
	sink.answer = func(try int, ids []string, _ []event.Delivery) error {
		if try >= 8 {
			return nil
		}
		errs, some := make([]error, len(ids)), false
		for i := range ids {
			if r.IntN(4) == 0 {
				errs[i], some = errDown, true
			}
		}
		switch {
		case r.IntN(6) == 0:
			return errDown
		case some:
			return &event.Partial{Errs: errs}
		}
		return nil
	}
	s := push("s", "orders", "", sink)
	s.Order = event.ByKey
	s.Retry = event.RetryPolicy{Attempts: 9, Schedule: []time.Duration{time.Millisecond}}
	s.Concurrency = 4
	w.apply(specOf(s))
	var evs []event.Event
	for i := range 600 {
		evs = append(evs, event.Event{ID: fmt.Sprintf("%05d", i), ClientID: true, PartitionKey: fmt.Sprint("k", i%30)})
	}
	for i := 0; i < len(evs); i += 20 {
		if err := w.e.Publish(t.Context(), "orders", evs[i:i+20], make([]event.Position, 20)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all settled", func() bool { return w.settled("s") && len(sink.got()) == 600 })
	last := map[string]string{}
	for _, b := range sink.all() {
		if b.attempt < 1 {
			t.Errorf("events of several attempts in one batch: %v", b.ids)
		}
		if keys := slices.Clone(b.keys); len(slices.Compact(slices.Sorted(slices.Values(keys)))) != len(b.keys) {
			t.Errorf("two events of one key in a batch: %v", b.keys)
		}
	}
	sink.mu.Lock()
	defer sink.mu.Unlock()
	for _, id := range sink.taken {
		n, err := strconv.Atoi(id)
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprint(n % 30)
		if last[key] >= id {
			t.Errorf("key %s: %s after %s", key, id, last[key])
		}
		last[key] = id
	}
}

// The outputs of functions go in batches too; one that failed is sent again without the others of its event.
func TestBatchesOfOutputs(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &batcher{events: 10, bytes: 1 << 20, wait: 30 * time.Millisecond}
	sink.answer = func(try int, ids []string, _ []event.Delivery) error {
		errs := make([]error, len(ids))
		if i := slices.Index(ids, "a~s~1"); i >= 0 && try == 1 {
			errs[i] = errDown
			return &event.Partial{Errs: errs}
		}
		return nil
	}
	w.apply(through(digest, 1, sink, nil))
	w.publish("orders", "a=eone;etwo;ethree", "b=p", "c=eone;etwo")
	eventually(t, "all settled", func() bool { return w.settled("s") })
	if got := sink.got(); !slices.Equal(got, []string{"a~s~0", "a~s~1", "a~s~2", "b", "c~s~0", "c~s~1"}) {
		t.Errorf("taken %v, want each once", got)
	}
	if n := len(sink.all()); n != 2 {
		t.Errorf("sends of %v, want all six and one again", sizes(sink.all()))
	}
}

// A power cut while batches fail whole and in part: nothing that was acknowledged is lost, and what was not sent
// twice before comes again as the batch that it was.
func TestPowerCutWithBatches(t *testing.T) {
	for seed := range uint64(4) {
		disk := vfs.NewCrashableMem()
		w := &world{t: t, fs: disk}
		w.open()
		r, cut := rand.New(rand.NewPCG(seed, 9)), rand.New(rand.NewPCG(seed, 8)) // r is the sink's
		sink := &batcher{events: 25, bytes: 1 << 20, wait: time.Millisecond}
		sink.answer = func(_ int, ids []string, _ []event.Delivery) error {
			switch r.IntN(3) {
			case 0:
				return errDown
			case 1:
				errs := make([]error, len(ids))
				errs[r.IntN(len(ids))] = errDown
				return &event.Partial{Errs: errs}
			}
			return nil
		}
		s := push("s", "orders", "", sink)
		s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{5 * time.Millisecond}}
		spec := specOf(s)
		w.apply(spec)
		for i := range 10 {
			w.publish("orders", number(fmt.Sprint("e", i, "-"), 30)...)
		}
		eventually(t, "some are delivered", func() bool { return len(sink.got()) > 50 })
		crashed := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: cut.IntN(80), RNG: rand.New(rand.NewPCG(seed, 2))})
		before := sink.got()
		w.stop()

		after := &world{t: t, fs: crashed}
		after.open()
		again := &batcher{events: 25, bytes: 1 << 20, wait: time.Millisecond}
		s.OpenSink = func(context.Context) (Sink, error) { return again, nil }
		after.apply(specOf(s))
		eventually(t, "all settled", func() bool { return after.settled("s") })
		all := slices.Compact(slices.Sorted(slices.Values(append(before, again.got()...))))
		if len(all) != 300 {
			t.Errorf("seed %d: %d of 300 events were delivered", seed, len(all))
		}
		after.stop()
	}
}
