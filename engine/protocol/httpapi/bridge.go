package httpapi

import (
	"strings"

	"github.com/klauspost/compress/zstd"
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

// appendPlaced appends an event in structured mode with where it lies, and nothing else of this router's.
func appendPlaced(dst []byte, rec event.Record) []byte {
	if _, stale := rec.Extension(extPosition); stale { // published again by somebody who had read it here
		var e event.Event
		rec.Decode(&e)
		e.Set(event.Attr{Name: extPosition, Unset: true})
		place := rec
		rec = event.Record(e.AppendRecord(nil))
		rec.SetPlace(place.Position(), place.Received())
	}
	dst = rec.AppendStructured(dst)
	dst = append(dst[:len(dst)-1], `,"`+extPosition+`":"`...)
	dst = rec.Position().Append(dst)
	return append(dst, '"', '}')
}

// zipFrom is the size of an answer from which on compressing it is worth while.
const zipFrom = 1 << 10

// answerBridge answers another router that reads with what was made, compressed if it takes that, and says who answers: the
// name of this router, and what tells the topic, if one is read, from another of its name.
func (c *call) answerBridge(topic string) error {
	who := c.s.o.Backend.Name()
	if topic != "" {
		stamp, err := c.s.o.Backend.Stamp(topic)
		if err != nil {
			return err
		}
		who += ";" + stamp
	}
	c.ctx.Response.Header.Set(event.RouterHeader, who)
	if len(c.out) < zipFrom || !strings.Contains(c.h.acceptEncoding, "zstd") {
		c.answer(fasthttp.StatusOK, c.out)
		return nil
	}
	c.body = c.s.zip().EncodeAll(c.out, c.body[:0])
	c.answer(fasthttp.StatusOK, c.body)
	c.ctx.Response.Header.SetContentEncoding("zstd")
	return nil
}

// newEncoder makes the encoder of all answers; several may use it at once.
func newEncoder() *zstd.Encoder {
	e, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true)) // fails for options that there are not
	return e
}
