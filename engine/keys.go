package engine

import (
	"context"
	"slices"

	"github.com/millrace/millrace/storage"
)

// AccessKeys calls fn for every API key that the store keeps, until fn returns an error, which it returns. Both are the
// caller's to keep.
func (e *Engine) AccessKeys(ctx context.Context, fn func(id string, doc []byte) error) error {
	return e.store.Scan(ctx, tableKeys, nil, nil, func(k, v []byte) error { return fn(string(k), slices.Clone(v)) })
}

// PutAccessKey keeps a key in place of what has its id; nil removes it. It returns once that is durable.
func (e *Engine) PutAccessKey(ctx context.Context, id string, doc []byte) error {
	op := put(tableKeys, []byte(id), doc)
	if doc == nil {
		op = del(tableKeys, []byte(id))
	}
	return e.store.Commit(ctx, &storage.Batch{Ops: []storage.Op{op}})
}
