package event

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// This file reads CloudEvents in structured and batch mode (CloudEvents JSON event format 1.0).

// unset marks an extension that was given as null, so that a second one of the name is still refused.
const unset Kind = 0xFF

// ParseStructured reads one CloudEvent in structured mode into e, reusing e.Extensions, and validates it
// within l. E borrows doc except where a string has escapes or the data is data_base64. Data is the
// verbatim JSON value where datacontenttype is absent or JSON, else the text of the JSON string. Errors
// are Faults: one that names the byte offset where the JSON is broken, else all that is wrong with the
// event, each at its attribute.
func ParseStructured(doc []byte, l Limits, e *Event) error {
	at, err := parseObject(doc, space(doc, 0), l.WithDefaults(), e)
	if err != nil {
		return err
	}
	if at = space(doc, at); at < len(doc) {
		return brokenJSON(doc, at, "more follows after the event")
	}
	return nil
}

// ParseBatch reads a JSON array of CloudEvents and appends them to dst, reusing the Extensions of
// elements between its length and its capacity. Each is read as by ParseStructured; the error of the
// first that is wrong is at "events[<index>]", and dst is returned as it was.
func ParseBatch(doc []byte, l Limits, dst []Event) ([]Event, error) {
	l = l.WithDefaults()
	at := space(doc, 0)
	if at >= len(doc) || doc[at] != '[' {
		return dst, brokenJSON(doc, at, "a batch is a JSON array of CloudEvents")
	}
	out := dst
	if at = space(doc, at+1); at < len(doc) && doc[at] == ']' {
		at++
	} else {
		for i := 0; ; i++ {
			if i == l.Events {
				return dst, Bad(ErrTooLarge, indexed(i), fmt.Sprintf("the limit is %d events a request; send the rest in another", l.Events))
			}
			if len(out) < cap(out) {
				out = out[:len(out)+1]
			} else {
				out = append(out, Event{})
			}
			var err error
			if at, err = parseObject(doc, at, l, &out[len(out)-1]); err != nil {
				return dst, At(indexed(i), err)
			}
			if at = space(doc, at); at < len(doc) && doc[at] == ',' {
				at = space(doc, at+1)
				continue
			}
			if at >= len(doc) || doc[at] != ']' {
				return dst, brokenJSON(doc, at, "want , or ] after an event")
			}
			at++
			break
		}
	}
	if at = space(doc, at); at < len(doc) {
		return dst, brokenJSON(doc, at, "more follows after the batch")
	}
	return out, nil
}

// HasSpecVersion reports whether doc, one valid JSON text, is an object with a member specversion: it
// wants to be a CloudEvent rather than data.
func HasSpecVersion(doc []byte) bool {
	at := space(doc, 0)
	if at >= len(doc) || doc[at] != '{' {
		return false
	}
	for at = space(doc, at+1); at < len(doc) && doc[at] == '"'; at = space(doc, at+1) {
		end, plain, why := scanString(doc, at)
		if why != "" {
			return false
		}
		if name, _ := stringOf(doc[at:end], plain); name == "specversion" {
			return true
		}
		if end = space(doc, end); end >= len(doc) { // doc[end] is the colon
			return false
		}
		if end, _, why = scanValue(doc, space(doc, end+1)); why != "" {
			return false
		}
		if at = space(doc, end); at >= len(doc) || doc[at] != ',' {
			return false
		}
	}
	return false
}

// A value is a scanned JSON value, quotes included.
type value struct {
	raw   []byte
	plain bool // a string without escapes
}

func (v value) given() bool { return len(v.raw) > 0 && v.raw[0] != 'n' }

// stringOf returns what a scanned JSON string means, borrowed where it has no escapes.
func stringOf(raw []byte, plain bool) (s string, ok bool) {
	in := raw[1 : len(raw)-1]
	if plain {
		return borrow(in), true
	}
	b, ok := unescape(make([]byte, 0, len(in)), in)
	return borrow(b), ok
}

// what names the type of a JSON value.
func (v value) what() string {
	switch v.raw[0] {
	case '"':
		return "a string"
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// A reading is the state of parsing one event.
type reading struct {
	e            *Event
	faults       faults
	seen         uint32 // bit 0: specversion; else of a Tag
	data, base64 value
}

// parseObject reads the event whose { is doc[at] and returns where it ends.
func parseObject(doc []byte, at int, l Limits, e *Event) (int, error) {
	*e = Event{Extensions: e.Extensions[:0]}
	if at >= len(doc) || doc[at] != '{' {
		return at, brokenJSON(doc, at, "a CloudEvent is a JSON object")
	}
	r := reading{e: e}
	members := 0
	for at = space(doc, at+1); ; at = space(doc, at+1) {
		if at < len(doc) && doc[at] == '}' && members == 0 {
			break
		}
		if at >= len(doc) || doc[at] != '"' {
			return at, brokenJSON(doc, at, "want a name in double quotes")
		}
		end, plain, why := scanString(doc, at)
		if why != "" {
			return end, brokenJSON(doc, end, why)
		}
		name, ok := stringOf(doc[at:end], plain)
		if !ok {
			return at, brokenJSON(doc, at, "a name has half of a surrogate pair")
		}
		if at = space(doc, end); at >= len(doc) || doc[at] != ':' {
			return at, brokenJSON(doc, at, "want : after a name")
		}
		at = space(doc, at+1)
		if end, plain, why = scanValue(doc, at); why != "" {
			return end, brokenJSON(doc, end, why)
		}
		// Bounds the faults, and the comparisons that look for a second extension of a name; three
		// members are not attributes.
		if members++; members > l.Attrs+3 {
			return end, Bad(ErrTooLarge, "", fmt.Sprintf("the event has more than %d attributes; the limit is %d attributes an event", l.Attrs, l.Attrs))
		}
		r.member(name, value{doc[at:end:end], plain})
		if at = space(doc, end); at >= len(doc) || doc[at] != ',' && doc[at] != '}' {
			return at, brokenJSON(doc, at, "want , or }")
		}
		if doc[at] == '}' {
			break
		}
	}
	kept := e.Extensions[:0]
	for _, a := range e.Extensions {
		if a.Kind != unset {
			kept = append(kept, a)
		}
	}
	e.Extensions = kept
	if r.seen&1 == 0 {
		r.faults.add(ErrInvalid, "specversion", `is missing; want "1.0"`)
	}
	r.setData()
	e.validate(l, &r.faults)
	return at + 1, r.faults.err()
}

// member takes in one member of the event's object.
func (r *reading) member(name string, v value) {
	twice := false
	switch name {
	case "specversion":
		twice = r.seen&1 != 0
		r.seen |= 1
		if s := borrow(v.raw); s != `"1.0"` && !twice {
			if v.raw[0] == '"' {
				if got, _ := stringOf(v.raw, v.plain); got == "1.0" {
					return
				}
			}
			r.faults.add(ErrInvalid, name, fmt.Sprintf(`is %s; this router takes "1.0"`, clip(s)))
		}
	case "data":
		twice = r.data.raw != nil
		r.data = v
	case "data_base64":
		twice = r.base64.raw != nil
		r.base64 = v
	default:
		tag := TagOf(name)
		if tag == TagExtension {
			r.extension(name, v)
			return
		}
		twice = r.seen&(1<<tag) != 0
		r.seen |= 1 << tag
		if !v.given() { // JSON format 2.2: null is the same as left out
			break
		}
		s, ok := r.text(name, v)
		if ok && s == "" {
			r.faults.add(ErrInvalid, name, "is empty; give it a value or leave it out")
		}
		*r.e.field(tag) = s
	}
	if twice {
		r.faults.add(ErrInvalid, name, "is given twice")
	}
}

// text is the string that an attribute must have as its value.
func (r *reading) text(name string, v value) (s string, ok bool) {
	if v.raw[0] != '"' {
		r.faults.add(ErrInvalid, name, fmt.Sprintf("is %s (%s); want a string", v.what(), clip(string(v.raw))))
		return "", false
	}
	if s, ok = stringOf(v.raw, v.plain); !ok {
		r.faults.add(ErrInvalid, name, "has half of a surrogate pair")
		return "", false
	}
	return s, true
}

func (r *reading) extension(name string, v value) {
	for i := range r.e.Extensions {
		if r.e.Extensions[i].Name == name {
			r.faults.add(ErrInvalid, clip(name), "is given twice")
			return
		}
	}
	if why := checkAttributeName(name); why != "" {
		r.faults.add(ErrInvalid, clip(name), why)
		return
	}
	a := Attribute{Name: name}
	switch v.raw[0] {
	case '"':
		a.Value, _ = r.text(name, v)
	case 't', 'f':
		a.Kind, a.Value = Boolean, borrow(v.raw)
	case 'n':
		a.Kind = unset
	case '{', '[':
		r.faults.add(ErrInvalid, name, fmt.Sprintf("is %s; an extension is a string, a boolean or an integer: put it into data", v.what()))
		return
	default:
		a.Kind, a.Value = Integer, borrow(v.raw)
		if a.Value == "-0" {
			a.Value = "0"
		}
		if !isInt32(a.Value) {
			r.faults.add(ErrInvalid, name, fmt.Sprintf("is %s; a number in an extension is an integer of 32 bits: send it as a string", clip(a.Value)))
			return
		}
	}
	r.e.Extensions = append(r.e.Extensions, a)
}

// setData decides what the members data and data_base64 mean once datacontenttype is known, which may
// stand behind them.
func (r *reading) setData() {
	e := r.e
	switch {
	case r.base64.given() && r.data.raw != nil:
		r.faults.add(ErrInvalid, "data", "is given beside data_base64; an event has one of them")
	case r.base64.given():
		s, ok := r.text("data_base64", r.base64)
		if !ok {
			return
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			r.faults.add(ErrInvalid, "data_base64", "is not base64 (RFC 4648, 4, padded): "+err.Error())
			return
		}
		e.Data, e.Binary = b, true
	case r.data.raw == nil:
	case IsJSON(e.DataContentType):
		e.Data = r.data.raw
	case r.data.raw[0] == '"':
		if s, ok := r.text("data", r.data); ok {
			e.Data = []byte{}
			if s != "" {
				e.Data = bytesOf(s)
			}
		}
	case r.data.given():
		r.faults.add(ErrInvalid, "data", fmt.Sprintf("is %s, but datacontenttype is %.60q: want a string, data_base64, or a content type of JSON",
			r.data.what(), strings.Clone(e.DataContentType)))
	}
}
