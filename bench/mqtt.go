package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// mqttRows are what MQTT clients cost that only wait.
func mqttRows() []row {
	return []row{{key: "mqtt-idle", group: "streams", name: fmt.Sprintf("resident memory of each of %d idle MQTT sessions / bound", streamReaders), values: []string{"mqtt-idle"},
		figure: value("mqtt-idle"), limit: constant(20), show: func(v float64) string { return fmt.Sprintf("%.3g KiB", v) }, lower: true, floor: 1,
		note: "Clients of MQTT 3.1.1 with a connection and a subscription of QoS 1, which nothing is published for."}}
}

// measureMQTT opens sessions and looks at the router's memory before and after.
func measureMQTT() measurement {
	return measurement{name: "idle MQTT sessions", gives: []string{"mqtt-idle"}, once: true,
		run: func(ctx context.Context, l *lab, _ func(string) float64, put func(string, float64)) error {
			dir := filepath.Join(l.dir, "mqtt")
			rules := filepath.Join(dir, "rules.yaml")
			text := "version: 1\ntopics:\n  fan: {}\nmqtt:\n  fan/#: {topic: fan}\n"
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(rules, []byte(text), 0o644)); err != nil {
				return err
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			addr := ln.Addr().String()
			if err := ln.Close(); err != nil {
				return err
			}
			r, err := l.router("--rules", rules, "--mqtt-listen", addr)
			if err != nil {
				return err
			}
			defer r.stop()
			// CONNECT of a clean session, and SUBSCRIBE to fan/+; then CONNACK and SUBACK.
			const hello = "\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00" + "\x82\x0a\x00\x01\x00\x05fan/+\x01"
			few, err := gatherCrowd(ctx, 100, addr, hello, "\x90\x03\x00\x01\x01") // what the first ones take in
			if err != nil {
				return errors.Join(err, r.gone())
			}
			defer few.close()
			before, err := r.rss()
			if err != nil {
				return err
			}
			crowd, err := gatherCrowd(ctx, l.streamReaders()-100, addr, hello, "\x90\x03\x00\x01\x01")
			if err != nil {
				return errors.Join(err, r.gone())
			}
			defer crowd.close()
			if err := sleep(ctx, 2*time.Second); err != nil {
				return err
			}
			after, err := r.rss()
			put("mqtt-idle", (after-before)*1024/float64(len(crowd.conns)))
			return err
		}}
}
