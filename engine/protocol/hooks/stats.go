package hooks

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// counts are what became of a source's requests.
type counts struct {
	accepted, repeats, renamed, handshakes, unverified, invalid, failed atomic.Uint64
	last                                                                atomic.Pointer[Refusal]
}

// Refusal is the last request of a source that was refused, and why.
type Refusal struct {
	At  time.Time
	Why string
}

func (c *counts) refused(now time.Time, err error) {
	switch {
	case errors.Is(err, event.ErrUnverified), errors.Is(err, event.ErrDenied):
		c.unverified.Add(1)
	case errors.Is(err, event.ErrInvalid), errors.Is(err, event.ErrTooLarge), errors.Is(err, event.ErrSchema), errors.Is(err, event.ErrNotFound):
		c.invalid.Add(1)
	default:
		c.failed.Add(1)
	}
	c.last.Store(&Refusal{now, strings.Clone(err.Error())})
}

// Outcomes are the names under which a source's requests are counted.
func Outcomes() []string {
	return []string{"accepted", "repeat", "renamed", "handshake", "refused", "invalid", "failed"}
}

// Stats are the figures of one source; Counts has one for each of Outcomes.
type Stats struct {
	Name   string
	Counts [7]uint64
	Last   *Refusal // nil: none was refused
}

// Stats returns the figures of all sources by name, and how many requests were for sources that there are not.
func (s *Server) Stats() (list []Stats, unknown uint64) {
	for name, x := range *s.sources.Load() {
		c := x.counts
		list = append(list, Stats{name, [7]uint64{c.accepted.Load(), c.repeats.Load(), c.renamed.Load(), c.handshakes.Load(), c.unverified.Load(), c.invalid.Load(), c.failed.Load()}, c.last.Load()})
	}
	slices.SortFunc(list, func(a, b Stats) int { return strings.Compare(a.Name, b.Name) })
	return list, s.unknown.Load()
}
