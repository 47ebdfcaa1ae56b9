package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/examples/quickstart"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// ruleSet is one side of a backtest: name → filter of subscriptions of the topic "orders".
func ruleSet(t testing.TB, subs map[string]string) BacktestRules {
	t.Helper()
	var r BacktestRules
	for name, filter := range subs {
		s := SubscriptionSpec{Subscription: event.Subscription{Name: name, Topic: "orders", Filter: filter}}
		if filter != "" {
			var err error
			if s.Program, err = filters.Compile(filter); err != nil {
				t.Fatal(err)
			}
		}
		r.Subscriptions = append(r.Subscriptions, s)
	}
	return r
}

func pastWorld(t testing.TB, partitions, events int) *world {
	t.Helper()
	w := newWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders", Partitions: partitions}}})
	for from := 0; from < events; from += 500 {
		var evs []string
		for i := from; i < min(from+500, events); i++ {
			evs = append(evs, fmt.Sprintf(`o%d={"n":%d,"country":"%s"}`, i, i, []string{"DE", "FR", "US"}[i%3]))
		}
		w.publish("orders", evs...)
	}
	return w
}

func backtestOf(t testing.TB, o BacktestOptions) *BacktestReport {
	t.Helper()
	r, err := Backtest(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *BacktestReport) of(name string) *BacktestSubscription {
	for i := range r.Subscriptions {
		if r.Subscriptions[i].Name == name {
			return &r.Subscriptions[i]
		}
	}
	return nil
}

// TestBacktestSaysWhatFiltersSay holds the figures against filters that are evaluated one by one.
func TestBacktestSaysWhatFiltersSay(t *testing.T) {
	w := pastWorld(t, 3, 2000)
	pool := []string{"", "data.n > 1000", "data.n > 1500", `data.country == "DE"`, `data.country in ["DE", "FR"]`, `data.country == "US" && data.n < 100`,
		"data.missing == 1", `type == "event"`, "data.n % 7 == 0", `!(data.country == "DE")`}
	recs := w.records("orders")
	if len(recs) != 2000 {
		t.Fatalf("%d events", len(recs))
	}
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		sides := [2]map[string]string{{}, {}}
		for i := range 12 {
			for side := range sides {
				if rng.IntN(5) > 0 {
					sides[side][fmt.Sprintf("s%d", i)] = pool[rng.IntN(len(pool))]
				}
			}
		}
		rules := [2]BacktestRules{ruleSet(t, sides[0]), ruleSet(t, sides[1])}
		r := backtestOf(t, BacktestOptions{Before: rules[0], After: rules[1], Past: w.e.Past()})
		if r.Events != 2000 || r.InRange != 2000 || !r.Complete {
			t.Fatalf("seed %d: %d of %d events, complete %t", seed, r.Events, r.InRange, r.Complete)
		}
		want := map[string][4]uint64{} // before, after, gained, lost
		var scratch filters.Scratch
		for _, rec := range recs {
			took := [2]map[string]bool{{}, {}}
			for side := range rules {
				for i := range rules[side].Subscriptions {
					s := &rules[side].Subscriptions[i]
					if s.Program.Match(rec, &scratch) {
						took[side][s.Name] = true
					}
				}
			}
			for i := range 12 {
				name := fmt.Sprintf("s%d", i)
				x := want[name]
				was, is := took[0][name], took[1][name]
				for k, add := range []bool{was, is, is && !was, was && !is} {
					if add {
						x[k]++
					}
				}
				want[name] = x
			}
		}
		changed := uint64(0)
		for _, s := range r.Subscriptions {
			if got := [4]uint64{s.Before, s.After, s.Gained, s.Lost}; got != want[s.Name] {
				t.Errorf("seed %d: %s: before, after, gained, lost = %v; one by one %v", seed, s.Name, got, want[s.Name])
			}
			changed += s.Gained + s.Lost
		}
		if r.Changed != changed {
			t.Errorf("seed %d: changed %d, the subscriptions' %d", seed, r.Changed, changed)
		}
	}
}

// TestBacktestExamples: each names its event and what each side's filter says of it, and there are not too many.
func TestBacktestExamples(t *testing.T) {
	w := pastWorld(t, 1, 300)
	r := backtestOf(t, BacktestOptions{Past: w.e.Past(), Examples: 2,
		Before: ruleSet(t, map[string]string{"big": "data.n > 100", "old": ""}),
		After:  ruleSet(t, map[string]string{"big": "data.n > 200", "new": `data.country == "DE"`})})
	big := r.of("big")
	if big.Change != "changed" || big.Lost != 100 || big.Gained != 0 || len(big.Examples) != 2 {
		t.Fatalf("big: %+v", big)
	}
	x := big.Examples[0]
	if x.Kind != "lost" || x.Event != "orders/0-101" || x.ID != "o101" || x.Explain != "router explain big orders/0-101" ||
		x.Before != "match: data.n > 100 is true (data.n is 101)" || x.After != "no match: data.n > 200 is false (data.n is 101)" {
		t.Errorf("example: %+v", x)
	}
	if s := r.of("old"); s.Change != "removed" || s.Lost != 300 || s.Examples[0].After != "there is no such subscription" {
		t.Errorf("old: %+v", s)
	}
	if s := r.of("new"); s.Change != "created" || s.Gained != 100 {
		t.Errorf("new: %+v", s)
	}
}

// TestBacktestRange: times, the last events, topics, subscriptions, budgets.
func TestBacktestRange(t *testing.T) {
	w := pastWorld(t, 1, 1000)
	recs := w.records("orders")
	rules := ruleSet(t, map[string]string{"all": "", "some": "data.n >= 0"})
	cut := time.Unix(0, recs[500].Received())
	within := func(since, until time.Time) (n uint64) {
		for _, r := range recs {
			at := time.Unix(0, r.Received())
			if !at.Before(since) && (until.IsZero() || at.Before(until)) {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		name   string
		change func(*BacktestOptions)
		events uint64
		whole  bool
	}{
		{"all", func(*BacktestOptions) {}, 1000, true},
		{"since", func(o *BacktestOptions) { o.Since = cut }, within(cut, time.Time{}), true},
		{"until", func(o *BacktestOptions) { o.Until = cut }, within(time.Time{}, cut), true},
		{"last", func(o *BacktestOptions) { o.Last = 10 }, 10, true},
		{"another topic", func(o *BacktestOptions) { o.Topics = []string{"orders"} }, 1000, true},
		{"budget", func(o *BacktestOptions) { o.Budget.Events = 123 }, 123, false},
	} {
		o := BacktestOptions{After: rules, Past: w.e.Past()}
		c.change(&o)
		r := backtestOf(t, o)
		if r.Events != c.events || r.Complete != c.whole || r.of("all").After != c.events {
			t.Errorf("%s: %d events, complete %t, %d taken; want %d, %t", c.name, r.Events, r.Complete, r.of("all").After, c.events, c.whole)
		}
		if !c.whole && (r.Stopped == "" || r.Topics[0].Partitions[0].At != event.Offset(c.events)) {
			t.Errorf("%s: stopped %q at %+v", c.name, r.Stopped, r.Topics)
		}
	}
	r := backtestOf(t, BacktestOptions{After: rules, Past: w.e.Past(), Subscriptions: []string{"some"}})
	if len(r.Subscriptions) != 1 || r.of("some").After != 1000 {
		t.Errorf("one subscription: %+v", r.Subscriptions)
	}
	for name, o := range map[string]BacktestOptions{
		`topic "ordres" does not exist; did you mean "orders"?`:    {Topics: []string{"ordres"}},
		`subscription "sume" does not exist; did you mean "some"?`: {Subscriptions: []string{"sume"}},
	} {
		o.After, o.Past = rules, w.e.Past()
		if _, err := Backtest(t.Context(), o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v; want %s", err, name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := BacktestOptions{After: rules, Past: w.e.Past(), Every: 1, Progress: func(BacktestProgress) { cancel() }}
	if r, err := Backtest(ctx, o); !errors.Is(err, context.Canceled) || r == nil || r.Complete {
		t.Errorf("cancelled: %+v, %v", r, err)
	}
}

// shrinking is a log that the ring overtakes while it is read.
type shrinking struct {
	storage.Log
	reads int
}

func (s *shrinking) Read(ctx context.Context, from event.Offset, most int, dst []*storage.Block) ([]*storage.Block, error) {
	if s.reads++; s.reads == 1 {
		return dst, &storage.TrimmedError{From: from, Head: 700}
	}
	return s.Log.Read(ctx, from, most, dst)
}

func TestBacktestSaysWhatTheRingOvertook(t *testing.T) {
	w := pastWorld(t, 1, 1000)
	past := w.e.Past()
	past[0].Logs[0] = &shrinking{Log: past[0].Logs[0]}
	r := backtestOf(t, BacktestOptions{After: ruleSet(t, map[string]string{"all": ""}), Past: past})
	if r.Events != 300 || r.Topics[0].Partitions[0].Overtaken != 700 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "700 events left their ring") {
		t.Errorf("%d events, %+v, %q", r.Events, r.Topics, r.Notes)
	}
}

// TestBacktestChangesNothing: the engine goes on as if there had been none.
func TestBacktestChangesNothing(t *testing.T) {
	sink := &recorder{}
	w := newWorld(t, Options{})
	w.apply(specOf(push("hook", "orders", "", sink)))
	w.publish("orders", number("a", 50)...)
	eventually(t, "delivered", func() bool { return len(sink.ids()) == 50 && w.settled("hook") })
	before, commits := w.info("hook"), w.store.Stats().Events
	r := backtestOf(t, BacktestOptions{Before: w.e.InForce(), After: ruleSet(t, map[string]string{"hook": "", "other": ""}), Past: w.e.Past()})
	if s := r.of("hook"); s.Before != 50 || s.After != 50 || s.Change != "same" {
		t.Errorf("hook: %+v", s)
	}
	after := w.info("hook")
	if len(sink.ids()) != 50 || after.Matched != before.Matched || after.Delivered != before.Delivered || w.store.Stats().Events != commits {
		t.Errorf("%d delivered, %+v → %+v", len(sink.ids()), before, after)
	}
	if names := w.e.Topics(); len(names) != 2 {
		t.Errorf("topics: %v", names)
	}
}

// TestBacktestOfRecordedEvents gives the same figures without a store.
func TestBacktestOfRecordedEvents(t *testing.T) {
	w := pastWorld(t, 2, 700)
	recs := w.records("orders")
	before, after := ruleSet(t, map[string]string{"x": "data.n > 10"}), ruleSet(t, map[string]string{"x": "data.n > 20"})
	live := backtestOf(t, BacktestOptions{Before: before, After: after, Past: w.e.Past()})
	fed := backtestOf(t, BacktestOptions{Before: before, After: after, Feed: func(yield func(string, []event.Record) bool) error {
		for chunk := range slices.Chunk(recs, 64) {
			if !yield("orders", chunk) {
				return nil
			}
		}
		return nil
	}})
	if a, b := live.of("x"), fed.of("x"); a.Before != b.Before || a.After != b.After || a.Lost != b.Lost || fed.Events != 700 {
		t.Errorf("%+v; recorded %+v", a, b)
	}
	broken := errors.New("broken")
	_, err := Backtest(t.Context(), BacktestOptions{After: after, Feed: func(func(string, []event.Record) bool) error { return broken }})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

// TestBacktestAllocatesNothingPerEvent: its memory is flat.
func TestBacktestAllocatesNothingPerEvent(t *testing.T) {
	if raceEnabled {
		return // the race detector allocates
	}
	w := pastWorld(t, 1, 100)
	rec := w.records("orders")[50]
	b := &backtest{topics: map[string]*pastRules{}}
	b.o = BacktestOptions{Before: ruleSet(t, map[string]string{"a": "data.n > 10", "b": ""}), After: ruleSet(t, map[string]string{"a": "data.n > 20", "b": `data.country == "FR"`})}.withDefaults()
	b.o.Past = w.e.Past()
	if err := b.plan(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 10 { // examples
		if err := b.one(t.Context(), b.topics["orders"], rec); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _ = b.one(t.Context(), b.topics["orders"], rec) }); n != 0 {
		t.Errorf("an event allocates %v times", n)
	}
}

func BenchmarkBacktestFilters(b *testing.B) {
	w := pastWorld(b, 1, 50_000)
	subs := map[string]string{}
	for i := range 100 {
		subs[fmt.Sprintf("s%d", i)] = fmt.Sprintf(`data.country == "C%d" && data.n > 5`, i)
	}
	before := ruleSet(b, subs)
	subs["s5"] = "data.n > 1000"
	after := ruleSet(b, subs)
	b.ResetTimer()
	for b.Loop() {
		r := backtestOf(b, BacktestOptions{Before: before, After: after, Past: w.e.Past()})
		b.ReportMetric(float64(r.Events)/r.Seconds, "events/s")
	}
}

// redacting is one side: subscription s of orders, through redact with the field that it hides.
func redacting(digest, field string) BacktestRules {
	s := SubscriptionSpec{Subscription: event.Subscription{Name: "s", Topic: "orders", Functions: []string{"redact"}}}
	return BacktestRules{Subscriptions: []SubscriptionSpec{s},
		Functions: []event.Function{{Name: "redact", Digest: digest, Config: map[string]string{"field": field}}}}
}

// TestBacktestOfFunctions: what was delivered is what a backtest says, and what another configuration would have made
// differs where it says so.
func TestBacktestOfFunctions(t *testing.T) {
	module, err := fs.ReadFile(quickstart.Files, "functions/redact.wasm")
	if err != nil {
		t.Fatal(err)
	}
	w, digest := hostWorld(t, Options{}, module)
	sink := &outputs{}
	w.apply(through(digest, 1, sink, nil))
	var evs []string
	for i := range 600 {
		evs = append(evs, fmt.Sprintf(`o%d={"total":%d,"email":"a%d@example.com","phone":"%d"}`, i, i, i, i))
	}
	w.publish("orders", evs...)
	eventually(t, "they are delivered", func() bool { return len(sink.sorted()) == 600 })

	run := func(before, after BacktestRules, how BacktestFunctions) *BacktestReport {
		t.Helper()
		return backtestOf(t, BacktestOptions{Before: before, After: after, Past: w.e.Past(), Host: w.o.Host, Secret: w.e.Secret(), Functions: how})
	}
	if r := run(redacting(digest, "email"), redacting(digest, "email"), BacktestDiffering); r.of("s").Functions != nil || r.Changed != 0 || r.Fuel != 0 {
		t.Errorf("the same functions were run: %+v", r.of("s").Functions)
	}
	r := run(redacting(digest, "email"), redacting(digest, "email"), BacktestAllFunctions)
	if f := r.of("s").Functions; f.Equal != 600 || f.Different != 0 || f.Outputs != 600 || f.OutputsBefore != 600 || r.Fuel == 0 || r.Fuel != f.Fuel {
		t.Errorf("all functions: %+v, fuel %d", f, r.Fuel)
	}
	r = run(redacting(digest, "email"), redacting(digest, "phone"), BacktestDiffering)
	f := r.of("s").Functions
	if f.Different != 600 || f.Equal != 0 || r.Changed != 600 || r.of("s").Change != "changed" || len(r.of("s").Examples) != 5 {
		t.Fatalf("another configuration: %+v, changed %d, %d examples", f, r.Changed, len(r.of("s").Examples))
	}
	if x := r.of("s").Examples[0]; x.Kind != "different" || x.Path != "data.email" || x.After != `"a0@example.com"` || strings.Contains(x.Before, "example.com") {
		t.Errorf("example: %+v", x)
	}
	r = run(BacktestRules{Subscriptions: []SubscriptionSpec{{Subscription: event.Subscription{Name: "s", Topic: "orders"}}}}, redacting(digest, "email"), BacktestDiffering)
	if f := r.of("s").Functions; f.Different != 600 || r.of("s").Examples[0].Path != "data.email" {
		t.Errorf("a function more: %+v, %+v", f, r.of("s").Examples)
	}
	if r := run(redacting(digest, "email"), redacting(digest, "phone"), BacktestNoFunctions); r.of("s").Functions != nil {
		t.Errorf("functions ran that should not: %+v", r.of("s").Functions)
	}
	broken := redacting("", "email")
	if r := run(redacting(digest, "email"), broken, BacktestDiffering); r.of("s").Functions.Error == "" || r.Events != 600 || r.of("s").After != 600 {
		t.Errorf("a function without a module: %+v", r.of("s").Functions)
	}
	budget := BacktestOptions{After: redacting(digest, "email"), Past: w.e.Past(), Host: w.o.Host, Budget: BacktestBudget{Fuel: 1}}
	if r := backtestOf(t, budget); r.Complete || !strings.Contains(r.Stopped, "fuel") || r.Events >= 600 {
		t.Errorf("fuel: %d events, stopped %q", r.Events, r.Stopped)
	}
}

// TestReusedTrialResultsHold: those of one Run do not overwrite each other, also where events run one by one.
func TestReusedTrialResultsHold(t *testing.T) {
	module, err := fs.ReadFile(quickstart.Files, "functions/redact.wasm")
	if err != nil {
		t.Fatal(err)
	}
	w, digest := hostWorld(t, Options{}, module)
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	w.publish("orders", `a={"total":1,"email":"x"}`, `b={"total":2,"email":"y"}`, `c={"total":3,"email":"z"}`)
	side := redacting(digest, "email")
	for _, one := range []bool{false, true} {
		trial, err := OpenTrial(t.Context(), TrialOptions{Host: w.o.Host, Subscription: side.Subscriptions[0].Subscription, Functions: side.Functions, Reuse: true, Verdicts: one})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			results, err := trial.Run(t.Context(), w.records("orders"))
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range results {
				if want := fmt.Sprintf(`"total":%d`, i+1); len(r.Deliver) != 1 || !strings.Contains(string(r.Deliver[0].Data()), want) {
					t.Errorf("one by one %t: result %d is %s; want %s in it", one, i, r.Deliver, want)
				}
			}
		}
		if err := trial.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// An example keeps what it says: neither a block of the ring, nor what the next run overwrites.
func TestBacktestExamplesHold(t *testing.T) {
	record := func(data string) event.Record {
		ev := event.Event{ID: "id", Source: "/x", Type: "type", DataContentType: "application/json", Data: []byte(data)}
		return ev.AppendRecord(nil)
	}
	rec, was, is := record("{}"), record(`{"a":"was"}`), record(`{"a":"is"}`)
	s := &pastSlot{name: "s", kept: map[string]int{}}
	s.sides[sideAfter] = &SubscriptionSpec{Subscription: event.Subscription{Name: "s", Topic: "t"}}
	s.out.Functions = &BacktestOutcome{}
	b := &backtest{o: BacktestOptions{Examples: 5}}
	b.said(s, rec, [2]*TrialResult{{Deliver: []event.Record{was}}, {Deliver: []event.Record{is}}})
	if len(s.out.Examples) != 1 {
		t.Fatalf("%d examples", len(s.out.Examples))
	}
	x := s.out.Examples[0]
	said := fmt.Sprint(x)
	for _, r := range []event.Record{rec, was, is} {
		for i := range r {
			r[i] = '#'
		}
	}
	if got := fmt.Sprint(x); got != said || x.ID != "id" || x.Type != "type" || !strings.Contains(x.Before+x.After, "was") {
		t.Errorf("the example says %s, and said %s", got, said)
	}
}

// TestBacktestCountsFailures by their reasons, those that are new apart.
func TestBacktestCountsFailures(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	w.publish("orders", "a=p", "b=t", "c=x42", "d=d", "e=p")
	after := redacting(digest, "")
	r := backtestOf(t, BacktestOptions{Past: w.e.Past(), Host: w.o.Host, After: after,
		Before: BacktestRules{Subscriptions: []SubscriptionSpec{{Subscription: event.Subscription{Name: "s", Topic: "orders"}}}}})
	f := r.of("s").Functions
	if r.Failed != 2 || f.Failed["trap"] != 1 || f.Failed["reject"] != 1 || f.Different != 3 || f.Equal != 2 {
		t.Errorf("failed %d: %+v", r.Failed, f)
	}
	if x := r.of("s").Examples[0]; x.Path != "outcome" || x.Before != "1 delivered" || !strings.HasPrefix(x.After, "trap: ") {
		t.Errorf("%+v", x)
	}
	// without a side to compare with they are failures all the same
	r = backtestOf(t, BacktestOptions{Past: w.e.Past(), Host: w.o.Host, After: after})
	if x := r.of("s").Examples; r.Failed != 2 || r.Different != 0 || !slices.ContainsFunc(x, func(x BacktestExample) bool { return x.Kind == "failed" && x.ID == "b" }) {
		t.Errorf("%+v", x)
	}
}
