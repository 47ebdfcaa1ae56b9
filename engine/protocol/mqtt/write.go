package mqtt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// An output is a connection's packetWriter. What is written gathers until flush or gathered bytes, so that many packets are
// one write; while there is nothing it keeps no memory.
type output struct {
	nc      net.Conn
	s       *Server
	timeout time.Duration

	mu       sync.Mutex
	version  byte
	most     uint32 // bytes of a packet that the client takes; 0: any number
	problems bool   // the client wants reason strings
	buf      *[]byte
	shut     bool  // nothing follows: DISCONNECT was written
	err      error // of a write: the connection is over
}

// gathered is how many bytes are written at once.
const gathered = 64 << 10

func newWritePool() *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, 0, 1<<10); return &b }}
}

// write takes a packet: see packetWriter.
func (o *output) write(pk *packets.Packet) (sent bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.append(pk)
}

// last writes the packet behind which there is none.
func (o *output) last(pk *packets.Packet) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := o.append(pk)
	if err == nil {
		err = o.send()
	}
	o.shut = true
	return err
}

// close has nothing more written.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shut = true
	o.free()
}

func (o *output) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.send()
}

// append encodes a packet behind what has gathered. The caller holds mu.
func (o *output) append(pk *packets.Packet) (sent bool, err error) {
	switch {
	case o.err != nil:
		return false, o.err
	case o.shut:
		return false, net.ErrClosed
	}
	if o.buf == nil {
		o.buf = o.s.writes.Get().(*[]byte)
	}
	from := len(*o.buf)
	pk.ProtocolVersion = o.version
	pk.Mods.DisallowProblemInfo = !o.problems
	if *o.buf, err = appendPacket(*o.buf, pk); err != nil {
		*o.buf = (*o.buf)[:from]
		return false, err
	}
	if n := len(*o.buf) - from; o.most > 0 && n > int(o.most) { // [MQTT-3.1.2-24]
		*o.buf = (*o.buf)[:from]
		o.s.stats.oversize.Add(1)
		return false, nil
	}
	o.s.stats.sent[pk.FixedHeader.Type&0xF].Add(1)
	if len(*o.buf) >= gathered {
		return true, o.send()
	}
	return true, nil
}

// send writes what has gathered. The caller holds mu.
func (o *output) send() error {
	if o.err != nil || o.buf == nil {
		return o.err
	}
	if err := o.nc.SetWriteDeadline(time.Now().Add(o.timeout)); err != nil {
		o.err = err
	} else if _, err := o.nc.Write(*o.buf); err != nil {
		if o.err = fmt.Errorf("the client does not read: %w", err); errors.Is(err, os.ErrDeadlineExceeded) {
			o.s.stats.slow.Add(1)
		}
	}
	if o.err != nil { // half a packet may have gone: whoever reads is to know
		_ = o.nc.Close()
	}
	o.free()
	return o.err
}

// free gives the buffer back, unless it is a large one, which nobody would need again.
func (o *output) free() {
	if o.buf != nil && cap(*o.buf) <= 2*gathered {
		*o.buf = (*o.buf)[:0]
		o.s.writes.Put(o.buf)
	}
	o.buf = nil
}

// appendPacket encodes a packet that a server sends, whose ProtocolVersion and Mods are the connection's.
func appendPacket(dst []byte, pk *packets.Packet) ([]byte, error) {
	switch pk.FixedHeader.Type {
	case packets.Publish:
		return appendPublish(dst, pk)
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		return appendAck(dst, pk), nil
	case packets.Pingresp:
		return append(dst, packets.Pingresp<<4, 0), nil
	}
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackEncode(&b)
	case packets.Suback:
		err = pk.SubackEncode(&b)
	case packets.Unsuback:
		err = pk.UnsubackEncode(&b)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&b)
	default:
		err = fmt.Errorf("mqtt: a server sends no packet of type %d", pk.FixedHeader.Type)
	}
	return append(dst, b.Bytes()...), err
}

// appendAck encodes PUBACK, PUBREC, PUBREL or PUBCOMP, which there are as many of as messages.
func appendAck(dst []byte, pk *packets.Packet) []byte {
	first := pk.FixedHeader.Type << 4
	if pk.FixedHeader.Type == packets.Pubrel {
		first |= 2 // [MQTT-3.6.1-1]
	}
	id := pk.PacketID
	if pk.ProtocolVersion < 5 || pk.ReasonCode == 0 {
		return append(dst, first, 2, byte(id>>8), byte(id))
	}
	reason := pk.Properties.ReasonString
	if pk.Mods.DisallowProblemInfo || len(reason) > maxReason {
		reason = ""
	}
	if reason == "" {
		return append(dst, first, 3, byte(id>>8), byte(id), pk.ReasonCode)
	}
	dst = append(dst, first)
	dst = appendLength(dst, 3+lengthSize(3+len(reason))+3+len(reason))
	dst = append(dst, byte(id>>8), byte(id), pk.ReasonCode)
	dst = appendLength(dst, 3+len(reason))
	return appendText(append(dst, packets.PropReasonString), reason)
}

// appendPublish encodes PUBLISH, without an allocation. The codec's own encoder leaves out response topic and correlation
// data for clients that did not ask for response information, which 3.1.2.11.6 says of CONNACK's only.
func appendPublish(dst []byte, pk *packets.Packet) ([]byte, error) {
	h, p := &pk.FixedHeader, &pk.Properties
	if h.Qos > 0 && pk.PacketID == 0 {
		return dst, fmt.Errorf("mqtt: a message of QoS %d without a packet id", h.Qos)
	}
	if n := max(len(pk.TopicName), len(p.ContentType), len(p.ResponseTopic), len(p.CorrelationData)); n > 0xFFFF {
		return dst, fmt.Errorf("mqtt: a field of %d bytes; a packet's holds 65535", n)
	}
	props := 0
	if pk.ProtocolVersion == 5 {
		props = publishProperties(p)
	}
	size := 2 + len(pk.TopicName) + len(pk.Payload)
	if h.Qos > 0 {
		size += 2
	}
	if pk.ProtocolVersion == 5 {
		size += lengthSize(props) + props
	}
	if size > 0xFFFFFFF {
		return dst, fmt.Errorf("mqtt: a packet of %d bytes; the most is %d", size, 0xFFFFFFF)
	}
	first := packets.Publish<<4 | h.Qos<<1
	if h.Dup {
		first |= 8
	}
	if h.Retain {
		first |= 1
	}
	dst = appendText(appendLength(append(dst, first), size), pk.TopicName)
	if h.Qos > 0 {
		dst = binary.BigEndian.AppendUint16(dst, pk.PacketID)
	}
	if pk.ProtocolVersion == 5 {
		dst = appendProperties(appendLength(dst, props), p)
	}
	return append(dst, pk.Payload...), nil
}

// publishProperties is how many bytes appendProperties appends.
func publishProperties(p *packets.Properties) (n int) {
	if p.PayloadFormatFlag {
		n += 2
	}
	if p.MessageExpiryInterval > 0 {
		n += 5
	}
	for _, s := range [...]string{p.ContentType, p.ResponseTopic} {
		if s != "" {
			n += 3 + len(s)
		}
	}
	if len(p.CorrelationData) > 0 {
		n += 3 + len(p.CorrelationData)
	}
	for _, id := range p.SubscriptionIdentifier {
		n += 1 + lengthSize(id)
	}
	if p.TopicAlias > 0 {
		n += 3
	}
	for _, u := range p.User {
		if len(u.Key) <= 0xFFFF && len(u.Val) <= 0xFFFF {
			n += 5 + len(u.Key) + len(u.Val)
		}
	}
	return n
}

// appendProperties appends those that PUBLISH of a server has (3.3.2.3). A user property that no packet holds is left out.
func appendProperties(dst []byte, p *packets.Properties) []byte {
	if p.PayloadFormatFlag {
		dst = append(dst, packets.PropPayloadFormat, p.PayloadFormat)
	}
	if p.MessageExpiryInterval > 0 {
		dst = binary.BigEndian.AppendUint32(append(dst, packets.PropMessageExpiryInterval), p.MessageExpiryInterval)
	}
	if p.ContentType != "" {
		dst = appendText(append(dst, packets.PropContentType), p.ContentType)
	}
	if p.ResponseTopic != "" {
		dst = appendText(append(dst, packets.PropResponseTopic), p.ResponseTopic)
	}
	if len(p.CorrelationData) > 0 {
		dst = appendText(append(dst, packets.PropCorrelationData), borrow(p.CorrelationData))
	}
	for _, id := range p.SubscriptionIdentifier {
		dst = appendLength(append(dst, packets.PropSubscriptionIdentifier), id)
	}
	if p.TopicAlias > 0 {
		dst = binary.BigEndian.AppendUint16(append(dst, packets.PropTopicAlias), p.TopicAlias)
	}
	for _, u := range p.User {
		if len(u.Key) <= 0xFFFF && len(u.Val) <= 0xFFFF {
			dst = appendText(appendText(append(dst, packets.PropUser), u.Key), u.Val)
		}
	}
	return dst
}

// appendText appends a string or binary data of up to 65,535 bytes (1.5.4, 1.5.6).
func appendText(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// appendLength appends a variable byte integer (1.5.5), which has lengthSize bytes.
func appendLength(dst []byte, n int) []byte {
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}

func lengthSize(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}
