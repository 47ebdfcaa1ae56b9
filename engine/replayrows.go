package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// replayRow is a replay as the store keeps it, the last one of its subscription. It is replaced, never changed: by who
// holds commits.
type replayRow struct {
	ID       string
	State    event.ReplayState
	Reason   string `json:",omitempty"`
	Started  time.Time
	Ended    time.Time `json:",omitzero"`
	Since    time.Time `json:",omitzero"`
	Until    time.Time `json:",omitzero"`
	From     string    `json:",omitempty"`
	To       string    `json:",omitempty"`
	Filter   string    `json:",omitempty"`
	Rate     float64   `json:",omitempty"`
	Function string    `json:",omitempty"` // name@digest

	Begins, Next, Ends []event.Offset // by partition
	Spread             int64          `json:",omitempty"` // when the next row is due, Unix ns
	Matched, Lost      uint64         `json:",omitempty"`
	Unread             uint64         `json:",omitempty"`

	Dropped []string `json:",omitempty"` // replays that were cancelled and may still have rows
}

func (r *replayRow) running() bool { return r != nil && r.State == event.ReplayRunning }

// whole reports whether a row that was read has a range of every partition, and stands within it.
func (r *replayRow) whole(parts int) bool {
	if len(r.Begins) != parts || len(r.Next) != parts || len(r.Ends) != parts {
		return false
	}
	for i, off := range r.Next {
		if off < r.Begins[i] || off > r.Ends[i] {
			return false
		}
	}
	return true
}

// looked and left count offsets.
func (r *replayRow) looked() (n uint64) {
	for i, off := range r.Next {
		n += off - r.Begins[i]
	}
	return n
}

func (r *replayRow) left() (n uint64) {
	for i, off := range r.Next {
		n += r.Ends[i] - off
	}
	return n
}

func (r *replayRow) info(waiting uint64) *event.ReplayInfo {
	x := &event.ReplayInfo{ID: r.ID, State: r.State, Reason: r.Reason, Started: r.Started, Ended: r.Ended, Since: r.Since, Until: r.Until, From: r.From, To: r.To,
		Filter: r.Filter, Rate: r.Rate, Function: r.Function, Looked: r.looked() - r.Lost, Matched: r.Matched, Lost: r.Lost, Unread: r.Unread,
		Done: r.Matched - min(waiting, r.Matched), Left: waiting}
	switch left := r.left(); {
	case x.Looked > 0:
		x.Left += uint64(float64(left) * float64(r.Matched) / float64(x.Looked))
	default:
		x.Left += left
	}
	if !r.running() {
		x.Left = 0
	}
	return x
}

// replayBook is a subscription's replay. The subscription's mutex guards it; only who holds commits replaces row.
type replayBook struct {
	row   *replayRow             // nil: there was none
	rows  map[string]*replayRows // of the one that runs, and of those that were cancelled
	why   string                 // it stands still
	need  int64                  // bytes of the row that the parked space had no room for
	works bool                   // its worker runs
	wake  chan struct{}          // nil while there was none in this run
	alarm alarm
}

// replayRows counts parked rows of a replay.
type replayRows struct{ all, fresh int64 }

// ofReplay is the replay that made a row, "" if none did. One that was redriven since goes its own way.
func (p *parkedEvent) ofReplay() string {
	if p == nil || p.lives > 0 {
		return ""
	}
	return p.replay
}

// fresh reports whether nobody has tried it and it does not wait behind others of its key: there may be many of those,
// and they must not hold up the rest.
func (p *parkedEvent) fresh() bool { return p.attempt == 0 && !p.behind }

// replayed takes note that a row is gone, and with park that another has its place. The caller holds s.mu.
func (s *subscription) replayed(p, park *parkedEvent) {
	id := p.ofReplay()
	if id == "" {
		return
	}
	n := s.replay.rows[id]
	if n == nil {
		return
	}
	n.add(p, -1)
	if park != nil {
		n.add(park, 1)
	}
	if n.all == 0 || n.fresh <= replayFresh/2 {
		s.wakeReplay()
	}
}

func (n *replayRows) add(p *parkedEvent, d int64) {
	n.all += d
	if p.fresh() {
		n.fresh += d
	}
}

// dropped reports whether an item is of a replay that was cancelled.
func (s *subscription) dropped(it item) bool {
	id := it.parked.ofReplay()
	return id != "" && s.replay.row != nil && (s.replay.row.ID == id && s.replay.row.State != event.ReplayRunning && s.replay.row.State != event.ReplayDone || slices.Contains(s.replay.row.Dropped, id))
}

// wakeReplay has the worker look again. The caller holds s.mu.
func (s *subscription) wakeReplay() {
	if s.replay.wake == nil {
		return
	}
	select {
	case s.replay.wake <- struct{}{}:
	default:
	}
}

// replayInfo is the replay that runs or the last one, nil if there was none. The caller holds s.mu.
func (s *subscription) replayInfo() *event.ReplayInfo {
	r := s.replay.row
	if r == nil {
		return nil
	}
	waiting := uint64(0)
	if n := s.replay.rows[r.ID]; n != nil && r.running() {
		waiting = uint64(max(n.all, 0))
	}
	x := r.info(waiting)
	if r.running() {
		switch {
		case s.row.Disabled != "":
			x.Reason = "the subscription is disabled: " + s.row.Disabled
		case s.row.Paused != nil:
			x.Reason = "the subscription is paused"
		default:
			x.Reason = s.replay.why
		}
	}
	return x
}

// putReplay is the operation that stores a row.
func (s *subscription) putReplay(row *replayRow) (storage.Op, error) {
	doc, err := json.Marshal(row)
	return put(tableReplays, key32(s.serial), doc), err
}

// setReplay puts a row in force that is stored, or will be with the next commit. The caller holds commits and s.mu.
func (s *subscription) setReplay(row *replayRow) {
	s.replay.row = row
	if s.replay.rows == nil {
		s.replay.rows = map[string]*replayRows{}
	}
	if row.running() && s.replay.rows[row.ID] == nil {
		s.replay.rows[row.ID] = &replayRows{}
	}
	for id := range s.replay.rows {
		if id != row.ID && !slices.Contains(row.Dropped, id) {
			delete(s.replay.rows, id)
		}
	}
}

// beginReplay stores a replay and sets it to work.
func (s *subscription) beginReplay(ctx context.Context, next replayRow) (event.ReplayInfo, error) {
	s.commits.Lock()
	defer s.commits.Unlock()
	if s.gone {
		return event.ReplayInfo{}, fmt.Errorf("subscription %s was just removed: %w", s.name, event.ErrNotFound)
	}
	next.ID, next.Started = newID(s.e.now()), s.e.now().UTC()
	s.mu.Lock()
	was := s.replay.row
	if was != nil {
		next.Dropped = s.droppedRows(was)
	}
	s.mu.Unlock()
	if was.running() {
		return event.ReplayInfo{}, event.Bad(event.ErrConflict, "subscription", fmt.Sprintf("replay %s of %q runs since %s, and there is one at a time; `router replay %s --status` shows it, --cancel ends it",
			was.ID, s.name, was.Started.Format(time.RFC3339), s.name))
	}
	op, err := s.putReplay(&next)
	if err == nil {
		err = s.e.store.Commit(ctx, &storage.Batch{Ops: []storage.Op{op}})
	}
	if err != nil {
		return event.ReplayInfo{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setReplay(&next)
	s.replay.need, s.replay.why = 0, ""
	s.startReplay()
	return *s.replayInfo(), nil
}

// droppedRows is the cancelled replays, row's own included, that still have rows.
func (s *subscription) droppedRows(row *replayRow) (ids []string) {
	for _, id := range append(slices.Clone(row.Dropped), row.ID) {
		n := s.replay.rows[id]
		if n != nil && n.all > 0 && (id != row.ID || row.State == event.ReplayCancelled || row.State == event.ReplayFailed) {
			ids = append(ids, id)
		}
	}
	return ids
}

// startReplay sets the worker to work if there is work for it. The caller holds s.mu.
func (s *subscription) startReplay() {
	if !s.replay.row.running() || s.ended {
		return
	}
	if s.replay.works {
		s.wakeReplay()
		return
	}
	if s.replay.wake == nil {
		s.replay.wake = make(chan struct{}, 1)
		s.replay.alarm.ring = func(context.Context) {
			s.mu.Lock()
			s.wakeReplay()
			s.mu.Unlock()
		}
	}
	s.replay.works = true
	s.workers.Go(s.replayAll)
}

// endReplay ends a replay that runs; id "" is whichever does.
func (s *subscription) endReplay(ctx context.Context, id string, how event.ReplayState, why string) error {
	s.commits.Lock()
	defer s.commits.Unlock()
	s.mu.Lock()
	was := s.replay.row
	s.mu.Unlock()
	if s.gone || !was.running() || id != "" && was.ID != id {
		return nil
	}
	next := *was
	next.State, next.Reason, next.Ended = how, why, s.e.now().UTC()
	op, err := s.putReplay(&next)
	if err == nil {
		err = s.e.store.Commit(ctx, &storage.Batch{Ops: []storage.Op{op}})
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.setReplay(&next)
	s.wakeReplay()
	s.kick()
	s.mu.Unlock()
	if how == event.ReplayFailed {
		s.e.o.Log.Warn("a replay failed", "subscription", s.name, "replay", next.ID, "reason", why)
	}
	return nil
}

// restoreReplay reads what the store has of a replay.
func (s *subscription) restoreReplay(ctx context.Context) error {
	doc, err := s.e.store.Load(ctx, tableReplays, key32(s.serial))
	if err != nil || doc == nil {
		return err
	}
	row := &replayRow{}
	if err := json.Unmarshal(doc, row); err != nil || !row.whole(len(s.cursors)) {
		s.e.o.Log.Error("the row of a replay is damaged: it is not gone on with", "subscription", s.name, "error", err)
		return nil
	}
	s.setReplay(row)
	if row.State == event.ReplayDone && len(row.Dropped) == 0 || s.parked.count == 0 {
		return nil
	}
	rows, err := s.countReplays(ctx, row)
	if err == nil {
		s.replay.rows = rows
	}
	return err
}

// countReplays counts what the store has of rows of row's replay, and of those that were cancelled.
func (s *subscription) countReplays(ctx context.Context, row *replayRow) (map[string]*replayRows, error) {
	rows := map[string]*replayRows{}
	if row.running() {
		rows[row.ID] = &replayRows{}
	}
	count := func(p *parkedEvent) {
		if id := p.ofReplay(); id != "" && (id == row.ID && row.State != event.ReplayDone || slices.Contains(row.Dropped, id)) {
			if rows[id] == nil {
				rows[strings.Clone(id)] = &replayRows{}
			}
			rows[id].add(p, 1)
		}
	}
	err := s.e.store.Scan(ctx, tableParked, key32(s.serial), key32(s.serial+1), func(k, v []byte) error {
		if p, _, _, err := parseParkedHead(k, v); err == nil {
			count(p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return rows, s.e.store.Scan(ctx, tableLanes, key32(s.serial), key32(s.serial+1), func(_, v []byte) error {
		if p := laneHead(v); p != nil {
			count(p)
		}
		return nil
	})
}

// laneHead reads what stands before the record of a row that waits in its lane; nil if it is none. It borrows row.
func laneHead(row []byte) *parkedEvent {
	if len(row) == 0 || row[0] != laneRow {
		return nil
	}
	p, _, _, err := parseParkedHead(parkedKey(0, 0, event.Position{}), row[1:])
	if err != nil {
		return nil
	}
	p.behind = true
	return p
}

// replayDigests collects the versions that running replays chose.
func replayDigests(ctx context.Context, s storage.Store, named map[string]bool) error {
	return s.Scan(ctx, tableReplays, nil, nil, func(_, v []byte) error {
		var row replayRow
		if json.Unmarshal(v, &row) == nil && row.running() {
			if _, digest, ok := strings.Cut(row.Function, "@"); ok {
				named[digest] = true
			}
		}
		return nil
	})
}
