//go:build unix

package httpapi

import (
	"net"
	"syscall"
)

// hungUp reports whether the other side has closed the connection, without reading what it has sent. Behind TLS what it
// has sent ends with a record that says goodbye, which cannot be told from others: there it is asked whether the other
// side has ended its half of the connection.
func hungUp(nc net.Conn, behindTLS bool) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		if behindTLS && halfClosed(fd) {
			gone = true
			return
		}
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && err != syscall.EAGAIN && err != syscall.EINTR
	})
	return gone || err != nil
}
