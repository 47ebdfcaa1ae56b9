package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// replies is who waits and what is kept: an index only, the replies themselves are rows of the store.
type replies struct {
	waiters   int           // at once, at most
	keep      time.Duration // a reply
	maxCount  int
	maxBytes  int64
	discarded func(why string)

	mu      sync.Mutex
	known   map[replyKey]*knownReply
	order   fifo[replyKey] // of known, the next to expire first
	gone    fifo[replyKey] // of known, whose rows are or will be deleted
	litter  []replyKey     // rows to delete
	count   int
	bytes   int64
	waiting map[replyKey][]chan *event.Reply
	taken   int           // slots of waiters
	ended   chan struct{} // closed when the router drains
}

type replyKey struct {
	topic uint32
	pos   event.Position
}

type knownReply struct {
	state   replyState
	expires int64 // Unix ns, as Engine.now counts
	size    int64
}

type replyState uint8

const (
	replyPending replyState = iota // its commit is under way
	replyKept
	replyGone // it has expired or made room; remembered for a while so that no second one comes
)

func newReplies(o Options) *replies {
	return &replies{
		waiters: o.Waiters, keep: o.ReplyKeep, maxCount: o.Replies, maxBytes: o.ReplyBytes, discarded: o.Observer.ReplyDiscarded,
		known: map[replyKey]*knownReply{}, waiting: map[replyKey][]chan *event.Reply{}, ended: make(chan struct{}),
	}
}

// Why a reply is discarded.
const (
	replyUnasked = "unasked" // the event's producer did not ask for one
	replySecond  = "second"  // there is one already
)

func (k replyKey) row() []byte {
	b := be.AppendUint32(make([]byte, 0, 16), k.topic)
	return be.AppendUint64(be.AppendUint32(b, k.pos.Partition), k.pos.Offset)
}

func replyKeyOf(b []byte) replyKey {
	return replyKey{be.Uint32(b), event.Position{Partition: be.Uint32(b[4:]), Offset: be.Uint64(b[8:])}}
}

// A row of tableReplies: when it expires i64, status u16, length u16 of the content type, that, the body.
const replyHead = 12

func appendReplyRow(dst []byte, expires int64, r *event.Reply) []byte {
	dst = be.AppendUint64(dst, uint64(expires))
	dst = be.AppendUint16(dst, uint16(r.Status))
	dst = be.AppendUint16(dst, uint16(len(r.ContentType)))
	return append(append(dst, r.ContentType...), r.Data...)
}

func parseReplyRow(row []byte) (*event.Reply, error) {
	if len(row) < replyHead || len(row) < replyHead+int(be.Uint16(row[10:])) {
		return nil, errors.New("a kept reply is damaged")
	}
	at := replyHead + int(be.Uint16(row[10:]))
	return &event.Reply{Status: int(be.Uint16(row[8:])), ContentType: string(row[replyHead:at]), Data: bytes.Clone(row[at:])}, nil
}

// load reads what was kept before the start.
func (b *replies) load(ctx context.Context, store storage.Store) error {
	type found struct {
		key replyKey
		knownReply
	}
	var all []found
	err := store.Scan(ctx, tableReplies, nil, nil, func(k, v []byte) error {
		if len(k) != 16 || len(v) < replyHead {
			return errors.New("a kept reply is damaged")
		}
		all = append(all, found{replyKeyOf(k), knownReply{replyKept, int64(be.Uint64(v)), int64(len(v))}})
		return nil
	})
	slices.SortFunc(all, func(x, y found) int { return cmp.Compare(x.expires, y.expires) })
	for _, f := range all {
		b.enter(f.key, &f.knownReply)
	}
	return err
}

// enter adds a reply and makes room for it. The caller holds b.mu.
func (b *replies) enter(key replyKey, r *knownReply) {
	b.known[key] = r
	b.order.push(key)
	b.count++
	b.bytes += r.size
	for (b.count > b.maxCount || b.bytes > b.maxBytes) && b.order.len() > 1 {
		b.expire()
	}
}

// expire lets go of the reply that is next. The caller holds b.mu.
func (b *replies) expire() {
	key := b.order.pop()
	r := b.known[key]
	if r == nil || r.state != replyKept { // its commit failed, or is slower than all others
		return
	}
	b.count--
	b.bytes -= r.size
	r.state = replyGone
	b.litter = append(b.litter, key)
	b.gone.push(key)
	for b.gone.len() > b.maxCount {
		delete(b.known, b.gone.pop())
	}
}

// sweep adds the removal of the rows of replies that have expired; swept tells how that ended.
func (b *replies) sweep(now int64, ops []storage.Op) ([]storage.Op, []replyKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.order.len() > 0 {
		if r := b.known[b.order.at(0)]; r != nil && r.expires > now {
			break
		}
		b.expire()
	}
	litter := b.litter
	b.litter = nil
	for _, key := range litter {
		ops = append(ops, del(tableReplies, key.row()))
	}
	return ops, litter
}

func (b *replies) swept(litter []replyKey, err error) {
	if err != nil {
		b.mu.Lock()
		b.litter = append(b.litter, litter...)
		b.mu.Unlock()
	}
}

// claim makes a reply that of its event, unless that has one, and adds its row.
func (b *replies) claim(batch *storage.Batch, key replyKey, r *event.Reply, now time.Time) bool {
	expires := now.Add(b.keep).UnixNano()
	row := appendReplyRow(nil, expires, r)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known[key] != nil {
		return false
	}
	b.enter(key, &knownReply{replyPending, expires, int64(len(row))})
	batch.Ops = append(batch.Ops, put(tableReplies, key.row(), row))
	return true
}

// settled ends a claim: with its commit through, the reply goes to who waits.
func (b *replies) settled(key replyKey, r *event.Reply, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.known[key]
	if err != nil {
		b.count--
		b.bytes -= k.size
		delete(b.known, key)
		return
	}
	k.state = replyKept
	for _, w := range b.waiting[key] {
		w <- r // it has room for one, and takes one
	}
	delete(b.waiting, key)
}

// take takes a waiter's slot; give it back with leave.
func (b *replies) take() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken >= b.waiters {
		return fmt.Errorf("%d requests wait for replies already, and no more may: %w", b.waiters, event.ErrUnavailable)
	}
	b.taken++
	return nil
}

func (b *replies) leave() {
	b.mu.Lock()
	b.taken--
	b.mu.Unlock()
}

func (b *replies) drain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.ended:
	default:
		close(b.ended)
	}
}
