package main

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	descMQTTConnections = describe("mqtt_connections", "Open MQTT connections.")
	descMQTTSessions    = describe("mqtt_sessions", "MQTT sessions, with and without a connection.")
	descMQTTRetained    = describe("mqtt_retained", "Names that have a retained message.")
	descMQTTWills       = describe("mqtt_wills", "Wills of MQTT clients, connected or not.")
	descMQTTWillBytes   = describe("mqtt_will_bytes", "Memory that those take; --mqtt-wills bounds it.")
	descMQTTPackets     = describe("mqtt_packets_total", "MQTT packets, in and out, by type.", "direction", "type")
	descMQTTRefused     = describe("mqtt_publish_refused_total", "Messages of MQTT clients that were not stored, by reason code.", "reason")
	descMQTTEnded       = describe("mqtt_ended_total", "MQTT connections that the router ended or did not let in, by reason code.", "reason")
	descMQTTDropped     = describe("mqtt_dropped_total", "What was not sent to MQTT clients, by why: packets too large for their client, connections whose client did not read, messages of QoS 0 that there was no room for, events that the ring dropped before a session had read them, messages past their expiry, and retained messages that are not kept for want of room.", "why")
	descMQTTWaiting     = describe("mqtt_waiting_bytes", "Bytes of messages that wait for MQTT clients.")
)

// mqttPackets are the types of packets by number (2.1.2).
var mqttPackets = [16]string{"", "connect", "connack", "publish", "puback", "pubrec", "pubrel", "pubcomp", "subscribe", "suback",
	"unsubscribe", "unsuback", "pingreq", "pingresp", "disconnect", "auth"}

func (m *metrics) collectMQTT(out chan<- prometheus.Metric) {
	if m.mqtt == nil {
		return
	}
	s := m.mqtt.Stats()
	gauge := func(d *prometheus.Desc, v int) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descMQTTConnections, s.Connections)
	gauge(descMQTTSessions, s.Sessions)
	gauge(descMQTTRetained, s.Retained)
	gauge(descMQTTWills, s.Wills)
	gauge(descMQTTWillBytes, int(s.WillBytes))
	for i, name := range mqttPackets {
		if s.Received[i] > 0 && name != "" {
			count(descMQTTPackets, s.Received[i], "in", name)
		}
		if s.Sent[i] > 0 {
			count(descMQTTPackets, s.Sent[i], "out", name)
		}
	}
	for code, n := range s.Refused {
		count(descMQTTRefused, n, fmt.Sprintf("0x%02x", code))
	}
	for code, n := range s.Ended {
		count(descMQTTEnded, n, fmt.Sprintf("0x%02x", code))
	}
	count(descMQTTDropped, s.Oversize, "too_large")
	count(descMQTTDropped, s.Slow, "slow")
	count(descMQTTDropped, s.Dropped, "queue_full")
	count(descMQTTDropped, s.Overtaken, "overtaken")
	count(descMQTTDropped, s.Expired, "expired")
	count(descMQTTDropped, s.NotRetained, "retained_full")
	gauge(descMQTTWaiting, int(s.Waiting))
}
