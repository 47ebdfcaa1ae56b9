package mqtt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A Server speaks to MQTT clients. Its methods may be called from several goroutines.
type Server struct {
	o        Options
	sessions *sessions
	retained *retained
	fan      *fanouts
	wills    *wills
	online   online
	stats    counters
	reads    *sync.Pool // of *[readSize]byte
	writes   *sync.Pool // of *[]byte
	batches  *sync.Pool // of *batch

	draining atomic.Bool
	serving  sync.WaitGroup // connections

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
}

// New returns a server of the sessions that the last one left.
func New(ctx context.Context, o Options) (*Server, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("mqtt: %w", err)
	}
	s := &Server{o: o, reads: newReadPool(), writes: newWritePool(), batches: newBatchPool(), online: online{all: map[onlineKey]*conn{}},
		listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}}
	s.sessions, s.retained, s.wills = newSessions(s), newRetained(s), newWills(s)
	s.fan = newFanouts(s)
	if err := s.retained.open(ctx); err != nil {
		return nil, fmt.Errorf("mqtt: retained messages: %w", err)
	}
	if err := s.sessions.open(ctx); err != nil {
		return nil, fmt.Errorf("mqtt: sessions: %w", err)
	}
	if err := s.wills.open(ctx); err != nil {
		s.wills.close()
		return nil, fmt.Errorf("mqtt: wills: %w", err)
	}
	s.fan.open()
	return s, nil
}

// Serve takes connections of ln, which may be a listener of crypto/tls, until Shutdown, which closes it; it may be called for
// several.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	if a, ok := ln.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() && s.o.StayOn != nil && !s.o.StayOn() {
		return errors.Join(fmt.Errorf("mqtt: %s can be reached from other machines and no token is set: set MILLRACE_TOKEN, "+
			"or listen on 127.0.0.1, or say --insecure to serve everybody", a), ln.Close())
	}
	s.mu.Lock()
	draining := s.draining.Load()
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	if draining {
		return ln.Close()
	}
	for wait := time.Duration(0); ; {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			wait = 0
			s.accept(ctx, nc)
		case s.draining.Load() || errors.Is(err, net.ErrClosed):
			return nil
		default: // of one connection, or for want of files: others come
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.o.Log.Warn("an MQTT connection is not accepted", "error", err, "wait", wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
}

// accept serves a connection, or closes one that is too many.
func (s *Server) accept(ctx context.Context, nc net.Conn) {
	visit, err := s.o.Door.Enter(peerOf(nc))
	if err != nil {
		s.stats.ended[packets.ErrQuotaExceeded.Code].Add(1)
		_ = nc.Close()
		return
	}
	s.attend(ctx, nc, visit, nil)
}

// attend serves a connection on a goroutine of its own, and calls done, which may be nil, once that is over.
func (s *Server) attend(ctx context.Context, nc net.Conn, visit Visit, done func()) {
	c := newConn(s, nc, visit)
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		visit.Leave()
		_ = nc.Close()
		if done != nil {
			done()
		}
		return
	}
	s.conns[c] = struct{}{}
	s.serving.Add(1)
	s.mu.Unlock()
	s.stats.connections.Add(1)
	go func() {
		defer s.serving.Done()
		if done != nil {
			defer done()
		}
		c.run(ctx)
		_ = nc.Close()
		visit.Leave()
		s.stats.connections.Add(-1)
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

// Shutdown takes no more connections, lets what is being stored be acknowledged, tells clients to go and waits for that, or
// for ctx's end. Sessions and wills stay for the next process.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for ln := range s.listeners {
		_ = ln.Close()
	}
	for c := range s.conns {
		go c.end(&violation{packets.ErrServerShuttingDown.Code, "the router is shutting down: come back"})
	}
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		s.serving.Wait()
		s.wills.close()
		close(gone)
	}()
	select {
	case <-gone:
		return s.sessions.close(ctx)
	case <-ctx.Done():
		s.mu.Lock()
		for c := range s.conns {
			_ = c.nc.Close()
		}
		s.mu.Unlock()
		return errors.Join(fmt.Errorf("mqtt: connections did not end in time: %w", context.Cause(ctx)), s.sessions.close(ctx))
	}
}
