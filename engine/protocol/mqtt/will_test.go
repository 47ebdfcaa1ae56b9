package mqtt

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

func withWill(data string, delay uint32) func(pk *packets.Packet) {
	return func(pk *packets.Packet) {
		persistent(pk)
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, "log/will", []byte(data)
		pk.Connect.WillProperties.WillDelayInterval = delay
	}
}

// A will is published when its client goes without DISCONNECT, or with one that says so, and not when it says good-bye, nor
// when the router stops.
func TestWill(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{WillGrace: time.Hour})
	say := []string{}
	published := func(data string) {
		t.Helper()
		say = append(say, data)
		eventually(t, "the will "+data, func() bool { return slices.Equal(f.stored("logs"), say) })
	}
	for _, version := range []byte{4, 5} {
		name := fmt.Sprint(version)
		c, _ := r.connect(version, "dev"+name, withWill("lost"+name, 0))
		c.nc.Close()
		published("lost" + name)
		c, _ = r.connect(version, "dev"+name, withWill("violated"+name, 0))
		c.raw([]byte{packets.Pingreq<<4 | 1, 0})
		published("violated" + name)
		c, _ = r.connect(version, "dev"+name, withWill("bye"+name, 0))
		c.send(bye(0))
		c.wantEnd(0)
	}
	c, _ := r.connect(5, "dev", withWill("asked for", 0))
	c.send(bye(packets.CodeDisconnectWillMessage.Code))
	published("asked for")
	c, _ = r.connect(5, "dev", withWill("taken over", 0))
	_, _ = r.connect(5, "dev", withWill("late", 3600)) // the will of a connection that is taken over is published at once
	published("taken over")
	c.wantEnd(packets.ErrSessionTakenOver.Code)
	r.stop()
	if got := f.stored("logs"); !slices.Equal(got, say) {
		t.Fatalf("published %q, want %q", got, say)
	}
	if len(f.rows) == 0 {
		t.Fatal("nothing is left of the will of who was connected")
	}
}

// A delay is waited for; who comes back in it takes the will away, and who comes back for a new session does not.
func TestWillDelay(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", withWill("one", 3600))
	c.nc.Close()
	eventually(t, "the end", func() bool { return r.s.Stats().Connections == 0 })
	c, ok := r.connect(5, "dev", withWill("two", 1))
	if !ok.SessionPresent {
		t.Fatalf("CONNACK %+v", ok)
	}
	begun := time.Now()
	c.nc.Close()
	eventually(t, "the will", func() bool { return slices.Equal(f.stored("logs"), []string{"two"}) })
	if d := time.Since(begun); d < 900*time.Millisecond {
		t.Fatalf("published after %s", d)
	}
	c, _ = r.connect(5, "dev", withWill("three", 3600))
	c.nc.Close()
	eventually(t, "the end", func() bool { return r.s.Stats().Connections == 0 })
	r.connect(5, "dev", nil) // a clean start ends the session, and so the delay
	eventually(t, "the will of the session that ended", func() bool { return slices.Equal(f.stored("logs"), []string{"two", "three"}) })
}

// A will outlives the process: it is published by the next one, once, unless its client has come back.
func TestWillRestart(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{})
	gone, _ := r.connect(5, "gone", withWill("gone", 1))
	gone.nc.Close()
	r.connect(5, "back", withWill("back", 0))
	r.connect(5, "never", withWill("never", 0))
	eventually(t, "the end", func() bool { return r.s.Stats().Connections == 2 })
	r.stop()
	if got := f.stored("logs"); got != nil {
		t.Fatalf("published %q", got)
	}
	r = newRig(t, f, nil, Options{WillGrace: 500 * time.Millisecond})
	r.connect(5, "back", withWill("back", 0))
	eventually(t, "the wills", func() bool { return len(f.stored("logs")) == 2 })
	if got := f.stored("logs"); slices.Contains(got, "back") {
		t.Fatalf("published %q", got)
	}
	r.stop()
	r = newRig(t, f, nil, Options{WillGrace: time.Hour})
	r.stop()
	if got := f.stored("logs"); len(got) != 2 {
		t.Fatalf("published %q", got)
	}
}

// A will that cannot be stored is tried again, and one that may not be published any more is not.
func TestWillRefused(t *testing.T) {
	f := newFakeRouter(t)
	f.hook(func([]event.Event) error { return errors.Join(event.ErrDenied) }, nil)
	r := newRig(t, f, nil, Options{})
	c, _ := r.connect(5, "dev", withWill("x", 0))
	c.nc.Close()
	eventually(t, "the refusal", func() bool { return r.s.Stats().Refused[packets.ErrNotAuthorized.Code] == 1 })
	guard, err := access.New(access.Options{Token: "the token of this router"})
	if err != nil {
		t.Fatal(err)
	}
	// Who may not publish under the name has no such will.
	strict := newRig(t, newFakeRouter(t), guard, Options{})
	_, ok := strict.connect(5, "dev", func(pk *packets.Packet) {
		withWill("x", 0)(pk)
		pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte("the token of this router")
		pk.Connect.WillTopic = "unknown"
	})
	if ok.ReasonCode != packets.ErrTopicNameInvalid.Code {
		t.Fatalf("CONNACK %+v", ok)
	}
}

// The will of a session that a clean start ended is published though the router cannot store it just then and stops.
func TestWillOfAnEndedSession(t *testing.T) {
	f := newFakeRouter(t)
	r := newRig(t, f, nil, Options{WillGrace: time.Hour})
	c, _ := r.connect(5, "dev", withWill("old", 3600))
	c.nc.Close()
	eventually(t, "the end", func() bool { return r.s.Stats().Connections == 0 })
	f.hook(func([]event.Event) error { return event.ErrUnavailable }, nil)
	next := r.dial()
	next.send(connectPacket(5, "dev", func(pk *packets.Packet) { withWill("new", 3600)(pk); pk.Connect.Clean = true }))
	if pk := next.want(packets.Connack); pk.ReasonCode != packets.ErrServerUnavailable.Code {
		t.Fatalf("CONNACK 0x%02X; want 0x88", pk.ReasonCode)
	}
	begun := time.Now()
	r.stop()
	if d := time.Since(begun); d >= retryWill/2 {
		t.Errorf("to stop took %s", d)
	}
	f.hook(nil, nil)
	r = newRig(t, f, nil, Options{WillGrace: time.Hour})
	r.connect(5, "dev", func(pk *packets.Packet) { pk.Connect.Clean = true })
	if got := f.stored("logs"); !slices.Equal(got, []string{"old"}) {
		t.Errorf("published %q; want the will of the session that ended", got)
	}
	r.stop()
}
