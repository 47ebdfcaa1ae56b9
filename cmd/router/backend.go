package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/protocol/ws"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// backend is the router as the HTTP face sees it: the engine for events, definitions for what is in force.
type backend struct {
	*engine.Engine
	*definitions
	*backtesting
	store storage.Store
	start time.Time

	backups
}

var _ httpapi.Backend = backend{}

// OpenTopic opens a reader; the interface wants its own type.
func (b backend) OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (httpapi.Reader, error) {
	return reader(b.Engine.OpenTopic(ctx, topic, start, filter))
}

// OpenSubscription is the same over a subscription's outputs.
func (b backend) OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (httpapi.Reader, error) {
	return reader(b.Engine.OpenSubscription(ctx, name, start, filter))
}

func reader(r *engine.Reader, err error) (httpapi.Reader, error) {
	if err != nil {
		return nil, err // a nil *Reader in the interface would not be nil
	}
	return r, nil
}

// A socketBackend is the router as the WebSocket face sees it; the interface wants its own type of reader.
type socketBackend struct{ backend }

var _ ws.Backend = socketBackend{}

// socketOptions are those of the WebSocket face, whose clients HTTP has let in.
func socketOptions(b backend, o routerOptions) ws.Options {
	return ws.Options{
		Backend: socketBackend{b}, Limits: o.edge.limits, Log: o.log,
		May: func(ctx context.Context, a access.Action, k access.Kind, name string) error {
			return httpapi.SessionOf(ctx).May(a, k, name)
		},
		Spend:   func(ctx context.Context) error { return httpapi.SessionOf(ctx).Spend() },
		Reserve: func(ctx context.Context, n, size int) error { return httpapi.SessionOf(ctx).Reserve(n, size) },
		Release: func(ctx context.Context) { httpapi.SessionOf(ctx).Release() },
		Problem: httpapi.ProblemOf, Render: httpapi.AppendEvent,
	}
}

// OpenTopic opens a reader.
func (b socketBackend) OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (ws.Reader, error) {
	r, err := b.backend.OpenTopic(ctx, topic, start, filter)
	return r, b.unseen(ctx, access.Topic, topic, err)
}

// OpenSubscription is the same over a subscription's outputs.
func (b socketBackend) OpenSubscription(ctx context.Context, name string, start event.Start, filter string) (ws.Reader, error) {
	r, err := b.backend.OpenSubscription(ctx, name, start, filter)
	return r, b.unseen(ctx, access.Subscription, name, err)
}

// Publish stores events.
func (b socketBackend) Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error {
	return b.unseen(ctx, access.Topic, topic, b.backend.Publish(ctx, topic, evs, pos))
}

// Pull leases deliveries.
func (b socketBackend) Pull(ctx context.Context, name string, max int, wait time.Duration) ([]event.Lease, error) {
	leases, err := b.backend.Pull(ctx, name, max, wait)
	return leases, b.unseen(ctx, access.Subscription, name, err)
}

// Settle settles leases.
func (b socketBackend) Settle(ctx context.Context, name string, leases []string, how event.Settling) ([]event.Lost, error) {
	lost, err := b.backend.Settle(ctx, name, leases, how)
	return access.UnseenLeases(httpapi.SessionOf(ctx).Principal(), lost), b.unseen(ctx, access.Subscription, name, err)
}

// unseen takes other names out of what a client is told of a name that does not exist.
func (b socketBackend) unseen(ctx context.Context, k access.Kind, name string, err error) error {
	return access.Unseen(httpapi.SessionOf(ctx).Principal(), k, name, err, b.Has)
}

// Replay begins a replay, through a function and a version that whoever asks may see.
func (b backend) Replay(ctx context.Context, name string, r event.Replay) (_ event.ReplayInfo, err error) {
	if r.Function, err = b.seenFunction(b.asker(ctx), r.Function, "function"); err != nil {
		return event.ReplayInfo{}, err
	}
	return b.Engine.Replay(ctx, name, r)
}

// Redrive delivers dead letters again, through a function and a version that whoever asks may see.
func (b backend) Redrive(ctx context.Context, name string, r event.Redrive) (_ event.LettersDone, err error) {
	if r.Function, err = b.seenFunction(b.asker(ctx), r.Function, "function"); err != nil {
		return event.LettersDone{}, err
	}
	return b.Engine.Redrive(ctx, name, r)
}

// Invoke calls a function, in a version that whoever asks may see.
func (b backend) Invoke(ctx context.Context, name, version string, ev *event.Event) (*event.Invocation, error) {
	if p := b.asker(ctx); version != "" && !p.Everything() {
		if _, err := plugins.ResolveDigest(version, b.runnable(p.Principal, name)); errors.Is(err, event.ErrNotFound) {
			p.refused(access.Invoke, access.Function, name, noVersion(version))
			return nil, engine.NotKept(version, name)
		}
	}
	return b.Engine.Invoke(ctx, name, version, ev)
}

// FunctionLog reads a function's log; the interface wants its own type.
func (b backend) FunctionLog(_ context.Context, name string, limit int) (httpapi.LogReader, error) {
	r, err := b.Engine.FunctionLog(name, limit)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Shadow tells how the versions that run beside a subscription's own compare.
func (b backend) Shadow(_ context.Context, name string) ([]byte, error) {
	shadows, err := b.Shadows(name)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Subscription string              `json:"subscription"`
		Shadows      []engine.ShadowInfo `json:"shadows"`
	}{name, shadows})
}

// Ready says whether traffic should come here, and if details are asked for what is wrong where something is.
func (b backend) Ready(_ context.Context, details bool) ([]byte, error) {
	stats := b.store.Stats()
	status, store := "ready", "ok"
	var err error
	switch {
	case b.Draining():
		status, err = "draining", fmt.Errorf("the router is shutting down: %w", event.ErrUnavailable)
	case stats.Degraded != "":
		status, store = "degraded", stats.Degraded
		err = fmt.Errorf("the store refuses to write: %s: %w", stats.Degraded, event.ErrUnavailable)
	}
	if !details {
		return nil, err
	}
	state := struct {
		Status        string            `json:"status"`
		Uptime        string            `json:"uptime"`
		Topics        int               `json:"topics"`
		Subscriptions int               `json:"subscriptions"`
		Waiting       map[string]string `json:"waiting,omitempty"` // subscriptions that do not run, and why
		Rules         *rulesState       `json:"rules,omitempty"`
		Store         string            `json:"store"`
	}{Status: status, Uptime: time.Since(b.start).Round(time.Second).String(), Topics: len(b.Topics()), Store: store, Rules: b.rulesState()}
	for _, s := range b.Subscriptions() {
		state.Subscriptions++
		if s.State != "running" {
			if state.Waiting == nil {
				state.Waiting = map[string]string{}
			}
			state.Waiting[s.Name] = s.State
			if s.Reason != "" {
				state.Waiting[s.Name] += ": " + s.Reason
			}
		}
	}
	doc, failed := json.Marshal(state)
	if failed != nil {
		return nil, failed
	}
	return doc, err
}
