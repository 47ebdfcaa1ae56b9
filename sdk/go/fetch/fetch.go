// Package fetch makes HTTP requests through the router, to the hosts that the function's configuration
// allows and within the call's time. Importing it requires a router that makes them. Nothing takes a request
// back: a retry of an event makes its requests again.
package fetch

import (
	"encoding/binary"
	"math"
	"strings"
	"time"

	millrace "github.com/millrace/millrace/sdk/go"
	"github.com/millrace/millrace/sdk/go/internal/host"
)

var _ = millrace.Require(millrace.FeatureHTTP)

// A Header is one line of a request's or an answer's head.
type Header struct{ Name, Value string }

// A Request is what to ask. The zero Method is GET; the zero Timeout leaves it to the router.
type Request struct {
	Method  string
	URL     string
	Headers []Header
	Body    []byte
	Timeout time.Duration
}

// A Response is an answer, whatever its status says.
type Response struct {
	Status  int
	Headers []Header
	Body    []byte
}

// Header returns the first value of a name, whose case does not matter.
func (r *Response) Header(name string) string {
	for _, h := range r.Headers {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

const (
	version        = 1
	requestHeader  = 20
	responseHeader = 12
)

var le = binary.LittleEndian

// Do makes a request and returns the answer. An error is a millrace.HostError.
func Do(r Request) (*Response, error) {
	req, err := r.encode()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 16<<10)
	n := request(req, buf)
	if n > int64(len(buf)) { // the router keeps it: no request asks for what it has
		buf = make([]byte, n)
		n = request(nil, buf)
	}
	if n < 0 {
		return nil, host.Error(n)
	}
	return decode(buf[:min(n, int64(len(buf)))])
}

// encode writes the version, the lengths and the timeout in ms, then method, URL, header lines and body. A
// line break inside a header is refused here: it would make another header.
func (r *Request) encode() ([]byte, error) {
	method := r.Method
	if method == "" {
		method = "GET"
	}
	b := make([]byte, requestHeader, requestHeader+len(method)+len(r.URL)+64*len(r.Headers)+len(r.Body))
	b = append(append(b, method...), r.URL...)
	start := len(b)
	for _, h := range r.Headers {
		if h.Name == "" || strings.ContainsAny(h.Name, ":\r\n") || strings.ContainsAny(h.Value, "\r\n") {
			return nil, host.BadArgument
		}
		b = append(append(append(append(b, h.Name...), ": "...), h.Value...), "\r\n"...)
	}
	if len(method) > math.MaxUint16 {
		return nil, host.BadArgument
	}
	ms := max(r.Timeout, 0).Milliseconds()
	if r.Timeout > 0 && ms == 0 {
		ms = 1
	}
	le.PutUint16(b, version)
	le.PutUint16(b[2:], uint16(len(method)))
	le.PutUint32(b[4:], uint32(len(r.URL)))
	le.PutUint32(b[8:], uint32(len(b)-start))
	le.PutUint32(b[12:], uint32(len(r.Body)))
	le.PutUint32(b[16:], uint32(min(ms, math.MaxUint32)))
	return append(b, r.Body...), nil
}

// decode reads the version, the status, the lengths, header lines and body.
func decode(b []byte) (*Response, error) {
	if len(b) < responseHeader || le.Uint16(b) != version {
		return nil, host.IO
	}
	headers, body := uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:]))
	if responseHeader+headers+body != uint64(len(b)) {
		return nil, host.IO
	}
	r := &Response{Status: int(le.Uint16(b[2:])), Body: b[responseHeader+headers:]}
	for line := range strings.Lines(string(b[responseHeader : responseHeader+headers])) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok {
			r.Headers = append(r.Headers, Header{strings.TrimSpace(name), strings.TrimSpace(value)})
		}
	}
	return r, nil
}
