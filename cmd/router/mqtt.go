package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/protocol/httpapi"
	"github.com/millrace/millrace/engine/protocol/mqtt"
)

// mqttFace is where a router speaks MQTT.
type mqttFace struct {
	server *mqtt.Server
	door   *admission.Door
	lns    []net.Listener
	at     []string // what serve says of each
	served bool
}

// mqttOptions say where, "" is nowhere, and how much its clients' wills may take.
type mqttOptions struct {
	plain, secure string
	wills         string
	willBytes     int64 // that wills says; 0: the default
}

func (o *mqttOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.plain, "mqtt-listen", "", "speak MQTT too, at this `address`, such as 127.0.0.1:1883")
	f.StringVar(&o.secure, "mqtt-tls-listen", "", "speak MQTT over TLS, by the certificates of HTTPS, at this `address`, such as :8883")
	f.StringVar(&o.wills, "mqtt-wills", "64MiB", "largest `size` of all wills of MQTT clients together, in memory; past it who brings one is not let in")
}

// check reads what the flags say.
func (o *mqttOptions) check(cmd *cobra.Command) (err error) {
	if o.willBytes, err = parseSize(o.wills); err == nil && (o.willBytes < 1<<10 || o.willBytes > 64<<30) {
		err = fmt.Errorf("%s; want 1KiB to 64GiB", sizeText(o.willBytes))
	}
	if err != nil {
		return usagef(cmd, "--mqtt-wills: %v", err)
	}
	return nil
}

// An mqttBackend is the router as the MQTT face sees it; the interface wants its own types.
type mqttBackend struct {
	backend
	shelf *engine.Shelf
}

var _ mqtt.Backend = mqttBackend{}

// OpenTopic opens a reader.
func (b mqttBackend) OpenTopic(ctx context.Context, topic string, start event.Start, filter string) (mqtt.Reader, error) {
	r, err := b.Engine.OpenTopic(ctx, topic, start, filter)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Rows are the rows of its sessions.
func (b mqttBackend) Rows() mqtt.Rows { return b.shelf }

// Pulls are the subscriptions that clients may share.
func (b mqttBackend) Pulls() (list []mqtt.PullSource) {
	for _, s := range b.Subscriptions() {
		if s.Deliver.Face == event.Pull {
			list = append(list, mqtt.PullSource{Name: s.Name, Topic: s.Topic})
		}
	}
	return list
}

// An mqttDoor lets in by the door of all faces; the interfaces want their own types.
type mqttDoor struct{ *admission.Door }

type mqttVisit struct {
	*admission.Conn
	addr netip.Addr // whose a proxy says it is; not valid: the connection's
}

func (d mqttDoor) Enter(peer netip.Addr) (mqtt.Visit, error) {
	c, err := d.Door.Enter(peer)
	if err != nil {
		return nil, err
	}
	return mqttVisit{Conn: c}, nil
}

func (d mqttDoor) Known(identity string) mqtt.Caller {
	p := d.Guard().Known(identity)
	if p == nil {
		return nil
	}
	return d.Session(p, access.Credentials{}, nil)
}

func (v mqttVisit) Open(ctx context.Context, cred access.Credentials) (mqtt.Caller, error) {
	if v.addr.IsValid() {
		cred.Addr = v.addr
	}
	s, err := v.Conn.Open(ctx, cred)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// openMQTT listens where MQTT is to be spoken; nothing is served until run.
func (r *router) openMQTT(ctx context.Context, b backend, m *metrics) error {
	o := r.o
	if o.mqtt.plain == "" && o.mqtt.secure == "" {
		return nil
	}
	shelf, err := r.engine.Shelf("mqtt")
	if err != nil {
		return err
	}
	if r.mqtt.server, err = mqtt.New(ctx, mqtt.Options{Backend: mqttBackend{b, shelf}, Door: mqttDoor{r.door}, Key: r.engine.Key("mqtt clients"), Limits: o.edge.limits, Log: o.log,
		StayOn: func() bool { return o.insecure || r.guard.StayOn() }, ConnectTimeout: o.edge.server.HeaderTimeout, PacketTimeout: o.edge.server.BodyTimeout,
		WriteTimeout: o.edge.server.WriteTimeout, WillBytes: o.mqtt.willBytes}); err != nil {
		return err
	}
	m.mqtt, r.mqtt.door = r.mqtt.server, r.door
	if o.mqtt.plain != "" {
		ln, err := listenAt(ctx, o.mqtt.plain)
		if err != nil {
			return fmt.Errorf("--mqtt-listen: %w", err)
		}
		r.mqtt.add(ln, ln.Addr().String())
	}
	if o.mqtt.secure != "" {
		if r.edge == nil {
			return errors.New("--mqtt-tls-listen: there is no certificate: name one with --tls-cert and --tls-key, or a host with --acme-host")
		}
		ln, err := listenAt(ctx, o.mqtt.secure)
		if err != nil {
			return fmt.Errorf("--mqtt-tls-listen: %w", err)
		}
		r.mqtt.add(tls.NewListener(ln, r.edge.ConfigOf("mqtt")), ln.Addr().String()+", TLS")
	}
	return nil
}

func (f *mqttFace) add(ln net.Listener, at string) {
	if ln.Addr().Network() == "unix" {
		at = unixPrefix + at
	}
	f.lns, f.at = append(f.lns, ln), append(f.at, at)
}

// serve speaks MQTT until shutdown.
func (f *mqttFace) serve(ctx context.Context) error {
	f.served = true
	var g errgroup.Group
	for _, ln := range f.lns {
		g.Go(func() error { return f.server.Serve(ctx, ln) })
	}
	return g.Wait()
}

// serveWebSocket speaks MQTT to a WebSocket on the listener of HTTP, which has counted the connection, where MQTT is on.
func (f *mqttFace) serveWebSocket(ctx *fasthttp.RequestCtx, take func(serve func(ctx context.Context, nc net.Conn, ahead []byte)) error) error {
	if f.server == nil {
		return fmt.Errorf("this router does not speak MQTT: start it with --mqtt-listen: %w", event.ErrNotFound)
	}
	return f.server.ServeWebSocket(ctx, func(ctx context.Context) mqtt.Visit {
		addr := httpapi.SessionOf(ctx).Addr()
		return mqttVisit{f.door.Inside(addr), addr}
	}, take)
}

// shutdown tells clients to go once what they have sent is answered.
func (f *mqttFace) shutdown(ctx context.Context) error {
	if f.server == nil {
		return nil
	}
	return f.server.Shutdown(ctx)
}

// close closes what was opened and never served.
func (f *mqttFace) close() error {
	if f.served || f.server == nil {
		return nil
	}
	var errs []error
	for _, ln := range f.lns {
		errs = append(errs, ln.Close())
	}
	return errors.Join(append(errs, f.server.Shutdown(context.Background()))...)
}

// shown are the lines of serve's beginning, "" without MQTT.
func (f *mqttFace) shown() string {
	var b strings.Builder
	for _, at := range f.at {
		fmt.Fprintf(&b, "mqtt    %s\n", at)
	}
	return b.String()
}
