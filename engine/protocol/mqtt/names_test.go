package mqtt

import (
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

func record(ev event.Event) event.Record {
	rec, _, err := event.CutRecord(ev.AppendRecord(nil))
	if err != nil {
		panic(err)
	}
	return rec
}

func namesOf(t testing.TB, mappings []event.MQTTMapping, subs ...event.Subscription) *Names {
	t.Helper()
	n, err := NewNames(mappings, subs)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mqttSub(name, topic, template string) event.Subscription {
	return event.Subscription{Name: name, Deliver: event.Deliver{Face: event.Stream, Topic: topic, MQTT: event.MQTTNames{Topic: template}}}
}

func TestRoute(t *testing.T) {
	n := namesOf(t, []event.MQTTMapping{
		{Filter: "#", Topic: "inbox"},
		{Filter: "sensors/+/temp", Topic: "temps", Subject: "{1}"},
		{Filter: "sensors/#", Topic: "sensors"},
		{Filter: "sensors/7/#", Topic: "seven"},
		{Filter: "sensors/7", Topic: "exact"},
		{Filter: "$dev/+", Topic: "dev"},
	})
	for _, c := range []struct {
		name, topic string
		pieces      []string
	}{
		{"x", "inbox", []string{"x"}},
		{"sensors/9/temp", "temps", []string{"9"}},
		{"sensors/7/temp", "seven", []string{"temp"}},
		{"sensors/9/hum", "sensors", []string{"9/hum"}},
		{"sensors", "sensors", []string{""}},
		{"sensors/7", "exact", nil},
		{"$dev/1", "dev", []string{"1"}},
		{"$other", "", nil}, // # does not take it [MQTT-4.7.2-1]
	} {
		m, pieces, ok := n.Route(c.name, nil)
		if ok != (c.topic != "") || ok && (m.Topic != c.topic || !slices.Equal(pieces, c.pieces)) {
			t.Errorf("%s: %v, %q, %v; want %s, %q", c.name, m, pieces, ok, c.topic, c.pieces)
		}
	}
	buf := make([]string, 0, 4)
	if allocs := testing.AllocsPerRun(100, func() { _, buf, _ = n.Route("sensors/9/temp", buf) }); allocs != 0 {
		t.Errorf("%v allocations a name", allocs)
	}
}

func TestNewNamesRefuses(t *testing.T) {
	for want, m := range map[string]event.MQTTMapping{
		"# stands last":                        {Filter: "a/#/b", Topic: "t"},
		"subject: \"{2}\" has a field that is": {Filter: "a/+", Topic: "t", Subject: "{2}"},
		"key: \"{subject}\" has a field":       {Filter: "a/+", Topic: "t", Key: "{subject}"},
		"type: \"{\" opens":                    {Filter: "a/+", Topic: "t", Type: "{"},
	} {
		if _, err := NewNames([]event.MQTTMapping{m}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v; want %q", m, err, want)
		}
	}
	if _, err := NewNames(nil, []event.Subscription{mqttSub("s", "o", "a/{")}); err == nil || !strings.Contains(err.Error(), "subscriptions.s.deliver.mqtt.topic") {
		t.Error(err)
	}
}

func TestNameOf(t *testing.T) {
	n := namesOf(t, []event.MQTTMapping{
		{Filter: "sensors/+/temp", Topic: "readings", Type: "temp", Subject: "{1}"},
		{Filter: "sensors/+/hum", Topic: "readings", Type: "hum", Subject: "{1}"},
		{Filter: "sensors/9/temp", Topic: "nine"},
		{Filter: "plants/+/lines/+", Topic: "lines", Subject: "{1}/{2}"},
		{Filter: "keyed/+/+", Topic: "keyed", Subject: "{1}", Key: "{2}"},
		{Filter: "sourced/+", Topic: "sourced", Source: "urn:dev:{1}"},
		{Filter: "files/#", Topic: "files", Subject: "{1}"},
		{Filter: "one", Topic: "one"},
		{Filter: "lost/+", Topic: "lost"},
	}, mqttSub("alerts", "alerts.out", "alerts/{subject}"), mqttSub("tenants", "tenants.out", "{tenant}/x"), mqttSub("plain", "plain.out", ""))
	var ids []string
	sources := map[string]Source{}
	for _, s := range n.Sources() {
		ids = append(ids, s.ID)
		sources[s.Topic] = s
	}
	if want := []string{"subscription:alerts", "subscription:tenants", "topic:files", "topic:keyed", "topic:lines", "topic:lost", "topic:nine", "topic:one", "topic:readings", "topic:sourced"}; !slices.Equal(ids, want) {
		t.Errorf("sources %q; want %q", ids, want)
	}
	if s := sources["alerts.out"]; s.Kind != access.Subscription || s.Name != "alerts" || !slices.Equal(s.Patterns, []string{"alerts/#"}) || !s.Overlaps("alerts/+") || s.Overlaps("other/+") {
		t.Errorf("%+v", s)
	}
	if s := sources["readings"]; s.Kind != access.Topic || s.Name != "readings" || len(s.Patterns) != 2 || !s.Overlaps("+/+/hum") || s.Overlaps("sensors/+") {
		t.Errorf("%+v", s)
	}
	came := func(name string) []event.Attribute {
		return []event.Attribute{{Name: TopicExtension, Value: name}}
	}
	for _, c := range []struct {
		topic string
		ev    event.Event
		want  string // "" for no name
	}{
		{"readings", event.Event{Type: "temp", Subject: "3"}, "sensors/3/temp"},
		{"readings", event.Event{Type: "hum", Subject: "3"}, "sensors/3/hum"},
		{"readings", event.Event{Type: "rain", Subject: "3"}, ""},
		{"readings", event.Event{Type: "temp"}, ""},
		{"readings", event.Event{Type: "temp", Subject: "a/b"}, ""},
		{"readings", event.Event{Type: "temp", Subject: "9"}, ""}, // that name leads to another topic
		{"readings", event.Event{Type: "temp", Subject: "3", Extensions: came("sensors/4/temp")}, "sensors/4/temp"},
		{"readings", event.Event{Type: "temp", Subject: "3", Extensions: came("lost/x")}, "sensors/3/temp"}, // came into another topic
		{"readings", event.Event{Type: "temp", Subject: "3", Extensions: came("sensors/+/temp")}, "sensors/3/temp"},
		{"readings", event.Event{Type: "temp", Subject: "3", Extensions: came("sensors/9/temp")}, "sensors/3/temp"},
		{"lines", event.Event{Subject: "a/b"}, "plants/a/lines/b"},
		{"lines", event.Event{Subject: "a"}, ""},
		{"lines", event.Event{Subject: "a/+"}, ""},
		{"keyed", event.Event{Subject: "a", PartitionKey: "b"}, "keyed/a/b"},
		{"keyed", event.Event{Subject: "a"}, ""},
		{"sourced", event.Event{Source: "urn:dev:8"}, "sourced/8"},
		{"sourced", event.Event{Source: "/topics/sourced"}, ""},
		{"files", event.Event{Subject: "a/b/c"}, "files/a/b/c"},
		{"files", event.Event{}, ""},
		{"one", event.Event{}, "one"},
		{"lost", event.Event{Subject: "x"}, ""},
		{"alerts.out", event.Event{Subject: "a/b", Extensions: came("sensors/4/temp")}, "alerts/a/b"},
		{"alerts.out", event.Event{}, ""},
		{"alerts.out", event.Event{Subject: "#"}, ""},
		{"alerts.out", event.Event{Subject: strings.Repeat("/", 40)}, ""},
		{"tenants.out", event.Event{Extensions: []event.Attribute{{Name: "tenant", Value: "acme"}}}, "acme/x"},
		{"tenants.out", event.Event{Extensions: []event.Attribute{{Name: "tenant", Value: "$acme"}}}, ""},
	} {
		s := sources[c.topic]
		name, ok := s.NameOf([]byte("x"), record(c.ev))
		if got := strings.TrimPrefix(string(name), "x"); ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%s: %+v is %q, %v; want %q", c.topic, c.ev, got, ok, c.want)
		}
		if ok && !s.Overlaps(string(name[1:])) {
			t.Errorf("%s: %q lies outside of %q", c.topic, name, s.Patterns)
		}
	}
	rec, dst := record(event.Event{Type: "temp", Subject: "3"}), make([]byte, 0, 64)
	came4 := record(event.Event{Type: "temp", Subject: "3", Extensions: came("sensors/4/temp")})
	alert := record(event.Event{Subject: "a"})
	readings, alerts := sources["readings"], sources["alerts.out"]
	if allocs := testing.AllocsPerRun(100, func() {
		dst, _ = readings.NameOf(dst[:0], rec)
		dst, _ = readings.NameOf(dst[:0], came4)
		dst, _ = alerts.NameOf(dst[:0], alert)
	}); allocs != 0 {
		t.Errorf("%v allocations a name", allocs)
	}
}

func TestRegister(t *testing.T) {
	var r Register
	first := r.Names()
	if _, _, ok := first.Route("a", nil); ok || len(first.Sources()) > 0 {
		t.Error("nothing is mapped and something is found")
	}
	r.Replace(namesOf(t, []event.MQTTMapping{{Filter: "#", Topic: "inbox"}}))
	select {
	case <-first.Changed():
	default:
		t.Error("the change is not told")
	}
	if m, _, ok := r.Names().Route("a", nil); !ok || m.Topic != "inbox" {
		t.Errorf("%v, %v", m, ok)
	}
	select {
	case <-r.Names().Changed():
		t.Error("a change is told that was not")
	default:
	}
}

// A template reaches every attribute, and the partition key by the short name as well.
func TestAttributesOfTemplates(t *testing.T) {
	ev := event.Event{ID: "i", Source: "/s", Type: "t", Subject: "j", Time: "2026-01-01T00:00:00Z", DataContentType: "text/plain", DataSchema: "urn:x", PartitionKey: "k",
		Extensions: []event.Attribute{{Name: "site", Value: "north"}}}
	rec := event.Record(ev.AppendRecord(nil))
	for name, want := range map[string]string{"id": "i", "source": "/s", "type": "t", "subject": "j", "time": "2026-01-01T00:00:00Z", "datacontenttype": "text/plain",
		"dataschema": "urn:x", "key": "k", "partitionkey": "k", "site": "north", "other": ""} {
		if v, ok := attributeOf(rec, name); v != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", name, v, ok, want)
		}
	}
}
