package hooks

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// What nobody signed is never verified, whatever stands in the headers; and nothing panics.
func FuzzVerify(f *testing.F) {
	schemes := map[string]event.Verifier{
		"github": open(f, GitHub{Secret: "the fuzzer does not know it"}), "shopify": open(f, Shopify{Secret: "the fuzzer does not know it"}),
		"twilio": open(f, Twilio{AuthToken: "the fuzzer does not know it"}),
		"bearer": open(f, Bearer{Token: "the fuzzer does not know it"}), "basic": open(f, Basic{User: "u", Password: "the fuzzer does not know it"}),
	}
	for _, s := range timedSchemes(f) {
		schemes[s.name] = s.v
	}
	f.Add("github", "X-Hub-Signature-256", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17", "", "", "Hello, World!")
	f.Add("stripe", "Stripe-Signature", "t=1700000000,v1=00,v1=aa,v0=bb", "", "", "{}")
	f.Add("slack", "X-Slack-Signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503", "X-Slack-Request-Timestamp", "1700000000", "a=b")
	f.Add("standard", "webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1a,AAAA", "webhook-timestamp", "1700000000", "{}")
	f.Add("hmac", "X-Sig", "00, ff", "X-Time", "2023-11-14T22:13:20Z", "{}")
	f.Add("twilio", "X-Twilio-Signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8=", "Content-Type", "application/x-www-form-urlencoded", "a=%2&b")
	f.Add("basic", "Authorization", "Basic dTpw", "", "", "")
	f.Fuzz(func(t *testing.T, scheme, name1, value1, name2, value2, body string) {
		v := schemes[scheme]
		if v == nil {
			return
		}
		h := webhook(body, name1+": "+value1, name2+": "+value2, "webhook-id: msg_1", "x-id: 7")
		h.Query = value2
		if v.Verify(context.Background(), h, func(string) {}) == nil {
			t.Fatalf("%s takes what nobody signed", scheme)
		}
	})
}

// A form becomes valid JSON or is refused.
func FuzzForm(f *testing.F) {
	for _, s := range []string{"a=1&b=x+y%21&a=2", "payload=%7B%22a%22%3A1%7D", "a=%zz", "=&=", "\xff=%ff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, form string) {
		if doc, err := formJSON([]byte(form)); err == nil && !json.Valid(doc) {
			t.Fatalf("%s", doc)
		}
	})
}

// A template that is taken has bounded parts, which make up what was written.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"{timestamp}.{body}", "v0:{header.x-id}{url}{method}", "{", "}", "{header.}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parts, err := parseTemplate(text)
		if err != nil {
			return
		}
		var b strings.Builder
		for _, p := range parts {
			b.WriteString(map[partKind]string{partText: p.text, partBody: "{body}", partTime: "{timestamp}", partMethod: "{method}", partURL: "{url}", partHeader: "{header." + p.text + "}"}[p.kind])
		}
		if len(parts) > maxParts || !strings.EqualFold(b.String(), text) {
			t.Fatalf("%q became %q", text, b.String())
		}
	})
}
