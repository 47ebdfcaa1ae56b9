package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/rules"
)

// A rulesServer serves rules, with an ETag, to who sends the token.
type rulesServer struct {
	*httptest.Server
	t   *testing.T
	key ed25519.PrivateKey
	pub string // file

	mu     sync.Mutex
	body   []byte
	serve  http.HandlerFunc // instead
	asked  int
	bodies int
}

const rulesToken = "let-me-in"

func newRulesServer(t *testing.T) *rulesServer {
	t.Helper()
	s := &rulesServer{t: t, key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), pub: filepath.Join(t.TempDir(), "pub.pem")}
	writePublic(t, s.pub, s.key)
	s.Server = httptest.NewUnstartedServer(s)
	t.Cleanup(func() { s.Close() })
	return s
}

func writePublic(t *testing.T, path string, key ed25519.PrivateKey) {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *rulesServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	body, serve := s.body, s.serve
	s.asked++
	s.mu.Unlock()
	switch etag := fmt.Sprintf("%q", digestOf(body)); {
	case r.Header.Get("Authorization") != "Bearer "+rulesToken:
		w.WriteHeader(http.StatusForbidden)
	case serve != nil:
		serve(w, r)
	case r.Header.Get("If-None-Match") == etag:
		w.WriteHeader(http.StatusNotModified)
	default:
		s.mu.Lock()
		s.bodies++
		s.mu.Unlock()
		w.Header().Set("ETag", etag)
		_, _ = w.Write(body)
	}
}

func (s *rulesServer) put(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.body, s.serve = body, nil
}

func (s *rulesServer) answer(serve http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve = serve
}

func (s *rulesServer) counts() (asked, bodies int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.bodies
}

func (s *rulesServer) sign(text string, seal rules.Seal) []byte {
	s.t.Helper()
	if seal.Signed.IsZero() {
		seal.Signed = time.Now()
	}
	file, err := rules.Sign([]byte(text), s.key, seal)
	if err != nil {
		s.t.Fatal(err)
	}
	return file
}

// afar is a router that takes its rules from s.
func (s *rulesServer) afar() *process {
	s.t.Helper()
	if s.URL == "" {
		s.Start()
	}
	p := newProcess(s.t)
	p.o.rules = s.URL + "/rules.bundle?secret=1"
	p.o.remote = remoteOptions{poll: 10 * time.Millisecond, keys: s.pub, token: rulesToken}
	p.start()
	s.t.Cleanup(func() { p.stop() })
	return p
}

func (p *process) ready() string {
	_, text := p.call("GET", "/readyz", "", "")
	return text
}

// with is twoTopics with one more subscription.
func with(name string) string {
	return twoTopics + "  " + name + ": {topic: orders, deliver: {pull: {}}}\n"
}

// Whatever comes instead of good rules changes nothing and is said; the next good ones are taken.
func TestBadRulesFromAfarChangeNothing(t *testing.T) {
	s := newRulesServer(t)
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	foreign, err := rules.Sign([]byte(twoTopics), stranger, rules.Seal{Version: 99, Signed: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	version := int64(10)
	s.put(s.sign(with("v10"), rules.Seal{Version: version}))
	p := s.afar()
	flipped := s.sign(twoTopics, rules.Seal{Version: 99})
	flipped[bytes.Index(flipped, []byte("copies"))] ^= 1
	for _, c := range []struct {
		what, want string
		body       []byte
		serve      http.HandlerFunc
	}{
		{what: "unsigned", want: "is not signed", body: []byte(twoTopics)},
		{what: "nothing", want: "is not signed", body: []byte{}},
		{what: "another key", want: "signed with the key", body: foreign},
		{what: "a bit flipped", want: "does not hold", body: flipped},
		{what: "the same version", want: "a version of its own", body: s.sign(twoTopics+"#", rules.Seal{Version: version})},
		{what: "cut off", want: "cut off", body: s.sign(twoTopics, rules.Seal{Version: 99})[:1500]},
		{what: "older", want: "older than", body: s.sign(twoTopics, rules.Seal{Version: 9})},
		{what: "expired", want: "has expired", body: s.sign(twoTopics, rules.Seal{Version: 99, Expires: time.Now().Add(-time.Hour)})},
		{what: "bad rules", want: "rules.yaml:5:", body: s.sign(strings.Replace(with("x"), "pull", "pul", 1), rules.Seal{Version: 99})},
		{what: "an error", want: "answers 503", serve: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }},
		{what: "cut by the network", want: "cannot be fetched", serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(make([]byte, 10))
		}},
		{what: "too large", want: "has over", serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "99999999999")
			_, _ = w.Write(make([]byte, 10))
		}},
		{what: "no answer", want: "cannot be", serve: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
	} {
		if c.serve != nil {
			s.answer(c.serve)
		} else {
			s.put(c.body)
		}
		until(t, c.what+" is refused: "+c.want, func() bool { return strings.Contains(p.ready(), c.want) })
		if text := p.must(200, "GET", "/metrics", "", ""); !strings.Contains(text, "\nmillrace_rules_reload_failed 1\n") {
			t.Errorf("%s: the metrics do not tell of it", c.what)
		}
		p.must(200, "GET", fmt.Sprintf("/v1/subscriptions/v%d", version), "", "")
		if c.what == "older" || c.what == "cut off" { // not for each: it takes its time
			version++
			s.put(s.sign(with(fmt.Sprint("v", version)), rules.Seal{Version: version}))
			until(t, "the next good ones", func() bool {
				status, _ := p.call("GET", fmt.Sprintf("/v1/subscriptions/v%d", version), "", "")
				return status == 200 && !strings.Contains(p.ready(), `"error"`)
			})
		}
	}
	if text := p.ready(); strings.Contains(text, "secret") || !strings.Contains(text, fmt.Sprintf(`"version":%d`, version)) {
		t.Errorf("/readyz says %s", text)
	}
	// What the URL owns the API refuses.
	if text := p.must(409, "PATCH", "/v1/subscriptions/copy", "application/json", `{"filter":"true"}`); !strings.Contains(text, s.URL) {
		t.Errorf("a change of what the URL owns: %s", text)
	}
}

// A router that starts without network has the rules that it had, and fetches none twice that it has.
func TestOfflineStart(t *testing.T) {
	s := newRulesServer(t)
	s.put(s.sign(with("two"), rules.Seal{Version: 2}))
	p := s.afar()
	until(t, "it asks again and again", func() bool { asked, _ := s.counts(); return asked > 5 })
	if _, bodies := s.counts(); bodies != 1 {
		t.Errorf("the same rules were sent %d times", bodies)
	}
	p.stop()
	p.start() // with the network: what is kept has its ETag
	until(t, "it asks after the start", func() bool { return strings.Contains(p.ready(), `"checked"`) })
	if _, bodies := s.counts(); bodies != 1 {
		t.Errorf("after a start the same rules were sent again, %d times in all", bodies)
	}
	p.stop()
	s.put(s.sign(with("one"), rules.Seal{Version: 1}))
	p.start()
	until(t, "older rules are refused after a start too", func() bool { return strings.Contains(p.ready(), "older than") })
	p.stop()

	// What was kept of another URL is not taken, and is the floor all the same.
	url := p.o.rules
	p.o.rules = s.URL + "/rules.bundle?secret=2"
	if r, err := openRouter(t.Context(), p.o); err == nil || !strings.Contains(err.Error(), "older than") {
		if r != nil {
			_ = r.close(t.Context())
		}
		t.Errorf("older rules from another URL: %v", err)
	}
	p.o.rules = url

	s.Close()
	p.log.Reset()
	p.start()
	until(t, "it says that nobody answers", func() bool { return strings.Contains(p.ready(), "cannot be reached") })
	p.must(200, "GET", "/v1/subscriptions/two", "", "")
	p.must(202, "POST", "/v1/topics/orders/events", "application/json", "{}")
	until(t, "the event is delivered", func() bool {
		_, text := p.call("GET", "/v1/topics/copies/events", "", "")
		return strings.Contains(text, `"type"`)
	})
	until(t, "several more failures", func() bool { return p.r.defs.failures() > 5 })
	p.stop()
	if n := strings.Count(p.log.String(), "the rules were not fetched"); n != 1 {
		t.Errorf("one error is logged %d times", n)
	}

	kept := filepath.Join(p.o.data, remoteFile)
	b, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-2000] ^= 1
	if err := os.WriteFile(kept, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := openRouter(t.Context(), p.o); err == nil || !strings.Contains(err.Error(), "none are kept") {
		if r != nil {
			_ = r.close(t.Context())
		}
		t.Errorf("a start without network from a damaged file: %v", err)
	}
	if !strings.Contains(p.log.String(), "is damaged") {
		t.Error("the log does not say that the file is damaged")
	}
}

// failures are loads of the rules that were refused.
func (d *definitions) failures() uint64 {
	counts, _, _ := d.loadStats()
	return counts.refused
}

// A server that drips, or never ends, does not hold the router.
func TestRulesFetchIsBounded(t *testing.T) {
	s := newRulesServer(t)
	s.Start()
	fetch := func(within time.Duration) error {
		t.Helper()
		r, err := openRemoteRules(s.URL, t.TempDir(), remoteOptions{keys: s.pub, token: rulesToken, within: within}, testDialer(t))
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.fetch(t.Context(), nil)
		return err
	}
	s.answer(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, "."); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			_ = sleep(r.Context(), time.Millisecond)
		}
	})
	if err := fetch(50 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not answer in full within 50ms") {
		t.Errorf("one that drips: %v", err)
	}
	s.answer(func(w http.ResponseWriter, _ *http.Request) {
		for block := make([]byte, 1<<20); ; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	if err := fetch(time.Minute); err == nil || !strings.Contains(err.Error(), "has over 64") {
		t.Errorf("one that never ends: %v", err)
	}
}

func TestRemoteRulesOptions(t *testing.T) {
	s := newRulesServer(t)
	for _, c := range []struct {
		url, want string
		o         remoteOptions
	}{
		{"http://example.com/rules", "--rules-key", remoteOptions{}},
		{"http://example.com/rules", "", remoteOptions{keys: s.pub}},
		{"http://example.com/rules", "MILLRACE_RULES_TOKEN", remoteOptions{keys: s.pub, token: "x"}},
		{"http://127.0.0.1/rules", "", remoteOptions{token: "x"}},
		{"http://[::1]:80/rules", "", remoteOptions{}},
		{"https://example.com/rules", "", remoteOptions{token: "x"}},
		{"https:///rules", "host", remoteOptions{}},
		{"https://example.com/", "no such file", remoteOptions{keys: "missing.pem"}},
		{"https://example.com/", "no PEM", remoteOptions{keys: os.DevNull}},
	} {
		_, err := openRemoteRules(c.url, t.TempDir(), c.o, testDialer(t))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s with %+v: %v; want %q", c.url, c.o, err, c.want)
		}
	}
}

// Over TLS: the certificate is checked against the system's authorities, which SSL_CERT_FILE names.
func TestRulesOverTLS(t *testing.T) {
	s := newRulesServer(t)
	s.StartTLS()
	s.put([]byte(with("tls"))) // TLS vouches for the server; no key is asked for
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(cert string) string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "router", "serve", "--data", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0", "--rules", s.URL+"/rules.yaml")
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+cert, "SSL_CERT_DIR="+filepath.Join(dir, "none"), "MILLRACE_RULES_TOKEN="+rulesToken)
		out := &stopper{text: "listen  ", stop: cancel}
		cmd.Stdout, cmd.Stderr = out, out
		_ = cmd.Run() // by the signal, or because it does not start
		return out.said.String()
	}
	if text := start(filepath.Join(dir, "none.pem")); !strings.Contains(text, "certificate") {
		t.Errorf("a stranger's certificate: %s", text)
	}
	if text := start(ca); !strings.Contains(text, "rules   "+s.URL+"/rules.yaml\n") {
		t.Errorf("a certificate that SSL_CERT_FILE vouches for: %s", text)
	}
}

// A stopper ends a program that has said a text.
type stopper struct {
	said bytes.Buffer
	text string
	stop func()
}

func (s *stopper) Write(b []byte) (int, error) {
	n, err := s.said.Write(b)
	if strings.Contains(s.said.String(), s.text) {
		s.stop()
	}
	return n, err
}
