package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A bridge is a subscription whose sends go in the order of its topic and wait in the topic while the other side takes
// none: event.Subscription.Backlog. Of a topic that drops its oldest, so many bytes of what its bridges have not sent stay
// whatever else bounds it; what goes beyond that is lost to the bridge, and counted as with any subscription.

// loadHeld reads what each topic held at last: before its rules are read again a log must not drop what they hold.
func (e *Engine) loadHeld(ctx context.Context) error {
	row, err := e.store.Load(ctx, tableMeta, []byte("held"))
	if err != nil || row == nil {
		return err
	}
	if err := json.Unmarshal(row, &e.held); err != nil {
		return fmt.Errorf("row of what topics hold for bridges: %w", err)
	}
	return nil
}

// planHeld notes what topics shall hold from now on.
func (e *Engine) planHeld(c *change, spec Spec) error {
	c.held = map[string]int64{}
	for i := range spec.Subscriptions {
		if s := &spec.Subscriptions[i]; s.Backlog > 0 {
			c.held[s.Topic] = max(c.held[s.Topic], s.Backlog)
		}
	}
	if maps.Equal(c.held, e.held) {
		return nil
	}
	row, err := json.Marshal(c.held)
	c.ops = append(c.ops, put(tableMeta, []byte("held"), row))
	return err
}

// holdTopics puts in force what planHeld noted.
func (e *Engine) holdTopics(ctx context.Context, c *change) {
	e.held = c.held
	for _, t := range c.next.topics {
		if t.held.Load() == c.held[t.name] {
			continue
		}
		t.held.Store(c.held[t.name])
		for _, p := range t.parts {
			if _, err := e.store.OpenLog(ctx, p.id, t.logOptions(t.def.Load().Topic)); err != nil {
				e.o.Log.Error("what a topic holds for its bridges is not in force before the next start", "topic", t.name, "error", err)
			}
		}
	}
}

// Behind is what a subscription has not settled of its topic.
type Behind struct {
	Events uint64
	Bytes  int64     // by the mean of the events that the topic holds
	Oldest time.Time // when the first of them was received; zero if there is none
}

// Behind says how far a subscription is behind its topic. It reads one event of each partition.
func (e *Engine) Behind(ctx context.Context, name string) (Behind, error) {
	var all Behind
	s, err := e.subscription(name)
	if err != nil {
		return all, err
	}
	for _, p := range s.topic.parts {
		from, b := s.watermark(p), p.log.Bounds()
		if from = max(from, b.Head); from >= b.Next {
			continue
		}
		all.Events += b.Next - from
		all.Bytes += int64(float64(b.Bytes) * float64(b.Next-from) / float64(b.Next-b.Head))
		_, rec, err := readOne(ctx, p.log, from)
		if errors.Is(err, event.ErrGone) || errors.Is(err, event.ErrNotFound) { // the ring has passed it meanwhile
			continue
		}
		if err != nil {
			return all, err
		}
		if at := rec.ReceivedAt(); all.Oldest.IsZero() || at.Before(all.Oldest) {
			all.Oldest = at
		}
	}
	return all, nil
}

// Bounds of the circuit of a bridge: it opens with the first failure, for a link that is down must not cost a try an event,
// and is tried often, for nobody but the bridge is there to press it.
const (
	bridgeFirstWait = time.Second
	bridgeMaxWait   = 30 * time.Second
)

// circuitOf are the limits of a subscription's circuit.
func (e *Engine) circuitOf(c *subConfig) breakerLimits {
	if c.Backlog > 0 {
		return breakerLimits{failures: 1, first: bridgeFirstWait, most: bridgeMaxWait}
	}
	return e.circuit
}

// appendLine writes what positions of a bridge's deliveries count in: <incarnation of the subscription>.<fork>.<seeks>.
func (s *subscription) appendLine(b []byte, pos event.Position, gen uint32) []byte {
	b = strconv.AppendUint(b, uint64(s.serial), 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(s.topic.forkOf(pos)), 16)
	b = append(b, '.')
	return strconv.AppendUint(b, uint64(gen), 10)
}

// takeBack puts what a bridge could not send back where it was taken from: before what waits already, which may be the rest of
// what came back before. The other side drops what is below what it has taken as a repeat. The caller holds s.mu.
func (s *subscription) takeBack(its []item) {
	for s.due.len() > 0 {
		its = append(its, s.due.pop())
	}
	slices.SortStableFunc(its, func(a, b item) int {
		switch { // what is tried again by itself has no place in the line
		case a.parked != nil && b.parked != nil:
			return 0
		case a.parked != nil:
			return 1
		case b.parked != nil:
			return -1
		}
		x, y := a.rec.Position(), b.rec.Position()
		return cmp.Or(cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.Offset, y.Offset))
	})
	s.dueBytes = 0
	for _, it := range its {
		s.again(it)
	}
}
