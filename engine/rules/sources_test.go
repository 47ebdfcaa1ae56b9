package rules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// signer is a scheme like those that this build has.
type signer struct {
	Secret  string   `yaml:"secret"`
	Secrets []string `yaml:"secrets"`
	Header  string   `yaml:"header"`
}

func (o signer) WithDefaults() signer {
	if o.Header == "" {
		o.Header = "x-signature"
	}
	return o
}

func (o signer) Validate() error {
	if o.Secret == "" && len(o.Secrets) == 0 {
		return event.Invalid("secret", "missing; want the secret")
	}
	if strings.HasPrefix(o.Secret, "bad") {
		return event.Invalid("secret", fmt.Sprintf("is %q, which is bad", o.Secret))
	}
	return nil
}

type verifier struct {
	event.Provided
	o any
}

func (v verifier) Provides() event.Provided { return v.Provided }

func (v verifier) Verify(context.Context, *event.Hook, func(string)) error { return nil }

type judge struct {
	Name string `yaml:"name" rules:"required"`
}

func testSchemes() map[string]SchemeKind {
	return map[string]SchemeKind{
		"github": SchemeOf("GitHub's.", func(o signer) (event.Verifier, error) {
			return verifier{event.Provided{Type: `"github." + headers["x-github-event"]`, ID: `headers["x-github-delivery"]`}, o}, nil
		}),
		"none":     SchemeOf("Nothing.", func(o struct{}) (event.Verifier, error) { return verifier{o: o}, nil }),
		"function": SchemeOf("A verdict.", func(o judge) (event.Verifier, error) { return verifier{event.Provided{Function: o.Name}, o}, nil }),
	}
}

func TestSources(t *testing.T) {
	const text = `version: 1
functions: {judge: {wasm: pushed}}
sources:
  github:
    topic: code
    verify: {github: {secret: "${env:API_TOKEN}"}}
  own:
    topic: code
    verify: {github: {secrets: [literal-secret, "${env:HOOK_SECRET}"], header: x-other}}
    url: https://hooks.example.com/in
    type: '"own." + data.kind'
    subject: query["tenant"]
    key: data.customer
    id: headers["x-signed"]
    time: data.at
    extensions: [X-Request-Id, x-trace]
    form: raw
    repeats: id
    origins: [eventgrid.azure.net]
  open: {topic: open, verify: none}
  judged: {topic: open, verify: {function: {name: judge}}}
`
	s, err := ParseBytes("r.yaml", []byte(text), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	own := event.Owner{File: "r.yaml"}
	want := []event.Source{
		{Name: "github", Topic: "code", Scheme: "github"},
		{Name: "own", Topic: "code", Scheme: "github", URL: "https://hooks.example.com/in", Headers: []string{"x-request-id", "x-trace"}, RawForm: true, Origins: []string{"eventgrid.azure.net"}, ByID: true},
		{Name: "open", Topic: "open", Scheme: "none"},
		{Name: "judged", Topic: "open", Scheme: "function"},
	}
	for i, x := range s.Hooks {
		own.Line = x.Owner.Line
		want[i].Owner = own
		if !reflect.DeepEqual(x.Source, want[i]) {
			t.Errorf("got %+v\nwant %+v", x.Source, want[i])
		}
	}
	if o := s.Hooks[1].Verifier.(verifier).o.(signer); !reflect.DeepEqual(o.Secrets, []string{"literal-secret", "whsec_c2VjcmV0"}) {
		t.Errorf("%v", o)
	}
	if len(s.Topics) != 2 || !s.Topics[0].Implied || s.Topics[0].Name != "code" {
		t.Errorf("topics %v", s.Topics)
	}
	var ev event.Event
	h := &event.Hook{Query: "tenant=t1", JSON: true, Data: []byte(`{"kind":"made","customer":7,"at":1700000000}`), Headers: []event.HookHeader{{Name: "X-Signed", Value: "i1"}}}
	if err := s.Hooks[1].Fill(h, &ev); err != nil || ev.Type != "own.made" || ev.Subject != "t1" || ev.PartitionKey != "7" || ev.ID != "i1" || ev.Time != "1700000000" {
		t.Errorf("%+v %v", ev, err)
	}
	h.Headers = append(h.Headers, event.HookHeader{Name: "x-signed", Value: "i2"})
	if err := s.Hooks[1].Fill(h, &ev); !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "x-signed: the header is there 2 times") {
		t.Errorf("%v", err)
	}
	for _, effective := range []bool{false, true} {
		out, err := s.Show(effective)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"literal-secret", "tok-123456", "whsec_c2VjcmV0"} {
			if strings.Contains(string(out), secret) {
				t.Errorf("%s is shown in\n%s", secret, out)
			}
		}
		for _, want := range []string{"${env:API_TOKEN}", "extensions: [", "url: https://hooks.example.com/in"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%q is not in\n%s", want, out)
			}
		}
		if effective != strings.Contains(string(out), `header: x-signature`) || effective != strings.Contains(string(out), `id: headers["x-github-delivery"]`) {
			t.Errorf("effective %t\n%s", effective, out)
		}
		if again, err := ParseBytes("r.yaml", []byte(strings.ReplaceAll(string(out), "'***'", "literal-secret")), testOptions()); err != nil || len(again.Hooks) != 4 {
			t.Errorf("what is shown is refused: %v\n%s", err, out)
		}
	}
	if !json.Valid(s.Hooks[1].Effective) {
		t.Errorf("%s", s.Hooks[1].Effective)
	}
}

// A changed secret is a change, and is not told.
func TestSourcesDiffer(t *testing.T) {
	with := func(secret, text string) *Set {
		o := testOptions()
		o.Getenv = func(string) (string, bool) { return secret, true }
		s, err := ParseBytes("r.yaml", []byte("version: 1\nsources: {github: {topic: code, verify: {github: {secret: \"${env:S}\"}}"+text+"}}\n"), o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	changes := Diff(with("secret-one", ""), with("secret-two", ", form: raw"))
	if len(changes) != 1 || changes[0].Kind != "source" || changes[0].Change != Changed || len(changes[0].Keys) != 2 {
		t.Fatalf("%+v", changes)
	}
	if doc := fmt.Sprintf("%+v", changes); strings.Contains(doc, "secret-one") || strings.Contains(doc, "secret-two") {
		t.Errorf("%s", doc)
	}
	if changes := Diff(with("secret-one", ""), with("secret-one", ", form: json")); len(changes) != 0 {
		t.Errorf("%+v", changes)
	}
	if changes := Diff(with("secret-one", ""), nil); len(changes) != 1 || changes[0].Change != Removed {
		t.Errorf("%+v", changes)
	}
}

func TestBadSources(t *testing.T) {
	const text = `version: 1
sources:
  a: {verify: {github: {secret: s3cret99}}}
  b: {topic: code}
  c: {topic: code, verify: {githb: {secret: s3cret99}}}
  d: {topic: code, verify: {github: {}, none: {}}}
  e: {topic: code, verify: {github: {secret: bad-s3cret99}}}
  f: {topic: code, verify: {github: {}}}
  g: {topic: code, verify: none, type: data.a ==}
  h: {topic: code, verify: none, type: 'body.a'}
  i: {topic: code, verify: none, url: "ftp://x"}
  j: {topic: code, verify: none, url: "https://x/y?z=1"}
  k: {topic: code, verify: none, form: xml}
  l: {topic: code, verify: none, extensions: [x-id, X_ID]}
  m: {topic: code, verify: none, extensions: [time]}
  n: {topic: code, verify: {function: {name: nobody}}}
  o: {topic: ../x, verify: none}
  p: {topic: code, verify: none, verfy: none}
  Q: {topic: code, verify: none}
  q: {topic: code, verify: none}
  "a b": {topic: code, verify: none}
  r: {topic: Code, verify: none}
  s: {topic: code, verify: [none]}
  t: {topic: code, verify: github}
  u: {topic: code, verify: none, origins: all}
  v: [topic]
`
	_, err := ParseBytes("r.yaml", []byte(text), testOptions())
	if err == nil {
		t.Fatal("taken")
	}
	if strings.Contains(err.Error(), "s3cret99") {
		t.Errorf("a secret is told: %v", err)
	}
	for _, want := range []string{
		`r.yaml:3:6: sources.a.topic: missing; want the topic`,
		`r.yaml:4:6: sources.b.verify: missing; want how its webhooks are verified: one of function, github, none; none has to be said`,
		`r.yaml:5:29: unknown scheme "githb"; did you mean "github"? allowed: function, github, none`,
		`r.yaml:6:28: sources.d.verify: is 2 schemes; want exactly one of function, github, none`,
		`sources.e.verify.github.secret: is "***", which is bad`,
		`sources.f.verify.github.secret: missing; want the secret`,
		`sources.g.type: `,
		`r.yaml:10:41: sources.h.type: unknown name "body"`,
		`sources.i.url: is "ftp://x"; want the URL that the sender calls`,
		`sources.j.url: is "https://x/y?z=1"; want the URL`,
		`sources.k.form: is "xml"; allowed: json, raw`,
		`sources.l.extensions: "xid": is given twice`,
		`sources.m.extensions: "time": this name cannot be an extension`,
		`sources.n.verify.function.name: unknown function "nobody"`,
		`sources.o.topic: `,
		`unknown key "verfy" in sources.p; did you mean "verify"?`,
		`source "q" differs from "Q"`,
		`source name "a b" has ' ' at 1`,
		`topic "Code" differs from "code"`,
		`sources.s.verify: is a list; want exactly one of`,
		`sources.t.verify.secret: missing; want the secret`,
		`sources.u.origins: is a single value; want a list`,
		`sources.v: is a list; want a mapping with topic, verify`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
}
