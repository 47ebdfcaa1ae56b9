package rules

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// TestCarriedSecrets patches a webhook that has every kind of secret: none goes to another origin unless it is given anew.
func TestCarriedSecrets(t *testing.T) {
	const old = `{"name":"s","topic":"t","functions":["token"],"deliver":{"webhook":{"url":"https://a.example/hook","format":"data",
		"headers":{"authorization":"Bearer swordfish","x-plain":"swordfish"},"secrets":["whsec_swordfish"],
		"auth":{"oauth2":{"tokenUrl":"https://login.example/token","clientId":"me","clientSecret":"swordfish","scopes":["s"]}},
		"tls":{"certificate":"PEM","privateKey":"swordfish"}}}}`
	const headers, secrets, client, private = "deliver.webhook.headers.authorization deliver.webhook.headers.x-plain",
		"deliver.webhook.secrets", "deliver.webhook.auth.oauth2.clientSecret", "deliver.webhook.tls.privateKey"
	for _, c := range []struct{ webhook, want string }{
		{`{"url":"https://b.example/hook"}`, headers + " " + secrets + " " + client + " " + private},
		{`{"url":"http://a.example/hook"}`, headers + " " + secrets + " " + client + " " + private},
		{`{"url":"https://a.example:8443/hook"}`, headers + " " + secrets + " " + client + " " + private},
		{`{"url":"https://a.example.b.example/hook"}`, headers + " " + secrets + " " + client + " " + private},
		{`{"url":"//a.example/hook"}`, headers + " " + secrets + " " + client + " " + private},
		{`{"url":null}`, headers + " " + secrets + " " + client + " " + private},
		{`{"url":{"x":1}}`, headers + " " + secrets + " " + client + " " + private},
		{`{"url":"https://b.example/","headers":{"authorization":"Bearer new"},"secrets":["whsec_new"],"auth":null,"tls":{"privateKey":"new"}}`, "deliver.webhook.headers.x-plain"},
		{`{"url":"https://b.example/","headers":{"authorization":"new","x-plain":null},"secrets":null,"auth":{"oauth2":{"clientSecret":"new"}},"tls":null}`, ""},
		{`{"url":"https://b.example/","headers":null,"secrets":[],"auth":{"basic":{"user":"u","password":"p"},"oauth2":null},"tls":{"pins":[]}}`, private},
		{`{"auth":{"oauth2":{"tokenUrl":"https://evil.example/token"}}}`, client},
		{`{"auth":{"oauth2":{"tokenUrl":"https://evil.example/token","clientSecret":"new"}}}`, ""},
		{`{"auth":{"oauth2":{"tokenUrl":"https://login.example/v2/token"}}}`, ""},
		{`{"url":"https://A.example:443/other?x=1"}`, ""},
		{`{"format":"binary","headers":{"x-more":"1"}}`, ""},
	} {
		err := CheckCarried([]byte(old), []byte(`{"deliver":{"webhook":`+c.webhook+`}}`))
		var at []string
		var f *event.Faults
		if errors.As(err, &f) {
			for _, x := range f.List {
				at = append(at, x.At)
			}
		}
		if got := strings.Join(at, " "); got != c.want || strings.Contains(fmt.Sprint(err), "swordfish") || err != nil && !errors.Is(err, event.ErrInvalid) {
			t.Errorf("%s: %v\nwants anew %q; want %q", c.webhook, err, got, c.want)
		}
	}
	for _, patch := range []string{`{"deliver":{"pull":{},"webhook":null}}`, `{"deliver":"x"}`, `{"deliver":null}`, `[]`, `{`, `{"topic":"u"}`} {
		if err := CheckCarried([]byte(old), []byte(patch)); err != nil {
			t.Errorf("%s: %v", patch, err)
		}
	}
}
