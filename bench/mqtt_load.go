package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// mqttLoads are how MQTT is published: connections, and messages of each that are under way.
var mqttLoads = []mqttLoad{{64, 1}, {64, 16}, {1, 100}}

type mqttLoad struct{ conns, inflight int }

func (m mqttLoad) String() string {
	return fmt.Sprintf("%d connections, %d messages of each under way", m.conns, m.inflight)
}

func (m mqttLoad) value(of string) string { return fmt.Sprintf("%s-%d-%d", of, m.conns, m.inflight) }

// mqttMeasurements are those of publishing over MQTT 3.1.1.
func mqttMeasurements() (all []measurement) {
	for _, load := range mqttLoads {
		all = append(all, measureMosquitto(load), measureMQTTLoad(load))
	}
	return all
}

func mqttLoadRows() []row {
	r := func(key string, load mqttLoad, floor, aim float64, note string) row {
		figure, limit := load.value("mqtt"), load.value("mosquitto")
		return row{key: key, group: "mqtt", name: "MQTT QoS 1, durable before PUBACK / mosquitto, which keeps nothing, " + load.String(),
			values: []string{figure, limit}, figure: value(figure), limit: value(limit), show: rate, floor: floor, aim: aim, note: note}
	}
	return []row{
		r("mqtt-64", mqttLoads[0], 0.7, 1, "Both by the same generator, which takes its share of the cores; messages have 1 KiB and no subscriber. mosquitto has no persistence."),
		r("mqtt-64-16", mqttLoads[1], 0, 0, ""),
		r("mqtt-1", mqttLoads[2], 0.5, 0.7, ""),
		{key: "mqtt-cpu", group: "mqtt", name: "the router's CPU for a message of QoS 1 / mosquitto's, " + mqttLoads[0].String(),
			values: []string{mqttLoads[0].value("mqtt-cpu"), mqttLoads[0].value("mosquitto-cpu")}, figure: value(mqttLoads[0].value("mqtt-cpu")),
			limit: value(mqttLoads[0].value("mosquitto-cpu")), show: micros, ratio: times, lower: true},
	}
}

// measureMQTTLoad publishes to the router.
func measureMQTTLoad(load mqttLoad) measurement {
	return measurement{name: "MQTT, " + load.String(), gives: []string{load.value("mqtt"), load.value("mqtt-cpu")},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			if l.mqtt == nil {
				var err error
				if l.mqtt, err = l.mqttRouter(); err != nil {
					return err
				}
			}
			return publishing(ctx, l, l.mqtt.child, l.mqtt.mqtt, load, "mqtt", put)
		}}
}

// measureMosquitto publishes to mosquitto.
func measureMosquitto(load mqttLoad) measurement {
	return measurement{name: "mosquitto, " + load.String(), gives: []string{load.value("mosquitto"), load.value("mosquitto-cpu")},
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			if err := l.startMosquitto(ctx); err != nil {
				return err
			}
			return publishing(ctx, l, l.mosquitto, l.mosquitto.addr, load, "mosquitto", put)
		}}
}

func publishing(ctx context.Context, l *lab, to *child, addr string, load mqttLoad, name string, put func(string, float64)) error {
	counts := make([]padded, load.conns)
	total := func() (sum int64) {
		for i := range counts {
			sum += counts[i].n.Load()
		}
		return sum
	}
	win := window{l.length(), to.cpu}
	var p pace
	err := crew(ctx, load.conns, win.length(), func(i int) (worker, error) {
		c, err := newMQTTPublisher(ctx, addr, i, load.inflight, &counts[i])
		if err != nil {
			return worker{}, err
		}
		return worker{do: c.turn, close: func() { _ = c.conn.Close() }}, nil
	}, func(_ int, w worker) error { return w.do() }, func(ctx context.Context) { p = win.watch(ctx, total) })
	if err == nil && p.perSecond == 0 {
		err = errNothing
	}
	put(load.value(name), p.perSecond)
	put(load.value(name+"-cpu"), p.cpu)
	return errors.Join(err, to.gone())
}

// A mqttRouter is a router that speaks MQTT as well.
type mqttRouter struct {
	*routerProcess
	mqtt string // host:port
}

// mqttRouter starts a router whose topic devices takes all of MQTT's names.
func (l *lab) mqttRouter() (*mqttRouter, error) {
	rules := filepath.Join(l.dir, "mqtt.yaml")
	text := "version: 1\ntopics: {devices: {}}\nmqtt: {\"devices/+/#\": {topic: devices, type: reading, subject: \"{1}\", key: \"{1}\"}}\n"
	if err := os.WriteFile(rules, []byte(text), 0o600); err != nil {
		return nil, err
	}
	r := &mqttRouter{}
	var err error
	r.routerProcess, err = l.routerSaying(func(line string) (string, bool) {
		if rest, ok := strings.CutPrefix(line, "mqtt "); ok {
			r.mqtt = strings.TrimSpace(rest)
		}
		return routerListensAt(line) // the last line
	}, "--rules", rules, "--mqtt-listen", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if r.mqtt == "" {
		return nil, errors.New("the router did not say where it speaks MQTT")
	}
	return r, nil
}

func (l *lab) startMosquitto(ctx context.Context) error {
	if l.mosquitto != nil {
		return l.mosquitto.gone()
	}
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/mosquitto"); err != nil {
			return fmt.Errorf("%w: mosquitto is not installed; `make bench` installs it", errMissing)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // mosquitto does not say which port it took: find a free one
	if err != nil {
		return err
	}
	addr := ln.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(l.dir, "mosquitto.conf")
	text := "listener " + port + " 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\nmax_inflight_messages 1000\n"
	if err := errors.Join(ln.Close(), os.WriteFile(conf, []byte(text), 0o644)); err != nil { // it reads it as another user where this is root
		return err
	}
	if err := os.Chmod(l.dir, 0o755); err != nil {
		return err
	}
	ready := func(line string) (string, bool) { return addr, strings.HasSuffix(line, " running") }
	l.mosquitto, err = l.start("mosquitto", ready, "/bin/sh", "-c", `exec "$0" -c "$1" 2>&1`, path, conf) // it logs to standard error
	return err
}

// A mqttPublisher publishes the same message again and again with QoS 1 and keeps as many under way as it may.
type mqttPublisher struct {
	conn     net.Conn
	packet   []byte // PUBLISH
	id       int    // where in packet its id stands
	next     uint16
	inflight int // under way
	window   int
	out, in  []byte
	have     int // bytes in in
	acked    *padded
}

func newMQTTPublisher(ctx context.Context, addr string, n, window int, acked *padded) (*mqttPublisher, error) {
	conn, err := mqttDial(ctx, addr, fmt.Sprint("bench-", n))
	if err != nil {
		return nil, err
	}
	body, name := eventData(n), fmt.Sprintf("devices/d%d/reading", n)
	p := &mqttPublisher{conn: conn, window: window, in: make([]byte, 4<<10), acked: acked}
	p.packet = mqttPacket(0x32, mqttString(name), []byte{0, 0}, body)
	p.id = len(p.packet) - len(body) - 2
	return p, conn.SetDeadline(time.Now().Add(ioTimeout))
}

// turn sends what is missing from the window, and waits for one acknowledgement at least.
func (p *mqttPublisher) turn() error {
	p.out = p.out[:0]
	for ; p.inflight < p.window; p.inflight++ {
		if p.next++; p.next == 0 {
			p.next = 1
		}
		binary.BigEndian.PutUint16(p.packet[p.id:], p.next)
		p.out = append(p.out, p.packet...)
	}
	if len(p.out) > 0 {
		if _, err := p.conn.Write(p.out); err != nil {
			return err
		}
	}
	m, err := p.conn.Read(p.in[p.have:])
	if err != nil {
		return err
	}
	p.have += m
	b := p.in[:p.have]
	for ; len(b) >= 4; b = b[4:] {
		if b[0] != 0x40 || b[1] != 2 {
			return fmt.Errorf("the broker sends % x; want a PUBACK", b[:4])
		}
		p.inflight--
		p.acked.n.Add(1)
	}
	p.have = copy(p.in, b)
	return nil
}

// mqttDial connects as a client of MQTT 3.1.1 with a clean session and no keep alive, and waits for the CONNACK.
func mqttDial(ctx context.Context, addr, id string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	hello := mqttPacket(0x10, mqttString("MQTT"), []byte{4, 2, 0, 0}, mqttString(id))
	answer, err := mqttAsk(conn, hello, 4)
	if err == nil && (answer[0] != 0x20 || answer[3] != 0) {
		err = fmt.Errorf("CONNECT was answered with % x", answer)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// mqttAsk sends a packet and reads its answer of n bytes.
func mqttAsk(conn net.Conn, packet []byte, n int) ([]byte, error) {
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(packet); err != nil {
		return nil, err
	}
	answer := make([]byte, n)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	return answer, conn.SetDeadline(time.Time{})
}

func mqttString(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }

func mqttPacket(kind byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := binary.AppendUvarint([]byte{kind}, uint64(n)) // MQTT's variable byte integer is the same
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
