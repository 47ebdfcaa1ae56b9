package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// memory is a KeyStore in memory that can fail.
type memory struct {
	mu   sync.Mutex
	keys map[string]Key
	puts int
	err  error
}

func (m *memory) Keys(context.Context) ([]Key, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.keys)), m.err
}

func (m *memory) PutKey(_ context.Context, k Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		if m.keys == nil {
			m.keys = map[string]Key{}
		}
		m.keys[k.ID] = k
		m.puts++
	}
	return m.err
}

func (m *memory) DeleteKey(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		delete(m.keys, id)
	}
	return m.err
}

// clock is a time that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func newGuard(t testing.TB, o Options) *Guard {
	t.Helper()
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestKeyLife(t *testing.T) {
	ctx, clk, store := t.Context(), newClock(), &memory{}
	g := newGuard(t, Options{Keys: store, Now: clk.now})
	k, text, err := g.CreateKey(ctx, nil, Key{Name: "ci", Roles: []string{"publisher"}, Tenant: "acme", Expires: clk.now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text, k.Prefix) || len(text) != keyLen || k.Tenant != "acme." {
		t.Fatalf("key %+v of %d characters", k, len(text))
	}
	in := func(g *Guard, text string) (*Principal, error) {
		return g.Authenticate(ctx, Credentials{Bearer: text})
	}
	p, err := in(g, text)
	if err != nil || p.Name != "key:ci" || p.Tenant != "acme." {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, kept := range store.keys {
		if strings.Contains(fmt.Sprintf("%q %+v", kept, kept), text[secretAt:secretAt+20]) { // in whatever field
			t.Error("the store has the secret")
		}
	}
	_, text2, err := g.RotateKey(ctx, nil, k.ID, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{text, text2} {
		if _, err := in(g, text); err != nil {
			t.Errorf("within the grace period: %v", err)
		}
	}
	again := newGuard(t, Options{Keys: store, Now: clk.now}) // after a restart
	if _, err := in(again, text); err != nil {
		t.Errorf("after a restart within the grace period: %v", err)
	}
	clk.pass(time.Minute)
	if _, err := in(g, text); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("after the grace period the old secret: %v", err)
	}
	if p, err = in(g, text2); err != nil || p.Ended(clk.now()) {
		t.Errorf("the new secret: %v", err)
	}
	if u := g.ListKeys()[0].Used; !u.Equal(clk.now()) {
		t.Errorf("last used %v", u)
	}
	clk.pass(time.Hour)
	if _, err := in(g, text2); !errors.Is(err, ErrUnauthenticated) || !p.Ended(clk.now()) {
		t.Errorf("past its life: %v", err)
	}
	k, text, err = g.CreateKey(ctx, nil, Key{Name: "ci", Roles: []string{"reader"}})
	if err != nil {
		t.Fatal(err)
	}
	if p, err = in(g, text); err != nil {
		t.Fatal(err)
	}
	if err := g.RevokeKey(ctx, nil, k.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := in(g, text); !errors.Is(err, ErrUnauthenticated) || !p.Ended(clk.now()) {
		t.Errorf("revoked: %v, ended %v", err, p.Ended(clk.now()))
	}
	if err := g.RevokeKey(ctx, nil, k.ID); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("revoked twice: %v", err)
	}
}

func TestStoreFails(t *testing.T) {
	ctx, store := t.Context(), &memory{}
	g := newGuard(t, Options{Keys: store})
	k, text, err := g.CreateKey(ctx, nil, Key{Name: "a", Roles: []string{"reader"}})
	if err != nil {
		t.Fatal(err)
	}
	store.err = errors.New("disk on fire")
	if _, _, err := g.CreateKey(ctx, nil, Key{Name: "b", Roles: []string{"reader"}}); err == nil || len(g.ListKeys()) != 1 {
		t.Errorf("a key that could not be kept is in use: %v", err)
	}
	if _, _, err := g.RotateKey(ctx, nil, k.ID, 0); err == nil {
		t.Error("rotated")
	}
	if err := g.RevokeKey(ctx, nil, k.ID); err == nil {
		t.Error("revoked")
	}
	if _, err := g.Authenticate(ctx, Credentials{Bearer: text}); err != nil {
		t.Errorf("after failures the key is %v", err)
	}
	if _, err := New(Options{Keys: store}); err == nil {
		t.Error("a guard without its keys")
	}
}

// TestTheLastKeyStays: where keys alone guard what others can reach, revoking all at once leaves one of an admin, and
// the guard on.
func TestTheLastKeyStays(t *testing.T) {
	ctx := t.Context()
	g := newGuard(t, Options{Keys: &memory{}, Off: true})
	if g.StayOn() {
		t.Error("a guard that is off stays on")
	}
	for _, k := range []Key{{Roles: []string{"reader"}}, {Roles: []string{"admin"}, Tenant: "acme."}, {Roles: []string{"admin"}, Expires: time.Now().AddDate(50, 0, 0)}} {
		k.Name = "first"
		if _, _, err := g.CreateKey(ctx, nil, k); !errors.Is(err, event.ErrConflict) || !g.Off() {
			t.Errorf("a first key that manages no others, %+v: %v", k, err)
		}
	}
	var ids []string
	for range 8 {
		k, _, err := g.CreateKey(ctx, nil, Key{Name: "admin", Roles: []string{"admin"}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, k.ID)
	}
	if !g.StayOn() {
		t.Fatal("a guard with keys is off")
	}
	revoked := make(chan error, len(ids))
	for _, id := range ids {
		go func() { revoked <- g.RevokeKey(ctx, nil, id) }()
	}
	refused := 0
	for range ids {
		switch err := <-revoked; {
		case errors.Is(err, event.ErrConflict):
			refused++
		case err != nil:
			t.Error(err)
		}
	}
	if refused != 1 || len(g.ListKeys()) != 1 || g.Off() {
		t.Errorf("%d were refused, %d keys are left, off: %v", refused, len(g.ListKeys()), g.Off())
	}
	if _, err := g.Authenticate(ctx, Credentials{}); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("a stranger: %v", err)
	}
}
