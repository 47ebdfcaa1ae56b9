package main

import (
	"strings"
	"testing"
)

// TestWhatFaultsQuote: a fault of one's own definition is told alike whether what it quotes is another's name or nobody's.
func TestWhatFaultsQuote(t *testing.T) {
	w := startTenancy(t)
	const asJSON, asJS = "application/json", "text/javascript"
	w.as(glbx, 201, "POST", "/v1/topics", asJSON, `{"name":"glbx.typed","schema":{"type":"object","properties":{"n":{"type":"integer"}}}}`)
	w.as(glbx, 200, "PUT", "/v1/functions/glbx.fn", asJS, `export default (event, out) => out.pass()`)
	for _, c := range []struct{ method, path, contentType, body string }{
		{"POST", "/v1/topics", asJSON, `{"name":"glbx.new","NAME":1}`},
		{"POST", "/v1/topics", asJSON, `{"name":"glbx.new","whenFull":"NAME"}`},
		{"POST", "/v1/topics", asJSON, `{"name":"glbx.new","schema":{"type":"NAME"}}`},
		{"PATCH", "/v1/topics/glbx.typed", asJSON, `{"whenFull":"NAME"}`},
		{"PUT", "/v1/functions/glbx.fn", asJSON, `{"NAME":1}`},
		{"PUT", "/v1/functions/glbx.fn", asJSON, `{"allow":{"NAME":1}}`},
		{"PUT", "/v1/functions/glbx.fn", asJS, `throw new Error('"NAME"'); export default (event, out) => out.pass()`},
		{"POST", "/v1/subscriptions", asJSON, `{"name":"glbx.new","topic":"glbx.typed","NAME":1,"deliver":{"pull":{}}}`},
		{"POST", "/v1/subscriptions", asJSON, `{"name":"glbx.new","topic":"glbx.typed","filter":"data.n == \"NAME\"","deliver":{"pull":{}}}`},
	} {
		var first toldAnswer
		for i, name := range []string{"acme.ordinal", "acme.orders", "acme.workers", "acme.redact"} { // nobody has the first
			a := w.ask(glbx, c.method, c.path, c.contentType, strings.ReplaceAll(c.body, "NAME", name))
			a.header, a.body = "", strings.ReplaceAll(a.body, name, "NAME")
			if i == 0 {
				first = a
			}
			if a.status != 400 || a != first {
				t.Errorf("%s %s %s with %s: %d %s; want what is told of what nobody has: %d %s", c.method, c.path, c.body, name, a.status, a.body, first.status, first.body)
			}
		}
	}
}

// TestCirclesThroughOthers: a circle that is another's in part is refused without saying what is in it, one's own with it.
func TestCirclesThroughOthers(t *testing.T) {
	w := startTenancy(t)
	const asJSON = "application/json"
	for _, doc := range []string{
		`{"name":"acme.bridge","topic":"glbx.out","deliver":{"topic":"acme.orders"}}`,
		`{"name":"acme.back","topic":"acme.orders","deliver":{"topic":"glbx.own"}}`,
		`{"name":"acme.lost","topic":"glbx.lost","deliver":{"pull":{}},"deadLetter":"acme.orders"}`,
		`{"name":"acme.found","topic":"acme.orders","deliver":{"pull":{}},"deadLetter":"glbx.own"}`,
		`{"name":"glbx.there","topic":"glbx.own","deliver":{"topic":"glbx.across"}}`,
	} {
		for _, topic := range []string{"glbx.out", "glbx.lost", "glbx.across"} {
			w.ask("", "POST", "/v1/topics", asJSON, `{"name":"`+topic+`"}`)
		}
		w.as("", 201, "POST", "/v1/subscriptions", asJSON, doc)
	}
	for _, c := range []struct {
		doc    string
		status int
		told   string
	}{
		{`{"name":"glbx.loop","topic":"glbx.own","deliver":{"topic":"glbx.out"}}`, 409, "what others have defined"},
		{`{"name":"glbx.loop","topic":"glbx.own","deliver":{"pull":{}},"deadLetter":"glbx.lost"}`, 409, "what others have defined"},
		{`{"name":"glbx.loop","topic":"glbx.across","deliver":{"topic":"glbx.own"}}`, 400, "form a circle"},
	} {
		a := w.ask(glbx, "POST", "/v1/subscriptions", asJSON, c.doc)
		if a.status != c.status || !strings.Contains(a.body, c.told) || strings.Contains(a.body, acme) {
			t.Errorf("%s: %d %s; want %d with %q and nothing of %s", c.doc, a.status, a.body, c.status, c.told, acme)
		}
	}
}
