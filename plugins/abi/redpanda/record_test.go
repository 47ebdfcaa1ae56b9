package redpanda

import (
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// FuzzRecord cuts whatever a transform may write, and finds in the payload of an event what the event has.
func FuzzRecord(f *testing.F) {
	e := event.Event{ID: "1", Source: "/s", Type: "t", PartitionKey: "k", DataContentType: "text/plain", Data: []byte("d")}
	f.Add(appendPayload(nil, event.Record(e.AppendRecord(nil))), "k", []byte("d"))
	f.Add([]byte{1, 1, 0}, "", []byte(nil))
	f.Add([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01}, "x", []byte{})
	f.Fuzz(func(t *testing.T, raw []byte, key string, data []byte) {
		c := cutter{b: raw}
		for len(c.b) > 0 && !c.bad {
			before := len(c.b)
			if b, given := c.sized(); len(b) > before || !given && len(b) > 0 || !c.bad && len(c.b) >= before {
				t.Fatalf("%d bytes of %d", len(b), before)
			}
		}
		e := event.Event{ID: "1", Source: "/s", Type: "t", PartitionKey: key, Data: data, Extensions: []event.Attribute{{Name: "x", Value: "y"}}}
		r := event.Record(e.AppendRecord(nil))
		p := cutter{b: appendPayload(nil, r)}
		k, hasKey := p.sized()
		v, hasValue := p.sized()
		if string(k) != key || hasKey != (key != "") || string(v) != string(data) || hasValue != (r.Data() != nil) {
			t.Fatalf("%q %v %q %v", k, hasKey, v, hasValue)
		}
		found := map[string]string{}
		for n := p.varint(); n > 0; n-- {
			name, _ := p.sized()
			value, _ := p.sized()
			found[attributeOf(string(name))] = string(value)
		}
		if p.bad || len(p.b) > 0 || found["id"] != "1" || found["type"] != "t" || found["x"] != "y" || found["partitionkey"] != key {
			t.Fatalf("%q: %v", p.b, found)
		}
	})
}
