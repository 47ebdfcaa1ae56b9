package mqtt

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
	"github.com/mochi-mqtt/server/v2/packets"
)

// This file and the two beside it turn messages into events and back, as the CloudEvents MQTT protocol binding 1.0.2 says
// and, for messages that are no CloudEvents, as the mapping of their name says. docs/mqtt.md shows the table.

// The extensions in which an event keeps what MQTT says of a message. A client does not set the first three: they are the
// router's word.
const (
	TopicExtension    = "mqtttopic"         // the name that it was published under
	plainExtension    = "mqttplain"         // that the message was no CloudEvent: typed if it said its content type, else untyped
	formatExtension   = "mqttpayloadformat" // 1: the message said that its payload is UTF-8
	responseExtension = "mqttresponsetopic"
	correlationExt    = "mqttcorrelation" // in base64
	expiryExtension   = "mqttexpiry"      // when the message ends
)

// The values of plainExtension.
const (
	typed   = "typed"
	untyped = "untyped"
)

// Why a message is refused, besides event's errors, which they stand beside.
var (
	errUnmapped = errors.New("no mapping takes the name")          // 0x90, Topic Name invalid
	errName     = errors.New("not a topic name that is taken")     // 0x90
	errPayload  = errors.New("not the payload that it says it is") // 0x99, Payload format invalid
)

// cloudEvents is how content types begin that say that the payload is a whole CloudEvent (binding, 3).
const cloudEvents = "application/cloudevents"

// attribute is where an event keeps the attribute that CloudEvents calls name; nil for extensions.
func attribute(ev *event.Event, name string) *string {
	switch name {
	case "id":
		return &ev.ID
	case "source":
		return &ev.Source
	case "type":
		return &ev.Type
	case "subject":
		return &ev.Subject
	case "datacontenttype":
		return &ev.DataContentType
	case "dataschema":
		return &ev.DataSchema
	case "time":
		return &ev.Time
	case "partitionkey":
		return &ev.PartitionKey
	case "traceparent":
		return &ev.TraceParent
	}
	return nil
}

// isExtension reports whether a user property can be an extension: CloudEvents allows lower-case letters and digits.
func isExtension(name string) bool {
	switch name {
	case "", "specversion", "data", TopicExtension, plainExtension, formatExtension:
		return false
	}
	if isMade(name) {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return len(name) <= event.MaxName
}

// user returns the first user property of a name.
func user(pk *packets.Packet, name string) (value string, ok bool) {
	for i := range pk.Properties.User {
		if p := &pk.Properties.User[i]; p.Key == name {
			return p.Val, true
		}
	}
	return "", false
}

// validText reports whether s can be a string of MQTT [MQTT-1.5.4-1], [MQTT-1.5.4-2]: a function may have put anything
// into an attribute.
func validText(s string) bool {
	return len(s) <= 1<<16-1 && strings.IndexByte(s, 0) < 0 && utf8.ValidString(s)
}
