package engine

import (
	"context"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// blow changes the weather at a receiver.
func (d *driver) blow(s *script) {
	name := []string{"push", "keyed", "batched"}[s.pick(3)]
	if sky := d.sky[name]; sky != nil {
		now := s.pick(3)
		d.note("weather at %s: %s", name, []string{"fair", "mixed", "foul"}[now])
		sky.Store(int32(now))
	}
}

// pullable chooses one of the pull subscriptions that there are.
func (d *driver) pullable(s *script) (string, bool) {
	name := []string{"pull", "keyedpull"}[s.pick(2)]
	_, ok := d.defs[name]
	return name, ok
}

func (d *driver) pull(s *script) {
	if name, ok := d.pullable(s); ok {
		d.lease(name, 1+s.pick(6))
	}
}

func (d *driver) lease(name string, n int) int {
	d.expire()
	run := d.note("pull %d from %s", n, name)
	d.l.mu.Lock()
	b := d.l.accounts[name]
	d.l.mu.Unlock()
	leases, err := d.w.e.Pull(d.t.Context(), name, n, 0)
	if err != nil {
		d.t.Errorf("pull: %v", err)
	}
	for _, l := range leases {
		id := strings.Clone(l.Event.Attr(event.TagID))
		d.holds = append(d.holds, &hold{tok: d.l.begin(b, run, id, l.Attempt), id: l.ID, name: name, run: run, deadline: l.Deadline})
	}
	return len(leases)
}

// some takes leases of one subscription, of this run and of those before.
func (d *driver) some(s *script) (name string, held []*hold, ids []string) {
	name, ok := d.pullable(s)
	if !ok {
		return name, nil, nil
	}
	n := 1 + s.pick(6)
	for _, h := range d.holds {
		if h.name == name && len(held) < n && !s.once(3) {
			held = append(held, h)
			ids = append(ids, h.id)
		}
	}
	return name, held, ids
}

func (d *driver) ack(s *script) {
	if name, held, ids := d.some(s); len(held) > 0 {
		d.settle(name, held, ids)
	}
}

func (d *driver) settle(name string, held []*hold, ids []string) {
	run := d.note("ack %d of %s", len(ids), name)
	lost, err := d.w.e.Ack(d.t.Context(), name, ids)
	if err != nil {
		d.t.Errorf("ack: %v", err)
	}
	d.answered(run, held, lost, taken, 0)
}

func (d *driver) nack(s *script) {
	name, held, ids := d.some(s)
	if len(held) == 0 {
		return
	}
	wait := []time.Duration{0, time.Second, 2 * time.Minute}[s.pick(3)]
	run := d.note("nack %d of %s for %s", len(ids), name, wait)
	lost, err := d.w.e.Nack(d.t.Context(), name, ids, wait)
	if err != nil {
		d.t.Errorf("nack: %v", err)
	}
	d.answered(run, held, lost, failed, wait)
}

// answered compares what the engine says of leases with what the model knows of them.
func (d *driver) answered(run int, held []*hold, lost []string, how outcome, wait time.Duration) {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	var counts []*hold
	for _, h := range held { // before any of them is settled: two may be of one delivery, in two runs before
		if refused := slices.Contains(lost, h.id); d.judge(h, run, refused) && !refused && h.tok.d != nil {
			counts = append(counts, h)
		}
	}
	for _, h := range counts {
		tok := h.tok
		switch {
		case !d.l.current(run): // settled or not
			tok.d.done = tok.d.done || how == taken && tok.gen == tok.b.gen
			tok.d.most++
		case h.run != run && how == failed:
			tok.d.most++
		case h.run != run:
			tok.d.done, tok.d.barred, tok.d.durable = true, true, true
		default:
			d.l.endLocked(tok, how, wait, how == taken)
		}
	}
	d.holds = slices.DeleteFunc(d.holds, func(h *hold) bool { return slices.Contains(held, h) && !slices.Contains(lost, h.id) })
}

// judge reports whether the lease counts for the model, and whether it was right to take or refuse it.
func (d *driver) judge(h *hold, run int, refused bool) bool {
	tok := h.tok
	b := tok.b
	certain := tok.certain && !b.settling && tok.d != nil && d.l.current(run)
	switch {
	case b.doubt && tok.gen != b.gen:
		if !refused && tok.d != nil {
			tok.d.done = true
		}
		return false
	case !certain:
		return tok.gen == b.gen && !b.gone
	case h.run != run:
		if !refused && (tok.d.barred || tok.d.inHand > 0 || b.gone || tok.gen != b.gen) {
			d.l.violate("%s took an old lease of %s, which is settled or leased anew", h.name, tok.d.id)
		}
	case b.gone || tok.gen != b.gen || tok.ended || h.deadline.Before(time.Now()):
		if !refused {
			d.l.violate("%s took a lease of %s that was not held any more", h.name, tok.d.id)
		}
	case refused:
		d.l.violate("%s refused a lease of %s that is held until %s", h.name, tok.d.id, h.deadline.Sub(d.l.start))
	}
	return tok.gen == b.gen && !b.gone
}

func (d *driver) extend(s *script) {
	name, held, ids := d.some(s)
	if len(held) == 0 {
		return
	}
	run := d.note("extend %d of %s", len(ids), name)
	lost, err := d.w.e.Extend(d.t.Context(), name, ids, time.Minute)
	if err != nil {
		d.t.Errorf("extend: %v", err)
	}
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	for _, h := range held {
		refused := slices.Contains(lost, h.id)
		if h.run == run && d.judge(h, run, refused) && !refused {
			h.deadline = time.Now().Add(time.Minute)
		}
	}
}

func (d *driver) pause(s *script) {
	name := names[s.pick(len(names))]
	if _, ok := d.defs[name]; !ok {
		return
	}
	run := d.note("pause %s", name)
	if err := d.w.e.Pause(d.t.Context(), name); err != nil {
		d.t.Errorf("pause: %v", err)
	}
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	if b := d.l.accounts[name]; d.l.current(run) {
		b.stopped, b.settling = true, true
	}
}

func (d *driver) resume(s *script) {
	if name := names[s.pick(len(names))]; d.defs[name].name != "" {
		d.unpause(name)
	}
}

func (d *driver) unpause(name string) {
	d.note("resume %s", name)
	d.l.mu.Lock()
	d.l.accounts[name].stopped, d.l.accounts[name].settling = false, true
	d.l.mu.Unlock()
	if err := d.w.e.Resume(d.t.Context(), name); err != nil {
		d.t.Errorf("resume: %v", err)
	}
}

func (d *driver) seek(s *script) {
	name := names[s.pick(len(names))]
	if _, ok := d.defs[name]; !ok {
		return
	}
	if name == "copy" { // which copies are of before must be known
		d.idle()
	}
	d.l.mu.Lock()
	to := event.Start{At: []event.StartAt{event.Earliest, event.Latest, event.AtCursor}[s.pick(3)]}
	offsets := make([]event.Offset, d.partitions)
	for p := range offsets {
		if n := len(d.l.stored[p]); n > 0 {
			next := d.l.stored[p][n-1].at.Offset + 1
			switch to.At {
			case event.Latest:
				offsets[p] = next
			case event.AtCursor:
				offsets[p] = event.Offset(s.pick(int(next) + 1))
			}
		}
	}
	to.Cursor = d.w.e.plan.Load().topics["orders"].cursor(offsets)
	b := d.l.accounts[name]
	before := map[string]debt{}
	for id, debt := range b.debts {
		before[id] = *debt
	}
	b.moving = true
	d.l.seek(b, offsets)
	d.l.notef("seek %s to %v", name, offsets)
	run := d.l.run
	d.l.mu.Unlock()
	if err := d.w.e.Seek(d.t.Context(), name, to); err != nil {
		d.t.Errorf("seek: %v", err)
	}
	if d.moved(b, run) {
		d.l.mu.Lock()
		b.unsure(before)
		d.l.mu.Unlock()
	}
}

// redrive gives dead letters back.
func (d *driver) redrive(s *script) {
	name := names[s.pick(len(names))]
	def, ok := d.defs[name]
	d.idle() // which letters there are must be known
	b := d.l.accounts[name]
	if !ok || def.spec.DeadLetter == "" || b.born > 0 {
		return
	}
	run := d.note("redrive %s", name)
	d.l.mu.Lock()
	b.settling = true
	d.l.mu.Unlock()
	done, err := d.w.e.Redrive(d.t.Context(), name, event.Redrive{})
	if err != nil {
		d.t.Errorf("redrive: %v", err)
	}
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	d.l.notef("redriven: %+v", done)
	d.l.redriven(b, d.l.current(run) && done.Left == 0)
}

// flush writes what was settled: a crash changes nothing about it any more.
func (d *driver) flush(*script) {
	d.idle()
	run := d.note("flush")
	if err := d.w.e.flush(d.t.Context()); err != nil {
		d.t.Errorf("flush: %v", err)
	}
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	if d.l.current(run) {
		d.l.flushed()
	}
}

// restart drains the engine and opens it again.
func (d *driver) restart(*script) {
	d.expire()
	d.note("restart")
	d.w.stop()
	d.l.mu.Lock()
	crashed := d.image != nil
	if !crashed {
		d.outrun(d.l.run)
		d.l.reopened()
		d.settling()
	}
	d.l.mu.Unlock()
	if !crashed {
		d.open()
		d.w.apply(d.spec())
	}
}

// outrun notes leases of a run that has ended which may have run out in it.
func (d *driver) outrun(run int) {
	for _, h := range d.holds {
		if h.run == run && !h.tok.ended && h.tok.d != nil && h.deadline.Before(time.Now()) {
			h.tok.d.most++
		}
	}
}

func (d *driver) settling() {
	for _, b := range d.l.accounts {
		b.settling = true
	}
}

func (d *driver) crash(*script) { d.cut() }

// arm cuts the power within one of the file system operations to come.
func (d *driver) arm(s *script) {
	n := 1 + s.pick(60)
	d.note("power will be cut in %d operations of the file system", n)
	d.armed.Store(int64(n))
}

// recover opens the engine on what the disk held when the power was cut, and looks what is there.
func (d *driver) recover() {
	if d.w.e != nil {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if err := d.w.e.Close(ended); err != nil {
			d.t.Errorf("close: %v", err)
		}
		if err := d.w.store.Close(); err != nil {
			d.t.Errorf("close: %v", err)
		}
	}
	d.l.mu.Lock()
	d.outrun(-d.l.run - 1)
	d.mem, d.image, d.l.run = d.image, nil, -d.l.run
	d.settling()
	d.l.mu.Unlock()
	d.open()
	var lost []string
	if _, err := d.w.e.topic("orders"); err == nil {
		recs := d.w.records("orders")
		d.l.mu.Lock()
		there := map[string]event.Position{}
		for _, r := range recs {
			id := strings.Clone(r.Attr(event.TagID))
			if _, twice := there[id]; twice {
				d.l.violate("%s is stored twice", id)
			}
			there[id] = r.Position()
		}
		for id, f := range d.l.facts {
			at, ok := there[id]
			switch {
			case ok:
				d.l.confirm(f, at)
			case f.stored || f.begun:
				lost = append(lost, id)
			case !f.void:
				f.void = true
				for _, b := range d.l.accounts {
					delete(b.debts, id)
				}
			}
		}
		d.l.mu.Unlock()
	}
	d.w.apply(d.spec())
	d.l.mu.Lock()
	if len(lost) > 0 {
		d.l.violate("acknowledged or delivered, and not in the topic after a crash: %v", lost)
	}
	d.l.mu.Unlock()
	for name := range d.defs {
		info := d.w.info(name)
		d.l.mu.Lock()
		d.l.accounts[name].stopped = info.State == "paused" || info.State == "disabled"
		d.l.mu.Unlock()
	}
	synctest.Wait()
	d.look()
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	d.l.idle()
}

// finish ends all faults; then everything that is owed must come, in a bounded number of steps.
func (d *driver) finish() {
	d.note("FINISH")
	d.armed.Store(0)
	d.idle()
	for _, sky := range d.sky {
		sky.Store(0)
	}
	for round := range 9 {
		for name, def := range d.defs {
			if info := d.w.info(name); info.State == "paused" || info.State == "disabled" {
				d.unpause(name)
			}
			for def.face == event.Pull && d.consume(name) {
			}
		}
		d.idle()
		if d.settled() && round > 1 || len(d.l.wrong) > 0 {
			break
		}
		time.Sleep([]time.Duration{3 * time.Second, time.Minute, 301 * time.Second}[min(round, 2)])
	}
	d.flush(nil)
	d.l.mu.Lock()
	for name := range d.defs {
		if ids := d.l.accounts[name].missing(); len(ids) > 0 {
			d.l.violate("%s never delivered nor dead-lettered %v", name, ids)
		}
	}
	fine := len(d.l.wrong) == 0
	d.l.mu.Unlock()
	for name := range d.defs {
		if i := d.w.info(name); fine && (i.Lag != 0 || i.Outstanding != 0 || i.Parked != 0 || i.State != "running") {
			d.l.violate("%s has delivered all and says state %s (%s), lag %d, outstanding %d, parked %d", name, i.State, i.Reason, i.Lag, i.Outstanding, i.Parked)
		}
	}
	if !fine {
		return
	}
	d.restart(nil) // what is settled stays so
	d.idle()
	time.Sleep(6 * time.Minute)
	for name, def := range d.defs {
		if def.face == event.Pull {
			d.lease(name, 100)
		}
	}
	d.idle()
}

// consume takes what a pull subscription has to give, and acknowledges it with all older leases. It reports
// whether there was any.
func (d *driver) consume(name string) bool {
	n := d.lease(name, 100)
	var held []*hold
	var ids []string
	d.holds = slices.DeleteFunc(d.holds, func(h *hold) bool {
		if h.name == name {
			held, ids = append(held, h), append(ids, h.id)
		}
		return h.name == name
	})
	if len(ids) > 0 {
		d.settle(name, held, ids)
	}
	synctest.Wait()
	return n > 0
}

func (d *driver) settled() bool {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	for name := range d.defs {
		if len(d.l.accounts[name].missing()) > 0 {
			return false
		}
	}
	for name := range d.defs {
		if i := d.w.info(name); i.Parked > 0 || i.Lag > 0 { // what another filter matched may wait for its time
			return false
		}
	}
	return true
}

// copied takes note of all events of the topic that a subscription copies to.
func (l *ledger) copied(b *account, ids []string) {
	count := map[string]int{}
	for _, id := range ids {
		count[id]++
	}
	for id, n := range count {
		d := b.debts[id]
		if d == nil {
			l.violate("%s is a copy of nothing", id)
			continue
		}
		if n > d.copies {
			d.done = true
		}
		if d.copies = n; n > 1+b.rewinds {
			l.violate("%s was copied %d times", id, n)
		}
	}
}
