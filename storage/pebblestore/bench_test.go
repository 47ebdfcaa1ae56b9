//go:build unix

package pebblestore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// load commits n events of 1 KiB from so many callers at once, so many in a batch.
func load(b *testing.B, s *Store, callers, batch, n int) {
	b.Helper()
	data := make([]byte, 1<<10)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(data)
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			ev := event.Event{ID: fmt.Sprintf("0123456789-%d", c), Source: "/bench", Type: "com.example.bench", Data: data}
			req := &storage.Batch{Appends: []storage.Append{{Log: logID, Entries: make([]storage.Entry, batch)}}}
			for i := range req.Appends[0].Entries {
				req.Appends[0].Entries[i].Event = &ev
			}
			for left.Add(-int64(batch)) > -int64(batch) {
				if err := s.Commit(context.Background(), req); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkCommit measures blocks against a key per event, and how many groups are under way at once.
func BenchmarkCommit(b *testing.B) {
	for _, load1 := range []struct{ callers, batch int }{{1, 1}, {64, 1}, {256, 1}, {16, 100}} {
		for _, v := range []struct {
			name string
			o    Options
		}{
			{"blocks", Options{}},
			{"blocks-2", Options{pipeline: 2}},
			{"keys", Options{keyPerEvent: true}},
		} {
			b.Run(fmt.Sprintf("%dx%d/%s", load1.callers, load1.batch, v.name), func(b *testing.B) {
				o := v.o
				o.Logf = b.Logf
				s := mustOpen(b, o)
				mustLog(b, s, logID, storage.LogOptions{Bytes: 256 << 20})
				began, used, before := time.Now(), cpu(), s.Stats()
				b.ResetTimer()
				load(b, s, load1.callers, load1.batch, b.N)
				b.StopTimer()
				st := s.Stats()
				b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "events/s")
				b.ReportMetric(float64((cpu()-used).Nanoseconds())/float64(b.N), "cpu-ns/event")
				b.ReportMetric(float64(st.Events-before.Events)/float64(st.Commits-before.Commits), "events/commit")
			})
		}
	}
}

// BenchmarkRing measures how many bytes are written for each byte of a user's, with the ring turning many times.
func BenchmarkRing(b *testing.B) {
	for _, ring := range []int64{64 << 20, 256 << 20, 1 << 30} {
		b.Run(fmt.Sprintf("%dMiB", ring>>20), func(b *testing.B) {
			s := mustOpen(b, Options{})
			mustLog(b, s, logID, storage.LogOptions{Bytes: ring})
			load(b, s, 16, 100, b.N)
			st := s.Stats()
			b.ReportMetric(float64(st.WrittenBytes)/float64(st.UserBytes), "written/user")
			b.ReportMetric(float64(st.DiskUsed)/float64(ring), "used/ring")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
