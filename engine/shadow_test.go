package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// shadowed is through with shadows of f0.
func shadowed(digest string, sink Sink, shadows ...string) Spec {
	return through(digest, 1, sink, func(s *SubscriptionSpec) {
		for _, d := range shadows {
			s.Shadow = append(s.Shadow, "f0@"+d)
		}
		s.Fingerprint = fmt.Sprint(s.Shadow)
	})
}

func (w *world) shadow(i int) ShadowInfo {
	w.t.Helper()
	infos, err := w.e.Shadows("s")
	if err != nil || len(infos) <= i {
		w.t.Fatalf("%d shadows, %v", len(infos), err)
	}
	return infos[i]
}

// feedShadow publishes batches until the shadow has looked at n events.
func (w *world) feedShadow(n uint64, data string) ShadowInfo {
	w.t.Helper()
	eventually(w.t, "the shadow has started", func() bool { return w.shadow(0).State != "starting" })
	for round := 0; ; round++ {
		before := w.shadow(0)
		if before.Runs >= n {
			return before
		}
		ids := number(fmt.Sprintf("e%d-", round), 500)
		for i := range ids {
			ids[i] += "=" + data
		}
		w.publish("orders", ids...)
		eventually(w.t, "the shadow has looked at a round", func() bool {
			now := w.shadow(0)
			return now.Runs+now.Skipped >= before.Runs+before.Skipped+500
		})
	}
}

// A version that does the same, if not of the same bytes, never differs.
func TestShadowOfTheSame(t *testing.T) {
	a := versionGuest(t, version("a")...)
	w, _, d := versionWorld(t, Options{}, a, append(a[:len(a):len(a)], 0, 2, 1, 'x'))
	sink := &outputs{}
	w.apply(shadowed(d[0], sink, d[1][:len("sha256:")+12]))
	got := w.feedShadow(10_000, `{"email":"a@b.c"}`)
	if got.Equal != got.Runs || got.Different+got.JSONEqual+got.Failed != 0 || len(got.Examples) != 0 {
		t.Errorf("%+v", got)
	}
	if got.Digest != d[1] || got.Against != d[0] || got.State != "running" {
		t.Errorf("%+v", got)
	}
	eventually(t, "all settled", func() bool { return w.settled("s") })
	if n := uint64(len(sink.sorted())); n != got.Runs+got.Skipped || w.info("s").Failed != 0 {
		t.Errorf("%d deliveries of %d events", n, got.Runs+got.Skipped)
	}
}

// One that says something else is shown with the path of the first difference; spelling is told apart; what
// it says is delivered nowhere.
func TestShadowOfAnother(t *testing.T) {
	w, _, d := versionWorld(t, Options{}, versionGuest(t, version("a")...), versionGuest(t, version("b")...), versionGuest(t, version("a", `SPACE=" "`)...))
	sink := &outputs{}
	w.apply(shadowed(d[0], sink, d[1], d[2]))
	eventually(t, "both have started", func() bool { return w.shadow(0).State == "running" && w.shadow(1).State == "running" })
	for i := range 30 {
		w.publish("orders", fmt.Sprintf("e%02d=%d", i, i))
		eventually(t, "it is looked at", func() bool { return w.shadow(0).Runs > uint64(i) && w.shadow(1).Runs > uint64(i) })
	}
	b, space := w.shadow(0), w.shadow(1)
	if b.Runs != 30 || b.Different != 30 || len(b.Examples) != 20 {
		t.Fatalf("%+v", b)
	}
	if x := b.Examples[0]; x.Path != "data.by.version" || x.Old != `"a"` || x.New != `"b"` || x.Position != "0-29" {
		t.Errorf("the newest example is %+v", x)
	}
	if space.JSONEqual != 30 || space.Different != 0 || len(space.Examples) != 0 {
		t.Errorf("%+v", space)
	}
	for _, s := range sink.sorted() {
		if strings.Contains(s, `"b"`) || strings.Contains(s, `": `) {
			t.Errorf("a shadow's output was delivered: %s", s)
		}
	}
	// A definition that changes elsewhere keeps the comparison; without the key it is gone.
	next := shadowed(d[0], sink, d[1])
	next.Subscriptions[0].Concurrency = 3
	w.apply(next)
	if got := w.shadow(0); got.Runs != 30 {
		t.Errorf("a change elsewhere began anew: %+v", got)
	}
	w.apply(shadowed(d[0], sink))
	if infos, err := w.e.Shadows("s"); err != nil || len(infos) != 0 {
		t.Errorf("%+v, %v", infos, err)
	}
	if n := w.e.plan.Load().subs["s"].config.Load(); len(n.shadows) != 0 {
		t.Error("the shadow is still there")
	}
}

// One that traps, and one that does not start, cost no delivery.
func TestShadowThatFails(t *testing.T) {
	w, _, d := versionWorld(t, Options{}, versionGuest(t, version("a")...), versionGuest(t, version("b", "TRAP=1")...), versionGuest(t, version("c", "BROKEN=1")...))
	sink := &outputs{}
	w.apply(shadowed(d[0], sink, d[1], d[2]))
	eventually(t, "both have tried to start", func() bool { return w.shadow(0).State == "running" && w.shadow(1).State == "broken" })
	ids := number("e", 40)
	for i := range ids {
		ids[i] += "=1"
	}
	w.publish("orders", ids...)
	eventually(t, "all are looked at", func() bool { return w.shadow(0).Runs+w.shadow(0).Skipped == 40 && w.shadow(1).Skipped == 40 })
	eventually(t, "all settled", func() bool { return w.settled("s") })
	if i := w.info("s"); i.Failed != 0 || i.DeadLettered != 0 || len(sink.sorted()) != 40 {
		t.Errorf("%d delivered, %d failed", len(sink.sorted()), i.Failed)
	}
	got := w.shadow(0)
	if got.Failed != got.Runs || got.Runs == 0 || !strings.HasPrefix(got.Examples[0].New, "trap: ") || got.Examples[0].Old != "emit" {
		t.Errorf("%+v", got)
	}
	if c := w.shadow(1); !strings.Contains(c.Reason, "unreachable") {
		t.Errorf("%+v", c)
	}
}

// One that never answers is ended by its limits, and costs no delivery.
func TestShadowThatSpins(t *testing.T) {
	w, _, d := versionWorld(t, Options{}, versionGuest(t, version("a")...), versionGuest(t, version("b", "SPIN=1")...))
	sink := &outputs{}
	spec := shadowed(d[0], sink, d[1])
	spec.Functions[0].Limits.CPU = 20 * time.Millisecond
	w.apply(spec)
	eventually(t, "it has started", func() bool { return w.shadow(0).State == "running" })
	for i := range 5 {
		w.publish("orders", fmt.Sprintf("e%d=1", i))
		eventually(t, "it is delivered all the same", func() bool { return len(sink.sorted()) == i+1 })
	}
	eventually(t, "all are looked at", func() bool { return w.shadow(0).Runs == 5 })
	if got := w.shadow(0); got.Failed != 5 || !strings.HasPrefix(got.Examples[0].New, "deadline: ") {
		t.Errorf("%+v", got)
	}
	if i := w.info("s"); i.Failed != 0 {
		t.Errorf("%d failures", i.Failed)
	}
}

// shadowGate stands still where a shadow logs.
type shadowGate struct {
	slog.Handler
	gate chan struct{}
}

func (g shadowGate) Enabled(context.Context, slog.Level) bool { return true }
func (g shadowGate) WithAttrs([]slog.Attr) slog.Handler       { return g }
func (g shadowGate) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "shadow" {
			<-g.gate
		}
		return true
	})
	return nil
}

// One that stands still holds up nothing: what it does not get to is skipped, and counted.
func TestShadowThatStandsStill(t *testing.T) {
	g := shadowGate{slog.DiscardHandler, make(chan struct{})}
	w, _, d := versionWorld(t, Options{Log: slog.New(g)}, versionGuest(t, version("a")...), versionGuest(t, version("b")...))
	sink := &outputs{}
	w.apply(shadowed(d[0], sink, d[1]))
	eventually(t, "it has started", func() bool { return w.shadow(0).State == "running" })
	n := 0
	for ; w.shadow(0).Skipped == 0; n++ {
		w.publish("orders", fmt.Sprintf(`e%d="hello"`, n))
		eventually(t, "it is delivered all the same", func() bool { return len(sink.sorted()) == n+1 })
		if n > 2*shadowQueue {
			t.Fatal("nothing was skipped")
		}
	}
	log, err := w.e.FunctionLog("f0", -1)
	if err != nil {
		t.Fatal(err)
	}
	close(g.gate)
	eventually(t, "the rest is looked at", func() bool { i := w.shadow(0); return i.Runs+i.Skipped == uint64(n) })
	marked := 0
	for line, ok := log.TryNext(); ok; line, ok = log.TryNext() {
		var l logLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		if l.Shadow {
			marked++
			if l.Digest != d[1] || l.Message != `"hello"` {
				t.Errorf("%s", line)
			}
		}
	}
	if marked == 0 {
		t.Error("what a shadow logs is not marked")
	}
}

func TestShadowOfAnUnknownVersion(t *testing.T) {
	w, _, d := versionWorld(t, Options{}, versionGuest(t, version("a")...))
	err := w.e.Apply(t.Context(), shadowed(d[0], &outputs{}, "sha256:0000000000"))
	if !errors.Is(err, event.ErrNotFound) || !strings.Contains(err.Error(), "shadow[0]") {
		t.Errorf("%v", err)
	}
}

func TestDifferJSON(t *testing.T) {
	for _, c := range []struct{ was, is, path, old, new string }{
		{`{"a":1}`, `{"a":2}`, "data.a", "1", "2"},
		{`{"a":[1,{"b":"x"}]}`, `{"a":[1,{"b":"y"}]}`, "data.a[1].b", `"x"`, `"y"`},
		{`{"a":[1]}`, `{"a":[1,2]}`, "data.a[1]", "(missing)", "2"},
		{`{"a":1}`, `{"a":1,"b":null}`, "data.b", "(missing)", "null"},
		{`{"a":{}}`, `{"a":[]}`, "data.a", "{}", "[]"},
		{`{"a":[]}`, `{"a":{}}`, "data.a", "[]", "{}"},
		{`9007199254740993`, `9007199254740992`, "data", "9007199254740993", "9007199254740992"},
		{`plain`, `text`, "data", "plain", "text"},
		{`{"b":1,"a":2}`, `{"a": 2, "b": 1}`, "", "", ""},
	} {
		d := differData("data", []byte(c.was), []byte(c.is))
		switch {
		case d == nil:
			t.Errorf("%s and %s are told to be the same", c.was, c.is)
		case c.path == "" && !d.json:
			t.Errorf("%s and %s differ at %s", c.was, c.is, d.path)
		case c.path != "" && (d.json || d.path != c.path || d.was != c.old || d.is != c.new):
			t.Errorf("%s and %s: %+v", c.was, c.is, *d)
		}
	}
	if d := differData("data", nil, []byte{}); d == nil {
		t.Error("no data is not empty data")
	}
}

func TestDifferVerdicts(t *testing.T) {
	var ev event.Event
	ev.ID, ev.Source, ev.Type, ev.Data = "1", "/s", "t", []byte(`{}`)
	in := event.Record(ev.AppendRecord(nil))
	one := func(rs ...*plugins.Result) answer { return answer{results: rs} }
	for want, c := range map[string][2]answer{
		"":                {one(&plugins.Result{}), one(&plugins.Result{})},
		"verdict":         {one(&plugins.Result{}), one(&plugins.Result{Verdict: plugins.Drop})},
		"results":         {one(&plugins.Result{}), one(&plugins.Result{}, &plugins.Result{Verdict: plugins.Emit})},
		"delay":           {one(&plugins.Result{Verdict: plugins.Retry}), one(&plugins.Result{Verdict: plugins.Retry, Arg: 5})},
		"code":            {one(&plugins.Result{Verdict: plugins.Reject}), one(&plugins.Result{Verdict: plugins.Reject, Arg: 5})},
		"reason":          {one(&plugins.Result{Verdict: plugins.Reject, Data: []byte("x")}), one(&plugins.Result{Verdict: plugins.Reject, Data: []byte("y")})},
		"status":          {one(&plugins.Result{Verdict: plugins.Reply}), one(&plugins.Result{Verdict: plugins.Reply, Arg: 5})},
		"outcome":         {one(&plugins.Result{}), answer{failure: "trap: x"}},
		"source":          {one(&plugins.Result{Verdict: plugins.Emit, Flags: plugins.Inherit}), one(&plugins.Result{Verdict: plugins.Emit})},
		"results[1].data": {one(&plugins.Result{}, &plugins.Result{Verdict: plugins.Emit}), one(&plugins.Result{}, &plugins.Result{Verdict: plugins.Emit, Data: []byte{}})},
	} {
		d := differ(in, c[0], c[1])
		switch {
		case d == nil && want != "":
			t.Errorf("no difference, want %s", want)
		case d != nil && d.path != want:
			t.Errorf("%s, want %s", d.path, want)
		}
	}
	if d := differ(in, answer{failure: "trap: x"}, answer{failure: "trap: y"}); d != nil {
		t.Errorf("two traps differ: %+v", *d)
	}
}
