package httpapi

import (
	"net"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/admission"
)

// An outStream is the server's side of a connection that was taken from fasthttp and gets what there is as it comes.
// One goroutine uses it.
type outStream struct {
	s      *Server
	origin string // allowed to read it
	hsts   string // to tell; "" is not
	out    []byte // not written yet
}

func (c *call) outStream() outStream {
	st := outStream{s: c.s}
	if nc := connOf(c.ctx); nc != nil && nc.tls != nil {
		st.hsts = c.s.hsts
	}
	if c.h.origin != "" && c.s.allowsOrigin(c.h.origin) {
		st.origin = strings.Clone(c.h.origin)
	}
	return st
}

// begin puts the answer's head into out.
func (st *outStream) begin(contentType string) {
	st.out = append(append(append(st.out[:0], "HTTP/1.1 200 OK\r\nServer: millrace\r\nContent-Type: "...), contentType...),
		"\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\nConnection: close\r\n"...)
	if st.hsts != "" {
		st.out = append(append(append(st.out, "Strict-Transport-Security: "...), st.hsts...), "\r\n"...)
	}
	if st.origin != "" {
		st.out = append(append(append(st.out, "Access-Control-Allow-Origin: "...), st.origin...), "\r\nVary: Origin\r\n"...)
	}
	st.out = append(st.out, "\r\n"...)
}

// flush writes out, within Options.WriteTimeout, unless who reads may not go on.
func (st *outStream) flush(nc net.Conn) error {
	if c, ok := nc.(*conn); ok && c.se != nil && c.se.needs.in != Anyone && c.se.Principal() == nil {
		st.out = st.out[:0]
		return admission.ErrRevoked
	}
	if err := nc.SetWriteDeadline(time.Now().Add(st.s.o.WriteTimeout)); err != nil {
		return err
	}
	_, err := nc.Write(st.out)
	st.out = st.out[:0]
	return err
}
