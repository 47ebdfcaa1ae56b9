package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// SecretPrefix begins every secret of Standard Webhooks.
const SecretPrefix = "whsec_"

// Bytes of a decoded secret (Standard Webhooks, "Signature scheme").
const (
	minSecret = 24
	maxSecret = 64
)

// sigSize is the length of one signature: "v1," and the base64 of 32 bytes.
const sigSize = 3 + 44

// DefaultTolerance is how far a delivery's timestamp may lie from the receiver's clock.
const DefaultTolerance = 5 * time.Minute

// ErrUnverified is what every error of Verify wraps.
var ErrUnverified = errors.New("webhook not verified")

// ParseSecret returns the key of a secret such as whsec_<base64 of 24 to 64 bytes>. The error never shows
// the secret.
func ParseSecret(s string) ([]byte, error) {
	b, ok := strings.CutPrefix(s, SecretPrefix)
	if !ok {
		return nil, fmt.Errorf("secret of %d characters does not begin with %s; make one with: echo %s$(openssl rand -base64 32)", len(s), SecretPrefix, SecretPrefix)
	}
	key, err := base64.StdEncoding.DecodeString(b)
	if err != nil {
		// Senders differ in whether they pad.
		if key, err = base64.RawStdEncoding.DecodeString(b); err != nil {
			return nil, fmt.Errorf("secret is not base64 after %s", SecretPrefix)
		}
	}
	if len(key) < minSecret || len(key) > maxSecret {
		return nil, fmt.Errorf("secret has %d bytes after decoding; want %d to %d", len(key), minSecret, maxSecret)
	}
	return key, nil
}

// Sign returns the webhook-signature of Standard Webhooks, "v1,<base64>", for one secret: HMAC-SHA256
// over id.ts.body, ts in Unix seconds. It is "" where ParseSecret refuses the secret.
func Sign(secret, id string, ts int64, body []byte) string {
	key, err := ParseSecret(secret)
	if err != nil {
		return ""
	}
	return "v1," + base64.StdEncoding.EncodeToString(mac(key, id, strconv.FormatInt(ts, 10), body))
}

func mac(key []byte, id, ts string, body []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(id + "." + ts + "."))
	h.Write(body)
	return h.Sum(nil)
}

// Verify checks the three headers of Standard Webhooks against the body as it arrived: one of the
// signatures must be that of one of the secrets, and timestamp within tolerance of now (0:
// DefaultTolerance). Comparing takes the same time whatever was sent. Errors wrap ErrUnverified, say what
// to look at, and show neither secrets nor the right signature.
func Verify(secrets []string, id, timestamp, signature string, body []byte, now time.Time, tolerance time.Duration) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrUnverified, fmt.Sprintf(format, args...))
	}
	switch {
	case len(secrets) == 0:
		return bad("no secret to verify with")
	case id == "":
		return bad("header webhook-id is missing")
	case timestamp == "":
		return bad("header webhook-timestamp is missing")
	case signature == "":
		return bad("header webhook-signature is missing; does the sender have a secret?")
	case len(signature) > 4<<10:
		return bad("header webhook-signature has %d bytes; the limit is 4096", len(signature))
	}
	ts, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || strconv.FormatInt(ts, 10) != timestamp {
		return bad("header webhook-timestamp is %.30q; want Unix seconds", timestamp)
	}
	good, known := 0, false
	for _, secret := range secrets {
		key, err := ParseSecret(secret)
		if err != nil {
			return bad("%v", err)
		}
		want := []byte("v1," + base64.StdEncoding.EncodeToString(mac(key, id, timestamp, body)))
		for s := range strings.SplitSeq(signature, " ") {
			known = known || strings.HasPrefix(s, "v1,")
			if hmac.Equal([]byte(s), want) {
				good++
			}
		}
	}
	switch {
	case good > 0:
	case !known:
		return bad("header webhook-signature has no signature of version v1")
	default:
		return bad("no signature matches; is it the sender's secret, and the body byte for byte as it arrived?")
	}
	if tolerance == 0 {
		tolerance = DefaultTolerance
	}
	// By seconds: a timestamp far off would overflow a Duration.
	switch off, most := now.Unix()-ts, int64(tolerance/time.Second); {
	case off > most || ts < 0:
		return bad("stale: sent at %s Unix seconds, now is %d, %s are allowed; is it a replay, or a clock wrong?", timestamp, now.Unix(), tolerance)
	case off < -most:
		return bad("sent in the future: at %s Unix seconds, now is %d, %s are allowed; is a clock wrong?", timestamp, now.Unix(), tolerance)
	}
	return nil
}
