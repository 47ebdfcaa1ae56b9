package access

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

func TestPolicyFaults(t *testing.T) {
	const jwt = "version: 1\njwt:\n  corp:\n    issuer: https://i/\n    audience: a\n"
	files := map[string]string{"keys.json": keysForTests().jwks, "short": "secret", "html.json": "<html>"}
	for _, c := range []struct{ text, want string }{
		{"", `access.yaml: there is nothing in it; a policy has at least "version: 1"`},
		{"roles: {}", `access.yaml:1:1: has no version; write version: 1`},
		{"version: 2", `access.yaml:1:10: is "2"; this build reads version 1`},
		{"- 1", `access.yaml:1:1: is a list; a policy is a mapping`},
		{"version: 1\nrole: {}", `access.yaml:2:1: "role" is no key of a policy; did you mean roles?`},
		{"version: 1\nversion: 1", `access.yaml:2:1: key "version" is there twice: here and at access.yaml:1:1`},
		{"version: 1\n---\nversion: 1", `access.yaml:2:1: a second document (---) begins here`},
		{"version: 1\nroles: [", `access.yaml:2:1: not YAML:`},
		{"version: 1\nroles: {a: &x [], b: *x}", `access.yaml:2:22: aliases (*name) are not read in a policy`},
		{"version: 1\nroles: {a: [{allow: [publish], topics: [*.eu]}]}", `not YAML`},
		{"version: 1\nroles:\n  a:\n    - {allow: [publsh], topics: [x]}", `access.yaml:4:16: "publsh" is no action; did you mean publish?; the actions are publish, read, consume, operate, manage, deploy, invoke, admin`},
		{"version: 1\nroles: {admin: []}", `access.yaml:2:9: role admin is built in`},
		{"version: 1\nroles: {a: {allow: [publish]}}", `access.yaml:2:12: is a mapping; a role is a list of grants`},
		{"version: 1\nroles: {a b: []}", `access.yaml:2:9: "a b" is no name of a role`},
		{"version: 1\nroles: {a: [{topics: [x]}]}", `access.yaml:2:13: allows nothing`},
		{"version: 1\nroles: {a: [{allow: [publish]}]}", `access.yaml:2:21: publish is allowed on nothing here; name topics`},
		{"version: 1\nroles: {a: [{allow: [read]}]}", `name topics or subscriptions or functions`},
		{"version: 1\nroles: {a: [{allow: [publish], functions: [x], topics: [x]}]}", `access.yaml:2:43: publish say nothing about functions, for which there are read, deploy, invoke`},
		{"version: 1\nroles: {a: [{allow: [publish], topics: [a/b]}]}", `access.yaml:2:41: pattern "a/b" has '/' at 1`},
		{"version: 1\nroles: {a: [{allow: [publish], topics: ['']}]}", `pattern "" is empty`},
		{"version: 1\nroles: {a: [{allow: [publish], topics: ['*********']}]}", `has 9 stars; at most 8 are allowed`},
		{"version: 1\nroles: {a: [{allow: [publish], topic: [x]}]}", `"topic" is no key of a grant; did you mean topics?`},
		{"version: 1\nroles: {a: [{allow: [publish], topics: ['${env:NOPE}']}]}", `access.yaml:2:41: environment variable "NOPE" is not set`},
		{"version: 1\nroles: {a: [{allow: [publish], topics: ['${file:nope}']}]}", `file "nope" cannot be read: no such file`},
		{"version: 1\nroles: {a: [{allow: [publish], topics: ['${NOPE}']}]}", `${NOPE} is no reference`},
		{"version: 1\nlimits: {raeder: {rate: 1/s}}", `access.yaml:2:10: "raeder" is no role; did you mean reader?`},
		{"version: 1\nlimits: {reader: {rate: fast}}", `access.yaml:2:25: is "fast"; want a number a second`},
		{"version: 1\nlimits: {reader: {burst: 5}}", `is a burst of no rate`},
		{"version: 1\nlimits: {reader: {connections: 0}}", `want a whole number from 1 to 1000000`},
		{jwt + "    roles: [reader]", `access.yaml:4:5: needs either jwks: (a URL, or a file) or secret: (for HS256)`},
		{jwt + "    roles: [reader]\n    jwks: keys.json\n    secret: ${env:SHARED}", `needs either`},
		{jwt + "    roles: [reader]\n    jwks: http://login.example.com/keys", `access.yaml:7:11: is not https: who can change the answer can make tokens`},
		{jwt + "    roles: [reader]\n    jwks: ftp://login.example.com/keys", `is not https`},
		{jwt + "    roles: [reader]\n    jwks: https://u:p@login.example.com/keys", `is no URL such as`},
		{jwt + "    roles: [reader]\n    jwks: nope.json", `file "nope.json" cannot be read`},
		{jwt + "    roles: [reader]\n    jwks: html.json", `this is no JWK Set`},
		{jwt + "    roles: [reader]\n    secret: plaintext-plaintext-plaintext", `access.yaml:7:13: a secret is not written into a policy`},
		{jwt + "    roles: [reader]\n    secret: ${env:SHARED}x", `a secret is not written into a policy`},
		{jwt + "    roles: [reader]\n    secret: ${file:short}", `the secret has 6 bytes; HS256 needs at least 32`},
		{jwt + "    roles: [reader]\n    secret: ${env:SHARED}\n    algorithms: [RS256]", `RS256 does not go with a secret`},
		{jwt + "    roles: [reader]\n    jwks: keys.json\n    algorithms: [HS256]", `HS256 does not go with a JWKS`},
		{jwt + "    roles: [reader]\n    jwks: keys.json\n    algorithms: [none]", `"none" is no algorithm`},
		{jwt + "    roles: [reader]\n    jwks: keys.json\n    leeway: 1h", `want a duration from 0s to 10m0s`},
		{jwt + "    jwks: keys.json", `has no roles`},
		{jwt + "    jwks: keys.json\n    roles: {map: {}}", `has no claim`},
		{jwt + "    jwks: keys.json\n    roles: {claim: r, map: {ops: [amdin]}}", `"amdin" is no role here; did you mean admin?`},
		{jwt + "    jwks: keys.json\n    roles: [reader]\n    tenant: a b", `"a b" is no prefix of names`},
		{"version: 1\njwt: {corp: {issuer: i, jwks: keys.json, roles: [reader]}}", `has no audience`},
		{"version: 1\njwt: {corp: {audience: a, jwks: keys.json, roles: [reader]}}", `has no issuer`},
		{"version: 1\njwt:\n  a: &a {issuer: i, audience: [x, y], jwks: keys.json, roles: [reader]}\n  b: {issuer: i, audience: y, jwks: keys.json, roles: [reader]}", `access.yaml:4:3: has the issuer and an audience of a too`},
		{"version: 1\ncertificates: {}", `is a mapping; certificates are a list`},
		{"version: 1\ncertificates: [{roles: [reader]}]", `fits no certificate`},
		{"version: 1\ncertificates: [{subject: x}]", `has no roles`},
		{"version: 1\nroles: " + strings.Repeat("[", 30) + strings.Repeat("]", 30), `over 16 deep`},
		{"version: 1\nroles: \"\xff\"", `this is not UTF-8`},
		{strings.Repeat("a", maxPolicy+1), `at most 1048576 are allowed`},
		{strings.Repeat("[", maxMarks+1), `over 200000 lines`},
	} {
		_, err := ParsePolicy("access.yaml", []byte(c.text), testFiles(files), testEnv)
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, event.ErrInvalid) {
			t.Errorf("%.200s\n\t%v\n\twant %s", c.text, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), testSecret) || strings.Contains(err.Error(), "plaintext")) {
			t.Errorf("%v holds a secret", err)
		}
	}
	_, err := ParsePolicy("access.yaml", []byte("version: 3\nroles: {a: [{allow: [x]}]}\nlimits: {b: {}}\n"), nil, nil)
	var f *event.Faults
	if !errors.As(err, &f) || len(f.List) != 3 {
		t.Errorf("not everything wrong at once: %v", err)
	}
}

// The example of the documents is read, does what the page says, and prints as it says.
func TestDocumentedPolicy(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "access.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind, first string) string {
		for _, m := range regexp.MustCompile("(?s)```"+kind+"\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
			if strings.HasPrefix(m[1], first) {
				return m[1]
			}
		}
		t.Fatalf("docs/access.md has no %s that begins with %q", kind, first)
		return ""
	}
	p := parse(t, block("yaml", "# access.yaml"), map[string]string{"keys.json": keysForTests().jwks})
	var got bytes.Buffer
	if err := p.Table(&got); err != nil {
		t.Fatal(err)
	}
	if want := block("text", "ROLE"); trimRight(got.String()) != trimRight(want) {
		t.Errorf("the table is\n%s\nand docs/access.md has\n%s", got.String(), want)
	}
	q := as(p, "", "orders-writer")
	for _, c := range []struct {
		a    Action
		k    Kind
		name string
		want string
	}{
		{Publish, Topic, "orders.eu", "yes"}, {Read, Topic, "orders.eu", "no"}, {Publish, Topic, "invoices", "hidden"},
		{Consume, Subscription, "workers", "yes"}, {Operate, Subscription, "workers", "no"}, {Invoke, Function, "redact", "hidden"},
	} {
		if got := verdict(t, q, c.a, c.k, c.name); got != c.want {
			t.Errorf("%s %s %s: %s, want %s", c.a, c.k, c.name, got, c.want)
		}
	}
	for _, text := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if strings.HasPrefix(text[1], "jwt:") || strings.HasPrefix(text[1], "certificates:") || strings.HasPrefix(text[1], "limits:") {
			parse(t, "version: 1\n"+text[1], map[string]string{"keys.json": keysForTests().jwks})
		}
	}
}

func trimRight(s string) string {
	return regexp.MustCompile(`(?m) +$`).ReplaceAllString(strings.TrimSpace(s), "")
}

func TestExplain(t *testing.T) {
	p := parse(t, testPolicy, map[string]string{"keys.json": keysForTests().jwks})
	for _, c := range []struct {
		tenant, role string
		a            Action
		k            Kind
		name, want   string
	}{
		{"", "writer", Publish, Topic, "orders.eu", "role writer (access.yaml:4:12) allows publish on topics orders.*"},
		{"", "writer", Read, Topic, "orders.eu", `no role of key:x (writer) allows read on topic "orders.eu"`},
		{"", "reader", Read, Topic, "t", "role reader allows read on topics *"},
		{"acme.", "admin", Read, Topic, "acme.t", "key:x may do everything within acme."},
		{"acme.", "admin", Read, Topic, "t", `"t" does not begin with acme., the tenant of key:x`},
		{"acme.", "admin", Admin, Router, "", "key:x is of tenant acme.; the whole router shows every tenant's"},
		{"", "reader", Admin, Router, "", "no role of key:x (reader) allows admin on router"},
		{"", "reader", Consume, Topic, "t", "consume is nothing that is done to a topic, but by who may do everything; there are publish, read, operate, manage"},
		{"", "reader", "publsh", Topic, "t", `"publsh" is no action; did you mean publish?; the actions are publish, read, consume, operate, manage, deploy, invoke, admin`},
	} {
		q := as(p, c.tenant, c.role)
		e := q.Explain(c.a, c.k, c.name)
		if e.Why != c.want || e.Allowed != (q.Check(c.a, c.k, c.name) == nil) || e.Seen != q.Sees(c.k, c.name) {
			t.Errorf("%s %s %s %q: %+v", c.role, c.a, c.k, c.name, e)
		}
	}
}
