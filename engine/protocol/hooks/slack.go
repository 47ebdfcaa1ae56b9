package hooks

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Slack is how Slack signs: X-Slack-Signature is v0= and the HMAC of "v0:<seconds>:<body>" in hex, the seconds being
// X-Slack-Request-Timestamp (api.slack.com, "Verifying requests from Slack"). Its url_verification is answered once the
// signature is verified.
type Slack struct {
	Secret    string        `yaml:"secret" about:"The app's signing secret."`
	Secrets   []string      `yaml:"secrets" about:"Several of them, while one replaces another."`
	Tolerance time.Duration `yaml:"tolerance" about:"How far the signed time may lie from the router's clock."`
}

// WithDefaults fills in what was left out.
func (o Slack) WithDefaults() Slack {
	o.Tolerance = orDefault(o.Tolerance)
	return o
}

// Validate says what is wrong with the options.
func (o Slack) Validate() error {
	return invalid(append(checkSecrets("secret", o.Secret, o.Secrets), checkTolerance(o.Tolerance)...))
}

// Open makes the verifier.
func (o Slack) Open() (event.Verifier, error) {
	return &slack{keys: newKeys(sha256.New, asBytes(secretsOf(o.Secret, o.Secrets))), tolerance: orDefault(o.Tolerance)}, nil
}

type slack struct {
	keys      keys
	tolerance time.Duration
}

func (v *slack) Provides() event.Provided {
	return event.Provided{
		Type: `has(data.event.type) ? "slack." + data.event.type : has(data.type) ? "slack." + data.type : has(data.command) ? "slack.command" : "slack"`,
		ID:   `data.event_id`, Subject: `data.team_id`, Time: `data.event_time`,
		JSON: true, Form: true, Tolerance: v.tolerance,
	}
}

const (
	slackTime      = "x-slack-request-timestamp"
	slackSignature = "x-slack-signature"
)

var slackVersion, colon = []byte("v0:"), []byte(":")

func (v *slack) Verify(_ context.Context, h *event.Hook, say func(string)) error {
	stamp, err := header(h, slackTime)
	if err != nil {
		return err
	}
	text, err := header(h, slackSignature)
	if err != nil {
		return err
	}
	signed, err := unixTime(slackTime, stamp)
	if err != nil {
		return err
	}
	sig, ok := strings.CutPrefix(text, "v0=")
	if !ok {
		return unverified(slackSignature, "it is %.6q…; want version v0: v0=<signature>", text)
	}
	if say != nil {
		told(say, "%s (%s) and %s are there", slackTime, ago(h.Received, signed), slackSignature)
	}
	var sigs signatures
	sigs.add(sig, inHex)
	if !v.keys.match(h, &sigs, slackVersion, bytesOf(stamp), colon, h.Body) {
		return mismatch(slackSignature, &sigs, len(v.keys.list))
	}
	if say != nil {
		told(say, "it is the signature of the time and the body (%d bytes)", len(h.Body))
	}
	if err := fresh(slackTime, signed, h.Received, v.tolerance); err != nil {
		return err
	}
	if say != nil {
		told(say, "the time is within %s", v.tolerance)
	}
	return nil
}

// Shake answers url_verification (api.slack.com, "Using the HTTP request method").
func (v *slack) Shake(_ context.Context, h *event.Hook, _ bool) (*answer, error) {
	if !h.JSON || !strings.Contains(string(h.Data[:min(len(h.Data), 4<<10)]), "url_verification") {
		return nil, nil
	}
	var doc struct{ Type, Challenge string }
	if json.Unmarshal(h.Data, &doc) != nil || doc.Type != "url_verification" {
		return nil, nil
	}
	return &answer{ContentType: "text/plain; charset=utf-8", Body: []byte(doc.Challenge)}, nil
}

// Quiet says that an answer's body would be shown to who typed the command.
func (v *slack) Quiet() *answer { return &answer{} }
