package mqttlink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/event"
)

// Source brings events in from a broker, in a session that the broker keeps while nobody is there.
type Source struct {
	o      From
	broker *broker
	taker  Taker
	qos    byte
	place  place

	conn   *conn
	sent   time.Time // something, so that the broker hears of this side in time
	asked  time.Time // when PINGREQ was sent that is not answered; zero: none
	held   []*packets.Packet
	events []event.Event
	marks  []mark // of the messages of a batch that are to be acknowledged
}

// place is what is remembered of how far it has come.
type place struct {
	Of      string   `json:"of"`                // which session of which broker
	Filters []string `json:"filters,omitempty"` // that it has
	Stored  []mark   `json:"stored,omitempty"`  // messages whose acknowledgement the broker may not have, as many as may be under way
	Reuses  bool     `json:"reuses,omitempty"`  // the broker gives the number of an acknowledged message to the next
	Last    uint16   `json:"last,omitempty"`    // number of the message that came last
}

// A mark tells a message that comes again from another of the same number.
type mark struct {
	ID   uint16 `json:"id"`
	Hash string `json:"hash"`
}

// Bounds of what is stored in one commit, besides window.
const (
	batchBytes = 1 << 20
	keepAlive  = 60 * time.Second
	steady     = 10 * time.Second // a connection that held as long was a good one
)

// OpenSource returns a source for o, or everything that is wrong in it. It connects to nothing yet.
func OpenSource(_ context.Context, o From) (*Source, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.WithDefaults()
	taker, err := o.Taker(o.mappings())
	if err != nil {
		return nil, err
	}
	b, err := newBroker(o.MQTT, o.Process, o.TLS)
	if err != nil {
		return nil, err
	}
	b.user, b.password, b.clientID, b.timeout = o.User, o.Password, o.ClientID, o.Timeout
	b.keep, b.keepAlive, b.receiveMost = true, uint16(keepAlive/time.Second), window
	b.expiry = uint32(o.SessionExpiry / time.Second)
	s := &Source{o: o, broker: b, taker: taker}
	if o.QoS == "1" {
		s.qos = 1
	}
	return s, nil
}

// Run implements event.Intake.
func (s *Source) Run(ctx context.Context, into event.Inlet) {
	if s.broker.clientID == "" {
		s.broker.clientID = "millrace-" + s.o.Name + "-" + into.Bridge()
	}
	for fails := 0; ctx.Err() == nil; fails++ {
		began := time.Now()
		err := s.session(ctx, into)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steady {
			fails = 0
		}
		into.Tell(err)
		event.Backoff(ctx, fails, 0)
	}
}

// session connects, and stores what comes until the connection or ctx ends. What is not acknowledged comes again.
func (s *Source) session(ctx context.Context, into event.Inlet) error {
	if err := s.load(ctx, into); err != nil {
		return err
	}
	c, err := s.broker.open(ctx)
	if err != nil {
		return err
	}
	s.conn, s.sent, s.asked, s.held = c, time.Now(), time.Time{}, nil
	defer c.close()
	// A goodbye tells the broker that nobody is there: the reading is ended, not the connection.
	defer context.AfterFunc(ctx, func() { _ = c.nc.SetDeadline(time.Now()) })()
	if err = s.agree(ctx, into); err == nil {
		into.Tell(nil)
	}
	for err == nil {
		err = s.step(ctx, into)
	}
	var mine *own
	if errors.As(err, &mine) {
		return mine.error
	}
	return s.broker.failed(ctx, err)
}

// load reads how far it has come; what is of another session counts for nothing.
func (s *Source) load(ctx context.Context, into event.Inlet) error {
	b, err := into.Place(ctx)
	if err != nil {
		return err
	}
	of := s.broker.shown + " " + s.broker.clientID
	s.place = place{}
	if err := json.Unmarshal(b, &s.place); err != nil || s.place.Of != of {
		s.place = place{Of: of}
	}
	return nil
}

// agree makes the session's subscriptions those of the rules.
func (s *Source) agree(ctx context.Context, into event.Inlet) error {
	c := s.conn
	s.deadline(ctx, s.o.Timeout)
	had := s.place.Filters
	if !c.session {
		if len(had) > 0 {
			into.Lost(0, fmt.Sprintf("broker %s does not have the session of %q any more", s.broker.shown, s.broker.clientID))
		}
		s.place = place{Of: s.place.Of}
		had = nil
	}
	want := make([]string, len(s.o.Filters))
	for i, f := range s.o.Filters {
		want[i] = s.o.QoS + " " + f
	}
	if slices.Equal(had, want) { // subscribing again would have a broker of 3.1.1 send what it retains once more
		return nil
	}
	if err := s.unsubscribe(had); err != nil {
		return err
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: c.version, PacketID: c.next()}
	for _, f := range s.o.Filters { // RetainHandling 1: what is retained comes to new subscriptions only
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: s.qos, RetainHandling: 1})
	}
	ack, err := s.request(&pk, packets.Suback)
	if err != nil {
		return err
	}
	if len(ack.ReasonCodes) != len(s.o.Filters) {
		return fmt.Errorf("it answers %d filters with %d codes", len(s.o.Filters), len(ack.ReasonCodes))
	}
	for i, code := range ack.ReasonCodes {
		if code >= 0x80 {
			return &refused{fmt.Sprintf("it refuses the subscription to %q", s.o.Filters[i]), code, meaning(code, 5)}
		}
		if code < s.qos {
			return fmt.Errorf("it gives the subscription to %q QoS %d, which loses messages; allow QoS 1 there, or say qos: 0", s.o.Filters[i], code)
		}
	}
	s.place.Filters = want
	return s.keep(ctx, into, nil)
}

// unsubscribe leaves the filters that the rules do not have any more.
func (s *Source) unsubscribe(had []string) error {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, ProtocolVersion: s.conn.version}
	for _, x := range had {
		if _, f, _ := strings.Cut(x, " "); !slices.Contains(s.o.Filters, f) {
			pk.Filters = append(pk.Filters, packets.Subscription{Filter: f})
		}
	}
	if len(pk.Filters) == 0 {
		return nil
	}
	pk.PacketID = s.conn.next()
	_, err := s.request(&pk, packets.Unsuback)
	return err
}

// request sends a packet and reads its answer. Messages that come before it are held for the first batch.
func (s *Source) request(pk *packets.Packet, answer byte) (*packets.Packet, error) {
	c := s.conn
	if err := errors.Join(c.write(pk), c.bw.Flush()); err != nil {
		return nil, err
	}
	s.sent = time.Now()
	for size := 0; ; {
		ack, err := c.read()
		switch {
		case err != nil:
			return nil, err
		case ack.FixedHeader.Type == packets.Publish:
			if size += len(ack.Payload); size > 4*maxPacket || len(s.held) > 1<<16 {
				return nil, errors.New("it sends messages and does not answer")
			}
			s.held = append(s.held, ack)
		case ack.FixedHeader.Type == answer && ack.PacketID == pk.PacketID:
			return ack, nil
		}
	}
}

// deadline bounds what is read and written next; once ctx has ended it is over.
func (s *Source) deadline(ctx context.Context, d time.Duration) {
	at := time.Now().Add(d)
	_ = s.conn.nc.SetDeadline(at) // of a connection that is gone, what comes next says so
	if ctx.Err() != nil {
		_ = s.conn.nc.SetDeadline(time.Now())
	}
}

// step stores the messages that have come, waiting for the first, and acknowledges them then.
func (s *Source) step(ctx context.Context, into event.Inlet) error {
	s.taker.Reset()
	s.events, s.marks = s.events[:0], s.marks[:0]
	acks, err := s.gather(ctx, into)
	if err != nil || acks == nil && len(s.events) == 0 {
		return err
	}
	if n := len(s.place.Stored) - window; n > 0 {
		s.place.Stored = slices.Delete(s.place.Stored, 0, n)
	}
	if err := s.keep(ctx, into, s.events); err != nil {
		return err
	}
	s.deadline(ctx, s.o.Timeout)
	for _, id := range acks {
		pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, ProtocolVersion: s.conn.version, PacketID: id}
		if err := s.conn.write(&pk); err != nil {
			return err
		}
	}
	if len(acks) > 0 {
		s.sent = time.Now()
		if err := s.conn.bw.Flush(); err != nil {
			return err
		}
	}
	into.Tell(nil)
	return nil
}

// gather reads messages into events, and returns the numbers of those to acknowledge; none of either where something else came.
func (s *Source) gather(ctx context.Context, into event.Inlet) (acks []uint16, err error) {
	now := time.Now()
	for n, size := 0, 0; n < window && size < batchBytes; {
		var pk *packets.Packet
		switch {
		case len(s.held) > 0:
			pk, s.held = s.held[0], s.held[1:]
		case n > 0 && s.conn.br.Buffered() == 0:
			return acks, nil
		default:
			if pk, err = s.next(ctx, n == 0); err != nil {
				return nil, err
			}
		}
		if pk == nil || pk.FixedHeader.Type != packets.Publish {
			if n == 0 {
				return nil, nil
			}
			continue
		}
		n++
		size += len(pk.Payload) + len(pk.TopicName)
		if pk.FixedHeader.Qos > 0 {
			acks = append(acks, pk.PacketID)
			if s.repeated(pk) {
				into.Repeated(1)
				continue
			}
		}
		var ev event.Event
		if err := s.taker.Take(&ev, pk, now); err != nil {
			into.Refused(pk.TopicName, err)
			continue
		}
		s.events = append(s.events, ev)
	}
	return acks, nil
}

// next reads a packet, and while nothing comes it has the broker hear of this side; nil: it did.
func (s *Source) next(ctx context.Context, wait bool) (*packets.Packet, error) {
	c := s.conn
	if wait && s.asked.IsZero() && time.Since(s.sent) > c.keepAlive/2 {
		return nil, s.ping(ctx)
	}
	if wait && c.br.Buffered() == 0 {
		until := s.sent.Add(c.keepAlive / 2)
		if !s.asked.IsZero() {
			until = s.asked.Add(s.o.Timeout)
		}
		s.deadline(ctx, time.Until(until))
		if _, err := c.br.Peek(1); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
				return nil, err
			}
			if !s.asked.IsZero() {
				return nil, fmt.Errorf("it has not answered within %s", s.o.Timeout)
			}
			return nil, s.ping(ctx)
		}
	}
	s.deadline(ctx, s.o.Timeout)
	pk, err := c.read()
	if err != nil {
		return nil, err
	}
	switch h := pk.FixedHeader; {
	case h.Type == packets.Pingresp:
		s.asked = time.Time{}
	case h.Type == packets.Publish && (h.Qos > s.qos || h.Qos > 0 && pk.PacketID == 0):
		return nil, fmt.Errorf("it sends a message of QoS %d and number %d; QoS %d was asked for", h.Qos, pk.PacketID, s.qos)
	}
	return pk, nil
}

func (s *Source) ping(ctx context.Context) error {
	s.deadline(ctx, s.o.Timeout)
	s.sent, s.asked = time.Now(), time.Now()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}, ProtocolVersion: s.conn.version}
	return errors.Join(s.conn.write(&pk), s.conn.bw.Flush())
}

// repeated reports whether a message is stored, and was sent again because the broker does not have the acknowledgement: it has
// the number and the content of one that was stored last. A broker that gives a number to another message as soon as it
// has the acknowledgement would send an equal one in the same way: it is known by that from the first that comes without DUP, and
// nothing is held for repeated from then on. Before that the two cannot be told: docs/bridges.md says so.
func (s *Source) repeated(pk *packets.Packet) bool {
	m := mark{pk.PacketID, hashOf(pk)}
	p := &s.place
	if !pk.FixedHeader.Dup {
		ahead := pk.PacketID - p.Last // counting goes on at 1 after the last number
		p.Reuses = p.Reuses || p.Last > 0 && (ahead == 0 || ahead > 1<<15)
		p.Last = pk.PacketID
	} else if i := slices.Index(p.Stored, m); i >= 0 && !p.Reuses {
		return true
	}
	p.Stored = append(p.Stored, m)
	return false
}

// hashOf tells messages apart by name, payload and what they say of themselves.
func hashOf(pk *packets.Packet) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d %s %d %s %d %s", len(pk.TopicName), pk.TopicName, len(pk.Properties.ContentType), pk.Properties.ContentType, len(pk.Properties.CorrelationData), pk.Properties.CorrelationData)
	for _, u := range pk.Properties.User {
		fmt.Fprintf(&b, " %d %s %d %s", len(u.Key), u.Key, len(u.Val), u.Val)
	}
	h := sha256.New()
	h.Write(b.Bytes())
	h.Write(pk.Payload)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// keep stores events with the place.
func (s *Source) keep(ctx context.Context, into event.Inlet, evs []event.Event) error {
	b, err := json.Marshal(s.place)
	if err != nil {
		return fmt.Errorf("place of a bridge: %w", err)
	}
	if err := into.Take(ctx, evs, b); err != nil {
		return &own{err}
	}
	return nil
}

// own is an error of this router: the broker has nothing to do with it.
type own struct{ error }

func (o *own) Unwrap() error { return o.error }
