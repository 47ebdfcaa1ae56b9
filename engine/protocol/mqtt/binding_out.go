package mqtt

import (
	"encoding/base64"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
	"github.com/mochi-mqtt/server/v2/packets"
)

// give makes pk, a PUBLISH whose ProtocolVersion is the client's and whose fixed header and packet id are the caller's, of
// an event under a name, which NameOf gave; structured is what its source says of it. It reports false for a message
// that has ended by now, which is not sent [MQTT-3.3.2-5]. pk borrows rec and name, and nothing of pk's before: one event
// may be given to several clients at a time.
func give(pk *packets.Packet, rec event.Record, name string, structured bool, now time.Time) bool {
	pk.TopicName, pk.Payload, pk.Properties = name, rec.Data(), packets.Properties{}
	// The codec leaves response topics out unless it is told that they are wanted, which is a matter of CONNACK's response
	// information alone, and user properties where they make a packet too large [MQTT-3.3.2-15] to [MQTT-3.3.2-17].
	pk.Mods = packets.Mods{AllowResponseInfo: true}
	p := &pk.Properties
	plain, mime := "", ""
	for a := range rec.Attrs {
		switch {
		case a.Tag == event.TagDataContentType:
			mime = a.Value
		case a.Tag != event.TagExtension:
		case a.Name == plainExtension:
			plain = a.Value
		case a.Name == formatExtension:
			p.PayloadFormat, p.PayloadFormatFlag = 1, a.Value == "1"
		case a.Name == responseExtension && mqttname.ValidName(a.Value):
			p.ResponseTopic = a.Value
		case a.Name == correlationExt:
			if b, err := base64.StdEncoding.DecodeString(a.Value); err == nil && len(b) <= 1<<16-1 {
				p.CorrelationData = b
			}
		case a.Name == expiryExtension:
			left, ok := expiry(a.Value, now)
			if !ok {
				return false
			}
			p.MessageExpiryInterval = left
		}
	}
	if pk.ProtocolVersion < 5 {
		pk.Properties = packets.Properties{}
		if structured { // 3.1.1 is always structured, in JSON (binding, 3)
			pk.Payload = rec.AppendStructured(make([]byte, 0, rec.Len()+rec.Len()/2))
		}
		return true
	}
	if structured {
		plain = ""
	}
	if p.PayloadFormatFlag = p.PayloadFormatFlag && !isBinary(rec); !p.PayloadFormatFlag {
		p.PayloadFormat = 0
	}
	if plain != untyped && validText(mime) {
		p.ContentType = mime
	}
	p.User = userProperties(rec, plain != "")
	return true
}

func isBinary(rec event.Record) bool { return rec.Flags()&event.FlagBinary != 0 }

// expiry is how many seconds are left of a message, at least one; ok is false where none is. What is no time never ends.
func expiry(value string, now time.Time) (left uint32, ok bool) {
	end, err := event.ParseTime(value)
	if err != nil {
		return 0, true
	}
	d := end.Sub(now)
	if d <= 0 {
		return 0, false
	}
	return uint32(min((d-1)/time.Second+1, 1<<32-1)), true
}

// userProperties are the attributes of a CloudEvent (binding, 3.1.3), datacontenttype among them as in the binding's
// example, for there are SDKs that look for it nowhere else; or what a message that is none had.
func userProperties(rec event.Record, plain bool) []packets.UserProperty {
	n := 1
	for range rec.Attrs {
		n++
	}
	all := make([]packets.UserProperty, 0, n)
	if !plain {
		all = append(all, packets.UserProperty{Key: "specversion", Val: "1.0"})
	}
	for a := range rec.Attrs {
		name := a.Name
		switch {
		case a.Tag == event.TagExtension:
			if a.Name == plainExtension || a.Name == formatExtension || isMade(a.Name) || plain && strings.HasPrefix(a.Name, "mqtt") && ours(a.Name) {
				continue // MQTT's own fields have it
			}
		case a.Tag == event.TagTopic, a.Value == "", plain && a.Tag != event.TagTraceParent:
			continue
		default:
			name = a.Tag.Name()
		}
		if validText(a.Value) && validText(name) {
			all = append(all, packets.UserProperty{Key: name, Val: a.Value})
		}
	}
	return all
}

func ours(name string) bool {
	switch name {
	case TopicExtension, responseExtension, correlationExt, expiryExtension:
		return true
	}
	return false
}
