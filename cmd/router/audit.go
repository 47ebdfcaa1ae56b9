package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// tell takes an entry of the audit log: a line of the process's log, and an event where there is a topic for them.
func (g *guard) tell(e access.AuditEntry) {
	level := slog.LevelInfo
	if e.Outcome != access.Changed && e.Outcome != access.Taken {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{slog.String("outcome", e.Outcome)}
	for _, a := range []struct{ name, value string }{
		{"principal", e.Principal}, {"addr", e.Addr}, {"action", string(e.Action)}, {"kind", e.Kind}, {"name", e.Name}, {"detail", e.Detail},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.name, a.value))
		}
	}
	g.log.LogAttrs(context.Background(), level, "audit", attrs...)
	if g.audit != nil {
		g.audit.add(e)
	}
}

// auditQueue is how many entries wait to be stored.
const auditQueue = 4096

// An auditTopic stores the audit log as events.
type auditTopic struct {
	e     *engine.Engine
	topic string
	log   *slog.Logger
	queue chan access.AuditEntry
	lost  atomic.Uint64 // since the last that was stored
}

// auditAge is how long a topic that is made for the audit log keeps it; a topic that is there already says so itself.
const auditAge = "90d"

// openAuditTopic returns one that run must be called of.
func openAuditTopic(e *engine.Engine, name string, log *slog.Logger) (*auditTopic, error) {
	if err := event.CheckName("topic", name); err != nil {
		return nil, fmt.Errorf("--audit-topic: %w", err)
	}
	return &auditTopic{e: e, topic: name, log: log, queue: make(chan access.AuditEntry, auditQueue)}, nil
}

// add does not wait: what does not fit is counted, and said with what is stored next. The log has its line.
func (a *auditTopic) add(e access.AuditEntry) {
	select {
	case a.queue <- e:
	default:
		a.lost.Add(1)
	}
}

// run stores entries, until ctx ends and the queue is empty.
func (a *auditTopic) run(ctx context.Context) {
	for {
		select {
		case e := <-a.queue:
			a.store(ctx, e)
		case <-ctx.Done():
			for {
				select {
				case e := <-a.queue:
					a.store(ctx, e)
				default:
					return
				}
			}
		}
	}
}

// store writes what is queued, at most a batch, as one.
func (a *auditTopic) store(ctx context.Context, first access.AuditEntry) {
	const most = 100
	entries := []access.AuditEntry{first}
	for len(entries) < most && len(a.queue) > 0 {
		entries = append(entries, <-a.queue)
	}
	if n := a.lost.Swap(0); n > 0 {
		entries = append(entries, access.AuditEntry{Time: first.Time, Outcome: access.LeftOut, Detail: fmt.Sprintf("%d entries came faster than they could be stored", n)})
	}
	evs := make([]event.Event, len(entries))
	for i, e := range entries {
		doc, err := json.Marshal(e)
		if err != nil { // strings and a time: cannot be
			a.log.Error("audit entry", "error", err)
			return
		}
		evs[i] = event.Event{Type: "access." + e.Outcome, Source: "/router/access", Subject: e.Principal, DataContentType: "application/json", Data: doc,
			Time: e.Time.UTC().Format(time.RFC3339Nano)}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := a.e.PublishSealed(ctx, evs, make([]event.Position, len(evs))); err != nil {
		a.lost.Add(uint64(len(entries)))
		a.log.Error("the audit topic takes nothing; the entries are in this log", "topic", a.topic, "entries", len(entries), "error", err)
	}
}
