package engine

import (
	"context"
	"math"
	"time"

	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/storage"
)

// State of functions belongs to (subscription, function's name, partition). What a step writes is committed
// with its outputs and its cursor, or not at all. Such steps run one event at a time, each through the whole
// chain: what a RETRY, a REJECT or a failure gives up must not have been seen by the event behind it. The
// commit gathers many.

// A batch of steps with state is settled when either bound is reached.
const (
	stateBytes = 4 << 20
	stateTime  = 20 * time.Millisecond
	rowBytes   = 256 // that a row takes beside its key and value, about
)

// sweepRows bounds how many expired rows a commit removes in each partition.
const sweepRows = 256

// stateSize is what a subscription's state holds. The subscription's mutex guards it.
type stateSize struct {
	keys, bytes int64
	next        []int64 // by partition: no row expires before it, Unix ns of received time
}

func (z stateSize) op(sub uint32) storage.Op {
	v := be.AppendUint64(nil, uint64(z.keys))
	return put(tableStateSize, key32(sub), be.AppendUint64(v, uint64(z.bytes)))
}

func (s *subscription) restoreState(ctx context.Context) error {
	v, err := s.e.store.Load(ctx, tableStateSize, key32(s.serial))
	if err == nil && len(v) == 16 {
		s.state.keys, s.state.bytes = int64(be.Uint64(v)), int64(be.Uint64(v[8:]))
	}
	return err
}

// A row of tableState: when it expires, i64, then the value.
type stateValue struct {
	value   []byte
	expires int64 // Unix ns of received time; 0: never
	ok      bool
}

func parseStateRow(row []byte) stateValue {
	if len(row) < 8 {
		return stateValue{}
	}
	return stateValue{row[8:], int64(be.Uint64(row)), true}
}

func (v *stateValue) appendRow(dst []byte) []byte {
	return append(be.AppendUint64(dst, uint64(v.expires)), v.value...)
}

// statePrefix begins the keys of tableState: subscription u32, partition u32, the function's name behind its
// length u8. A function's key follows.
func statePrefix(dst []byte, sub, partition uint32, function string) []byte {
	dst = be.AppendUint32(be.AppendUint32(dst, sub), partition)
	return append(append(dst, byte(len(function))), function...)
}

// expiryKey is that of a row of tableState in tableStateExpiry.
func expiryKey(key string, expires int64) []byte {
	k := append(make([]byte, 0, len(key)+8), key[:8]...)
	return append(be.AppendUint64(k, uint64(expires)), key[8:]...)
}

// stateView is what the functions of a batch see of their state: what is committed, what the items before
// have left, and what the item at work has written so far. It belongs to one pump.
type stateView struct {
	s      *subscription
	rows   map[string]*stateRow // by key of tableState: read or written by items that stand
	item   map[string]plugins.StateWrite
	prefix []byte
	key    []byte
	bytes  int              // that rows hold
	latest map[uint32]int64 // by partition: received time of the newest item
	size   stateSize        // afterwards
}

type stateRow struct {
	was, now stateValue
	dirty    bool
}

func newStateView(s *subscription) *stateView {
	return &stateView{s: s, rows: map[string]*stateRow{}, item: map[string]plugins.StateWrite{}, latest: map[uint32]int64{}}
}

// of turns the view to one function in the partition of the item at work.
func (v *stateView) of(partition uint32, function string) {
	v.prefix = statePrefix(v.prefix[:0], v.s.serial, partition, function)
}

// LoadState implements plugins.StateReader.
func (v *stateView) LoadState(ctx context.Context, key []byte) ([]byte, int64, bool, error) {
	v.key = append(append(v.key[:0], v.prefix...), key...)
	if w, ok := v.item[string(v.key)]; ok {
		return w.Value, w.Expires, !w.Deleted, nil
	}
	r, err := v.row(ctx, v.key, true)
	if err != nil {
		return nil, 0, false, err
	}
	return r.now.value, r.now.expires, r.now.ok, nil
}

// row is a row of the batch. One that is only read is not always kept.
func (v *stateView) row(ctx context.Context, key []byte, read bool) (*stateRow, error) {
	if r := v.rows[string(key)]; r != nil {
		return r, nil
	}
	row, err := v.s.e.store.Load(ctx, tableState, key)
	if err != nil {
		return nil, err
	}
	r := &stateRow{was: parseStateRow(row)}
	r.now = r.was
	if read && v.bytes >= 2*stateBytes { // one event may read all that there is, or is not
		return r, nil
	}
	v.rows[string(key)] = r
	v.bytes += len(key) + len(row) + rowBytes
	return r, nil
}

// stage takes what a function wrote for the item at work.
func (v *stateView) stage(writes []plugins.StateWrite) {
	for _, w := range writes {
		v.item[string(v.prefix)+w.Key] = w
	}
}

// stand makes what the item at work wrote the batch's.
func (v *stateView) stand(ctx context.Context) error {
	for key, w := range v.item {
		r, err := v.row(ctx, []byte(key), false)
		if err != nil {
			return err
		}
		r.dirty, r.now = true, stateValue{w.Value, w.Expires, !w.Deleted}
		v.bytes += len(w.Value)
	}
	clear(v.item)
	return nil
}

// fall forgets what the item at work wrote.
func (v *stateView) fall() { clear(v.item) }

// sweep adds the removal of rows that had expired when the newest event of the batch was received, a bounded
// number in each partition: a backlog that is worked off late finds what it would have found in time.
func (v *stateView) sweep(ctx context.Context) error {
	v.s.mu.Lock()
	next := v.s.state.next
	v.s.mu.Unlock()
	for p, now := range v.latest {
		if next[p] > now {
			continue
		}
		next[p] = math.MaxInt64
		var expired [][]byte
		from := key32x2(v.s.serial, p)
		to := key32x2(v.s.serial, p+1)
		err := v.s.e.store.Scan(ctx, tableStateExpiry, from, to, func(k, _ []byte) error {
			at := int64(be.Uint64(k[8:]))
			if at > now || len(expired) == sweepRows {
				next[p] = at
				return storage.ErrStop
			}
			expired = append(expired, append(append(make([]byte, 0, len(k)-8), k[:8]...), k[16:]...))
			return nil
		})
		for _, key := range expired {
			var r *stateRow
			if err == nil {
				r, err = v.row(ctx, key, false)
			}
			if err == nil && r.now.ok && r.now.expires != 0 && r.now.expires <= now {
				r.dirty, r.now = true, stateValue{}
			}
		}
		if err != nil {
			next[p] = 0
			return err
		}
	}
	return nil
}

// appendOps adds the batch's writes. The caller holds s.mu and s.commits.
func (v *stateView) appendOps(ops []storage.Op) []storage.Op {
	v.size = v.s.state
	before := len(ops)
	for key, r := range v.rows {
		if !r.dirty {
			continue
		}
		if r.was.ok && r.was.expires != 0 && (!r.now.ok || r.now.expires != r.was.expires) {
			ops = append(ops, del(tableStateExpiry, expiryKey(key, r.was.expires)))
		}
		if r.now.ok && r.now.expires != 0 && (!r.was.ok || r.now.expires != r.was.expires) {
			ops = append(ops, put(tableStateExpiry, expiryKey(key, r.now.expires), nil))
		}
		own := int64(len(key) - 9 - int(key[8]))
		if r.was.ok {
			v.size.keys--
			v.size.bytes -= own + int64(len(r.was.value))
		}
		switch {
		case r.now.ok:
			v.size.keys++
			v.size.bytes += own + int64(len(r.now.value))
			ops = append(ops, put(tableState, []byte(key), r.now.appendRow(nil)))
		case r.was.ok:
			ops = append(ops, del(tableState, []byte(key)))
		}
	}
	if len(ops) > before {
		ops = append(ops, v.size.op(v.s.serial))
	}
	return ops
}

// committed takes note that the batch's writes are in the store. The caller holds s.mu and s.commits.
func (v *stateView) committed() {
	v.s.state.keys, v.s.state.bytes = v.size.keys, v.size.bytes
	for key, r := range v.rows {
		if r.dirty && r.now.ok && r.now.expires != 0 {
			p := be.Uint32([]byte(key[4:8]))
			v.s.state.next[p] = min(v.s.state.next[p], r.now.expires)
		}
	}
}

// runStateful runs and settles a batch whose functions keep state. It fails if a function cannot run at all;
// h.items is then what nothing was decided about.
func (s *subscription) runStateful(ctx context.Context, h *chain) error {
	all, items := h.items, h.items
	defer func() { h.view = nil }()
	for len(items) > 0 {
		began := time.Now()
		h.view = newStateView(s)
		var sts []settlement
		var err error
		outputs, dropped := 0, 0
		for len(sts) < len(items) && h.view.bytes < stateBytes && (len(sts) == 0 || time.Since(began) < stateTime) {
			it := items[len(sts)]
			h.items = items[len(sts) : len(sts)+1]
			if err = h.run(ctx); err != nil {
				break
			}
			h.collect(ctx)
			x := &h.fates[0]
			if x.failed {
				h.view.fall()
				sts = append(sts, s.failing(h.c, it, x.failure))
				continue
			}
			if err = h.view.stand(ctx); err != nil {
				break
			}
			if len(x.outputs) == 0 && x.reply == nil {
				dropped++
			} else {
				outputs++
			}
			p := it.rec.Partition()
			h.view.latest[p] = max(h.view.latest[p], it.rec.Received())
			sts = append(sts, x.settlement(h.c, it))
		}
		h.view.fall()
		if len(sts) > 0 {
			if e := h.view.sweep(ctx); e != nil && ctx.Err() == nil {
				s.e.o.Log.Warn("expired state cannot be read and stays for now", "subscription", s.name, "error", e)
			}
			for i := range sts {
				sts[i].state = h.view
			}
			began = time.Now()
			if !s.settleUntil(ctx, sts) {
				h.items = all[:0]
				s.putBack(items[len(sts):], "")
				return nil
			}
			s.delivered(h.c, outputs, dropped, time.Since(began))
			items = items[len(sts):]
		}
		if err != nil {
			h.items = items
			return err
		}
		s.unblock()
	}
	h.items = all[:0]
	return nil
}
