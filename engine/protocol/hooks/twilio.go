package hooks

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// Twilio is how Twilio signs: X-Twilio-Signature is the HMAC-SHA1 in base64 of the URL that it calls and, of a form, its
// names and values sorted by name (twilio.com/docs, "Validating Requests are coming from Twilio"). A body that is no form is
// signed by ?bodySHA256= in that URL. There is no time in it. Behind a proxy the source's `url` says what Twilio calls.
type Twilio struct {
	AuthToken  string   `yaml:"authToken" about:"The account's auth token."`
	AuthTokens []string `yaml:"authTokens" about:"Several of them, while one replaces another."`
}

// Validate says what is wrong with the options.
func (o Twilio) Validate() error {
	return invalid(checkSecrets("authToken", o.AuthToken, o.AuthTokens))
}

// Open makes the verifier.
func (o Twilio) Open() (event.Verifier, error) {
	return &twilio{keys: newKeys(sha1.New, asBytes(secretsOf(o.AuthToken, o.AuthTokens)))}, nil
}

type twilio struct{ keys keys }

func (v *twilio) Provides() event.Provided {
	return event.Provided{
		Type:    `has(data.MessageSid) ? "twilio.message" : has(data.CallSid) ? "twilio.call" : "twilio"`,
		Subject: `has(data.MessageSid) ? data.MessageSid : data.CallSid`,
	}
}

const twilioSignature = "x-twilio-signature"

func (v *twilio) Verify(_ context.Context, h *event.Hook, say func(string)) error {
	text, err := header(h, twilioSignature)
	if err != nil {
		return err
	}
	var sigs signatures
	sigs.add(text, inBase64)
	if say != nil {
		told(say, "%s is there", twilioSignature)
	}
	contentType, _ := h.Header("content-type")
	var params []byte
	switch sum, n := h.QueryValue("bodySHA256"); {
	case n > 1:
		return unverified("?bodySHA256", "it is there %d times; want one", n)
	case n == 1:
		want, err := hex.DecodeString(sum)
		got := sha256.Sum256(h.Body)
		if err != nil || subtle.ConstantTimeCompare(want, got[:]) != 1 {
			return unverified("?bodySHA256", "it is not the SHA-256 of the body as it arrived")
		}
		if say != nil {
			told(say, "?bodySHA256 is that of the body (%d bytes)", len(h.Body))
		}
	case isForm(contentType):
		fields, err := parseForm(string(h.Body))
		if err != nil {
			return unverified("body", "%v", err)
		}
		params = sortedParams(fields)
		if say != nil {
			told(say, "the body is a form with %d names", len(fields))
		}
	case len(h.Body) > 0:
		return unverified("body", "it is neither a form nor signed by ?bodySHA256=, so that no signature covers it")
	}
	// Twilio signs the port that it was given, or none: both are tried, as its own libraries do.
	for _, at := range portForms(h.URL) {
		if v.keys.match(h, &sigs, bytesOf(at), params) {
			if say != nil {
				told(say, "the signature is that of %s", at)
			}
			return nil
		}
	}
	return unverified(twilioSignature, "no signature is that of %s and the body by an auth token of this source (%d configured): is that the URL that Twilio calls? Behind a proxy the source needs url:",
		h.URL, len(v.keys.list))
}

// Quiet is an answer that Twilio takes for "do nothing": it reads a body as instructions.
func (v *twilio) Quiet() *answer {
	return &answer{ContentType: "text/xml", Body: []byte("<Response/>")}
}

// sortedParams is each name followed by its values, both sorted, a value that is repeated once.
func sortedParams(fields []formField) []byte {
	sorted := slices.Clone(fields)
	slices.SortStableFunc(sorted, func(a, b formField) int { return strings.Compare(a.name, b.name) })
	var out []byte
	for _, f := range sorted {
		values := slices.Clone(f.values)
		slices.Sort(values)
		for _, value := range slices.Compact(values) {
			out = append(append(out, f.name...), value...)
		}
	}
	return out
}

// portForms is a URL as it is, with its scheme's own port, and without.
func portForms(at string) []string {
	u, err := url.Parse(at)
	if err != nil || u.Host == "" {
		return []string{at}
	}
	start := strings.Index(at, "://") + 3
	end := start + len(u.Host)
	if user := u.User.String(); user != "" {
		start += len(user) + 1
		end = start + len(u.Host)
	}
	if end > len(at) || at[start:end] != u.Host {
		return []string{at}
	}
	if u.Port() != "" {
		return []string{at, at[:start] + u.Host[:strings.LastIndexByte(u.Host, ':')] + at[end:]}
	}
	port := ":443"
	if u.Scheme == "http" {
		port = ":80"
	}
	return []string{at, at[:end] + port + at[end:]}
}
