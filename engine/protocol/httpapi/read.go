package httpapi

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Bounds of polling and pulling.
const (
	defaultLimit = 100
	maxLimit     = 1000
	maxWait      = 30 * time.Second
	enoughBytes  = 8 << 20 // of an answer: no further event is added past it
)

// poll is GET /v1/topics/{topic}/events.
func (c *call) poll() error {
	start, err := c.startOf(event.Start{At: event.Earliest})
	if err != nil {
		return err
	}
	limit := defaultLimit
	if s := c.query("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxLimit {
			return invalidf("?limit", "is %.20q; want 1 to %d", s, maxLimit)
		}
	}
	wait, err := waitOf("?wait", c.query("wait"))
	if err != nil {
		return err
	}
	r, err := c.s.o.Backend.OpenTopic(c.s.work, c.params[0], start, c.query("filter"))
	if err != nil {
		return err
	}
	defer r.Close()

	until := time.Now().Add(wait)
	out, n := append(c.out[:0], `{"events":[`...), 0
	add := func(rec event.Record) {
		if n++; n > 1 {
			out = append(out, ',')
		}
		if c.h.bridge != "" {
			out = appendPlaced(out, rec)
		} else {
			out = appendEvent(out, rec)
		}
	}
	for n < limit && len(out) < enoughBytes {
		rec, ok, more, err := r.TryNext(c.s.work)
		if err == nil && ok {
			add(rec)
			continue
		}
		left := time.Until(until)
		if err == nil && n == 0 && left > 0 {
			if more { // a selective filter: look on, for as long as the client waits
				if c.s.wait.Err() == nil {
					continue
				}
				break
			}
			if rec, err = c.next1(r, left); err == nil {
				if err = c.still(); err != nil {
					return err
				}
				add(rec)
				continue
			}
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
				break // nothing came in time, or the router is draining
			}
		}
		if err != nil && n == 0 {
			return err
		}
		break // an error behind events is told by the next call, which begins with it
	}
	out = append(out, `],"next":`...)
	out = appendQuoted(out, r.Cursor())
	c.out = append(out, '}', '\n')
	if c.h.bridge != "" {
		return c.answerBridge(c.params[0])
	}
	c.answer(200, c.out)
	return nil
}

// next1 waits for one event.
func (c *call) next1(r Reader, wait time.Duration) (event.Record, error) {
	ctx, cancel := context.WithTimeout(c.s.wait, wait)
	defer cancel()
	return r.Next(ctx)
}

// one is GET /v1/topics/{topic}/events/{position}.
func (c *call) one() error {
	pos, err := event.ParsePosition(c.params[1])
	if err != nil {
		return event.Invalid("path", err.Error())
	}
	rec, err := c.s.o.Backend.Event(c.s.work, c.params[0], pos)
	if err != nil {
		return err
	}
	c.out = append(appendEvent(c.out[:0], rec), '\n')
	c.answer(200, c.out)
	c.ctx.SetContentType("application/cloudevents+json")
	return nil
}

// startOf reads ?after= and ?since=, def if neither is given.
func (c *call) startOf(def event.Start) (event.Start, error) {
	after, since := c.query("after"), c.query("since")
	switch {
	case after != "" && since != "":
		return def, event.Invalid("?since", "is given beside ?after; send one of them")
	case after != "":
		return event.Start{At: event.AtCursor, Cursor: strings.Clone(after)}, nil
	case since == "":
		return def, nil
	}
	at, err := event.ParseSince(since, c.s.o.Now())
	if err != nil {
		return def, event.Invalid("?since", err.Error())
	}
	return event.Start{At: event.AtTime, Time: at}, nil
}

// waitOf reads how long to wait for the first event, "" being not at all.
func waitOf(at, v string) (time.Duration, error) {
	if v == "" {
		return 0, nil
	}
	d, err := event.ParseDuration(v)
	if err != nil || d < 0 || d > maxWait {
		return 0, invalidf(at, "is %.20q; want a duration of 0s to %s", v, maxWait)
	}
	return d, nil
}

// Where an event lies is shown as two extension attributes beside those of its producer.
const (
	extPosition = "millraceposition"
	extRecorded = "recordedtime" // a documented extension of CloudEvents; a producer's own stays
)

// AppendEvent appends an event as every face of the router shows it: in structured mode with where it lies and when the
// router took it. It borrows nothing of rec.
func AppendEvent(dst []byte, rec event.Record) []byte { return appendEvent(dst, rec) }

// appendEvent appends an event in structured mode with where it lies and when the router took it.
func appendEvent(dst []byte, rec event.Record) []byte {
	dst = appendPlaced(dst, rec)
	dst = dst[:len(dst)-2]
	if _, own := rec.Extension(extRecorded); !own {
		dst = append(dst, `","`+extRecorded+`":"`...)
		dst = rec.ReceivedAt().AppendFormat(dst, time.RFC3339Nano)
	}
	return append(dst, '"', '}')
}
