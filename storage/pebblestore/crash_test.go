package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/storetest"
)

// long asks for many more seeds (make test-long).
func long() bool { return os.Getenv("MILLRACE_LONG") == "1" }

// faultOptions make flushes, compactions and checkpoints frequent, so that faults meet them too.
func faultOptions(fs vfs.FS) Options {
	return Options{Dir: "data", FS: fs, MemTable: 64 << 10, BlockCache: 16 << 10, StallTimeout: 5 * time.Second,
		checkpointEvery: time.Millisecond}
}

// crash runs a load, takes the disk's image at a random operation, with some of the unsynced data, and
// says what a store that is opened on it has lost. It does so twice in a row: a recovery can crash too.
func crash(t *testing.T, seed uint64, noSync bool) error {
	t.Helper()
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(seed, 1))
	mem := vfs.NewCrashableMem()
	ledger := &storetest.Ledger{}
	atLeast := &storetest.Ledger{}
	for round := range 2 {
		// The image is taken inside an operation of the file system, before it happens.
		var ops atomic.Int64
		at := int64(1 + rng.IntN(600))
		taken := make(chan struct{})
		var image *vfs.MemFS
		var before *storetest.Ledger
		percent := rng.IntN(81)
		imageRNG := rand.New(rand.NewPCG(seed, uint64(round)+2))
		var once sync.Once
		take := func() {
			once.Do(func() {
				before = ledger.Snapshot()
				image = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: imageRNG})
				close(taken)
			})
		}
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && ops.Add(1) == at {
				take()
			}
			return nil
		}))
		o := faultOptions(fs)
		o.noSync = noSync
		s, err := Open(ctx, o)
		if err != nil {
			return fmt.Errorf("open, round %d: %w", round, err)
		}
		if err := ledger.Check(ctx, s, atLeast); err != nil {
			return fmt.Errorf("round %d: %w", round, errors.Join(err, s.Close()))
		}
		var wg sync.WaitGroup
		for worker := range 4 {
			wrng := rand.New(rand.NewPCG(seed, uint64(worker)+10))
			wg.Go(func() {
				for range 400 {
					select {
					case <-taken:
						return
					default:
					}
					if err := ledger.Commit(ctx, s, wrng); err != nil {
						t.Errorf("seed %d: %v", seed, err)
						return
					}
				}
			})
		}
		wg.Wait()
		take()
		if err := s.Close(); err != nil {
			return err
		}
		mem, atLeast = image, before
		ledger.Rewind(before)
	}
	s, err := Open(ctx, faultOptions(mem))
	if err != nil {
		return fmt.Errorf("open after the crash: %w", err)
	}
	return errors.Join(ledger.Check(ctx, s, atLeast), s.Close())
}

// TestCrash holds durability: what was acknowledged survives a power cut at any operation.
func TestCrash(t *testing.T) {
	seeds := 150
	if long() {
		seeds = 5000
	}
	crashes(t, seeds)
}

// TestCrashOfFewSeeds is TestCrash under the race detector.
func TestCrashOfFewSeeds(t *testing.T) { crashes(t, 15) }

func crashes(t *testing.T, seeds int) {
	t.Helper()
	sem := make(chan struct{}, 2)
	var wg sync.WaitGroup
	for seed := range uint64(seeds) {
		sem <- struct{}{}
		wg.Go(func() {
			defer func() { <-sem }()
			if err := crash(t, seed, false); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
	wg.Wait()
}

// TestCrashFindsMutant shows that TestCrash would notice a store that acknowledges before the sync.
func TestCrashFindsMutant(t *testing.T) {
	for seed := range uint64(10) {
		if err := crash(t, seed, true); err != nil {
			return
		}
	}
	t.Fatal("a store that does not sync passed ten seeds")
}

// TestFailedWrite holds that a failed write acknowledges nothing: the Nth write operation fails, for N = 1, 2, … until none fails any more. Then nothing is
// acknowledged after the fault, and a restart has all that was.
func TestFailedWrite(t *testing.T) {
	ctx := context.Background()
	step, most := 7, 4000
	if long() {
		step = 1
	}
	faults := 0
	for n := 1; n <= most; n += step {
		mem := vfs.NewCrashableMem()
		var ops atomic.Int64
		var failed atomic.Bool
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			// By turns only that operation fails, or all from there on.
			if i := ops.Add(1); i < int64(n) || i > int64(n) && n%2 == 1 {
				return nil
			}
			failed.Store(true)
			return errorfs.ErrInjected
		}))
		ledger := &storetest.Ledger{}
		s, err := Open(ctx, faultOptions(fs))
		if err == nil {
			err = ledger.Prepare(ctx, s)
			rng := rand.New(rand.NewPCG(1, uint64(n)))
			for i := 0; i < 150 && err == nil; i++ {
				err = ledger.Commit(ctx, s, rng)
			}
			if err != nil {
				if !errors.Is(err, event.ErrUnavailable) && !errors.Is(err, event.ErrFull) {
					t.Fatalf("n %d: %v", n, err)
				}
				acked := ledger.Acked()
				for range 5 {
					if err := ledger.Commit(ctx, s, rng); err == nil {
						t.Fatalf("n %d: acknowledged after the fault", n)
					}
				}
				if s.Stats().Degraded == "" || ledger.Acked() != acked {
					t.Fatalf("n %d: not degraded", n)
				}
				select {
				case <-s.Fatal():
				default:
					t.Fatalf("n %d: Fatal is open", n)
				}
			}
			_ = s.Close() // it may say what failed
		}
		if !failed.Load() {
			if faults < 20 {
				t.Fatalf("only %d operations failed", faults)
			}
			return
		}
		faults++
		// The process ends, its locks with it; the page cache is kept, or else what was not synced is lost.
		image := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100 * (n % 2), RNG: rand.New(rand.NewPCG(1, 1))})
		s, err = Open(ctx, faultOptions(image))
		if err != nil {
			t.Fatalf("n %d: restart: %v", n, err)
		}
		if err := errors.Join(ledger.Check(ctx, s, ledger), s.Close()); err != nil {
			t.Fatalf("n %d: %v", n, err)
		}
	}
	if faults == 0 {
		t.Fatal("nothing failed")
	}
}

// TestHang: a sync that never returns ends commits within the stall timeout, and Close returns.
func TestHang(t *testing.T) {
	ctx := context.Background()
	release := make(chan struct{})
	var hang atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if hang.Load() && strings.HasSuffix(op.Path, ".log") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			<-release
		}
		return nil
	}))
	o := faultOptions(fs)
	o.StallTimeout = 300 * time.Millisecond
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer close(release)
	ledger := &storetest.Ledger{}
	if err := ledger.Prepare(ctx, s); err != nil {
		t.Fatal(err)
	}
	hang.Store(true)
	began := time.Now()
	if err := ledger.Commit(ctx, s, rand.New(rand.NewPCG(1, 1))); !errors.Is(err, event.ErrUnavailable) {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Fatalf("it took %s", took)
	}
	l, err := s.OpenLog(ctx, storetest.LedgerLogs[0], storage.LogOptions{Bytes: 1})
	if l != nil && !errors.Is(err, event.ErrUnavailable) {
		t.Fatal(err)
	}
	if err := s.Close(); !errors.Is(err, event.ErrUnavailable) {
		t.Fatal(err)
	}
}

// TestFailedDirSync: a directory that cannot be synced ends commits, where Pebble would panic.
func TestFailedDirSync(t *testing.T) {
	ctx := context.Background()
	var armed atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if armed.Load() && op.Kind == errorfs.OpFileSync && op.Path == "data/pebble" {
			return errorfs.ErrInjected
		}
		return nil
	}))
	s := mustOpen(t, faultOptions(fs))
	ledger := &storetest.Ledger{}
	if err := ledger.Prepare(ctx, s); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		if err := ledger.Commit(ctx, s, rng); err != nil {
			if !errors.Is(err, event.ErrUnavailable) || !strings.Contains(err.Error(), "syncing data/pebble failed") {
				t.Fatal(err)
			}
			<-s.Fatal()
			return
		}
	}
	t.Fatal("commits go on")
}
