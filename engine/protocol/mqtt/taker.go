package mqtt

import (
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

// A Taker makes events of messages that no client of this router has published: a bridge reads them from a broker. It is for
// one goroutine.
type Taker struct {
	in     intake
	names  *Names
	limits event.Limits
}

// NewTaker returns a Taker that maps names as the rules' `mqtt` does, or what is wrong with a mapping: event.ErrInvalid.
func NewTaker(mappings []event.MQTTMapping, l event.Limits) (*Taker, error) {
	n, err := NewNames(mappings, nil)
	if err != nil {
		return nil, err
	}
	return &Taker{names: n, limits: l}, nil
}

// Reset says that the events which Take made are not used any more.
func (t *Taker) Reset() { t.in.reset() }

// Take makes ev of a PUBLISH that was decoded. ev borrows pk and t until Reset, and its Extensions are used again. Who published
// it, and whether it was retained, is not known.
func (t *Taker) Take(ev *event.Event, pk *packets.Packet, now time.Time) error {
	_, err := t.in.take(ev, pk, t.names, t.limits, now)
	return err
}
