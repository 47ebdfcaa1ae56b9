package pebblestore

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/record"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// repairHint says what to do about a corrupt directory.
func repairHint(dir string) string {
	return "restore it from a backup, or see what is left with: router doctor --deep --data " + dir
}

// The format of Pebble's MANIFEST: blocks of 32 KiB filled with chunks, each a header of 7 bytes (masked
// CRC-32C of what follows it, u16 length, u8 type) and its bytes. A type is 1 for a whole record, 2 for the
// first part of one, 3 and 4 for the parts after.
const (
	chunkBlock = 32 << 10
	chunkHead  = 7
)

// walkChunks returns how many bytes of b are whole good records from the start, and whether a record
// that can be read begins after the first bad place: then what lies between was lost, not torn off.
func walkChunks(b []byte) (good int64, more bool) {
	at := 0
	for at < len(b) {
		if left := chunkBlock - at%chunkBlock; left < chunkHead {
			at += left
			continue
		}
		n, kind := goodChunk(b, at)
		if n == 0 {
			break
		}
		at += n
		if kind == 1 || kind == 4 {
			good = int64(at)
		}
	}
	for at++; at < len(b); at++ {
		if n, kind := goodChunk(b, at); n > 0 && kind <= 2 {
			return good, true
		}
	}
	return good, false
}

// goodChunk returns the size and type of the chunk at b[at:], 0 if there is none.
func goodChunk(b []byte, at int) (int, byte) {
	left := min(chunkBlock-at%chunkBlock, len(b)-at)
	if left < chunkHead {
		return 0, 0
	}
	n, kind := chunkHead+int(uint16(b[at+4])|uint16(b[at+5])<<8), b[at+6]
	if kind < 1 || kind > 4 || n > left {
		return 0, 0
	}
	c := crc32.Checksum(b[at+6:at+n], castagnoli)
	if c = (c>>15 | c<<17) + 0xa282ead8; c != le.Uint32(b[at:]) {
		return 0, 0
	}
	return n, kind
}

// verify looks for what Pebble would open with in silence: a MANIFEST with a bad record before good ones,
// or shorter than it was known to be (version_set.go stops at the first bad record).
func (f *files) verify(logf func(string, ...any)) error {
	if _, err := f.fs.Stat(f.db); err != nil {
		return fmt.Errorf("%s is missing: %w; %s", f.db, err, repairHint(f.dir))
	}
	d, err := pebble.Peek(f.db, f.fs)
	if err != nil {
		return f.explain(err)
	}
	if !d.Exists {
		return fmt.Errorf("%s has no marker that names a MANIFEST (its CURRENT), or the MANIFEST is gone; %s", f.db, repairHint(f.dir))
	}
	name := f.fs.PathBase(d.ManifestFilename)
	path := f.fs.PathJoin(f.db, name)
	b, err := readFile(f.fs, path)
	if err != nil {
		return fmt.Errorf("%s: %w; %s", path, err, repairHint(f.dir))
	}
	good, more := walkChunks(b)
	switch {
	case more:
		return fmt.Errorf("%s is corrupt at byte %d of %d: records that can be read follow a bad one; %s", path, good, len(b), repairHint(f.dir))
	case f.manifest == name && good < f.good:
		return fmt.Errorf("%s is corrupt at byte %d: it was good up to byte %d; %s", path, good, f.good, repairHint(f.dir))
	case good == 0:
		return fmt.Errorf("%s holds no record; %s", path, repairHint(f.dir))
	case good < int64(len(b)):
		logf("pebblestore: %s: the last %d bytes were torn off by a crash and are not used", path, int64(len(b))-good)
	}
	return nil
}

// explain names the file that an error of opening is about.
func (f *files) explain(err error) error {
	if errors.Is(err, event.ErrUnsupported) || strings.Contains(err.Error(), repairHint(f.dir)) {
		return err
	}
	if strings.Contains(err.Error(), "unknown format major version") || strings.Contains(err.Error(), "written in format") {
		return fmt.Errorf("%w: a newer build wrote it: %w", event.ErrUnsupported, err)
	}
	var bad []string
	f.walkLogs(func(name string, err error) {
		bad = append(bad, fmt.Sprintf("%s is corrupt: %v", f.fs.PathJoin(f.db, name), err))
	})
	if len(bad) > 0 {
		return fmt.Errorf("%s; %w; %s", strings.Join(bad, "; "), err, repairHint(f.dir))
	}
	return fmt.Errorf("%w; %s", err, repairHint(f.dir))
}

// walkLogs reads Pebble's write-ahead logs and reports those that are corrupt. Only the newest may have a torn
// end: a log is closed with a mark of its end before the next one begins.
func (f *files) walkLogs(report func(name string, err error)) {
	logs, newest, err := f.logs()
	if err != nil {
		report("", err)
		return
	}
	for name, num := range logs {
		_, at, err := f.walkLog(name, num)
		torn := errors.Is(err, record.ErrUnexpectedEOF) || errors.Is(err, record.ErrZeroedChunk)
		if err != nil && !errors.Is(err, io.EOF) && !(torn && name == newest) {
			report(name, fmt.Errorf("byte %d: %w", at, err))
		}
	}
}

// logs are the names and numbers of Pebble's write-ahead logs, and which is the newest, "" without any.
func (f *files) logs() (logs map[string]uint64, newest string, err error) {
	names, err := f.fs.List(f.db)
	if err != nil {
		return nil, "", err
	}
	logs = map[string]uint64{}
	for _, name := range names {
		text, ok := strings.CutSuffix(name, ".log")
		num, err := strconv.ParseUint(text, 10, 64)
		if !ok || err != nil {
			continue
		}
		if logs[name] = num; num >= logs[newest] {
			newest = name
		}
	}
	return logs, newest, nil
}

// walkLog reads a log until it ends: err says how, good where the last whole record did, at how far it was read.
func (f *files) walkLog(name string, num uint64) (good, at int64, err error) {
	h, err := f.fs.Open(f.fs.PathJoin(f.db, name))
	if err != nil {
		return 0, 0, err
	}
	defer h.Close()
	r := newRecordReader(record.NewReader, h, num)
	for {
		rec, err := r.Next()
		if err == nil {
			_, err = io.Copy(io.Discard, rec)
		}
		if err != nil {
			return good, r.Offset(), err
		}
		good = r.Offset()
	}
}

// newRecordReader calls record.NewReader, whose second parameter has a type that Pebble does not export.
func newRecordReader[N ~uint64](open func(io.Reader, N) *record.Reader, r io.Reader, num uint64) *record.Reader {
	return open(r, N(num))
}

// checkOffsets holds what Pebble came back with against the sidecar.
func (s *Store) checkOffsets() error {
	var errs []error
	for id, want := range s.files.next {
		next, err := s.nextOffset(id)
		switch {
		case err != nil:
			errs = append(errs, err)
		case next < want && len(errs) < 8:
			errs = append(errs, fmt.Errorf("log %s: events up to offset %d were acknowledged, only those below %d are there", logName(id), want, next))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w; %s", err, repairHint(s.o.Dir))
	}
	return nil
}

// nextOffset is where a log ends on the disk.
func (s *Store) nextOffset(id storage.LogID) (event.Offset, error) {
	v, closer, err := s.db.Get(appendLogKey(nil, kindLog, id))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	row, err := parseLogRow(id, v)
	closer.Close()
	if err != nil {
		return 0, err
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: appendKey(nil, kindBlock, id, row.head), UpperBound: logKeyEnd(kindBlock, id)})
	if err != nil {
		return 0, err
	}
	defer it.Close()
	if !it.Last() {
		return max(row.head, row.next), it.Error()
	}
	if v, err = it.ValueAndErr(); err != nil {
		return 0, err
	}
	first := keyOffset(it.Key())
	count, _, _, err := parseBlock(id, first, v)
	return first + uint64(count), err
}
