package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
)

// versionGuest builds testdata/version.c as a version of its own.
func versionGuest(t *testing.T, defines ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "version.wasm")
	args := []string{"--target=wasm32-wasi", "-mexec-model=reactor", "-O2", "-mbulk-memory", "-Wl,--strip-all", "-o", out, "testdata/version.c"}
	for _, d := range defines {
		args = append(args, "-D"+d)
	}
	if text, err := exec.Command("clang-19", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// versionWorld is a world with modules on disk, and the digest of each.
func versionWorld(t *testing.T, o Options, modules ...[]byte) (w *world, host *plugins.Host, digests []string) {
	t.Helper()
	host, err := plugins.NewHost(t.Context(), plugins.Options{ABIs: []plugins.ABI{native.ABI{}}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for _, m := range modules {
		d, err := host.Put(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	o.Host = host
	return newWorld(t, o), host, digests
}

func version(name string, defines ...string) []string {
	return append([]string{`VERSION="` + name + `"`}, defines...)
}

// Two functions in a chain are swapped together, again and again, while events pass: nothing is lost,
// nothing twice, and no event passes one version of the first and another of the second.
func TestSwapUnderLoad(t *testing.T) {
	w, _, digests := versionWorld(t, Options{}, versionGuest(t, version("a")...), versionGuest(t, version("b")...))
	sink := &outputs{}
	w.apply(through(digests[0], 2, sink, nil))
	const rounds, each = 20, 250
	var wg sync.WaitGroup
	swapped := make(chan struct{})
	wg.Go(func() {
		for r := range rounds {
			<-swapped // so that there are swaps between the rounds, and events between the swaps
			ids := number(fmt.Sprintf("e%d-", r), each)
			for i := range ids {
				ids[i] += "=7"
			}
			w.publish("orders", ids...)
		}
	})
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	swaps := 0
	for going := true; going; swaps++ {
		w.apply(through(digests[(swaps+1)%2], 2, sink, nil))
		delivered := len(sink.sorted())
		select {
		case <-done:
			going = false
		case swapped <- struct{}{}:
			eventually(t, "the version in force is at work", func() bool { return len(sink.sorted()) > delivered })
		}
	}
	t.Logf("%d delivered while %d swaps went on", len(sink.sorted()), swaps)
	eventually(t, "all settled", func() bool { return w.settled("s") })
	got := sink.sorted()
	if n := len(slices.Compact(slices.Clone(got))); len(got) != rounds*each || n != len(got) {
		t.Errorf("%d deliveries of %d events, want %d of each", len(got), n, rounds*each)
	}
	by := map[string]int{}
	for _, s := range got {
		a, b := strings.Count(s, `"version":"a"`), strings.Count(s, `"version":"b"`)
		if a+b != 2 || a == 1 {
			t.Fatalf("versions are mixed in %s", s)
		}
		by[fmt.Sprint(a)]++
	}
	if i := w.info("s"); i.Failed != 0 {
		t.Errorf("%d failures", i.Failed)
	}
	if len(by) != 2 || swaps < 2 {
		t.Errorf("both versions should have worked: %v in %d swaps", by, swaps)
	}
}

// gateLog is a logger that stands still at a message until the gate opens.
type gateLog struct {
	slog.Handler
	at      string
	entered chan struct{}
	gate    chan struct{}
}

func (g gateLog) Enabled(context.Context, slog.Level) bool { return true }
func (g gateLog) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, g.at) {
		g.entered <- struct{}{}
		<-g.gate
	}
	return nil
}
func (g gateLog) WithAttrs([]slog.Attr) slog.Handler { return g }

// A call of the old version is under way: the swap does not wait for it, new events take the new version,
// and what the old one said still counts.
func TestSwapDoesNotWaitForALongCall(t *testing.T) {
	g := gateLog{slog.DiscardHandler, "hold", make(chan struct{}, 1), make(chan struct{})}
	w, _, digests := versionWorld(t, Options{Log: slog.New(g)}, versionGuest(t, version("a")...), versionGuest(t, version("b")...))
	sink := &outputs{}
	w.apply(through(digests[0], 1, sink, nil))
	w.publish("orders", `long="hold"`)
	<-g.entered
	w.apply(through(digests[1], 1, sink, nil)) // would never return if it waited
	w.publish("orders", "new=1")
	eventually(t, "the new version works beside the old one", func() bool { return len(sink.sorted()) == 1 })
	close(g.gate)
	eventually(t, "both", func() bool { return w.settled("s") })
	want := []string{`long~s~0={"by":{"version":"a"},"in":"hold"}`, `new~s~0={"by":{"version":"b"},"in":1}`}
	if got := sink.sorted(); !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
	if i := w.info("s"); i.Failed != 0 {
		t.Errorf("%d failures", i.Failed)
	}
}

// While a version is opened, which may take seconds, the one in force serves and other changes go on.
func TestOpeningAVersionHoldsUpNobody(t *testing.T) {
	g := gateLog{slog.DiscardHandler, "starting", make(chan struct{}, 1), make(chan struct{})}
	w, _, d := versionWorld(t, Options{Log: slog.New(g), AutoCreate: true}, versionGuest(t, version("a")...), versionGuest(t, version("b", "START=1")...))
	sink := &outputs{}
	w.apply(through(d[0], 1, sink, nil))
	swapped := make(chan error, 1)
	go func() { swapped <- w.e.Apply(t.Context(), through(d[1], 1, sink, nil)) }()
	<-g.entered
	w.publish("orders", "x=1")
	eventually(t, "the version in force serves", func() bool { return len(sink.sorted()) == 1 })
	w.publish("another", "y=1") // makes the topic: a change of its own
	next := through(d[0], 1, sink, func(s *SubscriptionSpec) { s.Concurrency = 3 })
	w.apply(next)
	select {
	case err := <-swapped:
		t.Fatalf("the swap did not wait for its version: %v", err)
	default:
	}
	close(g.gate)
	if err := <-swapped; err != nil {
		t.Fatal(err)
	}
	w.publish("orders", "z=1")
	eventually(t, "the new version serves", func() bool { return len(sink.sorted()) == 2 })
	if got := sink.sorted()[1]; !strings.Contains(got, `"version":"b"`) {
		t.Errorf("delivered %s", got)
	}
}

// A version that does not start is refused in words; the one before serves on.
func TestBrokenVersionChangesNothing(t *testing.T) {
	w, _, digests := versionWorld(t, Options{}, versionGuest(t, version("a")...), versionGuest(t, version("b", "BROKEN=1")...))
	sink := &outputs{}
	w.apply(through(digests[0], 1, sink, nil))
	before, err := w.e.Function("f0")
	if err != nil {
		t.Fatal(err)
	}
	err = w.e.Apply(t.Context(), through(digests[1], 1, sink, nil))
	if !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "functions.f0") || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("%v; want why it does not start", err)
	}
	w.publish("orders", "x=1")
	eventually(t, "it is delivered", func() bool { return len(sink.sorted()) == 1 })
	after, err := w.e.Function("f0")
	if err != nil || after.Digest != digests[0] || !slices.Equal(after.Versions, before.Versions) || after.Counts.Swaps != 0 {
		t.Errorf("%+v, %v", after, err)
	}
}

func digestsOf(vs []Version) (ds []string) {
	for _, v := range vs {
		ds = append(ds, v.Digest)
	}
	return ds
}

// History is kept across restarts, newest first, each version once, five at most; the version before the
// one in force is open, so that going back needs no compiling.
func TestHistoryAndRollback(t *testing.T) {
	var modules [][]byte
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		modules = append(modules, versionGuest(t, version(name)...))
	}
	w, host, d := versionWorld(t, Options{}, modules...)
	sink := &outputs{}
	for _, digest := range d {
		w.apply(through(digest, 1, sink, nil))
		w.apply(through(digest, 1, sink, nil)) // the same again is nothing
	}
	history := func() []string {
		f, err := w.e.Function("f0")
		if err != nil {
			t.Fatal(err)
		}
		return digestsOf(f.Versions)
	}
	want := []string{d[6], d[5], d[4], d[3], d[2]}
	if got := history(); !slices.Equal(got, want) {
		t.Errorf("history %v, want %v", got, want)
	}
	spare := w.e.plan.Load().spares["f0"]
	if spare == nil || spare.digest() != d[5] || spare.code.Stats().Instances == 0 {
		t.Fatalf("the version before is not ready: %+v", spare)
	}
	began := time.Now()
	w.apply(through(d[5], 1, sink, nil))
	t.Logf("rollback to the version before: %s", time.Since(began))
	if f := w.e.plan.Load().functions["f0"]; f != spare {
		t.Error("a rollback opened the version before anew")
	}
	began = time.Now()
	w.apply(through(d[2], 1, sink, nil))
	t.Logf("rollback to an older version: %s", time.Since(began))
	want = []string{d[2], d[5], d[6], d[4], d[3]}
	if got := history(); !slices.Equal(got, want) {
		t.Errorf("history after two rollbacks %v, want %v", got, want)
	}
	w.restart()
	if got := history(); !slices.Equal(got, want) {
		t.Errorf("history after a restart %v, want %v", got, want)
	}
	w.publish("orders", "x=1")
	eventually(t, "it is delivered", func() bool { return len(sink.sorted()) == 1 })
	if got := sink.sorted()[0]; !strings.Contains(got, `"version":"c"`) {
		t.Errorf("delivered %s", got)
	}
	if _, err := host.Module(d[0]); err != nil { // nobody names it, but it was put a moment ago
		t.Error(err)
	}
	next := through(d[2], 1, sink, nil)
	next.Functions, next.Subscriptions = nil, nil
	w.apply(next)
	if err := w.e.store.Scan(t.Context(), tableFunctions, nil, nil, func(k, _ []byte) error { return fmt.Errorf("%s", k) }); err != nil {
		t.Errorf("the history of a removed function stays: %v", err)
	}
}

// parkedWith waits until what is parked names the version digest and no other.
func (w *world) parkedWith(digest string) {
	w.t.Helper()
	eventually(w.t, "it is parked with its version", func() bool {
		named := map[string]bool{}
		err := parkedDigests(w.t.Context(), w.e.store, named)
		return err == nil && named[digest] && len(named) == 1
	})
}

// What failed before a swap is tried again after it: what was sent is not sent again if the new version
// makes the same, all is sent if it does not; and its dead letter names the versions at work.
func TestParkedAcrossASwap(t *testing.T) {
	w, _, d := versionWorld(t, Options{}, versionGuest(t, version("a")...), versionGuest(t, version("b")...))
	sink := &outputs{}
	sink.answer = func(event.Delivery) error { return errors.New("down") }
	retry := func(s *SubscriptionSpec) {
		s.Retry = event.RetryPolicy{Attempts: 2, Schedule: []time.Duration{200 * time.Millisecond}}
	}
	w.apply(through(d[0], 2, sink, retry))
	w.publish("orders", "x=1")
	w.parkedWith(d[0])
	w.apply(through(d[1], 2, sink, retry))
	eventually(t, "it is dead", func() bool { return len(w.records("s.dead")) == 1 })
	a, _ := w.records("s.dead")[0].Extension("deadletterversions")
	if want := "f0@" + d[1] + ",f1@" + d[1]; a.Value != want {
		t.Errorf("the dead letter names %q, want %q", a.Value, want)
	}
}

// What one version has put out and waits to be sent is of that version, whatever is in force when it fails.
func TestParkedNamesTheVersionThatMadeIt(t *testing.T) {
	w, _, d := versionWorld(t, Options{}, versionGuest(t, version("a")...), versionGuest(t, version("b")...))
	gate, entered := make(chan struct{}), make(chan struct{}, 8)
	sink := &outputs{}
	sink.answer = func(event.Delivery) error {
		entered <- struct{}{}
		<-gate
		return errors.New("down")
	}
	one := func(s *SubscriptionSpec) {
		s.Concurrency = 1
		s.Retry = event.RetryPolicy{Attempts: 2, Schedule: []time.Duration{time.Hour}}
	}
	w.apply(through(d[0], 1, sink, one))
	w.publish("orders", "x=1", "y=2")
	<-entered
	s := w.e.plan.Load().subs["s"]
	eventually(t, "the other output waits", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.sends.len() == 1
	})
	w.apply(through(d[1], 1, sink, one))
	close(gate)
	eventually(t, "both are parked", func() bool { return w.info("s").Parked == 2 })
	w.parkedWith(d[0])
}

// Whatever functions, history, definitions, shadows and parked events name stays.
func TestCollectModulesKeepsWhatIsNamed(t *testing.T) {
	var modules [][]byte
	for n := range 9 {
		modules = append(modules, versionGuest(t, version(fmt.Sprint(n))...))
	}
	w, host, d := versionWorld(t, Options{}, modules...)
	sink := &outputs{}
	down := errors.New("down")
	sink.answer = func(event.Delivery) error { return down }
	retry := func(s *SubscriptionSpec) {
		s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{time.Hour}}
	}
	w.apply(through(d[0], 1, sink, retry))
	w.publish("orders", "x=1") // parked with version 0
	w.parkedWith(d[0])
	for _, digest := range d[1:7] {
		w.apply(through(digest, 1, sink, retry))
	}
	spec := w.spec
	if err := w.e.Apply(t.Context(), spec, Define("functions", "other", []byte(`{"wasm":"`+d[7]+`"}`))); err != nil {
		t.Fatal(err)
	}
	gone, err := w.e.CollectModules(t.Context(), time.Now().Add(time.Minute))
	// 0 is parked, 1 is out of the history, 2 to 6 are the history, 7 is defined, nobody names 8.
	if want := []string{d[1], d[8]}; err != nil || !slices.Equal(slices.Sorted(slices.Values(gone)), slices.Sorted(slices.Values(want))) {
		t.Errorf("removed %v, %v; want %v", gone, err, want)
	}
	for i, digest := range d {
		if host.Has(digest) != (i != 1 && i != 8) {
			t.Errorf("version %d: kept %v", i, host.Has(digest))
		}
	}
}
