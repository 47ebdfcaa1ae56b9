package engine

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

func pullSpec(name, topic, deadLetter string) SubscriptionSpec {
	s := push(name, topic, "", nil)
	s.OpenSink, s.DeadLetter, s.Fingerprint = nil, deadLetter, "pull "+name
	s.Deliver = event.Deliver{Face: event.Pull, AckDeadline: 10 * time.Second}
	return s
}

// pull leases until it has n deliveries.
func (w *world) pull(name string, n int) []event.Lease {
	w.t.Helper()
	var all []event.Lease
	eventually(w.t, "deliveries to pull", func() bool {
		got, err := w.e.Pull(w.t.Context(), name, n-len(all), 50*time.Millisecond)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, got...)
		return len(all) >= n
	})
	return all
}

func leaseIDs(leases []event.Lease) []string {
	ids := make([]string, len(leases))
	for i, l := range leases {
		ids[i] = l.ID
	}
	return ids
}

func eventIDs(leases []event.Lease) []string {
	ids := make([]string, len(leases))
	for i, l := range leases {
		ids[i] = strings.Clone(l.Event.Attr(event.TagID))
	}
	return ids
}

func (w *world) ack(name string, leases []event.Lease) (lost []string) {
	w.t.Helper()
	lost, err := w.e.Ack(w.t.Context(), name, leaseIDs(leases))
	if err != nil {
		w.t.Fatal(err)
	}
	return lost
}

func TestPullAndAck(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	w.publish("orders", "a", "b", "c")
	got := w.pull("s", 3)
	if ids := eventIDs(got); !slices.Equal(ids, []string{"a", "b", "c"}) {
		t.Fatalf("pulled %v", ids)
	}
	if more, err := w.e.Pull(t.Context(), "s", 10, 0); err != nil || len(more) != 0 {
		t.Fatalf("what is leased was leased again: %v %v", eventIDs(more), err)
	}
	if lost := w.ack("s", got[:2]); len(lost) != 0 {
		t.Errorf("lost %v", lost)
	}
	if lost := w.ack("s", got[:1]); len(lost) != 1 {
		t.Error("an acknowledged lease was acknowledged again")
	}
	w.restart() // a crash would do: acknowledgements are durable when they are answered
	again := w.pull("s", 1)
	if ids := eventIDs(again); !slices.Equal(ids, []string{"c"}) {
		t.Errorf("after the restart %v, want c alone", ids)
	}
}

// An acknowledgement that crossed a restart counts while nobody else has the delivery.
func TestAckFromBeforeARestart(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	w.publish("orders", "a", "b")
	got := w.pull("s", 2)
	w.restart()
	if lost := w.ack("s", got[:1]); len(lost) != 0 {
		t.Errorf("lost %v", lost)
	}
	again := w.pull("s", 1)
	if ids := eventIDs(again); !slices.Equal(ids, []string{"b"}) {
		t.Fatalf("pulled %v, want b alone", ids)
	}
	if lost := w.ack("s", got[1:]); len(lost) != 1 {
		t.Error("an old lease was accepted although the delivery is leased anew")
	}
	if lost := w.ack("s", again); len(lost) != 0 {
		t.Errorf("lost %v", lost)
	}
}

func TestForeignLeases(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", ""), pullSpec("other", "orders", "")))
	w.publish("orders", "a")
	got := w.pull("s", 1)
	w.pull("other", 1)
	if lost := w.ack("other", got); len(lost) != 1 {
		t.Error("another subscription's lease was accepted")
	}
	forged := []byte(got[0].ID)
	forged[20] ^= 1
	lost, err := w.e.Ack(t.Context(), "s", []string{string(forged), "", "x"})
	if err != nil || len(lost) != 3 {
		t.Errorf("forged leases: lost %d of 3, %v", len(lost), err)
	}
}

func TestNackAndExpiryCountAndEnd(t *testing.T) {
	w := newWorld(t, Options{})
	s := pullSpec("s", "orders", "s.dead")
	s.Deliver.AckDeadline = 30 * time.Millisecond
	w.apply(specOf(s))
	w.publish("orders", "a")
	for attempt := 1; attempt <= leaseAttempts; attempt++ {
		got := w.pull("s", 1)
		if got[0].Attempt != attempt {
			t.Fatalf("attempt %d, want %d", got[0].Attempt, attempt)
		}
		if attempt%2 == 1 { // every other one just runs out
			if lost, err := w.e.Nack(t.Context(), "s", leaseIDs(got), 0); err != nil || len(lost) != 0 {
				t.Fatalf("nack: lost %v, %v", lost, err)
			}
			continue
		}
		eventually(t, "the lease runs out", func() bool { return w.info("s").Leased == 0 })
		if lost := w.ack("s", got); len(lost) != 1 {
			t.Error("an expired lease was acknowledged")
		}
	}
	eventually(t, "a dead letter", func() bool { return len(w.ids("s.dead")) == 1 })
	if a, _ := w.records("s.dead")[0].Extension("deadletterreason"); a.Value != "leases" {
		t.Errorf("reason %q, want leases", a.Value)
	}
}

// `attempts: unlimited` keeps leases from ending in dead letters, and a delivery's id is the same in each.
func TestLeasesWithoutEnd(t *testing.T) {
	w := newWorld(t, Options{})
	s := pullSpec("s", "orders", "s.dead")
	s.Retry.Attempts = event.Unlimited
	w.apply(specOf(s))
	w.publish("orders", "a")
	for attempt := 1; attempt <= leaseAttempts+2; attempt++ {
		got := w.pull("s", 1)
		if got[0].Attempt != attempt || got[0].Delivery != "s:orders@1:0-0:0" {
			t.Fatalf("attempt %d of %q, want %d of s:orders@1:0-0:0", got[0].Attempt, got[0].Delivery, attempt)
		}
		if lost, err := w.e.Nack(t.Context(), "s", leaseIDs(got), 0); err != nil || len(lost) != 0 {
			t.Fatalf("nack: lost %v, %v", lost, err)
		}
	}
	if n := len(w.ids("s.dead")); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestNackDelays(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	w.publish("orders", "a")
	began := time.Now()
	if _, err := w.e.Nack(t.Context(), "s", leaseIDs(w.pull("s", 1)), 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	w.restart() // the delay is kept in the store
	w.pull("s", 1)
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("given out again after %s", took)
	}
}

func TestExtend(t *testing.T) {
	w := newWorld(t, Options{})
	s := pullSpec("s", "orders", "")
	s.Deliver.AckDeadline = 100 * time.Millisecond
	w.apply(specOf(s))
	w.publish("orders", "a", "b")
	got := w.pull("s", 2)
	if lost, err := w.e.Extend(t.Context(), "s", leaseIDs(got[:1]), time.Minute); err != nil || len(lost) != 0 {
		t.Fatalf("extend: lost %v, %v", lost, err)
	}
	eventually(t, "b runs out", func() bool { return w.info("s").Leased == 1 })
	if lost := w.ack("s", got[:1]); len(lost) != 0 {
		t.Error("the extended lease ran out")
	}
}

func TestPullWaits(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	got := make(chan []event.Lease)
	go func() {
		leases, err := w.e.Pull(t.Context(), "s", 10, 10*time.Second)
		if err != nil {
			t.Error(err)
		}
		got <- leases
	}()
	w.publish("orders", "a")
	if ids := eventIDs(<-got); !slices.Equal(ids, []string{"a"}) {
		t.Errorf("a waiting pull got %v", ids)
	}
}

func TestPullRefusesPushSubscriptions(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(push("s", "orders", "", &recorder{})))
	if _, err := w.e.Pull(t.Context(), "s", 1, 0); err == nil || !strings.Contains(err.Error(), "delivers by push") {
		t.Errorf("%v", err)
	}
}
