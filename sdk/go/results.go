package millrace

import (
	"math"
	"time"
)

// Kinds of results and their flags.
const (
	kindPass = iota
	kindEmit
	kindDrop
	kindRetry
	kindReject
	kindReply

	flagInherit  = 1
	flagSameData = 2

	resultHeader = 24
	batchHeader  = 24
	attrHeader   = 8
	noValue      = 0xFFFFFFFF
)

// Results takes what a handler says about its event: one of Pass, Drop, Retry and Reject, or any number
// of events by Replace, Relabel and Emit. Pass may come with more events after it. Retry and Reject
// discard the events before them. Reply may come beside anything. Other combinations, and silence, fail
// the event at the router. All bytes and strings are copied at once.
type Results struct {
	buf   []byte
	index uint32
	event Event // at work: one for all, so that none is allocated
}

// run calls h for every event of a batch.
func (r *Results) run(batch []byte, h Handler) {
	if r.buf == nil {
		r.buf = make([]byte, 0, 4<<10) // no results must not look like a null answer
	}
	r.buf = r.buf[:0]
	at := batch[batchHeader:]
	for i := range le.Uint32(batch[4:]) {
		le.PutUint32(batch[12:], i) // the host reads this cursor when the handler panics
		r.index = i
		n := le.Uint32(at)
		r.event.rec = at[:n:n]
		h(&r.event, r)
		at = at[n:]
	}
	copy(batch[12:16], batch[4:8])
}

// Pass delivers the event unchanged.
func (r *Results) Pass() { r.simple(kindPass, 0) }

// Drop acknowledges the event and delivers nothing.
func (r *Results) Drop() { r.simple(kindDrop, 0) }

// Retry asks for another attempt after a while; 0 leaves the delay to the subscription's policy.
func (r *Results) Retry(after time.Duration) {
	r.simple(kindRetry, uint32(min(max(after.Milliseconds(), 0), math.MaxUint32)))
}

// Reject moves the event to the dead letters now.
func (r *Results) Reject(code uint32, reason string) { r.add(kindReject, 0, code, []byte(reason)) }

// Reply answers a synchronous call; the status is one of HTTP. The body's type is application/json; another
// is given by ContentType.
func (r *Results) Reply(status uint32, body []byte, attrs ...Attr) {
	r.add(kindReply, 0, status, body, attrs...)
}

// Replace delivers an event with the input's attributes and other data. Attributes that are given change
// or remove those of the input. Without ID the router derives one from the input's, the same in every
// attempt.
func (r *Results) Replace(data []byte, attrs ...Attr) {
	r.add(kindEmit, flagInherit, 0, data, attrs...)
}

// Relabel delivers an event with the input's data and other attributes.
func (r *Results) Relabel(attrs ...Attr) { r.add(kindEmit, flagInherit|flagSameData, 0, nil, attrs...) }

// Emit delivers an event of its own, which needs at least Source and Type. Data nil means none.
func (r *Results) Emit(data []byte, attrs ...Attr) { r.add(kindEmit, 0, 0, data, attrs...) }

func (r *Results) simple(kind byte, arg uint32) { r.add(kind, 0, arg, nil) }

// add appends a result. It writes to its place at once what others would append piece by piece, since every
// call costs in WASM.
func (r *Results) add(kind, flags byte, arg uint32, data []byte, attrs ...Attr) {
	size := resultHeader + len(data) + 7
	for i := range attrs {
		size += attrHeader + len(attrs[i].name) + len(attrs[i].value) + 3
	}
	start := len(r.buf)
	if start+size > cap(r.buf) {
		r.buf = append(make([]byte, 0, 2*cap(r.buf)+size), r.buf...)
	}
	h := r.buf[start : start+size]
	at := resultHeader
	for i := range attrs {
		at += attrs[i].put(h[at:])
	}
	off := 0
	if data != nil {
		off = at
		at += copy(h[at:], data)
	}
	for at%8 != 0 {
		h[at] = 0
		at++
	}
	r.buf = r.buf[:start+at]
	le.PutUint32(h, uint32(at))
	le.PutUint32(h[4:], uint32(kind)|uint32(flags)<<8|uint32(len(attrs))<<16)
	le.PutUint32(h[8:], r.index)
	le.PutUint32(h[12:], arg)
	le.PutUint32(h[16:], uint32(off))
	le.PutUint32(h[20:], uint32(len(data)))
}

// An Attr is an attribute for an event that a function makes.
type Attr struct {
	tag, kind   byte
	name, value string
	unset       bool
}

// ID names the event; it must be the same in every attempt.
func ID(v string) Attr { return Attr{tag: tagID, value: v} }

// Source, Type, Subject, ContentType, Schema, Key and Time set the CloudEvents attributes.
func Source(v string) Attr      { return Attr{tag: tagSource, kind: 5, value: v} }
func Type(v string) Attr        { return Attr{tag: tagType, value: v} }
func Subject(v string) Attr     { return Attr{tag: tagSubject, value: v} }
func ContentType(v string) Attr { return Attr{tag: tagContentType, value: v} }
func Schema(v string) Attr      { return Attr{tag: tagSchema, kind: 4, value: v} }
func Key(v string) Attr         { return Attr{tag: tagKey, value: v} }
func Time(v string) Attr        { return Attr{tag: tagTime, kind: 6, value: v} }

// Topic sends the event to another topic instead of to the subscription's target.
func Topic(v string) Attr { return Attr{tag: tagTopic, value: v} }

// Extension sets an extension attribute: a name of lower-case letters and digits.
func Extension(name, value string) Attr {
	a := named(name)
	a.value = value
	return a
}

// Unset removes an attribute that the event would have of its input.
func Unset(name string) Attr {
	a := named(name)
	a.unset = true
	return a
}

// named finds the tag of an attribute that has one.
func named(name string) Attr {
	tag := byte(0)
	switch name {
	case "id":
		tag = tagID
	case "source":
		tag = tagSource
	case "type":
		tag = tagType
	case "subject":
		tag = tagSubject
	case "datacontenttype":
		tag = tagContentType
	case "dataschema":
		tag = tagSchema
	case "partitionkey":
		tag = tagKey
	case "traceparent":
		tag = tagTraceParent
	case "time":
		tag = tagTime
	default:
		return Attr{name: name}
	}
	return Attr{tag: tag}
}

// put writes an attribute, padded to 4, and returns its length.
func (a *Attr) put(b []byte) int {
	vlen := uint32(len(a.value))
	if a.unset {
		vlen = noValue
	}
	le.PutUint32(b, uint32(a.tag)|uint32(a.kind)<<8|uint32(len(a.name))<<16)
	le.PutUint32(b[4:], vlen)
	at := attrHeader + copy(b[attrHeader:], a.name)
	at += copy(b[at:], a.value)
	for at%4 != 0 {
		b[at] = 0
		at++
	}
	return at
}
