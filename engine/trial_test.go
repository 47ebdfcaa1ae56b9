package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// A trial of the events that a router delivered says what was delivered, what went into which topic, and what
// was given up, and for which reason; and it leaves nothing behind.
func TestTrialAgreesWithDelivery(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &outputs{}
	spec := through(digest, 2, sink, func(s *SubscriptionSpec) { s.Retry.Attempts = 1 })
	spec.Topics = append(spec.Topics, event.Topic{Name: "audit"})
	w.apply(spec)
	scripts := []string{"plain=p", "two=ep;ipick=p", "dropped=d", "side=ep;oaudit", "nowhere=onone", "refused=x42", "trapped=t", "again=r5", "deep=ei7=p"}
	w.publish("orders", scripts...)
	eventually(t, "all settled", func() bool { return w.settled("s") && len(sink.sorted()) == 5 })

	secret, err := SecretOf(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	for _, alone := range []bool{false, true} {
		trial, err := OpenTrial(t.Context(), TrialOptions{Host: w.o.Host, Secret: secret, Subscription: spec.Subscriptions[0].Subscription,
			Functions: spec.Functions, Topics: spec.Topics, Verdicts: alone})
		if err != nil {
			t.Fatal(err)
		}
		calls := w.e.plan.Load().functions["f0"].code.Stats().Calls
		got, err := trial.Run(t.Context(), w.records("orders"))
		if err != nil {
			t.Fatal(err)
		}
		var sent, audit, dead []string
		for i, r := range got {
			id, _, _ := strings.Cut(scripts[i], "=")
			for _, rec := range r.Deliver {
				sent = append(sent, rec.Attr(event.TagID)+"="+string(rec.Data()))
			}
			for _, o := range r.Outputs {
				audit = append(audit, o.Topic+"/"+o.Event.Attr(event.TagID))
			}
			if f := r.Failure; f != nil {
				dead = append(dead, fmt.Sprintf("%s: %s %d by %s final %t", id, f.Reason, f.Code, f.Function, f.Final))
				if f.Digest != digest || f.Error == "" || len(r.Deliver)+len(r.Outputs) > 0 {
					t.Errorf("%s: %+v", id, r)
				}
			}
			if alone && (len(r.Verdicts) == 0 || r.Fuel == 0) {
				t.Errorf("%s: %d verdicts, fuel %d", id, len(r.Verdicts), r.Fuel)
			}
		}
		slices.Sort(sent)
		if want := sink.sorted(); !slices.Equal(sent, want) {
			t.Errorf("tried %q, delivered %q", sent, want)
		}
		if want := []string{"audit/side~s~1"}; !slices.Equal(audit, want) || !slices.Equal(w.ids("audit"), []string{"side~s~1"}) {
			t.Errorf("tried %q, the topic holds %q", audit, w.ids("audit"))
		}
		if want := []string{"nowhere: output 0 by f0 final false", "refused: reject 42 by f0 final true", "trapped: trap 0 by f0 final false", "again: attempts 0 by f0 final false"}; !slices.Equal(dead, want) {
			t.Errorf("failures %q, want %q", dead, want)
		}
		if alone {
			v := got[1].Verdicts
			if len(v) != 4 || v[0].Function != "f0" || v[0].Verdict != "emit" || string(v[1].Event.Data()) != "p" || v[3].Function != "f1" || v[3].Verdict != "pass" {
				t.Errorf("verdicts of two: %+v", v)
			}
			if v := got[6].Verdicts; len(v) != 1 || v[0].Verdict != "failed" || !strings.HasPrefix(v[0].Reason, "trap: ") {
				t.Errorf("verdicts of trapped: %+v", v)
			}
		}
		if why := trial.Unrepeatable(); why != "" {
			t.Errorf("unrepeatable: %s", why)
		}
		if n := w.e.plan.Load().functions["f0"].code.Stats().Calls; n != calls {
			t.Errorf("the deliveries' function was called %d times", n-calls)
		}
		if err := trial.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := len(w.ids("s.dead")); n != 4 {
		t.Errorf("%d dead letters, want the 4 of the deliveries", n)
	}
}

// Where a subscription delivers to a topic, a trial finds what keeps an event out of it.
func TestTrialChecksTheTopicDeliveredTo(t *testing.T) {
	recs := func(data string) []event.Record {
		ev := event.Event{ID: "1", Source: "/x", Type: "t", Data: []byte(data)}
		return []event.Record{ev.AppendRecord(nil)}
	}
	o := TrialOptions{
		Subscription: event.Subscription{Name: "s", Topic: "in", Deliver: event.Deliver{Face: event.ToTopic, Topic: "out"}},
		Topics:       []event.Topic{{Name: "out", Schema: []byte(`{"type":"object","required":["total"]}`)}},
	}
	for _, c := range []struct{ topic, data, want string }{
		{"out", `{"total":1}`, ""},
		{"out", `{"totl":1}`, "missing property 'total'"},
		{"oot", `{"total":1}`, `did you mean "out"`},
	} {
		o.Subscription.Deliver.Topic = c.topic
		trial, err := OpenTrial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		got, err := trial.Run(t.Context(), recs(c.data))
		if err != nil {
			t.Fatal(err)
		}
		f := got[0].Failure
		if (f == nil) != (c.want == "") || f != nil && !strings.Contains(f.Error, c.want) {
			t.Errorf("%s to %s: %+v", c.data, c.topic, f)
		}
	}
}

func TestTrialOfWhatIsNotThere(t *testing.T) {
	o := TrialOptions{Subscription: event.Subscription{Name: "s", Topic: "in", Functions: []string{"redcat"}}, Functions: []event.Function{{Name: "redact"}}}
	if _, err := OpenTrial(t.Context(), o); !errors.Is(err, event.ErrNotFound) || !strings.Contains(err.Error(), `did you mean "redact"`) {
		t.Errorf("a function that is not defined: %v", err)
	}
	o.Subscription.Functions[0] = "redact"
	trial, err := OpenTrial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ev := event.Event{ID: "1", Source: "/x", Type: "t"}
	if _, err := trial.Run(t.Context(), []event.Record{ev.AppendRecord(nil)}); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("a function that was not pushed: %v", err)
	}
}
