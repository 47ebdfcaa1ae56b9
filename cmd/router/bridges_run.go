package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/rules"
)

// inlets runs the bridges that bring events in, as the rules in force say.
type inlets struct {
	e     *engine.Engine
	log   *slog.Logger
	spawn func(b *inlet, in event.Intake)

	end     context.CancelFunc
	workers sync.WaitGroup

	mu     sync.Mutex
	all    map[string]*inlet
	closed bool
}

func newInlets(e *engine.Engine, log *slog.Logger) *inlets {
	ctx, end := context.WithCancel(context.Background())
	r := &inlets{e: e, log: log, end: end, all: map[string]*inlet{}}
	r.spawn = func(b *inlet, in event.Intake) {
		work, stop := context.WithCancel(ctx)
		b.stop = stop
		r.workers.Go(func() {
			defer close(b.ended)
			in.Run(work, b)
		})
	}
	return r
}

// open opens what rules bring in anew or otherwise than before. Nothing is read yet.
func (r *inlets) open(ctx context.Context, set *rules.Set) (map[string]event.Intake, error) {
	opened := map[string]event.Intake{}
	if r == nil || set == nil {
		return opened, nil
	}
	var errs []error
	for i := range set.Bridges {
		b := &set.Bridges[i]
		if b.Open == nil || r.has(b) {
			continue
		}
		in, err := b.Open(ctx)
		if err != nil {
			errs = append(errs, event.At("bridges."+b.Name+".from", err))
			continue
		}
		opened[b.Name] = in
	}
	return opened, errors.Join(errs...)
}

func (r *inlets) has(b *rules.Bridge) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.all[b.Name]
	return was != nil && was.print == b.Fingerprint
}

// set puts the bridges of rules in force. One that changes goes on where it was, once what it had under way has ended.
func (r *inlets) set(ctx context.Context, set *rules.Set, opened map[string]event.Intake) {
	if r == nil {
		return
	}
	keep, next := map[string]bool{}, map[string]*inlet{}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	var gone []*inlet
	if set != nil {
		for i := range set.Bridges {
			b := &set.Bridges[i]
			if b.Push != nil {
				continue
			}
			keep[b.Name] = true
			if opened[b.Name] == nil {
				if was := r.all[b.Name]; was != nil {
					next[b.Name] = was
				}
				continue
			}
			next[b.Name] = &inlet{r: r, name: b.Name, topic: b.Topic, print: b.Fingerprint, ended: make(chan struct{}), since: time.Now()}
		}
	}
	for name, was := range r.all {
		if next[name] != was {
			was.stop()
			gone = append(gone, was)
		}
	}
	for _, was := range gone {
		<-was.ended
		if b := next[was.name]; b != nil {
			b.counts = was.counts
		}
	}
	for name, in := range opened {
		r.spawn(next[name], in)
	}
	r.all = next
	r.mu.Unlock()
	if err := r.e.ForgetInlets(ctx, keep); err != nil {
		r.log.Warn("how far removed bridges had come is not forgotten yet", "error", err)
	}
}

// close ends all; what is under way is stored whole or not at all.
func (r *inlets) close() {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.end()
	r.workers.Wait()
}

// inletCounts are of this run of the router.
type inletCounts struct {
	Events, Bytes, Repeats, Loops, Refused, Lost uint64
}

// inlet is one bridge that brings events in.
type inlet struct {
	r           *inlets
	name, topic string
	print       string
	stop        context.CancelFunc
	ended       chan struct{}
	mu          sync.Mutex
	counts      inletCounts
	reason      string    // why it waits; "" while all is well
	since       time.Time // it is so
	last        time.Time // the other side has answered
	failed      *failure  // the last time that it waited; nil: it never did; replaced, not changed
}

// Place implements event.Inlet.
func (b *inlet) Place(ctx context.Context) ([]byte, error) { return b.r.e.InletPlace(ctx, b.name) }

// Take implements event.Inlet.
func (b *inlet) Take(ctx context.Context, evs []event.Event, place []byte) error {
	// Once begun it ends: the router drains for longer than one commit takes.
	in, err := b.r.e.TakeIn(context.WithoutCancel(ctx), b.name, b.topic, evs, place)
	if err != nil {
		return err
	}
	for _, x := range in.Refused {
		b.r.log.Warn("a bridge leaves out an event that its topic does not take", "bridge", b.name, "topic", b.topic, "id", x.ID, "error", x.Err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &b.counts
	c.Events += uint64(in.Stored)
	c.Bytes += uint64(in.Bytes)
	c.Repeats += uint64(in.Repeats)
	c.Loops += uint64(in.Loops)
	c.Refused += uint64(len(in.Refused))
	return nil
}

// Bridge implements event.Inlet.
func (b *inlet) Bridge() string { return b.name }

// Refused implements event.Inlet.
func (b *inlet) Refused(what string, err error) {
	b.r.log.Warn("a bridge leaves out what cannot be an event", "bridge", b.name, "topic", b.topic, "name", what, "error", err)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Refused++
}

// Repeated implements event.Inlet.
func (b *inlet) Repeated(n uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Repeats += n
}

// Tell implements event.Inlet. A change is logged, not what goes on.
func (b *inlet) Tell(err error) {
	now, reason := time.Now(), ""
	if err != nil {
		reason = err.Error()
	}
	b.mu.Lock()
	was := b.reason
	if reason != "" {
		b.failed = &failure{reason, now}
	}
	if (was == "") != (reason == "") {
		b.since = now
	}
	if b.reason = reason; reason == "" {
		b.last = now
	}
	b.mu.Unlock()
	switch {
	case reason != "" && reason != was:
		b.r.log.Warn("a bridge waits for the other side", "bridge", b.name, "error", reason)
	case reason == "" && was != "":
		b.r.log.Warn("a bridge goes on", "bridge", b.name)
	}
}

// Lost implements event.Inlet.
func (b *inlet) Lost(events uint64, what string) {
	b.mu.Lock()
	b.counts.Lost += events
	b.mu.Unlock()
	if what == "" {
		what = "it does not have them any more"
	}
	b.r.log.Warn("a bridge was overtaken on the other side and goes on with what there is", "bridge", b.name, "lost", events, "reason", what)
}

// state is how it is.
func (b *inlet) state() bridgeState {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := b.since
	s := bridgeState{Name: b.name, State: "running", Reason: b.reason, Since: &since, LastError: b.failed,
		Events: b.counts.Events, Repeats: b.counts.Repeats, Loops: b.counts.Loops, Refused: b.counts.Refused, Lost: b.counts.Lost}
	switch {
	case b.reason != "":
		s.State = "waiting"
	case b.last.IsZero():
		s.State = "starting"
	}
	if last := b.last; !last.IsZero() {
		s.Last = &last
	}
	return s
}

// states are those of all bridges that bring events in, by name.
func (r *inlets) states() []bridgeState {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	all := make([]*inlet, 0, len(r.all))
	for _, b := range r.all {
		all = append(all, b)
	}
	r.mu.Unlock()
	list := make([]bridgeState, len(all))
	for i, b := range all {
		list[i] = b.state()
	}
	slices.SortFunc(list, func(a, b bridgeState) int { return strings.Compare(a.Name, b.Name) })
	return list
}
