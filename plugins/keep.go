package plugins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// minPrefix is how many hexadecimal digits an abbreviated digest has at least.
const minPrefix = 8

// maxCache bounds the compile cache on disk, in bytes: machine code takes several times the module.
const maxCache = 512 << 20

// Digests lists the modules that are kept, in order.
func (h *Host) Digests() ([]string, error) {
	var digests []string
	h.mu.Lock()
	for d := range h.memory {
		digests = append(digests, d)
	}
	h.mu.Unlock()
	if h.o.Dir != "" {
		entries, err := os.ReadDir(h.modules())
		if err != nil {
			return nil, fmt.Errorf("list modules: %w", err)
		}
		for _, e := range entries {
			if d, ok := digestOfFile(e.Name()); ok {
				digests = append(digests, d)
			}
		}
	}
	slices.Sort(digests)
	return digests, nil
}

// StaleModules are the modules below a host's Dir that were last put before a time, with their sizes in bytes. It needs no
// host, and no folder either.
func StaleModules(dir string, before time.Time) (map[string]int64, error) {
	entries, err := os.ReadDir((&Host{o: Options{Dir: dir}}).modules())
	if err != nil {
		return nil, ignoreMissing(err)
	}
	stale := map[string]int64{}
	for _, e := range entries {
		digest, ok := digestOfFile(e.Name())
		info, err := e.Info()
		if err := ignoreMissing(err); err != nil {
			return nil, err
		}
		if ok && err == nil && info.ModTime().Before(before) {
			stale[digest] = info.Size()
		}
	}
	return stale, nil
}

// digestOfFile is the digest that a module's file is named after; false for any other file.
func digestOfFile(name string) (string, bool) {
	sum, ok := strings.CutSuffix(name, ".wasm")
	d := "sha256:" + sum
	b, valid := cutDigest(d)
	return d, ok && valid && len(b) == 32
}

// Has reports whether a module is kept; its bytes are not read.
func (h *Host) Has(digest string) bool {
	if b, ok := cutDigest(digest); !ok || len(b) != 32 {
		return false
	}
	h.mu.Lock()
	_, ok := h.memory[digest]
	h.mu.Unlock()
	if ok || h.o.Dir == "" {
		return ok
	}
	_, err := os.Stat(h.path(digest))
	return err == nil
}

// Resolve completes a digest that may be abbreviated, "sha256:" and the first eight digits or more. Of
// several modules, or of none, it says so: event.ErrInvalid, event.ErrNotFound.
func (h *Host) Resolve(digest string) (string, error) {
	all, err := h.Digests()
	if err != nil {
		return "", err
	}
	return ResolveDigest(digest, all)
}

// ResolveDigest finds the one of all that a digest, which may be abbreviated, means.
func ResolveDigest(digest string, all []string) (string, error) {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(hex) < minPrefix || len(hex) > 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return "", event.Bad(event.ErrInvalid, "digest", fmt.Sprintf("is %.90q; a version is sha256: and %d to 64 hexadecimal digits in lower case", digest, minPrefix))
	}
	var found []string
	for _, d := range all {
		if strings.HasPrefix(d, digest) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return "", event.Bad(event.ErrNotFound, "digest", fmt.Sprintf("no module %s is kept here; push it", digest))
	case 1:
		return found[0], nil
	}
	return "", event.Bad(event.ErrInvalid, "digest", fmt.Sprintf("%s is the beginning of %d versions, such as %s and %s; give more digits", digest, len(found), found[0], found[1]))
}

// touch notes that a module was put just now.
func (h *Host) touch(digest string) error {
	now := time.Now()
	return os.Chtimes(h.path(digest), now, now)
}

// Collect removes the modules that were last put before a time and that keep does not want, and of the
// compile cache what was made first where it is over its bound. keep is asked about each module once. A
// host without Dir keeps everything.
func (h *Host) Collect(ctx context.Context, before time.Time, keep func(digest string) bool) (removed []string, err error) {
	if h.o.Dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(h.modules())
	if err != nil {
		return nil, fmt.Errorf("collect modules: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		digest, ok := digestOfFile(e.Name())
		if !ok || !h.stale(digest, before) || keep(digest) {
			continue
		}
		gone, err := h.remove(digest, before)
		if err != nil {
			return removed, fmt.Errorf("collect modules: %w", err)
		}
		if gone {
			removed = append(removed, digest)
		}
	}
	return removed, h.boundCache(maxCache)
}

func (h *Host) stale(digest string, before time.Time) bool {
	info, err := os.Stat(h.path(digest))
	return err == nil && info.ModTime().Before(before)
}

// remove removes a module that was not put again meanwhile.
func (h *Host) remove(digest string, before time.Time) (bool, error) {
	h.files.Lock()
	defer h.files.Unlock()
	if !h.stale(digest, before) {
		return false, nil
	}
	return true, os.Remove(h.path(digest))
}

// boundCache removes the oldest files of the compile cache: what is wanted again is compiled again.
func (h *Host) boundCache(bound int64) error {
	type file struct {
		path string
		info fs.FileInfo
	}
	var files []file
	var total int64
	err := filepath.WalkDir(h.cacheDir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreMissing(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		files, total = append(files, file{path, info}), total+info.Size()
		return nil
	})
	if err != nil {
		return fmt.Errorf("compile cache: %w", err)
	}
	slices.SortFunc(files, func(a, b file) int { return a.info.ModTime().Compare(b.info.ModTime()) })
	for _, f := range files {
		if total <= bound {
			break
		}
		if err := ignoreMissing(os.Remove(f.path)); err != nil {
			return fmt.Errorf("compile cache: %w", err)
		}
		total -= f.info.Size()
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
