package mqtt

import (
	"context"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A clean start whose removal of the old rows fails is refused; the old session is then to be ended all the same, or to be there whole.
func TestCleanStartWhoseRemovalFails(t *testing.T) {
	r := newLogRouter(t, 1)
	s := newOut(t, r, Options{})
	d, _ := join(t, s, deviceOptions{id: "a", expiry: time.Hour})
	d.sub("log/old", 1)
	d.part()
	r.hook(nil, func(rows []event.ShelfRow) error {
		if rows[0].Under {
			return event.ErrUnavailable
		}
		return nil
	})
	if _, _, err := s.sessions.take(context.Background(), anybody(t), "a", true, 0); err == nil {
		t.Fatal("taken")
	}
	r.hook(nil, nil)
	s.sessions.expire(t.Context())                                // "which is tried again"
	d, present := join(t, s, deviceOptions{id: "a", clean: true}) // the client tries again, and is let in
	if present {
		t.Error("resumed")
	}
	d.part()
	closeOut(t, s)
	s = newOut(t, r, Options{})
	d, present = join(t, s, deviceOptions{id: "a", expiry: time.Hour})
	if present {
		t.Errorf("the session that a clean start ended is back, with %v", d.sess.out.subs)
	}
	d.part()
	closeOut(t, s)
}

// At the most sessions there may be, a clean start takes the place of the client's own.
func TestCleanStartWhereSessionsAreFull(t *testing.T) {
	r := newLogRouter(t, 1)
	s := newOut(t, r, Options{})
	d, _ := join(t, s, deviceOptions{id: "a", expiry: time.Hour})
	d.sub("log/old", 1)
	d.part()
	s.sessions.mu.Lock()
	s.sessions.stored = maxSessions
	s.sessions.mu.Unlock()
	_, _, err := s.sessions.take(context.Background(), anybody(t), "a", true, time.Hour)
	if err != nil {
		t.Errorf("refused: %v; of the session that was there %d rows are left", err, len(r.rows))
	}
	closeOut(t, s)
}
