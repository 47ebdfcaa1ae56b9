package redpanda

import (
	"encoding/binary"
	"math"
	"strings"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi"
)

// Names of CloudEvents' Kafka binding, 3.2: attributes are headers with a prefix, the content type is one without.
const (
	prefix      = "ce_"
	contentType = "content-type"
	specVersion = "specversion"
)

// readBatchHeader is read_batch_header(ten places to write to) -> most bytes of one record. It waits for a batch.
func (g *guest) readBatchHeader(s []uint64) {
	g.settle()
	if !g.yield(struct{}{}) {
		g.in.End(errStopped)
	}
	first, last := g.b.Event(0), g.b.Event(g.b.Len()-1)
	most := 0
	for i := range g.b.Len() {
		g.payload = appendPayload(g.payload[:0], g.b.Event(i))
		most = max(most, len(g.payload))
	}
	m, fits := g.in.Memory(), true
	for i, f := range []struct {
		size  int
		value int64
	}{
		{8, int64(first.Offset())}, {4, int64(g.b.Len())}, {4, 0}, {2, 0}, {4, int64(last.Offset() - first.Offset())},
		{8, first.Received() / 1e6}, {8, last.Received() / 1e6}, {8, -1}, {2, -1}, {4, -1},
	} {
		at := uint32(s[i])
		switch f.size {
		case 2:
			fits = m.WriteUint16Le(at, uint16(f.value)) && fits
		case 4:
			fits = m.WriteUint32Le(at, uint32(f.value)) && fits
		default:
			fits = m.WriteUint64Le(at, uint64(f.value)) && fits
		}
	}
	if !fits {
		g.in.End(plugins.BadOutput(-1, "read_batch_header is to write outside of the memory"))
	}
	s[0] = code(int32(most))
}

// readNextRecord is read_next_record(attributes, timestamp, offset, buf, len) -> size, below 0 if there is none or it
// does not fit.
func (g *guest) readNextRecord(s []uint64) {
	if g.b == nil || g.at+1 >= g.b.Len() {
		s[0] = code(-1)
		return
	}
	g.settle()
	g.at++
	g.said = abi.About(g.out)
	r := g.b.Event(g.at)
	g.payload = appendPayload(g.payload[:0], r)
	if uint64(len(g.payload)) > uint64(uint32(s[4])) {
		s[0] = code(-2)
		return
	}
	g.in.Work(len(g.payload))
	m := g.in.Memory()
	if !m.WriteByte(uint32(s[0]), 0) || !m.WriteUint64Le(uint32(s[1]), uint64(r.Received()/1e6)) ||
		!m.WriteUint64Le(uint32(s[2]), r.Offset()) || !m.Write(uint32(s[3]), g.payload) {
		g.in.End(plugins.BadOutput(g.at, "read_next_record is to write outside of the memory"))
	}
	s[0] = code(int32(len(g.payload)))
}

// writeRecord is write_record(buf, len) -> len.
func (g *guest) writeRecord(s []uint64) { s[0] = g.write(uint32(s[0]), uint32(s[1]), "") }

// topicOption is the option that names another topic.
const topicOption = 1

// writeRecordWithOptions is write_record_with_options(buf, len, options, len) -> len.
func (g *guest) writeRecordWithOptions(s []uint64) {
	raw, ok := g.in.Memory().Read(uint32(s[2]), uint32(s[3]))
	if !ok {
		g.in.End(plugins.BadOutput(g.at, "options of %d bytes at %d, outside of the memory", uint32(s[3]), uint32(s[2])))
	}
	g.in.Work(len(raw))
	topic := ""
	for o := (cutter{b: raw}); len(o.b) > 0; {
		key := o.b[0]
		o.b = o.b[1:]
		name, _ := o.sized()
		if o.bad || key != topicOption {
			g.in.End(plugins.BadOutput(g.at, "options that are not a topic's name: % .40x", raw))
		}
		topic = string(name)
	}
	s[0] = g.write(uint32(s[0]), uint32(s[1]), topic)
}

// write takes a record as an event like the one at work, with what the record says in its stead.
func (g *guest) write(at, n uint32, topic string) uint64 {
	if g.b == nil || g.at < 0 {
		return code(-1) // there is nothing that this could come of
	}
	bad := func(format string, args ...any) { g.in.End(plugins.BadOutput(g.at, format, args...)) }
	raw, ok := g.in.Memory().Read(at, n)
	if !ok {
		bad("a record of %d bytes at %d, outside of the memory", n, at)
	}
	if g.written += int(n); g.written > g.b.MaxOutput {
		bad("more than %d bytes of output of one call (limits.output)", g.b.MaxOutput)
	}
	g.in.Work(len(raw))
	c := cutter{b: raw}
	key, hasKey := c.sized()
	value, hasValue := c.sized()
	in := g.b.Event(g.at)
	r := plugins.Result{Verdict: plugins.Emit, Flags: plugins.Inherit}
	start := len(g.out.Buf)
	add := func(a event.Attr) {
		g.out.Buf = abi.AppendAttr(g.out.Buf, a)
		r.Count++
	}
	if topic != "" {
		add(event.Attr{Tag: event.TagTopic, Value: topic})
	}
	if hasKey && string(key) != in.Attr(event.TagPartitionKey) {
		add(event.Attr{Tag: event.TagPartitionKey, Value: string(key)})
	}
	for count := c.varint(); count > 0 && !c.bad; count-- {
		name, _ := c.sized()
		v, given := c.sized()
		if attr := attributeOf(string(name)); attr != "" && !holds(in, attr, string(v), given) {
			add(event.Attr{Name: attr, Value: string(v), Unset: !given})
		}
	}
	if c.bad || len(c.b) > 0 {
		bad("a record of %d bytes that is not key, value and headers", n)
	}
	r.Attrs = g.out.Buf[start:len(g.out.Buf):len(g.out.Buf)]
	if hasValue {
		start = len(g.out.Buf)
		g.out.Buf = append(g.out.Buf, value...)
		r.Data = g.out.Buf[start:len(g.out.Buf):len(g.out.Buf)]
	}
	g.add(r)
	return code(int32(n))
}

// attributeOf is the attribute that a header stands for; "" for none: its name is none of an attribute.
func attributeOf(header string) string {
	if header == contentType {
		return "datacontenttype"
	}
	name := strings.TrimPrefix(header, prefix)
	if name == specVersion || name == "data" || name == "" || len(name) > math.MaxUint8 {
		return ""
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return ""
		}
	}
	return name
}

// holds reports whether an event has an attribute already, so that what a transform only passed on keeps its type, and
// the id of the input is not that of what was made of it.
func holds(r event.Record, name, value string, given bool) bool {
	for a := range r.Attrs {
		n := a.Name
		if a.Tag != event.TagExtension {
			n = a.Tag.Name()
		}
		if n == name {
			return given && a.Value == value
		}
	}
	return !given
}

// appendPayload appends an event as a record: key, value and headers.
func appendPayload(dst []byte, r event.Record) []byte {
	key := r.Attr(event.TagPartitionKey)
	if key == "" {
		dst = binary.AppendVarint(dst, -1)
	} else {
		dst = appendSized(dst, "", key)
	}
	if data := r.Data(); data == nil {
		dst = binary.AppendVarint(dst, -1)
	} else {
		dst = append(binary.AppendVarint(dst, int64(len(data))), data...)
	}
	headers := int64(1)
	for a := range r.Attrs {
		if a.Tag != event.TagTopic && a.Value != "" {
			headers++
		}
	}
	dst = binary.AppendVarint(dst, headers)
	dst = appendSized(dst, prefix, specVersion)
	dst = appendSized(dst, "", "1.0")
	for a := range r.Attrs {
		switch {
		case a.Tag == event.TagTopic || a.Value == "":
			continue
		case a.Tag == event.TagDataContentType:
			dst = appendSized(dst, "", contentType)
		case a.Tag == event.TagExtension:
			dst = appendSized(dst, prefix, a.Name)
		default:
			dst = appendSized(dst, prefix, a.Tag.Name())
		}
		dst = appendSized(dst, "", a.Value)
	}
	return dst
}

func appendSized(dst []byte, a, b string) []byte {
	dst = binary.AppendVarint(dst, int64(len(a)+len(b)))
	return append(append(dst, a...), b...)
}

// A cutter cuts a record apart. After the first fault it returns nothing.
type cutter struct {
	b   []byte
	bad bool
}

func (c *cutter) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 || c.bad {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

// sized is bytes behind their length; a length of -1 is none at all.
func (c *cutter) sized() (b []byte, given bool) {
	n := c.varint()
	if c.bad || n == -1 {
		return nil, false
	}
	if n < 0 || n > int64(len(c.b)) {
		c.bad = true
		return nil, false
	}
	b, c.b = c.b[:n], c.b[n:]
	return b, true
}
