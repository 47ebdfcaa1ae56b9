package mqttlink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/egress"
)

// Bounds of what a broker sends and is sent.
const (
	maxPacket = 16 << 20
	window    = 256 // messages that are sent before their acknowledgements are read
)

// broker is the way to one broker.
type broker struct {
	addr, host  string
	shown       string // scheme, host and port
	secure      bool
	tls         *egress.TLS
	dialer      *egress.Dialer
	user        string
	password    string
	clientID    string
	keep        bool   // the session outlives the connection
	keepAlive   uint16 // seconds; 0: none
	expiry      uint32 // seconds, of the session
	timeout     time.Duration
	version     byte // 5, or 4 (3.1.1) once the broker has said that it does not speak 5
	receiveMost uint16
}

func newBroker(raw string, p Process, o egress.TLSOptions) (*broker, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("mqtt: the URL cannot be read")
	}
	own, err := egress.NewTLS(o)
	if err != nil {
		return nil, err
	}
	b := &broker{host: u.Hostname(), secure: u.Scheme == "mqtts", tls: own, dialer: p.Dialer, version: 5}
	port := u.Port()
	if port == "" {
		port = map[bool]string{false: "1883", true: "8883"}[b.secure]
	}
	b.addr = net.JoinHostPort(b.host, port)
	b.shown = u.Scheme + "://" + b.addr
	if b.dialer == nil {
		return nil, fmt.Errorf("broker %s: no dialer", b.shown)
	}
	return b, nil
}

// conn is a connection to a broker. It belongs to one goroutine, but for close.
type conn struct {
	nc        net.Conn
	br        *bufio.Reader
	bw        *bufio.Writer
	buf       bytes.Buffer
	version   byte
	id        uint16        // of the packet that was numbered last
	most      int           // messages that it takes without acknowledging
	largest   uint32        // bytes of a packet that it takes; 0: any number
	session   bool          // it had one
	keepAlive time.Duration // as the broker wants it
}

// refused is a CONNACK, or another answer, that says no.
type refused struct {
	what string
	code byte
	why  string
}

func (r *refused) Error() string {
	text := fmt.Sprintf("%s with 0x%02X", r.what, r.code)
	if r.why != "" {
		text += " (" + r.why + ")"
	}
	return text
}

// open connects and says who this is.
func (b *broker) open(ctx context.Context) (*conn, error) {
	c, err := b.connect(ctx)
	var r *refused
	if errors.As(err, &r) && b.version == 5 && (r.code == packets.ErrUnsupportedProtocolVersion.Code || r.code == 1) {
		b.version = 4
		c, err = b.connect(ctx)
	}
	if err != nil {
		return nil, b.failed(ctx, err)
	}
	return c, nil
}

func (b *broker) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("broker %s: %w", b.shown, ctx.Err())
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it has closed the connection")
	}
	return fmt.Errorf("broker %s: %w", b.shown, egress.Words(err))
}

func (b *broker) connect(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	nc, err := b.dialer.DialContext(ctx, "tcp", b.addr)
	if err != nil {
		return nil, err
	}
	if b.secure {
		o, err := b.dialer.TLS(b.host, b.tls)()
		if err != nil {
			_ = nc.Close()
			return nil, err
		}
		t := tls.Client(nc, o)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		nc = t
	}
	c := &conn{nc: nc, br: bufio.NewReaderSize(nc, 64<<10), bw: bufio.NewWriterSize(nc, 64<<10), version: b.version}
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	if err := c.greet(b); err != nil {
		_ = nc.Close()
		return nil, err
	}
	return c, nil
}

// greet sends CONNECT and reads CONNACK.
func (c *conn) greet(b *broker) error {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: c.version}
	pk.Connect = packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: !b.keep, Keepalive: b.keepAlive, ClientIdentifier: b.clientID}
	if b.user != "" {
		pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte(b.user)
	}
	if b.password != "" {
		pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte(b.password)
	}
	if c.version == 5 {
		pk.Properties.MaximumPacketSize = maxPacket
		if b.receiveMost > 0 {
			pk.Properties.ReceiveMaximum = b.receiveMost
		}
		if b.keep {
			pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = b.expiry, true
		}
	}
	if err := errors.Join(c.write(&pk), c.bw.Flush()); err != nil {
		return err
	}
	ack, err := c.read()
	switch {
	case err != nil:
		return err
	case ack.FixedHeader.Type != packets.Connack:
		return fmt.Errorf("it answers CONNECT with a packet of type %d", ack.FixedHeader.Type)
	case ack.ReasonCode != 0:
		return &refused{"it refuses the connection", ack.ReasonCode, meaning(ack.ReasonCode, c.version)}
	}
	c.session, c.most, c.largest = ack.SessionPresent, window, ack.Properties.MaximumPacketSize
	c.keepAlive = time.Duration(b.keepAlive) * time.Second
	if ack.Properties.ServerKeepAliveFlag && ack.Properties.ServerKeepAlive > 0 { // [MQTT-3.2.2-21]
		c.keepAlive = time.Duration(ack.Properties.ServerKeepAlive) * time.Second
	}
	if m := int(ack.Properties.ReceiveMaximum); m > 0 {
		c.most = min(c.most, m)
	}
	return nil
}

// meaning is what a reason code says, in the specification's words.
func meaning(code, version byte) string {
	if version < 5 {
		if int(code) < 6 {
			return [...]string{"", "unacceptable protocol version", "identifier rejected", "server unavailable", "bad user name or password", "not authorized"}[code]
		}
		return ""
	}
	for _, c := range []packets.Code{packets.ErrUnsupportedProtocolVersion, packets.ErrClientIdentifierNotValid, packets.ErrBadUsernameOrPassword, packets.ErrNotAuthorized,
		packets.ErrServerUnavailable, packets.ErrServerBusy, packets.ErrBanned, packets.ErrQuotaExceeded, packets.ErrTopicNameInvalid, packets.ErrTopicFilterInvalid,
		packets.ErrPacketTooLarge, packets.ErrPayloadFormatInvalid, packets.ErrSessionTakenOver} {
		if c.Code == code {
			return c.Reason
		}
	}
	return ""
}

// next is the number of the next packet that is acknowledged.
func (c *conn) next() uint16 {
	if c.id++; c.id == 0 {
		c.id = 1
	}
	return c.id
}

// encode writes a packet into buf.
func (c *conn) encode(pk *packets.Packet) error {
	c.buf.Reset()
	switch pk.FixedHeader.Type {
	case packets.Connect:
		return pk.ConnectEncode(&c.buf)
	case packets.Publish:
		return pk.PublishEncode(&c.buf)
	case packets.Puback:
		return pk.PubackEncode(&c.buf)
	case packets.Subscribe:
		return pk.SubscribeEncode(&c.buf)
	case packets.Unsubscribe:
		return pk.UnsubscribeEncode(&c.buf)
	case packets.Pingreq:
		return pk.PingreqEncode(&c.buf)
	case packets.Disconnect:
		return pk.DisconnectEncode(&c.buf)
	}
	return fmt.Errorf("packets of type %d are not sent", pk.FixedHeader.Type)
}

// write gathers a packet; flush sends.
func (c *conn) write(pk *packets.Packet) error {
	if err := c.encode(pk); err != nil {
		return err
	}
	_, err := c.bw.Write(c.buf.Bytes())
	return err
}

// read reads a packet.
func (c *conn) read() (*packets.Packet, error) {
	first, err := c.br.ReadByte()
	if err != nil {
		return nil, err
	}
	pk := &packets.Packet{ProtocolVersion: c.version}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return nil, fmt.Errorf("what it sends is not MQTT: %w", err)
	}
	n, _, err := packets.DecodeLength(c.br)
	if err != nil {
		return nil, err
	}
	if n > maxPacket {
		return nil, fmt.Errorf("it sends a packet of %d bytes; the limit is %d", n, maxPacket)
	}
	pk.FixedHeader.Remaining = n
	body, err := io.ReadAll(io.LimitReader(c.br, int64(n))) // grows as it comes
	if err == nil && len(body) < n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	case packets.Pingresp:
	default:
		err = fmt.Errorf("it sends a packet of type %d", pk.FixedHeader.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("a packet of its cannot be read: %w", err)
	}
	if pk.FixedHeader.Type == packets.Disconnect {
		return nil, &refused{"it ends the connection", pk.ReasonCode, meaning(pk.ReasonCode, c.version)}
	}
	return pk, nil
}

// close says goodbye if there is time.
func (c *conn) close() {
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ProtocolVersion: c.version}
	_ = errors.Join(c.write(&pk), c.bw.Flush()) // it is over either way
	_ = c.nc.Close()
}
