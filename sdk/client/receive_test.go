package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// receiving runs Receive until stop is called.
func receiving(t *testing.T, c *Client, handle Handler, o ReceiveOptions) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Receive(ctx, "jobs", handle, o) }()
	return func() error {
		cancel()
		return <-ended
	}
}

// settled waits until all deliveries are acknowledged.
func (f *fake) allSettled(t *testing.T) {
	t.Helper()
	for {
		f.mu.Lock()
		open := 0
		for _, j := range f.pulled {
			if j.acked == 0 {
				open++
			}
		}
		changed := f.changed
		f.mu.Unlock()
		if open == 0 {
			return
		}
		select {
		case <-changed:
		case <-time.After(time.Hour): // of the bubble's clock
			t.Fatalf("%d deliveries are not settled", open)
		}
	}
}

// Whatever breaks, each delivery is handled once and acknowledged once.
func TestReceiveThroughCuts(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, c := serve(t, Options{})
				fill(t, f, 300)
				f.make(chaos(seed, 20))
				var mu sync.Mutex
				handled := map[string]int{}
				stop := receiving(t, c, func(ctx context.Context, d *Delivery) error {
					mu.Lock()
					handled[d.Id]++
					mu.Unlock()
					return nil
				}, ReceiveOptions{})
				f.allSettled(t)
				f.make(nil)
				if err := stop(); err != nil {
					t.Error(err)
				}
				for id, n := range handled {
					if n != 1 {
						t.Errorf("%s was handled %d times", id, n)
					}
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				for i, j := range f.pulled {
					if j.acked != 1 {
						t.Errorf("%d was acknowledged %d times", i, j.acked)
					}
				}
				if n := f.calls["subscribe"]; n < 5 {
					t.Errorf("%d streams: the test shows little", n)
				}
			})
		})
	}
}

// A delivery that is leased anew while its handler runs is not handled beside it, and its newest lease is acknowledged.
func TestReceiveKeepsWhatItHoldsThroughACut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 5)
		release := make(chan struct{})
		var mu sync.Mutex
		began := 0
		stop := receiving(t, c, func(ctx context.Context, d *Delivery) error {
			mu.Lock()
			began++
			mu.Unlock()
			<-release
			return ctx.Err()
		}, ReceiveOptions{Concurrency: 2, Credit: 5})
		synctest.Wait()
		for range 3 {
			f.listener.cut()
			time.Sleep(time.Minute)
		}
		mu.Lock()
		if began != 2 {
			t.Errorf("%d handlers run", began)
		}
		mu.Unlock()
		close(release)
		f.allSettled(t)
		if err := stop(); err != nil || began != 5 {
			t.Error(err, began)
		}
	})
}

// What waited for a handler when the stream broke, and went to another consumer since, is not handled here, not even where a
// handler is free before that is known; one that runs is told that it lost its delivery.
func TestReceiveLetsGoWhatOthersHave(t *testing.T) {
	for _, free := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			f, c := serve(t, Options{})
			fill(t, f, 5)
			release := make(chan struct{})
			var mu sync.Mutex
			var why []error
			stop := receiving(t, c, func(ctx context.Context, d *Delivery) error {
				select {
				case <-ctx.Done():
				case <-release:
				}
				mu.Lock()
				defer mu.Unlock()
				why = append(why, context.Cause(ctx))
				return nil
			}, ReceiveOptions{Concurrency: 1, Credit: 5})
			synctest.Wait()
			f.listener.cut()
			synctest.Wait() // given back, and not yet here again
			f.mu.Lock()
			for _, j := range f.pulled {
				j.lease, j.held = "another's", "another"
			}
			f.mu.Unlock()
			if free {
				close(release)
			}
			time.Sleep(time.Minute)
			if err := stop(); err != nil {
				t.Error(err)
			}
			if len(why) != 1 || errors.Is(why[0], ErrLost) == free {
				t.Errorf("%d handlers ran, and were told %v", len(why), why)
			}
		})
	}
}

// A delivery that was given back may be here again before the answer to that: it is another attempt.
func TestReceiveHandlesTheNextAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		second := make(chan struct{})
		f.make(func(step string) error {
			if step == "settled" {
				<-second
			}
			return nil
		})
		fill(t, f, 1)
		stop := receiving(t, c, func(_ context.Context, d *Delivery) error {
			if d.Attempt == 1 {
				return errors.New("not yet")
			}
			close(second)
			return nil
		}, ReceiveOptions{})
		select {
		case <-second:
		case <-time.After(time.Minute):
			close(second)
			t.Fatal("the second attempt was not handled")
		}
		f.allSettled(t)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Leases are prolonged for as long as handlers run, and no longer than Hold.
func TestReceiveProlongsLeases(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 1)
		lost := make(chan error, 1)
		stop := receiving(t, c, func(ctx context.Context, d *Delivery) error {
			<-ctx.Done()
			lost <- context.Cause(ctx)
			return ctx.Err()
		}, ReceiveOptions{Hold: 10 * time.Minute})
		began := time.Now()
		if err := <-lost; !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		if held := time.Since(began); held < 10*time.Minute || held > 11*time.Minute {
			t.Errorf("held for %s", held)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.extends < 25 || f.extends > 35 { // every 20 s
			t.Errorf("%d extensions in 10 min", f.extends)
		}
	})
}

func TestReceiveGivesBackWhatFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 50)
		var mu sync.Mutex
		attempts := map[string][]uint32{}
		f.make(times(3, "settle", busy(2*time.Second))) // put off: nothing is lost, and the stream goes on
		stop := receiving(t, c, func(_ context.Context, d *Delivery) error {
			mu.Lock()
			defer mu.Unlock()
			attempts[d.Id] = append(attempts[d.Id], d.Attempt)
			if d.Attempt < 3 {
				return errors.New("not yet")
			}
			return nil
		}, ReceiveOptions{Delay: func(*Delivery, error) time.Duration { return time.Second }})
		f.allSettled(t)
		if err := stop(); err != nil || f.count("subscribe") != 1 {
			t.Error(err, f.count("subscribe"))
		}
		for id, a := range attempts {
			if fmt.Sprint(a) != "[1 2 3]" {
				t.Errorf("%s: attempts %v", id, a)
			}
		}
	})
}

// When its context ends it settles what is done, and what is not begun goes back.
func TestReceiveFinishes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 20)
		stop := receiving(t, c, func(ctx context.Context, d *Delivery) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			return nil // in spite of it
		}, ReceiveOptions{Concurrency: 3, Credit: 10})
		synctest.Wait()
		if err := stop(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		acked, held := 0, 0
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, j := range f.pulled {
			acked += j.acked
			if j.held != "" {
				held++
			}
		}
		if acked != 3 || held != 0 {
			t.Errorf("%d are acknowledged, %d held", acked, held)
		}
	})
}

func TestReceiveSaysWhatCouldNotBeSettled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 1)
		f.make(times(1000, "settle", busy(time.Hour)))
		handled := make(chan struct{})
		stop := receiving(t, c, func(context.Context, *Delivery) error { close(handled); return nil }, ReceiveOptions{})
		<-handled
		synctest.Wait()
		if err := stop(); err == nil {
			t.Error("nothing is said")
		}
	})
}

// Finish bounds it also where a handler came back later than that, and the router is away.
func TestReceiveEndsThoughTheRouterIsAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 1)
		began := make(chan struct{})
		stop := receiving(t, c, func(context.Context, *Delivery) error {
			close(began)
			time.Sleep(15 * time.Second)
			return nil
		}, ReceiveOptions{})
		<-began
		synctest.Wait()
		f.make(func(string) error { return errCut })
		f.listener.cut()
		at := time.Now()
		if err := stop(); err == nil || time.Since(at) > 26*time.Second {
			t.Errorf("%v after %s", err, time.Since(at))
		}
	})
}

// A handler that comes back long behind the end of the context is settled all the same.
func TestReceiveSettlesWhatComesLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		fill(t, f, 1)
		stop := receiving(t, c, func(ctx context.Context, _ *Delivery) error {
			<-ctx.Done()
			time.Sleep(time.Minute)
			return nil
		}, ReceiveOptions{})
		synctest.Wait()
		if err := stop(); err != nil {
			t.Error(err)
		}
		f.allSettled(t)
	})
}

// What was handled once and comes again is acknowledged, as long as it can be that repeat; what comes because somebody moved
// the subscription back is handled.
func TestReceiveTellsRepeatsFromSeeks(t *testing.T) {
	lost := func(why millracev1.LostReason) []*millracev1.Lost {
		return []*millracev1.Lost{{Lease: "a", Reason: why}}
	}
	for _, x := range []struct {
		name    string
		lost    []*millracev1.Lost
		after   time.Duration
		attempt uint32
		handled bool
	}{
		{"the ack overtook the new lease after a kill", nil, time.Second, 3, false},
		{"moved back a while after a restart", nil, 10 * time.Second, 1, true},
		{"moved back at once, on a later attempt", nil, time.Second, 1, true},
		{"leased anew after a kill", lost(millracev1.LostReason_LOST_REASON_RESTART), time.Second, 3, false},
		{"moved back a while after a kill", lost(millracev1.LostReason_LOST_REASON_RESTART), 10 * time.Second, 3, true},
		{"given back when its stream broke", lost(millracev1.LostReason_LOST_REASON_RETURNED), time.Minute, 4, false},
		{"given back, then moved back", lost(millracev1.LostReason_LOST_REASON_RETURNED), time.Second, 1, true},
		{"given back, then moved back, with as many attempts", lost(millracev1.LostReason_LOST_REASON_RETURNED), time.Second, 3, true},
		{"expired", lost(millracev1.LostReason_LOST_REASON_EXPIRED), time.Minute, 4, false},
		{"expired, then moved back", lost(millracev1.LostReason_LOST_REASON_EXPIRED), time.Second, 1, true},
		{"moved back while it was handled", lost(millracev1.LostReason_LOST_REASON_SEEK), time.Second, 1, true},
	} {
		bubble(t, func(t *testing.T) {
			o, _ := ReceiveOptions{}.check()
			r := &receiver{o: o, held: map[string]*holding{}, late: map[string]repeat{}, stream: &outgoing{}}
			h := &holding{d: &Delivery{Id: "d", Lease: "a", Attempt: 3}, from: &outgoing{}, done: true}
			r.held[h.d.Id] = h
			r.settle(h)
			r.flight, r.settles = r.settles, nil
			r.settled(&millracev1.SubscribeSettled{Sequence: 1, Lost: x.lost})
			time.Sleep(x.after)
			r.arrived(&Delivery{Id: "d", Lease: "b", Attempt: x.attempt}, time.Now())
			if got := len(r.waiting) == 1; got != x.handled || got == (len(r.settles) == 1) {
				t.Errorf("%s: handled %v, %d to be acknowledged", x.name, got, len(r.settles))
			}
		})
	}
}

func TestReceiveEndsOnWhatStays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		if err := c.Receive(t.Context(), "none", nil, ReceiveOptions{}); status.Code(err) != codes.NotFound {
			t.Error(err)
		}
		if err := c.Receive(t.Context(), "jobs", nil, ReceiveOptions{Deadline: time.Second}); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
		fill(t, f, 1)
		f.make(times(1, "settle", status.Error(codes.PermissionDenied, "not any more")))
		if err := c.Receive(t.Context(), "jobs", func(context.Context, *Delivery) error { return nil }, ReceiveOptions{}); status.Code(err) != codes.PermissionDenied {
			t.Error(err)
		}
	})
}
