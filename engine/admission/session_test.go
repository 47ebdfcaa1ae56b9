package admission

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

var (
	here  = netip.MustParseAddr("192.0.2.1")
	there = netip.MustParseAddr("192.0.2.2")
	good  = access.Credentials{Bearer: "secret"}
	wrong = access.Credentials{Bearer: "wrong"}
)

func newDoor(t *testing.T, o Options) *Door {
	t.Helper()
	policy, err := access.ParsePolicy("access.yaml", []byte("version: 1\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.Guard, err = access.New(access.Options{Policy: policy, Token: "secret"}); err != nil {
		t.Fatal(err)
	}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func enter(t *testing.T, d *Door, a netip.Addr) *Conn {
	t.Helper()
	c, err := d.Enter(a)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func limitOf(err error) string {
	var t *TooMany
	switch {
	case err == nil:
		return "none"
	case errors.As(err, &t):
		return t.Limit.String()
	}
	return err.Error()
}

func TestConnectionsAreCounted(t *testing.T) {
	d := newDoor(t, Options{MaxConns: 3, Limits: Limits{Conns: 2}})
	a, b := enter(t, d, here), enter(t, d, here)
	if _, err := d.Enter(here); limitOf(err) != "address_connections" {
		t.Errorf("a third of one address: %v", err)
	}
	c := enter(t, d, there)
	if _, err := d.Enter(there); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("a fourth: %v", err)
	}
	a.Leave()
	a.Leave() // counts once
	enter(t, d, here)
	if _, err := d.Enter(here); err == nil {
		t.Error("leaving twice made room for two")
	}
	b.Leave()
	c.Leave()
	if n := d.entered.Load(); n != 1 {
		t.Errorf("%d connections are counted; one is open", n)
	}
}

// Who guesses is refused before what he shows is looked at, also when it is right; who was known on his connection goes on.
func TestGuessing(t *testing.T) {
	d := newDoor(t, Options{Limits: Limits{StrangerRate: 0.001, StrangerBurst: 3}})
	known, guesser := enter(t, d, here), enter(t, d, here)
	if _, err := known.Open(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := guesser.Open(t.Context(), wrong); !errors.Is(err, access.ErrUnauthenticated) {
			t.Fatalf("guess %d: %v", i, err)
		}
	}
	for _, cred := range []access.Credentials{wrong, good} {
		if _, err := guesser.Open(t.Context(), cred); limitOf(err) != "stranger_rate" {
			t.Errorf("%q after too many guesses: %v", cred.Bearer, err)
		}
	}
	if _, err := known.Open(t.Context(), good); err != nil {
		t.Errorf("on the connection where it was good: %v", err)
	}
	if _, err := enter(t, d, there).Open(t.Context(), good); err != nil {
		t.Errorf("from another address: %v", err)
	}
}

// A call is one request of its address, whether it is opened alone or spends as well; later messages are more.
func TestSpendTakesFromTheAddressOnce(t *testing.T) {
	d := newDoor(t, Options{Limits: Limits{Rate: 0.001, Burst: 3}})
	c := enter(t, d, here)
	s, err := c.Open(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"none", "none", "none", "address_rate"} {
		if err := s.Spend(); limitOf(err) != want {
			t.Errorf("message %d: %v, want %s", i, err, want)
		}
	}
	if _, err := c.Open(t.Context(), good); limitOf(err) != "address_rate" {
		t.Errorf("another call: %v", err)
	}
}

func TestPrincipalLimits(t *testing.T) {
	d := newDoor(t, Options{})
	p, err := d.Guard().Authenticate(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	p.Limits = access.Limits{Rate: 0.001, Burst: 2, Conns: 1}
	s := d.Session(p, good, nil)
	for i, want := range []string{"none", "none", "principal_rate"} {
		if err := s.Spend(); limitOf(err) != want {
			t.Errorf("message %d: %v, want %s", i, err, want)
		}
	}
	a, b := enter(t, d, here), enter(t, d, here)
	if err := d.ConnectAs(p, &a.as); err != nil {
		t.Error(err)
	}
	if err := d.ConnectAs(p, &b.as); limitOf(err) != "principal_connections" {
		t.Errorf("a second connection: %v", err)
	}
	a.Leave()
	if err := d.ConnectAs(p, &b.as); err != nil {
		t.Errorf("after the first has left: %v", err)
	}
}

func TestRoom(t *testing.T) {
	d := newDoor(t, Options{Bytes: 1 << 20})
	s, other, stranger := d.Session(&access.Principal{}, good, nil), d.Session(&access.Principal{}, good, nil), d.Session(nil, access.Credentials{}, nil)
	if err := s.Reserve(600_000, 600_000); err != nil {
		t.Fatal(err)
	}
	if err := other.Reserve(600_000, 600_000); !errors.Is(err, event.ErrUnavailable) || !strings.Contains(err.Error(), "large bodies") {
		t.Errorf("past the budget: %v", err)
	}
	s.Close()
	if err := stranger.Reserve(600_000, 600_000); !errors.Is(err, event.ErrUnavailable) {
		t.Errorf("a stranger past his half: %v", err)
	}
	stranger.Close()
	if used, strangers, _ := d.InFlight(); used != 0 || strangers != 0 {
		t.Errorf("%d and %d bytes stay reserved", used, strangers)
	}
}

// What is held open ends once who holds it is not who he was, or may not go on; what is opened after that never begins.
func TestHoldEnds(t *testing.T) {
	d := newDoor(t, Options{Recheck: time.Millisecond})
	s, err := enter(t, d, here).Open(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	may := make(chan error, 1)
	ctx, stop := s.Hold(t.Context(), func() error {
		select {
		case err := <-may:
			return err
		default:
			return nil
		}
	})
	defer stop()
	may <- event.ErrDenied
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), ErrRevoked) {
		t.Errorf("it ended for %v", context.Cause(ctx))
	}
	if s.Principal() == nil {
		t.Fatal("who may not read one thing is nobody")
	}
	s.cred = wrong // as if the key had been revoked
	other, stop := s.Hold(t.Context(), nil)
	defer stop()
	<-other.Done()
	if s.Principal() != nil || !errors.Is(context.Cause(other), ErrRevoked) {
		t.Errorf("whose key is revoked is %v, and what he held ended for %v", s.Principal(), context.Cause(other))
	}
	late, stop := s.Hold(t.Context(), nil)
	defer stop()
	if late.Err() == nil {
		t.Error("what he holds afterwards is open")
	}
	if err := s.May(access.Read, access.Topic, "orders"); !errors.Is(err, ErrRevoked) {
		t.Errorf("May: %v", err)
	}
}

func TestMayTellsNoNames(t *testing.T) {
	policy, err := access.ParsePolicy("access.yaml", []byte("version: 1\nroles: {inbox: [{allow: [read], topics: [inbox]}]}\ncertificates: [{subject: edge, roles: [inbox]}]\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var audited []access.AuditEntry
	g, err := access.New(access.Options{Policy: policy, Token: "secret", Audit: func(e access.AuditEntry) { audited = append(audited, e) }})
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Options{Guard: g})
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{Raw: []byte("edge"), Subject: pkix.Name{CommonName: "edge"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	s, err := enter(t, d, here).Open(t.Context(), access.Credentials{Certificate: leaf})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.May(access.Read, access.Topic, "inbox"); err != nil {
		t.Error(err)
	}
	if err := s.May(access.Read, access.Topic, "orders"); !errors.Is(err, event.ErrNotFound) || !strings.Contains(err.Error(), "not for you to see") {
		t.Errorf("%v", err)
	}
	if len(audited) != 1 || audited[0].Name != "orders" {
		t.Errorf("audited: %+v", audited)
	}
}
