package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"strings"
)

// What keys begin with (Standard Webhooks, "Signature scheme").
const (
	SecretPrefix  = "whsec_" // shared by both sides: HMAC-SHA256, v1
	privatePrefix = "whsk_"  // of the sender: ed25519, v1a
	publicPrefix  = "whpk_"  // for receivers, of a private one
)

// Bytes of a decoded secret (Standard Webhooks, "Signature scheme").
const (
	minSecret = 24
	maxSecret = 64
)

// The versions of signatures, as they begin.
const (
	version1  = "v1,"
	version1a = "v1a,"
)

// Lengths of one signature in the header.
const (
	size1  = len(version1) + 44  // the base64 of 32 bytes
	size1a = len(version1a) + 88 // of 64 bytes
)

// A key signs or verifies. One of its fields is set.
type key struct {
	shared  []byte
	private ed25519.PrivateKey
	public  ed25519.PublicKey // of private, or what a receiver has
}

func (k key) size() int {
	if k.shared == nil {
		return size1a
	}
	return size1
}

// mac returns what signs with a shared secret; nil for other keys.
func (k key) mac() hash.Hash {
	if k.shared == nil {
		return nil
	}
	return hmac.New(sha256.New, k.shared)
}

// parseSecret returns the key of a secret such as whsec_<base64 of 24 to 64 bytes>. The error never shows
// the secret.
func parseSecret(s string) ([]byte, error) {
	b, ok := strings.CutPrefix(s, SecretPrefix)
	if !ok {
		return nil, fmt.Errorf("secret of %d characters does not begin with %s; make one with: echo %s$(openssl rand -base64 32)", len(s), SecretPrefix, SecretPrefix)
	}
	key, ok := decode(b)
	if !ok {
		return nil, fmt.Errorf("secret is not base64 after %s", SecretPrefix)
	}
	if len(key) < minSecret || len(key) > maxSecret {
		return nil, fmt.Errorf("secret has %d bytes after decoding; want %d to %d", len(key), minSecret, maxSecret)
	}
	return key, nil
}

// decode reads base64; senders differ in whether they pad.
func decode(s string) ([]byte, bool) {
	if len(s) > 256 {
		return nil, false
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(s)
	}
	return b, err == nil
}

// ParsePrivateKey reads whsk_ with the base64 of an ed25519 seed (32 bytes), or of seed and public key (64 bytes). The
// error never shows it.
func ParsePrivateKey(s string) (ed25519.PrivateKey, error) {
	b, ok := strings.CutPrefix(s, privatePrefix)
	if !ok {
		return nil, fmt.Errorf("key of %d characters does not begin with %s; make one with: router webhooks keygen", len(s), privatePrefix)
	}
	raw, ok := decode(b)
	if !ok || len(raw) != ed25519.SeedSize && len(raw) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("key is not the base64 of %d or %d bytes after %s", ed25519.SeedSize, ed25519.PrivateKeySize, privatePrefix)
	}
	k := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	if len(raw) == ed25519.PrivateKeySize && !bytes.Equal(raw, k) {
		return nil, fmt.Errorf("key after %s has another public key in it than its own", privatePrefix) // signing would give its secret away
	}
	return k, nil
}

// parsePublicKey reads whpk_ with the base64 of an ed25519 public key.
func parsePublicKey(s string) (ed25519.PublicKey, error) {
	b, ok := strings.CutPrefix(s, publicPrefix)
	raw, is := decode(b)
	if !ok || !is || len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%.80q is not %s and the base64 of %d bytes", s, publicPrefix, ed25519.PublicKeySize)
	}
	return raw, nil
}

// FormatPrivateKey and FormatPublicKey write keys as Standard Webhooks does.
func FormatPrivateKey(k ed25519.PrivateKey) string {
	return privatePrefix + base64.StdEncoding.EncodeToString(k)
}

// FormatPublicKey is for receivers.
func FormatPublicKey(k ed25519.PublicKey) string {
	return publicPrefix + base64.StdEncoding.EncodeToString(k)
}

// parseSigner reads a key that signs: whsec_ or whsk_.
func parseSigner(s string) (k key, err error) {
	switch {
	case strings.HasPrefix(s, privatePrefix):
		if k.private, err = ParsePrivateKey(s); err == nil {
			k.public = k.private.Public().(ed25519.PublicKey)
		}
	case strings.HasPrefix(s, publicPrefix):
		err = fmt.Errorf("begins with %s: it is for receivers and cannot sign; give the %s of it", publicPrefix, privatePrefix)
	default:
		k.shared, err = parseSecret(s)
	}
	return k, err
}

// parseVerifier reads a key that verifies: whsec_, whpk_ or whsk_.
func parseVerifier(s string) (k key, err error) {
	if strings.HasPrefix(s, publicPrefix) {
		k.public, err = parsePublicKey(s)
		return k, err
	}
	return parseSigner(s)
}
