package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// topicRow is what the store keeps of a topic: its number, and its definition as it was last in force, so
// that a topic whose rule is gone keeps its bounds.
type topicRow struct {
	Serial uint32 // the incarnation
	Def    event.Topic
	Of     string `json:",omitempty"` // the subscription between whose halves the router put it
}

// topic is a topic at work. Its partitions live as long as the engine or until it is deleted.
type topic struct {
	name    string
	source  string // of events whose client named none
	serial  uint32
	of      string // see topicRow; guarded by Engine.applying
	def     atomic.Pointer[topicDef]
	parts   []*partition
	forks   []topicFork   // oldest first; set before anything runs
	started bool          // its readers run; guarded by Engine.applying
	ended   chan struct{} // closed when the topic is deleted: its readers end
	letters letterBook
	held    atomic.Int64 // bytes that wait for its bridges whatever its retain says: see event.Subscription.Backlog

	mu   sync.Mutex
	wake chan struct{} // closed when a partition's live offset moves; nil when nobody waits
}

type topicDef struct {
	event.Topic
	schema *jsonschema.Schema
}

// schemaName is what errors call a topic's schema: a name that is no URL would be taken for a file in the working directory.
const schemaName = "urn:schema"

func compileSchema(t event.Topic) (*jsonschema.Schema, error) {
	if t.Schema == nil {
		return nil, nil
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(t.Schema))
	if err != nil {
		return nil, event.Invalid("schema", err.Error())
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(jsonschema.SchemeURLLoader{}) // nothing is fetched
	if err := c.AddResource(schemaName, doc); err != nil {
		return nil, event.Invalid("schema", err.Error())
	}
	s, err := c.Compile(schemaName)
	if err != nil {
		return nil, event.Invalid("schema", err.Error())
	}
	return s, nil
}

// checkSchema says where the data breaks the topic's schema.
func (d *topicDef) checkSchema(data []byte) error {
	if d.schema == nil {
		return nil
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return event.Bad(event.ErrSchema, "data", "the topic has a schema, the data is not JSON: "+err.Error())
	}
	if err := d.schema.Validate(doc); err != nil {
		return event.Bad(event.ErrSchema, "data", err.Error())
	}
	return nil
}

func (e *Engine) loadTopics(ctx context.Context) error {
	topics := map[string]*topic{}
	err := e.store.Scan(ctx, tableTopics, nil, nil, func(k, v []byte) error {
		var row topicRow
		if err := json.Unmarshal(v, &row); err != nil {
			return fmt.Errorf("topic row %q: %w", k, err)
		}
		row.Def.Name = string(k)
		t, err := e.openTopic(ctx, row)
		if err != nil {
			return err
		}
		topics[t.name] = t
		return nil
	})
	if err == nil {
		// Their readers start with the first plan: before its subscriptions are restored no event may count as
		// handed on.
		e.plan.Store(&Plan{topics: topics})
	}
	return err
}

// openTopic opens a topic's logs; startTopic sets its readers to work.
func (e *Engine) openTopic(ctx context.Context, row topicRow) (*topic, error) {
	schema, err := compileSchema(row.Def)
	if err != nil {
		return nil, event.At("topics."+row.Def.Name, err)
	}
	t := &topic{name: row.Def.Name, source: "/topics/" + row.Def.Name, serial: row.Serial, of: row.Of, ended: make(chan struct{})}
	t.def.Store(&topicDef{row.Def, schema})
	t.held.Store(e.held[t.name])
	for i := range row.Def.Partitions {
		p := &partition{topic: t, id: storage.LogID{Topic: t.serial, Partition: event.Partition(i)}}
		if p.log, err = e.store.OpenLog(ctx, p.id, t.logOptions(row.Def)); err != nil {
			return nil, fmt.Errorf("topic %s: %w", t.name, err)
		}
		if p.claim, err = e.store.Claim(ctx, p.id); err != nil {
			return nil, fmt.Errorf("topic %s: %w", t.name, err)
		}
		live, err := e.store.Load(ctx, tableCheckpoints, key32x2(p.id.Topic, p.id.Partition))
		if err != nil {
			return nil, fmt.Errorf("topic %s: %w", t.name, err)
		}
		if len(live) == 8 {
			p.saved = be.Uint64(live)
			p.live.Store(p.saved)
		}
		if err := p.loadTraces(ctx, e.store); err != nil {
			return nil, fmt.Errorf("topic %s: %w", t.name, err)
		}
		p.feeds.Store(&feeds{})
		t.parts = append(t.parts, p)
	}
	if err := e.loadLetters(ctx, t); err != nil {
		return nil, fmt.Errorf("topic %s: %w", t.name, err)
	}
	return t, nil
}

func (e *Engine) startTopic(t *topic) {
	if t.started {
		return
	}
	t.started = true
	e.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		var readers sync.WaitGroup
		for _, p := range t.parts {
			readers.Go(func() { e.readPartition(ctx, p) })
		}
		select {
		case <-t.ended:
		case <-ctx.Done():
		}
		cancel()
		readers.Wait()
	})
}

// logOptions divides a topic's bounds among its partitions.
func logOptions(t event.Topic) storage.LogOptions {
	n := int64(t.Partitions)
	o := storage.LogOptions{Bytes: t.Retain.Bytes / n, Age: t.Retain.Age, Dedupe: t.Dedupe, Reject: t.WhenFull == event.Reject}
	if t.Retain.Events > 0 {
		o.Events = (t.Retain.Events + n - 1) / n
	}
	return o
}

// logOptions are those of a topic with what it holds for its bridges.
func (t *topic) logOptions(def event.Topic) storage.LogOptions {
	o := logOptions(def)
	o.Held = t.held.Load() / int64(def.Partitions)
	return o
}

// disabledHold is how long a subscription that is disabled holds the ring of a topic that rejects.
const disabledHold = 24 * time.Hour

// hold moves the offset below which a topic that rejects may drop events: what every subscription has
// settled. Dead letters are unfinished until they are redriven or purged, and a topic without subscriptions
// holds nothing back but that. Of one that drops its oldest, only what bridges have not sent is held, within their bytes.
func (p *partition) hold(deadLetters bool, now time.Time) {
	p.floor.mu.Lock() // what a pin or another's look has changed meanwhile must not be undone
	defer p.floor.mu.Unlock()
	rejects := p.topic.def.Load().WhenFull == event.Reject
	floor := p.holdFloor(deadLetters && rejects)
	for _, s := range p.feeds.Load().subs {
		if (rejects || s.config.Load().Backlog > 0) && !s.disabledFor(now, disabledHold) {
			floor = min(floor, s.watermark(p))
		}
	}
	p.floor.set(p.log, floor)
}

// changed is called by the partition readers after the live offset moved.
func (t *topic) changed() {
	t.mu.Lock()
	if t.wake != nil {
		close(t.wake)
		t.wake = nil
	}
	t.mu.Unlock()
}

func (t *topic) wakeAll() { t.changed() }

// moved returns a channel that is closed the next time a live offset moves.
func (t *topic) moved() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wake == nil {
		t.wake = make(chan struct{})
	}
	return t.wake
}

// TopicInfo is what a topic holds now.
type TopicInfo struct {
	event.Topic
	Incarnation   uint32
	Partition     []storage.Bounds
	Subscriptions []string

	// FilterErrors counts, since the start, the times that a filter ran out of its bounds at an event of the
	// live feed; FilterMissing the comparisons that were false because a path was missing or of another type.
	FilterErrors, FilterMissing uint64

	Traces TraceInfo
}

// Topics lists all topics by name.
func (e *Engine) Topics() []TopicInfo {
	p := e.plan.Load()
	infos := make([]TopicInfo, 0, len(p.topics))
	for _, t := range p.topics {
		infos = append(infos, t.info())
	}
	slices.SortFunc(infos, func(a, b TopicInfo) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return infos
}

// TopicDefinitions are the definitions in force by name, without what Topics counts for each. The caller may
// change the map.
func (e *Engine) TopicDefinitions() map[string]event.Topic {
	p := e.plan.Load()
	defs := make(map[string]event.Topic, len(p.topics))
	for name, t := range p.topics {
		defs[name] = t.def.Load().Topic
	}
	return defs
}

// Topic returns one topic, or event.ErrNotFound with the nearest name.
func (e *Engine) Topic(name string) (TopicInfo, error) {
	t, err := e.topic(name)
	if err != nil {
		return TopicInfo{}, err
	}
	return t.info(), nil
}

func (t *topic) info() TopicInfo {
	info := TopicInfo{Topic: t.def.Load().Topic, Incarnation: t.serial, Traces: t.traceInfo()}
	for _, p := range t.parts {
		info.Partition = append(info.Partition, p.log.Bounds())
		info.FilterErrors += p.filterErrors.Load()
		info.FilterMissing += p.filterMissing.Load()
	}
	for _, s := range t.parts[0].feeds.Load().subs {
		info.Subscriptions = append(info.Subscriptions, s.name)
	}
	slices.Sort(info.Subscriptions)
	return info
}

func (e *Engine) topic(name string) (*topic, error) {
	p := e.plan.Load()
	if t := p.topics[name]; t != nil {
		return t, nil
	}
	if err := event.CheckName("topic", name); err != nil {
		return nil, err
	}
	have := make([]string, 0, len(p.topics))
	for n := range p.topics {
		have = append(have, n)
	}
	return nil, unknown("topic", name, have, fmt.Sprintf("`router topics create %s` makes it", name))
}
