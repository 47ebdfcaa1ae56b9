package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/connector/webhook"
	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// A batch that the webhook sink sends is verified as a whole and printed event by event.
func TestReceivePrintsBatches(t *testing.T) {
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	var got []received
	server := httptest.NewServer(&receiver{secrets: []string{secret}, now: time.Now, got: func(d received) { got = append(got, d) }})
	defer server.Close()
	dialer, err := egress.New(egress.Options{AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	sink, err := webhook.OpenSink(t.Context(), webhook.Options{URL: server.URL, Secrets: []string{secret}, Dialer: dialer, Batch: webhook.Batch{Events: 10}})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	var ds []event.Delivery
	for i := range 3 {
		e := event.Event{ID: fmt.Sprint("e", i), Source: "/s", Type: "t", Data: fmt.Appendf(nil, `{"n":%d}`, i)}
		ds = append(ds, event.Delivery{ID: fmt.Sprint("s:t@1:0-", i, ":0"), Event: e.AppendRecord(nil), Attempt: 1})
	}
	if err := sink.Deliver(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || !got[0].Verified {
		t.Fatalf("got %+v", got)
	}
	var out bytes.Buffer
	p := &program{stdout: &out}
	p.printReceived(got[0], false, false)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("try 1  signature verified  %d of 3  {", i+1); !strings.Contains(line, want) || !strings.Contains(line, fmt.Sprintf(`"id":"e%d"`, i)) {
			t.Errorf("line %d is %s", i, line)
		}
	}
	if len(lines) != 3 {
		t.Errorf("%d lines for 3 events", len(lines))
	}
	out.Reset()
	p.printReceived(got[0], true, false)
	dec := json.NewDecoder(&out)
	for i := range 3 {
		var doc struct {
			Index, Events int
			Verified      bool
			Body          string
		}
		if err := dec.Decode(&doc); err != nil || doc.Index != i || doc.Events != 3 || !doc.Verified || !strings.Contains(doc.Body, fmt.Sprintf(`"id":"e%d"`, i)) {
			t.Errorf("document %d is %+v, %v", i, doc, err)
		}
	}
	for _, body := range []string{"[]", "{}", "[1,", ""} {
		out.Reset()
		p.printReceived(received{Header: http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, Body: []byte(body)}, false, false)
		if n := strings.Count(out.String(), "\n"); n != 1 || !strings.Contains(out.String(), body) {
			t.Errorf("%q is printed as %q", body, out.String())
		}
	}
}
