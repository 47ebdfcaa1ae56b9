package webhook

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// FuzzAnswer: whatever a receiver answers, the wait that it asks for is within 0 and a day, what it says of single events is
// of those that it was sent, and no secret is in what is quoted of it.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"120", "-1", "99999999999999999999", "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 9999 07:28:00 GMT", " 5", "+5", "1e9", "0x10"} {
		f.Add(s, []byte(`{}`))
	}
	for _, s := range []string{`[0,2]`, `{"failed":[{"index":1,"status":503,"error":"full","retryAfter":5}]}`, `{"failed":null}`, `[]`, `[{"a":1}]`, `{"failed":[{"index":1e0}]}`, `[-1]`, `[99999999999999999999]`,
		`{"failed":[{"index":0,"retryAfter":18446744073709551616,"error":{"a":[1]}}]}`, ` [0] `, `{"ok":true,"failed":[]}`, `[0.5]`, `{"FAILED":[1]}`} {
		f.Add("", []byte(s))
	}
	const secret = `s3cr3t-of/the"header`
	o := Options{URL: "http://127.0.0.1/?key=query-s3cr3t", Headers: map[string]string{"X-Key": secret, "Authorization": "Bearer bearer-s3cr3t"}}
	sink := &Sink{o: o, secrets: secretsOf(o)}
	f.Add("", []byte(secret+" bearer-s3cr3t query-s3cr3t"))
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f.Fuzz(func(t *testing.T, after string, answer []byte) {
		if d := retryAfter(after, now); d < 0 || d > maxWait {
			t.Fatalf("Retry-After %q waits %s", after, d)
		}
		list, known, err := parseFates(answer, 3)
		if err == nil && known != (list != nil) && !bytes.Contains(answer, []byte("[")) {
			t.Fatalf("%q: %v, %t", answer, list, known)
		}
		if err == nil && known && !json.Valid(answer) {
			t.Fatalf("%q is taken", answer)
		}
		for _, f := range list {
			if f.index < 0 || f.index > 2 || f.wait < 0 || f.wait > maxWait || f.status != 0 && (f.status < 100 || f.status > 599) {
				t.Fatalf("%q says %+v", answer, f)
			}
		}
		quoted := sink.quote(&lane{auth: "Bearer oauth-s3cr3t"}, string(answer)+secret+after+"bearer-s3cr3t&query-s3cr3t oauth-s3cr3t")
		if len(quoted) > 4*shown+2 {
			t.Fatalf("%d bytes are quoted", len(quoted))
		}
		for _, s := range []string{"s3cr3t-of", "bearer-s3cr3t", "query-s3cr3t", "oauth-s3cr3t"} {
			if strings.Contains(quoted, s) && !strings.Contains(string(answer)+after, s) {
				t.Fatalf("%s is quoted: %s", s, quoted)
			}
		}
	})
}
