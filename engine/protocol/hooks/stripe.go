package hooks

import (
	"context"
	"crypto/sha256"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Stripe is how Stripe signs: Stripe-Signature is t=<seconds>,v1=<hex>, perhaps several v1, and v1 is the HMAC of
// "<seconds>.<body>" (docs.stripe.com, "Verify webhook signatures manually"). Other schemes, such as v0, do not count.
type Stripe struct {
	Secret    string        `yaml:"secret" about:"The endpoint's signing secret, whsec_…."`
	Secrets   []string      `yaml:"secrets" about:"Several of them, while one replaces another."`
	Tolerance time.Duration `yaml:"tolerance" about:"How far the signed time may lie from the router's clock."`
}

// WithDefaults fills in what was left out.
func (o Stripe) WithDefaults() Stripe {
	o.Tolerance = orDefault(o.Tolerance)
	return o
}

// Validate says what is wrong with the options.
func (o Stripe) Validate() error {
	return invalid(append(checkSecrets("secret", o.Secret, o.Secrets), checkTolerance(o.Tolerance)...))
}

// Open makes the verifier.
func (o Stripe) Open() (event.Verifier, error) {
	return &stripe{keys: newKeys(sha256.New, asBytes(secretsOf(o.Secret, o.Secrets))), tolerance: orDefault(o.Tolerance)}, nil
}

type stripe struct {
	keys      keys
	tolerance time.Duration
}

func (v *stripe) Provides() event.Provided {
	return event.Provided{Type: `data.type`, ID: `data.id`, Subject: `data.data.object.id`, Time: `data.created`, JSON: true, Tolerance: v.tolerance}
}

func (v *stripe) Verify(_ context.Context, h *event.Hook, say func(string)) error {
	const name = "stripe-signature"
	text, err := header(h, name)
	if err != nil {
		return err
	}
	var sigs signatures
	stamp, stamps := "", 0
	for rest := text; rest != ""; {
		var item string
		item, rest, _ = strings.Cut(rest, ",")
		key, value, _ := strings.Cut(strings.TrimSpace(item), "=")
		switch key {
		case "t":
			stamp = value
			stamps++
		case "v1":
			if !sigs.add(value, inHex) {
				return tooMany(name)
			}
		}
	}
	switch {
	case stamps != 1:
		return unverified(name, "it has %d timestamps; want one: t=<seconds>,v1=<signature>", stamps)
	case sigs.seen == 0:
		return unverified(name, "it has no v1= signature; other versions do not count")
	}
	signed, err := unixTime(name, stamp)
	if err != nil {
		return err
	}
	if say != nil {
		told(say, "%s has a time (%s) and %d signatures of version v1", name, ago(h.Received, signed), sigs.n)
	}
	if !v.keys.match(h, &sigs, bytesOf(stamp), dot, h.Body) {
		return mismatch(name, &sigs, len(v.keys.list))
	}
	if say != nil {
		told(say, "a signature is that of the time and the body (%d bytes)", len(h.Body))
	}
	if err := fresh(name, signed, h.Received, v.tolerance); err != nil {
		return err
	}
	if say != nil {
		told(say, "the time is within %s", v.tolerance)
	}
	return nil
}

var dot = []byte(".")
