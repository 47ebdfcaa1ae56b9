package webhook

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/engine/event"
)

func TestOptionsFromYAML(t *testing.T) {
	var o Options
	dec := yaml.NewDecoder(strings.NewReader(`
url: https://example.com/hook
format: binary
secrets: [` + secretA + `]
headers: {authorization: Bearer x}
timeout: 2s
reply: true
batch: {events: 50, bytes: 4096, wait: 20ms}
`))
	dec.KnownFields(true)
	if err := dec.Decode(&o); err != nil {
		t.Fatal(err)
	}
	if want := (Batch{50, 4096, 20 * time.Millisecond}); o.Batch != want {
		t.Errorf("batch %+v, want %+v", o.Batch, want)
	}
	o.Batch = Batch{}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	if o.URL != "https://example.com/hook" || o.Format != Binary || o.Secrets[0] != secretA || o.Headers["authorization"] != "Bearer x" || o.Timeout != 2*time.Second || !o.Reply {
		t.Errorf("%+v", o)
	}
	// Keys of the process, and those that this build does not act on, are not keys of the file.
	for _, key := range []string{"dialer: {}", "maxconns: 1", "useragent: x", "tlsconfig: {}"} {
		dec := yaml.NewDecoder(strings.NewReader(key))
		dec.KnownFields(true)
		if err := dec.Decode(&o); err == nil {
			t.Errorf("%s is accepted", key)
		}
	}
}

func TestValidateReportsAll(t *testing.T) {
	o := Options{URL: "ftp://u:hunter2@x/", Format: "xml", Secrets: []string{secretA, "whsec_hunter2", "hunter2"}, Timeout: -1, MaxConns: -1, UserAgent: "a\n",
		Headers: map[string]string{"Connection": "x", "host": "x", "Content-Length": "1", "content-type": "x", "Webhook-Id": "x", "ce-id": "x", "Transfer-Encoding": "x",
			"Proxy-Authorization": "x", "bad name": "x", "x-ok": "x", "X-OK": "x", "x-break": "hunter2\r\nevil: 1", "Expect": "100-continue", "accept-encoding": "gzip", "": "x", "x-fine": "ü\tz"}}
	_, err := OpenSink(context.Background(), o)
	var f *event.Faults
	if !errors.As(err, &f) || !errors.Is(err, event.ErrInvalid) {
		t.Fatalf("%v", err)
	}
	at := map[string]int{}
	for _, x := range f.List {
		at[x.At]++
	}
	for _, want := range []string{"url", "format", "secrets[1]", "secrets[2]", "timeout", "MaxConns", "UserAgent", "headers.Connection", "headers.host",
		"headers.Content-Length", "headers.content-type", "headers.Webhook-Id", "headers.ce-id", "headers.Transfer-Encoding", "headers.Proxy-Authorization",
		"headers.bad name", "headers.x-ok", "headers.x-break", "headers.Expect", "headers.accept-encoding", "headers."} {
		if at[want] != 1 {
			t.Errorf("%d faults at %s, want 1", at[want], want)
		}
		delete(at, want)
	}
	if len(at) > 0 {
		t.Errorf("besides: %v", at)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret is shown:\n%v", err)
	}
	if err := (Options{}).Validate(); err == nil || !strings.Contains(err.Error(), "url: missing") {
		t.Errorf("empty: %v", err)
	}
	if err := (Options{URL: "http://x/", Secrets: make([]string, 9)}).Validate(); err == nil || !strings.Contains(err.Error(), "at most 8") {
		t.Errorf("nine secrets: %v", err)
	}
	if _, err := OpenSink(context.Background(), Options{URL: "http://x.example/"}); err == nil || !strings.Contains(err.Error(), "Dialer") {
		t.Errorf("no dialer: %v", err)
	}
}
