package engine

import (
	"context"
	"crypto/rand"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// Invoking shows a function one event and tells what it says. Nothing is stored, nothing delivered. The
// function's state is empty and what it writes is thrown away; its calls to other hosts are real.

// invokeQueue is how many invocations may be under way; those at work are fewer.
const invokeQueue = 64

// invocations bounds what Invoke takes from the functions' instances: half of them, so that deliveries go on.
type invocations struct {
	slots chan struct{}
	all   atomic.Int32
}

func newInvocations() *invocations {
	return &invocations{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

func (v *invocations) enter(ctx context.Context) error {
	if v.all.Add(1) > invokeQueue {
		v.all.Add(-1)
		return fmt.Errorf("%d functions are being invoked already: %w", invokeQueue, event.ErrUnavailable)
	}
	select {
	case v.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		v.all.Add(-1)
		return ctx.Err()
	}
}

func (v *invocations) leave() {
	<-v.slots
	v.all.Add(-1)
}

// Invoke calls a function with one event, within its limits. version is a digest, "" for the one in force;
// another is opened for this call. It fills in the attributes that the caller left out, in ev.
//
// Errors: event.ErrNotFound (function, version), ErrInvalid and ErrTooLarge (the event), ErrUnavailable
// (nothing was pushed yet; too many are under way), ErrFunction with the typed reason where it failed.
func (e *Engine) Invoke(ctx context.Context, name, version string, ev *event.Event) (*event.Invocation, error) {
	return e.invokeIn(ctx, name, version, ev, e.invoking.enter, e.invoking.leave)
}

// Judge is Invoke of the version in force, for what strangers send: the sources of events (ev.Source) take turns, apart from
// Invoke. ErrUnavailable says too that this one has too many under way.
func (e *Engine) Judge(ctx context.Context, name string, ev *event.Event) (*event.Invocation, error) {
	source := ev.Source
	enter := func(ctx context.Context) error { return e.judging.enter(ctx, source) }
	return e.invokeIn(ctx, name, "", ev, enter, func() { e.judging.leave(source) })
}

// invokeIn is Invoke in the place that enter bounds.
func (e *Engine) invokeIn(ctx context.Context, name, version string, ev *event.Event, enter func(context.Context) error, leave func()) (*event.Invocation, error) {
	if _, err := e.Function(name); err != nil {
		return nil, err
	}
	if e.draining.Load() {
		return nil, fmt.Errorf("the router is shutting down: %w", event.ErrUnavailable)
	}
	if ev.Source == "" {
		ev.Source = "/functions/" + name
	}
	e.fill(nil, ev)
	if err := ev.Validate(e.o.Limits); err != nil {
		return nil, err
	}
	if err := enter(ctx); err != nil {
		return nil, err
	}
	defer leave()
	f, done, err := e.invokable(ctx, name, version)
	if err != nil {
		return nil, err
	}
	defer done()

	ev.WantsReply = true
	rec := event.Record(ev.AppendRecord(nil))
	rec.SetPlace(event.Position{}, e.now().UnixNano())
	call := plugins.Call{Events: []event.Record{rec}, Attempts: []uint32{1}}
	if _, err := rand.Read(call.Key[:]); err != nil {
		return nil, err
	}
	var out plugins.Outcome
	began := time.Now()
	if err := f.code.Call(ctx, &call, &out); err != nil {
		return nil, fmt.Errorf("invoke %s: %w", name, err)
	}
	took := time.Since(began)
	f.book.called(f.digest(), 1, took, &out)
	if len(out.Failures) > 0 {
		x := out.Failures[0]
		return nil, event.Bad(event.ErrFunction, string(x.Reason), fmt.Sprintf("function %s failed: %v", name, x.Err))
	}
	in := &event.Invocation{Fuel: out.Fuel, Took: took.Nanoseconds(), Results: []event.Invoked{}}
	for i := range out.Results {
		e.invoked(in, rec, &out.Results[i])
	}
	return in, nil
}

// invoked adds a result.
func (e *Engine) invoked(in *event.Invocation, rec event.Record, r *plugins.Result) {
	one := event.Invoked{Verdict: strings.ToLower(r.Verdict.String())}
	switch r.Verdict {
	case plugins.Reply:
		if in.Reply == nil {
			in.Reply = replyOf(r)
		}
		return
	case plugins.Emit:
		var made event.Event
		r.Event(rec, &made)
		if made.ID == "" {
			made.ID = rec.Attr(event.TagID) + "~invoke~" + strconv.Itoa(len(in.Results))
		}
		if made.Source == "" {
			made.Source = rec.Attr(event.TagSource)
		}
		if made.Type == "" {
			made.Type = rec.Attr(event.TagType)
		}
		one.Topic, made.Topic = strings.Clone(made.Topic), ""
		one.Event = made.AppendRecord(nil)
	case plugins.Reject:
		one.Code, one.Reason = int(r.Arg), clip(string(r.Data), 512)
	case plugins.Retry:
		one.Delay = int64(r.Arg)
	}
	in.Results = append(in.Results, one)
}

// invokable returns a version of a function and what gives it back.
func (e *Engine) invokable(ctx context.Context, name, version string) (*function, func(), error) {
	for {
		p := e.plan.Load()
		f := p.functions[name]
		if f == nil {
			_, err := e.Function(name)
			return nil, nil, err
		}
		if version == "" && f.code == nil {
			return nil, nil, fmt.Errorf("no version of function %s was pushed yet; `router functions push %s FILE` does: %w", name, name, event.ErrUnavailable)
		}
		if s := p.spares[name]; version != "" && version != f.digest() {
			if s == nil || version != s.digest() {
				return e.openInvokable(ctx, f, version)
			}
			f = s
		}
		if f.hold() {
			return f, func() { e.logClose("function", name, f.release(context.WithoutCancel(ctx))) }, nil
		}
		if e.plan.Load() == p { // Close has released everything
			return nil, nil, fmt.Errorf("the router is shutting down: %w", event.ErrUnavailable)
		}
	}
}

// hold takes a reference, unless the last was given up.
func (f *function) hold() bool {
	for n := f.refs.Load(); n > 0; n = f.refs.Load() {
		if f.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// NotKept is the error of Invoke for a version that is not there.
func NotKept(version, function string) error {
	return event.Bad(event.ErrNotFound, "?version", fmt.Sprintf("no module %.90s is kept; GET /v1/functions/%s lists those that are", version, function))
}

// openInvokable opens another version for one call.
func (e *Engine) openInvokable(ctx context.Context, f *function, version string) (*function, func(), error) {
	if !digestText.MatchString(version) || len(version) != len("sha256:")+2*sumSize {
		return nil, nil, event.Invalid("?version", fmt.Sprintf("is %.80q; want sha256: and 64 hex digits", version))
	}
	if e.o.Host == nil || !e.o.Host.Has(version) {
		return nil, nil, NotKept(version, f.def.Name)
	}
	other := &function{def: f.def, book: f.book}
	other.def.Digest = strings.Clone(version)
	var err error
	if other.code, err = e.openCode(ctx, other.def, f.book); err != nil {
		return nil, nil, err
	}
	return other, func() {
		e.logClose("function", f.def.Name, other.code.Close(context.WithoutCancel(ctx)))
	}, nil
}
