package engine

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// The reference model of delivery: what each subscription owes, written down from what is promised and from
// what its receivers see. It knows nothing of how the engine works. A certain statement is checked at once; what
// ran beside an operation (a seek, a reload, a crash) counts in favour of the engine.

// ledger is the model. Receivers on many goroutines and the driver use it.
type ledger struct {
	mu       sync.Mutex
	run      int // grows with each crash and restart: what older receivers say does not count
	start    time.Time
	facts    map[string]*fact
	stored   [][]*fact // by partition, in order of offsets
	accounts map[string]*account
	wrong    []string
	trace    []string
}

// fact is an event that publish was called with.
type fact struct {
	id, key string
	n       int
	at      event.Position
	stored  bool // acknowledged, or seen in the topic after a crash
	void    bool // neither: a crash took it
	begun   bool // somebody received it
	later   time.Time
}

// account is what one subscription owes, from its start until it is removed.
type account struct {
	def      definition
	born     int // how often one of the name was made
	gen      int // grows with every seek
	rewinds  int
	settling bool // an operation on it ran since the engine was last idle
	moving   bool // one is under way that decides from where on events are owed
	doubt    bool // a crash may have undone the last seek
	stopped  bool
	gone     bool
	most     int // attempts that any of its definitions allowed, 0: no limit
	debts    map[string]*debt
	keys     map[string][]*debt
	letters  int // dead letters that were read so far
	suspects []suspect
}

// debt is one event in the eyes of one subscription.
type debt struct {
	*fact
	vague   bool // published beside an operation that decides whether it is owed
	must    bool // matches every filter that may have been in force when it was read
	allowed bool // matches one of them: may be delivered
	owed    bool // must end as a delivery or a dead letter
	done    bool // has, since the last seek
	barred  bool // nothing of it may begin any more
	durable bool // and a crash does not change that
	inHand  int
	tries   int // failures that must have been counted, at least
	most    int // failures that may have been counted
	dead    int
	redrawn int // of dead: given back to the subscription
	copies  int
	soonest time.Time
}

// suspect is a delivery that overtook an earlier event of its key, unless that one has just been dead-lettered.
type suspect struct {
	early, late *debt
	when        string
}

// token is a delivery in somebody's hand.
type token struct {
	b       *account
	d       *debt
	run     int
	gen     int
	certain bool
	ended   bool
}

func newLedger(partitions int) *ledger {
	return &ledger{run: 1, start: time.Now(), facts: map[string]*fact{}, stored: make([][]*fact, partitions), accounts: map[string]*account{}}
}

// current reports whether what was begun in a run still counts.
func (l *ledger) current(run int) bool { return run == l.run && run > 0 }

func (l *ledger) notef(format string, args ...any) {
	l.trace = append(l.trace, fmt.Sprintf("%-14s", time.Since(l.start))+fmt.Sprintf(format, args...))
	if len(l.trace) > 2000 {
		l.trace = slices.Delete(l.trace, 0, 1000)
	}
}

func (l *ledger) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.notef("WRONG: %s", text)
	if len(l.wrong) < 5 {
		l.wrong = append(l.wrong, text)
	}
}

// open makes the account of a subscription that is new. early says whether it begins at the earliest event.
func (l *ledger) open(def definition, early bool) *account {
	b := &account{def: def, settling: true, most: def.attempts, debts: map[string]*debt{}, keys: map[string][]*debt{}}
	if old := l.accounts[def.name]; old != nil {
		b.born, b.letters = old.born+1, old.letters
		old.gone = true
	}
	l.accounts[def.name] = b
	for _, f := range l.facts {
		if f.void {
			continue
		}
		d := l.enter(b, f)
		if !f.stored { // it may come before the start or after
			d.vague = true
			continue
		}
		d.allowed = d.allowed && early
		d.owed = d.allowed
	}
	for _, list := range b.keys {
		slices.SortFunc(list, func(a, c *debt) int { return int(a.at.Offset) - int(c.at.Offset) })
	}
	return b
}

func (l *ledger) enter(b *account, f *fact) *debt {
	match := b.def.matches(f.n)
	d := &debt{fact: f, must: match, allowed: match, soonest: f.later}
	b.debts[f.id] = d
	if b.def.ordered && f.key != "" {
		b.keys[f.key] = append(b.keys[f.key], d)
	}
	return d
}

// announce enters an event before it is published: it may be delivered before that is acknowledged.
func (l *ledger) announce(f *fact) {
	l.facts[f.id] = f
	for _, b := range l.accounts {
		if !b.gone {
			l.enter(b, f).vague = b.moving
		}
	}
}

// confirm notes that an event is stored.
func (l *ledger) confirm(f *fact, at event.Position) {
	if f.stored {
		if f.at != at {
			l.violate("%s was acknowledged at %v and is at %v", f.id, f.at, at)
		}
		return
	}
	f.stored, f.at = true, at
	list := &l.stored[at.Partition]
	i, taken := slices.BinarySearchFunc(*list, at.Offset, func(o *fact, off event.Offset) int { return int(o.at.Offset) - int(off) })
	if taken {
		l.violate("%s and %s are both at %v", (*list)[i].id, f.id, at)
	}
	*list = slices.Insert(*list, i, f)
	for _, b := range l.accounts {
		if d := b.debts[f.id]; d != nil {
			d.owed = d.must && !d.vague && !d.barred
		}
	}
}

// redefine puts another definition in force: what was not read before may be decided by either.
func (l *ledger) redefine(b *account, def definition) {
	old := b.def
	b.def, b.settling = def, true
	if b.most = max(b.most, def.attempts); def.attempts == 0 || old.attempts == 0 {
		b.most = 0
	}
	if old.filter == def.filter {
		return
	}
	for _, d := range b.debts {
		if match := def.matches(d.n); !d.barred {
			d.must, d.owed, d.allowed = d.must && match, d.owed && match, d.allowed || match
		}
	}
}

// seek moves a account: below the targets nothing is owed any more, from there on everything is again.
func (l *ledger) seek(b *account, to []event.Offset) {
	b.gen++
	b.rewinds++
	b.doubt = false
	b.settling = true
	for _, d := range b.debts {
		d.inHand, d.tries, d.soonest = 0, 0, d.later
		if !d.stored {
			d.vague = true // it may come before the target or after
			continue
		}
		below := d.at.Offset < to[d.at.Partition]
		match := b.def.matches(d.n) && !below
		d.must, d.owed, d.allowed, d.done, d.barred, d.durable = match, match, match, false, below, below
	}
}

// unsure takes back what a seek said that a crash may have undone. before is what the account was.
func (b *account) unsure(before map[string]debt) {
	b.doubt = true
	for id, d := range b.debts {
		was := before[id]
		d.must, d.owed = d.must && was.must, d.owed && was.owed
		d.allowed = d.allowed || was.allowed
		d.done = d.done || was.done
		d.barred = d.barred && was.barred
		d.durable = d.durable && was.durable
	}
}

// begin notes that a receiver has an event before it.
func (l *ledger) begin(b *account, run int, id string, attempt int) *token {
	l.mu.Lock()
	defer l.mu.Unlock()
	tok := &token{b: b, run: run, gen: b.gen, certain: !b.settling}
	if !l.current(run) {
		return tok
	}
	l.notef("  %s gets %s, attempt %d", b.def.name, id, attempt)
	d := b.debts[id]
	if d == nil {
		if f := l.facts[id]; f == nil {
			l.violate("%s got %s, which was never published", b.def.name, id)
		} else if tok.certain && !b.gone {
			l.violate("%s got %s, which it never owed", b.def.name, id)
		}
		return tok
	}
	tok.d = d
	d.begun = true
	if tok.certain {
		l.check(b, d, attempt)
	}
	if tok.certain {
		d.inHand++
	}
	return tok
}

func (l *ledger) check(b *account, d *debt, attempt int) {
	now := time.Now()
	switch {
	case b.gone:
		l.violate("%s got %s after it was removed", b.def.name, d.id)
	case d.barred:
		l.violate("%s got %s again after it was settled", b.def.name, d.id)
	case !d.allowed:
		l.violate("%s got %s, which it does not owe", b.def.name, d.id)
	case b.stopped:
		l.violate("%s got %s while it was stopped", b.def.name, d.id)
	case d.inHand > 0:
		l.violate("%s got %s, which is in somebody's hand already", b.def.name, d.id)
	case now.Before(d.soonest):
		l.violate("%s got %s %s before its time", b.def.name, d.id, d.soonest.Sub(now))
	case b.most > 0 && attempt > b.most:
		l.violate("%s got %s, attempt %d of %d", b.def.name, d.id, attempt, b.most)
	case attempt <= d.tries:
		l.violate("%s got %s, attempt %d, after %d that failed", b.def.name, d.id, attempt, d.tries)
	case attempt > d.most+1:
		l.violate("%s got %s, attempt %d, after no more than %d that failed", b.def.name, d.id, attempt, d.most)
	}
	if !b.def.ordered || d.key == "" {
		return
	}
	for _, o := range b.keys[d.key] {
		switch {
		case o == d:
		case o.inHand > 0:
			l.violate("%s has %s and %s of key %s in hand at once", b.def.name, o.id, d.id, d.key)
		case o.redrawn > 0 || d.redrawn > 0: // it comes behind what went on without it
		case !o.later.IsZero() || !d.later.IsZero(): // a delayed event comes when it may, and holds nobody
		case o.owed && !o.done && o.stored && d.stored && o.at.Offset < d.at.Offset:
			b.suspects = append(b.suspects, suspect{o, d, time.Since(l.start).String()})
		}
	}
}

// outcome is how a delivery ended at its receiver.
type outcome uint8

const (
	taken   outcome = iota
	failed          // counts as a try
	stopped         // counts as none: aborted, or the target is gone for good
)

// end notes how a delivery ended. wait is the least time until the next try. It reports whether the model still
// held the receiver to it.
func (l *ledger) end(tok *token, how outcome, wait time.Duration, durable bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(tok, how, wait, durable)
}

func (l *ledger) endLocked(tok *token, how outcome, wait time.Duration, durable bool) {
	b, d := tok.b, tok.d
	if tok.ended || !l.current(tok.run) || d == nil {
		tok.ended = true
		return
	}
	tok.ended = true
	l.notef("  %s ends %s: %s", b.def.name, d.id, [...]string{"taken", "failed", "stopped"}[how])
	if how == failed {
		d.most++
	}
	if tok.gen != b.gen {
		return // void by a seek
	}
	if tok.certain {
		d.inHand = max(0, d.inHand-1)
	}
	certain := tok.certain && !b.settling
	switch {
	case how == taken:
		d.done = true
		d.barred = certain || d.barred
		d.durable = d.durable || certain && durable
	case certain && how == failed:
		d.tries++
		d.soonest = time.Now().Add(min(wait, maxWait))
		if wait == 0 {
			d.soonest = time.Time{}
		}
	}
}

// crash notes that the power is cut now. Whoever calls it takes the image of the disk before it lets go of mu.
func (l *ledger) crash() {
	l.run = -l.run - 1
	l.notef("CRASH")
	for _, b := range l.accounts {
		for _, d := range b.debts {
			d.inHand = 0
			d.barred = d.barred && d.durable
			d.tries = max(0, d.tries-1) // the last one's row may not have been written
			d.soonest = d.later
		}
	}
}

// reopened notes that the engine was closed in good order and is open again.
func (l *ledger) reopened() {
	l.run++
	for _, b := range l.accounts {
		for _, d := range b.debts {
			d.inHand = 0
			d.durable = d.durable || d.barred
		}
	}
}

// flushed notes that everything settled until now is in the store.
func (l *ledger) flushed() {
	for _, b := range l.accounts {
		for _, d := range b.debts {
			d.durable = d.durable || d.barred && !b.settling
		}
	}
}

// buried takes note of the dead letters of a account's topic, all of them, in order.
func (l *ledger) buried(b *account, ids []string) {
	if len(ids) < b.letters {
		l.violate("%s had %d dead letters and has %d", b.def.name, b.letters, len(ids))
		return
	}
	for _, id := range ids[b.letters:] {
		l.notef("  %s dead-lettered %s", b.def.name, id)
		d := b.debts[id]
		switch {
		case d == nil || d.most == 0 && b.born > 0: // of the subscription that had the name before
			continue
		case d.most == 0 && !b.settling:
			l.violate("%s dead-lettered %s, which never failed", b.def.name, id)
		}
		d.done = true
		if d.dead++; d.dead > 1+b.rewinds+b.born+d.redrawn {
			l.violate("%s dead-lettered %s %d times", b.def.name, id, d.dead)
		}
		if !b.settling && b.born == 0 {
			d.barred, d.durable = true, true
		}
	}
	b.letters = len(ids)
}

// redriven notes that dead letters were given back: all of them, or if that is not certain maybe some.
func (l *ledger) redriven(b *account, all bool) {
	b.settling = true
	for _, d := range b.debts {
		if d.dead <= d.redrawn {
			continue
		}
		d.allowed, d.barred, d.durable, d.tries, d.soonest = true, false, false, 0, time.Time{}
		d.redrawn = d.dead
		if all {
			d.owed, d.done = true, false
		}
	}
}

// idle notes that nothing moves any more until time passes: what the operations before have said holds from here.
func (l *ledger) idle() {
	for _, b := range l.accounts {
		for _, s := range b.suspects {
			if !s.early.done && s.early.owed {
				l.violate("%s got %s before %s of the same key, at %s", b.def.name, s.late.id, s.early.id, s.when)
			}
		}
		b.suspects, b.settling = nil, false
	}
}

// missing is what a account still owes.
func (b *account) missing() []string {
	var ids []string
	for id, d := range b.debts {
		if d.owed && !d.done {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
