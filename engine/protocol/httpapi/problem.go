package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// refusal is an error with a status of its own: what HTTP itself, not the router, finds wrong.
type refusal struct {
	status int
	detail string
	header [][2]string // to add
	close  bool        // the rest of the connection cannot be trusted
}

func (r *refusal) Error() string { return r.detail }

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status: status, detail: fmt.Sprintf(format, args...)}
}

func (r *refusal) with(name, value string) *refusal {
	r.header = append(r.header, [2]string{name, value})
	return r
}

// refusalOf is what HTTP itself finds wrong in err, or the door of all faces; nil if nothing.
func refusalOf(err error) *refusal {
	var r *refusal
	var t *admission.TooMany
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &t):
		return tooMany(t)
	}
	return nil
}

var errDraining = fmt.Errorf("this router is shutting down and takes no new work; try again: %w", event.ErrUnavailable)

func bodyTooLarge(limit int) error {
	return event.Bad(event.ErrTooLarge, "body", fmt.Sprintf("is larger than the limit of %d bytes a request, after decompression; send it in parts", limit))
}

// problem is the document of RFC 9457.
type problem struct {
	Type   string        `json:"type"`
	Title  string        `json:"title"`
	Status int           `json:"status"`
	Detail string        `json:"detail,omitempty"`
	Errors []event.Fault `json:"errors,omitempty"`
}

// ProblemOf is the problem document (RFC 9457) by which err is told, the same on every face of the router: one JSON
// object. Of an error that is the router's own it shows nothing; internal reports that, so that it can be logged.
func ProblemOf(err error) (doc []byte, internal bool) {
	p, internal := problemOf(err)
	doc, _ = json.Marshal(p) // of strings and a number: cannot fail
	return doc, internal
}

func problemOf(err error) (p problem, internal bool) {
	r := refusalOf(err)
	p.Detail = err.Error()
	if r != nil {
		p.Status = r.status
	} else {
		p.Status, p.Type = statusOf(err)
	}
	if internal = p.Status == fasthttp.StatusInternalServerError && r == nil; internal {
		p.Detail = "the router failed; its log says why"
	}
	var f *event.Faults
	if errors.As(err, &f) {
		p.Errors = make([]event.Fault, len(f.List))
		for i, x := range f.List {
			p.Errors[i] = event.Fault{At: event.Visible(x.At), Detail: event.Visible(x.Detail)}
		}
	}
	p.Title = fasthttp.StatusMessage(p.Status)
	p.Type = "urn:millrace:problem:" + kindOf(p.Status, p.Type)
	p.Detail = event.Visible(p.Detail)
	return p, internal
}

// problem answers with what err means.
func (c *call) problem(err error) {
	ctx := c.ctx
	p, internal := problemOf(err)
	if internal {
		c.s.o.Log.Error("a request failed", "method", string(ctx.Method()), "path", string(ctx.Path()), "error", err)
	}
	body, _ := json.Marshal(p) // of strings and a number: cannot fail
	ctx.Response.ResetBody()
	ctx.SetStatusCode(p.Status)
	ctx.SetContentType("application/problem+json")
	ctx.Response.SetBodyRaw(append(body, '\n'))
	if p.Status == fasthttp.StatusServiceUnavailable {
		ctx.Response.Header.Set("Retry-After", "1")
	}
	var l *last
	if errors.As(err, &l) {
		linger(ctx)
		ctx.SetConnectionClose()
	}
	if r := refusalOf(err); r != nil {
		for _, h := range r.header {
			ctx.Response.Header.Set(h[0], h[1])
		}
		if r.close {
			linger(ctx)
			ctx.SetConnectionClose()
		}
	}
}

// kindOf is the last part of a problem's type.
func kindOf(status int, kind string) string {
	switch {
	case kind != "":
		return kind
	case status == fasthttp.StatusBadRequest:
		return "invalid"
	case status == fasthttp.StatusForbidden:
		return "denied"
	}
	return strings.ReplaceAll(strings.ToLower(fasthttp.StatusMessage(status)), " ", "-")
}
