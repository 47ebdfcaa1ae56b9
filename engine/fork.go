package engine

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// A store that is restored from a backup goes on from where the backup was made, and so did the store that it was made
// of: from there on one position stands for two events, one of which may have been delivered already. A fork tells them
// apart. What lies before it is named as it always was, so that a receiver which has it drops the repeat; what came after
// has the fork's number in its webhook-id, its cursor and its leases.

// A fork is what the store keeps of a restoration.
type fork struct {
	ID   uint32                    `json:"id"` // not zero; drawn at random, so that two copies of one backup differ
	At   time.Time                 `json:"at"`
	Next map[uint32][]event.Offset `json:"next"` // of each topic's partitions, by the topic's serial: the first that is not in the backup
}

// A topicFork is a fork as one topic sees it.
type topicFork struct {
	id   uint32
	next []event.Offset
}

// maxForks are kept, the newest: cursors and events of before the 64th restoration back are not told apart any more.
const maxForks = 64

// loadForks reads the forks, adds the one that Options.Fork asks for, and shows them to the topics. Nothing runs yet.
func (e *Engine) loadForks(ctx context.Context) error {
	text, err := e.store.Load(ctx, tableMeta, []byte("forks"))
	if err != nil {
		return err
	}
	var forks []fork
	if text != nil {
		if err := json.Unmarshal(text, &forks); err != nil {
			return fmt.Errorf("the row of restorations: %w", err)
		}
	}
	topics := e.plan.Load().topics
	if n := len(forks); e.o.Fork != 0 && (n == 0 || forks[n-1].ID != e.o.Fork) {
		f := fork{ID: e.o.Fork, At: e.o.Now().UTC(), Next: map[uint32][]event.Offset{}}
		for _, t := range topics {
			for _, p := range t.parts {
				f.Next[t.serial] = append(f.Next[t.serial], p.log.Bounds().Next)
			}
		}
		forks = append(forks, f)
		forks = forks[max(0, len(forks)-maxForks):]
		// What either store makes from here on has numbers that the other will hardly come to.
		if jump := 1<<16 + f.ID>>8; e.serial < math.MaxUint32-jump-1<<16 {
			e.serial += jump
		}
		if text, err = json.Marshal(forks); err != nil {
			return err
		}
		b := &storage.Batch{Ops: []storage.Op{put(tableMeta, []byte("forks"), text), put(tableMeta, []byte("serial"), key32(e.serial))}}
		if err := e.store.Commit(ctx, b); err != nil {
			return err
		}
	}
	e.leaseKey = e.secret
	for _, f := range forks {
		for _, t := range topics {
			if next, ok := f.Next[t.serial]; ok && len(next) == len(t.parts) {
				t.forks = append(t.forks, topicFork{f.ID, next})
			}
		}
		e.leaseKey = sha256.Sum256(forkKey(e.secret, f.ID))
	}
	return nil
}

func forkKey(secret [32]byte, id uint32) []byte {
	return be.AppendUint32(append([]byte("fork\x00"), secret[:]...), id)
}

// forkOf is the number of the last restoration before an event was appended, 0 where there was none.
func (t *topic) forkOf(p event.Position) uint32 {
	for i := len(t.forks) - 1; i >= 0; i-- {
		if f := &t.forks[i]; p.Offset >= f.next[p.Partition] {
			return f.id
		}
	}
	return 0
}

// lastFork is the number of the last restoration that the topic has seen.
func (t *topic) lastFork() uint32 {
	if n := len(t.forks); n > 0 {
		return t.forks[n-1].id
	}
	return 0
}

// checkFork refuses a cursor that stands behind events which a restoration lost: it would skip those that came in their
// place.
func (t *topic) checkFork(id uint32, offsets []event.Offset) error {
	if id == t.lastFork() {
		return nil
	}
	since := 0
	for i := range t.forks {
		if t.forks[i].id == id {
			since = i + 1
		}
	}
	for _, f := range t.forks[since:] {
		for i, off := range offsets {
			if off > f.next[i] {
				return event.Bad(event.ErrGone, "cursor", fmt.Sprintf("the router was restored from a backup since it was given: partition %d of topic %q then went on from offset %d, and what stood at %d before may be lost", i, t.name, f.next[i], off))
			}
		}
	}
	if id != 0 && since == 0 {
		return event.Bad(event.ErrGone, "cursor", fmt.Sprintf("it is of another copy of topic %q, or of before a restoration too far back", t.name))
	}
	return nil
}
