package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/examples/quickstart"
)

const appliedRules = `version: 1
topics: {orders: {}}
subscriptions:
  slow: {topic: orders, deliver: {pull: {}}, deadLetter: slow.dead}
  none: {topic: orders, filter: data.n > 100, deliver: {pull: {}}}
`

// put applies rules with a revision to match and returns the status and what it came to.
func (p *process) put(t *testing.T, query, match, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", p.base+"/v1/rules"+query, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if match != "" {
		req.Header.Set("If-Match", `"`+match+`"`)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func (p *process) applied(t *testing.T, query, body string) revisedDoc {
	t.Helper()
	status, text := p.put(t, query, "", body)
	var doc revisedDoc
	if err := json.Unmarshal([]byte(text), &doc); err != nil || status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	return doc
}

func (p *process) publish(t *testing.T, topic string, n int) {
	t.Helper()
	for i := range n {
		p.must(202, "POST", "/v1/topics/"+topic+"/events", "application/json", fmt.Sprintf(`{"n": %d}`, i))
	}
}

// revisionRows counts what the store has of revisions: a row for each and one for each small file.
func revisionRows(t *testing.T, p *process) (n int) {
	t.Helper()
	const revisions = 21 // engine's table
	if err := p.r.store.Scan(t.Context(), revisions, nil, nil, func(_, _ []byte) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAppliedRulesAreRevisions(t *testing.T) {
	p := startProcess(t, "")
	p.must(201, "POST", "/v1/topics", "application/json", `{"name": "orders"}`)
	p.must(201, "POST", "/v1/subscriptions", "application/json", `{"name": "mine", "topic": "orders", "deliver": {"pull": {}}}`)

	first := p.applied(t, "?author=ada&message=first", appliedRules)
	if first.Number != 1 || first.Previous != "0" || !first.Changed || first.Author != "ada" {
		t.Fatalf("%+v", first)
	}
	if again := p.applied(t, "", appliedRules); again.Changed || again.ID != first.ID {
		t.Errorf("the same rules again: %+v", again)
	}
	// The topic that the API had made alike is the rules' now; the API's subscription lives beside them.
	if status, text := p.call("PATCH", "/v1/topics/orders", "application/json", `{"retain": {"age": "1h"}}`); status != 409 || !strings.Contains(text, "rules.yaml:2") {
		t.Errorf("%d %s", status, text)
	}
	p.must(200, "PATCH", "/v1/subscriptions/mine", "application/json", `{"concurrency": 3}`)
	if status, text := p.put(t, "", "", appliedRules+"  mine: {topic: orders, deliver: {topic: x}}\n"); status != 409 || !strings.Contains(text, `subscription \"mine\" is defined here`) || !strings.Contains(text, "/v1/subscriptions/mine") {
		t.Errorf("%d %s", status, text)
	}

	// Nothing is lost without a word.
	p.publish(t, "orders", 5)
	less := "version: 1\ntopics: {orders: {}}\n"
	status, text := p.put(t, "", first.ID, less)
	if status != 409 || !strings.Contains(text, "subscriptions.slow") || !strings.Contains(text, "would go with 5 events undelivered") {
		t.Errorf("%d %s", status, text)
	}
	second := p.applied(t, "?undelivered=keep&author=bob", less)
	if second.Kept != 5 || second.Number != 2 || second.Previous != first.ID {
		t.Errorf("%+v", second)
	}
	letters := p.must(200, "GET", "/v1/topics/slow.dead/events?since=1h&limit=10", "", "")
	if strings.Count(letters, `"deadletterreason":"removed"`) != 5 || !strings.Contains(letters, `"deadlettersub":"slow"`) {
		t.Errorf("dead letters: %s", letters)
	}
	if status, text := p.put(t, "", first.ID, appliedRules); status != 412 || !strings.Contains(text, second.ID+" is, applied by bob") {
		t.Errorf("%d %s", status, text)
	}

	if text := p.must(200, "GET", "/metrics", "", ""); !strings.Contains(text, `millrace_rules_revision_info{revision="`+second.ID+`",source="api"} 1`) {
		t.Error("the revision is not among the metrics")
	}
	// It is all there after a restart, and what was before can be had again.
	p.stop()
	p.start()
	if text := p.must(200, "GET", "/v1/rules/revisions", "", ""); !strings.Contains(text, `"inForce":"`+second.ID+`"`) || strings.Count(text, `"number"`) != 2 {
		t.Errorf("%s", text)
	}
	if status, _ := p.call("GET", "/v1/subscriptions/slow", "", ""); status != 404 {
		t.Errorf("a removed subscription is answered %d", status)
	}
	p.must(200, "GET", "/v1/subscriptions/mine", "", "")
	var back revisedDoc
	if err := json.Unmarshal([]byte(p.must(200, "POST", "/v1/rules/rollback?author=eve", "application/json", `{"to": 1}`)), &back); err != nil {
		t.Fatal(err)
	}
	if back.Number != 3 || back.Revision.Revision != first.Revision.Revision || back.Message != "rollback to "+first.ID {
		t.Errorf("%+v", back)
	}
	p.must(200, "GET", "/v1/subscriptions/slow", "", "")
	if text := p.must(200, "POST", "/v1/rules/backtest?before=2", "application/yaml", appliedRules); !strings.Contains(text, `"report"`) || !strings.Contains(text, "slow") {
		t.Errorf("compared with a revision: %s", text)
	}
	if status, text := p.call("POST", "/v1/rules/backtest?before=77", "application/yaml", appliedRules); status != 404 || !strings.Contains(text, "?before") {
		t.Errorf("%d %s", status, text)
	}
	if status, text := p.call("POST", "/v1/rules/rollback", "application/json", `{"to": "77"}`); status != 404 || !strings.Contains(text, "router rules revisions") {
		t.Errorf("%d %s", status, text)
	}
}

// Rules that are refused when they are put in force leave nothing behind.
func TestRefusedRulesLeaveNoFiles(t *testing.T) {
	p := startProcess(t, "")
	const full = "version: 1\ntopics: {orders: {}, slow.dead: {retain: {events: 1}, whenFull: reject}}\n"
	p.applied(t, "", full+"subscriptions:\n  slow: {topic: orders, deliver: {pull: {}}, deadLetter: slow.dead}\n  other: {topic: slow.dead, deliver: {pull: {}}}\n")
	p.publish(t, "orders", 5)
	before := revisionRows(t, p)
	if status, text := p.put(t, "?undelivered=keep", "", full+"subscriptions:\n  other: {topic: slow.dead, deliver: {pull: {}}}\n"); status/100 == 2 {
		t.Fatalf("five letters fit where one does: %d %s", status, text)
	}
	if after := revisionRows(t, p); after != before {
		t.Errorf("%d rows of revisions, before %d", after, before)
	}
	p.must(200, "GET", "/v1/subscriptions/slow", "", "")
}

// Of those who change the same revision at once one wins, and the others are told.
func TestOneOfTwoAppliesWins(t *testing.T) {
	p := startProcess(t, "")
	is := p.applied(t, "", appliedRules).ID
	const racers = 2 // as many as are taken at once
	statuses := make([]int, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			statuses[i], _ = p.put(t, "", is, fmt.Sprintf("%s  s%d: {topic: orders, deliver: {pull: {}}}\n", appliedRules, i))
		})
	}
	wg.Wait()
	won := 0
	for _, s := range statuses {
		switch s {
		case 200:
			won++
		case 412:
		default:
			t.Errorf("answered %d", s)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d won: %v", won, racers, statuses)
	}
}

// A rollback brings back modules that nothing has named since.
func TestRollbackBringsModulesBack(t *testing.T) {
	p := startProcess(t, "")
	dir := t.TempDir()
	write := func(text string) string {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, _, err := rules.Pack(t.Context(), dir, rules.Options{Sinks: sinkKinds(nil)})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	module, err := quickstart.Files.ReadFile("functions/redact.wasm")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "redact.wasm"), module, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	first := p.applied(t, "", write("topics: {a: }\nfunctions: {redact: {wasm: redact.wasm}}\nsubscriptions: {s: {topic: a, functions: [redact], deliver: {topic: b}}}\n"))
	var f struct{ Wasm string }
	if err := json.Unmarshal([]byte(p.must(200, "GET", "/v1/functions/redact", "", "")), &f); err != nil {
		t.Fatal(err)
	}
	p.applied(t, "", write("topics: {a: }\n"))
	p.stop()
	if err := os.RemoveAll(filepath.Join(p.o.data, "functions")); err != nil { // as if it was long ago
		t.Fatal(err)
	}
	p.start()
	p.must(200, "POST", "/v1/rules/rollback", "application/json", `{"to": "`+first.ID+`"}`)
	if text := p.must(200, "GET", "/v1/functions/redact", "", ""); !strings.Contains(text, f.Wasm) {
		t.Errorf("%s is not in %s", f.Wasm, text)
	}
}

func TestRulesHaveOneOwner(t *testing.T) {
	p := startProcess(t, twoTopics)
	status, text := p.put(t, "", "", appliedRules)
	if status != 409 || !strings.Contains(text, p.o.rules) {
		t.Errorf("%d %s", status, text)
	}
	if status, text := p.call("POST", "/v1/rules/rollback", "application/json", `{"to": 1}`); status != 409 || !strings.Contains(text, "change them there") {
		t.Errorf("%d %s", status, text)
	}
	// Every state of the file is a revision, and it can be compared with.
	p.write(strings.Replace(twoTopics, "orders: {}", "orders: {retain: {events: 10}}", 1))
	if err := p.r.defs.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := p.must(200, "GET", "/v1/rules/revisions", "", ""); strings.Count(text, `"number"`) != 2 || !strings.Contains(text, `"source":"`+p.o.rules+`"`) {
		t.Errorf("%s", text)
	}
	if text := p.must(200, "POST", "/v1/rules/diff", "application/yaml", twoTopics); !strings.Contains(text, `"key":"retain.events","old":"10","new":""`) {
		t.Errorf("%s", text)
	}
	// Without the file, rules are applied; then the file does not come back without a word.
	p.stop()
	file := p.o.rules
	p.o.rules, p.o.autoCreate = "", true
	p.start()
	applied := p.applied(t, "?author=ada", appliedRules)
	p.stop()
	p.o.rules = file
	if _, err := openRouter(context.Background(), p.o); err == nil || !strings.Contains(err.Error(), "by ada (revision "+applied.ID) || !strings.Contains(err.Error(), "--rules-owner file") {
		t.Fatalf("started with both: %v", err)
	}
	p.o.rulesOwner = ownerAPI
	p.start()
	p.must(200, "GET", "/v1/subscriptions/slow", "", "")
	p.stop()
	p.o.rulesOwner = ownerFile
	p.start()
	p.must(200, "GET", "/v1/subscriptions/copy", "", "")
	if status, _ := p.call("GET", "/v1/subscriptions/slow", "", ""); status != 404 {
		t.Errorf("what was applied is in force beside the file: %d", status)
	}
	p.stop()
	p.o.rulesOwner = "" // the file is the newest revision: it owns the rules from now on
	p.start()
	p.must(200, "GET", "/v1/subscriptions/copy", "", "")
}

func TestDiffTellsWhatBecomesOfEvents(t *testing.T) {
	p := startProcess(t, "")
	p.applied(t, "", appliedRules)
	p.publish(t, "orders", 3)
	p.must(200, "POST", "/v1/subscriptions/slow/pull", "application/json", `{"max": 1}`)
	var delta rulesDelta
	next := "topics: {orders: {partitions: 2, retain: {events: 1}}}\nsubscriptions: {none: {topic: orders, start: earliest, filter: data.n > 5, deliver: {pull: {}}}}\n"
	until(t, "three events are in hand", func() bool {
		text := p.must(200, "POST", "/v1/rules/diff", "application/yaml", next)
		delta = rulesDelta{}
		if err := json.Unmarshal([]byte(text), &delta); err != nil {
			t.Fatal(err)
		}
		return len(delta.Changes) == 3 && delta.Changes[2].Undelivered != nil && delta.Changes[2].Undelivered.InHand == 3
	})
	text := delta.text(false)
	for _, want := range []string{
		"~ topic orders\n    partitions: 1 → 2\n    retain.events: (none) → 1\n",
		"~ subscription none\n    start: latest → earliest\n    filter: data.n > 100 → data.n > 5\n    ! start counts where a subscription is made",
		"- subscription slow\n    ! it is removed: 3 undelivered events go with it (0 not looked at, 3 in hand, 0 waiting for their next try); --keep moves them to its dead-letter topic slow.dead\n",
		"0 created, 2 changed, 1 removed\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if len(delta.Refused) != 1 || !strings.Contains(delta.Refused[0], `topic "orders" was made with 1 partition`) {
		t.Errorf("refused: %q", delta.Refused)
	}
	if status, text := p.put(t, "?undelivered=drop", "", next); status != 409 || !strings.Contains(text, "partitions: 1") {
		t.Errorf("%d %s", status, text)
	}
	smaller := strings.Replace(appliedRules, "orders: {}", "orders: {retain: {events: 1}}", 1)
	if text := p.must(200, "POST", "/v1/rules/diff", "application/yaml", smaller); !strings.Contains(text, "about 2 of 3 events leave at once") {
		t.Errorf("%s", text)
	}
	if text := p.must(200, "POST", "/v1/rules/diff", "application/yaml", "version: 1\n"); !strings.Contains(text, "the topic is kept as it is, with its 3 events") {
		t.Errorf("%s", text)
	}
	if md := delta.markdown(); !strings.Contains(md, "| removed | subscription `slow` |") {
		t.Errorf("%s", md)
	}
	for _, hostile := range []string{"\x1f\x8b", "topics: {t: {schema: /etc/passwd}}", `functions: {f: {wasm: pushed, secrets: {a: "${file:/etc/hostname}"}}}`, `functions: {f: {wasm: pushed, secrets: {a: "${env:MILLRACE_TOKEN}"}}}`} {
		if status, text := p.put(t, "", "", hostile); status != 400 {
			t.Errorf("%q: %d %s", hostile, status, text)
		}
	}
}

// Who may only compare learns no variable of the router's; the rules file's own next version is compared all the same.
func TestComparedRulesLearnNoVariable(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	p := newProcess(t)
	vars := map[string]string{"A_SECRET": secret, "A_HOST": "hook.example", "MILLRACE_RULES_TOKEN": secret}
	p.o.env = func(name string) string { return vars[name] }
	p.o.rules = filepath.Join(filepath.Dir(p.o.data), "rules.yaml")
	const own = `version: 1
topics: {orders: {}}
subscriptions:
  hook: {topic: orders, filter: 'data.n > 1', deliver: {webhook: {url: "https://${env:A_HOST}/in", secrets: ["${env:A_SECRET}"]}}}
  refers: {topic: orders, filter: 'type != "${env:A_SECRET}"', deliver: {pull: {}}}
`
	p.write(own)
	p.start()
	t.Cleanup(func() { p.stop() })
	p.publish(t, "orders", 3)
	post := func(path, body string) (int, string) {
		t.Helper()
		status, text := p.call("POST", path, "application/yaml", body)
		if strings.Contains(text, secret) {
			t.Errorf("%s of\n%s\ngives the variable away: %s", path, body, text)
		}
		return status, text
	}
	if status, text := post("/v1/rules/diff", own); status != 200 || !strings.Contains(text, `"changes":[]`) {
		t.Errorf("the same rules: %d %s", status, text)
	}
	next := strings.Replace(own, "data.n > 1", "data.n > 0", 1)
	if status, text := post("/v1/rules/backtest", next); status != 200 || !strings.Contains(text, `"changed":1,`) || strings.Contains(text, `"lost":1`) {
		t.Errorf("the next rules: %d %s", status, text)
	}
	for _, body := range []string{
		strings.Replace(own, "data.n > 1", `type != \"${env:A_SECRET}\"`, 1),
		"version: 1\ntopics: {orders: {}}\nsubscriptions: {spy: {topic: orders, filter: 'type != \"${env:A_SECRET}\"', deliver: {pull: {}}}}\n",
		"version: 1\ntopics: {orders: {}}\nsubscriptions: {spy: {topic: \"${env:A_SECRET}\", deliver: {pull: {}}}}\n",
	} {
		post("/v1/rules/diff", body)
		if status, text := post("/v1/rules/backtest", strings.ReplaceAll(body, `\"`, `"`)); status != 400 || !strings.Contains(text, "refer to variables") {
			t.Errorf("%s\n%d %s", body, status, text)
		}
	}
	// What its own filter has by reference is not in an example either.
	if status, text := post("/v1/rules/backtest", "version: 1\ntopics: {orders: {}}\n"); status != 200 || !strings.Contains(text, `type != \"***\"`) && !strings.Contains(text, `"lost"`) {
		t.Errorf("%d %s", status, text)
	}
	post("/v1/rules/backtest?functions=true", strings.Replace(own, "refers:", "other:", 1))
}

// Rules of the API may use variables; a backtest does not print them, and the router's tokens are none.
func TestBacktestPrintsNoVariable(t *testing.T) {
	const secret = "hunter2-of-the-router"
	p := newProcess(t)
	p.o.env = func(string) string { return secret }
	p.o.autoCreate = true
	p.start()
	t.Cleanup(func() { p.stop() })
	p.publish(t, "orders", 3)
	status, text := p.call("POST", "/v1/rules/backtest", "application/yaml", "topics: {orders: {}}\nsubscriptions: {s: {topic: orders, filter: 'type != \"${env:A_SECRET}\"', deliver: {pull: {}}}}\n")
	if status != 200 || strings.Contains(text, secret) || !strings.Contains(text, "***") {
		t.Errorf("%d %s", status, text)
	}
}

// A rules file that is called as revisions of the API are does not pass for one of them.
func TestRulesFileCalledAPI(t *testing.T) {
	for path, want := range map[string]string{"api": "./api", "rules.yaml": "rules.yaml", "": ""} {
		if got := (&definitions{path: path}).source(); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}
