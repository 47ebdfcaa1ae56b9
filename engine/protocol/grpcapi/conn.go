package grpcapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"google.golang.org/grpc/credentials"

	"github.com/millrace/millrace/engine/admission"
)

// A listener lets in no more connections than the door does.
type listener struct {
	net.Listener
	door *admission.Door
}

// Accept waits for a connection that may come in. One that is one too many is closed before a byte of it is read: there is
// no stream yet on which it could be told why.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		in, err := l.door.Enter(addrOf(nc.RemoteAddr()))
		if err != nil {
			nc.Close()
			continue
		}
		return &conn{Conn: nc, in: in}, nil
	}
}

// conn is a connection that was let in.
type conn struct {
	net.Conn
	in *admission.Conn
}

// Close may be called again.
func (c *conn) Close() error {
	c.in.Leave()
	return c.Conn.Close()
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// handshake makes a connection what streams run on: TLS where the router has certificates.
type handshake struct{ tls *tls.Config } // nil: plain

// newHandshake returns that of the router's TLS configuration, which is shared with HTTP/1.1's listeners.
func newHandshake(c *tls.Config) *handshake {
	if c == nil {
		return &handshake{}
	}
	return &handshake{overHTTP2(c)}
}

// overHTTP2 is c for HTTP/2 alone (RFC 9113, 3.2 and 9.2), whatever it chooses by a client's hello.
func overHTTP2(c *tls.Config) *tls.Config {
	h2 := c.Clone()
	// Challenges of an ACME authority come to the other listener.
	h2.NextProtos = []string{"h2"}
	if choose := c.GetConfigForClient; choose != nil {
		h2.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen == nil || err != nil || slices.Equal(chosen.NextProtos, h2.NextProtos) {
				return chosen, err
			}
			own := chosen.Clone()
			own.NextProtos = h2.NextProtos
			return own, nil
		}
	}
	return h2
}

// authInfo is what is known of a connection before its first call.
type authInfo struct {
	credentials.CommonAuthInfo
	in   *admission.Conn
	leaf *x509.Certificate // the client's, verified; nil: none
}

// AuthType names it for grpc.
func (a *authInfo) AuthType() string {
	if a.SecurityLevel == credentials.PrivacyAndIntegrity {
		return "tls"
	}
	return "insecure"
}

// ServerHandshake runs under the server's ConnectTimeout.
func (h *handshake) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, fmt.Errorf("the connection is a %T, not this server's", raw)
	}
	info := &authInfo{in: c.in, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}
	if h.tls == nil {
		return raw, info, nil
	}
	secure := tls.Server(raw, h.tls)
	if err := secure.Handshake(); err != nil {
		raw.Close()
		return nil, nil, err
	}
	state := secure.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		secure.Close()
		return nil, nil, errors.New(`the client did not negotiate "h2" (ALPN), which gRPC needs`)
	}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	if len(state.VerifiedChains) > 0 {
		info.leaf = state.PeerCertificates[0]
	}
	return secure, info, nil
}

// ClientHandshake is no server's.
func (*handshake) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's")
}

// Info says what they are.
func (h *handshake) Info() credentials.ProtocolInfo {
	if h.tls == nil {
		return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
	}
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone returns a copy.
func (h *handshake) Clone() credentials.TransportCredentials { return &handshake{h.tls} }

// OverrideServerName is a client's.
func (*handshake) OverrideServerName(string) error { return nil }
