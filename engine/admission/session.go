package admission

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// A Conn is a connection that was let in. Its methods may be called from several goroutines.
type Conn struct {
	d     *Door
	peer  netip.Addr
	from  *Account                // of peer; nil without one
	as    atomic.Pointer[Account] // of the principal whose connection this counts as
	known atomic.Uint64           // hash of what somebody who may come in has shown here; 0: nobody has
	left  sync.Once

	inside bool // whoever let it in counts it
	room   Room // for what is read before anybody is known
}

// Enter lets a connection in, or says that it is one too many: a *TooMany of its address, or event.ErrUnavailable. peer is
// not valid where there is no address. Call Leave when it closes.
func (d *Door) Enter(peer netip.Addr) (*Conn, error) {
	if n := d.entered.Add(1); n > int64(d.o.MaxConns) {
		d.entered.Add(-1)
		d.Refused(Conns)
		return nil, fmt.Errorf("%d connections are open, which is the limit; try again: %w", d.o.MaxConns, event.ErrUnavailable)
	}
	c := &Conn{d: d, peer: peer.Unmap()}
	if peer.IsValid() {
		b := d.Account(c.peer)
		if err := d.Connect(b, c.peer); err != nil {
			d.entered.Add(-1)
			return nil, err
		}
		c.from = b
	}
	return c, nil
}

// Inside is a connection that a face has let in and counts by itself, of peer or of whoever a proxy speaks for. Call Leave
// when it closes.
func (d *Door) Inside(peer netip.Addr) *Conn {
	c := &Conn{d: d, peer: peer.Unmap(), inside: true}
	if peer.IsValid() {
		c.from = d.Account(c.peer)
	}
	return c
}

// Reserve takes n more bytes of the room for large bodies for what is read before anybody is known on the connection, as a
// stranger's: event.ErrUnavailable where there is none. Release gives them back, and so does Leave.
func (c *Conn) Reserve(n int) error { return c.d.Reserve(&c.room, int64(n), true) }

// Release gives back what Reserve took.
func (c *Conn) Release() { c.d.Release(&c.room) }

// Leave ends the connection's counting. It may be called again.
func (c *Conn) Leave() {
	c.Release()
	c.left.Do(func() {
		if !c.inside {
			c.d.entered.Add(-1)
			if c.from != nil {
				c.from.Disconnect()
			}
		}
		if b := c.as.Swap(nil); b != nil {
			b.Disconnect()
		}
	})
}

// Open finds out who speaks on a connection, for one call of many or for all that follows. Where cred has another address
// than the connection's, a proxy speaks for it: see Limits.Client. An error is a *TooMany, access.ErrUnauthenticated, or why
// the question could not be answered. Call Close.
func (c *Conn) Open(ctx context.Context, cred access.Credentials) (*Session, error) {
	d, hash, from := c.d, c.d.Hash(cred.Bearer)|1, c.from // 0 is nobody's hash
	if cred.Addr = cred.Addr.Unmap(); !cred.Addr.IsValid() {
		cred.Addr = c.peer
	} else if cred.Addr != c.peer {
		from = d.Account(cred.Addr)
	}
	if from != nil {
		if err := d.Request(from); err != nil {
			return nil, err
		}
		if c.known.Load() != hash {
			if err := d.Guessing(from); err != nil {
				return nil, err
			}
		}
	}
	p, err := d.o.Guard.Authenticate(ctx, cred)
	if err != nil {
		if from != nil && errors.Is(err, access.ErrUnauthenticated) {
			if over := d.Stranger(from); over != nil {
				return nil, over
			}
		}
		return nil, err
	}
	if err := d.ConnectAs(p, &c.as); err != nil {
		return nil, err
	}
	c.known.Store(hash)
	s := d.Session(p, cred, from)
	s.asked.Store(true)
	return s, nil
}

// A Session is somebody who speaks on a connection. What he may changes meanwhile: his key is revoked, his token expires,
// his roles are others. Its methods may be called from several goroutines.
type Session struct {
	d     *Door
	cred  access.Credentials
	from  *Account // of his address; nil without one
	who   atomic.Pointer[access.Principal]
	asked atomic.Bool // Open took the request that comes first from what the address may send
	room  Room
	ended atomic.Bool // what he has shown is not valid any more

	mu   sync.Mutex
	ends map[*context.CancelCauseFunc]struct{} // of what he holds open
}

// Session is that of a principal whom a face has found out by itself, by cred. A nil principal is a stranger, who is never
// asked again.
func (d *Door) Session(p *access.Principal, cred access.Credentials, from *Account) *Session {
	s := &Session{d: d, cred: cred, from: from}
	s.who.Store(p)
	return s
}

// Principal is who it is, as it was last found out; nil: nobody, or not any more.
func (s *Session) Principal() *access.Principal {
	p := s.who.Load()
	switch {
	case s.ended.Load():
		return nil
	case p == nil || !p.Ended(s.d.o.Now()):
		return p
	case s.Again(context.Background()) != nil:
		return nil
	}
	return s.who.Load()
}

// Addr is where he comes from; not valid where there is no address.
func (s *Session) Addr() netip.Addr { return s.cred.Addr }

// Context carries who asks and from where, for the parts of the router that ask on.
func (s *Session) Context(ctx context.Context) context.Context {
	return access.WithAddr(access.With(ctx, s.Principal()), s.cred.Addr)
}

// Again finds out anew who it is. An error is that of whoever may not go on: what he holds open ends.
func (s *Session) Again(ctx context.Context) error {
	if s.who.Load() == nil {
		return nil
	}
	p, err := s.d.o.Guard.Authenticate(ctx, s.cred)
	if err == nil {
		s.who.Store(p)
		return nil
	}
	if ctx.Err() == nil {
		s.ended.Store(true)
		s.end()
	}
	return err
}

// May asks whether he may do something. A refusal is audited; what he may not even see is event.ErrNotFound, with no other
// name in it.
func (s *Session) May(a access.Action, k access.Kind, name string) error {
	if s.ended.Load() {
		return ErrRevoked
	}
	p := s.Principal()
	err := p.Check(a, k, name)
	if err != nil {
		s.d.o.Guard.Refused(p, s.cred.Addr, a, k, name, err)
	}
	if errors.Is(err, event.ErrNotFound) {
		return access.NotFound(k, name)
	}
	return err
}

// Spend takes a request, or a message as if it were one, from what he and his address may send: an error is a *TooMany. Of
// nobody only the address's is taken: whoever asks next is told why.
func (s *Session) Spend() error {
	if s.from != nil && !s.asked.Swap(false) {
		if err := s.d.Request(s.from); err != nil {
			return err
		}
	}
	p := s.Principal()
	if p == nil || p.Limits.Rate <= 0 {
		return nil
	}
	_, err := s.d.RequestAs(p)
	return err
}

// Reserve takes n more bytes of the room for large bodies for a message that has size bytes with them: event.ErrUnavailable
// where there is none. Release gives them back, and so does Close.
func (s *Session) Reserve(n, size int) error {
	if err := s.d.Shed(int64(size)); err != nil {
		return err
	}
	return s.d.Reserve(&s.room, int64(n), s.who.Load() == nil)
}

// Return gives back n bytes of what Reserve took; not beside Release or Close.
func (s *Session) Return(n int) { s.d.Return(&s.room, int64(n)) }

// Release gives back all that Reserve took.
func (s *Session) Release() { s.d.Release(&s.room) }

// Close gives back what the session holds, and ends what it holds open.
func (s *Session) Close() {
	s.Release()
	s.end()
}

// Hold returns a context that ends when ctx does, or, for ErrRevoked, once he may not go on: he is not who he was, or still,
// if it is not nil, says so. Both are asked every Recheck. Call stop.
func (s *Session) Hold(ctx context.Context, still func() error) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.mu.Lock()
	if s.ends == nil {
		s.ends = map[*context.CancelCauseFunc]struct{}{}
	}
	s.ends[&cancel] = struct{}{}
	s.mu.Unlock()
	if s.ended.Load() {
		cancel(ErrRevoked)
	}
	var again *time.Timer
	again = time.AfterFunc(time.Hour, func() {
		err := s.Again(ctx)
		if err == nil && still != nil {
			err = still()
		}
		switch {
		case ctx.Err() != nil:
		case err != nil:
			cancel(ErrRevoked)
		default:
			again.Reset(s.d.o.Recheck)
		}
	})
	again.Reset(s.d.o.Recheck)
	return ctx, func() {
		cancel(nil)
		again.Stop()
		s.mu.Lock()
		delete(s.ends, &cancel)
		s.mu.Unlock()
	}
}

// end ends what is held open.
func (s *Session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for cancel := range s.ends {
		(*cancel)(ErrRevoked)
	}
}
