package httpapi

import "golang.org/x/sys/unix"

// halfClosed reports whether the other side has ended its half of the connection, though it may have sent more before.
func halfClosed(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}
