package engine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// Receipts tell a webhook that was stored before: by its id, and by what was signed where the id is not part of that, since
// whoever saw a signed request can send it again under another id. What was published is no webhook: the dedupe window of
// the topic does not count, so that nobody who may publish can have a webhook taken for a repeat by taking its id. A receipt is written with the event, in one commit,
// and counts for 12 hours at least, whatever the topic's dedupe window is: senders repeat for longer than clients do, and
// a signed request without a time in it never becomes stale.

// receiptSpan is how long the receipts of one group are gathered; a group goes once the second after it begins.
const receiptSpan = 12 * time.Hour

// receiving is what keeps the same webhook from being stored twice while both are under way.
type receiving struct {
	stripes [256]sync.Mutex
	span    atomic.Uint32 // the last that receipts were written into
}

// What a receipt is of.
const (
	receiptID    = 'i'
	receiptProof = 'p'
)

// Receive stores one webhook's event in a topic, unless one with its source and id was stored in the last 12 hours or, where
// proof is not nil, one with that proof. repeat reports that, and id is the first's then. It returns once the event is
// durable. Unlike Publish it does not look at the content of a repeat, nor at its key. ev may be borrowed.
//
// Errors are those of Publish, without ErrConflict.
func (e *Engine) Receive(ctx context.Context, topic string, ev *event.Event, proof []byte) (id string, repeat bool, err error) {
	if e.draining.Load() {
		return "", false, fmt.Errorf("the router is shutting down: %w", event.ErrUnavailable)
	}
	if err := e.sealed(topic); err != nil {
		return "", false, err
	}
	t := e.plan.Load().topics[topic]
	if t == nil {
		if t, err = e.lookup(ctx, topic); err != nil {
			return "", false, err
		}
	}
	p := publications.Get().(*publication)
	defer p.recycle()
	e.turn.Add(1)
	hasID := ev.ClientID
	ev.ClientID = false // receipts tell, not what is published
	if err := e.admit(t, p, ev); err != nil {
		return "", false, err
	}
	span := uint32(e.now().Unix() / int64(receiptSpan/time.Second))
	var room [2][receiptSize]byte
	keys := room[:0]
	if hasID {
		keys = append(keys, receiptKey(span, t, receiptID, ev.Source, ev.ID))
	}
	if proof != nil {
		keys = append(keys, receiptKey(span, t, receiptProof, ev.Source, string(proof)))
	}
	defer e.receipts.hold(keys)()
	for i, key := range keys {
		first, err := e.receipt(ctx, key)
		if err != nil {
			return "", false, err
		}
		if first != nil {
			return string(first), true, e.receipts.note(ctx, e, keys[i+1:], first)
		}
	}
	ops := make([]storage.Op, 0, len(keys)+1)
	for i := range keys {
		ops = append(ops, put(tableReceipts, keys[i][:], []byte(ev.ID)))
	}
	if old := e.receipts.span.Load(); old != span && len(ops) > 0 {
		ops = append(ops, storage.Op{Table: tableReceipts, Kind: storage.DeleteRange, Key: key32(0), Value: key32(span - 1)})
	}
	p.batch.Ops = ops
	err = e.store.Commit(ctx, &p.batch)
	p.batch.Ops = nil
	if err != nil {
		return "", false, fmt.Errorf("store: %w", err)
	}
	e.receipts.span.Store(span)
	e.o.Observer.Published(t.name, 1, len(ev.Data))
	return strings.Clone(ev.ID), false, nil
}

// note writes a repeat's other receipts, which hold is held for: one that was signed anew under the same id could
// else be sent again in a form in which its id is not found.
func (r *receiving) note(ctx context.Context, e *Engine, keys [][receiptSize]byte, id []byte) error {
	var ops []storage.Op
	for i := range keys {
		switch known, err := e.receipt(ctx, keys[i]); {
		case err != nil:
			return err
		case known == nil:
			ops = append(ops, put(tableReceipts, keys[i][:], id))
		}
	}
	if len(ops) == 0 {
		return nil
	}
	if err := e.store.Commit(ctx, &storage.Batch{Ops: ops}); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

const receiptSize = 4 + 4 + 1 + 16

// receiptKey is span, the topic's incarnation, what it is of, and a hash.
func receiptKey(span uint32, t *topic, of byte, source, text string) (key [receiptSize]byte) {
	h := sha256.New()
	_, _ = h.Write([]byte(source))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(text))
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	be.PutUint32(key[0:], span)
	be.PutUint32(key[4:], t.parts[0].id.Topic)
	key[8] = of
	copy(key[9:], sum[:])
	return key
}

// receipt looks for a key in its own group and the one before.
func (e *Engine) receipt(ctx context.Context, key [receiptSize]byte) ([]byte, error) {
	span := be.Uint32(key[0:])
	for _, s := range []uint32{span, span - 1} {
		be.PutUint32(key[0:], s)
		id, err := e.store.Load(ctx, tableReceipts, key[:])
		if err != nil || id != nil {
			return id, err
		}
	}
	return nil, nil
}

// hold locks the stripes of keys, in their order so that two that hold several do not wait for each other.
func (r *receiving) hold(keys [][receiptSize]byte) (release func()) {
	var stripes []byte
	for i := range keys {
		if s := keys[i][9]; !slices.Contains(stripes, s) {
			stripes = append(stripes, s)
		}
	}
	slices.Sort(stripes)
	for _, s := range stripes {
		r.stripes[s].Lock()
	}
	return func() {
		for _, s := range stripes {
			r.stripes[s].Unlock()
		}
	}
}
