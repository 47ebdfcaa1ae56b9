package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// maxSessions bounds those that outlive their connections.
const maxSessions = 100_000

// sessions are all there are, with and without a connection. A session's key is its owner's identity and its client id, so
// nobody comes to what another's device has not read. One that outlives its connection has a row, which is durable before
// the client is told that the session is there.
type sessions struct {
	s *Server

	mu     sync.Mutex
	all    map[sessionKey]*session
	stored int // that have a row
}

type sessionKey struct{ owner, clientID string }

func newSessions(s *Server) *sessions {
	return &sessions{s: s, all: map[sessionKey]*session{}}
}

// open loads what outlived the last process. It is called once, before anything else. Who had a connection when that
// process ended lost it now.
func (r *sessions) open(ctx context.Context) error {
	now := r.s.o.Now()
	err := r.s.o.Backend.Rows().Scan(ctx, event.ShelfSessions, string(rune(sessionRows)), func(_ string, value []byte) error {
		var row sessionRow
		if err := json.Unmarshal(value, &row); err != nil {
			return fmt.Errorf("the row of a session: %w", err)
		}
		s := &session{owner: row.Owner, tenant: row.Tenant, clientID: row.Client, expiry: row.Expiry, left: now, stored: true}
		if row.Left != 0 {
			s.left = time.Unix(0, row.Left)
		}
		s.out = newOutbox(r.s, s)
		r.all[sessionKey{row.Owner, row.Client}] = s
		r.stored++
		return s.out.restore(row.Filters)
	})
	if err == nil {
		err = r.scan(ctx, event.ShelfSessions, cursorRows, (*outbox).restoreCursor)
	}
	if err == nil {
		err = r.scan(ctx, event.ShelfPackets, outRows, (*outbox).restoreMessage)
	}
	if err == nil {
		r.expire(ctx)
	}
	return err
}

// scan gives sessions their rows of a kind. One scan for all: one for each takes seconds where there are many.
func (r *sessions) scan(ctx context.Context, shelf event.Shelf, kind byte, restore func(o *outbox, key string, value []byte) error) error {
	return r.s.o.Backend.Rows().Scan(ctx, shelf, string(rune(kind)), func(key string, value []byte) error {
		owner, rest, ok := cutText(key[1:])
		clientID, rest, named := cutText(rest)
		if !ok || !named {
			return fmt.Errorf("the row of a session has a key of %d bytes that names none", len(key))
		}
		s := r.all[sessionKey{owner, clientID}]
		if s == nil {
			return nil
		}
		if err := restore(s.out, rest, value); err != nil {
			return fmt.Errorf("session of client %q: %w", clientID, err)
		}
		return nil
	})
}

// over reports whether a session without a connection has come to its end.
func (s *session) over(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.connected && s.expiry < expiresNever && (s.expiry == 0 || now.Sub(s.left) >= s.expiry)
}

// expiresNever and longer is for ever (3.1.2.11.2).
const expiresNever = time.Duration(1<<32-1) * time.Second

// take finds or makes the session of a client whose connection is the only one; present says that it was there. With clean
// what was there ends before.
func (r *sessions) take(ctx context.Context, caller Caller, clientID string, clean bool, expiry time.Duration) (sess *session, present bool, err error) {
	p := caller.Principal()
	key := sessionKey{p.Identity(), clientID}
	r.mu.Lock()
	old := r.all[key]
	for ; old != nil && old.ending != nil; old = r.all[key] { // its rows go under the keys of those that come now
		ended := old.ending
		r.mu.Unlock()
		<-ended
		r.mu.Lock()
	}
	if old != nil && !old.over(r.s.o.Now()) && !clean {
		sess, present = old, true
	} else {
		sess = &session{owner: key.owner, tenant: p.Tenant, clientID: clientID}
		sess.out = newOutbox(r.s, sess)
		r.all[key] = sess
	}
	free := 0 // the place of the session that ends
	if old != nil && old != sess {
		if old.mu.Lock(); old.stored {
			free = 1
		}
		old.mu.Unlock()
	}
	sess.mu.Lock()
	was := sess.expiry
	sess.connected, sess.caller, sess.expiry = true, caller, expiry
	stored, full := sess.stored, expiry > 0 && !sess.stored && r.stored-free >= maxSessions
	if expiry > 0 && !stored && !full {
		sess.stored = true
		r.stored++
	}
	sess.mu.Unlock()
	r.mu.Unlock()
	if old != nil && old != sess {
		old.out.end()
		if err = r.forget(ctx, old); err != nil { // its rows are this one's to remove now
			r.mu.Lock()
			sess.mu.Lock()
			if !sess.stored {
				sess.stored = true
				r.stored++
			}
			sess.mu.Unlock()
			r.mu.Unlock()
		}
	}
	switch {
	case err != nil:
	case full:
		err = event.Bad(event.ErrFull, "session", fmt.Sprintf("%d sessions outlive their connections, and there may be no more; connect with a session expiry of 0 or a clean session", maxSessions))
	case expiry > 0 || stored:
		err = sess.out.saveRow(ctx)
	}
	if err == nil {
		return sess, present, nil
	}
	if present { // as it was
		sess.mu.Lock()
		sess.connected, sess.expiry = false, was
		sess.mu.Unlock()
		return nil, false, err
	}
	sess.mu.Lock()
	sess.connected, sess.expiry = false, 0
	sess.mu.Unlock()
	_ = r.over(ctx, sess) // has said so
	return nil, false, err
}

// leave says that a session's connection is gone, after outbox.detach: it ends now, or when its expiry has passed without another.
func (r *sessions) leave(sess *session) {
	ctx, cancel := context.WithTimeout(context.Background(), letGoWithin)
	defer cancel()
	sess.mu.Lock()
	sess.connected, sess.left = false, r.s.o.Now()
	keep := sess.expiry > 0
	sess.mu.Unlock()
	if !keep {
		_ = r.over(ctx, sess) // has said so
		return
	}
	if err := sess.out.saveAll(ctx); err != nil {
		r.s.o.Log.Warn("how far an MQTT session has come cannot be stored: what it acknowledged last may come to it again", "client", sess.clientID, "error", err)
	}
}

// over ends a session that has no connection, unless somebody else does. One whose rows cannot be removed stays, to be ended
// another time: who comes is to find all of it or nothing.
func (r *sessions) over(ctx context.Context, sess *session) error {
	key := sessionKey{sess.owner, sess.clientID}
	r.mu.Lock()
	mine := r.all[key] == sess && sess.ending == nil && sess.over(r.s.o.Now())
	if mine {
		sess.ending = make(chan struct{})
	}
	r.mu.Unlock()
	if !mine {
		return nil
	}
	sess.out.end()
	err := r.forget(ctx, sess)
	r.mu.Lock()
	if err == nil {
		delete(r.all, key)
	} else {
		sess.mu.Lock()
		sess.stored = true
		r.stored++
		sess.mu.Unlock()
	}
	close(sess.ending)
	sess.ending = nil
	r.mu.Unlock()
	if err != nil && !errors.Is(err, context.Canceled) {
		r.s.o.Log.Warn("the rows of an MQTT session that has ended cannot be removed now, which is tried again", "client", sess.clientID, "error", err)
	}
	return err
}

// forget removes a session's rows.
func (r *sessions) forget(ctx context.Context, sess *session) error {
	sess.mu.Lock()
	stored := sess.stored
	sess.stored, sess.expiry = false, 0 // nothing writes rows of it any more
	sess.mu.Unlock()
	if !stored {
		return nil
	}
	r.mu.Lock()
	r.stored = max(0, r.stored-1)
	r.mu.Unlock()
	o := sess.out
	o.rows.Lock()
	defer o.rows.Unlock()
	return r.s.o.Backend.Rows().Keep(ctx,
		event.ShelfRow{Shelf: event.ShelfSessions, Key: sess.prefix(sessionRows), Under: true},
		event.ShelfRow{Shelf: event.ShelfSessions, Key: sess.prefix(cursorRows), Under: true},
		event.ShelfRow{Shelf: event.ShelfPackets, Key: sess.prefix(outRows), Under: true},
		event.ShelfRow{Shelf: event.ShelfPackets, Key: sess.prefix(inRows), Under: true})
}

// expire ends the sessions whose time without a connection has passed.
func (r *sessions) expire(ctx context.Context) {
	now := r.s.o.Now()
	var over []*session
	r.mu.Lock()
	for _, sess := range r.all {
		if sess.over(now) {
			over = append(over, sess)
		}
	}
	r.mu.Unlock()
	for part := range slices.Chunk(over, 100) { // at once: they share their syncs
		var failed atomic.Bool
		var group sync.WaitGroup
		for _, sess := range part {
			group.Go(func() {
				if r.over(ctx, sess) != nil {
					failed.Store(true)
				}
			})
		}
		if group.Wait(); failed.Load() { // nor the others' now
			return
		}
	}
}

// count is how many there are.
func (r *sessions) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// close ends what runs for sessions and writes their rows; they stay.
func (r *sessions) close(ctx context.Context) error {
	r.mu.Lock()
	all := make([]*session, 0, len(r.all))
	for _, sess := range r.all {
		all = append(all, sess)
	}
	r.mu.Unlock()
	var mu sync.Mutex
	var errs []error
	for part := range slices.Chunk(all, 100) { // at once: they share their syncs
		var group sync.WaitGroup
		for _, sess := range part {
			sess.mu.Lock()
			connected, keep := sess.connected, sess.expiry > 0
			sess.mu.Unlock()
			if !connected {
				continue
			}
			group.Go(func() {
				sess.out.detach()
				sess.mu.Lock()
				sess.connected, sess.left = false, r.s.o.Now()
				sess.mu.Unlock()
				if !keep {
					return
				}
				if err := sess.out.saveAll(ctx); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
		group.Wait()
	}
	r.s.fan.close()
	return errors.Join(errs...)
}
