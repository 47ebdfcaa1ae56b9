package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// What breaks a topic's schema is refused, in words that say where, and nothing of the machine: publishers read them. A
// schema may refer to its own parts.
func TestWhatBreaksASchema(t *testing.T) {
	w := newWorld(t, Options{})
	spec := specOf(push("s", "orders", "", &recorder{}))
	spec.Topics[0].Schema = []byte(`{"properties": {"total": {"$ref": "#/$defs/amount"}}, "$defs": {"amount": {"type": "number"}}}`)
	w.apply(spec)
	publish := func(data string) error {
		return w.e.Publish(t.Context(), "orders", []event.Event{{Data: []byte(data)}}, make([]event.Position, 1))
	}
	if err := publish(`{"total": 1}`); err != nil {
		t.Fatal(err)
	}
	err := publish(`{"total": "1"}`)
	if !errors.Is(err, event.ErrSchema) || !strings.Contains(err.Error(), "/total") {
		t.Errorf("%v; want what is wrong with /total", err)
	} else if strings.Contains(err.Error(), "file:") {
		t.Errorf("%v; names a file", err)
	}
}
