package mqtt

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/mqttname"
)

// publish takes a PUBLISH into the batch that is gathered; with room, which is what is reserved for it, body is memory of its own. A violation ends the
// connection; what is wrong with the message alone is answered in its turn.
func (c *conn) publish(h header, body []byte, room int) *violation {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.gather()
	body = b.keep(body, room)
	pk := b.packet()
	if bad := readPublish(h, body, c.version, pk); bad != nil {
		return bad
	}
	if bad := c.resolve(pk); bad != nil {
		return bad
	}
	x := item{id: pk.PacketID, qos: pk.FixedHeader.Qos, ev: -1, retain: pk.FixedHeader.Retain, empty: len(pk.Payload) == 0, name: pk.TopicName}
	if bad := c.admit(&x); bad != nil {
		return bad
	}
	if x.in == nil || !x.in.stored { // else it is a repeat, which is only acknowledged
		x.err = c.translate(b, pk, &x)
	}
	b.items = append(b.items, x)
	return nil
}

// resolve puts the name that a topic alias stands for into pk, or notes what it stands for from now on (3.3.2.3.4).
func (c *conn) resolve(pk *packets.Packet) *violation {
	alias := int(pk.Properties.TopicAlias)
	switch {
	case alias == 0:
		if pk.TopicName == "" { // [MQTT-4.7.3-1]
			return wrong("PUBLISH without a name")
		}
	case alias > aliasMax: // [MQTT-3.3.2-9]
		return &violation{packets.ErrTopicAliasInvalid.Code, fmt.Sprintf("topic alias %d; the maximum is %d, as CONNACK said", alias, aliasMax)}
	case pk.TopicName == "":
		if c.aliases == nil || c.aliases[alias-1] == "" {
			return wrong("topic alias %d stands for nothing", alias)
		}
		pk.TopicName = c.aliases[alias-1]
	case len(pk.TopicName) > mqttname.MaxLen:
		// Refused in its turn; nothing is kept of it.
	default:
		if c.aliases == nil {
			c.aliases = make([]string, aliasMax)
		}
		if c.aliases[alias-1] != pk.TopicName {
			c.aliases[alias-1] = strings.Clone(pk.TopicName)
		}
	}
	return nil
}

// admit counts a message against what may be under way, and finds out whether one of QoS 2 is a repeat.
func (c *conn) admit(x *item) *violation {
	switch x.qos {
	case 0:
		return nil
	case 1:
		c.pending++
	case 2:
		room := receiveMax - c.pending
		if c.version < 5 {
			room = 1 << 16
		}
		r, busy := c.sess.in.take(x.id, room)
		if busy {
			return wrong("packet id %d is in use: it has not been acknowledged", x.id)
		}
		x.in = r
	}
	if c.version == 5 && (c.pending+c.sess.in.size() > receiveMax || x.qos == 2 && x.in == nil) { // 3.3.4
		return &violation{packets.ErrReceiveMaximum.Code, fmt.Sprintf("over %d messages under way, which is the receive maximum that CONNACK said", receiveMax)}
	}
	return nil
}

// translate makes a message an event of the batch, if it is one that the client may publish.
func (c *conn) translate(b *batch, pk *packets.Packet, x *item) error {
	if err := c.caller.Spend(); err != nil {
		return err
	}
	o := &c.s.o
	ev := b.next()
	m, err := b.in.take(ev, pk, o.Backend.MQTT(), o.Limits, o.Now())
	if err = mayPublish(c.caller, pk.TopicName, m, err); err != nil {
		b.evs = b.evs[:len(b.evs)-1]
		return err
	}
	madeBy(ev, x.qos, x.retain, c.sess.out.mark)
	if x.in != nil && !ev.ClientID {
		ev.ID, ev.ClientID = x.in.event, true
	}
	x.ev, x.topic = int32(len(b.evs)-1), b.topic(m.Topic)
	return nil
}

// release takes a PUBREL: the packet id is free once its row is gone.
func (c *conn) release(id uint16) *violation {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.gather()
	r, busy := c.sess.in.release(id)
	if busy {
		return wrong("PUBREL of packet id %d before its PUBREC", id)
	}
	b.items = append(b.items, item{id: id, in: r, ev: -1, release: true})
	return nil
}

// gather is the batch that is gathered, once it has room. The caller holds mu, which keeps the batch from being stored while
// a message is put into it.
func (c *conn) gather() *batch {
	for c.next != nil && c.next.full() && c.failed == nil {
		c.handOver()
		c.moved.Wait()
	}
	if c.next == nil {
		c.next = c.s.batches.Get().(*batch)
	}
	return c.next
}

// begin has what is gathered stored, before more is read. Who stores: while store runs, nobody else. Where it does not run, the
// reading goroutine does itself if all that came is one message that is not large: its client most likely waits for the
// acknowledgement, and to hand the message over would cost two switches between goroutines. What such a client sends all the
// same comes with the next read, all at once; then store is started, so that more is read while it stores. handed reports
// whether it runs; an error ends the connection.
func (c *conn) begin(idle bool) (handed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.why(); err != nil {
		return c.hand, err
	}
	b := c.next
	if !idle || c.hand || b == nil || len(b.items) != 1 || b.large > 0 {
		c.handOver()
		return c.hand, nil
	}
	c.next = nil
	c.mu.Unlock()
	err = c.commit(b)
	c.mu.Lock()
	c.failed = err
	return false, c.why()
}

// handOver has store take what is gathered, unless something is being stored: then that goes on with it. The caller holds mu.
func (c *conn) handOver() {
	if c.storing || c.next == nil || len(c.next.items) == 0 || c.failed != nil {
		return
	}
	c.storing, c.resting = true, false
	if c.hand {
		c.moved.Broadcast()
		return
	}
	c.hand = true
	c.work.Go(c.store)
}

// store stores what is gathered, and what is gathered meanwhile, and answers it in the order in which it came
// [MQTT-4.6.0-2] [MQTT-4.6.0-3]. It waits for more until rest, or until some messages in a row came one by one: the stack of a
// goroutine for each batch would have to grow every time, which costs as much as a message.
func (c *conn) store() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for single := 0; c.storing; {
		for c.next != nil && len(c.next.items) > 0 && c.failed == nil {
			b := c.next
			if single++; len(b.items) > 1 {
				single = 0
			}
			c.next = nil
			c.moved.Broadcast()
			c.mu.Unlock()
			err := c.commit(b)
			c.mu.Lock()
			if err != nil {
				c.failed = err
				c.wake()
			}
		}
		c.storing = false
		c.moved.Broadcast()
		for !c.storing && !c.resting && single < singleMost {
			c.moved.Wait()
		}
	}
	c.hand = false
	c.moved.Broadcast()
}

// singleMost messages that come one by one show that their client waits for each, or might as well.
const singleMost = 8

// rest ends store once nothing is left to be stored.
func (c *conn) rest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resting = true
	c.moved.Broadcast()
}

// commit makes a batch durable, answers it and lets go of it. An error ends the connection.
func (c *conn) commit(b *batch) error {
	backend := c.s.o.Backend
	if err := backend.Rows().Keep(c.ctx, c.sess.begin(b.items)...); err != nil {
		b.fail(err)
	} else {
		b.store(c.ctx, backend)
	}
	for i := range b.items {
		x := &b.items[i]
		if x.err != nil || x.ev < 0 || !x.retain {
			continue
		}
		ev, pos, topic := b.stored(x)
		if err := c.s.retained.store(c.ctx, x.name, topic, pos, ev, x.empty); err != nil {
			c.s.o.Log.Warn("a retained message is not kept", "name", x.name, "error", err)
		}
	}
	again := c.version < 5 || c.s.draining.Load()
	c.sess.done(b.items, again)
	err := c.answer(b, again)
	c.caller.Return(b.large)
	b.recycle(c.s.batches)
	return err
}

// fail says that nothing of a batch is stored.
func (b *batch) fail(err error) {
	for i := range b.items {
		x := &b.items[i]
		if x.err == nil {
			x.err, x.ev = err, -1
		}
		if x.in != nil && !x.release {
			x.in.kept = false
		}
	}
}

// answer acknowledges what is stored. MQTT 3.1.1 has no way to say that something is not, so the connection ends there, and
// so it does on a router that drains: a client that is not answered sends again, and one that is told no does not.
func (c *conn) answer(b *batch, again bool) error {
	pk := &b.pk
	var failed error
	for i := range b.items {
		x := &b.items[i]
		code, text, internal := reasonOf(x.err)
		if x.err != nil && !x.release {
			c.refused(x, code, internal)
		}
		if x.err != nil && (x.qos > 0 || x.release) && (again || x.release) {
			failed = x.err
			break
		}
		if x.qos == 0 && !x.release {
			continue
		}
		*pk = packets.Packet{PacketID: x.id, ReasonCode: code}
		pk.Properties.ReasonString = text
		switch {
		case x.release:
			// In a session that was there before, the first PUBCOMP may have been lost: "not an error during recovery" (3.7.2.1),
			// which clients take for one all the same.
			if pk.FixedHeader.Type = packets.Pubcomp; x.in == nil && c.version == 5 && !c.resumed {
				pk.ReasonCode = packets.ErrPacketIdentifierNotFound.Code
			}
		case x.qos == 1:
			pk.FixedHeader.Type = packets.Puback
			c.mu.Lock()
			c.pending--
			c.mu.Unlock()
		default:
			pk.FixedHeader.Type = packets.Pubrec
		}
		if _, err := c.out.write(pk); err != nil {
			return err
		}
	}
	return errors.Join(c.out.flush(), failed)
}

// refused counts a message that was not stored, and logs why.
func (c *conn) refused(x *item, code byte, internal bool) {
	c.s.stats.refused[code].Add(1)
	level := c.s.o.Log.Debug
	if internal {
		level = c.s.o.Log.Error
	}
	level("a message over MQTT is not stored", "client", c.clientID(), "name", x.name, "qos", x.qos, "reason", code, "error", x.err)
}

// settle waits until everything that came is stored and answered.
func (c *conn) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handOver()
	c.resting = true
	c.moved.Broadcast()
	for c.hand {
		c.moved.Wait()
	}
}
