package httpapi

import (
	"errors"

	"github.com/millrace/millrace/engine/event"
)

// statusOf says with which status, and under which name as the problem's type, an error is answered.
// Errors outside the table are 500 and show no detail.
func statusOf(err error) (status int, kind string) {
	for _, x := range [...]struct {
		is     error
		status int
		kind   string
	}{
		{event.ErrInvalid, 400, "invalid"},
		{event.ErrUnverified, 401, "unverified"},
		{event.ErrDenied, 403, "denied"},
		{event.ErrNotFound, 404, "not-found"},
		{event.ErrConflict, 409, "conflict"},
		{event.ErrGone, 410, "gone"},
		{event.ErrPrecondition, 412, "precondition"},
		{event.ErrTooLarge, 413, "too-large"},
		{event.ErrSchema, 422, "schema"},
		{event.ErrUnsupported, 501, "unsupported"},
		{event.ErrFunction, 502, "function"},
		{event.ErrUnavailable, 503, "unavailable"},
		{event.ErrFull, 507, "full"},
	} {
		if errors.Is(err, x.is) {
			return x.status, x.kind
		}
	}
	return 500, "internal"
}
