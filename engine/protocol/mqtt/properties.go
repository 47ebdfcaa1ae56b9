package mqtt

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A cutter takes fields off the front of a packet's body. It is what keeps a stranger's lengths inside the packet: the
// codec's own decoders take some on trust. After a failure everything that is cut is zero.
type cutter struct {
	b   []byte
	bad *violation
}

func (c *cutter) fail(v *violation) {
	if c.bad == nil {
		c.bad = v
	}
	c.b = nil
}

func (c *cutter) u8() byte {
	if len(c.b) < 1 {
		c.fail(malformed("it ends within a field"))
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cutter) u16() uint16 {
	if len(c.b) < 2 {
		c.fail(malformed("it ends within a field"))
		return 0
	}
	v := binary.BigEndian.Uint16(c.b)
	c.b = c.b[2:]
	return v
}

func (c *cutter) u32() uint32 {
	if len(c.b) < 4 {
		c.fail(malformed("it ends within a field"))
		return 0
	}
	v := binary.BigEndian.Uint32(c.b)
	c.b = c.b[4:]
	return v
}

// binary is a field of binary data (1.5.6).
func (c *cutter) binary() []byte {
	n := int(c.u16())
	if n > len(c.b) {
		c.fail(malformed("a field of %d bytes in %d", n, len(c.b)))
	}
	if c.bad != nil {
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

// text is a UTF-8 string (1.5.4): no surrogates [MQTT-1.5.4-1], no U+0000 [MQTT-1.5.4-2]. It borrows the packet.
func (c *cutter) text() string {
	v := c.binary()
	for _, b := range v {
		if b == 0 {
			c.fail(malformed("a string with U+0000 in it"))
			return ""
		}
	}
	if !utf8.Valid(v) {
		c.fail(malformed("a string that is not UTF-8"))
		return ""
	}
	return borrow(v)
}

// length is a variable byte integer (1.5.5): at most four bytes, and as few as will do.
func (c *cutter) length() int {
	v := 0
	for i := range 4 {
		b := c.u8()
		if c.bad != nil {
			return 0
		}
		v |= int(b&0x7F) << (7 * i)
		if b < 0x80 {
			if b == 0 && i > 0 {
				c.fail(malformed("a length in more bytes than it needs")) // [MQTT-1.5.5-1]
				return 0
			}
			return v
		}
	}
	c.fail(malformed("a length of more than four bytes"))
	return 0
}

// end fails where there is more than the packet has fields.
func (c *cutter) end() *violation {
	if c.bad == nil && len(c.b) > 0 {
		c.fail(malformed("%d bytes behind its last field", len(c.b)))
	}
	return c.bad
}

// A shape is how a property is written.
type shape uint8

const (
	noProperty shape = iota
	flagShape        // a byte of 0 or 1
	twoShape
	fourShape
	lengthShape
	textShape
	binaryShape
	pairShape
)

// property says how a property is written and whether a client may send it in a packet of the type pk (2.2.2.2), where
// packets.WillProperties stands for those of a will.
func property(id, pk byte) (shape, bool) {
	message := pk == packets.Publish || pk == packets.WillProperties
	acked := pk >= packets.Puback && pk <= packets.Pubcomp
	switch id {
	case packets.PropPayloadFormat:
		return flagShape, message
	case packets.PropMessageExpiryInterval:
		return fourShape, message
	case packets.PropContentType, packets.PropResponseTopic:
		return textShape, message
	case packets.PropCorrelationData:
		return binaryShape, message
	case packets.PropSubscriptionIdentifier:
		return lengthShape, pk == packets.Subscribe // and PUBLISH of a server only [MQTT-3.3.4-6]
	case packets.PropSessionExpiryInterval:
		return fourShape, pk == packets.Connect || pk == packets.Disconnect
	case packets.PropAuthenticationMethod:
		return textShape, pk == packets.Connect || pk == packets.Auth
	case packets.PropAuthenticationData:
		return binaryShape, pk == packets.Connect || pk == packets.Auth
	case packets.PropRequestProblemInfo, packets.PropRequestResponseInfo:
		return flagShape, pk == packets.Connect
	case packets.PropWillDelayInterval:
		return fourShape, pk == packets.WillProperties
	case packets.PropReasonString:
		return textShape, acked || pk == packets.Disconnect || pk == packets.Auth
	case packets.PropReceiveMaximum, packets.PropTopicAliasMaximum:
		return twoShape, pk == packets.Connect
	case packets.PropTopicAlias:
		return twoShape, pk == packets.Publish
	case packets.PropUser:
		return pairShape, true
	case packets.PropMaximumPacketSize:
		return fourShape, pk == packets.Connect
	}
	return noProperty, false
}

// maxPairs is how many user properties a packet may have; an event has fewer attributes.
const maxPairs = 256

// properties cuts the properties of a packet of the type pk into p, which has to be zero but for the memory of p.User. What
// the codec takes is refused here: a property twice (2.2.2.2), one that is cut off by the end of the properties, a value
// that is none.
func (c *cutter) properties(pk byte, p *packets.Properties) {
	n := c.length()
	if n > len(c.b) {
		c.fail(malformed("properties of %d bytes in %d", n, len(c.b)))
	}
	if c.bad != nil {
		return
	}
	in := cutter{b: c.b[:n]}
	c.b = c.b[n:]
	var seen uint64
	for len(in.b) > 0 && in.bad == nil {
		id := in.u8()
		form, ok := property(id, pk)
		switch {
		case form == noProperty:
			in.fail(malformed("a property %d, which there is not", id))
		case !ok:
			in.fail(wrong("a property %d, which this packet of a client does not have", id))
		case form != pairShape && seen&(1<<id) != 0:
			in.fail(wrong("property %d twice", id))
		default:
			seen |= 1 << id
			in.property(id, form, p)
		}
	}
	if in.bad != nil {
		c.fail(in.bad)
	}
}

// property cuts one property's value into p.
func (c *cutter) property(id byte, form shape, p *packets.Properties) {
	var (
		n    uint32
		text string
		data []byte
	)
	switch form {
	case flagShape:
		if n = uint32(c.u8()); n > 1 {
			c.fail(wrong("property %d is %d; want 0 or 1", id, n))
		}
	case twoShape:
		n = uint32(c.u16())
	case fourShape:
		n = c.u32()
	case lengthShape:
		n = uint32(c.length())
	case textShape:
		text = c.text()
	case binaryShape:
		data = c.binary()
	case pairShape:
		if len(p.User) == maxPairs {
			c.fail(&violation{packets.ErrQuotaExceeded.Code, fmt.Sprintf("over %d user properties", maxPairs)})
			return
		}
		p.User = append(p.User, packets.UserProperty{Key: c.text(), Val: c.text()})
	}
	if c.bad != nil {
		return
	}
	switch id {
	case packets.PropPayloadFormat:
		p.PayloadFormat, p.PayloadFormatFlag = byte(n), true
	case packets.PropMessageExpiryInterval:
		p.MessageExpiryInterval = n
	case packets.PropContentType:
		p.ContentType = text
	case packets.PropResponseTopic:
		p.ResponseTopic = text
	case packets.PropCorrelationData:
		p.CorrelationData = data
	case packets.PropSubscriptionIdentifier:
		p.SubscriptionIdentifier = []int{int(n)}
	case packets.PropSessionExpiryInterval:
		p.SessionExpiryInterval, p.SessionExpiryIntervalFlag = n, true
	case packets.PropAuthenticationMethod:
		p.AuthenticationMethod = text
	case packets.PropAuthenticationData:
		p.AuthenticationData = data
	case packets.PropRequestProblemInfo:
		p.RequestProblemInfo, p.RequestProblemInfoFlag = byte(n), true
	case packets.PropRequestResponseInfo:
		p.RequestResponseInfo = byte(n)
	case packets.PropWillDelayInterval:
		p.WillDelayInterval = n
	case packets.PropReceiveMaximum:
		p.ReceiveMaximum = uint16(n)
	case packets.PropTopicAliasMaximum:
		p.TopicAliasMaximum = uint16(n)
	case packets.PropTopicAlias:
		p.TopicAlias, p.TopicAliasFlag = uint16(n), true
	case packets.PropMaximumPacketSize:
		p.MaximumPacketSize = n
	}
	zero := n == 0
	switch {
	case zero && (id == packets.PropReceiveMaximum || id == packets.PropMaximumPacketSize || id == packets.PropSubscriptionIdentifier):
		c.fail(wrong("property %d is 0", id)) // 3.1.2.11.3, 3.1.2.11.4, 3.8.2.1.2
	case zero && id == packets.PropTopicAlias:
		c.fail(&violation{packets.ErrTopicAliasInvalid.Code, "topic alias 0"}) // [MQTT-3.3.2-8]
	}
}
