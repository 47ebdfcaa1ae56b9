package access

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const maxCertRules = 256

// A certRule is one entry of a policy's certificates: the first that fits a certificate says who it is.
type certRule struct {
	subject pattern // of the subject's common name; "" any
	san     pattern // of one of the DNS names, addresses and URIs; "" any
	roles   []string
	tenant  string
}

func (r *policyReader) certificates(p *Policy, n *yaml.Node, known []string) {
	if n.Kind != yaml.SequenceNode {
		r.fault(n, "is %s; certificates are a list, such as - {subject: \"edge-*\", roles: [publisher]}", shape(n))
		return
	}
	if len(n.Content) > maxCertRules {
		r.fault(n, "has %d entries; at most %d are allowed", len(n.Content), maxCertRules)
		return
	}
	for _, item := range n.Content {
		f := r.record(item, "a certificate's entry", "subject", "san", "roles", "tenant")
		if item.Kind != yaml.MappingNode {
			continue
		}
		var c certRule
		if v := f["subject"]; v != nil {
			c.subject = r.certPattern(v)
		}
		if v := f["san"]; v != nil {
			c.san = r.certPattern(v)
		}
		if f["subject"] == nil && f["san"] == nil {
			r.fault(item, "fits no certificate; write subject: for the common name, or san: for a DNS name, an address or a URI")
		}
		if v := f["roles"]; v != nil {
			c.roles = r.roleNames(v, known)
		} else {
			r.fault(item, "has no roles; the roles are %s", strings.Join(known, ", "))
		}
		if v := f["tenant"]; v != nil {
			c.tenant = r.tenant(v)
		}
		p.certs = append(p.certs, c)
	}
}

// certPattern reads a pattern of what certificates hold, which has more characters than our names.
func (r *policyReader) certPattern(n *yaml.Node) pattern {
	s, ok := r.text(n)
	if !ok {
		return ""
	}
	if !plainText(s) || strings.Count(s, "*") > maxStars {
		r.fault(n, "pattern %.60q: want 1 to %d bytes without control characters, with at most %d *", n.Value, maxClaim, maxStars)
		return ""
	}
	return pattern(s)
}

var (
	errCert    = fmt.Errorf("%w: no entry of the policy's certificates fits this client certificate", ErrUnauthenticated)
	errCertOld = fmt.Errorf("%w: the client certificate is not good at this time", errExpired)
)

// certificate returns who shows a verified certificate.
func (f *inForce) certificate(c *x509.Certificate, now time.Time) (*Principal, error) {
	if f.certs == nil || len(c.Raw) == 0 {
		return nil, errCert
	}
	sum := sha256.Sum256(c.Raw)
	if p := f.certs.get(&sum, now); p != nil {
		return p, nil
	}
	// The listener looked at the dates when the connection began; it may have been open since.
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return nil, errCertOld
	}
	for i := range f.policy.certs {
		rule := &f.policy.certs[i]
		name, ok := rule.fits(c)
		if !ok {
			continue
		}
		p := f.principal("cert:"+name, rule.tenant, rule.roles)
		p.id += "\x00" + string(c.RawIssuer) // names are unique with whom they were given by
		p.expires = nanos(c.NotAfter.Add(1))
		f.certs.put(&cached{sum: sum, principal: p})
		return p, nil
	}
	return nil, errCert
}

// fits reports whether the rule is about c, and by what name it knows it.
func (r *certRule) fits(c *x509.Certificate) (name string, ok bool) {
	if r.san != "" {
		if name, ok = r.alternative(c); !ok {
			return "", false
		}
	}
	if r.subject != "" {
		cn := commonName(c)
		if !plainText(cn) || !r.subject.match(cn) {
			return "", false
		}
		name = cn
	}
	return name, true
}

// alternative returns the first of c's alternative names that fits.
func (r *certRule) alternative(c *x509.Certificate) (string, bool) {
	var names []string
	names = append(names, c.DNSNames...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	names = append(names, c.EmailAddresses...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	for _, n := range names {
		if plainText(n) && r.san.match(n) {
			return n, true
		}
	}
	return "", false
}

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// commonName returns the subject's; "" where there are several, of which readers take different ones.
func commonName(c *x509.Certificate) string {
	found := 0
	for _, n := range c.Subject.Names {
		if n.Type.Equal(oidCommonName) {
			found++
		}
	}
	if found > 1 {
		return ""
	}
	return c.Subject.CommonName
}
