package egress

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Client returns the HTTP client whose connections d opens. It follows no redirects, undoes no compression and obeys no
// proxy variable. Who reads an answer's body bounds it. It is the same each time.
func (d *Dialer) Client() *http.Client {
	d.clients.Lock()
	defer d.clients.Unlock()
	if c := d.client[d.named]; c != nil {
		return c
	}
	c := d.ClientWith(nil)
	d.client[d.named] = c
	return c
}

// ClientWith returns a client of its own, like Client's, with own above the policy's TLS options. own may be nil.
func (d *Dialer) ClientWith(own *TLS) *http.Client {
	return &http.Client{
		Transport:     &transports{d: d, own: own},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// transports has one transport for each policy in turn: a connection that was made under one, with its proxy and its
// pins, is not used for requests under the next.
type transports struct {
	d   *Dialer
	own *TLS // may be nil

	mu    sync.Mutex
	epoch uint64
	now   *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *transports) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.current().RoundTrip(r)
}

// CloseIdleConnections is called by http.Client's.
func (t *transports) CloseIdleConnections() { t.current().CloseIdleConnections() }

func (t *transports) current() *http.Transport {
	epoch := t.d.rules.Load().epoch
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now != nil && t.epoch >= epoch {
		return t.now
	}
	if t.now != nil {
		t.now.CloseIdleConnections() // those in use close when they become idle, for nothing asks for them again
	}
	t.epoch, t.now = epoch, &http.Transport{
		DialContext: t.d.DialContext, DialTLSContext: t.dialTLS, ForceAttemptHTTP2: true,
		MaxIdleConns: 64, MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // a bomb would unpack in our memory
	}
	return t.now
}

// handshakeTime bounds a TLS handshake.
const handshakeTime = 10 * time.Second

func (t *transports) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	o, err := t.d.TLS(host, t.own)()
	if err != nil {
		return nil, err
	}
	o.NextProtos = []string{"h2", "http/1.1"}
	raw, err := t.d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	c := tls.Client(raw, o)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS handshake: %w", Words(err))
	}
	return c, nil
}
