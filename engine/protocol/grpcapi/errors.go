package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// domain is what ErrorInfo says the reasons are of.
const domain = "millrace"

// Bounds of what is told of an error, in bytes: trailers are headers, of which many clients take 8 KiB in all, and details
// are there in base64, the message twice.
const (
	maxMessage    = 600
	maxViolations = 2 << 10 // of all
	maxDetail     = 300     // of one part of one
)

// comeBack is when a client may try again that was told UNAVAILABLE, as Retry-After says over HTTP.
const comeBack = time.Second

var errDraining = fmt.Errorf("this router is shutting down and takes no new work; try again: %w", event.ErrUnavailable)

// codeOf says with which code, and for which reason of ErrorInfo, an error is told. Errors outside the table are INTERNAL
// and show no detail.
func codeOf(err error) (codes.Code, string) {
	for _, x := range [...]struct {
		is     error
		code   codes.Code
		reason string
	}{
		{access.ErrUnauthenticated, codes.Unauthenticated, "UNAUTHENTICATED"},
		{admission.ErrRevoked, codes.PermissionDenied, "REVOKED"},
		{event.ErrInvalid, codes.InvalidArgument, "INVALID"},
		{event.ErrUnverified, codes.Unauthenticated, "UNVERIFIED"},
		{event.ErrDenied, codes.PermissionDenied, "DENIED"},
		{event.ErrNotFound, codes.NotFound, "NOT_FOUND"},
		{event.ErrConflict, codes.FailedPrecondition, "CONFLICT"},
		{event.ErrGone, codes.OutOfRange, "GONE"},
		{event.ErrPrecondition, codes.Aborted, "PRECONDITION"},
		{event.ErrTooLarge, codes.InvalidArgument, "TOO_LARGE"},
		{event.ErrSchema, codes.InvalidArgument, "SCHEMA"},
		{event.ErrUnsupported, codes.Unimplemented, "UNSUPPORTED"},
		{event.ErrFunction, codes.FailedPrecondition, "FUNCTION"},
		{event.ErrUnavailable, codes.Unavailable, "UNAVAILABLE"},
		{event.ErrFull, codes.ResourceExhausted, "FULL"},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE"},
		{context.Canceled, codes.Canceled, "CANCELED"},
	} {
		if errors.Is(err, x.is) {
			return x.code, x.reason
		}
	}
	return codes.Internal, "INTERNAL"
}

// A named error is about something that has a name, which the answer repeats.
type named struct {
	kind access.Kind
	name string
	err  error
}

func (n *named) Error() string { return n.err.Error() }
func (n *named) Unwrap() error { return n.err }

// about says of what an error is.
func about(k access.Kind, name string, err error) error {
	if err == nil || name == "" {
		return err
	}
	return &named{k, name, err}
}

// exists is the conflict with what has the name already that something is to be made of.
type exists struct{ err error }

func (e *exists) Error() string { return e.err.Error() }
func (e *exists) Unwrap() error { return e.err }

// statusOf is err as gRPC tells it. Of an error that is the router's own it shows nothing; internal reports that, so that
// it can be logged. An error that is a status already, as grpc's own are, stays as it is.
func statusOf(err error) (st *status.Status, internal bool) {
	var made interface{ GRPCStatus() *status.Status }
	if errors.As(err, &made) {
		return made.GRPCStatus(), false
	}
	var many *admission.TooMany
	if errors.As(err, &many) {
		st := status.New(codes.ResourceExhausted, message(err))
		return with(st, &errdetails.ErrorInfo{Reason: "TOO_MANY", Domain: domain, Metadata: map[string]string{"limit": many.Limit.String()}},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(max(many.Wait, 0))}), false
	}
	code, reason := codeOf(err)
	if code == codes.Internal {
		return with(status.New(code, "the router failed; its log says why"), &errdetails.ErrorInfo{Reason: reason, Domain: domain}), true
	}
	var already *exists
	if errors.As(err, &already) {
		code = codes.AlreadyExists
	}
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: domain}}
	var f *event.Faults
	if errors.As(err, &f) && code == codes.InvalidArgument {
		details = append(details, violations(f))
	}
	var n *named
	switch {
	case code == codes.Unavailable, code == codes.ResourceExhausted:
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(comeBack)})
	case errors.As(err, &n) && (code == codes.NotFound || code == codes.PermissionDenied || code == codes.AlreadyExists):
		details = append(details, &errdetails.ResourceInfo{ResourceType: n.kind.String(), ResourceName: cut(n.name, maxDetail)})
	}
	return with(status.New(code, message(err)), details...), false
}

func violations(f *event.Faults) *errdetails.BadRequest {
	out := &errdetails.BadRequest{}
	left := maxViolations
	for _, x := range f.List {
		v := &errdetails.BadRequest_FieldViolation{Field: plain(x.At, maxDetail), Description: plain(x.Detail, maxDetail)}
		if left -= len(v.Field) + len(v.Description); left < 0 && len(out.FieldViolations) > 0 {
			break
		}
		out.FieldViolations = append(out.FieldViolations, v)
	}
	return out
}

// with adds details, which cannot fail of a code other than OK.
func with(st *status.Status, details ...protoadapt.MessageV1) *status.Status {
	if d, err := st.WithDetails(details...); err == nil {
		return d
	}
	return st
}

func message(err error) string { return plain(err.Error(), maxMessage) }

// plain is s as clients may show it, in n bytes at most.
func plain(s string, n int) string { return cut(event.Visible(cut(s, n)), n) }

// cut shortens s to n bytes, and keeps it UTF-8.
func cut(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:n-len("…")], "") + "…"
}
