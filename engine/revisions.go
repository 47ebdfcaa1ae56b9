package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// Revisions are the rules that were in force, each with its files, so that any of them can be put in force again.
// A file is kept once for all revisions that have it.

// Bounds of what is kept of revisions.
const (
	maxRevisions    = 50
	maxRevisedBytes = 256 << 20 // of files, the newest revision's aside
	revisionChunk   = 1 << 20   // bytes of a file in one row
)

// Revision is one state of the rules.
type Revision struct {
	Number   uint64         `json:"number"` // from 1; it grows
	Revision string         `json:"rules"`  // rules.Set.Revision
	Author   string         `json:"author,omitempty"`
	Message  string         `json:"message,omitempty"`
	Time     time.Time      `json:"time"`
	Source   string         `json:"source"` // "api", or the path or URL that the rules were read from
	Files    []RevisionFile `json:"files"`
}

// RevisionFile is a file of a revision: its name in a bundle, and what is in it.
type RevisionFile struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // sha256:…
	Size   int64  `json:"size"`
}

// Revisions lists the revisions that are kept, newest first, and lets go of files of none.
func (e *Engine) Revisions(ctx context.Context) ([]Revision, error) {
	var all []Revision
	err := e.store.Scan(ctx, tableRevisions, []byte{'r'}, []byte{'r' + 1}, func(k, v []byte) error {
		var r Revision
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("revision %x of the rules is damaged: %w", k[1:], err)
		}
		all = append(all, r)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(all)
	return all, e.SweepRevisions(ctx, all)
}

// SweepRevisions deletes the files of none of the revisions: those that a router which was killed, or a change that
// failed, has left. It must not overlap with KeepRevision.
func (e *Engine) SweepRevisions(ctx context.Context, all []Revision) error {
	used := keptFiles(all)
	var ops []storage.Op
	for from := []byte{'f'}; ; {
		var digest []byte
		err := e.store.Scan(ctx, tableRevisions, from, []byte{'f' + 1}, func(k, _ []byte) error {
			if len(k) != 1+sha256.Size+4 {
				return fmt.Errorf("row %x of the rules' files is damaged: its key has %d bytes, want %d", k, len(k), 1+sha256.Size+4)
			}
			digest = slices.Clone(k[1 : 1+sha256.Size])
			return storage.ErrStop
		})
		if err != nil {
			return err
		}
		if digest == nil {
			break
		}
		first, end := revisionRange(digest)
		if !used["sha256:"+hex.EncodeToString(digest)] {
			ops = append(ops, storage.Op{Table: tableRevisions, Kind: storage.DeleteRange, Key: first, Value: end})
		}
		from = end
	}
	if len(ops) == 0 {
		return nil
	}
	return e.store.Commit(ctx, &storage.Batch{Ops: ops})
}

func keptFiles(all []Revision) map[string]bool {
	used := map[string]bool{}
	for _, r := range all {
		for _, f := range r.Files {
			used[f.Digest] = true
		}
	}
	return used
}

// revisionRange is the keys of one file's chunks.
func revisionRange(digest []byte) (from, end []byte) {
	from = append([]byte{'f'}, digest...)
	return from, be.AppendUint32(slices.Clone(from), 1<<32-1)
}

// KeepRevision stores the files of r that are not there and returns what Apply has to commit for r to be the newest
// of the revisions that are kept, which it returns too. have are those before, newest first. Files whose revision is
// never committed go with SweepRevisions. Two calls must not overlap.
func (e *Engine) KeepRevision(ctx context.Context, have []Revision, r Revision, files map[string][]byte) ([]Revision, []storage.Op, error) {
	r.Files, r.Time = nil, e.now().UTC()
	there := keptFiles(have)
	if len(have) > 0 {
		r.Number = have[0].Number
	}
	r.Number++
	for _, name := range slices.Sorted(maps.Keys(files)) {
		sum := sha256.Sum256(files[name])
		f := RevisionFile{name, "sha256:" + hex.EncodeToString(sum[:]), int64(len(files[name]))}
		r.Files = append(r.Files, f)
		if !there[f.Digest] {
			there[f.Digest] = true
			if err := e.keepFile(ctx, sum[:], files[name]); err != nil {
				return nil, nil, fmt.Errorf("keeping file %q of the rules: %w", name, err)
			}
		}
	}
	row, err := json.Marshal(r)
	if err != nil {
		return nil, nil, err
	}
	all := append([]Revision{r}, have...)
	kept := boundRevisions(all)
	ops := []storage.Op{put(tableRevisions, revisionKey(r.Number), row)}
	used := keptFiles(kept)
	for _, old := range all[len(kept):] {
		ops = append(ops, del(tableRevisions, revisionKey(old.Number)))
		for _, f := range old.Files {
			if digest, err := hex.DecodeString(f.Digest[min(len("sha256:"), len(f.Digest)):]); err == nil && len(digest) == sha256.Size && !used[f.Digest] {
				used[f.Digest] = true
				from, end := revisionRange(digest)
				ops = append(ops, storage.Op{Table: tableRevisions, Kind: storage.DeleteRange, Key: from, Value: end})
			}
		}
	}
	return kept, ops, nil
}

// boundRevisions leaves out the oldest that are too many, or have too much.
func boundRevisions(all []Revision) []Revision {
	var bytes int64
	counted := map[string]bool{}
	for i, r := range all {
		for _, f := range r.Files {
			if !counted[f.Digest] {
				counted[f.Digest] = true
				bytes += f.Size
			}
		}
		if i > 0 && (i >= maxRevisions || bytes > maxRevisedBytes) {
			return all[:i:i]
		}
	}
	return all
}

func revisionKey(number uint64) []byte { return be.AppendUint64([]byte{'r'}, number) }

func (e *Engine) keepFile(ctx context.Context, digest, b []byte) error {
	for chunk := uint32(0); chunk == 0 || len(b) > 0; chunk++ {
		n := min(len(b), revisionChunk)
		key := be.AppendUint32(append([]byte{'f'}, digest...), chunk)
		if err := e.store.Commit(ctx, &storage.Batch{Ops: []storage.Op{put(tableRevisions, key, b[:n])}}); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// RevisionFiles reads the files of a revision, by their names in a bundle.
func (e *Engine) RevisionFiles(ctx context.Context, r Revision) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, f := range r.Files {
		b := []byte{}
		digest, err := hex.DecodeString(f.Digest[min(len("sha256:"), len(f.Digest)):])
		if err == nil {
			from, end := revisionRange(digest)
			err = e.store.Scan(ctx, tableRevisions, from, end, func(_, v []byte) error {
				b = append(b, v...)
				return nil
			})
		}
		if sum := sha256.Sum256(b); err == nil && !bytes.Equal(sum[:], digest) {
			err = errors.New("it is damaged, or not there")
		}
		if err != nil {
			return nil, fmt.Errorf("file %q of revision %d of the rules: %w", f.Name, r.Number, err)
		}
		files[f.Name] = b
	}
	return files, nil
}

// ID names a revision: its number and the beginning of what its files hash to.
func (r Revision) ID() string {
	short := r.Revision
	if len(short) > len("sha256:")+12 {
		short = short[len("sha256:") : len("sha256:")+12]
	}
	return fmt.Sprintf("%d-%s", r.Number, short)
}

// FindRevision finds the revision that a number or an ID names.
func FindRevision(all []Revision, name string) (Revision, error) {
	for _, r := range all {
		if name == r.ID() || name == fmt.Sprint(r.Number) {
			return r, nil
		}
	}
	return Revision{}, event.Bad(event.ErrNotFound, "revision", fmt.Sprintf("no revision %.60q of the rules is kept; `router rules revisions` lists them", name))
}
