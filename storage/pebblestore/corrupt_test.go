package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/storetest"
)

// filled is a directory as a kill leaves it: tables, a MANIFEST of several records, a log with a tail.
func filled(t *testing.T) (*vfs.MemFS, *storetest.Ledger) {
	t.Helper()
	ctx := context.Background()
	mem := vfs.NewCrashableMem()
	o := faultOptions(mem)
	s := mustOpen(t, o)
	g := &storetest.Ledger{}
	if err := g.Prepare(ctx, s); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 400 {
		if err := g.Commit(ctx, s, rng); err != nil {
			t.Fatal(err)
		}
		if i == 200 {
			if err := s.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.writeSidecar(); err != nil {
		t.Fatal(err)
	}
	return image(mem), g
}

// image is an independent copy of a file system.
func image(mem *vfs.MemFS) *vfs.MemFS {
	return mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
}

func readMem(t *testing.T, fs vfs.FS, path string) []byte {
	t.Helper()
	b, err := readFile(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeMem(t *testing.T, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(append([]byte(nil), b...))
	}
	if err = errors.Join(err, f.Sync(), f.Close(), syncDir(fs, fs.PathDir(path))); err != nil {
		t.Fatal(err)
	}
}

func pebbleFiles(t *testing.T, fs vfs.FS, match func(string) bool) (paths []string) {
	t.Helper()
	ls, err := fs.List("data/pebble")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range ls {
		if match(name) {
			paths = append(paths, "data/pebble/"+name)
		}
	}
	if len(paths) == 0 {
		t.Fatalf("none of %v", ls)
	}
	slices.Sort(paths) // the file system lists them in any order, and the newest log is the last
	return paths
}

func isLog(name string) bool      { return strings.HasSuffix(name, ".log") }
func isTable(name string) bool    { return strings.HasSuffix(name, ".sst") }
func isManifest(name string) bool { return strings.HasPrefix(name, "MANIFEST-") }

// reopened opens a directory and checks that everything acknowledged is there. refused is set if Open refused it.
func reopened(fs *vfs.MemFS, g *storetest.Ledger) (refused, lost error) {
	ctx := context.Background()
	s, err := Open(ctx, faultOptions(fs))
	if err != nil {
		return err, nil
	}
	return nil, errors.Join(g.Check(ctx, s, g), s.Close())
}

// TestTornLog cuts the newest log at every byte of its last block. What the sidecar vouches for is never missed in silence,
// and what is there is whole.
func TestTornLog(t *testing.T) {
	mem, g := filled(t)
	logs := pebbleFiles(t, mem, isLog)
	path := logs[len(logs)-1]
	b := readMem(t, mem, path)
	end := len(b)
	for end > 0 && b[end-1] == 0 {
		end--
	}
	step := max(1, end%chunkBlock/150)
	if long() {
		step = 1
	}
	started := 0
	for cut := end - end%chunkBlock; cut <= end; cut += step {
		fs := image(mem)
		writeMem(t, fs, path, b[:cut])
		refused, lost := reopened(fs, g)
		if refused == nil && lost != nil {
			t.Fatalf("cut at %d of %d: started with less than the sidecar knows of: %v", cut, end, lost)
		}
		if refused == nil {
			started++
		} else if !strings.Contains(refused.Error(), "router doctor") {
			t.Fatalf("cut at %d: %v", cut, refused)
		}
	}
	if refused, lost := reopened(image(mem), g); refused != nil || lost != nil {
		t.Fatal(refused, lost)
	}

	// Without a sidecar that knows of them, unsynced batches may be torn off: it starts, and holds a prefix.
	old := &storetest.Ledger{}
	for cut := end - end%chunkBlock; cut < end; cut += 4 * step {
		fs := image(mem)
		writeMem(t, fs, path, b[:cut])
		f, err := openFiles(fs, "data", 1)
		if err != nil {
			t.Fatal(err)
		}
		clear(f.next)
		if err := errors.Join(f.write(true), f.close()); err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		s, err := Open(ctx, faultOptions(fs))
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if err := errors.Join(g.Check(ctx, s, old), s.Close()); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

// liveTables are those without which the store is refused; a crash leaves some behind that are not used.
func liveTables(t *testing.T, mem *vfs.MemFS, g *storetest.Ledger) (live []string) {
	t.Helper()
	for _, path := range pebbleFiles(t, mem, isTable) {
		fs := image(mem)
		if err := fs.Remove(path); err != nil {
			t.Fatal(err)
		}
		refused, lost := reopened(fs, g)
		if refused != nil && strings.Contains(refused.Error(), "router doctor") {
			live = append(live, path)
		} else if refused != nil || lost != nil {
			t.Errorf("%s removed: %v, %v", path, refused, lost)
		}
	}
	if len(live) == 0 {
		t.Fatal("no table is missed")
	}
	return live
}

// TestFlippedBit flips one bit per 4 KiB of every file: it is refused or found, naming the file; or nothing is lost by it.
func TestFlippedBit(t *testing.T) {
	mem, g := filled(t)
	live := liveTables(t, mem, g)
	for _, kind := range []struct {
		name  string
		match func(string) bool
	}{{"log", isLog}, {"manifest", isManifest}, {"table", isTable}} {
		refusals := 0
		for _, path := range pebbleFiles(t, mem, kind.match) {
			b := readMem(t, mem, path)
			rng := rand.New(rand.NewPCG(5, uint64(len(b))))
			var spots []int
			for block := 0; block < len(b); block += 4 << 10 {
				spots = append(spots, block+rng.IntN(min(4<<10, len(b)-block)))
			}
			if kind.name == "manifest" {
				for range 20 {
					spots = append(spots, rng.IntN(len(b)))
				}
			}
			for _, at := range spots {
				fs := image(mem)
				bad := append([]byte(nil), b...)
				bad[at] ^= 1 << rng.IntN(8)
				writeMem(t, fs, path, bad)
				deepErr, report := error(nil), ""
				if kind.name == "table" {
					deepErr = checkDir(context.Background(), image(fs), "data", true, func(s string) { report += s + "\n" })
				}
				refused, lost := reopened(fs, g)
				switch {
				case refused != nil:
					refusals++
					if !strings.Contains(refused.Error(), "router doctor") || kind.name != "table" && !strings.Contains(refused.Error(), path) && !strings.Contains(refused.Error(), "acknowledged") {
						t.Fatalf("%s, byte %d: %v", path, at, refused)
					}
				case lost != nil && !errors.Is(lost, event.ErrUnavailable):
					t.Fatalf("%s, byte %d of %d: started with less: %v", path, at, len(b), lost)
				}
				if kind.name == "table" {
					if slices.Contains(live, path) && (deepErr == nil || !strings.Contains(report, path)) {
						t.Fatalf("%s, byte %d of %d: doctor finds nothing: %v, %s", path, at, len(b), deepErr, report)
					}
				}
			}
		}
		if refusals == 0 && kind.name != "table" {
			t.Fatalf("%s: nothing was refused", kind.name)
		}
		t.Logf("%s: %d refused", kind.name, refusals)
	}
}

// TestMissing removes or spoils each file that must be there.
func TestMissing(t *testing.T) {
	mem, g := filled(t)
	paths := []string{"data/offsets"}
	for _, match := range []func(string) bool{isManifest, func(n string) bool { return strings.HasPrefix(n, "marker.manifest") }} {
		found := pebbleFiles(t, mem, match)
		paths = append(paths, slices.Max(found)) // older ones may be left over
	}
	for _, path := range paths {
		fs := image(mem)
		if err := fs.Remove(path); err != nil {
			t.Fatal(err)
		}
		refused, lost := reopened(fs, g)
		if refused == nil || !strings.Contains(refused.Error(), "router doctor") {
			t.Errorf("%s removed: %v, %v", path, refused, lost)
		}
	}
	liveTables(t, mem, g)
	fs := image(mem)
	if err := fs.RemoveAll("data/pebble"); err != nil {
		t.Fatal(err)
	}
	if refused, _ := reopened(fs, g); refused == nil {
		t.Error("an empty store took the place of a lost one")
	}
	b := readMem(t, mem, "data/offsets")
	for at := range b {
		fs := image(mem)
		bad := append([]byte(nil), b...)
		bad[at] ^= 4
		writeMem(t, fs, "data/offsets", bad)
		if refused, _ := reopened(fs, g); refused == nil || !strings.Contains(refused.Error(), "offsets") {
			t.Fatalf("sidecar, byte %d: %v", at, refused)
		}
	}
	if err := checkDir(context.Background(), image(mem), "data", true, func(s string) { t.Error(s) }); err != nil {
		t.Error(err)
	}
}

// TestNewer: a directory of a later format is refused in words.
func TestNewer(t *testing.T) {
	mem := vfs.NewCrashableMem()
	s := mustOpen(t, faultOptions(mem))
	if err := s.db.Set(keyFormat, le.AppendUint64(nil, formatVersion+1), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), faultOptions(mem))
	if !errors.Is(err, event.ErrUnsupported) || !strings.Contains(err.Error(), fmt.Sprintf("format %d", formatVersion+1)) {
		t.Fatal(err)
	}
	if _, err := openFiles(mem, "data", 1); err != nil {
		t.Fatalf("the lock was not given back: %v", err)
	}
}

// TestLocked: a second opening names the process that has the directory.
func TestLocked(t *testing.T) {
	for _, fs := range []vfs.FS{vfs.NewMem(), vfs.Default} {
		dir := t.TempDir()
		s := mustOpen(t, Options{Dir: dir, FS: fs})
		_, err := Open(context.Background(), Options{Dir: dir, FS: fs})
		if err == nil || !strings.Contains(err.Error(), "locked by pid ") {
			t.Fatal(err)
		}
		if err := Check(context.Background(), dir, false, func(s string) { t.Log(s) }); fs == vfs.Default && (err == nil || !strings.Contains(err.Error(), "locked by pid ")) {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, Options{Dir: dir, FS: fs})
		mustLog(t, s, logID, storage.LogOptions{})
	}
}

// TestDropLogSidecar: a log that was dropped is not missed after a crash.
func TestDropLogSidecar(t *testing.T) {
	ctx := context.Background()
	mem := vfs.NewCrashableMem()
	o := faultOptions(mem)
	o.checkpointEvery = time.Hour
	s := mustOpen(t, o)
	mustLog(t, s, logID, storage.LogOptions{})
	if err := errors.Join(s.Commit(ctx, batchOf(logID, 0, 3, 10)), s.writeSidecar(), s.DropLog(ctx, logID)); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, faultOptions(image(mem)))
	if b := mustLog(t, s, logID, storage.LogOptions{}).Bounds(); b.Next != 0 {
		t.Fatalf("%+v", b)
	}
}

// TestManifestWithoutSidecar: a bad record before a good one is told from a torn end by the MANIFEST alone.
func TestManifestWithoutSidecar(t *testing.T) {
	mem, _ := filled(t)
	d, err := pebble.Peek("data/pebble", mem)
	if err != nil {
		t.Fatal(err)
	}
	b := readMem(t, mem, d.ManifestFilename)
	good, more := walkChunks(b)
	if good != int64(len(b)) || more {
		t.Fatalf("%d of %d bytes are good", good, len(b))
	}
	last := 0 // where the last record begins
	for at := 0; at < len(b); {
		n, _ := goodChunk(b, at)
		last, at = at, at+n
	}
	f := files{fs: mem, dir: "data", db: "data/pebble"}
	for at := range b {
		bad := append([]byte(nil), b...)
		bad[at] ^= 16
		writeMem(t, mem, d.ManifestFilename, bad)
		if err := f.verify(t.Logf); at < last != (err != nil) {
			t.Fatalf("byte %d of %d, the last record begins at %d: %v", at, len(b), last, err)
		}
	}
}

// TestMarkerAfterManifest: no power cut can keep the marker and lose the MANIFEST that it names.
func TestMarkerAfterManifest(t *testing.T) {
	var unsynced atomic.Bool
	markers := 0
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		name := op.Path[strings.LastIndexByte(op.Path, '/')+1:]
		switch {
		case op.Kind == errorfs.OpCreate && isManifest(name):
			unsynced.Store(true)
		case op.Kind == errorfs.OpFileSync && op.Path == "data/pebble":
			unsynced.Store(false)
		case op.Kind == errorfs.OpCreate && strings.HasPrefix(name, "marker.manifest."):
			markers++
			if unsynced.Load() {
				t.Errorf("%s is made before the MANIFEST's directory entry is synced", name)
			}
		}
		return nil
	}))
	for range 2 {
		s, err := Open(context.Background(), faultOptions(fs))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if markers == 0 {
		t.Fatal("no marker was made")
	}
}
