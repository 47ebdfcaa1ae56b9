package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/mqtt"
	"github.com/millrace/millrace/storage/pebblestore"
)

// openDoor lets everybody in.
type openDoor struct{ p *access.Principal }

func (d openDoor) Enter(netip.Addr) (mqtt.Visit, error)         { return openVisit{d}, nil }
func (d openDoor) Known(string) mqtt.Caller                     { return d }
func (d openDoor) Principal() *access.Principal                 { return d.p }
func (d openDoor) Context(ctx context.Context) context.Context  { return ctx }
func (d openDoor) May(access.Action, access.Kind, string) error { return nil }
func (d openDoor) Spend() error                                 { return nil }
func (d openDoor) Reserve(int, int) error                       { return nil }
func (d openDoor) Return(int)                                   {}
func (d openDoor) Close()                                       {}
func (d openDoor) Hold(ctx context.Context, _ func() error) (context.Context, func()) {
	return ctx, func() {}
}

type openVisit struct{ d openDoor }

func (openVisit) Leave()            {}
func (openVisit) Release()          {}
func (openVisit) Reserve(int) error { return nil }
func (v openVisit) Open(context.Context, access.Credentials) (mqtt.Caller, error) {
	return v.d, nil
}

// mqttWorld is an engine over a file system that can crash, and an MQTT server over it.
type mqttWorld struct {
	t      *testing.T
	store  *pebblestore.Store
	e      *engine.Engine
	s      *mqtt.Server
	addr   string
	served chan error
}

func openMQTTWorld(t *testing.T, fs vfs.FS) *mqttWorld {
	t.Helper()
	w := &mqttWorld{t: t, served: make(chan error, 1)}
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.store, err = pebblestore.Open(ctx, pebblestore.Options{Dir: "store", FS: fs})
	must(err)
	w.e, err = engine.Open(ctx, engine.Options{Store: w.store})
	must(err)
	must(w.e.Apply(ctx, engine.Spec{Topics: []event.Topic{{Name: "logs", Partitions: 2}}}))
	defs := &definitions{}
	names, err := mqtt.NewNames([]event.MQTTMapping{{Filter: "log/#", Topic: "logs", Subject: "{1}", Key: "{1}"}}, nil)
	must(err)
	defs.names.Replace(names)
	shelf, err := w.e.Shelf("mqtt")
	must(err)
	guard, err := access.New(access.Options{Off: true})
	must(err)
	p, err := guard.Authenticate(ctx, access.Credentials{})
	must(err)
	w.s, err = mqtt.New(ctx, mqtt.Options{Backend: mqttBackend{backend{Engine: w.e, definitions: defs}, shelf}, Door: openDoor{p}})
	must(err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	w.addr = ln.Addr().String()
	go func() { w.served <- w.s.Serve(ctx, ln) }()
	return w
}

func (w *mqttWorld) close() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := w.s.Shutdown(ctx); err != nil {
		w.t.Error(err)
	}
	<-w.served
	_ = w.e.Close(ctx)
	_ = w.store.Close()
}

// A mqttReader is a client of MQTT 3.1.1 whose session stays, and the application behind it.
type mqttReader struct {
	id  string
	qos byte

	mu   sync.Mutex
	nc   net.Conn
	got  map[string]int
	open map[uint16]bool
	dead bool
}

func mqttPacket(kind byte, body ...byte) []byte {
	return append(binary.AppendUvarint([]byte{kind}, uint64(len(body))), body...)
}

func mqttText(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

// connect connects and subscribes, and reports whether the session was there; what comes is acknowledged from then on.
func (c *mqttReader) connect(t *testing.T, addr string) (present bool) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	body := append(mqttText("MQTT"), 4, 0, 0, 0)
	r := bufio.NewReader(nc)
	if _, err := nc.Write(mqttPacket(0x10, append(body, mqttText(c.id)...)...)); err != nil {
		t.Fatal(err)
	}
	ack := make([]byte, 4)
	if _, err := io.ReadFull(r, ack); err != nil || ack[0] != 0x20 || ack[3] != 0 {
		t.Fatalf("CONNACK: %x, %v", ack, err)
	}
	c.mu.Lock()
	c.nc, c.dead = nc, false
	c.mu.Unlock()
	subscribed := make(chan struct{})
	go c.read(r, subscribed)
	if ack[2] == 0 {
		if _, err := nc.Write(mqttPacket(0x82, append(append([]byte{0, 1}, mqttText("log/#")...), c.qos)...)); err != nil {
			t.Fatal(err)
		}
		<-subscribed
	}
	return ack[2] == 1
}

func (c *mqttReader) read(r *bufio.Reader, subscribed chan struct{}) {
	for {
		kind, err := r.ReadByte()
		if err != nil {
			return
		}
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		c.mu.Lock()
		if c.dead {
			c.mu.Unlock()
			return
		}
		switch kind >> 4 {
		case 9:
			close(subscribed)
		case 3:
			name := int(binary.BigEndian.Uint16(body))
			id, data := binary.BigEndian.Uint16(body[2+name:]), string(body[4+name:])
			if kind&6 == 4 {
				if !c.open[id] {
					c.got[data]++
				}
				c.open[id] = true
				_, _ = c.nc.Write([]byte{0x50, 2, byte(id >> 8), byte(id)})
			} else {
				c.got[data]++
				_, _ = c.nc.Write([]byte{0x40, 2, byte(id >> 8), byte(id)})
			}
		case 6:
			delete(c.open, binary.BigEndian.Uint16(body))
			_, _ = c.nc.Write([]byte{0x70, 2, body[0], body[1]})
		}
		c.mu.Unlock()
	}
}

// A power cut at any moment: a session that outlives its connection gets every acknowledged event, under QoS 1 at least
// once and under QoS 2 exactly once.
func TestMQTTPowerCut(t *testing.T) {
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 7))
		disk := vfs.NewCrashableMem()
		w := openMQTTWorld(t, disk)
		readers := []*mqttReader{{id: "one", qos: 1, got: map[string]int{}, open: map[uint16]bool{}}, {id: "two", qos: 2, got: map[string]int{}, open: map[uint16]bool{}}}
		for _, c := range readers {
			if c.connect(t, w.addr) {
				t.Fatal("a new session was there")
			}
		}
		var mu sync.Mutex
		known := map[string]bool{}
		stop := make(chan struct{})
		var publishers sync.WaitGroup
		for p := range 2 {
			publishers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					data := fmt.Sprintf("%d-%d", p, n)
					evs := []event.Event{{Data: []byte(data), Subject: data, Extensions: []event.Attribute{{Name: mqtt.TopicExtension, Value: "log/" + data}}}}
					if w.e.Publish(context.Background(), "logs", evs, make([]event.Position, 1)) == nil {
						mu.Lock()
						known[data] = true
						mu.Unlock()
					}
				}
			})
		}
		want := 50 + rng.IntN(150)
		for some := false; !some; {
			time.Sleep(time.Millisecond)
			readers[1].mu.Lock()
			some = len(readers[1].got) > want
			readers[1].mu.Unlock()
		}
		mu.Lock()
		for _, c := range readers { // what they do from here on nobody knows after the crash
			c.mu.Lock()
			c.dead = true
		}
		crashed := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(80), RNG: rand.New(rand.NewPCG(rng.Uint64(), 2))})
		all := map[string]bool{}
		for data := range known {
			all[data] = true
		}
		for _, c := range readers {
			c.nc.Close()
			c.mu.Unlock()
		}
		mu.Unlock()
		close(stop)
		publishers.Wait()
		w.close()

		w = openMQTTWorld(t, crashed)
		for _, c := range readers {
			if !c.connect(t, w.addr) {
				t.Fatalf("the session of %s is gone", c.id)
			}
			missing := ""
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				missing = ""
				c.mu.Lock()
				for data := range all {
					if c.got[data] == 0 {
						missing = data
					}
				}
				c.mu.Unlock()
				if missing == "" {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("seed %d: %s did not come to %s", seed, missing, c.id)
				}
			}
			c.mu.Lock()
			for data, n := range c.got {
				if n > 1 && c.qos == 2 {
					t.Errorf("seed %d: %s came %d times under QoS 2", seed, data, n)
				}
			}
			c.mu.Unlock()
		}
		w.close()
	}
}
