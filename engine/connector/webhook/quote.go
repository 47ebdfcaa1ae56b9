package webhook

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// shortSecret is a length in bytes below which a value is no secret, and would blot out half of an answer.
const shortSecret = 4

// secretsOf are what o has that no answer may bring into an error: receivers repeat what they were sent.
func secretsOf(o Options) *strings.Replacer {
	var all []string
	for _, s := range o.Secrets {
		all = append(all, s)
		if _, key, ok := strings.Cut(s, "_"); ok { // whsec_…, whsk_…: what follows is the key, without it too
			all = append(all, key, strings.TrimRight(key, "="))
		}
	}
	for _, v := range o.Headers {
		if _, credentials, ok := strings.Cut(v, " "); ok { // of Authorization: the scheme alone is none
			all = append(all, credentials)
		}
		all = append(all, v)
	}
	if u, err := url.Parse(o.URL); err == nil && u.RawQuery != "" {
		all = append(all, u.RawQuery)
		for _, values := range u.Query() {
			all = append(all, values...)
		}
	}
	if b := o.Auth.Basic; b != nil {
		all = append(all, b.Password)
	}
	if c := o.Auth.OAuth2; c != nil {
		all = append(all, c.ClientSecret)
	}
	slices.SortStableFunc(all, func(a, b string) int { return len(b) - len(a) }) // one may begin as another does
	var pairs []string
	for _, s := range all {
		if len(s) < shortSecret {
			continue
		}
		written, err := json.Marshal(s)
		if err != nil {
			continue // unreachable: a string
		}
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s), string(written[1 : len(written)-1]), strings.ReplaceAll(s, `"`, `\"`)} {
			pairs = append(pairs, form, "***")
		}
	}
	return strings.NewReplacer(pairs...)
}

// quote is the beginning of what a receiver answered, without the secrets that it was sent.
func (s *Sink) quote(l *lane, answer string) string {
	answer = s.secrets.Replace(answer)
	if _, token, ok := strings.Cut(l.auth, " "); ok && len(token) >= shortSecret {
		answer = strings.ReplaceAll(answer, token, "***")
	}
	return strconv.QuoteToASCII(answer[:min(len(answer), shown)])
}
