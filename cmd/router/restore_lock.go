package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// restoreLock is locked in a data directory while a restoration is at work there, or while a router opens its store. The
// lock is the kernel's and ends with the process; the file is removed with it.
const restoreLock = ".restore.lock"

// lockRestore keeps restorations, and routers that start, out of a data directory, which it makes, until release is called.
func lockRestore(data string) (release func() error, err error) {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(data, restoreLock)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lockFile(f); err != nil {
			return nil, errors.Join(noLock(data, err), f.Close())
		}
		release = func() error { return unlockAndRemove(f) }
		// Whoever had it may have removed the file between its opening and its locking: then it keeps nobody out.
		have, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(have, there) {
			return release, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// noLock says why a data directory could not be locked.
func noLock(data string, err error) error {
	if heldElsewhere(err) {
		return fmt.Errorf("%s: a restoration is at work here, or a router that starts (%w); wait for its end, or name another directory with --data", data, err)
	}
	return fmt.Errorf("%s cannot be locked (%w), and nothing else would keep two processes out of it; name a directory with --data whose file system has locks", data, err)
}
