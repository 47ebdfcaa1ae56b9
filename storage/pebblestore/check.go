package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// Check examines a data directory that no process has open, and changes nothing in it but its lock and pid
// files. It reports every fault in words and returns an error if there was any. Deep also reads every block
// of every table and every event.
func Check(ctx context.Context, dir string, deep bool, report func(string)) error {
	return checkDir(ctx, vfs.Default, dir, deep, report)
}

func checkDir(ctx context.Context, fs vfs.FS, dir string, deep bool, report func(string)) (err error) {
	faults := 0
	fault := func(format string, args ...any) {
		faults++
		report(fmt.Sprintf(format, args...))
	}
	if _, err := fs.Stat(dir); err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if _, err := fs.Stat(fs.PathJoin(dir, "pebble")); err != nil {
		return fmt.Errorf("data directory %s: %w; it is no data directory, or its events are gone", dir, err)
	}
	f, err := openFiles(fs, dir, os.Getpid())
	if err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.verify(func(format string, args ...any) { report(fmt.Sprintf(format, args...)) }); err != nil {
		fault("%v", err)
	}
	f.walkLogs(func(name string, err error) { fault("%s is corrupt: %v", fs.PathJoin(f.db, name), err) })
	if faults == 0 {
		f.checkRows(ctx, deep, fault)
	} else if deep {
		f.readTables(ctx, nil, fault)
	}
	if faults > 0 {
		return fmt.Errorf("data directory %s: %d faults; restore it from a backup", dir, faults)
	}
	return ctx.Err()
}

// readTables verifies the checksums of every block of the live tables (nil: of all; a crash leaves some behind
// that are not used).
func (f *files) readTables(ctx context.Context, live map[string]bool, fault func(string, ...any)) {
	names, err := f.fs.List(f.db)
	if err != nil {
		fault("%v", err)
		return
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") || live != nil && !live[name] || ctx.Err() != nil {
			continue
		}
		path := f.fs.PathJoin(f.db, name)
		if err := f.readTable(ctx, path); err != nil {
			fault("%s is corrupt: %v", path, err)
		}
	}
}

func (f *files) readTable(ctx context.Context, path string) (err error) {
	defer func() {
		if p := recover(); p != nil { // a table whose head is garbage may index out of bounds
			err = fmt.Errorf("%v", p)
		}
	}()
	h, err := f.fs.Open(path)
	if err != nil {
		return err
	}
	readable, err := sstable.NewSimpleReadable(h)
	if err != nil {
		return errors.Join(err, h.Close())
	}
	r, err := sstable.NewReader(ctx, readable, sstable.ReaderOptions{})
	if err != nil {
		return errors.Join(err, readable.Close())
	}
	return errors.Join(r.ValidateBlockChecksums(), r.Close())
}

// checkRows opens Pebble for reading and holds logs, chunks and events against each other and the sidecar.
func (f *files) checkRows(ctx context.Context, deep bool, fault func(string, ...any)) {
	s := &Store{o: Options{Dir: f.dir, FS: f.fs, Logf: func(string, ...any) {}}.withDefaults(), files: f, fatal: make(chan struct{})}
	s.clock = clock{now: s.o.Now}
	s.space = newSpace(f.fs, f.dir, 0)
	o := s.pebbleOptions()
	o.ReadOnly = true
	var err error
	if s.db, err = openPebble(f.db, o); err != nil {
		fault("%v", f.explain(err))
		if deep {
			f.readTables(ctx, nil, fault)
		}
		return
	}
	defer func() {
		if err := closePebble(s.db); err != nil {
			fault("%v", err)
		}
	}()
	if deep {
		f.readTables(ctx, s.liveTables(fault), fault)
	}
	if err := errors.Join(s.checkFormat(), s.checkOffsets()); err != nil {
		fault("%v", err)
	}
	ids, err := s.logIDs()
	if err != nil {
		fault("%v", err)
	}
	for _, id := range ids {
		l, _, err := s.loadLog(id, storage.LogOptions{Bytes: 1, Dedupe: 1})
		if err == nil && deep {
			err = s.checkLog(ctx, l)
		}
		if err != nil {
			fault("%v", err)
		}
	}
}

// liveTables are the files that hold what Pebble knows.
func (s *Store) liveTables(fault func(string, ...any)) map[string]bool {
	levels, err := s.db.SSTables()
	if err != nil {
		fault("%v", err)
		return nil
	}
	live := map[string]bool{}
	for _, level := range levels {
		for _, t := range level {
			live[fmt.Sprintf("%06d.sst", uint64(t.BackingSSTNum))] = true
			live[fmt.Sprintf("%06d.sst", uint64(t.FileNum))] = true
		}
	}
	return live
}

// logIDs lists the logs on the disk.
func (s *Store) logIDs() ([]storage.LogID, error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{kindLog}, UpperBound: []byte{kindLog + 1}})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var ids []storage.LogID
	for ok := it.First(); ok; ok = it.Next() {
		if k := it.Key(); len(k) == logKeySize {
			ids = append(ids, storage.LogID{Topic: be.Uint32(k[1:]), Partition: be.Uint32(k[5:])})
		}
	}
	return ids, it.Error()
}

// checkLog reads every event of a log.
func (s *Store) checkLog(ctx context.Context, l *plog) error {
	next := l.head
	err := s.scanKeys(kindBlock, l.id, l.head, func(o event.Offset, v []byte) error {
		count, _, records, err := parseBlock(l.id, o, v)
		if err == nil && o != next {
			err = fmt.Errorf("log %s: offsets [%d, %d) are missing", logName(l.id), next, o)
		}
		for n := 0; err == nil && len(records) > 0; n++ {
			var r event.Record
			if r, records, err = event.CutRecord(records); err == nil && (r.Offset() != next || n >= count) {
				err = fmt.Errorf("it has offset %d, not %d", r.Offset(), next)
			}
			if err != nil {
				err = fmt.Errorf("log %s: event %d: %w", logName(l.id), next, err)
			}
			next++
		}
		return errors.Join(err, ctx.Err())
	})
	if err == nil && next != l.next {
		err = fmt.Errorf("log %s: it ends at %d, its chunks at %d", logName(l.id), next, l.next)
	}
	return err
}
