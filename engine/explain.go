package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
)

// Explain says what a subscription makes of an event, and why: the filter, the functions, the request, where
// the event is now and how each try ended. Functions run once more, in a Trial; nothing is delivered.
//
// Errors: event.ErrNotFound (subscription, topic, position), ErrGone (the ring has dropped the event),
// ErrUnavailable (too many ask at once).
func (e *Engine) Explain(ctx context.Context, name, topic string, pos event.Position) (*event.Explained, error) {
	s, err := e.subscription(name)
	if err != nil {
		return nil, err
	}
	rec, err := e.Event(ctx, topic, pos)
	if err != nil {
		return nil, err
	}
	d := e.plan.Load().subs[deliveryKey(name)]
	if d != nil && topic == d.topic.name {
		s, d = d, nil
	}
	return e.explain(ctx, s, d, topic, rec, true)
}

// ExplainUnstored is Explain of an event that is not in the topic, and is not put there: what would become of it.
//
// Errors: those of Publish and event.ErrNotFound (subscription), ErrUnavailable (too many ask at once).
func (e *Engine) ExplainUnstored(ctx context.Context, name, topic string, ev event.Event) (*event.Explained, error) {
	s, err := e.subscription(name)
	if err != nil {
		return nil, err
	}
	t, err := e.topic(topic)
	if err != nil {
		return nil, err
	}
	var p publication
	if err := e.admit(t, &p, &ev); err != nil {
		return nil, err
	}
	rec := event.Record(ev.AppendRecord(nil))
	rec.SetPlace(event.Position{}, e.now().UnixNano())
	x, err := e.explain(ctx, s, e.plan.Load().subs[deliveryKey(name)], topic, rec, false)
	if err == nil {
		x.Position = ""
	}
	return x, err
}

// explain is about an event that is stored in topic, or that is not. d is the half that delivers, of a subscription that
// has one besides s.
func (e *Engine) explain(ctx context.Context, s, d *subscription, topic string, rec event.Record, stored bool) (*event.Explained, error) {
	name, pos := s.name, rec.Position()
	c := s.under()
	if c == nil {
		return nil, fmt.Errorf("subscription %s was just removed: %w", name, event.ErrNotFound)
	}
	defer s.leave(c)

	x := explaining(c, rec)
	x.Topic, x.Position = topic, pos.String()
	s.mu.Lock()
	x.Notes = s.keeping(c)
	s.mu.Unlock()
	if topic != s.topic.name {
		x.State = event.StateOther
		x.Detail = fmt.Sprintf("the subscription reads topic %q; this event is in %q. What follows is what would happen to it there", s.topic.name, topic)
	} else if !stored {
		x.State, x.Detail = event.StateDry, "nothing was stored or sent: this is a dry run"
	} else if err := e.whereabouts(ctx, s, x, rec); err != nil {
		return nil, err
	}
	if !x.Matched && len(x.Tries) == 0 {
		return x, nil
	}
	if err := e.invoking.enter(ctx); err != nil {
		return nil, err
	}
	defer e.invoking.leave()
	out := e.retrace(ctx, c, x, rec)
	if d != nil {
		return x, e.followHalf(ctx, d, x, out)
	}
	for n, r := range out {
		id := s.appendDeliveryID(nil, job{it: item{rec: rec}, n: n})
		show(x, c, event.Delivery{ID: string(id), Subscription: s.name, Topic: s.topic.name, Event: r, Attempt: max(x.Attempts, 1)})
	}
	return x, nil
}

// explaining begins an explanation with what the filter says.
func explaining(c *subConfig, rec event.Record) *event.Explained {
	x := &event.Explained{Subscription: c.Name, Event: rec.AppendStructured(nil), Filter: c.Program.Shown()}
	said := c.Program.Explain(rec)
	x.Matched, x.Why = said.Matched, said.String()
	decided := false
	for _, p := range said.Parts {
		part := event.Condition{Expression: p.Source, Depth: p.Depth, Value: p.Value}
		if !decided && p.Source == said.Decided {
			part.Decided, decided = true, true
		}
		for _, v := range p.Values {
			missing := v.Value == filters.Missing
			part.Reads = append(part.Reads, event.Field{Name: v.Name, Value: v.Value, Missing: missing})
			if missing && !slices.Contains(x.Missing, v.Name) {
				x.Missing = append(x.Missing, v.Name)
			}
		}
		x.Conditions = append(x.Conditions, part)
	}
	return x
}

// keeping is what keeps the subscription as a whole from going on. The caller holds s.mu.
func (s *subscription) keeping(c *subConfig) (notes []string) {
	if s.row.Disabled != "" {
		notes = append(notes, "the subscription is disabled: "+s.row.Disabled+"; `router subscriptions resume` enables it")
	}
	if s.row.Paused != nil {
		why := ""
		if s.row.Why != "" {
			why = ": " + s.row.Why
		}
		notes = append(notes, "the subscription is paused since "+s.row.Paused.Format(time.RFC3339)+why+"; `router subscriptions resume` lets it go on")
	}
	if info := s.circuitInfo(c); info.State != circuitClosed.String() {
		notes = append(notes, "the target's circuit is "+info.State+": "+info.words())
	}
	if s.waiting != "" {
		notes = append(notes, "the subscription waits: "+s.waiting)
	}
	return notes
}

// whereabouts fills in where an event of the subscription's topic is, and the tries.
func (e *Engine) whereabouts(ctx context.Context, s *subscription, x *event.Explained, rec event.Record) error {
	pos := rec.Position()
	tries, err := e.triesOf(ctx, s.topic, pos, s.serial)
	if err != nil {
		return err
	}
	x.Tries = tries.of(s.serial)
	if len(x.Tries) > 0 {
		x.TriesFrom = "trace"
	}
	x.State, x.Detail = s.standing(s.topic.parts[pos.Partition], pos, x.Tries, x.Matched)
	for _, t := range x.Tries {
		x.Attempts = max(x.Attempts, t.Attempt)
	}
	row, held, err := s.findParked(ctx, pos, rec, x.Tries)
	switch {
	case err != nil:
		return err
	case row != nil:
		tellParked(x, row, held)
	case x.State == event.StateDead:
		if last := x.Tries[len(x.Tries)-1]; len(last.Outputs) > 0 {
			x.DeadLetter = last.Outputs[0]
		}
	case x.State == event.StateSettled && x.Matched:
		if err := e.findLetter(ctx, s, x, rec); err != nil {
			return err
		}
	}
	if x.State == event.StateDead {
		x.Detail = "it was given up, and lies as a dead letter at " + x.DeadLetter + e.letterFate(ctx, x.DeadLetter)
	}
	if x.Detail == "" {
		x.Detail = map[string]string{
			event.StateDelivered: "the last try succeeded", event.StateFiltered: "the functions put nothing out",
		}[x.State]
	}
	return nil
}

// findParked finds the row of an event that waits in the store.
func (s *subscription) findParked(ctx context.Context, pos event.Position, rec event.Record, tries []event.Tried) (row *parkedEvent, held bool, err error) {
	from, to := key32(s.serial), key32(s.serial+1)
	if n := len(tries); n > 0 && tries[n-1].Due != nil { // known to a millisecond, or what the commit took
		due := tries[n-1].Due.UnixNano()
		from, to = parkedKey(s.serial, due-int64(time.Minute), event.Position{}), parkedKey(s.serial, due+int64(time.Second), event.Position{})
	}
	look := func(table storage.Table, from, to []byte, posOf func(k []byte) event.Position, head []byte) error {
		left := parkedLook
		return s.e.store.Scan(ctx, table, from, to, func(k, v []byte) error {
			if left--; left < 0 || ctx.Err() != nil {
				return storage.ErrStop
			}
			if posOf(k) != pos {
				return nil
			}
			if len(head) > 0 {
				if len(v) == 0 || v[0] != head[0] {
					return nil
				}
				k, v = parkedKey(s.serial, 0, pos), v[1:]
			}
			p, _, err := parseParked(k, v)
			if err != nil {
				return nil // the schedule says so
			}
			row = p
			return storage.ErrStop
		})
	}
	err = look(tableParked, from, to, func(k []byte) event.Position { _, p := splitParkedKey(k); return p }, nil)
	if lane := laneOf(s.config.Load(), rec); err == nil && row == nil && lane != 0 {
		from, to := laneRange(s.serial, lane)
		err = look(tableLanes, from, to, func(k []byte) event.Position { _, p, _ := splitLaneKey(k); return p }, []byte{laneRow})
		held = row != nil
	}
	return row, held, err
}

// parkedLook bounds how many parked rows are looked at for one event.
const parkedLook = 200_000

// tellParked fills in what a parked row tells.
func tellParked(x *event.Explained, p *parkedEvent, held bool) {
	x.Attempts = int(p.attempt)
	if !held {
		due := time.Unix(0, p.due).UTC()
		x.Due = &due
	}
	switch {
	case held:
		x.State, x.Detail = event.StateHeld, "it waits for the events before it with the same key"
	case p.attempt == 0 && p.replay != "":
		x.State, x.Detail = event.StateParked, "the replay "+p.replay+" delivers it once more, from "+x.Due.Format(time.RFC3339)+" on"
	case p.attempt == 0 && p.lives > 0:
		x.State, x.Detail = event.StateParked, "it was redriven and is delivered once more, from "+x.Due.Format(time.RFC3339)+" on"
	case len(p.story) == 0 && p.attempt == 0:
		x.State, x.Detail = event.StateHeld, "it asked to be delivered at "+x.Due.Format(time.RFC3339)
	default:
		x.State, x.Detail = event.StateParked, fmt.Sprintf("it waits until %s for try %d", x.Due.Format(time.RFC3339), p.attempt+1)
	}
	if len(x.Tries) == 0 && len(p.story) > 0 {
		x.Tries, x.TriesFrom = tellStory(p.story), "parked"
	}
}

// tellStory are the tries of a story.
func tellStory(story []try) []event.Tried {
	tries := make([]event.Tried, len(story))
	for i, t := range story {
		tries[i] = event.Tried{At: time.Unix(0, t.at).UTC(), Verdict: traceRetry.String(), Code: t.code, Error: printable(t.reason)}
	}
	return tries
}

// letterLook bounds how many dead letters are looked at for one event.
const letterLook = 20_000

// findLetter looks for the dead letter of an event that no trace tells of.
func (e *Engine) findLetter(ctx context.Context, s *subscription, x *event.Explained, rec event.Record) error {
	r, err := e.OpenTopic(ctx, s.config.Load().DeadLetter, event.Start{At: event.AtTime, Time: rec.ReceivedAt()}, "")
	if errors.Is(err, event.ErrNotFound) || errors.Is(err, event.ErrInvalid) {
		return nil // it has no such topic
	}
	if err != nil {
		return err
	}
	defer r.Close()
	origin, made := s.topic.name+"/"+rec.Position().String(), strconv.FormatUint(uint64(s.topic.serial), 10)
	for range letterLook {
		letter, ok, _, err := r.TryNext(ctx)
		if err != nil || !ok {
			if errors.Is(err, event.ErrGone) {
				err = nil
			}
			return err
		}
		if from, _ := letter.Extension("deadletterposition"); from.Value != origin || letterOf(letter) != s.name {
			continue
		}
		if of, _ := letter.Extension("deadletterincarnation"); of.Value != made {
			continue
		}
		d := letterFrom(letter)
		x.State, x.Attempts, x.DeadLetter = event.StateDead, d.Attempts, r.t.name+"/"+d.Position.String()
		x.Tries, x.TriesFrom = tellStory(retold(d.Story)), "deadletter"
		if n := len(x.Tries); n > 0 {
			x.Tries[n-1].Verdict, x.Tries[n-1].Reason = traceDead.String(), strings.Clone(d.Reason)
		}
	}
	return nil
}

// letterFate is what became of a dead letter, in words that follow its place.
func (e *Engine) letterFate(ctx context.Context, at string) string {
	name, place, _ := strings.Cut(at, "/")
	t, err := e.topic(name)
	pos, bad := event.ParsePosition(place)
	if err != nil || bad != nil || int(pos.Partition) >= len(t.parts) {
		return ""
	}
	p := t.parts[pos.Partition]
	done, floor, err := e.finishedIn(ctx, p, pos.Offset, pos.Offset+1)
	switch {
	case err != nil:
		return ""
	case pos.Offset < p.log.Bounds().Head:
		return ", which the ring has dropped since"
	case done[pos.Offset] || pos.Offset < floor:
		return ", which was redriven or purged since"
	}
	return ""
}

// retrace runs the functions of a subscription once more and fills in what they make of the event. It returns
// what they would deliver: the event itself where there are none, nil where that is not known.
func (e *Engine) retrace(ctx context.Context, c *subConfig, x *event.Explained, rec event.Record) []event.Record {
	if len(c.functions) == 0 {
		return []event.Record{rec}
	}
	o := TrialOptions{Host: e.o.Host, Secret: e.secret, Subscription: *c.shown(), AnyTopic: e.o.AutoCreate, Limits: e.o.Limits, Now: e.now}
	for _, t := range e.plan.Load().topics {
		o.Topics = append(o.Topics, t.def.Load().Topic)
	}
	for _, f := range c.functions {
		o.Functions = append(o.Functions, f.def)
	}
	version := e.pastVersions(o.Functions, x.Tries)
	return explainChain(ctx, o, version, x, rec)
}

// pastVersions puts the versions that ran last into fs, as far as their modules are kept, and says which those
// are.
func (e *Engine) pastVersions(fs []event.Function, tries []event.Tried) string {
	const inForce = "the versions in force now"
	var ran []string
	for _, t := range tries {
		if len(t.Versions) > 0 {
			ran = t.Versions
		}
	}
	if len(ran) == 0 || len(ran) != len(fs) {
		return inForce
	}
	past := slices.Clone(fs)
	changed := ""
	for i, short := range ran {
		if strings.HasPrefix(past[i].Digest, short) {
			continue
		}
		digest, err := e.o.Host.Resolve(short)
		if err != nil {
			return inForce + "; version " + short + " of " + fs[i].Name + ", which ran, is not kept any more"
		}
		past[i].Digest, changed = digest, changed+" "+fs[i].Name+"@"+short
	}
	copy(fs, past)
	if changed == "" {
		return "the versions that ran, which are in force"
	}
	return "the versions that ran, not those in force now:" + changed
}

// followHalf goes on where the functions of a subscription that keep state have put an event: what lies between
// them and the delivery, and what became of it there.
func (e *Engine) followHalf(ctx context.Context, d *subscription, x *event.Explained, would []event.Record) error {
	c := d.under()
	if c == nil {
		return nil
	}
	defer d.leave(c)
	var places []string
	for _, t := range x.Tries {
		for _, at := range t.Outputs {
			if strings.HasPrefix(at, d.topic.name+"/") {
				places = append(places, at)
			}
		}
	}
	for _, at := range places {
		pos, err := event.ParsePosition(at[len(d.topic.name)+1:])
		if err != nil {
			continue
		}
		placed := event.Placed{Topic: d.topic.name, Position: pos.String()}
		rec, err := e.Event(ctx, d.topic.name, pos)
		if err != nil {
			placed.Detail = "it has left the topic"
			x.Outputs = append(x.Outputs, placed)
			continue
		}
		part := &event.Explained{Matched: true}
		if err := e.whereabouts(ctx, d, part, rec); err != nil {
			return err
		}
		placed.Event, placed.State, placed.Detail, placed.Tries = rec.AppendStructured(nil), part.State, part.Detail, part.Tries
		x.Outputs = append(x.Outputs, placed)
		id := d.appendDeliveryID(nil, job{it: item{rec: rec}})
		show(x, c, event.Delivery{ID: string(id), Subscription: d.name, Topic: d.topic.name, Event: rec, Attempt: max(part.Attempts, 1)})
	}
	if len(places) == 0 {
		for _, r := range would {
			x.Outputs = append(x.Outputs, event.Placed{Topic: d.topic.name, Event: r.AppendStructured(nil), Detail: "it is delivered from there"})
		}
	}
	return nil
}
