package admission

import (
	"net/netip"
	"sync"
	"testing"
	"time"
)

// len is the number of accounts.
func (t *table[K]) len() (n int) {
	for i := range t.shards {
		n += len(t.shards[i].m)
	}
	return n
}

func TestRate(t *testing.T) {
	var d drawn
	r := newRate(10, 3)
	second := int64(time.Second)
	for i := range 3 {
		if wait := d.take(second, r); wait != 0 {
			t.Fatalf("take %d waits %s", i, wait)
		}
	}
	if wait := d.take(second, r); wait != 100*time.Millisecond {
		t.Errorf("past the burst it waits %s", wait)
	}
	if n, full := d.left(second, r); n != 0 || full != 300*time.Millisecond {
		t.Errorf("left %d, full in %s", n, full)
	}
	if wait := d.take(second+int64(100*time.Millisecond), r); wait != 0 {
		t.Errorf("after 100 ms it waits %s", wait)
	}
	for range 3 { // a long pause gives the burst and no more
		d.take(100*second, r)
	}
	if d.take(100*second, r) == 0 {
		t.Error("a pause gives more than the burst")
	}
	if newRate(0, 5).bounds() || newRate(-1, 5).bounds() {
		t.Error("no rate bounds")
	}
	if r := newRate(1e9, 0); r.each != 1 || r.burst() < 1 {
		t.Errorf("the highest rate is %+v", r)
	}
}

// However many ask at once, no more than the burst get one.
func TestRateUnderConcurrency(t *testing.T) {
	var d drawn
	r := newRate(1, 100)
	var got [8]int
	var wg sync.WaitGroup
	for g := range got {
		wg.Go(func() {
			for range 1000 {
				if d.take(0, r) == 0 {
					got[g]++
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range got {
		total += n
	}
	if total != 100 {
		t.Errorf("%d were given of 100", total)
	}
}

// A table is bounded whatever comes, lets go of idle accounts, keeps those with connections and those that owe most.
func TestTableIsBounded(t *testing.T) {
	tab := newTable[addrKey]()
	tab.most = 20
	r := newRate(1, 10)
	key := func(i uint64) addrKey {
		return keyOf(netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	pinned := tab.get(key(1), 0)
	pinned.conns.Add(1)
	guilty := tab.get(key(2), 0)
	for range 10 {
		guilty.requests.take(0, r)
	}
	for i := uint64(10); i < 10_000; i++ {
		tab.get(key(i*2654435761%(1<<32)+3), 0).requests.take(0, r)
	}
	if n := tab.len(); n > shards*tab.most {
		t.Errorf("%d accounts, the bound is %d", n, shards*tab.most)
	}
	if tab.get(key(1), 0) != pinned {
		t.Error("an account with connections was let go")
	}
	if tab.get(key(2), 0) != guilty {
		t.Error("the account that owes most was let go before those that owe little")
	}
}

func TestAddressKeys(t *testing.T) {
	a := func(s string) addrKey { return keyOf(netip.MustParseAddr(s)) }
	if a("2001:db8::1") != a("2001:db8:0:0:ffff::2") || a("2001:db8::1") == a("2001:db8:0:1::1") {
		t.Error("an IPv6 address does not count as its /64")
	}
	if a("192.0.2.1") == a("192.0.2.2") || a("192.0.2.1") != a("::ffff:192.0.2.1") {
		t.Error("an IPv4 address does not count as itself")
	}
}

func TestAccountsAllocateOnce(t *testing.T) {
	tab := newTable[string]()
	addrs := newTable[addrKey]()
	r := newRate(1e6, 1000)
	k := keyOf(netip.MustParseAddr("192.0.2.7"))
	if n := testing.AllocsPerRun(100, func() {
		tab.get("key:ci", 0).requests.take(0, r)
		addrs.get(k, 0).requests.take(0, r)
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}
