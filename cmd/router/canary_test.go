package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A flock is secrets that were planted, and everything that came out of the router and its commands since.
type flock struct {
	t       *testing.T
	secrets map[string]string // by what they are
	env     map[string]string

	mu  sync.Mutex
	out []string // each begins with where it came from
}

// mark is how every planted secret begins.
const mark = "CaNaRyQzX7w3"

// plant makes a secret: its first 20 bytes survive quoting as they are, the rest is changed in URLs and in JSON.
func (f *flock) plant(what string) string {
	secret := fmt.Sprintf("%s%08d", mark, len(f.secrets))
	f.secrets[what] = secret
	return secret + `/+&"`
}

// variable plants a secret as the value of a variable and returns a reference to it.
func (f *flock) variable(name string) string {
	f.env[name] = f.plant("variable " + name)
	return "${env:" + name + "}"
}

// whsec plants a secret that signs: its bytes are the secret, and so is what they are written as.
func (f *flock) whsec(what string) string {
	return "whsec_" + base64.StdEncoding.EncodeToString([]byte(f.plant(what)+"-of-24-bytes"))
}

// Write takes a part of the log.
func (f *flock) Write(p []byte) (int, error) {
	f.came("log", string(p))
	return len(p), nil
}

func (f *flock) came(from, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out = append(f.out, from+": "+text)
}

// forms are how a secret can be written so that who reads it has it: in every encoding that the router uses.
func forms(secret string) []string {
	all := []string{secret, strings.ToLower(secret), hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	for shift := range 3 { // where it stands in what was encoded moves its digits
		text := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
		all = append(all, text[(8*shift+5)/6:len(secret)*8/6]) // what depends on the secret alone
	}
	reversed := []byte(secret)
	slices.Reverse(reversed)
	return append(all, string(reversed))
}

// sing fails the test for what came out with a secret in it.
func (f *flock) sing() {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, text := range f.out {
		for _, form := range forms(mark) {
			if i := strings.Index(text, form); i >= 0 {
				from, _, _ := strings.Cut(text, ": ")
				f.t.Errorf("%s: …%s", from, text[max(0, i-200):min(len(text), i+len(form)+30)])
			}
		}
	}
}

// run runs a command line as its user would, and keeps what it prints.
func (f *flock) run(p *process, stdin string, args ...string) string {
	f.t.Helper()
	var out bytes.Buffer
	env := func(name string) string {
		switch name {
		case "MILLRACE_URL":
			return p.base
		case "HOME":
			return filepath.Dir(p.o.data)
		case "XDG_CACHE_HOME": // machine code, see withCache
			return os.Getenv(name)
		}
		return f.env[name]
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute) // the engine of scripts is compiled under the race detector
	defer cancel()
	code := run(ctx, "", args, strings.NewReader(stdin), &out, &out, env)
	f.came(fmt.Sprintf("router %s (exit %d)", strings.Join(args[:min(2, len(args))], " "), code), out.String())
	return out.String()
}

// ask makes a request with the router's token and keeps all of the answer.
func (f *flock) ask(p *process, method, path, contentType, body string, headers ...string) (int, string) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, p.base+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Authorization", "Bearer "+p.o.token)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil && len(text) == 0 {
		f.t.Fatal(err)
	}
	path, _, _ = strings.Cut(path, "?")
	f.came(fmt.Sprintf("%s %s (%d)", method, path, resp.StatusCode), fmt.Sprint(resp.Header)+" "+string(text))
	return resp.StatusCode, string(text)
}

// start starts a router that logs everything; rules is the path of its rules, "" for none.
func (f *flock) start(rules string) *process {
	p := f.unstarted(rules)
	p.start()
	f.t.Cleanup(func() { p.stop() })
	return p
}

func (f *flock) unstarted(rules string) *process {
	p := newProcess(f.t)
	p.o.log = slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p.o.token = f.plant("MILLRACE_TOKEN")
	f.env["MILLRACE_TOKEN"] = p.o.token
	p.o.env = func(name string) string { return f.env[name] }
	p.o.rules, p.o.autoCreate = rules, rules == ""
	return p
}

// everyGet asks every call of the API that reads, with names that exist.
func (f *flock) everyGet(p *process, topic, subscription, function string) {
	_, text := f.ask(p, "GET", "/v1/openapi.json", "", "")
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		f.t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		if doc.Paths[path]["get"] == nil || strings.HasSuffix(path, "/stream") || strings.HasSuffix(path, "/ws") || path == "/v1/backup" {
			continue // a backup is everything that there is, and docs/backup.md says so
		}
		name := subscription
		if strings.Contains(path, "/functions/") {
			name = function
		}
		path = strings.NewReplacer("{topic}", topic, "{position}", "0-0", "{name}", name).Replace(path)
		if strings.HasSuffix(path, "/explain") {
			path += "?event=" + topic + "/0-0"
		}
		f.ask(p, "GET", path, "", "")
	}
}

// files keeps the files below dir that are not the store's: there the rules of the API lie as they were sent.
func (f *flock) files(dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == storeDir {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) == ".yaml" || filepath.Base(path) == "signing.txt" {
			return nil
		}
		text, err := os.ReadFile(path)
		f.came("the file "+filepath.Base(path), string(text))
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// tattler is a receiver that sends back everything it was sent, in every way that an answer can.
func tattler(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all := fmt.Sprintf("%s %v %s", r.URL, r.Header, r.Header.Get("Authorization"))
		w.Header().Set("X-All", strings.ReplaceAll(all, "\n", " "))
		w.Header().Set("Location", "http://"+r.Host+"/?"+r.URL.RawQuery)
		switch r.URL.Path {
		case "/fail":
			http.Error(w, all, http.StatusInternalServerError)
		case "/gone":
			http.Error(w, all, http.StatusTeapot)
		case "/token": // of an authorization server, which says what it is told to
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600,"about":%q}`, r.URL.Query().Get("give"), all)
		case "/moved":
			http.Redirect(w, r, "/?"+r.URL.RawQuery, http.StatusFound)
		case "/far/v1/topics/orders/events": // of another router
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"type":"urn:millrace:problem:denied","detail":%q}`, r.Header.Get("Authorization"))
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

const tattlingScript = `export default function (event, ctx) {
	const secret = ctx.secret("literal") + ctx.secret("variable");
	console.info("my secret is " + secret);
	switch (event.type) {
	case "throw": throw new Error("with " + secret);
	case "reject": return reject(422, "rejected with " + secret);
	}
	return event;
}
`

// canaryRules has a secret in every place that rules have for one.
func (f *flock) canaryRules(hook, dir string) string {
	file := filepath.Join(dir, "signing.txt")
	if err := os.WriteFile(file, []byte(f.whsec("a signing secret in a file")+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tattle.js"), []byte(tattlingScript), 0o600); err != nil {
		f.t.Fatal(err)
	}
	query := f.plant("a literal in a URL's query")
	f.env["QUERY"] = f.plant("a variable in a URL's query")[:20]
	text := `version: 1
topics: {orders: {partitions: 1}, copies: {}}
functions:
  tattle:
    js: tattle.js
    secrets: {literal: ` + inQuotes(f.plant("a literal secret of a function")) + `, variable: "` + f.variable("FUNCTION") + `"}
subscriptions:
  pulled: {topic: orders, start: earliest, deliver: {pull: {}}}
  through:
    topic: orders
    start: earliest
    functions: [tattle]
    retry: {attempts: 1}
    deliver: {topic: copies}
`
	f.env["SIGNING"] = f.whsec("a signing secret in a variable")
	for _, way := range []struct{ name, url string }{
		{"fine", hook + "/fine"}, {"fail", hook + "/fail"}, {"gone", hook + "/gone"}, {"moved", hook + "/moved"},
		{"refused", "http://127.0.0.1:1/hook"}, {"tls", "https" + strings.TrimPrefix(hook, "http") + "/hook"}, {"nowhere", "http://nowhere.invalid/hook"},
	} {
		text += `  ` + way.name + `:
    topic: orders
    start: earliest
    retry: {attempts: 2, schedule: [1ms], jitter: 0}
    deliver:
      webhook:
        url: "` + way.url + `?literal=` + query[:20] + `&variable=${env:QUERY}"
        secrets: ["${env:SIGNING}", "${file:signing.txt}", ` + f.whsec("a literal signing secret of "+way.name) + `]
        headers: {Authorization: "Bearer ` + f.variable("HEADER_"+strings.ToUpper(way.name)) + `", X-Key: ` + inQuotes(f.plant("a literal header of "+way.name)) + `}
`
	}
	return text
}

func inQuotes(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// TestCanaries plants a secret wherever one can be given, drives a router through success and failure of each of its
// parts, and looks for the secrets, in every encoding, in everything that comes out: answers, command lines, logs of
// all levels, metrics and files.
func TestCanaries(t *testing.T) {
	f := &flock{t: t, secrets: map[string]string{}, env: map[string]string{}}
	hook, dir := tattler(t), t.TempDir()
	rules := f.canaryRules(hook, dir)
	if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	p := f.start(filepath.Join(dir, "rules.yaml"))
	for _, kind := range []string{"plain", "throw", "reject"} {
		f.ask(p, "POST", "/v1/publish", "application/json", `{"topic": "orders", "type": "`+kind+`", "payload": {"a": 1}}`)
	}
	until(t, "what fails is set aside", func() bool {
		_, text := f.ask(p, "GET", "/v1/subscriptions/refused/deadletters", "", "")
		_, through := f.ask(p, "GET", "/v1/subscriptions/through/deadletters", "", "")
		_, moved := f.ask(p, "GET", "/v1/subscriptions/moved/deadletters", "", "")
		_, nowhere := f.ask(p, "GET", "/v1/subscriptions/nowhere/deadletters", "", "")
		return strings.Contains(text, `"0-2"`) && strings.Contains(through, `"0-1"`) && strings.Contains(moved, `"0-2"`) && strings.Contains(nowhere, `"0-2"`)
	})
	for _, subscription := range []string{"fine", "fail", "gone", "moved", "refused", "tls", "nowhere", "through", "pulled"} {
		f.everyGet(p, "orders", subscription, "tattle")
		for _, args := range [][]string{
			{"explain", subscription, "orders/0-0"}, {"explain", subscription, "orders/0-0", "-o", "json"}, {"subscriptions", "show", subscription}, {"deadletters", "list", subscription, "-o", "json"},
			{"subscriptions", "pause", subscription}, {"subscriptions", "resume", subscription}, {"replay", subscription, "--since", "1h", "--dry-run"}, {"subscriptions", "shadow", subscription},
		} {
			f.run(p, "", args...)
		}
		f.ask(p, "PATCH", "/v1/subscriptions/"+subscription, "application/json", `{"deliver": {"webhook": {"secrets": ["***"]}}}`)
		f.ask(p, "DELETE", "/v1/subscriptions/"+subscription, "", "")
	}
	f.everyGet(p, "fail.dead", "fail", "tattle")
	f.commands(p, dir)
	f.badRules(p, dir, rules)
	f.overTheAPI(rules)
	p.stop()
	f.run(p, "", "doctor", "--data", p.o.data, "--deep")
	f.files(filepath.Dir(p.o.data))
	f.files(dir)
	f.sing()
	if len(f.secrets) < 25 || len(f.out) < 300 {
		t.Errorf("%d secrets were planted, %d things came out", len(f.secrets), len(f.out))
	}
}

// commands runs what reads, in each form of its output, and what is refused.
func (f *flock) commands(p *process, dir string) {
	path := filepath.Join(dir, "rules.yaml")
	sample := filepath.Join(dir, "sample.ndjson")
	for _, args := range [][]string{
		{"rules", "show", path}, {"rules", "show", path, "--effective"}, {"rules", "show"}, {"rules", "show", "-o", "json"}, {"rules", "validate", path},
		{"rules", "diff", path}, {"rules", "diff", path, "-o", "json"}, {"rules", "apply", path, "-y", "--token", f.env["MILLRACE_TOKEN"]}, {"rules", "revisions"}, {"rules", "rollback", "1"},
		{"rules", "backtest", path}, {"rules", "backtest", path, "-o", "json"}, {"rules", "test", path}, {"rules", "schema"},
		{"topics", "list"}, {"topics", "show", "orders"}, {"subscriptions", "list"}, {"subscriptions", "list", "-o", "json"}, {"functions", "list"}, {"functions", "show", "tattle"},
		{"functions", "logs", "tattle"}, {"functions", "logs", "tattle", "-o", "json"}, {"invoke", "tattle", "--data", "{}"}, {"schedules", "list"}, {"deadletters", "list", "fail"}, {"deadletters", "list", "through"},
		{"export", "orders"}, {"export", "fail.dead"}, {"export", "fail.dead", "--redact", "-o", sample}, {"pull", "pulled"}, {"publish", "orders", "--data", "1"}, {"deadletters", "redrive", "fail", "-y"},
		{"doctor"}, {"doctor", "-o", "json"}, {"version"}, {"version", "-o", "json"}, {"serve", "--rules", path, "--listen", "256.0.0.1:1", "--data", filepath.Join(dir, "other")},
		{"topics", "list", "--token", f.plant("a wrong token")}, {"topics", "list", "--server", "http://user:" + f.plant("a password of --server")[:20] + "@127.0.0.1:1"},
		{"serve", "--rules", "https://user:" + f.plant("a password of --rules")[:20] + "@127.0.0.1:1/rules?key=" + f.plant("a query of --rules")[:20], "--data", filepath.Join(dir, "afar")},
		{"explain", "--file", sample, "--rules", path, "fail"}, {"receive", "--secret", "whsec_" + f.plant("a secret of receive"), "--listen", "256.0.0.1:1"}, {"listen", "fail", "--forward-to", "ftp://u:" + f.plant("a password of --forward-to")[:20] + "@x/"},
	} {
		f.run(p, "", args...)
	}
	root := rootCommand(&program{env: func(name string) string { return f.env[name] }})
	for _, c := range root.Commands() {
		f.run(p, "", c.Name(), "--help")
		for _, sub := range c.Commands() {
			f.run(p, "", c.Name(), sub.Name(), "--help")
		}
	}
	token := p.o.token
	p.o.token = f.plant("a token that is not the router's")
	for _, path := range []string{"/v1/rules", "/metrics", "/v1/nothing", "/v1/topics/orders/stream?access_token=" + f.plant("a token in the query")[:20], "/v1/topics?access_token=" + f.plant("a token in a query that takes none")[:20]} {
		f.ask(p, "GET", path, "", "")
	}
	p.o.token = token
	f.ask(p, "GET", "/v1/topics", "", "", "Host", "x", "Cookie", f.plant("a cookie")[:20], "Origin", "http://evil.example")
}

// badRules makes the rules wrong near each of their secrets.
func (f *flock) badRules(p *process, dir, rules string) {
	rules = strings.Replace(rules, "js: tattle.js", "wasm: pushed", 1) // to load a script takes a second
	const event = `{"specversion":"1.0","id":"a","source":"s","type":"t"}`
	for i, change := range []struct{ old, new string }{
		{"secrets: [", "secretz: ["}, {"secrets: [", "secrets: {a: "}, {"headers: {", "header: {"}, {"headers: {Authorization", "headers: {Content-Length"}, {"url: \"http://127", "url: \"ftp://127"},
		{"url: \"http://127.0.0.1:1/", "url: \"http://" + f.plant("a user of a URL")[:20] + ":" + f.plant("a password of a URL")[:20] + "@127.0.0.1:1/"}, {"whsec_", "whsek_"}, {"whsec_", "whsec_!"}, {"${env:QUERY}", "${env:QUERY"}, {"${env:QUERY}", "${env:MISSING}"},
		{"${file:signing.txt}", "${file:missing.txt}"}, {"secrets: {literal", "secrets: {{literal"}, {"X-Key: '", "X-Key: \""}, {"Bearer ${env", "Bearer\\n${env"}, {"version: 1", "version: 2"}, {"topic: orders\n    start: earliest\n    retry", "topic: orders\n  start: earliest\n    retry"},
		{"partitions: 1", "partitions: \"${env:FUNCTION}\""}, {"partitions: 1", "partitions: \"${file:signing.txt}\""}, {"attempts: 2", "attempts: \"${env:FUNCTION}\""}, {"wasm: pushed", "wasm: \"${env:FUNCTION}\""}, {"functions: [tattle]", "functions: [\"${env:FUNCTION}\"]"},
		{"start: earliest", "filter: \"type == '${env:FUNCTION}' &&\""}, {"url: \"http://127.0.0.1:1/hook?", "url: \"${env:FUNCTION}?"}, {"headers: {Authorization", "headers: {\"${env:FUNCTION}\""},
	} {
		bad := strings.ReplaceAll(rules, change.old, change.new)
		if bad == rules {
			f.t.Fatalf("%q is not in the rules", change.old)
		}
		path := filepath.Join(dir, fmt.Sprintf("bad%d.yaml", i))
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			f.t.Fatal(err)
		}
		f.run(p, "", "rules", "validate", path)
		if i%6 == 0 { // they word faults alike
			f.run(p, "", "rules", "diff", path)
			f.run(p, "", "rules", "show", path, "--effective")
			f.run(p, event, "explain", "--file", "-", "--rules", path, "fail")
			f.run(p, "", "serve", "--rules", path, "--listen", "256.0.0.1:1", "--data", filepath.Join(dir, "bad"))
		}
		p.write(bad)
		_ = p.r.defs.reload(f.t.Context()) // it is logged, and shown by the API
		for _, path := range []string{"/v1/rules", "/readyz", "/metrics"} {
			f.ask(p, "GET", path, "", "")
		}
	}
	p.write(rules)
}

// overTheAPI puts rules with literals into force over the API, whole and one by one.
func (f *flock) overTheAPI(rules string) {
	// Files and functions do not travel: what is left has literals alone.
	literal := regexp.MustCompile(`\$\{file:[^}]*\}`).ReplaceAllString(rules, f.whsec("a signing secret over the API"))
	literal = regexp.MustCompile(`(?s)functions:\n  tattle:.*?subscriptions:`).ReplaceAllString(literal, "subscriptions:")
	literal = strings.Replace(literal, "    functions: [tattle]\n", "", 1)
	p := f.start("")
	apply := func(method, path, text string) {
		if status, answer := f.ask(p, method, path, "application/yaml", text); status >= 300 {
			f.t.Errorf("%s %s: %d %s", method, path, status, answer)
		}
	}
	f.ask(p, "POST", "/v1/rules/validate", "application/yaml", literal)
	apply("PUT", "/v1/rules?author=a&message=m", literal)
	apply("PUT", "/v1/rules?author=a&message=m", strings.Replace(literal, "attempts: 2", "attempts: 3", 1))
	for _, bad := range []string{strings.Replace(literal, "whsec_", "whsek_", 1), strings.Replace(literal, "headers: {", "header: {", 1), strings.Replace(literal, "topic: orders", "topick: orders", 2), literal + "}"} {
		for _, path := range []string{"/v1/rules", "/v1/rules/validate", "/v1/rules/diff", "/v1/rules/backtest"} {
			method := "POST"
			if path == "/v1/rules" {
				method = "PUT"
			}
			f.ask(p, method, path, "application/yaml", bad)
			f.ask(p, method, path, "application/json", bad)
		}
	}
	f.ask(p, "POST", "/v1/rules/diff", "application/yaml", literal)
	f.ask(p, "POST", "/v1/rules/backtest", "application/yaml", literal)
	f.ask(p, "POST", "/v1/rules/rollback", "application/json", `{"revision": 1}`)
	hook := `{"name": "one", "topic": "orders", "deliver": {"webhook": {"url": "http://127.0.0.1:1/?k=` + f.plant("a query over the API")[:20] + `", "secrets": ["` + f.whsec("a signing secret of one subscription") + `"], "headers": {"X-Key": "` + f.plant("a header of one subscription")[:20] + `"}}}}`
	f.ask(p, "DELETE", "/v1/rules", "", "")
	f.ask(p, "POST", "/v1/subscriptions", "application/json", hook)
	f.ask(p, "POST", "/v1/subscriptions", "application/json", strings.Replace(hook, `"url"`, `"uri"`, 1))
	f.ask(p, "POST", "/v1/subscriptions", "application/json", strings.Replace(hook, `"X-Key"`, `"Host"`, 1))
	f.ask(p, "POST", "/v1/subscriptions", "application/json", strings.Replace(hook, `whsec_`, `whsec`, 1))
	f.ask(p, "POST", "/v1/subscriptions", "application/json", strings.Replace(hook, `}`, ``, 1))
	for _, name := range []string{"one", "fail", "fine"} {
		f.everyGet(p, "orders", name, "none")
	}
	f.run(p, "", "rules", "show")
	f.run(p, "", "rules", "revisions", "-o", "json")
	f.run(p, "", "subscriptions", "show", "one")
	p.stop()
	f.files(filepath.Dir(p.o.data))
}
