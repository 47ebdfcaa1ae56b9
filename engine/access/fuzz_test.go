package access

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// FuzzKey: a word is a key only with its checksum, and authenticating any word neither panics nor lets it in.
func FuzzKey(f *testing.F) {
	g := newGuard(f, Options{Keys: &memory{}})
	k, text, err := g.CreateKey(f.Context(), nil, Key{Name: "a", Roles: []string{"reader"}})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"", "mrk_", k.Prefix, "mrk_aaaaaaaaaaaa_" + strings.Repeat("0", 49), "mrk_" + strings.Repeat("_", 62), withChecksum("mrk_aaaaaaaaaaaa_" + strings.Repeat("z", 43))} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := g.Authenticate(t.Context(), Credentials{Bearer: s}); err == nil && s != text {
			t.Fatalf("%q lets in %+v", s, p)
		}
		if checkKey(s) == nil && withChecksum(s[:keyLen-checksumLen]) != s {
			t.Fatalf("%q passes with a wrong checksum", s)
		}
	})
}

// FuzzJWT: no token that others make up comes in, and what is taken apart has one form only.
func FuzzJWT(f *testing.F) {
	k, clk := keysForTests(), newClock()
	g := newGuard(f, Options{Now: clk.now, Policy: parse(f, testPolicy, map[string]string{"keys.json": k.jwks})})
	good := with(clk.now(), nil)
	for _, h := range []string{`{"alg":"none"}`, `{"alg":"HS256","kid":"rsa"}`, `{"alg":"RS256","kid":"rsa","crit":["x"]}`, `{"alg":"EdDSA","kid":"../x","jwk":{}}`, `[]`, `{`, `{"alg":"ES256","alg":"none"}`} {
		f.Add(h, good, "sig")
	}
	f.Add(`{"alg":"ES256","kid":"es","typ":"JWT"}`, `{"iss":"`+testIssuer+`","aud":["millrace",1],"exp":1e400}`, strings.Repeat("\x00", 64))
	f.Fuzz(func(t *testing.T, header, claims, sig string) {
		for _, token := range []string{b64([]byte(header)) + "." + b64([]byte(claims)) + "." + b64([]byte(sig)), header + "." + claims + "." + sig, header} {
			if p, err := g.Authenticate(t.Context(), Credentials{Bearer: token}); err == nil {
				t.Fatalf("%q lets in %+v", token, p)
			}
			if tok, err := parseToken(token); err == nil {
				h, c, _ := strings.Cut(token, ".")
				c, _, _ = strings.Cut(c, ".")
				for _, part := range []string{h, c} {
					if b, err := strict.DecodeString(part); err != nil || b64(b) != part {
						t.Fatalf("%q has another form", part)
					}
				}
				if algorithms[tok.alg] == nil {
					t.Fatalf("alg %q", tok.alg)
				}
			}
		}
	})
}

// FuzzJWKS: a key set that is taken has keys for public algorithms only, each pinned to some that fit it.
func FuzzJWKS(f *testing.F) {
	k := keysForTests()
	f.Add([]byte(k.jwks))
	for _, s := range []string{`{"keys":[{"kty":"oct","k":"AAAA"}]}`, `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`, `{"keys":[{"kty":"OKP","crv":"Ed25519","x":""}]}`,
		`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`, `{"keys":null}`, `[]`, `{"keys":[null,1,{}]}`, `{"keys":[{"kty":"RSA","x5c":["AA=="]}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := parseJWKS(text, algorithmNames())
		if err != nil {
			return
		}
		for _, v := range set.all {
			kty, curve, err := kindOf(v.key)
			if err != nil || len(v.algs) == 0 || kty == "oct" {
				t.Fatalf("key %+v: %v", v, err)
			}
			for _, a := range v.algs {
				if algorithms[a].kty != kty || algorithms[a].curve != curve {
					t.Fatalf("a key of %s %s is pinned to %s", kty, curve, a)
				}
			}
		}
	})
}

// FuzzPolicy: a policy file is read or refused with places, without panics, and what is read prints.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte(testPolicy))
	for _, s := range []string{"version: 1", "version: 1\nroles: {a: &x [*x]}", "version: 1\njwt: {a: {secret: '${env:SHARED}', algorithms: [HS256, HS512], issuer: i, audience: [], roles: {claim: r, map: {x: y}}}}",
		"version: 1\ncertificates: [{subject: '*', san: 1, tenant: .}]", "version: 1\nlimits: {admin: {rate: 1e9/s, burst: -1}}", "? [a]\n: b", "version: !!binary 1", "<<: {version: 1}", "version: 1\nroles: {a: [{allow: admin}]}"} {
		f.Add([]byte(s))
	}
	files := testFiles(map[string]string{"keys.json": keysForTests().jwks})
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePolicy("access.yaml", text, files, testEnv)
		if (p == nil) != (err != nil) {
			t.Fatalf("%v and %v", p, err)
		}
		if err != nil {
			if !strings.HasPrefix(err.Error(), "access.yaml") || strings.Contains(err.Error(), testSecret) {
				t.Fatalf("%v", err)
			}
			return
		}
		var out bytes.Buffer
		if err := p.Table(&out); err != nil || strings.Contains(out.String(), testSecret) {
			t.Fatalf("%v\n%s", err, out.String())
		}
		g := newGuard(t, Options{Policy: p, HTTP: noFetch})
		for name := range p.all() {
			q := g.rules.Load().principal("x", "acme.", []string{name})
			if q.Check(Admin, Router, "") == nil || q.Sees(Topic, "other.x") || q.Ended(time.Now()) {
				t.Fatalf("role %q leaves its tenant", name)
			}
		}
	})
}
