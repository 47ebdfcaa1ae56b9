package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
)

// maxWait is the longest wait that a receiver may ask for.
const maxWait = 24 * time.Hour

// shown is how many bytes of an answer an error quotes.
const shown = 256

// failed is the error of an attempt that got no answer.
func (s *Sink) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("webhook %s: %w", s.target.name, ctx.Err())
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		// The connection's deadline is the context's and may fire just before it.
		return fmt.Errorf("webhook %s: %w", s.target.name, context.DeadlineExceeded)
	}
	if isTimeout(err) || errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s (timeout): %w", s.o.Timeout, err)
	}
	err = egress.Words(err)
	return &event.RetryAfter{Err: fmt.Errorf("webhook %s: %w", s.target.name, err)}
}

// outcome is what the answer in l means.
func (s *Sink) outcome(l *lane) error {
	code := l.resp.StatusCode()
	if s.auth != nil {
		s.auth.answered(l.auth, code)
	}
	if code >= 200 && code <= 299 {
		return nil
	}
	text := statusText(code)
	switch {
	case code == 410:
		text += "; the subscription is disabled until it is resumed"
	case code >= 300 && code <= 399:
		text += "; redirects are not followed, set url to where the receiver is"
		if to, err := url.Parse(string(l.resp.Header.Peek("Location"))); err == nil && to.Host != "" {
			text += fmt.Sprintf(" (on %.80q)", to.Host)
		}
	}
	if len(l.answer) > 0 {
		text += "; it says " + s.quote(l, string(l.answer))
	}
	err := fmt.Errorf("webhook %s answered %s", s.target.name, text)
	if code == 410 {
		return event.Disable(code, err)
	}
	return &event.RetryAfter{Err: err, Code: code, Wait: retryAfter(string(l.resp.Header.Peek("Retry-After")), s.o.Now())}
}

func statusText(code int) string {
	text := strconv.Itoa(code)
	if name := http.StatusText(code); name != "" {
		text += " " + name
	}
	return text
}

// reply fills r in with what the receiver answered, if it took the delivery. What cannot be passed on as it is
// becomes 502 in words.
func (l *lane) reply(r *event.Reply) {
	code := l.resp.StatusCode()
	if code < 200 || code > 299 {
		return
	}
	fail := func(format string, args ...any) {
		*r = event.Reply{Status: http.StatusBadGateway, ContentType: "text/plain; charset=utf-8", Data: fmt.Appendf(nil, format+"\n", args...)}
	}
	l.resp.Header.SetNoDefaultContentType(true)
	enc := string(l.resp.Header.ContentEncoding())
	switch {
	case len(l.answer) > event.MaxReply:
		fail("the receiver's answer has over %d bytes and cannot be passed on", event.MaxReply)
	case !l.whole:
		fail("the receiver's answer %d broke off", code)
	case enc != "" && !strings.EqualFold(enc, "identity"):
		fail("the receiver's answer is encoded (%.20q) although no encoding was asked for", enc)
	default:
		*r = event.Reply{Status: code, ContentType: string(l.resp.Header.ContentType()), Data: append([]byte{}, l.answer...)}
	}
}

// retryAfter reads seconds or an HTTP date (RFC 9110 section 10.2.3), clamped to 0 … 24 h; 0 if it is
// neither.
func retryAfter(v string, now time.Time) time.Duration {
	if v == "" {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 63)
	if err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(n, uint64(maxWait/time.Second))) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxWait)
}
