package httpapi

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// document is the body as JSON of its own memory: a definition may be kept.
func (c *call) document(types ...string) ([]byte, error) {
	kind := media(c.h.contentType)
	if kind != "" && kind != "application/json" && !isForm(kind) { // curl -d says form
		ok := false
		for _, t := range types {
			ok = ok || kind == t
		}
		if !ok {
			return nil, refuse(fasthttp.StatusUnsupportedMediaType, "the Content-Type %.80q is not taken here; send %s", kind, strings.Join(append([]string{"application/json"}, types...), " or "))
		}
	}
	body, err := c.decompressed()
	if err != nil {
		return nil, err
	}
	if err := event.CheckJSON(body); err != nil {
		return nil, event.At("body", err)
	}
	return bytes.Clone(body), nil
}

// members decodes an object whose members v has, and no others. An empty body is an empty object.
func (c *call) members(v any) error {
	if len(c.ctx.Request.Body()) == 0 {
		return nil
	}
	doc, err := c.document()
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return event.Invalid("body", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

func list(kind string) func(*call) error {
	return func(c *call) error {
		docs, err := c.s.o.Backend.List(c.context(), kind)
		if err != nil {
			return err
		}
		out := append(c.out[:0], `{"`+kind+`":`...)
		out = append(out, docs...)
		c.out = append(out, '}', '\n')
		c.answer(fasthttp.StatusOK, c.out)
		return nil
	}
}

func show(kind string) func(*call) error {
	return func(c *call) error {
		doc, err := c.s.o.Backend.Show(c.context(), kind, c.params[0])
		return c.shown(fasthttp.StatusOK, doc, err)
	}
}

func create(kind string, of access.Kind) func(*call) error {
	return func(c *call) error {
		doc, err := c.document()
		if err != nil {
			return err
		}
		var head struct{ Name string }
		if err := json.Unmarshal(doc, &head); err == nil && event.CheckName(of.String(), head.Name) == nil { // else the backend says what is wrong
			if err := c.mayMake(of, head.Name); err != nil {
				return err
			}
		}
		shown, err := c.s.o.Backend.Create(c.context(), kind, doc)
		if err != nil {
			c.name = "" // what does not exist is not what was to be made
			return err
		}
		var made struct{ Name string }
		if json.Unmarshal(shown, &made) == nil && event.CheckName(kind, made.Name) == nil {
			c.ctx.Response.Header.Set("Location", "/v1/"+kind+"/"+made.Name)
		}
		return c.shown(fasthttp.StatusCreated, shown, nil)
	}
}

func change(kind string) func(*call) error {
	return func(c *call) error {
		patch, err := c.document("application/merge-patch+json")
		if err != nil {
			return err
		}
		shown, err := c.s.o.Backend.Change(c.context(), kind, strings.Clone(c.params[0]), patch)
		return c.shown(fasthttp.StatusOK, shown, err)
	}
}

func remove(kind string) func(*call) error {
	return func(c *call) error {
		if err := c.s.o.Backend.Delete(c.context(), kind, strings.Clone(c.params[0])); err != nil {
			return err
		}
		return c.empty()
	}
}

func (c *call) shown(status int, doc []byte, err error) error {
	if err != nil {
		return err
	}
	c.ctx.SetStatusCode(status)
	c.ctx.Response.Header.SetContentTypeBytes(jsonType)
	c.ctx.Response.SetBody(doc) // a copy: the document may be the backend's
	return nil
}

// pushFunction is PUT /v1/functions/{name}.
func (c *call) pushFunction() error {
	kind := media(c.h.contentType)
	switch kind {
	case "application/wasm", "text/javascript", "application/javascript", "application/json":
	default:
		return refuse(fasthttp.StatusUnsupportedMediaType, "a function is application/wasm (a module), text/javascript (a script) or application/json (its settings), not %.80q: "+
			"curl -T function.wasm -H 'Content-Type: application/wasm'", kind)
	}
	body, err := c.decompressed()
	if err != nil {
		return err
	}
	shown, err := c.s.o.Backend.PushFunction(c.context(), strings.Clone(c.params[0]), kind, bytes.Clone(body))
	return c.shown(fasthttp.StatusOK, shown, err)
}

// seek is POST /v1/subscriptions/{name}/seek.
func (c *call) seek() error {
	var in struct {
		To string `json:"to"`
	}
	if err := c.members(&in); err != nil {
		return err
	}
	to := event.Start{At: event.AtCursor, Cursor: in.To}
	switch in.To {
	case "":
		return event.Invalid("to", `is missing; want "earliest", "latest", a time (RFC 3339), a duration back (1h) or a cursor`)
	case "earliest":
		to = event.Start{At: event.Earliest}
	case "latest":
		to = event.Start{At: event.Latest}
	default:
		if at, err := event.ParseSince(in.To, c.s.o.Now()); err == nil {
			to = event.Start{At: event.AtTime, Time: at}
		}
	}
	if err := c.s.o.Backend.Seek(c.s.work, strings.Clone(c.params[0]), to); err != nil {
		return err
	}
	return c.empty()
}

func (c *call) pause() error {
	var in struct {
		Reason string `json:"reason"`
	}
	if err := c.members(&in); err != nil {
		return err
	}
	if err := c.s.o.Backend.PauseFor(c.s.work, strings.Clone(c.params[0]), strings.Clone(in.Reason)); err != nil {
		return err
	}
	return c.empty()
}

func (c *call) resume() error {
	if err := c.s.o.Backend.Resume(c.s.work, strings.Clone(c.params[0])); err != nil {
		return err
	}
	return c.empty()
}

// rules is GET /v1/rules.
func (c *call) rules() error {
	is := c.s.o.Backend.RulesRevision() // before: of a revision that is older than the document nothing can be applied to
	doc, err := c.s.o.Backend.Rules(c.context())
	if err == nil {
		c.tagRevision(is)
	}
	return c.shown(fasthttp.StatusOK, doc, err)
}

// validateRules is POST /v1/rules/validate.
func (c *call) validateRules() error {
	body, err := c.decompressed()
	if err != nil {
		return err
	}
	if err := c.s.o.Backend.CheckRules(c.s.work, bytes.Clone(body)); err != nil {
		return err
	}
	return c.answerJSON(fasthttp.StatusOK, struct {
		Valid bool `json:"valid"`
	}{true})
}

// metrics is GET /metrics.
func (c *call) metrics() error {
	var b bytes.Buffer
	if c.s.o.Metrics != nil {
		if err := c.s.o.Metrics(io.Writer(&b)); err != nil {
			return err
		}
	}
	c.ctx.SetContentType("text/plain; version=0.0.4; charset=utf-8")
	c.ctx.Response.SetBodyRaw(b.Bytes())
	return nil
}

// readyz is GET /readyz: whether traffic should come here. Details, which have names, are for those who may see everything.
func (c *call) readyz() error {
	known, err := c.isKnown()
	if err != nil {
		return err
	}
	details := known && c.principal.Check(access.Admin, access.Router, "") == nil
	doc, err := c.s.o.Backend.Ready(c.s.work, details)
	if c.s.draining() {
		err = errDraining
	}
	if err != nil {
		c.problem(err)
		if len(doc) > 0 {
			b := bytes.TrimSuffix(c.ctx.Response.Body(), []byte("}\n"))
			b = append(append(bytes.Clone(b), `,"details":`...), doc...)
			c.ctx.Response.SetBodyRaw(append(b, '}', '\n'))
		}
		return nil
	}
	if len(doc) == 0 {
		doc = []byte(`{"status":"ready"}`)
	}
	return c.shown(fasthttp.StatusOK, doc, nil)
}

// openapi is GET /v1/openapi.json.
func (c *call) openapi() error {
	c.ctx.Response.Header.SetContentTypeBytes(jsonType)
	c.ctx.Response.SetBodyRaw(openAPI)
	return nil
}
