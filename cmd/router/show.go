package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
)

// What the API shows of a definition: the keys of a rules file, then name, owner and state, which are
// read-only.

type topicDoc struct {
	Name       string          `json:"name"`
	Partitions int             `json:"partitions"`
	Retain     retainDoc       `json:"retain"`
	WhenFull   string          `json:"whenFull"`
	Dedupe     string          `json:"dedupe"`
	Schema     json.RawMessage `json:"schema,omitempty"`
	Owner      string          `json:"owner"`
	State      topicState      `json:"state"`
}

type retainDoc struct {
	Bytes  string `json:"bytes"`
	Age    string `json:"age"`
	Events int64  `json:"events,omitempty"`
}

type topicState struct {
	Incarnation   uint32           `json:"incarnation"`
	Events        uint64           `json:"events"`
	Bytes         int64            `json:"bytes"`
	Partitions    []partitionState `json:"partitions"`
	Subscriptions []string         `json:"subscriptions"`
}

type partitionState struct {
	Earliest uint64 `json:"earliest"` // offset of the first event kept
	Next     uint64 `json:"next"`     // offset of the next event to come
	Bytes    int64  `json:"bytes"`
}

func (d *definitions) topicDoc(t engine.TopicInfo) topicDoc {
	doc := topicDoc{
		Name: t.Name, Partitions: t.Partitions, Dedupe: durationText(t.Dedupe), WhenFull: "drop-oldest",
		Retain: retainDoc{sizeText(t.Retain.Bytes), durationText(t.Retain.Age), t.Retain.Events},
		Schema: t.Schema, Owner: d.ownerText(kindTopics, t.Name),
		State: topicState{Incarnation: t.Incarnation, Subscriptions: append([]string{}, t.Subscriptions...)},
	}
	if t.WhenFull == event.Reject {
		doc.WhenFull = "reject"
	}
	for _, p := range t.Partition {
		doc.State.Events += p.Next - p.Head
		doc.State.Bytes += p.Bytes
		doc.State.Partitions = append(doc.State.Partitions, partitionState{p.Head, p.Next, p.Bytes})
	}
	return doc
}

type subscriptionState struct {
	State       string     `json:"state"`
	Reason      string     `json:"reason,omitempty"`
	Since       *time.Time `json:"since,omitempty"`
	Lag         uint64     `json:"lag"`
	Outstanding int        `json:"outstanding"`
	Parked      int64      `json:"parked"`
	ParkedBytes int64      `json:"parkedBytes"`
	Leased      int        `json:"leased"`

	Matched      uint64 `json:"matched"`
	Delivered    uint64 `json:"delivered"`
	Failed       uint64 `json:"failed"`
	Retried      uint64 `json:"retried"`
	DeadLettered uint64 `json:"deadLettered"`
	Dropped      uint64 `json:"dropped"`
	Lost         uint64 `json:"lost"`

	Digests []string `json:"digests,omitempty"`
}

func (d *definitions) subscriptionDoc(s engine.SubscriptionInfo) (map[string]any, error) {
	doc := map[string]any{}
	if len(s.Source) > 0 {
		if err := json.Unmarshal(s.Source, &doc); err != nil {
			return nil, fmt.Errorf("subscription %s: %w", s.Name, err)
		}
	}
	doc["name"], doc["owner"] = s.Name, d.ownerText(kindSubscriptions, s.Name)
	doc["state"] = subscriptionState{s.State, s.Reason, s.Since, s.Lag, s.Outstanding, s.Parked, s.ParkedBytes, s.Leased,
		s.Matched, s.Delivered, s.Failed, s.Retried, s.DeadLettered, s.Dropped, s.Lost, s.Digests}
	return doc, nil
}

type functionDoc struct {
	Name   string            `json:"name"`
	Wasm   string            `json:"wasm"`
	Limits map[string]string `json:"limits"`
	Config map[string]string `json:"config,omitempty"`
	Owner  string            `json:"owner"`
	State  functionState     `json:"state"`
}

type functionState struct {
	Digest    string            `json:"digest,omitempty"`
	Calls     uint64            `json:"calls"`
	Events    uint64            `json:"events"`
	Rejects   uint64            `json:"rejects"`
	Failures  map[string]uint64 `json:"failures"`
	Instances int               `json:"instances"`
	Memory    int64             `json:"memoryBytes"`
}

func (d *definitions) functionDoc(f engine.FunctionInfo) functionDoc {
	l := f.Limits.WithDefaults()
	doc := functionDoc{Name: f.Name, Wasm: f.Digest, Config: f.Config, Owner: d.ownerText(kindFunctions, f.Name),
		Limits: map[string]string{"memory": sizeText(l.Memory), "output": sizeText(int64(l.Output))},
		State: functionState{Digest: f.Digest, Calls: f.Stats.Calls, Events: f.Stats.Events, Rejects: f.Stats.Rejects,
			Failures: map[string]uint64{}, Instances: f.Stats.Instances, Memory: f.Stats.Memory}}
	if f.Pushed {
		doc.Wasm = "pushed"
	}
	for reason, n := range f.Stats.Failures {
		doc.State.Failures[string(reason)] = n
	}
	return doc
}

func (d *definitions) ownerText(kind, name string) string {
	if o, ok := d.ownerOf(kind, name); ok {
		return fmt.Sprintf("%s:%d", o.File, o.Line)
	}
	return "api"
}

// Show returns one definition with its state.
func (d *definitions) Show(_ context.Context, kind, name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.show(kind, name)
}

func (d *definitions) show(kind, name string) ([]byte, error) {
	switch kind {
	case kindTopics:
		t, err := d.eng.Topic(name)
		if err != nil {
			return nil, err
		}
		return json.Marshal(d.topicDoc(t))
	case kindSubscriptions:
		s, err := d.eng.Subscription(name)
		if err != nil {
			return nil, err
		}
		doc, err := d.subscriptionDoc(s)
		if err != nil {
			return nil, err
		}
		return json.Marshal(doc)
	}
	f, err := d.eng.Function(name)
	if err != nil {
		return nil, err
	}
	return json.Marshal(d.functionDoc(f))
}

// List returns all definitions of a kind with their state, by name.
func (d *definitions) List(_ context.Context, kind string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all, err := d.list(kind)
	if err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

func (d *definitions) list(kind string) ([]any, error) {
	all := []any{}
	switch kind {
	case kindTopics:
		for _, t := range d.eng.Topics() {
			all = append(all, d.topicDoc(t))
		}
	case kindSubscriptions:
		for _, s := range d.eng.Subscriptions() {
			doc, err := d.subscriptionDoc(s)
			if err != nil {
				return nil, err
			}
			all = append(all, doc)
		}
	default:
		for _, f := range d.eng.Functions() {
			all = append(all, d.functionDoc(f))
		}
	}
	return all, nil
}

// Rules returns everything in force, as one document, with the revision of the rules file.
func (d *definitions) Rules(context.Context) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	doc := map[string]any{"version": 1, "revision": d.loaded.Revision}
	for _, kind := range []string{kindTopics, kindFunctions, kindSubscriptions} {
		all, err := d.list(kind)
		if err != nil {
			return nil, err
		}
		doc[kind] = all
	}
	return json.Marshal(doc)
}

// durationText writes a duration as rules files do: 7d, 90s.
func durationText(d time.Duration) string {
	units := []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}}
	i := slices.IndexFunc(units, func(u struct {
		of   time.Duration
		name string
	}) bool {
		return d >= u.of && d%u.of == 0
	})
	if i < 0 {
		return d.String()
	}
	return fmt.Sprintf("%d%s", d/units[i].of, units[i].name)
}
