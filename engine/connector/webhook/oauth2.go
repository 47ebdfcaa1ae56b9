package webhook

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/egress"
)

// OAuth2 gets access tokens by client credentials (RFC 6749 section 4.4).
type OAuth2 struct {
	TokenURL     string   `yaml:"tokenUrl" rules:"required" about:"Of the authorization server: https, or http on loopback."`                     // https, or http on loopback
	ClientID     string   `yaml:"clientId" rules:"required" about:"Under which the server knows the router."`                                     // as the server knows the router
	ClientSecret string   `yaml:"clientSecret" rules:"required" about:"Give a reference. Never shown."`                                           // never shown
	Scopes       []string `yaml:"scopes" about:"To ask for."`                                                                                     // to ask for
	Audience     string   `yaml:"audience" about:"Sent as audience, which some servers want."`                                                    // sent as audience
	Send         string   `yaml:"send" enum:"basic,body" about:"How id and secret go to the server: in the Authorization header or in the body."` // basic or body; basic
}

const (
	tokenAnswer   = 64 << 10         // bytes of a token endpoint's answer that are read
	tokenSize     = 16 << 10         // bytes of a token
	tokenTime     = 10 * time.Second // of one request for a token
	defaultExpiry = 5 * time.Minute  // of a token of which the server does not say
	maxExpiry     = 24 * time.Hour
)

func (c *OAuth2) check(fault func(at, format string, args ...any)) {
	if err := egress.CheckURL(c.TokenURL); err != nil {
		fault("auth.oauth2.tokenUrl", "%v", err)
	} else if u, err := url.Parse(c.TokenURL); err == nil && u.Scheme == "http" && !loopback(u.Hostname()) {
		fault("auth.oauth2.tokenUrl", "is http://, over which anybody on the way reads the secret; want https://")
	}
	if c.ClientID == "" {
		fault("auth.oauth2.clientId", "missing")
	}
	if c.ClientSecret == "" {
		fault("auth.oauth2.clientSecret", "missing")
	}
	for i, s := range c.Scopes {
		if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			fault(fmt.Sprintf("auth.oauth2.scopes[%d]", i), "is %.60q; want one scope without spaces and quotes (RFC 6749 section 3.3)", s)
		}
	}
	if c.Send != "" && c.Send != "basic" && c.Send != "body" {
		fault("auth.oauth2.send", "is %.40q; want basic or body", c.Send)
	}
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

func (c *OAuth2) open(o Options) *tokens {
	client := sync.OnceValue(o.client)
	return &tokens{now: o.Now, fetch: func(ctx context.Context) (string, time.Duration, error) {
		ctx, cancel := context.WithTimeout(ctx, tokenTime)
		defer cancel()
		token, life, err := c.token(ctx, client(), o.UserAgent, o.Now)
		if err != nil {
			return "", 0, fmt.Errorf("oauth2: no token from %s: %w", c.name(), err)
		}
		return token, life, nil
	}}
}

// name is scheme and host of the endpoint; path and query may hold secrets.
func (c *OAuth2) name() string {
	u, err := url.Parse(c.TokenURL)
	if err != nil {
		return "the token endpoint" // unreachable after check
	}
	return u.Scheme + "://" + u.Host
}

// token asks the authorization server.
func (c *OAuth2) token(ctx context.Context, client *http.Client, agent string, now func() time.Time) (string, time.Duration, error) {
	form := url.Values{"grant_type": {"client_credentials"}}
	if len(c.Scopes) > 0 {
		form.Set("scope", strings.Join(c.Scopes, " "))
	}
	if c.Audience != "" {
		form.Set("audience", c.Audience)
	}
	if c.Send == "body" {
		form.Set("client_id", c.ClientID)
		form.Set("client_secret", c.ClientSecret)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, errors.New("the URL cannot be asked")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", agent)
	if c.Send != "body" { // encoded first: RFC 6749 section 2.3.1
		req.SetBasicAuth(url.QueryEscape(c.ClientID), url.QueryEscape(c.ClientSecret))
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, unreachable(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, tokenAnswer+1))
	switch {
	case err != nil:
		return "", 0, fmt.Errorf("its answer broke off: %w", unreachable(err))
	case len(body) > tokenAnswer:
		return "", 0, fmt.Errorf("its answer has over %d bytes", tokenAnswer)
	case resp.StatusCode >= 300 && resp.StatusCode <= 399:
		return "", 0, fmt.Errorf("it answers %s; redirects are not followed, set tokenUrl to where it is", statusText(resp.StatusCode))
	case resp.StatusCode != http.StatusOK:
		return "", 0, retryable(fmt.Errorf("it answers %s%s", statusText(resp.StatusCode), c.complaint(body)), resp, now())
	}
	return parseToken(body)
}

// complaint is what an error of RFC 6749 section 5.2 says. Secrets that it repeats are not shown.
func (c *OAuth2) complaint(body []byte) string {
	var e struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		return ""
	}
	text := e.Error
	if e.Description != "" {
		text += ": " + e.Description
	}
	for _, secret := range []string{c.ClientSecret, url.QueryEscape(c.ClientSecret), base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(c.ClientID) + ":" + url.QueryEscape(c.ClientSecret)))} {
		text = strings.ReplaceAll(text, secret, "***")
	}
	return "; it says " + strconv.QuoteToASCII(text[:min(len(text), shown)])
}

// parseToken reads a token of RFC 6749 section 5.1.
func parseToken(body []byte) (string, time.Duration, error) {
	var t struct {
		Token   string      `json:"access_token"`
		Type    string      `json:"token_type"`
		Expires json.Number `json:"expires_in"` // some servers send it as a text
	}
	if err := json.Unmarshal(body, &t); err != nil {
		return "", 0, errors.New("its answer of 200 is not the JSON of a token (RFC 6749 section 5.1)")
	}
	switch {
	case t.Token == "":
		return "", 0, errors.New("its answer of 200 has no access_token")
	case len(t.Token) > tokenSize || strings.ContainsFunc(t.Token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", 0, fmt.Errorf("its access_token has over %d bytes, or others than printable ASCII", tokenSize)
	case !strings.EqualFold(cmp.Or(t.Type, "bearer"), "bearer"):
		return "", 0, fmt.Errorf("its token is of the type %.40q; want Bearer", t.Type)
	}
	life := defaultExpiry
	if t.Expires != "" {
		s, err := t.Expires.Float64()
		if err != nil || s <= 0 {
			return "", 0, fmt.Errorf("its expires_in is %.40q; want seconds above 0", t.Expires)
		}
		life = time.Duration(min(s, maxExpiry.Seconds()) * float64(time.Second))
	}
	return t.Token, life, nil
}

// unreachable is an error of the network without the URL, whose query may hold a secret.
func unreachable(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		err = of.Err
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer in time: %w", err)
	}
	return egress.Words(err)
}
