// Package mqttlink forwards events to an MQTT broker, and brings in those of its messages that topic filters match, by MQTT 5
// or, where the broker does not speak that, 3.1.1.
package mqttlink

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
)

// To is where a bridge forwards to: what stands under `to`, and what the process adds. Zero means default.
type To struct {
	MQTT     string            `yaml:"mqtt" rules:"required" about:"URL of the broker: mqtt://HOST or mqtts://HOST, with a port if it is not 1883 or 8883."`
	Topic    string            `yaml:"topic" rules:"required" about:"The MQTT topic's name, with the event's attributes in braces: site1/{subject}. One whose name comes out wrong becomes a dead letter."`
	QoS      string            `yaml:"qos" enum:"0,1" about:"1: an event is forwarded once the broker has acknowledged it. 0: once it is written."`
	Format   string            `yaml:"format" enum:"plain,cloudevents" about:"The data alone, or with the attributes as user properties: a CloudEvent in binary mode, of MQTT 5."`
	Retain   bool              `yaml:"retain" about:"The broker keeps the last message of each name."`
	ClientID string            `yaml:"clientId" about:"What the bridge is called there."` // made of the router's and the bridge's name
	User     string            `yaml:"user" about:"Who it is there."`
	Password string            `yaml:"password" about:"Of user. Give a reference."`
	Timeout  time.Duration     `yaml:"timeout" about:"Of connecting, and of an acknowledgement."`
	TLS      egress.TLSOptions `yaml:"tls" about:"How TLS connections to it are made."`

	Process `yaml:"-"`
}

// Process is what the process says of every link.
type Process struct {
	Dialer *egress.Dialer
	Name   string // of this router in lists of those that an event has passed
}

// The formats.
const (
	plain       = "plain"
	cloudEvents = "cloudevents"
)

const maxTimeout = 10 * time.Minute

// WithDefaults returns o with its zero fields filled.
func (o To) WithDefaults() To {
	if o.QoS == "" {
		o.QoS = "1"
	}
	if o.Format == "" {
		o.Format = plain
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	return o
}

// Validate reports everything wrong in what rules say, each fault at its key: *event.Faults. Secrets are never shown.
func (o To) Validate() error {
	o = o.WithDefaults()
	f := faults{event.Faults{Is: event.ErrInvalid}}
	add := f.Add
	if err := checkURL(o.MQTT); err != nil {
		add("mqtt", "%v", err)
	}
	switch t, err := mqttname.ParseTemplate(o.Topic); {
	case o.Topic == "":
		add("topic", "missing; want the name of an MQTT topic, such as site1/{subject}")
	case err != nil:
		add("topic", "%v", err)
	case t.Max() > 0:
		add("topic", "has {%d}, the number of a wildcard, and there is none; want attributes of the event, such as {subject}", t.Max())
	default:
		if text, ok := t.Literal(); ok {
			if err := mqttname.CheckName(text); err != nil {
				add("topic", "%v", err)
			}
		}
	}
	if o.QoS != "0" && o.QoS != "1" {
		add("qos", "is %.20q; want 0 or 1", o.QoS)
	}
	if o.Format != plain && o.Format != cloudEvents {
		add("format", "is %.20q; want %s or %s", o.Format, plain, cloudEvents)
	}
	f.client(o.ClientID, o.User, o.Password)
	f.connection(o.Timeout, o.TLS)
	return f.Err()
}

// checkURL never shows what it was given: a password may stand in it.
func checkURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return errors.New("missing; want such as mqtts://broker.example.com")
	case err != nil || u.Hostname() == "":
		return errors.New("cannot be read; want such as mqtts://broker.example.com")
	case u.Scheme != "mqtt" && u.Scheme != "mqtts":
		return fmt.Errorf("has the scheme %.20q; want mqtt or mqtts", u.Scheme)
	case u.User != nil:
		return errors.New("has a user in it; give user and password beside it")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("has more than scheme, host and port")
	}
	return egress.CheckURL("https" + raw[len(u.Scheme):]) // which host and port there may be is the same
}

// Sink forwards events to a broker. One Deliver at a time keeps their order.
type Sink struct {
	o      To
	name   mqttname.Template
	broker *broker

	mu   sync.Mutex
	conn *conn // nil: none
	text []byte
}

// OpenSink returns a sink for o, or everything that is wrong in it. It connects to nothing yet.
func OpenSink(_ context.Context, o To) (*Sink, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.WithDefaults()
	t, err := mqttname.ParseTemplate(o.Topic)
	if err != nil {
		return nil, event.At("topic", err)
	}
	b, err := newBroker(o.MQTT, o.Process, o.TLS)
	if err != nil {
		return nil, err
	}
	b.user, b.password, b.clientID, b.timeout = o.User, o.Password, o.ClientID, o.Timeout
	return &Sink{o: o, name: t, broker: b}, nil
}

// Batch says what Deliver takes at once.
func (s *Sink) Batch() (events, size int, wait time.Duration) { return 1000, 1 << 20, 0 }

// Target is where it sends, secrets included: to be compared, not to be shown.
func (s *Sink) Target() string {
	return strings.Join([]string{s.o.MQTT, s.o.Topic, s.o.User, s.o.Password, s.o.ClientID}, " ")
}

// Close ends the connection.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.close()
		s.conn = nil
	}
	return nil
}

// Deliver publishes ds in their order and returns nil once the broker has acknowledged all. Of single events that it will never
// take the error is event.Permanent; of those that were not acknowledged it is an *event.RetryAfter that is stalled.
func (s *Sink) Deliver(ctx context.Context, ds []event.Delivery) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	reused := s.conn != nil
	errs := make([]error, len(ds))
	from, err := s.publish(ctx, ds, errs)
	if err != nil && reused && from == 0 && ctx.Err() == nil { // brokers close idle connections when they like
		from, err = s.publish(ctx, ds, errs)
	}
	if err != nil {
		stalled := &event.RetryAfter{Err: err, Stalled: true}
		if from == 0 {
			return stalled
		}
		for i := from; i < len(ds); i++ {
			errs[i] = stalled
		}
		return &event.Partial{Errs: errs}
	}
	for _, e := range errs {
		if e != nil && len(ds) == 1 {
			return e
		}
		if e != nil {
			return &event.Partial{Errs: errs}
		}
	}
	return nil
}

// publish returns how many of ds are dealt with: errs has what is wrong with single ones. An error ends the connection.
func (s *Sink) publish(ctx context.Context, ds []event.Delivery, errs []error) (from int, err error) {
	if s.conn == nil {
		if s.broker.clientID == "" && len(ds) > 0 {
			s.broker.clientID = "millrace-" + s.o.Name + "-" + strings.TrimPrefix(ds[0].Subscription, "bridge.")
		}
		if s.conn, err = s.broker.open(ctx); err != nil {
			return 0, err
		}
	}
	c := s.conn
	defer context.AfterFunc(ctx, func() { _ = c.nc.Close() })()
	for from < len(ds) {
		n := min(len(ds)-from, c.most)
		_ = c.nc.SetDeadline(time.Now().Add(s.o.Timeout)) // of a connection that is gone, the write says so
		if err = s.round(c, ds[from:from+n], errs[from:from+n]); err != nil {
			_ = c.nc.Close()
			s.conn = nil
			return from, s.broker.failed(ctx, err)
		}
		from += n
	}
	return from, nil
}

// round sends as many as the broker takes without acknowledging, and reads its acknowledgements.
func (s *Sink) round(c *conn, ds []event.Delivery, errs []error) error {
	open := make(map[uint16]int, len(ds))
	for i := range ds {
		errs[i] = nil
		pk, err := s.message(c, ds[i])
		if err != nil {
			errs[i] = event.Permanent(0, err)
			continue
		}
		if pk.FixedHeader.Qos > 0 {
			open[pk.PacketID] = i
		}
		if err := c.encode(pk); err != nil {
			return err
		}
		if c.largest > 0 && c.buf.Len() > int(c.largest) {
			delete(open, pk.PacketID)
			errs[i] = event.Permanent(0, fmt.Errorf("broker %s takes packets of at most %d bytes; this one would have %d", s.broker.shown, c.largest, c.buf.Len()))
			continue
		}
		if _, err := c.bw.Write(c.buf.Bytes()); err != nil {
			return err
		}
	}
	if err := c.bw.Flush(); err != nil {
		return err
	}
	for len(open) > 0 {
		pk, err := c.read()
		if err != nil {
			return err
		}
		i, ok := open[pk.PacketID]
		if pk.FixedHeader.Type != packets.Puback || !ok {
			continue
		}
		delete(open, pk.PacketID)
		switch code := pk.ReasonCode; {
		case code < 0x80:
		case code == packets.ErrTopicNameInvalid.Code, code == packets.ErrPayloadFormatInvalid.Code, code == packets.ErrPacketTooLarge.Code:
			errs[i] = event.Permanent(int(code), fmt.Errorf("broker %s: %w", s.broker.shown, &refused{"it refuses the message", code, meaning(code, c.version)}))
		default: // what comes behind it must not overtake it
			return &refused{"it refuses a message", code, meaning(code, c.version)}
		}
	}
	return nil
}

// message makes the PUBLISH of a delivery.
func (s *Sink) message(c *conn, d event.Delivery) (*packets.Packet, error) {
	missing := ""
	lookup := func(name string) (string, bool) {
		v, ok := attribute(d, name)
		if !ok {
			missing = name
		}
		return v, ok
	}
	text, ok := s.name.Append(s.text[:0], lookup)
	s.text = text
	if !ok {
		return nil, fmt.Errorf("the event has no %s, which the MQTT topic %s is made of", missing, s.o.Topic)
	}
	name := string(text)
	if err := mqttname.CheckName(name); err != nil {
		return nil, err
	}
	pk := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: s.o.Retain}, ProtocolVersion: c.version, TopicName: name, Payload: d.Event.Data()}
	if s.o.QoS == "1" {
		pk.FixedHeader.Qos, pk.PacketID = 1, c.next()
	}
	if c.version < 5 {
		return pk, nil
	}
	pk.Properties.ContentType = d.Event.Attr(event.TagDataContentType)
	if s.o.Format == cloudEvents {
		pk.Properties.User = s.properties(d.Event)
	}
	return pk, nil
}

// properties are the attributes of an event as the CloudEvents binding for MQTT has them in binary mode.
func (s *Sink) properties(rec event.Record) []packets.UserProperty {
	list := []packets.UserProperty{{Key: "specversion", Val: "1.0"}}
	via := s.o.Name
	for a := range rec.Attrs {
		name := a.Name
		if a.Tag != event.TagExtension {
			name = a.Tag.Name()
		}
		switch {
		case a.Value == "" || a.Tag == event.TagTopic || a.Tag == event.TagDataContentType:
		case name == event.ViaAttribute:
			via = a.Value + "," + via
		default:
			list = append(list, packets.UserProperty{Key: name, Val: a.Value})
		}
	}
	if via != "" {
		list = append(list, packets.UserProperty{Key: event.ViaAttribute, Val: via})
	}
	return list
}

// attribute is an attribute of a delivery's event; topic is that of this router.
func attribute(d event.Delivery, name string) (string, bool) {
	if name == "topic" {
		return d.Topic, true
	}
	for a := range d.Event.Attrs {
		is := a.Name
		if a.Tag != event.TagExtension {
			is = a.Tag.Name()
		}
		if is == name && a.Value != "" {
			return a.Value, true
		}
	}
	return "", false
}
