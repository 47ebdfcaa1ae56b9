package hooks

import (
	"crypto/sha256"

	"github.com/millrace/millrace/engine/event"
)

// Shopify is how Shopify signs: X-Shopify-Hmac-Sha256 is the HMAC of the body in base64, by the app's client secret
// (shopify.dev, "Deliver webhooks through HTTPS"). There is no time in it, and no other header is
// signed. One body may be sent to several topics, each a webhook of its own: the topic tells repeats together with what is signed.
type Shopify struct {
	Secret  string   `yaml:"secret" about:"The app's client secret."`
	Secrets []string `yaml:"secrets" about:"Several of them, while one replaces another."`
}

// Validate says what is wrong with the options.
func (o Shopify) Validate() error { return invalid(checkSecrets("secret", o.Secret, o.Secrets)) }

// Open makes the verifier.
func (o Shopify) Open() (event.Verifier, error) {
	return &bodySigned{header: "x-shopify-hmac-sha256", encoding: inBase64, with: []string{"x-shopify-topic", "x-shopify-shop-domain"},
		keys: newKeys(sha256.New, asBytes(secretsOf(o.Secret, o.Secrets))),
		provided: event.Provided{
			Type:    `"shopify." + headers["x-shopify-topic"]`,
			ID:      `has(headers["x-shopify-webhook-id"]) ? headers["x-shopify-webhook-id"] : headers["x-shopify-event-id"]`,
			Subject: `headers["x-shopify-shop-domain"]`, Time: `headers["x-shopify-triggered-at"]`,
			JSON: true,
		}}, nil
}
