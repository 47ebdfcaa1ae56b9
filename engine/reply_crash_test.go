package engine

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

// A power cut at any moment: a reply that a producer was given is there afterwards, the same; and an event that
// asked and had none yet is answered by the run after.
func TestPowerCutKeepsReplies(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			disk := vfs.NewCrashableMem()
			w := &world{t: t, fs: disk, o: Options{Replies: 100_000}}
			w.open()
			run := "first"
			spec := specOf(push("s", "orders", "", &answering{say: func(d event.Delivery) *event.Reply {
				return &event.Reply{Status: 200, Data: fmt.Appendf(nil, "%s %s", run, d.Event.Data())}
			}}))
			w.apply(spec)
			var mu sync.Mutex
			given := map[event.Position]string{}
			asking := map[event.Position]bool{} // stored before the cut, perhaps not answered
			stop := make(chan struct{})
			var producers sync.WaitGroup
			for p := range 8 {
				producers.Go(func() {
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						a := w.ask(t.Context(), "orders", "", fmt.Sprintf("%d", p*1_000_000+n), time.Duration(n%2)*long) // every other one does not wait
						mu.Lock()
						if a.err == nil {
							asking[a.pos] = true
						}
						if a.reply != nil {
							given[a.pos] = says(a.reply, nil)
						}
						mu.Unlock()
					}
				})
			}
			want := 50 + r.IntN(200)
			var known map[event.Position]string
			var asked map[event.Position]bool
			var crashed *vfs.MemFS
			eventually(t, "some are answered", func() bool {
				mu.Lock()
				defer mu.Unlock()
				if len(given) < want {
					return false
				}
				known, asked = map[event.Position]string{}, map[event.Position]bool{}
				for pos, s := range given {
					known[pos] = s
				}
				for pos := range asking {
					asked[pos] = true
				}
				crashed = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(80), RNG: rand.New(rand.NewPCG(r.Uint64(), 4))})
				return true
			})
			close(stop)
			producers.Wait()
			w.stop()

			run = "second"
			after := &world{t: t, fs: crashed, o: Options{Replies: 100_000}}
			after.open()
			defer after.stop()
			after.apply(spec)
			for pos, was := range known {
				if got := says(after.later("orders", pos, 0)); got != was {
					t.Errorf("%s was given, afterwards %s", was, got)
				}
			}
			for pos := range asked {
				if _, err := after.later("orders", pos, long); err != nil {
					t.Errorf("%v asked, and: %v", pos, err)
				}
			}
		})
	}
}
