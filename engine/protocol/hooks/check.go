package hooks

import (
	"fmt"
	"strconv"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// defaultTolerance is how far a signed timestamp may lie from the router's clock, to either side.
const defaultTolerance = 5 * time.Minute

// maxTolerance is below the time for which repeats are told at least.
const maxTolerance = 6 * time.Hour

func unverified(at, format string, args ...any) error {
	return event.Bad(event.ErrUnverified, at, fmt.Sprintf(format, args...))
}

// header returns a header that must be there once.
func header(h *event.Hook, name string) (string, error) {
	v, n := h.Header(name)
	switch {
	case n == 0:
		return "", unverified(name, "the header is missing; the sender signs with it: is this the address that it was given, and signing switched on there?")
	case n > 1:
		return "", unverified(name, "the header is there %d times; want one", n)
	case v == "":
		return "", unverified(name, "the header is empty")
	}
	return v, nil
}

// unixTime reads seconds since 1970 in plain digits, as they are signed.
func unixTime(at, text string) (time.Time, error) {
	n := int64(0)
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' || len(text) > 12 {
			n = -1
			break
		}
		n = n*10 + int64(text[i]-'0')
	}
	if text == "" || n < 0 {
		return time.Time{}, unverified(at, "the timestamp is %.30q; want seconds since 1970", text)
	}
	return time.Unix(n, 0), nil
}

// fresh refuses what was signed too long ago, or is yet to be.
func fresh(at string, signed, now time.Time, tolerance time.Duration) error {
	switch off := now.Sub(signed); {
	case off > tolerance:
		return unverified(at, "it was signed %s ago; want at most %s: it is a repeat of an old one, or the router's clock (%s) is fast", round(off), tolerance, now.UTC().Format(time.RFC3339))
	case off < -tolerance:
		return unverified(at, "it was signed %s from now; want at most %s: the router's clock (%s) is slow, or the sender's fast", round(-off), tolerance, now.UTC().Format(time.RFC3339))
	}
	return nil
}

func round(d time.Duration) time.Duration {
	if d > time.Hour {
		return d.Round(time.Minute)
	}
	return d.Round(time.Second)
}

// mismatch is the refusal of what no secret has signed.
func mismatch(at string, sigs *signatures, secrets int) error {
	if sigs.n == 0 {
		return unverified(at, "there is no signature in it that can be read")
	}
	return unverified(at, "no signature (%d given) is that of the body as it arrived by a secret of this source (%d configured): is it another endpoint's secret, or did something on the way rewrite the body?", sigs.n, secrets)
}

// told tells a step. It is called only where there is somebody to tell: to gather what is told allocates.
func told(say func(string), format string, args ...any) { say(fmt.Sprintf(format, args...)) }

// tooMany is the refusal of a webhook with more signatures than anybody sends.
func tooMany(at string) error {
	return unverified(at, "there are over %d signatures in it", maxSignatures)
}

// checkTolerance says what is wrong with a tolerance.
func checkTolerance(d time.Duration) []event.Fault {
	if d < 0 || d > maxTolerance || d != 0 && d < time.Second {
		return []event.Fault{{At: "tolerance", Detail: fmt.Sprintf("is %s; want 1s to %s", d, maxTolerance)}}
	}
	return nil
}

func orDefault(d time.Duration) time.Duration {
	if d == 0 {
		return defaultTolerance
	}
	return d
}

func ago(now, then time.Time) string {
	return strconv.FormatInt(int64(now.Sub(then)/time.Second), 10) + " s ago"
}
