package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/zeebo/xxh3"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A settlement is the end of one step: what it puts into topics, and either nothing more or a row for the
// next try. It is written in one commit with the cursor.
type settlement struct {
	it       item
	park     *parkedEvent
	outputs  []output
	reply    *event.Reply // to the item's producer, who asked for one
	dead     string       // the typed reason, if one of the outputs is its dead letter
	made     *subConfig   // whose functions were at work; nil: none
	filtered bool         // the functions put nothing out
	failed   *failure     // of a try that failed
	void     *bool        // set if it was skipped, unless nil: nothing of it was written
	state    *stateView   // what the batch that it is of wrote; the same in all of them
}

// output is an event that a step appends to a topic.
type output struct {
	topic *topic
	event *event.Event
}

// settle writes settlements and the rows that say so in one commit; on error nothing is settled. Those
// that a seek has made void are skipped.
func (s *subscription) settle(ctx context.Context, sts []settlement) error {
	s.commits.Lock()
	defer s.commits.Unlock()
	if err := s.e.standing(sts); err != nil {
		return err
	}

	var b storage.Batch
	var places []place
	touched := make([]bool, len(s.cursors))
	was := s.parked.size
	kept := sts[:0:0]
	var state *stateView
	s.mu.Lock()
	for _, st := range sts {
		if !s.retire(&b, st.it, touched) {
			s.skipped(st)
			if st.void != nil {
				*st.void = true
			}
			continue
		}
		kept = append(kept, st)
		if !s.claimReply(&b, st) {
			kept[len(kept)-1].reply = nil
		}
		state = st.state
		for _, o := range st.outputs {
			places = append(places, s.e.appendTo(&b, o.topic, storage.Entry{Event: o.event}))
		}
		if st.park != nil {
			var size int64
			st.park.lane = st.it.lane
			for s.inHand(st.park.key(s.serial, st.it.rec)) { // a redrive has made the event's delivery twice, and both failed as one
				st.park.due++
			}
			b.Ops, size = st.park.put(b.Ops, s.serial, st.it.rec)
			s.takeRow(st.park.key(s.serial, st.it.rec)) // the row can be read before the commit is taken note of
			s.parked.count++
			s.parked.bytes += size
		}
	}
	for i, c := range s.cursors {
		if touched[i] {
			b.Ops = append(b.Ops, put(tableCursors, key32x2(s.serial, uint32(i)), c.appendRow(nil, c.reach(s.topic.parts[i]))))
		}
	}
	if s.parked.size != was {
		b.Ops = append(b.Ops, s.parked.op(s.serial))
	}
	if state != nil {
		b.Ops = state.appendOps(b.Ops)
	}
	b.Ops = s.appendLoss(b.Ops)
	size, lost := s.parked.size, s.row.Loss.Events
	s.mu.Unlock()
	if len(kept) == 0 {
		return nil
	}

	err := s.e.store.Commit(ctx, &b)
	for _, st := range kept {
		if st.reply != nil {
			s.tellReply(st, err)
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range kept {
		if st.it.parked == nil && st.it.gen == s.gen {
			out := &s.cursors[st.it.rec.Partition()].out
			if err != nil {
				out.leave(st.it.rec.Offset(), false)
			} else {
				out.settle(st.it.rec.Offset())
			}
		}
	}
	for _, st := range kept {
		if st.park != nil {
			s.parked.release(st.park.key(s.serial, st.it.rec))
		}
	}
	if err != nil {
		s.parked.count += was.count - size.count
		s.parked.bytes += was.bytes - size.bytes
		return err
	}
	s.losing.stored = max(s.losing.stored, lost)
	if state != nil {
		state.committed()
	}
	for i, c := range s.cursors {
		if touched[i] {
			c.hasRow = true
			s.touch(c) // the next flush folds it into the checkpoint
		}
	}
	at := s.e.now().UnixNano()
	for i := range kept {
		st, first := &kept[i], outPlace{}
		if n := len(st.outputs); n > 0 {
			first = places[0].of(&b)
			places = places[n:]
		}
		s.noteSettled(st, at, first)
		if st.it.parked != nil {
			s.parked.forget(st.it.parked.key(s.serial, st.it.rec))
			s.replayed(st.it.parked, st.park)
		}
		if st.park != nil && !st.park.behind {
			s.c.Parked++
			s.dueAt(st.park.due)
		}
		s.left(st.it, st.park)
		for _, o := range st.outputs {
			s.e.o.Observer.Appended(s.name, o.topic.name, o.event)
		}
		if st.dead != "" {
			s.c.DeadLettered++
			s.e.uncounted.add(st.outputs[0].topic)
			s.e.o.Observer.DeadLettered(s.name, st.dead)
		}
	}
	s.room.Broadcast()
	if size.bytes < was.bytes {
		s.wakeReplay()
	}
	return nil
}

// retire takes an item out of what the batch's rows call pending; false if it is settled, or void by a
// seek. In memory it stays pending until the commit is through: the checkpoint must not pass it before.
func (s *subscription) retire(b *storage.Batch, it item, touched []bool) bool {
	if it.gen != s.gen {
		return false
	}
	if it.parked != nil {
		s.parked.count--
		s.parked.bytes -= it.parked.size
		b.Ops = it.parked.drop(b.Ops, s.serial, it.rec.Position())
		return true
	}
	p := it.rec.Partition()
	touched[p] = true
	return s.cursors[p].out.leave(it.rec.Offset(), true)
}

// skipped lets go of an item that was settled meanwhile.
func (s *subscription) skipped(st settlement) {
	if st.park != nil && st.park.behind {
		s.left(st.it, st.park)
	} else {
		s.left(st.it, nil)
	}
}

// settleUntil settles, waiting as long as the store or a full topic refuses: the subscription stands still
// and says why. It gives up when the subscription ends; then the next start delivers again.
func (s *subscription) settleUntil(ctx context.Context, sts []settlement) bool {
	wait := 50 * time.Millisecond
	for {
		err := s.settle(ctx, sts)
		s.mu.Lock()
		was, ended := s.waiting, s.ended
		s.waiting = ""
		if err != nil {
			s.waiting = "cannot settle: " + err.Error()
		}
		s.mu.Unlock()
		if err == nil {
			return true
		}
		if was == "" {
			s.e.o.Log.Warn("a subscription waits", "subscription", s.name, "error", err)
		}
		if errors.Is(err, event.ErrNotFound) {
			if sts[0].state != nil { // the others' state has seen that of those that fail now
				s.rerun(sts)
				return false
			}
			sts = s.reroute(sts)
		}
		if ended || ctx.Err() != nil {
			return false
		}
		pause(ctx, wait)
		wait = min(2*wait, 2*time.Second)
	}
}

// rerun gives back a batch that has to be run anew.
func (s *subscription) rerun(sts []settlement) {
	items := make([]item, len(sts))
	for i, st := range sts {
		items[i] = st.it
	}
	s.putBack(items, "")
}

// standing fails if one of the outputs' topics was deleted.
func (e *Engine) standing(sts []settlement) error {
	for _, st := range sts {
		for _, o := range st.outputs {
			select {
			case <-o.topic.ended:
				return fmt.Errorf("topic %s was deleted: %w", o.topic.name, event.ErrNotFound)
			default:
			}
		}
	}
	return nil
}

// reroute decides anew about settlements with outputs for topics that were deleted meanwhile.
func (s *subscription) reroute(sts []settlement) []settlement {
	next := make([]settlement, len(sts))
	for i, st := range sts {
		next[i] = st
		if err := s.e.standing(sts[i : i+1]); err != nil {
			next[i] = s.fail(s.config.Load(), st.it, outputFailure(err, nil))
		}
	}
	return next
}

// done settles a delivery that succeeded and puts nothing anywhere: in memory, written with the next flush.
func (s *subscription) done(it item, by *subConfig, what traceVerdict) {
	s.noteDone(it, by, what)
	s.finish(it)
}

// finish is done for what nobody looked at.
func (s *subscription) finish(it item) {
	if it.gen != s.gen {
		return
	}
	if it.parked != nil {
		s.parked.cleared = append(s.parked.cleared, cleared{it.rec.Position(), it.parked})
		s.soil()
		s.replayed(it.parked, nil)
	} else if c := s.cursors[it.rec.Partition()]; c.out.settle(it.rec.Offset()) {
		s.touch(c)
	}
	s.left(it, nil)
}

// of is where the entry was stored, once the batch is committed.
func (p place) of(b *storage.Batch) outPlace {
	a := &b.Appends[p.append]
	return outPlace{a.Log.Topic, a.Entries[p.entry].Position}
}

// appendTo adds an entry to a batch under the partition that its key says.
func (e *Engine) appendTo(b *storage.Batch, t *topic, entry storage.Entry) place {
	id := t.parts[e.place(t, entry.Event, true)].id
	for i := range b.Appends {
		if b.Appends[i].Log == id {
			b.Appends[i].Entries = append(b.Appends[i].Entries, entry)
			return place{i, len(b.Appends[i].Entries) - 1}
		}
	}
	b.Appends = append(b.Appends, storage.Append{Log: id, Entries: []storage.Entry{entry}})
	return place{len(b.Appends) - 1, 0}
}

// place chooses the partition: by ordering key, else by (source, id) where the id is stable, else in turn.
func (e *Engine) place(t *topic, ev *event.Event, stable bool) int {
	n := uint64(len(t.parts))
	switch {
	case n == 1:
		return 0
	case ev.PartitionKey != "":
		return int(xxh3.HashString(ev.PartitionKey) % n)
	case stable:
		var h xxh3.Hasher
		hashID(&h, ev)
		return int(h.Sum64() % n)
	}
	return int(uint64(e.turn.Load()) % n)
}

func hashID(h *xxh3.Hasher, ev *event.Event) {
	_, _ = h.WriteString(ev.Source)
	_, _ = h.WriteString("\x00")
	_, _ = h.WriteString(ev.ID)
}

// verdict is how a step that failed goes on.
type failure struct {
	reason   string // typed: trap, memory, output, reject, hops, attempts, permanent, leases, age
	err      error
	wait     time.Duration // 0: by schedule
	digest   string        // of the function at fault
	function string        // its name
	done     []uint32      // outputs that were sent all the same
	hash     uint64        // of the outputs

	made  *subConfig // whose functions were at work; nil: that under which it is decided
	final bool       // no further try

	untried bool // it is not about a try: the item was given up while it waited
}

// fail decides what becomes of an item whose step failed: another try, or its dead letter.
func (s *subscription) fail(c *subConfig, it item, f failure) settlement {
	return s.failAfter(c, c.Retry.Attempts, it, f)
}

func (s *subscription) failAfter(c *subConfig, limit int, it item, f failure) settlement {
	if f.made == nil {
		f.made = c
	}
	t := s.e.plan.Load().topics[s.config.Load().DeadLetter] // of the definition in force: that of c may be gone
	if t == nil {
		limit = event.Unlimited // there is nowhere to put it
	}
	if f.final && t != nil || limit != event.Unlimited && int(it.attempt) >= limit {
		if f.reason == "" {
			f.reason = "attempts"
		}
		return s.bury(t, it, f)
	}
	wait := f.wait
	if wait == 0 {
		wait = backoff(c.Retry, int(it.attempt))
	}
	due := s.e.now().Add(min(wait, maxWait))
	if t != nil && c.tooOld(it, due) {
		f.reason = "age"
		return s.bury(t, it, f)
	}
	digests := f.made.digests
	if f.hash == 0 && it.parked != nil { // this try did not come to its sends; those of an earlier one stay done
		f.done, f.hash = it.parked.done, it.parked.hash
		if f.hash != 0 {
			digests = it.parked.digests
		}
	}
	park := s.park(it, f.err)
	park.due, park.attempt, park.done, park.hash, park.digests = due.UnixNano(), it.attempt, f.done, f.hash, digests
	return settlement{it: it, park: park, failed: &f}
}

// park is the row of an item that failed, with one more try in its story.
func (s *subscription) park(it item, err error) *parkedEvent {
	row := &parkedEvent{code: event.Code(err), reason: clip(errText(err), 512)}
	if it.parked != nil {
		row.story, row.lives, row.born, row.with, row.replay = it.parked.story, it.parked.lives, it.parked.born, it.parked.with, it.parked.replay
	}
	row.story = told(row.story, try{s.e.now().UnixNano(), row.code, row.reason})
	return row
}

// tooOld reports whether an item is past its maximum age at a time.
func (c *subConfig) tooOld(it item, at time.Time) bool {
	if c.Retry.MaxAge <= 0 {
		return false
	}
	since := it.rec.Received()
	if it.parked != nil && it.parked.born != 0 {
		since = it.parked.born
	}
	return at.UnixNano()-since > int64(c.Retry.MaxAge)
}

// expired dead-letters an item that became too old while it waited.
func (s *subscription) expired(c *subConfig, t *topic, it item) settlement {
	it.attempt--
	f := failure{reason: "age", untried: true, made: c, err: fmt.Errorf("maxAge: %s is over before the next try; the last one failed: %s", c.Retry.MaxAge, it.parked.reason)}
	return s.bury(t, it, f)
}

// maxWait bounds what a target may ask for with Retry-After.
const maxWait = 24 * time.Hour

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func clip(s string, n int) string {
	if len(s) > n {
		for n -= 3; n > 0 && !utf8.RuneStart(s[n]); n-- { // never half a character
		}
		return s[:n] + "..."
	}
	return s
}

// bury makes an item's dead letter: the event as it was, with what became of it as extensions.
func (s *subscription) bury(t *topic, it item, f failure) settlement {
	var ev event.Event
	it.rec.Decode(&ev)
	ev.Topic = t.name
	ev.Hops++
	keepEarlier(&ev)
	redrives, replay := "", ""
	if it.parked != nil {
		replay = it.parked.replay
	}
	if it.parked != nil && it.parked.lives > 0 {
		redrives = strconv.FormatUint(uint64(it.parked.lives), 10)
	}
	for _, a := range []event.Attribute{
		{Name: "deadlettersub", Value: s.name},
		{Name: "deadletterreason", Value: f.reason},
		{Name: "deadlettercode", Kind: event.Integer, Value: strconv.Itoa(event.Code(f.err))},
		{Name: "deadletterattempts", Kind: event.Integer, Value: strconv.Itoa(int(it.attempt))},
		{Name: "deadletterdetail", Value: clip(printable(errText(f.err)), 1024)},
		{Name: "deadletterposition", Value: s.topic.name + "/" + it.rec.Position().String()},
		{Name: "deadletterincarnation", Kind: event.Integer, Value: strconv.FormatUint(uint64(s.topic.serial), 10)},
		{Name: "deadletterreceived", Kind: event.Timestamp, Value: it.rec.ReceivedAt().Format(time.RFC3339Nano)},
		{Name: "deadletterredrives", Kind: event.Integer, Value: redrives},
		{Name: "deadletterfunction", Value: f.digest},
		{Name: "deadletterversions", Value: f.made.versions},
		{Name: "deadletterhalf", Value: s.config.Load().half.String()},
		{Name: "deadletterstory", Value: s.story(it, f)},
		{Name: "deadletterrevision", Value: s.e.plan.Load().revision},
		{Name: "deadletterreplay", Value: replay},
	} {
		ev.Set(event.Attr{Kind: a.Kind, Name: a.Name, Value: a.Value, Unset: a.Value == ""})
	}
	return settlement{it: it, outputs: []output{{t, &ev}}, dead: f.reason, failed: &f}
}

// printable keeps what CloudEvents attributes must not hold out of them: control characters, noncharacters
// and what is not UTF-8 (CloudEvents 1.0, "Type System").
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7F && r <= 0x9F || r >= 0xFDD0 && r <= 0xFDEF || r&0xFFFE == 0xFFFE {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}
