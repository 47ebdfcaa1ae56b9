package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strings"
	"time"

	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Options are what a connection needs. The zero value of a field means its default.
type Options struct {
	// Token shows who the client is: an API key or a JSON web token of the router's. It never crosses a network in the
	// clear unless Plaintext is set.
	Token string
	// TLS is what the connection is secured with. Without it a router on this machine (localhost, a loopback address, a
	// Unix socket) is reached without TLS, and any other by TLS with the system's roots.
	TLS *tls.Config
	// Plaintext reaches other machines without TLS, too. Whoever is on the way reads and changes everything.
	Plaintext bool

	Timeout  time.Duration // of a call that is no stream, where its context has no deadline, besides what it waits by its own wish; 30 s; < 0: none
	Attempts int           // of such a call, the first included; 4. Streams are tried for as long as their context lasts
	Backoff  Backoff       // between tries, of calls and of streams
	Log      *slog.Logger  // what is tried again, and why; nil: nothing

	// Dial are further options of gRPC, applied last.
	Dial []grpc.DialOption
}

func (o Options) withDefaults() Options {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Attempts <= 0 {
		o.Attempts = 4
	}
	o.Backoff = o.Backoff.withDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Client is a connection to a router. Close it.
type Client struct {
	o         Options
	conn      *grpc.ClientConn
	events    millracev1.EventsClient
	functions millracev1.FunctionsClient
	admin     millracev1.AdminClient
}

// Dial connects to the router's gRPC listener at target, "host:port" or any name that gRPC resolves, and returns once the
// connection stands or ctx ends, whose error then is told with why there is none. It begins to connect again by itself
// whenever it must.
func Dial(ctx context.Context, target string, o Options) (*Client, error) {
	c, err := New(target, o)
	if err != nil {
		return nil, err
	}
	for {
		c.conn.Connect()
		state := c.conn.GetState()
		if state == connectivity.Ready {
			return c, nil
		}
		var why error
		if state == connectivity.TransientFailure { // it fails at once, and says why
			_, why = c.admin.Ready(ctx, &millracev1.ReadyRequest{})
			c.o.Log.Debug("millrace: no connection yet", "target", target, "error", why)
		}
		if !c.conn.WaitForStateChange(ctx, state) {
			_ = c.Close()
			return nil, fmt.Errorf("connecting to %s: %w", target, errors.Join(ctx.Err(), why))
		}
	}
}

// New is Dial without waiting: the first call connects.
func New(target string, o Options) (*Client, error) {
	c := &Client{o: o.withDefaults()}
	creds := credentials.NewTLS(o.TLS)
	if o.TLS == nil && (o.Plaintext || local(target)) {
		creds = insecure.NewCredentials()
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: c.o.Backoff.Min, Multiplier: 2, Jitter: 0.2, MaxDelay: c.o.Backoff.Max},
			MinConnectTimeout: 10 * time.Second,
		}),
		// A connection that is dead without saying so is found by pings; routers allow one every 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(math.MaxInt32)),
		grpc.WithChainUnaryInterceptor(c.unary),
	}
	if o.Token != "" {
		if strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r >= 0x7F }) {
			return nil, errorf(codes.InvalidArgument, "Options.Token has a space or another character that a header cannot carry")
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer("Bearer "+o.Token)))
	}
	conn, err := grpc.NewClient(target, append(options, o.Dial...)...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", target, err)
	}
	c.conn = conn
	c.events, c.functions, c.admin = millracev1.NewEventsClient(conn), millracev1.NewFunctionsClient(conn), millracev1.NewAdminClient(conn)
	return c, nil
}

// local reports whether target is this machine.
func local(target string) bool {
	for _, scheme := range []string{"unix:", "unix-abstract:"} {
		if strings.HasPrefix(target, scheme) {
			return true
		}
	}
	if i := strings.LastIndexByte(target, '/'); i >= 0 { // dns:///host:port
		target = target[i+1:]
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		host = target
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip.IsLoopback()
}

// bearer shows a token with every call. New sees to it that the connection may carry it.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

// Close ends the connection and everything that uses it.
func (c *Client) Close() error { return c.conn.Close() }

// Conn is the connection, for services of other packages, such as health and reflection.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Events is the router's service as it is. Calls through it that are no streams are bounded in time, tried again where that
// is safe, and told by an [Error], as those of this package.
func (c *Client) Events() millracev1.EventsClient { return c.events }

// Functions is the router's service as it is; see [Client.Events].
func (c *Client) Functions() millracev1.FunctionsClient { return c.functions }

// Admin is the router's service as it is; see [Client.Events].
func (c *Client) Admin() millracev1.AdminClient { return c.admin }

// Publish stores all events in a topic or none; they are durable when it returns nil. Events without an id are given one, in
// the answer and not in the argument, so that a try that was lost on the way is not stored twice.
func (c *Client) Publish(ctx context.Context, topic string, events ...*Event) ([]*millracev1.Published, error) {
	r, err := c.events.Publish(ctx, &millracev1.PublishRequest{Topic: topic, Events: named(events)})
	return r.GetEvents(), err
}

// Ask publishes one event and waits up to wait for the reply of whoever works on it; nil if there is none by then, and
// GetReply of [Client.Events] asks again.
func (c *Client) Ask(ctx context.Context, topic string, e *Event, wait time.Duration) (*millracev1.Published, *millracev1.Reply, error) {
	r, err := c.events.Publish(ctx, &millracev1.PublishRequest{Topic: topic, Events: named([]*Event{e}), Wait: durationpb.New(wait)})
	if err != nil {
		return nil, nil, err
	}
	if len(r.Events) != 1 {
		return nil, nil, errorf(codes.Internal, "the router answered one event with %d", len(r.Events))
	}
	return r.Events[0], r.Reply, nil
}

// Invoke shows an event to a function and stores nothing; version "" is the one in force.
func (c *Client) Invoke(ctx context.Context, function, version string, e *Event) (*millracev1.InvokeResponse, error) {
	return c.functions.Invoke(ctx, &millracev1.InvokeRequest{Function: function, Version: version, Event: e})
}

// Pull leases up to max deliveries of a pull subscription, waiting up to wait for the first. [Client.Receive] does that and
// what belongs to it.
func (c *Client) Pull(ctx context.Context, subscription string, max int, wait time.Duration) ([]*Delivery, error) {
	if max < 1 || max > math.MaxInt32 {
		return nil, errorf(codes.InvalidArgument, "max is %d; want 1 to 1,000", max)
	}
	r, err := c.events.Pull(ctx, &millracev1.PullRequest{Subscription: subscription, Max: uint32(max), Wait: durationpb.New(wait)})
	return r.GetDeliveries(), err
}

// Settle settles leases of a pull subscription durably or prolongs them ([Ack], [Nack], [Extend]); lost are those that were
// not held.
func (c *Client) Settle(ctx context.Context, subscription string, how *millracev1.Settling) (lost []*millracev1.Lost, err error) {
	r, err := c.events.Settle(ctx, &millracev1.SettleRequest{Subscription: subscription, Settle: how})
	return r.GetLost(), err
}
