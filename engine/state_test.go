package engine

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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

// roomy is a store in which every key has a value of 64 KiB.
type roomy struct{ storage.Store }

func (roomy) Load(context.Context, storage.Table, []byte) ([]byte, error) {
	return make([]byte, 8+plugins.MaxStateValue), nil
}

// A function may read more state for one event than the router wants in memory: what is only read is let go.
func TestStateThatIsReadIsNotAllKept(t *testing.T) {
	v := newStateView(&subscription{e: &Engine{store: roomy{}}})
	v.of(0, "f")
	for i := range 1000 { // 64 MiB
		if value, _, ok, err := v.LoadState(t.Context(), []byte(strconv.Itoa(i))); err != nil || !ok || len(value) != plugins.MaxStateValue {
			t.Fatalf("key %d: %d bytes, %v, %v", i, len(value), ok, err)
		}
	}
	kept := 0
	for key, r := range v.rows {
		kept += len(key) + len(r.was.value)
	}
	if kept > 4*stateBytes || len(v.rows) == 0 {
		t.Errorf("%d rows with %d bytes are kept", len(v.rows), kept)
	}
	v.stage([]plugins.StateWrite{{Key: "999", Value: []byte("new")}})
	if err := v.stand(t.Context()); err != nil {
		t.Fatal(err)
	}
	if value, _, _, _ := v.LoadState(t.Context(), []byte("999")); string(value) != "new" {
		t.Errorf("what was written is %.9q", value)
	}
}
