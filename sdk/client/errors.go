package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// Error is what a call came to, with what the router said about it. Calls of this package return it, or an error that
// wraps it, wherever the router or the connection to it failed; errors.Is finds context.Canceled and
// context.DeadlineExceeded behind it.
type Error struct {
	Code       codes.Code
	Reason     string // the router's kind of error, such as "NOT_FOUND" or "TOO_LARGE"; "": it did not come from a router
	Message    string
	Violations []Violation   // what is wrong in the request, all of it
	RetryAfter time.Duration // when to try again; 0: the router did not say

	status *status.Status
	local  error
}

// Violation is one thing wrong in a request.
type Violation struct {
	Field       string // such as "events[3].time"
	Description string
}

// Error says what the router said, with each field that is wrong.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Code.String())
	if e.Reason != "" && !strings.EqualFold(strings.ReplaceAll(e.Reason, "_", ""), e.Code.String()) {
		b.WriteString(" (" + e.Reason + ")")
	}
	b.WriteString(": " + e.Message)
	for _, v := range e.Violations {
		if !strings.Contains(e.Message, v.Description) {
			fmt.Fprintf(&b, "; %s: %s", v.Field, v.Description)
		}
	}
	return b.String()
}

// Unwrap returns the context's error behind e, if there is one.
func (e *Error) Unwrap() error { return e.local }

// GRPCStatus is e as gRPC has it, with all details.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Temporary reports whether the same request may succeed later: the router is not to be reached, stops or is overloaded, or
// has said when to come back.
func (e *Error) Temporary() bool {
	switch e.Code {
	case codes.Unavailable:
		return true
	case codes.ResourceExhausted, codes.Aborted:
		return e.RetryAfter > 0
	}
	return false
}

// asError converts what gRPC returned; nil stays nil.
func asError(err error) error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	return ofStatus(s)
}

func ofProto(s *spb.Status) *Error { return ofStatus(status.FromProto(s)) }

func ofStatus(s *status.Status) *Error {
	e := &Error{Code: s.Code(), Message: s.Message(), status: s}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			e.Reason = d.Reason
		case *errdetails.RetryInfo:
			e.RetryAfter = max(d.RetryDelay.AsDuration(), 0)
		case *errdetails.BadRequest:
			for _, v := range d.FieldViolations {
				e.Violations = append(e.Violations, Violation{v.Field, v.Description})
			}
		}
	}
	switch e.Code {
	case codes.Canceled:
		e.local = context.Canceled
	case codes.DeadlineExceeded:
		e.local = context.DeadlineExceeded
	}
	return e
}

func errorf(code codes.Code, format string, args ...any) *Error {
	return ofStatus(status.Newf(code, format, args...))
}

// cut reports whether a stream that ended with err is worth beginning again, and when the router wants that. Besides what is
// temporary these are ends that no router spoke of: those of the connection and of what stands between.
func (c *Client) cut(err error) (ok bool, after time.Duration) {
	if c.conn.GetState() == connectivity.Shutdown { // by Close
		return false, 0
	}
	if errors.Is(err, io.EOF) {
		return true, 0
	}
	var e *Error
	if !errors.As(asError(err), &e) {
		return false, 0
	}
	switch e.Code {
	case codes.Internal, codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		return e.Reason == "", e.RetryAfter
	}
	return e.Temporary(), e.RetryAfter
}

// temporary reports whether err may pass by itself, and when the router wants to be asked again.
func temporary(err error) (ok bool, after time.Duration) {
	var e *Error
	if !errors.As(err, &e) {
		return false, 0
	}
	return e.Temporary(), e.RetryAfter
}
