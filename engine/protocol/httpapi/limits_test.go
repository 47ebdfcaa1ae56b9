package httpapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
)

// A client of one connection.
type lone struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func connect(t *testing.T, addr string) *lone {
	t.Helper()
	nc, err := net.Dial("tcp", strings.TrimPrefix(addr, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	return &lone{t, nc, bufio.NewReader(nc)}
}

// get asks for path; headers are whole lines.
func (l *lone) get(path string, headers ...string) *http.Response {
	l.t.Helper()
	_, _ = fmt.Fprintf(l.nc, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", path, strings.Join(append(headers, ""), "\r\n"))
	res, _ := answer(l.t, l.r, "GET")
	return res
}

func refused(s *Server, limit string) (n uint64) {
	s.door.Refusals(func(name string, v uint64) {
		if name == limit {
			n = v
		}
	})
	return n
}

func TestAddressRate(t *testing.T) {
	s, url := serve(t, Options{Backend: newFake("orders"), Clients: ClientLimits{Limits: admission.Limits{Rate: 0.01, Burst: 2, Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}})
	c := connect(t, url)
	for _, x := range []struct {
		from   string
		status int
	}{{"198.51.100.1", 200}, {"198.51.100.1", 200}, {"198.51.100.1", 429}, {"198.51.100.2", 200}, {"203.0.113.1, 198.51.100.1", 429},
		{"2001:db8::1", 200}, {"2001:db8::2", 200}, {"2001:db8::3", 429}, {"2001:db8:0:1::3", 200}} {
		res := c.get("/v1/topics", "X-Forwarded-For: "+x.from)
		if res.StatusCode != x.status {
			t.Errorf("%s: %d, want %d", x.from, res.StatusCode, x.status)
		}
		if x.status == 429 && (res.Header.Get("Retry-After") == "" || res.Header.Get("RateLimit-Limit") != "2" || res.Header.Get("RateLimit-Remaining") != "0" || res.Header.Get("RateLimit-Reset") == "") {
			t.Errorf("429 says %v", res.Header)
		}
	}
	for range 5 { // who looks after the router is not held back
		if res := c.get("/healthz", "X-Forwarded-For: 198.51.100.1"); res.StatusCode != 200 {
			t.Errorf("/healthz: %d", res.StatusCode)
		}
	}
	if n := refused(s, "address_rate"); n != 3 {
		t.Errorf("%d refusals are counted", n)
	}
}

// The word of somebody who is no proxy of ours moves no request to another address.
func TestForwardedOfStrangersIsNotBelieved(t *testing.T) {
	_, url := serve(t, Options{Backend: newFake("orders"), Clients: ClientLimits{Limits: admission.Limits{Rate: 0.01, Burst: 1}}})
	c := connect(t, url)
	c.get("/v1/topics", "X-Forwarded-For: 198.51.100.1")
	if res := c.get("/v1/topics", "X-Forwarded-For: 198.51.100.2"); res.StatusCode != 429 {
		t.Errorf("another made-up address: %d", res.StatusCode)
	}
}

// Whoever guesses is held back, with right credentials too, while those that were known on their connection go on.
func TestGuessing(t *testing.T) {
	s, url := serve(t, Options{Backend: newFake("orders"), Guard: policyOf(t, "version: 1\n"), Clients: ClientLimits{Limits: admission.Limits{StrangerRate: 0.01, StrangerBurst: 3}}})
	known := connect(t, url)
	if res := known.get("/v1/topics", "Authorization: Bearer secret"); res.StatusCode != 200 {
		t.Fatal(res.StatusCode)
	}
	c := connect(t, url)
	for i, want := range []int{401, 401, 401, 429, 429} {
		if res := c.get("/v1/topics", fmt.Sprintf("Authorization: Bearer guess%d", i)); res.StatusCode != want {
			t.Errorf("guess %d: %d, want %d", i, res.StatusCode, want)
		}
	}
	if res := c.get("/v1/topics", "Authorization: Bearer secret"); res.StatusCode != 429 {
		t.Errorf("the right one after too many: %d", res.StatusCode)
	}
	if res := known.get("/v1/topics", "Authorization: Bearer secret"); res.StatusCode != 200 {
		t.Errorf("on a connection from before: %d", res.StatusCode)
	}
	if res := c.get("/healthz"); res.StatusCode != 200 {
		t.Errorf("/healthz: %d", res.StatusCode)
	}
	if n := refused(s, "stranger_rate"); n != 3 {
		t.Errorf("%d refusals are counted", n)
	}
	// What was good on a connection vouches for itself alone, not for what is guessed there.
	if res := known.get("/v1/topics", "Authorization: Bearer guess"); res.StatusCode != 429 {
		t.Errorf("a guess on a connection from before: %d", res.StatusCode)
	}
	// Calls that strangers may make, and that say whether credentials are good, are no way around.
	if res := c.get("/readyz"); res.StatusCode != 200 {
		t.Errorf("/readyz without credentials: %d", res.StatusCode)
	}
	if res := c.get("/readyz", "Authorization: Bearer secret"); res.StatusCode != 429 {
		t.Errorf("/readyz: %d", res.StatusCode)
	}
	_, _ = io.WriteString(c.nc, "OPTIONS /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nWebHook-Request-Origin: a.example\r\nAuthorization: Bearer secret\r\n\r\n")
	if res, _ := answer(t, c.r, "OPTIONS"); res.StatusCode != 429 || res.Header.Get("WebHook-Allowed-Origin") != "" {
		t.Errorf("OPTIONS: %d %v", res.StatusCode, res.Header)
	}
	// A large body is judged twice, and counts once.
	big := connect(t, url)
	_, _ = fmt.Fprintf(big.nc, "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
	if res, _ := answer(t, big.r, "POST"); res.StatusCode != 429 || refused(s, "stranger_rate") != 7 {
		t.Errorf("a large body: %d, %d refusals", res.StatusCode, refused(s, "stranger_rate"))
	}
}

// Guesses at calls that strangers may make count.
func TestGuessingWhereStrangersMayCall(t *testing.T) {
	_, url := serve(t, Options{Backend: newFake("orders"), Guard: policyOf(t, "version: 1\n"), Clients: ClientLimits{Limits: admission.Limits{StrangerRate: 0.01, StrangerBurst: 2}}})
	c := connect(t, url)
	for i, want := range []int{200, 200, 429} {
		if res := c.get("/readyz", fmt.Sprintf("Authorization: Bearer guess%d", i)); res.StatusCode != want {
			t.Errorf("guess %d: %d, want %d", i, res.StatusCode, want)
		}
	}
}

// What the roles say of rates and connections holds over all connections and addresses of a principal.
func TestPrincipalLimits(t *testing.T) {
	const policy = "version: 1\nroles: {slow: [{allow: [read], topics: [\"*\"]}]}\nlimits: {slow: {rate: 1/h, burst: 3, connections: 2}}\n" +
		"certificates: [{subject: edge-1, roles: [slow]}, {subject: edge-2, roles: [slow]}]\n"
	s, err := New(Options{Backend: newFake("orders"), Guard: policyOf(t, policy)})
	if err != nil {
		t.Fatal(err)
	}
	who := func(name string) *access.Principal {
		t.Helper()
		cert, _ := selfSigned(t, name)
		p, err := s.o.Guard.Authenticate(t.Context(), access.Credentials{Certificate: cert.Leaf})
		if err != nil || p.Limits.Conns != 2 {
			t.Fatal(p, err)
		}
		return p
	}
	first, second := who("edge-1"), who("edge-2")
	conns := make([]*conn, 4)
	ask := func(i int, p *access.Principal) (status int) {
		if conns[i] == nil {
			conns[i] = &conn{s: s, on: s.nowhere}
			s.conns[conns[i]] = struct{}{}
		}
		ctx := requestCtx(conns[i])
		c := &call{s: s, ctx: ctx}
		err := c.limit(p)
		if again := c.limit(p); err == nil && again != nil { // a large body asks twice
			t.Errorf("asked again: %v", again)
		}
		conns[i].requestEnds()
		if err != nil {
			p, _ := problemOf(err)
			return p.Status
		}
		if got := string(ctx.Response.Header.Peek("RateLimit-Limit")); got != "3" {
			t.Errorf("RateLimit-Limit is %q", got)
		}
		return 200
	}
	for i, x := range []struct {
		conn int
		p    *access.Principal
		want int
	}{{0, first, 200}, {1, first, 200}, {2, first, 429}, {0, first, 200}, {0, first, 429}, {2, second, 200}} {
		if got := ask(x.conn, x.p); got != x.want {
			t.Errorf("%d: %d, want %d", i, got, x.want)
		}
	}
	s.leave(conns[0])
	if got := ask(3, second); got != 200 {
		t.Errorf("the second principal's second connection: %d", got)
	}
	if refused(s, "principal_connections") != 1 || refused(s, "principal_rate") != 1 {
		t.Errorf("%d and %d refusals", refused(s, "principal_connections"), refused(s, "principal_rate"))
	}
	var again, third atomic.Pointer[admission.Account]
	if s.door.ConnectAs(first, &again) != nil || s.door.ConnectAs(first, &third) == nil {
		t.Error("after one of two has closed it is not one that there is room for")
	}
}

// One address that opens connection after connection is told so; those that it has, and those of others, go on.
func TestConnectionFlood(t *testing.T) {
	s, url := serve(t, Options{Backend: newFake("orders"), Clients: ClientLimits{Limits: admission.Limits{Conns: 5}}})
	var mine []*lone
	for range 5 {
		mine = append(mine, connect(t, url))
		if res := mine[len(mine)-1].get("/healthz"); res.StatusCode != 200 {
			t.Fatal(res.StatusCode)
		}
	}
	for range 200 {
		c := connect(t, url)
		_, _ = io.WriteString(c.nc, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		res, err := http.ReadResponse(c.r, nil)
		if err == nil && (res.StatusCode != 429 || res.Header.Get("Retry-After") == "") { // past 64 at once they are closed
			t.Fatal(res.StatusCode)
		}
		c.nc.Close()
	}
	for _, c := range mine {
		if res := c.get("/healthz"); res.StatusCode != 200 {
			t.Errorf("an existing connection: %d", res.StatusCode)
		}
	}
	if n := refused(s, "address_connections"); n != 200 {
		t.Errorf("%d refusals are counted", n)
	}
	mine[0].nc.Close()
	eventually(t, "room for another", func() bool { return s.Connections() < 5 })
	if res := connect(t, url).get("/healthz"); res.StatusCode != 200 {
		t.Errorf("after one has closed: %d", res.StatusCode)
	}
}

func TestConnectionsAtOnce(t *testing.T) {
	s, url := serve(t, Options{Backend: newFake("orders"), MaxConns: 2})
	a, b := connect(t, url), connect(t, url)
	a.get("/healthz")
	b.get("/healthz")
	c := connect(t, url)
	if res, body := answer(t, c.r, "GET"); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || !strings.Contains(body, "which is the limit") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if a.get("/healthz").StatusCode != 200 || refused(s, "connections") != 1 {
		t.Errorf("%d refusals", refused(s, "connections"))
	}
}

// Clients that send a byte now and then get 408 in time, whatever they send slowly, and cost others nothing.
func TestSlowClients(t *testing.T) {
	many, headers := 100, 400*time.Millisecond
	if os.Getenv("MILLRACE_LONG") != "" {
		many, headers = 5000, 10*time.Second
	}
	s, url := serve(t, Options{Backend: newFake("orders"), HeaderTimeout: headers, BodyTimeout: 40 * headers,
		Clients: ClientLimits{BodyRate: 1 << 20, BodyGrace: headers * 3 / 4}})
	const head = "POST /v1/topics/orders/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	var slow []*lone
	for i := range many {
		c := connect(t, url)
		slow = append(slow, c)
		switch i % 4 {
		case 0: // nothing at all
		case 1:
			_, _ = io.WriteString(c.nc, "GET /hea")
		case 2:
			_, _ = io.WriteString(c.nc, head+"Content-Length: 1000000\r\n\r\n\"xxx")
		case 3:
			_, _ = io.WriteString(c.nc, head+"Transfer-Encoding: chunked\r\n\r\nfffff\r\n\"x") // more than comes in the time: its end would be a 400
		}
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			for _, c := range slow {
				_, _ = io.WriteString(c.nc, "x")
			}
		}
	}()
	fast := connect(t, url)
	for range 20 {
		if res := fast.get("/healthz"); res.StatusCode != 200 {
			t.Fatal(res.StatusCode)
		}
	}
	noRoom := 0
	for i, c := range slow {
		res, err := http.ReadResponse(c.r, nil)
		if _, budget := s.BodiesInFlight(); err == nil && res.StatusCode == 503 && i%4 > 1 && int64(many/4*1000000) > budget {
			noRoom++ // for bodies that are announced beyond what may be under way at once
			continue
		}
		if err != nil || res.StatusCode != 408 && res.StatusCode != 400 || i%4 > 1 && res.StatusCode != 408 {
			t.Errorf("kind %d: %v, %v", i%4, res, err)
		}
	}
	close(stop)
	<-done
	if res := connect(t, url).get("/healthz"); res.StatusCode != 200 {
		t.Error(res.StatusCode)
	}
	if n := refused(s, "slow"); n < uint64(many/2-noRoom) || noRoom == many/2 {
		t.Errorf("%d slow requests are counted", n)
	}
	eventually(t, "nothing stays reserved", func() bool { used, _ := s.BodiesInFlight(); return used == 0 })
}

func TestHeaderFlood(t *testing.T) {
	s, url := serve(t, Options{Backend: newFake("orders"), HeaderBytes: 2 << 10})
	for _, send := range []string{"GET /" + strings.Repeat("x", 3000), "GET / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 1000), "GET / HTTP/1.1\r\nX: " + strings.Repeat("y", 5000)} {
		c := connect(t, url)
		_, _ = io.WriteString(c.nc, send)
		if res, _ := answer(t, c.r, "GET"); res.StatusCode != 431 {
			t.Errorf("%.20q: %d", send, res.StatusCode)
		}
	}
	if n := refused(s, "header_size"); n != 3 {
		t.Errorf("%d refusals are counted", n)
	}
}
