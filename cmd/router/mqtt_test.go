package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// mqttSay sends packets of MQTT 5.0 and returns the type and the first four bytes of what comes back for each of wants.
func mqttSay(t *testing.T, nc net.Conn, say []packets.Packet, wants int) (got []string) {
	t.Helper()
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	for _, pk := range say {
		var b bytes.Buffer
		pk.ProtocolVersion = 5
		var err error
		switch pk.FixedHeader.Type {
		case packets.Connect:
			pk.Connect.ProtocolName = []byte("MQTT")
			err = pk.ConnectEncode(&b)
		case packets.Publish:
			err = pk.PublishEncode(&b)
		}
		if err == nil {
			_, err = nc.Write(b.Bytes())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for range wants {
		head := make([]byte, 2)
		if _, err := io.ReadFull(nc, head); err != nil {
			return append(got, err.Error())
		}
		body := make([]byte, head[1])
		if _, err := io.ReadFull(nc, body); err != nil {
			return append(got, err.Error())
		}
		got = append(got, packets.PacketNames[head[0]>>4]+string(rune('0'+body[min(2, len(body)-1)]>>7))) // 1: a refusal
		if head[0]>>4 == packets.Connack {
			got[len(got)-1] = packets.PacketNames[head[0]>>4] + string(rune('0'+body[1]>>7))
		}
	}
	return got
}

// A router speaks MQTT where it is told to, plain and by TLS, to whom it knows and by the rules; what came that way is there for
// HTTP, and metrics tell of it. The rules are those of docs/mqtt.md.
func TestMQTT(t *testing.T) {
	p := newProcess(t)
	cert, key, _ := certified(t, "mqtt")
	p.o.token = "the-token-of-this-router"
	p.o.mqtt = mqttOptions{plain: "127.0.0.1:0", secure: "127.0.0.1:0"}
	p.o.edge.certs, p.o.edge.keys = []string{cert}, []string{key}
	p.o.rules = filepath.Join(filepath.Dir(p.o.data), "rules.yaml")
	p.write(codeBlock(t, "mqtt.md", "yaml", 0))
	p.start()
	defer func() { p.stop() }()
	connect := func(password string) packets.Packet {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}}
		pk.Connect.Clean, pk.Connect.ClientIdentifier = true, "dev"
		pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte(password)
		return pk
	}
	temp := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1, TopicName: "plants/north/pump-7/temp", Payload: []byte(`{"celsius": 21.5}`)}
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for i, ln := range p.r.mqtt.lns {
		dial := func() net.Conn {
			nc, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { nc.Close() })
			if i == 1 {
				return tls.Client(nc, &tls.Config{ServerName: "localhost", NextProtos: []string{"mqtt"}, RootCAs: roots})
			}
			return nc
		}
		if got := mqttSay(t, dial(), []packets.Packet{connect("a guess")}, 1); strings.Join(got, " ") != "Connack1" {
			t.Fatalf("listener %d: %q", i, got)
		}
		if got := mqttSay(t, dial(), []packets.Packet{connect(p.o.token), temp}, 2); strings.Join(got, " ") != "Connack0 Puback0" {
			t.Fatalf("listener %d: %q", i, got)
		}
	}
	req, err := http.NewRequest("GET", "https://"+p.r.ln.Addr().String()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.o.token)
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}}
	defer web.CloseIdleConnections()
	res, err := web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`millrace_mqtt_packets_total{direction="in",type="publish"} 2`, `millrace_mqtt_ended_total{reason="0x86"} 2`, `millrace_published_events_total{topic="readings"} 2`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	p.stop() // what events tell clients by is the router's, not the process's
	p.start()
	nc, err := net.Dial("tcp", p.r.mqtt.lns[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	mqttSay(t, nc, []packets.Packet{connect(p.o.token), temp}, 2)
	if req, err = http.NewRequest("GET", "https://"+p.r.ln.Addr().String()+"/v1/topics/readings/events", nil); err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.o.token)
	if res, err = web.Do(req); err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if text, err = io.ReadAll(res.Body); err != nil {
		t.Fatal(err)
	}
	if marks := regexp.MustCompile(`"mqttfrom":"([0-9a-f]{16})"`).FindAllStringSubmatch(string(text), -1); len(marks) != 3 || marks[0][1] != marks[1][1] || marks[0][1] != marks[2][1] {
		t.Errorf("one client is told as %v", marks)
	}
	if shown := p.r.shown(); strings.Count(shown, "mqtt    127.0.0.1:") != 2 || strings.Count(shown, ", TLS\n") != 1 {
		t.Errorf("serve begins with %s", shown)
	}
}

// Beyond loopback MQTT is not served to everybody, nor by TLS without a certificate.
func TestMQTTRefused(t *testing.T) {
	p := newProcess(t)
	p.o.mqtt.secure = "127.0.0.1:0"
	if _, err := openRouter(t.Context(), p.o); err == nil || !strings.Contains(err.Error(), "--mqtt-tls-listen") {
		t.Fatalf("got %v", err)
	}
	p.o.mqtt = mqttOptions{plain: "0.0.0.0:0"}
	r, err := openRouter(t.Context(), p.o)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "can be reached from other machines") {
		t.Fatalf("got %v", err)
	}
}
