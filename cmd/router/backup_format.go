package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A backup is a tar file: first backup.json, which says what follows, then each file of the data directory, at last
// sha256.json with the sum of each, backup.json's too. Whoever reads it knows at the begin how much comes, and at the end whether all
// of it came as it was.
const (
	backupHeadName = "backup.json"
	backupSumsName = "sha256.json"
	backupVersion  = 1

	maxBackupHead  = 64 << 20 // bytes of backup.json and sha256.json each
	maxBackupFiles = 1 << 20
)

// A backupHead is backup.json.
type backupHead struct {
	Format  int         `json:"format"`
	Made    time.Time   `json:"made"` // what was acknowledged before is in it
	Version string      `json:"version"`
	Bytes   int64       `json:"bytes"` // of all files
	Files   backupFiles `json:"files"`
}

// backupFiles are a backup's. Reading them stops at the first too many: 64 MiB of empty entries would be 1 GiB in memory.
type backupFiles []backupFile

// UnmarshalJSON reads the files one at a time.
func (l *backupFiles) UnmarshalJSON(text []byte) error {
	*l = nil
	return eachOf(text, func(d *json.Decoder) error {
		var f backupFile
		err := d.Decode(&f)
		*l = append(*l, f)
		return err
	})
}

// backupSumsOf are the sums of files by name, read one at a time too.
type backupSumsOf map[string]string

// UnmarshalJSON reads the sums one at a time.
func (m *backupSumsOf) UnmarshalJSON(text []byte) error {
	*m = backupSumsOf{}
	return eachOf(text, func(d *json.Decoder) error {
		name, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := name.(string) // a key is no other; the decoder sees to it
		var sum string
		err = d.Decode(&sum)
		(*m)[key] = sum
		return err
	})
}

// eachOf calls read for each member of a JSON array or object, which a backup has maxBackupFiles of at most.
func eachOf(text []byte, read func(*json.Decoder) error) error {
	d := json.NewDecoder(bytes.NewReader(text))
	begin, err := d.Token()
	if err != nil {
		return err
	}
	if begin != json.Delim('[') && begin != json.Delim('{') {
		return fmt.Errorf("%.20v is no list of files", begin)
	}
	for n := 0; d.More(); n++ {
		if n == maxBackupFiles {
			return errManyFiles
		}
		if err := read(d); err != nil {
			return err
		}
	}
	return nil
}

var errManyFiles = fmt.Errorf("it names more than %d files, and a backup has no more", maxBackupFiles)

// A backupFile is one file of the data directory.
type backupFile struct {
	Name string `json:"name"` // below the data directory, with slashes
	Size int64  `json:"size"`

	path string // where it is read from
}

type backupSums struct {
	Format int          `json:"format"`
	Head   string       `json:"head"` // SHA-256 of backup.json, in hex
	Files  backupSumsOf `json:"files"`
}

// writeBackup writes a backup of files that nobody changes meanwhile.
func writeBackup(ctx context.Context, w io.Writer, head backupHead) error {
	head.Format, head.Bytes = backupVersion, 0
	for _, f := range head.Files {
		head.Bytes += f.Size
	}
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	sums := backupSums{Format: backupVersion, Head: hex.EncodeToString(sum[:]), Files: make(backupSumsOf, len(head.Files))}
	tw := tar.NewWriter(w)
	if err := writeTarFile(tw, backupHeadName, head.Made, bytes.NewReader(text), int64(len(text))); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for _, f := range head.Files {
		h := sha256.New()
		if err := copyBackupFile(ctx, tw, f, head.Made, h, buf); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		sums.Files[f.Name] = hex.EncodeToString(h.Sum(nil))
	}
	if text, err = json.Marshal(sums); err != nil {
		return err
	}
	if err := writeTarFile(tw, backupSumsName, head.Made, bytes.NewReader(text), int64(len(text))); err != nil {
		return err
	}
	return tw.Close()
}

func writeTarFile(tw *tar.Writer, name string, made time.Time, r io.Reader, size int64) error {
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size, ModTime: made.Truncate(time.Second)}); err != nil {
		return err
	}
	_, err := io.Copy(tw, r)
	return err
}

func copyBackupFile(ctx context.Context, tw *tar.Writer, f backupFile, made time.Time, sum hash.Hash, buf []byte) error {
	in, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: 0o600, Size: f.Size, ModTime: made.Truncate(time.Second)}); err != nil {
		return err
	}
	for left := f.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := in.Read(buf[:min(int64(len(buf)), left)])
		if n == 0 && err != nil {
			return fmt.Errorf("it ends %d bytes too early: %w", left, err)
		}
		_, _ = sum.Write(buf[:n])
		if _, err := tw.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

var (
	errNoBackup  = errors.New("it is no backup of a router")
	errBackupBad = errors.New("it is damaged")
)

// readBackup reads a backup and checks every byte of it. begin is told what comes before any of it is read, take gets
// each file and reads it to its end. Nothing of it may be believed before readBackup has returned nil.
func readBackup(ctx context.Context, r io.Reader, begin func(*backupHead) error, take func(f backupFile, r io.Reader) error) (*backupHead, error) {
	tr := tar.NewReader(r)
	h, err := tr.Next()
	if err != nil || h.Name != backupHeadName || !plainFile(h) || h.Size > maxBackupHead {
		return nil, errors.Join(errNoBackup, ctx.Err())
	}
	text, err := io.ReadAll(tr)
	if err != nil {
		return nil, cutOff(0, 0)
	}
	head := &backupHead{}
	if err := json.Unmarshal(text, head); err != nil {
		return nil, fmt.Errorf("%w: %s cannot be read: %w", errBackupBad, backupHeadName, err)
	}
	if err := head.check(); err != nil {
		return nil, err
	}
	if err := begin(head); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	sums := backupSums{Format: head.Format, Head: hex.EncodeToString(sum[:]), Files: make(backupSumsOf, len(head.Files))}
	for i, f := range head.Files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, cutOff(i, len(head.Files))
		case err != nil:
			return nil, fmt.Errorf("%w before %s: %w", errBackupBad, f.Name, err)
		case h.Name != f.Name || h.Size != f.Size || !plainFile(h):
			return nil, fmt.Errorf("%w: %q of %d bytes is where %s of %d should be", errBackupBad, h.Name, h.Size, f.Name, f.Size)
		}
		w := sha256.New()
		t := io.TeeReader(tr, w)
		err = take(f, t)
		if err == nil {
			_, err = io.Copy(io.Discard, t)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, cutOff(i, len(head.Files))
		}
		if err != nil {
			return nil, err
		}
		sums.Files[f.Name] = hex.EncodeToString(w.Sum(nil))
	}
	return head, readSums(tr, sums)
}

// plainFile reports whether an entry is a file whose bytes are all there: a sparse one would make a disk full of nothing.
func plainFile(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return false
		}
	}
	return h.Typeflag == tar.TypeReg
}

// readSums holds what was read against the sums at the end.
func readSums(tr *tar.Reader, got backupSums) error {
	h, err := tr.Next()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return cutOff(len(got.Files), len(got.Files))
	}
	if err != nil || h.Name != backupSumsName || !plainFile(h) || h.Size > maxBackupHead {
		return fmt.Errorf("%w: %s is not where it should be, at its end", errBackupBad, backupSumsName)
	}
	text, err := io.ReadAll(tr)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return cutOff(len(got.Files), len(got.Files))
	}
	var want backupSums
	if err = errors.Join(err, json.Unmarshal(text, &want)); err != nil {
		return fmt.Errorf("%w: %s cannot be read: %w", errBackupBad, backupSumsName, err)
	}
	if want.Format != got.Format || want.Head != got.Head {
		return fmt.Errorf("%w: %s has another SHA-256 than when it was made", errBackupBad, backupHeadName)
	}
	if len(want.Files) != len(got.Files) {
		return fmt.Errorf("%w: it has sums of %d files and %d files", errBackupBad, len(want.Files), len(got.Files))
	}
	for name, sum := range got.Files {
		if want.Files[name] != sum {
			return fmt.Errorf("%w: %s has another SHA-256 than when it was made", errBackupBad, name)
		}
	}
	switch _, err := tr.Next(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fmt.Errorf("%w after its end: %w", errBackupBad, err)
	}
	return fmt.Errorf("%w: more follows its end", errBackupBad)
}

func cutOff(whole, of int) error {
	return fmt.Errorf("%w: it is cut off after %d of %d files", errBackupBad, whole, of)
}

// check refuses a head of a newer build, and names that would lead out of a data directory.
func (h *backupHead) check() error {
	if h.Format > backupVersion {
		return fmt.Errorf("router %s made it, in format %d; this build knows up to %d: take that build, or a newer one", clean(h.Version), h.Format, backupVersion)
	}
	if h.Format < 1 {
		return errNoBackup
	}
	seen, total, store := make(map[string]bool, len(h.Files)), int64(0), false
	for _, f := range h.Files {
		if !fs.ValidPath(f.Name) || f.Name == "." || !filepath.IsLocal(filepath.FromSlash(f.Name)) || strings.ContainsAny(f.Name, "\\:\x00") {
			return fmt.Errorf("%w: %q is no name of a file in a data directory", errBackupBad, f.Name)
		}
		if f.Size < 0 || seen[f.Name] {
			return fmt.Errorf("%w: %s is there twice, or has %d bytes", errBackupBad, f.Name, f.Size)
		}
		seen[f.Name] = true
		if total += f.Size; total < 0 || total > h.Bytes {
			return fmt.Errorf("%w: its files are larger than the %d bytes that it names", errBackupBad, h.Bytes)
		}
		store = store || strings.HasPrefix(f.Name, storeDir+"/")
	}
	if total != h.Bytes || !store {
		return fmt.Errorf("%w: its files have %d bytes of %d, or no store is among them", errBackupBad, total, h.Bytes)
	}
	return nil
}
