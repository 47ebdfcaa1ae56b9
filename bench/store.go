package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/pebblestore"
)

// measureStore measures the store's Commit with n callers of one event each.
func measureStore(n int) measurement {
	value := fmt.Sprintf("store-%d", n)
	return measurement{name: fmt.Sprintf("the store's Commit, %d callers", n), gives: []string{value, value + "-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) (err error) {
			dir := filepath.Join(l.dir, "store")
			s, err := pebblestore.Open(ctx, pebblestore.Options{Dir: dir})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, s.Close(), os.RemoveAll(dir)) }()
			id := storage.LogID{Topic: 1}
			if _, err := s.OpenLog(ctx, id, storage.LogOptions{Bytes: 8 << 30}); err != nil {
				return err
			}
			p, err := closed(ctx, n, window{l.length(), ownCPU}, func(i int) (worker, error) {
				ev := &event.Event{ID: fmt.Sprintf("id-%020d", i), Source: "/bench", Type: "order.created", Topic: "bench", Data: eventData(i)}
				b := &storage.Batch{Appends: []storage.Append{{Log: id, Entries: []storage.Entry{{Event: ev}}}}}
				return worker{do: func() error { return s.Commit(ctx, b) }, close: func() {}}, nil
			})
			put(value, p.perSecond)
			put(value+"-cpu", p.cpu)
			return err
		}}
}

// measurePebble is the limit of that: Pebble alone, one committer that takes whatever waits, a key each, one sync.
func measurePebble(n int) measurement {
	value := fmt.Sprintf("pebble-%d", n)
	return measurement{name: fmt.Sprintf("Pebble's group commit, %d waiters", n), gives: []string{value, value + "-cpu"},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) (err error) {
			dir := filepath.Join(l.dir, "pebble")
			o := &pebble.Options{FormatMajorVersion: pebble.FormatTableFormatV6, MemTableSize: 64 << 20, MemTableStopWritesThreshold: 4,
				L0CompactionThreshold: 8, L0StopWritesThreshold: 64, LBaseMaxBytes: 4 << 30, Logger: quiet{}}
			for i := range o.Levels {
				o.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
			}
			db, err := pebble.Open(dir, o)
			if err != nil {
				return err
			}
			g := &gatherer{db: db, signal: make(chan struct{}, 1), done: make(chan struct{})}
			go g.run()
			p, err := closed(ctx, n, window{l.length(), ownCPU}, func(i int) (worker, error) {
				w := &waiter{value: eventData(i), done: make(chan error, 1)}
				return worker{do: func() error { return g.commit(w) }, close: func() {}}, nil
			})
			g.end()
			put(value, p.perSecond)
			put(value+"-cpu", p.cpu)
			return errors.Join(err, db.Close(), os.RemoveAll(dir))
		}}
}

// quiet drops what Pebble logs; a failed write ends the program, which measures nothing then.
type quiet struct{}

func (quiet) Infof(string, ...any)           {}
func (quiet) Errorf(string, ...any)          {}
func (quiet) Fatalf(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...); os.Exit(1) }

// A gatherer commits for many.
type gatherer struct {
	db     *pebble.DB
	signal chan struct{}
	done   chan struct{}

	mu    sync.Mutex
	list  []*waiter
	ended bool
}

type waiter struct {
	value []byte
	done  chan error
}

func (g *gatherer) commit(w *waiter) error {
	g.mu.Lock()
	g.list = append(g.list, w)
	g.mu.Unlock()
	g.nudge()
	return <-w.done
}

func (g *gatherer) nudge() {
	select {
	case g.signal <- struct{}{}:
	default:
	}
}

func (g *gatherer) end() {
	g.mu.Lock()
	g.ended = true
	g.mu.Unlock()
	g.nudge()
	<-g.done
}

func (g *gatherer) run() {
	defer close(g.done)
	var list []*waiter
	var key [8]byte
	for n := uint64(0); ; {
		<-g.signal
		g.mu.Lock()
		list, g.list = g.list, list[:0]
		ended := g.ended
		g.mu.Unlock()
		if len(list) > 0 {
			b := g.db.NewBatch()
			var err error
			for _, w := range list {
				n++
				for i := range key {
					key[i] = byte(n >> (56 - 8*i))
				}
				err = errors.Join(err, b.Set(key[:], w.value, nil))
			}
			err = errors.Join(err, b.Commit(pebble.Sync), b.Close())
			for _, w := range list {
				w.done <- err
			}
		}
		if ended {
			return
		}
	}
}

// measureWritten measures what a router writes for each byte of records while its ring turns over and over.
func measureWritten() measurement {
	return measurement{name: "bytes written with retention", gives: []string{"written", "user", "written-kernel", "disk-used", "ring"}, once: true,
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			ring, turns := 256<<20, 6.0
			if l.o.quick {
				ring, turns = 64<<20, 3
			}
			r, err := l.router()
			if err != nil {
				return err
			}
			defer r.stop()
			if err := r.call(ctx, "POST", "/v1/topics", "application/json", fmt.Appendf(nil, `{"name":"ring","retain":{"bytes":"%dMiB"}}`, ring>>20), nil); err != nil {
				return err
			}
			// The first turn fills the ring; from then on as much leaves as comes.
			if err := r.fill(ctx, "ring", ring/eventBytes); err != nil {
				return err
			}
			before, kernelBefore, err := r.written(ctx)
			if err != nil {
				return err
			}
			if err := r.fill(ctx, "ring", int(turns*float64(ring))/eventBytes); err != nil {
				return err
			}
			after, kernelAfter, err := r.written(ctx)
			if err != nil {
				return err
			}
			put("written", after["millrace_store_written_bytes_total"]-before["millrace_store_written_bytes_total"])
			put("user", after["millrace_store_user_bytes_total"]-before["millrace_store_user_bytes_total"])
			put("written-kernel", kernelAfter-kernelBefore)
			put("disk-used", after["millrace_store_disk_used_bytes"])
			put("ring", float64(ring))
			return nil
		}}
}

// written returns the router's metrics, and the bytes that the kernel says it wrote to disks.
func (b *routerProcess) written(ctx context.Context) (map[string]float64, float64, error) {
	m, err := b.metrics(ctx)
	if err != nil {
		return nil, 0, err
	}
	kernel, err := b.procValue("io", "write_bytes")
	return m, kernel, err
}

// fill publishes n events in batches.
func (b *routerProcess) fill(ctx context.Context, topic string, n int) error {
	path := "/v1/topics/" + topic + "/events?type=order.created"
	var posters []*poster
	defer func() {
		for _, p := range posters {
			_ = p.conn.Close()
		}
	}()
	for i := range batchConnections {
		p, err := newPoster(ctx, b.addr, postRequest(b.addr, path, "application/x-ndjson", batchData(batchEvents, i)))
		if err != nil {
			return err
		}
		posters = append(posters, p)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	each := (n + batchEvents*batchConnections - 1) / (batchEvents * batchConnections)
	for _, p := range posters {
		wg.Go(func() {
			for range each {
				if ctx.Err() != nil {
					return
				}
				if err := p.post(); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return errors.Join(err, b.gone())
	}
	return nil
}
