package httpapi

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// fake is a Backend in memory for these tests: one partition, no durability, no filters but `type == "x"`.
// It says that it is a fake wherever it answers with a document.
type fake struct {
	mu      sync.Mutex
	topics  map[string]*fakeTopic
	docs    map[string]map[string][]byte // by kind and name
	leases  map[string]event.Record
	pulled  func() // after something was leased, if not nil
	seeks   []event.Start
	paused  []string      // the reasons
	fail    error         // of the next calls
	block   chan struct{} // Publish waits for it
	blocked int
	grown   chan struct{} // closed at every append
	nextID  int
	epoch   time.Time
	notWell error
	open    int // readers
	waited  time.Duration

	replies  chan *event.Reply // to whoever asks; nil: nobody replies
	asking   int
	replied  *event.Reply // with the last ack
	invoked  event.Event
	version  string
	invoking *event.Invocation

	fakeLogs
	fakeRules
	fakeLetters
	fakeReplays
	fakeSchedules
	fakeBacktests
	fakeBackups
	fakeExplains
}

type fakeTopic struct {
	schema []byte
	recs   []event.Record
	head   int // what is below was overtaken
}

func newFake(topics ...string) *fake {
	f := &fake{topics: map[string]*fakeTopic{}, leases: map[string]event.Record{}, grown: make(chan struct{}),
		docs:  map[string]map[string][]byte{"topics": {}, "subscriptions": {}, "functions": {}},
		epoch: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	for _, t := range topics {
		f.topics[t] = &fakeTopic{}
	}
	return f
}

func (f *fake) topic(name string) (*fakeTopic, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	t := f.topics[name]
	if t == nil {
		return nil, fmt.Errorf("topic %q: %w; create it with: router topics create %s", name, event.ErrNotFound, name)
	}
	return t, nil
}

func (f *fake) Publish(ctx context.Context, topic string, evs []event.Event, pos []event.Position) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.block != nil {
		b := f.block
		f.blocked++
		f.mu.Unlock()
		<-b
		f.mu.Lock()
	}
	t, err := f.topic(topic)
	if err != nil {
		return err
	}
	if len(pos) != len(evs) {
		return fmt.Errorf("%d positions for %d events", len(pos), len(evs))
	}
	for i := range evs {
		e := &evs[i]
		if e.ID == "" {
			f.nextID++
			e.ID = "made-" + strconv.Itoa(f.nextID)
		}
		if e.Source == "" {
			e.Source = "/topics/" + topic
		}
		if e.Type == "" {
			e.Type = "event"
		}
		if e.Time == "" {
			e.Time = f.epoch.Format(time.RFC3339)
		}
		if err := e.Validate(event.Limits{}); err != nil {
			return event.At("events["+strconv.Itoa(i)+"]", err)
		}
	}
	for i := range evs {
		r := event.Record(evs[i].AppendRecord(nil))
		pos[i] = event.Position{Offset: uint64(len(t.recs))}
		r.SetPlace(pos[i], f.epoch.Add(time.Duration(len(t.recs))*time.Second).UnixNano())
		t.recs = append(t.recs, r)
	}
	close(f.grown)
	f.grown = make(chan struct{})
	return nil
}

func (f *fake) DryRun(ctx context.Context, topic string, evs []event.Event) ([][]event.Match, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.topic(topic); err != nil {
		return nil, err
	}
	out := make([][]event.Match, len(evs))
	for i := range evs {
		out[i] = []event.Match{{Subscription: "fake", Matched: i%2 == 0, Why: "a fake"}}
	}
	return out, nil
}
