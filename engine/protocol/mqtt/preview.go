package mqtt

import (
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Preview is the event that data becomes which a client of MQTT 3.1.1 publishes under name at a time, and the mapping that
// takes it. Its id, mqttqos, mqttretain and mqttfrom aside it has what it gets where it is stored; nothing is published. The
// error is that of a client's message.
func Preview(n *Names, name string, data []byte, now time.Time) (event.Event, event.MQTTMapping, error) {
	var in intake
	var ev event.Event
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, ProtocolVersion: 4, TopicName: strings.Clone(name), Payload: data}
	m, err := in.take(&ev, &pk, n, event.Limits{}, now)
	if err != nil {
		return event.Event{}, event.MQTTMapping{}, err
	}
	if ev.Type == "" {
		ev.Type = "event"
	}
	if ev.Source == "" {
		ev.Source = "/topics/" + m.Topic
	}
	return ev, m.MQTTMapping, nil
}
