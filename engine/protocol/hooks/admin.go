package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/millrace/millrace/engine/event"
)

type take = func(func(context.Context, net.Conn, []byte)) error

// sourceState is how a source stands.
type sourceState struct {
	Requests    map[string]uint64 `json:"requests"` // by outcome
	LastRefusal *lastRefusal      `json:"lastRefusal,omitempty"`
}

type lastRefusal struct {
	Time time.Time `json:"time"`
	Why  string    `json:"why"`
}

// ServeList answers GET /v1/sources.
func (s *Server) ServeList(ctx *fasthttp.RequestCtx, _ take) error {
	stats, unknown := s.Stats()
	counted := map[string]Stats{}
	for _, x := range stats {
		counted[x.Name] = x
	}
	out := struct {
		Sources []json.RawMessage `json:"sources"`
		Unknown uint64            `json:"unknown"` // requests for sources that there are not
	}{[]json.RawMessage{}, unknown}
	for _, x := range s.List() {
		doc := map[string]json.RawMessage{}
		if err := json.Unmarshal(x.Doc, &doc); err != nil {
			return fmt.Errorf("source %s: %w", x.Name, err)
		}
		state := sourceState{Requests: map[string]uint64{}}
		for i, outcome := range Outcomes() {
			state.Requests[outcome] = counted[x.Name].Counts[i]
		}
		if last := counted[x.Name].Last; last != nil {
			state.LastRefusal = &lastRefusal{last.At.UTC(), last.Why}
		}
		for key, v := range map[string]any{"name": x.Name, "scheme": x.Scheme, "path": "/v1/sources/" + x.Name, "owner": fmt.Sprintf("%s:%d", x.Owner.File, x.Owner.Line), "state": state} {
			text, err := json.Marshal(v)
			if err != nil {
				return fmt.Errorf("source %s: %w", x.Name, err)
			}
			doc[key] = text
		}
		text, err := json.Marshal(doc)
		if err != nil {
			return fmt.Errorf("source %s: %w", x.Name, err)
		}
		out.Sources = append(out.Sources, text)
	}
	return answerJSON(ctx, out)
}

// tried is a webhook as POST /v1/sources/{name}/test takes it.
type tried struct {
	Method  string      `json:"method"` // POST
	URL     string      `json:"url"`    // where it went; the source's own where that is set
	Headers [][2]string `json:"headers"`
	Body    []byte      `json:"body"` // base64
	Time    *time.Time  `json:"time"` // as if it had come then; now
}

// ServeTest answers POST /v1/sources/{name}/test.
func (s *Server) ServeTest(ctx *fasthttp.RequestCtx, _ take) error {
	path := strings.TrimSuffix(string(ctx.Path()), "/test")
	name := path[strings.LastIndexByte(path, '/')+1:]
	in := tried{Method: "POST"}
	d := json.NewDecoder(bytes.NewReader(ctx.Request.Body()))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return event.Invalid("body", fmt.Sprintf(`is not {"headers": [["name", "value"]…], "body": "<base64>", "method"?, "url"?, "time"?}: %v`, err))
	}
	if in.Method != "POST" && in.Method != "GET" {
		return event.Invalid("method", fmt.Sprintf("is %.20q; want POST or GET", in.Method))
	}
	h := &event.Hook{Method: in.Method, URL: in.URL, Body: in.Body, Received: s.o.Now()}
	if in.Time != nil {
		h.Received = *in.Time
	}
	if h.URL == "" {
		h.URL = "http://" + string(ctx.Host()) + path
	}
	_, h.Query, _ = strings.Cut(h.URL, "?")
	for _, x := range in.Headers {
		h.Headers = append(h.Headers, event.HookHeader{Name: x[0], Value: strings.Trim(x[1], " \t")})
	}
	t, err := s.try(context.Background(), name, h)
	if err != nil {
		return err
	}
	return answerJSON(ctx, t.doc())
}

// trialDoc is how a trial is shown.
type trialDoc struct {
	Taken   bool            `json:"taken"`
	Steps   []string        `json:"steps"`
	Refused string          `json:"refused,omitempty"` // why
	Answer  *string         `json:"answer,omitempty"`  // of a handshake
	Topic   string          `json:"topic,omitempty"`
	Event   json.RawMessage `json:"event,omitempty"`
	Repeats string          `json:"repeats,omitempty"` // by what they are told
}

func (t *trial) doc() trialDoc {
	doc := trialDoc{Taken: t.Err == nil, Steps: t.Steps}
	if doc.Steps == nil {
		doc.Steps = []string{}
	}
	if t.Err != nil {
		doc.Refused = t.Err.Error()
	}
	if t.Answer != nil {
		body := string(t.Answer.Body)
		doc.Answer = &body
	}
	if t.Event != nil {
		doc.Topic = t.Topic
		doc.Event = event.Record(t.Event.AppendRecord(nil)).AppendStructured(nil)
		switch {
		case t.Proof:
			doc.Repeats = "the id, and what was signed"
		case t.Event.ID != "":
			doc.Repeats = "the id"
		default:
			doc.Repeats = "nothing: each is an event of its own"
		}
	}
	return doc
}

func answerJSON(ctx *fasthttp.RequestCtx, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	ctx.SetContentType("application/json")
	ctx.Response.SetBody(append(body, '\n'))
	return nil
}
