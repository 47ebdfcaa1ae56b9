package grpcapi

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/sdk/client/millracev1"
)

// recordsOfEvent is how many parts an event may have on average that memory is taken for: an attribute is two.
const recordsOfEvent = 40

// Unmarshal decodes a message that has no more parts than the largest batch may have. An empty event is two bytes of a
// message and a hundred times that in memory: a message is not decoded before its parts are counted.
// One that is refused is noted: what Unmarshal itself returns grpc tells as a fault of the router's own.
func (c *codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	t, publishes := v.(*taken)
	if !publishes && (!ok || data.Len() <= largeMessage) {
		return c.CodecV2.Unmarshal(data, v)
	}
	b := inOnePiece(data)
	if publishes {
		t.size = b.Len()
		if t.decode(b.ReadOnlyData(), c.limits) {
			t.wire = b
			return nil
		}
		t.asked = &millracev1.PublishStreamRequest{}
		m = t.asked
	}
	defer b.Free()
	if b.Len() > largeMessage {
		left := recordsOfEvent * c.limits.Events
		if err := countRecords(m.ProtoReflect().Descriptor(), b.ReadOnlyData(), &left, 0); err != nil {
			c.refused.Store(v, err)
			return nil
		}
	}
	return proto.Unmarshal(b.ReadOnlyData(), m)
}

// inOnePiece is a message in one piece. A small one takes no more memory than it has bytes, others not twice as much: many may
// wait to be stored.
func inOnePiece(data mem.BufferSlice) mem.Buffer {
	if data.Len() <= largeMessage {
		return mem.SliceBuffer(data.Materialize())
	}
	return data.MaterializeToBuffer(bodies{})
}

// countRecords takes the parts of a message, and of those within it, from how many are left. What is no protobuf is left to the
// decoder, which says so.
func countRecords(md protoreflect.MessageDescriptor, b []byte, left *int, depth int) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || depth > 100 {
			return nil
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return nil
		}
		value := b[:n]
		b = b[n:]
		fd := md.Fields().ByNumber(num)
		if fd == nil || typ != protowire.BytesType || fd.Message() == nil && !fd.IsList() {
			continue
		}
		if *left--; *left < 0 {
			return status.Error(codes.ResourceExhausted, fmt.Sprintf("a message of too many parts: at most %d for each event that a request may have; send several", recordsOfEvent))
		}
		if fd.Message() == nil {
			continue
		}
		inner, n := protowire.ConsumeBytes(value)
		if n < 0 {
			return nil
		}
		if err := countRecords(fd.Message(), inner, left, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// refusal is why a message that was read is not what came.
func (c *codec) refusal(m any) error {
	if err, ok := c.refused.LoadAndDelete(m); ok {
		return err.(error)
	}
	return nil
}
