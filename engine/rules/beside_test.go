package rules

import "testing"

// What is written beside a reference may be a secret too.
func TestLiteralsBesideReferencesAreHidden(t *testing.T) {
	for _, tt := range []struct {
		raw    string
		secret bool
		want   string
	}{
		{"https://x.example/h?key=${env:K}&v=canary", false, "https://x.example/h?***"},
		{"https://x.example/h?key=${env:K}", false, "https://x.example/h?key=${env:K}"},
		{"${env:BASE}/h?key=canary", false, "${env:BASE}/h?***"},
		{"${env:BASE}/h?key=${file:k}", false, "${env:BASE}/h?key=${file:k}"},
		{"https://u:canary@${env:HOST}/h", false, "***"},
		{"Bearer ${env:TOKEN}", true, "Bearer ${env:TOKEN}"},
		{"canary-${env:TOKEN}", true, "***"},
		{"type == '${env:T}'", false, "type == '${env:T}'"},
	} {
		if got := besideReferences(tt.raw, tt.secret); got != tt.want {
			t.Errorf("%s is shown as %s, want %s", tt.raw, got, tt.want)
		}
	}
}

// Where a secret is sent is no secret. A line is asked too, of which a key may be anywhere.
func TestKeysOfSecrets(t *testing.T) {
	for key, want := range map[string]bool{"token": true, "clientSecret": true, "headers": true, "x-api_key": true, "tokenUrl": false, "url": false, "topic": false,
		"# token of the url": true, "token: canary #url": true, "token:url": true} {
		if got := secretKey(key); got != want {
			t.Errorf("%q: %t, want %t", key, got, want)
		}
	}
}
