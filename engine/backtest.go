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
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// A backtest runs events that are kept through two versions of the rules and tells the difference: which
// subscription would have taken which event, and what its functions would have made of it. Nothing is delivered,
// stored or kept as state. Its memory does not grow with the range: blocks are read in rounds and let go of.

// BacktestOptions say what is run over what. Zero means default; Past or Feed is required.
type BacktestOptions struct {
	Before, After BacktestRules // an empty Before is no rules at all

	Past []PastTopic // what is read
	// Feed, instead of Past, calls yield with events of a topic, which stay valid; yield false means enough.
	Feed func(yield func(topic string, recs []event.Record) bool) error

	Topics        []string  // only these; nil: all
	Subscriptions []string  // only these; nil: all
	Since, Until  time.Time // by received time; zero: no bound
	Last          int64     // only so many events of each topic, evenly of its partitions; 0: no bound

	Functions BacktestFunctions
	Host      *plugins.Host // holds the modules of both sides' functions; nil: no function is run
	Secret    [32]byte      // of the store: what functions see as random comes from it

	Budget   BacktestBudget
	Examples int // kept for each subscription and kind; 5

	Hide  []string // values that filters have by reference: the report does not show them
	Notes []string // that the report begins with

	Progress func(BacktestProgress)                          // called by the goroutine that works, every now and then
	Every    time.Duration                                   // how often; 250 ms
	Rest     func(ctx context.Context, worked time.Duration) // called every few milliseconds of work, for others' sake
}

// BacktestRules are one version of the rules. Sinks are not opened; Start, Retry and the rest of delivery play no part.
type BacktestRules struct {
	Subscriptions []SubscriptionSpec
	Functions     []event.Function
	Topics        []event.Topic // whose schemas what functions put into them must obey
}

// BacktestFunctions says which chains of functions are run.
type BacktestFunctions uint8

// BacktestDiffering chains alone is the default: what is the same on both sides would say the same.
const (
	BacktestDiffering BacktestFunctions = iota
	BacktestAllFunctions
	BacktestNoFunctions
)

// BacktestBudget ends a backtest early; the report then tells how far it came. Zero: no bound.
type BacktestBudget struct {
	Time   time.Duration
	Events uint64
	Fuel   uint64 // of all functions, in the units that metering counts
}

// BacktestProgress is how far a backtest has come.
type BacktestProgress struct {
	Events  uint64        `json:"events"`
	InRange uint64        `json:"inRange"` // how many there are to look at; 0: not known
	Changed uint64        `json:"changed"`
	Failed  uint64        `json:"failed"`
	Elapsed time.Duration `json:"-"`
}

func (o BacktestOptions) withDefaults() BacktestOptions {
	if o.Examples == 0 {
		o.Examples = 5
	}
	if o.Every == 0 {
		o.Every = 250 * time.Millisecond
	}
	if o.Progress == nil {
		o.Progress = func(BacktestProgress) {}
	}
	if o.Rest == nil {
		o.Rest = func(context.Context, time.Duration) {}
	}
	return o
}

func (o BacktestOptions) validate() error {
	var errs []error
	if (o.Feed == nil) == (o.Past == nil) {
		errs = append(errs, errors.New("want one of Past and Feed"))
	}
	if o.Examples < 0 || o.Last < 0 || o.Budget.Time < 0 {
		errs = append(errs, errors.New("options Examples, Last and Budget.Time: below 0"))
	}
	if !o.Until.IsZero() && o.Until.Before(o.Since) {
		errs = append(errs, event.Invalid("until", fmt.Sprintf("%s is before since, %s", o.Until.Format(time.RFC3339), o.Since.Format(time.RFC3339))))
	}
	return errors.Join(errs...)
}

// Backtest runs one. Where ctx ends the report so far comes back with ctx's error; otherwise an error comes without one.
func Backtest(ctx context.Context, o BacktestOptions) (*BacktestReport, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("backtest: %w", err)
	}
	b := &backtest{o: o, began: time.Now(), rested: time.Now(), topics: map[string]*pastRules{}, notes: slices.Clone(o.Notes)}
	if err := b.plan(ctx); err != nil {
		return nil, fmt.Errorf("backtest: %w", err)
	}
	var err error
	if o.Feed != nil {
		err = b.fed(ctx)
	} else {
		err = b.read(ctx)
	}
	if err == nil || errors.Is(err, errBudget) || ctx.Err() != nil {
		err = errors.Join(onlyReal(err), b.flush(ctx))
	}
	err = errors.Join(err, b.close(context.WithoutCancel(ctx)))
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("backtest: %w", err)
	}
	if ctx.Err() != nil {
		b.stopped = "cancelled"
	}
	return b.report(), ctx.Err()
}

// errBudget ends the work where the budget does; backtest.stopped says which.
var errBudget = errors.New("the budget is used up")

func onlyReal(err error) error {
	if errors.Is(err, errBudget) {
		return nil
	}
	return err
}

// backtest is one at work. It belongs to one goroutine.
type backtest struct {
	o       BacktestOptions
	began   time.Time
	told    time.Time // of the last progress
	rested  time.Time // when it made way for others last
	slots   []*pastSlot
	topics  map[string]*pastRules // those that somebody reads on either side
	parts   []*pastPart
	stopped string

	scratch filters.Scratch
	hits    []int
	touched []int32

	events, bytes, inRange uint64
	changed, failed, fuel  uint64
	examples               int // kept in all
	notes                  []string
}

// Both sides of a backtest; as bits they say who took an event.
const (
	sideBefore = iota
	sideAfter
)

// pastSlot is a subscription that is in the rules of either side.
type pastSlot struct {
	name    string
	sides   [2]*SubscriptionSpec // nil: it is not there
	mark    uint8                // who took the event that is looked at
	chain   *pastChain           // nil: its functions are not run
	out     BacktestSubscription
	kept    map[string]int // examples by kind
	matched [2]uint64
}

// pastRules is what both sides say about a topic.
type pastRules struct {
	name   string
	index  *filters.Index
	owners [][]pastOwner // by program
	events uint64
}

// pastOwner is a subscription with the sides on which it has the program.
type pastOwner struct {
	slot  int32
	sides uint8
}

// plan compiles nothing: filters are compiled already. Equal ones are evaluated once.
func (b *backtest) plan(ctx context.Context) error {
	at := map[string]int{}
	for side, rules := range []BacktestRules{b.o.Before, b.o.After} {
		for i := range rules.Subscriptions {
			s := &rules.Subscriptions[i]
			if !chosen(b.o.Subscriptions, s.Name) {
				continue
			}
			j, ok := at[s.Name]
			if !ok {
				j = len(b.slots)
				at[s.Name] = j
				b.slots = append(b.slots, &pastSlot{name: s.Name, kept: map[string]int{}})
			}
			b.slots[j].sides[side] = s
		}
	}
	for _, name := range b.o.Subscriptions {
		if _, ok := at[name]; !ok {
			return unknownIn("subscription", name, b.o.Before, b.o.After)
		}
	}
	slices.SortFunc(b.slots, func(a, c *pastSlot) int { return strings.Compare(a.name, c.name) })
	programs := map[string][]*filters.Program{}
	places := map[[2]string]int{} // by topic and source
	for i, s := range b.slots {
		for side, spec := range s.sides {
			if spec == nil || !chosen(b.o.Topics, spec.Topic) {
				continue
			}
			t := b.topics[spec.Topic]
			if t == nil {
				t = &pastRules{name: spec.Topic}
				b.topics[spec.Topic] = t
			}
			key := [2]string{spec.Topic, spec.Program.Source()}
			place, ok := places[key]
			if !ok {
				place = len(t.owners)
				places[key] = place
				t.owners = append(t.owners, nil)
				programs[spec.Topic] = append(programs[spec.Topic], spec.Program)
			}
			own := t.owners[place]
			if n := len(own); n > 0 && own[n-1].slot == int32(i) {
				own[n-1].sides |= 1 << side
			} else {
				t.owners[place] = append(own, pastOwner{int32(i), 1 << side})
			}
		}
		s.describe(b.o.Hide)
	}
	for name, t := range b.topics {
		t.index = filters.NewIndex(programs[name])
	}
	return b.planChains(ctx)
}

func chosen(only []string, name string) bool { return only == nil || slices.Contains(only, name) }

func unknownIn(kind, name string, sides ...BacktestRules) error {
	var have []string
	for _, rules := range sides {
		for i := range rules.Subscriptions {
			have = append(have, rules.Subscriptions[i].Name)
		}
	}
	return unknown(kind, name, have, "")
}

// describe says in words how the two sides of a subscription differ.
func (s *pastSlot) describe(hide []string) {
	was, is := s.sides[sideBefore], s.sides[sideAfter]
	s.out.Name = s.name
	switch {
	case was == nil:
		s.out.Change, s.out.Topic, s.out.Filter = "created", is.Topic, hideValues(is.Program.Source(), hide)
		return
	case is == nil:
		s.out.Change, s.out.Topic, s.out.FilterBefore = "removed", was.Topic, hideValues(was.Program.Source(), hide)
		return
	}
	s.out.Change, s.out.Topic, s.out.Filter = "same", is.Topic, hideValues(is.Program.Source(), hide)
	if was.Topic != is.Topic {
		s.out.Change, s.out.TopicBefore = "changed", was.Topic
	}
	if was.Program.Source() != is.Program.Source() {
		s.out.Change, s.out.FilterBefore = "changed", hideValues(was.Program.Source(), hide)
	}
}

// block looks at the events of a block in [from, to).
func (b *backtest) block(ctx context.Context, t *pastRules, blk *storage.Block, from, to event.Offset) (next event.Offset, err error) {
	next = from
	for rest := event.Record(blk.Records); len(rest) > 0; {
		rec := rest[:rest.Len():rest.Len()]
		rest = rest[len(rec):]
		switch off := rec.Offset(); {
		case off < from:
			continue
		case off >= to:
			return to, nil
		}
		if err := b.one(ctx, t, rec); err != nil {
			return next, err
		}
		next = rec.Offset() + 1
	}
	return next, nil
}

// one looks at an event. It is what the speed of a backtest hangs on.
func (b *backtest) one(ctx context.Context, t *pastRules, rec event.Record) error {
	if b.o.Budget.Events > 0 && b.events >= b.o.Budget.Events {
		return b.stop(fmt.Sprintf("the budget of %d events is used up", b.o.Budget.Events))
	}
	b.events++
	b.bytes += uint64(len(rec))
	t.events++
	b.hits = t.index.Match(rec, &b.scratch, b.hits[:0])
	b.touched = b.touched[:0]
	for _, h := range b.hits {
		for _, own := range t.owners[h] {
			s := b.slots[own.slot]
			if own.sides == 3 && s.chain == nil { // the same on both sides: all that there is to say is how many
				s.matched[sideBefore]++
				s.matched[sideAfter]++
				continue
			}
			if s.mark == 0 {
				b.touched = append(b.touched, own.slot)
			}
			s.mark |= own.sides
		}
	}
	for _, i := range b.touched {
		s := b.slots[i]
		mark := s.mark
		s.mark = 0
		if err := b.took(ctx, t, s, mark, rec); err != nil {
			return err
		}
	}
	return nil
}

// took books an event that at least one side of a subscription took.
func (b *backtest) took(ctx context.Context, t *pastRules, s *pastSlot, mark uint8, rec event.Record) error {
	s.matched[sideBefore] += uint64(mark & 1)
	s.matched[sideAfter] += uint64(mark >> 1)
	switch mark {
	case 1:
		s.out.Lost++
		b.changed++
		b.sides(t, s, "lost", rec)
	case 2:
		s.out.Gained++
		b.changed++
		b.sides(t, s, "gained", rec)
	}
	if s.chain == nil {
		return nil
	}
	return b.offer(ctx, s, mark, rec)
}

// sides keeps an example of an event that changed sides, with what each side's filter says.
func (b *backtest) sides(t *pastRules, s *pastSlot, kind string, rec event.Record) {
	x := b.example(s, kind, t.name, rec)
	if x == nil {
		return
	}
	x.Before, x.After = clip(s.why(sideBefore, t.name, rec, b.o.Hide), exampleText), clip(s.why(sideAfter, t.name, rec, b.o.Hide), exampleText)
}

// why says what one side makes of an event, without the values to hide.
func (s *pastSlot) why(side int, topic string, rec event.Record, hide []string) string {
	switch spec := s.sides[side]; {
	case spec == nil:
		return "there is no such subscription"
	case spec.Topic != topic:
		return "it reads topic " + spec.Topic
	default:
		return hideValues(spec.Program.Explain(rec).String(), hide)
	}
}

// hideValues covers values in a text, also as a string of a filter has them.
func hideValues(text string, values []string) string {
	for _, v := range values {
		text = strings.ReplaceAll(text, v, "***")
		if q := strconv.Quote(v); q[1:len(q)-1] != v {
			text = strings.ReplaceAll(text, q[1:len(q)-1], "***")
		}
	}
	return text
}

// between rounds and runs come progress, the budget, and others' turn.
func (b *backtest) between(ctx context.Context) error {
	now := time.Now()
	if now.Sub(b.told) >= b.o.Every {
		b.told = now
		b.o.Progress(BacktestProgress{Events: b.events, InRange: b.inRange, Changed: b.changed, Failed: b.failed, Elapsed: now.Sub(b.began)})
	}
	if err := b.spent(now); err != nil {
		return err
	}
	if worked := now.Sub(b.rested); worked >= restAfter {
		b.o.Rest(ctx, worked)
		b.rested = time.Now()
	}
	return ctx.Err()
}

// restAfter is how much work goes between two rests: a timer is no more exact than this.
const restAfter = 2 * time.Millisecond

func (b *backtest) spent(now time.Time) error {
	switch {
	case b.o.Budget.Time > 0 && now.Sub(b.began) >= b.o.Budget.Time:
		return b.stop(fmt.Sprintf("the budget of %s is used up", b.o.Budget.Time))
	case b.o.Budget.Fuel > 0 && b.fuel >= b.o.Budget.Fuel:
		return b.stop(fmt.Sprintf("the budget of %d units of fuel is used up", b.o.Budget.Fuel))
	}
	return nil
}

func (b *backtest) stop(why string) error {
	b.stopped = why
	return errBudget
}
