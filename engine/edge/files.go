package edge

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// A Pair names the PEM files of a certificate, with what is between it and its authority behind it, and of its key. With
// no Key, Cert is a folder of pairs: NAME.crt with NAME.key, NAME.pem with NAME-key.pem or NAME.key, and folders of
// fullchain.pem with privkey.pem.
type Pair struct{ Cert, Key string }

// A set is the certificates that are shown at one time.
type set struct {
	all   []*tls.Certificate
	names map[string][]*tls.Certificate // lower case; "*.example.com" too
	from  map[Pair]loaded
}

type loaded struct {
	sum  [sha256.Size]byte // of both files
	cert *tls.Certificate
}

func (s *set) differs(old *set) bool {
	if len(s.from) != len(old.from) {
		return true
	}
	for p, l := range s.from {
		if old.from[p].sum != l.sum {
			return true
		}
	}
	return false
}

// find is the certificate for the name that a client asks for, of several the first that it can take; nil: none fits.
func (s *set) find(hello *tls.ClientHelloInfo) *tls.Certificate {
	if hello.ServerName == "" {
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	fit := s.names[name]
	if fit == nil {
		_, rest, _ := strings.Cut(name, ".")
		fit = s.names["*."+rest]
	}
	for _, c := range fit {
		if hello.SupportsCertificate(c) == nil {
			return c
		}
	}
	if len(fit) > 0 {
		return fit[0]
	}
	return nil
}

// files reads pairs from the disk.
type files struct{ pairs []Pair }

// maxPEM bounds what is read of one file, in bytes.
const maxPEM = 1 << 20

// read makes the set of what the files hold now. A pair that cannot be used stays as it was in old, if it was there.
func (f *files) read(old *set) (*set, []error) {
	s := &set{names: map[string][]*tls.Certificate{}, from: map[Pair]loaded{}}
	pairs, errs := f.expand()
	for _, p := range pairs {
		var before loaded
		if old != nil {
			before = old.from[p]
		}
		l, err := load(p, before)
		if err != nil {
			errs = append(errs, err)
			l = before
		}
		if l.cert != nil {
			s.add(p, l)
		}
	}
	if old != nil && len(s.all) == 0 && len(old.all) > 0 { // a folder that is being put up anew
		return old, append(errs, errors.New("no certificate is left in "+f.where()))
	}
	return s, errs
}

func (f *files) where() string {
	var names []string
	for _, p := range f.pairs {
		names = append(names, p.Cert)
	}
	return strings.Join(names, ", ")
}

func (s *set) add(p Pair, l loaded) {
	if _, twice := s.from[p]; twice {
		return
	}
	s.from[p] = l
	s.all = append(s.all, l.cert)
	names := l.cert.Leaf.DNSNames
	if len(names) == 0 && len(l.cert.Leaf.IPAddresses) == 0 {
		names = []string{l.cert.Leaf.Subject.CommonName}
	}
	for _, n := range names {
		n = strings.ToLower(n)
		s.names[n] = append(s.names[n], l.cert)
	}
}

// load reads a pair; before is what it was, and stays itself where nothing has changed.
func load(p Pair, before loaded) (loaded, error) {
	cert, err := readPEM(p.Cert)
	if err != nil {
		return loaded{}, err
	}
	key, err := readPEM(p.Key)
	if err != nil {
		return loaded{}, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", len(cert))
	h.Write(cert)
	h.Write(key)
	l := loaded{}
	if h.Sum(l.sum[:0]); l.sum == before.sum {
		return before, nil
	}
	c, err := tls.X509KeyPair(cert, key) // its errors show no bytes of either
	if err != nil {
		return loaded{}, fmt.Errorf("%s with %s: %w; write both files whole, the certificate first in its chain", p.Cert, p.Key, err)
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return loaded{}, fmt.Errorf("%s: %w", p.Cert, err)
		}
	}
	l.cert = &c
	return l, nil
}

func readPEM(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() || info.Size() > maxPEM {
		return nil, fmt.Errorf("%s: is a folder, or larger than %d bytes; want a PEM file", path, maxPEM)
	}
	return os.ReadFile(path)
}

// expand lists the pairs with those of folders, in the order of their names.
func (f *files) expand() (out []Pair, errs []error) {
	for _, p := range f.pairs {
		if p.Key != "" {
			out = append(out, p)
			continue
		}
		in, err := folder(p.Cert)
		if err == nil && len(in) == 0 {
			err = fmt.Errorf("%s: holds no pair; want NAME.crt with NAME.key, or a folder of fullchain.pem with privkey.pem", p.Cert)
		}
		if err != nil {
			errs = append(errs, err)
		}
		out = append(out, in...)
	}
	return out, errs
}

func folder(dir string) ([]Pair, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w; without --tls-key, --tls-cert names a folder of pairs", err)
	}
	var out []Pair
	there := func(name string) bool {
		info, err := os.Stat(filepath.Join(dir, name))
		return err == nil && info.Mode().IsRegular()
	}
	take := func(cert string, keys ...string) {
		if i := slices.IndexFunc(keys, there); i >= 0 && there(cert) {
			out = append(out, Pair{filepath.Join(dir, cert), filepath.Join(dir, keys[i])})
		}
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") { // "..data" of Kubernetes is reached by its links
			continue
		}
		if base, ok := strings.CutSuffix(name, ".crt"); ok {
			take(name, base+".key")
		} else if base, ok := strings.CutSuffix(name, ".pem"); ok {
			take(name, base+"-key.pem", base+".key")
		} else {
			take(filepath.Join(name, "fullchain.pem"), filepath.Join(name, "privkey.pem"))
		}
	}
	return out, nil
}

// authorities are those of client certificates, at one time.
type authorities struct {
	sum  [sha256.Size]byte
	pool *x509.CertPool

	configs sync.Map // of listeners → the same with these authorities
}

// configOf is c, of a listener, with these authorities.
func (a *authorities) configOf(c *tls.Config) *tls.Config {
	own, ok := a.configs.Load(c)
	if !ok {
		with := c.Clone()
		with.ClientCAs, with.GetConfigForClient = a.pool, nil
		own, _ = a.configs.LoadOrStore(c, with)
	}
	return own.(*tls.Config)
}

func readAuthorities(path string) (*authorities, error) {
	text, err := readPEM(path)
	if err != nil {
		return nil, fmt.Errorf("--client-ca: %w", err)
	}
	pool, err := parsePool(text)
	if err != nil {
		return nil, fmt.Errorf("--client-ca: %s: %w", path, err)
	}
	return &authorities{sum: sha256.Sum256(text), pool: pool}, nil
}

// parsePool takes every certificate of a PEM text; one that cannot be read is an error, where x509's own reader would
// leave it out without a word.
func parsePool(text []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("block %d is a %q; want certificates only", n+1, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n+1, err)
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 || strings.Contains(string(text), "-----BEGIN") {
		return nil, fmt.Errorf("%d certificates, and then none that is whole; want PEM", n)
	}
	return pool, nil
}
