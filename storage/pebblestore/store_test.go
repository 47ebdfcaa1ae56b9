package pebblestore

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/storetest"
)

func TestStore(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	storetest.Run(t, storetest.Harness{
		New: func(t *testing.T) func(func() time.Time) (storage.Store, error) {
			fs := vfs.NewMem()
			return func(now func() time.Time) (storage.Store, error) {
				return Open(context.Background(), Options{Dir: "data", FS: fs, Now: now, MemTable: 1 << 20, Logf: t.Logf})
			}
		},
		Maintain: func(ctx context.Context, s storage.Store) error { return s.(*Store).Maintain(ctx) },
	})
}
