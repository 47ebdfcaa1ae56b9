package rules

import (
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// rulesWithTests is a file with one subscription and the tests given, indented by two.
func rulesWithTests(tests string) []byte {
	return []byte("version: 1\ntopics:\n  orders: {}\nsubscriptions:\n  hook:\n    topic: orders\n    deliver: {topic: audit}\ntests:\n" + tests)
}

func TestTests(t *testing.T) {
	set, err := ParseBytes("r.yaml", rulesWithTests(`
  - name: all there is
    at: 2026-02-03T04:05:06Z
    for: 2h
    given:
      - {topic: orders, after: 10m, events: more.ndjson}
      - topic: orders
        event: {id: "1", type: t, key: k, ext: {region: eu, n: 3}, data: {total: 250, note: "${env:X}"}}
    answers:
      hook: [503, timeout, {status: 429, retryAfter: 30s, body: {why: later}}, 200]
    expect:
      hook:
        delivered: [{data: {total: 250}, ext: {region: eu}}]
        inOrder: true
        exact: true
        attempts: [{after: 0s, answer: 503}, {after: 5m, answer: timeout, events: 2}]
        deadLetters: [{reason: attempts, code: 503}]
        disabled: false
    topics: {audit: 1}
  - name: short
    given: {topic: orders, event: {datacontenttype: text/plain, data: plain}}
    expect: {hook: none}
    reply: {status: 200, data: {ok: true}}
`), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(set.Tests) != 2 {
		t.Fatalf("%d tests, want 2", len(set.Tests))
	}
	a := set.Tests[0]
	if a.Name != "all there is" || a.For != 2*time.Hour || a.At.Format(time.RFC3339) != "2026-02-03T04:05:06Z" || a.Owner.Line != 10 {
		t.Errorf("head: %+v", a)
	}
	if len(a.Given) != 2 || a.Given[1].File != "more.ndjson" || a.Given[1].After != 10*time.Minute {
		t.Fatalf("given, in order of time: %+v", a.Given)
	}
	ev := a.Given[0].Events[0]
	if ev.ID != "1" || !ev.ClientID || ev.PartitionKey != "k" || string(ev.Data) != `{"total":250,"note":"${env:X}"}` {
		t.Errorf("event: %+v with data %s", ev, ev.Data)
	}
	if want := []event.Attribute{{Name: "region", Value: "eu"}, {Name: "n", Kind: event.Integer, Value: "3"}}; ev.Extensions[0] != want[0] || ev.Extensions[1] != want[1] {
		t.Errorf("extensions: %+v", ev.Extensions)
	}
	as := a.Answers["hook"]
	if len(as) != 4 || as[0].Status != 503 || !as[1].Timeout || as[2].RetryAfter != 30*time.Second || string(as[2].Body) != `{"why":"later"}` || !as[2].JSON {
		t.Errorf("answers: %+v", as)
	}
	x := a.Expect[0]
	if !x.Delivered.InOrder || !x.Delivered.Exact || string(x.Delivered.List[0].Data) != `{"total":250}` || x.Delivered.List[0].Attributes["ext.region"] != "eu" {
		t.Errorf("delivered: %+v", x.Delivered)
	}
	if l := x.Attempts.List; len(l) != 2 || l[0] != (Attempt{0, "503", 0}) || l[1] != (Attempt{5 * time.Minute, "timeout", 2}) {
		t.Errorf("attempts: %+v", l)
	}
	if d := x.DeadLetters.List[0].Attributes; d["reason"] != "attempts" || d["code"] != "503" || x.Disabled == nil || *x.Disabled {
		t.Errorf("dead letters %v, disabled %v", d, x.Disabled)
	}
	if len(a.Topics) != 1 || a.Topics[0].Count != 1 {
		t.Errorf("topics: %+v", a.Topics)
	}
	b := set.Tests[1]
	if string(b.Given[0].Events[0].Data) != "plain" || b.Expect[0].Delivered.Count != 0 || b.Reply.Status != 200 || b.At != testStart {
		t.Errorf("short: %+v", b)
	}
}

// Every fault of the tests is reported at once, each at its own place.
func TestTestsFaults(t *testing.T) {
	for _, c := range []struct{ tests, want string }{
		{"  name: x\n", "r.yaml:9:3: tests: is a mapping; want a list of tests"},
		{"  - {name: a, given: {topic: orders, event: {}}}\n", "tests[0].expect: missing; want such as {hook: 1}"},
		{"  - {given: {topic: orders, event: {}}, expect: {hook: 1}}\n", "tests[0].name: missing"},
		{"  - {name: a, expect: {hook: 1}}\n", "tests[0].given: missing"},
		{"  - {name: a, given: {topic: ordesr, event: {}}, expect: {hook: 1}}\n", `tests[0].given.topic: no topic "ordesr" is defined; did you mean "orders"?`},
		{"  - {name: a, given: {topic: orders, event: {}}, expect: {hok: 1}}\n", `r.yaml:9:59: tests[0].expect: no subscription "hok" is defined; did you mean "hook"?`},
		{"  - {name: a, given: {topic: orders, event: {}}, answers: {hok: 200}, expect: {hook: 1}}\n", `no subscription "hok" is defined`},
		{"  - {name: a, given: {topic: orders, event: {}}, topics: {adit: 1}}\n", `no topic "adit" is defined; did you mean "audit"?`},
		{"  - {name: a, given: {topic: orders, event: {typ: x}}, expect: {hook: 1}}\n", `unknown key "typ" in tests[0].given.event; did you mean "type"?`},
		{"  - {name: a, given: {topic: orders, event: {time: noon}}, expect: {hook: 1}}\n", `tests[0].given.event.time: "noon"`},
		{"  - {name: a, given: {topic: orders, event: {ext: {Region: eu}}}, expect: {hook: 1}}\n", "Region"},
		{"  - {name: a, given: {topic: orders}, expect: {hook: 1}}\n", "tests[0].given.event: missing"},
		{"  - {name: a, given: {topic: orders, event: {}, events: []}, expect: {hook: 1}}\n", "stands beside event"},
		{"  - {name: a, given: [], expect: {hook: 1}}\n", "is an empty list; give an event"},
		{"  - {name: a, at: noon, given: {topic: orders, event: {}}, expect: {hook: 1}}\n", "RFC 3339"},
		{"  - {name: a, at: \"1066-10-14T09:00:00Z\", given: {topic: orders, event: {}}, expect: {hook: 1}}\n", "want a year from 1971"},
		{"  - {name: a, for: 5y, given: {topic: orders, event: {}}, expect: {hook: 1}}\n", "want a duration"},
		{"  - {name: a, given: {topic: orders, event: {}}, answers: {hook: 99}, expect: {hook: 1}}\n", `is "99"; want a status, timeout, or {status: 503, retryAfter: 10s}`},
		{"  - {name: a, given: {topic: orders, event: {}}, answers: {hook: [{retryAfter: 1s}]}, expect: {hook: 1}}\n", "answers.hook[0].status: missing"},
		{"  - {name: a, given: {topic: orders, event: {}}, expect: {hook: {deliverd: 1}}}\n", `did you mean "delivered"?`},
		{"  - {name: a, given: {topic: orders, event: {}}, expect: {hook: some}}\n", `is "some"; want a number of events, none, or a list of them`},
		{"  - {name: a, given: {topic: orders, event: {}}, expect: {hook: {delivered: 1, inOrder: true}}}\n", "is about a list of events under delivered, and there is none"},
		{"  - {name: a, given: {topic: orders, event: {}}, topics: {audit: {data: 1}}}\n", "is a mapping; want a number, none or a list of events"},
		{"  - {name: a, given: {topic: orders, events: [{}, {}]}, reply: {status: 200}}\n", "is the reply to one event; give just one"},
		{"  - {name: a, given: {topic: orders, event: {}}, expect: {hook: 1}}\n  - {name: a, given: {topic: orders, event: {}}, expect: {hook: 1}}\n", `test "a" is there twice: here and at r.yaml:9:12`},
	} {
		_, err := ParseBytes("r.yaml", rulesWithTests(c.tests), Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s got %v\nwant %q in it", c.tests, err, c.want)
		}
	}
	_, err := ParseBytes("r.yaml", rulesWithTests("  - {name: a, given: {topic: x1, event: {typ: x}}, expect: {hok: 1}}\n  - {nam: b}\n"), Options{})
	for _, want := range []string{`no topic "x1"`, `unknown key "typ"`, `no subscription "hok"`, `unknown key "nam"`, "tests[1].given: missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("all at once: %q is not in %v", want, err)
		}
	}
}
