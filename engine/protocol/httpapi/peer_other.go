//go:build !unix

package httpapi

import "net"

// hungUp cannot tell here: a request whose client has gone waits until its time is over.
func hungUp(net.Conn, bool) bool { return false }
