package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

func read(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{})
	blocks, err := l.Read(e.ctx, 0, 1<<20, nil)
	e.ok(err)
	e.same(len(blocks), 0)
	var want []string
	for i := range 200 {
		id := fmt.Sprint(i)
		want = append(want, id)
		e.add(1, entry(id, i))
	}
	for range 2 { // from memory, then from the disk
		for from := 0; from <= len(want); from += 7 {
			e.same(e.ids(l, event.Offset(from)), want[from:])
		}
		some, err := l.Read(e.ctx, 20, 1000, nil)
		e.ok(err)
		size := 0
		for _, b := range some[:len(some)-1] {
			size += len(b.Records)
		}
		if size > 1000 || some[0].First > 20 || some[0].End() <= 20 {
			t.Fatalf("%d bytes before the last block, the first is [%d, %d)", size, some[0].First, some[0].End())
		}
		one, err := l.Read(e.ctx, 20, 0, some[:1])
		e.ok(err)
		e.same(len(one), 2)
		past, err := l.Read(e.ctx, 1000, 1<<20, nil)
		e.ok(err)
		e.same(len(past), 0)
		e.restart()
		l = e.log(1, storage.LogOptions{})
	}
}

func since(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{Bytes: 4 << 20})
	at, err := l.Since(e.ctx, e.clock.now())
	e.ok(err)
	e.same(at, 0)
	start := e.clock.now()
	const n = 100
	for i := range n {
		e.add(1, entry(fmt.Sprint(i), 1), entry(fmt.Sprint(i, "+"), 30_000))
		e.clock.step(time.Second)
	}
	if l.Bounds().Head != 0 {
		t.Fatal("the ring has turned")
	}
	for range 2 {
		for i := 0; i <= n; i += 3 {
			at, err := l.Since(e.ctx, start.Add(time.Duration(i)*time.Second))
			e.ok(err)
			e.same(at, 2*i)
			at, err = l.Since(e.ctx, start.Add(time.Duration(i)*time.Second-time.Millisecond))
			e.ok(err)
			e.same(at, 2*i)
		}
		at, err = l.Since(e.ctx, time.Time{})
		e.ok(err)
		e.same(at, 0)
		at, err = l.Since(e.ctx, start.Add(time.Hour))
		e.ok(err)
		e.same(at, 2*n)
		e.restart()
		l = e.log(1, storage.LogOptions{Bytes: 4 << 20})
	}
}

func retainBytes(t *testing.T, e *env) {
	const ring = 2 << 20
	o := storage.LogOptions{Bytes: ring}
	l := e.log(1, o)
	head := event.Offset(0)
	const n = 600
	for i := range n {
		e.add(1, entry(fmt.Sprint(i), 10_000))
		b := l.Bounds()
		if b.Bytes > ring || b.Head < head || b.Next != event.Offset(i+1) {
			t.Fatalf("event %d: %+v, the head was %d", i, b, head)
		}
		if b.Bytes < ring/2 && b.Head > 0 {
			t.Fatalf("event %d: only %d bytes are left of %d", i, b.Bytes, ring)
		}
		head = b.Head
	}
	if head == 0 {
		t.Fatal("nothing was dropped")
	}
	for range 2 {
		b := l.Bounds()
		e.same(b.Head, head)
		e.same(len(e.ids(l, head)), n-int(head))
		_, err := l.Read(e.ctx, head-1, 1, nil)
		var trimmed *storage.TrimmedError
		if !errors.As(err, &trimmed) || trimmed.Head != head || !errors.Is(err, event.ErrGone) {
			t.Fatalf("reading below the head: %v", err)
		}
		e.restart()
		l = e.log(1, o)
	}
	l = e.log(1, storage.LogOptions{Bytes: ring / 2}) // a smaller ring drops at once
	if b := l.Bounds(); b.Bytes > ring/2 || b.Head <= head {
		t.Fatalf("%+v", b)
	}
}

func retainAge(t *testing.T, e *env) {
	o := storage.LogOptions{Age: time.Hour}
	l := e.log(1, o)
	for i := range 120 {
		e.add(1, entry(fmt.Sprint(i), 10))
		e.clock.step(time.Minute)
	}
	e.maintain()
	b := l.Bounds()
	if b.Head < 55 || b.Head > 60 || b.Next != 120 {
		t.Fatalf("%+v", b)
	}
	if age := e.clock.now().UnixNano() - b.HeadTime; age > int64(65*time.Minute) {
		t.Fatalf("the first event is %s old", time.Duration(age))
	}
	e.clock.step(3 * time.Hour)
	e.maintain()
	b = l.Bounds()
	if b.Head != 120 || b.Next != 120 || b.Bytes != 0 || b.HeadTime != 0 || b.LastTime == 0 {
		t.Fatalf("%+v", b)
	}
	e.restart()
	l = e.log(1, o)
	e.same(l.Bounds(), b)
	e.same(e.add(1, entry("x", 1))[0].Position.Offset, 120)
	e.same(e.ids(l, 120), []string{"x"})
}

func retainEvents(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{Events: 100})
	for i := range 300 {
		e.add(1, entry(fmt.Sprint(i), 10))
		if b := l.Bounds(); b.Next-b.Head > 100 || i > 100 && b.Next-b.Head < 90 {
			t.Fatalf("event %d: %+v", i, b)
		}
	}
}

func reject(t *testing.T, e *env) {
	o := storage.LogOptions{Bytes: 1 << 20, Reject: true, Age: time.Minute}
	l := e.log(1, o)
	e.log(2, storage.LogOptions{})
	n := 0
	fill := func() {
		t.Helper()
		for ; ; n++ {
			_, err := e.commit(to(1, entry(fmt.Sprint(n), 10_000)))
			if errors.Is(err, event.ErrFull) {
				return
			}
			e.ok(err)
			if n > 1000 {
				t.Fatal("it never fills")
			}
		}
	}
	fill()
	if b := l.Bounds(); b.Head != 0 || b.Bytes < 1<<20-20_000 || b.Bytes > 1<<20 {
		t.Fatalf("%+v", b)
	}
	e.clock.step(time.Hour)
	e.maintain()
	e.same(l.Bounds().Head, 0) // age drops nothing unfinished
	_, err := e.commit(to(2, entry("other", 1)), to(1, entry("big", 10_000)))
	e.is(err, event.ErrFull) // the whole batch
	e.same(e.add(2, entry("first", 1))[0].Position.Offset, 0)
	l.Hold(event.Offset(n / 2))
	before := n
	fill()
	if b := l.Bounds(); n == before || b.Head == 0 || b.Head > event.Offset(before/2) {
		t.Fatalf("%+v, %d events more", b, n-before)
	}
	l.Hold(event.Offset(n))
	e.maintain() // all of it is old and finished
	if b := l.Bounds(); b.Head < event.Offset(before/2) {
		t.Fatalf("%+v", b)
	}
	fill()
	ids := e.ids(l, l.Bounds().Head)
	e.same(ids[len(ids)-1], fmt.Sprint(n-1))
}

func held(t *testing.T, e *env) {
	o := storage.LogOptions{Bytes: 1 << 20, Held: 4 << 20, Age: time.Minute}
	l := e.log(1, o)
	n := 0
	add := func(upTo int) {
		for ; n < upTo; n++ {
			e.add(1, entry(fmt.Sprint(n), 10_000))
		}
	}
	add(300) // 3 MB of a ring of 1 MiB
	e.clock.step(time.Hour)
	e.maintain()
	e.same(l.Bounds().Head, 0) // neither size nor age drops what is held
	e.restart()
	l = e.log(1, o)
	e.same(l.Bounds().Head, 0)
	l.Hold(100)
	add(301)
	if b := l.Bounds(); b.Head < 70 || b.Head > 100 {
		t.Fatalf("held from 100 on: %+v", b)
	}
	add(700) // more than is held
	if b := l.Bounds(); b.Bytes > 4<<20 || b.Bytes < 4<<20-200_000 || b.Head < 250 {
		t.Fatalf("beyond what is held: %+v", b)
	}
	o.Held = 0
	l = e.log(1, o)
	if b := l.Bounds(); b.Bytes > 1<<20 {
		t.Fatalf("held no more: %+v", b)
	}
}

func trim(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{Bytes: 4 << 20})
	for i := range 200 {
		e.add(1, entry(fmt.Sprint(i), 10_000))
	}
	e.ok(l.Trim(e.ctx, 100))
	b := l.Bounds()
	if b.Head == 0 || b.Head > 100 {
		t.Fatalf("%+v", b)
	}
	e.same(len(e.ids(l, b.Head)), 200-int(b.Head))
	e.ok(l.Trim(e.ctx, 50))
	e.same(l.Bounds().Head, b.Head)
	e.ok(l.Trim(e.ctx, 200))
	b = l.Bounds()
	e.same([]any{b.Head, b.Next, b.Bytes}, []any{200, 200, 0})
	e.restart()
	l = e.log(1, storage.LogOptions{Bytes: 4 << 20})
	b = l.Bounds()
	e.same([]any{b.Head, b.Next, b.Bytes}, []any{200, 200, 0})
}

func dropLog(t *testing.T, e *env) {
	l := e.log(1, storage.LogOptions{Dedupe: time.Minute})
	e.log(2, storage.LogOptions{})
	e.add(1, client("a", "1"))
	e.add(2, entry("b", 1))
	waiting := make(chan error, 1)
	go func() { waiting <- l.Wait(e.ctx, 5) }()
	e.ok(e.s.DropLog(e.ctx, storage.LogID{Topic: 1, Partition: 4}))
	e.is(<-waiting, event.ErrNotFound)
	_, err := l.Read(e.ctx, 0, 1, nil)
	e.is(err, event.ErrNotFound)
	_, err = e.commit(to(1, entry("c", 1)))
	e.is(err, event.ErrNotFound)
	e.restart()
	e.same(e.ids(e.log(2, storage.LogOptions{}), 0), []string{"b"})
	e.same(e.log(1, storage.LogOptions{}).Bounds(), storage.Bounds{})
}
