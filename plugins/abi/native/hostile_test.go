package native_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

func hostile(t testing.TB, o plugins.Options, def event.Function) *plugins.Function {
	t.Helper()
	return open(t, newHost(t, o), cGuest(t, "hostile.c"), def)
}

// Every verdict and every fault, alone and among others: an event's fate is its own.
func TestVerdictsAndFaults(t *testing.T) {
	f := hostile(t, plugins.Options{}, event.Function{})
	for _, c := range []struct{ events, want, says string }{
		{"p", "0:PASS", ""},
		{"p d y", "0:PASS 1:DROP 2:RETRY/5000", ""},
		{"R", "0:REJECT/7(why)", ""}, // and the EMIT before it is discarded
		{"P", "0:PASS 0:EMIT({})", ""},
		{"Y", "0:REPLY/201(hi) 0:PASS", ""},
		{"+", "0:EMIT({})", ""},
		{"t", "0!trap", "unreachable"},
		{"p t p", "0:PASS 1!trap 2:PASS", "unreachable"},
		{"t d t p t t", "0!trap 1:DROP 2!trap 3:PASS 4!trap 5!trap", ""},
		{"p x d", "0:PASS 1!trap 2:DROP", "status 3; it said: bye"},
		{"p 0 d", "0:PASS 1!output 2:DROP", "returned 0"},
		{"p s d", "0:PASS 1!output 2:DROP", "silence is an error"},
		{"p s", "0:PASS 1!output", "silence is an error"},
		{"k p", "0!output 1:PASS", "kind 9"},
		{"p o", "0:PASS 1!output", "outside the memory"},
		{"p r p", "0:PASS 1:PASS 2:PASS", ""}, // alone it is in order
		{"i p", "0!output 1:PASS", "event 77 of a batch of 1"},
		{"m p", "0!memory 1:PASS", "out of memory"},
		{"w", "0:PASS", ""},
		{"F p", "0!output 1:PASS", "more than 1024 results"},
		{"e p", "0!output 1:PASS", "source"},
		{"a p", "0!output 1:PASS", "attribute"},
		{"T p", "0!output 1:PASS", "no/topic"},
		{"z p", "0!output 1:PASS", "yesterday"},
		{"l p", "0!output 1:PASS", "result of 20 bytes"},
		{"q p", "0!output 1:PASS", "data at"},
		{"h p", "0!output 1:PASS", "attribute"},
		{"g p", "0!output 1:PASS", "flags 4"},
		{"D p", "0!output 1:PASS", "EMIT after DROP"},
		{"E p", "0!output 1:PASS", "PASS after EMIT"},
		{"2 p", "0!output 1:PASS", "DROP after PASS"},
		{"U p", "0!output 1:PASS", "status 99"},
		{"A", "0:REPLY/200(hi) 0:PASS", ""},
		{"I p", "0!output 1:PASS", "REPLY one, datacontenttype"},
		{"L p", "0!trap 1:PASS", "out of bounds memory access in"},
		{"C t p", "0:PASS 1!trap 2:PASS", ""}, // the cursor points nowhere: halving finds it
		{"S p p", "0:PASS 1:PASS 2:PASS", ""}, // what one event left behind is not another's fault
		{"b b b b b b b b b p", "0:EMIT 1:EMIT 2:EMIT 3:EMIT 4:EMIT 5:EMIT 6:EMIT 7:EMIT 8:EMIT 9:PASS", ""}, // too much together
	} {
		out := call(t, f, strings.Fields(c.events)...)
		for i := range out.Results {
			if len(out.Results[i].Data) > 1000 {
				out.Results[i].Data = nil
			}
		}
		if got := show(out); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.events, got, c.want)
		}
		if c.says != "" && (len(out.Failures) == 0 || !strings.Contains(out.Failures[0].Err.Error(), c.says)) {
			t.Errorf("%s: %v does not say %q", c.events, out.Failures, c.says)
		}
	}
	if s := f.Stats(); s.Failures[plugins.ReasonMemory] != 1 || s.Failures[plugins.ReasonTrap] < 8 || s.Rejects != 1 || s.Instances > int(s.Created-s.Retired) {
		t.Errorf("stats: %+v", s)
	}
}

// A guest without memory for the batch is "memory", and its instance is given up.
func TestNoBuffer(t *testing.T) {
	f := hostile(t, plugins.Options{Instances: 1}, event.Function{})
	big := "p" + strings.Repeat(" ", 2<<20)
	out := call(t, f, "p", big, "w", "p")
	if got := show(out); got != "0:PASS 1!memory 2:PASS 3:PASS" {
		t.Errorf("got %.100s", got)
	}
	if out = call(t, f, "p"); show(out) != "0:PASS" { // w left the guest refusing: a fresh one answers
		t.Errorf("after a refusal: %s", show(out))
	}
}

// However many events are poisoned and whatever the cursor says, the runs are bounded.
func TestRunsAreBounded(t *testing.T) {
	f := hostile(t, plugins.Options{}, event.Function{})
	events := make([]string, 64)
	for i := range events {
		events[i] = "t"
	}
	out := call(t, f, events...)
	if len(out.Failures) != 64 || len(out.Results) != 0 {
		t.Fatalf("%d failures", len(out.Failures))
	}
	if n := f.Stats().Reruns; n > 3*64+8 {
		t.Errorf("%d runs for 64 events", n)
	}

	// A cursor that stands at the first event accuses all but the last in turn; it is not believed for long.
	f = hostile(t, plugins.Options{}, event.Function{Config: map[string]string{"stuck": "1"}})
	for i := range 63 {
		events[i] = "p"
	}
	out = call(t, f, events...)
	if len(out.Failures) != 1 || out.Failures[0].Index != 63 || len(out.Results) != 63 {
		t.Fatalf("%s", show(out))
	}
	if n := f.Stats().Reruns; n > 40 {
		t.Errorf("%d runs for 64 events and a cursor that stands still", n)
	}
}

func TestUnhealthy(t *testing.T) {
	var now atomic.Int64
	h := newHost(t, plugins.Options{Now: func() time.Time { return time.Unix(now.Load(), 0) }})
	digest, err := h.Put(context.Background(), cGuest(t, "hostile.c"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.Open(context.Background(), event.Function{Name: "f", Digest: digest, Config: map[string]string{"crash": "1"}})
	if err == nil || !strings.Contains(err.Error(), "_initialize failed") || !errors.Is(err, event.ErrInvalid) {
		t.Errorf("crash: %v", err)
	}
	for bits, want := range map[string]string{"64": "bit 64, which is unknown", "1": "state (bit 1), which the function may not keep; give it `allow: {kv: true}`"} {
		_, err = h.Open(context.Background(), event.Function{Name: "f", Digest: digest, Config: map[string]string{"features": bits}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("features %s: %v", bits, err)
		}
	}
	// A function that worked when it was opened and no longer starts: the events wait.
	f, err := h.Open(context.Background(), event.Function{Name: "f", Digest: digest})
	if err != nil {
		t.Fatal(err)
	}
	now.Store(-1) // at which this guest crashes when it starts
	c := &plugins.Call{Events: []event.Record{record(1, "p"), record(2, "t")}}
	var out plugins.Outcome
	if err := f.Call(context.Background(), c, &out); !errors.Is(err, event.ErrUnavailable) || len(out.Results)+len(out.Failures) != 0 {
		t.Errorf("%v, %s", err, show(&out))
	}
}

type seen struct {
	now, wall, born int64
	random, wasi    uint64
}

func look(t *testing.T, r plugins.Result) (s seen) {
	t.Helper()
	if len(r.Data) != 40 {
		t.Fatalf("%d bytes", len(r.Data))
	}
	le := binary.LittleEndian
	return seen{int64(le.Uint64(r.Data)), int64(le.Uint64(r.Data[8:])), int64(le.Uint64(r.Data[16:])), le.Uint64(r.Data[24:]), le.Uint64(r.Data[32:])}
}

// Time and randomness follow the event at work, through the ABI and through WASI, and are the same
// whatever batch, attempt or instance the event comes in.
func TestTimeAndRandomDeriveFromTheEvent(t *testing.T) {
	f := hostile(t, plugins.Options{}, event.Function{})
	out := call(t, f, "c", "c")
	a, b := look(t, out.Results[0]), look(t, out.Results[1])
	if a.now != 1e9 || a.wall != 1e9 || b.now != 2e9 || b.wall != 2e9 || a.born != 0 {
		t.Errorf("%+v %+v", a, b)
	}
	if a.random == b.random || a.random == a.wasi || a.random == 0 {
		t.Errorf("random: %+v %+v", a, b)
	}
	one := func(f *plugins.Function, key byte, r event.Record) seen {
		c := &plugins.Call{Events: []event.Record{r}, Attempts: []uint32{7}, Key: [32]byte{key}}
		var out plugins.Outcome
		if err := f.Call(context.Background(), c, &out); err != nil {
			t.Fatal(err)
		}
		return look(t, out.Results[0])
	}
	if again := one(f, 0, record(2, "c")); again != b {
		t.Errorf("alone %+v, in the batch %+v", again, b)
	}
	if out := call(t, f, "t", "c"); look(t, out.Results[0]) != b {
		t.Errorf("after a trap %+v, else %+v", look(t, out.Results[0]), b)
	}
	moved := record(2, "c")
	moved.SetPlace(event.Position{Partition: 3, Offset: 9}, 2e9)
	e := event.Event{ID: "other", Source: "/test", Type: "t", Data: []byte("c")}
	named := event.Record(e.AppendRecord(nil))
	named.SetPlace(event.Position{Partition: 3, Offset: 2}, 2e9)
	if one(f, 0, moved).random == b.random || one(f, 0, named).random == b.random {
		t.Error("the event's position or id makes no difference")
	}
	other := hostile(t, plugins.Options{}, event.Function{Name: "g"})
	if one(f, 1, record(2, "c")).random == b.random || one(other, 0, record(2, "c")).random == b.random {
		t.Error("the subscription's key or the function's name makes no difference")
	}
}

func TestBatchHeaderAndPatchedRecords(t *testing.T) {
	f := hostile(t, plugins.Options{}, event.Function{})
	c := &plugins.Call{Events: []event.Record{record(1, "v"), record(2, "v")}, Attempts: []uint32{1, 3}}
	var out plugins.Outcome
	if err := f.Call(context.Background(), c, &out); err != nil {
		t.Fatal(err)
	}
	total := uint32(24 + len(c.Events[0]) + len(c.Events[1]))
	for i, want := range [][4]uint32{{1, total, 1, 0}, {1, total, 3, event.FlagRedeliver}} {
		var got [4]uint32
		for k := range got {
			got[k] = binary.LittleEndian.Uint32(out.Results[i].Data[4*k:])
		}
		if got != want {
			t.Errorf("event %d: version, total, attempt, flags %v, want %v", i, got, want)
		}
	}
	if c.Events[1].Attempt() != 0 || c.Events[1].Flags() != 0 {
		t.Error("the shared record was patched")
	}
}

func TestLogsAreBounded(t *testing.T) {
	var mu sync.Mutex
	var got []string
	now := time.Unix(1000, 0)
	f := hostile(t, plugins.Options{
		Log: func(function string, level int, message string) {
			mu.Lock()
			got = append(got, fmt.Sprintf("%s %d %s", function, level, message))
			mu.Unlock()
		},
		Now: func() time.Time { return now },
	}, event.Function{})
	call(t, f, "O")
	if len(got) != 200 || got[1] != "f 1 line 1" {
		t.Fatalf("%d lines: %q", len(got), got[:2])
	}
	now = now.Add(time.Hour)
	got = nil
	call(t, f, "G"+strings.Repeat("x", 5000)+"\xff")
	if len(got) != 201 || !strings.Contains(got[0], "800 messages were left out") || !strings.HasSuffix(got[1], "x… (906 bytes left out)") {
		t.Fatalf("%d lines: %q, %.60q", len(got), got[0], got[1])
	}
}

// A guest that sleeps, and one that never gets its turn, end with the context; nothing is decided.
func TestContextEnds(t *testing.T) {
	f := hostile(t, plugins.Options{Instances: 1}, event.Function{})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error)
	for range 2 {
		go func() {
			var out plugins.Outcome
			done <- f.Call(ctx, &plugins.Call{Events: []event.Record{record(1, "p"), record(2, "N")}}, &out)
		}()
	}
	for range 2 {
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	}
	if got := show(call(t, f, "p")); got != "0:PASS" {
		t.Errorf("afterwards: %s", got)
	}
}

func TestCloseWaitsForCalls(t *testing.T) {
	f := hostile(t, plugins.Options{}, event.Function{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error)
	go func() {
		var out plugins.Outcome
		done <- f.Call(ctx, &plugins.Call{Events: []event.Record{record(1, "N")}}, &out)
	}()
	for f.Stats().Calls == 0 {
		time.Sleep(time.Millisecond) // polls; there is nothing to wait on
	}
	short, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	if err := f.Close(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close during a call: %v", err)
	}
	if err := f.Call(ctx, &plugins.Call{Events: []event.Record{record(1, "p")}}, &plugins.Outcome{}); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("Call after Close began: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the call: %v", err)
	}
	for range 2 {
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if s := f.Stats(); s.Instances != 0 || s.Memory != 0 {
		t.Errorf("left behind: %+v", s)
	}
}

// An instance whose memory has grown far is not kept, and the pool never holds more than may work.
func TestInstancesAreRetiredAndBounded(t *testing.T) {
	f := hostile(t, plugins.Options{Instances: 2}, event.Function{})
	call(t, f, "B")
	if s := f.Stats(); s.Retired != 1 || s.Instances != 0 {
		t.Errorf("%+v", s)
	}
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			for range 20 {
				if got := show(call(t, f, "p", "t", "d")); got != "0:PASS 1!trap 2:DROP" {
					t.Error(got)
				}
				if n := f.Stats().Instances; n > 2 {
					t.Errorf("%d instances", n)
				}
			}
		})
	}
	g.Wait()
}
