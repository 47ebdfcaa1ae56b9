package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// ReadOnly is the store of a directory that no process has open, or of a copy of one: what it holds can be read, and
// nothing can be changed. As long as it is open no router starts there.
type ReadOnly struct{ s *Store }

var _ storage.Store = (*ReadOnly)(nil)

var errReadOnly = fmt.Errorf("the store is open for reading alone: %w", event.ErrUnavailable)

// OpenReadOnly opens one. It changes nothing in the directory but its lock and pid files, and refuses as Open does
// what has lost something that was acknowledged.
func OpenReadOnly(ctx context.Context, dir string) (*ReadOnly, error) {
	return openReadOnly(ctx, vfs.Default, dir)
}

func openReadOnly(ctx context.Context, fs vfs.FS, dir string) (_ *ReadOnly, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("data directory %s: %w", dir, err)
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := fs.Stat(fs.PathJoin(dir, "pebble")); err != nil {
		return nil, fmt.Errorf("%w; it is no data directory, or its events are gone", err)
	}
	f, err := openFiles(fs, dir, os.Getpid())
	if err != nil {
		return nil, err
	}
	s := &Store{o: Options{Dir: dir, FS: fs, Logf: func(string, ...any) {}}.withDefaults(), files: f, fatal: make(chan struct{}), closing: make(chan struct{})}
	s.clock = clock{now: s.o.Now}
	s.space = newSpace(fs, dir, 0)
	if err := f.verify(s.o.Logf); err != nil {
		return nil, errors.Join(err, f.close())
	}
	o := s.pebbleOptions()
	o.ReadOnly = true
	if s.db, err = openPebble(f.db, o); err != nil {
		return nil, errors.Join(f.explain(err), f.close())
	}
	if err := errors.Join(s.checkFormat(), s.checkOffsets()); err != nil {
		return nil, errors.Join(err, closePebble(s.db), f.close())
	}
	return &ReadOnly{s}, nil
}

// OpenLog returns a log that the store holds. Its options are not put in force: nothing expires here.
func (r *ReadOnly) OpenLog(ctx context.Context, id storage.LogID, o storage.LogOptions) (storage.Log, error) {
	o.Dedupe = 0
	l, known, err := r.s.loadLog(id, o)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && !known {
		err = l.missing()
	}
	if err != nil {
		return nil, err
	}
	return readOnlyLog{l}, nil
}

// readOnlyLog is a log that does not grow.
type readOnlyLog struct{ *plog }

// Trim changes nothing.
func (readOnlyLog) Trim(context.Context, event.Offset) error { return errReadOnly }

// Load implements storage.Store.
func (r *ReadOnly) Load(ctx context.Context, t storage.Table, key []byte) ([]byte, error) {
	return r.s.Load(ctx, t, key)
}

// Scan implements storage.Store.
func (r *ReadOnly) Scan(ctx context.Context, t storage.Table, from, to []byte, fn func(key, value []byte) error) error {
	return r.s.Scan(ctx, t, from, to, fn)
}

// Commit is refused.
func (r *ReadOnly) Commit(context.Context, *storage.Batch) error { return errReadOnly }

// DropLog is refused.
func (r *ReadOnly) DropLog(context.Context, storage.LogID) error { return errReadOnly }

// Claim is refused: nobody owns a log in order to read it.
func (r *ReadOnly) Claim(context.Context, storage.LogID) (storage.Claim, error) {
	return nil, errReadOnly
}

// Stats are zero but for Degraded.
func (r *ReadOnly) Stats() storage.Stats { return storage.Stats{Degraded: errReadOnly.Error()} }

// Close ends reading. Reads under way end first.
func (r *ReadOnly) Close() error {
	r.s.closed.Do(func() {
		close(r.s.closing)
		r.s.readersMu.Lock()
		r.s.noReaders = make(chan struct{})
		if r.s.readers == 0 {
			close(r.s.noReaders)
		}
		r.s.readersMu.Unlock()
		<-r.s.noReaders
		r.s.closeErr = errors.Join(closePebble(r.s.db), r.s.files.close())
	})
	return r.s.closeErr
}
