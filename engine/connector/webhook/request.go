package webhook

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// keepBuffer is target.keep where there are no batches. Ten thousand subscriptions may have a lane each.
const keepBuffer = 64 << 10

// A target is what of a sink's configuration every request repeats.
type target struct {
	prefix []byte // request line and the headers that never change
	format string
	keys   []key
	signed int // bytes that the signatures take in the header
	https  bool
	addr   string // host:port to dial
	host   string // for TLS
	name   string // for errors: scheme, host and port; path and query may hold secrets
	keep   int    // the largest buffer in bytes that a lane keeps for its next delivery
}

func newTarget(o Options) (*target, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, err // unreachable after Validate
	}
	t := &target{keep: max(keepBuffer, int(o.Batch.Bytes+o.Batch.Bytes/4)), format: o.Format, https: u.Scheme == "https", host: strings.ToLower(u.Hostname())}
	port, standard := u.Port(), "80"
	if t.https {
		standard = "443"
	}
	if port == "" {
		port = standard
	}
	t.addr = net.JoinHostPort(t.host, port)
	host := t.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != standard {
		host += ":" + port
	}
	t.name = u.Scheme + "://" + host

	b := append(t.prefix, "POST "...)
	b = append(b, u.RequestURI()...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, host...)
	b = append(b, "\r\n"...)
	agent := o.UserAgent
	for _, name := range sortedNames(o.Headers) {
		if strings.EqualFold(name, "user-agent") {
			agent = o.Headers[name]
			continue
		}
		b = appendHeader(b, name, o.Headers[name])
	}
	t.prefix = appendHeader(b, "User-Agent", agent)
	for _, s := range o.Secrets {
		k, err := parseSigner(s)
		if err != nil {
			return nil, err
		}
		t.keys = append(t.keys, k)
		t.signed += k.size() + 1
	}
	return t, nil
}

func appendHeader(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// build makes the whole request in l's buffers; it is valid until the next build. The error is
// permanent: the event cannot be written as a request.
func (t *target) build(l *lane, d *event.Delivery, ts int64) ([]byte, error) {
	if !plainID(d.ID) {
		return nil, event.Permanent(0, fmt.Errorf("webhook-id %.80q is empty or not printable ASCII", d.ID))
	}
	contentType := d.Event.Attr(event.TagDataContentType)
	if !safeValue(contentType) {
		return nil, event.Permanent(0, fmt.Errorf("datacontenttype %.80q has a control character and cannot be sent as Content-Type", contentType))
	}
	if t.format == Structured {
		room := t.leaveRoom(l, len(d.ID))
		l.buf = d.Event.AppendStructured(l.buf)
		return t.precede(l, room, "application/cloudevents+json; charset=utf-8", d.ID, ts), nil
	}
	if cap(l.buf) > t.keep {
		l.buf = nil
	}
	b := append(l.buf[:0], t.prefix...)
	data := d.Event.Data()
	if t.format == Binary {
		for name, value := range d.Event.Headers {
			if !safeValue(value) {
				l.buf = b
				return nil, event.Permanent(0, fmt.Errorf("%s has a control character and cannot be sent as a header; use format: structured", name))
			}
			b = appendHeader(b, name, value)
		}
	} else if contentType == "" && data != nil {
		// Binary mode leaves Content-Type out if the event has none; a receiver of data alone has
		// nothing else to go by.
		contentType = "application/json" // CloudEvents 1.0 JSON format, section 3.1.1
		if d.Event.Flags()&event.FlagBinary != 0 {
			contentType = "application/octet-stream"
		}
	}
	if contentType != "" {
		b = appendHeader(b, "Content-Type", contentType)
	}
	b = t.finish(l, b, d.ID, ts, data)
	l.buf = append(b, data...)
	return l.buf, nil
}

// leaveRoom begins l.buf with room for the headers: a document's length stands before it, and is not known before it
// is written. precede puts the headers right before the document rather than copy that.
func (t *target) leaveRoom(l *lane, id int) int {
	if cap(l.buf) > t.keep {
		l.buf = nil
	}
	room := len(t.prefix) + id + 256 + t.signed + len(l.auth)
	l.buf = grow(l.buf[:0], room)
	return room
}

// precede returns the request whose body stands in l.buf from room on.
func (t *target) precede(l *lane, room int, contentType, id string, ts int64) []byte {
	l.head = append(l.head[:0], t.prefix...)
	l.head = appendHeader(l.head, "Content-Type", contentType)
	l.head = t.finish(l, l.head, id, ts, l.buf[room:])
	start := room - len(l.head)
	copy(l.buf[start:], l.head)
	return l.buf[start:]
}

// finish appends what depends on the body, and the end of the headers.
func (t *target) finish(l *lane, b []byte, id string, ts int64, body []byte) []byte {
	if l.auth != "" {
		b = appendHeader(b, "Authorization", l.auth)
	}
	b = appendHeader(b, "webhook-id", id)
	b = append(b, "webhook-timestamp: "...)
	b = strconv.AppendInt(b, ts, 10)
	b = append(b, "\r\n"...)
	if len(l.macs) > 0 {
		l.signed = append(append(l.signed[:0], id...), '.')
		l.signed = append(strconv.AppendInt(l.signed, ts, 10), '.')
		b = append(b, "webhook-signature:"...)
		for i, h := range l.macs {
			b = append(b, ' ')
			if h == nil {
				b = l.sign1a(b, t.keys[i].private, body)
				continue
			}
			h.Reset()
			h.Write(l.signed)
			h.Write(body)
			b = append(b, version1...)
			b = base64.StdEncoding.AppendEncode(b, h.Sum(l.sum[:0]))
		}
		b = append(b, "\r\n"...)
	}
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	return append(b, "\r\n\r\n"...)
}

// sign1a appends an ed25519 signature over what l.signed and body are together. The algorithm reads its message twice
// and wants it in one piece.
func (l *lane) sign1a(b []byte, k ed25519.PrivateKey, body []byte) []byte {
	n := len(l.signed)
	l.signed = append(l.signed, body...)
	b = append(b, version1a...)
	b = base64.StdEncoding.AppendEncode(b, ed25519.Sign(k, l.signed))
	if l.signed = l.signed[:n]; cap(l.signed) > keepBuffer {
		l.signed = append([]byte(nil), l.signed...)
	}
	return b
}

// grow returns b, which is empty, with n bytes of room.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n, 2*n+1024)
	}
	return b[:n]
}

func plainID(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7F {
			return false
		}
	}
	return s != ""
}
