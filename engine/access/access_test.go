package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/engine/event"
)

// as returns a principal of the roles under a policy.
func as(p *Policy, tenant string, roles ...string) *Principal {
	f := &inForce{policy: p, roles: p.all(), era: new(era)}
	return f.principal("key:x", tenant, roles)
}

// verdict is how Check answers: yes, no (403), or hidden (404).
func verdict(t *testing.T, p *Principal, a Action, k Kind, name string) string {
	t.Helper()
	err := p.Check(a, k, name)
	switch {
	case err == nil:
		return "yes"
	case errors.Is(err, event.ErrNotFound) && errors.Is(err, ErrDenied):
		t.Errorf("%v is both", err)
	case errors.Is(err, event.ErrNotFound):
		if p.Sees(k, name) {
			t.Errorf("%s %s is hidden, and seen", k, name)
		}
		return "hidden"
	case errors.Is(err, ErrDenied):
		return "no"
	}
	return fmt.Sprint(err)
}

// TestBuiltinRoles is the table of the documents, by kind: what each role may do on a name.
func TestBuiltinRoles(t *testing.T) {
	for role, may := range map[string][kinds]string{
		"admin":     {"admin", "publish read operate manage", "read consume operate manage", "read deploy invoke"},
		"publisher": {"", "publish", "", ""},
		"consumer":  {"", "read", "read consume", "read"},
		"reader":    {"", "read", "read", "read"},
		"operator":  {"", "read operate", "read consume operate", "read"},
		"developer": {"", "publish read operate manage", "read operate manage", "read deploy invoke"},
		"nobody":    {},
	} {
		p := as(nil, "", role)
		for k := Router; k < kinds; k++ {
			name := "orders"
			if k == Router {
				name = ""
			}
			for _, a := range actionNames {
				if applies[k]&a.bit() == 0 {
					continue
				}
				want := "no"
				if slices.Contains(strings.Fields(may[k]), string(a)) {
					want = "yes"
				} else if may[k] == "" && k != Router {
					want = "hidden"
				}
				if got := verdict(t, p, a, k, name); got != want {
					t.Errorf("%s %s %s: %s, want %s", role, a, k, got, want)
				}
			}
		}
	}
}

func TestTenants(t *testing.T) {
	p := as(nil, "acme.", "admin")
	for _, c := range []struct {
		a    Action
		k    Kind
		name string
		want string
	}{
		{Manage, Topic, "acme.orders", "yes"},
		{Deploy, Function, "acme.f", "yes"},
		{Read, Topic, "acme2.orders", "hidden"},
		{Read, Topic, "acme", "hidden"},
		{Read, Topic, "ACME.orders", "hidden"},
		{Read, Topic, "x.acme.orders", "hidden"},
		{Read, Topic, "", "hidden"},
		{Admin, Router, "", "no"}, // shows every tenant's
		{Admin, Router, "acme.", "no"},
		{Read, Router, "", "yes"}, // lists, of which it sees its own
	} {
		if got := verdict(t, p, c.a, c.k, c.name); got != c.want {
			t.Errorf("%s %s %q: %s, want %s", c.a, c.k, c.name, got, c.want)
		}
	}
	for in, want := range map[string]string{"acme": "acme.", "acme.": "acme.", "acme.eu": "acme.eu.", "": "", ".": "?", "..": "?", "acme..": "?", "a b": "?", "*": "?", "a..b": "?", "-a": "?", "ä": "?", "bridge": "?", "bridge.eu": "?", "bridges": "bridges."} {
		got, why := fullTenant(in)
		if why != "" {
			got = "?"
		}
		if got != want {
			t.Errorf("tenant %q is %q, want %q", in, got, want)
		}
	}
}

func TestNobody(t *testing.T) {
	var p *Principal
	if p.Check(Read, Topic, "t") == nil || p.Sees(Topic, "t") || !p.Ended(time.Now()) || p.Check(Admin, Router, "") == nil || p.Explain(Read, Topic, "t").Allowed {
		t.Error("nobody may do something")
	}
	if From(t.Context()) != nil {
		t.Error("a context without a principal has one")
	}
	q := as(nil, "", "reader")
	if From(With(t.Context(), q)) != q {
		t.Error("a context loses its principal")
	}
	g := newGuard(t, Options{})
	for name, c := range map[string]Credentials{"nothing": {}, "something": {Bearer: "x"}, "empty token": {Bearer: " "}} {
		if p, err := g.Authenticate(t.Context(), c); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s lets in %+v, %v", name, p, err)
		}
	}
	if p := as(nil, "", "admin"); p.Check("", Topic, "t") == nil || p.Check("everything", Topic, "t") == nil || p.Check(Read, kinds, "t") == nil {
		t.Error("an unknown action or kind is allowed")
	}
}

func TestOffUntilThereIsAKey(t *testing.T) {
	g := newGuard(t, Options{Off: true, Keys: &memory{}})
	p, err := g.Authenticate(t.Context(), Credentials{Bearer: "whatever"})
	if err != nil || p.Name != "anyone" || p.Check(Admin, Router, "") != nil || p.Ended(time.Now()) {
		t.Fatal(p, err)
	}
	if _, _, err := g.CreateKey(t.Context(), p, Key{Name: "a", Roles: []string{"admin"}}); err != nil {
		t.Fatal(err)
	}
	if !p.Ended(time.Now()) {
		t.Error("who came in unasked stays")
	}
	if _, err := g.Authenticate(t.Context(), Credentials{}); !errors.Is(err, ErrUnauthenticated) {
		t.Error(err)
	}
}

// TestPatterns compares with path.Match, to which names without slashes and patterns of * alone mean the same.
func TestPatterns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.StringMatching(`[ab.*]{1,8}`).Draw(t, "pattern")
		name := rapid.StringMatching(`[ab.]{0,10}`).Draw(t, "name")
		if want, _ := path.Match(p, name); pattern(p).match(name) != want {
			t.Fatalf("%q on %q: want %v", p, name, want)
		}
		// What a pattern matches, it matches with any star in it written out.
		if i := strings.IndexByte(p, '*'); i >= 0 && pattern(p[:i]+"x"+p[i+1:]).match(name) {
			t.Fatalf("%q matches a name without x", p)
		}
	})
}

func TestLimits(t *testing.T) {
	p := parse(t, "version: 1\nlimits:\n  reader: {rate: 100/s, burst: 10, connections: 5}\n  publisher: {rate: 600/m, connections: 50}\n", nil)
	for _, c := range []struct {
		roles []string
		want  Limits
	}{
		{[]string{"reader"}, Limits{100, 10, 5}},
		{[]string{"publisher"}, Limits{10, 0, 50}},
		{[]string{"reader", "publisher"}, Limits{100, 0, 50}},
		{[]string{"reader", "admin"}, Limits{}},
		{[]string{"no-role", "reader"}, Limits{100, 10, 5}},
		{nil, Limits{}},
	} {
		if got := as(p, "", c.roles...).Limits; got != c.want {
			t.Errorf("%v: %+v, want %+v", c.roles, got, c.want)
		}
	}
}

// cert is a certificate as the listener hands it over.
func cert(clk *clock, serial string, change func(*x509.Certificate)) *x509.Certificate {
	c := &x509.Certificate{Raw: []byte("DER of " + serial), Subject: pkix.Name{CommonName: serial}, NotBefore: clk.now().Add(-time.Hour), NotAfter: clk.now().Add(time.Hour)}
	if change != nil {
		change(c)
	}
	return c
}

func TestCertificates(t *testing.T) {
	clk := newClock()
	spiffe, _ := url.Parse("spiffe://corp/edge/7")
	g := newGuard(t, Options{Token: "the-token", Now: clk.now, Policy: parse(t, `
version: 1
certificates:
  - {subject: "edge-*", roles: [publisher], tenant: acme}
  - {san: "spiffe://corp/*", roles: [reader]}
  - {subject: both, san: "*.example.com", roles: [operator]}
`, nil)})
	two := asn1.ObjectIdentifier{2, 5, 4, 3}
	for _, c := range []struct {
		name string
		cert *x509.Certificate
		want string // "" refused
	}{
		{"subject", cert(clk, "edge-1", nil), "cert:edge-1 acme. publisher"},
		{"uri", cert(clk, "x", func(c *x509.Certificate) { c.URIs = []*url.URL{spiffe} }), "cert:spiffe://corp/edge/7  reader"},
		{"both", cert(clk, "both", func(c *x509.Certificate) { c.DNSNames = []string{"a.example.org", "a.example.com"} }), "cert:both  operator"},
		{"one of both", cert(clk, "both", func(c *x509.Certificate) { c.Raw, c.IPAddresses = []byte("another"), []net.IP{net.IPv4(1, 2, 3, 4)} }), ""},
		{"no entry", cert(clk, "EDGE-1", nil), ""},
		{"name in the organization", cert(clk, "", func(c *x509.Certificate) { c.Subject.Organization = []string{"edge-1"} }), ""},
		{"two common names", cert(clk, "edge-1b", func(c *x509.Certificate) {
			c.Subject.Names = []pkix.AttributeTypeAndValue{{Type: two, Value: "root"}, {Type: two, Value: "edge-1b"}}
		}), ""},
		{"line break", cert(clk, "edge-1\nroot", nil), ""},
		{"expired since", cert(clk, "edge-2", func(c *x509.Certificate) { c.NotAfter = clk.now().Add(-time.Second) }), ""},
		{"not yet", cert(clk, "edge-3", func(c *x509.Certificate) { c.NotBefore = clk.now().Add(time.Second) }), ""},
		{"without its bytes", cert(clk, "edge-4", func(c *x509.Certificate) { c.Raw = nil }), ""},
	} {
		p, err := g.Authenticate(t.Context(), Credentials{Certificate: c.cert})
		if c.want == "" {
			if !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("%s: let in as %+v, %v", c.name, p, err)
			}
			continue
		}
		if err != nil || fmt.Sprintf("%s %s %s", p.Name, p.Tenant, strings.Join(p.Roles, ",")) != c.want {
			t.Errorf("%s: %+v, %v", c.name, p, err)
		}
		if again, _ := g.Authenticate(t.Context(), Credentials{Certificate: c.cert}); again != p {
			t.Errorf("%s: not remembered", c.name)
		}
		if _, err := g.Authenticate(t.Context(), Credentials{Certificate: c.cert, Bearer: "wrong"}); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: a wrong token beside it: %v", c.name, err)
		}
		// A certificate is public: its bytes are no token.
		if _, err := g.Authenticate(t.Context(), Credentials{Bearer: string(c.cert.Raw)}); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: its bytes as a token: %v", c.name, err)
		}
	}
	c := cert(clk, "edge-9", nil)
	p, err := g.Authenticate(t.Context(), Credentials{Certificate: c})
	if err != nil {
		t.Fatal(err)
	}
	clk.pass(2 * time.Hour)
	if _, err := g.Authenticate(t.Context(), Credentials{Certificate: c}); !errors.Is(err, ErrUnauthenticated) || !p.Ended(clk.now()) {
		t.Errorf("past its life on a connection that is open: %v", err)
	}
}

// What is good past 2262, where nanoseconds end, is good.
func TestFarExpiry(t *testing.T) {
	clk := newClock()
	g := newGuard(t, Options{Now: clk.now, Keys: &memory{}, Policy: parse(t, "version: 1\ncertificates: [{subject: \"edge-*\", roles: [publisher]}]\n", nil)})
	for _, year := range []int{2262, 2300, 9999} {
		_, text, err := g.CreateKey(t.Context(), nil, Key{Name: "far", Roles: []string{"reader"}, Expires: time.Date(year, 12, 31, 23, 59, 59, 0, time.UTC)})
		if err != nil {
			t.Fatal(err)
		}
		if p, err := g.Authenticate(t.Context(), Credentials{Bearer: text}); err != nil || p.Ended(clk.now()) {
			t.Errorf("a key until %d: %v", year, err)
		}
	}
	c := cert(clk, "edge-1", func(c *x509.Certificate) { c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) })
	p, err := g.Authenticate(t.Context(), Credentials{Certificate: c})
	if again, _ := g.Authenticate(t.Context(), Credentials{Certificate: c}); err != nil || again != p {
		t.Errorf("a certificate until 9999: %v, remembered: %t", err, again == p)
	}
}

// Names may be shared, by tenants' keys and certificates of several authorities; who is behind them is not.
func TestIdentity(t *testing.T) {
	clk := newClock()
	g := newGuard(t, Options{Now: clk.now, Keys: &memory{}, Policy: parse(t, "version: 1\ncertificates: [{subject: \"edge-*\", roles: [publisher]}]\n", nil)})
	seen := map[string]string{}
	add := func(what string, c Credentials) {
		p, err := g.Authenticate(t.Context(), c)
		if err != nil {
			t.Fatal(what, err)
		}
		if of, ok := seen[p.Identity()]; ok || p.Identity() == "" {
			t.Errorf("%s has the identity %q of %s", what, p.Identity(), of)
		}
		seen[p.Identity()] = what
	}
	for _, tenant := range []string{"", "acme", "acme"} {
		_, text, err := g.CreateKey(t.Context(), nil, Key{Name: "k", Roles: []string{"reader"}, Tenant: tenant})
		if err != nil {
			t.Fatal(err)
		}
		add("a key of "+tenant, Credentials{Bearer: text})
	}
	for _, by := range []string{"one", "two"} {
		add("a certificate by "+by, Credentials{Certificate: cert(clk, "edge-1", func(c *x509.Certificate) { c.Raw, c.RawIssuer = []byte("DER by "+by), []byte(by) })})
	}
}

// One who has a /64 floods no more than one who has an address, and where many flood somebody else's first is kept.
func TestAuditOfAFloodFromEverywhere(t *testing.T) {
	clk := newClock()
	from := map[string]int{}
	g := newGuard(t, Options{Now: clk.now, Audit: func(e AuditEntry) { from[e.Addr]++ }, Keys: &memory{}})
	victim := netip.MustParseAddr("198.51.100.9")
	a := netip.MustParseAddr("2001:db8::1").As16()
	const seconds = 300
	for i := range seconds * 20 {
		a[8+i%8] = byte(i / 8)
		g.Authenticate(t.Context(), Credentials{Addr: netip.AddrFrom16(a)})
		if i%20 == 0 {
			g.Authenticate(t.Context(), Credentials{Addr: victim})
		}
		clk.pass(time.Second / 20)
	}
	flood := 0
	for addr, n := range from {
		if strings.HasPrefix(addr, "2001:") {
			flood += n
		}
	}
	if n := from[victim.String()]; n < seconds*9/10 && flood > shareBurst+shareRate*seconds || flood > 2*(shareBurst+shareRate*seconds) || n == 0 {
		t.Errorf("%d entries of a victim's %d, %d of a flood's", n, seconds, flood)
	}
	g.audit.all, g.audit.share = bucket{last: clk.now()}, [shares]share{} // what there is for all is used up, by others
	before := from[victim.String()]
	for range 5 {
		g.Authenticate(t.Context(), Credentials{Addr: victim})
	}
	if n := from[victim.String()] - before; n != 1 {
		t.Errorf("%d entries while there is no room for all, want its own one", n)
	}
}

func TestAuditOfAFlood(t *testing.T) {
	clk := newClock()
	var got []AuditEntry
	g := newGuard(t, Options{Now: clk.now, Audit: func(e AuditEntry) { got = append(got, e) }, Keys: &memory{}})
	attacker, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.9")
	for range 10_000 {
		g.Authenticate(t.Context(), Credentials{Bearer: "secret-guess", Addr: attacker})
	}
	if len(got) != shareBurst {
		t.Errorf("10000 refusals left %d entries, want %d", len(got), shareBurst)
	}
	// Another's refusal has its entry, and what was left out is said.
	p := as(nil, "", "reader")
	g.Refused(p, other, Publish, Topic, "orders", p.Check(Publish, Topic, "orders"))
	n := len(got)
	if n != shareBurst+2 || got[n-2].Outcome != LeftOut || !strings.HasPrefix(got[n-2].Detail, "9980 ") {
		t.Fatalf("%d entries, the last %+v", n, got[n-2:])
	}
	if e := got[n-1]; e.Principal != "key:x" || e.Action != Publish || e.Kind != "topic" || e.Name != "orders" || e.Addr != "198.51.100.9" || e.Outcome != Denied || !e.Time.Equal(clk.now()) {
		t.Errorf("%+v", e)
	}
	// Many addresses together are bounded as well.
	for i := range 10_000 {
		g.Authenticate(t.Context(), Credentials{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
	}
	if len(got) > shareBurst+2+2*(refusalBurst+shares) {
		t.Errorf("%d entries", len(got))
	}
	clk.pass(time.Hour)
	n = len(got)
	g.Authenticate(t.Context(), Credentials{Addr: attacker})
	if len(got) != n+2 {
		t.Errorf("after an hour %d entries for one refusal", len(got)-n)
	}
	// Changes are never left out.
	n = len(got)
	for range 1000 {
		g.Changed(p, "topic", "t", "deleted")
	}
	if len(got) != n+1000 {
		t.Errorf("%d of 1000 changes", len(got)-n)
	}
	if r := fmt.Sprint(g.Refusals()); r != "[{unauthenticated 20001} {expired 0} {denied 1} {hidden 0}]" {
		t.Errorf("refusals %s", r)
	}
	for _, e := range got {
		if strings.Contains(fmt.Sprintf("%+v", e), "secret-guess") {
			t.Fatalf("an entry holds what was sent: %+v", e)
		}
	}
}

func TestKeyForms(t *testing.T) {
	g := newGuard(t, Options{Keys: &memory{}})
	k, text, err := g.CreateKey(t.Context(), nil, Key{Name: "a", Roles: []string{"reader"}})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^mrk_[a-z0-9]{12}_[0-9A-Za-z]{49}$`).MatchString(text) {
		t.Errorf("the key's form is not what scanners are told")
	}
	_, second, _ := g.CreateKey(t.Context(), nil, Key{Name: "b", Roles: []string{"reader"}})
	crossed := second[:secretAt] + text[secretAt:keyLen-checksumLen]
	typo := []byte(text)
	typo[30] = base62[(strings.IndexByte(base62, typo[30])+1)%62]
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"typo":             {string(typo), errKeyTypo},
		"cut":              {text[:40], errKeyForm},
		"with a space":     {text + " ", errKeyForm},
		"prefix alone":     {"mrk_", errKeyForm},
		"id alone":         {k.Prefix, errKeyForm},
		"upper case id":    {strings.ToUpper(text[:secretAt]) + text[secretAt:], errUnknown},
		"crossed":          {withChecksum(crossed), errKey},
		"unknown id":       {newSecret("aaaaaaaaaaaa"), errKey},
		"another secret":   {newSecret(k.ID), errKey},
		"NUL":              {text[:30] + "\x00" + text[31:], errKeyForm},
		"the hash":         {k.Prefix + string(k.Hash[:]), errKeyForm},
		"path as id":       {"mrk_../../../etc_" + text[secretAt:], errKeyForm},
		"all of it, twice": {text + text, errKeyForm},
	} {
		p, err := g.Authenticate(t.Context(), Credentials{Bearer: c.text})
		if p != nil || err != c.want {
			t.Errorf("%s: %v, %v; want %v", name, p, err, c.want)
		}
	}
	if _, err := New(Options{Token: text}); err == nil {
		t.Error("a token that looks like a key")
	}
}

func withChecksum(s string) string {
	return s + inBase62(big.NewInt(int64(checksum(s))), checksumLen)
}

func TestNewKeysAreChecked(t *testing.T) {
	g := newGuard(t, Options{Keys: &memory{}})
	for want, k := range map[string]Key{
		"name":                   {Roles: []string{"reader"}},
		"printable ASCII":        {Name: "a b", Roles: []string{"reader"}},
		"roles: are missing":     {Name: "a"},
		"did you mean reader?":   {Name: "a", Roles: []string{"raeder"}},
		"tenant":                 {Name: "a", Roles: []string{"reader"}, Tenant: "a*"},
		"which is past":          {Name: "a", Roles: []string{"reader"}, Expires: time.Unix(1, 0)},
		"at most 256":            {Name: "a", Roles: make([]string, 300)},
		"has 200 bytes; a key's": {Name: strings.Repeat("a", 200), Roles: []string{"reader"}},
	} {
		if _, _, err := g.CreateKey(t.Context(), nil, k); err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, event.ErrInvalid) {
			t.Errorf("%q: %v", want, err)
		}
	}
	if _, _, err := newGuard(t, Options{}).CreateKey(t.Context(), nil, Key{}); !errors.Is(err, event.ErrUnsupported) {
		t.Errorf("without a store: %v", err)
	}
	k, _, _ := g.CreateKey(t.Context(), nil, Key{Name: "a", Roles: []string{"reader"}})
	for _, grace := range []time.Duration{-1, maxGrace + 1} {
		if _, _, err := g.RotateKey(t.Context(), nil, k.ID, grace); !errors.Is(err, event.ErrInvalid) {
			t.Errorf("grace %s: %v", grace, err)
		}
	}
}

// TestRaceKeysChangeBesideAuthentication: a good key is never refused and a revoked one never let in, while others come
// and go and the policy is replaced.
func TestRaceKeysChangeBesideAuthentication(t *testing.T) {
	k, clk := keysForTests(), newClock()
	policy := parse(t, testPolicy, map[string]string{"keys.json": k.jwks})
	g := newGuard(t, Options{Keys: &memory{}, Now: clk.now, Policy: policy, Audit: func(AuditEntry) {}})
	_, good, err := g.CreateKey(t.Context(), nil, Key{Name: "good", Roles: []string{"reader"}})
	if err != nil {
		t.Fatal(err)
	}
	token := k.sign("EdDSA", `{"alg":"EdDSA"}`, with(clk.now(), nil))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				for _, bearer := range []string{good, token} {
					p, err := g.Authenticate(ctx, Credentials{Bearer: bearer})
					if err != nil || p.Check(Read, Topic, "t") != nil {
						t.Errorf("%v, %v", p, err)
						return
					}
				}
			}
		})
	}
	for i := range 60 {
		other, _, err := g.CreateKey(ctx, nil, Key{Name: "other", Roles: []string{"writer"}})
		if err != nil {
			t.Fatal(err)
		}
		_, text, err := g.RotateKey(ctx, nil, other.ID, time.Duration(i%2)*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		p, err := g.Authenticate(ctx, Credentials{Bearer: text})
		if err != nil || p.Check(Publish, Topic, "orders.x") != nil {
			t.Fatal(p, err)
		}
		if i%10 == 0 {
			if err := g.SetPolicy(policy); err != nil {
				t.Fatal(err)
			}
		}
		g.ListKeys()
		if err := g.RevokeKey(ctx, nil, other.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Authenticate(ctx, Credentials{Bearer: text}); !errors.Is(err, ErrUnauthenticated) || !p.Ended(clk.now()) {
			t.Fatalf("revoked: %v", err)
		}
	}
	stop()
	wg.Wait()
}

// TestTokenCacheIsBounded: more tokens than it holds push others out; none is mistaken for another.
func TestTokenCacheIsBounded(t *testing.T) {
	c := new(tokenCache)
	var sums []digest
	const sets = 8 // that are filled
	for i := range 3 * sets * cacheWays {
		sum := sha256.Sum256(fmt.Append(nil, i))
		binary.LittleEndian.PutUint64(sum[:], uint64(i%sets)+cacheSets*uint64(i))
		sums = append(sums, sum)
		c.put(&cached{sum: sum, principal: &Principal{Name: fmt.Sprint(i), expires: 100}})
	}
	held := 0
	for i, sum := range sums {
		if p := c.get(&sum, time.Unix(0, 99)); p != nil {
			if held++; p.Name != fmt.Sprint(i) {
				t.Fatalf("%s for %d", p.Name, i)
			}
		}
	}
	if held != sets*cacheWays {
		t.Errorf("%d held, of %d that there is place for", held, sets*cacheWays)
	}
	for _, sum := range sums {
		if c.get(&sum, time.Unix(0, 100)) != nil {
			t.Fatal("held past its life")
		}
	}
	var none digest
	rand.Read(none[:])
	if c.get(&none, time.Unix(0, 0)) != nil {
		t.Error("an unknown one is known")
	}
}

func TestHotPathAllocates(t *testing.T) {
	k, clk := keysForTests(), newClock()
	policy := parse(t, testPolicy+"certificates: [{subject: x, roles: [reader]}]\n", map[string]string{"keys.json": k.jwks})
	g := newGuard(t, Options{Token: "the-token", Keys: &memory{}, Now: clk.now, Policy: policy})
	_, text, err := g.CreateKey(t.Context(), nil, Key{Name: "a", Roles: []string{"writer", "reader"}, Tenant: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for name, c := range map[string]Credentials{
		"key": {Bearer: text}, "token": {Bearer: "the-token"}, "certificate": {Certificate: cert(clk, "x", nil)},
		"JWT": {Bearer: k.sign("RS256", `{"alg":"RS256","kid":"rsa"}`, with(clk.now(), map[string]any{"x": strings.Repeat("x", 500)}))},
	} {
		p, err := g.Authenticate(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() {
			q, err := g.Authenticate(ctx, c)
			if err != nil || q != p || q.Check(Read, Topic, "orders.eu") != nil || !q.Sees(Topic, "orders.eu") || q.Ended(clk.now()) {
				t.Fatal(q, err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
