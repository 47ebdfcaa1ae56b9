package redpanda

import (
	"context"
	"errors"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abitest"
)

// spied is the convention, with its guests known to the test.
type spied struct {
	ABI
	guests *[]*guest
}

func (s spied) Bind(in *plugins.Instance) (plugins.Guest, error) {
	g, err := s.ABI.Bind(in)
	if err == nil {
		*s.guests = append(*s.guests, g.(*guest))
	}
	return g, err
}

// A transform waits in the middle of a host function, and must not be left there: its coroutine would stay for ever.
func TestNothingIsLeft(t *testing.T) {
	ctx := context.Background()
	var guests []*guest
	h, err := plugins.NewHost(ctx, plugins.Options{ABIs: []plugins.ABI{spied{guests: &guests}}})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := h.Put(ctx, abitest.CCommand(t, "testdata/transform.c"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := h.Open(ctx, event.Function{Name: "f", Digest: digest})
	if err != nil {
		t.Fatal(err)
	}
	if guests[0].err != nil {
		t.Fatal("ended before its time:", guests[0].err)
	}
	c := &plugins.Call{}
	for _, d := range []string{"1", "t", "s", "2"} {
		e := event.Event{ID: "1", Source: "/t", Type: "t", Data: []byte(d)}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: uint64(len(c.Events))}, 1e9)
		c.Events = append(c.Events, r)
	}
	if err := f.Call(ctx, c, &plugins.Outcome{}); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(ctx); err != nil {
		t.Fatal(err)
	}
	stopped := 0
	for i, g := range guests {
		if g.err == nil {
			t.Errorf("transform %d of %d still waits", i, len(guests))
		}
		if errors.Is(g.err, errStopped) {
			stopped++
		}
	}
	if len(guests) < 3 || stopped == 0 {
		t.Errorf("%d of %d were stopped", stopped, len(guests))
	}
}

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
