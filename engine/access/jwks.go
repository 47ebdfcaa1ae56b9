package access

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxJWKS    = 512 << 10 // bytes
	maxJWKKeys = 128
	maxKid     = 256
	maxTries   = 4         // keys of one kid that are tried: a signature costs time
	minRSA     = 2048      // bits (RFC 7518, 3.3)
	maxRSA     = 8192      // bits: what a verification costs grows with their square
	maxRSAExp  = 1<<31 - 1 // as large an exponent as crypto/rsa takes
)

// An algorithm is a way to sign, and which keys may do so: what a token says of itself chooses among what its key is
// for, and nothing else.
type algorithm struct {
	kty   string
	curve string // EC
	size  int    // oct: bytes of the shortest key
}

// algorithms is every algorithm that is read. none is not among them.
var algorithms = map[string]*algorithm{
	"HS256": {kty: "oct", size: 32}, "HS384": {kty: "oct", size: 48}, "HS512": {kty: "oct", size: 64},
	"RS256": {kty: "RSA"}, "RS384": {kty: "RSA"}, "RS512": {kty: "RSA"},
	"PS256": {kty: "RSA"}, "PS384": {kty: "RSA"}, "PS512": {kty: "RSA"},
	"ES256": {kty: "EC", curve: "P-256"}, "ES384": {kty: "EC", curve: "P-384"}, "ES512": {kty: "EC", curve: "P-521"},
	"EdDSA": {kty: "OKP"},
}

func algorithmNames() []string { return slices.Sorted(maps.Keys(algorithms)) }

// A verifier is a key with the algorithms that it is pinned to.
type verifier struct {
	kid  string
	key  any // as go-jose takes it
	algs []string
}

// keySet is an issuer's keys at a time. It does not change.
type keySet struct {
	byKid map[string][]verifier
	all   []verifier
	sum   digest // of the keys and what they are for, in whatever order they came
}

// find returns the keys that a token may be signed by: of its kid, or of a token without one the only key that there
// is for its algorithm. known says that there is a key of that kid.
func (s *keySet) find(kid string, hasKid bool, alg string) (keys []verifier, known bool) {
	if s == nil {
		return nil, false
	}
	from := s.all
	if hasKid {
		from = s.byKid[kid]
	}
	for _, v := range from {
		if slices.Contains(v.algs, alg) && len(keys) < maxTries {
			keys = append(keys, v)
		}
	}
	if !hasKid && len(keys) > 1 {
		keys = nil
	}
	return keys, len(from) > 0
}

func newKeySet(keys []verifier) *keySet {
	s := &keySet{byKid: map[string][]verifier{}, all: keys}
	parts := make([]string, len(keys))
	for i, v := range keys {
		// Of what is verified here there is always one: it fails for kinds of keys that are not read.
		thumb, _ := (&jose.JSONWebKey{Key: v.key}).Thumbprint(crypto.SHA256)
		parts[i] = fmt.Sprintf("%q %q %x", v.kid, v.algs, thumb)
		if v.kid != "" {
			s.byKid[v.kid] = append(s.byKid[v.kid], v)
		}
	}
	slices.Sort(parts)
	s.sum = sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return s
}

// secretSet is a shared secret as a set. It has no kid: whatever kid a token names, there is one key.
func secretSet(secret []byte, algs []string) *keySet {
	return newKeySet([]verifier{{key: secret, algs: algs}})
}

// parseJWKS reads a JWK Set (RFC 7517) and pins each key to those of algs that it is for. Keys that are for something
// else, or that are not understood, are left out (clause 5); no key at all that is good for algs is an error.
func parseJWKS(text []byte, algs []string) (*keySet, error) {
	if len(text) > maxJWKS {
		return nil, fmt.Errorf("the key set has %d bytes; at most %d are allowed", len(text), maxJWKS)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&set); err != nil {
		return nil, errors.New("this is no JWK Set: it is not JSON with a list of keys")
	}
	if _, err := d.Token(); err == nil {
		return nil, errors.New("this is no JWK Set: something follows its end")
	}
	if len(set.Keys) > maxJWKKeys {
		return nil, fmt.Errorf("the key set has %d keys; at most %d are allowed", len(set.Keys), maxJWKKeys)
	}
	var keys []verifier
	var left []error
	for i, raw := range set.Keys {
		v, err := parseJWK(raw, algs)
		if err != nil {
			left = append(left, fmt.Errorf("keys[%d] %w", i, err))
			continue
		}
		keys = append(keys, v)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("the key set has %d keys, none of which is good for %v: %w", len(set.Keys), algs, errors.Join(left...))
	}
	return newKeySet(keys), nil
}

// parseJWK reads one key.
func parseJWK(raw []byte, algs []string) (verifier, error) {
	var m struct {
		Ops []string `json:"key_ops"`
	}
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(raw); err != nil {
		return verifier{}, errors.New("is not understood")
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return verifier{}, errors.New("has key_ops that are no list")
	}
	if k.Use != "" && k.Use != "sig" || len(m.Ops) > 0 && !slices.Contains(m.Ops, "verify") {
		return verifier{}, errors.New("is not for signatures")
	}
	if len(k.KeyID) > maxKid {
		return verifier{}, fmt.Errorf("has a kid of %d bytes; at most %d are allowed", len(k.KeyID), maxKid)
	}
	kty, curve, err := kindOf(k.Key)
	if err != nil {
		return verifier{}, err
	}
	v := verifier{kid: k.KeyID, key: k.Key}
	for _, name := range algs {
		a := algorithms[name]
		if a != nil && a.kty == kty && a.curve == curve && (k.Algorithm == "" || k.Algorithm == name) {
			v.algs = append(v.algs, name)
		}
	}
	if len(v.algs) == 0 {
		return verifier{}, fmt.Errorf("is for %.20q %s %s, which is not among the algorithms", k.Algorithm, kty, curve)
	}
	return v, nil
}

// kindOf says what kind of public key it is. That a point lies on its curve is go-jose's to check.
func kindOf(key any) (kty, curve string, err error) {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA || n > maxRSA {
			return "", "", fmt.Errorf("is an RSA key of %d bits; want %d to %d", n, minRSA, maxRSA)
		}
		if key.E < 3 || key.E%2 == 0 || key.E > maxRSAExp {
			return "", "", errors.New("has an RSA exponent that is even, below 3 or too large")
		}
		return "RSA", "", nil
	case *ecdsa.PublicKey:
		return "EC", key.Curve.Params().Name, nil
	case ed25519.PublicKey:
		if len(key) != ed25519.PublicKeySize {
			return "", "", errors.New("is an Ed25519 key of another length")
		}
		return "OKP", "", nil
	case []byte:
		// A secret in a set that others can read is none; and this is how an RSA key becomes an HMAC secret.
		return "", "", errors.New("is a shared secret, which a key set must not hold; a policy names one with its key secret")
	}
	return "", "", errors.New("is a private key, or of a kind that is not read: publish public keys only")
}
