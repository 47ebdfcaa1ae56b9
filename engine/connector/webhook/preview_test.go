package webhook

import (
	"strings"
	"testing"
)

// What is previewed is what a receiver gets, but for the signature and what the configuration may hide.
func TestPreview(t *testing.T) {
	got := newReceiver(t, nil)
	url := got.URL
	for _, format := range []string{Structured, Binary, Data} {
		s := open(t, Options{URL: url + "/hook/tok-123456?key=tok-123456", Format: format, Secrets: []string{secretA}, Headers: map[string]string{"Authorization": "Bearer tok-123456"}})
		d := delivery("s:t@1:0-4:0", order)
		p, err := s.Preview(d[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Deliver(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		all := got.all()
		sent := all[len(all)-1]
		if p.Body != sent.body || p.Binary || p.Method != "POST" || p.URL != url+"/(hidden)" {
			t.Errorf("%s: previewed %+v, sent %s", format, p, sent.body)
		}
		hiddenNames := ""
		for _, h := range p.Headers {
			if h.Hidden {
				hiddenNames += h.Name + " "
			} else if want := sent.header.Get(h.Name); want != h.Value && h.Name != "Host" && h.Name != "webhook-timestamp" && h.Name != "Content-Length" {
				t.Errorf("%s: %s previewed as %q, sent as %q", format, h.Name, h.Value, want)
			}
			if strings.Contains(h.Value, "tok-") || strings.Contains(h.Value, "v1,") {
				t.Errorf("%s: %s shows %q", format, h.Name, h.Value)
			}
			sent.header.Del(h.Name)
		}
		if hiddenNames != "Authorization webhook-signature " {
			t.Errorf("%s: hidden are %s", format, hiddenNames)
		}
		if len(sent.header) > 0 {
			t.Errorf("%s: sent and not previewed: %v", format, sent.header)
		}
	}
	s := open(t, Options{URL: url, Batch: Batch{Events: 10}})
	p, err := s.Preview(delivery("a", order)[0])
	if err != nil || !strings.HasPrefix(p.Body, `[{"specversion"`) || p.URL != url+"/" {
		t.Errorf("of a batch: %+v, %v", p, err)
	}
	if _, err := s.Preview(delivery("with space", order)[0]); err == nil || !strings.Contains(err.Error(), "webhook-id") {
		t.Errorf("of what cannot be sent: %v", err)
	}
}
