package grpcapi

import (
	"encoding/base64"
	"math"
	"math/bits"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/engine/event"
)

// This file writes what streams send from records, without messages in between: most of what a router sends over gRPC is
// events, and they lie in records.

// outgoing is a message that is encoded already: head, body and tail behind each other.
type outgoing struct{ head, body, tail []byte }

// codec is grpc's for protobuf, and passes on what is encoded.
type codec struct {
	encoding.CodecV2
	limits  event.Limits
	refused sync.Map // message → why it was not decoded, until it is told
}

// Marshal encodes a message. The body of an outgoing one goes back to its pool once it was sent.
func (c *codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*outgoing)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	out := make(mem.BufferSlice, 0, 3)
	if len(m.head) > 0 {
		out = append(out, mem.SliceBuffer(m.head))
	}
	if len(m.body) > 0 {
		out = append(out, mem.NewBuffer(&m.body, bodies{}))
	}
	if len(m.tail) > 0 {
		out = append(out, mem.SliceBuffer(m.tail))
	}
	return out, nil
}

// bodies keeps the memory of messages that were sent or stored, for others: in powers of two, so that none holds twice what
// it needs.
type bodies struct{}

// Memory is kept by the power of two that it has at least: of 32 KiB to 1 MiB.
const leastKept = 15

var bodyPools [6]sync.Pool // of *[]byte

// Get returns memory for n bytes.
func (bodies) Get(n int) *[]byte {
	i := max(bits.Len(uint(max(n, 1)-1))-leastKept, 0)
	if i >= len(bodyPools) {
		b := make([]byte, n)
		return &b
	}
	b, ok := bodyPools[i].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, 1<<(leastKept+i))
		b = &fresh
	}
	*b = (*b)[:n]
	return b
}

// Put takes it back, unless a large event has made it large.
func (bodies) Put(b *[]byte) {
	if i := bits.Len(uint(cap(*b))) - 1 - leastKept; i >= 0 && i < len(bodyPools) {
		bodyPools[i].Put(b)
	}
}

// newBody is an empty one.
func newBody() []byte { return (*bodies{}.Get(batchBytes / 2))[:0] }

// beginField opens a field that holds bytes; endField, with where they begin, writes their number, moving them where that
// takes more than the one byte that is kept for it.
func beginField(dst []byte, field protowire.Number) []byte {
	return append(protowire.AppendTag(dst, field, protowire.BytesType), 0)
}

func endField(dst []byte, at int) []byte {
	n := len(dst) - at
	size := protowire.SizeVarint(uint64(n))
	if size > 1 {
		var room [10]byte
		dst = append(dst, room[:size-1]...)
		copy(dst[at+size-1:], dst[at:at+n])
	}
	protowire.AppendVarint(dst[:at-1], uint64(n))
	return dst
}

func appendText(dst []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	return protowire.AppendString(protowire.AppendTag(dst, field, protowire.BytesType), text(s))
}

func appendNumber(dst []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), n)
}

func appendTime(dst []byte, field protowire.Number, t time.Time) []byte {
	dst = beginField(dst, field)
	at := len(dst)
	dst = appendNumber(dst, 1, uint64(t.Unix()))
	return endField(appendNumber(dst, 2, uint64(t.Nanosecond())), at)
}

func appendPosition(dst []byte, field protowire.Number, p event.Position) []byte {
	dst = beginField(dst, field)
	at := len(dst)
	dst = appendNumber(dst, 1, uint64(p.Partition))
	return endField(appendNumber(dst, 2, p.Offset), at)
}

// appendAnswer appends a PublishStreamResponse for events that are stored.
func appendAnswer(dst []byte, sequence uint64, evs []event.Event, pos []event.Position) []byte {
	dst = appendNumber(dst, 1, sequence)
	for i := range evs {
		dst = beginField(dst, 2)
		at := len(dst)
		dst = appendText(dst, 1, evs[i].ID)
		dst = endField(appendPosition(dst, 2, pos[i]), at)
	}
	return dst
}

// appendReceived appends an event as field 1 of a message of them.
func appendReceived(dst []byte, rec event.Record, cursor string) []byte {
	dst = beginField(dst, 1)
	at := len(dst)
	dst = beginField(dst, 1)
	in := len(dst)
	dst = endField(appendEvent(dst, rec), in)
	dst = appendPosition(dst, 2, rec.Position())
	dst = appendTime(dst, 3, rec.ReceivedAt())
	return endField(appendText(dst, 4, cursor), at)
}

// appendDelivery appends a delivery as field 1 of a message of them.
func appendDelivery(dst []byte, l *event.Lease) []byte {
	dst = beginField(dst, 1)
	at := len(dst)
	dst = appendText(dst, 1, l.ID)
	dst = appendText(dst, 2, l.Delivery)
	dst = appendNumber(dst, 3, uint64(l.Attempt))
	dst = appendTime(dst, 4, l.Deadline)
	dst = beginField(dst, 5)
	in := len(dst)
	dst = endField(appendEvent(dst, l.Event), in)
	dst = appendPosition(dst, 6, l.Event.Position())
	return endField(appendTime(dst, 7, l.Event.ReceivedAt()), at)
}

// appendEvent appends an event as the message of the CloudEvents protobuf format.
//
// A time is told as the instant that it is: not which zone it was written in.
func appendEvent(dst []byte, rec event.Record) []byte {
	var contentType, schema string
	dst = appendText(dst, 3, "1.0")
	for a := range rec.Attrs {
		name := a.Name
		switch a.Tag {
		case event.TagTopic:
			continue
		case event.TagID:
			dst = appendText(dst, 1, a.Value)
			continue
		case event.TagSource:
			dst = appendText(dst, 2, a.Value)
			continue
		case event.TagType:
			dst = appendText(dst, 4, a.Value)
			continue
		case event.TagDataContentType:
			contentType = a.Value
		case event.TagDataSchema:
			schema = a.Value
		case event.TagExtension:
			if name == extPosition { // where it lay when it was published again
				continue
			}
		}
		if a.Tag != event.TagExtension {
			if name = a.Tag.Name(); a.Value == "" {
				continue
			}
		}
		dst = beginField(dst, 5)
		at := len(dst)
		dst = appendText(dst, 1, name)
		dst = beginField(dst, 2)
		in := len(dst)
		dst = endField(endField(appendValue(dst, a.Kind, a.Value), in), at)
	}
	data := rec.Data()
	switch kind := media(contentType); {
	case data == nil:
	case kind == protobufType && schema != "":
		dst = beginField(dst, 8)
		at := len(dst)
		dst = appendText(dst, 1, schema)
		if len(data) > 0 {
			dst = protowire.AppendBytes(protowire.AppendTag(dst, 2, protowire.BytesType), data)
		}
		dst = endField(dst, at)
	case kind == "text/plain" && rec.Flags()&event.FlagBinary == 0 && utf8.Valid(data):
		dst = protowire.AppendBytes(protowire.AppendTag(dst, 7, protowire.BytesType), data)
	default: // JSON too: bytes are what every SDK reads as they stand
		dst = protowire.AppendBytes(protowire.AppendTag(dst, 6, protowire.BytesType), data)
	}
	return dst
}

// appendValue appends an attribute's value as its type; as a string where that cannot say it.
func appendValue(dst []byte, k event.Kind, v string) []byte {
	field := protowire.Number(3)
	switch k {
	case event.Boolean:
		if v == "true" || v == "false" {
			return protowire.AppendVarint(protowire.AppendTag(dst, 1, protowire.VarintType), protowire.EncodeBool(v == "true"))
		}
	case event.Integer:
		if n, err := strconv.ParseInt(v, 10, 32); err == nil && n >= math.MinInt32 && strconv.FormatInt(n, 10) == v {
			return protowire.AppendVarint(protowire.AppendTag(dst, 2, protowire.VarintType), uint64(n))
		}
	case event.Bytes:
		if b, err := base64.StdEncoding.Strict().DecodeString(v); err == nil && base64.StdEncoding.EncodeToString(b) == v {
			return protowire.AppendBytes(protowire.AppendTag(dst, 4, protowire.BytesType), b)
		}
	case event.URI:
		field = 5
	case event.URIReference:
		field = 6
	case event.Timestamp:
		if at, err := event.ParseTime(v); err == nil && (&timestamppb.Timestamp{Seconds: at.Unix(), Nanos: int32(at.Nanosecond())}).IsValid() {
			return appendTime(dst, 7, at)
		}
	}
	return protowire.AppendString(protowire.AppendTag(dst, field, protowire.BytesType), text(v))
}

// headOf is the tag and length of a field that holds n bytes.
func headOf(field protowire.Number, n int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(make([]byte, 0, 12), field, protowire.BytesType), uint64(n))
}
