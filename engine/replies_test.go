package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// awaited is how many events' replies are waited for: those events are stored.
func (w *world) awaited() int {
	w.e.replies.mu.Lock()
	defer w.e.replies.mu.Unlock()
	return len(w.e.replies.waiting)
}

func TestWaitersAreBoundedAndEnd(t *testing.T) {
	w := newWorld(t, Options{Waiters: 10})
	w.apply(specOf(pullSpec("s", "orders", "")))
	before := runtime.NumGoroutine()
	for round := range 100 {
		var gone sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 10 {
			gone.Go(func() {
				if a := w.ask(ctx, "orders", "", "x", time.Hour); a.reply != nil || a.err != nil {
					t.Error(says(a.reply, a.err))
				}
			})
		}
		stored := 10 * (round + 1)
		eventually(t, "all wait", func() bool { return w.e.Waiters() == 10 && len(w.records("orders")) == stored })
		if err := w.ask(t.Context(), "orders", "", "x", long).err; !errors.Is(err, event.ErrUnavailable) {
			t.Fatalf("one too many: %v", err)
		}
		if len(w.records("orders")) != stored {
			t.Fatal("what was refused is stored")
		}
		cancel()
		gone.Wait()
	}
	if w.awaited() != 0 || w.e.Waiters() != 0 {
		t.Errorf("%d are waited for, %d wait", w.awaited(), w.e.Waiters())
	}
	eventually(t, "no goroutine stays", func() bool { return runtime.NumGoroutine() <= before+5 })

	ended := make(chan asked, 1)
	go func() { ended <- w.ask(t.Context(), "orders", "", "x", time.Hour) }()
	eventually(t, "one waits", func() bool { return w.awaited() == 1 })
	w.e.Drain()
	if a := <-ended; a.reply != nil || a.err != nil {
		t.Errorf("at the drain: %s", says(a.reply, a.err))
	}
}

func TestRepliesAreKeptWithinBounds(t *testing.T) {
	var passed atomic.Int64
	start := time.Now()
	w := newWorld(t, Options{Replies: 5, ReplyBytes: 1000, Now: func() time.Time { return start.Add(time.Duration(passed.Load())) }})
	w.apply(specOf(push("s", "orders", "", &answering{say: func(d event.Delivery) *event.Reply {
		return &event.Reply{Status: 200, Data: bytes.Repeat([]byte("x"), len(d.Event.Data()))}
	}})))
	rows := func() (n int) {
		err := w.store.Scan(t.Context(), tableReplies, nil, nil, func(_, v []byte) error { n++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var pos []event.Position
	for range 8 {
		a := w.ask(t.Context(), "orders", "", "1", long)
		pos = append(pos, a.pos)
		if a.reply == nil {
			t.Fatal(says(a.reply, a.err))
		}
	}
	if _, err := w.later("orders", pos[0], 0); !errors.Is(err, event.ErrGone) {
		t.Errorf("the oldest: %v", err)
	}
	if got := says(w.later("orders", pos[7], 0)); got != "200  x" {
		t.Errorf("the newest: %s", got)
	}
	eventually(t, "rows are swept", func() bool { return rows() == 5 })
	big := w.ask(t.Context(), "orders", "", strings.Repeat("1", 980), long) // takes all the bytes
	if big.reply == nil {
		t.Fatal(says(big.reply, big.err))
	}
	eventually(t, "rows are swept", func() bool { return rows() == 1 })
	w.restart()
	if got := says(w.later("orders", big.pos, 0)); !strings.HasPrefix(got, "200  xxx") {
		t.Errorf("after a restart: %.40s", got)
	}
	passed.Store(int64(10*time.Minute + time.Second))
	eventually(t, "it expires", func() bool { return rows() == 0 })
	if _, err := w.later("orders", big.pos, 0); !errors.Is(err, event.ErrGone) {
		t.Errorf("after its time: %v", err)
	}
}

// A settlement that the store refuses is no reply; once it is through there is one.
func TestReplyWaitsForTheCommit(t *testing.T) {
	o := Options{}
	w := newWorld(t, o)
	b := w.e.replies
	w.apply(Spec{Topics: []event.Topic{{Name: "orders"}}})
	topic := w.e.plan.Load().topics["orders"]
	key := replyKey{topic.serial, event.Position{Offset: 3}}
	r := &event.Reply{Status: 200}
	var batch storage.Batch
	if !b.claim(&batch, key, r, time.Now()) || b.claim(&batch, key, r, time.Now()) || len(batch.Ops) != 1 {
		t.Fatal("of two claims one must count")
	}
	done := make(chan *event.Reply, 1)
	go func() {
		got, _ := w.e.waitReply(t.Context(), topic, key.pos, t.Context().Done())
		done <- got
	}()
	eventually(t, "one waits", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.waiting[key]) == 1 })
	b.settled(key, r, errors.New("disk full"))
	select {
	case got := <-done:
		t.Fatalf("answered %v after a commit that failed", got)
	default:
	}
	if b.count != 0 || b.bytes != 0 || !b.claim(&batch, key, r, time.Now()) {
		t.Fatalf("after the failure %d replies of %d bytes", b.count, b.bytes)
	}
	b.settled(key, r, nil)
	if got := <-done; got != r {
		t.Errorf("answered %v", got)
	}
}

// Receivers that answer side by side share commits; each answer reaches its own producer.
func TestRepliesShareCommits(t *testing.T) {
	var commits atomic.Int64
	w := &world{t: t, fs: vfs.NewMem(), o: Options{}}
	w.wrap = func(s storage.Store) storage.Store { return &slowCommits{Store: s, n: &commits} }
	w.open()
	t.Cleanup(w.stop)
	var here sync.WaitGroup // all deliveries are under way before one ends
	const events = 16
	here.Add(events)
	w.apply(specOf(push("s", "orders", "", &answering{say: func(d event.Delivery) *event.Reply {
		here.Done()
		here.Wait()
		return &event.Reply{Status: 200, Data: bytes.Clone(d.Event.Data())}
	}})))
	var all sync.WaitGroup
	for i := range events {
		all.Go(func() {
			if a := w.ask(t.Context(), "orders", "", fmt.Sprint(i), long); says(a.reply, a.err) != fmt.Sprintf("200  %d", i) {
				t.Errorf("%d: %s", i, says(a.reply, a.err))
			}
		})
	}
	all.Wait()
	eventually(t, "all settled", func() bool { return w.settled("s") })
	if n := commits.Load(); n == 0 || n > events/2 {
		t.Errorf("%d commits held %d replies", n, events)
	}
	if n := w.e.replies.count; n != events {
		t.Errorf("%d replies are kept", n)
	}
}

// slowCommits counts commits with replies in them and makes them last.
type slowCommits struct {
	storage.Store
	n *atomic.Int64
}

func (s *slowCommits) Commit(ctx context.Context, b *storage.Batch) error {
	if slices.ContainsFunc(b.Ops, func(o storage.Op) bool { return o.Table == tableReplies && o.Kind == storage.Put }) {
		s.n.Add(1)
		pause(ctx, 20*time.Millisecond)
	}
	return s.Store.Commit(ctx, b)
}

// A reply whose commit the store refuses is told to nobody; it comes once the commit is through.
func TestReplyOfARefusedCommit(t *testing.T) {
	store := &refusing{}
	w := &world{t: t, fs: vfs.NewMem()}
	w.wrap = func(s storage.Store) storage.Store { store.Store = s; return store }
	w.open()
	t.Cleanup(w.stop)
	w.apply(specOf(push("s", "orders", "", &answering{say: func(event.Delivery) *event.Reply {
		return &event.Reply{Status: 200, Data: []byte("at last")}
	}})))
	store.refuse.Store(true)
	done := make(chan asked, 1)
	go func() { done <- w.ask(t.Context(), "orders", "", "x", time.Hour) }()
	eventually(t, "two refusals", func() bool { return store.refused.Load() >= 2 })
	select {
	case a := <-done:
		t.Fatalf("answered %s before it was stored", says(a.reply, a.err))
	default:
	}
	store.refuse.Store(false)
	if a := <-done; says(a.reply, a.err) != "200  at last" || says(w.later("orders", a.pos, 0)) != "200  at last" {
		t.Error(says(a.reply, a.err))
	}
}

// refusing refuses commits with replies in them.
type refusing struct {
	storage.Store
	refuse  atomic.Bool
	refused atomic.Int64
}

func (s *refusing) Commit(ctx context.Context, b *storage.Batch) error {
	if s.refuse.Load() && slices.ContainsFunc(b.Ops, func(o storage.Op) bool { return o.Table == tableReplies && o.Kind == storage.Put }) {
		s.refused.Add(1)
		return errors.New("disk full")
	}
	return s.Store.Commit(ctx, b)
}

func TestTopicDeletedWhileOneWaits(t *testing.T) {
	w := newWorld(t, Options{})
	spec := specOf(pullSpec("s", "orders", ""))
	w.apply(spec)
	done := make(chan asked, 1)
	go func() { done <- w.ask(t.Context(), "orders", "", "x", time.Hour) }()
	eventually(t, "one waits", func() bool { return w.awaited() == 1 })
	w.apply(Spec{Topics: spec.Topics})
	if err := w.e.DeleteTopic(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	if a := <-done; a.reply != nil || a.err != nil {
		t.Error(says(a.reply, a.err))
	}
}

// A function that keeps state replies in the commit that keeps it.
func TestStatefulFunctionReplies(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &outputs{}
	spec := through(digest, 1, sink, nil)
	spec.Functions[0].Allow.KV = true
	w.apply(spec)
	for _, c := range [][2]string{{"a200=alone", "200 text/plain alone"}, {"a200=beside;p", "200 text/plain beside"}} {
		if a := w.ask(t.Context(), "orders", "", c[0], long); says(a.reply, a.err) != c[1] {
			t.Errorf("%s: %s", c[0], says(a.reply, a.err))
		}
	}
	eventually(t, "what it passed on arrives", func() bool { return len(sink.sorted()) == 1 })
	if d := w.info("s").Dropped; d != 0 {
		t.Errorf("%d events count as dropped", d)
	}
}
