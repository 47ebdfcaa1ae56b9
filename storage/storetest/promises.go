package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

func denseOffsets(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{})
	var want []string
	for round := range 3 {
		for i := range 5 {
			id := fmt.Sprint(round, ".", i)
			got := e.add(1, entry(id, 10), entry(id+"b", 0))
			e.same(got[0].Position, event.Position{Partition: 4, Offset: event.Offset(len(want))})
			e.same(got[1].Position, event.Position{Partition: 4, Offset: event.Offset(len(want) + 1)})
			want = append(want, id, id+"b")
		}
		e.same(e.ids(l, 0), want)
		e.restart()
		l = e.log(1, storage.LogOptions{})
		e.same(e.ids(l, 0), want)
		e.same(l.Bounds().Next, len(want))
	}
}

func atomic(t *testing.T, e *env) {
	a, b := e.log(1, storage.LogOptions{}), e.log(2, storage.LogOptions{})
	batch := &storage.Batch{
		Appends: []storage.Append{to(1, entry("x", 1)), to(2, entry("y", 1)), to(1, entry("z", 1))},
		Ops:     []storage.Op{{Table: 1, Key: []byte("k"), Value: []byte("v")}},
	}
	e.ok(e.s.Commit(e.ctx, batch))
	e.same(e.ids(a, 0), []string{"x", "z"})
	e.same(e.ids(b, 0), []string{"y"})
	v, err := e.s.Load(e.ctx, 1, []byte("k"))
	e.ok(err)
	e.same(string(v), "v")
}

// refusal: one bad append refuses all of a batch and leaves no trace, not even in the dedupe window.
func refusal(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{Dedupe: time.Minute})
	e.add(1, client("a", "1"))
	for _, bad := range []storage.Append{to(1, client("n2", "1"), client("a", "other")), to(99, entry("q", 1))} {
		batch := &storage.Batch{
			Appends: []storage.Append{to(1, client("n1", "1")), bad},
			Ops:     []storage.Op{{Table: 1, Key: []byte("k"), Value: []byte("v")}},
		}
		if err := e.s.Commit(e.ctx, batch); err == nil {
			t.Fatal("no error")
		}
	}
	_, err := e.commit(to(99, entry("q", 1)))
	e.is(err, event.ErrNotFound)
	v, err := e.s.Load(e.ctx, 1, []byte("k"))
	e.ok(err)
	if v != nil {
		t.Fatalf("an operation of a refused batch is there: %q", v)
	}
	got := e.add(1, client("n1", "2"), client("n2", "2"))
	e.same([]bool{got[0].Repeat, got[1].Repeat}, []bool{false, false})
	e.same(got[0].Position.Offset, 1)
	e.same(e.ids(l, 0), []string{"a", "n1", "n2"})
}

func dedupe(t *testing.T, e *env) {
	o := storage.LogOptions{Dedupe: time.Minute}
	e.log(1, o)
	e.add(1, entry("router's own", 1), client("a", "1"))
	again := func(repeat bool, at event.Offset) {
		t.Helper()
		got := e.add(1, client("a", "1"))[0]
		e.same(got.Repeat, repeat)
		e.same(got.Position, event.Position{Partition: 4, Offset: at})
	}
	again(true, 1)
	e.clock.step(59 * time.Second)
	again(true, 1)
	e.restart()
	e.log(1, o)
	again(true, 1)
	_, err := e.commit(to(1, entry("x", 1), client("b", "1"), client("a", "2")))
	e.is(err, event.ErrConflict)
	var c *storage.ConflictError
	if !errors.As(err, &c) || c.Append != 0 || c.Entry != 2 || c.Position.Offset != 1 {
		t.Fatalf("conflict %+v", c)
	}
	e.log(2, o)
	e.same(e.add(2, client("a", "2"))[0].Repeat, false) // another log
	e.clock.step(2 * time.Second)
	e.maintain()
	again(false, 2)
	again(true, 2)
	e.clock.step(2 * time.Minute)
	e.maintain()
	e.restart()
	l := e.log(1, o)
	again(false, 3)
	e.same(e.ids(l, 0), []string{"router's own", "a", "a", "a"})
}

func dedupeWithinBatch(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{Dedupe: time.Minute})
	got := e.add(1, client("a", "1"), client("b", "1"), client("a", "1"))
	e.same([]bool{got[0].Repeat, got[1].Repeat, got[2].Repeat}, []bool{false, false, true})
	e.same(got[2].Position, got[0].Position)
	b, err := e.commit(to(1, client("c", "1")), to(1, client("c", "1"), client("d", "1")))
	e.ok(err)
	e.same(b.Appends[1].Entries[0].Position, b.Appends[0].Entries[0].Position)
	_, err = e.commit(to(1, client("e", "1"), client("e", "2")))
	e.is(err, event.ErrConflict)
	e.same(e.add(1, client("e", "2"))[0].Repeat, false)
	e.same(e.ids(l, 0), []string{"a", "b", "c", "d", "e"})
}

// dedupeConcurrent: of many callers with one id one is first, all get the same position.
func dedupeConcurrent(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{Dedupe: time.Minute})
	for round := range 20 {
		var wg sync.WaitGroup
		got := make([]storage.Entry, 16)
		errs := make([]error, len(got))
		for i := range got {
			wg.Go(func() {
				content := "1"
				if i == 7 {
					content = "2"
				}
				b := &storage.Batch{Appends: []storage.Append{to(1, client(fmt.Sprint(round), content))}}
				errs[i] = e.s.Commit(e.ctx, b)
				got[i] = b.Appends[0].Entries[0]
			})
		}
		wg.Wait()
		first, refused := 0, 0
		for i := range got {
			switch {
			case errors.Is(errs[i], event.ErrConflict):
				refused++
			case errs[i] != nil:
				t.Fatal(errs[i])
			case !got[i].Repeat:
				first++
			}
			e.same(got[i].Position.Offset, round)
		}
		if first != 1 || refused != 1 && refused != 15 {
			t.Fatalf("round %d: %d first, %d refused", round, first, refused)
		}
	}
	e.same(l.Bounds().Next, 20)
}

func wait(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{})
	done := make(chan error, 8)
	for range cap(done) {
		go func() {
			err := l.Wait(e.ctx, 1)
			if err == nil && l.Bounds().Next < 2 {
				err = errors.New("woken before the event is there")
			}
			done <- err
		}()
	}
	e.add(1, entry("0", 1))
	select {
	case err := <-done:
		t.Fatalf("woken by another event: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	e.add(1, entry("1", 1))
	for range cap(done) {
		e.ok(<-done)
	}
	e.ok(l.Wait(e.ctx, 0))
	ctx, cancel := context.WithCancel(e.ctx)
	go cancel()
	e.is(l.Wait(ctx, 9), context.Canceled)
}

func tables(t *testing.T, e *env) {
	put := func(table storage.Table, k, v string) storage.Op {
		return storage.Op{Table: table, Key: []byte(k), Value: []byte(v)}
	}
	commit := func(ops ...storage.Op) {
		t.Helper()
		e.ok(e.s.Commit(e.ctx, &storage.Batch{Ops: ops}))
	}
	all := func(table storage.Table, from, to []byte) (got []string) {
		t.Helper()
		e.ok(e.s.Scan(e.ctx, table, from, to, func(k, v []byte) error {
			got = append(got, string(k)+"="+string(v))
			return nil
		}))
		return got
	}
	commit(put(1, "a", "1"), put(1, "b", "2"), put(1, "c", "3"), put(2, "a", "x"), put(0, "\xff\xff", "y"), put(1, "e", ""))
	e.same(all(1, nil, nil), []string{"a=1", "b=2", "c=3", "e="})
	e.same(all(1, []byte("b"), []byte("c")), []string{"b=2"})
	e.same(all(0, nil, nil), []string{"\xff\xff=y"})
	commit(storage.Op{Table: 1, Kind: storage.Delete, Key: []byte("a")}, put(1, "d", "4"))
	e.same(all(1, nil, nil), []string{"b=2", "c=3", "d=4", "e="})
	commit(storage.Op{Table: 1, Kind: storage.DeleteRange, Key: []byte("c"), Value: []byte("d")})
	e.same(all(1, nil, nil), []string{"b=2", "d=4", "e="})
	v, err := e.s.Load(e.ctx, 1, []byte("e"))
	e.ok(err)
	if v == nil {
		t.Fatal("an empty value is taken for an absent one")
	}
	commit(storage.Op{Table: 1, Kind: storage.DeleteRange, Key: []byte("c")})
	e.same(all(1, nil, nil), []string{"b=2"})
	e.same(all(2, nil, nil), []string{"a=x"})
	if v, err := e.s.Load(e.ctx, 1, []byte("c")); v != nil || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	n := 0
	commit(put(4, "a", "1"), put(4, "b", "2"))
	e.ok(e.s.Scan(e.ctx, 4, nil, nil, func(k, v []byte) error { n++; return storage.ErrStop }))
	e.same(n, 1)
	e.is(e.s.Scan(e.ctx, 4, nil, nil, func(k, v []byte) error { return errTest }), errTest)
	e.restart()
	e.same(all(1, nil, nil), []string{"b=2"})
}

var errTest = errors.New("test")

func concurrent(t *testing.T, e *env) {
	ids := []uint32{1, 2, 3}
	logs := map[uint32]storage.Log{}
	for _, id := range ids {
		logs[id] = e.log(id, storage.LogOptions{})
	}
	const callers, rounds = 16, 20
	var wg sync.WaitGroup
	errs := make(chan error, callers)
	for c := range callers {
		wg.Go(func() {
			last := map[uint32]event.Offset{}
			for r := range rounds {
				id := ids[(c+r)%len(ids)]
				b := &storage.Batch{Appends: []storage.Append{to(id, entry(fmt.Sprintf("%d.%d", c, r), r), entry(fmt.Sprintf("%d.%d+", c, r), 0))}}
				if err := e.s.Commit(e.ctx, b); err != nil {
					errs <- err
					return
				}
				p, q := b.Appends[0].Entries[0].Position, b.Appends[0].Entries[1].Position
				if q.Offset != p.Offset+1 || r >= len(ids) && p.Offset <= last[id] {
					errs <- fmt.Errorf("log %d: positions %s, %s after %d", id, p, q, last[id])
					return
				}
				last[id] = q.Offset
				if logs[id].Bounds().Next <= q.Offset {
					errs <- fmt.Errorf("log %d: %s is acknowledged but not visible", id, q)
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	seen := map[string]bool{}
	for _, l := range logs {
		for _, id := range e.ids(l, 0) {
			if seen[id] {
				t.Fatalf("%s is there twice", id)
			}
			seen[id] = true
		}
	}
	e.same(len(seen), callers*rounds*2)
}

func contexts(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{})
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	e.is(e.s.Commit(ctx, &storage.Batch{Appends: []storage.Append{to(1, entry("a", 1))}}), context.Canceled)
	_, err := l.Read(ctx, 0, 1, nil)
	e.is(err, context.Canceled)
	_, err = e.s.Load(ctx, 1, []byte("k"))
	e.is(err, context.Canceled)
	e.same(l.Bounds().Next, 0)
	// A batch whose caller has gone is kept whole or not at all, and never stored without having been waited for.
	stored := 0
	for i := range 50 {
		ctx, cancel := context.WithCancel(e.ctx)
		go cancel()
		err := e.s.Commit(ctx, &storage.Batch{Appends: []storage.Append{to(1, entry(fmt.Sprint(i), 1), entry(fmt.Sprint(i), 1))}})
		switch {
		case err == nil:
			stored += 2
		case !errors.Is(err, context.Canceled):
			t.Fatal(err)
		}
	}
	e.same(len(e.ids(l, 0)), stored)
}

func closed(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{})
	e.add(1, entry("a", 1))
	waiting := make(chan error, 1)
	go func() { waiting <- l.Wait(e.ctx, 5) }()
	e.ok(e.s.Close())
	e.is(<-waiting, event.ErrUnavailable)
	_, err := e.commit(to(1, entry("b", 1)))
	e.is(err, event.ErrUnavailable)
	_, err = e.s.Load(e.ctx, 1, []byte("k"))
	e.is(err, event.ErrUnavailable)
	e.is(e.s.Scan(e.ctx, 1, nil, nil, nil), event.ErrUnavailable)
	_, err = e.s.OpenLog(e.ctx, storage.LogID{Topic: 8}, storage.LogOptions{Bytes: 1 << 20})
	e.is(err, event.ErrUnavailable)
	e.is(e.s.DropLog(e.ctx, storage.LogID{Topic: 1, Partition: 4}), event.ErrUnavailable)
	e.ok(e.s.Close())
}

func clockBack(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{Age: time.Hour, Dedupe: 10 * time.Minute})
	e.add(1, client("a", "1"))
	first := l.Bounds().LastTime
	e.clock.step(-2 * time.Hour)
	e.maintain()
	e.add(1, entry("b", 1))
	e.same(e.add(1, client("a", "1"))[0].Repeat, true)
	if b := l.Bounds(); b.LastTime < first || b.Head != 0 {
		t.Fatalf("%+v after %d", b, first)
	}
	e.restart()
	l = e.log(1, storage.LogOptions{Age: time.Hour, Dedupe: 10 * time.Minute})
	e.add(1, entry("c", 1))
	last := int64(0)
	e.ok(ReadAll(e.ctx, l, 0, func(r event.Record) {
		if r.Received() < last {
			t.Fatalf("offset %d was received at %d, the one before at %d", r.Offset(), r.Received(), last)
		}
		last = r.Received()
	}))
}

// clockForward: a step of ten years expires nothing, neither while it runs nor by a restart.
func clockForward(t *testing.T, e *env) {
	o := storage.LogOptions{Age: time.Hour, Dedupe: 10 * time.Minute}
	l := e.log(1, o)
	e.add(1, client("a", "1"))
	before := l.Bounds().LastTime
	e.clock.step(10 * 365 * 24 * time.Hour)
	for range 2 {
		e.maintain()
		e.same(e.add(1, client("a", "1"))[0].Repeat, true)
		e.same(l.Bounds().Head, 0)
		e.add(1, entry("b", 1))
		if d := time.Duration(l.Bounds().LastTime - before); d > time.Hour {
			t.Fatalf("time went on by %s", d)
		}
		e.restart()
		l = e.log(1, o)
	}
	e.clock.step(30 * time.Minute) // from here on ages go on
	e.maintain()
	e.same(e.add(1, client("a", "1"))[0].Repeat, false)
}

func claim(t *testing.T, e *env) {
	id := storage.LogID{Topic: 1, Partition: 4}
	e.log(1, storage.LogOptions{})
	c, err := e.s.Claim(e.ctx, id)
	e.ok(err)
	select {
	case <-c.Lost():
		t.Fatal("lost at once")
	default:
	}
	epoch := c.Epoch()
	c.Release()
	e.restart()
	c, err = e.s.Claim(e.ctx, id)
	e.ok(err)
	if c.Epoch() <= epoch {
		t.Fatalf("epoch %d after %d", c.Epoch(), epoch)
	}
}
