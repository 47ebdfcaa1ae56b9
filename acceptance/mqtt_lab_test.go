package acceptance

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mqttControl is a broker that the cases are held against instead of the router: "mosquitto". A case that it fails is a
// wrong case.
var mqttControl = os.Getenv("MILLRACE_MQTT_CONTROL")

const mqttToken = "a-token-of-the-devices-0123456789"

// An mqttLab is what the cases share: a broker with its addresses, and clients that are programs.
type mqttLab struct {
	tcp, tls, ws string // URLs
	certificate  string // a PEM file, the broker's own authority
	roots        *x509.CertPool
	node         *nodeClients
	router       *router // nil: the control
}

// mqttKinds are the clients of the cases.
func mqttKinds() []mqttKind {
	library := mqttAbility{stays: true}
	return []mqttKind{
		{name: "mosquitto-3", version: 4, open: openMosquitto(4)},
		{name: "mosquitto-5", version: 5, open: openMosquitto(5)},
		{name: "npm-3", version: 4, able: library, open: openNPM(4)},
		{name: "npm-5", version: 5, able: library, open: openNPM(5)},
		{name: "paho-3", version: 4, able: library, open: openPaho3},
		{name: "paho-5", version: 5, able: mqttAbility{stays: true, holds: true}, open: openPaho5},
	}
}

// sharedName is the pull subscription that clients of a kind share.
func (k mqttKind) sharedName() string { return "workers-" + k.name }

// mqttRules map t/…, where most cases play, to one topic, and jobs/KIND/… to one a kind, with a pull subscription.
func mqttRules(kinds []mqttKind) string {
	var topics, mappings, subs strings.Builder
	for _, k := range kinds {
		fmt.Fprintf(&topics, "  jobs-%s: {}\n", k.name)
		fmt.Fprintf(&mappings, "  \"jobs/%s/+\": {topic: jobs-%s, type: job, subject: \"{1}\"}\n", k.name, k.name)
		fmt.Fprintf(&subs, "  %s: {topic: jobs-%s, deliver: {pull: {ackDeadline: 30s}}}\n", k.sharedName(), k.name)
	}
	return "version: 1\ntopics:\n  things: {}\n" + topics.String() +
		"mqtt:\n  \"t/#\": {topic: things, type: thing, subject: \"{1}\", key: \"{1}\"}\n" + mappings.String() + "subscriptions:\n" + subs.String()
}

func newMQTTLab(t *testing.T) *mqttLab {
	t.Helper()
	dir := t.TempDir()
	l := &mqttLab{certificate: filepath.Join(dir, "broker.crt"), roots: x509.NewCertPool()}
	key := filepath.Join(dir, "broker.key")
	makeCertificate(t, l.certificate, key)
	text, err := os.ReadFile(l.certificate)
	if err != nil {
		t.Fatal(err)
	}
	l.roots.AppendCertsFromPEM(text)
	l.node = startNode(t, l.certificate)
	if mqttControl == "mosquitto" {
		l.mosquitto(t, dir, key)
		return l
	}
	rules := filepath.Join(dir, "rules.yaml")
	write(t, rules, mqttRules(mqttKinds()))
	l.router = serve(t, filepath.Join(dir, "data"), []string{"MILLRACE_TOKEN=" + mqttToken}, "--rules", rules,
		"--mqtt-listen", "127.0.0.1:0")
	l.tcp, l.ws = "mqtt://"+l.router.mqtt(), "ws"+strings.TrimPrefix(l.router.url, "http")+"/mqtt"
	return l
}

// mqtt is where the router says that it speaks MQTT.
func (r *router) mqtt() string {
	r.t.Helper()
	for _, line := range r.first {
		if rest, ok := strings.CutPrefix(line, "mqtt "); ok {
			return strings.TrimSpace(rest)
		}
	}
	r.t.Fatalf("the router does not say where it speaks MQTT:\n%s", strings.Join(r.first, "\n"))
	return ""
}

// mosquitto starts the control.
func (l *mqttLab) mosquitto(t *testing.T, dir, key string) {
	t.Helper()
	passwords, conf := filepath.Join(dir, "passwords"), filepath.Join(dir, "mosquitto.conf")
	write(t, passwords, "device:"+mqttToken+"\n")
	if out, err := exec.Command("mosquitto_passwd", "-U", passwords).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v %s", err, out)
	}
	var ports [3]string
	for i := range ports {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, ports[i], _ = net.SplitHostPort(ln.Addr().String())
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(t, conf, fmt.Sprintf("user root\nallow_anonymous false\npassword_file %s\nmax_queued_messages 0\nlistener %s 127.0.0.1\n"+
		"listener %s 127.0.0.1\ncertfile %s\nkeyfile %s\nlistener %s 127.0.0.1\nprotocol websockets\n", passwords, ports[0], ports[1], l.certificate, key, ports[2]))
	cmd := exec.Command("mosquitto", "-c", conf)
	log := &logText{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("mosquitto's log:\n%s", log)
		}
	})
	eventually(t, mqttWait, func() error {
		if !bytes.Contains([]byte(log.String()), []byte("running")) {
			return fmt.Errorf("mosquitto does not run: %s", log)
		}
		return nil
	})
	l.tcp, l.tls, l.ws = "mqtt://127.0.0.1:"+ports[0], "mqtts://127.0.0.1:"+ports[1], "ws://127.0.0.1:"+ports[2]+"/mqtt"
}

// makeCertificate writes a certificate of 127.0.0.1 that is its own authority, and its key.
func makeCertificate(t *testing.T, certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "127.0.0.1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write(t, certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
}

// An mqttCase is one case as it runs with one kind of client.
type mqttCase struct {
	*testing.T
	l    *mqttLab
	k    mqttKind
	ctx  context.Context
	name string
}

// topic is a name below which nobody else publishes.
func (c *mqttCase) topic(rest string) string { return "t/" + c.k.name + "/" + c.name + "/" + rest }

// open connects a client, or fails the case.
func (c *mqttCase) open(o mqttConnect) mqttClient {
	c.Helper()
	client, err := c.try(o)
	if err != nil {
		c.Fatalf("connecting %s: %v", o.id, err)
	}
	return client
}

// try connects a client. id is made one of this case; what is not given is the plain listener and the right password.
func (c *mqttCase) try(o mqttConnect) (mqttClient, error) {
	o.id = c.k.name + "-" + c.name + "-" + o.id
	if o.url == "" {
		o.url = c.l.tcp
	}
	if o.password == "" {
		o.password = mqttToken
	}
	client, err := c.k.open(c.ctx, c.l, o)
	if err == nil {
		c.Cleanup(func() { _ = client.close() }) // the case may have closed it
	}
	return client, err
}

func (c *mqttCase) publish(by mqttClient, m mqttMessage) {
	c.Helper()
	if err := by.publish(c.ctx, m); err != nil {
		c.Fatalf("publishing %q to %s: %v", m.payload, m.topic, err)
	}
}

func (c *mqttCase) subscribe(by mqttClient, filter string, qos byte) {
	c.Helper()
	granted, err := by.subscribe(c.ctx, filter, qos)
	if err != nil || granted != qos {
		c.Fatalf("subscribing to %s with QoS %d: granted %#x, %v", filter, qos, granted, err)
	}
}

func (c *mqttCase) close(clients ...mqttClient) {
	c.Helper()
	for _, client := range clients {
		if err := client.close(); err != nil {
			c.Fatalf("disconnecting: %v", err)
		}
	}
}

// many is how many messages a case sends that sends many: fewer where each is a process.
func (c *mqttCase) many() int {
	if c.k.able.stays {
		return 30
	}
	return 6
}
