package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// A watchedFile is a file that a process reads again when it, or a file that it names, changes.
type watchedFile struct {
	path  string
	files []string // that were read the last time, itself first
	stamp string   // of those
	again bool     // one of them is there and could not be read: nothing of it need change before it can
	told  string   // the fault of the last load, "" for none
}

// readTop reads the file itself, and forgets which others it named before.
func (f *watchedFile) readTop() ([]byte, error) {
	f.files, f.stamp, f.again = nil, "", false
	return f.read(f.path)
}

// read reads the file or one that it names. It is stamped before: what changes meanwhile is seen by the next look. One that
// cannot be read is looked at too, since it may come.
func (f *watchedFile) read(name string) ([]byte, error) {
	f.files = append(f.files, name)
	f.stamp += stampOf(name)
	text, err := readSmall(name)
	var system *fs.PathError
	if errors.As(err, &system) && !errors.Is(err, fs.ErrNotExist) { // out of descriptors, a mount that is away
		f.again = true
	}
	return text, err
}

// news reports whether a load's outcome is to be told: one that is tried again and again fails in the same words.
func (f *watchedFile) news(err error) bool {
	before := f.told
	if f.told = ""; err != nil {
		f.told = err.Error()
	}
	return !f.again || f.told != before
}

// watch calls reload, which reads the file, when what was read has changed, when it could not be read, or when a signal
// asks for it, until ctx ends.
func (f *watchedFile) watch(ctx context.Context, hangup <-chan os.Signal, every time.Duration, reload func()) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	seen := f.stamp
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		case <-ticker.C:
			now := stampsOf(f.files)
			if now == f.stamp && !f.again {
				continue
			}
			if now != f.stamp && now != seen { // whoever writes it may not be done; it is read once it stays the same for a tick
				seen = now
				continue
			}
		}
		reload()
	}
}

// maxSmall bounds a file that readSmall reads, in bytes.
const maxSmall = 4 << 20

// readSmall reads a file that is a policy, or that one names.
func readSmall(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxSmall+1))
	if err == nil && len(text) > maxSmall {
		err = fmt.Errorf("%s: has over %d bytes", path, maxSmall)
	}
	return text, err
}
