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
	tcp, tls, mutual, ws, wss string // URLs; mutual is tls where certificates say who a client is; the control has no wss
	certificate               string // a PEM file, the broker's own authority
	device, guest, stranger   string // PEM files of certificates with their keys: of a role, of none, and of an authority that nobody knows
	node                      *nodeClients
	router                    *router // nil: the control
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
	in := func(name string) string { return filepath.Join(dir, name) }
	l := &mqttLab{certificate: in("broker.crt"), device: in("device.pem"), guest: in("guest.pem"), stranger: in("stranger.pem")}
	key, authority := in("broker.key"), in("clients.crt")
	makeCertificate(t, l.certificate, key)
	sign := makeAuthority(t, authority)
	sign("device-1", l.device)
	sign("guest", l.guest)
	makeAuthority(t, in("strangers.crt"))("device-1", l.stranger)
	l.node = startNode(t)
	if mqttControl == "mosquitto" {
		l.mosquitto(t, dir, key, authority)
		return l
	}
	write(t, in("rules.yaml"), mqttRules(mqttKinds()))
	write(t, in("access.yaml"), "version: 1\nroles:\n  device: [{allow: [publish, read], topics: [things]}]\ncertificates: [{subject: \"device-*\", roles: [device]}]\n")
	l.router = serve(t, in("data"), []string{"MILLRACE_TOKEN=" + mqttToken}, "--rules", in("rules.yaml"), "--access", in("access.yaml"),
		"--tls-cert", l.certificate, "--tls-key", key, "--client-ca", authority, "--client-certs", "request", "--admin-listen", "127.0.0.1:0",
		"--mqtt-listen", "127.0.0.1:0", "--mqtt-tls-listen", "127.0.0.1:0")
	l.tcp, l.tls = "mqtt://"+l.router.mqtt(), "mqtts://"+strings.TrimSuffix(l.router.says("mqtt")[1], ", TLS")
	l.mutual = l.tls
	l.ws, l.wss = "ws"+strings.TrimPrefix(l.router.url, "http")+"/mqtt", "wss"+strings.TrimPrefix(l.router.says("listen")[0], "https")+"/mqtt"
	return l
}

// mqtt is where the router says that it speaks MQTT first.
func (r *router) mqtt() string {
	r.t.Helper()
	at := r.says("mqtt")
	if len(at) == 0 {
		r.t.Fatalf("the router does not say where it speaks MQTT:\n%s", strings.Join(r.first, "\n"))
	}
	return at[0]
}

// mosquitto starts the control.
func (l *mqttLab) mosquitto(t *testing.T, dir, key, authority string) {
	t.Helper()
	passwords, conf := filepath.Join(dir, "passwords"), filepath.Join(dir, "mosquitto.conf")
	write(t, passwords, "device:"+mqttToken+"\n")
	if out, err := exec.Command("mosquitto_passwd", "-U", passwords).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v %s", err, out)
	}
	var ports [4]string
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
		"listener %s 127.0.0.1\ncertfile %s\nkeyfile %s\nlistener %s 127.0.0.1\nprotocol websockets\n"+
		"listener %s 127.0.0.1\ncertfile %s\nkeyfile %s\ncafile %s\nrequire_certificate true\nuse_identity_as_username true\n",
		passwords, ports[0], ports[1], l.certificate, key, ports[2], ports[3], l.certificate, key, authority))
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
	l.tcp, l.tls, l.ws, l.mutual = "mqtt://127.0.0.1:"+ports[0], "mqtts://127.0.0.1:"+ports[1], "ws://127.0.0.1:"+ports[2]+"/mqtt", "mqtts://127.0.0.1:"+ports[3]
}

// makeCertificate writes a certificate of 127.0.0.1 that is its own authority, and its key.
func makeCertificate(t *testing.T, certificate, key string) {
	t.Helper()
	template := certificateOf("127.0.0.1", x509.ExtKeyUsageServerAuth)
	template.IPAddresses, template.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	template.IsCA, template.KeyUsage = true, x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign
	public, secret, _ := signed(t, template, nil, nil)
	write(t, certificate, public)
	write(t, key, secret)
}

// makeAuthority writes the certificate of an authority for clients. sign writes one of its certificates for a common name,
// with its key, to one file.
func makeAuthority(t *testing.T, certificate string) (sign func(name, file string)) {
	t.Helper()
	parent := certificateOf("clients of " + filepath.Base(certificate))
	parent.IsCA, parent.KeyUsage = true, x509.KeyUsageCertSign
	public, _, key := signed(t, parent, nil, nil)
	write(t, certificate, public)
	return func(name, file string) {
		public, secret, _ := signed(t, certificateOf(name, x509.ExtKeyUsageClientAuth), parent, key)
		write(t, file, public+secret)
	}
}

func certificateOf(name string, usage ...x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
	}
}

// signed makes a certificate with a key of its own, both in PEM; without a parent it is its own.
func signed(t *testing.T, template, parent *x509.Certificate, by *ecdsa.PrivateKey) (public, secret string, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	own, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return text("CERTIFICATE", der), text("PRIVATE KEY", own), key
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

// try connects a client. id is made one of this case; what is not given is the plain listener, the right password and the
// broker's own authority.
func (c *mqttCase) try(o mqttConnect) (mqttClient, error) {
	o.id = c.k.name + "-" + c.name + "-" + o.id
	if o.url == "" {
		o.url = c.l.tcp
	}
	if o.ca == "" {
		o.ca = c.l.certificate
	}
	if o.password == "" && o.certificate == "" {
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
