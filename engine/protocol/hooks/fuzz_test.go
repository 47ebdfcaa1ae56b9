package hooks

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

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
	pages, _, v := snsVector(f)
	schemes["sns"] = v
	signed := map[string]bool{} // what the vector's sender has signed
	for _, body := range pages.Messages {
		signed[signedText(f, body)] = true
	}
	meta := open(f, Meta{Secret: "the fuzzer does not know it", VerifyToken: "the fuzzer does not know it"})
	schemes["meta"] = meta
	f.Fuzz(func(t *testing.T, scheme, name1, value1, name2, value2, body string) {
		v := schemes[scheme]
		if v == nil {
			return
		}
		h := webhook(body, name1+": "+value1, name2+": "+value2, "webhook-id: msg_1", "x-id: 7")
		h.Query = value2
		if v.Verify(context.Background(), h, func(string) {}) == nil && (scheme != "sns" || !signed[signedText(t, body)]) {
			t.Fatalf("%s takes what nobody signed", scheme)
		}
		if a, err := meta.(subscriber).Subscribe(h, nil); err == nil {
			t.Fatalf("a stranger's handshake is answered %s", a.Body)
		}
	})
}

// signedText is what of a body SNS signs.
func signedText(t testing.TB, body string) string {
	m, err := readSNS([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signedSNS(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// snsVector are messages that were signed elsewhere, where their certificate is, and a verifier for their topic.
func snsVector(t testing.TB) (doc struct {
	Root, Certificate string
	Messages          []string
}, w *web, v event.Verifier) {
	text, err := os.ReadFile("testdata/sns.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(doc.Root))
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	w = &web{pages: map[string][]byte{}}
	for _, body := range doc.Messages {
		m, err := readSNS([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		w.pages[m["SigningCertURL"]] = []byte(doc.Certificate)
	}
	v = openSNS(t, w.certificates(t, root))
	w.now = root.NotBefore.Add(time.Hour) // OpenSSL made it long after what it signs
	return doc, w, v
}

// FuzzCertificate: whatever is found where a signing certificate should be, no key comes of it but of the one that a root
// vouches for.
func FuzzCertificate(f *testing.F) {
	doc, _, v := snsVector(f)
	good, _ := pem.Decode([]byte(doc.Certificate))
	genuine, err := x509.ParseCertificate(good.Bytes)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, page, issuer []byte) {
		c := v.(*sns).certificates
		served := CertificateOptions{Roots: c.o.Roots, Now: c.o.Now, Fetch: func(_ context.Context, at string, _ int64) ([]byte, error) {
			if at == snsCert {
				return page, nil
			}
			return issuer, nil
		}}
		fresh, err := NewCertificates(served)
		if err != nil {
			t.Fatal(err)
		}
		key, err := fresh.key(t.Context(), snsCert, []string{"sns.amazonaws.com", "sns.us-west-2.amazonaws.com"})
		if err != nil && !errors.Is(err, event.ErrUnverified) && !errors.Is(err, event.ErrUnavailable) {
			t.Fatal(err)
		}
		if err == nil && !key.Equal(genuine.PublicKey) {
			t.Fatal("a certificate that no root vouches for is taken")
		}
	})
}

// FuzzReceive: a webhook of somebody who has shown the token becomes an event that is what it says it is, or is refused as
// the sender's fault.
func FuzzReceive(f *testing.F) {
	const token = "the fuzzer knows it"
	box := &inbox{}
	s := newServer(f, box, Source{Source: event.Source{Name: "a"}, Verifier: open(f, Bearer{Token: token})},
		Source{Source: event.Source{Name: "raw", RawForm: true, Headers: []string{"x-kept"}, URL: "https://hooks.example.com/in"}, Verifier: open(f, Bearer{Token: token})})
	f.Fuzz(func(t *testing.T, method, path, contentType, kind, at, name, value, body string) {
		if len(method) > 7 || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || strings.ContainsAny(contentType+kind+at+name+value, "\r\n") {
			return // the listener would not have let it in
		}
		*box = inbox{}
		_, err := ask(s, method, "/v1/sources/"+path, body, "Authorization: Bearer "+token, "Content-Type: "+contentType, "x-type: "+kind, "x-time: "+at, name+": "+value)
		var faults *event.Faults
		if err != nil && !errors.As(err, &faults) && !errors.Is(err, event.ErrUnverified) {
			t.Fatalf("%s is refused with %v", method, err)
		}
		for i := range box.events {
			ev := &box.events[i]
			if err != nil {
				t.Fatalf("stored, and refused with %v", err)
			}
			if ev.Data != nil && !ev.Binary && (!utf8.Valid(ev.Data) || event.IsJSON(ev.DataContentType) && !json.Valid(ev.Data)) {
				t.Fatalf("%q is called %q", ev.Data, ev.DataContentType)
			}
			if _, err := event.ParseTime(ev.Time); ev.Time != "" && err != nil {
				t.Fatalf("the time %q became %q", at, ev.Time)
			}
		}
	})
}

// A form becomes valid JSON or is refused.
func FuzzForm(f *testing.F) {
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
			b.WriteString(p.String())
		}
		if len(parts) > maxParts || !strings.EqualFold(b.String(), text) {
			t.Fatalf("%q became %q", text, b.String())
		}
	})
}
