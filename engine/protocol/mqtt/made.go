package mqtt

import (
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// made is what an event says of the message that it came in as.
type made struct {
	qos    byte   // at most what it is sent with [MQTT-3.8.4-8]
	retain bool   // it was published with RETAIN
	from   string // mark of the client that published it, "" if unknown
}

// Extensions that say so, which are the router's word. An event that did not come by MQTT has none.
const (
	qosExtension    = "mqttqos" // 0 or 1; of one without, subscriptions alone decide
	retainExtension = "mqttretain"
	fromExtension   = "mqttfrom"
)

func isMade(extension string) bool {
	return extension == qosExtension || extension == retainExtension || extension == fromExtension
}

// madeBy writes it down. What several clients may publish as one event, because it has an id of its own, does not say
// which of them did: it would not be the same event.
func madeBy(ev *event.Event, qos byte, retain bool, mark string) {
	switch qos {
	case 0:
		set(ev, qosExtension, event.Integer, "0")
	case 1:
		set(ev, qosExtension, event.Integer, "1")
	}
	if retain {
		set(ev, retainExtension, event.Boolean, "true")
	}
	if !ev.ClientID {
		set(ev, fromExtension, event.String, mark)
	}
}

func madeOf(rec event.Record) made {
	m := made{qos: 2}
	if a, ok := rec.Extension(qosExtension); ok && len(a.Value) == 1 && a.Value[0] <= '2' {
		m.qos = a.Value[0] - '0'
	}
	if a, ok := rec.Extension(retainExtension); ok {
		m.retain = a.Value == "true"
	}
	if a, ok := rec.Extension(fromExtension); ok {
		m.from = strings.Clone(a.Value)
	}
	return m
}
