package mqtt

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A session that expires while its client comes back is a new one as a whole: what removes the rows of the old one does not
// remove the new one's, and where they cannot be removed none of them is found behind the new one.
func TestExpireWhileItComesBack(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(map[bool]string{false: "at the same time", true: "after the rows could not be removed"}[fails], func(t *testing.T) {
			r := newLogRouter(t, 1)
			var hours atomic.Int64
			s := newOut(t, r, Options{Now: func() time.Time { return time.Now().Add(time.Duration(hours.Load()) * time.Hour) }})
			d, _ := join(t, s, deviceOptions{id: "a", expiry: time.Hour})
			d.sub("log/old", 1)
			d.part()
			hours.Add(2)
			removing, on := make(chan struct{}), make(chan struct{})
			r.hook(nil, func(rows []event.ShelfRow) error {
				if !rows[0].Under {
					return nil
				}
				r.hook(nil, nil)
				close(removing)
				if fails {
					return event.ErrUnavailable
				}
				<-on
				return nil
			})
			go s.sessions.expire(t.Context())
			<-removing

			joined := make(chan bool, 1)
			go func() {
				var present bool
				d, present = join(t, s, deviceOptions{id: "a", expiry: time.Hour})
				d.sub("plant/new/temp", 1)
				joined <- present
			}()
			select { // what is wrong would be done by now
			case present := <-joined:
				joined <- present
			case <-time.After(50 * time.Millisecond):
			}
			close(on)
			if <-joined {
				t.Error("the expired session was resumed")
			}
			after := r.crash()
			for key := range after.rows {
				if strings.Contains(key, "logs") {
					t.Errorf("a row of the old session is left: %q", key)
				}
			}
			d.part()
			closeOut(t, s)
			s = newOut(t, after, Options{})
			d, present := join(t, s, deviceOptions{id: "a", expiry: time.Hour})
			if subs := d.sess.out.subs; !present || len(subs) != 1 || subs["plant/new/temp"] == nil {
				t.Errorf("after a crash the session is there: %v, with %v", present, subs)
			}
			d.part()
			closeOut(t, s)
		})
	}
}

// Sessions that expire together, or have while there was no router, share the syncs of their removal, which nothing else waits for.
func TestExpireTogether(t *testing.T) {
	r := newLogRouter(t, 1)
	s := newOut(t, r, Options{})
	for _, id := range []string{"a", "b", "c"} {
		d, _ := join(t, s, deviceOptions{id: id, expiry: time.Hour})
		d.sub("log/x", 1)
		d.part()
	}
	closeOut(t, s)
	var at atomic.Int32
	r.hook(nil, func(rows []event.ShelfRow) error {
		if rows[0].Under {
			at.Add(1)
			for end := time.Now().Add(10 * time.Second); at.Load() < 3; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					return event.ErrUnavailable
				}
			}
		}
		return nil
	})
	s = newOut(t, r, Options{Now: func() time.Time { return time.Now().Add(2 * time.Hour) }})
	s.sessions.expire(t.Context())
	if n := s.Stats().Sessions; n != 0 || len(r.rows) != 0 {
		t.Errorf("%d sessions and %d rows are left", n, len(r.rows))
	}
	closeOut(t, s)
}
