package engine

import (
	"errors"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// What would become of an event is told with the functions in force, and neither the topic nor the functions' state has it.
func TestExplainUnstored(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	w.apply(through(digest, 1, &previewed{}, nil))
	ask := func(sub, topic, data string) (*event.Explained, error) {
		return w.e.ExplainUnstored(t.Context(), sub, topic, event.Event{ID: "a", Source: "/x", Type: "t", Data: []byte(data)})
	}
	x, err := ask("s", "orders", "ep")
	if err != nil {
		t.Fatal(err)
	}
	if x.State != event.StateDry || x.Position != "" || len(x.Tries) != 0 || x.Functions == nil || x.Functions.Version != "the versions in force now" ||
		x.Functions.Steps[0].Verdict != "emit" || len(x.Requests) != 1 || x.Requests[0].Body != "p" {
		t.Errorf("%+v %+v", x, x.Functions)
	}
	for _, c := range [][2]string{{"nobody", "orders"}, {"s", "nowhere"}} {
		if _, err := ask(c[0], c[1], "ep"); !errors.Is(err, event.ErrNotFound) {
			t.Errorf("%s of %s: %v", c[0], c[1], err)
		}
	}
	if at := w.publish("orders", "b=d")[0]; at.Offset != 0 {
		t.Errorf("the first event is at %s", at)
	}
}

func TestExplainUnstoredKeepsNoState(t *testing.T) {
	w, digests := stateWorld(t)
	w.apply(keeping(through(digests[0], 1, &previewed{}, nil)))
	x, err := w.e.ExplainUnstored(t.Context(), "s", "orders", event.Event{ID: "a", Source: "/x", Type: "t", Data: []byte("an=1")})
	if err != nil || x.State != event.StateDry || x.Functions == nil || x.Functions.Unrepeatable == "" || len(x.Outputs) != 0 {
		t.Errorf("%+v, %v", x, err)
	}
	at := w.publish("orders", "b=an=1")
	eventually(t, "settled", func() bool { return w.rest("s") })
	if x := w.explain("s", "orders", at[0]); len(x.Requests) != 1 || x.Requests[0].Body != "1" {
		t.Errorf("the state counted what was not published: %+v", x.Requests)
	}
}
