package mqtt

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

// nobody is a fan-out with sessions that the events of a benchmark do not match, and one of its events.
func nobody(t testing.TB, sessions int) (*Server, *fanout, event.Record) {
	t.Helper()
	r := newLogRouter(t, 1)
	s := newOut(t, r, Options{})
	caller := anybody(t)
	for i := range sessions {
		d, _ := join(t, s, deviceOptions{id: fmt.Sprint(i), caller: caller})
		d.sub(fmt.Sprintf("log/%d/#", i), 1)
	}
	r.say("log/nobody/x", "x")
	rec, err := r.Event(t.Context(), "logs", event.Position{})
	if err != nil {
		t.Fatal(err)
	}
	s.fan.mu.Lock()
	defer s.fan.mu.Unlock()
	for _, f := range s.fan.by {
		return s, f, rec
	}
	t.Fatal("nobody reads")
	return nil, nil, nil
}

// An event costs nothing for the sessions that it does not match.
func TestFanoutAllocatesNothing(t *testing.T) {
	s, f, rec := nobody(t, 300)
	defer closeOut(t, s)
	if n := testing.AllocsPerRun(100, func() { f.dispatch(rec) }); n != 0 {
		t.Errorf("%v allocations per event that matches nobody", n)
	}
}

func BenchmarkFanoutNobody(b *testing.B) {
	for _, sessions := range []int{1, 10_000} {
		b.Run(fmt.Sprint(sessions), func(b *testing.B) {
			s, f, rec := nobody(b, sessions)
			defer closeOut(b, s)
			b.ReportAllocs()
			for b.Loop() {
				f.dispatch(rec)
			}
		})
	}
}

// sink is a packetWriter that keeps nothing.
type sink struct{}

func (sink) write(*packets.Packet) (bool, error) { return true, nil }
func (sink) flush() error                        { return nil }

// An idle session takes little: its side of it; a connection's is its own.
func TestIdleSessionIsSmall(t *testing.T) {
	r := newLogRouter(t, 1)
	s := newOut(t, r, Options{})
	defer closeOut(t, s)
	caller := anybody(t)
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	const n = 1000
	goroutines := runtime.NumGoroutine()
	all := make([]*session, n)
	before := used()
	for i := range n {
		sess, _, err := s.sessions.take(t.Context(), caller, fmt.Sprint("device-", i), false, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := sess.out.attach(sink{}, connectParams{version: 5, receiveMaximum: 100, caller: caller}); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"plant/%d/temp", "log/%d/#"} {
			sess.out.subscribe([]packets.Subscription{{Filter: fmt.Sprintf(f, i), Qos: 1}})
		}
		r.say(fmt.Sprintf("plant/%d/temp", i), "one that came and went")
		all[i] = sess
	}
	eventually(t, "all came", func() bool {
		for _, sess := range all {
			sess.out.mu.Lock()
			for id := range sess.out.flight.byID {
				sess.out.complete(sess.out.flight.byID[id])
			}
			busy := sess.out.pumping || sess.out.queue.len() > 0 || sess.out.flight.head != nil
			sess.out.mu.Unlock()
			if busy {
				return false
			}
		}
		return true
	})
	per := int64(used()-before) / n
	eventually(t, "an idle session has no goroutine", func() bool { return runtime.NumGoroutine() <= goroutines+20 })
	t.Logf("%d bytes a session", per)
	if per > 12<<10 {
		t.Errorf("an idle session with two subscriptions takes %d bytes", per)
	}
}
