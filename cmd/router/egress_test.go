package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
	"github.com/millrace/millrace/plugins"
)

// testDialer connects to the public Internet, and for the operator anywhere.
func testDialer(t *testing.T) *egress.Dialer {
	t.Helper()
	d, err := egress.New(egress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What docs/egress.md shows is what egress.txtar runs: commands, and files as they stand.
func TestEgressDocument(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "egress.md"))
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join("testdata", "script", "egress.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ *\$ (router .*)$`).FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(string(script), m[1]+"\n") {
			t.Errorf("it shows %q, which the script does not run", m[1])
		}
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	for _, block := range blocks {
		if strings.Contains(block[1], "${file:client.key}") {
			readRulesOfTLS(t, block[1])
			continue
		}
		if !strings.Contains(string(script), block[1]) {
			t.Errorf("it shows what the script has not:\n%s", block[1])
		}
	}
	if len(blocks) != 4 {
		t.Errorf("%d files", len(blocks))
	}
}

// selfSigned makes a certificate and its key in PEM.
func selfSigned(t *testing.T) (cert, private string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

// readRulesOfTLS reads rules that name certificates, which are made here.
func readRulesOfTLS(t *testing.T, text string) {
	t.Helper()
	cert, private := selfSigned(t)
	dir := t.TempDir()
	for name, b := range map[string]string{"rules.yaml": text, "ca.pem": cert, "client.pem": cert, "client.key": private} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := rules.Parse(t.Context(), filepath.Join(dir, "rules.yaml"), rules.Options{Sinks: sinkKinds(nil)}); err != nil {
		t.Error(err)
	}
}

// Whatever of a router connects to outside places does so through the guarded dialer. The files that connect by
// themselves are those of commands, which are clients of a router or stand for one, and those named here.
func TestOneDialer(t *testing.T) {
	connects := regexp.MustCompile(`http\.((Get|Post|Head|PostForm)\(|DefaultClient|DefaultTransport|Client\{|Transport\{)|net\.Dial|tls\.Dial|fasthttp\.(Client|HostClient|Dial|Get|Post|Do)|smtp\.|websocket\.Dial|ws\.Dial`)
	may := map[string]string{
		"engine/egress/client.go":          "the guarded client itself",
		"engine/egress/dialer.go":          "the guarded dialer itself",
		"engine/egress/proxy.go":           "connects to the proxy that the operator named",
		"engine/connector/webhook/auth.go": "a client upon Options.Dialer, for dialers that have none",
		"engine/edge/acme.go":              "upon the transport that it is given, the guarded client's",
		"cmd/router/rules_remote.go":       "upon the guarded client",
		"cmd/router/edge.go":               "asks its own listener",
		"cmd/router/notify.go":             "tells systemd over the socket that it names",
		"cmd/router/client.go":             "a client of a router",
		"cmd/router/bench_load.go":         "a client of a router",
		"cmd/router/demo.go":               "a client of a router",
		"cmd/router/demo_stream.go":        "a client of a router",
		"cmd/router/verify_kill.go":        "a client of a router",
	}
	root := filepath.Join("..", "..")
	for _, dir := range []string{"engine", "plugins", "filters", "storage", filepath.Join("cmd", "router")} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil || may[filepath.ToSlash(name)] != "" {
				return err
			}
			text, err := os.ReadFile(path)
			if at := connects.Find(text); at != nil {
				t.Errorf("%s connects by itself (%s); go through the dialer of engine/egress, or say here why not", name, at)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Functions and documents that the operator names go through one dialer: the first only to public places, the others
// anywhere but where it is denied; neither follows a redirect nor reads without end.
func TestFetchesAreGuarded(t *testing.T) {
	var hits atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/keys", http.StatusFound)
		case "/huge":
			_, _ = w.Write(make([]byte, 1<<20))
		default:
			_, _ = w.Write([]byte("keys"))
		}
	}))
	defer s.Close()
	d := testDialer(t)
	_, err := fetcher(d)(t.Context(), &plugins.Request{Method: "GET", URL: s.URL, Header: http.Header{}, MaxBody: 100})
	if !errors.Is(err, event.ErrDenied) || !strings.Contains(err.Error(), "127.0.0.0/8") || hits.Load() != 0 {
		t.Errorf("a function: %v, %d requests", err, hits.Load())
	}
	fetch := jwksFetcher(d)
	if b, err := fetch(t.Context(), s.URL+"/keys?k=canary", 4); err != nil || string(b) != "keys" {
		t.Errorf("%q, %v", b, err)
	}
	for path, want := range map[string]string{"/moved?k=canary": "the answer is 302", "/huge": "the answer is too long"} {
		if _, err := fetch(t.Context(), s.URL+path, 1000); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := d.SetPolicy(&egress.Policy{Deny: []egress.Rule{{CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t.Context(), s.URL+"/keys", 4); !errors.Is(err, event.ErrDenied) {
		t.Errorf("denied: %v", err)
	}
}

// The policy is read again when it or a file that it names changes, and a bad one changes nothing.
func TestEgressFileIsWatched(t *testing.T) {
	dir := t.TempDir()
	path, ca := filepath.Join(dir, "egress.yaml"), filepath.Join(dir, "ca.pem")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, _ := selfSigned(t)
	write(ca, cert)
	write(path, "version: 1\ntls: {ca: [ca.pem]}\n")
	f := newEgressFile(path, func(string) (string, bool) { return "", false })
	d, err := f.open(false)
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	hangup := make(chan os.Signal)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		f.watch(ctx, hangup, 5*time.Millisecond, func() { f.reload(d, slog.New(slog.NewTextHandler(&log, nil))) })
	})
	defer func() { stop(); wg.Wait() }()
	logged := func(what string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !strings.Contains(log.String(), what); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never logged %q:\n%s", what, log.String())
			}
		}
	}
	judge := func() bool {
		t.Helper()
		j, err := d.Judge(t.Context(), "http://10.0.0.1/")
		if err != nil {
			t.Fatal(err)
		}
		return j.Allowed
	}
	write(ca, "no certificate, and longer than "+cert)
	logged("egress.yaml:2:12: tls.ca[0]: has no certificate in PEM")
	write(path, "version: 1\nallow: [{cidrs: [10.0.0.0/8]}]\n")
	logged("was reloaded")
	if !judge() {
		t.Error("the new policy is not in force")
	}
	write(path, "version: 1\nallow: []\ndenny: []\n")
	logged("unknown key")
	if !judge() {
		t.Error("a bad policy has changed something")
	}
	write(path, "version: 1\n")
	hangup <- os.Interrupt
	hangup <- os.Interrupt // the first has been worked off
	if judge() {
		t.Error("a signal does not reload")
	}
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
