package storetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A Ledger commits numbered batches, each of events in two logs and a row of a table, notes which were
// acknowledged, and later says what a store has lost, torn or made up. It is what the tests with
// crashes and disk faults share. Its methods may be called at the same time.
type Ledger struct {
	mu    sync.Mutex
	tried int
	sizes map[int][2]int              // events of a tried batch in each log
	acked map[int][2][]event.Position // positions of the acknowledged ones
}

// LedgerLogs are the logs that a Ledger writes to.
var LedgerLogs = [2]storage.LogID{{Topic: 1, Partition: 0}, {Topic: 2, Partition: 5}}

// LedgerTable is the table that it writes to.
const LedgerTable storage.Table = 3

// Prepare opens the logs.
func (g *Ledger) Prepare(ctx context.Context, s storage.Store) error {
	for _, id := range LedgerLogs {
		if _, err := s.OpenLog(ctx, id, storage.LogOptions{Bytes: 1 << 30}); err != nil {
			return err
		}
	}
	return nil
}

// Commit commits one batch of the ledger.
func (g *Ledger) Commit(ctx context.Context, s storage.Store, rng *rand.Rand) error {
	g.mu.Lock()
	if g.sizes == nil {
		g.sizes, g.acked = map[int][2]int{}, map[int][2][]event.Position{}
	}
	n := g.tried
	g.tried++
	size := [2]int{1 + rng.IntN(4), rng.IntN(3)}
	g.sizes[n] = size
	g.mu.Unlock()

	b := &storage.Batch{Ops: []storage.Op{{Table: LedgerTable, Key: rowKey(n), Value: []byte{byte(size[0]), byte(size[1])}}}}
	for i, id := range LedgerLogs {
		a := storage.Append{Log: id}
		for j := range size[i] {
			a.Entries = append(a.Entries, storage.Entry{Event: &event.Event{
				ID: fmt.Sprintf("%d.%d", n, j), Source: "/ledger", Type: "t", Data: make([]byte, rng.IntN(400))}})
		}
		b.Appends = append(b.Appends, a)
	}
	if err := s.Commit(ctx, b); err != nil {
		return err
	}
	var at [2][]event.Position
	for i := range b.Appends {
		for _, e := range b.Appends[i].Entries {
			at[i] = append(at[i], e.Position)
		}
	}
	g.mu.Lock()
	g.acked[n] = at
	g.mu.Unlock()
	return nil
}

func rowKey(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

// Acked is how many batches were acknowledged so far.
func (g *Ledger) Acked() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.acked)
}

// Snapshot is a copy of the ledger as it is now. What a crash must keep is what was acknowledged before it;
// what was tried until after it may be there as well.
func (g *Ledger) Snapshot() *Ledger {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := &Ledger{tried: g.tried, sizes: map[int][2]int{}, acked: map[int][2][]event.Position{}}
	for k, v := range g.sizes {
		c.sizes[k] = v
	}
	for k, v := range g.acked {
		c.acked[k] = v
	}
	return c
}

// Rewind takes back what was acknowledged since a snapshot: a crash came before it.
func (g *Ledger) Rewind(to *Ledger) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.acked = to.Snapshot().acked
}

// Check reads everything and compares: what was acknowledged in atLeast is there, at its place; nothing is
// there that g never tried; offsets are dense; a batch is there whole or not at all.
func (g *Ledger) Check(ctx context.Context, s storage.Store, atLeast *Ledger) error {
	if err := g.Prepare(ctx, s); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	bad := func(format string, args ...any) {
		if len(errs) < 8 {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var found [2]map[int][]event.Offset
	for i, id := range LedgerLogs {
		found[i] = map[int][]event.Offset{}
		l, err := s.OpenLog(ctx, id, storage.LogOptions{Bytes: 1 << 30})
		if err != nil {
			return err
		}
		next, last := event.Offset(0), int64(0)
		err = ReadAll(ctx, l, 0, func(r event.Record) {
			if r.Offset() != next || r.Received() < last {
				bad("log %d: offset %d received %d after offset %d received %d", i, r.Offset(), r.Received(), next, last)
			}
			next, last = r.Offset()+1, r.Received()
			a, b, _ := strings.Cut(r.Attr(event.TagID), ".")
			n, err1 := strconv.Atoi(a)
			j, err2 := strconv.Atoi(b)
			if err1 != nil || err2 != nil || n >= g.tried || j != len(found[i][n]) {
				bad("log %d, offset %d: id %q was not sent here", i, r.Offset(), r.Attr(event.TagID))
				return
			}
			found[i][n] = append(found[i][n], r.Offset())
		})
		if err != nil {
			return err
		}
		if b := l.Bounds(); b.Next != next {
			bad("log %d: bounds %+v, but it ends at %d", i, b, next)
		}
	}
	rows := map[int]bool{}
	err := s.Scan(ctx, LedgerTable, nil, nil, func(k, v []byte) error {
		rows[int(binary.BigEndian.Uint32(k))] = true
		return nil
	})
	if err != nil {
		return err
	}
	for n := range g.tried {
		size, row := g.sizes[n], rows[n]
		for i := range LedgerLogs {
			if got := len(found[i][n]); row && got != size[i] || !row && got != 0 {
				bad("batch %d is torn: its row is there: %t; %d of %d events in log %d", n, row, got, size[i], i)
			}
		}
		at, acked := atLeast.acked[n]
		if acked && !row {
			bad("batch %d was acknowledged and is lost", n)
			continue
		}
		for i := range at {
			for j, p := range at[i] {
				if j < len(found[i][n]) && found[i][n][j] != p.Offset {
					bad("batch %d event %d was acknowledged at %s, it is at offset %d", n, j, p, found[i][n][j])
				}
			}
		}
	}
	return errors.Join(errs...)
}

// ReadAll calls fn for every event from an offset to the log's end, each checked whole.
func ReadAll(ctx context.Context, l storage.Log, from event.Offset, fn func(r event.Record)) error {
	for {
		blocks, err := l.Read(ctx, from, 64<<10, nil)
		if err != nil {
			return err
		}
		if len(blocks) == 0 {
			return nil
		}
		for _, b := range blocks {
			count := 0
			for rest := b.Records; len(rest) > 0; count++ {
				r, more, err := event.CutRecord(rest)
				if err != nil {
					return fmt.Errorf("block %d: %w", b.First, err)
				}
				if rest = more; r.Offset() >= from {
					fn(r)
				}
			}
			if count != b.Count {
				return fmt.Errorf("block %d holds %d records and says %d", b.First, count, b.Count)
			}
		}
		from = blocks[len(blocks)-1].End()
	}
}
