package mqtt

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// What is remembered of retained messages that were cleared or had no room, and of who has just subscribed, is bounded and
// forgotten: however much of it there is, and though nothing comes after it.
func TestRetainedForgets(t *testing.T) {
	clock := newHandClock()
	r := newLogRouter(t, 1)
	s := newOut(t, r, Options{Now: clock.now})
	defer closeOut(t, s)
	k := s.retained
	size := func() (asked, cleared int) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.asked), len(k.cleared) + len(k.before)
	}
	sub := &subscription{filter: "none"}
	for range maxAsked + 10 {
		k.match(nil, sub, nil)
	}
	for i := range 2*maxCleared + 10 {
		if err := r.keepSaid(t, s, "log/"+strconv.Itoa(i), ""); err != nil {
			t.Fatal(err)
		}
	}
	if asked, cleared := size(); asked != maxAsked || cleared > 2*maxCleared || cleared < maxCleared {
		t.Errorf("%d subscriptions and %d names that were cleared; want %d, and %d or up to twice as many", asked, cleared, maxAsked, maxCleared)
	}
	k.mu.Lock()
	k.bytes += retainedBytes
	k.mu.Unlock()
	if err := r.keepSaid(t, s, "log/large", strings.Repeat("x", 1<<20)); !errors.Is(err, event.ErrFull) {
		t.Fatalf("past the bound: %v", err)
	}
	k.mu.Lock()
	if n := cap(k.cleared["log/large"].rec); n > 4<<10 {
		t.Errorf("%d bytes are kept of a message that is not", n)
	}
	k.bytes -= retainedBytes
	k.mu.Unlock()
	for range 2 {
		clock.forward(2 * time.Minute)
		k.expire(t.Context())
	}
	if asked, cleared := size(); asked != 0 || cleared != 0 {
		t.Errorf("%d subscriptions and %d names that were cleared are remembered after %s", asked, cleared, 4*time.Minute)
	}
}
