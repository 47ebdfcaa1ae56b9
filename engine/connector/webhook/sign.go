package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// defaultTolerance is how far a delivery's timestamp may lie from the receiver's clock.
const defaultTolerance = 5 * time.Minute

// ErrUnverified is what every error of Verify wraps.
var ErrUnverified = errors.New("webhook not verified")

// Sign returns the webhook-signature of Standard Webhooks for one key over id.ts.body, ts in Unix seconds:
// "v1,<base64>" (HMAC-SHA256) for whsec_…, "v1a,<base64>" (ed25519) for whsk_…. It is "" for what is neither.
func Sign(secret, id string, ts int64, body []byte) string {
	k, err := parseSigner(secret)
	if err != nil {
		return ""
	}
	at := strconv.FormatInt(ts, 10)
	if k.private != nil {
		return version1a + base64.StdEncoding.EncodeToString(ed25519.Sign(k.private, message(id, at, body)))
	}
	return version1 + base64.StdEncoding.EncodeToString(mac(k.shared, id, at, body))
}

func message(id, ts string, body []byte) []byte {
	return append([]byte(id+"."+ts+"."), body...)
}

func mac(key []byte, id, ts string, body []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(id + "." + ts + "."))
	h.Write(body)
	return h.Sum(nil)
}

// Verify checks the three headers of Standard Webhooks against the body as it arrived: one of the
// signatures must be that of one of the secrets (whsec_…, or whpk_… and whsk_… for v1a), and timestamp within tolerance of now (0:
// five minutes). Comparing takes the same time whatever was sent. Errors wrap ErrUnverified, say what
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
	good, known, versions := 0, false, "v1"
	for _, secret := range secrets {
		k, err := parseVerifier(secret)
		if err != nil {
			return bad("%v", err)
		}
		if k.shared == nil {
			versions = "v1a"
			g, is := verify1a(k.public, signature, message(id, timestamp, body))
			good, known = good+g, known || is
			continue
		}
		want := []byte(version1 + base64.StdEncoding.EncodeToString(mac(k.shared, id, timestamp, body)))
		for s := range strings.SplitSeq(signature, " ") {
			known = known || strings.HasPrefix(s, version1)
			if hmac.Equal([]byte(s), want) {
				good++
			}
		}
	}
	switch {
	case good > 0:
	case !known:
		return bad("header webhook-signature has no signature of version %s", versions)
	default:
		return bad("no signature matches; is it the sender's secret, and the body byte for byte as it arrived?")
	}
	if tolerance == 0 {
		tolerance = defaultTolerance
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

// maxSigned bounds the ed25519 signatures that are tried: each costs tens of microseconds.
const maxSigned = 16

// verify1a counts the signatures of a header that are key's, and says whether there are any of version v1a.
func verify1a(key ed25519.PublicKey, header string, message []byte) (good int, known bool) {
	tried := 0
	for s := range strings.SplitSeq(header, " ") {
		text, ok := strings.CutPrefix(s, version1a)
		if !ok {
			continue
		}
		known = true
		if tried++; tried > maxSigned {
			break
		}
		if sig, err := base64.StdEncoding.DecodeString(text); err == nil && len(sig) == ed25519.SignatureSize && ed25519.Verify(key, message, sig) {
			good++
		}
	}
	return good, known
}
