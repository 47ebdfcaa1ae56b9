package engine

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
)

// told is the trace of an event at the subscription "s", as "verdict attempt reason…" a try.
func (w *world) told(topic string, pos event.Position) []string {
	w.t.Helper()
	x, err := w.e.EventTrace(w.t.Context(), topic, pos, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	var list []string
	for _, s := range x.Subscriptions {
		for _, t := range s.Tries {
			list = append(list, strings.TrimSpace(fmt.Sprintf("%s %d %s %s", t.Verdict, t.Attempt, t.Reason, strings.Join(t.Outputs, " "))))
		}
	}
	return list
}

// Every way that a try can end is told of, from memory, from the store, and after a restart.
func TestTraceOfEveryOutcome(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	sink := &outputs{}
	spec := through(digest, 1, sink, nil)
	spec.Topics = append(spec.Topics, event.Topic{Name: "audit"})
	spec.Revision = "r-7"
	w.apply(spec)
	at := w.publish("orders", "ok=p", "drop=d", "late=1150", "no=x42", "out=oaudit", "two=eone;oaudit", "trap=t")
	want := [][]string{
		{"delivered 1"},
		{"filtered 1"},
		{"retry 1 attempts", "delivered 2"},
		{"dead-lettered 1 reject s.dead/0-0"},
		{"delivered 1  audit/0-0"},
		{"delivered 1  audit/0-1"},
		{"retry 1 trap", "retry 2 trap", "dead-lettered 3 trap s.dead/0-1"},
	}
	check := func(when string) {
		t.Helper()
		for i, pos := range at {
			if got := w.told("orders", pos); !slices.Equal(got, want[i]) {
				t.Errorf("%s: %s: %q, want %q", when, pos, got, want[i])
			}
		}
	}
	eventually(t, "all settled", func() bool { return w.settled("s") })
	check("at once")
	x, err := w.e.EventTrace(t.Context(), "orders", at[6], nil)
	if err != nil {
		t.Fatal(err)
	}
	last := x.Subscriptions[0].Tries[0]
	if last.Function != "f0" || last.Revision != "r-7" || last.Due == nil || !strings.Contains(last.Error, "unreachable") || len(last.Versions) != 1 || !strings.HasPrefix(digest, last.Versions[0]) {
		t.Errorf("a failed try: %+v", last)
	}
	if age := time.Since(last.At); age < 0 || age > time.Minute {
		t.Errorf("it is told of at %s", last.At)
	}
	w.restart()
	check("after a restart")
}

// What a flush has taken and not yet written is told of too, and once.
func TestTraceWhileItIsWritten(t *testing.T) {
	w := newWorld(t, Options{Flush: time.Hour})
	sink := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink)))
	at := w.publish("orders", "a")
	eventually(t, "delivered", func() bool { return w.settled("s") })
	s := w.e.plan.Load().subs["s"]
	for _, step := range []func(){
		func() {},
		func() { w.e.traces.take([]*subscription{s}, "", w.e.now().UnixNano(), nil) },
		func() { w.e.traces.written(nil) },
	} {
		step()
		got := w.told("orders", at[0])
		if len(got) > 1 || len(got) == 0 && len(w.e.traces.done) > 0 {
			t.Errorf("told %q", got)
		}
	}
}

func TestTraceIsOffOrSampled(t *testing.T) {
	w := newWorld(t, Options{})
	spec := specOf(push("s", "orders", "", &recorder{}))
	spec.Topics[0].Trace = event.Trace{Keep: event.NoTrace}
	w.apply(spec)
	at := w.publish("orders", "a")
	eventually(t, "delivered", func() bool { return w.settled("s") })
	if got := w.told("orders", at[0]); got != nil {
		t.Errorf("told %q", got)
	}
	spec.Topics[0].Trace = event.Trace{Keep: time.Hour, Sample: 0.25}
	w.apply(spec)
	at = w.publish("orders", number("e", 400)...)
	eventually(t, "delivered", func() bool { return w.settled("s") })
	n := 0
	for _, pos := range at {
		got := w.told("orders", pos)
		n += len(got)
		if x, _ := w.e.EventTrace(t.Context(), "orders", pos, nil); x.Traced != (len(got) == 1) {
			t.Fatalf("%s: traced %t, told %q", pos, x.Traced, got)
		}
	}
	if n < 60 || n > 140 {
		t.Errorf("%d of 400 are traced, want about 100", n)
	}
}

// Past their bytes the traces of the oldest events leave, and are counted.
func TestTracesAreBoundedInBytes(t *testing.T) {
	w := newWorld(t, Options{TraceBytes: 1 << 10})
	w.apply(specOf(push("s", "orders", "", &recorder{})))
	var first, last event.Position
	for i := range 40 {
		at := w.publish("orders", number(fmt.Sprint("b", i), 256)...)
		if i == 0 {
			first = at[0]
		}
		last = at[255]
		eventually(t, "delivered", func() bool { return w.settled("s") })
		held := func() int64 { x, _ := w.e.Topic("orders"); return x.Traces.Bytes }
		eventually(t, "within the bound", func() bool { return held() <= 1<<10 })
	}
	x, err := w.e.Topic("orders")
	if err != nil {
		t.Fatal(err)
	}
	if x.Traces.Dropped == 0 || x.Traces.Bytes <= 0 || w.e.TracesLost() != 0 {
		t.Errorf("traces %+v, lost %d", x.Traces, w.e.TracesLost())
	}
	if got := w.told("orders", first); got != nil {
		t.Errorf("of the first: %q", got)
	}
	if got := w.told("orders", last); len(got) != 1 {
		t.Errorf("of the last: %q", got)
	}
	w.restart()
	eventually(t, "it is within the bound after a restart", func() bool { // the last flush may have added some
		y, _ := w.e.Topic("orders")
		return y.Traces.Bytes > 0 && y.Traces.Bytes <= 1<<10
	})
}

// Traces older than keep leave, however old their events are; younger ones stay.
func TestTracesLeaveWithAge(t *testing.T) {
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Now: now}, now: now}
	w.open()
	t.Cleanup(w.stop)
	spec := specOf(push("s", "orders", "", &recorder{}))
	spec.Topics[0].Trace = event.Trace{Keep: time.Hour, Sample: 1}
	w.apply(spec)
	old := w.publish("orders", number("a", 300)...)
	eventually(t, "delivered", func() bool { return w.settled("s") })
	eventually(t, "written", func() bool { x, _ := w.e.Topic("orders"); return x.Traces.Bytes > 0 })
	ahead.Store(int64(50 * time.Minute))
	young := w.publish("orders", number("b", 300)...)
	eventually(t, "delivered", func() bool { return w.settled("s") })
	ahead.Store(int64(70 * time.Minute))
	eventually(t, "the first leave", func() bool { return w.told("orders", old[0]) == nil })
	if got := w.told("orders", young[299]); len(got) != 1 {
		t.Errorf("of a younger one: %q", got)
	}
	ahead.Store(int64(3 * time.Hour))
	eventually(t, "all leave", func() bool { x, _ := w.e.Topic("orders"); return x.Traces.Bytes == 0 })
}

// Whatever tries are noted, in whatever order, each offset is told its own.
func TestTraceRowsAgainstAModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	by := []*subConfig{nil, {digests: make([]byte, 32)}, {digests: slices.Repeat([]byte{7}, 64)}}
	for range 60 {
		var tr tracer
		want := map[event.Offset][]string{}
		say := func(x *traced) string {
			return fmt.Sprintf("%s %d by %x outs %d %v why %+v", x.what, x.attempt, shortDigests(x.by), x.outs, x.out, x.why)
		}
		at, out := int64(1e18), event.Offset(0)
		for range 1 + r.IntN(300) {
			off := event.Offset(r.IntN(256))
			x := traced{what: traceVerdict(r.IntN(3)), attempt: 1 + uint32(r.IntN(2)), base: off &^ 63, mask: 1 << (off & 63), at: at, by: by[r.IntN(3)]}
			switch r.IntN(8) {
			case 0:
				x.what, x.why = traceDead, &tracedWhy{reason: "trap", function: "f", text: "no", code: r.IntN(600)}
			case 1:
				x.outs, x.out = 2, outPlace{9, event.Position{Partition: 3, Offset: out}}
				out += 2
			}
			at += int64(r.IntN(20)) * int64(time.Millisecond)
			want[off] = append(want[off], say(&x))
			tr.add(x)
		}
		flushed := at + int64(time.Second)
		value := []byte{traceVersion, 1, 'r'}
		for i := range tr.list {
			value = appendTraced(appendTraceBy(value, 5, shortDigests(tr.list[i].by)), &tr.list[i], flushed)
		}
		key := traceKey(1, 0, 0, flushed)
		for off := range event.Offset(256) {
			var got []string
			err := readTraces(key, value, int(off), func(x tryRow) {
				x.out.pos.Offset += event.Offset(bits.OnesCount64(x.mask&(1<<(off&63)-1))) * event.Offset(x.outs)
				got = append(got, fmt.Sprintf("%s %d by %x outs %d %v why %+v", x.what, x.attempt, x.digests, x.outs, x.out, x.why))
			})
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			slices.Sort(want[off])
			if !slices.Equal(got, want[off]) {
				t.Fatalf("offset %d: told\n%s\nwant\n%s", off, strings.Join(got, "\n"), strings.Join(want[off], "\n"))
			}
		}
		if n := triesIn(key, value); n != uint64(len(allOf(want))) {
			t.Fatalf("%d tries in the row", n)
		}
		for range 20 { // a damaged row is an error at worst
			_ = readTraces(key, value[:r.IntN(len(value))], -1, func(tryRow) {})
			value[r.IntN(len(value))] = byte(r.Uint32())
			_ = readTraces(key, value, r.IntN(257)-1, func(tryRow) {})
		}
	}
}

func allOf(m map[event.Offset][]string) (all []string) {
	for _, v := range m {
		all = append(all, v...)
	}
	return all
}

// Noting neighbours that come out of order costs no memory each.
func TestNotingAllocatesNothing(t *testing.T) {
	var tr tracer
	off := event.Offset(0)
	allocs := testing.AllocsPerRun(1000, func() {
		for _, i := range []event.Offset{3, 0, 2, 1, 7, 5, 4, 6} {
			o := off + i
			tr.add(traced{base: o &^ 63, mask: 1 << (o & 63), at: 1, attempt: 1})
		}
		if off += 8; off%1024 == 0 {
			tr.list = tr.list[:0]
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if len(tr.list) > 16 || tr.lost != 0 {
		t.Errorf("%d entries for %d neighbours", len(tr.list), off%1024)
	}
}

// A subscription that fills its memory loses tries, and says how many.
func TestTracerIsBounded(t *testing.T) {
	var tr tracer
	for i := range event.Offset(maxTraced + 10) {
		tr.add(traced{base: i * 64, mask: 1, attempt: 1})
	}
	if len(tr.list) != maxTraced || tr.lost != 10 {
		t.Errorf("%d entries, %d lost", len(tr.list), tr.lost)
	}
}

// What noting a delivery that succeeded costs, its part of the flush included.
func BenchmarkNote(b *testing.B) {
	w := newWorld(b, Options{Flush: time.Hour})
	w.apply(specOf(push("s", "orders", "", quiet{})))
	s := w.e.plan.Load().subs["s"]
	rec := event.Record((&event.Event{}).AppendRecord(nil))
	off, book := event.Offset(0), &traceBook{}
	for b.Loop() {
		rec.SetPlace(event.Position{Offset: off ^ 3}, 0) // as several senders end
		s.mu.Lock()
		s.noteDone(item{rec: rec, attempt: 1}, nil, traceDelivered)
		s.mu.Unlock()
		if off++; off%10_000 == 0 {
			book.take([]*subscription{s}, "r", 1, nil)
			book.written(nil)
		}
	}
}
