package webhook

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// OIDC signs ID tokens (OpenID Connect Core section 2), as push services do. The receiver checks the signature with the
// key's public half, and issuer and audience.
type OIDC struct {
	Issuer     string        `yaml:"issuer" rules:"required" about:"The claim iss: an https:// URL of yours by which receivers know the router."`                              // the claim iss
	Subject    string        `yaml:"subject" about:"The claim sub; the issuer, if it is left out."`                                                                            // the claim sub; Issuer
	Audience   string        `yaml:"audience" about:"The claim aud; the url without its query, if it is left out."`                                                            // the claim aud; the URL without its query
	PrivateKey string        `yaml:"privateKey" rules:"required" about:"PEM (PKCS #8): RSA of 2048 bits or more (RS256), P-256 (ES256) or Ed25519 (EdDSA): ${file:oidc.key}."` // PEM
	TTL        time.Duration `yaml:"ttl" about:"A token is good for: 1m to 24h."`                                                                                              // 1 h
}

const defaultTTL = time.Hour

func (c *OIDC) check(o Options, fault func(at, format string, args ...any)) {
	if c.Issuer == "" || !safeValue(c.Issuer) {
		fault("auth.oidc.issuer", "missing; want an https:// URL of yours")
	}
	if _, err := ParseTokenKey(c.PrivateKey); err != nil {
		fault("auth.oidc.privateKey", "%v", err)
	}
	if c.TTL != 0 && (c.TTL < time.Minute || c.TTL > maxExpiry) {
		fault("auth.oidc.ttl", "is %s; want 1m to 24h", c.TTL)
	}
	if c.Audience == "" && audience(o.URL) == "" {
		fault("auth.oidc.audience", "missing")
	}
}

func audience(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	u.RawQuery, u.ForceQuery = "", false
	return u.String()
}

func (c *OIDC) open(o Options) (*tokens, error) {
	key, err := ParseTokenKey(c.PrivateKey)
	if err != nil {
		return nil, err // unreachable after check
	}
	subject, aud, ttl := c.Subject, c.Audience, c.TTL
	if subject == "" {
		subject = c.Issuer
	}
	if aud == "" {
		aud = audience(o.URL)
	}
	if ttl == 0 {
		ttl = defaultTTL
	}
	return &tokens{now: o.Now, fetch: func(context.Context) (string, time.Duration, error) {
		now := o.Now()
		token, err := key.Sign(map[string]any{"iss": c.Issuer, "sub": subject, "aud": aud, "iat": now.Unix(), "exp": now.Add(ttl).Unix()})
		if err != nil {
			return "", 0, fmt.Errorf("oidc: %w", err)
		}
		return token, ttl, nil
	}}, nil
}

// A TokenKey signs ID tokens.
type TokenKey struct {
	id  string // its thumbprint (RFC 7638)
	alg string
	key crypto.Signer
	jwk map[string]string // its public half
}

// ParseTokenKey reads a private key in PEM. The error never shows it.
func ParseTokenKey(text string) (*TokenKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || len(text) > 64<<10 {
		return nil, errors.New("is no private key in PEM; make one with: openssl genpkey -algorithm ed25519, and name its file as ${file:oidc.key}")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if parsed, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
			if parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
				return nil, fmt.Errorf("is a PEM block of %.40q that holds no private key of RSA, P-256 or Ed25519", block.Type)
			}
		}
	}
	k := &TokenKey{}
	b64 := base64.RawURLEncoding.EncodeToString
	switch key := parsed.(type) {
	case *rsa.PrivateKey:
		if key.N.BitLen() < 2048 {
			return nil, fmt.Errorf("is an RSA key of %d bits; want 2048 or more (RFC 7518 section 3.3)", key.N.BitLen())
		}
		k.alg, k.key = "RS256", key
		k.jwk = map[string]string{"kty": "RSA", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes())}
	case *ecdsa.PrivateKey:
		if key.Curve != elliptic.P256() {
			return nil, fmt.Errorf("is a key on the curve %s; want P-256", key.Curve.Params().Name)
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			return nil, err
		}
		k.alg, k.key = "ES256", key
		k.jwk = map[string]string{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}
	case ed25519.PrivateKey:
		k.alg, k.key = "EdDSA", key
		k.jwk = map[string]string{"kty": "OKP", "crv": "Ed25519", "x": b64(key.Public().(ed25519.PublicKey))}
	default:
		return nil, errors.New("is a key of another kind than RSA, P-256 or Ed25519")
	}
	// RFC 7638 section 3: the members that make the key, in the order of their names, which is how Go writes a map.
	thumb, err := json.Marshal(k.jwk)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(thumb)
	k.id = b64(sum[:])
	return k, nil
}

// JWK is the public half, as a member of a JWKS document (RFC 7517).
func (k *TokenKey) JWK() map[string]string {
	jwk := map[string]string{"use": "sig", "alg": k.alg, "kid": k.id}
	for name, value := range k.jwk {
		jwk[name] = value
	}
	return jwk
}

// Sign returns a JWT (RFC 7519) in the compact form.
func (k *TokenKey) Sign(claims map[string]any) (string, error) {
	head, err := json.Marshal(map[string]string{"alg": k.alg, "typ": "JWT", "kid": k.id})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64(head) + "." + b64(body)
	sum := sha256.Sum256([]byte(text))
	var sig []byte
	switch key := k.key.(type) {
	case ed25519.PrivateKey:
		sig = ed25519.Sign(key, []byte(text))
	case *rsa.PrivateKey:
		sig, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	case *ecdsa.PrivateKey: // RFC 7518 section 3.4: both numbers, 32 bytes each
		var r, s *big.Int
		if r, s, err = ecdsa.Sign(rand.Reader, key, sum[:]); err == nil {
			sig = make([]byte, 64)
			r.FillBytes(sig[:32])
			s.FillBytes(sig[32:])
		}
	}
	if err != nil {
		return "", fmt.Errorf("sign the token: %w", err)
	}
	return text + "." + b64(sig), nil
}
