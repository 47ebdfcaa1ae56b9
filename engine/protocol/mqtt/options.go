package mqtt

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Options configure a Server. The zero value of a field means its default.
type Options struct {
	Backend Backend
	Door    Door
	Limits  event.Limits // Event bounds a message
	// StayOn is asked before a listener is served that other machines reach; false: nothing guards the router, and it is
	// not. nil: it may be.
	StayOn func() bool
	Key    [32]byte // the router's own, under which events tell one client from another; zero: one that is made, until the server ends
	Log    *slog.Logger
	Now    func() time.Time

	ConnectTimeout time.Duration // from a connection's begin to its CONNECT, TLS among it; 10 s
	PacketTimeout  time.Duration // from a packet's first byte to its last; 60 s
	WriteTimeout   time.Duration // of one write; a client that takes longer is dropped; 15 s
	CloseTimeout   time.Duration // for a client that has been told to go; 1 s
	WillGrace      time.Duration // after a start, in which clients that were connected can come back before their wills are published; 30 s
	WillBytes      int64         // of all wills in memory, past which a CONNECT with one more is refused; 64 MiB
	MaxExpiry      time.Duration // of a session without a connection; longer ones are shortened to it, and told so; 7 days
}

// Bounds of a connection. Those of what is sent to a client are in outbox.go.
const (
	connectSize   = 64 << 10 // bytes of a CONNECT
	packetSurplus = 64 << 10 // bytes of a packet beside its event: name and properties
	receiveMax    = 1000     // messages of QoS 1 and 2 that are under way from a client
	aliasMax      = 64       // topic aliases of a client
	maxClientID   = 256      // bytes
	batchMessages = 256      // messages of one commit
	batchBytes    = 1 << 20  // and their bytes
	largePacket   = 16 << 10 // bytes past which a packet needs room
)

func (o Options) withDefaults() Options {
	o.Limits = o.Limits.WithDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Key == [32]byte{} {
		_, _ = rand.Read(o.Key[:]) // never fails
	}
	fill := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	fill(&o.ConnectTimeout, 10*time.Second)
	fill(&o.PacketTimeout, time.Minute)
	fill(&o.WriteTimeout, 15*time.Second)
	fill(&o.CloseTimeout, time.Second)
	fill(&o.WillGrace, 30*time.Second)
	fill(&o.MaxExpiry, 7*24*time.Hour)
	if o.WillBytes == 0 {
		o.WillBytes = 64 << 20
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.Backend == nil {
		errs = append(errs, errors.New("options: Backend is missing"))
	}
	if o.Door == nil {
		errs = append(errs, errors.New("options: Door is missing"))
	}
	for _, x := range []struct {
		d    time.Duration
		name string
	}{{o.ConnectTimeout, "ConnectTimeout"}, {o.PacketTimeout, "PacketTimeout"}, {o.WriteTimeout, "WriteTimeout"}, {o.CloseTimeout, "CloseTimeout"}, {o.WillGrace, "WillGrace"}, {o.MaxExpiry, "MaxExpiry"}} {
		if x.d < 0 {
			errs = append(errs, fmt.Errorf("options: %s is %s; want a positive duration, or 0 for the default", x.name, x.d))
		}
	}
	if o.WillBytes < 0 {
		errs = append(errs, fmt.Errorf("options: WillBytes is %d; want a positive number, or 0 for the default", o.WillBytes))
	}
	return errors.Join(errs...)
}
