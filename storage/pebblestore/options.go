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

// Fatalf ends commits, and returns: reads can go on, and the process ends in its own words.
func (l pebbleLog) Fatalf(format string, args ...any) { l.s.fail(fmt.Sprintf(format, args...)) }

// valueSeparation is from which size on values (blocks of events) lie in files of their own, which
// compactions of the keys do not rewrite.
const valueSeparation = 1 << 10

func (s *Store) pebbleOptions() *pebble.Options {
	mem := s.o.MemTable
	if s.space.known {
		// Pebble preallocates 110 % of the memtable for its log: it must follow the disk.
		mem = max(256<<10, min(mem, int64(s.space.free()/16)))
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
		FS:                          vfs.OnDiskFull(s.o.FS, s.space.full),
		Logger:                      log,
		CacheSize:                   s.o.Cache,
		FormatMajorVersion:          pebble.FormatValueSeparation,
		MemTableSize:                uint64(mem),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       64,
		LBaseMaxBytes:               max(4*mem, 64<<20),
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
		o.Levels[i].BlockSize = 32 << 10
	}
	o.TargetFileSizes[0] = max(256<<10, min(mem/2, 16<<20))
	if !s.o.noSeparation {
		o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
			return pebble.ValueSeparationPolicy{
				Enabled: true, MinimumSize: valueSeparation, MaxBlobReferenceDepth: 16,
				RewriteMinimumAge: 5 * time.Minute, TargetGarbageRatio: 0.5,
			}
		}
	}
	return o
}
