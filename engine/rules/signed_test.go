package rules

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

func signKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('a'+seed)), ed25519.SeedSize)))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func signed(t *testing.T, bundle string, key ed25519.PrivateKey) []byte {
	t.Helper()
	file, err := Sign([]byte(bundle), key, Seal{Version: 7, Signed: time.Unix(1e9, 5), Expires: time.Unix(2e9, 5)})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestSignedBundle(t *testing.T) {
	key := signKey(0)
	file := signed(t, "version: 1\n", key)
	bundle, seal, err := OpenSigned(file, public(signKey(1)), public(key))
	if err != nil {
		t.Fatal(err)
	}
	if string(bundle) != "version: 1\n" || seal.Version != 7 || !seal.Signed.Equal(time.Unix(1e9, 0)) || !seal.Expires.Equal(time.Unix(2e9, 0)) || seal.Key != KeyID(public(key)) {
		t.Errorf("%q with %+v", bundle, seal)
	}
	if again := signed(t, "version: 1\n", key); string(again) != string(file) {
		t.Error("the same rules signed twice differ")
	}
	if _, err := Sign(nil, key, Seal{}); err == nil {
		t.Error("a bundle without a version was signed")
	}
}

// Whatever changes between signing and reading is refused: each bit, each truncation, what is added.
func TestSignedBundleHolds(t *testing.T) {
	key := signKey(0)
	file := signed(t, "version: 1\n", key)
	refused := func(what string, file []byte, keys ...ed25519.PublicKey) {
		t.Helper()
		if bundle, _, err := OpenSigned(file, keys...); err == nil {
			t.Errorf("%s: taken, as %q", what, bundle)
		}
	}
	for i := range len(file) * 8 {
		file[i/8] ^= 1 << (i % 8)
		if _, _, err := OpenSigned(file, public(key)); err == nil {
			t.Fatalf("bit %d of byte %d flipped: taken", i%8, i/8)
		}
		file[i/8] ^= 1 << (i % 8)
	}
	for n := range len(file) {
		if _, _, err := OpenSigned(file[:n], public(key)); err == nil {
			t.Fatalf("cut to %d bytes: taken", n)
		}
	}
	refused("more at its end", append(file[:len(file):len(file)], make([]byte, 512)...), public(key))
	refused("no key", file)
	refused("another key", file, public(signKey(1)))
	refused("unsigned", []byte("version: 1\n"), public(key))
	refused("nothing", nil, public(key))
	// Somebody else's signature under this key's name.
	forged := signed(t, "version: 1\n", signKey(1))
	forged = []byte(strings.Replace(string(forged), KeyID(public(signKey(1))), KeyID(public(key)), 1))
	refused("forged", forged, public(key))
}

// The keys that openssl makes.
const (
	opensslPrivate = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n"
	opensslPublic  = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"
)

func TestKeys(t *testing.T) {
	key, err := ParsePrivateKey([]byte(opensslPrivate))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public(signKey(3)))
	if err != nil {
		t.Fatal(err)
	}
	other := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	keys, err := ParsePublicKeys([]byte(other + opensslPublic))
	if err != nil || len(keys) != 2 || !keys[1].Equal(key.Public()) {
		t.Errorf("%v, %v", keys, err)
	}
	const rsa = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf\n9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==\n-----END PUBLIC KEY-----\n"
	for text, want := range map[string]string{"": "no PEM", opensslPrivate: "private key", rsa: "another kind", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n": "cannot be read"} {
		if _, err := ParsePublicKeys([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("public %.40q: %v; want %q", text, err, want)
		}
	}
	for text, want := range map[string]string{"": "no PEM", opensslPublic: "public half", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n": "encrypted", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n": "cannot be read"} {
		if _, err := ParsePrivateKey([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("private %.40q: %v; want %q", text, err, want)
		}
	}
}
