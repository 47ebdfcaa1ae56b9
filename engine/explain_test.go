package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// previewed is a sink whose requests can be previewed.
type previewed struct{ outputs }

func (s *previewed) Preview(d event.Delivery) (event.Request, error) {
	return event.Request{Method: "POST", URL: "http://there/(hidden)", Headers: []event.Header{{Name: "webhook-id", Value: d.ID}, {Name: "Token", Value: "(hidden)", Hidden: true}}}.With(d.Event.Data()), nil
}

func (w *world) explain(name, topic string, pos event.Position) *event.Explained {
	w.t.Helper()
	x, err := w.e.Explain(w.t.Context(), name, topic, pos)
	if err != nil {
		w.t.Fatal(err)
	}
	return x
}

// Wherever an event is at a subscription, explain says so.
func TestExplainWhereAnEventIs(t *testing.T) {
	w := newWorld(t, Options{})
	var fail atomic.Bool
	hold := make(chan struct{})
	sink := &previewed{}
	sink.answer = func(d event.Delivery) error {
		if d.Event.Attr(event.TagID) == "slow" {
			<-hold
		}
		if fail.Load() {
			return &event.RetryAfter{Err: errors.New("down for now"), Code: 503, Wait: time.Hour}
		}
		return nil
	}
	defer func() {
		select {
		case <-hold:
		default:
			close(hold)
		}
	}()
	before := specOf(push("other", "elsewhere", "", &recorder{}))
	before.Topics = append(before.Topics, event.Topic{Name: "orders"})
	w.apply(before)
	early := w.publish("orders", `early={"total":500,"country":"DE"}`)
	s := push("s", "orders", `data.total > 100 && data.country != "XX"`, sink)
	s.Start = event.Start{At: event.Latest}
	s.Source = json.RawMessage(`{"deliver":{"webhook":{"url":"http://there/${env:HOOK}","headers":{"token":"${env:TOKEN}"}}}}`)
	w.apply(specOf(s, push("other", "elsewhere", "", &recorder{})))
	state := func(pos event.Position) string { return w.explain("s", "orders", pos).State }

	at := w.publish("orders", `ok={"total":200,"country":"DE"}`, `low={"total":50}`, `slow={"total":300,"country":"DE"}`)
	eventually(t, "the first is delivered", func() bool { return state(at[0]) == event.StateDelivered })
	x := w.explain("s", "orders", at[0])
	if !x.Matched || len(x.Tries) != 1 || x.TriesFrom != "trace" || len(x.Requests) != 1 {
		t.Fatalf("delivered: %+v", x)
	}
	r := x.Requests[0]
	ids := sink.deliveryIDs()
	if r.URL != "http://there/${env:HOOK}" || r.Headers[1].Value != "${env:TOKEN}" || r.Headers[0].Value != ids[0] || r.Body != `{"total":200,"country":"DE"}` {
		t.Errorf("request %+v, delivery ids %q", r, ids)
	}
	x = w.explain("s", "orders", at[1])
	if x.Matched || x.State != event.StateUnmatched || x.Why != "no match: data.total > 100 is false (data.total is 50)" || !slices.Equal(x.Missing, []string{"data.country"}) {
		t.Errorf("not matched: %+v", x)
	}
	if n := slices.IndexFunc(x.Conditions, func(c event.Condition) bool { return c.Decided }); n < 0 || x.Conditions[n].Expression != "data.total > 100" {
		t.Errorf("conditions %+v", x.Conditions)
	}
	if got := state(at[2]); got != event.StateInHand {
		t.Errorf("being sent: %s", got)
	}
	if got := state(early[0]); got != event.StateBefore {
		t.Errorf("before the subscription: %s", got)
	}
	if x := w.explain("other", "orders", at[0]); x.State != event.StateOther || !strings.Contains(x.Detail, `reads topic "elsewhere"`) {
		t.Errorf("another topic: %+v", x)
	}

	fail.Store(true)
	close(hold)
	eventually(t, "the slow one is parked", func() bool { return state(at[2]) == event.StateParked })
	x = w.explain("s", "orders", at[2])
	if x.Due == nil || time.Until(*x.Due) < 50*time.Minute || x.Attempts != 1 || len(x.Tries) != 1 || x.Tries[0].Code != 503 || x.Tries[0].Error != "down for now" {
		t.Errorf("parked: %+v", x)
	}
	if err := w.e.PauseFor(t.Context(), "s", "holidays"); err != nil {
		t.Fatal(err)
	}
	unread := w.publish("orders", `next={"total":200,"country":"DE"}`)
	if x := w.explain("s", "orders", unread[0]); !slices.Contains([]string{event.StateUnread, event.StateInHand}, x.State) || len(x.Notes) != 1 || !strings.Contains(x.Notes[0], "holidays") {
		t.Errorf("paused: %+v", x)
	}

	trace, err := w.e.EventTrace(t.Context(), "orders", at[2], nil)
	if err != nil || trace.Matched != 1 || trace.NotMatched != 0 || trace.Subscriptions[0].State != event.StateParked {
		t.Errorf("trace %+v, %v", trace, err)
	}
	for _, c := range []struct {
		sub, topic string
		pos        event.Position
		is         error
	}{{"x", "orders", at[0], event.ErrNotFound}, {"s", "x", at[0], event.ErrNotFound}, {"s", "orders", event.Position{Offset: 99}, event.ErrNotFound}} {
		if _, err := w.e.Explain(t.Context(), c.sub, c.topic, c.pos); !errors.Is(err, c.is) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A dead letter is found with the trace and without, and what became of it is told.
func TestExplainDeadLetter(t *testing.T) {
	for _, traced := range []bool{true, false} {
		w := newWorld(t, Options{})
		sink := &recorder{answer: func(event.Delivery) error { return event.Permanent(422, errors.New("no such tenant")) }}
		spec := specOf(push("s", "orders", "", sink))
		if !traced {
			for i := range spec.Topics {
				spec.Topics[i].Trace.Keep = event.NoTrace
			}
		}
		w.apply(spec)
		at := w.publish("orders", "a")
		eventually(t, "dead-lettered", func() bool { return len(w.ids("s.dead")) == 1 && w.settled("s") })
		x := w.explain("s", "orders", at[0])
		if x.State != event.StateDead || x.DeadLetter != "s.dead/0-0" || len(x.Tries) != 1 || x.Tries[0].Code != 422 || x.Tries[0].Reason != "permanent" {
			t.Errorf("traced %t: %+v", traced, x)
		}
		if _, err := w.e.Purge(t.Context(), "s", event.Purge{All: true}); err != nil {
			t.Fatal(err)
		}
		if x := w.explain("s", "orders", at[0]); !strings.Contains(x.Detail, "redriven or purged") {
			t.Errorf("after the purge: %s", x.Detail)
		}
	}
}

// The functions run once more, in the version that ran then; what they change is told path by path.
func TestExplainFunctions(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &previewed{}
	w.apply(through(digest, 1, sink, nil))
	at := w.publish("orders", "a=ep", "b=d", "c=x42", "d=eone;oaudit")
	eventually(t, "settled", func() bool { return w.settled("s") })
	calls := func() uint64 { return w.e.plan.Load().functions["f0"].code.Stats().Calls }
	was := calls()
	x := w.explain("s", "orders", at[0])
	f := x.Functions
	if f == nil || !f.Recomputed || f.Version != "the versions that ran, which are in force" || f.Fuel == 0 || len(f.Steps) != 1 || f.Steps[0].Verdict != "emit" {
		t.Fatalf("functions %+v", f)
	}
	var paths []string
	for _, c := range f.Steps[0].Changes {
		paths = append(paths, fmt.Sprintf("%s: %s -> %s", c.Path, c.Was, c.Is))
	}
	if want := []string{`data_base64: "ZXA=" -> "cA=="`, `id: "a" -> "a~s~0"`}; !slices.Equal(paths, want) {
		t.Errorf("changes %q, want %q", paths, want)
	}
	if len(x.Requests) != 1 || x.Requests[0].Body != "p" || x.Requests[0].Headers[0].Value != sink.deliveryIDs()[0] {
		t.Errorf("requests %+v", x.Requests)
	}
	if x := w.explain("s", "orders", at[1]); x.State != event.StateFiltered || x.Functions.Steps[0].Verdict != "drop" || len(x.Requests) != 0 {
		t.Errorf("dropped: %+v", x)
	}
	if x := w.explain("s", "orders", at[2]); x.State != event.StateDead || x.Functions.Steps[0].Detail != "42: refused here" || !strings.HasPrefix(x.Functions.Failure, "reject: ") {
		t.Errorf("rejected: %+v %+v", x, x.Functions)
	}
	if calls() != was {
		t.Errorf("the deliveries' function was called %d times", calls()-was)
	}
}

// A dry run says what would happen, without an engine.
func TestExplainDry(t *testing.T) {
	ev := event.Event{ID: "1", Source: "/x", Type: "t", Data: []byte(`{"total":5}`)}
	rec := event.Record(ev.AppendRecord(nil))
	opened := 0
	spec := push("s", "orders", "data.total > 1", nil)
	spec.OpenSink = func(context.Context) (Sink, error) { opened++; return &previewed{}, nil }
	x, err := ExplainDry(t.Context(), TrialOptions{}, spec, "orders", rec)
	if err != nil || x.State != event.StateDry || !x.Matched || len(x.Requests) != 1 || x.Requests[0].Body != `{"total":5}` || opened != 1 {
		t.Errorf("%+v, %v", x, err)
	}
	if x, _ := ExplainDry(t.Context(), TrialOptions{}, spec, "ordres", rec); x.State != event.StateOther || !strings.Contains(x.Detail, `"orders"`) {
		t.Errorf("another topic: %+v", x)
	}
	spec = push("s", "orders", "data.total > 9", nil)
	if x, _ := ExplainDry(t.Context(), TrialOptions{}, spec, "orders", rec); x.Matched || x.Requests != nil {
		t.Errorf("not matched: %+v", x)
	}
}

// Of a subscription whose functions keep state another run is not shown; what it put out is followed to where
// it was delivered.
func TestExplainWhatKeepsState(t *testing.T) {
	w, digests := stateWorld(t)
	sink := &previewed{}
	w.apply(keeping(through(digests[0], 1, sink, nil)))
	at := w.publish("orders", "a=an=1", "b=an=1")
	eventually(t, "all settled", func() bool { return w.rest("s") })
	x := w.explain("s", "orders", at[1])
	if x.State != event.StateDelivered || x.Functions == nil || x.Functions.Unrepeatable != "function f0: it keeps state" || len(x.Functions.Steps) != 1 || x.Functions.Steps[0].Output != nil {
		t.Errorf("%+v %+v", x, x.Functions)
	}
	if len(x.Outputs) != 1 || x.Outputs[0].Topic != "s.out" || x.Outputs[0].Position != "0-1" || x.Outputs[0].State != event.StateDelivered || !strings.Contains(string(x.Outputs[0].Event), `"id":"b~s~0"`) {
		t.Errorf("outputs %+v", x.Outputs)
	}
	if len(x.Requests) != 1 || x.Requests[0].Body != "2" || !slices.Contains(sink.deliveryIDs(), x.Requests[0].Headers[0].Value) {
		t.Errorf("requests %+v, sent %q", x.Requests, sink.deliveryIDs())
	}
	if x := w.explain("s", "s.out", event.Position{Offset: 1}); x.State != event.StateDelivered || x.Functions != nil || len(x.Requests) != 1 {
		t.Errorf("from between the halves: %+v", x)
	}
}

// An event that the ring has dropped cannot be explained any more.
func TestExplainWhatIsGone(t *testing.T) {
	w := newWorld(t, Options{})
	spec := specOf(push("s", "orders", "", &recorder{}))
	spec.Topics[0].Retain = event.Retain{Bytes: 1 << 20, Events: 1}
	w.apply(spec)
	at := w.publish("orders", "a")
	gone := func() bool {
		w.publish("orders", number("e", 500)...)
		_, err := w.e.Explain(t.Context(), "s", "orders", at[0])
		_, also := w.e.EventTrace(t.Context(), "orders", at[0], nil)
		return errors.Is(err, event.ErrGone) && errors.Is(also, event.ErrGone)
	}
	eventually(t, "the ring turns over", gone)
}

// One event at 10,000 subscriptions that all match it.
func BenchmarkEventTraceOfMany(b *testing.B) {
	w := newWorld(b, Options{})
	var subs []SubscriptionSpec
	for i := range 10_000 {
		s := push(fmt.Sprint("s", i), "orders", fmt.Sprintf("data.n >= %d", i%3), quiet{})
		s.DeadLetter = "dead"
		subs = append(subs, s)
	}
	w.apply(specOf(subs...))
	at := w.publish("orders", `a={"n":5}`)
	eventually(b, "delivered", func() bool {
		x, err := w.e.EventTrace(b.Context(), "orders", at[0], nil)
		return err == nil && x.Matched == 10_000 && x.Subscriptions[999].State == event.StateDelivered
	})
	for b.Loop() {
		if _, err := w.e.EventTrace(b.Context(), "orders", at[0], nil); err != nil {
			b.Fatal(err)
		}
	}
}
