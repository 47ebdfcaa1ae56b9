package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fill puts n events into the fake's topic, with their numbers as subjects.
func fill(t *testing.T, f *fake, n int) {
	t.Helper()
	from := len(f.stored())
	for i := from; i < from+n; i++ {
		e := event(t, "a")
		e.Id = fmt.Sprint("id-", i)
		if i%2 == 1 {
			e.Type = "odd"
		}
		Set(e, "subject", fmt.Sprint(i))
		if _, err := f.store([]*Event{e}); err != nil {
			t.Fatal(err)
		}
	}
}

// Every event comes once and in order, whatever breaks.
func TestFollowThroughCuts(t *testing.T) {
	for seed := range uint64(2) {
		bubble(t, func(t *testing.T) {
			f, c := serve(t, Options{})
			fill(t, f, 150)
			f.make(chaos(seed, 8))
			go func() {
				for range 10 {
					time.Sleep(time.Second)
					fill(t, f, 15)
				}
			}()
			next := 0
			r := c.Follow(Topic("orders"), ReadOptions{Start: Earliest(), Limit: 300})
			for e, err := range r.All(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if got := Get(e.Event, "subject"); got != fmt.Sprint(next) {
					t.Fatalf("event %s came when %d was due", got, next)
				}
				next++
			}
			if next != 300 || f.count("read") < 5 {
				t.Errorf("%d events over %d streams", next, f.count("read"))
			}
		})
	}
}

// Who follows from now on misses nothing that was published while he was cut off before the first event.
func TestFollowFromNowOnMissesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 3)
		r := c.Follow(Topic("orders"), ReadOptions{})
		got := make(chan *Received)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(got)
			for e, err := range r.All(ctx) {
				if err == nil {
					got <- e
				} else if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			}
		}()
		synctest.Wait()
		if r.Cursor() != cursorOf(3) {
			t.Fatalf("cursor %q", r.Cursor())
		}
		f.make(times(1, "read", status.Error(codes.Unavailable, "draining")))
		f.listener.cut()
		fill(t, f, 1)
		if e := <-got; Get(e.Event, "subject") != "3" {
			t.Errorf("%v", e)
		}
		cancel()
		for e := range got {
			t.Errorf("%v", e)
		}
	})
}

func TestReadToTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 30)
		f.make(times(3, "batch", errCut))
		r := c.Read(Topic("orders"), ReadOptions{Filter: "odd"})
		n := 0
		for e, err := range r.All(t.Context()) {
			if err != nil || e.Event.Type != "odd" {
				t.Fatal(e, err)
			}
			if n++; n == 4 {
				break
			}
		}
		if r.Cursor() != cursorOf(8) {
			t.Errorf("left at %q", r.Cursor())
		}
		for e, err := range r.All(t.Context()) { // goes on behind it
			if want := fmt.Sprint(2*n + 1); err != nil || Get(e.Event, "subject") != want {
				t.Fatal(e, err, want)
			}
			n++
		}
		if n != 15 || r.Cursor() != cursorOf(30) {
			t.Errorf("%d events, %q", n, r.Cursor())
		}
	})
}

func TestReadEndsOnWhatStays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		f.make(times(1, "read", status.Error(codes.OutOfRange, "the ring has overtaken the cursor")))
		n := 0
		for e, err := range c.Follow(Topic("orders"), ReadOptions{}).All(t.Context()) {
			if n++; e != nil || status.Code(err) != codes.OutOfRange {
				t.Error(e, err)
			}
		}
		if n != 1 || f.count("read") != 1 {
			t.Error(n, f.count("read"))
		}
		_ = c.Close() // after which nothing is tried for ever
		for _, err := range c.Follow(Topic("orders"), ReadOptions{}).All(t.Context()) {
			if err == nil {
				t.Error("an event of a closed client")
			}
		}
	})
}
