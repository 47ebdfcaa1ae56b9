package pebblestore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// OpenLog implements storage.Store.
func (s *Store) OpenLog(ctx context.Context, id storage.LogID, o storage.LogOptions) (storage.Log, error) {
	if o.Bytes <= 0 {
		return nil, fmt.Errorf("log %s: %w: a ring of %d bytes; it must be positive", logName(id), event.ErrInvalid, o.Bytes)
	}
	s.opening.Lock() // two callers must not load one log twice
	defer s.opening.Unlock()
	if l := s.log(id); l != nil {
		return l, s.do(ctx, func(w *writer) error {
			l.setOptions(o)
			l.retain(w, w.now)
			return nil
		})
	}
	if err := s.degraded(); err != nil {
		return nil, err
	}
	l, known, err := s.loadLog(id, o)
	if err != nil {
		return nil, err
	}
	if err := s.space.admit(0, true); err != nil && !known {
		return nil, err
	}
	return l, s.do(ctx, func(w *writer) error {
		s.logsMu.Lock()
		s.logs[id] = l
		s.logsMu.Unlock()
		if !known {
			l.mu.Lock()
			w.putLogRow(l)
			l.mu.Unlock()
		}
		l.retain(w, w.now)
		return nil
	})
}

func (l *plog) setOptions(o storage.LogOptions) {
	l.opts = o
	l.cutAt = int(min(blockSize, l.chunkSize()))
	if o.Dedupe <= 0 {
		l.dedupe.clear(&l.s.dedupeHeld)
	}
}

// loadLog reads what a log needs in memory: its row, its chunks, the blocks after the last sealed chunk,
// and the ids of its dedupe window.
func (s *Store) loadLog(id storage.LogID, o storage.LogOptions) (l *plog, known bool, err error) {
	if err := s.enter(); err != nil {
		return nil, false, err
	}
	defer s.leave()
	l = &plog{s: s, id: id}
	v, closer, err := s.db.Get(appendLogKey(nil, kindLog, id))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
	case err != nil:
		return nil, false, s.readFault(err)
	default:
		known = true
		row, err := parseLogRow(id, v)
		closer.Close()
		if err != nil {
			return nil, false, s.readFault(err)
		}
		l.head, l.next, l.last, l.dedupe.from = row.head, row.head, row.last, row.dedupe
		l.freed = row.head
		if err := s.loadChunks(l, max(row.head, row.next)); err != nil {
			return nil, false, s.readFault(err)
		}
	}
	l.setOptions(o)
	l.tent, l.view, l.viewEnd = l.next, l.next, l.last
	if known && o.Dedupe > 0 {
		if err := s.loadDedupe(l, s.clock.read()-int64(o.Dedupe)); err != nil {
			return nil, false, s.readFault(err)
		}
	}
	return l, known, nil
}

// scanKeys calls fn for a log's keys of a kind from an offset on.
func (s *Store) scanKeys(kind byte, id storage.LogID, from event.Offset, fn func(o event.Offset, v []byte) error) error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: appendKey(nil, kind, id, from), UpperBound: logKeyEnd(kind, id)})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := fn(keyOffset(it.Key()), v); err != nil {
			return err
		}
	}
	return it.Error()
}

func (s *Store) loadChunks(l *plog, atLeast event.Offset) error {
	hole := func(at event.Offset) error {
		return fmt.Errorf("log %s: offsets [%d, %d) are missing; %s", logName(l.id), l.next, at, repairHint(s.o.Dir))
	}
	err := s.scanKeys(kindChunk, l.id, l.head, func(o event.Offset, v []byte) error {
		c, err := parseChunk(l.id, o, v)
		if err == nil && o != l.next {
			err = hole(o)
		}
		l.sealed = append(l.sealed, c)
		l.next, l.last, l.bytes = c.next(), c.end, l.bytes+c.bytes
		return err
	})
	if err != nil {
		return err
	}
	err = s.scanKeys(kindBlock, l.id, l.next, func(o event.Offset, v []byte) error {
		count, last, records, err := parseBlock(l.id, o, v)
		if err != nil {
			return err
		}
		if o != l.next {
			return hole(o)
		}
		if l.open.count == 0 {
			l.open = chunk{first: o, begin: event.Record(records).Received()}
		}
		n := int64(len(records))
		l.open.count, l.open.bytes, l.open.end = l.open.count+uint64(count), l.open.bytes+n, last
		l.bytes += n
		l.next, l.last = l.next+uint64(count), last
		return nil
	})
	if err == nil && l.next < atLeast {
		err = hole(atLeast)
	}
	return err
}

func (s *Store) loadDedupe(l *plog, oldest int64) error {
	return s.scanKeys(kindDedupe, l.id, l.dedupe.from, func(o event.Offset, v []byte) error {
		if len(v) < 8 || (len(v)-8)%dedupeKeyEntry != 0 {
			return fmt.Errorf("log %s: the dedupe entries of %d have %d bytes", logName(l.id), o, len(v))
		}
		at := int64(le.Uint64(v))
		l.dedupe.mark(o, at, l.opts.Dedupe)
		if at < oldest {
			return nil
		}
		for v = v[8:]; len(v) > 0; v = v[dedupeKeyEntry:] {
			l.dedupe.add([16]byte(v), dedupeValue{le.Uint64(v[16:]), o + uint64(le.Uint32(v[24:])), at}, &s.dedupeHeld)
		}
		return nil
	})
}

// DropLog implements storage.Store.
func (s *Store) DropLog(ctx context.Context, id storage.LogID) error {
	// The sidecar forgets the log first: it must never claim what the store may lack.
	if err := s.files.forget(id); err != nil {
		return fmt.Errorf("log %s: %w: %w", logName(id), event.ErrUnavailable, err)
	}
	return s.do(ctx, func(w *writer) error {
		s.logsMu.Lock()
		l := s.logs[id]
		delete(s.logs, id)
		s.logsMu.Unlock()
		if l != nil {
			l.dropped = true
			l.dedupe.clear(&s.dedupeHeld)
			l.end()
		}
		for _, kind := range []byte{kindLog, kindChunk, kindBlock, kindDedupe} {
			w.must(w.batch.DeleteRange(appendLogKey(nil, kind, id), logKeyEnd(kind, id), nil))
		}
		return nil
	})
}

// Close implements storage.Store. After a failed write Pebble's goroutines stand still for good (see guardFS); then
// it returns without waiting for them, and only the end of the process frees what they hold.
func (s *Store) Close() error {
	s.closed.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	close(s.closing)
	s.queue.mu.Lock()
	s.queue.closed = true
	select {
	case s.queue.signal <- struct{}{}:
	default:
	}
	s.queue.mu.Unlock()
	stopped := make(chan error, 1)
	go func() { stopped <- s.finish() }()
	var err error
	select {
	case err = <-stopped:
	case <-s.fatal:
		err = s.degraded()
	case <-time.After(s.o.StallTimeout):
		err = fmt.Errorf("closing has hung for %s", s.o.StallTimeout)
	}
	return errors.Join(err, s.files.close())
}

// finish waits for commits and reads under way and closes Pebble.
func (s *Store) finish() error {
	s.wg.Wait()
	s.readersMu.Lock()
	s.noReaders = make(chan struct{})
	if s.readers == 0 {
		close(s.noReaders)
	}
	s.readersMu.Unlock()
	<-s.noReaders
	if err := s.degraded(); err != nil {
		return err
	}
	return errors.Join(s.writeSidecar(), closePebble(s.db))
}
