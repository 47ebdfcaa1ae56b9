package mqtt

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"pgregory.net/rapid"
)

// A ledger is what an application behind a device has got, over all its connections: the receiver's side of 4.3.
type ledger struct {
	qos   byte
	names map[string][]int // what came under a name, in order
	times map[int]int      // how often each came
	open  map[uint16]bool  // of QoS 2: packet ids that are not released
	seen  int              // packets of the device that were looked at
}

func newLedger(qos byte) *ledger {
	return &ledger{qos: qos, names: map[string][]int{}, times: map[int]int{}, open: map[uint16]bool{}}
}

// take looks at up to n packets that came, and acknowledges them.
func (l *ledger) take(t interface{ Fatalf(string, ...any) }, d *device, n int) {
	d.mu.Lock()
	var some []packets.Packet
	for ; l.seen < len(d.got) && n > 0; n-- {
		some = append(some, d.got[l.seen])
		l.seen++
	}
	d.mu.Unlock()
	for _, pk := range some {
		if pk.FixedHeader.Type == packets.Pubrel {
			delete(l.open, pk.PacketID)
			d.answer(&pk)
			continue
		}
		if pk.FixedHeader.Qos != l.qos {
			t.Fatalf("QoS %d; want %d", pk.FixedHeader.Qos, l.qos)
		}
		if l.qos == 2 {
			if l.open[pk.PacketID] && !pk.FixedHeader.Dup {
				t.Fatalf("packet id %d is used again before it was released", pk.PacketID)
			}
			if !l.open[pk.PacketID] {
				l.book(pk)
			}
			l.open[pk.PacketID] = true
		} else {
			l.book(pk)
		}
		d.answer(&pk)
	}
}

func (l *ledger) book(pk packets.Packet) {
	n, _ := strconv.Atoi(string(pk.Payload))
	if l.times[n]++; l.times[n] == 1 {
		l.names[pk.TopicName] = append(l.names[pk.TopicName], n)
	}
}

// However publishing, reading, acknowledging, losing the connection and losing the process fall together: under QoS 1 all
// comes at least once, without lost connections exactly once, and under QoS 2 exactly once, and under a name in order.
func TestHandover(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		qos := rapid.Byte().Filter(func(b byte) bool { return b == 1 || b == 2 }).Draw(rt, "qos")
		r := newLogRouter(t, rapid.IntRange(1, 3).Draw(rt, "partitions"))
		window := uint16(rapid.IntRange(1, 20).Draw(rt, "window"))
		most := rapid.IntRange(1, 10).Draw(rt, "queue")
		start := func() *Server {
			s := newOut(t, r, Options{})
			s.fan.most, s.fan.low = most, max(1, most/2)
			return s
		}
		s := start()
		l := newLedger(qos)
		d, _ := join(t, s, deviceOptions{id: "a", expiry: never, window: window})
		// Something else reads the same source, so that the fan-out runs while the device is away.
		other, _ := join(t, s, deviceOptions{id: "b", auto: true})
		other.sub("log/#", 0)
		d.sub("log/#", qos)
		d.sub("log/1/+", qos)
		n, lost := 0, false
		mine := map[string][]int{}
		for _, op := range rapid.SliceOfN(rapid.IntRange(0, 19), 5, 60).Draw(rt, "operations") {
			switch {
			case op < 9: // publish a few
				for range 1 + op {
					name := fmt.Sprintf("log/%d/x", n%4)
					r.say(name, strconv.Itoa(n))
					mine[name] = append(mine[name], n)
					n++
				}
			case op == 9:
				r.say("plant/1/temp", "not its own")
			case op < 17:
				l.take(rt, d, op-9)
			case op == 17 && d != nil: // reconnect at once
				lost = true
				d.part()
				d, _ = join(t, s, deviceOptions{id: "a", expiry: never, window: window})
				l.seen = 0
			case op == 18: // reconnect later
				lost = true
				d.part()
				for range 5 {
					name := fmt.Sprintf("log/%d/x", n%4)
					r.say(name, strconv.Itoa(n))
					mine[name] = append(mine[name], n)
					n++
				}
				d, _ = join(t, s, deviceOptions{id: "a", expiry: never, window: window})
				l.seen = 0
			case op == 19: // the process is killed
				lost = true
				after := r.crash()
				d.part()
				other.part()
				closeOut(t, s)
				r = after
				s = start()
				var present bool
				if d, present = join(t, s, deviceOptions{id: "a", expiry: never, window: window}); !present {
					rt.Fatalf("the session is gone")
				}
				other, _ = join(t, s, deviceOptions{id: "b", auto: true})
				other.sub("log/#", 0)
				l.seen = 0
			}
		}
		for end := time.Now().Add(time.Minute); len(l.times) < n; time.Sleep(100 * time.Microsecond) {
			l.take(rt, d, 1000)
			if time.Now().After(end) {
				var missing []string
				for i := range n {
					if l.times[i] == 0 {
						missing = append(missing, strconv.Itoa(i))
					}
				}
				rt.Fatalf("%d of %d did not come: %s", len(missing), n, strings.Join(missing, " "))
			}
		}
		if d.most > int(window) {
			rt.Fatalf("%d under way; the window is %d", d.most, window)
		}
		for name, want := range mine {
			got := l.names[name]
			for i := range want {
				if i >= len(got) || got[i] != want[i] {
					rt.Fatalf("%s came as %v; want %v", name, got, want)
				}
			}
		}
		for i, times := range l.times {
			if times > 1 && (qos == 2 || !lost) {
				rt.Fatalf("%d came %d times", i, times)
			}
		}
		d.part()
		other.part()
		closeOut(t, s)
	})
}
