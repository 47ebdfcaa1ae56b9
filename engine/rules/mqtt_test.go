package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

func TestMQTT(t *testing.T) {
	s := parse(t, `
topics: {readings: {}}
mqtt:
  plants/+/+/temp:
    topic: readings
    type: temperature
    subject: "{1}/{2}"
    key: "{2}"
    source: urn:plant:{1}
  "#": {topic: inbox, cloudevents: true}
subscriptions:
  hot:
    topic: readings
    filter: data.celsius > 90
    deliver: {mqtt: {topic: "alerts/{subject}", cloudevents: true, retain: {age: 1h}}}
`, testOptions())
	want := []event.MQTTMapping{
		{Filter: "plants/+/+/temp", Topic: "readings", Type: "temperature", Subject: "{1}/{2}", Key: "{2}", Source: "urn:plant:{1}", Owner: event.Owner{File: "r.yaml", Line: 4}},
		{Filter: "#", Topic: "inbox", CloudEvents: true, Owner: event.Owner{File: "r.yaml", Line: 10}},
	}
	if got := s.Mappings(); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	var topics []string
	for _, x := range s.Topics {
		topics = append(topics, x.Name)
	}
	if want := []string{"readings", "hot.dead", "hot.out", "inbox"}; !slices.Equal(topics, want) {
		t.Errorf("topics %q", topics)
	}
	d := s.Subscriptions[0].Deliver
	if d.Face != event.Stream || d.Topic != "hot.out" || d.MQTT != (event.MQTTNames{Topic: "alerts/{subject}", CloudEvents: true}) || d.StreamKeep.Age == 0 {
		t.Errorf("%+v", d)
	}
	text, err := s.Show(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"  plants/+/+/temp:\n    topic: readings\n    type: temperature\n    subject: '{1}/{2}'\n", "  '#':\n    topic: inbox\n    cloudevents: true\n", "      mqtt:\n        topic: alerts/{subject}\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if again := parse(t, string(text), testOptions()); !slices.EqualFunc(again.Mappings(), want, func(a, b event.MQTTMapping) bool {
		a.Owner, b.Owner = event.Owner{}, event.Owner{}
		return a == b
	}) {
		t.Errorf("what is shown means %+v", again.Mappings())
	}
}

func TestMQTTDiff(t *testing.T) {
	a := parse(t, `mqtt: {a/+: {topic: t}, b: {topic: t}}`, testOptions())
	b := parse(t, `mqtt: {a/+: {topic: t, subject: "{1}"}, c: {topic: t, cloudevents: false}}`, testOptions())
	var got []string
	for _, c := range Diff(a, b) {
		got = append(got, c.Kind+" "+c.Name+" "+c.Change)
	}
	if want := []string{"mqtt a/+ changed", "mqtt b removed", "mqtt c created"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if again := parse(t, `mqtt: {a/+: {topic: t, cloudevents: false}, b: {topic: t}}`, testOptions()); len(Diff(a, again)) > 0 {
		t.Error("a default that is written is a change")
	}
}

func TestMQTTBounds(t *testing.T) {
	var b strings.Builder
	b.WriteString("mqtt:\n")
	for i := range 1001 {
		fmt.Fprintf(&b, "  a/%d: {topic: t}\n", i)
	}
	if _, err := ParseBytes("r.yaml", []byte(b.String()), testOptions()); err == nil || !strings.Contains(err.Error(), "r.yaml:2:3: mqtt: has mappings past the 1000") {
		t.Error(err)
	}
	if s := parse(t, b.String()[:strings.LastIndex(b.String(), "  a/")], testOptions()); len(s.MQTT) != 1000 {
		t.Errorf("%d mappings", len(s.MQTT))
	}
}

// A filter is mapped once in a folder of files, and the second file is told where the first has it.
func TestMQTTTwice(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a.yaml": "mqtt:\n  a/+: {topic: t}\n", "b.yaml": "mqtt:\n  \"a/+\": {topic: u}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Parse(t.Context(), dir, testOptions())
	if err == nil || !strings.Contains(err.Error(), `b.yaml:2:3: topic filter "a/+" is mapped twice: here and at `) || !strings.Contains(err.Error(), "a.yaml:2:3; keep one") {
		t.Error(err)
	}
}

// A subscription of the API delivers by mqtt as one of a file does, and a change of its names is one.
func TestMQTTSubscriptionOfTheAPI(t *testing.T) {
	one, err := ParseSubscription([]byte(`{"name": "s", "topic": "t", "deliver": {"mqtt": {"topic": "alerts/{subject}"}}}`), Options{})
	if err != nil {
		t.Fatal(err)
	}
	two, err := ParseSubscription([]byte(`{"name": "s", "topic": "t", "deliver": {"mqtt": {"topic": "alarms/{subject}"}}}`), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if one.Deliver.MQTT.Topic != "alerts/{subject}" || one.Fingerprint == two.Fingerprint || !strings.Contains(string(one.Effective), `"mqtt":{"topic":"alerts/{subject}","cloudevents":false}`) {
		t.Errorf("%+v, %s", one.Deliver, one.Effective)
	}
	if made := TopicsOf(one.Subscription, event.Topic{Name: "t"}.WithDefaults()); len(made) != 2 || made[0].Name != "s.out" {
		t.Errorf("%+v", made)
	}
	if _, err := ParseSubscription([]byte(`{"name": "s", "topic": "t", "deliver": {"mqtt": {"topic": "a/{1}"}}}`), Options{}); err == nil || !strings.Contains(err.Error(), "deliver.mqtt.topic") {
		t.Error(err)
	}
}
