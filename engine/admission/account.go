package admission

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// An Account is what one address or one principal has used of its limits. Its zero value has used nothing.
type Account struct {
	requests  drawn
	strangers drawn        // requests that nobody known stands for
	conns     atomic.Int32 // open now; while there are any the account stays in its table
}

// drawn is a token bucket in one word: the time, in ns since the door was made, at which it is full again (the generic
// cell rate algorithm). So it needs no lock, and no clock tick fills it.
type drawn struct{ full atomic.Int64 }

// A rate is how often something may be done: so many a second, and so many at once after a pause. A rate of 0 is no
// bound.
type rate struct {
	each  int64 // ns that one takes
	depth int64 // ns that the bucket holds
}

// newRate makes a rate of perSecond with burst; a burst of 0 is what two seconds fill.
func newRate(perSecond float64, burst int) rate {
	if perSecond <= 0 {
		return rate{}
	}
	each := max(int64(float64(time.Second)/perSecond), 1)
	if burst <= 0 {
		burst = max(int(2*perSecond), 1)
	}
	return rate{each, each * int64(burst)}
}

func (r rate) bounds() bool { return r.each > 0 }

func (r rate) burst() int { return int(r.depth / r.each) }

// take takes one at now; where there is none it says how long until there is.
func (d *drawn) take(now int64, r rate) (wait time.Duration) {
	for {
		full := d.full.Load()
		next := max(full, now) + r.each
		if over := next - now - r.depth; over > 0 {
			return time.Duration(over)
		}
		if d.full.CompareAndSwap(full, next) {
			return 0
		}
	}
}

// left is how many can be taken at now, and how long it is until all can.
func (d *drawn) left(now int64, r rate) (n int, full time.Duration) {
	used := max(d.full.Load()-now, 0)
	return int(max(r.depth-used, 0) / r.each), time.Duration(used)
}

// idle reports whether nothing would change if the account were forgotten.
func (b *Account) idle(now int64) bool {
	return b.conns.Load() == 0 && b.requests.full.Load() <= now && b.strangers.full.Load() <= now
}

const (
	shards = 64
	// maxAccounts bounds a table: 64 Ki of some 100 bytes.
	maxAccounts = 1 << 16
	// looked is how many accounts of a full shard are compared to find the one that is let go.
	looked = 8
)

// A table finds accounts. It allocates for a key that it does not have and for nothing else.
type table[K comparable] struct {
	seed   maphash.Seed
	most   int // accounts of a shard
	shards [shards]struct {
		sync.RWMutex
		m map[K]*Account
	}
}

func newTable[K comparable]() *table[K] {
	t := &table[K]{seed: maphash.MakeSeed(), most: maxAccounts / shards}
	for i := range t.shards {
		t.shards[i].m = map[K]*Account{}
	}
	return t
}

// get is the account of k.
func (t *table[K]) get(k K, now int64) *Account {
	s := &t.shards[maphash.Comparable(t.seed, k)%shards]
	s.RLock()
	b := s.m[k]
	s.RUnlock()
	if b != nil {
		return b
	}
	s.Lock()
	defer s.Unlock()
	if b = s.m[k]; b != nil {
		return b
	}
	if len(s.m) >= t.most {
		evict(s.m, now)
	}
	b = &Account{}
	if len(s.m) < t.most { // else all have connections, and those are bounded
		s.m[k] = b
	}
	return b
}

// evict lets go of one account without connections: an idle one, or of a few the one that is fullest, whose owner gains
// least by it.
func evict[K comparable](m map[K]*Account, now int64) {
	var least K
	var at int64
	seen := 0
	for k, b := range m {
		if b.idle(now) {
			delete(m, k)
			return
		}
		if b.conns.Load() > 0 {
			continue
		}
		if used := max(b.requests.full.Load(), b.strangers.full.Load()); seen == 0 || used < at {
			least, at = k, used
		}
		if seen++; seen == looked {
			break
		}
	}
	if seen > 0 {
		delete(m, least)
	}
}

// An addrKey is whose limits an address has: its own, and of IPv6 its /64's, of which one site has as many addresses as
// it likes.
type addrKey [16]byte

func keyOf(a netip.Addr) addrKey {
	if a = a.Unmap(); a.Is6() {
		k := addrKey(a.As16())
		clear(k[8:])
		return k
	}
	return addrKey(a.As16())
}
