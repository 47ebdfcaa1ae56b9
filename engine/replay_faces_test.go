package engine

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A replay with a version runs that one, after a restart as well, and what the function makes is marked.
func TestReplayWithAVersion(t *testing.T) {
	w, host, d := versionWorld(t, Options{}, versionGuest(t, version("a")...), versionGuest(t, version("b")...))
	sink := newMarks()
	var bodies sync.Map
	sink.answer = func(x event.Delivery) error {
		a, _ := x.Event.Extension(event.ReplayAttribute)
		bodies.Store(strings.Clone(a.Value), string(x.Event.Data()))
		return nil
	}
	w.apply(through(d[0], 1, sink, nil))
	w.publish("orders", "x=1")
	eventually(t, "delivered", func() bool { return w.settled("s") && len(sink.of("")) == 1 })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	r := w.replay("s", event.Replay{From: earliest, Function: "f0@" + d[1][:15]})
	if r.Function != "f0@"+d[1] {
		t.Errorf("%+v", r)
	}
	w.restart()
	if _, err := w.e.CollectModules(t.Context(), time.Now().Add(time.Hour)); err != nil || !host.Has(d[1]) {
		t.Errorf("the version was collected: %v", err)
	}
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is done", w.replayIs("s", event.ReplayDone))
	for mark, want := range map[string]string{"": `"version":"a"`, r.ID: `"version":"b"`} {
		if body, _ := bodies.Load(mark); !strings.Contains(fmt.Sprint(body), want) {
			t.Errorf("with the mark %q: %v, want %s", mark, body, want)
		}
	}
	if id := sink.deliveryIDs()[1]; !strings.HasSuffix(id, ":0:"+r.ID) {
		t.Errorf("webhook-id %s", id)
	}
}

// Functions that keep state would see the events twice: refused, and ended where they come into force meanwhile.
func TestReplayAndState(t *testing.T) {
	w, digests := stateWorld(t)
	sink := &outputs{}
	plain := push("s", "orders", "", sink)
	stateful := keeping(through(digests[0], 1, sink, nil))
	w.apply(specOf(plain))
	w.publish("orders", "a=an=1")
	eventually(t, "delivered", func() bool { return w.settled("s") })
	if err := w.e.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	w.replay("s", everything)
	w.apply(stateful)
	if err := w.e.Resume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has failed", w.replayIs("s", event.ReplayFailed))
	if got := w.replayed("s"); !strings.Contains(got.Reason, "functions that keep state") {
		t.Errorf("%+v", got)
	}
	if _, err := w.e.Replay(t.Context(), "s", everything); !errors.Is(err, event.ErrConflict) {
		t.Errorf("%v", err)
	}
}

// A pulled event has the mark and the id as well; what goes into a topic has the mark. A removed subscription takes its
// replay with it.
func TestReplayOnOtherFaces(t *testing.T) {
	w := newWorld(t, Options{})
	pulled, copied := push("p", "orders", "", nil), push("c", "orders", "", nil)
	pulled.OpenSink, pulled.Deliver = nil, event.Deliver{Face: event.Pull}
	copied.OpenSink, copied.Deliver = nil, event.Deliver{Face: event.ToTopic, Topic: "copies"}
	w.apply(specOf(pulled, copied))
	w.publish("orders", "a", "b")
	w.ack("p", w.pull("p", 2))
	eventually(t, "both are copied", func() bool { return len(w.ids("copies")) == 2 })
	p, c := w.replay("p", everything), w.replay("c", everything)
	var got []event.Lease
	eventually(t, "two leases", func() bool { got = append(got, w.pull("p", 2)...); return len(got) == 2 })
	for _, l := range got {
		if a, _ := l.Event.Extension(event.ReplayAttribute); a.Value != p.ID || !strings.HasSuffix(l.Delivery, ":0:"+p.ID) {
			t.Errorf("%s with the mark %q", l.Delivery, a.Value)
		}
	}
	if lost := w.ack("p", got); len(lost) != 0 {
		t.Errorf("lost %v", lost)
	}
	eventually(t, "both are done", func() bool { return w.replayIs("p", event.ReplayDone)() && w.replayIs("c", event.ReplayDone)() })
	marked := 0
	for _, rec := range w.records("copies") {
		if a, _ := rec.Extension(event.ReplayAttribute); a.Value == c.ID {
			marked++
		}
	}
	if n := len(w.ids("copies")); n != 4 || marked != 2 {
		t.Errorf("%d copies, %d marked", n, marked)
	}
	w.apply(specOf(pulled))
	eventually(t, "one row is left", func() bool { return w.rows(tableReplays) == 1 })
}
