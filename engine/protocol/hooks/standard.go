package hooks

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Standard is Standard Webhooks: webhook-signature is a list, split by spaces, of v1,<base64 HMAC-SHA256> and
// v1a,<base64 ed25519> over "<webhook-id>.<webhook-timestamp>.<body>" (github.com/standard-webhooks/standard-webhooks,
// "Signature scheme"). What no key is configured for does not count.
type Standard struct {
	Secret     string        `yaml:"secret" about:"whsec_ and base64."`
	Secrets    []string      `yaml:"secrets" about:"Several of them, while one replaces another."`
	PublicKeys []string      `yaml:"publicKeys" about:"Of senders that sign with ed25519 (v1a): whpk_ and base64."`
	Prefix     string        `yaml:"prefix" enum:"webhook,svix" about:"What the three headers begin with: svix for senders that use Svix."`
	Tolerance  time.Duration `yaml:"tolerance" about:"How far the signed time may lie from the router's clock."`
}

// WithDefaults fills in what was left out.
func (o Standard) WithDefaults() Standard {
	o.Tolerance = orDefault(o.Tolerance)
	if o.Prefix == "" {
		o.Prefix = "webhook"
	}
	return o
}

// Validate says what is wrong with the options.
func (o Standard) Validate() error {
	faults := checkTolerance(o.Tolerance)
	if o.Secret != "" || len(o.Secrets) > 0 || len(o.PublicKeys) == 0 {
		faults = append(faults, checkSecrets("secret", o.Secret, o.Secrets)...)
	}
	if o.Prefix != "" && o.Prefix != "webhook" && o.Prefix != "svix" {
		faults = append(faults, event.Fault{At: "prefix", Detail: fmt.Sprintf("is %.40q; want webhook or svix", o.Prefix)})
	}
	if len(o.PublicKeys) > maxSecrets {
		faults = append(faults, event.Fault{At: "publicKeys", Detail: fmt.Sprintf("%d are given; at most %d are allowed", len(o.PublicKeys), maxSecrets)})
	}
	if len(faults) == 0 {
		_, _, faults = o.keys()
	}
	return invalid(faults)
}

// keys decodes what the options name.
func (o Standard) keys() (secrets [][]byte, public []ed25519.PublicKey, faults []event.Fault) {
	for i, s := range secretsOf(o.Secret, o.Secrets) {
		key, ok := decode64(strings.TrimPrefix(s, "whsec_"))
		if !ok || len(key) == 0 {
			faults = append(faults, event.Fault{At: "secret", Detail: fmt.Sprintf("secret %d of %d characters is not whsec_ and base64", i+1, len(s))})
			continue
		}
		secrets = append(secrets, key)
	}
	for i, s := range o.PublicKeys {
		key, ok := decode64(strings.TrimPrefix(s, "whpk_"))
		if !ok || len(key) != ed25519.PublicKeySize {
			faults = append(faults, event.Fault{At: fmt.Sprintf("publicKeys[%d]", i), Detail: fmt.Sprintf("is %.60q; want whpk_ and the base64 of %d bytes", s, ed25519.PublicKeySize)})
			continue
		}
		public = append(public, ed25519.PublicKey(key))
	}
	return secrets, public, faults
}

func decode64(s string) ([]byte, bool) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil { // senders differ in whether they pad
		b, err = base64.RawStdEncoding.DecodeString(s)
	}
	return b, err == nil
}

// Open makes the verifier.
func (o Standard) Open() (event.Verifier, error) {
	o = o.WithDefaults()
	secrets, public, faults := o.keys()
	if len(faults) > 0 {
		return nil, invalid(faults)
	}
	return &standard{keys: newKeys(sha256.New, secrets), public: public, tolerance: o.Tolerance,
		id: o.Prefix + "-id", time: o.Prefix + "-timestamp", signature: o.Prefix + "-signature"}, nil
}

type standard struct {
	keys                keys
	public              []ed25519.PublicKey
	tolerance           time.Duration
	id, time, signature string
}

func (v *standard) Provides() event.Provided {
	return event.Provided{Type: `data.type`, ID: fmt.Sprintf("headers[%q]", v.id), Time: `data.timestamp`,
		JSON: true, Tolerance: v.tolerance}
}

func (v *standard) Verify(_ context.Context, h *event.Hook, say func(string)) error {
	id, err := header(h, v.id)
	if err != nil {
		return err
	}
	stamp, err := header(h, v.time)
	if err != nil {
		return err
	}
	text, err := header(h, v.signature)
	if err != nil {
		return err
	}
	signed, err := unixTime(v.time, stamp)
	if err != nil {
		return err
	}
	if i := strings.LastIndexByte(id, '.'); i >= 0 && strings.Trim(id[i+1:], "0123456789") == "" {
		// "a" at 1 with the body "2.b" is signed as "a.1" at 2 with "b" is.
		return unverified(v.id, "the id ends with a . and digits, which reads like the time that follows it in what is signed")
	}
	var sigs signatures
	var pairs [maxSignatures]string // of v1a
	n := 0
	for rest := text; rest != ""; {
		var item string
		item, rest, _ = strings.Cut(rest, " ")
		switch version, value, _ := strings.Cut(item, ","); version {
		case "v1":
			if !sigs.add(value, inBase64) {
				return tooMany(v.signature)
			}
		case "v1a":
			if n == len(pairs) {
				return tooMany(v.signature)
			}
			pairs[n] = value
			n++
		}
	}
	if sigs.seen+n == 0 {
		return unverified(v.signature, "there is no v1, nor v1a, signature in it; other versions do not count")
	}
	if say != nil {
		told(say, "%s, %s (%s) and %s with %d signatures are there", v.id, v.time, ago(h.Received, signed), v.signature, sigs.n+n)
	}
	if !v.keys.match(h, &sigs, bytesOf(id), dot, bytesOf(stamp), dot, h.Body) && !v.signedBy(h, pairs[:n], id, stamp) {
		sigs.n += n
		return mismatch(v.signature, &sigs, len(v.keys.list)+len(v.public))
	}
	if say != nil {
		told(say, "a signature is that of the id, the time and the body (%d bytes)", len(h.Body))
	}
	if err := fresh(v.time, signed, h.Received, v.tolerance); err != nil {
		return err
	}
	if say != nil {
		told(say, "the time is within %s", v.tolerance)
	}
	return nil
}

// signedBy looks for an ed25519 signature by one of the public keys. What was signed, not the signature, is the proof:
// a signer may sign the same twice.
func (v *standard) signedBy(h *event.Hook, pairs []string, id, stamp string) bool {
	if len(v.public) == 0 || len(pairs) == 0 {
		return false
	}
	message := make([]byte, 0, len(id)+len(stamp)+2+len(h.Body))
	message = append(append(append(append(append(message, id...), '.'), stamp...), '.'), h.Body...)
	for _, text := range pairs {
		sig, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil || len(sig) != ed25519.SignatureSize {
			continue
		}
		for _, key := range v.public {
			if ed25519.Verify(key, message, sig) {
				h.Proof, h.Proved = sha256.Sum256(message), true
				return true
			}
		}
	}
	return false
}
