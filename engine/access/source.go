package access

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

const (
	fetchWithin = 10 * time.Second // one fetch
	waitWithin  = 3 * time.Second  // a request whose key is not known, for a fetch
	maxWaiting  = 64               // requests that do so, of one issuer
	fetchApart  = 30 * time.Second // at least, between two fetches that unknown keys asked for
	retryFirst  = 5 * time.Second  // after a failed fetch, doubled up to
	retryLast   = 5 * time.Minute
)

// A source is an issuer with the keys that it has now. Requests read the keys; Run fetches them.
type source struct {
	issuer *issuer
	set    atomic.Pointer[keySet]

	mu      sync.Mutex
	running bool          // somebody fetches when asked
	wake    chan struct{} // tells Run to look at next
	done    chan struct{} // closed when the fetch under way or asked for has ended; nil: none
	waiting int
	next    time.Time // of the fetch that is due
	last    time.Time // when the last fetch began
	got     time.Time // when keys came last
	failed  int       // in a row
	err     error     // of the last fetch
}

// newSource takes over the keys that last had from the same URL for the same algorithms.
func newSource(is *issuer, wake chan struct{}, last *inForce) *source {
	s := &source{issuer: is, wake: wake}
	s.set.Store(is.set)
	if last == nil || is.url == "" {
		return s
	}
	for _, o := range last.sources {
		if o.issuer.url == is.url && slices.Equal(o.issuer.algs, is.algs) {
			s.set.Store(o.set.Load())
			o.mu.Lock()
			s.running, s.next, s.last, s.got, s.failed, s.err = o.running, o.next, o.last, o.got, o.failed, o.err
			o.mu.Unlock()
			break
		}
	}
	return s
}

// keysFor returns the keys that may have signed t, and the set that they are of. Where its key is known it does not
// wait; else it has the keys fetched anew, unless that was done just now.
func (s *source) keysFor(ctx context.Context, t *token, now time.Time) (*keySet, []verifier, error) {
	set := s.set.Load()
	hasKid := t.hasKid && algorithms[t.alg].kty != "oct" // a shared secret is one key, whatever it is called
	keys, known := set.find(t.kid, hasKid, t.alg)
	if len(keys) > 0 {
		return set, keys, nil
	}
	if set != nil && (known || !hasKid) {
		return nil, nil, badToken("names no key that is good for its algorithm")
	}
	if hasKid && pathlike(t.kid) {
		return nil, nil, badToken("has a kid that is a path, and none of the issuer's")
	}
	if done := s.want(now); done != nil {
		timer := time.NewTimer(waitWithin)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
		case <-ctx.Done():
		}
		s.mu.Lock()
		s.waiting--
		s.mu.Unlock()
	}
	if set = s.set.Load(); set == nil {
		return nil, nil, fmt.Errorf("%w: the keys of issuer %s could not be fetched yet: try again", event.ErrUnavailable, s.issuer.name)
	}
	if keys, _ = set.find(t.kid, hasKid, t.alg); len(keys) == 0 {
		return nil, nil, badToken("is signed by a key that its issuer does not have")
	}
	return set, keys, nil
}

// want asks for a fetch and returns what is closed when it has ended; nil if there is none to wait for: no URL, nobody
// who fetches, fetched just now, or too many wait already.
func (s *source) want(now time.Time) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.issuer.url == "" || !s.running || s.waiting >= maxWaiting {
		return nil
	}
	if s.done == nil {
		// Strangers choose the kid: without a bound they would have us flood the issuer.
		if !s.last.IsZero() && now.Sub(s.last) < fetchApart {
			return nil
		}
		s.done, s.next = make(chan struct{}), now
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	s.waiting++
	return s.done
}

// begin reports whether a fetch is due, and marks it as begun.
func (s *source) begin(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next.After(now) {
		return false
	}
	if s.done == nil {
		s.done = make(chan struct{})
	}
	s.last, s.next = now, now.Add(s.issuer.refresh)
	return true
}

// end notes how a fetch went. Keys that came before stay in use while fetching fails: an issuer that is down must not
// lock everybody out.
func (s *source) end(set *keySet, err error, now time.Time) {
	if old := s.set.Load(); err == nil && (old == nil || old.sum != set.sum) {
		s.set.Store(set)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if err == nil {
		s.failed, s.got = 0, now
	} else {
		s.next = now.Add(min(retryLast, retryFirst<<min(s.failed, 10)))
		s.failed++
	}
	if s.done != nil {
		close(s.done)
		s.done = nil
	}
}

// due is when the next fetch is.
func (s *source) due() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// runs says whether somebody fetches.
func (s *source) runs(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = yes
	if !yes && s.done != nil {
		close(s.done)
		s.done = nil
	}
}

// An IssuerState is how the keys of an issuer stand.
type IssuerState struct {
	Name    string
	URL     string // "" of a file or a secret
	Keys    int
	Fetched time.Time // zero: not yet
	Err     error     // of the last fetch; keys that came before stay in use
}

// Issuers returns the state of every issuer of the policy, in its order.
func (g *Guard) Issuers() []IssuerState {
	f := g.rules.Load()
	out := make([]IssuerState, len(f.sources))
	for i, s := range f.sources {
		out[i] = s.state()
	}
	return out
}

func (s *source) state() IssuerState {
	st := IssuerState{Name: s.issuer.name, URL: s.issuer.url}
	if set := s.set.Load(); set != nil {
		st.Keys = len(set.all)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Fetched, st.Err = s.got, s.err
	return st
}
