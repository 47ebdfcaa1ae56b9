package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/storage/pebblestore"
)

// Folders in the data directory that are not part of what is kept.
const (
	backupStage  = ".backup"  // what a backup under way holds on to
	restoreStage = ".restore" // what a restoration under way has unpacked
)

// backups makes backups of a router that runs.
type backups struct {
	data    string
	store   *pebblestore.Store
	version string
	now     func() time.Time
	one     *sync.Mutex // held while there is one
	book    *backupBook
}

// OpenBackup holds on to all that the data directory keeps, as it is now. Close lets go of it.
func (b backups) OpenBackup(ctx context.Context) (httpapi.Backup, error) {
	if !b.one.TryLock() {
		return nil, fmt.Errorf("%w: a backup is under way; wait for its end", event.ErrConflict)
	}
	bk := &openBackup{of: b, head: backupHead{Made: b.now().UTC(), Version: b.version}}
	if err := bk.hold(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("backup: %w", err), bk.Close())
	}
	return bk, nil
}

type openBackup struct {
	of   backups
	snap *pebblestore.Snapshot
	head backupHead
	told bool // the book knows how it ended
}

// hold links what may be replaced or removed while it is read. What the store names was there when the store was; so
// links are made before the snapshot and after it.
func (bk *openBackup) hold(ctx context.Context) error {
	stage := filepath.Join(bk.of.data, backupStage)
	err := os.RemoveAll(stage)
	if err == nil {
		err = linkKept(bk.of.data, stage)
	}
	if err == nil {
		bk.snap, err = bk.of.store.Snapshot(ctx)
	}
	if err == nil {
		err = linkKept(bk.of.data, stage)
	}
	if err == nil {
		bk.head.Files, err = listFiles(nil, bk.snap.Dir, storeDir)
	}
	if err == nil {
		bk.head.Files, err = listFiles(bk.head.Files, stage, "")
	}
	return err
}

// WriteTo writes the backup.
func (bk *openBackup) WriteTo(ctx context.Context, w io.Writer) error {
	err := writeBackup(ctx, w, bk.head)
	last := lastBackup{Made: bk.head.Made, Ended: bk.of.now().UTC()}
	for _, f := range bk.head.Files {
		last.Bytes += f.Size
	}
	bk.told = true
	return bk.of.book.ended(last, err)
}

// Close lets go of the files. A backup of which nothing was sent has failed.
func (bk *openBackup) Close() error {
	defer bk.of.one.Unlock()
	if !bk.told {
		bk.of.book.fail()
	}
	var err error
	if bk.snap != nil {
		err = bk.snap.Close()
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(bk.of.data, backupStage)))
}

// walkKept calls fn for what a data directory keeps beside its store: neither what can be made again nor what is half made.
func walkKept(data string, fn func(rel string, d fs.DirEntry) error) error {
	return filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(data, path)
		if err != nil || relErr != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // replaced or removed meanwhile
			}
			return errors.Join(err, relErr)
		}
		switch rel {
		case ".":
			return nil
		case storeDir, backupStage, restoreStage, filepath.Join("functions", "compiled"), "lost+found":
			return filepath.SkipDir
		case restoredName, restoreLock, backupNote: // of a start that is still to come
			return nil
		}
		if !d.IsDir() && (!d.Type().IsRegular() || pebblestore.Own(d.Name()) || strings.HasSuffix(d.Name(), ".tmp")) {
			return nil
		}
		return fn(rel, d)
	})
}

func linkKept(data, stage string) error {
	if err := os.MkdirAll(stage, 0o700); err != nil {
		return err
	}
	return walkKept(data, func(rel string, d fs.DirEntry) error {
		to := filepath.Join(stage, rel)
		if d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		err := os.Link(filepath.Join(data, rel), to)
		switch {
		case err == nil, errors.Is(err, fs.ErrExist), errors.Is(err, fs.ErrNotExist):
			return nil
		}
		b, err := os.ReadFile(filepath.Join(data, rel)) // a file system without links; modules are small
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
		return err
	})
}

// listFiles adds the files below a folder, under a name that it has in the data directory.
func listFiles(files []backupFile, dir, as string) ([]backupFile, error) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || d.IsDir() || as == storeDir && pebblestore.Own(rel) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files = append(files, backupFile{Name: filepath.ToSlash(filepath.Join(as, rel)), Size: info.Size(), path: path})
		return nil
	})
	return files, err
}

// backupAtRest makes a backup of a data directory that no router has open.
func backupAtRest(ctx context.Context, data string, begin func(*backupHead) error, w io.Writer) (*backupHead, error) {
	dir := filepath.Join(data, storeDir)
	if err := pebblestore.Check(ctx, dir, false, func(string) {}); err != nil { // it takes the lock for itself
		return nil, err
	}
	held, err := pebblestore.Hold(dir)
	if err != nil {
		return nil, err
	}
	head := &backupHead{Made: time.Now().UTC(), Version: thisBuild().Version}
	head.Files, err = listFiles(nil, dir, storeDir)
	if err == nil {
		err = walkKept(data, func(rel string, d fs.DirEntry) error {
			if d.IsDir() {
				return nil
			}
			info, err := d.Info()
			head.Files = append(head.Files, backupFile{Name: filepath.ToSlash(rel), path: filepath.Join(data, rel)})
			if err == nil {
				head.Files[len(head.Files)-1].Size = info.Size()
			}
			return err
		})
	}
	for _, f := range head.Files {
		head.Bytes += f.Size
	}
	if err == nil {
		err = begin(head)
	}
	if err == nil {
		err = writeBackup(ctx, w, *head)
	}
	return head, errors.Join(err, held.Close())
}
