package mqtt

import (
	"context"

	"github.com/millrace/millrace/engine/event"
)

// retained are the last messages of names that came with RETAIN set (3.3.1.3).
type retained struct{}

func newRetained(*Server) *retained { return &retained{} }

func (r *retained) open(context.Context) error { return nil }

// store keeps an event that lies at pos of a router topic as its name's retained message, or with empty, which says that
// its payload was, takes away what was kept. It is called once the event is durable, before it is acknowledged; the event
// is borrowed. An error is not the publisher's: the event is stored.
func (r *retained) store(ctx context.Context, name, topic string, pos event.Position, ev *event.Event, empty bool) error {
	return nil
}

// count is how many there are.
func (r *retained) count() int { return 0 }
