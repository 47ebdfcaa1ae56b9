package webhook

import (
	"bufio"
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func TestSignAgainstStandardWebhooks(t *testing.T) {
	for _, secret := range []string{secretA, secretB} {
		wh, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range []string{"", "{}", `{"a": "ü"}`, "\x00\xff", strings.Repeat("x", 100_000)} {
			now := time.Now()
			id := "s:t@1:0-42:0"
			ours := Sign(secret, id, now.Unix(), []byte(body))
			theirs, err := wh.Sign(id, now, []byte(body))
			if err != nil || ours != theirs {
				t.Errorf("body %.20q: %s, theirs %s, %v", body, ours, theirs, err)
			}
			h := http.Header{}
			h.Set("webhook-id", id)
			h.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
			h.Set("webhook-signature", "v1,AAAA "+ours)
			if err := wh.Verify([]byte(body), h); err != nil {
				t.Error(err)
			}
			if err := Verify([]string{secret}, id, h.Get("webhook-timestamp"), theirs, []byte(body), now, 0); err != nil {
				t.Error(err)
			}
		}
	}
	// The vector of the specification's own tests.
	if got, want := Sign(secretA, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, []byte(`{"test": 2432232314}`)),
		"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestVerifyRefuses(t *testing.T) {
	const id, body, ts = "msg_1", `{"a":1}`, 1_700_000_000
	now := time.Unix(ts, 0)
	good := Sign(secretA, id, ts, []byte(body))
	stamp := func(n int64) string { return strconv.FormatInt(n, 10) }
	for name, c := range map[string]struct {
		secrets           []string
		id, ts, sig, body string
		now               time.Time
		want              string
	}{
		"good":                   {[]string{secretA}, id, stamp(ts), good, body, now, ""},
		"rotation, new secret":   {[]string{secretB, secretA}, id, stamp(ts), good, body, now, ""},
		"several, one good":      {[]string{secretA}, id, stamp(ts), "v1,x v1a,y " + good, body, now, ""},
		"edge of the window":     {[]string{secretA}, id, stamp(ts), good, body, now.Add(5 * time.Minute), ""},
		"body with a space more": {[]string{secretA}, id, stamp(ts), good, `{"a": 1}`, now, "no signature matches"},
		"other id":               {[]string{secretA}, "msg_2", stamp(ts), good, body, now, "no signature matches"},
		"other time":             {[]string{secretA}, id, stamp(ts + 1), good, body, now, "no signature matches"},
		"other secret":           {[]string{secretB}, id, stamp(ts), good, body, now, "no signature matches"},
		"version v2":             {[]string{secretA}, id, stamp(ts), "v2" + good[2:], body, now, "no signature of version v1"},
		"cut short":              {[]string{secretA}, id, stamp(ts), good[:len(good)-1], body, now, "no signature matches"},
		"stale":                  {[]string{secretA}, id, stamp(ts), good, body, now.Add(5*time.Minute + time.Second), "stale"},
		"future":                 {[]string{secretA}, id, stamp(ts), good, body, now.Add(-5*time.Minute - time.Second), "future"},
		"time with a plus":       {[]string{secretA}, id, "+" + stamp(ts), good, body, now, "want Unix seconds"},
		"time is a word":         {[]string{secretA}, id, "now", good, body, now, "want Unix seconds"},
		"far past":               {[]string{secretA}, id, "-9223372036854775808", Sign(secretA, id, -1<<63, []byte(body)), body, now, "stale"},
		"far future":             {[]string{secretA}, id, "9223372036854775807", Sign(secretA, id, 1<<63-1, []byte(body)), body, now, "future"},
		"no id":                  {[]string{secretA}, "", stamp(ts), good, body, now, "webhook-id is missing"},
		"no time":                {[]string{secretA}, id, "", good, body, now, "webhook-timestamp is missing"},
		"no signature":           {[]string{secretA}, id, stamp(ts), "", body, now, "webhook-signature is missing"},
		"no secret":              {nil, id, stamp(ts), good, body, now, "no secret"},
		"huge signature":         {[]string{secretA}, id, stamp(ts), strings.Repeat("v1,x ", 1000) + good, body, now, "limit is 4096"},
	} {
		err := Verify(c.secrets, c.id, c.ts, c.sig, []byte(c.body), c.now, 0)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!errors.Is(err, ErrUnverified) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		case err != nil && strings.Contains(err.Error(), good[3:]):
			t.Errorf("%s: the error shows the right signature", name)
		}
	}
}

func TestParseSecret(t *testing.T) {
	for s, want := range map[string]string{
		secretA: "", secretB: "",
		strings.TrimRight(secretB, "="):       "",
		"":                                    "does not begin with whsec_",
		"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw":    "does not begin with whsec_",
		"whsec_top!secret":                    "not base64",
		"whsec_dG9wc2VjcmV0":                  "9 bytes after decoding; want 24 to 64",
		"whsec_" + strings.Repeat("dG9w", 22): "66 bytes after decoding",
	} {
		_, err := parseSecret(s)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", s, err, want)
		}
		if body := strings.TrimPrefix(s, "whsec_"); err != nil && len(body) > 5 && strings.Contains(err.Error(), body) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	if Sign("nonsense", "i", 1, nil) != "" {
		t.Error("a signature without a secret")
	}
}

// The request that the documents show is one that verifies.
func TestDocumentedExample(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/webhooks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(doc), "```\nPOST")
	block, _, _ := strings.Cut("POST"+after, "\n```")
	head, body, _ := strings.Cut(block, "\n\n")
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body)))
	if err != nil {
		t.Fatal(err)
	}
	ts, _ := strconv.ParseInt(r.Header.Get("webhook-timestamp"), 10, 64)
	if err := Verify([]string{secretA}, r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), r.Header.Get("webhook-signature"),
		[]byte(body), time.Unix(ts, 0), 0); err != nil {
		t.Errorf("%v; it would be %s", err, Sign(secretA, r.Header.Get("webhook-id"), ts, []byte(body)))
	}
	if r.ContentLength != int64(len(body)) {
		t.Errorf("Content-Length %d, want %d", r.ContentLength, len(body))
	}
}
