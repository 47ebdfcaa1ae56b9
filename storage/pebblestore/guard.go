package pebblestore

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A guardFS stops Pebble where it can neither recover nor go on: when a log cannot be written, synced or
// closed, or a directory not synced, it panics, partly in goroutines of its own, partly while it
// holds locks, so that nobody can recover; and it must not go on either, since it would delete logs that
// are still needed. The goroutine that meets such an error stops for good instead. Commits end, callers are
// answered, reads go on, and the process can end in its own words.
type guardFS struct {
	vfs.FS
	s *Store
}

// stop ends commits and never returns.
func (s *Store) stop(what string, err error) {
	s.fail(what + ": " + err.Error())
	select {}
}

func (g guardFS) check(name string, err error) error {
	if err != nil && strings.HasSuffix(name, ".log") && !g.outside(name) {
		g.s.stop("writing "+name+" failed", err)
	}
	return err
}

// Unwrap implements vfs.FS.
func (g guardFS) Unwrap() vfs.FS { return g.FS }

// OpenDir implements vfs.FS.
func (g guardFS) OpenDir(name string) (vfs.File, error) {
	f, err := g.FS.OpenDir(name)
	if err != nil || g.outside(name) {
		return f, err
	}
	return guardDir{f, g.s, name}, nil
}

// Create implements vfs.FS.
func (g guardFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := g.s.degraded(); err != nil {
		g.s.stop("", err) // Pebble would try its flushes over and over
	}
	if strings.HasPrefix(g.PathBase(name), "marker.manifest.") && !g.outside(name) {
		// The marker names a MANIFEST whose own directory entry Pebble syncs only together with the marker's.
		// A power cut may keep the one and lose the other.
		dir := g.PathDir(name)
		if err := syncDir(g.FS, dir); err != nil {
			g.s.stop("syncing "+dir+" failed", err)
		}
	}
	f, err := g.FS.Create(name, category)
	return g.file(name, f, err)
}

// ReuseForWrite implements vfs.FS.
func (g guardFS) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := g.FS.ReuseForWrite(old, name, category)
	return g.file(name, f, err)
}

func (g guardFS) file(name string, f vfs.File, err error) (vfs.File, error) {
	if g.check(name, err) != nil {
		return nil, err
	}
	if strings.HasSuffix(name, ".log") && !g.outside(name) {
		f = guardLog{f, g, name}
	}
	return f, nil
}

// A guardLog is a write-ahead log.
type guardLog struct {
	vfs.File
	g    guardFS
	name string
}

// Write implements vfs.File.
func (l guardLog) Write(b []byte) (int, error) {
	n, err := l.File.Write(b)
	return n, l.g.check(l.name, err)
}

// Sync implements vfs.File.
func (l guardLog) Sync() error { return l.g.check(l.name, l.File.Sync()) }

// SyncData implements vfs.File.
func (l guardLog) SyncData() error { return l.g.check(l.name, l.File.SyncData()) }

// SyncTo implements vfs.File.
func (l guardLog) SyncTo(n int64) (bool, error) {
	full, err := l.File.SyncTo(n)
	return full, l.g.check(l.name, err)
}

// Close implements vfs.File.
func (l guardLog) Close() error { return l.g.check(l.name, l.File.Close()) }

type guardDir struct {
	vfs.File
	s    *Store
	name string
}

// Sync implements vfs.File.
func (d guardDir) Sync() error {
	if err := d.File.Sync(); err != nil {
		d.s.stop("syncing "+d.name+" failed", err)
	}
	return nil
}
