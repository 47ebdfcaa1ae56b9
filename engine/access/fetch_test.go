package access

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func noFetch(context.Context, string, int64) ([]byte, error) { return nil, errors.New("no network") }

// provider is an issuer's key set at a URL.
type provider struct {
	mu      sync.Mutex
	text    string
	err     error
	fetches int
	hold    chan struct{} // fetches wait for it, if it is not nil
}

func (p *provider) get(ctx context.Context, url string, limit int64) ([]byte, error) {
	p.mu.Lock()
	p.fetches++
	text, err, hold := p.text, p.err, p.hold
	p.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return []byte(text), err
}

func (p *provider) set(text string, err error, hold chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text, p.err, p.hold = text, err, hold
}

func (p *provider) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetches
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatalf("not in 20s: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func TestFetchedKeys(t *testing.T) {
	k, clk := keysForTests(), newClock()
	one := jwksOf(map[string]any{"ed": k.ed.Public()}, "", nil, "")
	two := jwksOf(map[string]any{"es": k.es.Public()}, "", nil, "")
	both := jwksOf(map[string]any{"es": k.es.Public(), "ed": k.ed.Public()}, "", nil, "")
	prov := &provider{text: one}
	var told atomic.Int64
	policy := strings.Replace(testPolicy, "jwks: keys.json", "jwks: https://login.example.com/keys", 1)
	g := newGuard(t, Options{Now: clk.now, Policy: parse(t, policy, nil), HTTP: prov.get, Fetched: func(st IssuerState) {
		if st.Name != "corp" || st.Keys == 0 || st.Fetched.IsZero() {
			t.Errorf("told of a fetch: %+v", st)
		}
		told.Add(1)
	}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	in := func(token string) error {
		_, err := g.Authenticate(ctx, Credentials{Bearer: token})
		return err
	}
	token := func(alg, kid string) string {
		return k.sign(alg, `{"alg":"`+alg+`","kid":"`+kid+`"}`, with(clk.now(), nil))
	}
	ed, es := token("EdDSA", "ed"), token("ES256", "es")
	eventually(t, "the first fetch", func() bool { return in(ed) == nil })

	// An unknown kid has the keys fetched, though not at once again.
	prov.set(both, nil, nil)
	if err := in(es); err == nil || prov.count() != 1 {
		t.Errorf("fetched %d times within %s: %v", prov.count(), fetchApart, err)
	}
	clk.pass(fetchApart)
	if err := in(es); err != nil || prov.count() != 2 {
		t.Errorf("a new key after %d fetches: %v", prov.count(), err)
	}
	// A flood of kids that nobody has does not flood the issuer.
	for _, kid := range []string{"a", "b", "c", "/etc/passwd", "..", "https://evil"} {
		if err := in(token("ES256", kid)); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("kid %s: %v", kid, err)
		}
	}
	clk.pass(fetchApart)
	if in(token("ES256", "/etc/passwd")) == nil || prov.count() != 2 {
		t.Errorf("a path as kid had keys fetched: %d", prov.count())
	}
	// While a fetch hangs, tokens of known keys come in, remembered or not.
	hold := make(chan struct{})
	prov.set(both, nil, hold)
	waiter := make(chan error, 1)
	go func() { waiter <- in(token("ES256", "new")) }()
	eventually(t, "a fetch that hangs", func() bool { return prov.count() == 3 })
	if err := errors.Join(in(ed), in(es), in(token("ES256", "es"))); err != nil {
		t.Errorf("while a fetch hangs: %v", err)
	}
	close(hold)
	if err := <-waiter; !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("a kid that nobody has: %v", err)
	}
	// Keys stay while the URL fails, and failures are told.
	prov.set("", errors.New("down"), nil)
	fetches := prov.count()
	clk.pass(20 * time.Minute)
	in(token("ES256", "other")) // has Run look at the clock
	eventually(t, "a fetch that fails", func() bool { return prov.count() > fetches && g.Issuers()[0].Err != nil })
	if err := errors.Join(in(ed), in(es)); err != nil || g.Issuers()[0].Keys != 2 {
		t.Errorf("while the URL fails: %v", err)
	}
	// A reload keeps them as well.
	if err := g.SetPolicy(parse(t, policy, nil)); err != nil {
		t.Fatal(err)
	}
	if err := in(ed); err != nil {
		t.Errorf("after a reload while the URL fails: %v", err)
	}
	// A key that the issuer took back is good no longer, though its tokens were remembered.
	prov.set(two, nil, nil)
	clk.pass(20 * time.Minute)
	holder, err := g.Authenticate(ctx, Credentials{Bearer: ed})
	if err != nil || holder.Ended(clk.now()) {
		t.Fatal(holder, err)
	}
	in(token("ES256", "other"))
	eventually(t, "a key that was taken back", func() bool { return in(ed) != nil })
	if !holder.Ended(clk.now()) {
		t.Error("who holds a connection by a key that was taken back stays")
	}
	if err := in(es); err != nil {
		t.Errorf("the key that is left: %v", err)
	}
	eventually(t, "what is told of every fetch", func() bool { return int(told.Load()) == prov.count() })
}

func TestUsedIsKeptNowAndThen(t *testing.T) {
	clk, store := newClock(), &memory{}
	g := newGuard(t, Options{Now: clk.now, Keys: store})
	_, text, err := g.CreateKey(t.Context(), nil, Key{Name: "ci", Roles: []string{"reader"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		clk.pass(time.Second)
		if _, err := g.Authenticate(t.Context(), Credentials{Bearer: text}); err != nil {
			t.Fatal(err)
		}
	}
	if store.puts != 1 {
		t.Errorf("100 requests wrote %d times", store.puts-1)
	}
	for range 2 { // that it was used at all is written, and then nothing for an hour
		g.keepUsed(t.Context(), usedApart)
		if store.puts != 2 {
			t.Errorf("%d writes", store.puts)
		}
		clk.pass(20 * time.Minute)
		if _, err := g.Authenticate(t.Context(), Credentials{Bearer: text}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	clk.pass(time.Hour)
	if err := g.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if again := newGuard(t, Options{Keys: store}); !again.ListKeys()[0].Used.Equal(clk.now().Add(-time.Hour)) {
		t.Errorf("after a restart last used %v", again.ListKeys()[0].Used)
	}
}
