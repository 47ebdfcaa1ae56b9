package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/examples/quickstart"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
)

// scriptGuest builds testdata/script.c once: a function that does what an event's data says.
var scriptGuest = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "guest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "script.wasm")
	c := exec.Command("clang-19", "--target=wasm32-wasi", "-mexec-model=reactor", "-O2", "-mbulk-memory", "-Wl,--strip-all", "-o", out, "testdata/script.c")
	if text, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return os.ReadFile(out)
})

// functionWorld is a world with a function host, and the digest of the scripted guest.
func functionWorld(t *testing.T, o Options) (*world, string) {
	t.Helper()
	module, err := scriptGuest()
	if err != nil {
		t.Fatal(err)
	}
	return hostWorld(t, o, module)
}

func hostWorld(t *testing.T, o Options, module []byte) (*world, string) {
	t.Helper()
	host, err := plugins.NewHost(t.Context(), plugins.Options{ABIs: []plugins.ABI{native.ABI{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	digest, err := host.Put(t.Context(), module)
	if err != nil {
		t.Fatal(err)
	}
	o.Host = host
	return newWorld(t, o), digest
}

// through makes a specification of one subscription "s" that passes functions f0, f1…
func through(digest string, n int, sink Sink, change func(*SubscriptionSpec)) Spec {
	s := push("s", "orders", "", sink)
	var fs []event.Function
	for i := range n {
		name := fmt.Sprint("f", i)
		s.Functions = append(s.Functions, name)
		fs = append(fs, event.Function{Name: name, Digest: digest})
	}
	if change != nil {
		change(&s)
	}
	spec := specOf(s)
	spec.Functions = fs
	return spec
}

// outputs is a sink that keeps "<id>=<data>" of each delivery.
type outputs struct {
	recorder
	data []string
}

func (o *outputs) Deliver(ctx context.Context, ds []event.Delivery) error {
	err := o.recorder.Deliver(ctx, ds)
	if err == nil {
		o.mu.Lock()
		o.data = append(o.data, ds[0].Event.Attr(event.TagID)+"="+string(ds[0].Event.Data()))
		o.mu.Unlock()
	}
	return err
}

func (o *outputs) sorted() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(slices.Values(o.data))
}

func TestQuickstartFunction(t *testing.T) {
	module, err := fs.ReadFile(quickstart.Files, "functions/redact.wasm")
	if err != nil {
		t.Fatal(err)
	}
	w, digest := hostWorld(t, Options{}, module)
	sink := &outputs{}
	w.apply(through(digest, 1, sink, nil))
	w.publish("orders", `a={"id":7,"total":250,"email":"ada@example.com"}`)
	eventually(t, "it is delivered", func() bool { return len(sink.sorted()) == 1 })
	if got := sink.sorted()[0]; strings.Contains(got, "@example.com") || !strings.Contains(got, `"id":7`) {
		t.Errorf("delivered %s", got)
	}
}

// Two functions in a chain are one step: every output of one is an input of the next, ids derive from the
// event's, and are the same in every try.
func TestChainOfFunctions(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	var mu sync.Mutex
	failedOnce := map[string]bool{}
	sink := &outputs{}
	sink.answer = func(d event.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		if id := string(d.Event.Attr(event.TagID)); !failedOnce[id] {
			failedOnce[strings.Clone(id)] = true
			return errors.New("down")
		}
		return nil
	}
	w.apply(through(digest, 2, sink, nil))
	w.publish("orders", "a=ep;ipick=p;d", "b=iq=d;", "c=p;", "d=d;")
	// f0 of a: two EMITs (then it fails to parse as one verdict: DROP after EMIT is malformed), so a is no event
	// that passes; b's output is dropped by f1; c passes both; d is dropped by f0.
	eventually(t, "all settled", func() bool { return w.settled("s") })
	if got := sink.sorted(); !slices.Equal(got, []string{"c=p;"}) {
		t.Errorf("delivered %v", got)
	}
	if got := w.ids("s.dead"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("dead letters %v", got)
	}
	w.publish("orders", "m=ep;ipick=p", "n=ee")
	eventually(t, "the outputs of m and n", func() bool { return len(sink.sorted()) == 4 })
	want := []string{"c=p;", "m~s~0=p", "n~s~1=", "pick=p"}
	if got := sink.sorted(); !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
	if ids := slices.Compact(slices.Sorted(slices.Values(sink.deliveryIDs()))); len(ids) != 4 {
		t.Errorf("delivery ids %v: want four, each the same in both tries", ids)
	}
}

func TestVerdicts(t *testing.T) {
	w, digest := functionWorld(t, Options{AutoCreate: true})
	sink := &outputs{}
	w.apply(through(digest, 1, sink, nil))
	w.publish("orders", "out=oaudit", "drop=d", "reject=x42", "later=1150", "never=r1", "both=eone;oaudit")
	eventually(t, "all settled", func() bool { return w.settled("s") })
	if got := sink.sorted(); !slices.Equal(got, []string{"both~s~0=one", "later=1150"}) {
		t.Errorf("delivered %v", got)
	}
	if got := slices.Sorted(slices.Values(w.ids("audit"))); !slices.Equal(got, []string{"both~s~1", "out~s~0"}) {
		t.Errorf("topic audit holds %v", got)
	}
	dead := map[string]string{}
	for _, r := range w.records("s.dead") {
		reason, _ := r.Extension("deadletterreason")
		code, _ := r.Extension("deadlettercode")
		attempts, _ := r.Extension("deadletterattempts")
		digest, _ := r.Extension("deadletterfunction")
		if !strings.HasPrefix(digest.Value, "sha256:") {
			t.Errorf("no digest of the function at fault: %q", digest.Value)
		}
		dead[strings.Clone(r.Attr(event.TagID))] = fmt.Sprint(reason.Value, " ", code.Value, " ", attempts.Value)
	}
	if len(dead) != 2 || dead["reject"] != "reject 42 1" || dead["never"] != "attempts 0 3" {
		t.Errorf("dead letters %v", dead)
	}
	if i := w.info("s"); i.Dropped != 1 {
		t.Errorf("%d dropped, want 1", i.Dropped)
	}
}

func TestRetryWaitsAsLongAsTheFunctionSays(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &outputs{}
	w.apply(through(digest, 1, sink, nil))
	began := time.Now()
	w.publish("orders", "a=1300")
	eventually(t, "it is delivered", func() bool { return len(sink.sorted()) == 1 })
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("called again after %s", took)
	}
}

// One event that makes the function trap, among a thousand: the others are delivered once, on their first
// try; it is dead-lettered, and is never there without the cursor that says so.
func TestPoisonIsIsolated(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &outputs{}
	w.apply(through(digest, 1, sink, nil))
	ids := number("e", 1000)
	for i := range ids {
		if i == 500 {
			ids[i] += "=t"
		} else {
			ids[i] += "=p"
		}
	}
	w.publish("orders", ids...)
	eventually(t, "all settled", func() bool {
		return w.settled("s")
	})
	if n := len(slices.Compact(sink.sorted())); n != 999 || len(sink.sorted()) != 999 {
		t.Errorf("%d deliveries of %d events, want 999 of each", len(sink.sorted()), n)
	}
	recs := w.records("s.dead")
	if len(recs) != 1 || recs[0].Attr(event.TagID) != "e00500" {
		t.Fatalf("%d dead letters", len(recs))
	}
	if a, _ := recs[0].Extension("deadletterreason"); a.Value != "trap" {
		t.Errorf("reason %q, want trap", a.Value)
	}
	if n := len(sink.deliveryIDs()); n != 999 {
		t.Errorf("%d tries, want 999: an event was tried again for its neighbour's fault", n)
	}
}

// Of several outputs only those are sent again that failed, also after a restart, as long as the function
// makes the same.
func TestOnlyFailedOutputsAreSentAgain(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	var mu sync.Mutex
	tries := map[string]int{}
	sink := &outputs{}
	sink.answer = func(d event.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		id := strings.Clone(d.Event.Attr(event.TagID))
		tries[id]++
		if id == "b" && tries[id] < 3 {
			return errors.New("down")
		}
		return nil
	}
	w.apply(through(digest, 1, sink, func(s *SubscriptionSpec) {
		s.Retry = event.RetryPolicy{Attempts: 5, Schedule: []time.Duration{30 * time.Millisecond}}
	}))
	w.publish("orders", "x=ia=1;ib=2;ic=3")
	eventually(t, "the first try has ended", func() bool { return w.info("s").Parked == 1 })
	w.restart()
	eventually(t, "all are delivered", func() bool { return len(sink.sorted()) == 3 && w.info("s").Parked == 0 })
	mu.Lock()
	defer mu.Unlock()
	if tries["a"] != 1 || tries["b"] != 3 || tries["c"] != 1 {
		t.Errorf("tries %v, want a and c once, b three times", tries)
	}
}

// If the function makes something else the next time, everything is sent.
func TestChangedOutputsAreAllSent(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &outputs{}
	var changed atomic.Bool // has another function's output come?
	sink.answer = func(d event.Delivery) error {
		switch d.Event.Attr(event.TagID) {
		case "x~s~2":
			changed.Store(true)
		case "b": // as often as the old functions make it
			if !changed.Load() {
				return errors.New("down")
			}
		}
		return nil
	}
	spec := through(digest, 1, sink, func(s *SubscriptionSpec) {
		s.Retry = event.RetryPolicy{Attempts: event.Unlimited, Schedule: []time.Duration{50 * time.Millisecond}}
	})
	w.apply(spec)
	w.publish("orders", "x=ia=ez;ib=p")
	eventually(t, "the first try has ended", func() bool { return w.info("s").Parked == 1 })
	// From now on the outputs pass a second function, which makes another event of a's.
	next := through(digest, 2, sink, func(s *SubscriptionSpec) { s.Retry = spec.Subscriptions[0].Retry })
	w.apply(next)
	eventually(t, "all outputs of a later try", func() bool { return len(sink.sorted()) == 3 })
	if got := sink.sorted(); !slices.Equal(got, []string{"a=ez", "b=p", "x~s~2=z"}) {
		t.Errorf("delivered %v", got)
	}
}

func TestWaitsForAFunctionThatIsNotPushedYet(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &outputs{}
	w.apply(through("", 1, sink, nil))
	w.publish("orders", "a=p", "b=p")
	eventually(t, "it says what it waits for", func() bool {
		i := w.info("s")
		return i.State == "waiting" && strings.Contains(i.Reason, "router functions push f0")
	})
	w.apply(through(digest, 1, sink, nil))
	eventually(t, "both", func() bool { return len(sink.sorted()) == 2 })
	eventually(t, "it runs", func() bool { i := w.info("s"); return i.State == "running" && i.Failed == 0 && i.Outstanding == 0 })
}

// A subscription that sends what its functions make becomes one that puts it into a topic, or a queue
// without functions: what waits for a sender does not wait for ever.
func TestFaceChangesWhileOutputsWait(t *testing.T) {
	for name, change := range map[string]func(*SubscriptionSpec){
		"topic": func(s *SubscriptionSpec) {
			s.OpenSink, s.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: "copies"}
		},
		"pull": func(s *SubscriptionSpec) {
			s.OpenSink, s.Deliver, s.Functions = nil, event.Deliver{Face: event.Pull, AckDeadline: time.Minute}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, digest := functionWorld(t, Options{})
			gate := make(chan struct{})
			sink := &recorder{answer: func(event.Delivery) error { <-gate; return nil }}
			w.apply(through(digest, 1, sink, func(s *SubscriptionSpec) { s.Concurrency = 1 }))
			w.publish("orders", number("e", 300)...)
			w.publish("orders", "two=eone;etwo")
			s := w.e.plan.Load().subs["s"]
			eventually(t, "outputs wait", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.sends.len() >= 64
			})
			next := through(digest, 1, nil, func(s *SubscriptionSpec) { s.Fingerprint = "next"; change(s) })
			next.Topics = append(next.Topics, event.Topic{Name: "copies"})
			next.Topics = slices.CompactFunc(next.Topics, func(a, b event.Topic) bool { return a.Name == b.Name })
			seen := map[string]bool{}
			next.Topics = slices.DeleteFunc(next.Topics, func(p event.Topic) bool { was := seen[p.Name]; seen[p.Name] = true; return was })
			w.apply(next)
			close(gate)
			eventually(t, "all settled", func() bool {
				if name == "pull" {
					leases, err := w.e.Pull(t.Context(), "s", 100, 0)
					if err != nil {
						t.Fatal(err)
					}
					w.ack("s", leases)
				}
				i := w.info("s")
				return i.Lag == 0 && i.Outstanding == 0 && i.Parked == 0
			})
			if i := w.info("s"); i.Failed != 0 || i.DeadLettered != 0 {
				t.Errorf("%d failures, %d dead letters", i.Failed, i.DeadLettered)
			}
		})
	}
}

// What waits for a function that nobody has pushed does not hold up a drain, and is delivered after the next start.
func TestCloseDoesNotWaitForAFunctionThatIsNotPushed(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &outputs{}
	w.apply(through("", 1, sink, nil))
	w.publish("orders", "a=p")
	eventually(t, "it waits", func() bool { return w.info("s").State == "waiting" })
	closed := make(chan error, 1)
	go func() { closed <- w.e.Close(context.Background()) }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Close has not returned in a minute")
	}
	if err := w.store.Close(); err != nil {
		t.Error(err)
	}
	w.open()
	w.apply(through(digest, 1, sink, nil))
	eventually(t, "it is delivered", func() bool { return slices.Equal(sink.sorted(), []string{"a=p"}) })
}

// A drain that is out of time breaks off a function that would run on, and does not take its events up again.
func TestCloseBreaksOffAFunction(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	spec := through(digest, 1, &recorder{}, nil)
	spec.Functions[0].Limits = event.FunctionLimits{CPU: time.Minute, Wall: time.Minute}
	w.apply(spec)
	w.publish("orders", "a=s;", "b=s;")
	eventually(t, "the function runs", func() bool { return len(w.e.Functions()) == 1 && w.info("s").Outstanding == 2 })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	closed := make(chan error, 1)
	go func() { closed <- w.e.Close(ctx) }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Close has not returned in 30 s")
	}
}
