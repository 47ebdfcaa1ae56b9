package pebblestore

import (
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// pebbleLog is Pebble's logger. Pebble's own would end the process on Fatalf.
type pebbleLog struct {
	s    *Store
	rate *rateLog
}

// Infof drops Pebble's chatter.
func (pebbleLog) Infof(string, ...any) {}

// Errorf implements pebble.Logger.
func (l pebbleLog) Errorf(format string, args ...any) { l.rate.printf(format, args...) }

// Fatalf ends commits, and does not return: Pebble would go on as if a failed write of its MANIFEST had been made.
func (l pebbleLog) Fatalf(format string, args ...any) {
	l.s.fail(fmt.Sprintf(format, args...))
	select {}
}

// pebbleOptions are chosen for a ring: what is flushed is soon deleted, so that the best compaction is
// none. Small tables and a single level below L0 let most of it be dropped whole (measured: 2.1 to 2.2 bytes
// written for each byte of a user's, 2.6 to 2.9 with Pebble's own levels). Value separation is off: it
// wrote more here, and Pebble 2.1.7 panics when a blob file cannot be written.
func (s *Store) pebbleOptions() *pebble.Options {
	mem := s.o.MemTable
	if s.space.known {
		// Pebble preallocates 110 % of the memtable for its log, and a flush takes as much again: the memtable must
		// follow the disk.
		mem = max(256<<10, min(mem, int64(s.space.free()/32)))
	}
	log := pebbleLog{s, &rateLog{logf: s.o.Logf}}
	profile := sstable.NoCompression
	switch s.o.Compression {
	case Fast:
		profile = sstable.FastCompression
	case Small:
		profile = sstable.GoodCompression
	}
	o := &pebble.Options{
		FS:                          guardFS{vfs.OnDiskFull(s.o.FS, s.space.full), s},
		Logger:                      log,
		CacheSize:                   s.o.Cache,
		FormatMajorVersion:          pebble.FormatTableFormatV6, // at least FormatWALSyncChunks
		MemTableSize:                uint64(mem),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       64,
		L0CompactionFileThreshold:   1 << 20,
		L0StopWritesThreshold:       1000,
		LBaseMaxBytes:               4 << 30,
		MaxManifestFileSize:         4 << 20,
		MaxOpenFiles:                1000,
		BytesPerSync:                1 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		FlushDelayDeleteRange:       10 * time.Second,
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { log.rate.printf("%v", err) },
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				log.rate.printf("corruption in %s: %v; %s", i.Path, i.Details, repairHint(s.o.Dir))
			},
			FlushEnd: func(pebble.FlushInfo) {
				// A flush ends the life of a log; what it held is from now on vouched for by the MANIFEST alone. A
				// sidecar that knows of it makes a later loss visible.
				select {
				case s.checkpoint <- struct{}{}:
				default:
				}
			},
		},
	}
	for i := range o.Levels {
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return profile }
		o.Levels[i].BlockSize = 8 << 10
	}
	o.TargetFileSizes[0] = max(256<<10, min(mem/8, 8<<20))
	o.FlushSplitBytes = o.TargetFileSizes[0]
	return o
}
