package mqttlink

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// payloads makes an event of a message by its payload; "bad" is none.
type payloads struct{}

func (payloads) Reset() {}
func (payloads) Take(ev *event.Event, pk *packets.Packet, _ time.Time) error {
	if string(pk.Payload) == "bad" {
		return errors.New("bad")
	}
	ev.Subject = string(pk.Payload)
	return nil
}

// topic is an Inlet whose commits may fail.
type topic struct {
	mu       sync.Mutex
	place    []byte
	stored   []string
	repeats  uint64
	refused  int
	lost     int
	failures int // of the commits that come
	said     bool
}

func (in *topic) Bridge() string { return "site" }
func (in *topic) Place(context.Context) ([]byte, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.place, nil
}
func (in *topic) Take(_ context.Context, evs []event.Event, place []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.failures > 0 && len(evs) > 0 {
		in.failures--
		return errors.New("disk full")
	}
	for _, ev := range evs {
		in.stored = append(in.stored, ev.Subject)
	}
	in.place = slices.Clone(place)
	return nil
}
func (in *topic) Tell(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.said = in.said || err != nil && strings.Contains(err.Error(), "disk full") && !strings.Contains(err.Error(), "broker")
}
func (in *topic) Lost(uint64, string)   { in.mu.Lock(); in.lost++; in.mu.Unlock() }
func (in *topic) Refused(string, error) { in.mu.Lock(); in.refused++; in.mu.Unlock() }
func (in *topic) Repeated(n uint64)     { in.mu.Lock(); in.repeats += n; in.mu.Unlock() }

// A sent is a PUBLISH of a scripted broker.
type sent struct {
	id   uint16
	dup  bool
	text string
}

// A turn is one connection of a scripted broker: it sends, reads so many acknowledgements, and goes away.
type turn struct {
	session bool
	send    []sent
	acks    int
}

// scripted is a broker of MQTT 5 that does what turns say. It returns its URL.
func scripted(t *testing.T, turns []turn) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); work.Wait() })
	work.Go(func() {
		for i := 0; ; i++ {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			if i < len(turns) {
				if err := play(nc, turns[i]); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
			_ = nc.Close()
		}
	})
	return "mqtt://" + ln.Addr().String()
}

func play(nc net.Conn, turn turn) error {
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	skip := func(want byte) error { // reads a packet
		var h [2]byte
		if _, err := io.ReadFull(nc, h[:]); err != nil {
			return err
		}
		n, shift := int(h[1]&0x7F), 7
		for last := h[1]; last >= 0x80; shift += 7 {
			var b [1]byte
			if _, err := io.ReadFull(nc, b[:]); err != nil {
				return err
			}
			last = b[0]
			n |= int(last&0x7F) << shift
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(nc, body); err != nil {
			return err
		}
		if h[0]>>4 != want {
			return fmt.Errorf("packet of type %d, want %d", h[0]>>4, want)
		}
		if want == packets.Subscribe {
			_, err := nc.Write([]byte{packets.Suback << 4, 4, body[0], body[1], 0, 1})
			return err
		}
		return nil
	}
	if err := skip(packets.Connect); err != nil {
		return err
	}
	present := byte(0)
	if turn.session {
		present = 1
	}
	if _, err := nc.Write([]byte{packets.Connack << 4, 3, present, 0, 0}); err != nil {
		return err
	}
	if !turn.session {
		if err := skip(packets.Subscribe); err != nil {
			return err
		}
	}
	for _, m := range turn.send {
		first := byte(packets.Publish<<4 | 2)
		if m.dup {
			first |= 8
		}
		b := append([]byte{first, byte(3 + 2 + 1 + len(m.text)), 0, 1, 's', byte(m.id >> 8), byte(m.id), 0}, m.text...)
		if _, err := nc.Write(b); err != nil {
			return err
		}
	}
	for range turn.acks {
		if err := skip(packets.Puback); err != nil {
			return err
		}
	}
	return nil
}

// many are n messages from a number on.
func many(id uint16, n int) (all []sent) {
	for i := range n {
		all = append(all, sent{id + uint16(i), false, "x"})
	}
	return all
}

// What the broker sends again, because it does not have the acknowledgement, is told from what is another message.
func TestSourceTellsRepeats(t *testing.T) {
	dialer, err := egress.New(egress.Options{AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		turns   []turn
		fail    int
		want    string
		repeats uint64
		lost    int
		refused int
	}{
		"sent again": {turns: []turn{{send: []sent{{1, false, "a"}, {2, false, "b"}}, acks: 2}, {session: true, send: []sent{{1, true, "a"}, {2, true, "b"}, {3, false, "c"}}, acks: 3}},
			want: "a b c", repeats: 2},
		"of the same number, and another": {turns: []turn{{send: []sent{{1, false, "a"}}, acks: 1}, {session: true, send: []sent{{1, true, "b"}}, acks: 1}}, want: "a b"},
		"equal, and not sent again":       {turns: []turn{{send: []sent{{1, false, "a"}, {2, false, "a"}}, acks: 2}, {session: true, send: []sent{{3, false, "a"}}, acks: 1}}, want: "a a a"},
		"equal, of a broker that gives numbers again": {turns: []turn{{send: []sent{{1, false, "a"}}, acks: 1}, {session: true, send: []sent{{1, false, "b"}}, acks: 1},
			{session: true, send: []sent{{1, true, "b"}}, acks: 1}}, want: "a b b"},
		// Byte for byte what "sent again" is: the one case in which an equal message is lost.
		"equal, and the first that gets a number again, with DUP alone": {turns: []turn{{send: []sent{{1, false, "a"}}, acks: 1}, {session: true, send: []sent{{1, true, "a"}}, acks: 1},
			{session: true, send: []sent{{2, false, "b"}}, acks: 1}}, want: "a b", repeats: 1},
		"once numbers were given again nothing is dropped": {turns: []turn{{send: []sent{{1, false, "a"}, {1, false, "b"}, {2, false, "c"}}, acks: 3},
			{session: true, send: []sent{{1, true, "b"}, {2, true, "c"}, {1, true, "b"}}, acks: 3}}, want: "a b c b c b"},
		"more than 256 ago": {turns: []turn{{send: append([]sent{{1, false, "a"}, {2, false, "b"}}, many(3, window-1)...), acks: window + 1}, {session: true, send: []sent{{1, true, "a"}, {2, true, "b"}, {1000, true, "z"}}, acks: 3}},
			want: "a b" + strings.Repeat(" x", window-1) + " a z", repeats: 1},
		"numbers begin anew":    {turns: []turn{{send: []sent{{65535, false, "a"}, {1, false, "b"}}, acks: 2}, {session: true, send: []sent{{1, true, "b"}}, acks: 1}}, want: "a b", repeats: 1},
		"not stored":            {turns: []turn{{send: []sent{{1, false, "a"}}}, {session: true, send: []sent{{1, true, "a"}}, acks: 1}}, fail: 1, want: "a"},
		"the session is gone":   {turns: []turn{{send: []sent{{1, false, "a"}}, acks: 1}, {send: []sent{{1, false, "a"}}, acks: 1}}, want: "a a", lost: 1},
		"what cannot be stored": {turns: []turn{{send: []sent{{1, false, "bad"}, {2, false, "b"}}, acks: 2}}, want: "b", refused: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := &topic{failures: c.fail}
			s, err := OpenSource(t.Context(), From{MQTT: scripted(t, c.turns), Filters: []string{"s"}, Timeout: 5 * time.Second,
				Process: Process{Dialer: dialer, Name: "r"}, Taker: func([]event.MQTTMapping) (Taker, error) { return payloads{}, nil }})
			if err != nil {
				t.Fatal(err)
			}
			ctx, end := context.WithCancel(t.Context())
			defer end()
			var work sync.WaitGroup
			work.Go(func() { s.Run(ctx, in) })
			for deadline := time.Now().Add(20 * time.Second); ; <-time.After(5 * time.Millisecond) {
				in.mu.Lock()
				done := len(in.stored) >= len(strings.Fields(c.want)) && in.repeats >= c.repeats
				in.mu.Unlock()
				if done || time.Now().After(deadline) {
					break
				}
			}
			end()
			work.Wait()
			if got := strings.Join(in.stored, " "); got != c.want || in.repeats != c.repeats || in.lost != c.lost || in.refused != c.refused || in.said != (c.fail > 0) {
				t.Errorf("%q, %d repeats, %d lost, %d refused, said %t", got, in.repeats, in.lost, in.refused, in.said)
			}
		})
	}
}

func TestFromValidate(t *testing.T) {
	good := From{MQTT: "mqtt://broker", Filters: []string{"sensors/+/temp", "doors/#"}, Subject: "{1}", SessionExpiry: time.Hour}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for at, change := range map[string]func(*From){
		"mqtt":          func(o *From) { o.MQTT = "http://broker" },
		"filters":       func(o *From) { o.Filters = nil },
		"filters[1]":    func(o *From) { o.Filters[1] = "sensors/#" },
		"filters[0]":    func(o *From) { o.Filters[0] = "$share/g/#" },
		"subject":       func(o *From) { o.Subject = "{2}" },
		"type":          func(o *From) { o.Type = "{subject}" },
		"qos":           func(o *From) { o.QoS = "2" },
		"sessionExpiry": func(o *From) { o.SessionExpiry = time.Millisecond },
		"user":          func(o *From) { o.Password = "secret" },
		"timeout":       func(o *From) { o.Timeout = time.Millisecond },
	} {
		o := good
		o.Filters = slices.Clone(good.Filters)
		change(&o)
		var f *event.Faults
		if err := o.Validate(); !errors.As(err, &f) || len(f.List) != 1 || f.List[0].At != at || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// FuzzRead: whatever a broker sends, reading it ends without a panic, and says what it is.
func FuzzRead(f *testing.F) {
	f.Add([]byte{packets.Connack << 4, 3, 0, 0, 0}, byte(5))
	f.Add([]byte{packets.Publish<<4 | 2, 7, 0, 1, 's', 0, 1, 0, 'x'}, byte(5))
	f.Add([]byte{packets.Suback << 4, 4, 0, 1, 0, 1}, byte(5))
	f.Add([]byte{packets.Unsuback << 4, 2, 0, 1}, byte(4))
	f.Add([]byte{packets.Disconnect << 4, 2, 0x8E, 0}, byte(5))
	f.Fuzz(func(t *testing.T, b []byte, version byte) {
		c := &conn{br: bufio.NewReader(bytes.NewReader(b)), version: 4 + version&1}
		for {
			pk, err := c.read()
			if (pk == nil) == (err == nil) {
				t.Fatalf("%v, %v", pk, err)
			}
			if err != nil {
				return
			}
			if pk.FixedHeader.Type == packets.Publish {
				first := hashOf(pk)
				pk.FixedHeader.Dup = !pk.FixedHeader.Dup
				if hashOf(pk) != first {
					t.Fatal("a repeat is another message")
				}
			}
		}
	})
}
