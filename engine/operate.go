package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

func (e *Engine) subscription(name string) (*subscription, error) {
	p := e.plan.Load()
	if s := p.subs[name]; s != nil && s.key == s.name {
		return s, nil
	}
	if err := event.CheckName("subscription", name); err != nil {
		return nil, err
	}
	have := make([]string, 0, len(p.subs))
	for _, s := range p.subs {
		have = append(have, s.name)
	}
	return nil, unknown("subscription", name, have, "`router subscriptions list` shows them all")
}

// Pause stops a subscription's deliveries after those under way; its events wait, within the ring's bounds.
// It survives restarts.
func (e *Engine) Pause(ctx context.Context, name string) error { return e.PauseFor(ctx, name, "") }

// PauseFor pauses for a reason that is shown to who looks.
func (e *Engine) PauseFor(ctx context.Context, name, reason string) error {
	if len(reason) > maxPauseReason {
		return event.Bad(event.ErrTooLarge, "reason", fmt.Sprintf("is %d bytes; at most %d", len(reason), maxPauseReason))
	}
	return e.setState(ctx, name, func(r *subRow) {
		now := e.now().UTC()
		r.Paused, r.Why = &now, printable(reason)
	})
}

// maxPauseReason bounds the reason given for a pause, in bytes.
const maxPauseReason = 512

// Resume undoes Pause, and what disabled the subscription. An open circuit is tried at once.
func (e *Engine) Resume(ctx context.Context, name string) error {
	err := e.setState(ctx, name, func(r *subRow) { r.Paused, r.Why, r.Disabled, r.Since = nil, "", "", nil })
	if err != nil {
		return err
	}
	if s, err := e.delivering(name); err == nil {
		s.mu.Lock()
		s.probeNow()
		s.mu.Unlock()
	}
	return nil
}

func (s *subscription) disable(ctx context.Context, why error) {
	err := s.setState(ctx, func(r *subRow) {
		now := s.e.now().UTC()
		r.Disabled, r.Since = clip(why.Error(), 512), &now
	})
	s.e.o.Log.Warn("a subscription is disabled; `router subscriptions resume` enables it", "subscription", s.name, "reason", why, "stored", err == nil)
}

func (e *Engine) setState(ctx context.Context, name string, change func(*subRow)) error {
	s, err := e.subscription(name)
	if err != nil {
		return err
	}
	if d := e.plan.Load().subs[deliveryKey(name)]; d != nil {
		if err := d.setState(ctx, change); err != nil {
			return err
		}
	}
	return s.setState(ctx, change)
}

// setState changes the row, in memory at once and in the store before it returns.
func (s *subscription) setState(ctx context.Context, change func(*subRow)) error {
	s.commits.Lock()
	defer s.commits.Unlock()
	if s.gone {
		return fmt.Errorf("subscription %s was just removed: %w", s.name, event.ErrNotFound)
	}
	s.mu.Lock()
	change(&s.row)
	op, err := s.rowOp()
	s.kick()
	s.lookNow()
	s.wakeReplay()
	s.mu.Unlock()
	if err == nil {
		err = s.e.store.Commit(ctx, &storage.Batch{Ops: []storage.Op{op}})
	}
	return err
}

// Seek moves a subscription, one commit for all partitions. Parked deliveries below the target are settled;
// of those at or above it the ones that the ring still holds are read again, the others stay due. The state of
// functions stays as it is.
func (e *Engine) Seek(ctx context.Context, name string, to event.Start) error {
	s, err := e.subscription(name)
	if err != nil {
		return err
	}
	unpin := s.topic.pin(to)
	defer func() {
		unpin()
		e.refloor(e.plan.Load(), s.topic)
	}()
	offsets, err := s.topic.resolve(ctx, to)
	if err != nil {
		return event.At("to", err)
	}
	s.commits.Lock()
	defer s.commits.Unlock()
	if s.gone {
		return fmt.Errorf("subscription %s was just removed: %w", s.name, event.ErrNotFound)
	}

	if err := s.seek(ctx, offsets); err != nil {
		return err
	}
	d := e.plan.Load().subs[deliveryKey(name)]
	if d == nil {
		return nil
	}
	// What the functions have put out so far is of what the seek leaves behind, or will be made again.
	d.commits.Lock()
	defer d.commits.Unlock()
	if d.gone {
		return nil
	}
	if offsets, err = d.topic.resolve(ctx, event.Start{}); err != nil {
		return err
	}
	return d.seek(ctx, offsets)
}

// seek moves the subscription's cursors, or changes nothing if the store refuses. The caller holds s.commits, so
// that no row changes meanwhile.
func (s *subscription) seek(ctx context.Context, offsets []event.Offset) error {
	e := s.e
	b := storage.Batch{}
	for i, off := range offsets {
		row := (&cursor{}).appendRow(nil, off)
		b.Ops = append(b.Ops, put(tableCursors, key32x2(s.serial, uint32(i)), row))
	}
	s.mu.Lock()
	s.seeking = true // nothing more is taken: it would be void soon
	was := s.row.Seeks
	s.row.Seeks = s.gen + 1
	row, err := s.rowOp()
	s.row.Seeks = was
	delivered := slices.Clone(s.parked.cleared)
	s.mu.Unlock()

	b.Ops = append(b.Ops, row)
	left, failed := s.seekRows(ctx, &b, offsets, delivered)
	b.Ops = append(b.Ops, left.op(s.serial))
	if err = errors.Join(err, failed); err == nil {
		err = e.store.Commit(ctx, &b)
	}
	s.mu.Lock()
	var held map[leaseKey]*lease
	if err == nil {
		held = s.moved(offsets, left)
	}
	s.goOn(held)
	if err != nil {
		return fmt.Errorf("seek: nothing was moved: %w", err)
	}
	return nil
}

// goOn ends what seeking has held up; held are the leases that were out. The caller holds s.mu, which is released.
func (s *subscription) goOn(held map[leaseKey]*lease) {
	s.seeking = false
	s.room.Broadcast()
	s.fetchLanes()
	s.kick()
	s.lookNow()
	s.mu.Unlock()
	for _, l := range held {
		s.leave(l.config)
	}
	for _, p := range s.topic.parts {
		s.feed(p)
	}
}

// moved puts a seek that is stored in force: nothing that was taken before counts. It returns the leases that were
// out. The caller holds s.mu.
func (s *subscription) moved(offsets []event.Offset, left rowsLeft) (held map[leaseKey]*lease) {
	s.gen++
	s.row.Seeks = s.gen
	s.waiting = ""
	s.queue.clear()
	s.due.clear()
	s.dueBytes = 0
	s.sends.clear()
	held, s.leases = s.leases.out, leaseBook{}
	s.redeems = nil
	s.parked.busy, s.parked.cleared, s.parked.gone = nil, nil, nil
	s.lanes.open, s.lanes.held, s.lanes.bytes, s.lanes.movingBytes, s.lanes.moving, s.lanes.rereads = left.lanes.open, 0, 0, 0, nil, 0
	s.lanes.fetch = left.lanes.fetch
	for i, c := range s.cursors {
		c.read, c.attached, c.recover, c.hasRow = offsets[i], false, nil, true
		c.out.clear()
		s.touch(c)
	}
	s.parked.size = left.size
	s.parked.next, s.parked.low = 0, 0
	if left.count > 0 {
		s.parked.next = 1
	}
	return held
}

// rowsLeft is what a seek leaves of a subscription's parked rows.
type rowsLeft struct {
	size
	lanes laneBook
}

// seekRows adds the removal of the rows that a seek settles or reads again. delivered are those that only wait
// to be deleted.
func (s *subscription) seekRows(ctx context.Context, b *storage.Batch, offsets []event.Offset, delivered []cleared) (left rowsLeft, err error) {
	finished := map[string]bool{}
	for _, c := range delivered {
		finished[c.row.keyAt(s.serial, c.pos)] = true
	}
	stays := map[string]bool{} // rows of replays: they have no part in where the cursor is
	goes := func(key string, pos event.Position) bool {
		if foreign(pos) || stays[key] { // it cannot be read again
			return finished[key]
		}
		head := s.topic.parts[pos.Partition].log.Bounds().Head
		to := offsets[pos.Partition]
		// A seek to the head is one to the earliest there is: it gives up nothing that cannot be read again.
		return finished[key] || pos.Offset < to && to > head || pos.Offset >= head
	}
	err = s.e.store.Scan(ctx, tableParked, key32(s.serial), key32(s.serial+1), func(k, v []byte) error {
		if p, _, _, err := parseParkedHead(k, v); err == nil && p.replay != "" {
			stays[string(k)] = true
		}
		if _, pos := splitParkedKey(k); goes(string(k), pos) {
			b.Ops = append(b.Ops, del(tableParked, slices.Clone(k)))
			return nil
		}
		left.count++
		left.bytes += int64(len(v))
		return nil
	})
	if err != nil {
		return left, err
	}
	err = s.e.store.Scan(ctx, tableLanes, key32(s.serial), key32(s.serial+1), func(k, v []byte) error {
		hash, pos, due := splitLaneKey(k)
		row, marker := string(k), len(v) > 0 && v[0] == laneMarker
		if marker {
			row = string(parkedKey(s.serial, due, pos))
		} else if p := laneHead(v); p != nil && p.replay != "" {
			stays[row] = true
		}
		if goes(row, pos) {
			b.Ops = append(b.Ops, del(tableLanes, slices.Clone(k)))
			return nil
		}
		if !marker {
			left.count++
			left.bytes += int64(len(v))
		}
		left.lanes.found(hash, marker)
		return nil
	})
	return left, err
}

// resolve turns a start into an offset for each partition: the first to read.
func (t *topic) resolve(ctx context.Context, start event.Start) ([]event.Offset, error) {
	if start.At == event.AtCursor {
		return t.parseCursor(start.Cursor)
	}
	offsets := make([]event.Offset, len(t.parts))
	for i, p := range t.parts {
		switch b := p.log.Bounds(); start.At {
		case event.Latest:
			offsets[i] = b.Next
		case event.Earliest:
			offsets[i] = b.Head
		case event.AtTime:
			off, err := p.log.Since(ctx, start.Time)
			if err != nil {
				return nil, err
			}
			offsets[i] = off
		}
	}
	return offsets, nil
}

// SubscriptionInfo is how a subscription stands.
type SubscriptionInfo struct {
	event.Subscription
	State       string     // running, paused, disabled, open (its circuit is, or half-open) or waiting
	Reason      string     // why, where there is a reason
	Since       *time.Time // paused, disabled or open
	Circuit     CircuitInfo
	Lag         uint64 // events of the topic it has not looked at
	Outstanding int    // queued or in hand, not settled
	Parked      int64
	ParkedBytes int64
	Leased      int
	Digests     []string // of its functions, in order
	StateKeys   int64    // that its functions keep
	StateBytes  int64    // of keys and values

	Loss Loss // what the ring has dropped before it was read, ever; Lost has beside it what is gone and not passed yet

	// Counters since the start, but for Lost, which is kept.
	Matched, Delivered, Failed, Retried, DeadLettered, Dropped, Lost uint64
	Redriven, Purged, Replayed                                       uint64

	DeadLetters int64 // unfinished ones in its dead-letter topic

	Replay *event.ReplayInfo // that runs, or the last one; nil if there was none
}

// Subscriptions lists all subscriptions by name.
func (e *Engine) Subscriptions() []SubscriptionInfo {
	subs := e.plan.Load().subs
	names := make([]string, 0, len(subs))
	for key, s := range subs {
		if key == s.name {
			names = append(names, key)
		}
	}
	slices.Sort(names)
	infos := make([]SubscriptionInfo, len(names))
	for i, n := range names {
		infos[i] = subs[n].info()
		if d := subs[deliveryKey(n)]; d != nil {
			infos[i] = infos[i].with(d.info())
		}
	}
	return infos
}

// Subscription returns one subscription, or event.ErrNotFound with the nearest name.
func (e *Engine) Subscription(name string) (SubscriptionInfo, error) {
	s, err := e.subscription(name)
	if err != nil {
		return SubscriptionInfo{}, err
	}
	if d := e.plan.Load().subs[deliveryKey(name)]; d != nil {
		return s.info().with(d.info()), nil
	}
	return s.info(), nil
}

// ahead counts the events of the topic that the subscription has not looked at, and those in hand. The caller
// holds s.mu.
func (s *subscription) ahead() (lag uint64, outstanding int) {
	for i, p := range s.topic.parts {
		c := s.cursors[i]
		lag += p.log.Bounds().Next - min(c.reach(p), p.log.Bounds().Next)
		outstanding += c.out.live
	}
	return lag, outstanding
}

func (s *subscription) info() SubscriptionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.config.Load()
	info := SubscriptionInfo{
		Subscription: *c.shown(), State: "running", Parked: s.parked.count, ParkedBytes: s.parked.bytes, Leased: len(s.leases.out),
		Matched: s.c.Matched, Delivered: s.c.Delivered, Failed: s.c.Failed, Retried: s.c.Parked, DeadLettered: s.c.DeadLettered,
		Dropped: s.c.Dropped, Lost: s.row.Loss.Events + s.overtaken(), Loss: s.row.Loss, Redriven: s.c.Redriven, Purged: s.c.Purged, Replayed: s.c.Replayed, Replay: s.replayInfo(), StateKeys: s.state.keys, StateBytes: s.state.bytes,
	}
	info.Lag, info.Outstanding = s.ahead()
	if t := s.e.plan.Load().topics[c.DeadLetter]; t != nil && c.half != deliveryHalf { // both halves have the same
		info.DeadLetters = s.e.unfinished(t, s.name)
	}
	for _, f := range c.functions {
		info.Digests = append(info.Digests, f.digest())
	}
	info.Circuit = s.circuitInfo(c)
	switch {
	case s.row.Disabled != "":
		info.State, info.Reason, info.Since = "disabled", s.row.Disabled, s.row.Since
	case s.row.Paused != nil:
		info.State, info.Reason, info.Since = "paused", s.row.Why, s.row.Paused
	case info.Circuit.State != circuitClosed.String():
		info.State, info.Reason, info.Since = "open", info.Circuit.words(), info.Circuit.Since
	case s.waiting != "":
		info.State, info.Reason = "waiting", s.waiting
	case s.parked.bytes >= c.Parked:
		info.State, info.Reason = "waiting", fmt.Sprintf("parked.bytes: %d of %d bytes wait for their next try; no new event is read", s.parked.bytes, c.Parked)
	}
	return info
}

// FunctionInfo is a function in force and what it has done.
type FunctionInfo struct {
	event.Function
	Stats plugins.FunctionStats // of the version in force; zero while nothing was pushed

	Versions []Version // that were in force, newest first; those that a rollback can name
	Counts   FunctionCounts
}

// Functions lists all functions by name.
func (e *Engine) Functions() []FunctionInfo {
	fs := e.plan.Load().functions
	infos := make([]FunctionInfo, 0, len(fs))
	for _, f := range fs {
		infos = append(infos, f.info())
	}
	slices.SortFunc(infos, func(a, b FunctionInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos
}

// Function returns one function, or event.ErrNotFound with the nearest name.
func (e *Engine) Function(name string) (FunctionInfo, error) {
	fs := e.plan.Load().functions
	if f := fs[name]; f != nil {
		return f.info(), nil
	}
	have := make([]string, 0, len(fs))
	for n := range fs {
		have = append(have, n)
	}
	return FunctionInfo{}, unknown("function", name, have, fmt.Sprintf("`router functions push %s FILE` makes it", name))
}

func (f *function) info() FunctionInfo {
	info := FunctionInfo{Function: f.def, Versions: f.book.history(), Counts: f.book.counts()}
	if f.code != nil {
		info.Stats = f.code.Stats()
	}
	return info
}
