package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// hands is a clock that a test moves.
type hands struct{ ns atomic.Int64 }

func newHands(at string) *hands {
	h := &hands{}
	h.set(at)
	return h
}

func (h *hands) set(at string) {
	t, err := time.Parse(time.RFC3339, at)
	if err != nil {
		panic(err)
	}
	h.ns.Store(t.UnixNano())
}

func (h *hands) now() time.Time { return time.Unix(0, h.ns.Load()) }

// at moves the clock and lets alarms look at it.
func (w *world) at(h *hands, at string) {
	h.set(at)
	w.e.alarms.nudge()
	w.e.parked.nudge()
}

func scheduled(defs ...event.Schedule) Spec {
	spec := Spec{Schedules: defs}
	seen := map[string]bool{}
	for _, d := range defs {
		if !seen[d.Topic] {
			seen[d.Topic] = true
			spec.Topics = append(spec.Topics, event.Topic{Name: d.Topic})
		}
	}
	return spec
}

// clocked is a world whose clock the test moves.
func clocked(t *testing.T, at string) (*world, *hands) {
	h := newHands(at)
	w := &world{t: t, fs: vfs.NewMem(), o: Options{Now: h.now}, now: h.now}
	w.open()
	t.Cleanup(w.stop)
	return w, h
}

func (w *world) schedule(name string) ScheduleInfo {
	w.t.Helper()
	for _, s := range w.e.Schedules() {
		if s.Name == name {
			return s
		}
	}
	w.t.Fatalf("no schedule %s", name)
	return ScheduleInfo{}
}

func (w *world) nextIs(name, want string) func() bool {
	return func() bool { return w.schedule(name).Next.Format(time.RFC3339) == want }
}

func TestScheduleFires(t *testing.T) {
	w, h := clocked(t, "2026-11-21T01:30:00Z")
	w.apply(scheduled(event.Schedule{Name: "nightly", Topic: "jobs", Cron: "0 2 * * *", Key: "k", Subject: "all", Data: []byte(`{"n":1}`)}))
	if i := w.schedule("nightly"); !i.Last.IsZero() || !w.nextIs("nightly", "2026-11-21T02:00:00Z")() {
		t.Errorf("%+v", i)
	}
	w.at(h, "2026-11-21T02:00:00Z")
	eventually(t, "it fires", func() bool { return len(w.ids("jobs")) == 1 })
	var ev event.Event
	w.records("jobs")[0].Decode(&ev)
	if ev.ID != "nightly-2026-11-21T02:00:00Z" || ev.Time != "2026-11-21T02:00:00Z" || ev.Type != "schedule" || ev.Source != "/schedules/nightly" ||
		ev.Subject != "all" || ev.PartitionKey != "k" || string(ev.Data) != `{"n":1}` || ev.DataContentType != "application/json" {
		t.Errorf("%+v", ev)
	}
	eventually(t, "the next one", w.nextIs("nightly", "2026-11-22T02:00:00Z"))
	w.apply(w.spec) // the same definition goes on
	w.at(h, "2026-11-21T03:00:00Z")
	if got := len(w.ids("jobs")); got != 1 {
		t.Errorf("%d events", got)
	}
	if i := w.schedule("nightly"); i.Fired != 1 || i.Last.Format(time.RFC3339) != "2026-11-21T02:00:00Z" || i.Skipped != 0 {
		t.Errorf("%+v", i)
	}
}

// What was due while the router was down is published as missed says, and a clock that is set back publishes nothing
// twice.
func TestScheduleAfterDowntime(t *testing.T) {
	const hourly = "@hourly"
	w, h := clocked(t, "2026-11-21T00:30:00Z")
	spec := scheduled(event.Schedule{Name: "once", Topic: "once", Cron: hourly}, event.Schedule{Name: "skip", Topic: "skip", Cron: hourly, Missed: event.MissedSkip},
		event.Schedule{Name: "all", Topic: "all", Cron: hourly, Missed: event.MissedAll}, event.Schedule{Name: "busy", Topic: "busy", Every: time.Second, Missed: event.MissedAll})
	w.apply(spec)
	w.stop()
	h.set("2026-11-21T04:30:00Z")
	w.open()
	w.apply(spec)
	for name, want := range map[string][]string{
		"once": {"once-2026-11-21T04:00:00Z"},
		"all":  {"all-2026-11-21T01:00:00Z", "all-2026-11-21T02:00:00Z", "all-2026-11-21T03:00:00Z", "all-2026-11-21T04:00:00Z"},
	} {
		eventually(t, name, func() bool { return slices.Equal(w.ids(name), want) })
	}
	eventually(t, "no more than a thousand", func() bool {
		ids := w.ids("busy")
		return len(ids) == missedMost && ids[missedMost-1] == "busy-2026-11-21T04:30:00Z"
	})
	eventually(t, "nothing", w.nextIs("skip", "2026-11-21T05:00:00Z"))
	if got := w.ids("skip"); len(got) != 0 {
		t.Errorf("skipped ones: %v", got)
	}
	for name, want := range map[string]uint64{"once": 3, "skip": 4, "all": 0, "busy": 4*3600 - missedMost} {
		if i := w.schedule(name); i.Skipped != want {
			t.Errorf("%s: %d were skipped, want %d", name, i.Skipped, want)
		}
	}
	w.stop()
	h.set("2026-11-21T02:30:00Z")
	w.open()
	w.apply(spec)
	w.at(h, "2026-11-21T04:10:00Z")
	if i := w.schedule("once"); !w.nextIs("once", "2026-11-21T05:00:00Z")() || len(w.ids("once")) != 1 || len(w.ids("all")) != 4 {
		t.Errorf("after the clock was set back: %+v", i)
	}
	w.at(h, "2026-11-21T05:00:30Z") // late, and not missed
	eventually(t, "the next hour", func() bool { return len(w.ids("once")) == 2 && len(w.ids("skip")) == 1 })
}

// Other times begin anew: a schedule that is moved to an hour of the past does not fire at once. One that is removed
// leaves nothing.
func TestScheduleChanged(t *testing.T) {
	w, h := clocked(t, "2026-11-21T10:00:00Z")
	w.apply(scheduled(event.Schedule{Name: "s", Topic: "jobs", Cron: "0 20 * * *"}))
	w.at(h, "2026-11-21T12:00:00Z")
	w.apply(scheduled(event.Schedule{Name: "s", Topic: "jobs", Cron: "0 11 * * *"}))
	if !w.nextIs("s", "2026-11-22T11:00:00Z")() {
		t.Errorf("%+v", w.schedule("s"))
	}
	w.apply(scheduled())
	if n := w.rows(tableSchedules); n != 0 || len(w.e.Schedules()) != 0 {
		t.Errorf("%d rows are left", n)
	}
	err := w.e.Apply(t.Context(), Spec{Schedules: []event.Schedule{{Name: "s", Topic: "jbs", Cron: "0 1 * * *"}, {Name: "t", Topic: "jobs", Cron: "61 * * * *"}}})
	if err == nil || !strings.Contains(err.Error(), `schedules.s.topic: topic "jbs" does not exist; did you mean "jobs"`) || !strings.Contains(err.Error(), "schedules.t.cron") {
		t.Errorf("%v", err)
	}
}

// The power goes before or after the commit of a firing: the event is there once.
func TestScheduleThroughPowerCuts(t *testing.T) {
	for _, after := range []bool{false, true} {
		disk := vfs.NewCrashableMem()
		h := newHands("2026-11-21T01:59:00Z")
		w := &world{t: t, fs: disk, o: Options{Now: h.now}, now: h.now}
		crashed := make(chan *vfs.MemFS, 4)
		w.wrap = func(s storage.Store) storage.Store {
			return &firingStore{Store: s, disk: disk, after: after, crashed: crashed}
		}
		w.open()
		spec := scheduled(event.Schedule{Name: "s", Topic: "jobs", Cron: "0 2 * * *"})
		w.apply(spec)
		w.at(h, "2026-11-21T02:00:00Z")
		eventually(t, "it fires", func() bool { return len(w.ids("jobs")) == 1 })
		w.stop()
		w = &world{t: t, fs: <-crashed, o: w.o, now: h.now}
		w.open()
		w.apply(spec)
		eventually(t, "it has fired", w.nextIs("s", "2026-11-22T02:00:00Z"))
		if got := w.ids("jobs"); len(got) != 1 {
			t.Errorf("after the commit %t: %v", after, got)
		}
		w.stop()
	}
}

// firingStore copies the disk as a power cut leaves it, before or after the commit of an event of a schedule.
type firingStore struct {
	storage.Store
	disk    *vfs.MemFS
	after   bool
	crashed chan *vfs.MemFS
}

func (s *firingStore) Commit(ctx context.Context, b *storage.Batch) error {
	fires := len(b.Appends) > 0 // nobody else publishes
	if fires && !s.after {
		s.crashed <- s.disk.CrashClone(vfs.CrashCloneCfg{})
	}
	err := s.Store.Commit(ctx, b)
	if fires && s.after {
		s.crashed <- s.disk.CrashClone(vfs.CrashCloneCfg{})
	}
	return err
}

// An event that cannot be stored is tried again, and says why it is not there.
func TestScheduleWaitsForItsTopic(t *testing.T) {
	w, h := clocked(t, "2026-11-21T01:59:00Z")
	var refuse atomic.Bool
	w.stop()
	w.wrap = func(s storage.Store) storage.Store { return &scheduleRefused{s, &refuse} }
	w.open()
	w.apply(scheduled(event.Schedule{Name: "s", Topic: "jobs", Cron: "0 2 * * *"}))
	refuse.Store(true)
	w.at(h, "2026-11-21T02:00:00Z")
	eventually(t, "a fault", func() bool { return strings.Contains(w.schedule("s").Fault, "refused") })
	refuse.Store(false)
	w.at(h, "2026-11-21T02:00:06Z")
	eventually(t, "the event", func() bool { return slices.Equal(w.ids("jobs"), []string{"s-2026-11-21T02:00:00Z"}) })
	eventually(t, "no fault", func() bool { return w.schedule("s").Fault == "" })
}

// A topic that cannot hold all that was missed takes what it can hold, in order, and the rest as there is room: each
// once.
func TestScheduleFillsItsTopic(t *testing.T) {
	w, h := clocked(t, "2026-11-21T00:30:00Z")
	spec := scheduled(event.Schedule{Name: "s", Topic: "jobs", Cron: "@hourly", Missed: event.MissedAll})
	spec.Topics[0].WhenFull, spec.Topics[0].Retain.Events = event.Reject, 5
	spec.Subscriptions = []SubscriptionSpec{{Subscription: event.Subscription{Name: "reader", Topic: "jobs", Deliver: event.Deliver{Face: event.Pull}}, Fingerprint: "p"}}
	w.apply(spec)
	w.at(h, "2026-11-21T08:30:00Z") // eight times
	eventually(t, "it is full", func() bool { return strings.Contains(w.schedule("s").Fault, "full") })
	want := []string{"s-2026-11-21T01:00:00Z", "s-2026-11-21T02:00:00Z", "s-2026-11-21T03:00:00Z", "s-2026-11-21T04:00:00Z", "s-2026-11-21T05:00:00Z"}
	if got := w.ids("jobs"); !slices.Equal(got, want) || !w.nextIs("s", "2026-11-21T06:00:00Z")() {
		t.Fatalf("published: %v, %+v", got, w.schedule("s"))
	}
	spec.Topics[0].Retain.Events = 7
	w.apply(spec)
	w.at(h, "2026-11-21T08:30:10Z")
	eventually(t, "two more", func() bool { return w.nextIs("s", "2026-11-21T08:00:00Z")() })
	if got := w.ids("jobs"); len(got) != 7 || !slices.Equal(got[:5], want) || w.schedule("s").Fired != 7 {
		t.Errorf("published: %v, %+v", got, w.schedule("s"))
	}
}

type scheduleRefused struct {
	storage.Store
	refuse *atomic.Bool
}

func (s *scheduleRefused) Commit(ctx context.Context, b *storage.Batch) error {
	if s.refuse.Load() && writes(b, tableSchedules) {
		return errors.New("refused")
	}
	return s.Store.Commit(ctx, b)
}
