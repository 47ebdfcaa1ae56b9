package hooks

import (
	"context"
	"crypto/sha256"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// GitHub is how GitHub signs: X-Hub-Signature-256 is sha256= and the HMAC of the body in hex (docs.github.com,
// "Validating webhook deliveries"). There is no time in it, and X-GitHub-Delivery is not signed.
type GitHub struct {
	Secret  string   `yaml:"secret" about:"That the webhook was given at GitHub."`
	Secrets []string `yaml:"secrets" about:"Several of them, while one replaces another."`
}

// Validate says what is wrong with the options.
func (o GitHub) Validate() error { return invalid(checkSecrets("secret", o.Secret, o.Secrets)) }

// Open makes the verifier.
func (o GitHub) Open() (event.Verifier, error) {
	return &bodySigned{header: "x-hub-signature-256", prefix: "sha256=", encoding: inHex,
		keys: newKeys(sha256.New, asBytes(secretsOf(o.Secret, o.Secrets))),
		provided: event.Provided{
			Type: `"github." + headers["x-github-event"]`, ID: `headers["x-github-delivery"]`, Subject: `data.repository.full_name`,
			JSON: true, Form: true,
		}}, nil
}

// bodySigned verifies schemes in which one header has the HMAC of the body and nothing else.
type bodySigned struct {
	header, prefix, encoding string
	keys                     keys
	with                     []string // headers that tell apart webhooks with one body, though they are not signed
	provided                 event.Provided
}

func (v *bodySigned) Provides() event.Provided { return v.provided }

func (v *bodySigned) Verify(_ context.Context, h *event.Hook, say func(string)) error {
	text, err := header(h, v.header)
	if err != nil {
		return err
	}
	sig, ok := strings.CutPrefix(text, v.prefix)
	if !ok {
		return unverified(v.header, "it is %.12q…; want %s and the signature", text, v.prefix)
	}
	if say != nil {
		told(say, "%s is there", v.header)
	}
	var sigs signatures
	sigs.add(sig, v.encoding)
	if !v.keys.match(h, &sigs, h.Body) {
		return mismatch(v.header, &sigs, len(v.keys.list))
	}
	if say != nil {
		told(say, "it is the signature of the body (%d bytes)", len(h.Body))
	}
	if len(v.with) > 0 {
		sum := sha256.New()
		for _, name := range v.with {
			value, _ := h.Header(name)
			_, _ = sum.Write(h.Proof[:])
			_, _ = sum.Write(bytesOf(value)) // of no fixed length, so that each goes into a sum of its own
			sum.Sum(h.Proof[:0])
			sum.Reset()
		}
	}
	return nil
}
