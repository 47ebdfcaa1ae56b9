package access

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	maxIssuers  = 64
	maxAudience = 64
	maxClaim    = 256 // bytes of a claim's name, and of a value that names something
)

// An issuer is one entry of a policy's jwt: whose tokens are good here, and what they come to.
type issuer struct {
	name     string
	issuer   string
	audience []string
	url      string  // of the JWKS; "" where set is fixed
	set      *keySet // of a file or a secret
	algs     []string
	leeway   time.Duration
	refresh  time.Duration
	subject  string // claim that names the principal
	fixed    []string
	claim    string              // of roles; "" none
	mapped   map[string][]string // a role of the claim → ours; nil: taken as they are, but for admin
	tenant   string              // fixed
	tenantIn string              // claim; "" none
	at       string
}

func (r *policyReader) issuers(p *Policy, n *yaml.Node, known []string) {
	for _, f := range r.fields(n, "jwt") {
		if len(p.issuers) >= maxIssuers {
			r.fault(f.key, "there are over %d issuers", maxIssuers)
			return
		}
		if why := checkRoleName(f.name); why != "" {
			r.fault(f.key, "%s", strings.Replace(why, "of a role", "of an issuer", 1))
			continue
		}
		is := r.issuer(f.name, f.val, known)
		for _, other := range p.issuers {
			if is.issuer != "" && other.issuer == is.issuer && slices.ContainsFunc(is.audience, func(a string) bool { return slices.Contains(other.audience, a) }) {
				r.fault(f.key, "has the issuer and an audience of %s too; a token belongs to one entry", other.name)
			}
		}
		p.issuers = append(p.issuers, is)
	}
}

func (r *policyReader) issuer(name string, n *yaml.Node, known []string) *issuer {
	is := &issuer{name: name, leeway: time.Minute, refresh: 15 * time.Minute, subject: "sub", at: r.place(n)}
	f := r.record(n, "an issuer", "issuer", "audience", "jwks", "secret", "algorithms", "leeway", "refresh", "name", "roles", "tenant")
	if n.Kind != yaml.MappingNode {
		return is
	}
	if v := f["issuer"]; v == nil {
		r.fault(n, "has no issuer; write issuer: as the tokens' iss has it")
	} else if is.issuer, _ = r.text(v); is.issuer == "" {
		r.fault(v, "is empty; want what the tokens' iss has")
	}
	if v := f["audience"]; v == nil {
		r.fault(n, "has no audience; write audience: as the tokens' aud has it: without one, a token for any other service of this issuer would do")
	} else if is.audience = r.texts(v); slices.Contains(is.audience, "") || len(is.audience) == 0 || len(is.audience) > maxAudience {
		r.fault(v, "names %d audiences; want 1 to %d, none of them empty", len(is.audience), maxAudience)
	}
	r.algorithms(is, n, f)
	r.keys(is, n, f)
	if v := f["leeway"]; v != nil {
		is.leeway = r.length(v, 0, 10*time.Minute)
	}
	if v := f["refresh"]; v != nil {
		is.refresh = r.length(v, time.Minute, 24*time.Hour)
	}
	if v := f["name"]; v != nil {
		is.subject = r.claimName(v)
	}
	if v := f["roles"]; v == nil {
		r.fault(n, "has no roles; write roles: {claim: roles}, or a list of roles for all its tokens")
	} else {
		r.rolesFrom(is, v, known)
	}
	if v := f["tenant"]; v != nil && v.Kind == yaml.MappingNode {
		if c := r.record(v, "tenant", "claim")["claim"]; c != nil {
			is.tenantIn = r.claimName(c)
		} else {
			r.fault(v, "has no claim; write tenant: {claim: org}, or tenant: acme for all its tokens")
		}
	} else if v != nil {
		is.tenant = r.tenant(v)
	}
	return is
}

// algorithms reads which algorithms are good, or fills in the usual ones for the kind of key.
func (r *policyReader) algorithms(is *issuer, n *yaml.Node, f map[string]*yaml.Node) {
	symmetric := f["secret"] != nil
	v := f["algorithms"]
	if v == nil {
		if is.algs = []string{"RS256", "ES256", "EdDSA"}; symmetric {
			is.algs = []string{"HS256"}
		}
		return
	}
	for _, item := range r.items(v) {
		s, ok := r.text(item)
		if !ok {
			continue
		}
		a := algorithms[s]
		switch {
		case a == nil:
			r.fault(item, "%.60q is no algorithm%s; want some of %s", item.Value, suggest(s, algorithmNames()), strings.Join(algorithmNames(), ", "))
		case (a.kty == "oct") != symmetric:
			r.fault(item, "%s does not go with %s", s, map[bool]string{true: "a secret, which has HS256, HS384 and HS512", false: "a JWKS, whose keys are public: HS algorithms need secret:"}[symmetric])
		default:
			is.algs = append(is.algs, s)
		}
	}
}

// keys reads where the keys come from.
func (r *policyReader) keys(is *issuer, n *yaml.Node, f map[string]*yaml.Node) {
	jwks, secret := f["jwks"], f["secret"]
	switch {
	case (jwks == nil) == (secret == nil):
		r.fault(n, "needs either jwks: (a URL, or a file) or secret: (for HS256)")
	case secret != nil:
		r.secret(is, secret)
	default:
		s, ok := r.text(jwks)
		if !ok {
			return
		}
		if strings.Contains(s, "://") {
			is.url = s
			if why := checkJWKSURL(s); why != "" {
				r.fault(jwks, "%s", why)
			}
			return
		}
		b, err := r.attached(s)
		if err != nil {
			r.fault(jwks, "%v", err)
			return
		}
		if is.set, err = parseJWKS(b, is.algs); err != nil {
			r.fault(jwks, "file %.120q: %v", s, err)
		}
	}
}

// secret reads a shared secret. One that is written out would be in backups and in everybody's editor.
func (r *policyReader) secret(is *issuer, n *yaml.Node) {
	if n.Kind != yaml.ScalarNode || !strings.HasPrefix(n.Value, "${") || strings.IndexByte(n.Value, '}') != len(n.Value)-1 {
		r.fault(n, "a secret is not written into a policy; name where it is: ${env:NAME} or ${file:PATH}")
		return
	}
	s, ok := r.text(n)
	if !ok {
		return
	}
	// RFC 7518, 3.2: a key of the size of the hash output or larger must be used.
	for _, alg := range is.algs {
		if a := algorithms[alg]; a.kty == "oct" && len(s) < a.size {
			r.fault(n, "the secret has %d bytes; %s needs at least %d", len(s), alg, a.size)
			return
		}
	}
	is.set = secretSet([]byte(s), is.algs)
}

// checkJWKSURL says what is wrong with where keys are fetched, "" if nothing. Who can change the answer can make
// tokens, so it is asked for in the clear on this machine only.
func checkJWKSURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return "is no URL such as https://login.example.com/.well-known/jwks.json"
	}
	if u.Scheme == "https" {
		return ""
	}
	addr, err := netip.ParseAddr(u.Hostname())
	if u.Scheme == "http" && (u.Hostname() == "localhost" || err == nil && addr.IsLoopback()) {
		return ""
	}
	return "is not https: who can change the answer can make tokens"
}

func (r *policyReader) claimName(n *yaml.Node) string {
	s, ok := r.text(n)
	if ok && (s == "" || len(s) > maxClaim) {
		r.fault(n, "is no name of a claim; want 1 to %d bytes, such as roles or realm_access.roles", maxClaim)
	}
	return s
}

// rolesFrom reads what roles an issuer's tokens have.
func (r *policyReader) rolesFrom(is *issuer, n *yaml.Node, known []string) {
	if n.Kind != yaml.MappingNode {
		is.fixed = r.roleNames(n, known)
		return
	}
	f := r.record(n, "roles", "claim", "map", "always")
	if v := f["claim"]; v != nil {
		is.claim = r.claimName(v)
	} else {
		r.fault(n, "has no claim; write roles: {claim: roles}, or a list of roles for all its tokens")
	}
	if v := f["always"]; v != nil {
		is.fixed = r.roleNames(v, known)
	}
	if v := f["map"]; v != nil {
		is.mapped = map[string][]string{}
		for _, m := range r.fields(v, "map") {
			is.mapped[m.name] = r.roleNames(m.val, known)
		}
	}
}
