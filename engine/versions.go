package engine

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// The versions of functions. A version is the digest of a module. What was in force is remembered in the
// store, the version before the one in force stays open so that a rollback begins at once, and modules
// that nobody names any more are removed.

const (
	keptVersions = 5         // of each function: the one in force and those before it
	moduleGrace  = time.Hour // a module that nobody names stays this long after it was put
	collectEvery = time.Hour // between two looks for modules that nobody names
	parkedRefs   = 1 << 31   // in a parked row's attempt: digests follow the reason
	parkedMore   = 1 << 30   // and the fields of later times
	sumSize      = len([32]byte{})
)

// A Version of a function was in force.
type Version struct {
	Digest string    `json:"digest"`
	Since  time.Time `json:"since"` // when it was put in force last
}

// A book is what the engine keeps of a function by its name, whatever its version.
type book struct {
	callLog
	tallies

	versions []Version // newest first; guarded by callLog.mu, changed under Engine.applying
}

func (b *book) history() []Version {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.versions)
}

// openBook returns the book of a function: the one in use, or what the store remembers.
func (e *Engine) openBook(ctx context.Context, old *Plan, name string) (*book, error) {
	if f := old.functions[name]; f != nil {
		return f.book, nil
	}
	b := &book{}
	b.callLog.open(e, strings.Clone(name))
	row, err := e.store.Load(ctx, tableFunctions, []byte(name))
	if err != nil || row == nil {
		return b, err
	}
	if err := json.Unmarshal(row, &b.versions); err != nil {
		return nil, fmt.Errorf("row of function %s: %w", name, err)
	}
	return b, nil
}

// versioned is a function whose version changes once the commit is through.
type versioned struct {
	book     *book
	versions []Version
}

// putVersion notes that a version will be in force.
func (c *change) putVersion(b *book, digest string, now time.Time) error {
	was := b.history()
	if digest == "" || len(was) > 0 && was[0].Digest == digest {
		return nil
	}
	next := []Version{{digest, now.UTC()}}
	for _, v := range was {
		if v.Digest != digest && len(next) < keptVersions {
			next = append(next, v)
		}
	}
	row, err := json.Marshal(next)
	c.ops = append(c.ops, put(tableFunctions, []byte(b.name), row))
	c.versions = append(c.versions, versioned{b, next})
	return err
}

// turn puts the noted versions into the books; the commit is through.
func (c *change) turn() {
	for _, v := range c.versions {
		v.book.mu.Lock()
		first := len(v.book.versions) == 0
		v.book.versions = v.versions
		v.book.mu.Unlock()
		if !first {
			v.book.swaps.Add(1)
		}
	}
}

// forgetFunctions deletes what the store remembers of functions that are not defined any more.
func (e *Engine) forgetFunctions(ctx context.Context, c *change) error {
	return e.store.Scan(ctx, tableFunctions, nil, nil, func(k, _ []byte) error {
		if c.next.functions[string(k)] == nil {
			c.ops = append(c.ops, del(tableFunctions, slices.Clone(k)))
		}
		return nil
	})
}

// ahead is a function that was opened before its plan is built.
type ahead struct {
	print string
	book  *book
	code  *plugins.Function
	err   error
}

// openAhead opens the functions of a plan that are new, while what is in force serves and other changes go
// on: compiling takes seconds. Whoever takes one clears its code; close the rest.
func (e *Engine) openAhead(ctx context.Context, defs []event.Function) map[string]*ahead {
	opened := map[string]*ahead{}
	plan := e.plan.Load()
	for _, def := range defs {
		print := printOf(def)
		f, spare := plan.functions[def.Name], plan.spares[def.Name]
		known := f != nil && f.print == print || spare != nil && spare.print == print
		if known || def.Digest == "" || e.o.Host == nil || opened[def.Name] != nil {
			continue
		}
		a := &ahead{print: print}
		if a.book, a.err = e.openBook(ctx, plan, def.Name); a.err == nil {
			a.code, a.err = e.openCode(ctx, def, a.book)
		}
		opened[def.Name] = a
	}
	return opened
}

func (e *Engine) openCode(ctx context.Context, def event.Function, b *book) (*plugins.Function, error) {
	return e.o.Host.OpenLogged(ctx, def, func(level int, message string) {
		e.o.Log.Log(context.Background(), slogLevel(level), message, "function", def.Name)
		b.said(def.Digest, level, message)
	})
}

// printOf is equal for definitions that make the same function.
func printOf(def event.Function) string {
	return fmt.Sprintf("%s %+v %q %q %+v %q", def.Digest, def.Limits, def.Config, def.Secrets, def.Allow, def.Within)
}

// planFunction finds or opens a function of the next plan, and the version that is kept beside it.
func (e *Engine) planFunction(ctx context.Context, c *change, old *Plan, def event.Function, opened map[string]*ahead) error {
	print := printOf(def)
	was, spare := old.functions[def.Name], old.spares[def.Name]
	if spare != nil {
		spare.refs.Add(1)
	}
	f := was
	switch {
	case was != nil && was.print == print:
		f.refs.Add(1)
	case spare != nil && spare.print == print: // back to the version before: it is open
		f, spare = spare, was
		spare.refs.Add(1)
	default:
		var err error
		if f, err = e.openFunction(ctx, old, def, print, opened[def.Name]); err != nil {
			return errors.Join(err, release(ctx, spare))
		}
		f.refs.Store(1)
		if was != nil && was.code != nil && was.digest() != def.Digest {
			was.refs.Add(1)
			e.logClose("function", def.Name, release(ctx, spare))
			spare = was
		}
	}
	c.next.functions[def.Name] = f
	c.undo = append(c.undo, func() { e.logClose("function", def.Name, release(context.WithoutCancel(ctx), f, spare)) })
	if spare != nil {
		c.next.spares[def.Name] = spare
	}
	return c.putVersion(f.book, def.Digest, e.now())
}

// openFunction takes what was opened ahead, or opens the function now.
func (e *Engine) openFunction(ctx context.Context, old *Plan, def event.Function, print string, a *ahead) (*function, error) {
	f := &function{def: def, print: print}
	var err error
	if f.book, err = e.openBook(ctx, old, def.Name); err != nil {
		return nil, err
	}
	if def.Digest == "" {
		return f, nil
	}
	if e.o.Host == nil {
		return nil, fmt.Errorf("this engine has no function host (Options.Host): %w", event.ErrUnsupported)
	}
	if a != nil && a.print == print && (old.functions[def.Name] == nil || a.book == f.book) {
		if a.err != nil {
			return nil, a.err
		}
		f.code, f.book, a.code = a.code, a.book, nil
	} else if f.code, err = e.openCode(ctx, def, f.book); err != nil {
		return nil, err
	}
	// Who collects modules waits for plans, so one that is here now stays.
	if !e.o.Host.Has(def.Digest) {
		return nil, errors.Join(event.Bad(event.ErrNotFound, "wasm", fmt.Sprintf("module %s was removed meanwhile; push it again", def.Digest)), f.code.Close(ctx))
	}
	return f, nil
}

// release gives up one use of each function that is not nil.
func release(ctx context.Context, fs ...*function) error {
	var errs []error
	for _, f := range fs {
		if f != nil {
			errs = append(errs, f.release(ctx))
		}
	}
	return errors.Join(errs...)
}

// pin notes which versions a subscription's steps run: for what it parks, and for its dead letters.
func (c *subConfig) pin() {
	var names []string
	for _, f := range c.functions {
		if sum, err := hex.DecodeString(strings.TrimPrefix(f.digest(), "sha256:")); err == nil && len(sum) == sumSize {
			c.digests = append(c.digests, sum...)
			names = append(names, f.def.Name+"@"+f.digest())
		}
	}
	c.versions = strings.Join(names, ",")
}

// collectLoop removes modules that nobody names, after changes and now and then.
func (e *Engine) collectLoop(ctx context.Context) {
	if e.o.Host == nil {
		return
	}
	t := time.NewTicker(collectEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-e.litter:
		}
		removed, err := e.CollectModules(ctx, time.Now().Add(-moduleGrace)) // files bear the machine's own time
		if err != nil && ctx.Err() == nil {
			e.o.Log.Warn("modules that nobody names could not be removed", "error", err)
		}
		if len(removed) > 0 {
			e.o.Log.Info("modules that nobody names were removed", "digests", removed)
		}
	}
}

// CollectModules removes modules that were put before a time and that nobody names: no function in force
// nor its kept versions, no shadow, no definition, no parked event.
func (e *Engine) CollectModules(ctx context.Context, before time.Time) (removed []string, err error) {
	if e.o.Host == nil {
		return nil, nil
	}
	litter, err := e.collectNow(ctx, before, nil)
	if err != nil || len(litter) == 0 {
		return nil, err
	}
	// Many rows may be parked, so they are read only if they matter, and without holding up anybody: what is
	// parked meanwhile was made by versions in force.
	named := map[string]bool{}
	if err := parkedDigests(ctx, e.store, named); err != nil {
		return nil, err
	}
	return e.collectNow(ctx, before, named)
}

// collectNow removes modules that neither the plan nor definitions nor parked name; without parked it
// removes nothing and returns what might go.
func (e *Engine) collectNow(ctx context.Context, before time.Time, parked map[string]bool) (litter []string, err error) {
	for !e.applying.TryLock() { // not Lock: Close holds it while it waits for the loop that calls this
		if pause(ctx, 10*time.Millisecond); ctx.Err() != nil || e.draining.Load() {
			return nil, ctx.Err()
		}
	}
	defer e.applying.Unlock()
	named := map[string]bool{}
	if err := e.namedDigests(ctx, named); err != nil {
		return nil, err
	}
	if parked != nil {
		return e.o.Host.Collect(ctx, before, func(digest string) bool { return named[digest] || parked[digest] })
	}
	_, err = e.o.Host.Collect(ctx, before, func(digest string) bool {
		if !named[digest] {
			litter = append(litter, digest)
		}
		return true
	})
	return litter, err
}

var digestText = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// namedDigests collects what definitions and the plan name. The caller holds applying.
func (e *Engine) namedDigests(ctx context.Context, named map[string]bool) error {
	p := e.plan.Load()
	for _, fs := range []map[string]*function{p.functions, p.spares} {
		for _, f := range fs {
			named[f.digest()] = true
		}
	}
	for _, s := range p.subs {
		for _, sh := range s.config.Load().shadows {
			named[sh.digest] = true
		}
	}
	e.choices.name(named)
	return storedDigests(ctx, e.store, named)
}

// NamedModules are the digests of the modules that a store names which no engine has open. Rules in files may name others.
func NamedModules(ctx context.Context, s storage.Store) (map[string]bool, error) {
	named := map[string]bool{}
	return named, errors.Join(storedDigests(ctx, s, named), parkedDigests(ctx, s, named))
}

// storedDigests collects what functions, definitions and replays name.
func storedDigests(ctx context.Context, s storage.Store, named map[string]bool) error {
	if err := replayDigests(ctx, s, named); err != nil {
		return err
	}
	for _, table := range []storage.Table{tableFunctions, tableDefinitions} {
		err := s.Scan(ctx, table, nil, nil, func(_, v []byte) error {
			for _, d := range digestText.FindAll(v, -1) {
				named[string(d)] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func parkedDigests(ctx context.Context, s storage.Store, named map[string]bool) error {
	return s.Scan(ctx, tableParked, nil, nil, func(k, v []byte) error {
		p, _, _, err := parseParkedHead(k, v)
		if err != nil {
			return nil // fetchDue says so
		}
		for sums := p.digests; len(sums) >= sumSize; sums = sums[sumSize:] {
			named["sha256:"+hex.EncodeToString(sums[:sumSize])] = true
		}
		if _, digest, ok := strings.Cut(p.with, "@"); ok {
			named[strings.Clone(digest)] = true
		}
		return ctx.Err()
	})
}

// collect has modules that nobody names looked for soon.
func (e *Engine) collect() {
	select {
	case e.litter <- struct{}{}:
	default:
	}
}
