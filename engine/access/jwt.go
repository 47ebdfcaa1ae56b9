package access

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxJWTHeader = 2 << 10 // bytes once decoded
	maxJWTClaims = 12 << 10
	maxSignature = maxRSA / 8
)

// badToken says why a JWT is not good. It names nothing of the token but its claims' names: what a stranger sent is
// not repeated, and what of it was right is not told.
func badToken(format string, args ...any) error {
	return fmt.Errorf("%w: the JWT "+format, append([]any{ErrUnauthenticated}, args...)...)
}

// strict reads base64url without padding, without line breaks and without bits left over: one token has one form.
var strict = base64.RawURLEncoding.Strict()

// A token is a JWT taken apart and not yet believed.
type token struct {
	text   string
	alg    string
	kid    string
	hasKid bool
	claims claims
}

// looksLikeJWT reports whether a bearer token has three parts.
func looksLikeJWT(s string) bool { return strings.Count(s, ".") == 2 }

// parseToken takes a JWT in compact form (RFC 7515, 7.1) apart.
func parseToken(text string) (*token, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, badToken("has not three parts")
	}
	for i, limit := range [...]int{maxJWTHeader, maxJWTClaims, maxSignature} {
		if parts[i] == "" {
			return nil, badToken("has an empty part: tokens are signed here")
		}
		if len(parts[i]) > strict.EncodedLen(limit) {
			return nil, badToken("has a part of %d characters; at most %d are allowed", len(parts[i]), strict.EncodedLen(limit))
		}
		// The decoder skips line breaks; a token has none.
		if strings.ContainsAny(parts[i], "\r\n") {
			return nil, badToken("has a line break")
		}
	}
	header, err := decodePart(parts[0], "header")
	if err != nil {
		return nil, err
	}
	t := &token{text: text}
	if err := t.readHeader(header); err != nil {
		return nil, err
	}
	if _, err := strict.DecodeString(parts[2]); err != nil {
		return nil, badToken("has a signature that is not base64url")
	}
	if t.claims, err = decodePart(parts[1], "payload"); err != nil {
		return nil, err
	}
	return t, nil
}

func decodePart(s, what string) (map[string]any, error) {
	b, err := strict.DecodeString(s)
	if err != nil {
		return nil, badToken("has a %s that is not base64url", what)
	}
	m, err := parseObject(b)
	if err != nil {
		return nil, badToken("has a %s that %v", what, err)
	}
	return m, nil
}

// forbidden are header parameters that a token must not have: each would have the token say how it is to be checked,
// or be something else than a signed JWT.
var forbidden = []struct{ name, why string }{
	{"jku", "keys come from the policy"}, {"jwk", "keys come from the policy"}, {"x5u", "keys come from the policy"}, {"x5c", "keys come from the policy"},
	{"crit", "no extension is understood"}, {"b64", "no extension is understood"}, {"enc", "encrypted tokens are not read"}, {"zip", "packed tokens are not read"},
}

func (t *token) readHeader(h map[string]any) error {
	for _, f := range forbidden {
		if _, there := h[f.name]; there {
			return badToken("has %s in its header: %s", f.name, f.why)
		}
	}
	alg, ok := h["alg"].(string)
	if !ok || algorithms[alg] == nil {
		return badToken("is not signed with an algorithm that is taken here: %s", strings.Join(algorithmNames(), ", "))
	}
	t.alg = alg
	if v, there := h["typ"]; there {
		typ, ok := v.(string)
		typ = strings.TrimPrefix(strings.ToLower(typ), "application/")
		// RFC 8725, 3.11: another type is a token for something else. RFC 9068 names access tokens at+jwt.
		if !ok || typ != "jwt" && typ != "at+jwt" {
			return badToken("is of another typ; want JWT or at+jwt")
		}
	}
	if v, there := h["cty"]; there {
		if s, ok := v.(string); !ok || strings.EqualFold(s, "JWT") {
			return badToken("holds another token; nested ones are not read")
		}
	}
	if v, there := h["kid"]; there {
		if t.kid, t.hasKid = v.(string); !t.hasKid || !plainKid(t.kid) {
			return badToken("has a kid that is none: want 1 to %d characters of A-Z a-z 0-9 . _ ~ + / = : @ -", maxKid)
		}
	}
	return nil
}

// plainKid reports whether s can be a key's id. It is only ever looked up in a map, but what would be a path, a query
// or a command elsewhere is not looked up at all.
func plainKid(s string) bool {
	if s == "" || len(s) > maxKid {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._~+/=:@-", rune(c)) {
			return false
		}
	}
	return !strings.Contains(s, "..")
}

// pathlike reports whether a kid could be a path or an address. Base64 has slashes too, so such a one is good where it
// is known; what is not known never makes us ask the issuer for new keys.
func pathlike(kid string) bool {
	return kid[0] == '/' || kid[0] == '.' || strings.Contains(kid, "//")
}

// authenticateJWT returns who shows a token that is not in the cache, and puts it there.
func (f *inForce) authenticateJWT(ctx context.Context, text string, sum digest, now time.Time) (*Principal, error) {
	t, err := parseToken(text)
	if err != nil {
		return nil, err
	}
	src, err := f.sourceOf(t)
	if err != nil {
		return nil, err
	}
	is := src.issuer
	if !slices.Contains(is.algs, t.alg) {
		return nil, badToken("is signed with another algorithm than this issuer's")
	}
	set, keys, err := src.keysFor(ctx, t, now)
	if err != nil {
		return nil, err
	}
	if err := t.verify(keys); err != nil {
		return nil, err
	}
	until, err := t.checkTimes(is.leeway, now)
	if err != nil {
		return nil, err
	}
	p, err := f.tokenPrincipal(is, t)
	if err != nil {
		return nil, err
	}
	p.expires, p.source, p.set = nanos(until), src, set
	f.tokens.put(&cached{sum: sum, principal: p})
	return p, nil
}

// sourceOf returns the issuer that the token names, whose audience it has. Nothing of it is believed yet: it chooses
// by which keys the token is to be checked, and those make no tokens of another issuer good.
func (f *inForce) sourceOf(t *token) (*source, error) {
	iss, ok := t.claims["iss"].(string)
	if !ok {
		return nil, badToken("has no iss")
	}
	aud, ok := t.claims.audiences()
	if !ok {
		return nil, badToken("has no aud")
	}
	found := false
	for _, src := range f.sources {
		if src.issuer.issuer != iss {
			continue
		}
		found = true
		for _, a := range aud {
			if slices.Contains(src.issuer.audience, a) {
				return src, nil
			}
		}
	}
	if found {
		return nil, badToken("is for another audience")
	}
	return nil, badToken("is of an issuer that is not known here")
}

// verify checks the signature with keys that are pinned to the token's algorithm.
func (t *token) verify(keys []verifier) error {
	sig, err := jose.ParseSignedCompact(t.text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(t.alg)})
	if err != nil {
		return badToken("is not well-formed")
	}
	for _, v := range keys {
		if _, err := sig.Verify(v.key); err == nil {
			return nil
		}
	}
	return badToken("has a signature that is not good")
}

// checkTimes returns until when the token is good.
func (t *token) checkTimes(leeway time.Duration, now time.Time) (until time.Time, err error) {
	exp, there, ok := t.claims.date("exp")
	switch {
	case !there:
		return until, badToken("has no exp; one that never ends is not taken")
	case !ok:
		return until, badToken("has an exp that is no date")
	}
	if until = exp.Add(leeway); !now.Before(until) {
		return until, fmt.Errorf("%w: the JWT expired at %s", errExpired, exp.UTC().Format(time.RFC3339))
	}
	for _, name := range [...]string{"nbf", "iat"} {
		at, there, ok := t.claims.date(name)
		if there && !ok {
			return until, badToken("has an %s that is no date", name)
		}
		if there && at.After(now.Add(leeway)) {
			return until, badToken("is not good before %s (%s); look at the clocks", at.UTC().Format(time.RFC3339), name)
		}
	}
	return until, nil
}

// tokenPrincipal is who the claims of a verified token name, with the roles that they come to.
func (f *inForce) tokenPrincipal(is *issuer, t *token) (*Principal, error) {
	subject, ok := t.claims.at(is.subject).(string)
	if !ok || !plainText(subject) {
		return nil, badToken("has no %.60q that names who it is: want a text of 1 to %d bytes without control characters", is.subject, maxClaim)
	}
	tenant := is.tenant
	if is.tenantIn != "" {
		said, _ := t.claims.at(is.tenantIn).(string)
		full, why := fullTenant(said)
		if why != "" || full == "" {
			return nil, badToken("has no %.60q that is a tenant", is.tenantIn)
		}
		tenant = full
	}
	roles := slices.Clone(is.fixed)
	if is.claim != "" {
		said, ok := words(t.claims.at(is.claim))
		if !ok {
			return nil, badToken("has a %.60q that is no list of at most %d roles", is.claim, maxRoles)
		}
		for _, r := range said {
			roles = is.give(roles, r, f.roles)
		}
	}
	return f.principal("jwt:"+is.name+"/"+subject, tenant, roles), nil
}

// give adds what a role of the claim comes to. Who names roles at the provider need not know of ours, so what happens
// to be called as a role that holds the whole router is nobody's here unless the policy's map says so.
func (is *issuer) give(roles []string, said string, known map[string]*role) []string {
	ours := is.mapped[said]
	if is.mapped == nil && known[said] != nil && !known[said].administers() {
		ours = []string{said}
	}
	for _, r := range ours {
		if !slices.Contains(roles, r) {
			roles = append(roles, r)
		}
	}
	return roles
}

// plainText reports whether s can stand in a name of a principal: in logs, and compared.
func plainText(s string) bool {
	if s == "" || len(s) > maxClaim {
		return false
	}
	for _, r := range s {
		// U+FFFD is what a broken surrogate pair becomes: two subjects would be one.
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return false
		}
	}
	return true
}
