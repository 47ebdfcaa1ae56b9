package egress

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func parse(t *testing.T, text string, files map[string]string) (*Policy, error) {
	t.Helper()
	return ParsePolicy("conf/egress.yaml", []byte(text), func(path string) ([]byte, error) {
		if b, ok := files[path]; ok {
			return []byte(b), nil
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}, func(name string) (string, bool) {
		v, ok := map[string]string{"PROXY_PASSWORD": "s3cret-canary"}[name]
		return v, ok
	})
}

func withPolicy(t *testing.T, text string, hosts addrs) *Dialer {
	t.Helper()
	p, err := parse(t, text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return newDialer(t, Options{Policy: p, Resolver: hosts})
}

const lists = `version: 1
default: deny
allow:
  - hosts: [hooks.example.com, "*.partner.example"]
    ports: [443, 8000-8010]
  - cidrs: [10.1.0.0/16, 2001:db8::/32]
  - hosts: db.corp.example
    cidrs: 10.2.0.0/16
deny:
  - hosts: ["*.bad.partner.example"]
  - cidrs: [10.1.9.0/24, 93.184.0.0/16]
  - ports: [25]
`

// Deny stands above allow, a rule's parts must all hold, a host's rule lifts no special address, and each refusal says
// which rule it was.
func TestPolicyLists(t *testing.T) {
	hosts := addrs{
		"hooks.example.com": {ip("8.8.8.8")}, "HOOKS.example.com.": {ip("8.8.8.8")}, "other.example.com": {ip("8.8.8.8")}, "a.partner.example": {ip("8.8.4.4")}, "partner.example": {ip("8.8.4.4")},
		"x.bad.partner.example": {ip("8.8.4.4")}, "lo.partner.example": {ip("127.0.0.1")}, "db.corp.example": {ip("10.2.0.1")}, "web.corp.example": {ip("10.2.0.1")},
		"lan.example": {ip("10.1.2.3")}, "denied.partner.example": {ip("93.184.1.1")},
	}
	d := withPolicy(t, lists, hosts)
	for _, c := range []struct{ url, reason, want string }{
		{"https://hooks.example.com/x", "", ""},
		{"https://HOOKS.example.com./x", "", ""},
		{"https://hooks.example.com:8010/x", "", ""},
		{"https://hooks.example.com:8011/x", "unlisted", "hooks.example.com has the address 8.8.8.8, port 8011 (in no rule of allow of conf/egress.yaml, where only those count): not allowed as a target; its operator decides"},
		{"http://other.example.com/", "unlisted", "other.example.com has the address 8.8.8.8, port 80 (in no rule of allow"},
		{"https://a.partner.example/", "", ""},
		{"https://partner.example/", "unlisted", "no rule of allow"},
		{"https://x.bad.partner.example/", "denied", "x.bad.partner.example, as *.bad.partner.example (denied by deny[0] at conf/egress.yaml:10:5): not allowed as a target; its operator decides"},
		{"https://lo.partner.example/", "special", "lo.partner.example has the address 127.0.0.1, in 127.0.0.0/8 (Loopback, RFC 1122 section 3.2.1.3): not allowed as a target; its range under allow in conf/egress.yaml allows it"},
		{"https://denied.partner.example/", "denied", "denied.partner.example has the address 93.184.1.1, in 93.184.0.0/16 (denied by deny[1] at conf/egress.yaml:11:5)"},
		{"http://lan.example/", "", ""},
		{"http://10.1.2.3/", "", ""},
		{"http://[::ffff:10.1.2.3]/", "", ""},
		{"http://10.1.9.1/", "denied", "10.1.9.1, in 10.1.9.0/24 (denied by deny[1]"},
		{"http://10.1.2.3:25/", "denied", "10.1.2.3, port 25 (denied by deny[2] at conf/egress.yaml:12:5)"},
		{"http://10.2.0.1/", "special", "10.0.0.0/8 (Private-Use"},
		{"http://db.corp.example/", "", ""},
		{"http://web.corp.example/", "special", "web.corp.example has the address 10.2.0.1"},
		{"http://[2001:db8::5]/", "", ""},
		{"http://[64:ff9b::10.1.9.1]/", "denied", "10.1.9.0/24"},
	} {
		j, err := d.Judge(t.Context(), c.url)
		if err != nil {
			t.Fatalf("%s: %v", c.url, err)
		}
		if j.Allowed != (c.reason == "") || j.Reason != c.reason || !strings.Contains(j.Why, c.want) {
			t.Errorf("%s: allowed %t, reason %q, why:\n%s\nwant\n%s", c.url, j.Allowed, j.Reason, j.Why, c.want)
		}
	}
	for reason := range map[string]bool{"special": true, "denied": true, "unlisted": true} {
		before := d.Refusals()[reason]
		_, err := d.DialContext(t.Context(), "tcp", map[string]string{"special": "lo.partner.example:443", "denied": "10.1.9.1:80", "unlisted": "partner.example:80"}[reason])
		if !errors.Is(err, ErrBlocked) || d.Refusals()[reason] != before+1 {
			t.Errorf("%s: %v, counted %d", reason, err, d.Refusals()[reason]-before)
		}
	}
	if _, err := d.DialContext(t.Context(), "tcp", "0x7f.1:80"); err == nil || d.Refusals()["notation"] != 1 {
		t.Errorf("notation: %v, %v", err, d.Refusals())
	}
}

// What is refused by its name is not looked up: the question itself would leave the network.
func TestDeniedNameIsNotLookedUp(t *testing.T) {
	p, err := parse(t, "version: 1\ndefault: deny\nallow: [{hosts: [\"*.partner.example\"]}]\ndeny: [{hosts: [\"*.bad.partner.example\"]}, {ports: [25]}]\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	d := newDialer(t, Options{Policy: p, Resolver: &flip{}})
	for _, addr := range []string{"secret.bad.partner.example:443", "secret.elsewhere.example:443", "a.partner.example:25"} {
		if _, err := d.DialContext(t.Context(), "tcp", addr); !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if n := d.o.Resolver.(*flip).lookups.Load(); n != 0 {
		t.Errorf("%d lookups", n)
	}
}

// A wide range of allow means what is public in it: it lifts no ban that it does not name.
func TestAWideRangeLiftsNoBan(t *testing.T) {
	d := withPolicy(t, "version: 1\ndefault: deny\nallow: [{cidrs: [0.0.0.0/0, \"::/0\"], ports: [443]}, {cidrs: [10.1.0.0/16, \"64:ff9b::a02:0/112\", \"2002:a03::/32\"]}]\n", addrs{})
	for addr, ok := range map[string]bool{"https://8.8.8.8/": true, "https://127.0.0.1/": false, "https://169.254.169.254/": false, "https://[::1]/": false, "https://[64:ff9b::7f00:1]/": false,
		"https://[2002:7f00:1::1]/": false, "https://[2606:4700::1111]/": true, "http://10.1.2.3/": true, "http://10.2.2.3/": false, "http://[64:ff9b::a02:1]/": true, "http://[2002:a03:1::1]/": true} {
		if j, err := d.Judge(t.Context(), addr); err != nil || j.Allowed != ok {
			t.Errorf("%s: %+v, %v; want %t", addr, j, err, ok)
		}
	}
}

// The operator's own targets may lie anywhere but where it is denied.
func TestOperator(t *testing.T) {
	d := withPolicy(t, lists, addrs{}).Operator()
	for addr, ok := range map[string]bool{"http://127.0.0.1/": true, "http://192.168.1.1/": true, "http://10.1.9.1/": false, "http://127.0.0.1:25/": false} {
		if j, err := d.Judge(t.Context(), addr); err != nil || j.Allowed != ok {
			t.Errorf("%s: %+v, %v", addr, j, err)
		}
	}
}

func TestPolicyFileErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "conf/egress.yaml:1:1: is empty",
		"allow: []\n":                    "conf/egress.yaml:1:1: version is missing",
		"version: 2\n":                   `conf/egress.yaml:1:10: version is "2"; this build reads 1`,
		"version: 1\ndefault: maybe\n":   `conf/egress.yaml:2:10: default is "maybe"; want allow or deny`,
		"version: 1\nalow: []\n":         `conf/egress.yaml:2:1: egress: unknown key "alow"; want allow, default, deny, privateTargets, proxy, tls, version`,
		"version: 1\nversion: 1\n":       "given twice",
		"version: 1\n  x: [\n":           "conf/egress.yaml:2",
		"version: 1\ndeny: [{}]\n":       "conf/egress.yaml:2:8: deny[0] names nothing",
		"version: 1\ndeny: {hosts: a}\n": "conf/egress.yaml:2:7: deny: want a list of rules",
		"version: 1\ndeny: [{cidrs: [10.1.0.0/8]}]\n":                                                  "conf/egress.yaml:2:17: deny[0].cidrs: 10.1.0.0/8 has bits beyond its length; did you mean 10.0.0.0/8 or 10.1.0.0/32?",
		"version: 1\ndeny: [{cidrs: [\"::ffff:10.0.0.0/104\"]}]\n":                                     "IPv4 within IPv6",
		"version: 1\ndeny: [{cidrs: [ten]}]\n":                                                         `"ten" is not a range of addresses`,
		"version: 1\nallow: [{cidrs: [\"fe80::1%eth0\"]}]\n":                                           `"fe80::1%eth0" has a zone`,
		"version: 1\nallow: [{hosts: [], ports: [443]}]\n":                                             "conf/egress.yaml:2:17: allow[0].hosts is an empty list; name something, or leave the key out",
		"version: 1\nallow: [{ports: [443], cidrs: }]\n":                                               "allow[0].cidrs is empty; name something",
		"version: 1\n---\ndefault: deny\n":                                                             "a second document (---) begins here",
		"version: 1\ntls: {minVersion: [1.3]}\n":                                                       "tls.minVersion: want a text",
		"version: 1\ntls: {pins: {a.example: [sha256/x], a.example: [sha256/y]}}\n":                    "a.example is given twice",
		"version: 1\ndeny: [{hosts: [Example.com]}]\n":                                                 `write it in lower case`,
		"version: 1\ndeny: [{hosts: [10.0.0.1]}]\n":                                                    "is an address; give it under cidrs",
		"version: 1\ndeny: [{hosts: [\"a.*.example\"]}]\n":                                             "has other than letters",
		"version: 1\ndeny: [{ports: [0]}]\n":                                                           "want a port from 1 to 65535",
		"version: 1\ndeny: [{ports: [90-80]}]\n":                                                       "want a port",
		"version: 1\ndeny: &a []\nallow: *a\n":                                                         "conf/egress.yaml:2:7: has an anchor or alias",
		"version: 1\nproxy: {}\n":                                                                      "proxy.url is missing",
		"version: 1\nproxy: {url: \"ftp://p\"}\n":                                                      `conf/egress.yaml:2:14: proxy.url: has the scheme "ftp"`,
		"version: 1\nproxy: {url: \"http://p\", password: \"${env:NOPE}\"}\n":                          "the environment has no variable \"NOPE\"",
		"version: 1\nproxy: {url: \"http://p\", password: \"${env:PROXY_PASSWORD}\"}\n":                "has a password and no user",
		"version: 1\nproxy: {url: \"http://p\", user: \"a:b\", password: \"${env:PROXY_PASSWORD}\"}\n": "colon",
		"version: 1\ntls: {minVersion: \"1.1\"}\n":                                                     "conf/egress.yaml:2:19: tls.minVersion: is \"1.1\"; want 1.2 or 1.3",
		"version: 1\ntls: {ca: [missing.pem]}\n":                                                       "conf/egress.yaml:2:12: tls.ca: open conf/missing.pem",
		"version: 1\ntls: {ca: [bad.pem]}\n":                                                           "conf/egress.yaml:2:12: tls.ca[0]: has no certificate in PEM",
		"version: 1\ntls: {certificate: bad.pem}\n":                                                    "is given without privateKey",
		"version: 1\ntls: {pins: {a.example: [sha256/x]}}\n":                                           `conf/egress.yaml:2:26: tls.pins: pin "sha256/x"`,
	} {
		_, err := parse(t, text, map[string]string{"conf/bad.pem": "not a certificate"})
		if !errors.Is(err, event.ErrInvalid) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q:\n%v\nwant\n%s", text, err, want)
		}
		if strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("%q: the error shows a secret: %v", text, err)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add(lists)
	f.Add("version: 1\nproxy: {url: \"http://u:p@p:1\", resolve: proxy, except: [{hosts: [a]}]}\ntls: {minVersion: \"1.3\", pins: {\"*.a\": [sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parse(t, text, nil)
		if err != nil {
			return
		}
		d, err := New(Options{Policy: p})
		if err != nil {
			t.Fatalf("a policy that was read is refused: %v", err)
		}
		if !p.Private && len(p.Allow) == 0 && checkAddr(d, ip("127.0.0.1")) == nil {
			t.Fatal("loopback is allowed")
		}
	})
}

// Another policy holds at once: what it does not allow is closed while it is in use, and an idle connection is not used
// again whoever it belongs to.
func TestPolicyChangesUnderConnections(t *testing.T) {
	port, _ := trap(t)
	d := newDialer(t, Options{AllowPrivate: true, Resolver: addrs{"a.example": {ip("127.0.0.1")}, "b.example": {ip("127.0.0.1")}}})
	dial := func(host string) *Conn {
		t.Helper()
		c, err := d.DialContext(t.Context(), "tcp", host+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		return c.(*Conn)
	}
	a, b, idle := dial("a.example"), dial("b.example"), dial("b.example")
	if !idle.Idle() || !idle.Busy() || !idle.Idle() {
		t.Fatal("an idle connection cannot be used again")
	}
	if err := d.SetPolicy(&Policy{Deny: []Rule{{}}}); err == nil {
		t.Error("a rule that names nothing is taken")
	}
	if !idle.Busy() || !idle.Idle() {
		t.Error("a policy that was refused changed something")
	}
	if err := d.SetPolicy(&Policy{Deny: []Rule{{Hosts: []string{"a.example"}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("to what is denied now: %v", err)
	}
	if err := b.SetDeadline(time.Time{}); err != nil {
		t.Errorf("to what is allowed still: %v", err)
	}
	if idle.Busy() {
		t.Error("an idle connection of before is used again")
	}
	if _, err := d.DialContext(t.Context(), "tcp", "a.example:"+port); !errors.Is(err, ErrBlocked) {
		t.Error(err)
	}
	for _, c := range []*Conn{a, b, idle} {
		_ = c.Close()
	}
	if n := len(d.slots.hosts); n != 0 {
		t.Errorf("%d hosts are kept", n)
	}
}
