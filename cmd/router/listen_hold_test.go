package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// lender is a router with one pull subscription: it hands out what was put in, and notes what is asked of it.
type lender struct {
	mu    sync.Mutex
	lend  []string // deliveries, as pull answers them
	lost  []string // leases that are no longer held
	calls []string // verb and leases
}

func (f *lender) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	verb := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	var in struct {
		Leases []string
		Max    int
		Delay  string
	}
	_ = json.NewDecoder(r.Body).Decode(&in)
	f.mu.Lock()
	defer f.mu.Unlock()
	if verb == "pull" {
		n := min(in.Max, len(f.lend))
		fmt.Fprintf(w, `{"deliveries":[%s]}`, strings.Join(f.lend[:n], ","))
		f.lend = f.lend[n:]
		return
	}
	f.calls = append(f.calls, strings.TrimSpace(verb+" "+strings.Join(in.Leases, " ")+" "+in.Delay))
	answer := struct {
		Lost    []string `json:"lost"`
		Reasons []string `json:"reasons"`
	}{Lost: []string{}}
	for _, l := range in.Leases {
		if slices.Contains(f.lost, l) {
			answer.Lost, answer.Reasons = append(answer.Lost, l), append(answer.Reasons, "expired")
		}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (f *lender) put(id, lease string, attempt int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lend = append(f.lend, fmt.Sprintf(`{"lease":%q,"id":%q,"attempt":%d,"event":{"specversion":"1.0","id":%q,"source":"/s","type":"t","millraceposition":"0-1"}}`, lease, id, attempt, id))
}

func (f *lender) called(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

// onDesk is the program that deliveries are forwarded to.
type onDesk func(ctx context.Context, id string) error

func (f onDesk) Deliver(ctx context.Context, ds []event.Delivery) error {
	ds[0].Reply.Status = 204
	return f(ctx, ds[0].ID)
}

// startListener runs a listener until stop is called, which returns what it printed.
func startListener(t *testing.T, f *lender, sink deliverer) (l *listener, stop func() string) {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	var out, errs bytes.Buffer
	p := &program{stdout: &out, stderr: &errs, env: func(string) string { return "" }}
	c, err := p.client(nil, &remote{server: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	l = newListener(p, c, &listening{to: "http://desk/?token=s3cret"}, &listened{name: "s", source: &shownSubscription{}, concurrency: 4}, sink)
	l.every = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.run(ctx) }()
	var once sync.Once
	stop = func() string {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		return out.String() + errs.String()
	}
	t.Cleanup(func() { stop() })
	return l, stop
}

// While the program works its lease is prolonged; what a restarted router lends again meanwhile is not forwarded twice, and
// both leases are acknowledged.
func TestListenHoldsWhatIsInHand(t *testing.T) {
	t.Parallel()
	f := &lender{}
	f.put("d1", "a", 1)
	release := make(chan struct{})
	forwards := make(chan string, 10)
	l, stop := startListener(t, f, onDesk(func(_ context.Context, id string) error {
		forwards <- id
		<-release
		return nil
	}))
	<-forwards
	await(t, "the lease is prolonged", func() bool { return f.called("extend a") > 1 })
	f.put("d1", "b", 2)
	await(t, "both leases are prolonged", func() bool { return f.called("extend a b") > 0 })
	close(release)
	await(t, "both leases are acknowledged", func() bool { return f.called("ack a b") == 1 })
	stop()
	if len(forwards) > 0 || l.n.taken != 1 {
		t.Errorf("forwarded %d times more, %d acknowledged", len(forwards), l.n.taken)
	}
}

// An answer that came after its lease had run out, as when the desk slept, is not taken for an acknowledgement.
func TestListenSaysWhatCameTooLate(t *testing.T) {
	t.Parallel()
	f := &lender{lost: []string{"a"}}
	f.put("d1", "a", 1)
	l, stop := startListener(t, f, onDesk(func(context.Context, string) error { return nil }))
	await(t, "the first is acknowledged", func() bool { return f.called("ack a") == 1 })
	f.put("d1", "b", 2)
	await(t, "the second is acknowledged", func() bool { return f.called("ack b") == 1 })
	text := stop()
	if l.n != (counts{taken: 1, late: 1, again: 1}) || !strings.Contains(text, "no longer held (expired): it comes again") {
		t.Errorf("%+v\n%s", l.n, text)
	}
}

// A failure is given back with a delay that grows, or for as long as the program asks; 410 disables nothing here.
func TestListenGivesBack(t *testing.T) {
	t.Parallel()
	f := &lender{}
	for i, attempt := range []int{1, 3, 100} {
		f.put(fmt.Sprint("d", i), fmt.Sprint("l", i), attempt)
	}
	f.put("busy", "busy", 1)
	f.put("gone", "gone", 1)
	_, stop := startListener(t, f, onDesk(func(_ context.Context, id string) error {
		switch id {
		case "busy":
			return &event.RetryAfter{Err: errors.New("busy"), Code: 429, Wait: time.Minute}
		case "gone":
			return event.Disable(410, errors.New("answered 410 Gone"))
		}
		return &event.RetryAfter{Err: errors.New("broken"), Code: 500}
	}))
	for _, want := range []string{"nack l0 1s", "nack l1 4s", "nack l2 30s", "nack busy 1m0s", "nack gone 1s"} {
		await(t, want, func() bool { return f.called(want) == 1 })
	}
	if text := stop(); !strings.Contains(text, "410 Gone") || !strings.Contains(text, "here it comes again") {
		t.Errorf("of 410 it says\n%s", text)
	}
}

// Ctrl-C while the program is away, or silent: what is in hand is given back at once, as no try.
func TestListenGivesBackInTheEnd(t *testing.T) {
	t.Parallel()
	f := &lender{}
	f.put("away", "away", 1)
	f.put("silent", "silent", 1)
	begun := make(chan struct{}, 1)
	_, stop := startListener(t, f, onDesk(func(ctx context.Context, id string) error {
		if id == "silent" {
			begun <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		return &event.RetryAfter{Err: fmt.Errorf("connect: %w", syscall.ECONNREFUSED)}
	}))
	<-begun
	await(t, "nothing listens", func() bool { return f.called("extend") > 0 })
	text := stop()
	if f.called("nack away 0s") != 1 || f.called("nack silent 0s") != 1 {
		t.Errorf("asked of the router: %q", f.calls)
	}
	if strings.Contains(text, "s3cret") {
		t.Errorf("it shows the URL's query:\n%s", text)
	}
}

// A subscription that is removed ends listening in words.
func TestListenEndsWithItsSubscription(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	p := &program{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, env: func(string) string { return "" }}
	c, err := p.client(nil, &remote{server: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(p, c, &listening{}, &listened{name: "s", source: &shownSubscription{}, concurrency: 1}, onDesk(nil))
	if err := l.run(t.Context()); !hasStatus(err, 404) {
		t.Errorf("%v; want 404", err)
	}
}

func TestListenColoursAnswers(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := &listener{p: &program{stdout: &out}}
	f := forwarded{Status: 500, Type: "t", ID: "a\x1b[2J", Attempt: 2, Again: "2s", Error: "broken\x1b"}
	l.printLine(f, red, true)
	if got := out.String(); !strings.Contains(got, red+"500 Internal Server Error"+plain) || strings.Contains(got, "\x1b[2J") || !strings.Contains(got, "try 2  again in 2s") {
		t.Errorf("%q", got)
	}
	out.Reset()
	l.printLine(f, red, false)
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("colours in a pipe: %q", out.String())
	}
}

func TestDeskNames(t *testing.T) {
	t.Parallel()
	for user, want := range map[string]string{"ada": "ada-", "Ä d:a": "--d-a-", strings.Repeat("x", 300): "xxx"} {
		p := &program{env: func(name string) string { return map[string]string{"USER": user}[name] }}
		name := p.deskName()
		if !strings.HasPrefix(name, strings.Trim(want, "-")) && !strings.Contains(name, "d-a") || event.CheckName("subscription", "s"+listenerMark+name) != nil {
			t.Errorf("%q makes %q", user, name)
		}
	}
}
