package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage/pebblestore"
)

// What clients publish at every QoS, in both versions, is stored by the mapping of its name and acknowledged.
func TestPublish(t *testing.T) {
	for _, version := range []byte{4, 5} {
		f := newFakeRouter(t)
		r := newRig(t, f, nil, Options{})
		c, ok := r.connect(version, "dev", nil)
		if ok.ReasonCode != 0 || ok.SessionPresent {
			t.Fatalf("CONNACK %+v", ok)
		}
		c.send(message(0, 0, "plant/a/temp", "0"), message(1, 7, "plant/b/temp", "1"), message(2, 7, "log/x", "2"))
		if pk := c.want(packets.Puback); pk.PacketID != 7 || pk.ReasonCode != 0 {
			t.Fatalf("PUBACK %+v", pk)
		}
		if pk := c.want(packets.Pubrec); pk.PacketID != 7 || pk.ReasonCode != 0 {
			t.Fatalf("PUBREC %+v", pk)
		}
		c.send(ack(packets.Pubrel, 7))
		if pk := c.want(packets.Pubcomp); pk.PacketID != 7 || pk.ReasonCode != 0 {
			t.Fatalf("PUBCOMP %+v", pk)
		}
		if got := f.stored("temps"); !slices.Equal(got, []string{"0", "1"}) {
			t.Fatalf("temps has %q", got)
		}
		if got := f.stored("logs"); !slices.Equal(got, []string{"2"}) {
			t.Fatalf("logs has %q", got)
		}
		if ev := f.events["temps"][1]; ev.Subject != "b" || ev.Type != "temp" {
			t.Fatalf("the event is %+v", ev)
		}
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		c.want(packets.Pingresp)
		c.send(bye(0))
		c.wantEnd(0)
	}
}

// Publishing allocates nothing for a message: what there is, is of a batch.
func TestPublishAllocates(t *testing.T) {
	f := newFakeRouter(t)
	quiet := &quietRouter{fakeRouter: f}
	r := newRig(t, f, nil, Options{Backend: quiet})
	c, _ := r.connect(5, "dev", nil)
	const n = batchMessages
	var all []byte
	for id := uint16(1); id <= n; id++ {
		pk := message(1, id, "plant/north/temp", `{"celsius":21.5}`)
		pk.ProtocolVersion = 5
		all = append(all, encode(t, pk)...)
	}
	acks := make([]byte, 4*n)
	run := func() {
		if _, err := c.nc.Write(all); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.r, acks); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		run()
	}
	if each := testing.AllocsPerRun(50, run) / n; each > 1.5 { // far below one; the race detector has pools lose what they hold
		t.Fatalf("%.2f allocations a message", each)
	}
}

// A quietRouter stores nothing.
type quietRouter struct{ *fakeRouter }

func (*quietRouter) Publish(context.Context, string, []event.Event, []event.Position) error {
	return nil
}

// What was acknowledged is there after a power cut: the real engine on a disk that forgets what was not synced.
func TestAcknowledgedSurvives(t *testing.T) {
	disk := vfs.NewCrashableMem()
	open := func(fs vfs.FS) (*engine.Engine, *pebblestore.Store) {
		t.Helper()
		store, err := pebblestore.Open(t.Context(), pebblestore.Options{Dir: "store", FS: fs, MemTable: 256 << 10, BlockCache: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		e, err := engine.Open(t.Context(), engine.Options{Store: store, AutoCreate: true})
		if err != nil {
			t.Fatal(err)
		}
		return e, store
	}
	e, store := open(disk)
	f := newFakeRouter(t)
	shelf, err := e.Shelf("mqtt")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, f, nil, Options{Backend: &realRouter{f, e, shelf}})
	c, _ := r.connect(5, "dev", persistent)
	const n = 20
	for id := uint16(1); id <= n; id++ {
		c.send(message(1+byte(id%2), id, "log/a", fmt.Sprint(id)))
	}
	for range n {
		if pk, err := c.read(); err != nil || pk.ReasonCode != 0 {
			t.Fatalf("got %+v, %v", pk, err)
		}
	}
	crashed := disk.CrashClone(vfs.CrashCloneCfg{})
	r.stop()
	if err := errors.Join(e.Close(t.Context()), store.Close()); err != nil {
		t.Fatal(err)
	}

	e, store = open(crashed)
	defer func() {
		if err := errors.Join(e.Close(context.Background()), store.Close()); err != nil {
			t.Error(err)
		}
	}()
	shelf, err = e.Shelf("mqtt")
	if err != nil {
		t.Fatal(err)
	}
	sess := &session{owner: "anyone", clientID: "dev"} // messages of QoS 2 that are not released: a repeat is known
	if err := sess.loadInbox(t.Context(), shelf, true); err != nil || sess.in.size() != n/2 {
		t.Fatalf("%d messages of QoS 2 are known, %v; want %d", sess.in.size(), err, n/2)
	}
	reader, err := e.OpenTopic(t.Context(), "logs", event.Start{At: event.Earliest}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for id := 1; id <= n; id++ {
		rec, ok, _, err := reader.TryNext(t.Context())
		if err != nil || !ok || string(rec.Data()) != fmt.Sprint(id) {
			t.Fatalf("event %d: %v %v %q", id, ok, err, rec)
		}
	}
	if _, ok, _, _ := reader.TryNext(t.Context()); ok {
		t.Fatal("there are more events than messages")
	}
}

// A realRouter publishes into an engine.
type realRouter struct {
	*fakeRouter
	e     *engine.Engine
	shelf *engine.Shelf
}

func (r *realRouter) Rows() Rows { return r.shelf }
func (r *realRouter) Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error {
	return r.e.Publish(ctx, topic, evs, pos)
}
