package grpcapi

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/engine/event"
)

// This file turns events of the CloudEvents protobuf format (1.0.2) into the router's and back.

// protobufType is the media type of data that is a protobuf message (protobuf format, 3.1).
const protobufType = "application/protobuf"

// setEvent fills e from in, reusing e.Extensions. E borrows in. One that says its spec_version must be complete; what
// another leaves out the router fills in. That values are what attributes may hold is left to Validate, which the router
// asks whatever came. Errors are Faults, each at its attribute.
func setEvent(e *event.Event, in *pb.CloudEvent, l event.Limits) error {
	*e = event.Event{Extensions: e.Extensions[:0]}
	if in == nil {
		return event.Invalid("", "is missing; send a CloudEvent")
	}
	declared := in.GetSpecVersion() != ""
	if v := in.GetSpecVersion(); declared && v != "1.0" {
		return event.Invalid("spec_version", fmt.Sprintf(`is %.60q; this router takes "1.0"`, v))
	}
	if n := len(in.GetAttributes()); n > l.Attrs {
		return event.Bad(event.ErrTooLarge, "attributes", fmt.Sprintf("has %d entries; the limit is %d attributes an event", n, l.Attrs))
	}
	e.ID, e.Source, e.Type = in.GetId(), in.GetSource(), in.GetType()
	for name, v := range in.GetAttributes() {
		kind, value, err := valueOf(v)
		if err != nil {
			return event.Invalid(clip(name), err.Error())
		}
		if err := setAttribute(e, name, kind, value); err != nil {
			return err
		}
	}
	sortExtensions(e)
	if err := setData(e, in); err != nil {
		return err
	}
	if e.ClientID = e.ID != ""; declared && (e.ID == "" || e.Source == "" || e.Type == "") {
		return e.Validate(l)
	}
	return nil
}

// eventsOf are the events of a request, of which there must be some.
func eventsOf(in []*pb.CloudEvent, l event.Limits) ([]event.Event, error) {
	switch {
	case len(in) == 0:
		return nil, event.Invalid("events", "is empty; send at least one event")
	case len(in) > l.Events:
		return nil, event.Bad(event.ErrTooLarge, "events", fmt.Sprintf("%d events in one request; the limit is %d: split it", len(in), l.Events))
	}
	out := make([]event.Event, len(in))
	for i := range in {
		if err := setEvent(&out[i], in[i], l); err != nil {
			return nil, event.At(fmt.Sprintf("events[%d]", i), err)
		}
	}
	return out, nil
}

// setAttribute takes in one entry of the attributes: one of CloudEvents' own besides those that are fields of the
// message, or an extension.
func setAttribute(e *event.Event, name string, kind event.Kind, value string) error {
	var at *string
	want := event.String
	switch name {
	case "id", "source", "type", "specversion", "spec_version":
		return event.Invalid(name, "stands among the attributes; it is a field of the message")
	case "datacontenttype":
		at = &e.DataContentType
	case "dataschema":
		at, want = &e.DataSchema, event.URI
	case "subject":
		at = &e.Subject
	case "time":
		at, want = &e.Time, event.Timestamp
	case "partitionkey":
		at = &e.PartitionKey
	case "traceparent":
		at = &e.TraceParent
	default:
		e.Extensions = append(e.Extensions, event.Attribute{Name: name, Kind: kind, Value: value})
		return nil
	}
	// A string is as good as what it writes; a reference may be a whole URI.
	if kind != want && kind != event.String && (want != event.URI || kind != event.URIReference) {
		return event.Invalid(name, fmt.Sprintf("is a %s; want a %s", fieldOf(kind), fieldOf(want)))
	}
	if value == "" {
		return event.Invalid(name, "is empty; give it a value or leave it out")
	}
	*at = value
	return nil
}

// valueOf is an attribute's value in the canonical string form of its type.
func valueOf(v *pb.CloudEventAttributeValue) (event.Kind, string, error) {
	switch x := v.GetAttr().(type) {
	case *pb.CloudEventAttributeValue_CeString:
		return event.String, x.CeString, nil
	case *pb.CloudEventAttributeValue_CeBoolean:
		return event.Boolean, strconv.FormatBool(x.CeBoolean), nil
	case *pb.CloudEventAttributeValue_CeInteger:
		return event.Integer, strconv.FormatInt(int64(x.CeInteger), 10), nil
	case *pb.CloudEventAttributeValue_CeBytes:
		return event.Bytes, base64.StdEncoding.EncodeToString(x.CeBytes), nil
	case *pb.CloudEventAttributeValue_CeUri:
		return event.URI, x.CeUri, nil
	case *pb.CloudEventAttributeValue_CeUriRef:
		return event.URIReference, x.CeUriRef, nil
	case *pb.CloudEventAttributeValue_CeTimestamp:
		value, err := instant(x.CeTimestamp)
		return event.Timestamp, value, err
	}
	return 0, "", errors.New("has no value; set one of ce_boolean, ce_integer, ce_string, ce_bytes, ce_uri, ce_uri_ref and ce_timestamp")
}

// instant is a time as attributes have it.
func instant(at *timestamppb.Timestamp) (string, error) {
	if at.CheckValid() != nil {
		return "", fmt.Errorf("is no time of the years 1 to 9999 (seconds %d, nanos %d)", at.GetSeconds(), at.GetNanos())
	}
	return at.AsTime().Format(time.RFC3339Nano), nil
}

// fieldOf names the field of an attribute's value.
func fieldOf(k event.Kind) string {
	return [...]string{"ce_string", "ce_boolean", "ce_integer", "ce_bytes", "ce_uri", "ce_uri_ref", "ce_timestamp"}[k]
}

// setData takes in the data, once the attributes are.
func setData(e *event.Event, in *pb.CloudEvent) error {
	switch d := in.GetData().(type) {
	case nil:
	case *pb.CloudEvent_TextData:
		return setText(e, d.TextData)
	case *pb.CloudEvent_BinaryData:
		return setBinary(e, d.BinaryData)
	case *pb.CloudEvent_ProtoData:
		return setMessage(e, d.ProtoData)
	}
	return nil
}

func setText(e *event.Event, s string) error {
	e.Data = []byte{}
	if s != "" {
		e.Data = unsafe.Slice(unsafe.StringData(s), len(s)) // the router does not write to it
	}
	return checkJSON(e, "text_data")
}

func setBinary(e *event.Event, b []byte) error {
	if len(b) == 0 && event.IsJSON(e.DataContentType) {
		return nil // SDKs send it for an event without data, and it is no JSON
	}
	if e.Data = b; b == nil {
		e.Data = []byte{}
	}
	// Most that speak this format send JSON and text as bytes; other faces show those as what they are.
	switch {
	case e.DataContentType == "":
		e.Binary = event.CheckJSON(e.Data) != nil
	case event.IsJSON(e.DataContentType):
		return checkJSON(e, "binary_data")
	default:
		e.Binary = !isText(e.DataContentType) || !utf8.Valid(e.Data)
	}
	return nil
}

// checkJSON refuses data that is declared JSON and is not.
func checkJSON(e *event.Event, field string) error {
	if e.DataContentType == "" {
		if event.CheckJSON(e.Data) != nil {
			e.DataContentType = "text/plain" // without a content type it would be read as JSON
		}
		return nil
	}
	if !event.IsJSON(e.DataContentType) {
		return nil
	}
	if err := event.CheckJSON(e.Data); err != nil {
		return event.At(field, err)
	}
	return nil
}

// setMessage takes in data that is a protobuf message: its type is the data's schema (protobuf format, 3.1).
func setMessage(e *event.Event, m *anypb.Any) error {
	url := m.GetTypeUrl()
	switch {
	case url == "":
		return event.Invalid("proto_data", "has no type_url; name the message's type, or send it as binary_data")
	case e.DataSchema == "":
		e.DataSchema = url
	case e.DataSchema != url:
		return event.Invalid("dataschema", fmt.Sprintf("is %.60q, but proto_data is a %.60q; leave it out, or send binary_data", e.DataSchema, url))
	}
	switch {
	case e.DataContentType == "":
		e.DataContentType = protobufType
	case media(e.DataContentType) != protobufType:
		return event.Invalid("datacontenttype", fmt.Sprintf("is %.60q beside proto_data; leave it out, or send %s", e.DataContentType, protobufType))
	}
	if e.Data, e.Binary = m.GetValue(), true; e.Data == nil {
		e.Data = []byte{}
	}
	return nil
}

// The extension in which other faces show where an event lies. Here the message around the event says it.
const extPosition = "millraceposition"

// protoOf is an event as the message of the CloudEvents protobuf format.
func protoOf(rec event.Record) *pb.CloudEvent {
	out := &pb.CloudEvent{}
	_ = proto.Unmarshal(appendEvent(nil, rec), out) // of what was encoded here: cannot fail
	return out
}

// text is s as protobuf takes strings. Events that skipped validation, as a function's may, could hold others.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// media is a content type without parameters, in lower case.
func media(contentType string) string {
	m, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(m))
}

// isText reports whether data of a content type is shown as text where it is UTF-8.
func isText(contentType string) bool {
	kind := media(contentType)
	if strings.HasPrefix(kind, "text/") || strings.HasSuffix(kind, "+xml") || strings.HasSuffix(kind, "/xml") {
		return true
	}
	switch kind {
	case "application/javascript", "application/yaml", "application/x-yaml", "application/toml", "application/sql", "application/graphql":
		return true
	}
	return false
}

func clip(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}
