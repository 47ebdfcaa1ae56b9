package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// asked is what an Ask comes to.
type asked struct {
	pos   event.Position
	reply *event.Reply
	err   error
}

func (w *world) ask(ctx context.Context, topic, id, data string, wait time.Duration) asked {
	ctx2, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	evs := []event.Event{{ID: id, ClientID: id != "", Data: []byte(data)}}
	pos := make([]event.Position, 1)
	r, err := w.e.Ask(context.WithoutCancel(ctx), topic, evs, pos, ctx2.Done())
	return asked{pos[0], r, err}
}

func (w *world) later(topic string, pos event.Position, wait time.Duration) (*event.Reply, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), wait)
	defer cancel()
	return w.e.Reply(w.t.Context(), topic, pos, ctx.Done())
}

func says(r *event.Reply, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("%d %s %s", r.Status, r.ContentType, r.Data)
}

// answering is a sink whose receiver answers.
type answering struct {
	recorder
	say func(d event.Delivery) *event.Reply
}

func (a *answering) Replies() bool { return true }

func (a *answering) Deliver(ctx context.Context, ds []event.Delivery) error {
	if err := a.recorder.Deliver(ctx, ds); err != nil {
		return err
	}
	if r := a.say(ds[0]); r != nil && ds[0].Reply != nil {
		*ds[0].Reply = *r
	}
	return nil
}

// counting counts what the observer is told of replies.
type counting struct {
	mu   sync.Mutex
	from map[string]int
	why  map[string]int
}

func (c *counting) options() Options {
	c.from, c.why = map[string]int{}, map[string]int{}
	return Options{Observer: Observer{
		Replied: func(from string, took time.Duration) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.from[from]++
			if took < 0 {
				c.why["negative"]++
			}
		},
		ReplyDiscarded: func(why string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.why[why]++
		},
	}}
}

func (c *counting) counts() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.from, c.why)
}

const long = 20 * time.Second

func TestFunctionReplies(t *testing.T) {
	var n counting
	w, digest := functionWorld(t, n.options())
	sink := &outputs{}
	w.apply(through(digest, 2, sink, nil))
	for _, c := range []struct{ data, want, then string }{
		{"a201=made", "201 text/plain made", ""},
		{"ea203=by the second", "203 text/plain by the second", ""},
		{"ew", "200 text/plain wanted", ""},
		{"a200=with the rest;p", "200 text/plain with the rest", "with"}, // the second function replies to its input, too
		{"oelsewhere;a200=beside a topic", "200 text/plain beside a topic", ""},
		{"a204=nothing", "204  ", ""},
		{"h200", "502 text/plain; charset=utf-8 a reply came and cannot be passed on: contentType: \"text/html\\r\\nx-evil: 1\" has a character that a header cannot carry\n", ""},
		{"b1048577", "502 text/plain; charset=utf-8 a reply came and cannot be passed on: data: has 1048577 bytes; a reply has at most 1048576\n", ""},
		{"b1048576", "200 text/plain " + strings.Repeat("\x00", 1<<20), ""},
	} {
		if strings.HasPrefix(c.data, "o") {
			if err := w.e.CreateTopic(t.Context(), event.Topic{Name: "elsewhere"}); err != nil {
				t.Fatal(err)
			}
		}
		a := w.ask(t.Context(), "orders", "", c.data, long)
		if got := says(a.reply, a.err); got != c.want {
			t.Errorf("%s: %.200q, want %.200q", c.data, got, c.want)
		}
		if got := says(w.later("orders", a.pos, long)); got != c.want {
			t.Errorf("%s: kept is %.200q", c.data, got)
		}
		if got := w.records("orders")[a.pos.Offset]; got.Flags()&event.FlagReply == 0 {
			t.Errorf("%s: the record does not say that a reply is wanted", c.data)
		}
	}
	if got := w.ids("elsewhere"); len(got) != 1 {
		t.Errorf("beside the reply %v was put out", got)
	}
	eventually(t, "the passed event was sent", func() bool { return len(sink.ids()) == 1 })
	w.publish("orders", "quiet=a200=nobody asked")
	eventually(t, "it is settled", func() bool { return w.settled("s") })
	if got := w.records("orders"); got[len(got)-1].Flags()&event.FlagReply != 0 {
		t.Error("a plain event's record asks for a reply")
	}
	if _, err := w.later("orders", event.Position{Offset: uint64(len(w.records("orders")) - 1)}, 0); !errors.Is(err, event.ErrNotFound) || !strings.Contains(err.Error(), "did not ask") {
		t.Errorf("the reply to an event that did not ask: %v", err)
	}
	if got, want := n.counts(), "map[function:9] map[second:1 unasked:1]"; got != want {
		t.Errorf("counted %s, want %s", got, want)
	}
}

// An ABI keeps most of this out; what it lets through must not become a broken answer.
func TestUnfitRepliesSaySo(t *testing.T) {
	for _, c := range []struct {
		reply event.Reply
		want  string
	}{
		{event.Reply{Status: 200, ContentType: "text/plain", Data: []byte("x")}, "200 text/plain x"},
		{event.Reply{Status: 304, ContentType: "text/plain", Data: []byte("x")}, "304  "},
		{event.Reply{Status: 101}, "502 text/plain; charset=utf-8 a reply came and cannot be passed on: status: is 101; want 200 to 599\n"},
		{event.Reply{Status: 700}, "502 text/plain; charset=utf-8 a reply came and cannot be passed on: status: is 700; want 200 to 599\n"},
		{event.Reply{Status: 200, ContentType: strings.Repeat("x", 256)}, "502 text/plain; charset=utf-8 a reply came and cannot be passed on: contentType: has 256 bytes; want at most 255\n"},
	} {
		if got := says(fit(&c.reply, c.reply.Check()), nil); got != c.want {
			t.Errorf("%d %.20q: %q, want %q", c.reply.Status, c.reply.ContentType, got, c.want)
		}
	}
}

// What a step says counts only if the step stands.
func TestReplyOfAStepThatIsGivenUp(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	w.apply(through(digest, 1, &outputs{}, nil))
	for _, data := range []string{"a200=early;x422", "a200=early;t", "a200=early;r60000", "a200=early;onowhere"} {
		a := w.ask(t.Context(), "orders", "", data, 300*time.Millisecond)
		if a.err != nil || a.reply != nil {
			t.Errorf("%s: %s, want none", data, says(a.reply, a.err))
		}
		if _, err := w.later("orders", a.pos, 0); !errors.Is(err, event.ErrNotFound) {
			t.Errorf("%s: later %v", data, err)
		}
	}
	a := w.ask(t.Context(), "orders", "", "a200=tried twice;110", long) // RETRY on the first attempt
	if got := says(a.reply, a.err); got != "200 text/plain tried twice" {
		t.Errorf("after a retry: %s", got)
	}
}

// A function's reply is out only when what it passes on has been sent: one commit settles both.
func TestReplyWaitsForItsStep(t *testing.T) {
	w, digest := functionWorld(t, Options{})
	gate := make(chan struct{})
	sink := &recorder{answer: func(event.Delivery) error { <-gate; return nil }}
	w.apply(through(digest, 1, sink, nil))
	a := w.ask(t.Context(), "orders", "", "a200=ok;p", 100*time.Millisecond)
	if a.err != nil || a.reply != nil {
		t.Fatalf("before the delivery: %s", says(a.reply, a.err))
	}
	b := w.ask(t.Context(), "orders", "", "a200=ok;e1;e2", 10*time.Millisecond)
	close(gate)
	for _, x := range []asked{a, b} {
		if got := says(w.later("orders", x.pos, long)); got != "200 text/plain ok" {
			t.Errorf("after the delivery: %s", got)
		}
	}
}

func TestReceiverReplies(t *testing.T) {
	var n counting
	w := newWorld(t, n.options())
	var fails atomic.Int32
	sink := &answering{say: func(d event.Delivery) *event.Reply {
		if (d.Reply != nil) != (d.Event.Flags()&event.FlagReply != 0) {
			t.Errorf("Reply is %v beside flags %d", d.Reply, d.Event.Flags())
		}
		return &event.Reply{Status: 203, ContentType: "text/plain", Data: []byte("seen " + string(d.Event.Data()))}
	}}
	sink.answer = func(d event.Delivery) error {
		if d.Attempt == 1 && string(d.Event.Data()) == "flaky" {
			fails.Add(1)
			return errors.New("down")
		}
		return nil
	}
	mute := &recorder{}
	w.apply(specOf(push("s", "orders", "", sink), push("mute", "orders", "", mute)))
	if a := w.ask(t.Context(), "orders", "", "x", long); says(a.reply, a.err) != "203 text/plain seen x" {
		t.Error(says(a.reply, a.err))
	}
	if a := w.ask(t.Context(), "orders", "", "flaky", long); says(a.reply, a.err) != "203 text/plain seen flaky" || fails.Load() != 1 {
		t.Errorf("after a failure: %s", says(a.reply, a.err))
	}
	w.publish("orders", "plain")
	eventually(t, "all settled", func() bool { return w.settled("s") && w.settled("mute") })
	if got := n.counts(); got != "map[push:2] map[]" {
		t.Errorf("counted %s", got)
	}
}

func TestPullerReplies(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(pullSpec("s", "orders", "")))
	answered := make(chan asked, 1)
	go func() { answered <- w.ask(t.Context(), "orders", "", "q", long) }()
	leases, err := w.e.Pull(t.Context(), "s", 1, long)
	if err != nil || len(leases) != 1 || leases[0].Event.Flags()&event.FlagReply == 0 {
		t.Fatalf("pulled %v, %v", leases, err)
	}
	for _, bad := range []event.Reply{{Status: 99}, {Status: 600}, {Status: 200, ContentType: "a\r\nb"}, {Status: 200, Data: make([]byte, event.MaxReply+1)}} {
		if _, err := w.e.AckReply(t.Context(), "s", leaseIDs(leases), &bad); err == nil || !strings.HasPrefix(err.Error(), "reply.") {
			t.Errorf("reply %d %q: %v", bad.Status, bad.ContentType, err)
		}
	}
	lost, err := w.e.AckReply(t.Context(), "s", leaseIDs(leases), &event.Reply{Status: 418, ContentType: "text/plain", Data: []byte("short and stout")})
	if len(lost) > 0 || err != nil {
		t.Fatal(lost, err)
	}
	if a := <-answered; says(a.reply, a.err) != "418 text/plain short and stout" {
		t.Error(says(a.reply, a.err))
	}

	// A lease of the run before counts, and so does the reply that comes with it.
	a := w.ask(t.Context(), "orders", "", "q2", time.Nanosecond)
	if leases, err = w.e.Pull(t.Context(), "s", 1, long); err != nil || len(leases) != 1 {
		t.Fatal(leases, err)
	}
	w.restart()
	if lost, err := w.e.AckReply(t.Context(), "s", leaseIDs(leases), &event.Reply{Status: 200, Data: []byte("after all")}); len(lost) > 0 || err != nil {
		t.Fatal(lost, err)
	}
	if got := says(w.later("orders", a.pos, long)); got != "200  after all" {
		t.Error(got)
	}
}

func TestTheFirstReplyWins(t *testing.T) {
	var n counting
	w := newWorld(t, n.options())
	var subs []SubscriptionSpec
	for i := range 8 {
		subs = append(subs, push(fmt.Sprint("s", i), "orders", "", &answering{say: func(event.Delivery) *event.Reply {
			return &event.Reply{Status: 200, Data: fmt.Append(nil, i)}
		}}))
	}
	w.apply(specOf(subs...))
	const events = 50
	for range events {
		a := w.ask(t.Context(), "orders", "", "x", long)
		first := says(a.reply, a.err)
		eventually(t, "all have replied", func() bool {
			for _, s := range subs {
				if !w.settled(s.Name) {
					return false
				}
			}
			return true
		})
		if kept := says(w.later("orders", a.pos, 0)); a.reply == nil || kept != first {
			t.Fatalf("answered %s, kept %s", first, kept)
		}
	}
	if got, want := n.counts(), fmt.Sprintf("map[push:%d] map[second:%d]", events, 7*events); got != want {
		t.Errorf("counted %s, want %s", got, want)
	}
}

func TestLateReplyIsFound(t *testing.T) {
	w := newWorld(t, Options{})
	gate := make(chan struct{})
	sink := &answering{say: func(event.Delivery) *event.Reply { return &event.Reply{Status: 200, Data: []byte("late")} }}
	sink.answer = func(event.Delivery) error { <-gate; return nil }
	w.apply(specOf(push("s", "orders", "", sink)))
	a := w.ask(t.Context(), "orders", "o-1", "x", 50*time.Millisecond)
	if a.reply != nil || a.err != nil {
		t.Fatal(says(a.reply, a.err))
	}
	if _, err := w.later("orders", a.pos, 10*time.Millisecond); !errors.Is(err, event.ErrNotFound) || !strings.Contains(err.Error(), "none yet") {
		t.Errorf("before it came: %v", err)
	}
	got := make(chan string, 2)
	go func() { got <- says(w.later("orders", a.pos, long)) }()
	go func() { // a repeat of the event waits for the same reply
		b := w.ask(t.Context(), "orders", "o-1", "x", long)
		got <- says(b.reply, b.err)
	}()
	eventually(t, "both wait", func() bool { return w.e.Waiters() == 2 })
	close(gate)
	for range 2 {
		if s := <-got; s != "200  late" {
			t.Error(s)
		}
	}
	if b := w.ask(t.Context(), "orders", "o-1", "x", long); b.pos != a.pos || says(b.reply, b.err) != "200  late" {
		t.Errorf("a repeat: %v %s", b.pos, says(b.reply, b.err))
	}
	w.restart()
	if s := says(w.later("orders", a.pos, 0)); s != "200  late" {
		t.Errorf("after a restart: %s", s)
	}
	if b := w.ask(t.Context(), "orders", "o-1", "x", long); says(b.reply, b.err) != "200  late" {
		t.Errorf("a repeat after a restart: %s", says(b.reply, b.err))
	}
	for _, pos := range []event.Position{{Offset: 99}, {Partition: 7}} {
		if _, err := w.later("orders", pos, 0); !errors.Is(err, event.ErrNotFound) {
			t.Errorf("%v: %v", pos, err)
		}
	}
}

// The flag is in the record: who replies after a restart is heard.
func TestReplyAfterARestart(t *testing.T) {
	w := newWorld(t, Options{})
	var up atomic.Bool
	sink := &answering{say: func(event.Delivery) *event.Reply { return &event.Reply{Status: 200, Data: []byte("in the end")} }}
	sink.answer = func(event.Delivery) error {
		if up.Load() {
			return nil
		}
		return errors.New("down")
	}
	s := push("s", "orders", "", sink)
	s.Retry.Attempts = event.Unlimited
	w.apply(specOf(s))
	a := w.ask(t.Context(), "orders", "", "x", time.Millisecond)
	eventually(t, "it is parked", func() bool { return w.info("s").Retried > 0 })
	w.restart()
	up.Store(true)
	if got := says(w.later("orders", a.pos, long)); got != "200  in the end" {
		t.Error(got)
	}
}

// Nobody waits in vain where no subscription could reply.
func TestAskWhereNobodyReplies(t *testing.T) {
	w := newWorld(t, Options{})
	w.apply(specOf(push("mute", "orders", "", &recorder{}), push("other", "orders", "data == 7", &answering{say: func(event.Delivery) *event.Reply {
		return &event.Reply{Status: 200}
	}})))
	began := time.Now()
	if a := w.ask(t.Context(), "orders", "", "1", time.Hour); a.reply != nil || a.err != nil {
		t.Error(says(a.reply, a.err))
	}
	if took := time.Since(began); took > long {
		t.Errorf("it waited %s", took)
	}
	if a := w.ask(t.Context(), "orders", "", "7", time.Hour); a.reply == nil || a.reply.Status != 200 {
		t.Error(says(a.reply, a.err))
	}
	w.publish("orders", "o-1=7") // asks for nothing, so that a repeat that asks is not heard
	if a := w.ask(t.Context(), "orders", "o-1", "7", time.Hour); a.reply != nil || a.err != nil {
		t.Error(says(a.reply, a.err))
	}
	if err := w.ask(t.Context(), "nowhere", "", "1", long).err; !errors.Is(err, event.ErrNotFound) || w.e.Waiters() != 0 {
		t.Errorf("%v, %d wait", err, w.e.Waiters())
	}
}
