//go:build !wasip1

package fetch

import "github.com/millrace/millrace/sdk/go/internal/host"

// request is denied outside a router: a handler's own tests hand the code that asks what it would have got.
func request(req, buf []byte) int64 { return int64(host.Denied) }
