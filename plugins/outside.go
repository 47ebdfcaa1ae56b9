package plugins

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// What a host function cannot do for a guest. Conventions turn them into codes of their own.
var (
	ErrNotAllowed  = errors.New("the function's definition does not allow it")
	ErrTooBig      = errors.New("larger than the function may receive")
	ErrNoAnswer    = errors.New("no answer in time")
	ErrBadArgument = errors.New("not what the call wants")
)

// A Request is an HTTP request of a function.
type Request struct {
	Method  string
	URL     string
	Header  http.Header
	Body    []byte
	MaxBody int // bytes of the answer that may be read
}

// A Response is the answer to a Request, read whole. Redirects are answers like others.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Bounds of what functions may do beyond their memory.
const (
	maxCounters = 64 // of one function
	maxCounter  = 64 // bytes of a counter's name
	maxFetches  = 32 // requests of one call
)

// Secret is a value of the function's secrets.
func (in *Instance) Secret(key []byte) (string, bool) {
	in.Work(len(key))
	v, ok := in.fn.def.Secrets[string(key)]
	return v, ok
}

// Count adds to a counter of the function. Names are those of metrics; a function has at most 64, and a
// delta below zero is no count: what does not fit is left out and logged.
func (in *Instance) Count(name []byte, delta int64) {
	f := in.fn
	in.Work(len(name))
	f.mu.Lock()
	n, known := uint64(0), false
	if len(name) <= maxCounter { // longer ones are not worth a look
		n, known = f.counted[string(name)]
	}
	ok := delta >= 0 && (known || len(f.counted) < maxCounters && metricName(name))
	if ok {
		if f.counted == nil {
			f.counted = map[string]uint64{}
		}
		if known {
			f.counted[string(name)] = n + uint64(delta)
		} else {
			f.counted[strings.Clone(string(name))] = uint64(delta)
		}
	}
	f.mu.Unlock()
	if !ok {
		in.Log(2, fmt.Appendf(nil, "counter %q was not counted (delta %d): want a name of a-z, A-Z, 0-9 and _ that begins with no digit, of %d bytes at most, up to %d names, and no negative delta", name[:min(len(name), maxCounter+16)], delta, maxCounter, maxCounters))
	}
}

func metricName(name []byte) bool {
	if len(name) == 0 || len(name) > maxCounter {
		return false
	}
	for i, c := range name {
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// Fetch sends a request of the function, if its definition allows the host, within timeout (0: none) and the
// call's wall time.
// Errors are those above or about the connection; they are logged for the function's author.
func (in *Instance) Fetch(r *Request, timeout time.Duration) (*Response, error) {
	answer, err := in.fetch(r, timeout)
	if err != nil {
		in.Log(2, fmt.Appendf(nil, "http %s %s: %v", r.Method, redacted(r.URL), err))
	}
	return answer, err
}

func (in *Instance) fetch(r *Request, timeout time.Duration) (answer *Response, err error) {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%w: want a URL such as https://api.example.com/v1", ErrBadArgument)
	case u.User != nil:
		return nil, fmt.Errorf("%w: put the credentials into an authorization header, not into the URL", ErrBadArgument)
	case !allowed(in.fn.def.Allow.HTTP, u):
		return nil, fmt.Errorf("%w: add %s to allow.http", ErrNotAllowed, u.Host)
	case in.fn.host.o.Fetch == nil:
		return nil, fmt.Errorf("%w: this router makes no requests for functions", ErrNotAllowed)
	case in.fn.offline:
		in.fn.asked.Store(true)
		return nil, fmt.Errorf("%w: this is a trial, which sends nothing", ErrNotAllowed)
	case in.fetches >= maxFetches:
		return nil, fmt.Errorf("%w: one call may send %d requests", ErrNotAllowed, maxFetches)
	}
	in.fetches++
	if !in.fn.asked.Load() {
		in.fn.asked.Store(true)
	}
	r.MaxBody = in.fn.def.Limits.Output
	if r.Header == nil {
		r.Header = http.Header{}
	}
	err = in.Wait(func(ctx context.Context) (err error) {
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		answer, err = in.fn.host.o.Fetch(ctx, r)
		return err
	})
	if u := (*url.Error)(nil); errors.As(err, &u) { // it repeats the whole URL, whose query may hold secrets
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	if errors.Is(err, event.ErrDenied) {
		err = fmt.Errorf("%w: %w", ErrNotAllowed, err)
	}
	return answer, err
}

// allowed compares a URL's host with a list of "host", "host:port" and "*.host".
func allowed(list []string, u *url.URL) bool {
	name, port := strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	for _, a := range list {
		want, wantPort := a, ""
		if i := strings.LastIndexByte(a, ':'); i > strings.LastIndexByte(a, ']') {
			want, wantPort = a[:i], a[i+1:]
		}
		if wantPort == "" {
			wantPort = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
		want = strings.ToLower(strings.Trim(want, "[]"))
		below, wild := strings.CutPrefix(want, "*.")
		if port == wantPort && (name == want || wild && strings.HasSuffix(name, "."+below)) {
			return true
		}
	}
	return false
}

// redacted is a URL fit for a log: without credentials and query.
func redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(not a URL)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return bounded(u.String())
}
