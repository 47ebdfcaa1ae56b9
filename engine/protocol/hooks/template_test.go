package hooks

import (
	"errors"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// TestTemplatesThatRunTogether refuses what would say less than it seems to.
func TestTemplatesThatRunTogether(t *testing.T) {
	for template, want := range map[string]string{
		"{header.x-id}{body}":                      "{header.x-id} and {body} side by side",
		"{body}{header.x-id}":                      "{body} and {header.x-id} side by side",
		"v1:{header.a}{header.b}.{body}":           "{header.a} and {header.b} side by side",
		"{timestamp}{header.a}{body}":              "{header.a} and {body} side by side",
		"{body}{body}":                             "{body} and {body} side by side",
		"{header.x-id}.{body}":                     "",
		"{header.x-id}{timestamp}{body}":           "", // Twitch
		"{url}{body}":                              "", // Square
		"{method}{header.x-id}{method}{body}":      "",
		"{header.a}{method}{url}{timestamp}{body}": "",
	} {
		o := HMAC{Secret: "hidden", Header: "x-sig", Template: template}
		if strings.Contains(template, "{timestamp}") {
			o.Timestamp = "x-time"
		}
		if err := o.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", template, err, want)
		}
	}
}

// TestPartsThatMove signs a webhook and moves bytes from one part to the next, under the same signature: what could be told
// apart in two ways is refused in both.
func TestPartsThatMove(t *testing.T) {
	const digits, rfc = "1700000000", "2023-11-14T22:13:20Z"
	for _, c := range []struct {
		template, id, stamp, body string
		query                     string
		good                      bool
	}{
		{"{header.x-id}{timestamp}{body}", "a1", rfc, "1{}", "", true}, // its notation has a fixed length
		{"{header.x-id}{timestamp}{body}", "a-", digits, "{}", "", true},
		{"{header.x-id}{timestamp}{body}", "a1", digits, "{}", "", false},
		{"{header.x-id}{timestamp}{body}", "a-", digits, "123{}", "", false}, // could be milliseconds
		{"{header.x-id}{timestamp}.{body}", "a-", digits, "123{}", "", true},
		{"{header.x-id}.{body}{timestamp}", "a", digits, "x", "", true},
		{"{header.x-id}.{body}{timestamp}", "a.b", digits, "x", "", false},
		{"{timestamp} {header.x-id}.{body}", "a", digits, "b.c", "", true},
		{"{timestamp} {header.x-id}.{body}", "a.b", digits, "c", "", false},
		{"{timestamp} {header.x-id}..{body}", "a.", digits, "c", "", false}, // "a" and ".c" read alike
		{"{timestamp} {body}.{header.x-id}", "a", digits, "b.c", "", true},
		{"{timestamp} {body}.{header.x-id}", "c.a", digits, "b", "", false},
		{"{timestamp} {header.x-id}.{timestamp}.{body}", "a.b", digits, "c", "", true}, // no time stands in the id
		{"{header.x-id}.{timestamp}.{body}", "a", digits, digits + ".{}", "", true},
		{"{header.x-id}.{timestamp}.{body}", "a." + digits, digits, "{}", "", false},
		{"{header.x-id}.{timestamp}.{body}", "a.1700000001000", rfc, "{}", "", false},
		{"{header.x-id}{timestamp}{body}", "a", rfc, rfc + "{}", "", true},
		{"{header.x-id}{timestamp}{body}", "a" + rfc, rfc, "{}", "", false},
		{"{body}.{timestamp}.{header.x-id}", "a", digits, "b." + digits, "", true},
		{"{body}.{timestamp}.{header.x-id}", digits + ".a", digits, "b", "", false},
		{"{timestamp} {url}.{timestamp}.{body}", "a", digits, digits + ".{}", "?a=1", true},
		{"{timestamp} {url}.{timestamp}.{body}", "a", digits, "{}", "?a=1." + digits, false},
		{"{timestamp} {url}{body}", "a", digits, "{}", "", true},
		{"{timestamp} {url}{body}", "a", digits, "{}", "?a=1", false},
		{"{timestamp} {url} {body}", "a", digits, "{}", "?a=1", true},
		{"{timestamp} {url}.{body}", "a", digits, "5.{}", "?a=1", true},
		{"{timestamp} {url}.{body}", "a", digits, "{}", "?a=1.5", false},
		{"{timestamp} {url}.{header.x-id}\n{body}", "b", digits, "", "?a=1.5", false},
		{"{timestamp} {url}.{body}", "a", digits, "{}", "", true}, // the address itself is the source's
	} {
		v := open(t, HMAC{Secret: "quite-a-secret", Header: "x-sig", Timestamp: "x-time", Template: c.template})
		const url = "https://hooks.example.com/v1/sources/s"
		text := strings.NewReplacer("{header.x-id}", c.id, "{timestamp}", c.stamp, "{body}", c.body, "{url}", url+c.query).Replace(c.template)
		h := webhook(c.body, "x-sig: "+hexOf("quite-a-secret", text), "x-time: "+c.stamp, "x-id: "+c.id)
		h.URL = url + c.query
		at, err := anyTime("x-time", c.stamp)
		if err != nil {
			t.Fatal(err)
		}
		h.Received = at
		err = v.Verify(t.Context(), h, nil)
		if (err == nil) != c.good || err != nil && (!errors.Is(err, event.ErrUnverified) || strings.Contains(err.Error(), "signature is none")) {
			t.Errorf("%s of id %s, %s, body %s%s: %v; want good %t", c.template, c.id, c.stamp, c.body, c.query, err, c.good)
		}
	}
}
