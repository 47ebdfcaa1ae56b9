package acceptance

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	grpcclient "github.com/millrace/millrace/sdk/client"
)

const grpcRules = `version: 1
topics:
  orders: {}
subscriptions:
  jobs:
    topic: orders
    deliver: {pull: {}}
`

// A Go program publishes, follows and works on deliveries over gRPC while the router under it is stopped and killed. It
// notices nothing but pauses: every event that it handed over is stored once, comes to the follower once and in order, and
// is handled and acknowledged.
func TestGRPCClientThroughRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rules, socket := filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "grpc")
	write(t, rules, grpcRules)
	args := []string{"--rules", rules, "--grpc-listen", "unix:" + socket}
	r := serve(t, filepath.Join(dir, "data"), nil, args...)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c, err := grpcclient.Dial(ctx, "unix:"+socket, grpcclient.Options{Backoff: grpcclient.Backoff{Min: 20 * time.Millisecond, Max: 200 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()

	n := 2000
	if long {
		n = 100_000
	}
	var working sync.WaitGroup
	var published, followed, handled atomic.Int64
	ids := make([]string, n)
	working.Go(func() { // publishes
		p := c.Publisher(ctx, "orders", grpcclient.PublisherOptions{Batch: 20, Events: 200})
		var all []*grpcclient.Sending
		for i := range n {
			e, err := grpcclient.JSON("order.created", i)
			if err != nil {
				t.Error(err)
				return
			}
			s, err := p.Publish(ctx, e)
			if err != nil {
				t.Error(err)
				return
			}
			all = append(all, s)
			if i%100 == 99 {
				_, _ = s.Wait(ctx) // what it says is looked at below
			}
			published.Add(1)
		}
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
		for i, s := range all {
			stored, err := s.Wait(ctx)
			if err != nil {
				t.Errorf("event %d: %v", i, err)
				return
			}
			ids[i] = stored[0].Id
		}
	})
	var seen []string
	working.Go(func() { // follows
		reader := c.Follow(grpcclient.Topic("orders"), grpcclient.ReadOptions{Start: grpcclient.Earliest(), Limit: uint64(n)})
		for e, err := range reader.All(ctx) {
			if err != nil {
				t.Error(err)
				return
			}
			seen = append(seen, string(grpcclient.Data(e.Event)))
			followed.Add(1)
		}
	})
	finish, finished := context.WithCancel(ctx)
	defer finished()
	var mu sync.Mutex
	times := map[string]int{}
	received := make(chan error, 1)
	go func() { // works
		received <- c.Receive(finish, "jobs", func(_ context.Context, d *grpcclient.Delivery) error {
			mu.Lock()
			times[string(grpcclient.Data(d.Event))]++
			first := times[string(grpcclient.Data(d.Event))] == 1
			mu.Unlock()
			if first {
				handled.Add(1)
			}
			return nil
		}, grpcclient.ReceiveOptions{})
	}()

	reach := func(part int) {
		eventually(t, time.Minute, func() error {
			if want := int64(n * part / 5); published.Load() < want || followed.Load() < want || handled.Load() < want {
				return fmt.Errorf("%d published, %d followed, %d handled; want %d", published.Load(), followed.Load(), handled.Load(), want)
			}
			return nil
		})
	}
	for part := 1; part <= 4; part++ {
		reach(part)
		if part == 2 {
			r.stop(30 * time.Second)
		} else {
			r.kill()
		}
		r = serve(t, filepath.Join(dir, "data"), nil, args...)
	}
	working.Wait()
	reach(5)
	r.settled(time.Minute, "jobs")
	finished()
	if err := <-received; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	stored := r.events("orders")
	if len(stored) != n || len(seen) != n {
		t.Fatalf("%d events are stored and %d were followed, of %d", len(stored), len(seen), n)
	}
	for i, e := range stored {
		if got := fmt.Sprint(e["data"]); e["id"] != ids[i] || got != fmt.Sprint(i) || seen[i] != got {
			t.Fatalf("at %d lies %v, %s was followed; %d with the id %s was published", i, e, seen[i], i, ids[i])
		}
	}
	for i := range n {
		if got := times[fmt.Sprint(i)]; got != 1 {
			t.Errorf("%d was handled %d times", i, got)
		}
	}
	r.stop(30 * time.Second)
}
