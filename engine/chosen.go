package engine

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A redrive may choose a version of a function other than the one in force. Such versions are opened when they
// are needed, shared by whoever needs the same, and closed when nobody did for a while.

// chosenRest is how long a version that nobody uses stays open.
const chosenRest = time.Minute

type choices struct {
	mu   sync.Mutex
	open map[string]*choice // by printOf
}

type choice struct {
	print string
	users int       // guarded by choices.mu
	last  time.Time // guarded by choices.mu

	opening  sync.Mutex
	function *function // guarded by opening
	digest   string
}

// choose opens a version of a function, with the settings that are in force. Give it back with leave.
func (e *Engine) choose(ctx context.Context, f *function, digest string) (*choice, error) {
	def := f.def
	def.Digest = digest
	print := def.Name + " " + printOf(def)
	e.choices.mu.Lock()
	v := e.choices.open[print]
	if v == nil {
		v = &choice{print: print, digest: digest}
		if e.choices.open == nil {
			e.choices.open = map[string]*choice{}
		}
		e.choices.open[print] = v
	}
	v.users++
	e.choices.mu.Unlock()

	v.opening.Lock()
	defer v.opening.Unlock()
	if v.function != nil {
		return v, nil
	}
	code, err := e.openCode(ctx, def, f.book)
	if err == nil && !e.o.Host.Has(digest) { // it was collected before it was named
		e.logClose("function", def.Name, code.Close(context.WithoutCancel(ctx)))
		err = event.Bad(event.ErrNotFound, "digest", "module "+digest+" was removed meanwhile; push it again")
	}
	if err != nil {
		e.choices.leave(v, e.now())
		return nil, err
	}
	v.function = &function{def: def, print: printOf(def), code: code, book: f.book}
	v.function.refs.Store(1)
	return v, nil
}

func (c *choices) leave(v *choice, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v.users--
	v.last = now
}

// rest closes versions that nobody has used since a time.
func (c *choices) rest(ctx context.Context, e *Engine, before time.Time) {
	c.mu.Lock()
	var idle []*choice
	for print, v := range c.open {
		if v.users == 0 && v.last.Before(before) {
			idle = append(idle, v)
			delete(c.open, print)
		}
	}
	c.mu.Unlock()
	for _, v := range idle {
		if v.function != nil {
			e.logClose("function", v.function.def.Name, v.function.release(context.WithoutCancel(ctx)))
		}
	}
}

// name adds the versions that are open.
func (c *choices) name(named map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.open {
		named[v.digest] = true
	}
}

// chosen is the version that a redrive chose for an item, "" for the one in force.
func (it *item) chosen() string {
	if it.parked == nil {
		return ""
	}
	return it.parked.with
}

// sameChain is how many items from the first on go through the same versions, and the definition with those in
// it: as a rule all of them and c. Call release when they went through.
func (s *subscription) sameChain(ctx context.Context, c *subConfig, items []item) (n int, under *subConfig, release func(), err error) {
	with := items[0].chosen()
	for n = 1; n < len(items) && items[n].chosen() == with; n++ {
	}
	release = func() {}
	name, digest, _ := strings.Cut(with, "@")
	at := slices.IndexFunc(c.functions, func(f *function) bool { return f.def.Name == name })
	if with == "" || at < 0 || c.functions[at].digest() == digest { // or the function is not in the chain any more
		return n, c, release, nil
	}
	v, err := s.e.choose(ctx, c.functions[at], digest)
	if err != nil {
		return n, c, release, err
	}
	under = &subConfig{SubscriptionSpec: c.SubscriptionSpec, functions: slices.Clone(c.functions), stateful: c.stateful, sink: c.sink}
	under.functions[at] = v.function
	under.pin()
	return n, under, func() { s.e.choices.leave(v, s.e.now()) }, nil
}
