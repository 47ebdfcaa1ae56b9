package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A bridge that brings events in remembers how far it has come on the other side in the commit that stores them: a router that
// is killed goes on with the first that it does not have.

// TakenIn is what became of events that a bridge brought in.
type TakenIn struct {
	Stored, Bytes int
	Repeats       int // of the topic's dedupe window
	Loops         int // have been here, or passed too many routers: see event.ViaAttribute
	Refused       []Refused
}

// Refused is an event that the topic does not take.
type Refused struct {
	ID  string
	Err error
}

// TakeIn stores what a bridge brings in, and the place from which it goes on, in one commit. Events that the topic does not take
// are left out; an error is about the router or the topic, and nothing is stored.
func (e *Engine) TakeIn(ctx context.Context, bridge, topic string, evs []event.Event, place []byte) (TakenIn, error) {
	var in TakenIn
	t, err := e.open(ctx, topic)
	if err != nil {
		return in, err
	}
	ops := []storage.Op{put(tableInlets, []byte(bridge), place)}
	name := e.Name()
	keep := make([]int, 0, len(evs))
	for i := range evs {
		if loops(&evs[i], name) {
			in.Loops++
			continue
		}
		evs[i].ClientID = evs[i].ID != ""
		keep = append(keep, i)
	}
	pos := make([]event.Position, len(evs))
	for {
		repeats, err := e.publishKept(ctx, t, evs, keep, pos, ops)
		if err == nil {
			in.Stored, in.Repeats = len(keep)-repeats, repeats
			break
		}
		at := faultyEvent(err)
		left := keep[:0]
		for _, i := range keep {
			if i == at {
				in.Refused = append(in.Refused, Refused{strings.Clone(evs[i].ID), err})
			} else {
				left = append(left, i)
			}
		}
		if len(left) == len(keep) { // about none of them
			return in, err
		}
		keep = left
	}
	for _, i := range keep {
		in.Bytes += len(evs[i].Data)
	}
	return in, nil
}

// faultyEvent is which event of a batch is at fault, -1 if it is not an event.
func faultyEvent(err error) int {
	var f *event.Faults
	if !errors.As(err, &f) || errors.Is(err, event.ErrFull) || errors.Is(err, event.ErrUnavailable) || len(f.List) == 0 {
		return -1
	}
	rest, ok := strings.CutPrefix(f.List[0].At, "events[")
	num, _, closed := strings.Cut(rest, "]")
	i, bad := strconv.Atoi(num)
	if !ok || !closed || bad != nil {
		return -1
	}
	return i
}

// InletPlace returns what TakeIn was given last for a bridge, nil if nothing.
func (e *Engine) InletPlace(ctx context.Context, bridge string) ([]byte, error) {
	place, err := e.store.Load(ctx, tableInlets, []byte(bridge))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return place, nil
}

// ForgetInlets forgets the places of all bridges but those of keep.
func (e *Engine) ForgetInlets(ctx context.Context, keep map[string]bool) error {
	var ops []storage.Op
	err := e.store.Scan(ctx, tableInlets, nil, nil, func(k, _ []byte) error {
		if !keep[string(k)] {
			ops = append(ops, del(tableInlets, []byte(string(k))))
		}
		return nil
	})
	if err == nil && len(ops) > 0 {
		err = e.store.Commit(ctx, &storage.Batch{Ops: ops})
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// Stamp tells a topic from one of the same name that was deleted and made again, or restored from a backup.
func (e *Engine) Stamp(name string) (string, error) {
	t, err := e.topic(name)
	if err != nil {
		return "", err
	}
	return nameOf(fmt.Sprintf("topic %d %d", t.serial, t.lastFork()), e.secret)[:8], nil
}
