package httpapi

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/tidwall/gjson"
	"github.com/valyala/fasthttp"
)

// publishing is the part of a call that takes events in, kept from one call to the next.
type publishing struct {
	events []event.Event
	pos    []event.Position
	body   []byte // decompressed
	made   []byte // documents and ids made here; events borrow it
	out    []byte // the answer
}

// keep is how many bytes, or events, a pooled call may hold on to.
const (
	keepBytes  = 256 << 10
	keepEvents = 256
)

func (p *publishing) reset() {
	for i := range p.events { // not to pin what they borrowed
		p.events[i] = event.Event{Extensions: p.events[i].Extensions[:0]}
	}
	p.events, p.pos = p.events[:0], p.pos[:0]
	if cap(p.events) > keepEvents {
		p.events, p.pos = nil, nil
	}
	for _, b := range []*[]byte{&p.body, &p.made, &p.out} {
		if *b = (*b)[:0]; cap(*b) > keepBytes {
			*b = nil
		}
	}
}

// next appends an event, reusing the Extensions of one of before.
func (p *publishing) next() *event.Event {
	if n := len(p.events); n < cap(p.events) {
		p.events = p.events[:n+1]
	} else {
		p.events = append(p.events, event.Event{})
	}
	e := &p.events[len(p.events)-1]
	*e = event.Event{Extensions: e.Extensions[:0]}
	return e
}

// publish is POST /v1/topics/{topic}/events.
func (c *call) publish() error {
	pref, err := c.preferences()
	if err != nil {
		return err
	}
	topic := c.params[0]
	body, err := c.decompressed()
	if err != nil {
		return err
	}
	if err := c.decode(topic, body); err != nil {
		return err
	}
	if err := c.fill(); err != nil {
		return err
	}
	return c.commit(topic, pref)
}

// publishShort is POST /v1/publish.
func (c *call) publishShort() error {
	pref, err := c.preferences()
	if err != nil {
		return err
	}
	if len(c.h.ce) > 0 {
		return event.Invalid(strings.ToLower(c.h.ce[0].name), "is not taken in the short form; use POST /v1/topics/{topic}/events for CloudEvents")
	}
	if !event.IsJSON(media(c.h.contentType)) && !isForm(c.h.contentType) {
		return refuse(fasthttp.StatusUnsupportedMediaType, "the short form is application/json, not %.80q", c.h.contentType)
	}
	body, err := c.decompressed()
	if err != nil {
		return err
	}
	if err := event.CheckJSON(body); err != nil {
		return event.At("body", err)
	}
	doc := gjson.Parse(borrow(body))
	if !doc.IsObject() {
		return event.Invalid("body", `is not an object; want {"topic": "...", "payload": any, "type"?, "subject"?, "key"?, "id"?}`)
	}
	topic, seen := "", 0
	e := c.next()
	doc.ForEach(func(k, v gjson.Result) bool {
		var at *string
		bit := 0
		switch k.Str {
		case "topic":
			at, bit = &topic, 1
		case "type":
			at, bit = &e.Type, 2
		case "subject":
			at, bit = &e.Subject, 4
		case "key":
			at, bit = &e.PartitionKey, 8
		case "id":
			at, bit = &e.ID, 16
		case "payload":
			bit = 32
			e.Data = bytesOf(v.Raw)
		default:
			err = invalidf(clip(k.Str), "is not a member of the short form; it takes topic, payload, type, subject, key, id")
			return false
		}
		switch {
		case seen&bit != 0:
			err = event.Invalid(k.Str, "is given twice")
		case at == nil:
		case v.Type != gjson.String || v.Str == "":
			err = invalidf(k.Str, "is %.60s; want a string that is not empty, or leave it out", v.Raw)
		default:
			*at = v.Str
		}
		seen |= bit
		return err == nil
	})
	switch {
	case err != nil:
		return err
	case seen&1 == 0:
		return event.Invalid("topic", "is missing; name the topic to publish to")
	case seen&32 == 0:
		return event.Invalid("payload", "is missing; give the event's data as any JSON, null included")
	}
	if err := event.CheckName("topic", topic); err != nil {
		return err
	}
	if err := c.may(access.Publish, access.Topic, topic); err != nil {
		return err
	}
	e.DataContentType = "application/json"
	e.ClientID = e.ID != ""
	if err := c.fill(); err != nil {
		return err
	}
	return c.commit(topic, pref)
}

// preferring is what the header Prefer asks for (RFC 7240).
type preferring struct {
	minimal bool // only the count
	wait    int  // seconds for a reply; 0: none is wanted
}

// preferences reads Prefer. What is not known there is ignored, as RFC 7240 wants.
func (c *call) preferences() (pref preferring, err error) {
	if c.h.prefer == "" {
		return pref, nil
	}
	for p := range strings.SplitSeq(c.h.prefer, ",") {
		p, _, _ = strings.Cut(p, ";")
		name, value, _ := strings.Cut(p, "=")
		name, value = strings.TrimSpace(name), strings.Trim(strings.TrimSpace(value), `"`)
		switch {
		case strings.EqualFold(name, "wait") && pref.wait == 0: // of several the first counts
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return pref, invalidf("Prefer", "wait is %.20q; want a number of seconds, 1 or more, such as wait=10", value)
			}
			pref.wait = min(n, int(maxWait/time.Second)) // Preference-Applied says so
		case strings.EqualFold(name, "return"):
			pref.minimal = strings.EqualFold(value, "minimal")
		}
	}
	return pref, nil
}

// fill takes what the request says of all its events from the query and Idempotency-Key. What an event
// says itself may not differ from it.
func (c *call) fill() error {
	several := len(c.events) > 1
	uri := c.ctx.Request.Header.RequestURI()
	var id, typ, subject, key string
	for i := range uri {
		if uri[i] == '?' {
			id, typ, subject, key = c.query("id"), c.query("type"), c.query("subject"), c.query("key")
			break
		}
	}
	if id != "" && several {
		return invalidf("?id", "names one event and the request has %d; give each its own id, or send Idempotency-Key", len(c.events))
	}
	idem := strings.Trim(c.h.idempotencyKey, `"`)
	if id != "" && idem != "" && id != idem {
		return event.Invalid("?id", "differs from Idempotency-Key; send one of them")
	}
	for i := range c.events {
		e := &c.events[i]
		for _, x := range [...]struct {
			at    *string
			value string
			name  string
		}{{&e.ID, id, "id"}, {&e.Type, typ, "type"}, {&e.Subject, subject, "subject"}, {&e.PartitionKey, key, "key"}} {
			switch {
			case x.value == "" || *x.at == x.value:
			case *x.at == "":
				*x.at = x.value
			default:
				return invalidf("?"+x.name, "is %.60q, but the event says %.60q; send one of them", x.value, *x.at)
			}
		}
		if e.ID == "" && idem != "" {
			if e.ID = idem; several {
				e.ID = c.indexed(idem, i)
			}
		}
		e.ClientID = e.ID != ""
	}
	return nil
}

// commit hands the events to the router and answers with what became of them.
func (c *call) commit(topic string, pref preferring) error {
	if dry := c.query("dryRun"); dry != "" {
		switch dry {
		case "true":
			return c.dryRun(topic)
		case "false":
		default:
			return invalidf("?dryRun", "is %.20q; want true or false", dry)
		}
	}
	n := len(c.events)
	if cap(c.pos) < n {
		c.pos = make([]event.Position, n)
	}
	c.pos = c.pos[:n]
	if c.h.bridge != "" {
		return c.forwarded(topic)
	}
	if pref.wait > 0 {
		if replied, err := c.ask(topic, pref.wait); replied || err != nil {
			return err
		}
	} else if err := c.s.o.Backend.Publish(c.s.work, topic, c.events, c.pos); err != nil {
		return err
	}
	out := append(c.out[:0], `{"accepted":`...)
	out = appendInt(out, n)
	if pref.minimal {
		c.ctx.Response.Header.Add("Preference-Applied", "return=minimal")
	} else {
		out = append(out, `,"events":[`...)
		for i := range c.events {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(out, `{"id":`...)
			out = appendQuoted(out, c.events[i].ID)
			out = append(out, `,"position":"`...)
			out = c.pos[i].Append(out)
			out = append(out, '"', '}')
		}
		out = append(out, ']')
	}
	c.out = append(out, '}', '\n')
	c.answer(fasthttp.StatusAccepted, c.out)
	return nil
}

func (c *call) dryRun(topic string) error {
	matches, err := c.s.o.Backend.DryRun(c.s.work, topic, c.events)
	if err != nil {
		return err
	}
	type one struct {
		Matches []event.Match `json:"matches"`
	}
	answer := struct {
		DryRun bool  `json:"dryRun"`
		Events []one `json:"events"`
	}{true, make([]one, len(matches))}
	for i, m := range matches {
		m = slices.DeleteFunc(m, func(x event.Match) bool {
			return c.principal.Check(access.Read, access.Subscription, x.Subscription) != nil
		}) // why shows its filter
		if m == nil {
			m = []event.Match{}
		}
		answer.Events[i].Matches = m
	}
	return c.answerJSON(fasthttp.StatusOK, answer)
}

// healthz is GET /healthz: the process answers.
func (c *call) healthz() error {
	return c.answerJSON(fasthttp.StatusOK, struct {
		Status  string    `json:"status"`
		Version string    `json:"version,omitempty"`
		Time    time.Time `json:"time"`
	}{"ok", c.s.o.Version, c.s.o.Now().UTC()})
}
