package mqtt

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// FuzzConnection gives a connection any bytes: nothing of it runs on once the client has gone, and only whole messages are
// stored.
func FuzzConnection(f *testing.F) {
	for _, version := range []byte{4, 5} {
		hello := encode(f, connectPacket(version, "dev", nil))
		f.Add(hello)
		for _, pk := range []packets.Packet{message(0, 0, "log/a", "x"), message(1, 1, "log/a", "x"), message(2, 2, "log/a", "x"), ack(packets.Pubrel, 2),
			ack(packets.Puback, 9), bye(0), {FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 3, Filters: packets.Subscriptions{{Filter: "log/#", Qos: 2}}}} {
			pk.ProtocolVersion = version
			f.Add(append(append([]byte{}, hello...), encode(f, pk)...))
		}
	}
	guard, err := access.New(access.Options{Off: true})
	if err != nil {
		f.Fatal(err)
	}
	names, err := NewNames([]event.MQTTMapping{{Filter: "#", Topic: "logs"}}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		router := &fakeRouter{names: names, events: map[string][]event.Event{}, rows: map[string][]byte{}, seen: map[string]bool{}}
		door := &fakeDoor{guard: guard}
		s, err := New(t.Context(), Options{Backend: router, Door: door, CloseTimeout: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		here, there := net.Pipe()
		var reading, ended sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, here) })
		ended.Add(1)
		s.attend(t.Context(), there, door, ended.Done)
		_ = here.SetWriteDeadline(time.Now().Add(time.Minute))
		_, _ = here.Write(data)
		here.Close()
		ended.Wait()
		reading.Wait()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
