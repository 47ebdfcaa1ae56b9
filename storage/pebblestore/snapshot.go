package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A Snapshot is the store as it was at one moment, in a folder of its own beside Pebble's files: tables of Pebble's are
// never changed, so they are hard links and cost nothing until the store itself would delete them. It is a
// whole data directory, that Open and Check take.
type Snapshot struct {
	// Dir is the folder. It is on the disk of the store.
	Dir string

	s *Store
}

const snapshotName = "snapshot"

// Snapshot takes one. Every batch whose Commit had returned is in it; of those under way each is in it whole or not at
// all. Commits go on meanwhile. There is one at a time: event.ErrConflict until the other is closed. Close removes it,
// and so does the next Open.
func (s *Store) Snapshot(ctx context.Context) (*Snapshot, error) {
	if err := errors.Join(ctx.Err(), s.degraded()); err != nil {
		return nil, err
	}
	if !s.snapshotting.TryLock() {
		return nil, fmt.Errorf("%w: a snapshot of the store is being read already; wait for its end", event.ErrConflict)
	}
	if err := s.enter(); err != nil {
		s.snapshotting.Unlock()
		return nil, err
	}
	defer s.leave()
	sn := &Snapshot{Dir: s.o.FS.PathJoin(s.o.Dir, snapshotName), s: s}
	if err := sn.take(); err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot %s: %w", sn.Dir, err), sn.Close())
	}
	return sn, nil
}

func (sn *Snapshot) take() error {
	s, fs := sn.s, sn.s.o.FS
	if err := s.roomForLogs(); err != nil {
		return err
	}
	if err := removeSnapshot(fs, s.o.Dir); err != nil {
		return err
	}
	if err := mkdirSynced(fs, sn.Dir); err != nil {
		return err
	}
	f := &files{fs: fs, dir: sn.Dir, db: fs.PathJoin(sn.Dir, "pebble"), next: map[storage.LogID]event.Offset{}}
	// What is claimed was durable before Pebble copies its logs, and so is in them.
	s.eachLog(func(l *plog) { f.next[l.id] = l.visible() })
	if err := checkpoint(s.db, f.db); err != nil {
		return err
	}
	if err := f.cutNewestLog(); err != nil {
		return err
	}
	var err error
	if f.manifest, f.good, err = f.syncManifest(); err != nil {
		return err
	}
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	for id := range s.files.dropped { // before its rows go, the sidecar forgets a log
		delete(f.next, id)
	}
	f.clock = s.clock.read()
	return f.write(true)
}

// checkpoint is db.Checkpoint whose panics are errors: it panics, holding no lock, when it cannot sync its folder.
func checkpoint(db *pebble.DB, dir string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return db.Checkpoint(dir, pebble.WithFlushedWAL())
}

// cutNewestLog ends the copy of the log that was written to while Pebble copied it where the copy has its first gap. A
// part of the copy that was read early may be zero where one that was read later says that it is synced, which an
// opening Pebble takes for corruption. What was written before the copying began lies before any gap.
func (f *files) cutNewestLog() error {
	logs, newest, err := f.logs()
	if err != nil || newest == "" {
		return err
	}
	good, _, err := f.walkLog(newest, logs[newest])
	if !errors.Is(err, record.ErrZeroedChunk) && !errors.Is(err, record.ErrInvalidChunk) {
		return nil // a clean end, or one that is torn off, which Pebble takes
	}
	path := f.fs.PathJoin(f.db, newest)
	b, err := readFile(f.fs, path)
	if err != nil {
		return err
	}
	return writeFile(f.fs, f.db, newest, b[:good])
}

// roomForLogs refuses a snapshot that would take the disk below its watermark: Pebble's logs are copied.
func (s *Store) roomForLogs() error {
	names, err := s.o.FS.List(s.files.db)
	if err != nil {
		return err
	}
	var logs int64
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") {
			continue
		}
		if info, err := s.o.FS.Stat(s.o.FS.PathJoin(s.files.db, name)); err == nil {
			logs += info.Size()
		}
	}
	return s.space.admit(logs, false)
}

// Close removes the snapshot.
func (sn *Snapshot) Close() error {
	defer sn.s.snapshotting.Unlock()
	return removeSnapshot(sn.s.o.FS, sn.s.o.Dir)
}

func removeSnapshot(fs vfs.FS, dir string) error {
	if err := fs.RemoveAll(fs.PathJoin(dir, snapshotName)); err != nil && !errors.Is(err, vfsNotExist) {
		return err
	}
	return nil
}

// outside says whether a file is a snapshot's: what goes wrong there is no fault of the store.
func (g guardFS) outside(name string) bool {
	return strings.HasPrefix(name, g.PathJoin(g.s.o.Dir, snapshotName))
}

// Hold keeps routers out of a directory that no process has open until it is closed, so that its files can be copied or
// mended. It changes nothing but the lock and pid files.
func Hold(dir string) (io.Closer, error) {
	if _, err := os.Stat(vfs.Default.PathJoin(dir, "pebble")); err != nil {
		return nil, fmt.Errorf("data directory %s: %w; it is no data directory, or its events are gone", dir, err)
	}
	f, err := openFiles(vfs.Default, dir, os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	return held{f}, nil
}

// LastTime is a time that a store has reached, by its own clock, which never goes back; zero if it has not noted any yet. A
// process may have it open.
func LastTime(dir string) (time.Time, error) {
	b, err := readFile(vfs.Default, vfs.Default.PathJoin(dir, sidecarName))
	f := &files{next: map[storage.LogID]event.Offset{}}
	if err == nil {
		err = f.parse(b)
	}
	if err != nil || f.clock == 0 {
		return time.Time{}, err
	}
	return time.Unix(0, f.clock), nil
}

type held struct{ f *files }

// Close lets routers in again.
func (h held) Close() error { return h.f.close() }

// Own are the files of a data directory that belong to a process or can be made again: a copy does without.
func Own(name string) bool {
	switch name {
	case "LOCK", "pid", "ballast", snapshotName:
		return true
	}
	return strings.HasSuffix(name, ".tmp")
}
