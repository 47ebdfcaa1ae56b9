package egress

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/proxy"
)

// A Proxy carries all connections but those of Except. Targets are checked before they are handed to it. What it is
// given is the address that was checked, unless Names.
type Proxy struct {
	Scheme   string // http or https (CONNECT, RFC 9110 section 9.3.6) or socks5 (RFC 1928)
	Addr     string // host:port
	User     string // "" with Password "": none
	Password string
	Names    bool // names are handed over, and the proxy looks them up: what it comes to cannot be checked here
	Except   []Rule
}

// answerLimit bounds what a proxy may say before a connection stands.
const answerLimit = 16 << 10

// parseProxyURL reads the URL of a proxy. User and password may stand in it. They are not shown in errors.
func parseProxyURL(raw string) (*Proxy, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return nil, errors.New("not a URL with a host; want such as http://proxy.example.com:3128")
	}
	ports := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}
	port, ok := ports[u.Scheme]
	if !ok {
		return nil, fmt.Errorf("has the scheme %.20q; want http, https or socks5", u.Scheme)
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("has more than a host and a port; want such as http://proxy.example.com:3128")
	}
	p := &Proxy{Scheme: strings.TrimSuffix(u.Scheme, "h"), Addr: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))}
	p.User = u.User.Username()
	p.Password, _ = u.User.Password()
	return p, p.validate()
}

func (p *Proxy) validate() error {
	host, port, err := net.SplitHostPort(p.Addr)
	switch {
	case p.Scheme != "http" && p.Scheme != "https" && p.Scheme != "socks5":
		return fmt.Errorf("proxy: has the scheme %.20q; want http, https or socks5", p.Scheme)
	case err != nil:
		return fmt.Errorf("proxy: %.80q is not host:port", p.Addr)
	case port == "" || len(p.User) > 255 || len(p.Password) > 255:
		return errors.New("proxy: wants a port, and user and password of at most 255 bytes")
	case p.User == "" && p.Password != "":
		return errors.New("proxy: has a password and no user")
	case strings.Contains(p.User, ":") && p.Scheme != "socks5":
		return errors.New("proxy: the user has a colon, which ends it (RFC 7617 section 2)")
	}
	if err := checkHost(host); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	return nil
}

// takes reports whether a target's address, invalid if unknown, goes through the proxy.
func (p *Proxy) takes(t target, a netip.Addr) bool {
	if p == nil {
		return false
	}
	for i := range p.Except {
		if _, host := p.Except[i].host(t.name); host && p.Except[i].port(t.port) {
			if _, in := p.Except[i].addr(a); in {
				return false
			}
		}
	}
	return true
}

// takesName reports whether a target is handed over by its name.
func (p *Proxy) takesName(t target) bool {
	return p != nil && p.Names && t.name != "" && p.takes(t, netip.Addr{})
}

// dial connects to the proxy and through it to a target.
func (p *Proxy) dial(ctx context.Context, own *TLS, to hop) (net.Conn, error) {
	c, err := p.through(ctx, own, to)
	if err != nil {
		return nil, fmt.Errorf("through the proxy %s://%.80s: %w", p.Scheme, p.Addr, err)
	}
	return c, nil
}

func (p *Proxy) through(ctx context.Context, own *TLS, to hop) (net.Conn, error) {
	// The operator has named the proxy: it may be anywhere.
	if p.Scheme == "socks5" {
		var auth *proxy.Auth
		if p.User != "" {
			auth = &proxy.Auth{User: p.User, Password: p.Password}
		}
		d, err := proxy.SOCKS5("tcp", p.Addr, auth, new(net.Dialer))
		if err != nil {
			return nil, err
		}
		return d.(proxy.ContextDialer).DialContext(ctx, "tcp", to.String())
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", p.Addr)
	if err != nil {
		return nil, err
	}
	raw := c
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	if deadline, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(deadline)
	}
	if p.Scheme == "https" {
		host, _, _ := net.SplitHostPort(p.Addr)
		o, err := config(host, nil, own)
		if err != nil {
			_ = raw.Close()
			return nil, err
		}
		c = tls.Client(raw, o)
	}
	err = p.connect(c, to)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = raw.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, Words(err)
	}
	return c, raw.SetDeadline(time.Time{})
}

// connect asks an HTTP proxy on c for a connection.
func (p *Proxy) connect(c net.Conn, to hop) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", to, to)
	if p.User != "" {
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(p.User+":"+p.Password)))
	}
	b.WriteString("\r\n")
	if _, err := c.Write(b.Bytes()); err != nil {
		return err
	}
	// Byte by byte: what follows the answer is the target's.
	head := make([]byte, 0, 512)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) == answerLimit {
			return fmt.Errorf("its answer has over %d bytes of headers", answerLimit)
		}
		if _, err := io.ReadFull(c, head[len(head):len(head)+1:cap(head)]); err != nil {
			return fmt.Errorf("it closed the connection or fell silent before its answer ended: %w", err)
		}
		head = head[:len(head)+1]
		if len(head) == cap(head) {
			head = append(make([]byte, 0, 2*cap(head)), head...)
		}
	}
	answer, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("its answer is not HTTP/1.1: %w", err)
	}
	_ = answer.Body.Close()
	switch code := answer.StatusCode; {
	case code >= 200 && code <= 299:
		return nil
	case code == http.StatusProxyAuthRequired && p.User == "":
		return errors.New("it answers 407: it wants a user and a password; give them under proxy")
	case code == http.StatusProxyAuthRequired:
		return errors.New("it answers 407: it does not take the user and password of proxy")
	default:
		return fmt.Errorf("it answers %d %s to CONNECT %s", code, http.StatusText(code), to)
	}
}
