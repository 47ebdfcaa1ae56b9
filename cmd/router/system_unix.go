//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// apart starts a child in a group of its own, so that Ctrl-C is this process's to act on.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// askToEnd asks a child that was started apart to end in order.
func askToEnd(p *os.Process) error { return p.Signal(syscall.SIGTERM) }

// isRefused says whether nothing listens where a connection was tried.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// openFiles is how many files and connections this process may have open. The Go runtime raises the soft limit to the
// hard one by itself.
func openFiles() (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("the limit of open files cannot be read: %w", err)
	}
	return uint64(l.Max), nil
}

// lockFile takes a file's lock or fails at once. It belongs to what was opened, and ends when that is closed or its process ends.
func lockFile(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// heldElsewhere tells that a lock is somebody else's from what else keeps one from being had.
func heldElsewhere(err error) bool { return errors.Is(err, unix.EWOULDBLOCK) }

// unlockAndRemove removes the file while it is locked, so that nobody's but the own goes.
func unlockAndRemove(f *os.File) error { return errors.Join(os.Remove(f.Name()), f.Close()) }

// syncFolder makes what was renamed in a folder survive a power cut.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
