package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
)

// MQTTMapping is one entry of `mqtt` with its defaults.
type MQTTMapping struct {
	event.MQTTMapping
	source    *doc
	effective *doc
	hidden    hiddenValues
}

var (
	mqttShape  = shape{keys: []string{"topic", "type", "subject", "key", "source", "cloudevents"}}
	namesShape = shape{keys: []string{"topic", "cloudevents", "retain"}}
)

// maxMappings of all files: an event that came another way is held against all of its topic.
const maxMappings = 1000

// mqtt reads `mqtt`: topic filters to what messages under them become.
func (p *parser) mqtt(n *node) {
	switch {
	case n == nil || n.kind == null:
		return
	case n.kind != mapping:
		p.bad(n, "is %s; want a mapping from topic filters to topics, such as {\"sensors/+/temp\": {topic: readings, subject: \"{1}\"}}", n.kind)
		return
	}
	if len(p.mappings)+len(n.keys) > maxMappings {
		p.bad(n, "has mappings past the %d that are allowed in all; the wildcards + and # stand for many names", maxMappings)
		return
	}
	for i, key := range n.keys {
		filter := key.raw
		if err := mqttname.CheckFilter(filter); err != nil {
			p.fault(key, "topic filter %s %s", quote(filter), nameFault(err))
			continue
		}
		if strings.HasPrefix(filter, "$share/") {
			p.fault(key, "topic filter %s is one of a shared subscription; want that of the names that messages are published under", quote(filter))
			continue
		}
		if first := p.mqttKeys[filter]; first != nil {
			p.fault(key, "topic filter %s is mapped twice: here and at %s; keep one", quote(filter), first.place())
			continue
		}
		p.mqttKeys[filter] = key
		p.mappings = append(p.mappings, p.mqttMapping(filter, key, n.items[i]))
	}
}

func (p *parser) mqttMapping(filter string, key, n *node) MQTTMapping {
	m := MQTTMapping{MQTTMapping: event.MQTTMapping{Filter: filter, Owner: p.owner(key)}}
	f, ok := p.fields(n, mqttShape)
	if !ok {
		m.source = mask(n)
		return m
	}
	if v := f["topic"]; v != nil {
		m.Topic, _ = p.name(v, "topic")
	}
	p.missing(n, "topic", "the topic that messages under this filter go into")
	wildcards := mqttname.Wildcards(filter)
	for _, x := range []struct {
		key string
		to  *string
	}{{"type", &m.Type}, {"subject", &m.Subject}, {"key", &m.Key}, {"source", &m.Source}} {
		if v := f[x.key]; v != nil {
			*x.to = p.nameTemplate(v, filter, wildcards)
		}
	}
	if v := f["cloudevents"]; v != nil {
		m.CloudEvents, _ = p.boolean(v)
	}
	p.mappedEvent(f, m.MQTTMapping)
	m.source, m.hidden = mask(n), p.hiddenOf(n) // by now it is known which values are references
	m.effective = effectiveMapping(m.MQTTMapping).over(m.source)
	return m
}

// nameTemplate reads a template of what a filter's wildcards took.
func (p *parser) nameTemplate(n *node, filter string, wildcards int) string {
	text, ok := p.str(n)
	if !ok {
		return ""
	}
	t, err := mqttname.ParseTemplate(text)
	if err != nil {
		p.bad(n, "%s", nameFault(err))
		return ""
	}
	if names := t.Attributes(); len(names) > 0 || t.Max() > wildcards {
		field := fmt.Sprintf("{%d}", t.Max())
		if len(names) > 0 {
			field = "{" + names[0] + "}"
		}
		p.bad(n, "is %s; the filter %s has %s, %s is none of them", n.shown(), quote(filter), pieces(wildcards), field)
		return ""
	}
	return text
}

// pieces says which fields a template of a filter may have.
func pieces(wildcards int) string {
	switch wildcards {
	case 0:
		return "no wildcard"
	case 1:
		return "the wildcard {1}"
	}
	return fmt.Sprintf("the wildcards {1} to {%d}", wildcards)
}

// mappedEvent checks that what stands in the templates can stand in an event.
func (p *parser) mappedEvent(f map[string]*node, m event.MQTTMapping) {
	ev := event.Event{ID: "a", Source: "a", Type: "a", Subject: m.Subject, PartitionKey: m.Key}
	if m.Type != "" {
		ev.Type = m.Type
	}
	if m.Source != "" {
		ev.Source = m.Source
	}
	var faults *event.Faults
	if err := ev.Validate(event.Limits{}); !errors.As(err, &faults) {
		return
	}
	for _, x := range faults.List {
		at := x.At
		if at == "partitionkey" {
			at = "key"
		}
		if v := f[at]; v != nil {
			p.bad(v, "%s", x.Detail)
		}
	}
}

func effectiveMapping(m event.MQTTMapping) *doc {
	d := &doc{kind: mapping}
	d.set("topic", text(m.Topic))
	for _, x := range []struct{ key, value string }{{"type", m.Type}, {"subject", m.Subject}, {"key", m.Key}, {"source", m.Source}} {
		if x.value != "" {
			d.set(x.key, text(x.value))
		}
	}
	d.set("cloudevents", truth(m.CloudEvents))
	return d
}

// deliverMQTT reads `deliver: {mqtt: …}`: a stream whose events have names.
func (p *parser) deliverMQTT(d *subscriptionDef, key, n *node) {
	d.Deliver.Face = event.Stream
	d.Deliver.Topic = p.derived(d, key, ".out", "deliver: {topic: NAME}")
	f, ok := p.fields(n, namesShape)
	if !ok {
		return
	}
	p.missing(n, "topic", "the names under which MQTT clients read the events, such as \"alerts/{subject}\"")
	if v := f["topic"]; v != nil {
		d.Deliver.MQTT.Topic = p.streamNames(v)
	}
	if v := f["cloudevents"]; v != nil {
		d.Deliver.MQTT.CloudEvents, _ = p.boolean(v)
	}
	if v := f["retain"]; v != nil {
		d.stream = v
		d.Deliver.StreamKeep = p.retain(v)
	}
}

// streamNames reads a template of attributes that makes topic names.
func (p *parser) streamNames(n *node) string {
	text, ok := p.str(n)
	if !ok {
		return ""
	}
	t, err := mqttname.ParseTemplate(text)
	if err != nil {
		p.bad(n, "%s", nameFault(err))
		return ""
	}
	if t.Max() > 0 {
		p.bad(n, "is %s; {%d} is of a mapping's filter: here fields are attributes, {id}, {source}, {type}, {subject}, {key}, {time} or an extension's name", n.shown(), t.Max())
		return ""
	}
	name, _ := t.Append(nil, func(string) (string, bool) { return "x", true })
	if err := mqttname.CheckName(string(name)); err != nil {
		p.bad(n, "is %s, of which no topic name can be made: it %s", n.shown(), nameFault(err))
		return ""
	}
	return text
}

func deliverMQTTDoc(dl event.Deliver) *doc {
	d := &doc{kind: mapping}
	d.set("topic", text(dl.MQTT.Topic))
	d.set("cloudevents", truth(dl.MQTT.CloudEvents))
	if dl.StreamKeep != (event.Retain{}) {
		d.set("retain", retainDoc(dl.StreamKeep))
	}
	return d
}

func mqttKeys() described {
	template := "A template: `{1}` is what the filter's first wildcard took."
	return described{name: "mqtt", at: "mqtt.FILTER", shape: mqttShape, about: "What messages become that MQTT clients publish under the names that a topic filter matches; of several filters the most specific. See [MQTT](mqtt.md).", keys: map[string]keyDoc{
		"topic":       {is: nameType(), about: "That the events go into. One that nothing else names is made with defaults.", must: true},
		"type":        {is: plainText("template"), about: "Of the event. " + template, absent: "`event`"},
		"subject":     {is: plainText("template"), about: "Of the event. " + template, absent: "none"},
		"key":         {is: plainText("template"), about: "The event's partitionkey. " + template, absent: "none"},
		"source":      {is: plainText("template"), about: "Of the event. " + template, absent: "`/topics/TOPIC`"},
		"cloudevents": {is: boolean(), about: "Messages that do not say what they are hold a CloudEvent in JSON, and clients of MQTT 3.1.1 get such ones.", absent: "false", std: false},
	}}
}

func namesKeys() described {
	return described{name: "names", at: "subscriptions.NAME.deliver.mqtt", shape: namesShape, about: "As `stream`, and MQTT clients read the events under names of their own.", keys: map[string]keyDoc{
		"topic":       {is: plainText("template"), about: "The name of an event: `{subject}`, `{type}`, `{source}`, `{id}`, `{key}`, `{time}` or an extension's name in braces. An event that lacks one of them is not seen by MQTT clients.", must: true},
		"cloudevents": {is: boolean(), about: "Everything goes out as a CloudEvent, to clients of MQTT 3.1.1 in JSON.", absent: "false", std: false},
		"retain":      {is: mappingNamed("retain"), about: "Bounds of `NAME.out`.", absent: "those of the topic that is read"},
	}}
}

func comparedMappings(s *Set) map[string]compared {
	all := make(map[string]compared, len(s.MQTT))
	for _, m := range s.MQTT {
		all[m.Filter] = compared{effective: m.effective, hidden: m.hidden}
	}
	return all
}

func truth(b bool) *doc { return &doc{kind: scalar, tag: "!!bool", text: strconv.FormatBool(b)} }

// Mappings are the definitions of `mqtt`.
func (s *Set) Mappings() []event.MQTTMapping {
	var all []event.MQTTMapping
	for i := range s.MQTT {
		all = append(all, s.MQTT[i].MQTTMapping)
	}
	return all
}

// MQTTJSON is `mqtt` with its defaults, as far as its topics may be seen; nil for nothing.
func (s *Set) MQTTJSON(seen func(topic string) bool) json.RawMessage {
	d := &doc{kind: mapping}
	for i := range s.MQTT {
		if m := &s.MQTT[i]; seen(m.Topic) {
			d.set(m.Filter, m.effective)
		}
	}
	if len(d.keys) == 0 {
		return nil
	}
	return d.appendJSON(nil)
}
