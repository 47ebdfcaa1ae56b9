// Package secret reads the secrets that a function was given. Importing it requires a router that has them.
package secret

import (
	"errors"

	millrace "github.com/millrace/millrace/sdk/go"
	"github.com/millrace/millrace/sdk/go/internal/host"
)

var _ = millrace.Require(millrace.FeatureSecrets)

// Get returns a secret, and false where there is none by that name. The error is a millrace.HostError, Denied for
// one that is not this function's. Read a secret when it is needed rather than once: it may be changed.
func Get(name string) (value string, ok bool, err error) {
	b, err := host.Read(func(buf []byte) int64 { return get(name, buf) })
	if errors.Is(err, host.NotFound) {
		return "", false, nil
	}
	return string(b), err == nil, err
}
