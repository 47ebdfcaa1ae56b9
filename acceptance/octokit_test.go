package acceptance

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// npmDir is where the npm packages of the tests are; `make test` installs them.
const npmDir = "../scripts/npm"

var installNPM = sync.OnceValue(func() error {
	lock, err := os.ReadFile(filepath.Join(npmDir, "package-lock.json"))
	if err != nil {
		return err
	}
	// The same mark as scripts/deps.sh sets: the lock that was installed.
	stamp := filepath.Join(npmDir, "node_modules", ".installed")
	if installed, err := os.ReadFile(stamp); err == nil && bytes.Equal(installed, lock) {
		return nil
	}
	ci := exec.Command("npm", "ci", "--loglevel=error")
	ci.Dir = npmDir
	if out, err := ci.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci in %s: %w\n%s", npmDir, err, out)
	}
	return os.WriteFile(stamp, lock, 0o600)
})

// npm returns the folder of the npm packages, installed.
func npm(t *testing.T) string {
	t.Helper()
	if err := installNPM(); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(filepath.Join(npmDir, "node_modules"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// An example is one real webhook of GitHub.
type example struct {
	id, event string
	raw       json.RawMessage
	doc       map[string]any
}

func examples(t *testing.T) []example {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(npm(t), "@octokit", "webhooks-examples", "api.github.com", "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var kinds []struct {
		Name     string
		Examples []json.RawMessage
	}
	if err := json.Unmarshal(text, &kinds); err != nil {
		t.Fatal(err)
	}
	var all []example
	for _, k := range kinds {
		for i, raw := range k.Examples {
			x := example{id: fmt.Sprintf("%s-%d", k.Name, i), event: k.Name}
			var compact bytes.Buffer
			if err := json.Compact(&compact, raw); err != nil {
				t.Fatal(err)
			}
			x.raw = compact.Bytes()
			if err := decode(x.raw, &x.doc); err != nil {
				t.Fatal(err)
			}
			all = append(all, x)
		}
	}
	if len(all) < 300 {
		t.Fatalf("%d example payloads; the package has more than 300", len(all))
	}
	return all
}

func (x example) structured(t *testing.T) map[string]any {
	t.Helper()
	return map[string]any{"specversion": "1.0", "id": x.id, "source": "https://github.com", "type": "com.github." + x.event,
		"datacontenttype": "application/json", "data": x.raw}
}

const octokitRules = `version: 1
topics:
  github: {}
functions:
  keep: {wasm: %q}
subscriptions:
  changes:
    topic: github
    filter: >-
      data.repository.private == false
      && data.action in ["opened", "created", "edited", "deleted", "completed", "labeled"]
    functions: [keep]
    deliver: {webhook: {url: "${env:HOOK_URL}/changes", secrets: ["${env:HOOK_SECRET}"]}}
    retry: {attempts: 3, schedule: [50ms]}
  pulls:
    topic: github
    filter: >-
      has(data.pull_request) && (data.pull_request.user.login != "Codertocat" || data.pull_request.additions >= 1)
      || data.ref startsWith "refs/" && !has(data.action)
    functions: [keep]
    deliver: {webhook: {url: "${env:HOOK_URL}/pulls", secrets: ["${env:HOOK_SECRET}"], format: binary}}
    retry: {attempts: 3, schedule: [50ms]}
  issues:
    topic: github
    filter: type startsWith "com.github.issue" && (data.issue.number > 0 || data.issue.locked)
    functions: [keep]
    deliver: {webhook: {url: "${env:HOOK_URL}/issues", secrets: ["${env:HOOK_SECRET}"]}}
    retry: {attempts: 3, schedule: [50ms]}
`

// path walks a decoded document.
func path(doc any, keys ...string) (any, bool) {
	for _, k := range keys {
		m, ok := doc.(map[string]any)
		if !ok {
			return nil, false
		}
		if doc, ok = m[k]; !ok {
			return nil, false
		}
	}
	return doc, true
}

func text(doc any, keys ...string) string {
	v, _ := path(doc, keys...)
	s, _ := v.(string)
	return s
}

func number(doc any, keys ...string) (float64, bool) {
	v, _ := path(doc, keys...)
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	f, err := n.Float64()
	return f, err == nil
}

// matches says what the three filters say, without the package that runs them.
var matches = map[string]func(example) bool{
	"changes": func(x example) bool {
		private, ok := path(x.doc, "repository", "private")
		return ok && private == false &&
			slices.Contains([]string{"opened", "created", "edited", "deleted", "completed", "labeled"}, text(x.doc, "action"))
	},
	"pulls": func(x example) bool {
		if _, ok := path(x.doc, "pull_request"); ok {
			login := text(x.doc, "pull_request", "user", "login")
			n, ok := number(x.doc, "pull_request", "additions")
			if login != "" && login != "Codertocat" || ok && n >= 1 {
				return true
			}
		}
		_, hasAction := path(x.doc, "action")
		return strings.HasPrefix(text(x.doc, "ref"), "refs/") && !hasAction
	},
	"issues": func(x example) bool {
		n, ok := number(x.doc, "issue", "number")
		locked, _ := path(x.doc, "issue", "locked")
		return strings.HasPrefix(x.event, "issue") && (ok && n > 0 || locked == true)
	},
}

// kept says what functions/keep makes of an event.
func kept(x example) map[string]any {
	out := map[string]any{}
	if v, ok := path(x.doc, "action"); ok {
		out["action"] = v
	}
	if v, ok := path(x.doc, "repository", "full_name"); ok {
		out["repository"] = map[string]any{"full_name": v}
	}
	if v, ok := path(x.doc, "sender", "login"); ok {
		out["sender"] = map[string]any{"login": v}
	}
	return out
}

// refused tells which deliveries the receiver never takes, and flaky which it takes at the second try alone.
func refused(id string) bool { return strings.HasSuffix(id, "-1") }
func flaky(id string) bool   { return strings.HasSuffix(id, "-2") }

// fate says what must become of an event at a subscription.
func fate(sub string, x example) string {
	_, hasAction := path(x.doc, "action")
	switch {
	case !matches[sub](x):
		return "filtered"
	case !hasAction:
		return "dead: reject 422 after 1"
	case text(x.doc, "action") == "deleted":
		return "dropped"
	case refused(x.id):
		return "dead: attempts 409 after 3"
	}
	return "delivered"
}

// Every example payload of GitHub's webhooks goes through three subscriptions, and each one is delivered, filtered,
// dropped or dead-lettered just as this file computes by other means.
func TestOctokit(t *testing.T) {
	t.Parallel()
	all := examples(t)
	origin := func(id string) string { id, _, _ = strings.Cut(id, "~"); return id }
	rc := newReceiver(t, func(d delivery, try int) int {
		if id := origin(d.id); refused(id) || flaky(id) && try == 1 {
			return http.StatusConflict // says nothing of the target as a whole: with 5xx its circuit may open
		}
		return http.StatusNoContent
	})
	dir := t.TempDir()
	rules := filepath.Join(dir, "rules.yaml")
	write(t, rules, fmt.Sprintf(octokitRules, keepModule))
	r := serve(t, filepath.Join(dir, "data"), []string{"HOOK_URL=" + rc.URL, "HOOK_SECRET=" + secret}, "--rules", rules)

	publishExamples(t, r, all)
	if n := r.count("github"); n != len(all) {
		t.Fatalf("topic github holds %d events; %d were published", n, len(all))
	}
	stored := map[string]map[string]any{}
	for _, e := range r.events("github") {
		stored[e["id"].(string)] = e
	}
	for _, x := range all {
		e := stored[x.id]
		if e == nil || e["type"] != "com.github."+x.event || !same(e["data"], x.doc) {
			t.Errorf("%s is stored as %.300v", x.id, e)
		}
	}

	subs := slices.Sorted(maps.Keys(matches))
	r.settled(time.Minute, subs...)
	byPath := map[string]map[string]delivery{}
	for _, d := range rc.deliveries() {
		if byPath[d.path] == nil {
			byPath[d.path] = map[string]delivery{}
		}
		byPath[d.path][origin(d.id)] = d
	}
	deliveries := len(rc.deliveries())
	tally := map[string]int{}
	for _, sub := range subs {
		dead := map[string]string{}
		for _, e := range r.events(sub + ".dead") {
			id := e["id"].(string)
			dead[id] = fmt.Sprintf("dead: %v %v after %v", e["deadletterreason"], e["deadlettercode"], e["deadletterattempts"])
			if e["deadlettersub"] != sub || !same(e["data"], stored[id]["data"]) {
				t.Errorf("the dead letter of %s in %s.dead is not the event as it was: %.300v", id, sub, e)
			}
		}
		counts := map[string]int{}
		for _, x := range all {
			want := fate(sub, x)
			counts[want]++
			tally[want]++
			d, delivered := byPath["/"+sub][x.id]
			if delivered != (want == "delivered") {
				t.Errorf("%s at %s: must be %s; delivered: %v", x.id, sub, want, delivered)
			}
			if got := dead[x.id]; strings.HasPrefix(want, "dead") && got != want || !strings.HasPrefix(want, "dead") && got != "" {
				t.Errorf("%s at %s: must be %s; its dead letter says %q", x.id, sub, want, got)
			}
			if delivered {
				checkOutput(t, x, sub, d)
				if tries := rc.triesOf(d.webhookID); (tries == 2) != flaky(x.id) || tries > 2 {
					t.Errorf("%s at %s: taken at try %d of %s", x.id, sub, tries, d.webhookID)
				}
			}
			if n := rc.taken("/"+sub, d.id); delivered && n != 1 {
				t.Errorf("%s was taken %d times at %s, though every answer was heard", x.id, n, sub)
			}
		}
		t.Logf("%-8s %v", sub, counts)
		if counts["delivered"] == 0 || counts["filtered"] == 0 || counts["dead: attempts 409 after 3"] == 0 {
			t.Errorf("subscription %s does not tell fates apart: %v", sub, counts)
		}
		s := r.subscription(sub)
		if s.Matched != len(all)-counts["filtered"] || s.Delivered != counts["delivered"] || s.Dropped != counts["dropped"] ||
			s.DeadLettered != counts["dead: reject 422 after 1"]+counts["dead: attempts 409 after 3"] || s.Lost != 0 {
			t.Errorf("%s counts %+v of %v", sub, s, counts)
		}
	}
	if tally["dropped"] == 0 || tally["dead: reject 422 after 1"] == 0 {
		t.Errorf("the function's verdicts did not all occur: %v", tally)
	}
	t.Logf("%d events, %d deliveries: %v", len(all), len(rc.deliveries()), tally)
	backtestAgrees(t, r, rules, all)
	if n := len(rc.deliveries()); n != deliveries {
		t.Errorf("%d deliveries after the backtests, %d before them", n, deliveries)
	}
	r.stop(20 * time.Second)
}

// publishExamples sends a fifth of the examples in each form of publishing.
func publishExamples(t *testing.T, r *router, all []example) {
	t.Helper()
	var batch []map[string]any
	var lines, packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	n := 0
	for i, x := range all {
		switch doc := x.structured(t); i % 5 {
		case 0:
			batch = append(batch, doc)
		case 1:
			lines.Write(append(encode(t, doc), '\n'))
		case 2:
			n += r.publish("github", "application/json", x.raw, "ce-specversion", "1.0", "ce-id", x.id,
				"ce-source", "https://github.com", "ce-type", "com.github."+x.event).Accepted
		case 3:
			n += r.publish("github", "application/cloudevents+json", encode(t, doc)).Accepted
		case 4:
			if _, err := zip.Write(append(encode(t, doc), '\n')); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	n += r.publish("github", "application/cloudevents-batch+json", encode(t, batch)).Accepted
	n += r.publish("github", "application/x-ndjson", lines.Bytes()).Accepted
	n += r.publish("github", "application/x-ndjson", packed.Bytes(), "Content-Encoding", "gzip").Accepted
	if n != len(all) {
		t.Fatalf("%d events accepted, %d published", n, len(all))
	}
}

// checkOutput holds a delivery to what the function must have made of the event, field for field.
func checkOutput(t *testing.T, x example, sub string, d delivery) {
	t.Helper()
	data, typ, source := any(d.doc), d.header.Get("ce-type"), d.header.Get("ce-source")
	if sub != "pulls" {
		data, typ, source = d.doc["data"], text(d.doc, "type"), text(d.doc, "source")
	}
	if want := kept(x); !same(data, want) {
		t.Errorf("%s at %s: delivered %s; want %s", x.id, sub, encode(t, data), encode(t, want))
	}
	if typ != "com.github."+x.event || source != "https://github.com" {
		t.Errorf("%s at %s: delivered with type %q and source %q", x.id, sub, typ, source)
	}
	if want := x.id + "~" + sub + "~0"; d.id != want {
		t.Errorf("%s at %s: delivered with id %q; want %q", x.id, sub, d.id, want)
	}
}
