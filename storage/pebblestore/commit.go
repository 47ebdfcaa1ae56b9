package pebblestore

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// How a commit flows, and why its order is safe.
//
// Callers put a request into the queue and wait. The committer goroutine takes everything that waits (no
// timer: while one group is being written, the next gathers by itself), checks each request, hands out
// offsets, encodes events into blocks, and applies one Pebble batch without waiting for its sync. The
// publisher goroutine waits for the syncs in the order of the batches, then moves what readers can see
// and answers the callers. So
//
//   - offsets are handed out by one goroutine: dense, in commit order;
//   - the dedupe index is checked and filled by that goroutine: two requests cannot both be first. A repeat of
//     an event in the same group, or one still being synced, is answered with its own group, which is
//     synced no earlier;
//   - nothing is visible to log readers or acknowledged before its sync, and visibility moves in order;
//   - a failed write or sync ends all commits: what was assigned above it is never acknowledged.
//
// A request is refused before anything of it is assigned, so a refusal leaves no trace and no gap.

type reqState = uint32

const (
	reqWaiting reqState = iota
	reqTaken            // the committer has it: its result will come
	reqWithdrawn
)

// A request is one caller's batch, or a piece of work for the committer. Pooled.
type request struct {
	b     *storage.Batch
	work  func(w *writer) error // instead of b: runs on the committer, answered after a sync
	sizes []int64               // record bytes of each append
	logs  []*plog               // of each append; nil: not open
	total int64
	state atomic.Uint32
	err   error
	done  chan struct{} // one signal per use
}

// queue is where requests wait.
type queue struct {
	mu     sync.Mutex
	list   []*request
	closed bool
	signal chan struct{} // something is in the list, or it is closed
}

func (q *queue) put(r *request, limit int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errClosed
	}
	if len(q.list) >= limit {
		return fmt.Errorf("%w: %d commits are waiting already; send slower or in batches", event.ErrUnavailable, limit)
	}
	q.list = append(q.list, r)
	if len(q.list) == 1 {
		select {
		case q.signal <- struct{}{}:
		default:
		}
	}
	return nil
}

// take moves requests to dst, up to maxGroup bytes, at least one if there is one. more says that the queue will
// still bring something.
func (q *queue) take(dst []*request) (_ []*request, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, int64(0)
	for n < len(q.list) && (n == 0 || size+q.list[n].total <= maxGroup) {
		size += q.list[n].total
		n++
	}
	dst = append(dst, q.list[:n]...)
	rest := copy(q.list, q.list[n:])
	clear(q.list[rest:])
	q.list = q.list[:rest]
	if rest > 0 {
		select {
		case q.signal <- struct{}{}:
		default:
		}
	}
	return dst, rest > 0 || !q.closed
}

// maxGroup bounds what one Pebble batch takes, unless a single request is larger.
const maxGroup = 8 << 20

// Commit implements storage.Store.
func (s *Store) Commit(ctx context.Context, b *storage.Batch) error {
	r := s.requests.Get().(*request)
	r.b, r.sizes, r.logs, r.total = b, r.sizes[:0], r.logs[:0], 0
	for i := range b.Appends {
		size := int64(0)
		for j := range b.Appends[i].Entries {
			size += int64(b.Appends[i].Entries[j].Event.RecordSize())
		}
		r.sizes = append(r.sizes, size)
		r.logs = append(r.logs, s.log(b.Appends[i].Log))
		r.total += size
	}
	for i := range b.Ops {
		if b.Ops[i].Table > maxTable {
			s.release(r)
			return fmt.Errorf("op %d: table %d: %w: tables are numbered 0 to %d", i, b.Ops[i].Table, event.ErrInvalid, maxTable)
		}
		r.total += int64(len(b.Ops[i].Key) + len(b.Ops[i].Value))
	}
	return s.submit(ctx, r)
}

// do runs work on the committer and returns once what it wrote is durable.
func (s *Store) do(ctx context.Context, work func(w *writer) error) error {
	r := s.requests.Get().(*request)
	r.work, r.sizes, r.total = work, r.sizes[:0], 0
	return s.submit(ctx, r)
}

func (s *Store) submit(ctx context.Context, r *request) error {
	err := ctx.Err()
	if err == nil {
		err = s.degraded()
	}
	r.err = nil
	r.state.Store(reqWaiting)
	if err == nil {
		err = s.queue.put(r, s.o.MaxPending)
	}
	if err != nil {
		s.release(r)
		return err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(reqWaiting, reqWithdrawn) {
			return ctx.Err() // the committer drops it; not reused
		}
		select {
		case <-r.done:
		case <-s.fatal:
			return s.abandon(r)
		}
	case <-s.fatal:
		return s.abandon(r)
	}
	err = r.err
	s.release(r)
	return err
}

// abandon answers a caller whose result may never come, because a write hangs. What the caller lent is
// read only while encoding is held.
func (s *Store) abandon(r *request) error {
	if !r.state.CompareAndSwap(reqWaiting, reqWithdrawn) {
		s.encoding.Lock() // waits for an encoding under way
		defer s.encoding.Unlock()
	}
	return s.degraded()
}

func (s *Store) release(r *request) {
	r.b, r.work = nil, nil
	clear(r.logs)
	r.logs = r.logs[:0]
	s.requests.Put(r)
}

// A group is what one Pebble batch carries.
type group struct {
	batch  *pebble.Batch
	reqs   []*request
	logs   []*logGroup
	spare  []*logGroup
	events uint64
	bytes  int64 // of records
	empty  bool  // nothing was written, but what came before must be durable
	began  time.Time
}

// A logGroup is a log's part of a group.
type logGroup struct {
	log    *plog
	blocks []*storage.Block
	next   event.Offset
	last   int64
	buf    []byte // the block being built, header included
	first  event.Offset
	count  int
	begin  int64  // received time of its first event
	ids    []byte // dedupe entries of the group
	idBase event.Offset
}

func (s *Store) commitLoop() {
	defer close(s.syncs)
	w := &writer{s: s}
	for {
		g := <-s.groups
		more := true
		for len(g.reqs) == 0 && more {
			<-s.queue.signal
			runtime.Gosched() // callers just answered get to queue again: larger groups, 64 callers +40 %
			g.reqs, more = s.queue.take(g.reqs)
		}
		if len(g.reqs) == 0 {
			return
		}
		s.build(w, g)
		s.syncs <- g
		if !more {
			return
		}
	}
}

// build checks, encodes and applies a group. A panic in Pebble (it panics when a log cannot be closed) is a
// failed write.
func (s *Store) build(w *writer, g *group) {
	defer func() {
		if p := recover(); p != nil {
			s.fail(fmt.Sprintf("a write failed: %v", p))
			s.o.Logf("pebblestore: %v\n%s", p, debug.Stack())
			w.batch = nil
			g.batch = nil
		}
	}()
	s.encode(w, g)
	if g.batch == nil {
		return
	}
	s.applying.Store(time.Now().UnixNano())
	defer s.applying.Store(0)
	g.empty = g.batch.Empty()
	if g.empty {
		return
	}
	s.space.wrote(int64(g.batch.Len()))
	if s.o.noSync { // the mutant that the crash tests must catch
		if err := s.db.Apply(g.batch, pebble.NoSync); err != nil {
			s.fail("a write failed: " + err.Error())
		}
		return
	}
	if err := s.db.ApplyNoSyncWait(g.batch, pebble.Sync); err != nil {
		s.fail("a write failed: " + err.Error())
	}
}

// encode turns the requests into a batch. It holds encoding, under which alone the callers' memory is read.
func (s *Store) encode(w *writer, g *group) {
	s.encoding.Lock()
	defer s.encoding.Unlock()
	n := 0
	for _, r := range g.reqs {
		if r.state.CompareAndSwap(reqWaiting, reqTaken) {
			g.reqs[n] = r
			n++
		}
	}
	clear(g.reqs[n:])
	g.reqs = g.reqs[:n]
	if err := s.degraded(); err != nil {
		for _, r := range g.reqs {
			r.err = err
		}
		return
	}
	g.began = time.Now()
	g.batch = s.db.NewBatch(pebble.WithMaxRetainedSizeBytes(maxGroup + 1<<20))
	w.batch, w.g = g.batch, g
	w.now = s.clock.read()
	for _, r := range g.reqs {
		for i, l := range r.logs {
			if l != nil {
				l.coming += r.sizes[i]
			}
		}
	}
	for _, r := range g.reqs {
		switch {
		case r.work != nil:
			w.finish() // what it does must come after the events before it
			r.err = r.work(w)
		default:
			r.err = w.take(r)
		}
	}
	w.finish()
	for _, lg := range g.logs {
		lg.log.group = nil
	}
	for _, r := range g.reqs {
		for _, l := range r.logs {
			if l != nil {
				l.coming = 0
			}
		}
	}
}

func (s *Store) publishLoop() {
	for g := range s.syncs {
		s.publish(g)
		s.groups <- g
	}
}

// publish waits for a group's sync, shows its events and answers its callers.
func (s *Store) publish(g *group) {
	if g.batch != nil && !g.empty && s.degraded() == nil {
		if !s.o.noSync {
			s.syncing.Store(time.Now().UnixNano())
			err := g.batch.SyncWait()
			s.syncing.Store(0)
			if err != nil {
				s.fail("a sync failed: " + err.Error())
			}
		}
		s.stats.syncs.Add(1)
	}
	err := s.degraded()
	if err == nil {
		for _, lg := range g.logs {
			lg.log.publish(lg)
			for _, b := range lg.blocks {
				s.keep(lg.log, b)
			}
		}
		s.stats.commits.Add(1)
		s.stats.batches.Add(uint64(len(g.reqs)))
		s.stats.events.Add(g.events)
		s.stats.bytes.Add(uint64(g.bytes))
		if g.batch != nil {
			_ = g.batch.Close() // back to Pebble's pool; it cannot fail once committed
		}
	}
	for i, r := range g.reqs {
		if err != nil {
			r.err = err
		}
		g.reqs[i] = nil
		r.done <- struct{}{}
	}
	for _, lg := range g.logs {
		clear(lg.blocks)
		lg.log, lg.blocks = nil, lg.blocks[:0]
	}
	g.spare = append(g.spare, g.logs...)
	clear(g.logs)
	g.reqs, g.logs, g.batch, g.events, g.bytes, g.empty = g.reqs[:0], g.logs[:0], nil, 0, 0, false
}

// keep holds a fresh block in memory for live readers, and lets go of the oldest ones past the bound. Only the
// publisher calls it.
func (s *Store) keep(l *plog, b *storage.Block) {
	s.freshBytes += int64(len(b.Records))
	s.fresh = append(s.fresh, freshBlock{l, b})
	n := 0
	for s.freshBytes > s.o.BlockCache && n < len(s.fresh)-1 {
		f := &s.fresh[n]
		f.log.forget(f.block)
		s.freshBytes -= int64(len(f.block.Records))
		*f = freshBlock{}
		n++
	}
	s.fresh = s.fresh[n:]
}

type freshBlock struct {
	log   *plog
	block *storage.Block
}
