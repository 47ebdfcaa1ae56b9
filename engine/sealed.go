package engine

import (
	"fmt"

	"github.com/millrace/millrace/engine/event"
)

// sealed refuses to write to the sealed topic.
func (e *Engine) sealed(topic string) error {
	if topic != e.o.Sealed || topic == "" {
		return nil
	}
	return event.Bad(event.ErrDenied, "topic", fmt.Sprintf("%q is the audit log: only the router writes to it", topic))
}

// checkSealed refuses definitions by which something would be written to the sealed topic.
func (e *Engine) checkSealed(spec Spec) error {
	for i := range spec.Subscriptions {
		s := &spec.Subscriptions[i]
		for _, t := range []struct{ name, at string }{{s.Deliver.Topic, ".deliver.topic"}, {s.DeadLetter, ".deadLetter"}} {
			if err := e.sealed(t.name); err != nil {
				return event.At("subscriptions."+s.Name+t.at, err)
			}
		}
	}
	for i := range spec.Schedules {
		if err := e.sealed(spec.Schedules[i].Topic); err != nil {
			return event.At("schedules."+spec.Schedules[i].Name, err)
		}
	}
	return nil
}
