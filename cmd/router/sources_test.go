package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// signedHook is a line of testdata/sign.mjs.
type signedHook struct {
	Source, Body, Query string
	Headers             map[string]string
	Want                map[string]string
}

// signedHooks are webhooks as their senders' own libraries sign them.
func signedHooks(t *testing.T, env map[string]string) []signedHook {
	t.Helper()
	dir := t.TempDir()
	modules, err := filepath.Abs("../../scripts/npm/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("testdata/sign.mjs")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "sign.mjs"), program, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(dir, "sign.mjs"))
	cmd.Env = os.Environ()
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var all []signedHook
	for line := range strings.Lines(string(out)) {
		var h signedHook
		if err := json.Unmarshal([]byte(line), &h); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, h)
	}
	return all
}

// send posts a webhook, as it is or with its body changed.
func (p *process) send(h signedHook, body string) (int, string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), "POST", p.base+"/v1/sources/"+h.Source+h.Query, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	for name, value := range h.Headers {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// snsKey makes a key as SNS's, in PEM, and what vouches for its certificate.
func snsKey(t *testing.T) (string, trust) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	made := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"sns.amazonaws.com"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, made, made, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	roots.AppendCertsFromPEM(text)
	fetch := func(_ context.Context, url string, _ int64) ([]byte, error) {
		if url != "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem" {
			return nil, fmt.Errorf("%s is asked for", url)
		}
		return text, nil
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})), trust{fetch, roots}
}

// Each recipe of docs/sources.md takes what its sender's own library signs, once, and refuses it when a byte of the body is
// another; also after a restart. No secret is told anywhere.
func TestRecipesOfSources(t *testing.T) {
	env := map[string]string{"SVIX_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "OLD_SECRET": "whsec_b2xkLXNlY3JldC1vbGQtc2VjcmV0", "NEW_SECRET": "whsec_bmV3LXNlY3JldC1uZXctc2VjcmV0"}
	for _, name := range []string{"GITHUB_SECRET", "STRIPE_SECRET", "SLACK_SECRET", "SHOPIFY_SECRET", "TWILIO_TOKEN", "META_SECRET", "META_VERIFY_TOKEN", "GITLAB_TOKEN", "TWITCH_SECRET", "GRID_PASSWORD", "JUDGE_KEY"} {
		env[name] = "canary-" + strings.ToLower(name)
	}
	key, vouched := snsKey(t)
	env["SNS_KEY"] = key
	hooks := signedHooks(t, env)
	p := newProcess(t)
	p.o.trust = vouched
	p.o.env = func(name string) string { return env[name] }
	p.o.rules = filepath.Join(filepath.Dir(p.o.data), "rules.yaml")
	if err := os.WriteFile(filepath.Join(filepath.Dir(p.o.rules), "judge.js"), []byte(codeBlock(t, "sources.md", "js", 0)), 0o600); err != nil {
		t.Fatal(err)
	}
	p.write(codeBlock(t, "sources.md", "yaml", 2))
	p.start()
	t.Cleanup(func() { p.stop() })

	quiet := func(text string) {
		for name, secret := range env {
			if strings.Contains(text, secret) {
				t.Errorf("%s is told in %s", name, text)
			}
		}
	}
	first := map[string]string{}
	for _, h := range hooks {
		status, text := p.send(h, h.Body)
		if status != 200 {
			t.Errorf("%s: %d %s", h.Source, status, text)
			continue
		}
		first[h.Source] = text
		if h.Source == "lab" || h.Source == "azure" || h.Source == "gitlab" || h.Source == "own" { // which sign nothing
			continue
		}
		changed := h.Body + " "
		if h.Source == "alarms" { // which signs values, not bytes
			changed = strings.Replace(h.Body, "Hello", "Hello ", 1)
		}
		status, text = p.send(h, changed)
		if quiet(text); status != 401 || !strings.Contains(text, "urn:millrace:problem:unverified") {
			t.Errorf("%s with one space more: %d %s", h.Source, status, text)
		}
	}
	for _, name := range []string{"gitlab", "azure", "own"} {
		status, text := p.send(signedHook{Source: name, Headers: map[string]string{"Authorization": "Basic Z3JpZDo=", "X-Gitlab-Token": "x", "X-Key": "x"}}, "{}")
		if quiet(text); status != 401 {
			t.Errorf("%s with another secret: %d %s", name, status, text)
		}
	}
	p.stop()
	p.start()
	for _, h := range hooks {
		if h.Source == "lab" || h.Source == "own" { // nothing tells a repeat
			continue
		}
		if status, text := p.send(h, h.Body); status != 200 || text != first[h.Source] {
			t.Errorf("%s again: %d %s; want what was answered first, %s", h.Source, status, text, first[h.Source])
		}
	}
	events := map[string]map[string]any{}
	for _, topic := range []string{"code", "payments", "chat", "shop", "users", "messages", "streams", "cloud", "own"} {
		var page struct{ Events []map[string]any }
		if err := json.Unmarshal([]byte(p.must(200, "GET", "/v1/topics/"+topic+"/events", "", "")), &page); err != nil {
			t.Fatal(err)
		}
		for _, ev := range page.Events {
			source := strings.TrimPrefix(fmt.Sprint(ev["source"]), "/sources/")
			if events[source] != nil {
				t.Errorf("%s is stored twice", source)
			}
			events[source] = ev
		}
	}
	for _, h := range hooks {
		for name, want := range h.Want {
			if got := events[h.Source][name]; got != want {
				t.Errorf("%s: %s is %v; want %s", h.Source, name, got, want)
			}
		}
		var sent any
		if h.Source != "sms" {
			if err := json.Unmarshal([]byte(h.Body), &sent); err != nil || fmt.Sprint(events[h.Source]["data"]) != fmt.Sprint(sent) {
				t.Errorf("%s: data %v; want %s", h.Source, events[h.Source]["data"], h.Body)
			}
		} else if data := fmt.Sprint(events["sms"]["data"]); data != "map[Body:hi & bye From:+14158675309 MessageSid:SM1]" {
			t.Errorf("sms: %s", data)
		}
	}
	if status, text := p.call("GET", "/v1/sources/whatsapp?hub.mode=subscribe&hub.verify_token="+env["META_VERIFY_TOKEN"]+"&hub.challenge=1158201444", "", ""); status != 200 || text != "1158201444" {
		t.Errorf("%d %s", status, text)
	}
	quiet(p.must(200, "GET", "/v1/sources", "", ""))
	quiet(p.must(200, "GET", "/v1/rules", "", ""))
	metrics := p.must(200, "GET", "/metrics", "", "")
	if quiet(metrics); !strings.Contains(metrics, `millrace_source_requests_total{outcome="repeat",source="github"} 1`) {
		t.Error("the repeat is not counted")
	}
	quiet(p.log.String())
	// A source that goes from the rules takes nothing in any more.
	p.write("version: 1\nsources: {lab: {topic: own, verify: none}}\n")
	until(t, "the source is gone", func() bool { status, _ := p.send(hooks[0], hooks[0].Body); return status == 404 })
}
