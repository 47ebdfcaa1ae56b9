package hooks

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"

	"github.com/millrace/millrace/engine/event"
)

// Meta is how Meta signs, for WhatsApp, Instagram, Messenger and Pages: X-Hub-Signature-256 is sha256= and the HMAC of the
// body in hex, by the app's secret; and a GET with hub.mode=subscribe and hub.verify_token is answered with hub.challenge
// (developers.facebook.com, "Getting Started with Webhooks").
type Meta struct {
	Secret      string   `yaml:"secret" about:"The app's secret."`
	Secrets     []string `yaml:"secrets" about:"Several of them, while one replaces another."`
	VerifyToken string   `yaml:"verifyToken" about:"What hub.verify_token must be when the address is registered."`
}

// Validate says what is wrong with the options.
func (o Meta) Validate() error {
	return invalid(append(checkSecrets("secret", o.Secret, o.Secrets), checkSecrets("verifyToken", o.VerifyToken, nil)...))
}

// Open makes the verifier.
func (o Meta) Open() (event.Verifier, error) {
	return &meta{token: sha256.Sum256([]byte(o.VerifyToken)), bodySigned: bodySigned{header: "x-hub-signature-256", prefix: "sha256=", encoding: inHex,
		keys:     newKeys(sha256.New, asBytes(secretsOf(o.Secret, o.Secrets))),
		provided: event.Provided{Type: `"meta." + data.object`, Subject: `data.entry[0].id`, JSON: true}}}, nil
}

type meta struct {
	bodySigned
	token [sha256.Size]byte
}

// maxChallenge bounds what is sent back to whoever presents the token.
const maxChallenge = 1 << 10

// Subscribe answers the GET by which an address is registered.
func (v *meta) Subscribe(h *event.Hook, say func(string)) (*answer, error) {
	values := map[string]string{}
	for _, name := range []string{"hub.mode", "hub.verify_token", "hub.challenge"} {
		value, n := h.QueryValue(name)
		if n != 1 {
			return nil, unverified("?"+name, "it is there %d times; want one", n)
		}
		values[name] = value
	}
	if mode := values["hub.mode"]; mode != "subscribe" {
		return nil, unverified("?hub.mode", "it is %.20q; want subscribe", mode)
	}
	sum := sha256.Sum256([]byte(values["hub.verify_token"]))
	if subtle.ConstantTimeCompare(sum[:], v.token[:]) != 1 {
		return nil, unverified("?hub.verify_token", "it is not this source's verifyToken")
	}
	if say != nil {
		told(say, "hub.verify_token is this source's")
	}
	challenge := values["hub.challenge"]
	if len(challenge) > maxChallenge {
		return nil, event.Invalid("?hub.challenge", fmt.Sprintf("has %d bytes; at most %d are sent back", len(challenge), maxChallenge))
	}
	return &answer{ContentType: "text/plain; charset=utf-8", Body: []byte(challenge)}, nil
}
