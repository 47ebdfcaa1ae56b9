package pebblestore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// files are what lies in the data directory beside Pebble's own: the lock, the process's number, and the
// sidecar "offsets". The sidecar claims what must be found again at the next start: the next offset of
// every log, and how far Pebble's MANIFEST was good. Pebble opens in silence after some corruptions with
// less than it had; against the sidecar that shows. It claims only what is durable: its offsets
// are those that readers were shown, its length of the MANIFEST that of a file synced just before.
type files struct {
	fs   vfs.FS
	dir  string
	db   string // Pebble's directory
	lock io.Closer

	mu       sync.Mutex
	ready    bool // a store was made here before
	clock    int64
	manifest string // its file name; "" if not known
	good     int64  // bytes of it that are durable records
	next     map[storage.LogID]event.Offset
	written  bool // at least once in this run
	dropped  map[storage.LogID]bool
}

func openFiles(fs vfs.FS, dir string, pid int) (*files, error) {
	if err := mkdirSynced(fs, dir); err != nil {
		return nil, err
	}
	f := &files{fs: fs, dir: dir, db: fs.PathJoin(dir, "pebble"), next: map[storage.LogID]event.Offset{}, dropped: map[storage.LogID]bool{}}
	lock, err := fs.Lock(fs.PathJoin(dir, "LOCK"))
	if err != nil {
		if owner, readErr := readFile(fs, fs.PathJoin(dir, "pid")); readErr == nil {
			return nil, fmt.Errorf("locked by pid %s: %w; stop that process or choose another directory", strings.TrimSpace(string(owner)), err)
		}
		return nil, fmt.Errorf("locked: %w; stop the process that has it open or choose another directory", err)
	}
	f.lock = lock
	if err = f.load(); err == nil {
		err = writeFile(fs, dir, "pid", []byte(strconv.Itoa(pid)+"\n"))
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return f, nil
}

func (f *files) close() error {
	err := f.fs.Remove(f.fs.PathJoin(f.dir, "pid"))
	if errors.Is(err, vfsNotExist) {
		err = nil
	}
	return errors.Join(err, f.lock.Close())
}

const sidecarName = "offsets"

var sidecarMagic = [8]byte{'m', 'i', 'l', 'l', 'o', 'f', 'f', '1'}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// load reads the sidecar, or writes the first one: it must be there before Pebble's files, so that its absence
// beside them is a loss.
func (f *files) load() error {
	path := f.fs.PathJoin(f.dir, sidecarName)
	b, err := readFile(f.fs, path)
	if errors.Is(err, vfsNotExist) {
		ls, err := f.fs.List(f.db)
		if err == nil && len(ls) > 0 {
			return fmt.Errorf("%s is missing beside Pebble's files; %s", path, repairHint(f.dir))
		}
		return f.write(false)
	}
	if err != nil {
		return err
	}
	if err := f.parse(b); err != nil {
		if errors.Is(err, event.ErrUnsupported) {
			return err
		}
		return fmt.Errorf("%s is corrupt: %w; %s", path, err, repairHint(f.dir))
	}
	return nil
}

// The sidecar is
//
//	0 magic · 8 u64 format · 16 u64 1 if ready · 24 i64 clock · 32 i64 good bytes of the manifest
//	40 u32 n, the manifest's name · u32 count · count × (u32 topic, u32 partition, u64 next) · u32 CRC-32C
func (f *files) parse(b []byte) error {
	if len(b) < 52 || [8]byte(b) != sidecarMagic {
		return fmt.Errorf("%d bytes without its head", len(b))
	}
	body, sum := b[:len(b)-4], le.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return errors.New("its checksum is wrong")
	}
	if v := le.Uint64(b[8:]); v > formatVersion {
		return tooNew(v)
	}
	f.ready, f.clock, f.good = b[16] == 1, int64(le.Uint64(b[24:])), int64(le.Uint64(b[32:]))
	n := int(le.Uint32(b[40:]))
	body = body[44:]
	if n > len(body)-4 {
		return errors.New("it is cut off")
	}
	f.manifest, body = string(body[:n]), body[n:]
	n, body = int(le.Uint32(body)), body[4:]
	if len(body) != 16*n {
		return errors.New("it is cut off")
	}
	for ; len(body) > 0; body = body[16:] {
		f.next[storage.LogID{Topic: le.Uint32(body), Partition: le.Uint32(body[4:])}] = le.Uint64(body[8:])
	}
	return nil
}

// write replaces the sidecar. mu is held, or nobody else is there yet.
func (f *files) write(ready bool) error {
	b := append([]byte(nil), sidecarMagic[:]...)
	b = le.AppendUint64(b, formatVersion)
	phase := uint64(0)
	if ready {
		phase = 1
	}
	b = le.AppendUint64(b, phase)
	b = le.AppendUint64(b, uint64(f.clock))
	b = le.AppendUint64(b, uint64(f.good))
	b = le.AppendUint32(b, uint32(len(f.manifest)))
	b = append(b, f.manifest...)
	b = le.AppendUint32(b, uint32(len(f.next)))
	for id, next := range f.next {
		b = le.AppendUint32(b, id.Topic)
		b = le.AppendUint32(b, id.Partition)
		b = le.AppendUint64(b, next)
	}
	b = le.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return writeFile(f.fs, f.dir, sidecarName, b)
}

// forget takes a log out of the sidecar.
func (f *files) forget(id storage.LogID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped[id] = true
	if _, ok := f.next[id]; !ok {
		return nil
	}
	delete(f.next, id)
	return f.write(true)
}

// writeSidecar writes what is durable by now.
func (s *Store) writeSidecar() error {
	f := s.files
	type claim struct {
		id   storage.LogID
		next event.Offset
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var claims []claim
	changed := !f.written
	s.eachLog(func(l *plog) {
		if !f.dropped[l.id] {
			claims = append(claims, claim{l.id, l.visible()})
		}
	})
	for _, c := range claims {
		if old, ok := f.next[c.id]; !ok || old != c.next {
			changed = true
			f.next[c.id] = c.next
		}
	}
	name, good, err := f.syncManifest()
	if err != nil {
		return fmt.Errorf("the sidecar %s is not up to date: %w", sidecarName, err)
	}
	if !changed && name == f.manifest && good == f.good {
		return nil
	}
	f.manifest, f.good, f.clock = name, good, s.clock.read()
	if err := f.write(true); err != nil {
		return fmt.Errorf("the sidecar %s is not up to date: %w", sidecarName, err)
	}
	f.written, f.ready = true, true
	return nil
}

// syncManifest says how many bytes of the MANIFEST are durable records.
func (f *files) syncManifest() (string, int64, error) {
	d, err := pebble.Peek(f.db, f.fs)
	if err != nil || !d.Exists {
		return "", 0, errors.Join(err, errors.New("there is no MANIFEST"))
	}
	name := f.fs.PathBase(d.ManifestFilename)
	b, err := readFile(f.fs, f.fs.PathJoin(f.db, name))
	if err != nil {
		return "", 0, err
	}
	good, _ := walkChunks(b)
	h, err := f.fs.Open(f.fs.PathJoin(f.db, name))
	if err != nil {
		return "", 0, err
	}
	return name, good, errors.Join(h.Sync(), h.Close())
}

func readFile(fs vfs.FS, path string) ([]byte, error) {
	h, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(h)
	return b, errors.Join(err, h.Close())
}

// writeFile replaces a file so that after a crash the old or the new one is there, whole.
func writeFile(fs vfs.FS, dir, name string, b []byte) error {
	tmp := fs.PathJoin(dir, name+".tmp")
	h, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = h.Write(b)
	if err == nil {
		err = h.Sync()
	}
	if err = errors.Join(err, h.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, fs.PathJoin(dir, name)); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// mkdirSynced makes a directory whose own entry survives a crash.
func mkdirSynced(fs vfs.FS, dir string) error {
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	parent := fs.PathDir(dir)
	if parent == dir {
		return nil
	}
	if err := syncDir(fs, parent); err != nil && !errors.Is(err, vfsNotExist) {
		return err
	}
	return nil
}
