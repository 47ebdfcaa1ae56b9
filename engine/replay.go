package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// A replay reads a range of a subscription's topic once more and makes a parked row of every event that matches,
// as a redrive does of dead letters: from there on the event goes the way of a retry, and to nobody else. The rows
// and how far the replay has come are one commit, so a crash neither leaves out an event nor, but for what was on
// its way, repeats one. The subscription's cursor has no part in it.

// Replay begins one, or, with DryRun, counts what it would deliver. A subscription has one at a time:
// event.ErrConflict names the one that runs. A dry run that ctx ends says how far it came.
func (e *Engine) Replay(ctx context.Context, name string, r event.Replay) (event.ReplayInfo, error) {
	s, err := e.subscription(name)
	if err != nil {
		return event.ReplayInfo{}, err
	}
	next, ask, err := s.plannedReplay(ctx, r)
	if err != nil {
		return event.ReplayInfo{}, err
	}
	if r.Function != "" {
		with, _, release, err := e.pickVersion(ctx, s, r.Function)
		if err != nil {
			return event.ReplayInfo{}, err
		}
		defer release() // the replay's row names it
		next.Function = with
	}
	if r.DryRun {
		return s.tryReplay(ctx, next, ask)
	}
	return s.beginReplay(ctx, next)
}

// ReplayInfo is a subscription's replay that runs, or the last one: event.ErrNotFound if there was none.
func (e *Engine) ReplayInfo(name string) (event.ReplayInfo, error) {
	s, err := e.subscription(name)
	if err != nil {
		return event.ReplayInfo{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.replayInfo(); x != nil {
		return *x, nil
	}
	return event.ReplayInfo{}, event.Bad(event.ErrNotFound, "subscription", fmt.Sprintf("%q had no replay; `router replay %s --since 1h` begins one", name, name))
}

// CancelReplay ends a replay: what it has in hand is delivered, what waits is dropped. One that does not run any more
// stays as it ended.
func (e *Engine) CancelReplay(ctx context.Context, name string) (event.ReplayInfo, error) {
	s, err := e.subscription(name)
	if err != nil {
		return event.ReplayInfo{}, err
	}
	if _, err := e.ReplayInfo(name); err != nil {
		return event.ReplayInfo{}, err
	}
	if err := s.endReplay(ctx, "", event.ReplayCancelled, ""); err != nil {
		return event.ReplayInfo{}, err
	}
	return e.ReplayInfo(name)
}

// plannedReplay checks what is asked for.
func (s *subscription) plannedReplay(ctx context.Context, r event.Replay) (next replayRow, ask *filters.Program, err error) {
	if r.Rate != 0 && (r.Rate < minRate || r.Rate > maxRate || r.Rate != r.Rate) {
		return next, nil, event.Invalid("rate", fmt.Sprintf("is %g events a second; want %g to %g, or none for as fast as they are taken", r.Rate, minRate, maxRate))
	}
	if err := s.replayable(); err != nil {
		return next, nil, err
	}
	if r.Filter != "" {
		if ask, err = filters.Compile(strings.Clone(r.Filter)); err != nil {
			return next, nil, event.Invalid("filter", err.Error())
		}
	}
	next = replayRow{State: event.ReplayRunning, Since: r.Since, Until: r.Until, From: strings.Clone(r.From), To: strings.Clone(r.To), Filter: strings.Clone(r.Filter), Rate: r.Rate}
	if next.Next, next.Ends, next.Unread, err = s.replayRange(ctx, r); err != nil {
		return next, nil, err
	}
	next.Begins = slices.Clone(next.Next)
	return next, ask, nil
}

// replayable fails where events must not come twice: a function that keeps state would count them twice.
func (s *subscription) replayable() error {
	if c := s.config.Load(); c.stateful || s.e.plan.Load().subs[deliveryKey(s.name)] != nil {
		return event.Bad(event.ErrConflict, "subscription", fmt.Sprintf("%q has functions that keep state, which would see the events twice; "+
			"make a subscription without them for the replay, or a new one with `start:` in the past", s.name))
	}
	return nil
}

// replayRange is what a replay reads of each partition, [begin, end), and how many events of what is asked for the
// subscription has not read itself yet.
func (s *subscription) replayRange(ctx context.Context, r event.Replay) (begins, ends []event.Offset, unread uint64, err error) {
	if r.Since.IsZero() && r.From == "" {
		return nil, nil, 0, event.Invalid("since", "say where to begin: since, a time, or from, a position, a cursor or earliest")
	}
	if !r.Until.IsZero() && r.Until.Before(r.Since) {
		return nil, nil, 0, event.Invalid("until", fmt.Sprintf("%s lies before since, %s", r.Until.Format(time.RFC3339Nano), r.Since.Format(time.RFC3339Nano)))
	}
	for _, p := range s.topic.parts {
		b := p.log.Bounds()
		from, to := b.Head, b.Next
		if !r.Since.IsZero() {
			if from, err = p.log.Since(ctx, r.Since); err != nil {
				return nil, nil, 0, err
			}
		}
		if !r.Until.IsZero() {
			if to, err = p.log.Since(ctx, r.Until); err != nil {
				return nil, nil, 0, err
			}
		}
		begins, ends = append(begins, from), append(ends, to)
	}
	if err := s.topic.boundFrom(r.From, begins, ends); err != nil {
		return nil, nil, 0, event.At("from", err)
	}
	if err := s.topic.boundTo(r.To, begins, ends); err != nil {
		return nil, nil, 0, event.At("to", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.cursors {
		ends[i] = max(ends[i], begins[i])
		if read := max(c.reach(s.topic.parts[i]), begins[i]); read < ends[i] {
			unread += ends[i] - read
			ends[i] = read
		}
	}
	return begins, ends, unread, nil
}

// earliest, as from, is all that the ring keeps.
const earliest = "earliest"

// boundFrom raises begins to a position or a cursor. A position is of one partition: the others have no part.
func (t *topic) boundFrom(at string, begins, ends []event.Offset) error {
	if at == "" || at == earliest {
		return nil
	}
	pos, cursor, err := t.parsePlace(at)
	if err != nil {
		return err
	}
	if pos == nil {
		for i, off := range cursor {
			begins[i] = max(begins[i], off)
		}
		return nil
	}
	b := t.parts[pos.Partition].log.Bounds()
	switch {
	case pos.Offset < b.Head:
		return t.overtaken(pos.Offset)
	case pos.Offset >= b.Next:
		return event.Bad(event.ErrNotFound, "position", fmt.Sprintf("%s: the partition's next offset is %d", pos, b.Next))
	}
	t.only(pos.Partition, begins, ends)
	begins[pos.Partition] = max(begins[pos.Partition], pos.Offset)
	return nil
}

// boundTo lowers ends to a cursor, or to behind a position.
func (t *topic) boundTo(at string, begins, ends []event.Offset) error {
	if at == "" {
		return nil
	}
	pos, cursor, err := t.parsePlace(at)
	if err != nil {
		return err
	}
	if pos == nil {
		for i, off := range cursor {
			ends[i] = min(ends[i], off)
		}
		return nil
	}
	t.only(pos.Partition, begins, ends)
	if pos.Offset < ends[pos.Partition] {
		ends[pos.Partition] = pos.Offset + 1
	}
	return nil
}

// parsePlace reads a position of the topic, or a cursor: then pos is nil.
func (t *topic) parsePlace(at string) (_ *event.Position, cursor []event.Offset, err error) {
	pos, err := event.ParsePosition(at)
	if err != nil {
		cursor, err = t.parseCursor(at)
		return nil, cursor, err
	}
	if int(pos.Partition) >= len(t.parts) {
		return nil, nil, event.Bad(event.ErrNotFound, "position", fmt.Sprintf("%s: topic %q has %d partitions, numbered from 0", pos, t.name, len(t.parts)))
	}
	return &pos, nil, nil
}

// only leaves one partition in a range.
func (t *topic) only(p event.Partition, begins, ends []event.Offset) {
	for i := range ends {
		if i != int(p) {
			ends[i] = begins[i]
		}
	}
}

// pickVersion finds a version of one of a subscription's functions, name@digest, and holds it until release.
func (e *Engine) pickVersion(ctx context.Context, s *subscription, text string) (with string, inForce bool, release func(), err error) {
	name, short, versioned := strings.Cut(text, "@")
	c := s.config.Load()
	at := slices.IndexFunc(c.functions, func(f *function) bool { return f.def.Name == name })
	if at < 0 {
		// Not which it has: who may replay it need not know.
		return "", false, nil, event.Bad(event.ErrConflict, "function", fmt.Sprintf("%.80q is no function of subscription %s; `router subscriptions show %s` lists those that it has", name, s.name, s.name))
	}
	if !versioned {
		return "", true, func() {}, nil
	}
	digest, err := e.o.Host.Resolve(short)
	if err != nil {
		return "", false, nil, event.At("function", err)
	}
	with = name + "@" + digest
	if digest == c.functions[at].digest() {
		return with, true, func() {}, nil
	}
	v, err := e.choose(ctx, c.functions[at], digest)
	if err != nil {
		return "", false, nil, event.At("function", fmt.Errorf("version %s of %s does not start: %w", digest, name, err))
	}
	return with, false, func() { e.choices.leave(v, e.now()) }, nil
}

// tryReplay counts what a replay would deliver.
func (s *subscription) tryReplay(ctx context.Context, row replayRow, ask *filters.Program) (event.ReplayInfo, error) {
	own, now := s.config.Load().Program, s.e.now().UTC()
	info := *row.info(0)
	info.State, info.Started, info.Ended = "", now, now
	var scratch filters.Scratch
	var blocks []*storage.Block
	for i, p := range s.topic.parts {
		for at := row.Next[i]; at < row.Ends[i]; {
			var err error
			blocks, err = p.log.Read(ctx, at, feedBytes, blocks[:0])
			var trimmed *storage.TrimmedError
			switch {
			case errors.As(err, &trimmed):
				head := min(trimmed.Head, row.Ends[i])
				info.Lost += head - at
				at = head
				continue
			case ctx.Err() != nil:
				info.Reason = "time: not all of the range was counted"
			case err != nil:
				return info, err
			}
			if len(blocks) == 0 || ctx.Err() != nil {
				break
			}
			for _, b := range blocks {
				for rest := event.Record(b.Records); len(rest) > 0; {
					rec := rest[:rest.Len():rest.Len()]
					rest = rest[len(rec):]
					if rec.Offset() < at || rec.Offset() >= row.Ends[i] || !own.Match(rec, &scratch) || !ask.Match(rec, &scratch) {
						continue
					}
					if len(info.First) < dryExamples {
						info.First = append(info.First, slices.Clone(rec))
					}
					info.Matched++
				}
				to := min(b.End(), row.Ends[i])
				if to > at {
					info.Looked += to - at
					at = to
				}
			}
			clear(blocks)
		}
	}
	info.Left = 0
	return info, nil
}
