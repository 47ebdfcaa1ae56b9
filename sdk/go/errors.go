package millrace

import "github.com/millrace/millrace/sdk/go/internal/host"

// A HostError is why the router did not do what it was asked for, by the packages kv, fetch and secret.
type HostError = host.Error

// The errors of the router.
const (
	ErrNotFound    = host.NotFound
	ErrDenied      = host.Denied
	ErrTooBig      = host.TooBig
	ErrDeadline    = host.Deadline
	ErrIO          = host.IO
	ErrBadArgument = host.BadArgument
)
