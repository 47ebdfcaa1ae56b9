package httpapi

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/millrace/millrace/engine/event"
)

// fakeRules is the part of fake that keeps revisions: it notes what it is asked.
type fakeRules struct {
	sent     []byte
	how      RulesChange
	rollback string
}

const fakeRevision = `{"number":3,"id":"3-ab","rules":"sha256:ab","time":"2026-01-02T03:04:05Z","source":"api","files":[],"inForce":true}`

func (f *fakeRules) RulesRevision() string { return "4-another-change" }

func (f *fakeRules) DiffRules(_ context.Context, bundle []byte) ([]byte, error) {
	f.sent = bundle
	return []byte(`{"revision":"3-ab","changes":[{"kind":"subscription","name":"s","change":"removed","effects":["a fake"],"undelivered":{"total":3,"behind":1,"inHand":1,"parked":1,"deadLetter":"s.dead"}}]}`), nil
}

func (f *fakeRules) ApplyRules(_ context.Context, bundle []byte, how RulesChange) ([]byte, error) {
	f.sent, f.how = bundle, how
	if how.IfMatch != "" && how.IfMatch != "3-ab" {
		return nil, event.Bad(event.ErrPrecondition, "If-Match", "revision 3-ab is in force")
	}
	return []byte(`{"number":3,"id":"3-ab","rules":"sha256:ab","time":"2026-01-02T03:04:05Z","source":"api","files":[],"previous":"2-cd","changed":true}`), nil
}

func (f *fakeRules) RollbackRules(ctx context.Context, to string, how RulesChange) ([]byte, error) {
	f.rollback = to
	return f.ApplyRules(ctx, nil, how)
}

func (f *fakeRules) RulesRevisions(context.Context) ([]byte, error) {
	return []byte(`{"inForce":"3-ab","revisions":[` + fakeRevision + `]}`), nil
}

func TestRulesAreAppliedAsTheyAreSent(t *testing.T) {
	f := newFake()
	_, base := serve(t, Options{Backend: f})
	send := func(method, path, match, encoding string, body []byte) (*http.Response, string) {
		t.Helper()
		kind := "application/x-tar"
		if strings.HasPrefix(path, "/v1/rules/rollback") {
			kind = "application/json"
		}
		header := []string{"Content-Type", kind}
		if match != "" {
			header = append(header, "If-Match", match)
		}
		if encoding != "" {
			header = append(header, "Content-Encoding", encoding)
		}
		return do(t, method, base+path, string(body), header...)
	}
	var packed bytes.Buffer
	large := bytes.Repeat([]byte{0}, 20<<20) // over what other bodies may have
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(large); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	resp, text := send("PUT", "/v1/rules?author=ada&message=why&undelivered=keep", `"3-ab"`, "gzip", packed.Bytes())
	if resp.StatusCode != 200 || resp.Header.Get("ETag") != `"3-ab"` {
		t.Fatalf("%d %s %q", resp.StatusCode, text, resp.Header.Get("ETag"))
	}
	if want := (RulesChange{Author: "ada", Message: "why", IfMatch: "3-ab", Keep: true}); f.how != want || !bytes.Equal(f.sent, large) {
		t.Errorf("%+v and %d bytes; want %+v and %d", f.how, len(f.sent), want, len(large))
	}
	if resp, text = send("POST", "/v1/rules/rollback?author=ada", "", "", []byte(`{"to": 2}`)); resp.StatusCode != 200 || f.rollback != "2" {
		t.Errorf("%d %s; to %q", resp.StatusCode, text, f.rollback)
	}
	for _, x := range []struct {
		method, path, match, body string
		status                    int
		says                      string
	}{
		{"PUT", "/v1/rules", `"1-ff"`, "x", 412, "3-ab is in force"},
		{"PUT", "/v1/rules", `"1", "2"`, "x", 400, "If-Match"},
		{"PUT", "/v1/rules", `""`, "x", 400, "If-Match"},
		{"POST", "/v1/rules/rollback", ` W/"" `, `{"to": 1}`, 400, "If-Match"},
		{"PUT", "/v1/rules?undelivered=perhaps", "", "x", 400, "refuse, keep"},
		{"PUT", "/v1/rules?author=" + strings.Repeat("a", 300), "", "x", 413, "author"},
		{"POST", "/v1/rules/rollback", "", `{}`, 400, "is missing"},
		{"POST", "/v1/rules/diff", "", "x", 200, "s.dead"},
		{"GET", "/v1/rules/revisions", "", "", 200, `"inForce":"3-ab"`},
	} {
		if resp, text := send(x.method, x.path, x.match, "", []byte(x.body)); resp.StatusCode != x.status || !strings.Contains(text, x.says) {
			t.Errorf("%s %s: %d %s; want %d and %q", x.method, x.path, resp.StatusCode, text, x.status, x.says)
		} else if tag := resp.Header.Get("ETag"); x.status == 200 && tag != `"3-ab"` {
			t.Errorf("%s %s: its ETag %s is not the document's revision", x.method, x.path, tag)
		}
	}
}

// Bundles that wait for each other do not fill the memory: a third is refused, and asked to come again.
func TestBundlesAreBounded(t *testing.T) {
	f := newFake()
	s, base := serve(t, Options{Backend: f})
	for _, x := range []struct {
		held   int64
		status int
	}{{maxBundles, 503}, {maxBundles - 1, 200}} {
		s.bundles.Store(x.held)
		for _, path := range []string{"PUT /v1/rules", "POST /v1/rules/diff", "POST /v1/rules/backtest"} {
			method, path, _ := strings.Cut(path, " ")
			resp, text := do(t, method, base+path, anyRules, "Content-Type", "application/yaml")
			if resp.StatusCode != x.status || (resp.Header.Get("Retry-After") != "") != (x.status == 503) {
				t.Errorf("%s with %d held: %d %s", path, x.held, resp.StatusCode, text)
			}
		}
		if is := s.bundles.Load(); is != x.held {
			t.Errorf("%d are held after all calls; want %d", is, x.held)
		}
	}
}
