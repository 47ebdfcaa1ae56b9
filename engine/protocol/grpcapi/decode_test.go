package grpcapi

import (
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// encodedRequest is a request as protobuf encodes it, twice the same.
func encodedRequest(t testing.TB, topic string, evs ...*pb.CloudEvent) []byte {
	t.Helper()
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(&millracev1.PublishStreamRequest{Topic: topic, Events: evs})
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// asMessages is what protobuf's own decoder makes of a request.
func asMessages(wire []byte, l event.Limits) (topic string, evs []event.Event, err error) {
	in := &millracev1.PublishStreamRequest{}
	if err = proto.Unmarshal(wire, in); err == nil {
		topic = in.GetTopic()
		evs, err = eventsOf(in.GetEvents(), l)
	}
	return topic, evs, err
}

func compare(t *testing.T, b *batch, wire []byte, l event.Limits) (decoded bool) {
	t.Helper()
	if !b.decode(wire, l) {
		return false
	}
	topic, evs, err := asMessages(wire, l)
	if err != nil {
		t.Fatalf("%x is read, and is refused: %v", wire, err)
	}
	for i := range evs {
		if len(evs[i].Extensions) == 0 {
			evs[i].Extensions = nil
		}
	}
	if topic != b.topic || !reflect.DeepEqual(evs, b.events) {
		t.Fatalf("%x is read as\n%q %+v\nand is\n%q %+v", wire, b.topic, b.events, topic, evs)
	}
	return true
}

// attribute is an entry of a CloudEvent's attributes.
func attribute(name string, v *pb.CloudEventAttributeValue) *pb.CloudEvent {
	return &pb.CloudEvent{Attributes: map[string]*pb.CloudEventAttributeValue{name: v}}
}

// TestRequestsAreReadAsTheyAre: what encoders write is read without messages, and as messages would be; what else protobuf
// allows, and what is wrong, is left to it.
func TestRequestsAreReadAsTheyAre(t *testing.T) {
	l := event.Limits{Attrs: 16, Events: 20}.WithDefaults()
	text := &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: "s"}}
	many := &pb.CloudEvent{Attributes: map[string]*pb.CloudEventAttributeValue{}}
	for i := range 17 {
		many.Attributes[strings.Repeat("a", i+1)] = text
	}
	plain := encodedRequest(t, "orders", &pb.CloudEvent{Id: "1"})
	of := func(field protowire.Number, of []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), of)
	}
	entry := func(name string, value []byte) []byte { return of(5, append(of(1, []byte(name)), of(2, value)...)) }
	var b batch // the same for all, as requests are
	for name, x := range map[string]struct {
		wire []byte
		read bool
	}{
		"an event of every attribute":      {encodedRequest(t, "orders", whole(), &pb.CloudEvent{Type: "t"}, whole()), true},
		"no topic":                         {encodedRequest(t, "", whole()), true},
		"an event of nothing":              {encodedRequest(t, "orders", &pb.CloudEvent{}), true},
		"text":                             {encodedRequest(t, "orders", &pb.CloudEvent{Data: &pb.CloudEvent_TextData{TextData: "ü"}}), true},
		"no text":                          {encodedRequest(t, "orders", &pb.CloudEvent{Data: &pb.CloudEvent_TextData{}}), true},
		"no bytes":                         {encodedRequest(t, "orders", &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{}}), true},
		"bytes":                            {encodedRequest(t, "orders", &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: []byte{0, 255}}}), true},
		"data twice":                       {of(2, append(of(6, []byte("{}")), of(7, []byte("x"))...)), true},
		"an id twice":                      {of(2, append(of(1, []byte("1")), of(1, []byte("2"))...)), true},
		"a topic twice":                    {append(plain, of(1, []byte("other"))...), true},
		"a negative number":                {encodedRequest(t, "orders", attribute("n", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -5}})), true},
		"a number of more than 32 bits":    {of(2, entry("n", protowire.AppendVarint([]byte{2 << 3}, 1<<40+5))), true},
		"attributes in another order":      {of(2, append(entry("b", of(3, []byte("x"))), entry("a", of(3, []byte("y")))...)), true},
		"a time":                           {encodedRequest(t, "orders", attribute("time", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: &timestamppb.Timestamp{Seconds: -5, Nanos: 7}}})), true},
		"no events":                        {encodedRequest(t, "orders"), false},
		"too many events":                  {encodedRequest(t, "orders", make([]*pb.CloudEvent, 21)...), false},
		"too many attributes":              {encodedRequest(t, "orders", many), false},
		"a message as data":                {encodedRequest(t, "orders", &pb.CloudEvent{Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "t/x"}}}), false},
		"another version":                  {encodedRequest(t, "orders", &pb.CloudEvent{SpecVersion: "2"}), false},
		"a version, and not all":           {encodedRequest(t, "orders", &pb.CloudEvent{SpecVersion: "1.0", Id: "1"}), false},
		"an attribute of nothing":          {encodedRequest(t, "orders", attribute("a", &pb.CloudEventAttributeValue{})), false},
		"a time of no year":                {encodedRequest(t, "orders", attribute("time", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: &timestamppb.Timestamp{Seconds: 1 << 60}}})), false},
		"a field among attributes":         {encodedRequest(t, "orders", attribute("id", text)), false},
		"JSON that is none":                {encodedRequest(t, "orders", &pb.CloudEvent{Attributes: attribute("datacontenttype", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: "application/json"}}).Attributes, Data: &pb.CloudEvent_TextData{TextData: "{"}}), false},
		"an attribute twice":               {of(2, append(entry("a", of(3, []byte("x"))), entry("a", of(3, []byte("y")))...)), false},
		"an attribute's value first":       {of(2, of(5, append(of(2, of(3, []byte("x"))), of(1, []byte("a"))...))), false},
		"an attribute of two values":       {of(2, entry("a", append(of(3, []byte("x")), of(5, []byte("y"))...))), false},
		"a field of another version":       {append(plain, of(9, []byte("x"))...), false},
		"a topic that is a number":         {append(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7), plain...), false},
		"a topic that is no text":          {append(plain, of(1, []byte{255})...), false},
		"text that is none":                {of(2, of(7, []byte{255})), false},
		"a length past the end":            {plain[:len(plain)-1], false},
		"a length of 2^64":                 {append(plain, 1<<3|2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1), false},
		"a number without end":             {append(plain, 1<<3|2, 255), false},
		"a tag alone":                      {append(plain, 1<<3|2), false},
		"a group":                          {append(plain, 1<<3|3, 1<<3|4), false},
		"nothing":                          {nil, false},
		"an event that is no CloudEvent":   {of(2, []byte("nonsense")), false},
		"an attribute that is no entry":    {of(2, of(5, []byte("nonsense"))), false},
		"an attribute that is empty":       {of(2, of(5, nil)), false},
		"an attribute of a name alone":     {of(2, of(5, of(1, []byte("a")))), false},
		"an attribute, and a field behind": {of(2, of(5, append(append(of(1, []byte("a")), of(2, of(3, []byte("x")))...), of(3, nil)...))), false},
	} {
		if is := compare(t, &b, x.wire, l); is != x.read {
			t.Errorf("%s: read without messages %v; want %v", name, is, x.read)
		}
	}
}

// TestReadingTakesNoMemory: of a request like one before.
func TestReadingTakesNoMemory(t *testing.T) {
	var b batch
	evs := make([]*pb.CloudEvent, 100)
	for i := range evs {
		evs[i] = &pb.CloudEvent{Id: "1", Source: "s", Type: "t", SpecVersion: "1.0", Data: &pb.CloudEvent_BinaryData{BinaryData: []byte(`{"a":1}`)},
			Attributes: map[string]*pb.CloudEventAttributeValue{"subject": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "x"}}, "b": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "x"}}, "a": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "y"}}}}
	}
	wire := encodedRequest(t, "orders", evs...)
	l := event.Limits{}.WithDefaults()
	if n := testing.AllocsPerRun(10, func() { b.decode(wire, l) }); n != 0 || len(b.events) != 100 || len(b.events[99].Extensions) != 2 {
		t.Errorf("%v allocations for %d events, the last %+v", n, len(b.events), b.events[99])
	}
	_ = append(b.events[0].Extensions, event.Attribute{Name: "another"})
	if name := b.events[1].Extensions[0].Name; name != "a" {
		t.Errorf("an attribute that one event got is the next one's %s", name)
	}
}

// TestRequestsHoldWhatTheyNeed: a small request does not hold what it was read into, and a large one no more than twice itself.
func TestRequestsHoldWhatTheyNeed(t *testing.T) {
	c := &codec{limits: event.Limits{}.WithDefaults()}
	for _, n := range []int{10, largeMessage - 100, largeMessage + 100, 100_000, 1 << 20, 3 << 20} {
		for range 2 { // the second may have the memory of the first
			wire := encodedRequest(t, "orders", &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: make([]byte, n)}})
			read := append(make([]byte, 0, len(wire)+16<<10), wire...)
			half := len(read) / 2
			var x taken
			if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(read[:half]), mem.SliceBuffer(read[half:])}, &x); err != nil || x.size != len(wire) || len(x.events) != 1 {
				t.Fatal(err, x.size, x.events)
			}
			held := cap(x.wire.ReadOnlyData())
			if clear(read); x.topic != "orders" || held >= 2*len(wire) || n <= largeMessage && held > len(wire)+len(wire)/4+64 {
				t.Errorf("of %d bytes %d are held, for %q", len(wire), held, x.topic)
			}
			x.free()
		}
	}
}

// FuzzRequest: what is read without messages is what protobuf's own decoder reads.
func FuzzRequest(f *testing.F) {
	for _, wire := range [][]byte{
		encodedRequest(f, "orders", whole(), &pb.CloudEvent{Type: "t"}),
		encodedRequest(f, "", &pb.CloudEvent{Data: &pb.CloudEvent_TextData{TextData: "x"}}, whole()),
		encodedRequest(f, "orders"),
		encodedRequest(f, "orders", &pb.CloudEvent{}, attribute("a", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: &timestamppb.Timestamp{Seconds: -5, Nanos: 7}}})),
		{2<<3 | 2, 4, 6<<3 | 2, 0, 7<<3 | 2, 0},
	} {
		f.Add(wire)
	}
	l := event.Limits{Attrs: 16, Events: 20}.WithDefaults()
	f.Fuzz(func(t *testing.T, wire []byte) {
		var b batch
		compare(t, &b, wire, l)
		compare(t, &b, wire, l) // into what held it
	})
}
