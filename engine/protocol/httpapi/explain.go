package httpapi

import (
	"context"
	"strings"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/valyala/fasthttp"
)

// Explainer says what became of events, and why. Nothing is delivered for it.
type Explainer interface {
	// Explain is about one event at one subscription. Functions may run for it.
	Explain(ctx context.Context, subscription, topic string, pos event.Position) (*event.Explained, error)
	// ExplainMQTT is about what an MQTT client of version 3.1.1 would publish under a topic name, which is not published. A
	// mapping into a topic that shown reports false for is none.
	ExplainMQTT(ctx context.Context, subscription, name string, data []byte, shown func(topic string) bool, mayPublish func(topic string) error) (*event.Explained, error)
	// EventTrace is about one event at those subscriptions of its topic that sees reports true for; nil is all, those
	// that were removed as well.
	EventTrace(ctx context.Context, topic string, pos event.Position, sees func(subscription string) bool) (*event.EventTrace, error)
}

// explain is GET /v1/subscriptions/{name}/explain.
func (c *call) explain() error {
	text, args := strings.Clone(c.query("event")), c.ctx.QueryArgs()
	if args.Has("mqttName") {
		return c.explainMQTT()
	}
	if args.Has("data") {
		return invalidf("?data", "goes with mqttName alone: it is what is published under that")
	}
	topic, place, ok := strings.Cut(text, "/")
	if !ok {
		return invalidf("?event", "is %.80q; want topic/position, such as orders/0-42", text)
	}
	if err := event.CheckName("topic", topic); err != nil {
		return event.At("?event", err)
	}
	pos, err := event.ParsePosition(place)
	if err != nil {
		return event.Invalid("?event", err.Error())
	}
	sub := strings.Clone(c.params[0])
	if !c.principal.Everything() && !c.s.o.Backend.Has(access.Subscription, sub) {
		return access.NotFound(access.Subscription, sub)
	}
	if err := c.may(access.Read, access.Topic, topic); err != nil {
		return err
	}
	x, err := c.s.o.Backend.Explain(c.s.work, sub, topic, pos)
	if err != nil {
		return err
	}
	return c.answerJSON(fasthttp.StatusOK, x)
}

// explainMQTT is explain of ?mqttName.
func (c *call) explainMQTT() error {
	if c.ctx.QueryArgs().Has("event") {
		return invalidf("?event", "does not go with mqttName: want one of them")
	}
	sub := strings.Clone(c.params[0])
	if !c.principal.Everything() && !c.s.o.Backend.Has(access.Subscription, sub) {
		return access.NotFound(access.Subscription, sub)
	}
	p := c.principal
	shown := func(topic string) bool {
		return p.Check(access.Read, access.Topic, topic) == nil || p.Check(access.Publish, access.Topic, topic) == nil
	}
	x, err := c.s.o.Backend.ExplainMQTT(c.s.work, sub, strings.Clone(c.query("mqttName")), []byte(c.query("data")), shown,
		func(topic string) error { return c.may(access.Publish, access.Topic, topic) })
	if err != nil {
		return err
	}
	return c.answerJSON(fasthttp.StatusOK, x)
}

// trace is GET /v1/topics/{topic}/events/{position}/trace.
func (c *call) trace() error {
	pos, err := event.ParsePosition(c.params[1])
	if err != nil {
		return event.Invalid("path", err.Error())
	}
	var sees func(string) bool
	if p := c.principal; !p.Everything() {
		sees = func(name string) bool { return p.Check(access.Read, access.Subscription, name) == nil }
	}
	x, err := c.s.o.Backend.EventTrace(c.s.work, strings.Clone(c.params[0]), pos, sees)
	if err != nil {
		return err
	}
	return c.answerJSON(fasthttp.StatusOK, x)
}
