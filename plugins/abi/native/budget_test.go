package native_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// Whatever a guest does for ever, it ends at its limit and its neighbours are unharmed.
func TestDeadlines(t *testing.T) {
	f := hostile(t, plugins.Options{}, event.Function{Limits: event.FunctionLimits{CPU: 20 * time.Millisecond, Wall: 200 * time.Millisecond}})
	for _, c := range []struct{ event, says string }{
		{"j", "limits.cpu: "},  // a loop
		{"1", "limits.cpu: "},  // a tree of calls
		{"f", "limits.cpu: "},  // a bulk operation, again and again
		{"V", "limits.cpu: "},  // a host function, again and again
		{"N", "limits.wall: "}, // a sleep of an hour
	} {
		out := call(t, f, "p", c.event, "p")
		if got := show(out); got != "0:PASS 1!deadline 2:PASS" || !strings.HasPrefix(out.Failures[0].Err.Error(), c.says) {
			t.Errorf("%s: %s, %v", c.event, got, out.Failures)
		}
	}
	if s := f.Stats(); s.Failures[plugins.ReasonDeadline] != 5 || s.Guest < 5*20*time.Millisecond || s.Time < s.Guest {
		t.Errorf("%+v", s)
	}
}

// What a guest waits for is not its own time.
func TestWaitingIsNotWorking(t *testing.T) {
	f := hostile(t, plugins.Options{}, event.Function{Limits: event.FunctionLimits{CPU: time.Second, Wall: 50 * time.Millisecond}})
	call(t, f, "N")
	if s := f.Stats(); s.Time < 50*time.Millisecond || s.Guest > s.Time/2 {
		t.Errorf("%s of %s in the guest", s.Guest, s.Time)
	}
}

// A guest that spins while it starts is refused when it is opened.
func TestSpinningStart(t *testing.T) {
	h := newHost(t, plugins.Options{})
	digest, err := h.Put(context.Background(), cGuest(t, "hostile.c"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.Open(context.Background(), event.Function{Name: "f", Digest: digest, Config: map[string]string{"spin": "1"}, Limits: event.FunctionLimits{CPU: time.Millisecond}})
	if !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "limits.cpu") {
		t.Errorf("%v", err)
	}
}

// Fuel is the same for the same event, whatever is beside it, and a limit of it is met to the unit.
func TestFuel(t *testing.T) {
	const work = "J100000"
	f := hostile(t, plugins.Options{}, event.Function{})
	call(t, f, "p")
	spent := call(t, f, work).Fuel
	if again := call(t, f, work).Fuel; again != spent || spent < 100_000 {
		t.Fatalf("%d, then %d", spent, again)
	}
	if s := f.Stats(); s.Fuel < 2*spent {
		t.Errorf("%d in all", s.Fuel)
	}
	for _, c := range []struct {
		limit int64
		want  string
	}{{spent, "0:PASS 1:PASS 2:PASS"}, {spent - 1, "0:PASS 1!fuel 2:PASS"}} {
		f := hostile(t, plugins.Options{}, event.Function{Limits: event.FunctionLimits{Fuel: c.limit}})
		out := call(t, f, "p", work, "p")
		if got := show(out); got != c.want {
			t.Errorf("%d of %d: %s, %v", c.limit, spent, got, out.Failures)
		}
	}
}

// A spinning guest keeps neither the collector nor another function waiting, and ends with its context.
func TestBesideASpinner(t *testing.T) {
	h := newHost(t, plugins.Options{})
	spinner := open(t, h, cGuest(t, "hostile.c"), event.Function{Limits: event.FunctionLimits{CPU: time.Minute, Wall: time.Minute}})
	other := open(t, h, cGuest(t, "redact.c"), event.Function{Name: "other"})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error)
	for range runtime.GOMAXPROCS(0) {
		go func() {
			done <- spinner.Call(ctx, &plugins.Call{Events: []event.Record{record(1, "j")}}, &plugins.Outcome{})
		}()
	}
	for spinner.Stats().Calls < uint64(runtime.GOMAXPROCS(0)) {
		runtime.Gosched()
	}
	slowest := func(do func()) (worst time.Duration) {
		for range 20 {
			start := time.Now()
			do()
			worst = max(worst, time.Since(start))
		}
		return worst
	}
	gc, beside := slowest(runtime.GC), slowest(func() { call(t, other, order()) })
	t.Logf("slowest of 20: a collection %s, another function's call %s", gc, beside)
	if gc > time.Second || beside > time.Second {
		t.Errorf("a collection took %s, another function's call %s", gc, beside)
	}
	cancel()
	for range runtime.GOMAXPROCS(0) {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
