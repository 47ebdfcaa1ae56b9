package native_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// Everything that gives instances and machine code up, at once with everything that takes them: calls that fail,
// that are cancelled while they wait for memory or run, functions that come and go, an idle time of nothing. A
// count that one path forgets to take back makes later calls wait for ever.
func TestPoolUnderStress(t *testing.T) {
	h := newHost(t, plugins.Options{Memory: 16 << 20, Instances: 2, Idle: time.Millisecond, Dir: t.TempDir()})
	module, other := cGuest(t, "hostile.c"), cGuest(t, "echo.c")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	digest, err := h.Put(ctx, module)
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	for i := range 4 {
		g.Go(func() { // comes and goes, is called while it is closed
			for round := range 6 {
				f, err := h.Open(ctx, event.Function{Name: fmt.Sprintf("f%d", i), Digest: digest})
				if err != nil {
					t.Error(err)
					return
				}
				var calls sync.WaitGroup
				for k := range 4 {
					calls.Go(func() {
						for range 4 {
							short, stop := context.WithTimeout(ctx, time.Duration(1+k*round)*time.Millisecond)
							var out plugins.Outcome
							err := f.Call(short, &plugins.Call{Events: []event.Record{record(1, "p"), record(2, "t"), record(3, "B")}}, &out)
							stop()
							if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, event.ErrUnavailable) {
								t.Error(err)
							}
						}
					})
				}
				if round%2 == 0 {
					calls.Wait()
				}
				if err := f.Close(ctx); err != nil {
					t.Error(err)
				}
				calls.Wait()
				if s := f.Stats(); s.Instances != 0 || s.Memory != 0 {
					t.Errorf("left behind: %+v", s)
				}
			}
		})
	}
	g.Go(func() { // one that cannot be made
		for range 10 {
			if _, err := h.Open(ctx, event.Function{Name: "crash", Digest: digest, Config: map[string]string{"crash": ""}}); !errors.Is(err, event.ErrInvalid) {
				t.Error(err)
			}
		}
	})
	g.Go(func() {
		for range 20 {
			if _, err := h.Put(ctx, other); err != nil {
				t.Error(err)
			}
			if _, err := h.Collect(ctx, time.Now().Add(time.Hour), func(d string) bool { return d == digest }); err != nil {
				t.Error(err)
			}
		}
	})
	g.Wait()
	// Nothing is counted that is not there: a call finds room, however little memory there is for it.
	f := open(t, h, module, event.Function{Name: "last"})
	for range 3 {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if got := show(call(t, f, "p", "t", "d")); got != "0:PASS 1!trap 2:DROP" {
					t.Error(got)
				}
			})
		}
		all.Wait()
	}
}
