package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/connector/webhook"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
)

// testKinds are sinkKinds for tests of rules: they are checked alike and open nothing. openPlanned opens them.
func testKinds() map[string]rules.SinkKind {
	return map[string]rules.SinkKind{
		"webhook": rules.SinkOf(func(_ context.Context, o webhook.Options) (*plannedWebhook, error) { return &plannedWebhook{o}, nil }),
	}
}

// plannedWebhook is the options of a webhook whose receiver a test plays.
type plannedWebhook struct{ webhook.Options }

// Deliver fails: it is the sink that is opened with these options that delivers.
func (*plannedWebhook) Deliver(context.Context, []event.Delivery) error {
	return errors.New("a planned webhook cannot deliver")
}

// Close does nothing.
func (*plannedWebhook) Close() error { return nil }

// openPlanned opens the real webhook of a plan, connected to a receiver in this process. TLS is left out; the host and
// its port stay, for circuits and limits go by them.
func openPlanned(ctx context.Context, sink engine.Sink, r *testReceiver) (engine.Sink, error) {
	planned, ok := sink.(*plannedWebhook)
	if !ok {
		return nil, fmt.Errorf("rules test cannot play the receiver of a %T", sink)
	}
	o := planned.Options
	if u, err := url.Parse(o.URL); err == nil && u.Scheme == "https" {
		u.Scheme = "http"
		if u.Port() == "" {
			u.Host += ":443"
		}
		o.URL = u.String()
	}
	o.Dialer, o.Now, o.UserAgent, o.MaxConns = r, r.w.clock.now, "millrace/"+thisBuild().Version, maxSinkConns
	s, err := webhook.OpenSink(ctx, o)
	if err != nil {
		return nil, err
	}
	return &testSink{s, r}, nil
}

// testSink is a webhook that notes what its receiver has taken.
type testSink struct {
	*webhook.Sink
	r *testReceiver
}

// Deliver is the webhook's.
func (s *testSink) Deliver(ctx context.Context, ds []event.Delivery) error {
	err := s.Sink.Deliver(ctx, ds)
	var partial *event.Partial
	for i, d := range ds {
		if err == nil || errors.As(err, &partial) && len(partial.Errs) == len(ds) && partial.Errs[i] == nil {
			s.r.w.delivered(s.r.subscription, d.Event)
		}
	}
	return err
}

// testReceiver plays a webhook's receiver: it answers the attempts of each delivery as the test says, and notes them.
type testReceiver struct {
	w            *ruleWorld
	subscription string
	answers      []rules.Answer

	mu    sync.Mutex
	tries map[string]int // by webhook-id
}

// answer is what the next attempt of a delivery is told: the last answer repeats.
func (r *testReceiver) answer(id string, events int) rules.Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.tries[id]
	r.tries[id]++
	a := nthAnswer(r.answers, n)
	r.w.attempted(r.subscription, a, events)
	return a
}

// nthAnswer is the answer to the attempt n, from 0.
func nthAnswer(answers []rules.Answer, n int) rules.Answer {
	if len(answers) == 0 {
		return rules.Answer{Status: http.StatusOK}
	}
	return answers[min(n, len(answers)-1)]
}

// answerText is an answer as tests write it.
func answerText(a rules.Answer) string {
	if a.Timeout {
		return "timeout"
	}
	return fmt.Sprint(a.Status)
}

// DialContext makes a connection to the receiver.
func (r *testReceiver) DialContext(context.Context, string, string) (net.Conn, error) {
	return &testConn{r: r}, nil
}

// testConn is a connection whose other side answers as soon as a request is written. The webhook writes each as one.
type testConn struct {
	r    *testReceiver
	out  bytes.Buffer
	fail error // of reads, once out is empty
}

// Write takes one request.
func (c *testConn) Write(b []byte) (int, error) {
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		return 0, fmt.Errorf("the test's receiver: %w", err)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return 0, fmt.Errorf("the test's receiver: %w", err)
	}
	a := c.r.answer(req.Header.Get("webhook-id"), eventsIn(req.Header.Get("Content-Type"), body))
	c.out.Reset()
	if c.fail = nil; a.Timeout {
		c.fail = os.ErrDeadlineExceeded
		return len(b), nil
	}
	fmt.Fprintf(&c.out, "HTTP/1.1 %d %s\r\n", a.Status, http.StatusText(a.Status))
	if a.RetryAfter > 0 {
		fmt.Fprintf(&c.out, "Retry-After: %d\r\n", (a.RetryAfter+time.Second-1)/time.Second)
	}
	if a.Body != nil {
		kind := "text/plain; charset=utf-8"
		if a.JSON {
			kind = "application/json"
		}
		fmt.Fprintf(&c.out, "Content-Type: %s\r\n", kind)
	}
	if a.Status == http.StatusNoContent || a.Status == http.StatusNotModified {
		a.Body = nil
	} else {
		fmt.Fprintf(&c.out, "Content-Length: %d\r\n", len(a.Body))
	}
	fmt.Fprintf(&c.out, "\r\n%s", a.Body)
	return len(b), nil
}

// eventsIn is how many events a request carries.
func eventsIn(contentType string, body []byte) int {
	var list []json.RawMessage
	if strings.HasPrefix(contentType, "application/cloudevents-batch+json") && json.Unmarshal(body, &list) == nil {
		return len(list)
	}
	return 1
}

// Read gives the answer.
func (c *testConn) Read(b []byte) (int, error) {
	if c.out.Len() == 0 && c.fail != nil {
		return 0, c.fail
	}
	return c.out.Read(b)
}

// Close does nothing: there is no other side to tell.
func (c *testConn) Close() error { return nil }

// LocalAddr is no address.
func (c *testConn) LocalAddr() net.Addr { return &net.TCPAddr{} }

// RemoteAddr is no address.
func (c *testConn) RemoteAddr() net.Addr { return &net.TCPAddr{} }

// SetDeadline does nothing: no read or write waits.
func (c *testConn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (c *testConn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (c *testConn) SetWriteDeadline(time.Time) error { return nil }
