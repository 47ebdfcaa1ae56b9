package client

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

type (
	// Event is a CloudEvent in its protobuf format. One without a SpecVersion need not be complete: the router fills in
	// what is missing.
	Event = pb.CloudEvent
	// Received is an event as it is read, with where it lies and the cursor behind it.
	Received = millracev1.Received
	// Delivery is an event that is leased to a consumer.
	Delivery = millracev1.Delivery
)

// JSON makes an event of a type whose data is v as JSON. The router fills in id, source and time.
func JSON(typ string, v any) (*Event, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("data of an event %q: %w", typ, err)
	}
	e := &Event{Type: typ, Data: &pb.CloudEvent_TextData{TextData: string(data)}}
	Set(e, "datacontenttype", "application/json")
	return e, nil
}

// Bytes makes an event of a type whose data is of a media type.
func Bytes(typ, contentType string, data []byte) *Event {
	e := &Event{Type: typ, Data: &pb.CloudEvent_BinaryData{BinaryData: data}}
	if contentType != "" {
		Set(e, "datacontenttype", contentType)
	}
	return e
}

// Set sets an attribute that is a string, such as subject, datacontenttype, partitionkey (events of one key keep their
// order) or an extension.
func Set(e *Event, name, value string) {
	if e.Attributes == nil {
		e.Attributes = map[string]*pb.CloudEventAttributeValue{}
	}
	e.Attributes[name] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: value}}
}

// Get returns an attribute as text, whatever its type; "" if there is none.
func Get(e *Event, name string) string {
	switch v := e.GetAttributes()[name].GetAttr().(type) {
	case *pb.CloudEventAttributeValue_CeString:
		return v.CeString
	case *pb.CloudEventAttributeValue_CeUri:
		return v.CeUri
	case *pb.CloudEventAttributeValue_CeUriRef:
		return v.CeUriRef
	case *pb.CloudEventAttributeValue_CeBoolean:
		return fmt.Sprint(v.CeBoolean)
	case *pb.CloudEventAttributeValue_CeInteger:
		return fmt.Sprint(v.CeInteger)
	case *pb.CloudEventAttributeValue_CeBytes:
		return string(v.CeBytes)
	case *pb.CloudEventAttributeValue_CeTimestamp:
		return v.CeTimestamp.AsTime().Format(time.RFC3339Nano)
	}
	return ""
}

// Data returns an event's data, nil if it has none. It is not to be changed.
func Data(e *Event) []byte {
	switch d := e.GetData().(type) {
	case *pb.CloudEvent_BinaryData:
		return d.BinaryData
	case *pb.CloudEvent_TextData:
		return []byte(d.TextData)
	case *pb.CloudEvent_ProtoData:
		return d.ProtoData.GetValue()
	}
	return nil
}

// named returns events that all have ids. The caller's stay as they are: he may send the same one twice and mean two.
func named(events []*Event) []*Event {
	for i, e := range events {
		if e.GetId() != "" {
			continue
		}
		all := append([]*Event(nil), events...)
		for j := i; j < len(all); j++ {
			if e := all[j]; e.GetId() == "" {
				all[j] = &Event{Id: rand.Text(), Source: e.GetSource(), SpecVersion: e.GetSpecVersion(), Type: e.GetType(), Attributes: e.GetAttributes(), Data: e.GetData()}
			}
		}
		return all
	}
	return events
}

// Earliest begins with the earliest event that is kept.
func Earliest() *millracev1.Start { return point(millracev1.StartPoint_START_POINT_EARLIEST) }

// Latest begins with what is published from now on.
func Latest() *millracev1.Start { return point(millracev1.StartPoint_START_POINT_LATEST) }

func point(p millracev1.StartPoint) *millracev1.Start {
	return &millracev1.Start{Start: &millracev1.Start_Point{Point: p}}
}

// After begins behind a cursor.
func After(cursor string) *millracev1.Start {
	return &millracev1.Start{Start: &millracev1.Start_After{After: cursor}}
}

// Since begins with the first event that the router took at t or later.
func Since(t time.Time) *millracev1.Start {
	return &millracev1.Start{Start: &millracev1.Start_Since{Since: timestamppb.New(t)}}
}

// Ago is Since, so long before now by the router's clock.
func Ago(d time.Duration) *millracev1.Start {
	return &millracev1.Start{Start: &millracev1.Start_Ago{Ago: durationpb.New(d)}}
}

// Ack settles leases for good.
func Ack(leases ...string) *millracev1.Settling {
	return &millracev1.Settling{Leases: leases, Verb: &millracev1.Settling_Ack{Ack: &millracev1.Ack{}}}
}

// Nack gives leases back; their deliveries are due again after delay, 0 to 24 h.
func Nack(delay time.Duration, leases ...string) *millracev1.Settling {
	return &millracev1.Settling{Leases: leases, Verb: &millracev1.Settling_Nack{Nack: &millracev1.Nack{Delay: durationpb.New(delay)}}}
}

// Extend moves the deadline of leases to 10 s to 600 s from now.
func Extend(deadline time.Duration, leases ...string) *millracev1.Settling {
	return &millracev1.Settling{Leases: leases, Verb: &millracev1.Settling_Extend{Extend: &millracev1.Extend{Deadline: durationpb.New(deadline)}}}
}
