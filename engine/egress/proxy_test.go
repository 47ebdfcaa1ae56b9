package egress

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// A fakeProxy speaks CONNECT or SOCKS5 and connects everything to one place, whatever it is asked for.
type fakeProxy struct {
	addr string
	to   string
	mu   sync.Mutex
	seen []string // targets as they were asked for, with the credentials
	says string   // instead of connecting
}

func newFakeProxy(t *testing.T, to string, speak func(p *fakeProxy, c net.Conn) bool) *fakeProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &fakeProxy{addr: ln.Addr().String(), to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if !speak(p, c) {
					return
				}
				up, err := net.Dial("tcp", p.to)
				if err != nil {
					return
				}
				defer up.Close()
				done := make(chan struct{})
				go func() { defer close(done); _, _ = io.Copy(up, c); up.Close() }()
				_, _ = io.Copy(c, up)
				c.Close()
				<-done
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return p
}

func (p *fakeProxy) note(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, s)
}

func (p *fakeProxy) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

func speakConnect(p *fakeProxy, c net.Conn) bool {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return false
	}
	cred, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Proxy-Authorization"), "Basic "))
	p.note(r.Method + " " + r.Host + " " + string(cred))
	p.mu.Lock()
	answer := p.says
	p.mu.Unlock()
	refused := answer != ""
	if answer == "" {
		answer = "HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n"
	}
	_, err = io.WriteString(c, answer)
	return err == nil && !refused
}

// speakSOCKS follows RFC 1928 and 1929.
func speakSOCKS(p *fakeProxy, c net.Conn) bool {
	b := make([]byte, 512)
	read := func(n int) []byte { _, _ = io.ReadFull(c, b[:n]); return b[:n] }
	n := read(2)[1]
	cred := ""
	if methods := read(int(n)); strings.ContainsRune(string(methods), 2) {
		_, _ = c.Write([]byte{5, 2})
		user := string(read(int(read(2)[1])))
		pw := string(read(int(read(1)[0])))
		cred = user + ":" + pw
		_, _ = c.Write([]byte{1, 0})
	} else {
		_, _ = c.Write([]byte{5, 0})
	}
	var host string
	switch read(4)[3] {
	case 1:
		host = netip.AddrFrom4([4]byte(read(4))).String()
	case 3:
		host = string(read(int(read(1)[0])))
	case 4:
		host = netip.AddrFrom16([16]byte(read(16))).String()
	}
	port := read(2)
	p.note(fmt.Sprintf("SOCKS %s:%d %s", host, int(port[0])<<8|int(port[1]), cred))
	_, err := c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return err == nil
}

// Targets are judged before a proxy is asked, which is given the address that was judged, or the name where it is told
// so, and the credentials.
func TestProxy(t *testing.T) {
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello "+r.Host) }))
	defer receiver.Close()
	to := strings.TrimPrefix(receiver.URL, "http://")
	hosts := addrs{"public.example": {ip("93.184.216.34")}, "flip.example": {ip("127.0.0.1")}, "direct.example": {ip("127.0.0.1")}, "v6.example": {ip("2606:4700::1111")}}
	for scheme, speak := range map[string]func(*fakeProxy, net.Conn) bool{"http": speakConnect, "socks5": speakSOCKS} {
		p := newFakeProxy(t, to, speak)
		how := map[string]string{"http": "CONNECT", "socks5": "SOCKS"}[scheme]
		for _, names := range []bool{false, true} {
			proxy, err := parseProxyURL(scheme + "://me:s3cret-canary@" + p.addr)
			if err != nil {
				t.Fatal(err)
			}
			proxy.Names = names
			proxy.Except = []Rule{{Hosts: []string{"direct.example"}}}
			d := newDialer(t, Options{Resolver: hosts, Policy: &Policy{Proxy: proxy, Allow: []Rule{{Hosts: []string{"direct.example"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}}})
			get := func(host string) (string, error) {
				resp, err := d.Client().Get("http://" + host + "/")
				if err != nil {
					return "", err
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				return string(b), err
			}
			for host, want := range map[string][2]string{"public.example:8080": {"93.184.216.34:8080", "public.example:8080"},
				"v6.example": {"[2606:4700::1111]:80", "v6.example:80"}, "93.184.216.34": {"93.184.216.34:80", "93.184.216.34:80"}} {
				target := want[0]
				if names {
					target = want[1]
				}
				if scheme == "socks5" {
					target = strings.NewReplacer("[", "", "]", "").Replace(target)
				}
				got, err := get(host)
				if asked := p.asked(); err != nil || got != "hello "+host || len(asked) != 1 || asked[0] != how+" "+target+" me:s3cret-canary" {
					t.Errorf("%s, names %t, %s: %q, %v; asked for %q", scheme, names, host, got, err, asked)
				}
			}
			for _, host := range []string{"flip.example", "127.0.0.1", "[::ffff:169.254.169.254]"} {
				if _, err := get(host); !errors.Is(err, ErrBlocked) {
					t.Errorf("%s: %v", host, err)
				}
			}
			// Only the proxy knows it.
			if _, err := get("inside.example"); names != (err == nil) {
				t.Errorf("names %t: a name that is not found here: %v", names, err)
			}
			p.asked()
			_, port, _ := net.SplitHostPort(to)
			if got, err := get("direct.example:" + port); err != nil || got == "" || len(p.asked()) != 0 {
				t.Errorf("direct: %q, %v", got, err)
			}
			d.Client().CloseIdleConnections()
		}
	}
}

// What a proxy does wrong is said in words, within the time and without the password.
func TestHostileProxy(t *testing.T) {
	for name, c := range map[string]struct{ says, want string }{
		"wants more": {"HTTP/1.1 407 X\r\n\r\n", "it does not take the user and password of proxy"},
		"refuses":    {"HTTP/1.1 403 X\r\n\r\n", "it answers 403 Forbidden to CONNECT 93.184.216.34:80"},
		"redirects":  {"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1/\r\n\r\n", "it answers 302"},
		"endless":    {"HTTP/1.1 200 X\r\n" + strings.Repeat("X: yyyyyyyyyyyyyyyy\r\n", 2000), "over 16384 bytes"},
		"not HTTP":   {"SSH-2.0-x\r\n\r\n", "not HTTP/1.1"},
		"closes":     {"HTTP/1.1 20", "closed the connection or fell silent"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newFakeProxy(t, "", speakConnect)
			p.mu.Lock()
			p.says = c.says
			p.mu.Unlock()
			proxy := &Proxy{Scheme: "http", Addr: p.addr, User: "me", Password: "canary"}
			d := newDialer(t, Options{Policy: &Policy{Proxy: proxy}, Timeout: 5 * time.Second})
			_, err := d.DialContext(context.Background(), "tcp", "93.184.216.34:80")
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "through the proxy http://"+p.addr) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%v, want %q", err, c.want)
			}
			if n := len(d.slots.hosts); n != 0 {
				t.Errorf("%d places are kept", n)
			}
		})
	}
	silent := newFakeProxy(t, "", func(_ *fakeProxy, c net.Conn) bool { _, _ = io.Copy(io.Discard, c); return false })
	for _, scheme := range []string{"http", "socks5", "https"} {
		d := newDialer(t, Options{Policy: &Policy{Proxy: &Proxy{Scheme: scheme, Addr: silent.addr}}, Timeout: 100 * time.Millisecond})
		if _, err := d.DialContext(t.Context(), "tcp", "93.184.216.34:80"); err == nil {
			t.Errorf("%s: connected", scheme)
		}
	}
}

// Variables of the environment name no proxy.
func TestNoProxyFromTheEnvironment(t *testing.T) {
	p := newFakeProxy(t, "", speakConnect)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "http://"+p.addr)
	}
	d := newDialer(t, Options{Timeout: 50 * time.Millisecond})
	for _, raw := range []string{"http://93.184.216.34/", "https://93.184.216.34/"} {
		if resp, err := d.Client().Get(raw); err == nil {
			resp.Body.Close()
		}
	}
	if asked := p.asked(); len(asked) != 0 {
		t.Errorf("the proxy was asked for %q", asked)
	}
	if f := d.Client().Transport.(*transports).current().Proxy; f != nil {
		u, err := f(&http.Request{URL: &url.URL{Scheme: "http", Host: "example.com"}})
		t.Errorf("the client has a proxy: %v, %v", u, err)
	}
}

// Answers to the shared client: redirects are not followed, bombs not unpacked.
func TestClient(t *testing.T) {
	_, accepted := trap(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Error("it asks for compression")
		}
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
	}))
	defer s.Close()
	d := newDialer(t, Options{AllowPrivate: true})
	resp, err := d.Client().Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTemporaryRedirect {
		t.Error(resp.Status)
	}
	d.Client().CloseIdleConnections()
	if n := accepted(); n != 0 {
		t.Errorf("%d connections", n)
	}
	if first := d.Client(); first != d.Client() || first == d.Operator().Client() {
		t.Error("one client each for targets and for what the operator names")
	}
}

// A connection of the shared client that was in use when the policy changed is not used under the next one.
func TestClientConnectsAnewUnderAnotherPolicy(t *testing.T) {
	held, release := make(chan struct{}, 1), make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			held <- struct{}{}
			<-release
		}
		_, _ = io.WriteString(w, r.RemoteAddr)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	d := newDialer(t, Options{AllowPrivate: true, Policy: &Policy{TLS: TLSOptions{CA: []string{ca}}}})
	get := func(path string) string {
		resp, err := d.Client().Get(s.URL + path)
		if err != nil {
			t.Error(err)
			return ""
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	first := make(chan string)
	go func() { first <- get("/held") }()
	<-held
	if before := get("/"); before == "" {
		t.Fatal("no answer")
	}
	if err := d.SetPolicy(&Policy{TLS: TLSOptions{CA: []string{ca}, MinVersion: "1.3"}}); err != nil {
		t.Fatal(err)
	}
	during := get("/")
	close(release)
	old := <-first
	after := get("/")
	if during == old || after == old || during != after {
		t.Errorf("a connection from %s is of before; used were %s and %s since", old, during, after)
	}
}

// FuzzParseProxyURL: what is read is complete, and errors show no password.
func FuzzParseProxyURL(f *testing.F) {
	for _, s := range []string{"http://u:p@h:1", "socks5://[::1]:1080", "https://h", "http://h/x", "ftp://h", "http://%zz", "://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := parseProxyURL(raw)
		if err != nil {
			return
		}
		if _, port, err := net.SplitHostPort(p.Addr); err != nil || port == "" {
			t.Fatalf("%q: %+v", raw, p)
		}
	})
}
