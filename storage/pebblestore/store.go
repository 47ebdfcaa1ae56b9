package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// Store is a storage.Store in one directory. It implements every method's contract there; see commit.go for
// why the order of writes is safe.
type Store struct {
	o     Options
	db    *pebble.DB
	clock clock
	space *space
	files *files // lock, pid, sidecar
	epoch uint64

	queue    queue
	requests sync.Pool
	groups   chan *group // idle ones: how many may be under way
	syncs    chan *group // applied, waiting for their sync, in order
	encoding sync.Mutex
	applying atomic.Int64 // since when a Pebble call has been under way, Unix ns; 0: none
	syncing  atomic.Int64

	logsMu  sync.RWMutex
	logs    map[storage.LogID]*plog
	opening sync.Mutex

	dedupeHeld atomic.Int64
	fresh      []freshBlock // the publisher's
	freshBytes int64

	snapshotting sync.Mutex // held while there is a Snapshot

	dropped atomic.Int64 // bytes that rings let go of and that may still take space on the disk

	closing  chan struct{} // Close was called
	fatal    chan struct{} // a write failed
	failure  atomic.Pointer[failure]
	failOnce sync.Once
	closed   sync.Once
	closeErr error
	wg       sync.WaitGroup // committer, publisher, background

	readersMu  sync.Mutex
	readers    int
	noReaders  chan struct{} // set by Close: closed when the last reader leaves
	checkpoint chan struct{} // asks for a sidecar soon

	stats struct{ commits, batches, syncs, events, bytes, shortened atomic.Uint64 }
}

var _ storage.Store = (*Store)(nil)

var errClosed = fmt.Errorf("the store is closed: %w", event.ErrUnavailable)

type failure struct{ err error }

// fail ends all commits: after a failed write or sync nothing may be acknowledged, because what is on the
// disk is unknown.
func (s *Store) fail(why string) {
	s.failOnce.Do(func() {
		s.failure.Store(&failure{fmt.Errorf("%w: %s; nothing written since is acknowledged; mend the disk and start again", event.ErrUnavailable, why)})
		close(s.fatal)
		s.o.Logf("pebblestore: %s: commits are refused from now on", why)
	})
}

// degraded returns why commits are refused, nil if they are not.
func (s *Store) degraded() error {
	if f := s.failure.Load(); f != nil {
		return f.err
	}
	return nil
}

// Fatal is closed when a write or sync has failed. Reads go on, commits do not: the process should answer 503
// and end with status 1, since only a restart finds out what is on the disk. Stats().Degraded says why.
func (s *Store) Fatal() <-chan struct{} { return s.fatal }

// enter keeps the database open until leave.
func (s *Store) enter() error {
	s.readersMu.Lock()
	defer s.readersMu.Unlock()
	if s.noReaders != nil {
		return errClosed
	}
	s.readers++
	return nil
}

func (s *Store) leave() {
	s.readersMu.Lock()
	defer s.readersMu.Unlock()
	if s.readers--; s.readers == 0 && s.noReaders != nil {
		close(s.noReaders)
	}
}

func (s *Store) readFault(err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: reading %s: %w; %s", event.ErrUnavailable, s.o.Dir, err, repairHint(s.o.Dir))
	}
	return fmt.Errorf("reading %s: %w", s.o.Dir, err)
}

func (s *Store) log(id storage.LogID) *plog {
	s.logsMu.RLock()
	defer s.logsMu.RUnlock()
	return s.logs[id]
}

func (s *Store) eachLog(fn func(*plog)) {
	s.logsMu.RLock()
	defer s.logsMu.RUnlock()
	for _, l := range s.logs {
		fn(l)
	}
}

// Load implements storage.Store.
func (s *Store) Load(ctx context.Context, t storage.Table, key []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkTable(t); err != nil {
		return nil, err
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	v, closer, err := s.db.Get(appendTableKey(nil, t, key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, s.readFault(err)
	}
	v = append(make([]byte, 0, len(v)), v...)
	if err := closer.Close(); err != nil {
		return nil, s.readFault(err)
	}
	return v, nil
}

// Scan implements storage.Store. fn may call the store.
func (s *Store) Scan(ctx context.Context, t storage.Table, from, to []byte, fn func(key, value []byte) error) error {
	if err := checkTable(t); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	o := pebble.IterOptions{LowerBound: appendTableKey(nil, t, from), UpperBound: []byte{kindTable + byte(t) + 1}}
	if to != nil {
		o.UpperBound = appendTableKey(nil, t, to)
	}
	it, err := s.db.NewIter(&o)
	if err != nil {
		return s.readFault(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return s.readFault(err)
		}
		if err := fn(it.Key()[1:], v); err != nil {
			if errors.Is(err, storage.ErrStop) {
				return nil
			}
			return err
		}
	}
	if err := it.Error(); err != nil {
		return s.readFault(err)
	}
	return nil
}

func checkTable(t storage.Table) error {
	if t > maxTable {
		return fmt.Errorf("table %d: %w: tables are numbered 0 to %d", t, event.ErrInvalid, maxTable)
	}
	return nil
}

// Claim implements storage.Store: the directory's lock is the claim, and every Open a new owner.
func (s *Store) Claim(ctx context.Context, id storage.LogID) (storage.Claim, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-s.closing:
		return nil, errClosed
	default:
		return claim{s}, nil
	}
}

type claim struct{ s *Store }

func (c claim) Epoch() uint64         { return c.s.epoch }
func (c claim) Lost() <-chan struct{} { return c.s.closing }
func (c claim) Release()              {}

// Stats implements storage.Store.
func (s *Store) Stats() storage.Stats {
	st := storage.Stats{
		Commits: s.stats.commits.Load(), CommittedBatches: s.stats.batches.Load(), Syncs: s.stats.syncs.Load(),
		Events: s.stats.events.Load(), UserBytes: s.stats.bytes.Load(),
		DedupeBytes: s.dedupeHeld.Load(), DedupeShortened: s.stats.shortened.Load(),
		DiskFree: s.space.free(),
	}
	if err := s.degraded(); err != nil {
		st.Degraded = err.Error()
	} else if err := s.space.admit(0, false); err != nil {
		st.Degraded = err.Error()
	}
	if s.degraded() == nil && s.enter() == nil {
		m := s.db.Metrics()
		s.leave()
		t := m.Total()
		st.WrittenBytes = m.WAL.BytesWritten + t.TableBytesCompacted + t.BlobBytesFlushed + t.BlobBytesCompacted
		for i := range m.Levels { // Total counts the WAL as flushed
			st.WrittenBytes += m.Levels[i].TableBytesFlushed
		}
		st.DiskUsed = m.DiskSpaceUsage()
	}
	return st
}

// Maintain drops what has passed its age now, as the store does by itself every second.
func (s *Store) Maintain(ctx context.Context) error { return s.do(ctx, s.maintain) }

// background drops what is too old, writes the sidecar, and ends commits when a write hangs.
func (s *Store) background() {
	watch := time.NewTicker(watchEvery)
	defer watch.Stop()
	var maintained, checked time.Time
	ctx, cancel := context.WithCancel(context.Background())
	reclaimed := make(chan struct{}, 1)
	reclaimed <- struct{}{}
	defer func() { cancel(); <-reclaimed }()
	for {
		soon := false
		select {
		case <-s.closing:
			return
		case <-s.checkpoint:
			soon = true
		case <-watch.C:
		}
		now := time.Now()
		for _, since := range []int64{s.applying.Load(), s.syncing.Load()} {
			if since != 0 && now.UnixNano()-since > int64(s.o.StallTimeout) {
				s.fail(fmt.Sprintf("a write has hung for %s", now.Sub(time.Unix(0, since)).Round(time.Second)))
			}
		}
		if s.degraded() != nil {
			continue
		}
		s.space.tend()
		if s.space.short() || s.owes() {
			select {
			case <-reclaimed:
				go func() { s.reclaim(ctx); reclaimed <- struct{}{} }()
			default:
			}
		}
		if now.Sub(maintained) >= maintainEvery {
			maintained = now
			// Nobody waits for it: the committer may be the one that hangs.
			s.enqueue(s.maintain)
		}
		if soon || now.Sub(checked) >= s.o.checkpointEvery {
			checked = now
			if err := s.writeSidecar(); err != nil {
				s.o.Logf("pebblestore: %v", err)
			}
		}
	}
}

// enqueue has work done by the committer without waiting for it.
func (s *Store) enqueue(work func(w *writer) error) {
	r := &request{work: work, done: make(chan struct{}, 1)}
	if err := s.queue.put(r, s.o.MaxPending+1); err != nil {
		return // closed, or so busy that the next time will do
	}
}
