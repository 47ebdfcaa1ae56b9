package ws

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	frames "github.com/gobwas/ws"
	"github.com/millrace/millrace/engine/event"
)

// A bytesConn is a client that says what it has to say and then goes.
type bytesConn struct {
	net.Conn
	in *bytes.Reader
}

func (c *bytesConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *bytesConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *bytesConn) SetReadDeadline(time.Time) error  { return nil }
func (c *bytesConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzSocket says anything to a socket: it ends without a panic, gives back what it had leased and closes its readers.
func FuzzSocket(f *testing.F) {
	text := func(messages ...string) []byte {
		var b []byte
		for _, m := range messages {
			b = append(b, frames.MustCompileFrame(frames.MaskFrame(frames.NewTextFrame([]byte(m))))...)
		}
		return b
	}
	f.Add(text(`{"op":"subscribe","ref":"a","topic":"orders","after":"0","credit":3}`, `{"op":"publish","topic":"orders","events":[1,{"specversion":"1.0"}]}`, `{"op":"credit","ref":"a","credit":1}`, `{"op":"unsubscribe","ref":"a"}`))
	f.Add(text(`{"op":"subscribe","ref":"w","subscription":"workers"}`, `{"op":"publish","topic":"orders","events":["x"]}`, `{"op":"ack","leases":["L0.1"]}`, `{"op":"nack","leases":["L0.1"],"delay":"1s"}`, `{"op":"extend","leases":["L0.1"],"deadline":"60s"}`))
	f.Add([]byte{0x01, 0x80, 0, 0, 0, 0, 0x89, 0x80, 0, 0, 0, 0, 0x80, 0x80, 0, 0, 0, 0, 0x88, 0x82, 0, 0, 0, 0, 3, 232})
	f.Add(header(0x81, true, 1<<63))
	f.Fuzz(func(t *testing.T, said []byte) {
		b := newFake()
		s, err := New(Options{Backend: b, Limits: event.Limits{Body: 1 << 16}, Render: func(dst []byte, rec event.Record) []byte { return rec.AppendStructured(dst) },
			Problem: func(error) ([]byte, bool) { return []byte(`{"status":400}`), false }})
		if err != nil {
			t.Fatal(err)
		}
		newSocket(s, &bytesConn{in: bytes.NewReader(said)}).run(context.Background())
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.open != 0 || len(b.leases) != 0 {
			t.Errorf("%d readers are open, %v are leased", b.open, b.leases)
		}
	})
}
