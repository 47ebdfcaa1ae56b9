package edge

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// An ACME authority's answer that is too long fails, whatever it answers; it is neither read to its end nor cut.
func TestAnswersOfAuthoritiesAreBounded(t *testing.T) {
	var head http.Header
	code, size := 0, 0
	o := &orders{at: map[string]string{}, next: transport(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: code, Header: head, Body: io.NopCloser(strings.NewReader(strings.Repeat("x", size)))}, nil
	})}
	for _, size = range []int{maxAnswer, maxAnswer + 1} {
		for _, code = range []int{http.StatusOK, http.StatusCreated, http.StatusBadRequest} {
			for _, at := range []string{"", "https://ca/order/1"} {
				if head = (http.Header{}); at != "" {
					head.Set("Location", at)
				}
				res, err := o.RoundTrip(httptest.NewRequest("POST", "https://ca/new", nil))
				var text []byte
				if err == nil {
					text, err = io.ReadAll(res.Body)
				}
				if size > maxAnswer && (err == nil || !strings.Contains(err.Error(), "longer than 1048576")) || size <= maxAnswer && (err != nil || len(text) != size) {
					t.Errorf("%d bytes with %d and Location %q: %d bytes, %v", size, code, at, len(text), err)
				}
			}
		}
	}
}

// Nothing that an authority answers sends the router's request on to another address.
func TestAuthoritiesRedirectNobody(t *testing.T) {
	asked := 0
	a, err := newAuthority(ACMEOptions{Hosts: []string{"a.example.com"}, Cache: t.TempDir(), HTTP: transport(func(r *http.Request) (*http.Response, error) {
		asked++
		return &http.Response{StatusCode: http.StatusFound, Header: http.Header{"Location": {"https://10.0.0.1/"}}, Body: http.NoBody}, nil
	})}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.m.Client.Discover(t.Context()); !errors.Is(err, errSentOn) || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
