package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

// Function leaves the verdict to a function: PASS or EMIT is good, everything else is refused; what fails, takes too long
// or says RETRY is answered with 503, so that the sender repeats it.
type Function struct {
	Name string `yaml:"name" rules:"required" about:"The function."`
}

// Invoke runs a function with an event, within its limits.
type Invoke func(ctx context.Context, name string, ev *event.Event) (*event.Invocation, error)

// Validate says what is wrong with the options.
func (o Function) Validate() error {
	if err := event.CheckName("function", o.Name); err != nil {
		return event.Invalid("name", "is missing, or no name of a function; want one of functions:")
	}
	return nil
}

// Open makes the verifier.
func (o Function) Open(invoke Invoke) (event.Verifier, error) {
	return &byFunction{name: o.Name, invoke: invoke}, nil
}

type byFunction struct {
	name   string
	invoke Invoke
}

func (v *byFunction) Provides() event.Provided { return event.Provided{Function: v.name} }

// inbound is what the function gets as data.
type inbound struct {
	Method  string         `json:"method"`
	URL     string         `json:"url"`
	Headers map[string]any `json:"headers"` // names in lower case; a list where there are several
	Body    *string        `json:"body,omitempty"`
	Base64  []byte         `json:"body_base64,omitempty"` // in place of body where that is not UTF-8
	Time    string         `json:"time"`
}

func (v *byFunction) Verify(ctx context.Context, h *event.Hook, say func(string)) error {
	if v.invoke == nil {
		return fmt.Errorf("there is no function to ask here: %w", event.ErrUnavailable)
	}
	doc, err := json.Marshal(inboundOf(h))
	if err != nil {
		return fmt.Errorf("source %s: %w", h.Source, err)
	}
	ev := event.Event{Type: "source.verify", Source: "/sources/" + h.Source, DataContentType: "application/json", Data: doc}
	in, err := v.invoke(ctx, v.name, &ev)
	switch {
	case errors.Is(err, event.ErrTooLarge): // what it is shown is larger than the body
		return event.Bad(event.ErrTooLarge, "body", fmt.Sprintf("is too large for the function %s to judge", v.name))
	case err != nil:
		if say != nil {
			told(say, "the function %s failed: %v", v.name, err)
		}
		return fmt.Errorf("the function %s that verifies this source cannot be asked now: %w", v.name, event.ErrUnavailable)
	}
	return v.judge(in, say)
}

func (v *byFunction) judge(in *event.Invocation, say func(string)) error {
	passed := in.Reply == nil && len(in.Results) > 0
	for _, r := range in.Results {
		switch r.Verdict {
		case "pass", "emit":
		case "retry":
			if say != nil {
				told(say, "the function %s says RETRY", v.name)
			}
			return fmt.Errorf("the function %s that verifies this source asks for another try: %w", v.name, event.ErrUnavailable)
		default:
			if say != nil {
				told(say, "the function %s says %s: %s", v.name, r.Verdict, r.Reason)
			}
			passed = false
		}
	}
	if !passed {
		return unverified("function", "the function %s refused it", v.name)
	}
	if say != nil {
		told(say, "the function %s passed it", v.name)
	}
	return nil
}

func inboundOf(h *event.Hook) inbound {
	doc := inbound{Method: h.Method, URL: h.URL, Headers: map[string]any{}, Time: h.Received.UTC().Format("2006-01-02T15:04:05.000Z07:00")}
	for _, x := range h.Headers {
		name := lower(x.Name)
		switch was := doc.Headers[name].(type) {
		case nil:
			doc.Headers[name] = x.Value
		case string:
			doc.Headers[name] = []string{was, x.Value}
		case []string:
			doc.Headers[name] = append(was, x.Value)
		}
	}
	if utf8.Valid(h.Body) {
		text := string(h.Body)
		doc.Body = &text
	} else {
		doc.Base64 = h.Body
	}
	return doc
}
