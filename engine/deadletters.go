package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// letterScan bounds how many events one page of dead letters looks at.
const letterScan = 100_000

// letterWalk goes over a subscription's unfinished dead letters that a query chooses, partition by partition. It
// ends where the topic ended when it began: a letter that is redriven and fails again at once is another one.
type letterWalk struct {
	e       *Engine
	t       *topic
	sub     string
	program *filters.Program
	scratch filters.Scratch
	since   int64
	before  int64 // 0: no bound
	froms   []event.Offset
	ends    []event.Offset
	limits  []event.Offset // ends as they were
	at      int            // partition
	budget  event.Offset   // events that each may look at; 0: all
	whole   bool           // it takes all that there were
}

func (e *Engine) walkLetters(ctx context.Context, name string, q event.LetterQuery, known bool) (*letterWalk, error) {
	w := &letterWalk{e: e, sub: name, whole: q.Filter == "" && q.Since.IsZero() && q.Before.IsZero()}
	dead := q.Topic
	s, err := e.subscription(name)
	switch {
	case err != nil && (known || dead == ""):
		return nil, err
	case err == nil && dead == "":
		if dead = s.config.Load().DeadLetter; dead == "" {
			return nil, event.Bad(event.ErrConflict, "subscription", fmt.Sprintf("%q has no dead-letter topic: nothing that it fails at is given up; `deadLetter: NAME` sets one", name))
		}
	}
	if w.t, err = e.topic(dead); err != nil {
		return nil, err
	}
	if q.Filter != "" {
		if w.program, err = filters.Compile(strings.Clone(q.Filter)); err != nil {
			return nil, event.Invalid("filter", err.Error())
		}
	}
	if !q.Before.IsZero() {
		w.before = q.Before.UnixNano()
	}
	if err := e.countAll(ctx, w.t); err != nil {
		return nil, err
	}
	for _, p := range w.t.parts {
		b := p.log.Bounds()
		from := max(b.Head, p.lettersFloor())
		if !q.Since.IsZero() {
			w.since = q.Since.UnixNano()
			off, err := p.log.Since(ctx, q.Since)
			if err != nil {
				return nil, err
			}
			from = max(from, off)
		}
		w.froms, w.ends = append(w.froms, from), append(w.ends, b.Next)
	}
	w.limits = slices.Clone(w.ends)
	return w, nil
}

// until is a time after the last letter that the walk goes over.
func (w *letterWalk) until() time.Time {
	var last int64
	for _, p := range w.t.parts {
		last = max(last, p.log.Bounds().LastTime)
	}
	if w.before != 0 {
		last = min(last, w.before-1)
	}
	return time.Unix(0, last+1).UTC()
}

// each calls fn for the letters that are left until it returns false; the walk then goes on with that letter.
// Records are valid as long as somebody refers to them.
func (w *letterWalk) each(ctx context.Context, fn func(rec event.Record) bool) error {
	for w.at < len(w.t.parts) {
		from, to := w.froms[w.at], w.ends[w.at]
		if w.budget > 0 {
			to = min(to, from+w.budget)
		}
		stopped, late := false, false
		off, err := w.e.unfinishedIn(ctx, w.t.parts[w.at], from, to, func(rec event.Record, sub string) bool {
			switch {
			case w.before != 0 && rec.Received() >= w.before: // received times never fall
				late = true
				return false
			case sub != w.sub || rec.Received() < w.since || !w.program.Match(rec, &w.scratch):
				return true
			}
			stopped = !fn(rec)
			return !stopped
		})
		w.froms[w.at] = off
		if err != nil || stopped {
			return err
		}
		if late || off < to || off >= w.ends[w.at] {
			w.at++
		}
		if w.budget > 0 {
			if w.budget -= min(w.budget, off-min(off, from)); w.budget == 0 {
				return nil
			}
		}
	}
	return nil
}

// DeadLetters lists a subscription's unfinished dead letters, at most limit, from where the page before ended
// (its Next). A filter that passes few may make a page short; Next says whether there is more.
func (e *Engine) DeadLetters(ctx context.Context, name string, q event.LetterQuery, after string, limit int) (event.LetterPage, error) {
	w, err := e.walkLetters(ctx, name, q, false)
	if err != nil {
		return event.LetterPage{}, err
	}
	if after != "" {
		pos, err := event.ParsePosition(after)
		if err != nil || int(pos.Partition) >= len(w.t.parts) {
			return event.LetterPage{}, event.Invalid("after", fmt.Sprintf("%.60q is not the next of a page of topic %s", after, w.t.name))
		}
		w.at = int(pos.Partition)
		w.froms[w.at] = max(w.froms[w.at], pos.Offset)
	}
	w.budget = letterScan
	page := event.LetterPage{Total: e.unfinished(w.t, name), Letters: []event.DeadLetter{}}
	err = w.each(ctx, func(rec event.Record) bool {
		if len(page.Letters) == limit {
			return false
		}
		page.Letters = append(page.Letters, letterFrom(rec))
		return true
	})
	if err == nil && w.at < len(w.t.parts) {
		page.Next = event.Position{Partition: event.Partition(w.at), Offset: w.froms[w.at]}.String()
	}
	return page, err
}

// letterFrom reads what bury wrote. It borrows the record.
func letterFrom(rec event.Record) event.DeadLetter {
	text := func(name string) string {
		a, _ := rec.Extension(name)
		return a.Value
	}
	number := func(name string) int {
		n, _ := strconv.Atoi(text(name)) // as written by us, or by somebody who meant no number
		return n
	}
	d := event.DeadLetter{
		Position: rec.Position(), At: rec.ReceivedAt(), Origin: text("deadletterposition"),
		ID: rec.Attr(event.TagID), Type: rec.Attr(event.TagType), Reason: text("deadletterreason"), Code: number("deadlettercode"),
		Attempts: number("deadletterattempts"), Redrives: number("deadletterredrives"), Detail: text("deadletterdetail"),
		Function: text("deadletterfunction"), Versions: text("deadletterversions"), Half: text("deadletterhalf"),
		Revision: text("deadletterrevision"), Event: rec,
	}
	if story := text("deadletterstory"); json.Valid([]byte(story)) {
		d.Story = json.RawMessage(story)
	}
	return d
}

// Purge drops dead letters of a subscription for good. They are finished; their events leave the topic when
// it needs the room. A subscription that is not defined any more can be named if the topic is, too.
func (e *Engine) Purge(ctx context.Context, name string, p event.Purge) (event.LettersDone, error) {
	var done event.LettersDone
	if !p.All && p.Filter == "" && p.Since.IsZero() && p.Before.IsZero() {
		return done, event.Invalid("all", "nothing says which dead letters to purge: give a filter, since or before, or all: true")
	}
	w, err := e.walkLetters(ctx, name, p.LetterQuery, false)
	if err != nil {
		return done, err
	}
	done.Until = w.until()
	if p.DryRun {
		return done, w.tell(ctx, &done)
	}
	s, _ := e.subscription(name) // nil: only its letters are there
	defer func() {
		if s != nil {
			s.mu.Lock()
			s.c.Purged += uint64(done.Done)
			s.mu.Unlock()
		}
	}()
	for err == nil && done.Stopped == "" {
		var batch []event.Record
		err = w.each(ctx, func(rec event.Record) bool {
			if len(batch) == purgeBatch {
				return false
			}
			batch = append(batch, rec)
			return true
		})
		if err == nil && len(batch) > 0 {
			var n int
			n, err = e.purge(ctx, w.t, batch)
			done.Done += int64(n)
		}
		if ctx.Err() != nil {
			done.Stopped, err = "time", nil
		} else if len(batch) == 0 {
			break
		}
	}
	if err == nil {
		err = w.end(ctx, &done)
	}
	return done, err
}

// purgeBatch is how many letters one commit finishes.
const purgeBatch = 4096

// purge finishes letters that are not finished yet, and says how many.
func (e *Engine) purge(ctx context.Context, t *topic, batch []event.Record) (int, error) {
	t.letters.work.Lock()
	defer t.letters.work.Unlock()
	if err := t.standing(); err != nil {
		return 0, err
	}
	batch, err := e.stillOpen(ctx, t, batch)
	if err != nil || len(batch) == 0 {
		return 0, err
	}
	var b storage.Batch
	for _, rec := range batch {
		b.Ops = append(b.Ops, put(tableLettersDone, letterKey(t.parts[rec.Partition()], rec.Offset()), nil))
	}
	if err := e.store.Commit(ctx, &b); err != nil {
		return 0, err
	}
	t.letters.finished(batch)
	for i := range t.parts {
		if err := e.raise(ctx, t, i); err != nil && ctx.Err() == nil {
			e.o.Log.Warn("finished dead letters still hold their topic", "topic", t.name, "error", err)
		}
	}
	return len(batch), nil
}

// stillOpen leaves out letters that somebody else has finished meanwhile. The caller holds the book's work.
func (e *Engine) stillOpen(ctx context.Context, t *topic, batch []event.Record) ([]event.Record, error) {
	open := make([]event.Record, 0, len(batch))
	var done map[event.Offset]bool
	var floor event.Offset
	for i, rec := range batch {
		p := rec.Partition()
		if i == 0 || batch[i-1].Partition() != p {
			end := i
			for end < len(batch) && batch[end].Partition() == p {
				end++
			}
			var err error
			if done, floor, err = e.finishedIn(ctx, t.parts[p], rec.Offset(), batch[end-1].Offset()+1); err != nil {
				return nil, err
			}
		}
		if off := rec.Offset(); off >= floor && !done[off] {
			open = append(open, rec)
		}
	}
	return open, nil
}

// tell counts what a dry run would do and shows the first letters.
func (w *letterWalk) tell(ctx context.Context, done *event.LettersDone) error {
	return w.each(ctx, func(rec event.Record) bool {
		if len(done.First) < dryExamples {
			d := letterFrom(rec)
			d.Condensed = true
			done.First = append(done.First, d)
		}
		done.Done++
		return true
	})
}

const dryExamples = 10

// end counts what is left where something stopped, and lets go of rows.
func (w *letterWalk) end(ctx context.Context, done *event.LettersDone) error {
	if done.Stopped == "" {
		return nil
	}
	if w.whole {
		done.Left = w.e.unfinished(w.t, w.sub) - done.Skipped
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countLeft)
	defer cancel()
	err := w.each(ctx, func(event.Record) bool { done.Left++; return true })
	if ctx.Err() != nil { // at least as many
		err = nil
	}
	return err
}

// countLeft is how long what is left is counted at most.
const countLeft = 5 * time.Second
