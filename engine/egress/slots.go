package egress

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// slots caps the connections open to one host. A connection that its owner has declared idle gives way
// to a dial that waits: thousands of subscriptions to one host share the cap although each keeps its
// connections alive.
type slots struct {
	limit int
	mu    sync.Mutex
	hosts map[string]*host
}

// A host is what is open or waited for under one name. It lives while either is above zero.
type host struct {
	of      *slots
	name    string
	open    int // slots taken, dials under way included
	conns   map[*Conn]struct{}
	queue   []chan struct{} // closed when the slot is theirs
	waiting atomic.Int32    // len(queue), for Conn.Idle to read without the lock
}

func (s *slots) init(limit int) { s.limit, s.hosts = limit, map[string]*host{} }

// acquire waits for a slot.
func (s *slots) acquire(ctx context.Context, name string) (*host, error) {
	s.mu.Lock()
	h := s.hosts[name]
	if h == nil {
		h = &host{of: s, name: name, conns: map[*Conn]struct{}{}}
		s.hosts[name] = h
	}
	if h.open < s.limit {
		h.open++
		s.mu.Unlock()
		return h, nil
	}
	ready := make(chan struct{})
	h.queue = append(h.queue, ready)
	// Counted before the scan: a connection that turns idle meanwhile is seen by the scan or sees us.
	h.waiting.Add(1)
	var idle *Conn
	for c := range h.conns {
		if c.state.CompareAndSwap(stateIdle, stateTaken) {
			idle = c
			break
		}
	}
	s.mu.Unlock()
	if idle != nil {
		_ = idle.Close() // hands its slot to the first in the queue
	}
	select {
	case <-ready:
		return h, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, q := range h.queue {
		if q == ready {
			h.queue = append(h.queue[:i], h.queue[i+1:]...)
			h.waiting.Add(-1)
			return nil, fmt.Errorf("connect to %.80s: all %d connections that one host may have are in use: %w", name, s.limit, ctx.Err())
		}
	}
	return h, nil // it came just then
}

// release gives a slot back, or on.
func (h *host) release() {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	if len(h.queue) > 0 {
		close(h.queue[0])
		h.queue = h.queue[1:]
		h.waiting.Add(-1)
		return
	}
	if h.open--; h.open == 0 {
		delete(h.of.hosts, h.name)
	}
}

// keep counts c against h until it is closed.
func (h *host) keep(c *Conn) {
	c.host = h
	h.of.mu.Lock()
	h.conns[c] = struct{}{}
	h.of.mu.Unlock()
}

// all returns every open connection.
func (s *slots) all() (conns []*Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.hosts {
		for c := range h.conns {
			conns = append(conns, c)
		}
	}
	return conns
}

const (
	stateBusy = iota
	stateIdle
	stateTaken
)

// Conn is a connection that counts against its host's cap until it is closed.
type Conn struct {
	net.Conn
	host   *host
	target target
	addr   netip.Addr // of target, checked; invalid where a proxy looked it up
	rules  *atomic.Pointer[ruleset]
	epoch  uint64 // of the rules that it was opened under
	state  atomic.Int32
	once   sync.Once
}

// Idle says that the owner keeps c for later. False means that another dial waits for its place: close
// it now. An idle connection may be closed at any time; Busy tells.
func (c *Conn) Idle() bool {
	c.state.Store(stateIdle)
	return c.host.waiting.Load() == 0 || !c.state.CompareAndSwap(stateIdle, stateTaken)
}

// Busy takes c back into use. False means that it was given up while it was idle, or that other rules, keys or
// another proxy are in force since it was opened; close it all the same.
func (c *Conn) Busy() bool {
	return c.state.CompareAndSwap(stateIdle, stateBusy) && c.rules.Load().epoch == c.epoch
}

// Close closes the connection and frees its place.
func (c *Conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		c.host.of.mu.Lock()
		delete(c.host.conns, c)
		c.host.of.mu.Unlock()
		c.host.release()
	})
	return err
}
