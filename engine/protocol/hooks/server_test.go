package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/millrace/millrace/engine/event"
)

// inbox is where a test's server stores events.
type inbox struct {
	events []event.Event
	proofs []bool
	seen   map[string]string
	err    error
}

func (b *inbox) receive(_ context.Context, topic string, ev *event.Event, proof []byte) (string, bool, error) {
	if b.err != nil {
		return "", false, b.err
	}
	if b.seen == nil {
		b.seen = map[string]string{}
	}
	for _, key := range []string{ev.ID, string(proof)} {
		if first, ok := b.seen[key]; ok && key != "" {
			return first, true, nil
		}
	}
	e := ev.Clone()
	e.Topic = topic
	b.seen[e.ID], b.seen[string(proof)] = e.ID, e.ID
	b.events, b.proofs = append(b.events, e), append(b.proofs, proof != nil)
	return e.ID, false, nil
}

// fill reads the attributes that the tests' sources have.
func fill(h *event.Hook, ev *event.Event) error {
	ev.Type, _ = h.Header("x-type")
	ev.ID, _ = h.Header("x-id")
	ev.Time, _ = h.Header("x-time")
	return nil
}

func newServer(t testing.TB, box *inbox, sources ...Source) *Server {
	t.Helper()
	s, err := New(Options{Receive: box.receive, Now: func() time.Time { return now }, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for i := range sources {
		sources[i].Topic, sources[i].Fill = "in", fill
		if sources[i].Doc == nil {
			sources[i].Doc = json.RawMessage(`{"topic":"in"}`)
		}
	}
	s.Set(sources)
	return s
}

// ask sends one request and returns its answer, or the error that the listener would answer.
func ask(s *Server, method, uri, body string, headers ...string) (*fasthttp.Response, error) {
	var req fasthttp.Request
	req.Header.SetMethod(method)
	req.SetRequestURI(uri)
	req.Header.SetHost("hooks.example.com")
	req.SetBodyString(body)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	var ctx fasthttp.RequestCtx
	ctx.Init(&req, nil, nil)
	err := s.Serve(&ctx, nil)
	return &ctx.Response, err
}

func TestServe(t *testing.T) {
	box := &inbox{}
	v := open(t, GitHub{Secret: "k"})
	s := newServer(t, box, Source{Source: event.Source{Name: "own", Headers: []string{"x-request-id"}}, Verifier: v},
		Source{Source: event.Source{Name: "text", RawForm: true}, Verifier: open(t, None{})})
	const body = `{"a": 1}`
	sig := "X-Hub-Signature-256: sha256=" + hexOf("k", body)
	jsonType := "Content-Type: application/json"
	res, err := ask(s, "POST", "/v1/sources/own?any=thing", body, sig, jsonType, "X-Type: made", "X-Id: 1", "X-Time: 1700000000123", "X-Request-Id: r")
	if err != nil || res.StatusCode() != 200 || string(res.Body()) != "{\"id\":\"1\"}\n" {
		t.Fatalf("%v %s", err, res)
	}
	want := event.Event{ID: "1", Source: "/sources/own", Type: "made", Topic: "in", Time: "2023-11-14T22:13:20.123Z", DataContentType: "application/json", Data: []byte(body),
		ClientID: true, Extensions: []event.Attribute{{Name: "xrequestid", Value: "r"}}}
	if got := box.events[0]; fmt.Sprint(got) != fmt.Sprint(want) || !box.proofs[0] {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	// The same again, under the same id and under another, is answered as the first was.
	for _, id := range []string{"1", "2"} {
		if res, err := ask(s, "POST", "/v1/sources/own", body, sig, jsonType, "X-Id: "+id); err != nil || string(res.Body()) != "{\"id\":\"1\"}\n" {
			t.Errorf("%v %s", err, res)
		}
	}
	for name, tt := range map[string]struct {
		uri, body string
		headers   []string
		is        error
	}{
		"unknown":          {"/v1/sources/other", body, []string{sig}, event.ErrNotFound},
		"unsigned":         {"/v1/sources/own", body, nil, event.ErrUnverified},
		"encoded":          {"/v1/sources/own", body, []string{sig, "Content-Encoding: gzip"}, event.ErrInvalid},
		"kept twice":       {"/v1/sources/own", body, []string{sig, jsonType, "X-Request-Id: a", "X-Request-Id: b"}, event.ErrInvalid},
		"broken JSON":      {"/v1/sources/text", `{"a"`, []string{jsonType}, event.ErrInvalid},
		"a lone surrogate": {"/v1/sources/text", "{\"a\": \"\xff\"}", []string{jsonType}, event.ErrInvalid},
	} {
		if _, err := ask(s, "POST", tt.uri, tt.body, tt.headers...); !errors.Is(err, tt.is) {
			t.Errorf("%s: %v; want %v", name, err, tt.is)
		}
	}
	if len(box.events) != 1 {
		t.Errorf("%d events are stored", len(box.events))
	}
	// What no sender's id names has an id of its signature, or none.
	for i, tt := range []struct{ uri, body, id, contentType string }{
		{"/v1/sources/own", `{"b":1}`, hexOf("k", `{"b":1}`)[:32], "application/json"},
		{"/v1/sources/text", "a=b&c=d", "", "application/x-www-form-urlencoded"},
		{"/v1/sources/text", "plain", "", "text/plain"},
		{"/v1/sources/text", "", "", ""},
	} {
		res, err := ask(s, "POST", tt.uri, tt.body, "X-Hub-Signature-256: sha256="+hexOf("k", tt.body), "Content-Type: "+tt.contentType)
		if err != nil || res.StatusCode() != 200 {
			t.Fatalf("%v %s", err, res)
		}
		if got := box.events[i+1]; got.ID != tt.id || got.ClientID != (tt.id != "") || string(got.Data) != tt.body || got.Type != "webhook" || got.DataContentType != tt.contentType && tt.body != "" || box.proofs[i+1] != strings.HasSuffix(tt.uri, "own") {
			t.Errorf("%+v", got)
		}
	}
	box.err = fmt.Errorf("full: %w", event.ErrFull)
	if _, err := ask(s, "POST", "/v1/sources/text", "x"); !errors.Is(err, event.ErrFull) {
		t.Errorf("%v", err)
	}
	list, unknown := s.Stats()
	if want := [7]uint64{2, 1, 1, 0, 1, 2, 0}; len(list) != 2 || list[0].Counts != want || unknown != 1 || list[0].Last == nil {
		t.Errorf("%+v, %d unknown; want %v", list, unknown, want)
	}
	if want := [7]uint64{3, 0, 0, 0, 0, 2, 1}; list[1].Counts != want {
		t.Errorf("%+v; want %v", list[1], want)
	}
	s.Set([]Source{{Source: event.Source{Name: "own"}, Verifier: v, Fill: fill, Doc: json.RawMessage("{}")}})
	if list, _ := s.Stats(); len(list) != 1 || list[0].Counts[0] != 2 {
		t.Errorf("what was counted is lost: %+v", list)
	}
	if _, err := ask(s, "POST", "/v1/sources/text", "x"); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("a source that went: %v", err)
	}
}

func TestForms(t *testing.T) {
	for form, want := range map[string]string{
		"a=1&b=x+y%21&a=2":                  `{"a":["1","2"],"b":"x y!"}`,
		"payload=%7B%22a%22%3A1%7D":         `{"a":1}`,
		"payload=%7B%22a":                   `{"payload":"{\"a"}`,
		"payload=1&other=2":                 `{"other":"2","payload":"1"}`,
		"":                                  `{}`,
		"a&=b&&":                            `{"":"b","a":""}`,
		"a=%zz":                             "",
		"a=%2":                              "",
		strings.Repeat("a=1&", maxFields+1): "",
	} {
		got, err := formJSON([]byte(form))
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%.60s: %s %v; want %s", form, got, err, want)
		}
	}
}

// Handshakes are answered, and stored nowhere; those that are signed, once the signature is good.
func TestHandshakes(t *testing.T) {
	box := &inbox{}
	s := newServer(t, box,
		Source{Source: event.Source{Name: "slack"}, Verifier: open(t, Slack{Secret: "k"})},
		Source{Source: event.Source{Name: "meta"}, Verifier: open(t, Meta{Secret: "k", VerifyToken: "tok en"})},
		Source{Source: event.Source{Name: "azure", Origins: []string{"EventGrid.azure.net"}}, Verifier: open(t, None{})},
		Source{Source: event.Source{Name: "all", Origins: []string{"*"}}, Verifier: open(t, None{})},
		Source{Source: event.Source{Name: "none"}, Verifier: open(t, None{})})
	const challenge = `{"token":"x","challenge":"3eZb<r>7","type":"url_verification"}`
	signed := func(secret, body string) []string {
		return []string{"Content-Type: application/json", "X-Slack-Request-Timestamp: " + stamp(0), "X-Slack-Signature: v0=" + hexOf(secret, "v0:"+stamp(0)+":"+body)}
	}
	res, err := ask(s, "POST", "/v1/sources/slack", challenge, signed("k", challenge)...)
	if err != nil || string(res.Body()) != "3eZb<r>7" || string(res.Header.ContentType()) != "text/plain; charset=utf-8" || string(res.Header.Peek("X-Content-Type-Options")) != "nosniff" {
		t.Errorf("%v %s", err, res)
	}
	if res, err := ask(s, "POST", "/v1/sources/slack", challenge, signed("other", challenge)...); !errors.Is(err, event.ErrUnverified) || strings.Contains(string(res.Body()), "3eZb") {
		t.Errorf("a challenge that is not signed: %v %s", err, res)
	}
	if _, err := ask(s, "POST", "/v1/sources/none", challenge, "Content-Type: application/json"); err != nil || len(box.events) != 1 {
		t.Errorf("a challenge to another sender's source is an event: %v", err)
	}
	// What looks like a challenge and is an event, is one; Slack is told nothing that it would show.
	const message = `{"type":"event_callback","event":{"type":"message","text":"url_verification"}}`
	if res, err := ask(s, "POST", "/v1/sources/slack", message, signed("k", message)...); err != nil || len(res.Body()) != 0 || len(box.events) != 2 {
		t.Errorf("%v %s", err, res)
	}
	for query, want := range map[string]string{
		"hub.mode=subscribe&hub.verify_token=tok+en&hub.challenge=12%3C34":                         "12<34",
		"hub.challenge=&hub.mode=subscribe&hub.verify_token=tok%20en":                              "",
		"hub.mode=subscribe&hub.verify_token=token&hub.challenge=1":                                "-",
		"hub.mode=subscribe&hub.challenge=1":                                                       "-",
		"hub.mode=unsubscribe&hub.verify_token=tok+en&hub.challenge=1":                             "-",
		"hub.mode=subscribe&hub.verify_token=x&hub.verify_token=tok+en&hub.challenge=1":            "-",
		"hub.mode=subscribe&hub.verify_token=tok+en&hub.challenge=" + strings.Repeat("a", 1<<10+1): "-",
	} {
		res, err := ask(s, "GET", "/v1/sources/meta?"+query, "")
		if want == "-" {
			if err == nil || strings.Contains(err.Error(), "tok en") {
				t.Errorf("%.100s: %v %s", query, err, res)
			}
		} else if err != nil || string(res.Body()) != want {
			t.Errorf("%s: %v %s", query, err, res)
		}
	}
	if _, err := ask(s, "GET", "/v1/sources/none", ""); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("%v", err)
	}
	for _, tt := range []struct {
		source  string
		headers []string
		origin  string
		is      error
	}{
		{"azure", []string{"WebHook-Request-Origin: eventgrid.azure.net", "WebHook-Request-Callback: https://evil.example/", "WebHook-Request-Rate: 120"}, "eventgrid.azure.net", nil},
		{"azure", []string{"WebHook-Request-Origin: other.example"}, "", event.ErrDenied},
		{"azure", []string{"WebHook-Request-Origin: eventgrid.azure.net", "WebHook-Request-Origin: other.example"}, "", event.ErrInvalid},
		{"azure", nil, "", nil},
		{"all", []string{"WebHook-Request-Origin: other.example"}, "other.example", nil},
		{"none", []string{"WebHook-Request-Origin: other.example"}, "", event.ErrDenied},
		{"nowhere", []string{"WebHook-Request-Origin: other.example"}, "", event.ErrNotFound},
	} {
		res, err := ask(s, "OPTIONS", "/v1/sources/"+tt.source, "", tt.headers...)
		rate := string(res.Header.Peek("WebHook-Allowed-Rate"))
		if !errors.Is(err, tt.is) || string(res.Header.Peek("WebHook-Allowed-Origin")) != tt.origin || (rate != "") != (tt.origin != "") {
			t.Errorf("%s %v: %v %s", tt.source, tt.headers, err, res)
		}
	}
	if len(box.events) != 2 {
		t.Errorf("%d events are stored", len(box.events))
	}
}

// A function's verdict decides, and what is no verdict refuses.
func TestByFunction(t *testing.T) {
	var shown inbound
	var in *event.Invocation
	var failed error
	v, err := Function{Name: "judge"}.Open(func(_ context.Context, name string, ev *event.Event) (*event.Invocation, error) {
		shown = inbound{}
		if err := json.Unmarshal(ev.Data, &shown); err != nil || name != "judge" || ev.Type != "source.verify" || ev.Source != "/sources/s" {
			t.Errorf("%v %+v", err, ev)
		}
		return in, failed
	})
	if err != nil {
		t.Fatal(err)
	}
	results := func(verdicts ...string) *event.Invocation {
		in := &event.Invocation{}
		for _, x := range verdicts {
			in.Results = append(in.Results, event.Invoked{Verdict: x, Reason: "because"})
		}
		return in
	}
	for name, tt := range map[string]struct {
		in     *event.Invocation
		failed error
		is     error
	}{
		"pass":          {results("pass"), nil, nil},
		"emit":          {results("emit", "emit"), nil, nil},
		"reject":        {results("reject"), nil, event.ErrUnverified},
		"drop":          {results("drop"), nil, event.ErrUnverified},
		"one of two":    {results("pass", "reject"), nil, event.ErrUnverified},
		"nothing":       {results(), nil, event.ErrUnverified},
		"reply":         {&event.Invocation{Reply: &event.Reply{Status: 200}}, nil, event.ErrUnverified},
		"something new": {results("maybe"), nil, event.ErrUnverified},
		"retry":         {results("retry"), nil, event.ErrUnavailable},
		"trap":          {nil, event.Bad(event.ErrFunction, "trap", "unreachable"), event.ErrUnavailable},
		"too large":     {nil, event.Bad(event.ErrTooLarge, "", "the limit"), event.ErrTooLarge},
		"busy":          {nil, event.ErrUnavailable, event.ErrUnavailable},
	} {
		in, failed = tt.in, tt.failed
		if err := v.Verify(t.Context(), webhook("body", "X-A: 1"), func(string) {}); !errors.Is(err, tt.is) {
			t.Errorf("%s: %v; want %v", name, err, tt.is)
		}
	}
	in, failed = results("pass"), nil
	if err := v.Verify(t.Context(), webhook("\xff\x00", "X-A: 1", "X-B: 1", "x-a: 2", "X-A: 3"), nil); err != nil {
		t.Fatal(err)
	}
	if shown.Body != nil || string(shown.Base64) != "\xff\x00" || fmt.Sprint(shown.Headers) != "map[x-a:[1 2 3] x-b:1]" || shown.Method != "POST" {
		t.Errorf("%+v", shown)
	}
}

// A dry run tells each step, and why it ends.
func TestTry(t *testing.T) {
	box := &inbox{}
	s := newServer(t, box, Source{Source: event.Source{Name: "pay"}, Verifier: open(t, Stripe{Secret: "hidden-secret"})})
	call := func(in string) (trialDoc, error) {
		var ctx fasthttp.RequestCtx
		var req fasthttp.Request
		req.Header.SetMethod("POST")
		req.SetRequestURI("/v1/sources/pay/test")
		req.SetBodyString(in)
		ctx.Init(&req, nil, nil)
		err := s.ServeTest(&ctx, nil)
		var doc trialDoc
		if err == nil {
			err = json.Unmarshal(ctx.Response.Body(), &doc)
		}
		if strings.Contains(string(ctx.Response.Body()), "hidden-secret") {
			t.Errorf("the secret is told: %s", ctx.Response.Body())
		}
		return doc, err
	}
	request := func(sig, extra string) string {
		return fmt.Sprintf(`{"headers":[["Stripe-Signature",%q],["X-Id","evt_1"],["Content-Type","application/json"]],"body":"e30="%s}`, sig, extra)
	}
	sig := "t=" + stamp(0) + ",v1=" + hexOf("hidden-secret", stamp(0)+".{}")
	doc, err := call(request(sig, ""))
	if err != nil || !doc.Taken || len(doc.Steps) != 3 || doc.Topic != "in" || !strings.Contains(string(doc.Event), `"evt_1"`) || doc.Repeats == "" {
		t.Errorf("%v %+v", err, doc)
	}
	doc, err = call(request(sig, `,"time":"2026-01-01T00:00:00Z"`))
	if err != nil || doc.Taken || len(doc.Steps) != 2 || !strings.Contains(doc.Refused, "ago") || doc.Event != nil {
		t.Errorf("%v %+v", err, doc)
	}
	doc, err = call(request("t="+stamp(0)+",v1=00", ""))
	if err != nil || doc.Taken || len(doc.Steps) != 1 || strings.Contains(doc.Refused, hexOf("hidden-secret", stamp(0)+".{}")) {
		t.Errorf("%v %+v", err, doc)
	}
	for _, in := range []string{"", "{", `{"nope":1}`, `{"method":"PUT"}`} {
		if _, err := call(in); !errors.Is(err, event.ErrInvalid) {
			t.Errorf("%s: %v", in, err)
		}
	}
	if len(box.events) != 0 {
		t.Error("a dry run stores")
	}
	var ctx fasthttp.RequestCtx
	ctx.Init(&fasthttp.Request{}, nil, nil)
	if err := s.ServeList(&ctx, nil); err != nil || !strings.Contains(string(ctx.Response.Body()), `"scheme":""`) || !strings.Contains(string(ctx.Response.Body()), `"accepted":0`) {
		t.Errorf("%v %s", err, ctx.Response.Body())
	}
}

// What no signature covers makes no second event of a webhook: neither another media type nor another id. A sender who
// signs the same for different webhooks loses none by it.
func TestRepeatsUnderOtherHeaders(t *testing.T) {
	const evt = `{"id":"evt_1","event_id":"Ev1","type":"made"}`
	hmac := open(t, HMAC{Secret: "k", Header: "x-sig"})
	signed := []string{
		"Stripe-Signature: t=" + stamp(0) + ",v1=" + hexOf("k", stamp(0)+"."+evt),
		"X-Slack-Request-Timestamp: " + stamp(0), "X-Slack-Signature: v0=" + hexOf("k", "v0:"+stamp(0)+":"+evt),
		"X-Hub-Signature-256: sha256=" + hexOf("k", evt), "X-Sig: " + hexOf("k", evt),
		"X-Shopify-Hmac-Sha256: " + base64Of("k", evt),
	}
	for _, tt := range []struct {
		name   string
		source Source
		one    []string
		other  []string
		stored int
		json   bool // whatever the headers say
	}{
		{"stripe", Source{Verifier: open(t, Stripe{Secret: "k"})}, []string{"Content-Type: application/json"}, []string{"Content-Type: text/plain"}, 1, true},
		{"stripe first as text", Source{Verifier: open(t, Stripe{Secret: "k"})}, []string{"Content-Type: text/plain"}, []string{"Content-Type: application/json"}, 1, true},
		{"slack as a form", Source{Verifier: open(t, Slack{Secret: "k"})}, []string{"Content-Type: " + formType}, []string{"Content-Type: application/json"}, 1, true},
		{"hmac", Source{Verifier: hmac}, []string{"Content-Type: application/json"}, []string{"Content-Type: text/plain"}, 1, true},
		{"github under another id", Source{Verifier: open(t, GitHub{Secret: "k"})}, []string{"X-Id: 1"}, []string{"X-Id: 2"}, 1, true},
		{"hmac by id", Source{Source: event.Source{ByID: true}, Verifier: hmac}, []string{"X-Id: 1"}, []string{"X-Id: 2"}, 2, true},
		{"shopify under another id", Source{Verifier: open(t, Shopify{Secret: "k"})}, []string{"X-Id: 1", "X-Shopify-Topic: orders/create"}, []string{"X-Id: 2", "X-Shopify-Topic: orders/create"}, 1, true},
		{"shopify of another topic", Source{Verifier: open(t, Shopify{Secret: "k"})}, []string{"X-Id: 1", "X-Shopify-Topic: orders/create"}, []string{"X-Id: 2", "X-Shopify-Topic: orders/paid"}, 2, true},
	} {
		box := &inbox{}
		tt.source.Name = "s"
		s := newServer(t, box, tt.source)
		s.Set([]Source{{Source: tt.source.Source, Verifier: tt.source.Verifier, Fill: func(h *event.Hook, ev *event.Event) error {
			if ev.ID, _ = h.Header("x-id"); ev.ID == "" && h.JSON {
				ev.ID = "evt_1"
			}
			return nil
		}}})
		for _, more := range [][]string{tt.one, tt.other, tt.one} {
			if res, err := ask(s, "POST", "/v1/sources/s", evt, append(more, signed...)...); err != nil || res.StatusCode() != 200 {
				t.Errorf("%s: %v %s", tt.name, err, res)
			}
		}
		if len(box.events) != tt.stored {
			t.Errorf("%s: %d are stored; want %d", tt.name, len(box.events), tt.stored)
			continue
		}
		if ev := box.events[0]; tt.json && ev.DataContentType != "application/json" {
			t.Errorf("%s: it is %s", tt.name, ev.DataContentType)
		}
	}
	// What is no JSON is a form where the sender has forms, and what the sender says elsewhere.
	for body, want := range map[string]string{"a=b": formType, "[1]": "application/json", "{": "text/plain", "": "text/plain"} {
		h := &event.Hook{Body: []byte(body), Headers: []event.HookHeader{{Name: "Content-Type", Value: "text/plain"}}}
		if got := mediaType(h, event.Provided{JSON: true, Form: true}); got != want {
			t.Errorf("%q is %s; want %s", body, got, want)
		}
		if got := mediaType(h, event.Provided{}); got != "text/plain" {
			t.Errorf("%q is %s", body, got)
		}
	}
}

func TestTimesOfEvents(t *testing.T) {
	for text, want := range map[string]string{
		"1700000000": "2023-11-14T22:13:20Z", "1700000000.0": "2023-11-14T22:13:20Z", "1355517523.000005": "2012-12-14T20:38:43Z",
		"1700000000123": "2023-11-14T22:13:20.123Z", "2026-01-31T00:00:00Z": "2026-01-31T00:00:00Z",
		"": "", ".": "", ".5": "", "..": "", "1.": "", "1.2.3": "", "1.x": "", "-1": "", "yesterday": "", "17000000000000": "",
	} {
		if got := eventTime(text); got != want {
			t.Errorf("%q is %q; want %q", text, got, want)
		}
	}
}
