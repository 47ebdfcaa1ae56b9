package hooks

import (
	"context"

	"github.com/millrace/millrace/engine/event"
)

// trial is what would become of a webhook, step by step.
type trial struct {
	Steps  []string     // what was looked at and found good, in order
	Err    error        // why it is refused; nil: it is taken
	Answer *answer      // of a handshake
	Event  *event.Event // that would be stored; nil: none
	Proof  bool         // repeats are told by what was signed as well
	Topic  string       // where it would go
}

// try says what a source would do with a webhook, as if it had come at h.Received. Nothing is stored. The error is about the
// source alone.
func (s *Server) try(ctx context.Context, name string, h *event.Hook) (*trial, error) {
	x, err := s.find(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	t := &trial{Topic: x.Topic}
	h.Source = x.Name
	if x.URL != "" {
		if h.URL = x.URL; h.Query != "" {
			h.URL += "?" + h.Query
		}
	}
	say := func(step string) { t.Steps = append(t.Steps, step) }
	if h.Method == "GET" {
		sub, ok := x.Verifier.(subscriber)
		if !ok {
			t.Err = event.Bad(event.ErrNotFound, "", "there is no handshake by GET for this source; webhooks are sent by POST")
			return t, nil
		}
		t.Answer, t.Err = sub.Subscribe(h, say)
		return t, nil
	}
	var ev event.Event
	var proof []byte
	t.Answer, proof, t.Err = s.take(ctx, x, h, &ev, say)
	if t.Err == nil && t.Answer == nil {
		t.Event, t.Proof = &ev, proof != nil
		if t.Err = x.complete(ev); t.Err != nil {
			t.Event = nil
		}
	}
	return t, nil
}

// complete says what the engine would refuse of an event.
func (x *serving) complete(ev event.Event) error {
	if ev.ID == "" {
		ev.ID = "made when it is stored"
	}
	return ev.Validate(event.Limits{})
}
