package mqtt

import (
	"context"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// kick lets the pump run if there may be something for it. The caller holds o.mu.
func (o *outbox) kick() {
	if o.w != nil && !o.pumping && !o.broken {
		o.pumping = true
		o.start()
	}
}

// pump sends what there is to send, and reads for feeds that are behind, until neither is left to do.
func (o *outbox) pump(ctx context.Context) {
	var batch []*outgoing
	for {
		o.mu.Lock()
		w := o.w
		batch = batch[:0]
		rows, behind := false, (*feed)(nil)
		if w != nil && !o.broken {
			if batch, rows = o.next(batch); len(batch) == 0 {
				behind = o.nextBehind()
			}
		}
		if len(batch) == 0 && behind == nil {
			o.pumping = false
			if o.stopped != nil {
				close(o.stopped)
				o.stopped = nil
			}
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		if behind != nil {
			behind.catchUp(ctx)
			continue
		}
		if rows {
			if err := o.save(ctx); err != nil {
				o.putOff(ctx, batch, err)
				continue
			}
		}
		if err := o.send(ctx, w, batch); err != nil {
			o.mu.Lock()
			o.broken = true // the connection is over, and will say so
			o.mu.Unlock()
		}
		clear(batch)
	}
}

// putOff lets messages whose rows cannot be written wait.
func (o *outbox) putOff(ctx context.Context, batch []*outgoing, err error) {
	if ctx.Err() == nil {
		o.s.o.Log.Warn("messages to an MQTT client wait: what has to be stored before they go out cannot be", "client", o.sess.clientID, "error", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range batch {
		if m.id != 0 && !m.again {
			m.again = true
			o.again++
		} else if m.id == 0 { // of QoS 0: gone, as on a connection that breaks
			o.s.fan.dropped.Add(1)
		}
	}
	o.broken = true
	w := o.w
	time.AfterFunc(retryRowsIn, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.w != nil && o.w == w {
			o.broken = false
			o.kick()
		}
	})
}

// next takes the messages that can go out now, those first that were under way before the connection. rows says that the
// session's rows have to be durable before. The caller holds o.mu.
func (o *outbox) next(batch []*outgoing) (_ []*outgoing, rows bool) {
	durable := o.sess.persistent()
	for m := o.flight.head; m != nil && o.again > 0 && len(batch) < batchOut; {
		following := m.next
		if m.again {
			if m.state < heard && m.feed != nil && m.feed.gone { // not his to read any more
				o.complete(m)
			} else {
				if m.state < heard && !m.counted {
					if !o.mayFly(m) {
						return batch, rows
					}
					o.fly(m)
				}
				m.again = false
				o.again--
				batch = append(batch, m)
				rows = rows || durable && m.qos == 2 && m.stored != m.row()
			}
		}
		m = following
	}
	if o.again > 0 {
		return batch, rows
	}
	for len(batch) < batchOut {
		m := o.first()
		if m == nil {
			break
		}
		if m.qos == 0 {
			o.pop(m)
			batch = append(batch, m)
			continue
		}
		if !o.mayFly(m) || m.qos == 2 && m.feed != nil && len(m.feed.done) >= doneMax {
			break
		}
		o.pop(m)
		m.id = o.freeID()
		o.fly(m)
		o.flight.add(m)
		batch = append(batch, m)
		if m.feed != nil {
			o.dirty = true
			rows = rows || durable && m.qos == 2
		}
	}
	return batch, rows
}

// first is the next message that waits, nil if none does. Retained ones come first: what waits beside them is newer.
func (o *outbox) first() *outgoing {
	if len(o.kept) > 0 {
		if o.keptFirst == nil {
			o.keptFirst = o.kept[0].message()
		}
		return o.keptFirst
	}
	if o.queue.len() > 0 {
		return o.queue.at(0)
	}
	return nil
}

// pop takes what first returned.
func (o *outbox) pop(m *outgoing) {
	defer o.roomForShares()
	if m == o.keptFirst {
		o.kept[0] = found{}
		if o.kept, o.keptFirst = o.kept[1:], nil; len(o.kept) == 0 {
			o.kept = nil
		}
		return
	}
	o.queue.pop()
	o.queued -= m.size()
	o.s.fan.queued.Add(-m.size())
}

func (o *outbox) mayFly(m *outgoing) bool {
	return o.flying == 0 && o.window > 0 || o.flying < o.window && o.bytes+m.size() <= flightBytes
}

func (o *outbox) fly(m *outgoing) {
	m.counted, m.flies = true, m.size()
	o.flying++
	o.bytes += m.flies
}

// freeID is a packet id that is not under way. There is one: fewer are under way than there are.
func (o *outbox) freeID() uint16 {
	for {
		o.lastID++
		if o.lastID != 0 && o.flight.byID[o.lastID] == nil {
			return o.lastID
		}
	}
}

// room reports whether a message can wait in the queue. The caller holds o.mu.
func (o *outbox) room(m *outgoing) bool {
	if o.w == nil {
		return false
	}
	limit := int64(queueBytes)
	if o.s.fan.queued.Load() > allQueues {
		limit = queueTight
	}
	return o.queue.len() == 0 || o.queue.len() < o.s.fan.most && o.queued+m.size() <= limit
}

// push puts a message into the queue. The caller holds o.mu.
func (o *outbox) push(m *outgoing) {
	o.queue.push(m)
	o.queued += m.size()
	o.s.fan.queued.Add(m.size())
}

// hungry reports whether the session should read on by itself. The caller holds o.mu.
func (o *outbox) hungry() bool {
	limit := int64(queueBytes / 2)
	if o.s.fan.queued.Load() > allQueues {
		limit = 0
	}
	return o.queue.len() == 0 || o.queue.len() < o.s.fan.low && o.queued <= limit
}

// nextBehind is a feed to be read, nil if there is none or enough waits. The caller holds o.mu.
func (o *outbox) nextBehind() *feed {
	if !o.hungry() {
		return nil
	}
	for _, d := range o.feeds {
		if d.f != nil && !d.live && !d.gone && !d.paused {
			return d
		}
	}
	return nil
}

// send writes messages. An error is the connection's.
func (o *outbox) send(ctx context.Context, w packetWriter, batch []*outgoing) error {
	now := o.s.o.Now()
	for i, m := range batch {
		if m.state >= heard {
			if _, err := w.write(o.packet(packets.Pubrel, m.id)); err != nil {
				return err
			}
			continue
		}
		there, err := o.load(ctx, m)
		if err != nil {
			o.putOff(ctx, batch[i:], err) // what is behind it may not go before it
			return w.flush()
		}
		pk := packets.Packet{ProtocolVersion: o.params.version, PacketID: m.id,
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: m.qos, Dup: m.tried, Retain: m.retain}}
		written := false
		if there {
			if written = give(&pk, m.rec, m.name, m.structured(o.s.o.Backend.MQTT()), now); !written {
				o.s.fan.expired.Add(1)
			}
		}
		if written {
			pk.Properties.SubscriptionIdentifier = m.ids
			o.mu.Lock()
			m.tried = true
			if m.qos > 0 && m.state == unsent {
				m.state = sent
			}
			o.mu.Unlock()
			if written, err = w.write(&pk); err != nil {
				return err
			}
		}
		switch {
		case m.qos == 0 && m.share != nil:
			m.share.settle(m.lease, written)
		case m.qos > 0 && !written: // it counts as sent and acknowledged (3.1.2.11.4; 3.3.2.3.3)
			if m.share != nil { // another member may take it, or it becomes a dead letter
				m.share.settle(m.lease, false)
			}
			o.mu.Lock()
			o.complete(m)
			o.mu.Unlock()
		}
	}
	return w.flush()
}

func (o *outbox) packet(kind byte, id uint16) *packets.Packet {
	pk := &packets.Packet{ProtocolVersion: o.params.version, PacketID: id, FixedHeader: packets.FixedHeader{Type: kind}}
	if kind == packets.Pubrel {
		pk.FixedHeader.Qos = 1 // bits of its header [MQTT-3.6.1-1]
	}
	return pk
}

// acked takes a PUBACK, PUBREC or PUBCOMP of the client; kind is the packet's type. It answers a PUBREC with PUBREL itself.
func (o *outbox) acked(kind byte, id uint16, code byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.flight.byID[id]
	switch {
	case kind == packets.Pubrec && (m == nil || m.qos != 2):
		o.unknown(id)
	case m == nil:
	case kind == packets.Puback && m.qos == 1, kind == packets.Pubrec && code >= 0x80:
		if m.share != nil {
			m.share.settle(m.lease, code < 0x80)
		}
		o.complete(m)
	case kind == packets.Pubrec:
		if m.rec = nil; m.state < heard {
			m.state = heard
		}
		if !m.again {
			m.again = true
			o.again++
		}
	case kind == packets.Pubcomp && m.state == heard:
		o.complete(m)
	}
	o.kick()
}

// unknown answers a PUBREC of a message that is not known. The caller holds o.mu.
func (o *outbox) unknown(id uint16) {
	w := o.w
	if w == nil {
		return
	}
	pk := o.packet(packets.Pubrel, id)
	if o.params.version == 5 {
		pk.ReasonCode = packets.ErrPacketIdentifierNotFound.Code
	}
	o.mu.Unlock()
	if _, err := w.write(pk); err == nil {
		_ = w.flush() // a connection that is over says so itself
	}
	o.mu.Lock()
}

// complete ends what is under way of a message. The caller holds o.mu.
func (o *outbox) complete(m *outgoing) {
	if o.flight.byID[m.id] != m {
		return
	}
	defer o.roomForShares()
	o.flight.remove(m)
	if m.again {
		m.again = false
		o.again--
	}
	if m.counted {
		m.counted = false
		o.flying--
		o.bytes -= m.flies
	}
	d := m.feed
	switch {
	case d == nil:
		return
	case m.qos == 2 && !d.gone && o.sess.persistent():
		if d.done == nil {
			d.done = map[place]*outgoing{}
		}
		m.state, m.rec, m.ids, m.name = done, nil, nil, ""
		d.done[m.pos] = m
	case m.rowed:
		o.stale = append(o.stale, o.messageKey(m))
	}
	o.dirty = true
}
