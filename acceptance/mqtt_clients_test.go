package acceptance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// mqttWait bounds everything that a case waits for.
const mqttWait = time.Minute

// An mqttMessage is a message as a client of any version sees it.
type mqttMessage struct {
	topic, payload string
	qos            byte
	retain, dup    bool

	// From here on of version 5.
	contentType, responseTopic, correlation string
	user                                    map[string]string
	expiry                                  uint32 // seconds; 0: it does not expire
	text                                    bool   // payload format 1
	alias                                   uint16 // of its topic; 0: none
}

// An mqttConnect is what a client says who it is and what it wants of a connection.
type mqttConnect struct {
	url, id, password string // without a password there is no user name
	ca, certificate   string // PEM files: whose brokers are trusted, and the client's own with its key
	keep              bool   // the session outlives the connection
	expiry            uint32 // by so many seconds in version 5; 0: an hour
	has               string // the filter that the session is subscribed to already, at QoS 2; for clients that cannot connect without one
	will              *mqttMessage
	receiveMaximum    uint16
	hold              bool // acknowledge nothing until release
	again             bool // connect again whenever the connection is lost, until it is closed
}

// mqttRefused is the code with which a connection was refused.
type mqttRefused struct{ code byte }

func (r mqttRefused) Error() string { return fmt.Sprintf("refused with code %#x", r.code) }

// An mqttClient is a connection of a client that somebody else wrote. Its methods return once the broker has answered.
type mqttClient interface {
	publish(ctx context.Context, m mqttMessage) error
	subscribe(ctx context.Context, filter string, qos byte) (granted byte, err error)
	unsubscribe(ctx context.Context, filter string) error
	present() bool // the broker had the session
	inbox() *mqttInbox
	release()     // of hold: acknowledge what was received, and from now on at once
	close() error // with a DISCONNECT
	drop() error  // without
}

// An mqttKind is one client program or library in one version of the protocol.
type mqttKind struct {
	name    string
	version int // 4 is 3.1.1
	able    mqttAbility
	open    func(ctx context.Context, l *mqttLab, c mqttConnect) (mqttClient, error)
}

// An mqttAbility is what not all clients can do.
type mqttAbility struct {
	stays bool // connects without a subscription, tells whether the session was there, and unsubscribes
	holds bool // can leave messages unacknowledged
}

// An mqttInbox is what a client has received, in order.
type mqttInbox struct {
	mu      sync.Mutex
	all     []mqttMessage
	changed chan struct{} // closed and replaced when all grows
}

func newInbox() *mqttInbox { return &mqttInbox{changed: make(chan struct{})} }

func (b *mqttInbox) put(m mqttMessage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, m)
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *mqttInbox) have() ([]mqttMessage, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.all), b.changed
}

// until waits until enough says so, and returns what there is then.
func (b *mqttInbox) until(t *testing.T, what string, enough func([]mqttMessage) bool) []mqttMessage {
	t.Helper()
	late := time.After(mqttWait)
	for {
		all, changed := b.have()
		if enough(all) {
			return all
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("not within %s: %s; there are %d messages: %.600q", mqttWait, what, len(all), payloads(all))
		}
	}
}

// last waits for a message with this payload, which was published after all others, and returns those before it.
func (b *mqttInbox) last(t *testing.T, payload string) []mqttMessage {
	t.Helper()
	all := b.until(t, "the message "+payload, func(all []mqttMessage) bool {
		return slices.ContainsFunc(all, func(m mqttMessage) bool { return m.payload == payload })
	})
	return all[:slices.IndexFunc(all, func(m mqttMessage) bool { return m.payload == payload })]
}

func payloads(all []mqttMessage) (out []string) {
	for _, m := range all {
		out = append(out, m.payload)
	}
	return out
}

// properties tells in what of version 5 a message differs from the one that was published. A broker may add properties of its own.
func (m mqttMessage) properties(sent mqttMessage) error {
	got := map[string]string{}
	for name := range sent.user {
		got[name] = m.user[name]
	}
	switch {
	case m.contentType != sent.contentType:
		return fmt.Errorf("content type %q; want %q", m.contentType, sent.contentType)
	case m.responseTopic != sent.responseTopic:
		return fmt.Errorf("response topic %q; want %q", m.responseTopic, sent.responseTopic)
	case m.correlation != sent.correlation:
		return fmt.Errorf("correlation data %q; want %q", m.correlation, sent.correlation)
	case m.text != sent.text:
		return fmt.Errorf("payload format: text %t; want %t", m.text, sent.text)
	case !maps.Equal(got, sent.user):
		return fmt.Errorf("user properties %q; want %q", m.user, sent.user)
	case sent.expiry == 0 && m.expiry != 0, sent.expiry != 0 && (m.expiry == 0 || m.expiry > sent.expiry):
		return fmt.Errorf("expires in %d s; want at most %d", m.expiry, sent.expiry)
	}
	return nil
}

// expiry5 is how long a session of version 5 outlives its connection.
func (c mqttConnect) expiry5() uint32 {
	switch {
	case !c.keep:
		return 0
	case c.expiry == 0:
		return 3600
	}
	return c.expiry
}

// user is the user name that goes with a password, and which says nothing.
func (c mqttConnect) user() string {
	if c.password == "" {
		return ""
	}
	return "device"
}

// tlsConfig is nil where no authority is named.
func (c mqttConnect) tlsConfig() (*tls.Config, error) {
	if c.ca == "" {
		return nil, nil
	}
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	text, err := os.ReadFile(c.ca)
	if err != nil {
		return nil, err
	}
	cfg.RootCAs.AppendCertsFromPEM(text)
	if c.certificate != "" {
		own, err := tls.LoadX509KeyPair(c.certificate, c.certificate)
		if err != nil {
			return nil, err
		}
		// Shown as it is by the other clients: also where the broker does not name its authority.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	return cfg, nil
}
