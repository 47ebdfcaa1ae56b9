package access

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"maps"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/millrace/millrace/engine/event"
)

const (
	testSecret = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	testIssuer = "https://login.example.com/"
)

// testKeys are made once: RSA keys take long.
type testKeys struct {
	rsa      *rsa.PrivateKey
	es       *ecdsa.PrivateKey
	es384    *ecdsa.PrivateKey
	ed       ed25519.PrivateKey
	jwks     string
	stranger *ecdsa.PrivateKey
}

var keysForTests = sync.OnceValue(func() *testKeys {
	k := &testKeys{}
	k.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	k.es, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.es384, _ = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	k.stranger, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, k.ed, _ = ed25519.GenerateKey(rand.Reader)
	k.jwks = jwksOf(map[string]any{"rsa": k.rsa.Public(), "es": k.es.Public(), "es384": k.es384.Public(), "ed": k.ed.Public()}, "ps", k.rsa.Public(), "PS256")
	return k
})

// jwksOf writes a key set; pinned is one more key with its alg.
func jwksOf(keys map[string]any, kid string, pinned any, alg string) string {
	var set jose.JSONWebKeySet
	for kid, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k, KeyID: kid})
	}
	if pinned != nil {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: pinned, KeyID: kid, Algorithm: alg, Use: "sig"})
	}
	b, _ := json.Marshal(set)
	return string(b)
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// sign makes a token of a header and claims as they are written.
func (k *testKeys) sign(alg, header, claims string) string {
	input := b64([]byte(header)) + "." + b64([]byte(claims))
	return input + "." + b64(k.signature(alg, input))
}

func (k *testKeys) signature(alg, input string) []byte {
	sum := func(h crypto.Hash) []byte {
		w := h.New()
		w.Write([]byte(input))
		return w.Sum(nil)
	}
	mac := func(h func() hash.Hash) []byte {
		w := hmac.New(h, []byte(testSecret))
		w.Write([]byte(input))
		return w.Sum(nil)
	}
	ec := func(key *ecdsa.PrivateKey, h crypto.Hash) []byte {
		r, s, _ := ecdsa.Sign(rand.Reader, key, sum(h))
		n := (key.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...)
	}
	var sig []byte
	switch alg {
	case "RS256":
		sig, _ = rsa.SignPKCS1v15(rand.Reader, k.rsa, crypto.SHA256, sum(crypto.SHA256))
	case "RS512":
		sig, _ = rsa.SignPKCS1v15(rand.Reader, k.rsa, crypto.SHA512, sum(crypto.SHA512))
	case "PS256":
		sig, _ = rsa.SignPSS(rand.Reader, k.rsa, crypto.SHA256, sum(crypto.SHA256), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case "ES256":
		sig = ec(k.es, crypto.SHA256)
	case "ES384":
		sig = ec(k.es384, crypto.SHA384)
	case "EdDSA":
		sig = ed25519.Sign(k.ed, []byte(input))
	case "HS256":
		sig = mac(sha256.New)
	case "HS512":
		sig = mac(sha512.New)
	}
	return sig
}

// with is the good claims with some changed; nil leaves one out.
func with(now time.Time, change map[string]any) string {
	c := map[string]any{"iss": testIssuer, "aud": "millrace", "sub": "alice", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "roles": []string{"reader"}}
	maps.Copy(c, change)
	for k, v := range c {
		if v == nil {
			delete(c, k)
		}
	}
	b, _ := json.Marshal(c)
	return string(b)
}

const testPolicy = `
version: 1
roles:
  writer: [{allow: [publish], topics: ["orders.*"]}]
jwt:
  corp:
    issuer: https://login.example.com/
    audience: millrace
    jwks: keys.json
    algorithms: [RS256, PS256, ES256, ES384, EdDSA]
    roles: {claim: roles}
  shared:
    issuer: https://shared.example.com/
    audience: millrace
    secret: ${env:SHARED}
    algorithms: [HS256]
    roles: [reader]
`

func testFiles(files map[string]string) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		if s, ok := files[path]; ok {
			return []byte(s), nil
		}
		return nil, errors.New("no such file")
	}
}

func testEnv(name string) (string, bool) { return testSecret, name == "SHARED" }

func parse(t testing.TB, text string, files map[string]string) *Policy {
	t.Helper()
	p, err := ParsePolicy("access.yaml", []byte(text), testFiles(files), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tokenGuard(t testing.TB, clk *clock) *Guard {
	t.Helper()
	return newGuard(t, Options{Token: "the-token", Now: clk.now, Policy: parse(t, testPolicy, map[string]string{"keys.json": keysForTests().jwks})})
}

func TestTokens(t *testing.T) {
	k, clk := keysForTests(), newClock()
	g := tokenGuard(t, clk)
	good := with(clk.now(), nil)
	for _, c := range []struct{ name, token string }{
		{"RS256", k.sign("RS256", `{"alg":"RS256","kid":"rsa","typ":"JWT"}`, good)},
		{"PS256", k.sign("PS256", `{"alg":"PS256","kid":"rsa"}`, good)},
		{"PS256 of a pinned key", k.sign("PS256", `{"alg":"PS256","kid":"ps"}`, good)},
		{"ES256", k.sign("ES256", `{"alg":"ES256","kid":"es","typ":"at+jwt"}`, good)},
		{"ES384", k.sign("ES384", `{"alg":"ES384","kid":"es384"}`, good)},
		{"EdDSA", k.sign("EdDSA", `{"alg":"EdDSA","kid":"ed"}`, good)},
		{"without kid, one key fits", k.sign("EdDSA", `{"alg":"EdDSA"}`, good)},
		{"several audiences", k.sign("EdDSA", `{"alg":"EdDSA"}`, with(clk.now(), map[string]any{"aud": []string{"other", "millrace"}}))},
		{"within the leeway", k.sign("EdDSA", `{"alg":"EdDSA"}`, with(clk.now(), map[string]any{"exp": clk.now().Add(-30 * time.Second).Unix(), "nbf": clk.now().Add(30 * time.Second).Unix()}))},
		{"fraction of a second", k.sign("EdDSA", `{"alg":"EdDSA"}`, with(clk.now(), map[string]any{"exp": float64(clk.now().Unix()) + 0.5}))},
		{"HS256", k.sign("HS256", `{"alg":"HS256"}`, with(clk.now(), map[string]any{"iss": "https://shared.example.com/"}))},
		{"HS256 with a kid", k.sign("HS256", `{"alg":"HS256","kid":"1"}`, with(clk.now(), map[string]any{"iss": "https://shared.example.com/"}))},
	} {
		p, err := g.Authenticate(t.Context(), Credentials{Bearer: c.token})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if again, _ := g.Authenticate(t.Context(), Credentials{Bearer: c.token}); again != p {
			t.Errorf("%s: not remembered", c.name)
		}
		if p.Check(Read, Topic, "t") != nil || !errors.Is(p.Check(Publish, Topic, "t"), ErrDenied) || !strings.HasSuffix(p.Name, "/alice") {
			t.Errorf("%s: %+v", c.name, p)
		}
	}
}

// TestTokenAttacks: each is a good token with one thing wrong, and is refused.
func TestTokenAttacks(t *testing.T) {
	k, clk := keysForTests(), newClock()
	g := tokenGuard(t, clk)
	now := clk.now()
	good := with(now, nil)
	shared := map[string]any{"iss": "https://shared.example.com/"}
	es := func(header string) string { return k.sign("ES256", header, good) }
	claim := func(change map[string]any) string {
		return k.sign("ES256", `{"alg":"ES256","kid":"es"}`, with(now, change))
	}
	raw := func(claims string) string { return k.sign("ES256", `{"alg":"ES256","kid":"es"}`, claims) }
	spki, _ := x509.MarshalPKIXPublicKey(k.rsa.Public())
	hs := func(secret []byte, header string) string {
		input := b64([]byte(header)) + "." + b64([]byte(good))
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(input))
		return input + "." + b64(m.Sum(nil))
	}
	ok := es(`{"alg":"ES256","kid":"es"}`)
	parts := strings.Split(ok, ".")
	sig, _ := base64.RawURLEncoding.DecodeString(parts[2])
	resign := func(sig []byte) string { return parts[0] + "." + parts[1] + "." + b64(sig) }
	der, _ := k.es.Sign(rand.Reader, func() []byte { s := sha256.Sum256([]byte(parts[0] + "." + parts[1])); return s[:] }(), crypto.SHA256)
	huge := new(big.Int).Add(new(big.Int).SetBytes(sig[32:]), elliptic.P256().Params().N)
	strangerJWK, _ := json.Marshal(jose.JSONWebKey{Key: k.stranger.Public()})
	stranger := func(header string) string {
		input := b64([]byte(header)) + "." + b64([]byte(good))
		s := sha256.Sum256([]byte(input))
		r, ss, _ := ecdsa.Sign(rand.Reader, k.stranger, s[:])
		return input + "." + b64(append(r.FillBytes(make([]byte, 32)), ss.FillBytes(make([]byte, 32))...))
	}
	loose := func() string { // the same signature with a bit that base64 leaves over
		const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		last := strings.IndexByte(digits, ok[len(ok)-1])
		return ok[:len(ok)-1] + string(digits[last|1])
	}
	attacks := map[string]string{
		"signature of RSA by another hash": k.sign("RS512", `{"alg":"RS512","kid":"rsa"}`, good),
		"RS256 header over PS256":          k.sign("PS256", `{"alg":"RS256","kid":"rsa"}`, good),
		"RS256 by a key pinned to PS256":   k.sign("RS256", `{"alg":"RS256","kid":"ps"}`, good),
		"HS256 with the RSA key in PEM":    hs(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), `{"alg":"HS256","kid":"rsa"}`),
		"HS256 with the RSA key in DER":    hs(spki, `{"alg":"HS256","kid":"rsa"}`),
		"HS256 with the modulus":           hs(k.rsa.N.Bytes(), `{"alg":"HS256","kid":"rsa"}`),
		"HS256 with nothing":               hs(nil, `{"alg":"HS256","kid":"rsa"}`),
		"HS256 with the JWKS":              hs([]byte(k.jwks), `{"alg":"HS256"}`),
		"HS512 where HS256 is pinned":      k.sign("HS512", `{"alg":"HS512"}`, with(now, shared)),
		"RS256 at the secret's issuer":     k.sign("RS256", `{"alg":"RS256","kid":"rsa"}`, with(now, shared)),
		"the secret at the other issuer":   k.sign("HS256", `{"alg":"HS256","kid":"es"}`, good),
		"ES384 key named for ES256":        es(`{"alg":"ES256","kid":"es384"}`),
		"ES384 by the ES256 key":           es(`{"alg":"ES384","kid":"es"}`),
		"ES256 by an Ed25519 key":          es(`{"alg":"ES256","kid":"ed"}`),
		"no kid, several keys":             k.sign("PS256", `{"alg":"PS256"}`, good),
		"unknown alg":                      es(`{"alg":"ES256K","kid":"es"}`),
		"alg of another case":              es(`{"alg":"es256","kid":"es"}`),
		"alg is a list":                    es(`{"alg":["ES256"],"kid":"es"}`),
		"no alg":                           es(`{"kid":"es"}`),
		"Alg besides alg":                  k.sign("", `{"Alg":"ES256","alg":"none","kid":"es"}`, good),
		"alg twice":                        es(`{"alg":"none","alg":"ES256","kid":"es"}`),
		"embedded jwk":                     stranger(fmt.Sprintf(`{"alg":"ES256","jwk":%s}`, strangerJWK)),
		"embedded jwk of a good signature": es(fmt.Sprintf(`{"alg":"ES256","kid":"es","jwk":%s}`, strangerJWK)),
		"jku":                              es(`{"alg":"ES256","kid":"es","jku":"https://evil.example/keys"}`),
		"x5u":                              es(`{"alg":"ES256","kid":"es","x5u":"https://evil.example/c"}`),
		"x5c":                              es(`{"alg":"ES256","kid":"es","x5c":["MII="]}`),
		"crit unknown":                     es(`{"alg":"ES256","kid":"es","crit":["exp"],"exp":1}`),
		"crit empty":                       es(`{"alg":"ES256","kid":"es","crit":[]}`),
		"crit b64":                         es(`{"alg":"ES256","kid":"es","crit":["b64"],"b64":false}`),
		"b64":                              es(`{"alg":"ES256","kid":"es","b64":false}`),
		"zip":                              es(`{"alg":"ES256","kid":"es","zip":"DEF"}`),
		"enc":                              es(`{"alg":"ES256","kid":"es","enc":"A128GCM"}`),
		"nested":                           es(`{"alg":"ES256","kid":"es","cty":"JWT"}`),
		"typ of another use":               es(`{"alg":"ES256","kid":"es","typ":"dpop+jwt"}`),
		"typ is a number":                  es(`{"alg":"ES256","kid":"es","typ":1}`),
		"kid path":                         es(`{"alg":"ES256","kid":"../../../dev/null"}`),
		"kid absolute path":                es(`{"alg":"ES256","kid":"/dev/null"}`),
		"kid SQL":                          es(`{"alg":"ES256","kid":"x' UNION SELECT 'secret"}`),
		"kid command":                      es(`{"alg":"ES256","kid":"es|whoami"}`),
		"kid URL":                          es(`{"alg":"ES256","kid":"https://evil.example/k"}`),
		"kid NUL":                          es(`{"alg":"ES256","kid":"es\u0000"}`),
		"kid is a number":                  es(`{"alg":"ES256","kid":1}`),
		"kid empty":                        es(`{"alg":"ES256","kid":""}`),
		"kid long":                         es(`{"alg":"ES256","kid":"` + strings.Repeat("k", 257) + `"}`),
		"kid unknown":                      es(`{"alg":"ES256","kid":"nobody"}`),
		"header is a list":                 es(`["ES256"]`),
		"header followed by more":          es(`{"alg":"ES256","kid":"es"}{}`),
		"header not UTF-8":                 es("{\"alg\":\"ES256\",\"kid\":\"es\",\"x\":\"\xff\"}"),
		"header deep":                      es(`{"alg":"ES256","kid":"es","x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`),
		"header huge":                      es(`{"alg":"ES256","kid":"es","x":"` + strings.Repeat("x", 3000) + `"}`),

		"wrong issuer":           claim(map[string]any{"iss": "https://evil.example/"}),
		"issuer of another case": claim(map[string]any{"iss": "https://LOGIN.example.com/"}),
		"issuer without slash":   claim(map[string]any{"iss": "https://login.example.com"}),
		"issuer in a list":       claim(map[string]any{"iss": []string{testIssuer}}),
		"no issuer":              claim(map[string]any{"iss": nil}),
		"wrong audience":         claim(map[string]any{"aud": "billing"}),
		"audience of a part":     claim(map[string]any{"aud": "millrace2"}),
		"no audience":            claim(map[string]any{"aud": nil}),
		"audience empty list":    claim(map[string]any{"aud": []string{}}),
		"audience mixed list":    claim(map[string]any{"aud": []any{1, "millrace"}}),
		"audience null":          raw(strings.Replace(good, `"millrace"`, `null`, 1)),
		"expired":                claim(map[string]any{"exp": now.Add(-61 * time.Second).Unix()}),
		"expired at the leeway":  claim(map[string]any{"exp": now.Add(-60 * time.Second).Unix()}),
		"no exp":                 claim(map[string]any{"exp": nil}),
		"exp is a text":          claim(map[string]any{"exp": fmt.Sprint(now.Add(time.Hour).Unix())}),
		"exp beyond time":        claim(map[string]any{"exp": 1e300}),
		"exp negative":           claim(map[string]any{"exp": -1}),
		"not yet":                claim(map[string]any{"nbf": now.Add(61 * time.Second).Unix()}),
		"nbf negative":           claim(map[string]any{"nbf": -1}),
		"nbf is a text":          claim(map[string]any{"nbf": "0"}),
		"made in the future":     claim(map[string]any{"iat": now.Add(2 * time.Minute).Unix()}),
		"no subject":             claim(map[string]any{"sub": nil}),
		"subject is a number":    claim(map[string]any{"sub": 7}),
		"subject with a break":   claim(map[string]any{"sub": "alice\nroot"}),
		"subject bidi":           claim(map[string]any{"sub": "alice\u202egro"}),
		"subject half surrogate": raw(strings.Replace(good, `"alice"`, `"alice\ud800"`, 1)),
		"subject long":           claim(map[string]any{"sub": strings.Repeat("a", 257)}),
		"roles is a number":      claim(map[string]any{"roles": 1}),
		"roles of numbers":       claim(map[string]any{"roles": []int{1}}),
		"too many roles":         claim(map[string]any{"roles": make([]string, 300)}),
		"claim twice":            raw(strings.Replace(good, `"iss"`, `"iss":"https://evil.example/","iss"`, 1)),
		"sub twice":              raw(strings.Replace(good, `"sub"`, `"sub":"root","sub"`, 1)),
		"claims is a list":       raw(`[` + good + `]`),
		"claims broken":          raw(good[:len(good)-1]),
		"claims followed":        raw(good + "x"),
		"claims empty":           raw(``),
		"claims huge":            claim(map[string]any{"x": strings.Repeat("x", 13000)}),
		"claims many":            claim(map[string]any{"x": make([]int, 2000)}),

		"signature by a stranger":      stranger(`{"alg":"ES256","kid":"es"}`),
		"signature missing":            parts[0] + "." + parts[1] + ".",
		"signature of another payload": parts[0] + "." + strings.Split(claim(map[string]any{"sub": "root"}), ".")[1] + "." + parts[2],
		"signature zero":               resign(make([]byte, 64)),
		"signature DER":                resign(der),
		"signature s + n":              resign(append(sig[:32:32], huge.FillBytes(make([]byte, 33))...)),
		"signature longer":             resign(append(sig[:64:64], 0)),
		"signature shorter":            resign(sig[:63]),
		"signature leading zeros":      resign(append(append([]byte{0}, sig[:32]...), append([]byte{0}, sig[32:]...)...)),
		"signature loose bits":         loose(),
		"signature padded":             ok + "==",
		"signature huge":               resign(make([]byte, 2000)),
		"two parts":                    parts[0] + "." + parts[1],
		"four parts":                   ok + ".x",
		"five parts (JWE)":             ok + ".x.y",
		"detached payload":             parts[0] + ".." + parts[2],
		"whitespace before":            " " + ok,
		"whitespace after":             ok + " ",
		"line break after":             ok + "\n",
		"line break within":            ok[:40] + "\n" + ok[40:],
		"line break in the signature":  ok[:len(ok)-4] + "\r\n" + ok[len(ok)-4:],
		"NUL after":                    ok + "\x00",
		"standard base64":              parts[0] + "." + strings.NewReplacer("-", "+", "_", "/").Replace(b64([]byte(strings.Replace(good, "alice", "\u00fb\u00ff\u00fe???>>>", 1)))) + "." + parts[2],
		"JSON serialization":           fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, parts[0], parts[1], parts[2]),
		"nothing but dots":             "..",
		"huge":                         strings.Repeat("A", 1<<20) + "." + parts[1] + "." + parts[2],
		"Bearer twice":                 "Bearer " + ok,
	}
	for _, none := range []string{"none", "None", "NONE", "nOnE", "", "null", " none"} {
		input := b64(fmt.Appendf(nil, `{"alg":%q,"kid":"es"}`, none)) + "." + parts[1]
		attacks["alg "+none+" unsigned"] = input + "."
		attacks["alg "+none+" signed"] = input + "." + parts[2]
	}
	if _, err := g.Authenticate(t.Context(), Credentials{Bearer: ok}); err != nil {
		t.Fatalf("what the attacks begin with is refused: %v", err)
	}
	// Before its keys are looked at: of HS256 there could be one by mistake.
	if _, err := g.Authenticate(t.Context(), Credentials{Bearer: attacks["HS256 with the RSA key in PEM"]}); err == nil || !strings.Contains(err.Error(), "another algorithm than this issuer's") {
		t.Errorf("an algorithm that the policy does not have: %v", err)
	}
	for name, token := range attacks {
		p, err := g.Authenticate(t.Context(), Credentials{Bearer: token})
		if err == nil || p != nil || !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: let in as %+v, %v", name, p, err)
		} else if len(err.Error()) > 300 || strings.Contains(err.Error(), parts[2]) {
			t.Errorf("%s: the error repeats what was sent: %v", name, err)
		}
	}
}

func TestTokenEnds(t *testing.T) {
	k, clk := keysForTests(), newClock()
	g := tokenGuard(t, clk)
	token := k.sign("EdDSA", `{"alg":"EdDSA"}`, with(clk.now(), nil))
	p, err := g.Authenticate(t.Context(), Credentials{Bearer: token})
	if err != nil {
		t.Fatal(err)
	}
	clk.pass(time.Hour + 59*time.Second)
	if _, err := g.Authenticate(t.Context(), Credentials{Bearer: token}); err != nil || p.Ended(clk.now()) {
		t.Errorf("within its life and leeway: %v", err)
	}
	clk.pass(time.Second)
	if _, err := g.Authenticate(t.Context(), Credentials{Bearer: token}); !errors.Is(err, ErrUnauthenticated) || !p.Ended(clk.now()) {
		t.Errorf("a remembered token past its life: %v", err)
	}
	if r := g.Refusals(); r[1].Reason != "expired" || r[1].Count != 1 {
		t.Errorf("refusals %v", r)
	}
}

func TestPolicyChanges(t *testing.T) {
	k, clk := keysForTests(), newClock()
	g := tokenGuard(t, clk)
	token := k.sign("EdDSA", `{"alg":"EdDSA"}`, with(clk.now(), map[string]any{"roles": []string{"writer"}}))
	p, err := g.Authenticate(t.Context(), Credentials{Bearer: token})
	if err != nil || p.Check(Publish, Topic, "orders.eu") != nil {
		t.Fatal(p, err)
	}
	changed := parse(t, strings.Replace(testPolicy, "orders.*", "invoices.*", 1), map[string]string{"keys.json": k.jwks})
	if err := g.SetPolicy(changed); err != nil {
		t.Fatal(err)
	}
	if !p.Ended(clk.now()) {
		t.Error("who came in under the old policy stays")
	}
	p, err = g.Authenticate(t.Context(), Credentials{Bearer: token})
	if err != nil || p.Check(Publish, Topic, "orders.eu") == nil || p.Check(Publish, Topic, "invoices.1") != nil {
		t.Error(p, err)
	}
	if err := g.SetPolicy(nil); err != nil {
		t.Fatal(err)
	}
	if _, err = g.Authenticate(t.Context(), Credentials{Bearer: token}); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("a token of an issuer that is no more: %v", err)
	}
	if p, err = g.Authenticate(t.Context(), Credentials{Bearer: "the-token"}); err != nil || p.Check(Admin, Router, "") != nil {
		t.Errorf("the router's token: %v", err)
	}
}

func TestClaims(t *testing.T) {
	k, clk := keysForTests(), newClock()
	const head = "version: 1\njwt:\n  corp:\n    issuer: " + testIssuer + "\n    audience: millrace\n    jwks: keys.json\n    "
	for _, c := range []struct {
		name, policy string
		claims       map[string]any
		tenant       string
		roles        string
		refused      bool
	}{
		{"list", "roles: {claim: roles}", map[string]any{"roles": []string{"reader", "publisher", "reader"}}, "", "reader publisher", false},
		{"words", "roles: {claim: scope}", map[string]any{"scope": "openid reader"}, "", "reader", false},
		{"path", "roles: {claim: realm_access.roles}", map[string]any{"realm_access": map[string]any{"roles": []string{"reader"}}}, "", "reader", false},
		{"dots", "roles: {claim: 'https://e.com/roles'}", map[string]any{"https://e.com/roles": []string{"reader"}}, "", "reader", false},
		{"no claim", "roles: {claim: roles}", map[string]any{"roles": nil}, "", "", false},
		{"admin is not taken", "roles: {claim: roles}", map[string]any{"roles": []string{"admin"}}, "", "", false},
		{"nor what allows admin", "roles: {claim: roles}\nroles: {root: [{allow: [read, admin], topics: ['*']}], plain: [{allow: [read], topics: ['*']}]}", map[string]any{"roles": []string{"root", "plain"}}, "", "plain", false},
		{"admin is mapped", "roles: {claim: roles, map: {ops: [admin]}}", map[string]any{"roles": []string{"ops", "reader"}}, "", "admin", false},
		{"always", "roles: {claim: roles, always: [reader]}", map[string]any{"roles": []string{"publisher"}}, "", "reader publisher", false},
		{"tenant by claim", "roles: [reader]\n    tenant: {claim: org}", map[string]any{"org": "acme"}, "acme.", "reader", false},
		{"tenant with its dot", "roles: [reader]\n    tenant: {claim: org}", map[string]any{"org": "acme."}, "acme.", "reader", false},
		{"tenant fixed", "roles: [reader]\n    tenant: acme", map[string]any{"org": "other"}, "acme.", "reader", false},
		{"tenant missing", "roles: [reader]\n    tenant: {claim: org}", nil, "", "", true},
		{"tenant empty", "roles: [reader]\n    tenant: {claim: org}", map[string]any{"org": ""}, "", "", true},
		{"tenant of dots", "roles: [reader]\n    tenant: {claim: org}", map[string]any{"org": "."}, "", "", true},
		{"tenant star", "roles: [reader]\n    tenant: {claim: org}", map[string]any{"org": "*"}, "", "", true},
		{"tenant list", "roles: [reader]\n    tenant: {claim: org}", map[string]any{"org": []string{"a", "b"}}, "", "", true},
	} {
		g := newGuard(t, Options{Now: clk.now, Policy: parse(t, head+c.policy, map[string]string{"keys.json": k.jwks})})
		p, err := g.Authenticate(t.Context(), Credentials{Bearer: k.sign("EdDSA", `{"alg":"EdDSA"}`, with(clk.now(), c.claims))})
		if c.refused {
			if !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("%s: %+v, %v", c.name, p, err)
			}
			continue
		}
		if err != nil || p.Tenant != c.tenant || strings.Join(p.Roles, " ") != c.roles {
			t.Errorf("%s: %+v, %v", c.name, p, err)
		}
		if c.roles == "" && p.Sees(Topic, "t") {
			t.Errorf("%s: sees without a role", c.name)
		}
	}
}

func TestKeySets(t *testing.T) {
	k := keysForTests()
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	es := []string{"RS256", "ES256"}
	private, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.es, KeyID: "p"}}})
	for name, text := range map[string]string{
		"nothing":         ``,
		"no keys":         `{"keys":[]}`,
		"not JSON":        `<html>`,
		"followed":        `{"keys":[]} {}`,
		"a secret":        `{"keys":[{"kty":"oct","k":"AAAA","kid":"es","alg":"ES256"}]}`,
		"private":         string(private),
		"short RSA":       jwksOf(map[string]any{"s": small.Public()}, "", nil, ""),
		"for encryption":  strings.Replace(jwksOf(map[string]any{"es": k.es.Public()}, "", nil, ""), `"kty"`, `"use":"enc","kty"`, 1),
		"for signing":     strings.Replace(jwksOf(map[string]any{"es": k.es.Public()}, "", nil, ""), `"kty"`, `"key_ops":["sign"],"kty"`, 1),
		"another alg":     jwksOf(nil, "es", k.es.Public(), "ES512"),
		"off the curve":   `{"keys":[{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}]}`,
		"even exponent":   `{"keys":[{"kty":"RSA","n":"` + b64(k.rsa.N.Bytes()) + `","e":"BA"}]}`,
		"exponent of one": `{"keys":[{"kty":"RSA","n":"` + b64(k.rsa.N.Bytes()) + `","e":"AQ"}]}`,
		"many":            `{"keys":[` + strings.Repeat(`{},`, 200) + `{}]}`,
		"large":           `{"keys":[` + strings.Repeat(" ", maxJWKS) + `]}`,
	} {
		if set, err := parseJWKS([]byte(text), es); err == nil {
			t.Errorf("%s: %d keys", name, len(set.all))
		}
	}
	one, err1 := parseJWKS([]byte(jwksOf(map[string]any{"a": k.es.Public()}, "b", k.rsa.Public(), "")), es)
	two, err2 := parseJWKS([]byte(jwksOf(map[string]any{"b": k.rsa.Public()}, "a", k.es.Public(), "")), es)
	three, err3 := parseJWKS([]byte(jwksOf(map[string]any{"b": k.rsa.Public()}, "a", k.stranger.Public(), "")), es)
	if err := errors.Join(err1, err2, err3); err != nil || one.sum != two.sum || one.sum == three.sum {
		t.Errorf("the same keys in another order are others, or others the same: %v", err)
	}
	mixed := strings.Replace(jwksOf(map[string]any{"es": k.es.Public()}, "", nil, ""), `[`, `[{"kty":"new","kid":"x"},`, 1)
	if set, err := parseJWKS([]byte(mixed), es); err != nil || len(set.all) != 1 {
		t.Errorf("a key of a kind that is not known spoils the set: %v", err)
	}
}

func TestUnavailableIsNotUnauthenticated(t *testing.T) {
	k, clk := keysForTests(), newClock()
	policy := parse(t, strings.Replace(testPolicy, "jwks: keys.json", "jwks: https://login.example.com/keys", 1), nil)
	g := newGuard(t, Options{Now: clk.now, Policy: policy, HTTP: noFetch})
	_, err := g.Authenticate(t.Context(), Credentials{Bearer: k.sign("EdDSA", `{"alg":"EdDSA","kid":"ed"}`, with(clk.now(), nil))})
	if !errors.Is(err, event.ErrUnavailable) || errors.Is(err, ErrUnauthenticated) {
		t.Errorf("before the first fetch: %v", err)
	}
	if _, err := New(Options{Policy: policy}); err == nil {
		t.Error("a URL that nothing fetches")
	}
}
