package grpcapi

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/engine/event"
)

// This file reads what publishing streams send as events that borrow from it, without messages in between. It knows the forms
// that encoders write. Whatever else protobuf allows is left to protobuf's own decoder, and so is what is not right: one
// place says why.

// A batch is the events of a request. It may be filled again.
type batch struct {
	topic  string
	events []event.Event
	attrs  []event.Attribute // of which the last events' extensions are parts
	parts  int               // how many extensions all events have
}

// decode reads a PublishStreamRequest. False: it is not of the forms that are known here, or not right.
func (b *batch) decode(wire []byte, l event.Limits) bool {
	b.topic, b.events, b.attrs, b.parts = "", b.events[:0], b.attrs[:0], 0
	for len(wire) > 0 {
		f, rest, ok := first(wire)
		wire = rest
		switch {
		case !ok:
		case f.tag == 1<<3|hasBytes:
			b.topic, ok = f.text()
		case f.tag == 2<<3|hasBytes && len(b.events) < l.Events:
			b.events = append(b.events, event.Event{})
			ok = b.decodeEvent(&b.events[len(b.events)-1], f.value, l) && len(b.events)+2*b.parts <= recordsOfEvent*l.Events
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	return len(b.events) > 0
}

// decodeEvent does for a CloudEvent what setEvent does for its message.
func (b *batch) decodeEvent(e *event.Event, wire []byte, l event.Limits) bool {
	var version string
	var data field
	entries := 0
	e.Extensions = b.attrs[len(b.attrs):]
	for len(wire) > 0 {
		f, rest, ok := first(wire)
		wire = rest
		switch {
		case !ok:
		case f.tag == 1<<3|hasBytes:
			e.ID, ok = f.text()
		case f.tag == 2<<3|hasBytes:
			e.Source, ok = f.text()
		case f.tag == 3<<3|hasBytes:
			version, ok = f.text()
		case f.tag == 4<<3|hasBytes:
			e.Type, ok = f.text()
		case f.tag == 5<<3|hasBytes:
			entries++
			ok = entries <= l.Attrs && decodeAttribute(e, f.value)
		case f.tag == binaryData || f.tag == textData: // the last counts
			data, ok = f, f.tag == binaryData || utf8.Valid(f.value)
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	if version != "" && (version != "1.0" || e.ID == "" || e.Source == "" || e.Type == "") {
		return false
	}
	e.ClientID = e.ID != ""
	if len(e.Extensions) == 0 {
		e.Extensions = nil
	} else {
		sortExtensions(e)
		for i := range e.Extensions[1:] {
			if e.Extensions[i].Name == e.Extensions[i+1].Name { // the last that came would count
				return false
			}
		}
		if b.parts += len(e.Extensions); len(b.attrs)+len(e.Extensions) > cap(b.attrs) { // what came before stays where it is: to move it would keep it twice
			b.attrs = make([]event.Attribute, 0, max(2*cap(b.attrs), len(e.Extensions), 16))
		}
		b.attrs = append(b.attrs, e.Extensions...) // mostly where they are already
		e.Extensions = b.attrs[len(b.attrs)-len(e.Extensions) : len(b.attrs) : len(b.attrs)]
	}
	switch data.tag {
	case binaryData:
		return setBinary(e, data.value) == nil
	case textData:
		s, _ := data.text()
		return setText(e, s) == nil
	}
	return true
}

// decodeAttribute reads an entry of a CloudEvent's attributes: its name, then its value, which is of one type.
func decodeAttribute(e *event.Event, wire []byte) bool {
	f, wire, ok := first(wire)
	if !ok || f.tag != 1<<3|hasBytes {
		return false
	}
	name, ok := f.text()
	if !ok {
		return false
	}
	if f, wire, ok = first(wire); !ok || f.tag != 2<<3|hasBytes || len(wire) > 0 {
		return false
	}
	if f, wire, ok = first(f.value); !ok || len(wire) > 0 {
		return false
	}
	var kind event.Kind
	var value string
	switch f.tag {
	case 1<<3 | hasNumber:
		kind, value = event.Boolean, strconv.FormatBool(f.n != 0)
	case 2<<3 | hasNumber:
		kind, value = event.Integer, strconv.FormatInt(int64(int32(f.n)), 10)
	case 3<<3 | hasBytes:
		kind = event.String
		value, ok = f.text()
	case 4<<3 | hasBytes:
		kind, value = event.Bytes, base64.StdEncoding.EncodeToString(f.value)
	case 5<<3 | hasBytes:
		kind = event.URI
		value, ok = f.text()
	case 6<<3 | hasBytes:
		kind = event.URIReference
		value, ok = f.text()
	case 7<<3 | hasBytes:
		kind = event.Timestamp
		value, ok = decodeTime(f.value)
	default:
		return false
	}
	return ok && setAttribute(e, name, kind, value) == nil
}

// decodeTime reads a timestamp.
func decodeTime(wire []byte) (string, bool) {
	var at timestamppb.Timestamp
	for len(wire) > 0 {
		f, rest, ok := first(wire)
		wire = rest
		switch {
		case ok && f.tag == 1<<3|hasNumber:
			at.Seconds = int64(f.n)
		case ok && f.tag == 2<<3|hasNumber:
			at.Nanos = int32(f.n)
		default:
			return "", false
		}
	}
	s, err := instant(&at)
	return s, err == nil
}

// Tags are the fields' numbers, none of which takes more than a byte here, and the types of what they have.
const (
	hasNumber  = byte(protowire.VarintType)
	hasBytes   = byte(protowire.BytesType)
	binaryData = 6<<3 | hasBytes
	textData   = 7<<3 | hasBytes
)

// A field is the first of a message.
type field struct {
	tag   byte
	n     uint64
	value []byte
}

// first returns the first field of a message that has one, and the rest.
func first(wire []byte) (f field, rest []byte, ok bool) {
	if len(wire) == 0 {
		return f, nil, false
	}
	f.tag = wire[0]
	n, size := protowire.ConsumeVarint(wire[1:])
	if size < 0 {
		return f, nil, false
	}
	rest = wire[1+size:]
	switch f.tag & 7 {
	case hasNumber:
		f.n = n
	case hasBytes:
		if n > uint64(len(rest)) {
			return f, nil, false
		}
		f.value, rest = rest[:n:n], rest[n:]
	default:
		return f, nil, false
	}
	return f, rest, true
}

// text is the value as a string, which it must be.
func (f field) text() (string, bool) {
	return unsafe.String(unsafe.SliceData(f.value), len(f.value)), utf8.Valid(f.value)
}

// sortExtensions gives an order to what has none in a map: an event that is sent again must be the same event.
func sortExtensions(e *event.Event) {
	slices.SortFunc(e.Extensions, func(a, b event.Attribute) int { return strings.Compare(a.Name, b.Name) })
}
