package rules

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A signed bundle is a tar of two files: millrace.sig, which says what was signed, by which key and when, and
// rules.tar, the bundle. There is one way to write it: one bit that differs anywhere is refused.
const (
	sealName   = "millrace.sig"
	sealedName = "rules.tar"
	maxSeal    = 4 << 10
)

// MaxSigned bounds a signed bundle, in bytes.
const MaxSigned = MaxBundle + 8<<10

// Seal is what a signature covers besides the bundle.
type Seal struct {
	Version int64     `json:"version"` // grows from one to the next; a router takes none that is older than what it has
	Signed  time.Time `json:"signed"`  // to the second, UTC
	Expires time.Time `json:"expires,omitzero"`
	Digest  string    `json:"digest"` // "sha256:<hex>" of the bundle
	Key     string    `json:"key"`    // KeyID of the key that signed
}

// sealed is millrace.sig.
type sealed struct {
	Seal
	Signature []byte `json:"signature"`
}

// statement is the text that is signed. Its first line keeps a signature of it from meaning anything elsewhere.
func (s Seal) statement() []byte {
	expires := "never"
	if !s.Expires.IsZero() {
		expires = s.Expires.Format(time.RFC3339)
	}
	return fmt.Appendf(nil, "millrace signed rules 1\nversion %d\nsigned %s\nexpires %s\nbundle %s\nkey %s\n",
		s.Version, s.Signed.Format(time.RFC3339), expires, s.Digest, s.Key)
}

// Sign puts a bundle and its signature into one file. Of s it takes Version, Signed and Expires; times are cut to
// the second.
func Sign(bundle []byte, key ed25519.PrivateKey, s Seal) ([]byte, error) {
	s.Signed = s.Signed.UTC().Truncate(time.Second)
	if !s.Expires.IsZero() {
		s.Expires = s.Expires.UTC().Truncate(time.Second)
	}
	if s.Version < 1 {
		return nil, event.Invalid("version", fmt.Sprintf("%d; want a number from 1 on", s.Version))
	}
	sum := sha256.Sum256(bundle)
	s.Digest = "sha256:" + hex.EncodeToString(sum[:])
	s.Key = KeyID(key.Public().(ed25519.PublicKey)) // an ed25519 key's public half has no other type
	seal, err := json.Marshal(sealed{s, ed25519.Sign(key, s.statement())})
	if err != nil {
		return nil, err
	}
	return envelope(seal, bundle)
}

func envelope(seal, bundle []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		text []byte
	}{{sealName, seal}, {sealedName, bundle}} {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.text)), Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.text); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// IsSigned reports whether a file is a signed bundle by its beginning; nothing is checked.
func IsSigned(file []byte) bool {
	return bytes.HasPrefix(file, []byte(sealName+"\x00"))
}

// OpenSigned returns the bundle of a signed one, which points into file, and what its signature says, once one of
// keys has proved it. That it is not too old, and not expired, is for the caller to see. The error is a *event.Faults.
func OpenSigned(file []byte, keys ...ed25519.PublicKey) (bundle []byte, seal Seal, err error) {
	refuse := func(format string, args ...any) ([]byte, Seal, error) {
		return nil, Seal{}, event.Invalid("", fmt.Sprintf(format, args...))
	}
	if !IsSigned(file) {
		return refuse("it is not signed: `router rules sign` makes a file that begins with %s", sealName)
	}
	text, bundle, err := split(file)
	if err != nil {
		return refuse("the signed bundle cannot be read: %v; it may have been cut off on its way", err)
	}
	var s sealed
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return refuse("%s cannot be read: %v; `router rules sign` of this version makes one that can", sealName, err)
	}
	i := slices.IndexFunc(keys, func(k ed25519.PublicKey) bool { return KeyID(k) == s.Key })
	if i < 0 {
		var have []string
		for _, k := range keys {
			have = append(have, KeyID(k))
		}
		return refuse("it is signed with the key %.40q; the one to check with is %s", s.Key, strings.Join(have, " or "))
	}
	sum := sha256.Sum256(bundle)
	again, err := json.Marshal(s)
	if err == nil && bytes.Equal(again, text) {
		again, err = envelope(text, bundle)
	}
	if err != nil || !bytes.Equal(again, file) || "sha256:"+hex.EncodeToString(sum[:]) != s.Digest || !ed25519.Verify(keys[i], s.statement(), s.Signature) {
		return refuse("its signature does not hold: it was changed after it was signed with key %s, or damaged on its way", s.Key)
	}
	return bundle, s.Seal, nil
}

// split takes the two files of a signed bundle apart, without copying the bundle.
func split(file []byte) (seal, bundle []byte, err error) {
	rest := bytes.NewReader(file)
	r := tar.NewReader(rest)
	next := func(name string, limit int64) ([]byte, error) {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case h.Name != name || h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%.40q stands where %s should", h.Name, name)
		case h.Size > limit:
			return nil, fmt.Errorf("%s has %d bytes; at most %d are allowed", name, h.Size, limit)
		}
		at := int64(len(file) - rest.Len())
		if at+h.Size > int64(len(file)) {
			return nil, io.ErrUnexpectedEOF
		}
		return file[at : at+h.Size], nil
	}
	if seal, err = next(sealName, maxSeal); err != nil {
		return nil, nil, err
	}
	bundle, err = next(sealedName, MaxBundle)
	return seal, bundle, err
}

// KeyID names a public key: the first eight bytes of its SHA-256, in hex.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8])
}

// ParsePublicKeys reads Ed25519 public keys as PEM, one or several: while keys are changed the old one and the
// new one stand in one file.
func ParsePublicKeys(text []byte) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if strings.Contains(block.Type, "PRIVATE") {
			return nil, errors.New("it holds a private key, which belongs where rules are signed; want its public half: openssl pkey -in key.pem -pubout -out pub.pem")
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("a %s in it cannot be read: %w", block.Type, err)
		}
		k, ok := key.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("it holds a key of another kind (%T); want Ed25519: openssl genpkey -algorithm ed25519", key)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no PEM; want a file that begins with -----BEGIN PUBLIC KEY-----")
	}
	return keys, nil
}

// ParsePrivateKey reads an Ed25519 private key as PEM (PKCS #8).
func ParsePrivateKey(text []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("it holds no PEM; want a file that begins with -----BEGIN PRIVATE KEY-----")
	case strings.Contains(block.Type, "ENCRYPTED"):
		return nil, errors.New("it is encrypted; decrypt it first: openssl pkey -in key.pem -out plain.pem")
	case block.Type == "PUBLIC KEY":
		return nil, errors.New("it is the public half, which routers check with; want the private key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the %s in it cannot be read: %w; want one of: openssl genpkey -algorithm ed25519", block.Type, err)
	}
	k, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it holds a key of another kind (%T); want Ed25519: openssl genpkey -algorithm ed25519", key)
	}
	return k, nil
}
