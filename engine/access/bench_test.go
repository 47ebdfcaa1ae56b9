package access

import (
	"crypto/sha256"
	"strings"
	"testing"
	"time"
)

// BenchmarkAuthenticate is what a request costs before it is looked at: by a key, by a token that was verified before,
// and by ones that are seen for the first time.
func BenchmarkAuthenticate(b *testing.B) {
	k, clk := keysForTests(), newClock()
	policy := parse(b, testPolicy, map[string]string{"keys.json": k.jwks})
	g := newGuard(b, Options{Token: "the-token", Keys: &memory{}, Now: time.Now, Policy: policy})
	clk.t = time.Now()
	_, key, err := g.CreateKey(b.Context(), nil, Key{Name: "a", Roles: []string{"reader"}})
	if err != nil {
		b.Fatal(err)
	}
	claims := with(clk.now(), map[string]any{"x": strings.Repeat("x", 400)})
	rs, es := k.sign("RS256", `{"alg":"RS256","kid":"rsa"}`, claims), k.sign("ES256", `{"alg":"ES256","kid":"es"}`, claims)
	for _, c := range []struct {
		name, bearer string
		fresh        bool
	}{{"token", "the-token", false}, {"key", key, false}, {"jwt-cached", rs, false}, {"jwt-rs256", rs, true}, {"jwt-es256", es, true}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if c.fresh {
					_, err = g.rules.Load().authenticateJWT(b.Context(), c.bearer, sha256.Sum256([]byte(c.bearer)), time.Now())
				} else {
					_, err = g.Authenticate(b.Context(), Credentials{Bearer: c.bearer})
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	var text strings.Builder
	text.WriteString("version: 1\nroles:\n  many:\n")
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "orders"} {
		text.WriteString("    - {allow: [publish, read], topics: [\"" + name + ".*\"]}\n")
	}
	p := as(parse(b, text.String(), nil), "orders.", "many")
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Check(Publish, Topic, "orders.eu.created"); err != nil {
			b.Fatal(err)
		}
	}
}
