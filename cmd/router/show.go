package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/rules"
)

// What the API shows of a definition: the keys of a rules file, then name, owner and state, which are
// read-only.

type topicState struct {
	Incarnation   uint32           `json:"incarnation,omitempty"` // counted over all topics: left out for who may not see them
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

func (d *definitions) topicDoc(t engine.TopicInfo, p *access.Principal) (map[string]any, error) {
	state := topicState{Subscriptions: visible(p, t.Subscriptions)}
	if p.Everything() {
		state.Incarnation = t.Incarnation
	}
	for _, p := range t.Partition {
		state.Events += p.Next - p.Head
		state.Bytes += p.Bytes
		state.Partitions = append(state.Partitions, partitionState{p.Head, p.Next, p.Bytes})
	}
	return d.document(kindTopics, t.Name, rules.ShowTopic(t.Topic), state)
}

// document adds to a definition what is read-only.
func (d *definitions) document(kind, name string, definition []byte, state any) (map[string]any, error) {
	doc := map[string]any{}
	if len(definition) > 0 {
		if err := json.Unmarshal(definition, &doc); err != nil {
			return nil, fmt.Errorf("%s %s: %w", kind, name, err)
		}
	}
	doc["name"], doc["owner"], doc["state"] = name, d.ownerText(kind, name), state
	return doc, nil
}

type subscriptionState struct {
	State       string     `json:"state"`
	Reason      string     `json:"reason,omitempty"`
	Since       *time.Time `json:"since,omitempty"`
	Circuit     *circuit   `json:"circuit,omitempty"`
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
	Loss         *loss  `json:"loss,omitempty"`
	Redriven     uint64 `json:"redriven"`
	Purged       uint64 `json:"purged"`

	DeadLetters int64 `json:"deadLetters"` // neither redriven nor purged

	StateKeys  int64 `json:"stateKeys,omitempty"`  // that its functions keep
	StateBytes int64 `json:"stateBytes,omitempty"` // of keys and values

	Digests []string `json:"digests,omitempty"`

	Replay *httpapi.ReplayDoc `json:"replay,omitempty"`
}

func (d *definitions) subscriptionDoc(s engine.SubscriptionInfo) (map[string]any, error) {
	return d.document(kindSubscriptions, s.Name, s.Source, subscriptionState{
		State: s.State, Reason: s.Reason, Since: s.Since, Circuit: circuitOf(s), Lag: s.Lag, Outstanding: s.Outstanding,
		Parked: s.Parked, ParkedBytes: s.ParkedBytes, Leased: s.Leased,
		Matched: s.Matched, Delivered: s.Delivered, Failed: s.Failed, Retried: s.Retried, DeadLettered: s.DeadLettered,
		Dropped: s.Dropped, Lost: s.Lost, Loss: lossOf(s.Loss), Redriven: s.Redriven, Purged: s.Purged, DeadLetters: s.DeadLetters,
		StateKeys: s.StateKeys, StateBytes: s.StateBytes, Digests: s.Digests, Replay: replayOf(s.Replay),
	})
}

// loss is what the ring dropped before the subscription read it: when it was noticed first and last, and the latest gap,
// up to but without to.
type loss struct {
	Since time.Time `json:"since"`
	Last  time.Time `json:"last"`
	From  string    `json:"from"` // a position
	To    string    `json:"to"`
}

func lossOf(l engine.Loss) *loss {
	if l.Events == 0 {
		return nil
	}
	at := func(off event.Offset) string { return event.Position{Partition: l.Partition, Offset: off}.String() }
	return &loss{l.Since, l.Last, at(l.From), at(l.To)}
}

// circuit is a subscription's, or that of its host where that one is not closed.
type circuit struct {
	State     string     `json:"state"`
	Host      string     `json:"host,omitempty"`
	Since     *time.Time `json:"since,omitempty"`
	Failures  int        `json:"failures"` // in a row
	Next      *time.Time `json:"next,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	RateWaits uint64     `json:"rateWaits,omitempty"`
	HostWaits uint64     `json:"hostWaits,omitempty"`
}

func circuitOf(s engine.SubscriptionInfo) *circuit {
	if s.Deliver.Face != event.Push {
		return nil
	}
	c := s.Circuit
	return &circuit{c.State, c.Host, c.Since, c.Failures, c.Next, c.Reason, c.RateWaits, c.HostWaits}
}

type functionDoc struct {
	Name   string            `json:"name"`
	Wasm   string            `json:"wasm"`
	Limits map[string]string `json:"limits"`
	Config map[string]string `json:"config,omitempty"`

	Secrets map[string]string `json:"secrets,omitempty"` // their names; the values are "***"
	Allow   *allowDoc         `json:"allow,omitempty"`
	Owner   string            `json:"owner"`
	State   functionState     `json:"state"`

	Versions []versionDoc `json:"versions"`
}

// allowDoc is what a function may do besides looking at its events.
type allowDoc struct {
	HTTP []string `json:"http,omitempty"`
	KV   bool     `json:"kv"`
}

// versionDoc is a version that was in force: the current one, the previous one, which is ready for a
// rollback, and those that are kept besides.
type versionDoc struct {
	engine.Version
	State string `json:"state"`
}

func versionDocs(f engine.FunctionInfo) []versionDoc {
	docs := []versionDoc{}
	for i, v := range f.Versions {
		state := "kept"
		switch {
		case v.Digest == f.Digest:
			state = "current"
		case i == 1:
			state = "previous"
		}
		docs = append(docs, versionDoc{v, state})
	}
	return docs
}

type functionState struct {
	Digest    string            `json:"digest,omitempty"`
	Calls     uint64            `json:"calls"`
	Events    uint64            `json:"events"`
	Rejects   uint64            `json:"rejects"`
	Failures  map[string]uint64 `json:"failures"`
	Results   map[string]uint64 `json:"results"`
	Fuel      uint64            `json:"fuel"`
	Seconds   float64           `json:"seconds"` // in calls
	Swaps     uint64            `json:"swaps"`   // of versions since the start
	Instances int               `json:"instances"`
	Memory    int64             `json:"memoryBytes"`
}

func (d *definitions) functionDoc(f engine.FunctionInfo) functionDoc {
	l := f.Limits.WithDefaults()
	doc := functionDoc{Name: f.Name, Wasm: f.Digest, Config: f.Config, Owner: d.ownerText(kindFunctions, f.Name),
		Limits: map[string]string{"cpu": l.CPU.String(), "wall": l.Wall.String(), "memory": sizeText(l.Memory), "output": sizeText(int64(l.Output)), "fuel": "unlimited"},
		State: functionState{Digest: f.Digest, Calls: f.Counts.Calls, Events: f.Counts.Events, Rejects: f.Counts.Results["reject"],
			Failures: f.Counts.Failures, Results: f.Counts.Results, Fuel: f.Counts.Fuel, Seconds: f.Counts.Time.Seconds(), Swaps: f.Counts.Swaps,
			Instances: f.Stats.Instances, Memory: f.Stats.Memory},
		Versions: versionDocs(f)}
	if a := f.Allow; a.KV || len(a.HTTP) > 0 {
		doc.Allow = &allowDoc{a.HTTP, a.KV}
	}
	if f.Pushed {
		doc.Wasm = "pushed"
	}
	if l.Fuel > 0 {
		doc.Limits["fuel"] = strconv.FormatInt(l.Fuel, 10)
	}
	for name := range f.Secrets {
		if doc.Secrets == nil {
			doc.Secrets = map[string]string{}
		}
		doc.Secrets[name] = "***"
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
func (d *definitions) Show(ctx context.Context, kind, name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.show(kind, name, access.From(ctx))
}

// told answers a change: with the definition and its state to who may read them, else with the name.
func (d *definitions) told(kind, name string, p *access.Principal) ([]byte, error) {
	of := map[string]access.Kind{kindTopics: access.Topic, kindSubscriptions: access.Subscription, kindFunctions: access.Function}[kind]
	if p.Check(access.Read, of, name) != nil {
		return json.Marshal(map[string]string{"name": name})
	}
	return d.show(kind, name, p)
}

func (d *definitions) show(kind, name string, p *access.Principal) ([]byte, error) {
	var doc any
	var err error
	switch kind {
	case kindTopics:
		var t engine.TopicInfo
		if t, err = d.eng.Topic(name); err == nil {
			doc, err = d.topicDoc(t, p)
		}
	case kindSubscriptions:
		var s engine.SubscriptionInfo
		if s, err = d.eng.Subscription(name); err == nil {
			doc, err = d.subscriptionDoc(s)
		}
	default:
		var f engine.FunctionInfo
		if f, err = d.eng.Function(name); err == nil {
			doc = d.functionDoc(f)
		}
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

// List returns all definitions of a kind that who asks may read, with their state, by name: those that Show would show.
func (d *definitions) List(ctx context.Context, kind string) ([]byte, error) {
	if kind == kindBridges {
		return d.bridges(ctx)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	all, err := d.list(kind, access.From(ctx))
	if err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

func (d *definitions) list(kind string, p *access.Principal) ([]any, error) {
	all := []any{}
	switch kind {
	case kindTopics:
		for _, t := range d.eng.Topics() {
			if p.Check(access.Read, access.Topic, t.Name) != nil {
				continue
			}
			doc, err := d.topicDoc(t, p)
			if err != nil {
				return nil, err
			}
			all = append(all, doc)
		}
	case kindSubscriptions:
		for _, s := range d.eng.Subscriptions() {
			if p.Check(access.Read, access.Subscription, s.Name) != nil {
				continue
			}
			doc, err := d.subscriptionDoc(s)
			if err != nil {
				return nil, err
			}
			all = append(all, doc)
		}
	default:
		for _, f := range d.eng.Functions() {
			if p.Check(access.Read, access.Function, f.Name) == nil {
				all = append(all, d.functionDoc(f))
			}
		}
	}
	return all, nil
}

// Rules returns everything in force, as one document, with the revision of the rules file.
func (d *definitions) Rules(ctx context.Context) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	doc := map[string]any{"version": 1, "revision": ""}
	if d.file != nil {
		doc["revision"] = d.file.Revision
	}
	for _, kind := range []string{kindTopics, kindFunctions, kindSubscriptions} {
		all, err := d.list(kind, access.From(ctx))
		if err != nil {
			return nil, err
		}
		doc[kind] = all
	}
	if d.file != nil && len(d.file.Hosts) > 0 {
		doc["hosts"] = d.file.HostsJSON()
	}
	if d.file != nil {
		if names := d.shownMappings(access.From(ctx)); names != nil {
			doc["mqtt"] = names
		}
	}
	return json.Marshal(doc)
}
