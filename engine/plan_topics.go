package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// maxPartitions bounds a topic's partitions: each costs a goroutine and a log.
const maxPartitions = 1024

func (e *Engine) planTopics(ctx context.Context, c *change, defs []event.Topic) error {
	var errs []error
	for _, def := range defs {
		def = def.WithDefaults()
		if err := e.planTopic(ctx, c, def); err != nil {
			errs = append(errs, event.At("topics."+def.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) planTopic(ctx context.Context, c *change, def event.Topic) error {
	if err := event.CheckName("topic", def.Name); err != nil {
		return err
	}
	if def.Partitions < 1 || def.Partitions > maxPartitions {
		return event.Invalid("partitions", fmt.Sprintf("%d; want 1 to %d", def.Partitions, maxPartitions))
	}
	if def.Retain.Bytes < int64(def.Partitions) || def.Retain.Age < 0 || def.Retain.Events < 0 || def.Dedupe < 0 {
		return event.Invalid("retain", fmt.Sprintf("%+v, dedupe %s; want positive bounds, at least a byte for each partition", def.Retain, def.Dedupe))
	}
	schema, err := compileSchema(def)
	if err != nil {
		return err
	}
	t := c.next.topics[def.Name]
	if t == nil {
		e.serial++
		row := topicRow{Serial: e.serial, Def: def, Of: c.made[def.Name]}
		if t, err = e.openTopic(ctx, row); err != nil {
			return err
		}
		c.undo = append(c.undo, func() { e.dropLogs(context.WithoutCancel(ctx), t) })
		c.next.topics[def.Name] = t
		c.topics = append(c.topics, t)
		return c.putTopic(row)
	}
	was := t.def.Load()
	if was.Partitions != def.Partitions {
		return event.Bad(event.ErrConflict, "partitions", fmt.Sprintf("%d; the topic was made with %d, and the number is fixed: make another topic", def.Partitions, was.Partitions))
	}
	c.defs = append(c.defs, redefined{t, &topicDef{def, schema}, c.made[def.Name]})
	return c.putTopic(topicRow{Serial: t.serial, Def: def, Of: c.made[def.Name]})
}

func (c *change) putTopic(row topicRow) error {
	value, err := json.Marshal(row)
	c.ops = append(c.ops, put(tableTopics, []byte(row.Def.Name), value))
	return err
}

func (e *Engine) dropLogs(ctx context.Context, t *topic) {
	for _, p := range t.parts {
		p.claim.Release()
		if err := e.store.DropLog(ctx, p.id); err != nil {
			e.o.Log.Error("a topic's log could not be dropped", "topic", t.name, "error", err)
		}
	}
}

// DeleteTopic removes a topic with its events. A topic that subscriptions use is refused.
func (e *Engine) DeleteTopic(ctx context.Context, name string, ops ...storage.Op) error {
	e.applying.Lock()
	defer e.applying.Unlock()
	t, err := e.topic(name)
	if err != nil {
		return err
	}
	old := e.plan.Load()
	var users []string
	for _, s := range old.subs {
		if d := s.config.Load(); s.topic == t || d.Deliver.Topic == name || d.DeadLetter == name {
			users = append(users, s.name)
		}
	}
	if len(users) > 0 {
		slices.Sort(users)
		users = slices.Compact(users)
		return event.Bad(event.ErrConflict, "topic", fmt.Sprintf("%q is used by the subscriptions %q; delete or change them first", name, users))
	}
	t.letters.work.Lock() // who finishes dead letters of it finds it gone
	defer t.letters.work.Unlock()
	ops = append(ops, del(tableTopics, []byte(name)), delPrefix(tableCheckpoints, t.serial), delPrefix(tableTraces, t.serial), delPrefix(tableForwarded, t.serial))
	ops = append(ops, removalOfLetters(t.serial)...)
	if err := e.store.Commit(ctx, &storage.Batch{Ops: ops}); err != nil {
		return fmt.Errorf("delete topic %s: %w", name, err)
	}
	next := *old
	next.topics = maps.Clone(old.topics)
	delete(next.topics, name)
	e.plan.Store(&next)
	close(t.ended)
	t.wakeAll()
	e.dropLogs(context.WithoutCancel(ctx), t)
	return nil
}
