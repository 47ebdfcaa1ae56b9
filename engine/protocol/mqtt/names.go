package mqtt

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
)

// Names is what the topic names of MQTT stand for: which messages become events of which topic, and which events MQTT
// clients read under which names. It is immutable and for use by several goroutines; a change of the rules makes another
// one.
type Names struct {
	mappings mqttname.Table[*Mapping]
	sources  []Source
	changed  chan struct{}
}

// NewNames compiles mappings and the subscriptions among subs that MQTT clients read. The error, an event.Faults, says
// which filter or template is not valid: rules have refused such a one before.
func NewNames(mappings []event.MQTTMapping, subs []event.Subscription) (*Names, error) {
	n := &Names{changed: make(chan struct{})}
	byTopic := map[string][]*Mapping{}
	for _, def := range mappings {
		m, err := newMapping(def)
		if err != nil {
			return nil, event.At(fmt.Sprintf("mqtt.%q", def.Filter), err)
		}
		n.mappings.Put(def.Filter, m)
		byTopic[def.Topic] = append(byTopic[def.Topic], m)
	}
	for topic, ms := range byTopic {
		slices.SortFunc(ms, func(a, b *Mapping) int {
			if mqttname.MoreSpecific(a.Filter, b.Filter) {
				return -1
			}
			return cmp.Compare(a.Filter, b.Filter)
		})
		s := Source{ID: "topic:" + topic, Kind: access.Topic, Name: topic, Topic: topic, NameOf: (&topicNames{n, topic, ms}).nameOf, names: n}
		for _, m := range ms {
			s.Patterns = append(s.Patterns, m.Filter)
		}
		n.sources = append(n.sources, s)
	}
	for _, sub := range subs {
		if sub.Deliver.MQTT.Topic == "" {
			continue
		}
		t, err := mqttname.ParseTemplate(sub.Deliver.MQTT.Topic)
		if err != nil {
			return nil, event.At(fmt.Sprintf("subscriptions.%s.deliver.mqtt.topic", sub.Name), err)
		}
		n.sources = append(n.sources, Source{ID: "subscription:" + sub.Name, Kind: access.Subscription, Name: sub.Name, Topic: sub.Deliver.Topic,
			Patterns: []string{t.Pattern()}, cloudEvents: sub.Deliver.MQTT.CloudEvents, NameOf: (&templateNames{t}).nameOf})
	}
	slices.SortFunc(n.sources, func(a, b Source) int { return cmp.Compare(a.ID, b.ID) })
	return n, nil
}

// Route returns the mapping that takes a message published under name, which has been checked: the most specific one.
// pieces are what its wildcards took, in buf if there is room, and borrow name. It allocates nothing besides.
func (n *Names) Route(name string, buf []string) (m *Mapping, pieces []string, ok bool) {
	m, ok = n.mappings.First(name)
	if !ok {
		return nil, buf[:0], false
	}
	return m, mqttname.AppendCapture(buf[:0], m.Filter, name), true
}

// Sources are what MQTT clients can read, ordered by ID. They are shared: do not change them.
func (n *Names) Sources() []Source { return n.sources }

// Changed is closed once other Names are in force.
func (n *Names) Changed() <-chan struct{} { return n.changed }

// Register holds the Names that are in force. The zero value has none that name anything.
type Register struct {
	names atomic.Pointer[Names]
	once  sync.Once
}

// Names returns those in force.
func (r *Register) Names() *Names {
	r.once.Do(func() { r.names.CompareAndSwap(nil, &Names{changed: make(chan struct{})}) })
	return r.names.Load()
}

// Replace puts n, which NewNames has made, in force.
func (r *Register) Replace(n *Names) {
	r.Names()
	close(r.names.Swap(n).changed)
}

// A Mapping is event.MQTTMapping ready for use.
type Mapping struct {
	event.MQTTMapping
	typ, subject, key, source mqttname.Template
	wildcards                 int
}

func newMapping(def event.MQTTMapping) (*Mapping, error) {
	if err := mqttname.CheckFilter(def.Filter); err != nil {
		return nil, err
	}
	m := &Mapping{MQTTMapping: def, wildcards: mqttname.Wildcards(def.Filter)}
	for _, x := range []struct {
		key, text string
		to        *mqttname.Template
	}{{"type", def.Type, &m.typ}, {"subject", def.Subject, &m.subject}, {"key", def.Key, &m.key}, {"source", def.Source, &m.source}} {
		t, err := mqttname.ParseTemplate(x.text)
		if err == nil && (t.Max() > m.wildcards || len(t.Attributes()) > 0) {
			err = event.Invalid("", fmt.Sprintf("%q has a field that is no wildcard of %q, which has %d", x.text, def.Filter, m.wildcards))
		}
		if err != nil {
			return nil, event.At(x.key, err)
		}
		*x.to = t
	}
	return m, nil
}

// A Source is something that MQTT clients read: a topic that has mappings, or a subscription that delivers by mqtt.
type Source struct {
	ID       string      // the same as long as it is the same topic or subscription, also under other Names
	Kind     access.Kind // Topic or Subscription, which Name is one of: to read it is what a client may or may not
	Name     string
	Topic    string   // that is read
	Patterns []string // filters that all its names lie in

	names       *Names // of a topic; nil of a subscription
	cloudEvents bool   // of a subscription
	// NameOf appends the name that an event of the source has; ok is false for one that has none, which MQTT clients do
	// not see: then only what was in dst counts. It allocates nothing besides dst where there is a name.
	NameOf func(dst []byte, rec event.Record) (name []byte, ok bool)
}

// structured reports whether clients get the events under a name of the source as CloudEvents even where they were none, or
// where MQTT 3.1.1 has no attributes: see give.
func (s *Source) structured(name string) bool {
	if s.names == nil {
		return s.cloudEvents
	}
	m, ok := s.names.mappings.First(name)
	return ok && m.CloudEvents
}

// Overlaps reports whether a name of the source can be one that filter matches.
func (s *Source) Overlaps(filter string) bool {
	return slices.ContainsFunc(s.Patterns, func(p string) bool { return mqttname.Overlap(p, filter) })
}

// topicNames names the events of a topic that has mappings.
type topicNames struct {
	n        *Names
	topic    string
	mappings []*Mapping
}

func (t *topicNames) nameOf(dst []byte, rec event.Record) ([]byte, bool) {
	if x, ok := rec.Extension(TopicExtension); ok && mqttname.ValidName(x.Value) {
		// The extension goes where the event goes. In a topic that another name leads to it names nothing: readers
		// of the first would get the event twice, as it was and as it became.
		if m, ok := t.n.mappings.First(x.Value); ok && m.Topic == t.topic {
			return append(dst, x.Value...), true
		}
	}
	from := len(dst)
	for _, m := range t.mappings {
		name, ok := m.nameOf(dst, rec)
		if !ok {
			continue
		}
		if first, ok := t.n.mappings.First(borrow(name[from:])); ok && first == m {
			return name, true
		}
	}
	return dst, false
}

// nameOf is the name that, published, would have given the event its type and subject. Key and source are looked at
// only for pieces that those two do not have: what came another way has a source of its own.
func (m *Mapping) nameOf(dst []byte, rec event.Record) ([]byte, bool) {
	var buf [mqttname.MaxLevels]string
	pieces := buf[:m.wildcards]
	for _, x := range [...]struct {
		t   *mqttname.Template
		tag event.Tag
		is  bool // what the template makes is what the event has to have
	}{{&m.typ, event.TagType, true}, {&m.subject, event.TagSubject, true}, {&m.key, event.TagPartitionKey, false}, {&m.source, event.TagSource, false}} {
		if x.t.IsZero() || !x.is && !slices.Contains(pieces, "") {
			continue
		}
		if !x.t.Unfill(rec.Attr(x.tag), pieces) && x.is {
			return dst, false
		}
	}
	for i, p := range pieces {
		if p == "" && (i < len(pieces)-1 || !strings.HasSuffix(m.Filter, "#")) {
			return dst, false // an empty level is a level: what is not known is no such one
		}
	}
	if m.wildcards > 0 && !slices.ContainsFunc(pieces, func(p string) bool { return p != "" }) {
		return dst, false
	}
	return mqttname.AppendFill(dst, m.Filter, pieces)
}

// templateNames names the events of a subscription.
type templateNames struct{ t mqttname.Template }

func (t *templateNames) nameOf(dst []byte, rec event.Record) ([]byte, bool) {
	from := len(dst)
	name, ok := t.t.Append(dst, func(attribute string) (string, bool) { return attributeOf(rec, attribute) })
	if !ok || !mqttname.ValidName(borrow(name[from:])) {
		return dst, false
	}
	// What begins with $ only because of an attribute would lie outside of the pattern [MQTT-4.7.2-1].
	if name[from] == '$' && !strings.HasPrefix(t.t.String(), "$") {
		return dst, false
	}
	return name, true
}

// attributeOf is an attribute by the name that templates have for it; an empty one is none.
func attributeOf(rec event.Record, name string) (v string, ok bool) {
	if name == "key" {
		name = "partitionkey"
	}
	if tag := event.TagOf(name); tag != event.TagExtension {
		v = rec.Attr(tag)
	} else {
		x, _ := rec.Extension(name)
		v = x.Value
	}
	return v, v != ""
}

// borrow is b as a string, for as long as b stays as it is.
func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
