package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/engine/event"
)

const defaultServer = "http://127.0.0.1:8080"

// maxAnswer bounds what is read of an answer that is not a stream, in bytes: the largest request (16 MiB) as
// JSON with room for its escapes.
const maxAnswer = 64 << 20

// remote is the flags that every command talking to a running router has.
type remote struct {
	server string
	token  string
	output string
}

// remoteFlags adds --server, --token and -o to cmd.
func (p *program) remoteFlags(cmd *cobra.Command) *remote {
	r := p.serverFlags(cmd)
	p.outputFlag(cmd, &r.output)
	return r
}

// serverFlags adds --server and --token.
func (p *program) serverFlags(cmd *cobra.Command) *remote {
	r := &remote{}
	f := cmd.Flags()
	f.StringVar(&r.server, "server", "", "`URL` of the router (or MILLRACE_URL; default "+defaultServer+")")
	f.StringVar(&r.token, "token", "", "token to show to the router (or MILLRACE_TOKEN)")
	return r
}

func (p *program) outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "text", "print `text or json`")
}

// asJSON reads the value of -o.
func asJSON(cmd *cobra.Command, output string) (bool, error) {
	switch output {
	case "json":
		return true, nil
	case "text", "":
		return false, nil
	}
	return false, usagef(cmd, "-o %q: want text or json", output)
}

// A client speaks the public HTTP API to one router.
type client struct {
	base  *url.URL
	token string
	http  *http.Client
	json  bool // the user wants JSON printed
}

// client checks the flags of r and makes a client of them.
func (p *program) client(cmd *cobra.Command, r *remote) (*client, error) {
	asJSON, err := asJSON(cmd, r.output)
	if err != nil {
		return nil, err
	}
	server, token := r.server, r.token
	if server == "" {
		server = p.env("MILLRACE_URL")
	}
	if server == "" {
		server = defaultServer
	}
	if token == "" {
		token = p.env("MILLRACE_TOKEN")
	}
	if strings.ContainsFunc(token, unprintable) {
		return nil, usagef(cmd, "the token contains control characters, perhaps the newline of the file that it came from")
	}
	base, err := url.Parse(server)
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" {
		return nil, usagef(cmd, "--server %q: want a URL such as %s", server, defaultServer)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 256
	// A redirect would send the token elsewhere and turn POST into GET.
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client{base: base, token: token, json: asJSON,
		http: &http.Client{Transport: t, CheckRedirect: noRedirect}}, nil
}

// path joins escaped path segments to the router's base: path("topics", name, "events").
func (c *client) path(segments ...string) *url.URL {
	escaped := make([]string, len(segments)+1)
	escaped[0] = "v1"
	for i, s := range segments {
		escaped[i+1] = url.PathEscape(s)
	}
	return c.base.JoinPath(escaped...)
}

// request makes a request with the token; header values are given in pairs.
func (c *client) request(ctx context.Context, method string, u *url.URL, body io.Reader, header ...string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req, nil
}

// send does a request. An answer of 400 or more, or a redirect, comes back as *problem with its body closed; the
// caller closes any other body.
func (c *client) send(req *http.Request) (*http.Response, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, readProblem(res)
}

// call does a request with an answer of bounded size and returns the answer's body.
func (c *client) call(ctx context.Context, method string, u *url.URL, body []byte, header ...string) ([]byte, error) {
	req, err := c.request(ctx, method, u, bytes.NewReader(body), header...)
	if err != nil {
		return nil, err
	}
	res, err := c.send(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", c.base.Host, err)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("the answer of %s has over %d bytes", c.base.Host, maxAnswer)
	}
	return b, nil
}

// callJSON is call with JSON both ways; in and out may be nil.
func (c *client) callJSON(ctx context.Context, method string, u *url.URL, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	b, err := c.call(ctx, method, u, body, "Content-Type", "application/json")
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s answered %s %s with something other than the expected JSON (%w); is it a router?",
			c.base.Host, method, u.Path, err)
	}
	return nil
}

// explain says what to do about a failure to reach the router.
func (c *client) explain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if isRefused(err) {
		return fmt.Errorf("no router answers at %s (connection refused); start one with 'router serve', "+
			"or name another with --server or MILLRACE_URL", c.base.Redacted())
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("reaching the router at %s: %w", c.base.Redacted(), err)
}

// A problem is an error as the router tells it (RFC 9457).
type problem struct {
	Type   string        `json:"type"`
	Title  string        `json:"title"`
	Status int           `json:"status"`
	Detail string        `json:"detail"`
	Errors []event.Fault `json:"errors"`

	RetryAfter string `json:"-"`
}

// Error is the title and detail, then on a line of its own each single error that the detail leaves out.
func (p *problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s", p.Status, clean(p.Title))
	if p.Detail != "" {
		b.WriteString(": " + strings.ReplaceAll(lines(p.Detail), "\n", "\n  "))
	}
	if p.RetryAfter != "" {
		b.WriteString(" (try again in " + clean(p.RetryAfter) + " s)")
	}
	for _, e := range p.Errors {
		if strings.Contains(p.Detail, e.Detail) && strings.Contains(p.Detail, e.At) {
			continue // the detail has said it
		}
		b.WriteString("\n  ")
		if e.At != "" {
			b.WriteString(clean(e.At) + ": ")
		}
		b.WriteString(clean(e.Detail))
	}
	return b.String()
}

func readProblem(res *http.Response) *problem {
	p := &problem{}
	body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if media != "application/problem+json" || json.Unmarshal(body, p) != nil {
		// A proxy in between, or no router at all.
		*p = problem{Detail: strings.TrimSpace(string(body[:min(len(body), 300)]))}
	}
	p.Status = res.StatusCode
	p.RetryAfter = res.Header.Get("Retry-After")
	if p.Title == "" {
		p.Title = http.StatusText(res.StatusCode)
	}
	if loc := res.Header.Get("Location"); res.StatusCode < 400 && loc != "" {
		p.Detail = "redirected to " + loc + "; name that address with --server"
	}
	return p
}

// hasStatus reports whether err is the router's answer with this status.
func hasStatus(err error, status int) bool {
	var p *problem
	return errors.As(err, &p) && p.Status == status
}

// printJSON prints a JSON document of the router on lines of its own, safe for terminals.
func printJSON(w io.Writer, doc []byte) error {
	doc = bytes.TrimSpace(doc)
	_, err := fmt.Fprintf(w, "%s\n", cleanJSON(doc))
	return err
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
