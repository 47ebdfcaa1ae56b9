package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// chaos cuts the connection at a random step now and then.
func chaos(seed uint64, one int) func(string) error {
	r := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	return func(step string) error {
		mu.Lock()
		defer mu.Unlock()
		switch n := r.IntN(one); {
		case n == 0:
			return errCut
		case n == 1:
			return status.Error(codes.Unavailable, "draining")
		case n == 2 && step == "store":
			return busy(time.Second)
		}
		return nil
	}
}

func publishAll(t *testing.T, p *Publisher, n int) (all []*Sending) {
	t.Helper()
	for i := range n {
		e := event(t, "a")
		Set(e, "subject", fmt.Sprint(i))
		s, err := p.Publish(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// Whatever breaks, each event that was taken is stored once, at the place that the answer says.
func TestPublisherThroughCuts(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, c := serve(t, Options{})
				f.make(chaos(seed, 12))
				p := c.Publisher(t.Context(), "orders", PublisherOptions{Batch: 7, Dedupe: -1})
				const n = 600
				all := publishAll(t, p, n)
				if err := p.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				if len(f.stored()) != n {
					t.Errorf("%d events are stored, of %d", len(f.stored()), n)
				}
				for i, s := range all {
					stored, err := s.Wait(t.Context())
					if err != nil || len(stored) != 1 {
						t.Fatal(i, stored, err)
					}
					if e := f.stored()[stored[0].Position.Offset]; Get(e, "subject") != fmt.Sprint(i) || e.Id != stored[0].Id {
						t.Errorf("event %d is said to be at %v, where %q is", i, stored[0].Position, e.Id)
					}
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				if f.repeats == 0 {
					t.Error("no answer was lost: the test shows nothing")
				}
			})
		})
	}
}

// One request at a time keeps the order, whatever is refused, put off or cut.
func TestPublisherKeepsOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		f.make(chaos(9, 10))
		p := c.Publisher(t.Context(), "orders", PublisherOptions{Requests: 1, Batch: 5, Dedupe: -1})
		for i := range 300 {
			e := event(t, "a")
			if i%50 == 49 {
				e.Type = "bad"
			}
			Set(e, "subject", fmt.Sprintf("%04d", i))
			if _, err := p.Publish(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(t.Context()); err != nil || len(f.stored()) != 294 {
			t.Fatal(err, len(f.stored()))
		}
		for i := 1; i < len(f.stored()); i++ {
			if a, b := Get(f.stored()[i-1], "subject"), Get(f.stored()[i], "subject"); a >= b {
				t.Errorf("%s is stored behind %s", b, a)
			}
		}
	})
}

// What is at fault fails alone, though it shared its request.
func TestPublisherTellsWhichIsAtFault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		release := make(chan struct{})
		f.make(func(step string) error {
			if step == "request" {
				<-release // all others are queued behind the first
			}
			return nil
		})
		p := c.Publisher(t.Context(), "orders", PublisherOptions{})
		all := publishAll(t, p, 1)
		synctest.Wait()
		var bad *Sending
		for i := range 20 {
			e := event(t, "a")
			if i == 10 {
				e.Type = "bad"
			}
			s, err := p.Publish(t.Context(), e)
			if err != nil {
				t.Fatal(err)
			}
			if i == 10 {
				bad = s
			} else {
				all = append(all, s)
			}
		}
		close(release)
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if _, err := s.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if _, err := bad.Wait(t.Context()); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.events) != 20 || f.requests >= 41 {
			t.Errorf("%d events, %d requests", len(f.events), f.requests)
		}
	})
}

// What was sent and not answered for longer than the window in which the router knows it again is not sent again.
func TestPublisherDoesNotRepeatBehindTheWindow(t *testing.T) {
	for window, want := range map[time.Duration]int{0: 1, -1: 2} {
		bubble(t, func(t *testing.T) {
			f, c := serve(t, Options{})
			var away atomic.Bool
			f.make(func(step string) error {
				if step == "answer" || away.Load() && step == "open" {
					away.Store(true)
					return status.Error(codes.Unavailable, "draining")
				}
				return nil
			})
			p := c.Publisher(t.Context(), "orders", PublisherOptions{Dedupe: window})
			s := publishAll(t, p, 1)[0]
			time.Sleep(3 * time.Minute)
			f.mu.Lock()
			clear(f.at) // the window is over
			f.make(nil)
			f.mu.Unlock()
			later := publishAll(t, p, 1)[0]
			_, err := s.Wait(t.Context())
			if (window == 0) != errors.Is(err, ErrUncertain) {
				t.Errorf("window %s: %v", window, err)
			}
			if _, err := later.Wait(t.Context()); err != nil || len(f.stored()) != want+1 {
				t.Errorf("window %s: %d events, %v", window, len(f.stored()), err)
			}
			_ = p.Close(t.Context())
		})
	}
}

// What no other try would mend ends it, and everything that waits is told.
func TestPublisherEndsOnWhatStays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		f.make(times(1000, "open", status.Error(codes.Unauthenticated, "the key was revoked")))
		p := c.Publisher(t.Context(), "orders", PublisherOptions{Events: 1})
		s := publishAll(t, p, 1)[0]
		_, waited := p.Publish(t.Context(), event(t, "a"))
		_, err := s.Wait(t.Context())
		if status.Code(err) != codes.Unauthenticated && !errors.Is(err, ErrUncertain) || status.Code(waited) != codes.Unauthenticated || status.Code(p.Err()) != codes.Unauthenticated {
			t.Error(err, waited, p.Err())
		}
		if f.count("open") != 1 {
			t.Errorf("tried %d times", f.count("open"))
		}
	})
}

func TestPublisherIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		f.make(times(1000, "open", status.Error(codes.Unavailable, "draining")))
		p := c.Publisher(t.Context(), "orders", PublisherOptions{Events: 10})
		publishAll(t, p, 10)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Publish(ctx, event(t, "a")); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, err := p.Publish(ctx); status.Code(err) != codes.InvalidArgument {
			t.Error("no events:", err)
		}
		if _, err := p.Publish(ctx, Bytes("a", "", make([]byte, 17<<20))); status.Code(err) != codes.InvalidArgument {
			t.Error("too many bytes:", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error("closed with events that wait:", err)
		}
		if _, err := p.Publish(t.Context(), event(t, "a")); !errors.Is(err, ErrClosed) {
			t.Error("behind Close:", err)
		}
	})
}

// A message that is too large for this router fails alone, and the publisher goes on.
func TestPublisherSurvivesWhatIsTooLarge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		p := c.Publisher(t.Context(), "orders", PublisherOptions{Batch: 10})
		good := publishAll(t, p, 5)
		bad, err := p.Publish(t.Context(), Bytes("a", "", make([]byte, 5<<20))) // over gRPC's own 4 MiB
		if err != nil {
			t.Fatal(err)
		}
		good = append(good, publishAll(t, p, 5)...)
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, s := range good {
			if _, err := s.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if _, err := bad.Wait(t.Context()); status.Code(err) != codes.ResourceExhausted || errors.Is(err, ErrUncertain) {
			t.Error(err)
		}
		if len(f.stored()) != 10 {
			t.Errorf("%d events", len(f.stored()))
		}
	})
}

// An event whose first sending may be stored keeps that time, however often it is put off: behind the window it is not sent.
func TestPublisherKeepsTheWindowThroughRefusals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		began, lost := time.Now(), false
		f.make(func(step string) error {
			switch {
			case step == "answer" && !lost:
				lost = true
				return errCut // stored, and not told
			case step == "store" && lost && time.Since(began) < 3*time.Minute:
				return busy(time.Second)
			}
			return nil
		})
		p := c.Publisher(t.Context(), "orders", PublisherOptions{Requests: 1})
		s := publishAll(t, p, 1)[0]
		if _, err := s.Wait(t.Context()); !errors.Is(err, ErrUncertain) || time.Since(began) > 2*time.Minute {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		f.mu.Lock()
		if f.repeats != 0 {
			t.Error("it was sent behind the window")
		}
		f.mu.Unlock()
		time.Sleep(3 * time.Minute)
		f.make(times(200, "store", busy(time.Second)))
		s = publishAll(t, p, 1)[0] // one that was only ever put off has no such time
		if _, err := s.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		_ = p.Close(t.Context())
	})
}

// A refusal of what is sent again does not tell that the first sending was not stored.
func TestPublisherIsUncertainOfARefusedRepeat(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		lost := false
		f.make(func(step string) error {
			switch {
			case step == "answer" && !lost:
				lost = true
				return errCut
			case step == "store" && lost:
				return status.Error(codes.PermissionDenied, "the key was revoked")
			}
			return nil
		})
		p := c.Publisher(t.Context(), "orders", PublisherOptions{})
		first := publishAll(t, p, 1)[0]
		if _, err := first.Wait(t.Context()); !errors.Is(err, ErrUncertain) || status.Code(err) != codes.PermissionDenied || len(f.stored()) != 1 {
			t.Error(err, len(f.stored()))
		}
		second := publishAll(t, p, 1)[0]
		if _, err := second.Wait(t.Context()); errors.Is(err, ErrUncertain) || status.Code(err) != codes.PermissionDenied {
			t.Error("sent once, and refused:", err)
		}
		_ = p.Close(t.Context())
	})
}

// A router that takes less at once than the publisher sends is sent less, and soon.
func TestPublisherFitsASmallRouter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{}, grpc.MaxRecvMsgSize(64<<10))
		p := c.Publisher(t.Context(), "orders", PublisherOptions{})
		var all []*Sending
		for range 1000 {
			s, err := p.Publish(t.Context(), Bytes("a", "", make([]byte, 500)))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		if err := p.Close(t.Context()); err != nil || len(f.stored()) != 1000 {
			t.Error(err, len(f.stored()))
		}
		for _, s := range all {
			if _, err := s.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if opens, requests := f.count("open"), f.count("request"); opens > 6 || requests > 50 {
			t.Errorf("%d streams, %d requests", opens, requests)
		}
	})
}

// Why a publisher ended is told though Close was called before it did.
func TestPublisherTellsWhyItEndedInClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		f.make(times(1000, "open", status.Error(codes.Unavailable, "draining")))
		p := c.Publisher(t.Context(), "orders", PublisherOptions{})
		s := publishAll(t, p, 1)[0]
		closed := make(chan error, 1)
		go func() { closed <- p.Close(t.Context()) }()
		synctest.Wait()
		f.make(times(1000, "open", status.Error(codes.Unauthenticated, "the key was revoked")))
		if err := <-closed; status.Code(err) != codes.Unauthenticated || status.Code(p.Err()) != codes.Unauthenticated {
			t.Error(err, p.Err())
		}
		if _, err := s.Wait(t.Context()); status.Code(err) != codes.Unauthenticated {
			t.Error(err)
		}
	})
}
