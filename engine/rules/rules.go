// Package rules reads rules files and the definitions of the API, which share their keys, into event's
// definitions with compiled filters and sinks ready to be opened. It checks everything before anything is
// used and reports all that is wrong at once, each fault with its place: file:line:column in a file, the
// field in a document of the API.
package rules

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
)

// Bounds of what is read.
const (
	maxFile     = 8 << 20  // bytes of one rules file
	maxSource   = 1 << 20  // bytes of one document of the API, of a schema or of a ${file:…}
	maxFiles    = 1000     // rules files in a folder
	maxSources  = 16 << 20 // bytes of all of them
	maxAttached = 64 << 20 // bytes of a module, a schema or a ${file:…}
	maxExpanded = 16 << 20 // bytes that all references stand for
	maxChain    = 8        // functions of a subscription
)

// Options say what rules may refer to. Only Parse, which reads files itself, falls back on the process's
// environment and file system where Getenv and ReadFile are nil; elsewhere a reference is then refused in
// words, so that who may write a definition over the network does not read the router's files with it.
type Options struct {
	Sinks    map[string]SinkKind   // what may stand under deliver, besides topic, stream and pull
	Schemes  map[string]SchemeKind // by which sources verify
	Bridges  BridgeKinds           // the other sides that bridges may have
	Getenv   func(name string) (string, bool)
	ReadFile func(path string) ([]byte, error) // of ${file:…}, modules and schemas
	// Reads is told of every file that rules name, once, before it is read and also where it cannot be; may be nil.
	Reads func(path string)
	Cache *Cache // of the parses before; nil: none
	// Functions are names that exist besides those of the file: the API's. ParseSubscription checks names
	// only where it is not nil.
	Functions []string
	// Schema is the JSON Schema of a topic of the router, nil of one without: what a subscription of the API reads of
	// the data is checked against it. Rules files are checked against the schemas that stand in them.
	Schema func(topic string) []byte
	// CheckModule says what is wrong with a module that a file names; nil looks at its first bytes alone.
	CheckModule func(module []byte) error
	// Unresolved lets Pack and ParseBundle take ${file:…}, and ${env:…} where Getenv is nil, for a value that is not
	// known: for who only compares. The set is not fit to be put in force: what is not known is left out of it.
	Unresolved bool
	Now        func() time.Time // what `start: 24h` counts back from; time.Now
}

// Set is all that one file or folder defines, checked. It is read-only.
type Set struct {
	Topics        []Topic // those that are only named, as a target or for dead letters, included
	Functions     []Function
	Subscriptions []Subscription
	Tests         []Test
	Hosts         []Host // limits of hosts that are sent to
	Schedules     []Schedule
	Hooks         []Source // whose webhooks become events
	MQTT          []MQTTMapping
	Bridges       []Bridge
	Revision      string   // "sha256:<hex>" of the files and what they attach, variables aside
	Files         []string // every file that was read: watch these
	// Sources are the rules files and the modules, scripts and schemas that they name, by their names in a bundle:
	// what ParseSources takes. Read-only.
	Sources map[string][]byte
}

// Topic is a topic's definition with its defaults.
type Topic struct {
	event.Topic
	Implied   bool            // only named by a subscription: it must not replace a definition that exists
	made      bool            // for a subscription, not written by itself
	Source    json.RawMessage // as written, with its name
	Effective json.RawMessage // with all defaults
	source    *doc
	effective *doc
}

// Made reports whether the topic is made for a subscription rather than defined.
func (t Topic) Made() bool { return t.made }

// Function is a function's definition with its defaults.
type Function struct {
	event.Function
	Path      string          // of the module, where the rules name a file
	Module    []byte          // what is in it; its digest is Function.Digest
	Source    json.RawMessage // as written, with its name; references stay references
	Effective json.RawMessage
	source    *doc
	effective *doc
	hidden    hiddenValues
}

// Subscription is a subscription's definition with its defaults, ready to be opened. Its Source is what
// was written, with its name: references stay references, literal secrets are "***".
type Subscription struct {
	event.Subscription
	Program  *filters.Program                               // nil matches all
	OpenSink func(ctx context.Context) (engine.Sink, error) // Push only
	// Fingerprint is equal for equal definitions, values of references included: a subscription that keeps
	// it need not be opened anew. It is a hash over secrets: do not show it.
	Fingerprint string
	Values      []string // that references in its filter stand for: do not show them
	Effective   json.RawMessage
	source      *doc
	effective   *doc
	hidden      hiddenValues
}

// Parse reads a rules file, or all *.yaml and *.yml of a folder (not of folders in it). The error is a
// *event.Faults of kind event.ErrInvalid, or an error about path itself.
func Parse(ctx context.Context, path string, o Options) (*Set, error) {
	p := newParser(o)
	s, err := p.parse(ctx, path)
	if err != nil && p.unread && ctx.Err() == nil { // what is wrong is known, but not where
		p = newParser(o)
		p.whole = true
		return p.parse(ctx, path)
	}
	return s, err
}

func (p *parser) parse(ctx context.Context, path string) (*Set, error) {
	if p.o.Getenv == nil {
		p.o.Getenv = os.LookupEnv
	}
	if p.o.ReadFile == nil {
		p.o.ReadFile, p.siblings = readFile, siblings
	}
	names, err := ruleFiles(path)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := readBounded(name, maxFile)
		if err != nil && len(names) == 1 {
			return nil, fmt.Errorf("rules: %w", err)
		}
		if err != nil { // said with what is wrong in the others
			p.partial = true
			p.fault(&node{src: &source{name: name}, line: 1, col: 1}, "cannot be read: %v", err)
			continue
		}
		if total += len(b); total > maxSources {
			return nil, event.Bad(event.ErrTooLarge, path, fmt.Sprintf("the rules have over %d bytes; at most %d are allowed in all", total, maxSources))
		}
		p.files[name], p.sources[rulesName(name)] = true, b
		if src := (&source{name: name, dir: filepath.Dir(name), text: b}); !p.sameFile(src) {
			p.file(src)
		}
	}
	return p.finish()
}

// ParseBytes reads one rules file that is in memory. Paths in it are relative to name's folder.
func ParseBytes(name string, src []byte, o Options) (*Set, error) {
	p := newParser(o)
	p.file(&source{name: name, dir: filepath.Dir(name), text: src})
	return p.finish()
}

// ParseTopic reads a topic's definition of the API: JSON or YAML with the keys of rules files and "name".
func ParseTopic(src []byte, o Options) (Topic, error) {
	p := newParser(o)
	p.api = true
	n, name := p.definition(src)
	if n == nil {
		return Topic{}, p.err()
	}
	d := p.topic(name, n, n)
	if err := p.err(); err != nil {
		return Topic{}, err
	}
	return d.finished(), nil
}

// ParseFunction is the same for a function. Its module is named by digest, as `wasm` or `module`, or not
// at all: then Digest is empty.
func ParseFunction(src []byte, o Options) (Function, error) {
	p := newParser(o)
	p.api = true
	n, name := p.definition(src)
	if n == nil {
		return Function{}, p.err()
	}
	d := p.function(name, n, n)
	if err := p.err(); err != nil {
		return Function{}, err
	}
	return d.finished(), nil
}

// ParseSubscription is the same for a subscription. That its topics exist is not checked; TopicsOf says
// which to make.
func ParseSubscription(src []byte, o Options) (Subscription, error) {
	p := newParser(o)
	p.api = true
	n, name := p.definition(src)
	if n == nil {
		return Subscription{}, p.err()
	}
	d := p.subscription(name, n, n)
	if o.Functions != nil {
		p.checkFunctions(d, nameSet(o.Functions))
	}
	if o.Schema != nil && d.program != nil {
		if text := o.Schema(d.Topic); text != nil {
			if schema, err := compileSchema(text); err == nil {
				p.typedFilter(d, schema)
			}
		}
	}
	if err := p.err(); err != nil {
		return Subscription{}, err
	}
	return d.finished(p), nil
}

// TopicsOf returns the topics that a subscription of the topic source needs besides source and that are
// made by themselves: for its outputs and for its dead letters.
func TopicsOf(s event.Subscription, source event.Topic) []Topic {
	var ts []Topic
	for _, n := range topicsOf(s, source) {
		ts = append(ts, n.finished())
	}
	return ts
}

// neededTopic is a topic that a subscription needs, before it is known whether somebody defines it.
type neededTopic struct {
	event.Topic
	said bool // the subscription says its bounds, and a change of them counts
}

func (n neededTopic) finished() Topic {
	t := impliedTopic(n.Topic)
	t.Implied = !n.said
	return t
}

func topicsOf(s event.Subscription, source event.Topic) (ts []neededTopic) {
	switch d := s.Deliver; d.Face {
	case event.ToTopic:
		ts = append(ts, neededTopic{Topic: event.Topic{Name: d.Topic, Owner: s.Owner}})
	case event.Stream: // as what it is made of, unless it says otherwise
		out := event.Topic{Name: d.Topic, Partitions: source.Partitions, Retain: source.Retain, WhenFull: source.WhenFull, Owner: s.Owner}
		if d.StreamKeep.Bytes != 0 {
			out.Retain.Bytes = d.StreamKeep.Bytes
		}
		if d.StreamKeep.Age != 0 {
			out.Retain.Age = d.StreamKeep.Age
		}
		if d.StreamKeep.Events != 0 {
			out.Retain.Events = d.StreamKeep.Events
		}
		ts = append(ts, neededTopic{out, d.StreamKeep != (event.Retain{})})
	}
	if s.DeadLetter != "" {
		ts = append(ts, neededTopic{Topic: event.Topic{Name: s.DeadLetter, WhenFull: event.Reject, Owner: s.Owner}})
	}
	return ts
}

func impliedTopic(t event.Topic) Topic {
	t = t.WithDefaults()
	d := topicDef{Topic: Topic{Topic: t, Implied: true, made: true, source: &doc{kind: mapping}}}
	return d.finished()
}

// ruleFiles lists what path stands for, in order.
func ruleFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	var names []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if (ext != ".yaml" && ext != ".yml") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		name := filepath.Join(path, e.Name())
		if info, err := os.Stat(name); err == nil && info.IsDir() { // links are followed: mounted folders consist of them
			continue
		}
		names = append(names, name)
	}
	switch {
	case len(names) == 0:
		return nil, event.Bad(event.ErrInvalid, path, "the folder has no *.yaml or *.yml file; folders in it are not read")
	case len(names) > maxFiles:
		return nil, event.Bad(event.ErrTooLarge, path, fmt.Sprintf("the folder has %d rules files; at most %d are allowed", len(names), maxFiles))
	}
	return names, nil
}

// finish checks what lies between definitions and makes the Set.
func (p *parser) finish() (*Set, error) {
	p.checkReferences()
	p.checkTests()
	if err := p.err(); err != nil {
		return nil, err
	}
	n := len(p.subscriptions)
	s := &Set{Topics: make([]Topic, 0, len(p.topics)+n), Functions: make([]Function, 0, len(p.functions)), Subscriptions: make([]Subscription, 0, n), Hosts: p.hosts, Sources: p.sources, Schedules: p.schedules, Hooks: p.hooks, MQTT: p.mappings}
	topics := map[string]event.Topic{}
	dead := map[string]bool{}
	for _, d := range p.subscriptions {
		dead[d.DeadLetter] = true
	}
	for _, d := range p.topics {
		if dead[d.Name] && !d.whenFullSet {
			d.WhenFull = event.Reject
		}
		t := d.finished()
		s.Topics = append(s.Topics, t)
		topics[t.Name] = t.Topic
	}
	imply := func(n neededTopic) {
		if _, ok := topics[n.Name]; !ok && n.Name != "" { // "" where Pack does not know a variable
			t := n.finished()
			s.Topics = append(s.Topics, t)
			topics[t.Name] = t.Topic
		}
	}
	for _, d := range p.functions {
		s.Functions = append(s.Functions, d.finished())
	}
	// A topic is made for dead letters, for a stream, or with plain defaults, in this order where it has
	// several uses: what is most particular wins.
	for _, d := range p.subscriptions {
		s.Subscriptions = append(s.Subscriptions, d.finished(p))
	}
	p.keep(s.Subscriptions)
	needed := make([][]neededTopic, len(p.subscriptions))
	for i, d := range p.subscriptions {
		source, ok := topics[d.Subscription.Topic]
		if !ok {
			source = event.Topic{Name: d.Subscription.Topic}.WithDefaults()
		}
		needed[i] = topicsOf(d.event(), source)
	}
	for i, d := range p.subscriptions {
		for _, t := range needed[i] {
			if t.Name == d.DeadLetter {
				imply(t)
			}
		}
	}
	for _, face := range []event.Face{event.Stream, event.ToTopic} {
		for i, d := range p.subscriptions {
			if d.Deliver.Face == face {
				imply(needed[i][0])
			}
		}
	}
	for _, d := range p.subscriptions {
		imply(neededTopic{Topic: event.Topic{Name: d.Subscription.Topic, Owner: d.Owner}})
	}
	for _, d := range p.schedules {
		imply(neededTopic{Topic: event.Topic{Name: d.Topic, Owner: d.Owner}})
	}
	for _, d := range p.hooks {
		imply(neededTopic{Topic: event.Topic{Name: d.Topic, Owner: d.Owner}})
	}
	p.finishBridges(s, imply)
	for _, d := range p.mappings {
		imply(neededTopic{Topic: event.Topic{Name: d.Topic, Owner: d.Owner}})
	}
	for _, d := range p.testDefs {
		s.Tests = append(s.Tests, d.Test)
	}
	for name := range p.files {
		s.Files = append(s.Files, name)
	}
	slices.Sort(s.Files)
	s.Revision = "sha256:" + hex.EncodeToString(p.revision.Sum(nil))
	return s, nil
}

// attach adds to the revision what was read.
func (p *parser) attach(name string, b []byte) {
	sum := sha256.Sum256(b)
	fmt.Fprintf(p.revision, "%q %x\n", filepath.Base(name), sum)
}
