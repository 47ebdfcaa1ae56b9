package httpapi

import (
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// forwarded takes in what another router forwards. Whoever forwards is known by whom he is here as well: nobody else can
// have his events taken for repeats.
func (c *call) forwarded(topic string) error {
	from, err := event.ParseForwarded(c.h.bridge, len(c.events))
	if err != nil {
		return err
	}
	from.By = c.principal.Identity() + "\x00" + from.By
	taken, err := c.s.o.Backend.PublishForwarded(c.s.work, topic, c.events, c.pos, from)
	if err != nil {
		return err
	}
	out := append(c.out[:0], `{"accepted":`...)
	out = appendInt(out, len(c.events)-taken.Repeats-taken.Loops)
	out = append(out, `,"repeats":`...)
	out = appendInt(out, taken.Repeats)
	out = append(out, `,"loops":`...)
	out = appendInt(out, taken.Loops)
	c.out = append(out, '}', '\n')
	c.answer(fasthttp.StatusAccepted, c.out)
	return nil
}
