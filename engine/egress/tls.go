package egress

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/millrace/millrace/engine/event"
)

// TLSOptions are how TLS connections are made: what stands under tls of a subscription's webhook and, with files in
// place of their text, in the process's egress file. Zero means default.
type TLSOptions struct {
	MinVersion  string   `yaml:"minVersion" enum:"1.2,1.3" about:"Nothing older is spoken."`                                                                                 // 1.2
	CA          []string `yaml:"ca" about:"Certificates (PEM) of authorities to trust besides the system's. Give references: ${file:ca.pem}."`                               // PEM, besides the system's
	Certificate string   `yaml:"certificate" about:"The router's own certificate (PEM), its chain after it, for receivers that ask for one: ${file:client.pem}."`            // PEM, sent where it is asked for
	PrivateKey  string   `yaml:"privateKey" about:"Of certificate (PEM): ${file:client.key}."`                                                                               // PEM, of Certificate
	Pins        []string `yaml:"pins" about:"sha256/BASE64 of public keys (SPKI): the receiver's certificate, or one that vouches for it, must have one. Give a spare too."` // sha256/…, one must be in the chain
}

// A Pin is the SHA-256 of a certificate's public key (SubjectPublicKeyInfo).
type Pin [sha256.Size]byte

func (p Pin) String() string { return pinPrefix + base64.StdEncoding.EncodeToString(p[:]) }

const pinPrefix = "sha256/"

// parsePin reads sha256/BASE64.
func parsePin(s string) (p Pin, err error) {
	b, ok := strings.CutPrefix(s, pinPrefix)
	sum, bad := base64.StdEncoding.DecodeString(b)
	if !ok || bad != nil || len(sum) != len(p) {
		return p, fmt.Errorf("pin %.80q: want sha256/ and the base64 of 32 bytes; for a certificate: openssl x509 -in cert.pem -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64", s)
	}
	return Pin(sum), nil
}

// PinOf returns the pin of a certificate.
func PinOf(c *x509.Certificate) Pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// TLS is TLSOptions read.
type TLS struct {
	min         uint16
	authorities []*x509.Certificate
	certificate *tls.Certificate
	pins        []Pin
}

// Bounds of what is read.
const (
	maxPEM  = 1 << 20
	maxPins = 32
)

// NewTLS reads o. What is wrong is reported at its key: *event.Faults. A private key is never shown.
func NewTLS(o TLSOptions) (*TLS, error) {
	t := &TLS{}
	var faults []event.Fault
	fault := func(at, format string, args ...any) {
		faults = append(faults, event.Fault{At: at, Detail: fmt.Sprintf(format, args...)})
	}
	switch o.MinVersion {
	case "", "1.2":
		t.min = tls.VersionTLS12
	case "1.3":
		t.min = tls.VersionTLS13
	default:
		fault("minVersion", "is %.20q; want 1.2 or 1.3", o.MinVersion)
	}
	for i, text := range o.CA {
		certs, err := parseCertificates(text)
		if err != nil {
			fault(fmt.Sprintf("ca[%d]", i), "%v", err)
		}
		t.authorities = append(t.authorities, certs...)
	}
	switch {
	case o.Certificate == "" && o.PrivateKey != "":
		fault("privateKey", "is given without certificate")
	case o.Certificate != "" && o.PrivateKey == "":
		fault("certificate", "is given without privateKey")
	case o.Certificate != "":
		if _, err := parseCertificates(o.Certificate); err != nil {
			fault("certificate", "%v", err)
			break
		}
		pair, err := tls.X509KeyPair([]byte(o.Certificate), []byte(o.PrivateKey))
		if err != nil {
			fault("privateKey", "does not go with certificate, or is no private key in PEM: %s", strings.TrimPrefix(err.Error(), "tls: "))
			break
		}
		t.certificate = &pair
	}
	if len(o.Pins) > maxPins {
		fault("pins", "has %d; want at most %d", len(o.Pins), maxPins)
	}
	for i, s := range o.Pins {
		p, err := parsePin(s)
		if err != nil {
			fault(fmt.Sprintf("pins[%d]", i), "%v", err)
		}
		t.pins = append(t.pins, p)
	}
	if len(faults) > 0 {
		return nil, &event.Faults{Is: event.ErrInvalid, List: faults}
	}
	return t, nil
}

// parseCertificates reads one or more certificates in PEM.
func parseCertificates(text string) (certs []*x509.Certificate, err error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("has %d bytes; want at most %d", len(text), maxPEM)
	}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("has a block of %.40q; want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("has no certificate in PEM (-----BEGIN CERTIFICATE-----); a file is named as ${file:cert.pem}")
	}
	return certs, nil
}

// config joins options, the later above the earlier, into a configuration for one server.
func config(host string, pins []Pin, all ...*TLS) (*tls.Config, error) {
	c := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	sets := [][]Pin{}
	if len(pins) > 0 {
		sets = append(sets, pins)
	}
	for _, t := range all {
		if t == nil {
			continue
		}
		c.MinVersion = max(c.MinVersion, t.min)
		if t.certificate != nil {
			c.Certificates = []tls.Certificate{*t.certificate}
		}
		if len(t.pins) > 0 {
			sets = append(sets, t.pins)
		}
		if len(t.authorities) > 0 && c.RootCAs == nil {
			pool, err := x509.SystemCertPool()
			if err != nil {
				return nil, fmt.Errorf("the system's certificates: %w", err)
			}
			c.RootCAs = pool
		}
		for _, a := range t.authorities {
			c.RootCAs.AddCert(a)
		}
	}
	if len(sets) > 0 {
		c.VerifyConnection = func(s tls.ConnectionState) error { return checkPins(s, sets) }
	}
	return c, nil
}

// checkPins wants, of each set, a pin of some certificate of a chain that was verified.
func checkPins(s tls.ConnectionState, sets [][]Pin) error {
	for _, set := range sets {
		pinned := slices.ContainsFunc(s.VerifiedChains, func(chain []*x509.Certificate) bool {
			return slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return slices.Contains(set, PinOf(c)) })
		})
		if !pinned {
			has := Pin{}
			if len(s.PeerCertificates) > 0 {
				has = PinOf(s.PeerCertificates[0])
			}
			return &PinError{Host: s.ServerName, Has: has}
		}
	}
	return nil
}

// PinError says that a server has none of the keys that are pinned.
type PinError struct {
	Host string
	Has  Pin
}

func (e *PinError) Error() string {
	return fmt.Sprintf("%.80s has the key %s, and none of its certificates has a pinned one: somebody may be in between, or its key was changed", e.Host, e.Has)
}

// TLS returns the configuration for connections to host, made of the process's options and own, which may be nil. It
// is made anew when SetPolicy has changed the process's; until then sessions are resumed.
func (d *Dialer) TLS(host string, own *TLS) func() (*tls.Config, error) {
	var mu sync.Mutex
	var made *tls.Config
	var epoch uint64
	name := canonical(host)
	return func() (*tls.Config, error) {
		r := d.rules.Load()
		mu.Lock()
		defer mu.Unlock()
		if made != nil && epoch == r.epoch {
			return made, nil
		}
		c, err := config(host, r.pinsOf(name), r.tls, own)
		if err != nil {
			return nil, err
		}
		made, epoch = c, r.epoch
		return c, nil
	}
}

// TLSFor is Dialer.TLS without a process's options.
func TLSFor(host string, own *TLS) func() (*tls.Config, error) {
	return sync.OnceValues(func() (*tls.Config, error) { return config(host, nil, own) })
}

// pinsOf returns the pins of the narrowest entry that names a host.
func (p *Policy) pinsOf(name string) (pins []Pin) {
	best := ""
	for _, h := range p.Pins {
		if matchHost(h.Host, name) && (!strings.HasPrefix(h.Host, "*") || len(h.Host) > len(best)) && (best == "" || strings.HasPrefix(best, "*")) {
			best, pins = h.Host, h.Pins
		}
	}
	return pins
}

// Words adds to an error of a TLS handshake what to do about it.
func Words(err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var plain tls.RecordHeaderError
	hint := ""
	switch {
	case errors.As(err, &unknown):
		hint = "if its authority is to be trusted, name it under tls.ca"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		hint = "the receiver has to renew its certificate, or this machine's clock is wrong"
	case errors.As(err, &host):
		hint = "the url must have a name that the certificate is for"
	// The alerts have no exported type.
	case strings.HasSuffix(err.Error(), "tls: bad certificate"), strings.HasSuffix(err.Error(), "tls: certificate required"),
		strings.HasSuffix(err.Error(), "tls: unknown certificate authority"):
		hint = "the receiver wants a client certificate that it knows; give tls.certificate and tls.privateKey"
	case strings.HasSuffix(err.Error(), "tls: protocol version not supported"):
		hint = "the receiver speaks no version of TLS from tls.minVersion on"
	case errors.As(err, &plain):
		hint = "is it an http:// address?"
	}
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}
