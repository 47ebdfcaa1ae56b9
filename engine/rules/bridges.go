package rules

import (
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Bridge is a bridge's definition with its defaults: either a subscription that forwards, or what brings events in.
type Bridge struct {
	event.Subscription // Name is the bridge's, Topic the local one
	Kind               string
	Push               *Subscription                               // nil: it brings events in
	Open               func(context.Context) (event.Intake, error) // nil where it forwards, or a value is not known
	Fingerprint        string                                      // as of subscriptions
	Effective          json.RawMessage                             // with all defaults
	source, effective  *doc
	hidden             hiddenValues
}

// BridgeKinds are the other sides that bridges may have. Each is told by the key of its options that has its name.
type BridgeKinds struct {
	To   map[string]SinkKind
	From map[string]IntakeKind
}

// IntakeKind reads and opens one kind of what events are brought from. IntakeOf makes it.
type IntakeKind struct {
	options  reflect.Type
	defaults reflect.Value
	read     func(p *parser, n *node) (open func(context.Context) (event.Intake, error), effective *doc)
}

// IntakeOf makes an IntakeKind of a connector's options and the function that opens it, in the way of SinkOf.
func IntakeOf[O any](open func(ctx context.Context, o O) (event.Intake, error)) IntakeKind {
	var zero O
	defaults := zero
	if v, ok := any(&zero).(interface{ WithDefaults() O }); ok {
		defaults = v.WithDefaults()
	}
	return IntakeKind{options: reflect.TypeFor[O](), defaults: reflect.ValueOf(defaults), read: func(p *parser, n *node) (func(context.Context) (event.Intake, error), *doc) {
		o, effective, known := readOptions[O](p, n)
		if !known {
			return nil, effective
		}
		return func(ctx context.Context) (event.Intake, error) { return open(ctx, o) }, effective
	}}
}

const (
	bridgeBytes = 1 << 30
	bridgeWait  = time.Minute
)

var bridgeShape = shape{keys: []string{"topic", "start", "filter", "to", "from", "bytes"}}

// bridge reads one entry of `bridges`.
func (p *parser) bridge(name string, key, n *node) *bridgeDef {
	b := &bridgeDef{n: n, key: key}
	b.Name, b.Owner = name, p.owner(key)
	f, ok := p.fields(n, bridgeShape)
	if !ok {
		b.source = mask(n)
		return b
	}
	if v := f["topic"]; v != nil {
		b.Topic, _ = p.name(v, "topic")
	}
	to, from := f["to"], f["from"]
	switch {
	case to != nil && from != nil:
		p.bad(from, "is beside to; a bridge goes one way: make two")
	case to != nil:
		p.missing(n, "topic", "the topic whose events it forwards")
		p.bridgeTo(b, f, to)
	case from != nil:
		p.missing(n, "topic", "the topic that its events go into")
		p.bridgeFrom(b, f, from)
	case n.get("to") == nil && n.get("from") == nil:
		p.badAt(n, "to", "missing; want to: with where its events go, or from: with where they come from, such as {router: \"https://hq.example.com\", topic: orders}")
	}
	b.source, b.hidden = mask(n), p.hiddenOf(n) // by now it is known which values are references
	return b
}

type bridgeDef struct {
	Bridge
	n, key *node
	sub    *subscriptionDef // nil: it brings events in
	shown  *doc             // the options of the other side, with defaults
}

// bridgeTo makes the subscription that forwards.
func (p *parser) bridgeTo(b *bridgeDef, f map[string]*node, to *node) {
	d := &subscriptionDef{n: b.n, Subscription: event.Subscription{
		Name: event.BridgePrefix + b.Name, Topic: b.Topic, Owner: b.Owner, Concurrency: 1, Parked: 256 << 20, Backlog: bridgeBytes,
		Retry: event.RetryPolicy{Attempts: event.Unlimited, Exponential: &event.Exponential{First: time.Second, Max: bridgeWait, Factor: 2}, Jitter: 0.2},
	}}
	b.sub = d
	d.Deliver.Face = event.Push
	if event.CheckName("subscription", d.Name+".dead") != nil {
		p.fault(b.key, "the name %s is too long for its subscription %s; shorten it", quote(b.Name), quote(event.BridgePrefix+"….dead"))
		return
	}
	d.DeadLetter = d.Name + ".dead"
	if v := f["start"]; v != nil {
		d.Start = p.start(v)
	}
	if v := f["filter"]; v != nil {
		p.filter(d, v)
	}
	if v := f["bytes"]; v != nil {
		d.Backlog, _ = p.size(v, 1<<20, 1<<60)
	}
	kind, ok := p.sideOf(to, slices.Sorted(maps.Keys(p.o.Bridges.To)))
	if !ok {
		return
	}
	b.Kind, d.Deliver.Kind = kind, kind
	d.open, b.shown = p.o.Bridges.To[kind].read(p, kind, to)
}

// bridgeFrom reads where events are brought from.
func (p *parser) bridgeFrom(b *bridgeDef, f map[string]*node, from *node) {
	for _, key := range []string{"start", "filter", "bytes"} {
		if v := f[key]; v != nil {
			p.bad(v, "is of a bridge that forwards (to); of one that brings events in, what is read is said under from")
		}
	}
	kind, ok := p.sideOf(from, slices.Sorted(maps.Keys(p.o.Bridges.From)))
	if !ok {
		return
	}
	b.Kind = kind
	b.Open, b.shown = p.o.Bridges.From[kind].read(p, from)
}

// sideOf says of which kind the other side of a bridge is.
func (p *parser) sideOf(n *node, kinds []string) (kind string, ok bool) {
	if n.kind != mapping {
		p.bad(n, "is %s; want a mapping with one of %s", n.kind, strings.Join(kinds, ", "))
		return "", false
	}
	var said []string
	for _, k := range kinds {
		if n.get(k) != nil {
			said = append(said, k)
		}
	}
	if len(said) != 1 {
		p.bad(n, "has %s of %s; want exactly one, which says what the other side is", strconv.Itoa(len(said)), strings.Join(kinds, ", "))
		return "", false
	}
	return said[0], true
}

// checkBridges checks what lies between bridges and other definitions.
func (p *parser) checkBridges(topics map[string]*topicDef) {
	for _, b := range p.bridges {
		if b.sub == nil {
			continue
		}
		if first := p.subKeys[b.sub.Name]; first != nil {
			p.fault(b.key, "bridge %s is the subscription %s, which is defined at %s; rename one of them", quote(b.Name), quote(b.sub.Name), first.place())
		}
		if t := topics[b.Topic]; t != nil {
			p.typedFilter(b.sub, t.typed)
		}
	}
}

// finishBridges makes the bridges of a set.
func (p *parser) finishBridges(s *Set, imply func(neededTopic)) {
	for _, d := range p.bridges {
		b := d.Bridge
		if d.sub != nil {
			b.Subscription = d.sub.Subscription
			b.Subscription.Name = b.Name
			push := &Subscription{Subscription: d.sub.Subscription, Program: d.sub.program, OpenSink: d.sub.open}
			push.Values = p.referred[d.n.get("filter")]
			push.source = d.source
			b.Push = push
			imply(neededTopic{Topic: event.Topic{Name: d.sub.DeadLetter, WhenFull: event.Reject, Owner: b.Owner}})
		}
		imply(neededTopic{Topic: event.Topic{Name: d.Topic, Owner: b.Owner}})
		b.Name, b.Topic = d.Name, d.Topic
		b.effective = d.doc().over(d.source)
		b.Effective, b.Fingerprint = b.effective.named(b.Name), p.fingerprint(d.n)
		b.Subscription.Source = d.source.named(b.Name)
		if b.Push != nil {
			b.Push.Fingerprint, b.Push.Effective, b.Push.effective = b.Fingerprint, b.effective.named(b.Push.Name), b.effective
			b.Push.Subscription.Source, b.Push.hidden = d.source.named(b.Push.Name), d.hidden
		}
		s.Bridges = append(s.Bridges, b)
	}
}

func (b *bridgeDef) doc() *doc {
	d := &doc{kind: mapping}
	d.set("topic", text(b.Topic))
	side := "from"
	if s := b.sub; s != nil {
		side = "to"
		if start := b.source.get("start"); start != nil {
			d.set("start", start)
		} else {
			d.set("start", text("latest"))
		}
		if s.Filter != "" {
			d.set("filter", text(s.Filter))
		}
		d.set("bytes", size(s.Backlog))
	}
	if b.shown != nil {
		d.set(side, b.shown)
	}
	return d
}

func comparedBridges(s *Set) map[string]compared {
	all := make(map[string]compared, len(s.Bridges))
	for _, x := range s.Bridges {
		all[x.Name] = compared{effective: x.effective, hidden: x.hidden}
	}
	return all
}

// describeBridges is what the keys of bridges mean, and the options of the other sides that a program has.
func describeBridges(kinds BridgeKinds) []described {
	bridge := described{name: "bridge", at: "bridges.NAME", shape: bridgeShape, any: []string{"to", "from"}, about: "A topic whose events go to another router or an MQTT broker, or come from one. See [bridges](bridges.md).", keys: map[string]keyDoc{
		"topic":  {is: nameType(), about: "Here. One that nothing else names is made with defaults.", must: true},
		"start":  {is: startType(), about: "Of one that forwards: where a new one begins; one that exists keeps its place.", absent: "`latest`", std: "latest"},
		"filter": {is: plainText("filter"), about: "Of one that forwards: which events; at most 4 KiB.", absent: "all events"},
		"bytes":  {is: sizeType("at least 1MiB"), about: "Of one that forwards: how much of the topic is kept until it has gone, whatever its `retain` says. Beyond it the oldest is dropped, and counted as `lost`. A topic with `whenFull: reject` drops nothing.", absent: "1GiB", std: "1GiB"},
	}}
	var to, from []valueType
	var options []described
	for _, name := range slices.Sorted(maps.Keys(kinds.To)) {
		to = append(to, mappingNamed("to-"+name))
		options = describeStruct(options, "to-"+name, "bridges.NAME.to", "Where a bridge forwards to: "+bridgeAbout(name)+".", kinds.To[name].options, kinds.To[name].defaults)
	}
	for _, name := range slices.Sorted(maps.Keys(kinds.From)) {
		from = append(from, mappingNamed("from-"+name))
		options = describeStruct(options, "from-"+name, "bridges.NAME.from", "What a bridge brings in: from "+bridgeAbout(name)+".", kinds.From[name].options, kinds.From[name].defaults)
	}
	if to == nil { // of a program without bridges
		to, from = []valueType{anyScalar()}, []valueType{anyScalar()}
	}
	if from == nil {
		from = []valueType{anyScalar()}
	}
	bridge.keys["to"] = keyDoc{is: either(to...), about: "Where the events go."}
	bridge.keys["from"] = keyDoc{is: either(from...), about: "In place of `to`: where the events come from. This side connects."}
	return append([]described{bridge}, options...)
}

func bridgeAbout(kind string) string {
	if kind == "mqtt" {
		return "an MQTT broker"
	}
	return "another " + kind
}
