package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

type digest = [sha256.Size]byte

const (
	cacheSets = 4096 // a power of two
	cacheWays = 4
)

// tokenCache remembers who shows what was verified: up to 16,384 tokens or certificates by their SHA-256, in sets of
// four of which a newcomer takes the place of one that has ended, or of any. It takes no lock and never grows.
type tokenCache struct {
	sets [cacheSets][cacheWays]atomic.Pointer[cached]
}

// cached is one that was verified.
type cached struct {
	sum       digest
	principal *Principal
}

func (t *tokenCache) at(sum *digest) *[cacheWays]atomic.Pointer[cached] {
	return &t.sets[binary.LittleEndian.Uint64(sum[:8])%cacheSets]
}

// get returns who showed it, nil if that is not known (any more).
func (t *tokenCache) get(sum *digest, now time.Time) *Principal {
	set := t.at(sum)
	for i := range set {
		if c := set[i].Load(); c != nil && subtle.ConstantTimeCompare(c.sum[:], sum[:]) == 1 {
			if c.principal.Ended(now) {
				set[i].CompareAndSwap(c, nil)
				return nil
			}
			return c.principal
		}
	}
	return nil
}

func (t *tokenCache) put(c *cached) {
	set := t.at(&c.sum)
	for i := range set {
		if set[i].CompareAndSwap(nil, c) {
			return
		}
	}
	set[rand.IntN(cacheWays)].Store(c)
}
