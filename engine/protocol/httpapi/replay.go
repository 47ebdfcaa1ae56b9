package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// Replays delivers a range of a subscription's topic to it once more.
type Replays interface {
	// Replay begins one, or with DryRun counts until ctx ends; event.ErrConflict while one runs.
	Replay(ctx context.Context, subscription string, r event.Replay) (event.ReplayInfo, error)
	// ReplayInfo is the one that runs, or the last: event.ErrNotFound if there was none.
	ReplayInfo(subscription string) (event.ReplayInfo, error)
	// CancelReplay ends the one that runs.
	CancelReplay(ctx context.Context, subscription string) (event.ReplayInfo, error)
}

// earliest is all that a topic keeps.
const earliest = "earliest"

// aRate is events a second: a number, or as rules write it.
type aRate float64

func (r *aRate) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '"' {
		return json.Unmarshal(b, (*float64)(r))
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	v, err := event.ParseRate(text)
	if err != nil {
		return errors.New("rate: " + err.Error())
	}
	*r = aRate(v)
	return nil
}

// replay is POST /v1/subscriptions/{name}/replay.
func (c *call) replay() error {
	var in struct {
		Since    string `json:"since"`
		Until    string `json:"until"`
		From     string `json:"from"`
		To       string `json:"to"`
		Filter   string `json:"filter"`
		Rate     aRate  `json:"rate"`
		Function string `json:"function"`
		DryRun   bool   `json:"dryRun"`
	}
	if err := c.members(&in); err != nil {
		return err
	}
	if in.Since == earliest && in.From == "" { // it is a word for where to begin, as in `start:`
		in.Since, in.From = "", earliest
	}
	r := event.Replay{From: in.From, To: in.To, Filter: in.Filter, Rate: float64(in.Rate), Function: in.Function, DryRun: in.DryRun}
	for _, x := range []struct {
		name, text string
		to         *time.Time
	}{{"since", in.Since, &r.Since}, {"until", in.Until, &r.Until}} {
		if x.text == "" {
			continue
		}
		at, err := event.ParseSince(x.text, c.s.o.Now())
		if err != nil {
			return event.Invalid(x.name, err.Error())
		}
		*x.to = at
	}
	ctx, cancel := context.WithTimeout(c.context(), deadLetterTime)
	defer cancel()
	info, err := c.s.o.Backend.Replay(ctx, strings.Clone(c.params[0]), r)
	if err != nil {
		return err
	}
	status := fasthttp.StatusAccepted
	if in.DryRun {
		status = fasthttp.StatusOK
	}
	return c.answerJSON(status, ShowReplay(info))
}

// readReplay is GET /v1/subscriptions/{name}/replay.
func (c *call) readReplay() error {
	info, err := c.s.o.Backend.ReplayInfo(strings.Clone(c.params[0]))
	if err != nil {
		return err
	}
	return c.answerJSON(fasthttp.StatusOK, ShowReplay(info))
}

// cancelReplay is DELETE /v1/subscriptions/{name}/replay.
func (c *call) cancelReplay() error {
	info, err := c.s.o.Backend.CancelReplay(c.s.work, strings.Clone(c.params[0]))
	if err != nil {
		return err
	}
	return c.answerJSON(fasthttp.StatusOK, ShowReplay(info))
}

// ReplayDoc is how a replay is shown.
type ReplayDoc struct {
	ID       string            `json:"id,omitempty"`
	State    string            `json:"state,omitempty"`
	Reason   string            `json:"reason,omitempty"`
	Started  *time.Time        `json:"started,omitempty"`
	Ended    *time.Time        `json:"ended,omitempty"`
	Since    *time.Time        `json:"since,omitempty"`
	Until    *time.Time        `json:"until,omitempty"`
	From     string            `json:"from,omitempty"`
	To       string            `json:"to,omitempty"`
	Filter   string            `json:"filter,omitempty"`
	Rate     float64           `json:"rate,omitempty"`
	Function string            `json:"function,omitempty"`
	Looked   uint64            `json:"looked"`
	Matched  uint64            `json:"matched"`
	Done     uint64            `json:"done"`
	Left     uint64            `json:"left"`
	Lost     uint64            `json:"lost,omitempty"`
	Unread   uint64            `json:"unread,omitempty"`
	DryRun   bool              `json:"dryRun,omitempty"`
	First    []json.RawMessage `json:"events,omitempty"`
}

// ShowReplay is a replay as the API shows it.
func ShowReplay(x event.ReplayInfo) ReplayDoc {
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	d := ReplayDoc{ID: x.ID, State: string(x.State), Reason: x.Reason, Since: at(x.Since), Until: at(x.Until), From: x.From, To: x.To, Filter: x.Filter,
		Rate: x.Rate, Function: x.Function, Looked: x.Looked, Matched: x.Matched, Done: x.Done, Left: x.Left, Lost: x.Lost, Unread: x.Unread, DryRun: x.ID == ""}
	if !d.DryRun {
		d.Started, d.Ended = at(x.Started), at(x.Ended)
	}
	for _, rec := range x.First {
		d.First = append(d.First, bytes.Clone(appendEvent(nil, rec)))
	}
	return d
}
