package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A redriven dead letter becomes a parked row of its subscription, or of its half, with the event as the
// subscription read it: same id, same place, same delivery id. The row and the mark that the letter is finished
// are one commit, so it is redriven once, whatever happens. A rate is due times of the rows: it outlives the
// request and the process.

const (
	redriveBatch = 256
	redriveBytes = 1 << 20
)

// Bounds of a redrive's rate, in events a second.
const (
	minRate = 0.001
	maxRate = 1e6
)

// Redrive delivers a subscription's dead letters again, to it alone. It works until all that are chosen are
// taken over, the subscription's parked space is half full, or ctx ends; every batch is durable by itself.
func (e *Engine) Redrive(ctx context.Context, name string, r event.Redrive) (event.LettersDone, error) {
	var done event.LettersDone
	if r.Rate != 0 && (r.Rate < minRate || r.Rate > maxRate || r.Rate != r.Rate) {
		return done, event.Invalid("rate", fmt.Sprintf("is %g events a second; want %g to %g, or 0 for as fast as they are taken", r.Rate, minRate, maxRate))
	}
	if r.Limit < 0 {
		return done, event.Invalid("limit", fmt.Sprintf("is %d; want a positive number, or none for all", r.Limit))
	}
	w, err := e.walkLetters(ctx, name, r.LetterQuery, true)
	if err != nil {
		return done, err
	}
	d := redriving{e: e, w: w, r: r, done: &done}
	if d.whole, err = e.subscription(name); err != nil {
		return done, err
	}
	d.delivery = e.plan.Load().subs[deliveryKey(name)]
	if r.Function != "" {
		release, err := d.choose(ctx)
		if err != nil {
			return done, err
		}
		defer release()
	}
	done.Until = w.until()
	if r.DryRun {
		return done, d.try(ctx)
	}
	return done, d.run(ctx)
}

// redriving is a redrive under way.
type redriving struct {
	e        *Engine
	w        *letterWalk
	r        event.Redrive
	done     *event.LettersDone
	whole    *subscription // or the half with the functions
	delivery *subscription // the other half; nil where there are none
	with     string        // name@digest of the version that was chosen
}

// choose finds the version and holds it until the rows name it.
func (d *redriving) choose(ctx context.Context) (release func(), err error) {
	with, inForce, release, err := d.e.pickVersion(ctx, d.whole, d.r.Function)
	if err == nil && !inForce {
		d.with = with
	}
	return release, err
}

// target is where a letter enters, nil if it cannot: why says so.
func (d *redriving) target(rec event.Record) (s *subscription, why string) {
	a, _ := rec.Extension("deadletterhalf")
	switch {
	case a.Value == deliveryHalf.String() && d.r.Function != "":
		return nil, "what the functions put out was given up, not what goes into them: leave out function, or choose with a filter"
	case a.Value == deliveryHalf.String() && d.delivery != nil:
		return d.delivery, ""
	case a.Value == deliveryHalf.String() && len(d.whole.config.Load().Functions) > 0:
		return nil, "the functions have run on it already, and the subscription does not deliver apart from them any more"
	}
	return d.whole, ""
}

// try is a dry run.
func (d *redriving) try(ctx context.Context) error {
	return d.w.each(ctx, func(rec event.Record) bool {
		if d.full() {
			d.done.Stopped = "limit"
			return false
		}
		if _, why := d.target(rec); why != "" {
			d.done.Skipped++
			d.done.Why = why
			return true
		}
		if len(d.done.First) < dryExamples {
			x := letterFrom(rec)
			x.Condensed = true
			d.done.First = append(d.done.First, x)
		}
		d.done.Done++
		return true
	})
}

func (d *redriving) full() bool { return d.r.Limit > 0 && d.done.Done >= int64(d.r.Limit) }

func (d *redriving) run(ctx context.Context) error {
	for d.done.Stopped == "" {
		batch := map[*subscription][]event.Record{}
		n, bytes := 0, 0
		err := d.w.each(ctx, func(rec event.Record) bool {
			if n == redriveBatch || bytes >= redriveBytes || d.r.Limit > 0 && d.done.Done+int64(n) >= int64(d.r.Limit) {
				return false
			}
			s, why := d.target(rec)
			if why != "" {
				d.done.Skipped++
				d.done.Why = why
				return true
			}
			batch[s] = append(batch[s], rec)
			n++
			bytes += len(rec)
			return true
		})
		for _, s := range []*subscription{d.whole, d.delivery} {
			if err == nil && len(batch[s]) > 0 && d.done.Stopped == "" {
				err = d.hand(ctx, s, batch[s])
			}
		}
		switch {
		case ctx.Err() != nil:
			d.done.Stopped = "time"
		case err != nil:
			return err
		case n == 0 && d.w.at == len(d.w.t.parts):
			return nil
		case n == 0 || d.full() && d.w.at < len(d.w.t.parts):
			d.done.Stopped = "limit"
		case d.e.draining.Load():
			d.done.Stopped = "draining"
		}
	}
	err := d.left(ctx)
	if d.done.Left == 0 && d.done.Stopped == "limit" {
		d.done.Stopped = ""
	}
	return err
}

// left counts anew, from the beginning: a batch may have been read and not taken.
func (d *redriving) left(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countLeft)
	defer cancel()
	w, err := d.e.walkLetters(ctx, d.w.sub, d.r.LetterQuery, true)
	if err != nil {
		return err
	}
	for i := range w.ends {
		w.ends[i] = min(w.ends[i], d.w.limits[i])
	}
	err = w.each(ctx, func(rec event.Record) bool {
		if s, _ := d.target(rec); s != nil {
			d.done.Left++
		}
		return true
	})
	if ctx.Err() != nil { // at least as many
		return nil
	}
	return err
}

// hand makes letters rows of s, as many as there is room for.
func (d *redriving) hand(ctx context.Context, s *subscription, letters []event.Record) error {
	t := d.w.t
	t.letters.work.Lock()
	defer t.letters.work.Unlock()
	if err := t.standing(); err != nil {
		return err
	}
	letters, err := d.e.stillOpen(ctx, t, letters)
	if err != nil || len(letters) == 0 {
		return err
	}
	taken, full, err := s.redrive(ctx, t, letters, d)
	if err != nil {
		return err
	}
	d.done.Done += int64(len(taken))
	if full != "" {
		d.done.Stopped = full
	}
	t.letters.finished(taken)
	for i := range t.parts {
		if err := d.e.raise(ctx, t, i); err != nil && ctx.Err() == nil {
			d.e.o.Log.Warn("finished dead letters still hold their topic", "topic", t.name, "error", err)
		}
	}
	return nil
}

// redrive writes the rows of letters and that they are finished in one commit. It stops where the parked space
// is half full: the other half is for what fails anew, or new events would not be read.
func (s *subscription) redrive(ctx context.Context, t *topic, letters []event.Record, d *redriving) (taken []event.Record, full string, err error) {
	s.commits.Lock()
	defer s.commits.Unlock()
	if s.gone {
		return nil, "", fmt.Errorf("subscription %s was just removed: %w", s.name, event.ErrNotFound)
	}
	var b storage.Batch
	s.mu.Lock()
	was, bound := s.parked.size, s.config.Load().Parked/2
	now := s.e.now().UnixNano()
	due := now
	if d.r.Rate > 0 { // behind what an earlier redrive has spread
		due = max(now, s.spread)
	}
	s.mu.Unlock()
	size, first := was, due
	keys := map[string]bool{}
	for _, letter := range letters {
		row, rec := s.revive(letter, due, d.with)
		if err := s.place(ctx, row, rec, keys); err != nil {
			return nil, "", err
		}
		keys[row.key(s.serial, rec)] = true
		ops, n := row.put(b.Ops, s.serial, rec)
		if size.count > 0 && size.bytes+n > bound {
			full = fmt.Sprintf("parked.bytes: %d bytes wait for their next try already, and a redrive takes no more than half of %d; go on when they are delivered, or raise parked.bytes", size.bytes, 2*bound)
			break
		}
		size.count++
		size.bytes += n
		b.Ops = append(ops, put(tableLettersDone, letterKey(t.parts[letter.Partition()], letter.Offset()), nil))
		taken = append(taken, letter)
		if d.r.Rate > 0 {
			due += int64(float64(time.Second) / d.r.Rate)
		}
	}
	if len(taken) == 0 {
		return nil, full, nil
	}
	b.Ops = append(b.Ops, size.op(s.serial))
	if err := s.e.store.Commit(ctx, &b); err != nil {
		return nil, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parked.size = size // only who holds commits changes it
	if d.r.Rate > 0 {
		s.spread = due
	}
	s.c.Redriven += uint64(len(taken))
	s.dueAt(first)
	return taken, full, nil
}

// revive makes of a dead letter what the subscription once had in hand.
func (s *subscription) revive(letter event.Record, due int64, with string) (*parkedEvent, event.Record) {
	var ev event.Event
	letter.Decode(&ev)
	info := letterFrom(letter)
	row := &parkedEvent{due: due, born: due, lives: uint32(max(info.Redrives, 0)) + 1, with: with, story: retold(info.Story)}
	received := letter.Received()
	if a, ok := letter.Extension("deadletterreceived"); ok {
		if at, err := event.ParseTime(a.Value); err == nil {
			received = at.UnixNano()
		}
	}
	pos := s.placeOf(letter, info.Origin)
	if a, ok := letter.Extension("deadletterreplay"); ok {
		row.replay = strings.Clone(a.Value)
	}
	before, _ := letter.Extension("deadletterbefore")
	ev.Extensions = slices.DeleteFunc(ev.Extensions, func(a event.Attribute) bool { return strings.HasPrefix(a.Name, letterPrefix) })
	for _, a := range earlier(before.Value) {
		ev.Set(event.Attr{Kind: a.Kind, Name: a.Name, Value: a.Value})
	}
	ev.Topic = s.topic.name
	ev.Hops = max(ev.Hops, 1) - 1
	rec := event.Record(ev.AppendRecord(nil))
	rec.SetPlace(pos, received)
	return row, rec
}

// letterPrefix begins the names of all attributes that a dead letter has beside its event's.
const letterPrefix = "deadletter"

// placeOf is where the subscription read the event. One that it read elsewhere, before its topic was made anew,
// gets a place that no event of the topic has: its delivery id must not be another event's.
func (s *subscription) placeOf(letter event.Record, origin string) event.Position {
	topic, text, _ := strings.Cut(origin, "/")
	pos, err := event.ParsePosition(text)
	made, _ := letter.Extension("deadletterincarnation")
	if err == nil && topic == s.topic.name && made.Value == strconv.FormatUint(uint64(s.topic.serial), 10) && int(pos.Partition) < len(s.topic.parts) {
		return pos
	}
	id := be.AppendUint64(be.AppendUint32(nil, letter.Partition()), letter.Offset())
	id = append(append(append(id, letter.Attr(event.TagTopic)...), 0), origin...)
	return event.Position{Partition: pos.Partition % event.Partition(len(s.topic.parts)), Offset: foreignBit | xxh3.Hash(id)>>1}
}

// foreignBit is set in offsets that stand for no event of the topic.
const foreignBit event.Offset = 1 << 63

// foreign reports whether a row's place is none in the topic.
func foreign(p event.Position) bool { return p.Offset&foreignBit != 0 }

// retold is the tries of a dead letter's story.
func retold(story json.RawMessage) (tries []try) {
	var list []toldTry
	if json.Unmarshal(story, &list) != nil {
		return nil
	}
	for _, x := range list {
		at, err := event.ParseTime(x.At)
		if err != nil || x.Code < 0 {
			continue
		}
		tries = told(tries, try{at.UnixNano(), x.Code, x.Detail})
	}
	return tries
}

// A dead letter of an event that was a dead letter itself keeps what the first one said in deadletterbefore.

type earlierAttribute struct {
	Kind  event.Kind `json:"k,omitempty"`
	Name  string     `json:"n"`
	Value string     `json:"v"`
}

// keepEarlier moves the attributes that a dead letter had already into one.
func keepEarlier(ev *event.Event) {
	var had []earlierAttribute
	ev.Extensions = slices.DeleteFunc(ev.Extensions, func(a event.Attribute) bool {
		ours := strings.HasPrefix(a.Name, letterPrefix)
		if ours {
			had = append(had, earlierAttribute{a.Kind, a.Name, a.Value})
		}
		return ours
	})
	if len(had) == 0 {
		return
	}
	text, err := json.Marshal(had)
	if err == nil {
		ev.Set(event.Attr{Name: "deadletterbefore", Value: string(text)})
	}
}

func earlier(text string) (attrs []event.Attribute) {
	var had []earlierAttribute
	if text == "" || json.Unmarshal([]byte(text), &had) != nil {
		return nil
	}
	for _, a := range had {
		if strings.HasPrefix(a.Name, letterPrefix) && a.Kind <= event.Timestamp && a.Value != "" {
			attrs = append(attrs, event.Attribute{Name: strings.Clone(a.Name), Kind: a.Kind, Value: a.Value})
		}
	}
	return attrs
}
