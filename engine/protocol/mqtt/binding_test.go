package mqtt

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/mochi-mqtt/server/v2/packets"
)

var testTime = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

type properties = packets.Properties

func users(kv ...string) (all []packets.UserProperty) {
	for i := 0; i < len(kv); i += 2 {
		all = append(all, packets.UserProperty{Key: kv[i], Val: kv[i+1]})
	}
	return all
}

func publish(version byte, name, payload string, p properties) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, ProtocolVersion: version, TopicName: name, Payload: []byte(payload), Properties: p}
}

func ext(name, value string) event.Attribute { return event.Attribute{Name: name, Value: value} }

var bindingNames = []event.MQTTMapping{
	{Filter: "s/+/+", Topic: "readings", Type: "temp", Subject: "{1}", Key: "{1}/{2}", Source: "urn:x:{2}"},
	{Filter: "bare/#", Topic: "bare"},
	{Filter: "ce/#", Topic: "ces", CloudEvents: true},
}

// bindingTable is what docs/mqtt.md says in its mapping table, row by row.
var bindingTable = []struct {
	row string // its first cell; "" where another case has it
	in  packets.Packet
	ev  event.Event
	out properties // to a client of MQTT 5.0
	doc string     // the payload of what goes to a client of MQTT 5.0, where that is not what came
}{
	{row: "Topic Name", in: publish(4, "s/a/b", "", properties{}),
		ev: event.Event{Type: "temp", Subject: "a", PartitionKey: "a/b", Source: "urn:x:b", Extensions: []event.Attribute{ext("mqtttopic", "s/a/b"), ext("mqttplain", "untyped")}}},
	{row: "Payload", in: publish(4, "bare/a", `{"a":1}`, properties{}),
		ev: event.Event{DataContentType: "application/json", Data: []byte(`{"a":1}`), Extensions: []event.Attribute{ext("mqtttopic", "bare/a"), ext("mqttplain", "untyped")}}},
	{in: publish(5, "bare/a", "text", properties{}),
		ev: event.Event{DataContentType: "text/plain", Data: []byte("text"), Extensions: []event.Attribute{ext("mqtttopic", "bare/a"), ext("mqttplain", "untyped")}}},
	{in: publish(4, "bare/a", "\xff", properties{}),
		ev: event.Event{DataContentType: "application/octet-stream", Binary: true, Data: []byte("\xff"), Extensions: []event.Attribute{ext("mqtttopic", "bare/a"), ext("mqttplain", "untyped")}}},
	{row: "Content Type", in: publish(5, "bare/a", "<a/>", properties{ContentType: "text/xml"}),
		ev:  event.Event{DataContentType: "text/xml", Data: []byte("<a/>"), Extensions: []event.Attribute{ext("mqtttopic", "bare/a"), ext("mqttplain", "typed")}},
		out: properties{ContentType: "text/xml"}},
	{row: "Content Type `application/cloudevents+json`", in: publish(5, "s/a/b", `{"specversion":"1.0","id":"1","source":"/s","type":"t","site":"x","mqttplain":"typed","mqtttopic":"y","mqttqos":0,"data":{"a":1}}`, properties{ContentType: "application/CloudEvents+json; charset=utf-8"}),
		ev:  event.Event{ClientID: true, ID: "1", Source: "/s", Type: "t", Subject: "a", PartitionKey: "a/b", Data: []byte(`{"a":1}`), Extensions: []event.Attribute{ext("site", "x"), ext("mqtttopic", "s/a/b")}},
		out: properties{User: users("specversion", "1.0", "id", "1", "source", "/s", "type", "t", "subject", "a", "partitionkey", "a/b", "site", "x", "mqtttopic", "s/a/b")}, doc: `{"a":1}`},
	{row: "no Content Type, where the mapping says `cloudevents: true`", in: publish(4, "ce/a", `{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain","data":"x"}`, properties{}),
		ev:  event.Event{ClientID: true, ID: "1", Source: "/s", Type: "t", DataContentType: "text/plain", Data: []byte("x"), Extensions: []event.Attribute{ext("mqtttopic", "ce/a")}},
		out: properties{ContentType: "text/plain", User: users("specversion", "1.0", "id", "1", "source", "/s", "type", "t", "datacontenttype", "text/plain", "mqtttopic", "ce/a")}, doc: "x"},
	{row: "User Property `specversion`", in: publish(5, "s/a/b", `{}`, properties{ContentType: "application/json", User: users("specversion", "1.0", "id", "1", "source", "/s", "type", "t", "time", "2026-01-01T00:00:00Z", "dataschema", "urn:d", "subject", "own", "partitionkey", "k", "traceparent", "tp", "datacontenttype", "application/json", "site", "x", "X-Hop", "1", "mqttplain", "typed", "mqttretain", "true")}),
		ev: event.Event{ClientID: true, ID: "1", Source: "/s", Type: "t", Subject: "own", Time: "2026-01-01T00:00:00Z", DataSchema: "urn:d", PartitionKey: "k", TraceParent: "tp", DataContentType: "application/json", Data: []byte(`{}`),
			Extensions: []event.Attribute{ext("site", "x"), ext("mqtttopic", "s/a/b")}},
		out: properties{ContentType: "application/json", User: users("specversion", "1.0", "id", "1", "source", "/s", "type", "t", "subject", "own", "datacontenttype", "application/json", "dataschema", "urn:d", "partitionkey", "k", "traceparent", "tp", "time", "2026-01-01T00:00:00Z", "site", "x", "mqtttopic", "s/a/b")}},
	{in: publish(5, "ce/a", `[1]`, properties{User: users("specversion", "1.0", "id", "1", "source", "/s", "type", "t")}), // binary, though the mapping says cloudevents
		ev:  event.Event{ClientID: true, ID: "1", Source: "/s", Type: "t", Data: []byte(`[1]`), Extensions: []event.Attribute{ext("mqtttopic", "ce/a")}},
		out: properties{User: users("specversion", "1.0", "id", "1", "source", "/s", "type", "t", "mqtttopic", "ce/a")}},
	{row: "other User Property", in: publish(5, "bare/a", "x", properties{User: users("b", "2", "a", "1", "b", "3", "Not One", "4", "id", "5", "mqttplain", "6", "mqttfrom", "7", "traceparent", "tp")}),
		ev:  event.Event{TraceParent: "tp", DataContentType: "text/plain", Data: []byte("x"), Extensions: []event.Attribute{ext("b", "2"), ext("a", "1"), ext("mqtttopic", "bare/a"), ext("mqttplain", "untyped")}},
		out: properties{User: users("traceparent", "tp", "b", "2", "a", "1")}},
	{row: "Payload Format Indicator", in: publish(5, "bare/a", "<a/>", properties{ContentType: "application/x-own", PayloadFormat: 1, PayloadFormatFlag: true}),
		ev:  event.Event{DataContentType: "application/x-own", Data: []byte("<a/>"), Extensions: []event.Attribute{ext("mqtttopic", "bare/a"), ext("mqttplain", "typed"), {Name: "mqttpayloadformat", Kind: event.Integer, Value: "1"}}},
		out: properties{ContentType: "application/x-own", PayloadFormat: 1, PayloadFormatFlag: true}},
	{row: "Message Expiry Interval", in: publish(5, "bare/a", "x", properties{MessageExpiryInterval: 60}),
		ev:  event.Event{DataContentType: "text/plain", Data: []byte("x"), Extensions: []event.Attribute{ext("mqtttopic", "bare/a"), ext("mqttplain", "untyped"), {Name: "mqttexpiry", Kind: event.Timestamp, Value: "2026-11-21T12:01:00.000Z"}}},
		out: properties{MessageExpiryInterval: 50}},
	{row: "Response Topic", in: publish(5, "bare/a", "x", properties{ResponseTopic: "r/1"}),
		ev:  event.Event{DataContentType: "text/plain", Data: []byte("x"), Extensions: []event.Attribute{ext("mqtttopic", "bare/a"), ext("mqttplain", "untyped"), ext("mqttresponsetopic", "r/1")}},
		out: properties{ResponseTopic: "r/1"}},
	{row: "Correlation Data", in: publish(5, "bare/a", "x", properties{CorrelationData: []byte{0, 255}}),
		ev:  event.Event{DataContentType: "text/plain", Data: []byte("x"), Extensions: []event.Attribute{ext("mqtttopic", "bare/a"), ext("mqttplain", "untyped"), {Name: "mqttcorrelation", Kind: event.Bytes, Value: "AP8="}}},
		out: properties{CorrelationData: []byte{0, 255}}},
}

func TestBindingTable(t *testing.T) {
	n := namesOf(t, bindingNames)
	docs, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "mqtt.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range bindingTable {
		if c.row != "" && !bytes.Contains(docs, []byte("\n| "+c.row+" |")) {
			t.Errorf("docs/mqtt.md has no row %q in its mapping table", c.row)
		}
		var in intake
		var ev event.Event
		_, err := in.take(&ev, &c.in, n, event.Limits{}, testTime)
		if err != nil {
			t.Errorf("%s %s: %v", c.row, c.in.TopicName, err)
			continue
		}
		c.ev.Extensions = slices.Clip(c.ev.Extensions)
		if len(ev.Data) == 0 && len(c.ev.Data) == 0 {
			ev.Data, c.ev.Data = nil, nil
		}
		if !reflect.DeepEqual(ev, c.ev) {
			t.Errorf("%s %s:\ngot  %+v\nwant %+v", c.row, c.in.TopicName, ev, c.ev)
		}
		out := packets.Packet{ProtocolVersion: 5}
		if !give(&out, record(ev), c.in.TopicName, false, testTime.Add(10*time.Second)) {
			t.Errorf("%s: has ended", c.row)
		}
		want := c.doc
		if want == "" {
			want = string(c.in.Payload)
		}
		if out.Properties.User == nil && c.out.User == nil || len(out.Properties.User) == 0 && len(c.out.User) == 0 {
			out.Properties.User, c.out.User = nil, nil
		}
		if string(out.Payload) != want || out.TopicName != c.in.TopicName || !reflect.DeepEqual(out.Properties, c.out) {
			t.Errorf("%s: goes out as %q\n%+v\nwant %q\n%+v", c.row, out.Payload, out.Properties, want, c.out)
		}
		old := packets.Packet{ProtocolVersion: 4}
		if give(&old, record(ev), c.in.TopicName, false, testTime); string(old.Payload) != want || !reflect.DeepEqual(old.Properties, properties{}) {
			t.Errorf("%s: goes out to 3.1.1 as %q %+v", c.row, old.Payload, old.Properties)
		}
	}
	rows, from := 0, strings.Index(string(docs), "## Mapping table")
	table, _, _ := strings.Cut(string(docs)[from+5:], "\n## ")
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| In the message") {
			rows++
		}
	}
	walked := 0
	for _, c := range bindingTable {
		if c.row != "" {
			walked++
		}
	}
	if rows != walked {
		t.Errorf("docs/mqtt.md has %d rows in its mapping table, and %d are walked", rows, walked)
	}
}

// What came otherwise than by MQTT is a CloudEvent in binary mode, and in JSON for 3.1.1 where the source says so.
func TestGiveCloudEvent(t *testing.T) {
	rec := record(event.Event{ID: "1", Source: "/s", Type: "t", DataContentType: "application/json", Data: []byte(`{"a":1}`), Topic: "readings",
		Extensions: []event.Attribute{{Name: "n", Kind: event.Integer, Value: "7"}, ext("bad", "a\x00b")}})
	pk := packets.Packet{ProtocolVersion: 5}
	if !give(&pk, rec, "a/b", false, testTime) || string(pk.Payload) != `{"a":1}` || pk.Properties.ContentType != "application/json" ||
		!slices.Equal(pk.Properties.User, users("specversion", "1.0", "id", "1", "source", "/s", "type", "t", "datacontenttype", "application/json", "n", "7")) {
		t.Errorf("%q %+v", pk.Payload, pk.Properties)
	}
	pk = packets.Packet{ProtocolVersion: 4}
	if !give(&pk, rec, "a/b", false, testTime) || string(pk.Payload) != `{"a":1}` {
		t.Errorf("%q", pk.Payload)
	}
	if !give(&pk, rec, "a/b", true, testTime) || !bytes.HasPrefix(pk.Payload, []byte(`{"specversion":"1.0","id":"1"`)) || !bytes.HasSuffix(pk.Payload, []byte(`"data":{"a":1}}`)) {
		t.Errorf("%q", pk.Payload)
	}
	plain := record(event.Event{ID: "1", Source: "/s", Type: "t", Data: []byte(`1`), Extensions: []event.Attribute{ext("mqttplain", "untyped"), ext("mqtttopic", "a")}})
	pk = packets.Packet{ProtocolVersion: 5}
	if !give(&pk, plain, "a/b", true, testTime) || !slices.Equal(pk.Properties.User, users("specversion", "1.0", "id", "1", "source", "/s", "type", "t", "mqtttopic", "a")) {
		t.Errorf("%+v", pk.Properties)
	}
}

func TestSourceStructured(t *testing.T) {
	sub := mqttSub("alerts", "out", "alerts/{id}")
	sub.Deliver.MQTT.CloudEvents = true
	n := namesOf(t, []event.MQTTMapping{{Filter: "a/+", Topic: "t"}, {Filter: "ce/#", Topic: "t", CloudEvents: true}}, sub)
	for _, s := range n.Sources() {
		switch s.Topic {
		case "t":
			if s.structured("a/1") || !s.structured("ce/1") {
				t.Error("a mapping's own word does not hold")
			}
		default:
			if !s.structured("alerts/1") {
				t.Error("a subscription's own word does not hold")
			}
		}
	}
}

func TestExpiry(t *testing.T) {
	for _, c := range []struct {
		end  string
		left uint32
		sent bool
	}{
		{"2026-11-21T12:00:10Z", 10, true}, {"2026-11-21T12:00:00.001Z", 1, true}, {"2026-11-21T12:00:00Z", 0, false}, {"2026-11-21T11:00:00Z", 0, false},
		{"9999-01-01T00:00:00Z", 1<<32 - 1, true}, {"never", 0, true},
	} {
		pk := packets.Packet{ProtocolVersion: 5}
		sent := give(&pk, record(event.Event{Extensions: []event.Attribute{ext("mqttexpiry", c.end)}}), "a", false, testTime)
		if sent != c.sent || pk.Properties.MessageExpiryInterval != c.left {
			t.Errorf("%s: %d s, sent %v", c.end, pk.Properties.MessageExpiryInterval, sent)
		}
	}
}

func TestTakeRefuses(t *testing.T) {
	n := namesOf(t, bindingNames)
	big := strings.Repeat("x", 70<<10)
	for _, c := range []struct {
		in   packets.Packet
		is   error
		want string
	}{
		{publish(5, "other", "x", properties{}), errUnmapped, `"other" fits no filter`},
		{publish(5, "s/+", "x", properties{}), errName, "wildcard"},
		{publish(5, "", "x", properties{}), errName, "empty"},
		{publish(5, "bare/\x01", "x", properties{}), errName, "U+0001"},
		{publish(5, "bare/"+strings.Repeat("a", 1024), "x", properties{}), errName, "1029 bytes"},
		{publish(5, "bare/a", "{", properties{ContentType: "application/json"}), errPayload, "payload"},
		{publish(5, "bare/a", "\xff", properties{PayloadFormat: 1, PayloadFormatFlag: true}), errPayload, "not UTF-8"},
		{publish(5, "bare/a", "{}", properties{ContentType: "application/cloudevents+avro"}), errPayload, "is not taken"},
		{publish(5, "bare/a", "[]", properties{ContentType: "application/cloudevents-batch+json"}), errPayload, "is not taken"},
		{publish(5, "bare/a", "{}", properties{ContentType: "application/cloudevents+json"}), errPayload, "specversion"},
		{publish(4, "ce/a", "21.5", properties{}), errPayload, "payload"},
		{publish(5, "bare/a", "{}", properties{User: users("specversion", "0.3", "id", "1")}), event.ErrInvalid, "takes 1.0"},
		{publish(5, "bare/a", "{}", properties{User: users("specversion", "1.0", "id", "1", "type", "t")}), event.ErrInvalid, "source: is missing"},
		{publish(5, "bare/a", "{}", properties{User: users("specversion", "1.0", "id", "1", "type", "t", "source", "s", "id", "2")}), event.ErrInvalid, "id: is given twice"},
		{publish(5, "bare/a", "{}", properties{User: users("specversion", "1.0", "id", "1", "type", "t", "source", "s", "x", "1", "x", "2")}), event.ErrInvalid, "x: is given twice"},
		{publish(5, "bare/a", "{}", properties{User: users("specversion", "1.0", "id", "", "type", "t", "source", "s")}), event.ErrInvalid, "id: is empty"},
		{publish(5, "bare/a", "{}", properties{User: users("specversion", "1.0", "id", "1", "type", "t", "source", "s", "time", "noon")}), event.ErrInvalid, "time"},
		{publish(5, "bare/a", "{}", properties{User: users("a", "\x01")}), event.ErrInvalid, "U+0001"},
		{publish(5, "bare/a", "{}", properties{User: users("a", big)}), event.ErrTooLarge, "limit"},
		{publish(5, "bare/a", "{}", properties{ResponseTopic: "a/#"}), event.ErrInvalid, "response topic"},
		{publish(5, "bare/a", "{}", properties{CorrelationData: []byte(big)[:65535]}), event.ErrTooLarge, "mqttcorrelation"},
		{publish(5, "bare/a", strings.Repeat("1", 2<<20), properties{}), event.ErrTooLarge, "limit"},
	} {
		var in intake
		var ev event.Event
		if _, err := in.take(&ev, &c.in, n, event.Limits{}, testTime); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q %.40q: %v; want %v, %q", c.in.TopicName, c.in.Payload, err, c.is, c.want)
		}
	}
}

// The way in that most messages take costs no allocation.
func TestTakeAllocatesNothing(t *testing.T) {
	n := namesOf(t, bindingNames)
	old := publish(4, "s/a/b", `{"celsius":21.5}`, properties{})
	typed := publish(5, "s/a/b", `{"celsius":21.5}`, properties{ContentType: "application/json", User: users("site", "x", "unit", "c")})
	var in intake
	evs := make([]event.Event, 2)
	run := func() {
		in.reset()
		for i, pk := range []*packets.Packet{&old, &typed} {
			if _, err := in.take(&evs[i], pk, n, event.Limits{}, testTime); err != nil {
				t.Fatal(err)
			}
		}
	}
	run()
	if allocs := testing.AllocsPerRun(100, run); allocs != 0 {
		t.Errorf("%v allocations for two messages", allocs)
	}
	if evs[0].PartitionKey != "a/b" || evs[1].PartitionKey != "a/b" {
		t.Errorf("%+v", evs)
	}
}
