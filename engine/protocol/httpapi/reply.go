package httpapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// peerCheck is how often a request that waits for a reply looks whether its client is still there: nobody
// reads from the connection meanwhile.
const peerCheck = 250 * time.Millisecond

// waiting ends when the wait is over, draining begins or the client has gone; stop frees what it holds.
func (c *call) waiting(wait time.Duration) (end <-chan struct{}, stop func()) {
	ctx, stop := c.attended(wait)
	return ctx.Done(), stop
}

// attended is waiting as a context.
func (c *call) attended(wait time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(c.s.wait, wait)
	nc, ok := c.ctx.Conn().(*conn)
	if !ok {
		return ctx, cancel
	}
	var check *time.Timer
	check = time.AfterFunc(time.Hour, func() {
		switch {
		case nc.hungUp():
			cancel()
		case ctx.Err() == nil:
			check.Reset(peerCheck)
		}
	})
	check.Reset(peerCheck)
	return ctx, func() {
		cancel()
		check.Stop()
	}
}

// ask publishes the call's event and waits for its reply, which it answers with; false if there is none.
func (c *call) ask(topic string, seconds int) (bool, error) {
	if len(c.events) != 1 {
		return false, invalidf("Prefer", "wait goes with one event and the request has %d; send each alone, or leave wait out", len(c.events))
	}
	end, stop := c.waiting(time.Duration(seconds) * time.Second)
	defer stop()
	reply, err := c.s.o.Backend.Ask(c.s.work, topic, c.events, c.pos, end)
	if err != nil {
		return false, err
	}
	applied := append([]byte("wait="), strconv.Itoa(seconds)...)
	place := replyPath(topic, c.pos[0])
	if reply == nil {
		c.ctx.Response.Header.SetBytesV("Preference-Applied", applied)
		c.ctx.Response.Header.Set("Location", place)
		return false, nil
	}
	c.answerReply(reply, place)
	c.ctx.Response.Header.SetBytesV("Preference-Applied", applied)
	return true, nil
}

func replyPath(topic string, pos event.Position) string {
	return "/v1/topics/" + topic + "/events/" + pos.String() + "/reply"
}

// answerReply passes a reply on: status, content type and body, nothing else of it.
func (c *call) answerReply(r *event.Reply, place string) {
	h := &c.ctx.Response.Header
	c.ctx.SetStatusCode(r.Status)
	h.SetContentType(r.ContentType)
	if place != "" {
		h.Set("Content-Location", place)
	}
	// What a browser may be made to show here is not the router's own page: it must not run with the rights of
	// this origin.
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	c.ctx.Response.SetBodyRaw(r.Data)
}

// readReply is GET /v1/topics/{topic}/events/{position}/reply.
func (c *call) readReply() error {
	pos, err := event.ParsePosition(c.params[1])
	if err != nil {
		return event.Invalid("path", err.Error())
	}
	wait, err := waitOf("?wait", c.query("wait"))
	if err != nil {
		return err
	}
	end, stop := c.waiting(wait)
	defer stop()
	reply, err := c.s.o.Backend.Reply(c.s.work, c.params[0], pos, end)
	if err == nil && wait > 0 {
		err = c.still()
	}
	if err != nil {
		return err
	}
	c.answerReply(reply, "")
	return nil
}

// reply reads a puller's reply, nil if there is none.
func (in *settling) reply() (*event.Reply, error) {
	if in.Reply == nil {
		return nil, nil
	}
	var doc struct {
		Status      *int            `json:"status"`
		ContentType string          `json:"contentType"`
		Data        json.RawMessage `json:"data"`
		Base64      *string         `json:"data_base64"`
	}
	d := json.NewDecoder(bytes.NewReader(in.Reply))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return nil, event.Invalid("reply", strings.TrimPrefix(err.Error(), "json: "))
	}
	r := &event.Reply{Status: fasthttp.StatusOK, ContentType: doc.ContentType, Data: doc.Data}
	if doc.Status != nil {
		r.Status = *doc.Status
	}
	switch {
	case doc.Base64 != nil && doc.Data != nil:
		return nil, event.Invalid("reply.data", "stands beside data_base64; send one of them")
	case doc.Base64 != nil:
		b, err := base64.StdEncoding.DecodeString(*doc.Base64)
		if err != nil {
			return nil, event.Invalid("reply.data_base64", "is not base64: "+err.Error())
		}
		r.Data = b
	case doc.Data != nil && r.ContentType == "":
		r.ContentType = "application/json"
	case doc.Data != nil && !event.IsJSON(media(r.ContentType)):
		var text string // what is not JSON is written as a JSON string, or in base64
		if json.Unmarshal(doc.Data, &text) != nil {
			return nil, event.Invalid("reply.data", "is JSON and contentType says otherwise; want a string, or data_base64")
		}
		r.Data = []byte(text)
	}
	if err := r.Check(); err != nil {
		return nil, event.At("reply", err)
	}
	return r, nil
}

// invoke is POST /v1/functions/{name}/invoke.
func (c *call) invoke() error {
	body, err := c.decompressed()
	if err != nil {
		return err
	}
	if media(c.h.contentType) == "text/csv" {
		return refuse(fasthttp.StatusUnsupportedMediaType, "text/csv is not taken here: a function is invoked with one event")
	}
	if err := c.decode("", body); err != nil {
		return err
	}
	if len(c.events) != 1 {
		return invalidf("body", "has %d events; a function is invoked with one", len(c.events))
	}
	if err := c.fill(); err != nil {
		return err
	}
	in, err := c.s.o.Backend.Invoke(c.context(), strings.Clone(c.params[0]), c.query("version"), &c.events[0])
	if err != nil {
		return err
	}
	if in.Reply != nil {
		c.answerReply(in.Reply, "")
		return nil
	}
	out := append(c.out[:0], `{"results":[`...)
	for i := range in.Results {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendInvoked(out, &in.Results[i])
	}
	out = append(out, `],"fuel":`...)
	out = strconv.AppendInt(out, in.Fuel, 10)
	out = append(out, `,"time":`...)
	out = appendQuoted(out, time.Duration(in.Took).String())
	c.out = append(out, '}', '\n')
	c.answer(fasthttp.StatusOK, c.out)
	return nil
}

func appendInvoked(out []byte, r *event.Invoked) []byte {
	out = append(out, `{"verdict":`...)
	out = appendQuoted(out, r.Verdict)
	switch r.Verdict {
	case "emit":
		if r.Topic != "" {
			out = append(out, `,"topic":`...)
			out = appendQuoted(out, r.Topic)
		}
		out = append(out, `,"event":`...)
		out = r.Event.AppendStructured(out)
	case "reject":
		out = append(out, `,"code":`...)
		out = appendInt(out, r.Code)
		out = append(out, `,"reason":`...)
		out = appendQuoted(out, r.Reason)
	case "retry":
		out = append(out, `,"delay":`...)
		out = appendQuoted(out, (time.Duration(r.Delay) * time.Millisecond).String())
	}
	return append(out, '}')
}
