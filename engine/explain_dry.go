package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/millrace/millrace/engine/event"
)

// A Previewer is a sink that can show the request that it sends for a delivery. Signatures are hidden, and
// what the configuration may hold secrets in has Hidden set.
type Previewer interface {
	Preview(d event.Delivery) (event.Request, error)
}

// ExplainDry says what a subscription that need not exist would make of an event: no router is asked, nothing
// is sent. o's Subscription is replaced by that of spec. An error means that the subscription cannot be
// opened; what goes wrong with the functions is in the answer.
func ExplainDry(ctx context.Context, o TrialOptions, spec SubscriptionSpec, topic string, rec event.Record) (*event.Explained, error) {
	c := &subConfig{SubscriptionSpec: spec}
	x := explaining(c, rec)
	x.Topic, x.State, x.Detail = topic, event.StateDry, "nothing was sent: this is a dry run"
	if topic != spec.Topic {
		x.State, x.Detail = event.StateOther, fmt.Sprintf("the subscription reads topic %q; this event is for %q. What follows is what would happen to it there", spec.Topic, topic)
	}
	if !x.Matched {
		return x, nil
	}
	if spec.OpenSink != nil {
		sink, err := spec.OpenSink(ctx)
		if err != nil {
			return nil, event.At("deliver", err)
		}
		defer func() { _ = sink.Close() }()
		c.sink, c.limits = sink, limitsOf(sink)
	}
	out := []event.Record{rec}
	if len(spec.Functions) > 0 {
		o.Subscription = spec.Subscription
		out = explainChain(ctx, o, "the versions that the rules name", x, rec)
	}
	for n, r := range out {
		id := fmt.Sprintf("%s:%s@1:%s:%d", spec.Name, spec.Topic, rec.Position(), n)
		show(x, c, event.Delivery{ID: id, Subscription: spec.Name, Topic: spec.Topic, Event: r, Attempt: 1})
	}
	return x, nil
}

// CheckData says where data breaks the schema of a topic that need not be there: event.ErrSchema, or ErrInvalid where the
// schema itself is wrong.
func CheckData(t event.Topic, data []byte) error {
	schema, err := compileSchema(t)
	if err != nil {
		return err
	}
	return (&topicDef{t, schema}).checkSchema(data)
}

// explainChain runs functions over an event and fills in what each makes of it. It returns what they would
// deliver.
func explainChain(ctx context.Context, o TrialOptions, version string, x *event.Explained, rec event.Record) []event.Record {
	chain := &event.ExplainedChain{Recomputed: true, Version: version}
	x.Functions = chain
	o.Verdicts = true
	t, err := OpenTrial(ctx, o)
	if err != nil {
		chain.Error = printable(err.Error())
		return nil
	}
	defer func() { _ = t.Close(context.WithoutCancel(ctx)) }()
	results, err := t.Run(ctx, []event.Record{rec})
	if err != nil {
		chain.Error = printable(err.Error())
		return nil
	}
	r := &results[0]
	chain.Fuel, chain.Logs, chain.Unrepeatable = r.Fuel, r.Logs, t.Unrepeatable()
	if f := r.Failure; f != nil {
		chain.Failure = f.Reason + ": " + f.Error
	}
	for _, v := range r.Verdicts {
		step := event.ExplainedStep{Function: v.Function, Digest: v.Digest, Verdict: v.Verdict, Detail: verdictDetail(&v)}
		if chain.Unrepeatable == "" {
			step.Input = v.In.AppendStructured(nil)
			if v.Event != nil {
				step.Output = v.Event.AppendStructured(nil)
				step.Changes = differAll(step.Input, step.Output)
			}
		}
		chain.Steps = append(chain.Steps, step)
	}
	if chain.Unrepeatable != "" {
		chain.Failure = ""
		return nil // what another run says is not what was, or will be, said
	}
	for _, out := range r.Outputs {
		x.Outputs = append(x.Outputs, event.Placed{Topic: out.Topic, Event: out.Event.AppendStructured(nil)})
	}
	return r.Deliver
}

func verdictDetail(v *TrialVerdict) string {
	switch {
	case v.Topic != "":
		return "to topic " + v.Topic
	case v.Delay > 0:
		return fmt.Sprintf("again in %d ms", v.Delay)
	case v.Code != 0 && v.Reason != "":
		return fmt.Sprintf("%d: %s", v.Code, v.Reason)
	case v.Code != 0:
		return fmt.Sprint(v.Code)
	}
	return v.Reason
}

// show adds what is, or would be, sent for a delivery.
func show(x *event.Explained, c *subConfig, d event.Delivery) {
	switch c.Deliver.Face {
	case event.ToTopic, event.Stream:
		x.Outputs = append(x.Outputs, event.Placed{Topic: c.Deliver.Topic, Event: d.Event.AppendStructured(nil)})
		return
	case event.Pull:
		x.Requests = append(x.Requests, event.Request{Method: "PULL", Headers: []event.Header{{Name: "delivery", Value: d.ID}}, Note: "a consumer pulls it"}.With(d.Event.AppendStructured(nil)))
		return
	}
	sink, ok := c.sink.(Previewer)
	if !ok {
		return
	}
	r, err := sink.Preview(d)
	if err != nil {
		r = event.Request{Note: "it cannot be written as a request: " + printable(err.Error())}
	}
	c.reveal(&r)
	if c.limits.several() {
		r.Note = "alone; a batch may carry others with it, and then has another webhook-id"
	}
	x.Requests = append(x.Requests, r)
}

// reveal fills in URL and headers as the definition has them, where secrets are references: what the sink was
// opened with may hold them.
func (c *subConfig) reveal(r *event.Request) {
	var source struct {
		Deliver map[string]struct {
			URL     string            `json:"url"`
			Headers map[string]string `json:"headers"`
		} `json:"deliver"`
	}
	if json.Unmarshal(c.shown().Source, &source) != nil {
		return
	}
	for _, d := range source.Deliver {
		if d.URL != "" {
			r.URL = d.URL
		}
		for i := range r.Headers {
			for name, value := range d.Headers {
				if h := &r.Headers[i]; h.Hidden && bytes.EqualFold([]byte(h.Name), []byte(name)) {
					h.Value = value
				}
			}
		}
	}
}

// changesShown bounds the list of what a function changed.
const changesShown = 100

// differAll lists the differences of two JSON documents.
func differAll(was, is json.RawMessage) []event.Change {
	a, aOK := decodeJSON(was)
	b, bOK := decodeJSON(is)
	if !aOK || !bOK {
		return nil
	}
	var changes []event.Change
	differences("", a, b, func(path string, was, is json.RawMessage) bool {
		changes = append(changes, event.Change{Path: path, Was: was, Is: is})
		return len(changes) < changesShown
	})
	return changes
}
