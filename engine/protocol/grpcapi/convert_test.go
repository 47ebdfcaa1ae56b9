package grpcapi

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	format "github.com/cloudevents/sdk-go/binding/format/protobuf/v2"
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	sdk "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/engine/event"
)

func str(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
}

// whole is an event with everything that an event can have.
func whole() *pb.CloudEvent {
	return &pb.CloudEvent{Id: "1", Source: "/s", SpecVersion: "1.0", Type: "t", Data: &pb.CloudEvent_BinaryData{BinaryData: []byte(`{"a":1}`)},
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"subject": str("ü"), "datacontenttype": str("application/json; charset=utf-8"), "partitionkey": str("k"), "traceparent": str("00-1-2-03"),
			"dataschema": {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "https://example.com/s"}},
			"time":       {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.UTC))}},
			"b1":         {Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}},
			"b0":         {Attr: &pb.CloudEventAttributeValue_CeBoolean{}},
			"i":          {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -1 << 31}},
			"s":          str("text"), "empty": str(""),
			"bytes": {Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0, 1, 255}}},
			"u":     {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "urn:x"}},
			"r":     {Attr: &pb.CloudEventAttributeValue_CeUriRef{CeUriRef: "../x"}},
			"at":    {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC))}},
		}}
}

// stored is what is read of an event that was published.
func stored(t testing.TB, in *pb.CloudEvent) (event.Event, *pb.CloudEvent) {
	t.Helper()
	var e event.Event
	if err := setEvent(&e, in, event.Limits{}.WithDefaults()); err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(event.Limits{}); err != nil {
		t.Fatal(err)
	}
	return e, protoOf(event.Record(e.AppendRecord(nil)))
}

func TestEventsLoseNothing(t *testing.T) {
	e, out := stored(t, whole())
	if !proto.Equal(out, whole()) {
		t.Errorf("published\n%v\nread\n%v", whole(), out)
	}
	if e.PartitionKey != "k" || e.Time != "2026-01-02T03:04:05.123456789Z" || !e.ClientID || e.Binary {
		t.Errorf("%+v", e)
	}
	// The order of a map is no part of an event: one that is sent again is the same.
	for range 20 {
		if again, _ := stored(t, whole()); !reflect.DeepEqual(again, e) {
			t.Fatalf("%+v\n%+v", again, e)
		}
	}
	for name, in := range map[string]*pb.CloudEvent{
		"text":       {Data: &pb.CloudEvent_TextData{TextData: "hällo"}, Attributes: map[string]*pb.CloudEventAttributeValue{"datacontenttype": str("text/plain")}},
		"empty text": {Data: &pb.CloudEvent_TextData{}, Attributes: map[string]*pb.CloudEventAttributeValue{"datacontenttype": str("text/plain")}},
		"bytes":      {Data: &pb.CloudEvent_BinaryData{BinaryData: []byte{255, 0}}, Attributes: map[string]*pb.CloudEventAttributeValue{"datacontenttype": str("image/png")}},
		"untyped":    {Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("\xff")}},
		"csv":        {Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("a,b")}, Attributes: map[string]*pb.CloudEventAttributeValue{"datacontenttype": str("text/csv")}},
		"no data":    {},
		"message": {Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "type.googleapis.com/x.Y", Value: []byte{8, 1}}},
			Attributes: map[string]*pb.CloudEventAttributeValue{"datacontenttype": str(protobufType), "dataschema": {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "type.googleapis.com/x.Y"}}}},
	} {
		in.Id, in.Source, in.Type, in.SpecVersion = "1", "/s", "t", "1.0"
		if _, out := stored(t, in); !proto.Equal(out, in) {
			t.Errorf("%s: published\n%v\nread\n%v", name, in, out)
		}
	}
}

// TestDataIsWhatItsTypeSays: data in whichever field is shown by other faces as what it is.
func TestDataIsWhatItsTypeSays(t *testing.T) {
	for name, x := range map[string]struct {
		in   *pb.CloudEvent
		typ  string
		want string
	}{
		"JSON in bytes":      {&pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: []byte(`{"a":1}`)}}, "application/json", `"data":{"a":1}`},
		"JSON in text":       {&pb.CloudEvent{Data: &pb.CloudEvent_TextData{TextData: `[1]`}}, "application/vnd.x+json", `"data":[1]`},
		"JSON unsaid":        {&pb.CloudEvent{Data: &pb.CloudEvent_TextData{TextData: `7`}}, "", `"data":7`},
		"text unsaid":        {&pb.CloudEvent{Data: &pb.CloudEvent_TextData{TextData: `seven`}}, "", `"datacontenttype":"text/plain","data":"seven"`},
		"text in bytes":      {&pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: []byte(`a,b`)}}, "text/csv", `"data":"a,b"`},
		"bytes":              {&pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("\xff")}}, "text/plain", `"data_base64":"/w=="`},
		"an SDK's none":      {&pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{}}, "application/json", `"datacontenttype":"application/json"}`},
		"a message, unnamed": {&pb.CloudEvent{Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "t/x.Y", Value: []byte{1}}}}, "", `"datacontenttype":"application/protobuf","dataschema":"t/x.Y","data_base64":"AQ=="`},
	} {
		x.in.Id, x.in.Source, x.in.Type, x.in.SpecVersion = "1", "/s", "t", "1.0"
		if x.typ != "" {
			x.in.Attributes = map[string]*pb.CloudEventAttributeValue{"datacontenttype": str(x.typ)}
		}
		e, _ := stored(t, x.in)
		if doc := string(event.Record(e.AppendRecord(nil)).AppendStructured(nil)); !strings.Contains(doc, x.want) {
			t.Errorf("%s: %s; want %s", name, doc, x.want)
		}
	}
}

// TestSDKReadsAndWrites: what the CloudEvents SDK encodes is read, and what is sent the SDK decodes to the same.
func TestSDKReadsAndWrites(t *testing.T) {
	for name, data := range map[string]struct {
		typ  string
		data []byte
	}{"json": {"application/json", []byte(`{"a":[1,2]}`)}, "text": {"text/plain", []byte("hällo")}, "csv": {"text/csv", []byte("a,b")}, "bytes": {"application/octet-stream", []byte{0, 255}},
		"xml": {"application/xml", []byte("<a/>")}, "message": {"application/protobuf", []byte{8, 1}}} {
		sent := sdk.New()
		sent.SetID("1")
		sent.SetSource("/s?x=1")
		sent.SetType("t")
		sent.SetSubject("sub")
		sent.SetTime(time.Date(2026, 5, 6, 7, 8, 9, 10, time.UTC))
		sent.SetDataSchema("https://example.com/schema")
		sent.SetExtension("flag", true)
		sent.SetExtension("n", int32(-7))
		sent.SetExtension("raw", []byte{1, 2, 255})
		sent.SetExtension("when", types.Timestamp{Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)})
		sent.SetExtension("partitionkey", "k")
		sent.SetDataContentType(data.typ)
		sent.DataEncoded = data.data
		wire, err := format.Protobuf.Marshal(&sent)
		if err != nil {
			t.Fatal(err)
		}
		var in pb.CloudEvent
		if err := proto.Unmarshal(wire, &in); err != nil {
			t.Fatal(err)
		}
		_, out := stored(t, &in)
		if wire, err = proto.Marshal(out); err != nil {
			t.Fatal(err)
		}
		var got sdk.Event
		if err := format.Protobuf.Unmarshal(wire, &got); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got.Context, sent.Context) || string(got.Data()) != string(sent.Data()) {
			t.Errorf("%s: sent\n%v\ngot\n%v", name, sent, got)
		}
	}
}

func TestBadEventsAreNamed(t *testing.T) {
	for at, break_ := range map[string]func(*pb.CloudEvent){
		"spec_version":    func(e *pb.CloudEvent) { e.SpecVersion = "0.3" },
		"id":              func(e *pb.CloudEvent) { e.Id = "" },
		"source":          func(e *pb.CloudEvent) { e.Source = "" },
		"type":            func(e *pb.CloudEvent) { e.Type = "" },
		"subject":         func(e *pb.CloudEvent) { e.Attributes["subject"] = str("") },
		"time":            func(e *pb.CloudEvent) { e.Attributes["time"] = str("yesterday") },
		"datacontenttype": func(e *pb.CloudEvent) { e.Attributes["datacontenttype"] = e.Attributes["i"] },
		"dataschema":      func(e *pb.CloudEvent) { e.Attributes["dataschema"] = e.Attributes["b1"] },
		"i": func(e *pb.CloudEvent) {
			e.Attributes["i"] = &pb.CloudEventAttributeValue{}
		},
		"s":           func(e *pb.CloudEvent) { e.Attributes["s"] = nil },
		"at":          func(e *pb.CloudEvent) { e.Attributes["at"].GetCeTimestamp().Seconds = 1 << 60 },
		"specversion": func(e *pb.CloudEvent) { e.Attributes["specversion"] = str("1.0") },
		"Upper":       func(e *pb.CloudEvent) { e.Attributes["Upper"] = str("x") },
		"r":           func(e *pb.CloudEvent) { e.Attributes["r"] = str("a\x00b") },
		"binary_data": func(e *pb.CloudEvent) { e.Data = &pb.CloudEvent_BinaryData{BinaryData: []byte("{")} },
		"text_data":   func(e *pb.CloudEvent) { e.Data = &pb.CloudEvent_TextData{TextData: "{"} },
		"proto_data":  func(e *pb.CloudEvent) { e.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{}} },
		"dataschema ": func(e *pb.CloudEvent) { e.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "t/o"}} },
		"data_base64": func(e *pb.CloudEvent) { e.Attributes["data_base64"] = str("x") },
		"datacontenttype ": func(e *pb.CloudEvent) {
			delete(e.Attributes, "dataschema")
			e.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "t/o"}}
		},
	} {
		in := whole()
		break_(in)
		var e event.Event
		err := setEvent(&e, in, event.Limits{}.WithDefaults())
		if err == nil {
			err = e.Validate(event.Limits{})
		}
		var f *event.Faults
		if !errors.As(err, &f) || !errors.Is(err, event.ErrInvalid) || !strings.HasPrefix(f.List[0].At, strings.TrimSpace(at)) {
			t.Errorf("%s: %v", at, err)
		}
	}
	in := whole()
	for i := range 200 {
		in.Attributes["x"+strings.Repeat("a", i)] = str("x")
	}
	if err := setEvent(new(event.Event), in, event.Limits{}.WithDefaults()); !errors.Is(err, event.ErrTooLarge) {
		t.Error(err)
	}
}

// TestUnsaidIsLeftToTheRouter: an event without spec_version may leave out what the router fills in.
func TestUnsaidIsLeftToTheRouter(t *testing.T) {
	var e event.Event
	if err := setEvent(&e, &pb.CloudEvent{Type: "t"}, event.Limits{}.WithDefaults()); err != nil || e.ClientID || e.Type != "t" {
		t.Fatal(err, e)
	}
	if err := setEvent(&e, nil, event.Limits{}.WithDefaults()); err == nil {
		t.Fatal("no event is an event")
	}
}

// FuzzEvent: no message takes the conversion down, and one that is taken is read as it was.
func FuzzEvent(f *testing.F) {
	for _, e := range []*pb.CloudEvent{whole(), {}, {Data: &pb.CloudEvent_TextData{TextData: "x"}}, {Id: "1", Source: "s", Type: "t", SpecVersion: "1.0", Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "t/x"}}}} {
		wire, err := proto.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var in pb.CloudEvent
		if proto.Unmarshal(wire, &in) != nil {
			return
		}
		var e, again event.Event
		l := event.Limits{}.WithDefaults()
		if setEvent(&e, &in, l) != nil || e.Validate(l) != nil {
			return
		}
		out := protoOf(event.Record(e.AppendRecord(nil)))
		if _, err := proto.Marshal(out); err != nil {
			t.Fatalf("%+v cannot be sent: %v", e, err)
		}
		if err := setEvent(&again, out, l); err != nil {
			t.Fatalf("%+v was sent as %v, which is refused: %v", e, out, err)
		}
		// A time is an instant: what else differs was lost.
		again.Time = e.Time
		for i := range again.Extensions {
			if a := &again.Extensions[i]; i < len(e.Extensions) && a.Kind == event.Timestamp {
				a.Value = e.Extensions[i].Value
			}
		}
		for _, x := range []*event.Event{&e, &again} {
			x.Binary = false // data of no type that is text may come back as bytes
			x.Extensions = append([]event.Attribute{}, x.Extensions...)
			if len(x.Data) == 0 {
				x.Data = nil
			}
		}
		if !reflect.DeepEqual(e, again) {
			t.Fatalf("was\n%+v\nand is\n%+v", e, again)
		}
	})
}
