package native

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/plugins"
)

// secretGet is secret_get(k, klen, buf, cap) -> size.
func secretGet(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	key, ok := in.Memory().Read(uint32(s[0]), uint32(s[1]))
	if !ok {
		s[0] = code(badArgument)
		return
	}
	value, ok := in.Secret(key)
	if !ok {
		s[0] = code(notFound)
		return
	}
	s[0] = give(in, value, uint32(s[2]), uint32(s[3]))
}

// give writes value where it fits and returns its size.
func give(in *plugins.Instance, value string, buf, room uint32) uint64 {
	if uint64(len(value)) > uint64(room) {
		return uint64(len(value))
	}
	in.Work(len(value))
	if len(value) > 0 && !in.Memory().WriteString(buf, value) {
		return code(badArgument)
	}
	return uint64(len(value))
}

// counterAdd is counter_add(name, len, delta).
func counterAdd(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	if name, ok := in.Memory().Read(uint32(s[0]), uint32(s[1])); ok {
		in.Count(name, int64(s[2]))
	}
}

// Layout of an http request and its answer; docs/abi.md has both.
const (
	requestHeader  = 20
	responseHeader = 12
	httpVersion    = 1
)

// Bounds of an http request beside its body, which the guest's memory bounds: what is parsed takes several times
// its size.
const (
	maxMethod  = 32
	maxURL     = 8 << 10
	maxHeaders = 64 << 10
)

// httpCall is http(req, reqlen, buf, cap) -> size. An answer that does not fit is kept until the next event or
// request; reqlen 0 fetches it.
func httpCall(ctx context.Context, s []uint64) {
	in := plugins.InstanceOf(ctx)
	g, ok := in.Guest().(*guest)
	if !ok { // the guest is only being made: there is no event to call for
		s[0] = code(denied)
		return
	}
	if at := in.At(); at != g.answerOf {
		g.answer, g.answerOf = "", at
	}
	if uint32(s[1]) != 0 {
		g.answer = ""
		raw, ok := in.Memory().Read(uint32(s[0]), uint32(s[1]))
		if !ok {
			s[0] = code(badArgument)
			return
		}
		in.Work(len(raw))
		r, timeout, ok := parseRequest(raw)
		if !ok {
			s[0] = code(badArgument)
			return
		}
		answer, err := in.Fetch(r, timeout)
		if err != nil {
			s[0] = code(codeOf(err))
			return
		}
		g.answer = encodeAnswer(answer)
	}
	if g.answer == "" {
		s[0] = code(notFound)
		return
	}
	s[0] = give(in, g.answer, uint32(s[2]), uint32(s[3]))
}

func codeOf(err error) int64 {
	switch {
	case errors.Is(err, plugins.ErrNotAllowed):
		return denied
	case errors.Is(err, plugins.ErrTooBig):
		return tooBig
	case errors.Is(err, plugins.ErrNoAnswer):
		return deadline
	case errors.Is(err, plugins.ErrBadArgument):
		return badArgument
	}
	return ioError
}

// parseRequest copies a request out of the guest's memory.
func parseRequest(b []byte) (r *plugins.Request, timeout time.Duration, ok bool) {
	if len(b) < requestHeader || le.Uint16(b) != httpVersion {
		return nil, 0, false
	}
	method, rest := int(le.Uint16(b[2:])), b[requestHeader:]
	lens := [4]int{method, int(le.Uint32(b[4:])), int(le.Uint32(b[8:])), int(le.Uint32(b[12:]))}
	var parts [4][]byte
	for i, most := range [4]int{maxMethod, maxURL, maxHeaders, len(rest)} {
		if n := lens[i]; n > most || n > len(rest) {
			return nil, 0, false
		}
		parts[i], rest = rest[:lens[i]], rest[lens[i]:]
	}
	r = &plugins.Request{Method: string(parts[0]), URL: string(parts[1]), Header: http.Header{}, Body: bytes.Clone(parts[3])}
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	for line := range strings.SplitSeq(string(parts[2]), "\r\n") {
		if line == "" {
			continue
		}
		name, value, found := strings.Cut(line, ":")
		if !found || name == "" {
			return nil, 0, false
		}
		r.Header.Add(name, strings.TrimSpace(value))
	}
	return r, time.Duration(le.Uint32(b[16:])) * time.Millisecond, len(rest) == 0
}

// encodeAnswer is a response as guests read it. Names are in lower case and in order.
func encodeAnswer(a *plugins.Response) string {
	var headers []byte
	names := make([]string, 0, len(a.Header))
	for name := range a.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range a.Header[name] {
			headers = append(headers, strings.ToLower(name)...)
			headers = append(headers, ": "...)
			headers = append(headers, value...)
			headers = append(headers, "\r\n"...)
		}
	}
	b := make([]byte, 0, responseHeader+len(headers)+len(a.Body))
	b = le.AppendUint16(b, httpVersion)
	b = le.AppendUint16(b, uint16(a.Status))
	b = le.AppendUint32(b, uint32(len(headers)))
	b = le.AppendUint32(b, uint32(len(a.Body)))
	return string(append(append(b, headers...), a.Body...))
}
