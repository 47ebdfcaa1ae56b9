package acceptance

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const reloadRules = `version: 1
topics:
  load: {}
functions:
  keep: {wasm: %[1]q}
subscriptions:
  hook:
    topic: load
    concurrency: %[2]d
    deliver: {webhook: {url: "${env:HOOK_URL}/hook", secrets: ["${env:HOOK_SECRET}"]}}
  shaped:
    topic: load
    functions: [keep]
    deliver: {topic: shaped}
  sometimes-%[2]d:
    topic: load
    filter: data.n %% %[2]d == 1
    deliver: {pull: {}}
`

// badRules are faults and where they are said to be.
var badRules = []struct{ from, to, at, says string }{
	{"  load: {}", "  load: {retian: {age: 7d}}", "3:10", `did you mean "retain"?`},
	{"    functions: [keep]", "    functions: [kepe]", "13:17", `unknown function "kepe"`},
	{"    filter: data.n", "    filter: dat.n", "17:13", `unknown name "dat"`},
	{"deliver: {topic: shaped}", "deliver: {topix: shaped}", "14:15", `unknown sink "topix"`},
	{"version: 1", "version: 7", "1:10", "version"},
	{"    topic: load\n    concurrency", "    topic: ../load\n    concurrency", "8:12", "name"},
	{"${env:HOOK_URL}", "${env:HOOK_URL_MISSING}", "10:31", "HOOK_URL_MISSING"},
}

// Good and bad rules files alternate under load, by SIGHUP and by nothing but the file's change: nothing is lost, each bad one is
// refused with file, line and column on /readyz and in the log, and the rules before serve on.
func TestReloadUnderLoad(t *testing.T) {
	rounds := 2
	if long {
		rounds = 60
	}
	rc := newReceiver(t, nil)
	dir := t.TempDir()
	rules := filepath.Join(dir, "rules.yaml")
	good := func(n int) string { return fmt.Sprintf(reloadRules, keepModule, n) }
	write(t, rules, good(2))
	r := serve(t, filepath.Join(dir, "data"), []string{"HOOK_URL=" + rc.URL, "HOOK_SECRET=" + secret}, "--rules", rules)

	l := &ledger{}
	var current atomic.Pointer[router]
	current.Store(r)
	stop := make(chan struct{})
	var publishers sync.WaitGroup
	for p := range 2 {
		publishers.Go(func() { publishLoad(l, &current, p, stop) })
	}
	ready := func() (doc struct {
		Status string
		Rules  struct{ Revision, Error string }
	}) {
		t.Helper()
		r.call("GET", "/readyz", "", nil, &doc)
		return doc
	}
	reloads, refusals := 0, 0
	put := func(text string) {
		t.Helper()
		write(t, rules, text)
		if reloads%4 != 3 { // each fourth is left to be found
			r.signal(syscall.SIGHUP)
		}
		reloads++
	}
	inForce := ready().Rules.Revision
	for round := range rounds {
		for i, bad := range badRules {
			base := good(2 + (round+i)%2)
			text := strings.Replace(base, bad.from, bad.to, 1)
			if text == base {
				t.Fatalf("%q is not in the rules", bad.from)
			}
			put(text)
			want := rules + ":" + bad.at
			eventually(t, 10*time.Second, func() error {
				if doc := ready(); !strings.Contains(doc.Rules.Error, bad.at) {
					return fmt.Errorf("rules with %q: /readyz says %q; want %s", bad.to, doc.Rules.Error, want)
				}
				return nil
			})
			refusals++
			doc := ready()
			if !strings.Contains(doc.Rules.Error, "rules.yaml:"+bad.at+":") || !strings.Contains(doc.Rules.Error, bad.says) {
				t.Errorf("rules with %q: /readyz says %q; want %s and %q", bad.to, doc.Rules.Error, want, bad.says)
			}
			if strings.Contains(doc.Rules.Error, rc.URL) || strings.Contains(doc.Rules.Error, secret) {
				t.Errorf("the error shows what was put in: %s", doc.Rules.Error)
			}
			if doc.Rules.Revision != inForce || doc.Status != "ready" {
				t.Errorf("after bad rules /readyz says %+v; revision %s was in force", doc, inForce)
			}
			eventually(t, 10*time.Second, func() error { // the line follows what /readyz says
				if !strings.Contains(r.log.String(), "rules.yaml:"+bad.at+":") {
					return fmt.Errorf("the log does not have %s", want)
				}
				return nil
			})

			put(good(2 + (round+i+1)%2))
			eventually(t, 10*time.Second, func() error {
				if doc := ready(); doc.Rules.Error != "" || doc.Rules.Revision == inForce {
					return fmt.Errorf("after good rules /readyz says %+v", doc)
				}
				return nil
			})
			inForce = ready().Rules.Revision
		}
	}
	close(stop)
	publishers.Wait()
	for _, f := range l.failed {
		t.Error(f)
	}
	eventually(t, 30*time.Second, func() error {
		if missing := rc.missing("/hook", l.acked); missing != nil {
			return fmt.Errorf("the receiver lacks %v of %d; the subscription is %+v", missing, len(l.acked), r.subscription("hook"))
		}
		return nil
	})
	r.settled(30*time.Second, "hook", "shaped")
	shaped := map[string]int{}
	for _, e := range r.events("shaped") {
		shaped[e["id"].(string)]++
	}
	again := 0
	for _, id := range l.acked {
		if n := shaped[id+"~shaped~0"]; n != 1 {
			t.Fatalf("the output of %s is %d times in topic shaped", id, n)
		}
		again += rc.taken("/hook", id) - 1
	}
	if n := r.count("load"); n != len(l.acked) {
		t.Errorf("the topic holds %d events, %d were acknowledged", n, len(l.acked))
	}
	t.Logf("%d reloads, %d of them refused, %d events, %d delivered again", reloads, refusals, len(l.acked), again)
	if again > 0 {
		t.Errorf("%d events were delivered again, though every answer was heard", again)
	}
	var list struct{ Subscriptions []json.RawMessage }
	if r.call("GET", "/v1/subscriptions", "", nil, &list); len(list.Subscriptions) != 3 {
		t.Errorf("%d subscriptions; the last rules define 3", len(list.Subscriptions))
	}
	r.stop(20 * time.Second)
}
