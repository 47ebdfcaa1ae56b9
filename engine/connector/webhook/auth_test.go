package webhook

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// issuer is an authorization server; answer may replace what it says.
type issuer struct {
	*receiver
	n      atomic.Int64
	answer atomic.Pointer[http.HandlerFunc]
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{}
	i.receiver = newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		n := i.n.Add(1)
		if f := i.answer.Load(); f != nil {
			(*f)(w, r)
			return
		}
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"bearer","expires_in":3600}`, n)
	})
	return i
}

func (i *issuer) says(f http.HandlerFunc) { i.answer.Store(&f) }

const clientSecret = "s3cret/canary+?"

func (i *issuer) auth() Auth {
	return Auth{OAuth2: &OAuth2{TokenURL: i.URL + "/token?k=topsecret", ClientID: "the:router", ClientSecret: clientSecret, Scopes: []string{"hooks", "read"}, Audience: "https://api.example"}}
}

// A token is asked for once, by one request however many deliveries wait, and again ahead of its end.
func TestOAuth2(t *testing.T) {
	i := newIssuer(t)
	gate := make(chan struct{})
	i.says(func(w http.ResponseWriter, _ *http.Request) {
		<-gate
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":"3600"}`, i.n.Load())
	})
	r := newReceiver(t, nil)
	var clock atomic.Int64
	start := time.Now()
	s := open(t, Options{URL: r.URL, Auth: i.auth(), Now: func() time.Time { return start.Add(time.Duration(clock.Load())) }})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := s.Deliver(context.Background(), delivery("i", order)); err != nil {
				t.Error(err)
			}
		})
	}
	for i.n.Load() == 0 { // one is there, and those that come meanwhile wait for it
		time.Sleep(time.Millisecond)
	}
	close(gate)
	wg.Wait()
	if n := i.n.Load(); n != 1 {
		t.Errorf("%d requests for a token", n)
	}
	for _, got := range r.all() {
		if a := got.header.Get("Authorization"); a != "Bearer token-1" {
			t.Errorf("sent %q", a)
		}
	}
	asked := i.all()[0]
	if asked.body != "audience=https%3A%2F%2Fapi.example&grant_type=client_credentials&scope=hooks+read" || asked.uri != "/token?k=topsecret" {
		t.Errorf("asked %s %s", asked.uri, asked.body)
	}
	if want := "Basic " + base64.StdEncoding.EncodeToString([]byte("the%3Arouter:s3cret%2Fcanary%2B%3F")); asked.header.Get("Authorization") != want {
		t.Errorf("shown %q", asked.header.Get("Authorization"))
	}
	deliver := func(want string) {
		t.Helper()
		if err := s.Deliver(t.Context(), delivery("i", order)); err != nil {
			t.Fatal(err)
		}
		all := r.all()
		if got := all[len(all)-1].header.Get("Authorization"); got != want {
			t.Errorf("sent %q, want %q", got, want)
		}
	}
	i.answer.Store(nil)
	clock.Store(int64(58 * time.Minute))
	deliver("Bearer token-1")
	clock.Store(int64(59*time.Minute + time.Second)) // a minute is left
	deliver("Bearer token-2")
	i.says(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	clock.Store(int64(118*time.Minute + 30*time.Second)) // it cannot be renewed, and is still good
	deliver("Bearer token-2")
	clock.Store(int64(3 * time.Hour))
	if err := s.Deliver(t.Context(), delivery("i", order)); err == nil || !strings.Contains(err.Error(), "oauth2: no token from "+i.URL+": it answers 500") {
		t.Errorf("expired: %v", err)
	}
	before := i.n.Load()
	if err := s.Deliver(t.Context(), delivery("i", order)); err == nil || i.n.Load() != before {
		t.Errorf("a failure is not kept for a moment: %v", err)
	}
}

// What a token endpoint does wrong is a failed attempt in words, without secrets.
func TestOAuth2Failures(t *testing.T) {
	for name, c := range map[string]struct {
		f    http.HandlerFunc
		want string
	}{
		"refused": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(401)
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":"secret %s is wrong"}`, clientSecret)
		}, `it answers 401 Unauthorized; it says "invalid_client: secret *** is wrong"`},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "redirects are not followed, set tokenUrl"},
		"huge": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat(" ", tokenAnswer+1))
		}, "has over 65536 bytes"},
		"no JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "is not the JSON of a token"},
		"empty":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }, "has no access_token"},
		"type": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"access_token":"x","token_type":"mac"}`)
		}, `of the type "mac"`},
		"injects": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"access_token":"x\r\nHost: y"}`)
		}, "others than printable ASCII"},
		"expired": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"access_token":"x","expires_in":0}`)
		}, "expires_in"},
		"silent": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			i.says(c.f)
			r := newReceiver(t, nil)
			s := open(t, Options{URL: r.URL, Auth: i.auth(), Timeout: 500 * time.Millisecond})
			err := s.Deliver(context.Background(), delivery("i", order))
			var retry *event.RetryAfter
			if !errors.As(err, &retry) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "was not sent: oauth2: no token from") {
				t.Errorf("%v, want %q", err, c.want)
			}
			if strings.Contains(fmt.Sprint(err), "canary") || strings.Contains(fmt.Sprint(err), "topsecret") {
				t.Errorf("it shows a secret: %v", err)
			}
			if n := len(r.all()); n != 0 {
				t.Errorf("%d requests without a token", n)
			}
		})
	}
	i := newIssuer(t)
	i.says(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "90"); w.WriteHeader(429) })
	var retry *event.RetryAfter
	if err := open(t, Options{URL: i.URL, Auth: i.auth()}).Deliver(t.Context(), delivery("i", order)); !errors.As(err, &retry) || retry.Wait != 90*time.Second {
		t.Errorf("%v; want a wait of 90 s", err)
	}
}

// A token endpoint is a target like any: it is not reached where the dialer says no.
func TestTokenEndpointIsGuarded(t *testing.T) {
	i := newIssuer(t)
	d, err := egress.New(egress.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{URL: "http://192.0.2.1/", Auth: i.auth(), Dialer: d})
	if err := s.Deliver(t.Context(), delivery("i", order)); !errors.Is(err, egress.ErrBlocked) || !strings.Contains(err.Error(), "127.0.0.0/8") {
		t.Error(err)
	}
	if n := i.n.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// A 401 costs a token once: the next attempt has a new one, and where that is refused too no more are asked for.
func TestRefusedTokenIsDroppedOnce(t *testing.T) {
	i := newIssuer(t)
	status := 401
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
	var later atomic.Int64
	s := open(t, Options{URL: r.URL, Auth: i.auth(), Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }})
	refused := func(n int, want int64) {
		t.Helper()
		if err := s.Deliver(t.Context(), delivery("i", order)); event.Code(err) != 401 {
			t.Fatal(err)
		}
		if got := i.n.Load(); got != want {
			t.Errorf("attempt %d: %d tokens were asked for, want %d", n, got, want)
		}
	}
	for n, want := range []int64{1, 2, 2, 2} {
		refused(n+1, want)
	}
	for n, c := range []struct {
		after time.Duration
		want  int64
	}{{61 * time.Second, 2}, {0, 3}, {61 * time.Second, 3}, {0, 3}, {60 * time.Second, 3}, {0, 4}} { // the pause doubles
		later.Add(int64(c.after))
		refused(n+5, c.want)
	}
	for _, c := range []struct {
		status int
		want   int64
	}{{200, 4}, {401, 4}, {200, 5}} { // what was taken makes up for it
		status = c.status
		_ = s.Deliver(t.Context(), delivery("i", order))
		if got := i.n.Load(); got != c.want {
			t.Errorf("%d: %d tokens, want %d", c.status, got, c.want)
		}
	}
}

func pemOf(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// tokenKeys are one of each kind.
func tokenKeys(t *testing.T) map[string]string {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"RS256": pemOf(t, r), "ES256": pemOf(t, e), "EdDSA": pemOf(t, ed25519.NewKeyFromSeed(seed))}
}

// verifyJWT checks a token against a public key as a JWKS document has it, written anew: not with what signs.
func verifyJWT(t *testing.T, token string, jwk map[string]string) map[string]any {
	t.Helper()
	raw := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	number := func(s string) *big.Int { return new(big.Int).SetBytes(raw(s)) }
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("token %q", token)
	}
	var head map[string]string
	var claims map[string]any
	if err := errors.Join(json.Unmarshal(raw(parts[0]), &head), json.Unmarshal(raw(parts[1]), &claims)); err != nil {
		t.Fatal(err)
	}
	if head["alg"] != jwk["alg"] || head["kid"] != jwk["kid"] || head["typ"] != "JWT" {
		t.Errorf("header %v, key %v", head, jwk)
	}
	text, sig := []byte(parts[0]+"."+parts[1]), raw(parts[2])
	sum := sha256.Sum256(text)
	good := false
	switch jwk["kty"] {
	case "OKP":
		good = ed25519.Verify(raw(jwk["x"]), text, sig)
	case "EC":
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, raw(jwk["x"])...), raw(jwk["y"])...))
		if err != nil {
			t.Fatal(err)
		}
		good = len(sig) == 64 && ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	case "RSA":
		good = rsa.VerifyPKCS1v15(&rsa.PublicKey{N: number(jwk["n"]), E: int(number(jwk["e"]).Int64())}, crypto.SHA256, sum[:], sig) == nil
	}
	if !good {
		t.Errorf("%s: the signature is not the key's", jwk["alg"])
	}
	return claims
}

// ID tokens are signed by the router, verify with the published key, and are made anew ahead of their end.
func TestOIDC(t *testing.T) {
	r := newReceiver(t, nil)
	for alg, text := range tokenKeys(t) {
		now := time.Unix(1_800_000_000, 0)
		s := open(t, Options{URL: r.URL + "/hook?k=secret", Now: func() time.Time { return now },
			Auth: Auth{OIDC: &OIDC{Issuer: "https://router.example", Subject: "millrace", PrivateKey: text, TTL: 10 * time.Minute}}})
		key, err := ParseTokenKey(text)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, at := range []time.Duration{0, 8 * time.Minute, 9*time.Minute + time.Second} {
			now = time.Unix(1_800_000_000, 0).Add(at)
			if err := s.Deliver(t.Context(), delivery("i", order)); err != nil {
				t.Fatal(err)
			}
			all := r.all()
			token, ok := strings.CutPrefix(all[len(all)-1].header.Get("Authorization"), "Bearer ")
			if !ok {
				t.Fatal("no token")
			}
			seen[token] = true
			claims := verifyJWT(t, token, key.JWK())
			if claims["iss"] != "https://router.example" || claims["sub"] != "millrace" || claims["aud"] != r.URL+"/hook" ||
				claims["exp"].(float64)-claims["iat"].(float64) != 600 {
				t.Errorf("%s: claims %v", alg, claims)
			}
		}
		if len(seen) != 2 {
			t.Errorf("%s: %d tokens, want 2", alg, len(seen))
		}
		if jwk := key.JWK(); jwk["alg"] != alg || jwk["d"] != "" || jwk["p"] != "" {
			t.Errorf("%s: %v", alg, jwk)
		}
	}
}

// The thumbprint is that of RFC 7638's own example... of RFC 8037 appendix A.3, whose key is Ed25519.
func TestThumbprint(t *testing.T) {
	d, err := base64.RawURLEncoding.DecodeString("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseTokenKey(pemOf(t, ed25519.NewKeyFromSeed(d)))
	if err != nil {
		t.Fatal(err)
	}
	if key.id != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Error(key.id)
	}
}

func TestBasicAuth(t *testing.T) {
	r := newReceiver(t, nil)
	s := open(t, Options{URL: r.URL, Auth: Auth{Basic: &Basic{User: "me", Password: "pässword"}}})
	d := delivery("i", order)
	if err := s.Deliver(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got, want := r.all()[0].header.Get("Authorization"), "Basic "+base64.StdEncoding.EncodeToString([]byte("me:pässword")); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	p, err := s.Preview(d[0])
	if err != nil || !strings.Contains(fmt.Sprint(p.Headers), "{Authorization (hidden) true}") {
		t.Errorf("%v, %v", p.Headers, err)
	}
}

// What is wrong in auth and tls is said at its key, without secrets.
func TestAuthAndTLSAreChecked(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPEM := pemOf(t, ed25519.NewKeyFromSeed(seed))
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"two ways":   {Options{Auth: Auth{Basic: &Basic{User: "u"}, OIDC: &OIDC{Issuer: "i", PrivateKey: edPEM}}}, []string{"auth: has 2 ways"}},
		"header too": {Options{Headers: map[string]string{"Authorization": "x"}, Auth: Auth{Basic: &Basic{User: "u"}}}, []string{"headers.Authorization: does not go with auth"}},
		"basic":      {Options{Auth: Auth{Basic: &Basic{User: "a:b", Password: "\n"}}}, []string{"auth.basic.user:", "auth.basic.password:"}},
		"oauth2": {Options{Auth: Auth{OAuth2: &OAuth2{TokenURL: "http://as.example/t", Scopes: []string{"a b"}, Send: "query"}}},
			[]string{"auth.oauth2.tokenUrl: is http://", "auth.oauth2.clientId: missing", "auth.oauth2.clientSecret: missing", "auth.oauth2.scopes[0]:", "auth.oauth2.send:"}},
		"oidc":      {Options{Auth: Auth{OIDC: &OIDC{PrivateKey: "canary", TTL: time.Second}}}, []string{"auth.oidc.issuer: missing", "auth.oidc.privateKey: is no private key", "auth.oidc.ttl: is 1s"}},
		"small RSA": {Options{Auth: Auth{OIDC: &OIDC{Issuer: "i", PrivateKey: pemOf(t, small)}}}, []string{"is an RSA key of 1024 bits"}},
		"P-384":     {Options{Auth: Auth{OIDC: &OIDC{Issuer: "i", PrivateKey: pemOf(t, p384)}}}, []string{"is a key on the curve P-384"}},
		"tls": {Options{TLS: egress.TLSOptions{MinVersion: "1.0", CA: []string{"ca.pem"}, Certificate: "c", Pins: []string{"x"}}},
			[]string{"tls.minVersion:", "tls.ca[0]: has no certificate in PEM", "tls.certificate: is given without privateKey", "tls.pins[0]:"}},
	} {
		c.o.URL = "https://example.com/"
		err := c.o.Validate()
		for _, want := range c.want {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%s: %v; want %q", name, err, want)
			}
		}
		if strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("%s: shows the key: %v", name, err)
		}
	}
}
