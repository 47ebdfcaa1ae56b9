package access

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/engine/event"
)

// NotFound is the answer to whoever may not see everything, about what does not exist and about what he may not see: no
// other name is in it.
func NotFound(k Kind, name string) error {
	return event.Bad(event.ErrNotFound, k.String(), fmt.Sprintf("%s %.80q does not exist, or is not for you to see", k, name))
}

// Unseen turns an error about what does not exist, which suggests other names, into one that does not where p may not see
// everything. has says whether something exists; what is missing may also be a part of it, whose error stays.
func Unseen(p *Principal, k Kind, name string, err error, has func(Kind, string) bool) error {
	if !errors.Is(err, event.ErrNotFound) || p == nil || p.Everything() || name == "" || has(k, name) {
		return err
	}
	return NotFound(k, name)
}

// UnseenLeases makes leases that others were handed, to whoever may not see everything, ones that nobody was.
func UnseenLeases(p *Principal, lost []event.Lost) []event.Lost {
	for i := range lost {
		if lost[i].Why == event.LostForeign && !p.Everything() {
			lost[i].Why = event.LostUnknown
		}
	}
	return lost
}
