//go:build linux

package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A quotaFS is a small disk: writes beyond its size fail as a full disk's do.
type quotaFS struct {
	vfs.FS
	total int64

	mu     sync.Mutex
	ballot map[string]int64 // bytes preallocated by name
	hog    int64            // bytes that somebody else has
}

func (q *quotaFS) Unwrap() vfs.FS { return q.FS }

func (q *quotaFS) used() int64 {
	n := q.hog
	for _, dir := range []string{"data", "data/pebble"} {
		ls, err := q.FS.List(dir)
		if err != nil {
			continue
		}
		for _, name := range ls {
			if info, err := q.FS.Stat(dir + "/" + name); err == nil && !info.IsDir() {
				n += max(info.Size(), q.ballot[dir+"/"+name])
			}
		}
	}
	return n
}

func (q *quotaFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	used := uint64(min(q.used(), q.total))
	return vfs.DiskUsage{AvailBytes: uint64(q.total) - used, TotalBytes: uint64(q.total), UsedBytes: used}, nil
}

func (q *quotaFS) take(n int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used()+n > q.total {
		return &fs.PathError{Op: "write", Path: "data", Err: syscall.ENOSPC}
	}
	return nil
}

func (q *quotaFS) setHog(n int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hog = n
}

func (q *quotaFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := q.FS.Create(name, c)
	return &quotaFile{f, q, name}, err
}

func (q *quotaFS) Remove(name string) error {
	q.mu.Lock()
	delete(q.ballot, name)
	q.mu.Unlock()
	return q.FS.Remove(name)
}

type quotaFile struct {
	vfs.File
	q    *quotaFS
	name string
}

func (f *quotaFile) Write(b []byte) (int, error) {
	if err := f.q.take(int64(len(b))); err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

func (f *quotaFile) Preallocate(off, n int64) error {
	if f.name != "data/ballast" {
		return nil
	}
	if err := f.q.take(n); err != nil {
		return err
	}
	f.q.mu.Lock()
	f.q.ballot[f.name] = n
	f.q.mu.Unlock()
	return nil
}

// refusalBound tells a refusal from a hang on a machine that is busy with other tests: alone it takes well
// under 100 ms.
const refusalBound = 2 * time.Second

// fullDisk holds that a full disk is survivable: the disk fills up, commits are refused quickly and quietly while cursors and reads go on, and when
// space comes back the same process goes on.
func fullDisk(t *testing.T, o Options, hog func(on bool)) {
	t.Helper()
	ctx := context.Background()
	var mu sync.Mutex
	var lines []time.Time
	o.Logf = func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, time.Now())
		t.Logf(format, args...)
	}
	began := time.Now()
	s := mustOpen(t, o)
	l := mustLog(t, s, logID, storage.LogOptions{Bytes: 1 << 30})
	n := 0
	// fill commits until commits are refused for a while: what Pebble tidies up makes a little room now and then.
	fill := func() {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		refused := time.Time{}
		for refused.IsZero() || time.Since(refused) < 500*time.Millisecond {
			at := time.Now()
			err := s.Commit(ctx, batchOf(logID, n, 1, 20_000))
			switch {
			case err == nil:
				n++
				refused = time.Time{}
			case !errors.Is(err, event.ErrFull) || at.After(deadline):
				t.Fatalf("commit %d: %v", n, err)
			default:
				if took := time.Since(at); took > refusalBound {
					t.Errorf("the refusal took %s", took)
				}
				if refused.IsZero() {
					refused = at
				}
			}
		}
	}
	fill()
	if n == 0 {
		t.Fatal("nothing fits")
	}
	full := n
	if d := s.Stats().Degraded; !strings.Contains(d, "reserve") {
		t.Errorf("degraded: %q", d)
	}
	for i := range 100 {
		at := time.Now()
		if err := s.Commit(ctx, batchOf(logID, n, 1, 20_000)); !errors.Is(err, event.ErrFull) || time.Since(at) > refusalBound {
			t.Fatalf("full, commit %d: %v after %s", i, err, time.Since(at))
		}
		op := storage.Op{Table: 1, Key: []byte("cursor"), Value: []byte(fmt.Sprint(i))}
		if err := s.Commit(ctx, &storage.Batch{Ops: []storage.Op{op}}); err != nil {
			t.Fatalf("full, cursor %d: %v", i, err)
		}
	}
	if _, err := l.Read(ctx, event.Offset(n-1), 1, nil); err != nil {
		t.Fatal(err)
	}

	// Somebody else takes the rest: still no hang, no crash.
	hog(true)
	for i := range 20 {
		at := time.Now()
		if err := s.Commit(ctx, batchOf(logID, n, 1, 20_000)); !errors.Is(err, event.ErrFull) || time.Since(at) > refusalBound {
			t.Fatalf("taken, commit %d: %v after %s", i, err, time.Since(at))
		}
	}
	hog(false)

	// The ring gives up events: the same process takes new ones.
	if err := l.Trim(ctx, event.Offset(n)); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := s.Commit(ctx, batchOf(logID, n, 1, 20_000))
		if err == nil {
			n++
			break
		}
		if !errors.Is(err, event.ErrFull) || time.Now().After(deadline) {
			t.Fatalf("after the trim: %v; %d bytes are free", err, s.space.free())
		}
		if err := l.Wait(contextFor(t, 50*time.Millisecond), event.Offset(n)); err == nil {
			t.Fatal("an event that was refused is there")
		}
	}
	for range full / 4 {
		if err := s.Commit(ctx, batchOf(logID, n, 1, 20_000)); err != nil {
			t.Fatalf("commit %d: %v", n, err)
		}
		n++
	}
	if d := s.Stats().Degraded; d != "" {
		t.Errorf("degraded: %q", d)
	}
	mu.Lock()
	defer mu.Unlock()
	if most := int(time.Since(began)/time.Second) + 2; len(lines) > most {
		t.Errorf("%d lines were logged, at most %d are allowed", len(lines), most)
	}
}

func contextFor(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestFullDisk(t *testing.T) {
	q := &quotaFS{FS: vfs.NewMem(), total: 24 << 20, ballot: map[string]int64{}}
	fullDisk(t, Options{Dir: "data", FS: q}, q.hogSwitch)
}

// TestFullTmpfs is the same on a real file system of 24 MiB. Without the right to mount, a simulated disk of
// another size takes its place.
func TestFullTmpfs(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Logf("mounting a tmpfs: %v; a simulated disk takes its place", err)
		q := &quotaFS{FS: vfs.NewMem(), total: 48 << 20, ballot: map[string]int64{}}
		fullDisk(t, Options{Dir: "data", FS: q}, q.hogSwitch)
		return
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	fullDisk(t, Options{Dir: dir + "/data"}, func(on bool) {
		path := dir + "/hog"
		if !on {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 64<<10))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	})
}

func (q *quotaFS) hogSwitch(on bool) {
	q.setHog(0)
	if u, err := q.GetDiskUsage(""); on && err == nil {
		q.setHog(int64(u.AvailBytes) - 4096)
	}
}
