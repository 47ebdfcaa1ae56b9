package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
	"github.com/millrace/millrace/storage"
)

// stateGuests builds the native convention's state.c twice: two versions of the same function.
var stateGuests = sync.OnceValues(func() (versions [2][]byte, err error) {
	dir, err := os.MkdirTemp("", "guest")
	if err != nil {
		return versions, err
	}
	defer os.RemoveAll(dir)
	for i := range versions {
		out := filepath.Join(dir, "state.wasm")
		c := exec.Command("clang-19", "--target=wasm32-wasi", "-mexec-model=reactor", "-O2", "-mbulk-memory", "-Wl,--strip-all",
			fmt.Sprintf("-DNEEDS=%d", i), "-o", out, "../plugins/abi/native/testdata/state.c")
		if text, err := c.CombinedOutput(); err != nil {
			return versions, fmt.Errorf("%w\n%s", err, text)
		}
		if versions[i], err = os.ReadFile(out); err != nil {
			return versions, err
		}
	}
	return versions, nil
})

// stateHost is a host with both versions of the guest.
func stateHost(t *testing.T) (*plugins.Host, [2]string) {
	t.Helper()
	modules, err := stateGuests()
	if err != nil {
		t.Fatal(err)
	}
	host, err := plugins.NewHost(t.Context(), plugins.Options{ABIs: []plugins.ABI{native.ABI{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	var digests [2]string
	for i, m := range modules {
		if digests[i], err = host.Put(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	return host, digests
}

func stateWorld(t *testing.T) (*world, [2]string) {
	t.Helper()
	host, digests := stateHost(t)
	return newWorld(t, Options{Host: host}), digests
}

// keeping makes every function of a specification one that keeps state.
func keeping(spec Spec) Spec {
	for i := range spec.Functions {
		spec.Functions[i].Allow.KV = true
	}
	return spec
}

func copies(s *SubscriptionSpec) {
	s.OpenSink, s.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: "copies"}
}

// rest reports whether both halves of a subscription have nothing left to do.
func (w *world) rest(name string) bool {
	return w.settled(name) && (w.e.plan.Load().subs[deliveryKey(name)] == nil || w.settled(deliveryKey(name)))
}

func (w *world) datas(topic string) []string {
	w.t.Helper()
	var datas []string
	for _, r := range w.records(topic) {
		datas = append(datas, string(r.Data()))
	}
	return datas
}

// stateRows counts the rows of a table.
func (w *world) rows(table storage.Table) (n int) {
	w.t.Helper()
	if err := w.e.store.Scan(w.t.Context(), table, nil, nil, func(_, _ []byte) error { n++; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// oneTo is "1" … "n".
func oneTo(n int) map[string]int {
	m := make(map[string]int, n)
	for i := range n {
		m[strconv.Itoa(i+1)] = 1
	}
	return m
}

func tally(datas []string) map[string]int {
	m := map[string]int{}
	for _, d := range datas {
		m[d]++
	}
	return m
}

// A counter counts every event once, whatever happens: power cuts, functions that trap, ask for another try
// or reject, deliveries that fail. Each count goes out once.
func TestCounterThroughPowerCuts(t *testing.T) {
	host, digests := stateHost(t)
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			countThroughPowerCuts(t, rand.New(rand.NewPCG(seed, 7)), Options{Host: host}, digests)
		})
	}
}

func countThroughPowerCuts(t *testing.T, r *rand.Rand, o Options, digests [2]string) {
	disk := vfs.NewCrashableMem()
	var mu sync.Mutex
	refused := map[string]bool{}
	sink := &recorder{answer: func(d event.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		if id := strings.Clone(d.ID); !refused[id] {
			refused[id] = true
			if len(refused)%3 == 0 {
				return errors.New("down")
			}
		}
		return nil
	}}
	spec := keeping(through(digests[0], 1, sink, func(s *SubscriptionSpec) { s.Retry.Schedule = []time.Duration{time.Millisecond} }))
	var known []string // ids of acknowledged events
	scripts := []string{"an=1", "an=1", "an=1", "an=1", "an=1", "an=1;1", "an=1;1", "pnever=1;t", "pnever=1;x", "an=1;dnever"}
	for range 3 {
		w := &world{t: t, fs: disk, o: o}
		count := 0
		cut := make(chan *vfs.MemFS, 1)
		settles, power, before := 1+r.IntN(12), vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(80), RNG: rand.New(rand.NewPCG(r.Uint64(), 2))}, disk
		w.wrap = func(s storage.Store) storage.Store {
			return &cutStore{Store: s, after: func(b *storage.Batch) {
				mu.Lock()
				defer mu.Unlock()
				if writes(b, tableState) || writes(b, tableCursors) {
					settles--
				}
				if settles == 0 {
					settles--
					count = len(known)
					cut <- before.CrashClone(power)
				}
			}}
		}
		w.open()
		w.apply(spec)
		var publishers sync.WaitGroup
		for p := range 2 {
			pick := rand.New(rand.NewPCG(r.Uint64(), uint64(p)))
			publishers.Go(func() {
				for range 60 {
					id := fmt.Sprintf("%d-%d", p, pick.Uint64())
					evs := []event.Event{{ID: id, ClientID: true, Data: []byte(scripts[pick.IntN(len(scripts))])}}
					if w.e.Publish(t.Context(), "orders", evs, make([]event.Position, 1)) == nil {
						mu.Lock()
						known = append(known, id)
						mu.Unlock()
					}
				}
			})
		}
		publishers.Wait()
		eventually(t, "the cut, or all settled", func() bool { return len(cut) > 0 || w.rest("s") })
		mu.Lock()
		if settles > 0 {
			settles, count = -1, len(known)
			cut <- disk.CrashClone(vfs.CrashCloneCfg{})
		}
		mu.Unlock()
		crashed := <-cut
		w.stop()
		disk = crashed
		known = known[:count] // what was acknowledged after the cut never was
	}

	after := &world{t: t, fs: disk, o: o}
	after.open()
	defer after.stop()
	after.apply(spec)
	eventually(t, "all settled", func() bool { return after.rest("s") })
	stored, bad := map[string]bool{}, 0
	for _, rec := range after.records("orders") {
		stored[strings.Clone(rec.Attr(event.TagID))] = true
		if strings.HasPrefix(string(rec.Data()), "pnever") {
			bad++
		}
	}
	for _, id := range known {
		if !stored[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	outs := tally(after.datas("s.out"))
	good := len(stored) - bad
	want := oneTo(good)
	for data, n := range outs {
		first, _, _ := strings.Cut(data, " ") // the answers to the addition and perhaps to a kv_del
		if want[first]--; want[first] != 0 || n != 1 {
			t.Errorf("count %q was put out %d times of %d events", data, n, good)
		}
	}
	if len(outs) != good {
		t.Errorf("%d counts of %d events", len(outs), good)
	}
	if n := len(after.ids("s.dead")); n != bad {
		t.Errorf("%d dead letters of %d events that fail", n, bad)
	}
	if i := after.info("s"); i.StateKeys != 1 || i.StateBytes != int64(1+len(strconv.Itoa(good))) {
		t.Errorf("%d keys of %d bytes, want n alone", i.StateKeys, i.StateBytes)
	}
}

// cutStore tells of every commit once it is through, before whoever made it knows.
type cutStore struct {
	storage.Store
	after func(*storage.Batch)
}

func (s *cutStore) Commit(ctx context.Context, b *storage.Batch) error {
	err := s.Store.Commit(ctx, b)
	if err == nil {
		s.after(b)
	}
	return err
}

func writes(b *storage.Batch, t storage.Table) bool {
	return slices.ContainsFunc(b.Ops, func(o storage.Op) bool { return o.Table == t })
}

// refusingStore refuses commits of state.
type refusingStore struct {
	storage.Store
	refuse func() error
}

func (s *refusingStore) Commit(ctx context.Context, b *storage.Batch) error {
	if writes(b, tableState) {
		if err := s.refuse(); err != nil {
			return err
		}
	}
	return s.Store.Commit(ctx, b)
}

// A batch whose commit is refused is tried again. One of whose topics is gone meanwhile runs anew: that of
// its events which then fails has left nothing to the others.
func TestStateOfRefusedCommits(t *testing.T) {
	host, digests := stateHost(t)
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Host: host}}
	tries := 0
	w.wrap = func(s storage.Store) storage.Store {
		return &refusingStore{s, func() error {
			switch tries++; tries {
			case 1, 2:
				return event.ErrUnavailable
			case 3:
				if err := w.e.DeleteTopic(t.Context(), "extra"); err != nil {
					t.Error(err)
				}
				return event.ErrNotFound
			}
			return nil
		}}
	}
	w.open()
	defer w.stop()
	spec := keeping(through(digests[0], 1, nil, copies))
	spec.Topics = append(spec.Topics, event.Topic{Name: "extra"})
	w.apply(spec)
	w.publish("orders", "gone=an=100;fextra", "bad=an=100;x", "b=an=1", "c=an=1;dn;an=7")
	eventually(t, "all settled", func() bool { return w.rest("s") })
	if got := w.datas("copies"); !slices.Equal(got, []string{"1", "2 0 7"}) {
		t.Errorf("counted %q", got)
	}
	if i := w.info("s"); w.value("s", "f0", "n") != "7" || i.StateKeys != 1 || i.StateBytes != 2 {
		t.Errorf("n is %q, %d keys, %d bytes", w.value("s", "f0", "n"), i.StateKeys, i.StateBytes)
	}
	if got := slices.Sorted(slices.Values(w.ids("s.dead"))); !slices.Equal(got, []string{"bad", "gone"}) {
		t.Errorf("dead letters %v", got)
	}
}

// A function that keeps state runs once for an event, however often its delivery fails, also through a
// restart, for pushing and pulling.
func TestDeliveryThatFailsDoesNotRunTheFunctionAgain(t *testing.T) {
	w, digests := stateWorld(t)
	var down atomic.Bool
	down.Store(true)
	sink := &outputs{}
	sink.answer = func(event.Delivery) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}
	spec := keeping(through(digests[0], 1, sink, func(s *SubscriptionSpec) { s.Retry.Attempts = 1000 }))
	w.apply(spec)
	w.publish("orders", "a=an=1", "b=an=1", "c=an=1;dx")
	eventually(t, "deliveries fail", func() bool { i := w.info("s"); return i.Retried > 6 && i.Parked == 3 })
	w.restart()
	down.Store(false)
	eventually(t, "all settled", func() bool { return w.rest("s") })
	if got, want := sink.sorted(), []string{"a~s~0=1", "b~s~0=2", "c~s~0=3 !-1"}; !slices.Equal(got, want) {
		t.Errorf("delivered %q, want %q", got, want)
	}
	i := w.info("s")
	if i.Topic != "orders" || i.Deliver.Face != event.Push || i.Delivered != 3 || len(w.e.Subscriptions()) != 1 {
		t.Errorf("it is not one subscription to its owner: %+v", i)
	}
	if ids := sink.deliveryIDs(); !strings.HasPrefix(ids[0], "s:s.out@") || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 3 {
		t.Errorf("delivery ids %v", ids)
	}

	// As a queue: what was given back comes again, as it was.
	w.apply(keeping(through(digests[0], 1, nil, func(s *SubscriptionSpec) {
		s.OpenSink, s.Deliver, s.Fingerprint = nil, event.Deliver{Face: event.Pull, AckDeadline: time.Minute}, "pull"
	})))
	w.publish("orders", "d=an=1")
	var leases []event.Lease
	pull := func() bool {
		var err error
		if leases, err = w.e.Pull(t.Context(), "s", 10, 0); err != nil {
			t.Fatal(err)
		}
		return len(leases) > 0
	}
	for range 3 {
		eventually(t, "it is there", pull)
		if got := string(leases[0].Event.Data()); got != "4" || len(leases) != 1 {
			t.Fatalf("%d leases of %q", len(leases), got)
		}
		if lost, err := w.e.Nack(t.Context(), "s", leaseIDs(leases), 0); err != nil || len(lost) != 0 {
			t.Fatal(lost, err)
		}
	}
	eventually(t, "it is there", pull)
	if lost := w.ack("s", leases); len(lost) != 0 {
		t.Error("the lease was lost")
	}
	eventually(t, "all settled", func() bool { return w.rest("s") })
	if _, err := w.e.OpenSubscription(t.Context(), "s", event.Start{}, ""); !errors.Is(err, event.ErrConflict) {
		t.Errorf("a queue was opened as a stream: %v", err)
	}
}

// What an event wrote is given up with it: RETRY, REJECT, a trap, an output that has no place, a failure in
// a later function. The events behind it, of the same batch, have not seen it.
func TestStateOfFailedStepsIsGivenUp(t *testing.T) {
	for script, kind := range map[string]string{
		"an=100;t": "trap", "an=100;x": "reject", "an=100;r": "attempts", "an=100;fnowhere": "output",
	} {
		t.Run(kind, func(t *testing.T) {
			w, digests := stateWorld(t)
			w.apply(keeping(through(digests[0], 1, nil, copies)))
			if err := w.e.Pause(t.Context(), "s"); err != nil {
				t.Fatal(err)
			}
			w.publish("orders", "a=an=1", "bad="+script, "b=an=1", "worse="+script, "c=an=1")
			if err := w.e.Resume(t.Context(), "s"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all settled", func() bool { return w.rest("s") })
			if got := w.datas("copies"); !slices.Equal(got, []string{"1", "2", "3"}) {
				t.Errorf("counted %v", got)
			}
			if dead := w.ids("s.dead"); len(dead) != 2 {
				t.Errorf("dead letters %v", dead)
			}
			if r, _ := w.records("s.dead")[0].Extension("deadletterreason"); r.Value != kind {
				t.Errorf("reason %s", r.Value)
			}
		})
	}
}

// The functions of a chain see what they wrote in the same step, each under its own name.
func TestStateInAChain(t *testing.T) {
	w, digests := stateWorld(t)
	spec := keeping(through(digests[0], 2, nil, copies))
	spec.Subscriptions[0].Functions = []string{"f0", "f1", "f0"}
	w.apply(spec)
	// gs answers what ps set: the script of the next function.
	w.publish("orders", "a=ps=an=2", "b=gs", "c=pn=40", "d=ps=ps=an=2", "e=gs", "trap=ps=t", "g=gs", "h=gn")
	eventually(t, "all settled", func() bool { return w.rest("s") })
	// b: f0 answers "an=2"; f1 adds, 2; f0 does nothing of "2". e: f0 "ps=an=2", f1 sets its s, f0 nothing.
	// g: f0 answers "t", f1 traps, three times.
	i := w.info("s")
	if dead := w.ids("s.dead"); !slices.Equal(dead, []string{"g"}) || i.Failed != 3 {
		t.Errorf("dead letters %v, %d failures", dead, i.Failed)
	}
	if got := w.value("s", "f1", "n"); got != "2" {
		t.Errorf("f1 has counted to %q, want 2", got)
	}
	if got := w.value("s", "f0", "n"); got != "40" {
		t.Errorf("f0 has %q, want its own 40", got)
	}
	if got := w.value("s", "f1", "s"); got != "an=2" {
		t.Errorf("f1 keeps %q", got)
	}
}

// value reads a key of a function's state in partition 0; "" if there is none.
func (w *world) value(sub, function, key string) string {
	w.t.Helper()
	k := append(statePrefix(nil, w.e.plan.Load().subs[sub].serial, 0, function), key...)
	row, err := w.e.store.Load(w.t.Context(), tableState, k)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(parseStateRow(row).value)
}

// Two subscriptions with one function, and two partitions of a topic, have a state each.
func TestStatesAreApart(t *testing.T) {
	w, digests := stateWorld(t)
	spec := keeping(through(digests[0], 1, nil, copies))
	other := spec.Subscriptions[0]
	other.Name, other.Fingerprint, other.DeadLetter = "other", "other", "other.dead"
	other.Deliver.Topic = "others"
	next := specOf(spec.Subscriptions[0], other)
	next.Functions = spec.Functions
	for i := range next.Topics {
		if next.Topics[i].Name == "orders" {
			next.Topics[i].Partitions = 2
		}
	}
	w.apply(next)
	perPartition := map[event.Partition]int{}
	for i := range 50 {
		perPartition[w.publish("orders", fmt.Sprintf("e%d=an=1", i))[0].Partition]++
	}
	eventually(t, "all settled", func() bool { return w.rest("s") && w.rest("other") })
	want := map[string]int{}
	for _, n := range perPartition {
		for count := range oneTo(n) {
			want[count]++
		}
	}
	for _, topic := range []string{"copies", "others"} {
		if got := tally(w.datas(topic)); !maps.Equal(got, want) || len(perPartition) != 2 {
			t.Errorf("%s: %v\nwant %v", topic, got, want)
		}
	}
}

// State outlives the function's version, a reload, a restart, and a power cut while an event is parked.
func TestStateOutlivesVersionsAndRestarts(t *testing.T) {
	host, digests := stateHost(t)
	disk := vfs.NewCrashableMem()
	w := &world{t: t, fs: disk, o: Options{Host: host}}
	w.open()
	change := func(s *SubscriptionSpec) {
		copies(s)
		s.Retry = event.RetryPolicy{Attempts: 3, Schedule: []time.Duration{time.Hour}}
	}
	w.apply(keeping(through(digests[0], 1, nil, change)))
	w.publish("orders", "a=an=1", "b=an=1;fnowhere")
	eventually(t, "b is parked", func() bool { return w.settledBut("s", 1) })
	w.apply(keeping(through(digests[1], 1, nil, change)))
	w.publish("orders", "c=an=1")
	eventually(t, "c is counted", func() bool { return len(w.datas("copies")) == 2 })
	crashed := disk.CrashClone(vfs.CrashCloneCfg{})
	w.stop()

	w = &world{t: t, fs: crashed, o: Options{Host: host}}
	w.open()
	defer w.stop()
	spec := keeping(through(digests[0], 1, nil, change))
	spec.Topics = append(spec.Topics, event.Topic{Name: "nowhere"})
	w.apply(spec)
	w.publish("orders", "d=an=1")
	eventually(t, "d is counted", func() bool { return len(w.datas("copies")) == 3 })
	if i := w.info("s"); i.Parked != 1 {
		t.Errorf("%d parked", i.Parked)
	}
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Earliest}); err != nil { // state stays
		t.Fatal(err)
	}
	eventually(t, "all are counted again", func() bool { return w.rest("s") })
	if got := w.datas("copies"); !slices.Equal(got, []string{"1", "2", "3", "4", "5", "6", "7"}) {
		t.Errorf("counted %v", got)
	}
}

func (w *world) settledBut(name string, parked int64) bool {
	i := w.info(name)
	return i.Lag == 0 && i.Outstanding == 0 && i.Parked == parked
}

// Expired rows leave with the commits that follow, a bounded number with each.
func TestExpiredStateIsSwept(t *testing.T) {
	host, digests := stateHost(t)
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Host: host}, now: func() time.Time { return time.Unix(0, now.Load()) }}
	w.open()
	defer w.stop()
	w.apply(keeping(through(digests[0], 1, nil, copies)))
	publish := func(events ...string) {
		t.Helper()
		w.publish("orders", events...)
		eventually(t, "all settled", func() bool { return w.rest("s") })
	}
	var script strings.Builder
	for i := range 2 * sweepRows {
		fmt.Fprintf(&script, "pk%d=value,1000;", i)
	}
	publish("a="+script.String()+"pstays=1;plater=1,5000;pgone=1,1000;dgone;pnever=1,1000;pnever=2", "b=pk7=anew,9000")
	if i := w.info("s"); i.StateKeys != 2*sweepRows+3 || w.rows(tableState) != 2*sweepRows+3 || w.rows(tableStateExpiry) != 2*sweepRows+1 {
		t.Fatalf("%d keys, %d rows, %d that expire", i.StateKeys, w.rows(tableState), w.rows(tableStateExpiry))
	}
	now.Add(int64(2 * time.Second))
	publish("c=gk1;gk7;gstays;glater;gnever")
	if got := w.datas("copies"); got[2] != "!-1 anew 1 1 2" {
		t.Errorf("answers %q", got[2])
	}
	if n := w.rows(tableState); n != sweepRows+3 {
		t.Errorf("%d rows after one commit", n)
	}
	w.restart() // what is left is found again
	publish("d=", "e=", "f=")
	if i := w.info("s"); i.StateKeys != 4 || w.rows(tableState) != 4 || w.rows(tableStateExpiry) != 2 {
		t.Errorf("%d keys, %d rows, %d that expire", i.StateKeys, w.rows(tableState), w.rows(tableStateExpiry))
	}
	bytes := 0
	for _, kv := range []string{"k7anew", "stays1", "later1", "never2"} {
		bytes += len(kv)
	}
	if i := w.info("s"); i.StateBytes != int64(bytes) {
		t.Errorf("%d bytes, want %d", i.StateBytes, bytes)
	}
	now.Add(int64(time.Minute))
	publish("g=")
	if i := w.info("s"); i.StateKeys != 2 || w.rows(tableStateExpiry) != 0 {
		t.Errorf("%d keys, %d that expire", i.StateKeys, w.rows(tableStateExpiry))
	}
}

// With a subscription go its state and the topic that the router put between its halves; one that somebody
// defined stays.
func TestRemovingASubscriptionRemovesItsState(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprint(own), func(t *testing.T) {
			w, digests := stateWorld(t)
			spec := keeping(through(digests[0], 1, &recorder{}, nil))
			if own {
				spec.Topics = append(spec.Topics, event.Topic{Name: "s.out", Partitions: 3})
			} else {
				spec.Topics[0].Partitions, spec.Topics[0].Retain.Events, spec.Topics[0].WhenFull = 2, 1000, event.Reject
			}
			w.apply(spec)
			out, err := w.e.Topic("s.out")
			if err != nil {
				t.Fatal(err)
			}
			if own && out.Partitions != 3 || !own && (out.Partitions != 2 || out.Retain.Events != 1000 || out.WhenFull != event.Reject) {
				t.Errorf("topic %+v", out.Topic)
			}
			w.publish("orders", "a=pk=v,100000")
			eventually(t, "all settled", func() bool { return w.rest("s") })
			if err := w.e.DeleteTopic(t.Context(), "s.out"); !errors.Is(err, event.ErrConflict) {
				t.Errorf("the topic between the halves: %v", err)
			}
			w.restart()
			if w.rows(tableState) != 1 || w.rows(tableStateExpiry) != 1 || w.info("s").StateKeys != 1 {
				t.Fatalf("state: %d rows", w.rows(tableState))
			}
			spec.Subscriptions = nil
			w.apply(spec)
			if n := w.rows(tableState) + w.rows(tableStateExpiry) + w.rows(tableStateSize) + w.rows(tableSubs); n != 0 {
				t.Errorf("%d rows stay", n)
			}
			if _, err := w.e.Topic("s.out"); own != (err == nil) {
				t.Errorf("topic s.out: %v", err)
			}
			w.restart()
			if _, err := w.e.Topic("s.out"); own != (err == nil) {
				t.Errorf("topic s.out after a restart: %v", err)
			}
		})
	}
}

// A subscription becomes one with state and ceases to be: nothing is lost, counted twice or delivered twice.
func TestStateComesAndGoes(t *testing.T) {
	w, digests := stateWorld(t)
	var up atomic.Bool
	sink := &outputs{}
	sink.answer = func(event.Delivery) error {
		if up.Load() {
			return nil
		}
		return errors.New("down")
	}
	plain := func() Spec {
		return through(digests[0], 1, sink, func(s *SubscriptionSpec) { s.Retry.Attempts = 1000 })
	}
	w.apply(plain())
	for i := range 200 {
		w.publish("orders", fmt.Sprintf("a%d=an=1", i))
	}
	w.apply(keeping(plain()))
	for i := range 200 {
		w.publish("orders", fmt.Sprintf("b%d=an=1", i))
	}
	eventually(t, "the functions have run", func() bool { return w.settled("s") })
	w.apply(plain())
	w.restart()
	w.publish("orders", "c=an=1")
	up.Store(true)
	eventually(t, "all settled", func() bool { return w.rest("s") })
	counted, denied := 0, 0
	got := sink.sorted()
	for _, d := range got {
		if strings.HasSuffix(d, "!-2") {
			denied++
		} else {
			counted++
		}
	}
	if len(got) < 401 || len(slices.Compact(got)) != 401 {
		t.Errorf("%d deliveries", len(got))
	}
	if n, _ := strconv.Atoi(w.value("s", "f0", "n")); counted != n || denied == 0 {
		t.Errorf("counted to %d, %d counts delivered, %d denied", n, counted, denied)
	}
}

// The workers of a subscription that ran its functions side by side leave when they keep state from now on.
func TestStateHasOneWorker(t *testing.T) {
	w, digests := stateWorld(t)
	w.apply(through(digests[0], 1, &recorder{}, func(s *SubscriptionSpec) { s.Concurrency = 1000 }))
	s := w.e.plan.Load().subs["s"]
	publish := func(prefix string) {
		events := number(prefix, 2000)
		for i := range events {
			events[i] += "=an=1"
		}
		w.publish("orders", events...)
	}
	for round := 0; ; round++ {
		publish(fmt.Sprint("plain", round))
		s.mu.Lock()
		workers := s.pumps.running
		s.mu.Unlock()
		if workers > 1 || runtime.GOMAXPROCS(0) == 1 {
			break
		}
	}
	w.apply(keeping(through(digests[0], 1, nil, func(s *SubscriptionSpec) { copies(s); s.Fingerprint = "keeping" })))
	publish("kept")
	eventually(t, "all settled", func() bool { return w.rest("s") })
	counts := map[string]int{}
	for _, d := range w.datas("copies") {
		if d != "!-2" { // made before it was allowed
			counts[d]++
		}
	}
	if !maps.Equal(counts, oneTo(len(counts))) || len(counts) < 2000 {
		t.Errorf("%d different counts, the highest kept is %s", len(counts), w.value("s", "f0", "n"))
	}
}

// Pausing holds both halves; a seek leaves nothing behind that was put out before; a dead letter says which
// half it left.
func TestHalvesAreOneToTheirOwner(t *testing.T) {
	w, digests := stateWorld(t)
	sink := &outputs{}
	var refuse atomic.Bool
	sink.answer = func(d event.Delivery) error {
		if refuse.Load() {
			return event.Permanent(400, errors.New("no"))
		}
		return nil
	}
	w.apply(keeping(through(digests[0], 1, sink, nil)))
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "a=an=1", "b=an=1")
	if i := w.info("s"); i.State != "paused" {
		t.Errorf("state %s", i.State)
	}
	if n := len(w.ids("s.out")); n != 0 {
		t.Errorf("%d outputs while paused", n)
	}
	refuse.Store(true)
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "c=x")
	eventually(t, "all settled", func() bool { return w.rest("s") })
	halves := map[string]string{}
	for _, r := range w.records("s.dead") {
		half, _ := r.Extension("deadletterhalf")
		sub, _ := r.Extension("deadlettersub")
		pos, _ := r.Extension("deadletterposition")
		topic, _, _ := strings.Cut(pos.Value, "/")
		halves[strings.Clone(r.Attr(event.TagID))] = half.Value + " " + sub.Value + " " + topic
	}
	if want := map[string]string{"a~s~0": "delivery s s.out", "b~s~0": "delivery s s.out", "c": "function s orders"}; !maps.Equal(halves, want) {
		t.Errorf("dead letters %v", halves)
	}
	if i := w.info("s"); i.DeadLettered != 3 || i.Failed != 3 {
		t.Errorf("%d dead letters, %d failures", i.DeadLettered, i.Failed)
	}

	refuse.Store(false)
	d, err := w.e.delivering("s")
	if err != nil {
		t.Fatal(err)
	}
	d.disable(t.Context(), errors.New("410")) // the target is gone: the functions go on
	w.publish("orders", "d=an=1")
	eventually(t, "it is put out", func() bool { return len(w.ids("s.out")) == 3 })
	if err := w.e.Seek(t.Context(), "s", event.Start{At: event.Latest}); err != nil {
		t.Fatal(err)
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "e=an=1")
	eventually(t, "all settled", func() bool { return w.rest("s") && len(sink.sorted()) > 0 })
	if got := sink.sorted(); !slices.Equal(got, []string{"e~s~0=4"}) {
		t.Errorf("delivered %v after a seek to the end", got)
	}
	if _, err := w.e.Subscription("s/delivery"); err == nil {
		t.Error("a half has a name of its own")
	}
}

// Steps with state against a model: whatever a script does, the answers and the state are those of the events
// that stood, in order.
func TestStepsAgainstAModel(t *testing.T) {
	host, digests := stateHost(t)
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			w := &world{t: t, fs: vfs.NewMem(), o: Options{Host: host}}
			w.open()
			defer w.stop()
			w.apply(keeping(through(digests[0], 1, nil, func(s *SubscriptionSpec) { copies(s); s.Retry.Attempts = 1 })))
			model, want, dead := map[string]string{}, []string(nil), 0
			for round := range 6 {
				var events []string
				for i := range 1 + r.IntN(60) {
					next := maps.Clone(model)
					var script, answers []string
					for range 1 + r.IntN(4) {
						k := string(rune('a' + r.IntN(4)))
						switch r.IntN(4) {
						case 0:
							script = append(script, "g"+k)
							if v, ok := next[k]; ok {
								answers = append(answers, v)
							} else {
								answers = append(answers, "!-1")
							}
						case 1:
							v := strconv.Itoa(r.IntN(100))
							script, answers = append(script, "p"+k+"="+v), append(answers, "0")
							next[k] = v
						case 2:
							script = append(script, "d"+k)
							if _, ok := next[k]; ok {
								answers = append(answers, "0")
							} else {
								answers = append(answers, "!-1")
							}
							delete(next, k)
						case 3:
							n, _ := strconv.Atoi(next[k])
							next[k] = strconv.Itoa(n + 3)
							script, answers = append(script, "a"+k+"=3"), append(answers, next[k])
						}
					}
					if end := r.IntN(8); end < 3 {
						script = append(script, []string{"t", "x", "fnowhere"}[end])
						dead++
					} else {
						model, want = next, append(want, strings.Join(answers, " "))
					}
					events = append(events, fmt.Sprintf("%d-%d=%s", round, i, strings.Join(script, ";")))
				}
				w.publish("orders", events...)
				if r.IntN(3) == 0 {
					w.restart()
				}
			}
			eventually(t, "all settled", func() bool { return w.rest("s") })
			if got := w.datas("copies"); !slices.Equal(got, want) {
				t.Errorf("answers\n%q\nwant\n%q", got, want)
			}
			for k := range map[string]bool{"a": true, "b": true, "c": true, "d": true} {
				if got := w.value("s", "f0", k); got != model[k] {
					t.Errorf("%s is %q, want %q", k, got, model[k])
				}
			}
			if n := len(w.ids("s.dead")); n != dead {
				t.Errorf("%d dead letters, want %d", n, dead)
			}
			if i := w.info("s"); int(i.StateKeys) != len(model) {
				t.Errorf("%d keys, want %d", i.StateKeys, len(model))
			}
		})
	}
}
