package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/millrace/millrace/engine/egress"
)

// What the operator named for rules is a host and a port: another port of that host is a target like any, so that a
// redirect does not reach what else listens there.
func TestRulesNameAHostAndAPort(t *testing.T) {
	ok := func(http.ResponseWriter, *http.Request) {}
	named, other := httptest.NewServer(http.HandlerFunc(ok)), httptest.NewServer(http.HandlerFunc(ok))
	defer named.Close()
	defer other.Close()
	dialer, err := egress.New(egress.Options{Policy: &egress.Policy{}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(named.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: &namedTransport{named: u, d: dialer}}
	res, err := c.Get(named.URL)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res, err := c.Get(other.URL); err == nil || !errors.Is(err, egress.ErrBlocked) {
		t.Errorf("another port: %v, %v", res, err)
	}
	for text, want := range map[string]string{"https://a": "443", "http://a": "80", "https://a:8443": "8443", "https://[::1]:443": "443"} {
		if u, err := url.Parse(text); err != nil || portOf(u) != want {
			t.Errorf("%s: %v, %s", text, err, portOf(u))
		}
	}
}
