package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// bubble runs a test with a clock that jumps over pauses.
func bubble(t *testing.T, do func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, do)
}

// times makes trouble: err the first n times that a step is taken.
func times(n int, at string, err error) func(string) error {
	var left atomic.Int64
	left.Store(int64(n))
	return func(step string) error {
		if step != at || left.Add(-1) < 0 {
			return nil
		}
		return err
	}
}

func event(t *testing.T, typ string) *Event {
	t.Helper()
	e, err := JSON(typ, map[string]int{"n": 1})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCallsAreTriedAgainByCode(t *testing.T) {
	for _, x := range []struct {
		name  string
		err   error
		tries int
		code  codes.Code
		least time.Duration
	}{
		{"unavailable", status.Error(codes.Unavailable, "draining"), 4, codes.Unavailable, 100 * time.Millisecond},
		{"put off", busy(3 * time.Second), 4, codes.ResourceExhausted, 9 * time.Second},
		{"exhausted for good", status.Error(codes.ResourceExhausted, "too large"), 1, codes.ResourceExhausted, 0},
		{"invalid", invalid("events[0].id", "is empty"), 1, codes.InvalidArgument, 0},
		{"denied", status.Error(codes.PermissionDenied, "no"), 1, codes.PermissionDenied, 0},
		{"internal", status.Error(codes.Internal, "no"), 1, codes.Internal, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, c := serve(t, Options{})
				f.make(times(1000, "publish", x.err))
				began := time.Now()
				_, err := c.Publish(t.Context(), "orders", event(t, "a"))
				var e *Error
				if !errors.As(err, &e) || e.Code != x.code || f.count("publish") != x.tries {
					t.Errorf("%d tries, %v", f.count("publish"), err)
				}
				if took := time.Since(began); took < x.least || took > x.least+5*time.Second {
					t.Errorf("took %s", took)
				}
				f.make(times(x.tries-1, "publish", x.err))
				if _, err := c.Publish(t.Context(), "orders", event(t, "a")); err != nil {
					t.Errorf("after %d failures: %v", x.tries-1, err)
				}
			})
		})
	}
}

// An answer that was lost does not make a second event, though the caller gave no id; and the same event sent twice is two.
func TestPublishTwiceIsStoredOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{Token: "secret"})
		f.make(times(2, "published", errCut))
		e := event(t, "a")
		first, err := c.Publish(t.Context(), "orders", e)
		if err != nil || len(first) != 1 || first[0].Id == "" {
			t.Fatal(first, err)
		}
		f.mu.Lock()
		if len(f.events) != 1 || f.repeats != 2 || f.token != "Bearer secret" {
			t.Errorf("%d events, %d repeats, authorization %q", len(f.events), f.repeats, f.token)
		}
		f.mu.Unlock()
		if second, err := c.Publish(t.Context(), "orders", e); err != nil || second[0].Id == first[0].Id || len(f.stored()) != 2 || e.Id != "" {
			t.Error("the same event again", second, err)
		}
	})
}

func TestWhatIsNotSafeIsNotRepeated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		f.make(times(1, "published", errCut))
		if _, err := c.Events().Publish(t.Context(), &millracev1.PublishRequest{Events: []*Event{event(t, "a")}}); err == nil || len(f.stored()) != 1 {
			t.Errorf("without an id: %v, %d events", err, len(f.stored()))
		}
	})
	for method, want := range map[string]bool{"Admin/CreateDefinition": false, "Admin/DeleteDefinition": false, "Functions/Invoke": false, "Admin/Ready": true, "Events/Settle": true} {
		if is := repeatable("/millrace.v1."+method, nil); is != want {
			t.Errorf("%s: %t", method, is)
		}
	}
}

func TestErrorTellsWhatTheRouterSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{})
		f.make(times(1, "publish", invalid("events[0].time", "is no time")))
		_, err := c.Publish(t.Context(), "orders", event(t, "a"))
		var e *Error
		if !errors.As(err, &e) || e.Reason != "INVALID" || len(e.Violations) != 1 || e.Violations[0].Field != "events[0].time" {
			t.Fatalf("%#v", err)
		}
		if want := "InvalidArgument (INVALID): the request is malformed; events[0].time: is no time"; err.Error() != want {
			t.Errorf("%q", err)
		}
		if status.Code(err) != codes.InvalidArgument || e.Temporary() {
			t.Error(status.Code(err), e.Temporary())
		}
	})
}

func TestCallsEndWithTheirContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, c := serve(t, Options{Timeout: 2 * time.Second})
		f.make(func(string) error { return status.Error(codes.Unavailable, "draining") })
		ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := c.Publish(ctx, "orders", event(t, "a"))
		if status.Code(err) != codes.Unavailable || time.Since(began) > 250*time.Millisecond {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		f.mu.Lock()
		hang := make(chan struct{})
		defer close(hang)
		f.make(func(string) error { <-hang; return nil })
		f.mu.Unlock()
		began = time.Now()
		if _, err = c.Publish(t.Context(), "orders", event(t, "a")); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 2*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestLocalTargets(t *testing.T) {
	for target, want := range map[string]bool{
		"localhost:8085": true, "127.0.0.1:8085": true, "[::1]:8085": true, "unix:/run/router": true, "dns:///localhost:8085": true,
		"router.example:8085": false, "10.0.0.1:8085": false, "localhost.example:8085": false, "dns:///127.0.0.1.example:1": false, "": false,
	} {
		if is := local(target); is != want {
			t.Errorf("%q: %t", target, is)
		}
	}
}

// Only this machine is spoken to in plain text unless Plaintext says so.
func TestWhoIsSpokenToInPlainText(t *testing.T) {
	for _, x := range []struct {
		target string
		o      Options
		first  byte
	}{
		{"passthrough:///router.example:8085", Options{}, 0x16}, // a TLS handshake (RFC 8446, 5.1)
		{"passthrough:///router.example:8085", Options{Plaintext: true}, 'P'},
		{"passthrough:///127.0.0.1:8085", Options{}, 'P'}, // "PRI * HTTP/2.0"
		{"passthrough:///127.0.0.1:8085", Options{TLS: &tls.Config{ServerName: "router"}}, 0x16},
	} {
		bubble(t, func(t *testing.T) {
			l := bufconn.Listen(4096)
			x.o.Dial = []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			dialed := make(chan error, 1)
			go func() {
				c, err := Dial(ctx, x.target, x.o)
				if err == nil {
					err = c.Close()
				}
				dialed <- err
			}()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			first := make([]byte, 1)
			if _, err := io.ReadFull(conn, first); err != nil || first[0] != x.first {
				t.Errorf("%s is sent %q first (%v); want %q", x.target, first, err, x.first)
			}
			_ = l.Close()
			_ = conn.Close()
			if err := <-dialed; err == nil || !strings.Contains(err.Error(), x.target) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("dialling nobody: %v", err)
			}
		})
	}
}

func TestTokensThatAreNone(t *testing.T) {
	_, err := New("localhost:1", Options{Token: "a\nb"})
	if err == nil || strings.Contains(err.Error(), "a\nb") {
		t.Error(err)
	}
}

func TestBackoffGrowsAndVaries(t *testing.T) {
	b := Backoff{}.withDefaults()
	seen := map[time.Duration]bool{}
	for n := 1; n < 100; n++ {
		d := b.wait(n, 0)
		full := min(b.Max, b.Min<<min(n-1, 20))
		if d < full/2 || d > full {
			t.Errorf("try %d waits %s; want %s to %s", n, d, full/2, full)
		}
		if after := b.wait(n, time.Minute); after < time.Minute || after > time.Minute+b.Max {
			t.Errorf("try %d waits %s when told a minute", n, after)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Errorf("%d different waits of 99", len(seen))
	}
}
