package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A schedule publishes an event at its times. The event and that the time is dealt with are one commit: a crash
// neither loses one nor publishes it twice. Times go by the engine's clock, which a clock that is set while the router
// runs does not move; one that was set back between two runs finds its times dealt with.

const (
	missedMost   = 1000            // times of one schedule that are made up for, at most, the latest
	firedMost    = 250             // events of one commit
	firedBytes   = 4 << 20         // of their data
	missedLate   = time.Minute     // within which a time is late, not missed
	scheduleWait = 5 * time.Second // after a store or a topic that refused
)

// scheduleRow is what the store keeps of a schedule.
type scheduleRow struct {
	Times string    // what the definition says of them: other ones begin anew
	Last  time.Time // all times up to this are dealt with
	Fired time.Time `json:",omitzero"` // the time of the last event
}

// schedule is a schedule at work. The book's mutex guards what changes.
type schedule struct {
	def   event.Schedule
	times event.Times
	row   scheduleRow
	next  time.Time // zero: never
	retry time.Time // not before
	fault string    // why the last try failed

	fired, skipped uint64 // since the start
}

// scheduleBook is all schedules.
type scheduleBook struct {
	firing sync.Mutex // one commit at a time; taken before mu

	mu    sync.Mutex
	all   map[string]*schedule
	alarm alarm
	wake  chan struct{}
}

func timesOf(d event.Schedule) string { return fmt.Sprintf("%s %s %s", d.Cron, d.Every, d.TimeZone) }

// planSchedules makes the schedules of a change. Those whose times stay the same go on where they are; others begin
// now.
func (e *Engine) planSchedules(ctx context.Context, c *change, defs []event.Schedule) error {
	c.schedules = map[string]*schedule{}
	now := e.now().UTC()
	var errs []error
	for _, def := range defs {
		s, err := e.planSchedule(ctx, c, def, now)
		if err != nil {
			errs = append(errs, event.At("schedules."+def.Name, err))
			continue
		}
		c.schedules[def.Name] = s
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return e.store.Scan(ctx, tableSchedules, nil, nil, func(k, _ []byte) error {
		if c.schedules[string(k)] == nil {
			c.ops = append(c.ops, del(tableSchedules, slices.Clone(k)))
		}
		return nil
	})
}

func (e *Engine) planSchedule(ctx context.Context, c *change, def event.Schedule, now time.Time) (*schedule, error) {
	if err := event.CheckName("schedule", def.Name); err != nil {
		return nil, err
	}
	if c.next.topics[def.Topic] == nil {
		return nil, unknown("topic", def.Topic, slices.Collect(maps.Keys(c.next.topics)), "")
	}
	def = def.WithDefaults()
	times, err := def.Times()
	if err != nil {
		return nil, err
	}
	s := &schedule{def: def, times: times}
	value, err := e.store.Load(ctx, tableSchedules, []byte(def.Name))
	if err != nil {
		return nil, err
	}
	if value != nil {
		if err := json.Unmarshal(value, &s.row); err != nil {
			return nil, fmt.Errorf("row of schedule %s: %w", def.Name, err)
		}
	}
	if s.row.Times != timesOf(def) {
		s.row = scheduleRow{Times: timesOf(def), Last: now, Fired: s.row.Fired}
		op, err := s.row.op(def.Name)
		if err != nil {
			return nil, err
		}
		c.ops = append(c.ops, op)
	}
	s.next = times.Next(s.row.Last)
	return s, nil
}

func (r *scheduleRow) op(name string) (storage.Op, error) {
	value, err := json.Marshal(r)
	return put(tableSchedules, []byte(name), value), err
}

// set puts the schedules of a change in force. The caller holds firing since the change was planned.
func (b *scheduleBook) set(e *Engine, next map[string]*schedule) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, s := range next {
		if was := b.all[name]; was != nil {
			s.fired, s.skipped = was.fired, was.skipped
		}
	}
	b.all = next
	b.arm(e)
}

// arm sets the alarm to the next time of any. The caller holds mu.
func (b *scheduleBook) arm(e *Engine) {
	at := int64(0)
	for _, s := range b.all {
		if due := s.due(); due != 0 && (at == 0 || due < at) {
			at = due
		}
	}
	e.alarms.set(&b.alarm, at)
}

func (s *schedule) due() int64 {
	switch {
	case s.next.IsZero():
		return 0
	case s.retry.After(s.next):
		return s.retry.UnixNano()
	}
	return s.next.UnixNano()
}

// scheduleLoop publishes what is due.
func (e *Engine) scheduleLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.schedules.wake:
		}
		e.fireSchedules(ctx)
	}
}

// ring wakes the loop.
func (b *scheduleBook) ring(context.Context) {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// fireSchedules publishes all that is due now, in order of names.
func (e *Engine) fireSchedules(ctx context.Context) {
	b := &e.schedules
	b.firing.Lock()
	defer b.firing.Unlock()
	now := e.now()
	b.mu.Lock()
	var due []*schedule
	for _, name := range slices.Sorted(maps.Keys(b.all)) {
		if s := b.all[name]; s.due() != 0 && s.due() <= now.UnixNano() {
			due = append(due, s)
		}
	}
	b.mu.Unlock()
	for _, s := range due {
		if e.draining.Load() || ctx.Err() != nil {
			return // the next start finds it
		}
		e.fire(ctx, s, now)
	}
	b.mu.Lock()
	b.arm(e)
	b.mu.Unlock()
}

// fire publishes what one schedule has due, in commits that are small: one of all would be refused for ever where it
// is more than the topic may hold. The caller holds firing.
func (e *Engine) fire(ctx context.Context, s *schedule, now time.Time) {
	at, skipped, last := s.choose(now)
	most := min(firedMost, 1+firedBytes/(len(s.def.Data)+1))
	for {
		n := min(len(at), most)
		row := s.row
		row.Last = last
		if n > 0 {
			row.Fired = at[n-1]
		}
		if n < len(at) {
			row.Last = at[n-1] // the others are still due
		}
		t, err := e.publishTimes(ctx, s, at[:n], row)
		if errors.Is(err, event.ErrFull) && n > 1 {
			most = n / 2
			continue
		}
		e.fired(s, t, row, now, n, skipped, err)
		if at, skipped = at[n:], 0; err != nil || len(at) == 0 || e.draining.Load() || ctx.Err() != nil {
			return
		}
	}
}

// fired takes note of what a commit of n events came to.
func (e *Engine) fired(s *schedule, t *topic, row scheduleRow, now time.Time, n int, skipped uint64, err error) {
	b := &e.schedules
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		if s.fault == "" {
			e.o.Log.Warn("a schedule cannot publish its event; it is tried again", "schedule", s.def.Name, "topic", s.def.Topic, "time", s.next.UTC().Format(time.RFC3339), "error", err)
		}
		s.fault, s.retry = err.Error(), now.Add(scheduleWait)
		return
	}
	s.row, s.next, s.fault, s.retry = row, s.times.Next(row.Last), "", time.Time{}
	s.fired += uint64(n)
	s.skipped += skipped
	if skipped > 0 {
		e.o.Log.Warn("times of a schedule were missed", "schedule", s.def.Name, "times", skipped, "missed", s.def.Missed.String(), "published", n)
	}
	if t != nil {
		e.o.Observer.Published(t.name, n, n*len(s.def.Data))
	}
}

// choose is which of the times that are due are published, how many are not, and up to when all are dealt with.
func (s *schedule) choose(now time.Time) (at []time.Time, skipped uint64, last time.Time) {
	last = s.row.Last
	for next := s.next; !next.IsZero() && !next.After(now); next = s.times.Next(next) {
		if len(at) == 2*missedMost {
			at = slices.Delete(at, 0, missedMost)
			skipped += missedMost
		}
		at, last = append(at, next), next
		if every := s.def.Every; every > 0 && now.Sub(next) > 2*missedMost*every { // years of seconds are not counted one by one
			to := s.times.Next(now.Add(-missedMost * every))
			skipped += uint64(to.Sub(next)/every) - 1
			next = to.Add(-every)
		}
	}
	if over := len(at) - missedMost; over > 0 {
		at = at[over:]
		skipped += uint64(over)
	}
	switch {
	case len(at) == 0 || s.def.Missed == event.MissedAll:
	case s.def.Missed == event.MissedSkip && now.Sub(last) > missedLate:
		skipped += uint64(len(at))
		at = nil
	default:
		skipped += uint64(len(at) - 1)
		at = at[len(at)-1:]
	}
	return at, skipped, last
}

// publishTimes appends the events of times and stores the row in one commit.
func (e *Engine) publishTimes(ctx context.Context, s *schedule, at []time.Time, row scheduleRow) (*topic, error) {
	op, err := row.op(s.def.Name)
	if err != nil {
		return nil, err
	}
	b := storage.Batch{Ops: []storage.Op{op}}
	var t *topic
	if len(at) > 0 {
		if t, err = e.topic(s.def.Topic); err != nil { // it was deleted since; never made here, for who makes topics may wait for this
			return nil, err
		}
		if err := t.def.Load().checkSchema(s.def.Data); err != nil {
			return nil, err
		}
	}
	for _, x := range at {
		ev := s.def.Event(x)
		ev.Topic = t.name
		e.turn.Add(1)
		e.appendTo(&b, t, storage.Entry{Event: &ev})
	}
	return t, e.store.Commit(ctx, &b)
}

// ScheduleInfo is how a schedule stands.
type ScheduleInfo struct {
	event.Schedule
	Next    time.Time // zero: never
	Last    time.Time // the time of its last event; zero: there was none
	Fired   uint64    // events since the start
	Skipped uint64    // times since the start that were missed and are not made up for
	Fault   string    // why Next, which is over, is not published yet
}

// Schedules lists all schedules by name.
func (e *Engine) Schedules() []ScheduleInfo {
	b := &e.schedules
	b.mu.Lock()
	defer b.mu.Unlock()
	infos := make([]ScheduleInfo, 0, len(b.all))
	for _, name := range slices.Sorted(maps.Keys(b.all)) {
		s := b.all[name]
		infos = append(infos, ScheduleInfo{Schedule: s.def, Next: s.next, Last: s.row.Fired, Fired: s.fired, Skipped: s.skipped, Fault: s.fault})
	}
	return infos
}
