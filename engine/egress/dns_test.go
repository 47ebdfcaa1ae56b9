package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A nameServer answers over UDP and TCP on loopback what the test tells it.
type nameServer struct {
	addr    string
	answer  func(name string, n int64) []dnsmessage.ResourceBody // nil bodies: no such name; n counts from 1
	asked   atomic.Int64
	byTCP   atomic.Int64
	silence atomic.Bool // nothing is answered
}

func newNameServer(t *testing.T, answer func(name string, n int64) []dnsmessage.ResourceBody) *nameServer {
	t.Helper()
	s := &nameServer{answer: answer}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	udp, err := net.ListenPacket("udp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); s.stream(c) })
		}
	})
	wg.Go(func() {
		b := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			if out := s.reply(b[:n], 512); out != nil {
				_, _ = udp.WriteTo(out, from)
			}
		}
	})
	t.Cleanup(func() { ln.Close(); udp.Close(); wg.Wait() })
	return s
}

func (s *nameServer) stream(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	var size [2]byte
	for {
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		s.byTCP.Add(1)
		out := s.reply(b, 1<<16-1)
		if out == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}

// reply answers one question; what is over limit is cut off, and says so.
func (s *nameServer) reply(q []byte, limit int) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(q)
	if err != nil || s.silence.Load() {
		return nil
	}
	question, err := p.Question()
	if err != nil {
		return nil
	}
	name := strings.TrimSuffix(strings.ToLower(question.Name.String()), ".")
	bodies := s.answer(name, s.asked.Add(1))
	build := func(truncated bool, bodies []dnsmessage.ResourceBody) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, RecursionAvailable: true, Truncated: truncated}, Questions: []dnsmessage.Question{question}}
		owner := question.Name
		for _, body := range bodies {
			rh := dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET, TTL: 0}
			switch b := body.(type) {
			case *dnsmessage.AResource:
				rh.Type = dnsmessage.TypeA
			case *dnsmessage.AAAAResource:
				rh.Type = dnsmessage.TypeAAAA
			case *dnsmessage.CNAMEResource:
				rh.Type = dnsmessage.TypeCNAME
				owner = b.CNAME
			}
			if rh.Type != dnsmessage.TypeCNAME && rh.Type != question.Type {
				continue
			}
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: rh, Body: body})
		}
		if bodies == nil {
			m.RCode = dnsmessage.RCodeNameError
		}
		out, err := m.Pack()
		if err != nil {
			return nil
		}
		return out
	}
	out := build(false, bodies)
	if len(out) > limit {
		out = build(true, []dnsmessage.ResourceBody{})
	}
	return out
}

// resolver asks s only.
func (s *nameServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network[:3], s.addr)
	}}
}

func rr(addrs ...string) (bodies []dnsmessage.ResourceBody) {
	for _, s := range addrs {
		switch a, err := netip.ParseAddr(s); {
		case err != nil:
			bodies = append(bodies, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(s + ".")})
		case a.Is4():
			bodies = append(bodies, &dnsmessage.AResource{A: a.As4()})
		default:
			bodies = append(bodies, &dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	return bodies
}

// A hostile name server reaches nothing: not by answering otherwise later, not through aliases, not by mixing, not by
// size or slowness.
func TestHostileNameServer(t *testing.T) {
	port, accepted := trap(t)
	many := []string{"127.0.0.1", "::1"}
	for i := range 300 {
		many = append(many, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String())
	}
	s := newNameServer(t, func(name string, n int64) []dnsmessage.ResourceBody {
		switch name {
		case "flip.example": // public and loopback in turn; a lookup asks for A and AAAA
			if n%4 < 2 {
				return rr("93.184.216.34")
			}
			return rr("127.0.0.1", "::1")
		case "alias.example":
			return rr("a.example", "b.example", "localhost", "127.0.0.1", "::1")
		case "mapped.example":
			return rr("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")
		case "huge.example":
			return rr(many...)
		case "mixed.example":
			return rr("127.0.0.1", "192.0.2.1", "::1")
		}
		return nil
	})
	d := newDialer(t, Options{Resolver: s.resolver(), Timeout: 300 * time.Millisecond})
	for _, name := range []string{"alias.example", "mapped.example", "huge.example", "mixed.example"} {
		_, err := d.DialContext(t.Context(), "tcp", name+":"+port)
		if !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s.byTCP.Load() == 0 {
		t.Error("the huge answer was never asked for whole")
	}
	for range 4 {
		if c, err := d.DialContext(t.Context(), "tcp", "flip.example:"+port); err == nil {
			c.Close()
			t.Error("flip.example: connected")
		}
	}
	if _, err := d.DialContext(t.Context(), "tcp", "none.example:"+port); err == nil || !strings.Contains(err.Error(), "look up none.example") {
		t.Error(err)
	}
	s.silence.Store(true)
	start := time.Now()
	if _, err := d.DialContext(t.Context(), "tcp", "slow.example:"+port); err == nil || errors.Is(err, ErrBlocked) {
		t.Errorf("silent: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("a silent name server holds a dial for %s", took)
	}
	if n := accepted(); n != 0 {
		t.Errorf("%d connections reached loopback", n)
	}
}

// A mixed answer leads to what of it is allowed.
func TestMixedAnswer(t *testing.T) {
	s := newNameServer(t, func(string, int64) []dnsmessage.ResourceBody { return rr("10.0.0.1", "127.0.0.1", "169.254.169.254") })
	port, accepted := trap(t)
	d := newDialer(t, Options{Resolver: s.resolver(), Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	c, err := d.DialContext(t.Context(), "tcp", "mixed.example:"+port)
	if err != nil {
		t.Fatal(err)
	}
	if c.RemoteAddr().String() != "127.0.0.1:"+port {
		t.Error(c.RemoteAddr())
	}
	c.Close()
	if n := accepted(); n != 1 {
		t.Errorf("%d connections", n)
	}
}
