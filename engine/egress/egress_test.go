package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func newDialer(t *testing.T, o Options) *Dialer {
	t.Helper()
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// trap listens on loopback and counts whoever gets through.
func trap(t *testing.T) (port string, accepted func() int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			c.Close()
		}
	}()
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port, func() int {
		// What the kernel took before this connection is accepted before it.
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(make([]byte, 1))
		c.Close()
		ln.Close()
		<-done
		return int(n.Load()) - 1
	}
}

// addrs resolves each name to fixed addresses.
type addrs map[string][]netip.Addr

func (m addrs) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if a, ok := m[host]; ok {
		return a, nil
	}
	if a, ok := aton(loose(host)); ok { // what reads as an address to some programs
		return []netip.Addr{a}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// No notation of a special address reaches it.
func TestNotations(t *testing.T) {
	port, accepted := trap(t)
	d := newDialer(t, Options{Timeout: 2 * time.Second, Resolver: addrs{
		"localhost": {ip("127.0.0.1"), ip("::1")}, "localhost.": {ip("127.0.0.1")}, "LOCALHOST": {ip("127.0.0.1")},
		"localtest.me": {ip("127.0.0.1")}, "mapped.example": {ip("::ffff:127.0.0.1")}, "zone.example": {ip("fe80::1%lo")},
		"metadata.google.internal": {ip("169.254.169.254")},
	}})
	for _, host := range []string{
		"127.0.0.1", "127.255.255.254", "0.0.0.0", "localhost", "localhost.", "LOCALHOST", "localtest.me", "mapped.example",
		"127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "0x7F.1", "2130706433", "017700000001", "127.0.0.1.",
		"127.0.0.01", "0", "0x", "00000000000000000000000177.1", "127.0.0.256", "4294967296", "127。0。0。1", "１２７.0.0.1", "①②⑦.0.0.1",
		"::1", "::", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::127.0.0.1", "::ffff:0:127.0.0.1",
		"64:ff9b::127.0.0.1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:0:808:808::80ff:fffe",
		"2606:4700::5efe:7f00:1", "2606:4700::200:5efe:7f00:1", "fe80::1", "fe80::1%lo", "zone.example", "fec0::1",
		"169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "0xa9fea9fe", "2852039166", "metadata.google.internal",
		"fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16",
		"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.2.1", "203.0.113.9",
		"224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1", "ff02::1", "100::1", "100:0:0:1::1", "2001:2::1", "2001:10::1", "2001:20::1",
		"2001:30::1", "2001:1ff::1", "2001:db8::1", "3fff::1", "5f00::1", "fc00::1",
	} {
		c, err := d.DialContext(context.Background(), "tcp", net.JoinHostPort(host, port))
		if err == nil {
			c.Close()
			t.Errorf("%s: connected", host)
			continue
		}
		var op *net.OpError
		if errors.As(err, &op) {
			t.Errorf("%s: it tried: %v", host, err)
		}
	}
	if n := accepted(); n != 0 {
		t.Errorf("%d connections reached loopback", n)
	}
}

func TestBlockedSaysWhy(t *testing.T) {
	d := newDialer(t, Options{Resolver: addrs{"hook.example": {ip("10.1.2.3")}}, Deny: []netip.Prefix{netip.MustParsePrefix("93.184.0.0/16")}})
	for host, want := range map[string]string{
		"hook.example":         "hook.example has the address 10.1.2.3, in 10.0.0.0/8 (Private-Use, RFC 1918): not allowed as a target; --allow-private-targets allows it",
		"127.0.0.1":            "127.0.0.1, in 127.0.0.0/8 (Loopback, RFC 1122 section 3.2.1.3): not allowed as a target; --allow-private-targets allows it",
		"64:ff9b::7f00:1":      "64:ff9b::7f00:1, in 127.0.0.0/8 (Loopback, RFC 1122 section 3.2.1.3, carried in IPv6 as NAT64, RFC 6052): not allowed as a target; --allow-private-targets allows it",
		"93.184.216.34":        "93.184.216.34, in 93.184.0.0/16 (denied by this process's options): not allowed as a target; its operator decides",
		"64:ff9b::93.184.1.1":  "64:ff9b::5db8:101, in 93.184.0.0/16 (denied by this process's options): not allowed as a target; its operator decides",
		"::ffff:93.184.216.34": "::ffff:93.184.216.34, in 93.184.0.0/16 (denied by this process's options): not allowed as a target; its operator decides",
	} {
		_, err := d.DialContext(context.Background(), "tcp", net.JoinHostPort(host, "443"))
		if !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: %v", host, err)
		} else if got := err.Error(); got != want {
			t.Errorf("%s:\n%s, want\n%s", host, got, want)
		}
	}
}

// checkAddr is what d says of an address, whatever its name and port are.
func checkAddr(d *Dialer, a netip.Addr) error {
	return d.check(d.rules.Load(), target{host: a.String()}, a)
}

func TestPublicIsAllowed(t *testing.T) {
	d := newDialer(t, Options{})
	for _, s := range []string{"8.8.8.8", "93.184.216.34", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1",
		"192.31.196.1", "192.175.48.1", "2001:4860:4860::8888", "2001:3::1", "2620:4f:8000::1", "172.32.0.1", "100.128.0.1", "169.253.0.1"} {
		if err := checkAddr(d, ip(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestAllowAndDeny(t *testing.T) {
	lan := netip.MustParsePrefix("10.1.0.0/16")
	d := newDialer(t, Options{Allow: []netip.Prefix{lan}, Deny: []netip.Prefix{netip.MustParsePrefix("10.1.9.0/24")}})
	for s, ok := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.1.9.1": false, "10.2.0.1": false, "127.0.0.1": false} {
		if err := checkAddr(d, ip(s)); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
	all := newDialer(t, Options{AllowPrivate: true, Deny: []netip.Prefix{lan}})
	for s, ok := range map[string]bool{"127.0.0.1": true, "fe80::1": true, "fe80::1%eth0": false, "2606:4700::%20": false, "10.1.2.3": false, "2002:a01:203::": false, "2001:0:a01:203::": false} {
		if err := checkAddr(all, ip(s)); (err == nil) != ok {
			t.Errorf("AllowPrivate: %s: %v", s, err)
		}
	}
}

// flip answers the first lookup with a public address and every later one with loopback.
type flip struct{ lookups atomic.Int64 }

func (f *flip) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	if f.lookups.Add(1) == 1 {
		return []netip.Addr{ip("93.184.216.34")}, nil
	}
	return []netip.Addr{ip("127.0.0.1")}, nil
}

// A name that changes between check and connect gains nothing: there is one lookup a dial.
func TestFlip(t *testing.T) {
	port, accepted := trap(t)
	f := &flip{}
	d := newDialer(t, Options{Resolver: f, Timeout: 100 * time.Millisecond})
	for i := range 4 {
		c, err := d.DialContext(context.Background(), "tcp", "rebind.example:"+port)
		if err == nil {
			c.Close()
			t.Fatal("connected")
		}
		if n := f.lookups.Load(); n != int64(i+1) {
			t.Fatalf("%d lookups in %d dials", n, i+1)
		}
	}
	if n := accepted(); n != 0 {
		t.Errorf("%d connections reached loopback", n)
	}
}

// Refused addresses are passed over, dead ones too.
func TestNextAddress(t *testing.T) {
	port, accepted := trap(t)
	d := newDialer(t, Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Resolver: addrs{
		"h.example": {ip("10.0.0.1"), ip("127.0.0.2"), ip("127.0.0.1")},
		"many":      {ip("127.0.0.2"), ip("127.0.0.3"), ip("127.0.0.4"), ip("127.0.0.5"), ip("127.0.0.1")},
	}})
	c, err := d.DialContext(context.Background(), "tcp", "h.example:"+port)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().String(); got != "127.0.0.1:"+port {
		t.Errorf("connected to %s", got)
	}
	c.Close()
	if c, err := d.DialContext(context.Background(), "tcp", "many:"+port); err == nil {
		c.Close()
		t.Error("it tried a fifth address")
	}
	if n := accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestNoProxy(t *testing.T) {
	port, accepted := trap(t)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:"+port)
	t.Setenv("ALL_PROXY", "http://127.0.0.1:"+port)
	d := newDialer(t, Options{Resolver: addrs{"x.example": {ip("10.0.0.1")}}})
	if _, err := d.DialContext(context.Background(), "tcp", "x.example:80"); !errors.Is(err, ErrBlocked) {
		t.Error(err)
	}
	if n := accepted(); n != 0 {
		t.Errorf("%d connections reached the proxy", n)
	}
}

func TestPerHost(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // the backlog takes the connections
	d := newDialer(t, Options{AllowPrivate: true, PerHost: 2})
	dial := func(ctx context.Context) (*Conn, error) {
		c, err := d.DialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			return nil, err
		}
		return c.(*Conn), nil
	}
	must := func() *Conn {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		c, err := dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := must(), must()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := dial(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "all 2 connections") {
		t.Fatalf("a third: %v", err)
	}
	// An idle one gives way.
	if !a.Idle() {
		t.Fatal("Idle is false while nobody waits")
	}
	c := must()
	if a.Busy() {
		t.Error("a was given up, and can be used again")
	}
	a.Close() // a second time: frees nothing
	// Whoever turns idle while somebody waits is told to close.
	got := make(chan *Conn)
	go func() { c, _ := dial(context.Background()); got <- c }()
	for end := time.Now().Add(time.Minute); b.host.waiting.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the dial does not wait")
		}
	}
	if b.Idle() {
		t.Error("Idle is true while a dial waits")
	}
	b.Close()
	e := <-got
	if e == nil {
		t.Fatal("the place was not handed on")
	}
	if !c.Idle() || !c.Busy() {
		t.Error("idle and back")
	}
	c.Close()
	e.Close()
	d.slots.mu.Lock()
	defer d.slots.mu.Unlock()
	if n := len(d.slots.hosts); n != 0 {
		t.Errorf("%d hosts are kept after the last connection", n)
	}
}

func TestCheckURL(t *testing.T) {
	for raw, want := range map[string]string{
		"https://example.com/hook?x=1":    "",
		"http://127.0.0.1:8080/":          "", // decided when dialled
		"http://[::1]:80/":                "",
		"HTTPS://xn--bcher-kva.example":   "",
		"":                                "no scheme",
		"example.com/hook":                "no scheme",
		"ftp://example.com/":              `the scheme "ftp"; want http or https`,
		"127.0.0.1:9000":                  "no scheme",
		"http:///hook":                    "no host",
		"http:example.com":                "no host",
		"https://user:pw@example.com/":    "user or password",
		"https://user:p^w@exa mple.com/":  `' ' at`,
		"https://user:%zz@example.com/":   "cannot be read; percent-encode",
		"https://example.com/#frag":       "fragment",
		"https://example.com:0/":          "port",
		"https://example.com:65536/":      "port",
		"https://example.com:/":           "port",
		"https://example.com/a b":         "percent-encode",
		"https://example.com/\r\nHost: x": "percent-encode",
		"http://2130706433/":              "not a plain IPv4 address",
		"http://0x7f.1/":                  "not a plain IPv4 address",
		"http://0177.0.0.1/":              "not a plain IPv4 address",
		"http://127.1/":                   "not a plain IPv4 address",
		"http://%31%32%37.1/":             "cannot be read",
		"http://１２７.0.0.1/":               "xn--",
		"http://bücher.example/":          "xn--",
		"http://[::1%25e th]/":            "percent-encode",
		"http://[fe80::1%25eth0]/":        "has a zone (%…), which only link-local addresses need, and they are no targets; write fe80::1",
		"http://[2606:4700::%2520]/":      "has a zone",
		"http://a.example./":              "",
		"http://a..b.1x/":                 "",
		"http://..":                       "not a name",
	} {
		err := CheckURL(raw)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", raw, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %q", raw, err, want)
		case err != nil && (strings.Contains(err.Error(), "pw") || strings.Contains(err.Error(), "p^w")):
			t.Errorf("%q: the error shows the password: %v", raw, err)
		}
	}
}

func TestBadCalls(t *testing.T) {
	d := newDialer(t, Options{})
	for _, c := range [][2]string{{"udp", "8.8.8.8:53"}, {"tcp", "8.8.8.8"}, {"tcp", "8.8.8.8:http"}, {"tcp", "8.8.8.8:0"}, {"tcp", ":80"}} {
		if c, err := d.DialContext(context.Background(), c[0], c[1]); err == nil {
			c.Close()
			t.Error("no error")
		}
	}
	_, err := New(Options{Timeout: -1, PerHost: -1, Allow: make([]netip.Prefix, 1), Deny: make([]netip.Prefix, 1)})
	for _, want := range []string{"Timeout", "PerHost", "Allow[0]", "Deny[0]"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s is missing in %v", want, err)
		}
	}
}
