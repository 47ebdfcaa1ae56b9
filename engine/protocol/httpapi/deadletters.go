package httpapi

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// deadLetterTime is how long one redrive or purge works; the answer says how far it came.
const deadLetterTime = 20 * time.Second

// deadLetter is how a dead letter is shown.
type deadLetter struct {
	Position  string          `json:"position"`
	At        string          `json:"at"`
	Origin    string          `json:"origin,omitempty"`
	ID        string          `json:"id"`
	Type      string          `json:"type"`
	Reason    string          `json:"reason"`
	Code      int             `json:"code"`
	Attempts  int             `json:"attempts"`
	Redrives  int             `json:"redrives"`
	Detail    string          `json:"detail,omitempty"`
	Story     json.RawMessage `json:"story,omitempty"`
	Function  string          `json:"function,omitempty"`
	Versions  string          `json:"versions,omitempty"`
	Half      string          `json:"half,omitempty"`
	Revision  string          `json:"revision,omitempty"`
	EventData json.RawMessage `json:"event,omitempty"`
}

func showLetter(l *event.DeadLetter) deadLetter {
	d := deadLetter{
		Position: l.Position.String(), At: l.At.UTC().Format(time.RFC3339Nano), Origin: l.Origin, ID: l.ID, Type: l.Type, Reason: l.Reason,
		Code: l.Code, Attempts: l.Attempts, Redrives: l.Redrives, Detail: l.Detail, Story: l.Story, Function: l.Function,
		Versions: l.Versions, Half: l.Half, Revision: l.Revision,
	}
	if !l.Condensed {
		d.EventData = appendEvent(nil, l.Event)
	}
	return d
}

// deadLetters is GET /v1/subscriptions/{name}/deadletters.
func (c *call) deadLetters() error {
	limit, err := defaultLimit, error(nil)
	if s := c.query("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxLimit {
			return invalidf("?limit", "is %.20q; want 1 to %d", s, maxLimit)
		}
	}
	in := choosing{Filter: c.query("filter"), Since: c.query("since"), Before: c.query("before"), Topic: c.query("topic")}
	q, err := in.query(c.s, "?")
	if err != nil {
		return err
	}
	if err := c.mayUseTopic(access.Read, q.Topic); err != nil {
		return err
	}
	page, err := c.s.o.Backend.DeadLetters(c.s.work, strings.Clone(c.params[0]), q, strings.Clone(c.query("after")), limit)
	if err != nil {
		return err
	}
	out := struct {
		DeadLetters []deadLetter `json:"deadletters"`
		Next        string       `json:"next,omitempty"`
		Total       int64        `json:"total"`
	}{[]deadLetter{}, page.Next, page.Total}
	bytes := 0
	for i := range page.Letters {
		if bytes >= enoughBytes {
			out.Next = page.Letters[i].Position.String() // the rest is of the next page
			break
		}
		out.DeadLetters = append(out.DeadLetters, showLetter(&page.Letters[i]))
		bytes += len(page.Letters[i].Event)
	}
	return c.answerJSON(fasthttp.StatusOK, out)
}

// mayUseTopic asks whether the caller may take dead letters from another topic than the subscription's own, of which the
// path's name has said enough.
func (c *call) mayUseTopic(a access.Action, topic string) error {
	if topic == "" {
		return nil
	}
	sub, has := c.params[0], c.s.o.Backend.Has
	if !c.principal.Everything() && !has(access.Subscription, sub) {
		return access.NotFound(access.Subscription, sub)
	}
	err := event.CheckName("topic", topic)
	if err == nil {
		err = c.may(a, access.Topic, topic)
	}
	if err == nil && !c.principal.Everything() && !has(access.Topic, topic) {
		err = access.NotFound(access.Topic, topic)
	}
	c.kind, c.name = access.Subscription, sub // which is what the call is about
	return err
}

// choosing is which dead letters a call is about.
type choosing struct {
	Filter string `json:"filter"`
	Since  string `json:"since"`
	Before string `json:"before"`
	Topic  string `json:"topic"`
}

func (in *choosing) query(s *Server, at string) (q event.LetterQuery, err error) {
	q.Filter, q.Topic = strings.Clone(in.Filter), strings.Clone(in.Topic)
	for _, x := range []struct {
		name, text string
		to         *time.Time
	}{{"since", in.Since, &q.Since}, {"before", in.Before, &q.Before}} {
		if x.text == "" {
			continue
		}
		if *x.to, err = event.ParseSince(x.text, s.o.Now()); err != nil {
			return q, event.Invalid(at+x.name, err.Error())
		}
	}
	return q, nil
}

// lettersDone is the answer to redrive and purge.
type lettersDone struct {
	Redriven *int64       `json:"redriven,omitempty"`
	Purged   *int64       `json:"purged,omitempty"`
	Left     int64        `json:"left"`
	Skipped  int64        `json:"skipped,omitempty"`
	Why      string       `json:"why,omitempty"` // of skipped
	Stopped  string       `json:"stopped,omitempty"`
	Until    string       `json:"until"`
	DryRun   bool         `json:"dryRun,omitempty"`
	First    []deadLetter `json:"deadletters,omitempty"`
}

func doneOf(d event.LettersDone, dry bool) lettersDone {
	out := lettersDone{Left: d.Left, Skipped: d.Skipped, Why: d.Why, Stopped: d.Stopped, Until: d.Until.UTC().Format(time.RFC3339Nano), DryRun: dry}
	for i := range d.First {
		out.First = append(out.First, showLetter(&d.First[i]))
	}
	return out
}

// redrive is POST /v1/subscriptions/{name}/redrive.
func (c *call) redrive() error {
	var in struct {
		choosing
		Function string  `json:"function"`
		Rate     float64 `json:"rate"`
		Limit    int     `json:"limit"`
		DryRun   bool    `json:"dryRun"`
	}
	if err := c.members(&in); err != nil {
		return err
	}
	q, err := in.query(c.s, "")
	if err != nil {
		return err
	}
	if err := c.mayUseTopic(access.Operate, q.Topic); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.context(), deadLetterTime)
	defer cancel()
	d, err := c.s.o.Backend.Redrive(ctx, strings.Clone(c.params[0]),
		event.Redrive{LetterQuery: q, Function: in.Function, Rate: in.Rate, Limit: in.Limit, DryRun: in.DryRun})
	if err != nil {
		return err
	}
	out := doneOf(d, in.DryRun)
	out.Redriven = &d.Done
	return c.answerJSON(fasthttp.StatusOK, out)
}

// purge is POST /v1/subscriptions/{name}/purge.
func (c *call) purge() error {
	var in struct {
		choosing
		All    bool `json:"all"`
		DryRun bool `json:"dryRun"`
	}
	if err := c.members(&in); err != nil {
		return err
	}
	q, err := in.query(c.s, "")
	if err != nil {
		return err
	}
	if err := c.mayUseTopic(access.Operate, q.Topic); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.s.work, deadLetterTime)
	defer cancel()
	d, err := c.s.o.Backend.Purge(ctx, strings.Clone(c.params[0]), event.Purge{LetterQuery: q, All: in.All, DryRun: in.DryRun})
	if err != nil {
		return err
	}
	out := doneOf(d, in.DryRun)
	out.Purged = &d.Done
	return c.answerJSON(fasthttp.StatusOK, out)
}
