package mqtt

import (
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A header is a packet's fixed header (2.1).
type header struct {
	kind  byte
	flags byte
	size  int // of what follows it
}

func (h header) qos() byte    { return h.flags >> 1 & 3 }
func (h header) dup() bool    { return h.flags&8 != 0 }
func (h header) retain() bool { return h.flags&1 != 0 }

// cutHeader reads the fixed header at the start of b: its length in bytes, 0 where b does not hold all of it. The lengths
// of both kinds of violation are bounded before anything is done for them.
func cutHeader(b []byte) (h header, n int, bad *violation) {
	if len(b) < 2 {
		return header{}, 0, nil
	}
	h.kind, h.flags = b[0]>>4, b[0]&0xF
	for i := 1; ; i++ {
		if i > 4 { // 1.5.5
			return h, 0, malformed("a length of more than four bytes")
		}
		if i == len(b) {
			return h, 0, nil
		}
		h.size |= int(b[i]&0x7F) << (7 * (i - 1))
		if b[i] < 0x80 {
			if b[i] == 0 && i > 1 { // [MQTT-1.5.5-1]
				return h, 0, malformed("a length in more bytes than it needs")
			}
			return h, i + 1, h.check()
		}
	}
}

// check refuses flags that the type of packet does not have (2.1.3).
func (h header) check() *violation {
	var want byte
	switch h.kind {
	case packets.Publish:
		switch {
		case h.qos() == 3: // [MQTT-3.3.1-4]
			return malformed("PUBLISH of QoS 3")
		case h.qos() == 0 && h.dup(): // [MQTT-3.3.1-2]
			return wrong("PUBLISH of QoS 0 with DUP")
		}
		return nil
	case packets.Pubrel, packets.Subscribe, packets.Unsubscribe: // [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1]
		want = 2
	}
	if h.flags != want {
		return malformed("the flags of a packet of type %d are %04b; want %04b", h.kind, h.flags, want) // [MQTT-2.1.3-1]
	}
	return nil
}

// readConnect reads CONNECT into pk (3.1). It sets pk.ProtocolVersion before anything that can be wrong behind it, so that
// the client is answered in what it speaks.
func readConnect(body []byte, pk *packets.Packet) *violation {
	c := cutter{b: body}
	if name := c.text(); c.bad == nil && name != "MQTT" && name != "MQIsdp" { // [MQTT-3.1.2-1]
		return wrong("the protocol is %.10q; want MQTT", name)
	}
	version := c.u8()
	if c.bad != nil {
		return c.bad
	}
	if pk.ProtocolVersion = version; version != 4 && version != 5 { // [MQTT-3.1.2-2]
		return &violation{packets.ErrUnsupportedProtocolVersion.Code, "this server speaks MQTT 3.1.1 and 5.0"}
	}
	flags := c.u8()
	p := &pk.Connect
	p.Clean, p.WillFlag, p.WillQos, p.WillRetain = flags&2 != 0, flags&4 != 0, flags>>3&3, flags&32 != 0
	p.PasswordFlag, p.UsernameFlag = flags&64 != 0, flags&128 != 0
	switch {
	case c.bad != nil:
	case flags&1 != 0: // [MQTT-3.1.2-3]
		c.fail(malformed("the reserved flag of CONNECT is set"))
	case p.WillQos == 3, !p.WillFlag && (p.WillQos != 0 || p.WillRetain): // [MQTT-3.1.2-11] to [MQTT-3.1.2-13]
		c.fail(malformed("the flags of the will are %08b", flags))
	case version == 4 && p.PasswordFlag && !p.UsernameFlag: // 3.1.1: [MQTT-3.1.2-22]
		c.fail(malformed("a password without a user name, which only MQTT 5.0 has"))
	}
	p.Keepalive = c.u16()
	if version == 5 {
		c.properties(packets.Connect, &pk.Properties)
	}
	p.ClientIdentifier = c.text()
	if p.WillFlag {
		if version == 5 {
			c.properties(packets.WillProperties, &p.WillProperties)
		}
		p.WillTopic = c.text()
		p.WillPayload = c.binary()
	}
	if p.UsernameFlag {
		p.Username = []byte(c.text())
	}
	if p.PasswordFlag {
		p.Password = c.binary()
	}
	return c.end()
}

// readPublish reads PUBLISH into pk (3.3), which has to be zero but for memory that it may use again. Nothing is
// allocated without user properties; everything borrows body.
func readPublish(h header, body []byte, version byte, pk *packets.Packet) *violation {
	pk.FixedHeader = packets.FixedHeader{Type: packets.Publish, Remaining: h.size, Qos: h.qos(), Dup: h.dup(), Retain: h.retain()}
	pk.ProtocolVersion = version
	c := cutter{b: body}
	pk.TopicName = c.text()
	if pk.FixedHeader.Qos > 0 {
		if pk.PacketID = c.u16(); c.bad == nil && pk.PacketID == 0 { // [MQTT-2.2.1-3]
			c.fail(wrong("PUBLISH of QoS %d with packet id 0", pk.FixedHeader.Qos))
		}
	}
	if version == 5 {
		c.properties(packets.Publish, &pk.Properties)
	}
	if c.bad != nil {
		return c.bad
	}
	if strings.ContainsAny(pk.TopicName, "+#") { // [MQTT-3.3.2-2]
		return &violation{packets.ErrTopicNameInvalid.Code, "the name of a message has a wildcard in it"}
	}
	if strings.ContainsAny(pk.Properties.ResponseTopic, "+#") { // [MQTT-3.3.2-14]
		return wrong("the response topic has a wildcard in it")
	}
	if pk.Payload = c.b; len(c.b) == 0 {
		pk.Payload = nil
	}
	return nil
}

// readAck reads PUBACK, PUBREC, PUBREL and PUBCOMP (3.4 to 3.7).
func readAck(h header, body []byte, version byte, pk *packets.Packet) *violation {
	pk.FixedHeader = packets.FixedHeader{Type: h.kind, Remaining: h.size}
	c := cutter{b: body}
	pk.PacketID, pk.ReasonCode = c.u16(), 0
	if version == 5 && len(c.b) > 0 {
		pk.ReasonCode = c.u8()
	}
	if version == 5 && len(c.b) > 0 {
		c.properties(h.kind, &pk.Properties)
	}
	if c.bad == nil && pk.PacketID == 0 {
		c.fail(wrong("an acknowledgement of packet id 0"))
	}
	if c.bad == nil && !ackCode(h.kind, pk.ReasonCode) { // [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1]
		c.fail(wrong("an acknowledgement of type %d with the reason code 0x%02X", h.kind, pk.ReasonCode))
	}
	return c.end()
}

// ackCode reports whether an acknowledgement may have a reason code (2.4).
func ackCode(kind, code byte) bool {
	if kind == packets.Pubrel || kind == packets.Pubcomp {
		return code == 0 || code == packets.ErrPacketIdentifierNotFound.Code
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrec}, ReasonCode: code} // those of PUBACK are the same
	return pk.ReasonCodeValid()
}

// readFilters reads SUBSCRIBE or UNSUBSCRIBE (3.8, 3.10); what is in the filters is not looked at.
func readFilters(h header, body []byte, version byte, pk *packets.Packet) *violation {
	pk.FixedHeader = packets.FixedHeader{Type: h.kind, Remaining: h.size}
	pk.ProtocolVersion = version
	c := cutter{b: body}
	pk.PacketID = c.u16()
	if c.bad == nil && pk.PacketID == 0 { // [MQTT-2.2.1-3]
		c.fail(wrong("a packet of type %d with packet id 0", h.kind))
	}
	if version == 5 {
		c.properties(h.kind, &pk.Properties)
	}
	for len(c.b) > 0 {
		sub := packets.Subscription{Filter: c.text()}
		if len(pk.Properties.SubscriptionIdentifier) > 0 {
			sub.Identifier = pk.Properties.SubscriptionIdentifier[0]
		}
		if h.kind == packets.Subscribe {
			o := c.u8()
			sub.Qos, sub.NoLocal, sub.RetainAsPublished, sub.RetainHandling = o&3, o&4 != 0, o&8 != 0, o>>4&3
			switch {
			case c.bad != nil:
			case version == 4 && o > 2, o&0xC0 != 0: // 3.1.1: [MQTT-3-8.3-4]; [MQTT-3.8.3-5]
				c.fail(malformed("the options of a subscription are %08b", o))
			case sub.Qos == 3 || sub.RetainHandling == 3: // 3.8.3.1
				c.fail(wrong("the options of a subscription are %08b", o))
			case sub.NoLocal && strings.HasPrefix(sub.Filter, "$share/"): // [MQTT-3.8.3-4]
				c.fail(wrong("a shared subscription with No Local"))
			}
		}
		if c.bad != nil {
			return c.bad
		}
		if len(pk.Filters) == maxFilters {
			return &violation{packets.ErrQuotaExceeded.Code, "too many filters in one packet"}
		}
		pk.Filters = append(pk.Filters, sub)
	}
	if c.bad == nil && len(pk.Filters) == 0 { // [MQTT-3.8.3-2], [MQTT-3.10.3-2]
		c.fail(wrong("a packet of type %d without a filter", h.kind))
	}
	return c.bad
}

// maxFilters of one packet: none has more than a session may.
const maxFilters = 1000

// readDisconnect reads DISCONNECT (3.14), readAuth AUTH (3.15): in both nothing stands for the reason code 0.
func readDisconnect(h header, body []byte, version byte, pk *packets.Packet) *violation {
	c := cutter{b: body}
	pk.ReasonCode = 0
	if version == 5 && len(c.b) > 0 {
		pk.ReasonCode = c.u8()
	}
	if version == 5 && len(c.b) > 0 {
		c.properties(h.kind, &pk.Properties)
	}
	return c.end()
}
