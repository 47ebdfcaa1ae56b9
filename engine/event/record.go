package event

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
	"unsafe"
)

// Record is one event in the format of the log, which is also what a function is handed: a header of 48
// bytes, attributes, then the data, every part padded, the whole a multiple of 8. All integers are
// little-endian. A Record of the log is shared and read-only.
//
//	 0 u32 rec_len, padding included     24 u32 attempt      36 u32 data_len
//	 4 u16 attr_count                    28 u32 partition    40 u32 attr_off
//	 6 u16 flags                         32 u32 data_off     44 u32 hops
//	 8 u64 offset
//	16 i64 time_ns, received
//
// Readers use attr_off and data_off, so the header can grow. An attribute is
//
//	0 u8 tag · 1 u8 kind · 2 u16 klen · 4 u32 vlen · key · value, padded to 4
type Record []byte

// HeaderSize is the size of the header that this build writes.
const HeaderSize = 48

// Flags of a record.
const (
	FlagReply     = 1 // somebody waits for a reply
	FlagRedeliver = 2 // this is not the first attempt
	FlagNoData    = 4
	FlagBinary    = 8 // the data is bytes rather than JSON or text
)

// Tag says which attribute a record's attribute is.
type Tag uint8

// The tags; an extension without a tag of its own carries its name as key.
const (
	TagExtension Tag = iota
	TagID
	TagSource
	TagType
	TagSubject
	TagDataContentType
	TagDataSchema
	TagTopic
	TagPartitionKey
	TagTraceParent
	TagTime
	tagEnd
)

// header is the HTTP header of a tag's attribute in lower case, "" for TagExtension and TagTopic.
func (t Tag) header() string {
	switch t {
	case TagID:
		return "ce-id"
	case TagSource:
		return "ce-source"
	case TagType:
		return "ce-type"
	case TagSubject:
		return "ce-subject"
	case TagDataContentType:
		return "ce-datacontenttype" // only in name: it travels as Content-Type
	case TagDataSchema:
		return "ce-dataschema"
	case TagPartitionKey:
		return "ce-partitionkey"
	case TagTraceParent:
		return "ce-traceparent"
	case TagTime:
		return "ce-time"
	}
	return ""
}

// Name is the CloudEvents name of a tag's attribute; "" for TagExtension, whose attributes carry theirs,
// and for TagTopic, which is no CloudEvents attribute.
func (t Tag) Name() string { return strings.TrimPrefix(t.header(), "ce-") }

// TagOf is the tag of the attribute that CloudEvents calls name; TagExtension if it has none.
func TagOf(name string) Tag {
	switch name {
	case "id":
		return TagID
	case "source":
		return TagSource
	case "type":
		return TagType
	case "subject":
		return TagSubject
	case "datacontenttype":
		return TagDataContentType
	case "dataschema":
		return TagDataSchema
	case "partitionkey":
		return TagPartitionKey
	case "traceparent":
		return TagTraceParent
	case "time":
		return TagTime
	}
	return TagExtension
}

// NoValue as a value's length in a function's result removes the attribute.
const NoValue = 0xFFFFFFFF

var le = binary.LittleEndian

func pad(n, to int) int { return (n + to - 1) &^ (to - 1) }

func attrSize(name, value string) int { return pad(8+len(name)+len(value), 4) }

// RecordSize is the number of bytes that AppendRecord will append.
func (e *Event) RecordSize() int {
	n := HeaderSize
	for tag := TagID; tag < tagEnd; tag++ {
		if v := *e.field(tag); v != "" {
			n += attrSize("", v)
		}
	}
	for i := range e.Extensions {
		n += attrSize(e.Extensions[i].Name, e.Extensions[i].Value)
	}
	return pad(n, 8) + pad(len(e.Data), 8)
}

// field returns where e keeps the attribute of a tag other than TagExtension.
func (e *Event) field(tag Tag) *string {
	switch tag {
	case TagID:
		return &e.ID
	case TagSource:
		return &e.Source
	case TagType:
		return &e.Type
	case TagSubject:
		return &e.Subject
	case TagDataContentType:
		return &e.DataContentType
	case TagDataSchema:
		return &e.DataSchema
	case TagTopic:
		return &e.Topic
	case TagPartitionKey:
		return &e.PartitionKey
	case TagTraceParent:
		return &e.TraceParent
	default:
		return &e.Time
	}
}

// kindOf is the kind of the attributes that have a tag.
func kindOf(tag Tag) Kind {
	switch tag {
	case TagSource:
		return URIReference
	case TagDataSchema:
		return URI
	case TagTime:
		return Timestamp
	}
	return String
}

// CheckRecord says whether a record can hold e: what AppendRecord requires. Every event that Validate
// accepts passes, and every event read from a record; it is for those that skip Validate.
func (e *Event) CheckRecord() error {
	if n := len(e.Extensions); n > math.MaxUint16-int(tagEnd) {
		return Bad(ErrTooLarge, "", fmt.Sprintf("the event has %d extensions; a record holds %d", n, math.MaxUint16-int(tagEnd)))
	}
	for i := range e.Extensions {
		if n := len(e.Extensions[i].Name); n == 0 || n > math.MaxUint16 {
			return Invalid(clip(e.Extensions[i].Name), fmt.Sprintf("the attribute's name has %d bytes; a record holds 1 to %d", n, math.MaxUint16))
		}
		if k := e.Extensions[i].Kind; k > Timestamp {
			return Invalid(clip(e.Extensions[i].Name), fmt.Sprintf("is of kind %d; the last kind is %d", k, Timestamp))
		}
	}
	if n := e.RecordSize(); uint64(n) > math.MaxUint32 {
		return Bad(ErrTooLarge, "", fmt.Sprintf("the event takes %d bytes; a record holds %d", n, math.MaxUint32))
	}
	return nil
}

// AppendRecord appends e, for which CheckRecord holds, as a record to dst: the one copy of an event's
// bytes on its way in. Offset, received time, partition and attempt are zero until the store and the
// delivery set them. It allocates nothing if dst has room for RecordSize more bytes.
func (e *Event) AppendRecord(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	count := 0
	for tag := TagID; tag < tagEnd; tag++ {
		if v := *e.field(tag); v != "" {
			dst = appendAttr(dst, tag, kindOf(tag), "", v)
			count++
		}
	}
	for i := range e.Extensions {
		a := &e.Extensions[i]
		dst = appendAttr(dst, TagExtension, a.Kind, a.Name, a.Value)
		count++
	}
	dst = appendPad(dst, start, 8)
	dataOff := len(dst) - start
	dst = append(dst, e.Data...)
	dst = appendPad(dst, start, 8)

	flags := uint16(0)
	if e.Data == nil {
		flags |= FlagNoData
	}
	if e.Binary {
		flags |= FlagBinary
	}
	if e.WantsReply {
		flags |= FlagReply
	}
	h := dst[start:]
	le.PutUint32(h[0:], uint32(len(h)))
	le.PutUint16(h[4:], uint16(count))
	le.PutUint16(h[6:], flags)
	le.PutUint32(h[32:], uint32(dataOff))
	le.PutUint32(h[36:], uint32(len(e.Data)))
	le.PutUint32(h[40:], HeaderSize)
	le.PutUint32(h[44:], e.Hops)
	return dst
}

func appendAttr(dst []byte, tag Tag, kind Kind, name, value string) []byte {
	at := len(dst)
	dst = append(dst, byte(tag), byte(kind), 0, 0, 0, 0, 0, 0)
	le.PutUint16(dst[at+2:], uint16(len(name)))
	le.PutUint32(dst[at+4:], uint32(len(value)))
	dst = append(dst, name...)
	dst = append(dst, value...)
	return appendPad(dst, at, 4)
}

func appendPad(dst []byte, from, to int) []byte {
	for (len(dst)-from)%to != 0 {
		dst = append(dst, 0)
	}
	return dst
}

// CutRecord splits the first record off b and checks it whole: lengths, bounds, alignment, attributes. It
// is how bytes from outside this process (a file, a function) become a Record; everything a Record's
// methods index is inside bounds afterwards. That attributes make a CloudEvent is Validate's question.
func CutRecord(b []byte) (rec Record, rest []byte, err error) {
	if len(b) < HeaderSize {
		return nil, nil, fmt.Errorf("record: %d bytes, a header has %d: %w", len(b), HeaderSize, ErrInvalid)
	}
	n := uint64(le.Uint32(b))
	if n < HeaderSize || n > uint64(len(b)) || n%8 != 0 {
		return nil, nil, fmt.Errorf("record: length %d of %d bytes; want a multiple of 8: %w", n, len(b), ErrInvalid)
	}
	r := Record(b[:n:n])
	dataOff, dataLen := uint64(le.Uint32(r[32:])), uint64(le.Uint32(r[36:]))
	attrOff := uint64(le.Uint32(r[40:]))
	if attrOff < HeaderSize || attrOff > dataOff || attrOff%4 != 0 || dataOff%8 != 0 || dataOff+dataLen > n {
		return nil, nil, fmt.Errorf("record: attributes at %d, data at %d+%d of %d: %w", attrOff, dataOff, dataLen, n, ErrInvalid)
	}
	if dataLen > 0 && r.Flags()&FlagNoData != 0 {
		return nil, nil, fmt.Errorf("record: %d bytes of data beside the flag of none: %w", dataLen, ErrInvalid)
	}
	if _, err := checkAttrs(r[attrOff:dataOff], int(le.Uint16(r[4:])), false); err != nil {
		return nil, nil, err
	}
	return r, b[n:], nil
}

// CheckAttrs checks count encoded attributes of a function's result at the start of b and returns how
// many bytes they take.
func CheckAttrs(b []byte, count int) (int, error) { return checkAttrs(b, count, true) }

// checkAttrs is CheckAttrs for results, in which an attribute may be removed, and for records, in which
// none may and none that has a tag stands twice.
func checkAttrs(b []byte, count int, result bool) (int, error) {
	at := 0
	var seen uint32
	for i := range count {
		if len(b)-at < 8 {
			return 0, fmt.Errorf("record: attribute %d of %d is cut off: %w", i, count, ErrInvalid)
		}
		tag, kind := b[at], b[at+1]
		klen, vlen := uint64(le.Uint16(b[at+2:])), uint64(le.Uint32(b[at+4:]))
		if vlen == NoValue {
			if !result {
				return 0, fmt.Errorf("record: attribute %d of %d has no value, which only a function's result may say: %w", i, count, ErrInvalid)
			}
			vlen = 0
		}
		size := (8 + klen + vlen + 3) &^ 3
		if size > uint64(len(b)-at) {
			return 0, fmt.Errorf("record: attribute %d of %d has %d bytes, %d are left: %w", i, count, size, len(b)-at, ErrInvalid)
		}
		if tag >= byte(tagEnd) || kind > byte(Timestamp) || (tag == 0) != (klen > 0) {
			return 0, fmt.Errorf("record: attribute %d of %d: tag %d, kind %d, key of %d bytes: %w", i, count, tag, kind, klen, ErrInvalid)
		}
		if tag != 0 && seen&(1<<tag) != 0 && !result {
			return 0, fmt.Errorf("record: attribute %d of %d: tag %d stands twice: %w", i, count, tag, ErrInvalid)
		}
		seen |= 1 << tag
		at += int(size)
	}
	return at, nil
}

// Len is the record's length in bytes.
func (r Record) Len() int { return int(le.Uint32(r)) }

// Flags returns the record's flags.
func (r Record) Flags() uint16 { return le.Uint16(r[6:]) }

// Offset is where the event lies in its partition.
func (r Record) Offset() Offset { return le.Uint64(r[8:]) }

// Partition is the partition in which it lies.
func (r Record) Partition() Partition { return le.Uint32(r[28:]) }

// Position is partition and offset.
func (r Record) Position() Position { return Position{r.Partition(), r.Offset()} }

// Received is when the router took the event, in Unix nanoseconds; it never falls along a partition.
func (r Record) Received() int64 { return int64(le.Uint64(r[16:])) }

// ReceivedAt is Received as a time in UTC.
func (r Record) ReceivedAt() time.Time { return time.Unix(0, r.Received()).UTC() }

// Attempt is 1 for the first delivery; 0 in the log.
func (r Record) Attempt() uint32 { return le.Uint32(r[24:]) }

// Hops is how many topics the event's ancestors passed.
func (r Record) Hops() uint32 { return le.Uint32(r[44:]) }

// Data is the event's data, nil if it has none.
func (r Record) Data() []byte {
	if r.Flags()&FlagNoData != 0 {
		return nil
	}
	off, n := le.Uint32(r[32:]), le.Uint32(r[36:])
	return r[off : off+n : off+n]
}

// SetPlace patches what the store decides at commit. Only the store calls it, before anybody else sees r.
func (r Record) SetPlace(p Position, received int64) {
	le.PutUint64(r[8:], p.Offset)
	le.PutUint64(r[16:], uint64(received))
	le.PutUint32(r[28:], p.Partition)
}

// SetAttempt patches a copy of a record for a delivery.
func (r Record) SetAttempt(attempt uint32, flags uint16) {
	le.PutUint32(r[24:], attempt)
	le.PutUint16(r[6:], r.Flags()|flags)
}

// Attr is one attribute of a record, borrowed from it.
type Attr struct {
	Tag   Tag
	Kind  Kind
	Name  string // of an extension
	Value string
	Unset bool // in a function's result: remove it
}

// Attrs yields the attributes in order. Their strings borrow the record's memory.
func (r Record) Attrs(yield func(Attr) bool) {
	AttrsOf(r[le.Uint32(r[40:]):], int(le.Uint16(r[4:])), yield)
}

// AttrsOf yields count attributes that CheckAttrs has checked.
func AttrsOf(b []byte, count int, yield func(Attr) bool) {
	for range count {
		klen, vlen := int(le.Uint16(b[2:])), le.Uint32(b[4:])
		a := Attr{Tag: Tag(b[0]), Kind: Kind(b[1]), Name: borrow(b[8 : 8+klen])}
		if vlen == NoValue {
			a.Unset, vlen = true, 0
		}
		end := 8 + klen + int(vlen)
		a.Value = borrow(b[8+klen : end])
		if !yield(a) {
			return
		}
		b = b[pad(end, 4):]
	}
}

// Attr returns the value of a tagged attribute, "" if it is absent. It borrows the record's memory.
func (r Record) Attr(tag Tag) string {
	b := r[le.Uint32(r[40:]):]
	for range le.Uint16(r[4:]) {
		klen, vlen := int(le.Uint16(b[2:])), int(le.Uint32(b[4:]))
		if Tag(b[0]) == tag {
			return borrow(b[8+klen : 8+klen+vlen])
		}
		b = b[pad(8+klen+vlen, 4):]
	}
	return ""
}

// Extension returns an extension attribute by name; partitionkey and traceparent are found too.
func (r Record) Extension(name string) (Attr, bool) {
	switch name {
	case "partitionkey":
		v := r.Attr(TagPartitionKey)
		return Attr{Tag: TagPartitionKey, Name: name, Value: v}, v != ""
	case "traceparent":
		v := r.Attr(TagTraceParent)
		return Attr{Tag: TagTraceParent, Name: name, Value: v}, v != ""
	}
	b := r[le.Uint32(r[40:]):]
	for range le.Uint16(r[4:]) {
		klen, vlen := int(le.Uint16(b[2:])), int(le.Uint32(b[4:]))
		if b[0] == 0 && string(b[8:8+klen]) == name {
			return Attr{Kind: Kind(b[1]), Name: name, Value: borrow(b[8+klen : 8+klen+vlen])}, true
		}
		b = b[pad(8+klen+vlen, 4):]
	}
	return Attr{}, false
}

// Decode fills e from r, reusing e.Extensions. Everything borrows r's memory.
func (r Record) Decode(e *Event) {
	*e = Event{Extensions: e.Extensions[:0], Data: r.Data(), Binary: r.Flags()&FlagBinary != 0, Hops: r.Hops()}
	r.Attrs(func(a Attr) bool {
		if a.Tag == TagExtension {
			e.Extensions = append(e.Extensions, Attribute{a.Name, a.Kind, a.Value})
		} else {
			*e.field(a.Tag) = a.Value
		}
		return true
	})
}

// Set changes an attribute: what a function's result does to the event it inherits from. An extension
// whose name has a tag (partitionkey, subject) is the tag's attribute.
func (e *Event) Set(a Attr) {
	tag := a.Tag
	if tag == TagExtension {
		tag = TagOf(a.Name)
	}
	if tag != TagExtension {
		if a.Unset {
			a.Value = ""
		}
		*e.field(tag) = a.Value
		return
	}
	for i := range e.Extensions {
		if e.Extensions[i].Name == a.Name {
			if a.Unset {
				e.Extensions = append(e.Extensions[:i], e.Extensions[i+1:]...)
			} else {
				e.Extensions[i].Kind, e.Extensions[i].Value = a.Kind, a.Value
			}
			return
		}
	}
	if !a.Unset {
		e.Extensions = append(e.Extensions, Attribute{a.Name, a.Kind, a.Value})
	}
}

func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
