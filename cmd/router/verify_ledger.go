package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/connector/webhook"
)

// keysEach is how many keys one connection publishes. No two connections share a key, so that the order of a key is known.
const keysEach = 8

// probeKey is the key of the event that is sent ahead.
const probeKey = -1

// A ledger knows every event of a run: what was sent, what was acknowledged, and what came by which way. Events are
// numbered from 0 within their key. It may be used from many goroutines.
type ledger struct {
	run   string
	topic string
	pad   string // what every event carries besides its number
	ways  []*way

	mu    sync.Mutex
	sent  []int         // of each key
	acked []int         // of each key: those below; a connection repeats a request until it is acknowledged
	total int           // acknowledged, of all keys
	took  time.Duration // of publishing; set once that has ended
}

// A way is one subscription's account.
type way struct {
	name    string
	ordered bool
	probed  chan struct{} // closed when the probe came

	mu     sync.Mutex
	seen   [][]uint8 // by key and number: how often it was delivered, up to 255
	last   []int     // by key: the highest number that was delivered, -1 for none
	faults wayFaults
	first  int       // events that came at least once
	came   time.Time // the last

	refused map[[2]int]bool // by key and number: its first delivery was refused
}

// wayFaults is what is wrong with what came.
type wayFaults struct {
	repeats    int // allowed: at least once
	inversions []string
	altered    []string // other content than was sent
	foreign    []string // never sent
	unverified int      // webhooks without a right signature
}

func newLedger(run string, keys, size int) *ledger {
	l := &ledger{run: run, sent: make([]int, keys), acked: make([]int, keys), pad: strings.Repeat("x", max(size-40, 0))}
	for _, name := range []string{wayHook, wayOrdered, wayPull} {
		w := &way{name: name, ordered: name == wayOrdered, probed: make(chan struct{}), seen: make([][]uint8, keys), last: make([]int, keys)}
		for k := range w.last {
			w.last[k] = -1
		}
		l.ways = append(l.ways, w)
	}
	return l
}

func (l *ledger) source() string { return "/verify/" + l.run }

func (l *ledger) way(name string) *way {
	for _, w := range l.ways {
		if w.name == name {
			return w
		}
	}
	return nil
}

func (l *ledger) id(key, n int) string { return fmt.Sprintf("%s-k%d-%d", l.run, key, n) }

// appendEvent appends one event as a line of JSON.
func (l *ledger) appendEvent(b []byte, key, n int) []byte {
	b = fmt.Appendf(b, `{"specversion":"1.0","id":%q,"source":%q,"type":"millrace.verify","partitionkey":"k%d","data":`, l.id(key, n), l.source(), key)
	return append(l.appendData(b, key, n), '}', '\n')
}

func (l *ledger) appendData(b []byte, key, n int) []byte {
	return fmt.Appendf(b, `{"key":%d,"n":%d,"pad":%q}`, key, n, l.pad)
}

// publish notes what is about to be sent, from..to of a key.
func (l *ledger) publish(key, to int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[key] = max(l.sent[key], to)
}

// acknowledge notes that a key's events below to are acknowledged.
func (l *ledger) acknowledge(key, to int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total += to - l.acked[key]
	l.acked[key] = to
}

func (l *ledger) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

func (l *ledger) published() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, sent := range l.sent {
		n += sent
	}
	return n
}

// arrived is an event as a receiver reads it.
type arrived struct {
	ID   string          `json:"id"`
	Data json.RawMessage `json:"data"`
}

// place reads key and number from an id; ok is false where the id is none of this run's.
func (l *ledger) place(id string) (key, n int, ok bool) {
	rest, mine := strings.CutPrefix(id, l.run+"-k")
	at := strings.LastIndexByte(rest, '-')
	if !mine || at < 1 {
		return 0, 0, false
	}
	key, keyErr := strconv.Atoi(rest[:at])
	n, err := strconv.Atoi(rest[at+1:])
	if keyErr != nil || err != nil || n < 0 || key < probeKey || key >= len(l.sent) {
		return 0, 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return key, n, key == probeKey || n < l.sent[key]
}

// take enters what came by a way.
func (l *ledger) take(w *way, e arrived) {
	key, n, ok := l.place(e.ID)
	intact := ok && string(e.Data) == string(l.appendData(nil, key, n))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.came = time.Now()
	switch {
	case !ok:
		w.faults.foreign = append(w.faults.foreign, e.ID)
		return
	case !intact:
		w.faults.altered = append(w.faults.altered, e.ID)
		return
	case key == probeKey:
		select {
		case <-w.probed:
		default:
			close(w.probed)
		}
		return
	}
	for len(w.seen[key]) <= n {
		w.seen[key] = append(w.seen[key], 0)
	}
	if w.seen[key][n]++; w.seen[key][n] > 1 {
		w.seen[key][n] = min(w.seen[key][n], 254)
		w.faults.repeats++
		return
	}
	w.first++
	if w.ordered && n < w.last[key] {
		w.faults.inversions = append(w.faults.inversions, fmt.Sprintf("%s after %s", e.ID, l.id(key, w.last[key])))
	}
	w.last[key] = max(w.last[key], n)
}

// missing is what was acknowledged and has not come by a way: the first ids of it, and how many.
func (l *ledger) missing(w *way) (ids []string, n int) {
	l.mu.Lock()
	acked := append([]int(nil), l.acked...)
	l.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, to := range acked {
		for i := range to {
			if i < len(w.seen[key]) && w.seen[key][i] > 0 {
				continue
			}
			if n++; len(ids) < namedIDs {
				ids = append(ids, l.id(key, i))
			}
		}
	}
	return ids, n
}

// namedIDs is how many ids a report names of each fault.
const namedIDs = 20

// verifyReceiver takes the webhooks: /webhook and /ordered.
type verifyReceiver struct {
	l      *ledger
	secret string
}

// ServeHTTP verifies and enters one delivery. Each 97th event is refused when it comes first: what fails must live
// through a kill as well.
func (rc *verifyReceiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	way := rc.l.way(strings.TrimPrefix(req.URL.Path, "/"))
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 16<<20))
	var e arrived
	if way == nil || err != nil || json.Unmarshal(body, &e) != nil {
		http.Error(w, "no webhook of this verification", http.StatusBadRequest)
		return
	}
	h := req.Header
	if err := webhook.Verify([]string{rc.secret}, h.Get("Webhook-Id"), h.Get("Webhook-Timestamp"), h.Get("Webhook-Signature"), body, time.Now(), 0); err != nil {
		way.mu.Lock()
		way.faults.unverified++
		way.mu.Unlock()
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	if key, n, ok := rc.l.place(e.ID); ok && key != probeKey && (n*31+key)%97 == 5 && way.refuse(key, n) {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	rc.l.take(way, e)
	w.WriteHeader(http.StatusNoContent)
}

// refuse reports whether an event comes for the first time, and remembers it.
func (w *way) refuse(key, n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n < len(w.seen[key]) && w.seen[key][n] > 0 {
		return false
	}
	if w.refused == nil {
		w.refused = map[[2]int]bool{}
	}
	if w.refused[[2]int{key, n}] {
		return false
	}
	w.refused[[2]int{key, n}] = true
	return true
}
