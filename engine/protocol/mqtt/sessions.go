package mqtt

import (
	"context"
	"sync"
	"time"
)

// sessions are all there are, with and without a connection. A session's key is its owner's identity and its client id, so
// nobody comes to what another's device has not read.
type sessions struct {
	s *Server

	mu  sync.Mutex
	all map[sessionKey]*session
}

type sessionKey struct{ owner, clientID string }

func newSessions(s *Server) *sessions {
	return &sessions{s: s, all: map[sessionKey]*session{}}
}

// open loads what outlived the last process. It is called once, before anything else.
func (r *sessions) open(context.Context) error { return nil }

// take finds or makes the session of a client whose connection is the only one; present says that it was there. With clean
// what was there ends before.
func (r *sessions) take(_ context.Context, caller Caller, clientID string, clean bool, expiry time.Duration) (sess *session, present bool, err error) {
	p := caller.Principal()
	key := sessionKey{p.Identity(), clientID}
	r.mu.Lock()
	defer r.mu.Unlock()
	sess, present = r.all[key]
	if present && clean {
		sess.out.end()
		present = false
	}
	if !present {
		sess = &session{owner: key.owner, tenant: p.Tenant, clientID: clientID}
		sess.out = newOutbox(r.s, sess)
		r.all[key] = sess
	}
	sess.mu.Lock()
	sess.expiry, sess.caller = expiry, caller
	sess.mu.Unlock()
	return sess, present, nil
}

// leave says that a session's connection is gone, after outbox.detach: it ends now, or when its expiry has passed without another.
func (r *sessions) leave(sess *session) {
	if sess.persistent() {
		return
	}
	r.mu.Lock()
	delete(r.all, sessionKey{sess.owner, sess.clientID})
	r.mu.Unlock()
	sess.out.end()
}

// count is how many there are.
func (r *sessions) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// close ends what runs for sessions and writes their rows; they stay.
func (r *sessions) close(context.Context) error { return nil }
