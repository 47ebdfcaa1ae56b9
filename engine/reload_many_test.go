package engine

import (
	"context"
	"fmt"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// A plan that changes one subscription of many touches that one alone: the sinks of the others stay open, and the
// readers of topics that none of it concerns keep their lists.
func TestAPlanLeavesWhatItDoesNotChange(t *testing.T) {
	w := newWorld(t, Options{})
	opened := map[string]int{}
	sinks := map[string]*recorder{}
	plan := func(changed string) Spec {
		var subs []SubscriptionSpec
		for i := range 40 {
			name := fmt.Sprint("s", i)
			sink := sinks[name]
			if sink == nil {
				sink = &recorder{}
				sinks[name] = sink
			}
			s := push(name, fmt.Sprint("t", i%4), "", sink)
			s.Fingerprint = name
			if name == changed {
				s.Fingerprint += " changed"
			}
			s.OpenSink = func(context.Context) (Sink, error) { opened[name]++; return sink, nil }
			subs = append(subs, s)
		}
		return specOf(subs...)
	}
	w.apply(plan(""))
	before := map[string]*feeds{}
	for name, topic := range w.e.plan.Load().topics {
		before[name] = topic.parts[0].feeds.Load()
	}
	w.apply(plan("s6"))
	for name, n := range opened {
		if want := map[bool]int{true: 2, false: 1}[name == "s6"]; n != want {
			t.Errorf("the sink of %s was opened %d times, want %d", name, n, want)
		}
	}
	for name, topic := range w.e.plan.Load().topics {
		if same := topic.parts[0].feeds.Load() == before[name]; same != (name != "t2") {
			t.Errorf("topic %s keeps its list: %v", name, same)
		}
	}
	for i := range 4 {
		w.publish(fmt.Sprint("t", i), "a", "b")
	}
	for name, sink := range sinks {
		eventually(t, name+" has both", func() bool { return len(sink.ids()) == 2 })
	}
	spec := plan("s6")
	spec.Subscriptions = spec.Subscriptions[:39]
	spec.Hosts = []event.Host{{Name: "example.com", Concurrency: 1}}
	w.apply(spec)
	w.publish("t3", "c")
	eventually(t, "the others of its topic have it", func() bool { return len(sinks["s35"].ids()) == 3 })
	if n := len(sinks["s39"].ids()); n != 2 {
		t.Errorf("one that is gone has %d events, want 2", n)
	}
}
