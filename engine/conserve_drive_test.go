package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/pebblestore"
)

// The driver takes an engine over a real store through a script of operations, in a bubble of fake time, and
// tells the model of each.

// script is one operation's choices. What is not given is 0, the simplest choice.
type script []int

func (s *script) pick(n int) int {
	if len(*s) == 0 {
		return 0
	}
	v := (*s)[0]
	*s = (*s)[1:]
	return v % n
}

func (s *script) once(in int) bool { return s.pick(in) == in-1 }

// definition is a subscription as the driver defines it.
type definition struct {
	name     string
	face     event.Face
	ordered  bool
	filter   int
	attempts int // 0: unlimited
	revision int
	spec     event.Subscription
}

var conserveFilters = []string{"", "data.n % 2 == 0", "data.n % 3 != 0"}

func (d definition) matches(n int) bool {
	switch d.filter {
	case 1:
		return n%2 == 0
	case 2:
		return n%3 != 0
	}
	return true
}

// bug is one that the driver plants between the engine and what is around it, to show that the model finds it.
type bug uint8

const (
	noBug         bug = iota
	skippedCursor     // a cursor's row is not written, as if nothing were outstanding
	droppedParked     // a parked delivery's row is not written
	ackOn500          // a failed send counts as a success
	swappedKeys       // events of a key change places
)

// driver is one run.
type driver struct {
	t          *testing.T
	seed       uint64
	bug        bug
	partitions int
	l          *ledger

	mem   *vfs.MemFS
	armed atomic.Int64 // operations of the file system until the power is cut; 0: it is not
	image *vfs.MemFS   // what was on the disk then; guarded by l.mu
	w     *world
	defs  map[string]definition
	read  map[string]int // events of a topic when it was read last
	holds []*hold
	sky   map[string]*atomic.Int32 // weather, by subscription
	next  int
	ops   int
}

// hold is a lease that the driver has.
type hold struct {
	tok      *token
	id       string
	name     string
	run      int
	deadline time.Time
}

// conserve runs a script and returns what the model found wrong, with the trace.
func conserve(t *testing.T, seed uint64, steps []script, planted bug) (err error) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{t: t, seed: seed, bug: planted, partitions: 1 + int(seed%3), mem: vfs.NewCrashableMem(),
			defs: map[string]definition{}, read: map[string]int{}, sky: map[string]*atomic.Int32{}}
		d.l = newLedger(d.partitions)
		d.open()
		d.w.apply(d.spec())
		for i, s := range steps {
			d.ops = i
			d.step(s)
			if len(d.l.wrong) > 0 {
				break
			}
		}
		if len(d.l.wrong) == 0 {
			d.finish()
		}
		d.w.stop()
		if len(d.l.wrong) > 0 {
			err = fmt.Errorf("seed %d:\n%s\n\n%s", seed, strings.Join(d.l.wrong, "\n"), strings.Join(d.l.trace[max(0, len(d.l.trace)-600):], "\n"))
		}
	})
	return err
}

func (d *driver) open() {
	fs := errorfs.Wrap(d.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && d.armed.Load() > 0 && d.armed.Add(-1) == 0 {
			d.cut()
		}
		return nil
	}))
	store, err := pebblestore.Open(d.t.Context(), pebblestore.Options{Dir: "store", FS: fs, MemTable: 256 << 10, BlockCache: 64 << 10})
	if err != nil {
		d.t.Fatal(err)
	}
	d.w = &world{t: d.t, fs: fs, store: store}
	o := Options{Store: storage.Store(store), Queue: 8, QueueBytes: 64 << 10, Flush: 20 * time.Second}
	if d.bug != noBug {
		o.Store = planted{Store: store, bug: d.bug}
	}
	if d.w.e, err = Open(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
}

// cut takes the image of the disk as a power cut would leave it.
func (d *driver) cut() {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	d.armed.Store(0)
	if d.image == nil {
		d.l.crash()
		r := rand.New(rand.NewPCG(d.seed, uint64(d.ops)))
		d.image = d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(81), RNG: r})
	}
}

// step does one operation; several in a row may run before the engine is idle again.
func (d *driver) step(s script) {
	hurry := s.pick(3) == 2
	do := []func(*script){d.publish, d.publish, d.publish, d.pass, d.pass, d.define, d.blow, d.blow, d.pull, d.pull, d.ack, d.nack,
		d.extend, d.pause, d.resume, d.seek, d.reload, d.flush, d.restart, d.crash, d.arm, d.remove, d.storm, d.redrive}[s.pick(24)]
	do(&s)
	switch {
	case d.crashed():
		d.recover()
	case !hurry:
		d.idle()
	}
}

func (d *driver) crashed() bool {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	return d.image != nil
}

// note writes a line of the trace and returns the run that the operation begins in.
func (d *driver) note(format string, args ...any) int {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	d.l.notef(format, args...)
	return d.l.run
}

// idle waits until nothing moves unless time passes, and reads what has come out.
func (d *driver) idle() {
	synctest.Wait()
	d.look()
	if d.crashed() { // an armed cut came
		d.recover()
		return
	}
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	d.l.idle()
}

// look reads dead letters, copies and states.
func (d *driver) look() {
	d.expire()
	run := d.note("look")
	for name := range d.defs {
		dead, news := d.news(name + ".dead")
		info := d.w.info(name)
		d.l.mu.Lock()
		if b := d.l.accounts[name]; d.l.current(run) {
			if news {
				d.l.buried(b, dead)
				d.read[name+".dead"] = len(dead)
			}
			b.stopped = b.stopped || info.State == "disabled"
		}
		d.l.mu.Unlock()
	}
	if _, ok := d.defs["copy"]; !ok {
		return
	}
	copies, news := d.news("copies")
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	if d.l.current(run) && news {
		d.read["copies"] = len(copies)
		d.l.copied(d.l.accounts["copy"], copies)
	}
}

// news reads a topic if it holds another number of events than when it was read last.
func (d *driver) news(topic string) (ids []string, news bool) {
	n := 0
	for _, p := range d.w.e.plan.Load().topics[topic].parts {
		n += int(p.log.Bounds().Next)
	}
	if n == d.read[topic] {
		return nil, false
	}
	return d.w.ids(topic), true
}

// expire ends the leases that ran out.
func (d *driver) expire() {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	for _, h := range d.holds {
		if d.l.current(h.run) && !h.tok.ended && h.deadline.Before(time.Now()) {
			d.l.endLocked(h.tok, failed, 0, false)
		}
	}
}

var names = []string{"push", "keyed", "pull", "keyedpull", "batched", "copy"}

func (d *driver) define(s *script) {
	name := names[s.pick(len(names))]
	_, exists := d.defs[name]
	def := definition{name: name, filter: s.pick(len(conserveFilters)), attempts: []int{0, 3, 5}[s.pick(3)], ordered: strings.HasPrefix(name, "keyed"), revision: d.next}
	d.next++
	spec := event.Subscription{Name: name, Topic: "orders", DeadLetter: name + ".dead", Filter: conserveFilters[def.filter], Concurrency: 1 + s.pick(4),
		Retry: event.RetryPolicy{Attempts: def.attempts, Schedule: [][]time.Duration{{time.Second, time.Minute}, {4 * time.Minute}}[s.pick(2)]}}
	if def.attempts == 0 {
		spec.Retry.Attempts = event.Unlimited
	}
	if s.once(4) {
		spec.Parked = 4 << 10
	}
	early := s.pick(2) == 0
	if early {
		spec.Start.At = event.Earliest
	}
	if def.ordered {
		spec.Order = event.ByKey
	}
	switch {
	case strings.HasSuffix(name, "pull"):
		def.face, def.attempts = event.Pull, leaseAttempts
		if s.once(2) {
			spec.DeadLetter, def.attempts = "", 0
		}
		spec.Deliver = event.Deliver{Face: event.Pull, AckDeadline: 10 * time.Second}
	case name == "copy":
		def.face = event.ToTopic
		spec.Deliver = event.Deliver{Face: event.ToTopic, Topic: "copies"}
	}
	def.spec = spec
	d.defs[name] = def
	if d.sky[name] == nil {
		d.sky[name] = &atomic.Int32{}
	}
	run := d.note("define %s filter %q attempts %d early %v parked %d", name, spec.Filter, def.attempts, early, spec.Parked)
	d.l.mu.Lock()
	var b *account
	if exists {
		b = d.l.accounts[name]
		d.l.redefine(b, def)
	} else {
		b = d.l.open(def, early)
	}
	b.moving = true
	d.l.mu.Unlock()
	d.w.apply(d.spec())
	d.moved(b, run)
}

func (d *driver) moved(b *account, run int) (crashed bool) {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	b.moving = false
	return !d.l.current(run)
}

func (d *driver) remove(s *script) {
	name := names[s.pick(len(names)-1)] // the copies' topic tells nothing of who made them
	if _, ok := d.defs[name]; !ok {
		return
	}
	d.note("remove %s", name)
	delete(d.defs, name)
	d.l.mu.Lock()
	d.l.accounts[name].gone, d.l.accounts[name].settling = true, true
	d.l.mu.Unlock()
	d.w.apply(d.spec())
}

func (d *driver) reload(s *script) {
	d.note("reload")
	for name, def := range d.defs {
		def.revision = d.next
		d.defs[name] = def
	}
	d.next++
	d.w.apply(d.spec())
}

// spec is what is defined, with receivers for the run that begins or goes on.
func (d *driver) spec() Spec {
	spec := Spec{Topics: []event.Topic{{Name: "orders", Partitions: d.partitions}, {Name: "copies"}}}
	for _, name := range names {
		spec.Topics = append(spec.Topics, event.Topic{Name: name + ".dead", WhenFull: event.Reject})
		def, ok := d.defs[name]
		if !ok {
			continue
		}
		sub := SubscriptionSpec{Subscription: def.spec, Fingerprint: fmt.Sprint(name, def.revision)}
		if f := conserveFilters[def.filter]; f != "" {
			var err error
			if sub.Program, err = filters.Compile(f); err != nil {
				d.t.Fatal(err)
			}
		}
		if def.face == event.Push {
			sub.OpenSink = func(context.Context) (Sink, error) {
				d.l.mu.Lock()
				defer d.l.mu.Unlock()
				r := &receiver{d: d, b: d.l.accounts[name], name: name, run: d.l.run, sky: d.sky[name]}
				if name == "batched" {
					return &severalReceiver{r}, nil
				}
				return r, nil
			}
		}
		spec.Subscriptions = append(spec.Subscriptions, sub)
	}
	return spec
}

// numbered makes the next events, and announces them.
func (d *driver) numbered(s *script, n int) []*fact {
	var facts []*fact
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	for range n {
		f := &fact{id: fmt.Sprintf("e%03d", d.next), n: d.next, key: []string{"a", "b", "", "c"}[s.pick(4)]}
		d.next++
		if s.pick(8) == 7 {
			f.later = time.Now().Add(time.Duration(1+s.pick(100)) * 3 * time.Second).Truncate(time.Second)
		}
		d.l.announce(f)
		facts = append(facts, f)
	}
	return facts
}

func (d *driver) publish(s *script) {
	facts := d.numbered(s, 1+s.pick(24))
	d.note("publish %s to %s", facts[0].id, facts[len(facts)-1].id)
	d.send(facts, 1+s.pick(8))
}

// send publishes, so many in a request.
func (d *driver) send(facts []*fact, at int) {
	for few := range slices.Chunk(facts, at) {
		evs := make([]event.Event, len(few))
		for i, f := range few {
			evs[i] = event.Event{ID: f.id, ClientID: true, PartitionKey: f.key, Data: fmt.Appendf(nil, `{"n":%d}`, f.n)}
			if !f.later.IsZero() {
				evs[i].Extensions = []event.Attribute{{Name: delayAttribute, Kind: event.Timestamp, Value: f.later.UTC().Format(time.RFC3339)}}
			}
		}
		d.l.mu.Lock()
		run, e := d.l.run, d.w.e
		d.l.mu.Unlock()
		pos := make([]event.Position, len(evs))
		if err := e.Publish(d.t.Context(), "orders", evs, pos); err != nil {
			d.t.Errorf("publish: %v", err)
			return
		}
		d.l.mu.Lock()
		for i, f := range few {
			if d.l.current(run) {
				d.l.confirm(f, pos[i])
			}
		}
		d.l.mu.Unlock()
	}
}

// storm does an operation while events are published.
func (d *driver) storm(s *script) {
	facts := d.numbered(s, 20)
	d.note("storm: publish %s to %s meanwhile", facts[0].id, facts[len(facts)-1].id)
	var wg sync.WaitGroup
	for part := range slices.Chunk(facts, 10) {
		wg.Go(func() { d.send(part, 2) })
	}
	[]func(*script){d.define, d.reload, d.seek, d.pause, d.resume}[s.pick(5)](s)
	wg.Wait()
}

// pass lets time pass.
func (d *driver) pass(s *script) {
	wait := []time.Duration{time.Second, 3 * time.Second, 11 * time.Second, time.Minute, 5 * time.Minute}[s.pick(5)] + 7*time.Millisecond
	d.note("pass %s", wait)
	time.Sleep(wait)
}
