package millrace

import (
	"encoding/binary"
	"time"
	"unsafe"
)

var le = binary.LittleEndian

// Tags of attributes.
const (
	tagExtension = iota
	tagID
	tagSource
	tagType
	tagSubject
	tagContentType
	tagSchema
	tagTopic
	tagKey
	tagTraceParent
	tagTime
)

// An Event is one event as the router hands it over. Strings and bytes are views of the batch: copy what
// outlives the handler.
type Event struct{ rec []byte }

// ID, Source, Type and Subject are the CloudEvents attributes; Topic is where the event lies.
func (e *Event) ID() string      { return e.tagged(tagID) }
func (e *Event) Source() string  { return e.tagged(tagSource) }
func (e *Event) Type() string    { return e.tagged(tagType) }
func (e *Event) Subject() string { return e.tagged(tagSubject) }
func (e *Event) Topic() string   { return e.tagged(tagTopic) }

// ContentType is datacontenttype, "" where the producer gave none, which means JSON.
func (e *Event) ContentType() string { return e.tagged(tagContentType) }

// Schema is dataschema.
func (e *Event) Schema() string { return e.tagged(tagSchema) }

// Time is the producer's time, RFC 3339 exactly as it was written, "" if there is none.
func (e *Event) Time() string { return e.tagged(tagTime) }

// Key is the partition key.
func (e *Event) Key() string { return e.tagged(tagKey) }

// TraceParent is the trace context.
func (e *Event) TraceParent() string { return e.tagged(tagTraceParent) }

// Data is the event's data, nil if it has none.
func (e *Event) Data() []byte {
	if le.Uint16(e.rec[6:])&4 != 0 {
		return nil
	}
	off, n := le.Uint32(e.rec[32:]), le.Uint32(e.rec[36:])
	return e.rec[off : off+n : off+n]
}

// Binary reports whether the data is bytes rather than JSON or text.
func (e *Event) Binary() bool { return le.Uint16(e.rec[6:])&8 != 0 }

// ReplyWanted reports whether somebody waits for a Reply.
func (e *Event) ReplyWanted() bool { return le.Uint16(e.rec[6:])&1 != 0 }

// Attempt is 1 for the first.
func (e *Event) Attempt() int { return int(le.Uint32(e.rec[24:])) }

// Received is when the router took the event.
func (e *Event) Received() time.Time { return time.Unix(0, int64(le.Uint64(e.rec[16:]))).UTC() }

// Partition and Offset say where the event lies in its topic.
func (e *Event) Partition() uint32 { return le.Uint32(e.rec[28:]) }
func (e *Event) Offset() uint64    { return le.Uint64(e.rec[8:]) }

// Hops is how many topics the event's ancestors passed.
func (e *Event) Hops() int { return int(le.Uint32(e.rec[44:])) }

// Extension returns an extension attribute by name, in its string form.
func (e *Event) Extension(name string) (string, bool) {
	switch name {
	case "partitionkey":
		v := e.Key()
		return v, v != ""
	case "traceparent":
		v := e.TraceParent()
		return v, v != ""
	}
	return e.find(tagExtension, name)
}

// Extensions calls yield for each extension attribute that has no accessor of its own.
func (e *Event) Extensions(yield func(name, value string) bool) {
	b := e.rec[le.Uint32(e.rec[40:]):]
	for range le.Uint16(e.rec[4:]) {
		klen, end := attrEnd(b)
		if b[0] == tagExtension && !yield(text(b[8:8+klen]), text(b[8+klen:end])) {
			return
		}
		b = b[(end+3)&^3:]
	}
}

func (e *Event) tagged(tag byte) string {
	v, _ := e.find(tag, "")
	return v
}

func (e *Event) find(tag byte, name string) (string, bool) {
	b := e.rec[le.Uint32(e.rec[40:]):]
	for range le.Uint16(e.rec[4:]) {
		klen, end := attrEnd(b)
		if b[0] == tag && text(b[8:8+klen]) == name {
			return text(b[8+klen : end]), true
		}
		b = b[(end+3)&^3:]
	}
	return "", false
}

// attrEnd returns the key's length and where the value ends.
func attrEnd(b []byte) (klen, end int) {
	klen = int(le.Uint16(b[2:]))
	return klen, 8 + klen + int(le.Uint32(b[4:]))
}

func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
