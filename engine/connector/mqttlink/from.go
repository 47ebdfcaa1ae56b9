package mqttlink

import (
	"fmt"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/egress"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
)

// From is what a bridge brings in from an MQTT broker: what stands under `from`, and what the process adds. Zero means
// default.
type From struct {
	MQTT          string            `yaml:"mqtt" rules:"required" about:"URL of the broker: mqtt://HOST or mqtts://HOST, with a port if it is not 1883 or 8883."`
	Filters       []string          `yaml:"filters" rules:"required" about:"Which messages: topic filters such as sensors/#. No two of them may share a name."`
	QoS           string            `yaml:"qos" enum:"0,1" about:"1: the broker keeps messages until they are stored here. 0: those that nobody takes are gone."`
	Type          string            `yaml:"type" about:"Of the events: text, with what the filter's wildcards took as {1}, {2}…"`
	Subject       string            `yaml:"subject" about:"In the same way."`
	Key           string            `yaml:"key" about:"Their partition key, in the same way."`
	Source        string            `yaml:"source" about:"In the same way."`
	CloudEvents   bool              `yaml:"cloudevents" about:"Messages that do not say what they are are CloudEvents in JSON."`
	ClientID      string            `yaml:"clientId" about:"Of the session on the broker. No other client may have it."` // made of the router's and the bridge's name
	SessionExpiry time.Duration     `yaml:"sessionExpiry" about:"How long the broker keeps messages while this router is away, of MQTT 5; at least 1s."`
	User          string            `yaml:"user" about:"Who it is there."`
	Password      string            `yaml:"password" about:"Of user. Give a reference."`
	Timeout       time.Duration     `yaml:"timeout" about:"Of connecting, and of an answer."`
	TLS           egress.TLSOptions `yaml:"tls" about:"How TLS connections to it are made."`

	Process `yaml:"-"`
	Taker   func([]event.MQTTMapping) (Taker, error) `yaml:"-"` // makes events of messages
}

// A Taker makes events of messages in the way of the protocol's own clients. It is for one goroutine.
type Taker interface {
	Take(ev *event.Event, pk *packets.Packet, now time.Time) error // ev borrows both until Reset
	Reset()
}

const (
	maxFilters = 100
	// maxExpiry is the longest that is a number in MQTT and not "never".
	maxExpiry = (1<<32 - 2) * time.Second
)

// WithDefaults returns o with its zero fields filled.
func (o From) WithDefaults() From {
	if o.QoS == "" {
		o.QoS = "1"
	}
	if o.SessionExpiry == 0 {
		o.SessionExpiry = 7 * 24 * time.Hour
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	return o
}

// Validate reports everything wrong in what rules say, each fault at its key: *event.Faults. Secrets are never shown.
func (o From) Validate() error {
	o = o.WithDefaults()
	f := faults{event.Faults{Is: event.ErrInvalid}}
	if err := checkURL(o.MQTT); err != nil {
		f.Add("mqtt", "%v", err)
	}
	o.checkFilters(&f)
	if o.QoS != "0" && o.QoS != "1" {
		f.Add("qos", "is %.20q; want 0 or 1", o.QoS)
	}
	if o.SessionExpiry < time.Second || o.SessionExpiry > maxExpiry {
		f.Add("sessionExpiry", "is %s; want 1s to %s", o.SessionExpiry, maxExpiry)
	}
	f.client(o.ClientID, o.User, o.Password)
	f.connection(o.Timeout, o.TLS)
	return f.Err()
}

// checkFilters checks the filters, and that the templates name wildcards which each of them has.
func (o From) checkFilters(f *faults) {
	if len(o.Filters) == 0 {
		f.Add("filters", "missing; want topic filters such as [\"sensors/#\"]")
		return
	}
	if len(o.Filters) > maxFilters {
		f.Add("filters", "has %d filters; the limit is %d: the wildcards + and # stand for many names", len(o.Filters), maxFilters)
		return
	}
	least, fewest := 0, ""
	for i, filter := range o.Filters {
		at := fmt.Sprintf("filters[%d]", i)
		if err := mqttname.CheckFilter(filter); err != nil {
			f.Add(at, "%v", err)
			continue
		}
		if strings.HasPrefix(filter, "$share/") {
			f.Add(at, "is that of a shared subscription, which has no session; want the filter alone")
			continue
		}
		for _, other := range o.Filters[:i] {
			if mqttname.ValidFilter(other) && mqttname.Overlap(filter, other) {
				f.Add(at, "%q and %q may match one name, and a broker may send what both match twice; keep one, or make two bridges", filter, other)
			}
		}
		if n := mqttname.Wildcards(filter); fewest == "" || n < least {
			least, fewest = n, filter
		}
	}
	if fewest == "" {
		return
	}
	for _, x := range []struct{ at, text string }{{"type", o.Type}, {"subject", o.Subject}, {"key", o.Key}, {"source", o.Source}} {
		switch t, err := mqttname.ParseTemplate(x.text); {
		case err != nil:
			f.Add(x.at, "%v", err)
		case len(t.Attributes()) > 0:
			f.Add(x.at, "has {%s}; want the number of a wildcard, such as {1}", t.Attributes()[0])
		case t.Max() > least:
			f.Add(x.at, "has {%d}; the filter %q has %d wildcards", t.Max(), fewest, least)
		}
	}
}

// mappings are what the filters' messages become.
func (o From) mappings() []event.MQTTMapping {
	list := make([]event.MQTTMapping, len(o.Filters))
	for i, filter := range o.Filters {
		list[i] = event.MQTTMapping{Filter: filter, Type: o.Type, Subject: o.Subject, Key: o.Key, Source: o.Source, CloudEvents: o.CloudEvents}
	}
	return list
}

// Limits are those of what a broker sends: wider than any router's, which refuses where it stores.
func Limits() event.Limits {
	l := event.Limits{}.WithDefaults()
	l.Event, l.Body = maxPacket, maxPacket
	return l
}

// faults gathers what is wrong.
type faults struct{ event.Faults }

// client checks who the bridge is on a broker.
func (f *faults) client(id, user, password string) {
	if password != "" && user == "" {
		f.Add("user", "missing; a password is a user's")
	}
	for _, x := range []struct{ at, v string }{{"clientId", id}, {"user", user}, {"password", password}} {
		if len(x.v) > 1<<16-1 || strings.ContainsRune(x.v, 0) {
			f.Add(x.at, "has over 65,535 bytes, or a zero byte")
		}
	}
}

// connection checks how a broker is reached.
func (f *faults) connection(timeout time.Duration, o egress.TLSOptions) {
	if timeout < time.Second || timeout > maxTimeout {
		f.Add("timeout", "is %s; want 1s to %s", timeout, maxTimeout)
	}
	if _, err := egress.NewTLS(o); err != nil {
		f.Add("tls", "%v", err)
	}
}
