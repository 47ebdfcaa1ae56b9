package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/millrace/millrace/storage/pebblestore"
)

// A remedy is what doctor can mend by itself: only what no router has a use for, or what nobody else should read.
type remedy struct {
	what string // is wrong, as a finding names it
	do   string // what mending does
	mend func() error
}

// mend lists what can be mended in a data directory that no router has open, and with fix mends it.
func (e *examination) mend(ctx context.Context, data string, fix bool) {
	if _, err := os.Stat(data); err != nil {
		return
	}
	held, err := pebblestore.Hold(filepath.Join(data, storeDir)) // what lies half made may be a router's at work
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist): // no router has ever kept its data here: whose files they are is not known
		if fix {
			e.find("mend", "note", "name the data directory with --data", "nothing is mended: %s has no store", data)
		}
		return
	case fix:
		e.find("mend", "bad", "stop the router first: what lies half made may be its own", "nothing is mended: %v", err)
		return
	default:
		return // the store's own finding says it
	}
	list, err := remedies(data)
	if err != nil {
		e.find("data", "bad", "run doctor as the user that the router runs as", "%v", err)
	}
	for _, r := range list {
		if ctx.Err() != nil {
			break
		}
		if !fix {
			e.find("mend", "note", "router doctor --fix "+r.do, "%s", r.what)
			continue
		}
		if err := r.mend(); err != nil {
			e.find("mend", "bad", "run doctor as the user that the router runs as", "%s: %v", r.what, err)
			continue
		}
		e.find("mend", "good", "", "%s: mended (%s)", r.what, r.do)
	}
	if err := held.Close(); err != nil {
		e.find("mend", "bad", "", "%v", err)
	}
}

// remedies looks at the files of a data directory with a store in it, and changes nothing.
func remedies(data string) ([]remedy, error) {
	var list []remedy
	remove := func(path, what string) {
		list = append(list, remedy{what: path + " " + what, do: "removes it", mend: func() error { return os.RemoveAll(path) }})
	}
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		rel, bad := filepath.Rel(data, path)
		switch {
		case rel == lostAndFound:
			return filepath.SkipDir
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil || bad != nil:
			return errors.Join(err, bad)
		}
		switch {
		case rel == backupStage:
			remove(path, "is left of a backup that was cut off")
			return filepath.SkipDir
		case rel == restoreStage:
			remove(path, "is left of a restoration that is complete")
			return filepath.SkipDir
		case rel == filepath.Join(storeDir, "snapshot"):
			remove(path, "is left of a backup that was cut off")
			return filepath.SkipDir
		case rel == filepath.Join(storeDir, "pebble"): // Pebble's own; it tidies up itself
			return filepath.SkipDir
		case d.Type().IsRegular() && halfMade(rel):
			remove(path, "was never finished")
			return nil
		}
		if r, ok := tooOpen(path, rel, d); ok {
			list = append(list, r)
		}
		return nil
	})
	return list, err
}

// lostAndFound is the file system's own, and root's, where the data directory is a mount point.
const lostAndFound = "lost+found"

// halfMade says whether a file of the data directory is one that a router writes before it renames it: below, the store
// and the functions; at the top, see writeWhole, what has a name that we know.
func halfMade(rel string) bool {
	dir, rest, _ := strings.Cut(filepath.ToSlash(rel), "/")
	if rest == "" {
		for _, name := range []string{backupNote, remoteFile, restoredName} {
			if ok, _ := filepath.Match(name+".*.tmp", dir); ok {
				return true
			}
		}
	}
	return strings.HasSuffix(rest, ".tmp") && (dir == storeDir || dir == "functions")
}

// tooOpen finds what others than the owner may read or write. Everything below the data directory is behind its own
// mode, so that and what a copy would take along is enough.
func tooOpen(path, rel string, d fs.DirEntry) (remedy, bool) {
	if runtime.GOOS == "windows" || rel != "." && (strings.ContainsRune(rel, filepath.Separator) || d.IsDir()) || d.Type()&fs.ModeSymlink != 0 {
		return remedy{}, false
	}
	info, err := d.Info()
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return remedy{}, false
	}
	mode := info.Mode().Perm() &^ 0o077
	return remedy{
		what: fmt.Sprintf("%s may be read or written by others than its owner (mode %04o)", path, info.Mode().Perm()),
		do:   fmt.Sprintf("sets its mode to %04o", mode),
		mend: func() error { return os.Chmod(path, mode) },
	}, true
}
