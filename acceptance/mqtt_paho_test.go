package acceptance

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"
)

// A paho3Client is a client of paho.mqtt.golang, which speaks 3.1.1.
type paho3Client struct {
	c    paho3.Client
	in   *mqttInbox
	had  bool
	mu   sync.Mutex
	conn net.Conn
}

func openPaho3(ctx context.Context, _ *mqttLab, c mqttConnect) (mqttClient, error) {
	p := &paho3Client{in: newInbox()}
	secure, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	o := paho3.NewClientOptions().AddBroker(c.url).SetProtocolVersion(4).SetClientID(c.id).SetUsername(c.user()).SetPassword(c.password).
		SetCleanSession(!c.keep).SetTLSConfig(secure).SetAutoReconnect(c.again).SetConnectRetry(c.again).SetResumeSubs(false).
		SetConnectRetryInterval(50 * time.Millisecond).SetMaxReconnectInterval(50 * time.Millisecond)
	o.SetDefaultPublishHandler(func(_ paho3.Client, m paho3.Message) {
		p.in.put(mqttMessage{topic: m.Topic(), payload: string(m.Payload()), qos: m.Qos(), retain: m.Retained(), dup: m.Duplicate()})
	})
	if c.will != nil {
		o.SetBinaryWill(c.will.topic, []byte(c.will.payload), c.will.qos, c.will.retain)
	}
	if !strings.HasPrefix(c.url, "ws") { // so that it can be dropped
		o.SetCustomOpenConnectionFn(func(u *url.URL, _ paho3.ClientOptions) (net.Conn, error) {
			conn, err := dial(ctx, u, secure)
			if err == nil {
				p.mu.Lock()
				p.conn = conn
				p.mu.Unlock()
			}
			return conn, err
		})
	}
	p.c = paho3.NewClient(o)
	t := p.c.Connect().(*paho3.ConnectToken)
	if err := paho3Done(ctx, t); err != nil {
		if code := t.ReturnCode(); code > 0 && code < 6 {
			return nil, mqttRefused{code}
		}
		return nil, err
	}
	p.had = t.SessionPresent()
	return p, nil
}

func paho3Done(ctx context.Context, t paho3.Token) error {
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *paho3Client) publish(ctx context.Context, m mqttMessage) error {
	return paho3Done(ctx, p.c.Publish(m.topic, m.qos, m.retain, m.payload))
}

func (p *paho3Client) subscribe(ctx context.Context, filter string, qos byte) (byte, error) {
	t := p.c.Subscribe(filter, qos, nil).(*paho3.SubscribeToken)
	if err := paho3Done(ctx, t); err != nil {
		return 0x80, err
	}
	for _, granted := range t.Result() { // the one there is, under the filter without what makes it shared
		return granted, nil
	}
	return 0x80, nil
}

func (p *paho3Client) unsubscribe(ctx context.Context, filter string) error {
	return paho3Done(ctx, p.c.Unsubscribe(filter))
}

func (p *paho3Client) present() bool     { return p.had }
func (p *paho3Client) inbox() *mqttInbox { return p.in }

func (p *paho3Client) release() {}

func (p *paho3Client) close() error {
	p.c.Disconnect(1000)
	return nil
}

func (p *paho3Client) drop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn.Close()
}

// dial opens a connection as a URL says: mqtt and tcp, mqtts and ssl.
func dial(ctx context.Context, u *url.URL, secure *tls.Config) (net.Conn, error) {
	switch u.Scheme {
	case "mqtts", "ssl", "tls":
		return (&tls.Dialer{Config: secure}).DialContext(ctx, "tcp", u.Host)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
}

// A paho5Client is a client of paho.golang, which speaks 5; it connects by autopaho.
type paho5Client struct {
	m    *autopaho.ConnectionManager
	c    *paho.Client // of the connection that came first
	in   *mqttInbox
	had  bool
	stop context.CancelFunc
	mu   sync.Mutex
	conn net.Conn
	held []*paho.Publish
	hold bool
}

func openPaho5(ctx context.Context, _ *mqttLab, c mqttConnect) (mqttClient, error) {
	u, err := url.Parse(c.url)
	if err != nil {
		return nil, err
	}
	secure, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	p := &paho5Client{in: newInbox(), hold: c.hold}
	up, refused := make(chan *paho.Connack, 1), make(chan error, 1)
	cfg := autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, TlsCfg: secure, KeepAlive: 30, CleanStartOnInitialConnection: !c.keep, SessionExpiryInterval: c.expiry5(),
		ConnectUsername: c.user(), ConnectPassword: []byte(c.password),
		ReconnectBackoff: func(int) time.Duration { return 50 * time.Millisecond },
		OnConnectionUp: func(_ *autopaho.ConnectionManager, ack *paho.Connack) {
			select {
			case up <- ack:
			default:
			}
		},
		OnConnectionDown: func() bool { return c.again },
		OnConnectError: func(err error) {
			select {
			case refused <- err:
			default:
			}
		},
		ConnectPacketBuilder: func(cp *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			if c.receiveMaximum > 0 {
				if cp.Properties == nil {
					cp.Properties = &paho.ConnectProperties{RequestProblemInfo: true}
				}
				cp.Properties.ReceiveMaximum = &c.receiveMaximum
			}
			return cp, nil
		},
		ClientConfig: paho.ClientConfig{
			ClientID: c.id, PacketTimeout: 20 * time.Second, EnableManualAcknowledgment: c.hold, SendAcksInterval: time.Millisecond,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) { return true, p.received(c.hold, r) }},
		},
	}
	if !strings.HasPrefix(c.url, "ws") {
		cfg.AttemptConnection = func(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
			conn, err := dial(ctx, u, secure)
			if err != nil {
				return nil, err
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.conn = conn
			return &lockedConn{Conn: conn}, nil
		}
	}
	if c.will != nil {
		cfg.WillMessage = &paho.WillMessage{Topic: c.will.topic, Payload: []byte(c.will.payload), QoS: c.will.qos, Retain: c.will.retain}
	}
	var running context.Context
	running, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	if p.m, err = autopaho.NewConnection(running, cfg); err != nil {
		p.stop()
		return nil, err
	}
	select {
	case ack := <-up:
		p.had = ack.SessionPresent
		return p, nil
	case err = <-refused:
		if ce, ok := err.(*autopaho.ConnackError); ok {
			err = mqttRefused{ce.ReasonCode}
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.stop()
	<-p.m.Done()
	return nil, err
}

// A lockedConn may be written to by several goroutines, as paho asks of what it is given.
type lockedConn struct {
	net.Conn
	sync.Mutex
}

func (p *paho5Client) received(manual bool, r paho.PublishReceived) error {
	m := mqttMessage{topic: r.Packet.Topic, payload: string(r.Packet.Payload), qos: r.Packet.QoS, retain: r.Packet.Retain, dup: r.Packet.Duplicate()}
	if v := r.Packet.Properties; v != nil {
		m.contentType, m.responseTopic, m.correlation = v.ContentType, v.ResponseTopic, string(v.CorrelationData)
		m.text = v.PayloadFormat != nil && *v.PayloadFormat == 1
		if v.MessageExpiry != nil {
			m.expiry = *v.MessageExpiry
		}
		m.user = map[string]string{}
		for _, u := range v.User {
			m.user[u.Key] = u.Value
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.c = r.Client
	if p.hold {
		p.held = append(p.held, r.Packet)
	} else if manual {
		_ = r.Client.Ack(r.Packet) // the connection may be over
	}
	p.in.put(m)
	return nil
}

func (p *paho5Client) publish(ctx context.Context, m mqttMessage) error {
	v := &paho.PublishProperties{ContentType: m.contentType, ResponseTopic: m.responseTopic}
	if m.correlation != "" {
		v.CorrelationData = []byte(m.correlation)
	}
	if m.expiry > 0 {
		v.MessageExpiry = &m.expiry
	}
	if m.text {
		one := byte(1)
		v.PayloadFormat = &one
	}
	if m.alias > 0 {
		v.TopicAlias = &m.alias
	}
	for name, value := range m.user {
		v.User.Add(name, value)
	}
	answer, err := p.m.Publish(ctx, &paho.Publish{Topic: m.topic, Payload: []byte(m.payload), QoS: m.qos, Retain: m.retain, Properties: v})
	if err == nil && answer != nil && answer.ReasonCode >= 0x80 {
		err = fmt.Errorf("refused with code %#x", answer.ReasonCode)
	}
	return err
}

func (p *paho5Client) subscribe(ctx context.Context, filter string, qos byte) (byte, error) {
	ack, err := p.m.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}})
	if ack == nil || len(ack.Reasons) != 1 {
		return 0x80, err
	}
	return ack.Reasons[0], err
}

func (p *paho5Client) unsubscribe(ctx context.Context, filter string) error {
	_, err := p.m.Unsubscribe(ctx, &paho.Unsubscribe{Topics: []string{filter}})
	return err
}

func (p *paho5Client) present() bool     { return p.had }
func (p *paho5Client) inbox() *mqttInbox { return p.in }

func (p *paho5Client) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.held {
		_ = p.c.Ack(m) // the connection may be over
	}
	p.held, p.hold = nil, false
}

func (p *paho5Client) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), mqttWait)
	defer cancel()
	return p.m.Disconnect(ctx)
}

func (p *paho5Client) drop() error {
	p.mu.Lock()
	err := p.conn.Close()
	p.mu.Unlock()
	p.stop()
	<-p.m.Done()
	return err
}
