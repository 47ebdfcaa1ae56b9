package access

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTokensOfAnotherImplementation: what the npm package jose signs comes in, by each algorithm, with the keys as it
// writes them; what it makes that must not, does not.
func TestTokensOfAnotherImplementation(t *testing.T) {
	clk := newClock()
	dir := t.TempDir()
	modules, err := filepath.Abs("../../scripts/npm/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("testdata/sign.mjs")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sign.mjs"), program, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(dir, "sign.mjs"), with(clk.now(), nil), testSecret)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node: %v (sh scripts/deps.sh installs what it needs)", err)
	}
	var made struct {
		JWKS      json.RawMessage
		Good, Bad map[string]string
	}
	if err := json.Unmarshal(out, &made); err != nil {
		t.Fatal(err)
	}
	policy := "version: 1\njwt:\n  corp: {issuer: '" + testIssuer + "', audience: millrace, jwks: keys.json, roles: {claim: roles}, algorithms: [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA]}\n"
	for _, alg := range []string{"HS256", "HS384", "HS512"} {
		policy += "  " + alg + ": {issuer: shared-" + alg + ", audience: millrace, secret: '${env:SHARED}', roles: [reader], algorithms: [" + alg + "]}\n"
	}
	g := newGuard(t, Options{Now: clk.now, Policy: parse(t, policy, map[string]string{"keys.json": string(made.JWKS)})})
	for alg := range algorithms {
		p, err := g.Authenticate(t.Context(), Credentials{Bearer: made.Good[alg]})
		if err != nil || !strings.HasSuffix(p.Name, "/alice") || p.Check(Read, Topic, "t") != nil {
			t.Errorf("%s: %+v, %v", alg, p, err)
		}
	}
	if len(made.Bad) != 11 {
		t.Errorf("%d bad tokens", len(made.Bad))
	}
	for what, token := range made.Bad {
		if p, err := g.Authenticate(t.Context(), Credentials{Bearer: token}); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: let in as %+v, %v", what, p, err)
		}
	}
}
