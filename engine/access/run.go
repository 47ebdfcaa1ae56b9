package access

import (
	"context"
	"errors"
	"sync"
	"time"
)

// usedEvery is how often it is kept when keys were last used.
const (
	usedEvery = 10 * time.Minute
	usedApart = time.Hour // what the store may be off by
	maxKept   = 256       // keys at a time: each is a write that waits for the disk
)

// Run fetches issuers' keys, when they are due and when a token names one that is not known, and now and then keeps
// when API keys were last used. It returns nil once ctx has ended and all that it started has too. Without it, tokens
// of issuers with a URL are not let in. It is to be called once.
func (g *Guard) Run(ctx context.Context) error {
	var fetches sync.WaitGroup
	defer fetches.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	usedAt := g.o.Now().Add(usedEvery)
	for {
		now := g.o.Now()
		next := usedAt
		sources := g.rules.Load().sources
		for _, s := range sources {
			if s.issuer.url == "" {
				continue
			}
			s.runs(true)
			if s.begin(now) {
				fetches.Go(func() { g.fetch(ctx, s) })
			}
			if due := s.due(); due.Before(next) {
				next = due
			}
		}
		if !now.Before(usedAt) {
			g.keepUsed(ctx, usedApart)
			usedAt = now.Add(usedEvery)
		}
		timer.Reset(max(next.Sub(now), 10*time.Millisecond))
		select {
		case <-timer.C:
		case <-g.wake:
		case <-ctx.Done():
			for _, s := range g.rules.Load().sources {
				s.runs(false)
			}
			fetches.Wait()
			g.keepUsed(context.WithoutCancel(ctx), usedEvery)
			return nil
		}
	}
}

// fetch asks an issuer for its keys.
func (g *Guard) fetch(ctx context.Context, s *source) {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	text, err := g.o.HTTP(ctx, s.issuer.url, maxJWKS)
	var set *keySet
	if err == nil {
		set, err = parseJWKS(text, s.issuer.algs)
	}
	s.end(set, err, g.o.Now())
	if g.o.Fetched != nil && !errors.Is(ctx.Err(), context.Canceled) { // of a router that stops there is nothing to say
		g.o.Fetched(s.state())
	}
	select { // a failed fetch is due sooner than was thought
	case g.wake <- struct{}{}:
	default:
	}
}

// keepUsed writes when keys were last used, of up to maxKept of those for which the store is off by apart or more: a
// few writes an hour for each key, not one for each request. What a crash loses is an hour of a date.
func (g *Guard) keepUsed(ctx context.Context, apart time.Duration) {
	if g.keys.store == nil {
		return
	}
	g.change.Lock() // or a key that is revoked meanwhile would be written back
	defer g.change.Unlock()
	left := maxKept
	for _, h := range *g.keys.byID.Load() {
		used := h.used.Load()
		if off := used - h.kept.Load(); off <= 0 || off < int64(apart/time.Second) {
			continue
		}
		// What the store has against it will be seen where something depends on it.
		if left--; left < 0 || g.keys.store.PutKey(ctx, h.current()) != nil {
			return
		}
		h.kept.Store(used)
	}
}
