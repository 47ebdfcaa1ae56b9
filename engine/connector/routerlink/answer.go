package routerlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

func asFaults(err error, to **event.Faults) bool { return errors.As(err, to) }

// Bounds of what the other router answers.
const (
	answerLimit = 64 << 10
	shownBytes  = 300
	maxWait     = 5 * time.Minute // that it may ask for; the bridge tries again by itself
)

// problem is what the other router says is wrong (RFC 9457).
type problem struct {
	Type   string        `json:"type"`
	Detail string        `json:"detail"`
	Errors []event.Fault `json:"errors"`
}

// refusal is an answer other than 2xx.
type refusal struct {
	status int
	wait   time.Duration
	problem
	own bool // a router wrote it, no proxy on the way
}

// read reads a refusal, and closes the answer.
func readRefusal(res *http.Response) *refusal {
	defer res.Body.Close()
	r := &refusal{status: res.StatusCode, wait: retryAfter(res.Header.Get("Retry-After"), time.Now())}
	if r.status == http.StatusUnauthorized { // who asks often with a wrong token looks like one who guesses
		r.wait = max(r.wait, 30*time.Second)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, answerLimit))
	if err == nil && json.Unmarshal(b, &r.problem) == nil {
		r.own = strings.HasPrefix(r.Type, "urn:millrace:problem:")
	}
	return r
}

// words say what was answered and what to do about it. what is the topic or subscription, action what the token must allow.
func (l *link) words(r *refusal, what, action string) string {
	text := strconv.Itoa(r.status)
	if name := http.StatusText(r.status); name != "" {
		text += " " + name
	}
	switch {
	case r.status == 401:
		text += ": it does not take the token"
		if l.token == "" {
			text += ": it wants a token, and there is none"
		}
	case r.status == 403:
		text += ": the token must allow " + action + " on " + what
	case r.status == 404 && r.own:
		text += ": there is no " + what + ", or the token may not know of it"
	case r.status == 404:
		text += ": that is no router's answer; is the URL right?"
	case r.status >= 300 && r.status <= 399:
		text += ": redirects are not followed; give the URL of the router itself"
	}
	if r.Detail != "" && r.status != 401 {
		text += "; it says " + l.quote(r.Detail)
	}
	return "router " + l.shown + " answered " + text
}

// quote is the beginning of what the other side says, without the token.
func (l *link) quote(s string) string {
	if len(l.token) >= 4 {
		s = strings.ReplaceAll(s, l.token, "***")
	}
	return strconv.QuoteToASCII(s[:min(len(s), shownBytes)])
}

// failed is the error of a request without an answer.
func (l *link) failed(ctx context.Context, err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case ctx.Err() == nil && (errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()):
		return fmt.Errorf("router %s: no answer within %s (timeout)", l.shown, l.timeout)
	case ctx.Err() != nil:
		return fmt.Errorf("router %s: %w", l.shown, ctx.Err())
	}
	var in *url.Error
	if errors.As(err, &in) {
		err = in.Err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the connection broke off before an answer came")
	}
	return fmt.Errorf("router %s: %w", l.shown, egress.Words(err))
}

// retryAfter reads seconds or an HTTP date (RFC 9110 section 10.2.3); 0 if it is neither.
func retryAfter(v string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		return min(time.Duration(n)*time.Second, maxWait)
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxWait)
}
