package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// pull is POST /v1/subscriptions/{name}/pull.
func (c *call) pull() error {
	in := struct {
		Max  *int   `json:"max"`
		Wait string `json:"wait"`
	}{}
	if err := c.members(&in); err != nil {
		return err
	}
	max := defaultLimit
	if in.Max != nil {
		if max = *in.Max; max < 1 || max > maxLimit {
			return invalidf("max", "is %d; want 1 to %d", max, maxLimit)
		}
	}
	wait, err := waitOf("wait", in.Wait)
	if err != nil {
		return err
	}
	leases, err := c.lease(strings.Clone(c.params[0]), max, wait)
	if err != nil {
		return err
	}
	out := append(c.out[:0], `{"deliveries":[`...)
	for i := range leases {
		l := &leases[i]
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, `{"lease":`...)
		out = appendQuoted(out, l.ID)
		out = append(out, `,"id":`...)
		out = appendQuoted(out, l.Delivery)
		out = append(out, `,"attempt":`...)
		out = appendInt(out, l.Attempt)
		out = append(out, `,"deadline":"`...)
		out = l.Deadline.UTC().AppendFormat(out, time.RFC3339Nano)
		out = append(out, `","event":`...)
		if c.h.bridge != "" {
			out = append(appendPlaced(out, l.Event), '}')
		} else {
			out = append(appendEvent(out, l.Event), '}')
		}
	}
	c.out = append(out, ']', '}', '\n')
	if c.h.bridge != "" {
		return c.answerBridge("")
	}
	c.answer(fasthttp.StatusOK, c.out)
	return nil
}

// lease pulls; a client that goes away while it waits is lent nothing.
func (c *call) lease(name string, max int, wait time.Duration) ([]event.Lease, error) {
	leases, err := c.s.o.Backend.Pull(c.s.wait, name, max, 0)
	if wait > 0 && err == nil && len(leases) == 0 {
		ctx, stop := c.attended(wait)
		leases, err = c.s.o.Backend.Pull(ctx, name, max, wait)
		stop()
		revoked := c.still()
		if nc, ok := c.ctx.Conn().(*conn); len(leases) > 0 && (revoked != nil || ok && nc.hungUp()) {
			ids := make([]string, len(leases))
			for i := range leases {
				ids[i] = leases[i].ID
			}
			return nil, errors.Join(revoked, c.s.o.Backend.Unpull(name, ids))
		}
	}
	switch {
	case err != nil && c.s.wait.Err() != nil && errors.Is(err, c.s.wait.Err()):
		return nil, errDraining
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled): // nothing came; or nobody is there to be told
		return nil, nil
	}
	return leases, err
}

// settling is the body of ack, nack and extend.
type settling struct {
	Leases   []string        `json:"leases"`
	Delay    string          `json:"delay"`
	Deadline string          `json:"deadline"`
	Reply    json.RawMessage `json:"reply"`
}

// Bounds of what a puller may ask for: Google Pub/Sub's ack deadlines, and as much delay as Retry-After may ask.
const (
	minDeadline = 10 * time.Second
	maxDeadline = 600 * time.Second
	maxDelay    = 24 * time.Hour
)

func (c *call) settling(verb string) (in settling, err error) {
	if err := c.members(&in); err != nil {
		return in, err
	}
	switch {
	case in.Reply != nil && verb != "ack":
		return in, event.Invalid("reply", "goes with ack alone")
	case in.Delay != "" && verb != "nack":
		return in, event.Invalid("delay", "goes with nack alone")
	case in.Deadline != "" && verb != "extend":
		return in, event.Invalid("deadline", "goes with extend alone")
	case len(in.Leases) == 0:
		return in, event.Invalid("leases", "is missing or empty; give the leases that pull handed out")
	case len(in.Leases) > c.s.o.Limits.Events:
		return in, event.Bad(event.ErrTooLarge, "leases", fmt.Sprintf("has %d entries; one request may have %d: send the rest in another", len(in.Leases), c.s.o.Limits.Events))
	}
	return in, nil
}

// settle settles and answers with the leases that were not held, and beside each why.
func (c *call) settle(in settling, how event.Settling) error {
	lost, err := c.s.o.Backend.Settle(c.s.work, strings.Clone(c.params[0]), in.Leases, how)
	if err != nil {
		return err
	}
	answer := struct {
		Lost    []string        `json:"lost"`
		Reasons []event.LostWhy `json:"reasons,omitempty"`
	}{Lost: []string{}}
	for _, l := range access.UnseenLeases(c.principal, lost) {
		answer.Lost, answer.Reasons = append(answer.Lost, l.Lease), append(answer.Reasons, l.Why)
	}
	return c.answerJSON(fasthttp.StatusOK, answer)
}

// ack is POST /v1/subscriptions/{name}/ack.
func (c *call) ack() error {
	in, err := c.settling("ack")
	if err != nil {
		return err
	}
	reply, err := in.reply()
	if err != nil {
		return err
	}
	return c.settle(in, event.Settling{Verb: event.Ack, Reply: reply})
}

// nack is POST /v1/subscriptions/{name}/nack.
func (c *call) nack() error {
	in, err := c.settling("nack")
	if err != nil {
		return err
	}
	delay := time.Duration(0)
	if in.Delay != "" {
		if delay, err = event.ParseDuration(in.Delay); err != nil || delay < 0 || delay > maxDelay {
			return invalidf("delay", "is %.20q; want a duration of 0s to %s", in.Delay, maxDelay)
		}
	}
	return c.settle(in, event.Settling{Verb: event.Nack, Delay: delay})
}

// extend is POST /v1/subscriptions/{name}/extend.
func (c *call) extend() error {
	in, err := c.settling("extend")
	if err != nil {
		return err
	}
	d, err := event.ParseDuration(in.Deadline)
	if err != nil || d != 0 && (d < minDeadline || d > maxDeadline) {
		return invalidf("deadline", "is %.20q; want a duration from now of %s to %s, or 0s to give the deliveries back", in.Deadline, minDeadline, maxDeadline)
	}
	return c.settle(in, event.Settling{Verb: event.Extend, Deadline: d})
}
