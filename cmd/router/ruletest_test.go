package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// runRulesTest runs `router rules test` with arguments and variables.
func runRulesTest(t *testing.T, env map[string]string, args ...string) (code int, out string) {
	t.Helper()
	var b bytes.Buffer
	code = run(t.Context(), "", append([]string{"rules", "test"}, args...), strings.NewReader(""), &b, &b, func(name string) string {
		if name == "XDG_CACHE_HOME" {
			return os.Getenv(name)
		}
		return env[name]
	})
	return code, b.String()
}

// The page's example and its commands are those of the script.
func TestDocumentedRulesTestsAreRun(t *testing.T) {
	script, err := os.ReadFile(filepath.Join("testdata", "script", "rules_tests.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "rules-tests.md"))
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\n(version: 1\n.*?)```").FindSubmatch(page)
	if example == nil || !bytes.Contains(script, append([]byte("-- millrace.yaml --\n"), example[1]...)) {
		t.Error("docs/rules-tests.md shows another example than rules_tests.txtar runs")
	}
	for _, m := range regexp.MustCompile(`(?m)^\$ (router rules test .*)$`).FindAllSubmatch(page, -1) {
		if !bytes.Contains(script, append(bytes.Clone(m[1]), '\n')) {
			t.Errorf("docs/rules-tests.md shows what no script runs: %s", m[1])
		}
	}
}

// The demo's rules pass their own tests.
func TestQuickstartRules(t *testing.T) {
	code, out := runRulesTest(t, map[string]string{"HOOK_URL": "https://hook.example.com/", "HOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
		filepath.Join("..", "..", "examples", "quickstart", "rules.yaml"))
	if code != 0 || !strings.Contains(out, "3 tests, all good") {
		t.Errorf("exit %d:\n%s", code, out)
	}
}

// writeRules writes a rules file and returns its path.
func writeRules(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each of these is a promise of production that a test of rules sees as it is there: the test names say which.
const worldRules = `version: 1
topics:
  strict: {schema: {type: object, required: [total]}}
  short: {dedupe: 1m}
functions:
  work:
    js: work.js
  counter:
    js: counter.js
    allow: {kv: true}
subscriptions:
  hook:
    topic: a
    deliver: {webhook: {url: "https://example.com/"}}
    retry: {attempts: 4, schedule: [5s, 1d, 1d]}
  strict-hook:
    topic: b
    deliver: {webhook: {url: "https://strict.example.com/"}}
    retry: {on4xx: deadLetter}
  replies:
    topic: c
    deliver: {webhook: {url: "https://reply.example.com/", reply: true}}
  pulled:
    topic: d
    deliver: {pull: {ackDeadline: 30s}}
    deadLetter: pulled.dead
  forward:
    topic: e
    deliver: {topic: f}
  end:
    topic: f
    deliver: {pull: {}}
  worker:
    topic: g
    functions: [work]
    deliver: {webhook: {url: "https://worker.example.com/"}}
  ordered:
    topic: h
    order: key
    deliver: {webhook: {url: "https://ordered.example.com/"}}
    retry: {schedule: [1m]}
  batched:
    topic: i
    deliver: {webhook: {url: "https://batch.example.com/", batch: {events: 3, wait: 30s}}}
  slow:
    topic: j
    rate: 2/s
    deliver: {webhook: {url: "https://slow.example.com/"}}
  counted:
    topic: k
    functions: [counter]
    deliver: {webhook: {url: "https://counted.example.com/"}}
  unique:
    topic: short
    deliver: {pull: {}}
  checked:
    topic: strict
    deliver: {pull: {}}
  endless:
    topic: l
    deliver: {webhook: {url: "https://endless.example.com/"}}
    retry: {attempts: unlimited, schedule: [10m]}
  stream:
    topic: m
    deliver: {stream: {}}
  ticks:
    topic: n
    deliver: {pull: {}}
schedules:
  hourly: {topic: n, cron: "0 * * * *", type: tick}
tests:
  - name: a schedule of days passes at once
    given: {topic: a, event: {}}
    answers: {hook: [503, timeout, {status: 429, retryAfter: 2h}, 200]}
    expect: {hook: {delivered: 1, attempts: [{after: 0s, answer: 503}, {after: 5s, answer: timeout}, {after: 24h5s, answer: 429}, {after: 26h5s, answer: 200}]}}
  - name: 410 disables
    given: {topic: a, events: [{}, {}]}
    answers: {hook: 410}
    expect: {hook: {delivered: none, disabled: true, deadLetters: none}}
  - name: 422 is final where on4xx says so
    given: {topic: b, event: {}}
    answers: {strict-hook: 422}
    expect: {strict-hook: {attempts: 1, deadLetters: [{reason: permanent, code: 422}]}}
  - name: a webhook replies
    given: {topic: c, event: {}}
    answers: {replies: {status: 201, body: {id: 7}}}
    reply: {status: 201, data: {id: 7.0}}
  - name: a reply may come after a failure
    given: {topic: c, event: {}}
    answers: {replies: [503, {status: 200, body: late}]}
    reply: {status: 200, data: late}
  - name: nobody replies
    given: {topic: a, event: {}}
    reply: none
  - name: leases expire and count
    given: {topic: d, event: {}}
    answers: {pulled: timeout}
    expect: {pulled: {delivered: none, attempts: [{after: 0s}, {after: 30s}, {after: 60s}, {after: 90s}, {after: 120s}], deadLetters: [{reason: leases}]}}
  - name: what is given back comes again
    given: {topic: d, event: {}}
    answers: {pulled: [{status: 500, retryAfter: 10s}, 200]}
    expect: {pulled: {delivered: 1, attempts: [{after: 0s}, {after: 10s}]}}
  - name: topics feed subscriptions
    given: {topic: e, event: {type: t, data: [1, {x: 2}]}}
    expect: {forward: 1, end: [{type: t, data: [1, {x: 2}]}]}
    topics: {f: [{type: t}]}
  - name: functions put out, retry and reject
    given: {topic: g, events: [{data: {do: two}}, {data: {do: reject}}, {data: {do: emit}}, {data: {do: drop}}]}
    expect:
      worker:
        delivered: [{data: {n: 1}}, {data: {n: 2}}]
        exact: true
        deadLetters: [{reason: reject, code: 422}]
    topics: {f: [{data: {do: null}}]}
  - name: a function's delay runs by the clock
    given: {topic: g, event: {data: {do: later}}}
    expect: {worker: {delivered: 1, attempts: [{after: 1h}]}}
  - name: a key waits for its first event, others do not
    given: {topic: h, events: [{id: "1", key: a}, {id: "2", key: a}, {id: "3", key: b}]}
    answers: {ordered: [503, 200]}
    for: 10s
    expect: {ordered: none}
  - name: and then goes in order
    given: {topic: h, events: [{id: "1", key: a}, {id: "2", key: a}, {id: "3", key: a}]}
    answers: {ordered: [503, 200]}
    expect: {ordered: {delivered: [{id: "1"}, {id: "2"}, {id: "3"}], inOrder: true}}
  - name: batches fill or wait
    given: [{topic: i, events: [{}, {}, {}, {}]}, {topic: i, after: 10s, event: {}}]
    expect: {batched: {delivered: 5, attempts: [{after: 0s, events: 3}, {after: 30s, events: 2}]}}
  - name: a rate spreads
    given: {topic: j, events: [{}, {}, {}]}
    expect: {slow: {delivered: 3, attempts: [{after: 0s}, {after: 500ms}, {after: 1s}]}}
  - name: state is kept from event to event
    given: [{topic: k, event: {}}, {topic: k, after: 1m, event: {}}]
    expect: {counted: [{data: {seen: 1}}, {data: {seen: 2}}]}
  - name: a repeat within the window is one event, later it is another
    given: [{topic: short, event: {id: x}}, {topic: short, after: 30s, event: {id: x}}, {topic: short, after: 2m, event: {id: x}}]
    expect: {unique: 2}
  - name: the schema refuses
    given: [{topic: strict, event: {data: {}}, refused: true}, {topic: strict, event: {data: {total: 1}}}]
    expect: {checked: 1}
  - name: without end for so long
    given: {topic: l, event: {}}
    answers: {endless: 500}
    for: 65m
    expect: {endless: {delivered: none, deadLetters: none, attempts: 7}}
  - name: an event is held back until its time
    at: 2026-06-01T00:00:00Z
    given: {topic: a, event: {ext: {deliverat: "2026-06-11T00:00:00Z"}}}
    expect: {hook: {delivered: 1, attempts: [{after: 10d}]}}
  - name: schedules publish as far as the clock goes
    at: 2026-03-01T10:30:00Z
    for: 3h
    expect: {ticks: {delivered: [{type: tick}, {type: tick}, {type: tick}], attempts: [{after: 30m}, {after: 90m}, {after: 150m}]}}
  - name: a stream has what it puts out
    given: {topic: m, event: {subject: s}}
    expect: {stream: [{subject: s}]}
`

const worldWork = `export default function (event) {
	switch (event.get("do")) {
	case "two": return [emit({data: {n: 1}}), emit({data: {n: 2}})];
	case "reject": return reject(422, "no");
	case "emit": return emit({topic: "f", data: {}});
	case "drop": return drop();
	case "later": return event.attempt > 1 ? event : retry("1h");
	}
	return event;
}
`

const worldCounter = `export default function (event, ctx) {
	return emit({data: {seen: Number(ctx.kv.add("seen", 1))}});
}
`

func TestRulesTestsRunAsInProduction(t *testing.T) {
	path := writeRules(t, worldRules)
	for name, text := range map[string]string{"work.js": worldWork, "counter.js": worldCounter} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if code, out := runRulesTest(t, nil, path, "--timeout", "1m"); code != 0 {
		t.Errorf("exit %d:\n%s", code, out)
	}
}

// A test that expects otherwise fails: nothing of what is compared is compared in vain.
func TestRulesTestsFail(t *testing.T) {
	const head = "version: 1\nsubscriptions:\n  hook:\n    topic: a\n    deliver: {webhook: {url: \"https://example.com/\", reply: true}}\n    retry: {attempts: 2, schedule: [5s]}\ntests:\n"
	for _, c := range []struct{ test, want string }{
		{"given: {topic: a, event: {}}, expect: {hook: 2}", "hook: wanted 2, got 1"},
		{"given: {topic: a, event: {}}, expect: {hook: none}", "hook: wanted none, got 1"},
		{"given: {topic: a, event: {type: x}}, expect: {hook: [{type: y}]}", `-   "type": "y"`},
		{"given: {topic: a, event: {key: x}}, expect: {hook: [{key: y}]}", `+   "key": "x"`},
		{"given: {topic: a, event: {ext: {r: x}}}, expect: {hook: [{ext: {r: y}}]}", `-   "ext.r": "y"`},
		{"given: {topic: a, event: {data: {a: 1, b: 2}}}, expect: {hook: {delivered: [{data: {a: 1}}], exact: true}}", `+     "b": 2`},
		{"given: {topic: a, event: {data: {a: 1}}}, expect: {hook: [{data: {a: null}}]}", `-     "a": null`},
		{"given: {topic: a, event: {data: [1, 2]}}, expect: {hook: [{data: [1]}]}", `+     2`},
		{"given: {topic: a, events: [{id: \"1\"}, {id: \"2\"}]}, expect: {hook: [{id: \"1\"}]}", `got: {"id":"2"`},
		{"given: {topic: a, event: {id: \"1\"}}, expect: {hook: [{id: \"1\"}, {id: \"2\"}]}", `missing: {"id":"2"}`},
		{"given: {topic: a, event: {}}, answers: {hook: 503}, expect: {hook: {deadLetters: none}}", "hook deadLetters: wanted none, got 1"},
		{"given: {topic: a, event: {}}, answers: {hook: 503}, expect: {hook: {deadLetters: [{code: 500}]}}", `-   "code": "500"`},
		{"given: {topic: a, event: {}}, expect: {hook: {attempts: 2}}", "hook attempts: wanted 2 attempts, got 1"},
		{"given: {topic: a, event: {}}, expect: {hook: {attempts: [{answer: 503}]}}", "+ {answer: 200}"},
		{"given: {topic: a, event: {}}, expect: {hook: {disabled: true}}", "hook disabled: wanted true, got false"},
		{"given: {topic: a, event: {}}, answers: {hook: 503}, topics: {hook.dead: none}", "topic hook.dead: wanted none, got 1"},
		{"given: {topic: a, event: {}}, answers: {hook: {status: 200, body: {a: 1}}}, reply: {data: {a: 2}}", `+     "a": 1`},
		{"given: {topic: a, event: {}}, answers: {hook: {status: 200, body: x}}, reply: none", "reply: wanted none, got"},
		{"given: {topic: a, event: {}}, answers: {hook: 503}, reply: {status: 200}", "reply: wanted one, got none"},
		{"given: {topic: a, event: {}, refused: true}, expect: {hook: 1}", "1 event was taken, and should have been refused"},
		{"given: {topic: a, events: none.ndjson}, expect: {hook: 1}", "none.ndjson"},
		{"for: 3s, given: {topic: a, event: {}}, answers: {hook: [503, 200]}, expect: {hook: 1}", "the next is due 5s after the start, and the clock stopped before"},
	} {
		code, out := runRulesTest(t, nil, writeRules(t, head+"  - {name: x, "+c.test+"}\n"))
		if code != 1 || !strings.Contains(out, "FAIL  x") || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit %d, want %q in\n%s", c.test, code, c.want, out)
		}
	}
}

// One that goes on and on ends all the same, and says how far it came.
func TestRulesTestsHaveATimeLimit(t *testing.T) {
	path := writeRules(t, "version: 1\nsubscriptions:\n  hook: {topic: a, deliver: {webhook: {url: \"https://example.com/\"}}, retry: {attempts: unlimited, schedule: [1s]}}\n"+
		"tests:\n  - {name: x, given: {topic: a, event: {}}, answers: {hook: 500}, expect: {hook: 1}}\n")
	code, out := runRulesTest(t, nil, path, "--timeout", "200ms")
	if code != 1 || !strings.Contains(out, "did not come to an end in time (--timeout)") || !strings.Contains(out, "at work: hook (0 not read, 0 in hand, 1 waiting for their time") {
		t.Errorf("exit %d:\n%s", code, out)
	}
}

// A hundred tests share what is compiled and are quick; this measures, and fails only where it is out of all bounds.
func TestAHundredRulesTests(t *testing.T) {
	var b strings.Builder
	b.WriteString("version: 1\nsubscriptions:\n  hook:\n    topic: a\n    filter: data.n > 10\n    deliver: {webhook: {url: \"https://example.com/\"}}\ntests:\n")
	for i := range 100 {
		fmt.Fprintf(&b, "  - {name: number %d, given: {topic: a, event: {data: {n: %d}}}, answers: {hook: [503, 503, 200]}, expect: {hook: %d}}\n", i, i, min(1, i/11))
	}
	began := time.Now()
	code, out := runRulesTest(t, nil, writeRules(t, b.String()))
	if took := time.Since(began); code != 0 || took > time.Minute {
		t.Errorf("exit %d after %s:\n%s", code, took, out)
	} else {
		t.Logf("100 tests in %s", took)
	}
}

func TestSameNumber(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{{"250", "250.0", true}, {"2.5e2", "250", true}, {"9007199254740993", "9007199254740992", false}, {"1e999999999", "1e999999998", false}, {"-0", "0", true}} {
		if got := sameNumber(c.a, c.b); got != c.same {
			t.Errorf("%s and %s: %t, want %t", c.a, c.b, got, c.same)
		}
	}
}

// One wanted event that several match leaves room for another that only one matches.
func TestPairUpMakesRoom(t *testing.T) {
	want := []shownEvent{{"type": "t"}, {"type": "t", "id": "1"}}
	got := []shownEvent{{"type": "t", "id": "1"}, {"type": "t", "id": "2"}}
	if missing, extra := pairUp(want, got, false, false); len(missing)+len(extra) != 0 {
		t.Errorf("missing %v, extra %v; want neither", missing, extra)
	}
	if missing, extra := pairUp(want, got, true, false); len(missing) != 1 || len(extra) != 1 {
		t.Errorf("in order: missing %v, extra %v; want one each", missing, extra)
	}
}

// What is recorded is read as publishing over HTTP would read it.
func TestRecordedEvents(t *testing.T) {
	evs, err := recordedEvents(strings.NewReader("{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\",\"data\":1}\n\n{\"total\":3}"))
	if err != nil || len(evs) != 2 || evs[0].ID != "1" || !evs[0].ClientID || string(evs[1].Data) != `{"total":3}` || evs[1].ClientID {
		t.Errorf("%+v, %v", evs, err)
	}
	if _, err := recordedEvents(strings.NewReader("1\n{\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%v; want line 2 named", err)
	}
}
