package httpapi

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// fakeExplains explains events of the topic orders; it says that it is a fake.
type fakeExplains struct{}

func (fakeExplains) Explain(_ context.Context, sub, topic string, pos event.Position) (*event.Explained, error) {
	switch {
	case sub != "s":
		return nil, event.Bad(event.ErrNotFound, "subscription", "a fake has s only")
	case pos.Offset > 9:
		return nil, event.Bad(event.ErrGone, "cursor", "a fake keeps ten")
	}
	due := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &event.Explained{Subscription: sub, Topic: topic, Position: pos.String(), Event: []byte(`{"id":"1"}`), Matched: true, Why: "a fake",
		Conditions: []event.Condition{{Expression: "true", Value: true, Decided: true, Reads: []event.Field{{Name: "data.x", Value: "missing", Missing: true}}}},
		Missing:    []string{"data.x"}, State: event.StateParked, Detail: "a fake", Due: &due, Attempts: 1,
		Functions: &event.ExplainedChain{Recomputed: true, Version: "a fake", Steps: []event.ExplainedStep{{Function: "f", Digest: "sha256:1", Verdict: "emit",
			Changes: []event.Change{{Path: "data.y", Was: []byte("1")}}}}},
		Requests: []event.Request{{Method: "POST", URL: "http://fake/", Headers: []event.Header{{Name: "a", Value: "b", Hidden: true}}, Body: "{}"}},
		Outputs:  []event.Placed{{Topic: "t", Position: "0-1"}},
		Tries:    []event.Tried{{At: due, Verdict: "retry", Attempt: 1, Code: 503, Error: "no", Due: &due}}, TriesFrom: "trace"}, nil
}

func (fakeExplains) ExplainMQTT(_ context.Context, sub, name string, data []byte, shown func(string) bool, _ func(string) error) (*event.Explained, error) {
	if !shown("orders") {
		return nil, event.Bad(event.ErrNotFound, "?mqttName", "a fake shows orders only")
	}
	return &event.Explained{Subscription: sub, Topic: "orders", Event: data, MQTT: &event.MQTTTaken{Name: name, By: "#"}, State: event.StateDry}, nil
}

func (fakeExplains) EventTrace(_ context.Context, topic string, pos event.Position, _ func(string) bool) (*event.EventTrace, error) {
	if topic != "orders" {
		return nil, event.Bad(event.ErrNotFound, "topic", "a fake has orders only")
	}
	return &event.EventTrace{Topic: topic, Position: pos.String(), Event: []byte(`{"id":"1"}`), Traced: true, Matched: 1, NotMatched: 2,
		Subscriptions: []event.TracedEvent{{Subscription: "s", Matched: true, State: event.StateDelivered, Tries: []event.Tried{{Verdict: "delivered", Attempt: 1}}}}}, nil
}

func TestExplain(t *testing.T) {
	_, url := serve(t, Options{Backend: newFake("orders")})
	for _, c := range []struct {
		path string
		code int
		want string
	}{
		{"/v1/subscriptions/s/explain?event=orders/0-4", 200, `"topic":"orders","position":"0-4"`},
		{"/v1/subscriptions/s/explain?event=orders%2F0-4", 200, `"decided":true,"reads":[{"name":"data.x","value":"missing","missing":true}]`},
		{"/v1/subscriptions/s/explain?event=orders/0-10", 410, "keeps ten"},
		{"/v1/subscriptions/x/explain?event=orders/0-4", 404, "has s only"},
		{"/v1/subscriptions/s/explain", 400, "want topic/position"},
		{"/v1/subscriptions/s/explain?event=orders", 400, "want topic/position"},
		{"/v1/subscriptions/s/explain?event=orders/x", 400, "?event"},
		{"/v1/subscriptions/s/explain?event=or%20ders/0-1", 400, "?event"},
		{"/v1/subscriptions/s/explain?mqttName=a/b%2Fc&data=%7B%7D", 200, `"topic":"orders","event":{},"mqtt":{"name":"a/b/c","by":"#"}`},
		{"/v1/subscriptions/s/explain?mqttName=a&event=orders/0-4", 400, "?event"},
		{"/v1/subscriptions/s/explain?event=orders/0-4&data=1", 400, "?data"},
		{"/v1/topics/orders/events/0-3/trace", 200, `"matched":1,"notMatched":2`},
		{"/v1/topics/nope/events/0-3/trace", 404, "orders only"},
		{"/v1/topics/orders/events/zero/trace", 400, "position"},
	} {
		resp, body := do(t, "GET", url+c.path, "")
		if resp.StatusCode != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want %d and %s", c.path, resp.StatusCode, body, c.code, c.want)
		}
	}
}
