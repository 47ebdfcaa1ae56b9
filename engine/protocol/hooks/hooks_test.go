package hooks

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// now is when the test's webhooks come in.
var now = time.Unix(1_700_000_000, 0)

func stamp(d time.Duration) string { return fmt.Sprint(now.Add(d).Unix()) }

func sign(of func() hash.Hash, secret, text string) []byte {
	m := hmac.New(of, []byte(secret))
	m.Write([]byte(text))
	return m.Sum(nil)
}

func hexOf(secret, text string) string { return hex.EncodeToString(sign(sha256.New, secret, text)) }

func base64Of(secret, text string) string {
	return base64.StdEncoding.EncodeToString(sign(sha256.New, secret, text))
}

// webhook makes one of "Name: value" lines.
func webhook(body string, headers ...string) *event.Hook {
	h := &event.Hook{Source: "s", Method: "POST", URL: "https://hooks.example.com/v1/sources/s", Body: []byte(body), Received: now}
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		h.Headers = append(h.Headers, event.HookHeader{Name: name, Value: value})
	}
	return h
}

func open[O interface {
	Open() (event.Verifier, error)
}](t testing.TB, o O) event.Verifier {
	t.Helper()
	if v, ok := any(o).(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	v, err := o.Open()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Signatures that the senders' own documents and libraries give.
func TestVectors(t *testing.T) {
	slackBody := "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
	twilioForm := "Digits=1234&To=%2B18005551212&From=%2B14158675309&Caller=%2B14158675309&CallSid=CA1234567890ABCDE"
	for _, tt := range []struct {
		name string
		v    event.Verifier
		at   int64
		h    *event.Hook
	}{
		// docs.github.com, "Validating webhook deliveries", "Testing the webhook payload validation".
		{"github", open(t, GitHub{Secret: "It's a Secret to Everybody"}), 0,
			webhook("Hello, World!", "X-Hub-Signature-256: sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17")},
		// api.slack.com, "Verifying requests from Slack".
		{"slack", open(t, Slack{Secret: "8f742231b10e8888abcd99yyyzzz85a5"}), 1531420618,
			webhook(slackBody, "X-Slack-Request-Timestamp: 1531420618", "X-Slack-Signature: v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503")},
		// The tests of standard-webhooks' own libraries.
		{"standard", open(t, Standard{Secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}), 1614265330,
			webhook(`{"test": 2432232314}`, "webhook-id: msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp: 1614265330", "webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")},
		// The tests of Twilio's own libraries, of the example in "Validating Requests are coming from Twilio".
		{"twilio", open(t, Twilio{AuthToken: "12345"}), 0, func() *event.Hook {
			h := webhook(twilioForm, "Content-Type: application/x-www-form-urlencoded", "X-Twilio-Signature: RSOYDt4T1cUTdK1PDd93/VVr8B8=")
			h.URL, h.Query = "https://mycompany.com/myapp.php?foo=1&bar=2", "foo=1&bar=2"
			return h
		}()},
		// RFC 4231, 4.3 (test case 2), as a scheme of one's own.
		{"hmac sha512", open(t, HMAC{Secret: "Jefe", Header: "x-sig", Algorithm: "sha512"}), 0,
			webhook("what do ya want for nothing?", "X-Sig: 164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737")},
		{"hmac sha384", open(t, HMAC{Secret: "Jefe", Header: "x-sig", Algorithm: "sha384"}), 0,
			webhook("what do ya want for nothing?", "X-Sig: af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649")},
		// RFC 2202, 3 (test case 2).
		{"hmac sha1", open(t, HMAC{Secret: "Jefe", Header: "x-sig", Algorithm: "sha1", Encoding: "base64"}), 0,
			webhook("what do ya want for nothing?", "X-Sig: 7/zfauXrL6LSdBbV8YTfnCWafHk=")},
	} {
		if tt.at != 0 {
			tt.h.Received = time.Unix(tt.at, 0)
		}
		var steps []string
		if err := tt.v.Verify(t.Context(), tt.h, func(s string) { steps = append(steps, s) }); err != nil || !tt.h.Proved || len(steps) == 0 {
			t.Errorf("%s: %v after %q", tt.name, err, steps)
		}
		tt.h.Body = append(tt.h.Body, ' ')
		if err := tt.v.Verify(t.Context(), tt.h, nil); !errors.Is(err, event.ErrUnverified) || tt.h.Proved {
			t.Errorf("%s: with one space more: %v", tt.name, err)
		}
	}
}

// refused wants a verifier to refuse, for the reason named, without telling a secret.
func refused(t *testing.T, name string, v event.Verifier, h *event.Hook, why string, secrets ...string) {
	t.Helper()
	err := v.Verify(context.Background(), h, nil)
	if !errors.Is(err, event.ErrUnverified) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(why)) {
		t.Errorf("%s: %v; want it refused: %s", name, err, why)
		return
	}
	for _, s := range secrets {
		if strings.Contains(err.Error(), s) {
			t.Errorf("%s: a secret is told: %v", name, err)
		}
	}
}

func taken(t *testing.T, name string, v event.Verifier, h *event.Hook) {
	t.Helper()
	if err := v.Verify(context.Background(), h, nil); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// What is tried against schemes that sign the body alone.
func TestBodySignedAttacks(t *testing.T) {
	const secret, old, body = "quite-a-secret", "the-old-secret", `{"a":1}`
	for _, s := range []struct {
		name, header, prefix string
		v                    event.Verifier
		sum                  func(secret, text string) string
	}{
		{"github", "X-Hub-Signature-256", "sha256=", open(t, GitHub{Secret: secret, Secrets: []string{old}}), hexOf},
		{"meta", "X-Hub-Signature-256", "sha256=", open(t, Meta{Secret: secret, Secrets: []string{old}, VerifyToken: "token"}), hexOf},
		{"shopify", "X-Shopify-Hmac-Sha256", "", open(t, Shopify{Secrets: []string{secret, old}}), base64Of},
		{"hmac", "X-Sig", "v1=", open(t, HMAC{Secrets: []string{secret, old}, Header: "x-sig", Prefix: "v1="}), hexOf},
	} {
		good := s.header + ": " + s.prefix + s.sum(secret, body)
		taken(t, s.name, s.v, webhook(body, good))
		taken(t, s.name+" in other case", s.v, webhook(body, strings.ToUpper(s.header)+": "+s.prefix+s.sum(secret, body)))
		taken(t, s.name+" by the old secret", s.v, webhook(body, s.header+": "+s.prefix+s.sum(old, body)))
		refuse := func(what, why string, h *event.Hook) {
			refused(t, s.name+": "+what, s.v, h, why, secret, old, s.sum(secret, body))
		}
		refuse("one space more", "no signature", webhook(`{"a": 1}`, good))
		refuse("a line's end more", "no signature", webhook(body+"\n", good))
		refuse("no body", "no signature", webhook("", good))
		refuse("another secret", "no signature", webhook(body, s.header+": "+s.prefix+s.sum("another", body)))
		refuse("an empty secret's", "no signature", webhook(body, s.header+": "+s.prefix+s.sum("", body)))
		refuse("no header", "missing", webhook(body))
		refuse("twice, both good", "2 times", webhook(body, good, good))
		refuse("twice, one good", "2 times", webhook(body, s.header+": x", good))
		refuse("empty", "empty", webhook(body, s.header+": "))
		refuse("cut", "signature", webhook(body, good[:len(good)-2]))
		refuse("longer", "signature", webhook(body, good+"00"))
		refuse("no signature", "", webhook(body, s.header+": "+s.prefix))
		refuse("not decodable", "signature", webhook(body, s.header+": "+s.prefix+strings.Repeat("zz!", 20)))
		refuse("huge", "signature", webhook(body, s.header+": "+s.prefix+strings.Repeat("a", 100_000)))
		if s.prefix != "" {
			refuse("another version", s.prefix, webhook(body, s.header+": sha1="+s.sum(secret, body)))
		}
	}
	h := open(t, HMAC{Secret: secret, Header: "x-sig", Prefix: "v1="})
	taken(t, "several, one good", h, webhook(body, "x-sig: v1=00,v0="+hexOf(secret, body)+", v1="+hexOf(secret, body)))
	refused(t, "good under another version", h, webhook(body, "x-sig: v1=00,v2="+hexOf(secret, body)), "no signature")
	refused(t, "good without a version", h, webhook(body, "x-sig: v1=00,"+hexOf(secret, body)), "no signature")
	refused(t, "a flood of signatures", h, webhook(body, "x-sig: "+strings.Repeat("v1=00,", 17)+"v1="+hexOf(secret, body)), "over 16")
}

// timed is a scheme that signs a time.
type timed struct {
	name string
	v    event.Verifier
	// headers of a webhook that was signed with a secret at a time
	headers func(secret, at, body string) []string
	stamp   string // the header that has the time, or begins with t=
}

func timedSchemes(t testing.TB) []timed {
	const secret, old = "quite-a-secret", "the-old-secret"
	key := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	return []timed{
		{"stripe", open(t, Stripe{Secrets: []string{secret, old}}), func(secret, at, body string) []string {
			return []string{"Stripe-Signature: t=" + at + ",v1=" + hexOf(secret, at+"."+body)}
		}, "Stripe-Signature"},
		{"slack", open(t, Slack{Secrets: []string{secret, old}}), func(secret, at, body string) []string {
			return []string{"X-Slack-Signature: v0=" + hexOf(secret, "v0:"+at+":"+body), "X-Slack-Request-Timestamp: " + at}
		}, "X-Slack-Request-Timestamp"},
		{"standard", open(t, Standard{Secret: "whsec_" + key(secret), Secrets: []string{"whsec_" + key(old)}}), func(secret, at, body string) []string {
			return []string{"webhook-signature: v1," + base64Of(secret, "msg_1."+at+"."+body), "webhook-id: msg_1", "webhook-timestamp: " + at}
		}, "webhook-timestamp"},
		{"svix", open(t, Standard{Secrets: []string{"whsec_" + key(secret), key(old)}, Prefix: "svix"}), func(secret, at, body string) []string {
			return []string{"svix-signature: v1," + base64Of(secret, "msg_1."+at+"."+body), "svix-id: msg_1", "svix-timestamp: " + at}
		}, "svix-timestamp"},
		{"hmac", open(t, HMAC{Secrets: []string{secret, old}, Header: "x-sig", Timestamp: "x-time", Template: "{method} {header.x-id} {timestamp}.{body}"}), func(secret, at, body string) []string {
			return []string{"X-Sig: " + hexOf(secret, "POST 7 "+at+"."+body), "X-Time: " + at, "X-Id: 7"}
		}, "X-Time"},
	}
}

// What is tried against schemes that sign a time as well.
func TestTimedAttacks(t *testing.T) {
	const secret, body = "quite-a-secret", `{"a":1}`
	for _, s := range timedSchemes(t) {
		at := stamp(0)
		good := s.headers(secret, at, body)
		taken(t, s.name, s.v, webhook(body, good...))
		taken(t, s.name+" by the old secret", s.v, webhook(body, s.headers("the-old-secret", at, body)...))
		taken(t, s.name+" of 4 minutes ago", s.v, webhook(body, s.headers(secret, stamp(-4*time.Minute), body)...))
		taken(t, s.name+" of 4 minutes hence", s.v, webhook(body, s.headers(secret, stamp(4*time.Minute), body)...))
		refuse := func(what, why string, body string, headers ...string) {
			refused(t, s.name+": "+what, s.v, webhook(body, headers...), why, secret, base64Of(secret, body))
		}
		refuse("stale", "signed 6m0s ago", body, s.headers(secret, stamp(-6*time.Minute), body)...)
		refuse("from the future", "6m0s from now", body, s.headers(secret, stamp(6*time.Minute), body)...)
		refuse("very stale", "ago", body, s.headers(secret, "1", body)...)
		refuse("one space more", "no signature", `{"a": 1}`, good...)
		refuse("another secret", "no signature", body, s.headers("another", at, body)...)
		refuse("no headers", "missing", body)
		for i := range good {
			name, value, _ := strings.Cut(good[i], ": ")
			without := append(append([]string{}, good[:i]...), good[i+1:]...)
			refuse("without "+name, "missing", body, without...)
			refuse("twice "+name, "2 times", body, append(good, good[i])...)
			refuse("empty "+name, name, body, append(without, name+": ")...)
			if name == s.stamp {
				for _, bad := range []string{"x", "-1", "+" + at, " ", "1e9", at + "9999", "0x10", "９９", strings.Repeat("9", 400)} {
					refuse("the time "+bad, "", body, append(without, name+": "+strings.Replace(value, at, bad, 1))...)
				}
				refuse("another time", "no signature", body, append(without, name+": "+strings.Replace(value, at, stamp(time.Second), 1))...)
			}
		}
	}
	v := timedSchemes(t)[0].v
	sum := hexOf(secret, stamp(0)+"."+body)
	for value, why := range map[string]string{
		"t=" + stamp(0) + ",v0=" + sum: "no v1",
		"v1=" + sum:                    "0 timestamps",
		"t=" + stamp(0) + ",t=" + stamp(0) + ",v1=" + sum:             "2 timestamps",
		"t=" + stamp(0) + strings.Repeat(",v1=00", 20) + ",v1=" + sum: "over 16",
		"t=" + stamp(0) + ",v1=" + sum[:62]:                           "no signature",
		strings.Repeat(",", 5000):                                     "0 timestamps",
	} {
		refused(t, "stripe "+value, v, webhook(body, "Stripe-Signature: "+value), why)
	}
	taken(t, "stripe, several", v, webhook(body, "Stripe-Signature: t="+stamp(0)+",v1="+hexOf("other", stamp(0)+"."+body)+",v1="+sum+",v0=00"))
}

// Times in other notations than seconds, for schemes of one's own.
func TestTimeNotations(t *testing.T) {
	v := open(t, HMAC{Secret: "s3cret", Header: "x-sig", Timestamp: "x-time", Algorithm: "sha512", Encoding: "base64"})
	for text, ok := range map[string]bool{
		stamp(0): true, stamp(0) + "123": true, now.UTC().Format(time.RFC3339Nano): true, now.UTC().Format("2006-01-02T15:04:05.000Z"): true,
		stamp(-6*time.Minute) + "123": false, now.Add(-time.Hour).UTC().Format(time.RFC3339): false, now.UTC().Format(time.RFC1123): false,
	} {
		h := webhook("b", "x-sig: "+base64.StdEncoding.EncodeToString(sign(sha512.New, "s3cret", text+".b")), "x-time: "+text)
		if err := v.Verify(t.Context(), h, nil); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Twilio signs the address and the form: another path, query, value or order of values is another webhook.
func TestTwilioAttacks(t *testing.T) {
	const token = "12345"
	v := open(t, Twilio{AuthTokens: []string{token, "67890"}})
	form := "B=2&A=1&C=x+y%21"
	request := func(url, body, contentType, sig string) *event.Hook {
		h := webhook(body, "Content-Type: "+contentType, "X-Twilio-Signature: "+sig)
		h.URL = url
		_, h.Query, _ = strings.Cut(url, "?")
		return h
	}
	sig := func(token, text string) string { return base64.StdEncoding.EncodeToString(sign(sha1.New, token, text)) }
	const at, isForm = "https://x.example/sms?a=b", "application/x-www-form-urlencoded; charset=UTF-8"
	good := sig(token, at+"A1B2Cx y!")
	taken(t, "good", v, request(at, form, isForm, good))
	taken(t, "order", v, request(at, "A=1&B=2&C=x%20y!", isForm, good))
	taken(t, "second token", v, request(at, form, isForm, sig("67890", at+"A1B2Cx y!")))
	taken(t, "signed with the port", v, request(at, form, isForm, sig(token, "https://x.example:443/sms?a=bA1B2Cx y!")))
	taken(t, "called with the port", v, request("https://x.example:443/sms?a=b", form, isForm, good))
	taken(t, "a value twice", v, request(at, "A=1&A=1&A=0", isForm, sig(token, at+"A0A1")))
	json := `{"a":1}`
	sum := sha256.Sum256([]byte(json))
	withSum := at + "&bodySHA256=" + hex.EncodeToString(sum[:])
	taken(t, "JSON", v, request(withSum, json, "application/json", sig(token, withSum)))
	refuse := func(what, why string, h *event.Hook) { t.Helper(); refused(t, what, v, h, why, token) }
	refuse("JSON with one space more", "bodySHA256", request(withSum, `{"a": 1}`, "application/json", sig(token, withSum)))
	refuse("JSON without its hash", "neither a form nor", request(at, json, "application/json", sig(token, at)))
	refuse("a form called JSON", "neither a form nor", request(at, form, "application/json", good))
	refuse("two hashes", "2 times", request(withSum+"&bodySHA256=00", json, "application/json", sig(token, withSum+"&bodySHA256=00")))
	refuse("another host", "no signature", request("https://y.example/sms?a=b", form, isForm, good))
	refuse("another query", "no signature", request("https://x.example/sms?a=c", form, isForm, good))
	refuse("another scheme", "no signature", request("http://x.example/sms?a=b", form, isForm, good))
	refuse("another value", "no signature", request(at, "B=2&A=1&C=x+y", isForm, good))
	refuse("one more value", "no signature", request(at, form+"&D=", isForm, good))
	refuse("broken form", "%", request(at, form+"%zz", isForm, good))
	refuse("a flood of values", "over 1000", request(at, strings.Repeat("a=b&", 1001), isForm, good))
	refuse("another token", "no signature", request(at, form, isForm, sig("other", at+"A1B2Cx y!")))
	refuse("no signature", "signature", request(at, form, isForm, "!"))
}

func TestPresented(t *testing.T) {
	basic := open(t, Basic{User: "grid", Password: "p:w", Passwords: []string{"next"}})
	auth := func(text string) string {
		return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(text))
	}
	taken(t, "basic", basic, webhook("", auth("grid:p:w")))
	taken(t, "basic, the next", basic, webhook("", strings.Replace(auth("grid:next"), "Basic", "bAsIc ", 1)))
	bearer := open(t, Bearer{Tokens: []string{"tok-1", "tok-2"}})
	taken(t, "bearer", bearer, webhook("", "authorization: bearer tok-2"))
	own := open(t, Bearer{Token: "tok-1", Header: "X-Gitlab-Token"})
	taken(t, "own header", own, webhook("", "x-gitlab-token: tok-1"))
	for name, tt := range map[string]struct {
		v event.Verifier
		h *event.Hook
	}{
		"basic, no header": {basic, webhook("")}, "basic, another": {basic, webhook("", auth("grid:pw"))}, "basic, user": {basic, webhook("", auth("Grid:p:w"))},
		"basic, empty": {basic, webhook("", "Authorization: Basic ")}, "basic, bearer": {basic, webhook("", "Authorization: Bearer p:w")},
		"basic, twice": {basic, webhook("", auth("grid:p:w"), auth("grid:p:w"))}, "bearer, basic": {bearer, webhook("", "authorization: basic tok-1")},
		"bearer, more": {bearer, webhook("", "authorization: bearer tok-11")}, "bearer, none": {bearer, webhook("", "authorization: bearer")},
		"own, scheme": {own, webhook("", "x-gitlab-token: Bearer tok-1")}, "own, in authorization": {own, webhook("", "authorization: bearer tok-1")},
	} {
		refused(t, name, tt.v, tt.h, "", "tok-1", "p:w", "next")
	}
}

// Options that cannot be meant are refused where rules are read, and no message has a secret in it.
func TestOptions(t *testing.T) {
	for want, o := range map[string]interface{ Validate() error }{
		"secret: missing":                   GitHub{},
		"secrets[1]: is empty":              GitHub{Secrets: []string{"a", ""}},
		"secret: begins or ends with white": Stripe{Secret: "hidden\n"},
		"tolerance: is 7h0m0s":              Slack{Secret: "hidden", Tolerance: 7 * time.Hour},
		"secrets: 9 are given":              Shopify{Secrets: []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"}},
		"not whsec_ and base64":             Standard{Secret: "hidden!"},
		"publicKeys[0]: is":                 Standard{PublicKeys: []string{"whpk_AAAA"}},
		"prefix: is \"x\"":                  Standard{Secret: "whsec_aGlkZGVu", Prefix: "x"},
		"authToken: missing":                Twilio{},
		"verifyToken: missing":              Meta{Secret: "hidden"},
		"header: is \"\"":                   HMAC{Secret: "hidden"},
		"header: is \"a b\"":                HMAC{Secret: "hidden", Header: "a b"},
		"algorithm: is \"md5\"":             HMAC{Secret: "hidden", Header: "a", Algorithm: "md5"},
		"without {body}":                    HMAC{Secret: "hidden", Header: "a", Template: "{method}"},
		"has no {timestamp} in it":          HMAC{Secret: "hidden", Header: "a", Timestamp: "b", Template: "{body}"},
		"timestamp: missing":                HMAC{Secret: "hidden", Header: "a", Template: "{timestamp}{body}"},
		"has {boddy}":                       HMAC{Secret: "hidden", Header: "a", Template: "{boddy}"},
		"no closing }":                      HMAC{Secret: "hidden", Header: "a", Template: "{body"},
		"over 16 parts":                     HMAC{Secret: "hidden", Header: "a", Template: strings.Repeat("{body}", 17)},
		"tolerance: is of no use":           HMAC{Secret: "hidden", Header: "a", Tolerance: time.Minute},
		"prefix: is \"a,\"":                 HMAC{Secret: "hidden", Header: "a", Prefix: "a,"},
		"user: is \"a:b\"":                  Basic{User: "a:b", Password: "hidden"},
		"token: missing":                    Bearer{},
		"name: is missing":                  Function{},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%T: %v; want %s", o, err, want)
		}
	}
}

// Verifying costs no allocation where nobody listens to its steps.
func TestVerifyAllocates(t *testing.T) {
	body := strings.Repeat("x", 1000)
	for _, s := range timedSchemes(t) {
		h := webhook(body, s.headers("quite-a-secret", stamp(0), body)...)
		if n := testing.AllocsPerRun(50, func() {
			if err := s.v.Verify(context.Background(), h, nil); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations", s.name, n)
		}
	}
}

// v1a: what the private key of a configured public key has signed is good, beside other signatures and beside secrets.
func TestPublicKeys(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := "whpk_" + base64.StdEncoding.EncodeToString(public)
	alone, both := open(t, Standard{PublicKeys: []string{key}}), open(t, Standard{Secret: "whsec_" + base64.StdEncoding.EncodeToString([]byte("quite-a-secret")), PublicKeys: []string{key}})
	const body = `{"a":1}`
	message := "msg_1." + stamp(0) + "." + body
	by := func(k ed25519.PrivateKey, message string) string {
		return "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(k, []byte(message)))
	}
	request := func(body, sig string) *event.Hook {
		return webhook(body, "webhook-id: msg_1", "webhook-timestamp: "+stamp(0), "webhook-signature: "+sig)
	}
	for _, v := range []event.Verifier{alone, both} {
		taken(t, "signed", v, request(body, by(private, message)))
		taken(t, "one of several", v, request(body, "v1,AAAA v2,x "+by(other, message)+" "+by(private, message)))
		refused(t, "another key", v, request(body, by(other, message)), "no signature")
		refused(t, "one space more", v, request(`{"a": 1}`, by(private, message)), "no signature")
		refused(t, "called v1", v, request(body, strings.Replace(by(private, message), "v1a,", "v1,", 1)), "signature")
		refused(t, "cut", v, request(body, by(private, message)[:50]), "no signature")
		refused(t, "a flood", v, request(body, strings.Repeat("v1a,AAAA ", 17)+by(private, message)), "over 16")
	}
	taken(t, "by the secret", both, request(body, "v1,"+base64Of("quite-a-secret", message)))
	refused(t, "the public key as a secret", alone, request(body, "v1,"+base64Of(string(public), message)), "no signature")
	// An id that ends like a time could move the border between id, time and body.
	h := webhook("2.{}", "webhook-id: msg.1700000000", "webhook-timestamp: "+stamp(0), "webhook-signature: "+by(private, "msg.1700000000."+stamp(0)+".2.{}"))
	refused(t, "an id like a time", alone, h, "ends with a . and digits")
}
