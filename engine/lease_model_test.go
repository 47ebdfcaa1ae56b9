package engine

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/engine/event"
)

// modelLease is a lease as the reference model has it.
type modelLease struct {
	id, event string
	deadline  time.Duration // on the fake clock
	why       event.LostWhy // how it ended; "" while it is held
}

// Consumers pull, acknowledge, give back and prolong in any order while time passes: a delivery is never in two hands,
// each is settled once, and whoever holds a lease no more is told why.
func TestLeasesModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		base := time.Now()
		var clock atomic.Int64
		now := func() time.Duration { return time.Duration(clock.Load()) }
		w := newWorld(t, Options{Now: func() time.Time { return base.Add(now()) }})
		defer w.stop()
		w.apply(specOf(pullSpec("s", "orders", "")))

		var all []*modelLease
		held := map[string]*modelLease{} // by event
		attempts, done := map[string]int{}, map[string]bool{}
		published, paused := 0, false
		pull := func(max int) {
			got, err := w.e.Pull(t.Context(), "s", max, 0)
			if err != nil {
				rt.Fatal(err)
			}
			if len(got) > max || paused && len(got) > 0 {
				rt.Fatalf("%d deliveries; asked for %d, paused %v", len(got), max, paused)
			}
			for _, l := range got {
				ev := strings.Clone(l.Event.Attr(event.TagID))
				if held[ev] != nil || done[ev] {
					rt.Fatalf("%s is handed out: held by another %v, settled %v", ev, held[ev] != nil, done[ev])
				}
				if attempts[ev]++; l.Attempt != attempts[ev] {
					rt.Fatalf("%s: attempt %d, want %d", ev, l.Attempt, attempts[ev])
				}
				held[ev] = &modelLease{id: l.ID, event: ev, deadline: now() + 10*time.Second}
				all = append(all, held[ev])
			}
		}
		settle := func(how event.Settling, end func(*modelLease)) {
			if len(all) == 0 {
				return
			}
			var ids []string
			var want []event.Lost
			for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(all)-1), 1, min(6, len(all)), rapid.ID[int]).Draw(rt, "leases") {
				l := all[i]
				ids = append(ids, l.id)
				if l.why != "" {
					want = append(want, event.Lost{Lease: l.id, Why: l.why})
					continue
				}
				end(l)
			}
			lost, err := w.e.Settle(t.Context(), "s", ids, how)
			if err != nil {
				rt.Fatal(err)
			}
			if fmt.Sprint(lost) != fmt.Sprint(want) {
				rt.Fatalf("lost %v, want %v", lost, want)
			}
		}
		ended := func(why event.LostWhy) func(*modelLease) {
			return func(l *modelLease) {
				l.why = why
				delete(held, l.event)
				done[l.event] = why == event.LostSettled
			}
		}
		pass := func(d time.Duration) {
			clock.Add(int64(d))
			for _, l := range all {
				if l.why == "" && l.deadline <= now() {
					ended(event.LostExpired)(l)
				}
			}
			w.e.parked.nudge()
			eventually(t, "leases run out", func() bool { return w.info("s").Leased == len(held) })
		}
		rt.Repeat(map[string]func(*rapid.T){
			"publish": func(rt *rapid.T) {
				for range rapid.IntRange(1, 4).Draw(rt, "events") {
					w.publish("orders", fmt.Sprint("e", published))
					published++
				}
			},
			"pull": func(rt *rapid.T) { pull(rapid.IntRange(1, 5).Draw(rt, "max")) },
			"ack":  func(*rapid.T) { settle(event.Settling{}, ended(event.LostSettled)) },
			"nack": func(rt *rapid.T) {
				delay := time.Duration(rapid.IntRange(0, 5).Draw(rt, "delay")) * time.Second
				settle(event.Settling{Verb: event.Nack, Delay: delay}, ended(event.LostReturned))
			},
			"extend": func(*rapid.T) {
				settle(event.Settling{Verb: event.Extend, Deadline: 30 * time.Second}, func(l *modelLease) { l.deadline = now() + 30*time.Second })
			},
			"pass": func(rt *rapid.T) { pass(time.Duration(rapid.IntRange(1, 12).Draw(rt, "seconds")) * time.Second) },
			"pause": func(*rapid.T) {
				change := w.e.Pause
				if paused {
					change = w.e.Resume
				}
				if err := change(t.Context(), "s"); err != nil {
					rt.Fatal(err)
				}
				paused = !paused
			},
		})
		if paused {
			paused = false
			if err := w.e.Resume(t.Context(), "s"); err != nil {
				rt.Fatal(err)
			}
		}
		pass(time.Hour)
		count := func() (n int) {
			for _, is := range done {
				if is {
					n++
				}
			}
			return n
		}
		eventually(t, "everything is settled", func() bool {
			clock.Add(int64(time.Millisecond)) // what is due at once is due a moment later
			w.e.parked.nudge()
			pull(100)
			for _, l := range held {
				ended(event.LostSettled)(l)
				if lost, err := w.e.Ack(t.Context(), "s", []string{l.id}); err != nil || len(lost) > 0 {
					rt.Fatalf("lost %v, %v", lost, err)
				}
			}
			return count() == published
		})
		if i := w.info("s"); i.Outstanding != 0 || i.Leased != 0 || i.Parked != 0 || int(i.Delivered) != published {
			rt.Fatalf("of %d events: %+v", published, i)
		}
	})
}
