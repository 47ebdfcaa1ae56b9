package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A Shelf is where one owner, a protocol, keeps rows. Nobody else's are seen through it. All methods may be called at
// the same time.
type Shelf struct {
	e      *Engine
	prefix []byte // length u8 and name of the owner
}

// Shelf is the one of an owner, named in 1 to 32 bytes that never change.
func (e *Engine) Shelf(owner string) (*Shelf, error) {
	if owner == "" || len(owner) > 32 {
		return nil, event.Invalid("shelf", fmt.Sprintf("owner %.40q has %d bytes; want 1 to 32", owner, len(owner)))
	}
	return &Shelf{e: e, prefix: append([]byte{byte(len(owner))}, owner...)}, nil
}

// Keep makes all changes, in order, or none. It returns once they would survive a power cut, together with whatever else
// is written at that moment: many callers share one sync. The rows are borrowed until then. No changes cost nothing.
func (s *Shelf) Keep(ctx context.Context, rows ...event.ShelfRow) error {
	if len(rows) == 0 {
		return nil
	}
	if len(rows) > event.MaxShelfRows {
		return event.Bad(event.ErrTooLarge, "shelf", fmt.Sprintf("%d rows at once; at most %d", len(rows), event.MaxShelfRows))
	}
	ops := make([]storage.Op, len(rows))
	for i := range rows {
		r := &rows[i]
		t, err := s.table(r.Shelf, r.Key)
		switch {
		case err != nil:
			return err
		case len(r.Value) > event.MaxShelfValue:
			return event.Bad(event.ErrTooLarge, "shelf", fmt.Sprintf("a row of %d bytes; at most %d", len(r.Value), event.MaxShelfValue))
		case r.Under && r.Value != nil:
			return event.Invalid("shelf", "a row that removes all under its key has a value")
		case r.Under:
			from := s.key(r.Key)
			ops[i] = storage.Op{Table: t, Kind: storage.DeleteRange, Key: from, Value: after(from)}
		case r.Value == nil:
			ops[i] = del(t, s.key(r.Key))
		default:
			ops[i] = put(t, s.key(r.Key), r.Value)
		}
	}
	return s.e.store.Commit(ctx, &storage.Batch{Ops: ops})
}

// Load returns a row's value, nil if there is none.
func (s *Shelf) Load(ctx context.Context, shelf event.Shelf, key string) ([]byte, error) {
	t, err := s.table(shelf, key)
	if err != nil {
		return nil, err
	}
	return s.e.store.Load(ctx, t, s.key(key))
}

// Scan calls fn for the rows whose key begins with under, in order of their keys, until fn returns an error, which it
// returns. Both are fn's to keep.
func (s *Shelf) Scan(ctx context.Context, shelf event.Shelf, under string, fn func(key string, value []byte) error) error {
	t, err := s.table(shelf, under)
	if err != nil {
		return err
	}
	from := s.key(under)
	return s.e.store.Scan(ctx, t, from, after(from), func(k, v []byte) error {
		return fn(string(k[len(s.prefix):]), slices.Clone(v))
	})
}

func (s *Shelf) table(shelf event.Shelf, key string) (storage.Table, error) {
	switch {
	case shelf >= event.Shelves:
		return 0, event.Invalid("shelf", fmt.Sprintf("there is no shelf %d; they are 0 to %d", shelf, event.Shelves-1))
	case len(key) > event.MaxShelfKey:
		return 0, event.Bad(event.ErrTooLarge, "shelf", fmt.Sprintf("a key of %d bytes; at most %d", len(key), event.MaxShelfKey))
	}
	return tableShelves + storage.Table(shelf), nil
}

func (s *Shelf) key(key string) []byte { return append(slices.Clip(slices.Clone(s.prefix)), key...) }

// after is the first key behind all that begin with prefix, which does not begin with 0xFF: an owner's name is short.
func after(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xFF {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}
