// Package pebblestore keeps events in Pebble, an LSM tree, in one directory of one process: the router's
// default store. Pebble sees blocks of events, never single ones. See commit.go for the order of writes, ring.go
// for retention, disk.go for full disks and verify.go for corruption.
package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// Options of a store. The zero value of a field means its default; Dir has none.
type Options struct {
	Dir string // the data directory; made if it is missing
	FS  vfs.FS // the operating system's

	Now         func() time.Time // time.Now
	AcceptClock bool             // follow the wall clock even if it went forward by over a year

	MemTable    int64       // bytes of Pebble's memtable; 64 MiB, at most 1/32 of what is free on the disk
	Cache       int64       // bytes of Pebble's block cache; 32 MiB
	BlockCache  int64       // bytes of freshly committed blocks kept for live readers; 32 MiB
	DedupeBytes int64       // bytes of the index of ids; 64 MiB
	MaxPending  int         // commits that may wait; more are event.ErrUnavailable; 65,536
	DiskReserve int64       // bytes that commits leave free; 64 MiB or 5 % of the disk, at most a quarter or 1 GiB
	Compression Compression // of events on the disk; Uncompressed

	StallTimeout time.Duration // how long a write may hang before the store counts as failed; 30 s

	Logf func(format string, args ...any) // nil: nothing is logged. At most about a line a second

	noSync          bool // acknowledge before the sync: the mutant that the crash tests must catch
	pipeline        int  // groups under way at once
	checkpointEvery time.Duration
	owed            int64 // bytes that rings must have dropped before their space is asked back; 256 MiB
	keyPerEvent     bool  // a block per event, for the benchmark
}

// Compression says how events are compressed on the disk.
type Compression uint8

// The choices. Compressing costs most of all that a write does.
const (
	Uncompressed Compression = iota
	Fast                     // Snappy or better
	Small                    // Zstandard at the bottom
)

func (o Options) withDefaults() Options {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.MemTable, 64<<20)
	def(&o.Cache, 32<<20)
	def(&o.BlockCache, 32<<20)
	def(&o.DedupeBytes, 64<<20)
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxPending == 0 {
		o.MaxPending = 1 << 16
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = 30 * time.Second
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	if o.pipeline == 0 {
		o.pipeline = 1 // more make smaller groups, and those cost more than the overlap gains (BenchmarkCommit)
	}
	if o.owed == 0 {
		o.owed = 256 << 20
	}
	if o.checkpointEvery == 0 {
		o.checkpointEvery = 10 * time.Second
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(o.Dir != "", "Dir: missing")
	bad(o.MemTable >= 64<<10, "MemTable: %d bytes; at least 64 KiB", o.MemTable)
	bad(o.Cache >= 0 && o.BlockCache >= 0 && o.DedupeBytes >= 0 && o.DiskReserve >= 0, "Cache, BlockCache, DedupeBytes, DiskReserve: below 0")
	bad(o.MaxPending > 0, "MaxPending: %d; at least 1", o.MaxPending)
	bad(o.Compression <= Small, "Compression: %d; 0 to %d", o.Compression, Small)
	bad(o.StallTimeout >= time.Millisecond, "StallTimeout: %s; at least 1ms", o.StallTimeout)
	return errors.Join(errs...)
}

// Open opens the store in a directory, or makes one there. It refuses, in words, a directory that another
// process has open, that a newer build wrote, or that has lost something it had acknowledged.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	o = o.withDefaults()
	if err := errors.Join(o.validate(), ctx.Err()); err != nil {
		return nil, fmt.Errorf("pebblestore: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("data directory %s: %w", o.Dir, err)
		}
	}()
	s := &Store{
		o: o, logs: map[storage.LogID]*plog{},
		queue:      queue{signal: make(chan struct{}, 1)},
		groups:     make(chan *group, o.pipeline),
		syncs:      make(chan *group, o.pipeline),
		closing:    make(chan struct{}),
		fatal:      make(chan struct{}),
		checkpoint: make(chan struct{}, 1),
	}
	s.clock = clock{now: o.Now, accept: o.AcceptClock}
	s.requests.New = func() any { return &request{done: make(chan struct{}, 1)} }
	if s.files, err = openFiles(o.FS, o.Dir, os.Getpid()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.files.close())
		}
	}()
	s.space = newSpace(o.FS, o.Dir, o.DiskReserve)
	opened := make(chan error, 1)
	go func() { opened <- s.openDB() }() // ends with this call, but for a guardFS that stops it for good
	select {
	case err = <-opened:
	case <-s.fatal:
		err = s.degraded()
	}
	if err != nil {
		return nil, err
	}
	s.run()
	return s, nil
}

// openDB makes Pebble's directory or checks the one that is there, and opens it.
func (s *Store) openDB() (err error) {
	f := s.files
	if err := removeSnapshot(f.fs, f.dir); err != nil { // of a process that was killed
		return err
	}
	if !f.ready {
		// Nothing was ever acknowledged here: what a making that was cut short has left behind goes.
		if err := f.fs.RemoveAll(f.db); err != nil && !errors.Is(err, vfsNotExist) {
			return err
		}
		// A new store's first log keeps Pebble's old format, in which a flipped bit drops what follows in silence
		// (pebble#453, #864). Closing and opening once gives the next log the format that tells.
		if s.db, err = openPebble(f.db, s.pebbleOptions()); err != nil {
			return err
		}
		if err := closePebble(s.db); err != nil {
			return err
		}
	} else if err := f.verify(s.o.Logf); err != nil {
		return err
	}
	if s.db, err = openPebble(f.db, s.pebbleOptions()); err != nil {
		return f.explain(err)
	}
	if err := s.start(); err != nil {
		return errors.Join(f.explain(err), closePebble(s.db))
	}
	return nil
}

// closePebble is db.Close whose panics are errors: it panics when it cannot close a log.
func closePebble(db *pebble.DB) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("closing Pebble: %v", p)
		}
	}()
	return db.Close()
}

// openPebble is pebble.Open whose panics are errors.
func openPebble(dir string, o *pebble.Options) (db *pebble.DB, err error) {
	held := newCompactions()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("opening Pebble: %v", p)
		}
		if err != nil {
			held.stop()
		} else {
			held.release()
		}
	}()
	o.Experimental.CompactionScheduler = held
	o.Cache = pebble.NewCache(o.CacheSize)
	defer o.Cache.Unref()
	return pebble.Open(dir, o)
}

// start checks what Pebble came back with against the sidecar and counts the epoch.
func (s *Store) start() error {
	f := s.files
	if err := s.checkFormat(); err != nil {
		return err
	}
	if err := s.checkOffsets(); err != nil {
		return err
	}
	epoch, err := s.meta(keyEpoch)
	if err != nil {
		return err
	}
	s.epoch = epoch + 1
	b := s.db.NewBatch()
	if err := errors.Join(
		b.Set(keyFormat, le.AppendUint64(nil, formatVersion), nil),
		b.Set(keyEpoch, le.AppendUint64(nil, s.epoch), nil),
		b.Commit(pebble.Sync)); err != nil {
		return err
	}
	if err := s.degraded(); err != nil { // Pebble's logger was told
		return err
	}
	if ahead := s.clock.start(f.clock); ahead != 0 {
		s.o.Logf("pebblestore: the clock is %s ahead of the last run's end; it is not followed: events get times from %s on. If the clock is right, start with --accept-clock",
			ahead.Round(time.Hour), time.Unix(0, s.clock.read()).UTC().Format(time.RFC3339))
	}
	if err := s.writeSidecar(); err != nil {
		return err
	}
	return s.degraded()
}

// run starts the goroutines; Close ends them.
func (s *Store) run() {
	for range s.o.pipeline {
		s.groups <- &group{}
	}
	s.wg.Add(3)
	go func() { defer s.wg.Done(); s.commitLoop() }()
	go func() { defer s.wg.Done(); s.publishLoop() }()
	go func() { defer s.wg.Done(); s.background() }()
}

func (s *Store) meta(key []byte) (uint64, error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	if len(v) != 8 {
		return 0, fmt.Errorf("row %q has %d bytes, not 8", key[1:], len(v))
	}
	return le.Uint64(v), nil
}

// formatVersion is that of keys and values. A directory of a higher one is refused.
const formatVersion = 1

func (s *Store) checkFormat() error {
	v, err := s.meta(keyFormat)
	if err == nil && v > formatVersion {
		err = tooNew(v)
	}
	return err
}

func tooNew(v uint64) error {
	return fmt.Errorf("%w: it has format %d, this build knows up to %d; start the build that wrote it, or a newer one", event.ErrUnsupported, v, formatVersion)
}

// vfsNotExist is what file systems answer for a missing file.
var vfsNotExist = fs.ErrNotExist

// rateLog passes on at most one line a second and says how many it held back.
type rateLog struct {
	logf func(string, ...any)
	last atomic.Int64
	held atomic.Int64
}

func (r *rateLog) printf(format string, args ...any) {
	now, last := time.Now().UnixNano(), r.last.Load()
	if now-last < int64(time.Second) || !r.last.CompareAndSwap(last, now) {
		r.held.Add(1)
		return
	}
	if n := r.held.Swap(0); n > 0 {
		format += " (%d more lines held back)"
		args = append(args, n)
	}
	r.logf("pebble: "+format, args...)
}
