package webhook

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

var (
	seed       = bytes.Repeat([]byte{7}, ed25519.SeedSize)
	privateKey = FormatPrivateKey(ed25519.NewKeyFromSeed(seed))
	publicKey  = FormatPublicKey(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
)

// headers is what a receiver verifies of a request.
func headers(r request) (id, ts, sig string) {
	return r.header.Get("webhook-id"), r.header.Get("webhook-timestamp"), r.header.Get("webhook-signature")
}

// A private key signs v1a beside the secrets' v1, in the order of the configuration, in all formats; either alone is
// enough for a receiver.
func TestAsymmetricSignatures(t *testing.T) {
	r := newReceiver(t, nil)
	for _, o := range []Options{{}, {Format: Binary}, {Format: Data}, {Batch: Batch{Events: 10}}} {
		o.URL, o.Secrets = r.URL, []string{secretA, privateKey}
		s := open(t, o)
		if err := s.Deliver(t.Context(), delivery("i", order)); err != nil {
			t.Fatal(err)
		}
		all := r.all()
		got := all[len(all)-1]
		id, ts, sig := headers(got)
		parts := strings.Split(sig, " ")
		if len(parts) != 2 || len(parts[0]) != size1 || len(parts[1]) != size1a || !strings.HasPrefix(parts[1], "v1a,") {
			t.Fatalf("signature %q", sig)
		}
		for _, key := range []string{secretA, publicKey, privateKey} {
			if err := Verify([]string{key}, id, ts, sig, []byte(got.body), time.Now(), 0); err != nil {
				t.Errorf("%+v: %.6s…: %v", o, key, err)
			}
			if err := Verify([]string{key}, id, ts, sig, []byte(got.body+" "), time.Now(), 0); err == nil {
				t.Errorf("%.6s…: a body with a space more is verified", key)
			}
		}
		at, _ := strconv.ParseInt(ts, 10, 64)
		if want := Sign(privateKey, id, at, []byte(got.body)); parts[1] != want {
			t.Errorf("%s, want %s", parts[1], want)
		}
	}
}

func TestKeys(t *testing.T) {
	for text, want := range map[string]string{
		privateKey: "",
		privatePrefix + base64.StdEncoding.EncodeToString(seed):                                           "",
		privatePrefix + base64.RawStdEncoding.EncodeToString(seed):                                        "",
		privatePrefix + base64.StdEncoding.EncodeToString(seed[:31]):                                      "32 or 64 bytes",
		privatePrefix + base64.StdEncoding.EncodeToString(append(bytes.Clone(seed), make([]byte, 32)...)): "another public key",
		privatePrefix + "%%%": "32 or 64 bytes",
		publicKey:             "it is for receivers and cannot sign",
	} {
		_, err := parseSigner(text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.10s…: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), base64.RawStdEncoding.EncodeToString(seed)[:20]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	other := FormatPublicKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)).Public().(ed25519.PublicKey))
	sig := Sign(privateKey, "i", 1, nil)
	now := time.Unix(1, 0)
	for key, want := range map[string]string{other: "no signature matches", "whpk_AAAA": "is not whpk_"} {
		if err := Verify([]string{key}, "i", "1", sig, nil, now, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := Verify([]string{publicKey}, "i", "1", "v1,AAAA", nil, now, 0); err == nil || !strings.Contains(err.Error(), "no signature of version v1a") {
		t.Error(err)
	}
	if err := Verify([]string{publicKey}, "i", "1", strings.Repeat("v1a,AAAA ", maxSigned)+sig, nil, now, 0); err == nil {
		t.Error("signatures without end are tried")
	}
}

// While secrets are rotated, a retry that was first signed with the old one carries the old one's signature and the new
// one's, over the timestamp of its own time: a receiver with either verifies it.
func TestRotationDuringRetry(t *testing.T) {
	fail := true
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if fail {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	at := time.Now().Add(-time.Minute)
	o := Options{URL: r.URL, Secrets: []string{secretA}, Now: func() time.Time { return at }}
	d := delivery("the-same-id", order)
	if err := open(t, o).Deliver(t.Context(), d); event.Code(err) != 503 {
		t.Fatal(err)
	}
	at, fail = at.Add(time.Minute), false
	for _, secrets := range [][]string{{secretB, secretA}, {secretB, privateKey, secretA}} {
		o.Secrets = secrets
		if err := open(t, o).Deliver(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		all := r.all()
		first, again := all[0], all[len(all)-1]
		id, ts, sig := headers(again)
		if firstID, firstTS, _ := headers(first); id != firstID || ts == firstTS || again.body != first.body {
			t.Errorf("the retry has id %s and timestamp %s", id, ts)
		}
		if n := len(strings.Split(sig, " ")); n != len(secrets) {
			t.Errorf("%d signatures, want %d", n, len(secrets))
		}
		for _, secret := range secrets {
			if err := Verify([]string{secret}, id, ts, sig, []byte(again.body), at, 0); err != nil {
				t.Errorf("%.8s…: %v", secret, err)
			}
		}
	}
}

// The receiver of the documents verifies v1a with nothing but node's own crypto.
func TestDocumentedPublicKeyReceiver(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/webhooks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(doc), "<!-- public key receiver -->\n```js\n")
	program, _, ok := strings.Cut(after, "```")
	if !ok {
		t.Fatal("no receiver with a public key in the documents")
	}
	program += "\nimport { readFileSync } from 'node:fs';\nfor (const c of JSON.parse(readFileSync(0))) console.log(verify(c.headers, c.body, process.env.HOOK_PUBLIC_KEY));\n"
	file := filepath.Join(t.TempDir(), "verify.mjs")
	if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	type sent struct {
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
	}
	now := time.Now().Unix()
	one := func(at int64, sig, body string) sent {
		return sent{map[string]string{"webhook-id": "i", "webhook-timestamp": strconv.FormatInt(at, 10), "webhook-signature": sig}, body}
	}
	sig := Sign(privateKey, "i", now, []byte("Grüße"))
	cases, err := json.Marshal([]sent{
		one(now, sig, "Grüße"), one(now, "v1,AAAA v1a,AAAA "+sig, "Grüße"), one(now, sig, "Gruße"), one(now+1, sig, "Grüße"),
		one(now-999, Sign(privateKey, "i", now-999, []byte("Grüße")), "Grüße"), one(now, Sign(secretA, "i", now, []byte("Grüße")), "Grüße"),
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", file)
	cmd.Env = append(os.Environ(), "HOOK_PUBLIC_KEY="+publicKey)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(cases), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Fields(string(out)), "true true false false false false"; strings.Join(got, " ") != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// FuzzVerify: whatever a stranger sends as headers, it is refused in bounded time without panic.
func FuzzVerify(f *testing.F) {
	f.Add("i", "1", Sign(secretA, "i", 1, []byte("x")), []byte("x"))
	f.Add("i", "1", "v1a,AAAA v1a,"+strings.Repeat("A", 88)+" v1,", []byte("x"))
	f.Add("", "-1", "v1a", []byte(nil))
	f.Fuzz(func(t *testing.T, id, ts, sig string, body []byte) {
		if Verify([]string{publicKey, secretB}, id, ts, sig, body, time.Unix(1, 0), 0) == nil {
			t.Fatalf("%q %q %q is verified", id, ts, sig)
		}
	})
}
