package mqtt

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// What of a session's way out outlives the process:
//
//	sessions  's' prefix                                      → sessionRow as JSON
//	sessions  'c' prefix, key of a source                     → position as JSON
//	packets   'o' prefix, key of a source behind its length u16, partition u32, offset u64 → state u8, QoS u8, packet id u16
//
// A position lies before the first event of each partition that the client has not acknowledged. Rows of packets say what
// was under way beyond it. Those of QoS 2 are durable before PUBLISH, and before PUBREL, goes out, and stay until the
// position has passed them: so no event goes out under two packet ids, and none again that was released. All others are
// written every second, and when a connection or the process ends.
const (
	sessionRows = 's'
	cursorRows  = 'c'
	outRows     = 'o'
)

type sessionRow struct {
	Owner   string          `json:"owner"`
	Tenant  string          `json:"tenant,omitempty"`
	Client  string          `json:"client"`
	Expiry  time.Duration   `json:"expiry"`
	Left    int64           `json:"left,omitempty"` // Unix ns; 0: it has a connection
	Filters []*subscription `json:"filters,omitempty"`
}

func (s *session) row(subs map[string]*subscription) (event.ShelfRow, error) {
	s.mu.Lock()
	r := sessionRow{Owner: s.owner, Tenant: s.tenant, Client: s.clientID, Expiry: s.expiry}
	if !s.left.IsZero() && !s.connected {
		r.Left = s.left.UnixNano()
	}
	s.mu.Unlock()
	for _, sub := range subs {
		r.Filters = append(r.Filters, sub)
	}
	v, err := json.Marshal(r)
	if err != nil {
		return event.ShelfRow{}, fmt.Errorf("the row of an MQTT session: %w", err)
	}
	return event.ShelfRow{Shelf: event.ShelfSessions, Key: s.prefix(sessionRows), Value: v}, nil
}

func (o *outbox) cursorKey(source string) string { return o.sess.prefix(cursorRows) + source }

func (o *outbox) messageKey(m *outgoing) string {
	k := binary.BigEndian.AppendUint16([]byte(o.sess.prefix(outRows)), uint16(len(m.feed.key)))
	k = append(k, m.feed.key...)
	k = binary.BigEndian.AppendUint32(k, m.pos.Partition)
	return string(binary.BigEndian.AppendUint64(k, m.pos.Offset))
}

func (o *outbox) messageRow(m *outgoing, st state) event.ShelfRow {
	return event.ShelfRow{Shelf: event.ShelfPackets, Key: o.messageKey(m), Value: binary.BigEndian.AppendUint16([]byte{byte(st), m.qos}, m.id)}
}

// saveSubs stores the session with its subscriptions, and where their feeds stand. The caller holds o.admin.
func (o *outbox) saveSubs(ctx context.Context) error {
	if !o.sess.persistent() {
		return nil
	}
	row, err := o.sess.row(o.subs)
	if err != nil {
		return err
	}
	return o.save(ctx, row)
}

// settled stores where feeds stand of which that is not known yet. The caller holds o.admin.
func (o *outbox) settled(ctx context.Context) error {
	unknown := false
	o.mu.Lock()
	for _, d := range o.feeds {
		unknown = unknown || d.row.Cursor == "" && d.keeps()
	}
	o.mu.Unlock()
	if !unknown || !o.sess.persistent() {
		return nil
	}
	return o.save(ctx)
}

// saveRow stores the session as it is, and saveAll how far it has come as well.
func (o *outbox) saveRow(ctx context.Context) error {
	o.admin.Lock()
	defer o.admin.Unlock()
	row, err := o.sess.row(o.subs)
	if err != nil {
		return err
	}
	o.rows.Lock()
	defer o.rows.Unlock()
	return o.s.o.Backend.Rows().Keep(ctx, row)
}

func (o *outbox) saveAll(ctx context.Context) error {
	o.admin.Lock()
	defer o.admin.Unlock()
	row, err := o.sess.row(o.subs)
	if err != nil {
		return err
	}
	return o.save(ctx, row)
}

// save makes the session's rows what they have to be now, besides the rows of other that go with them.
func (o *outbox) save(ctx context.Context, other ...event.ShelfRow) error {
	o.rows.Lock()
	defer o.rows.Unlock()
	rows, then := o.changes()
	rows = append(rows, other...)
	for part := range slices.Chunk(rows, event.MaxShelfRows) { // in this order: what a packet id stood for ends before it stands for something else
		if err := o.s.o.Backend.Rows().Keep(ctx, part...); err != nil {
			o.mu.Lock()
			o.dirty = true
			o.mu.Unlock()
			return err
		}
	}
	then()
	return nil
}

// changes are the rows that are not what they have to be; then notes that they are. The caller holds o.rows until then.
func (o *outbox) changes() (rows []event.ShelfRow, then func()) {
	o.mu.Lock()
	o.dirty = false
	all := make([]*feed, 0, len(o.feeds))
	for _, d := range o.feeds {
		all = append(all, d)
	}
	o.mu.Unlock()
	stands := make(map[*feed]position, len(all))
	for _, d := range all {
		if p, ok := d.stands(); ok {
			stands[d] = p
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.sess.persistent() {
		return nil, func() {}
	}
	stale := o.stale
	for _, key := range stale {
		shelf := event.ShelfPackets
		if key[0] == cursorRows {
			shelf = event.ShelfSessions
		}
		rows = append(rows, event.ShelfRow{Shelf: shelf, Key: key})
	}
	type change struct {
		m  *outgoing
		to state
	}
	var changed []change
	var passed []*outgoing
	for _, d := range all {
		p, ok := stands[d]
		for pos, m := range d.done {
			switch {
			case ok && int(pos.Partition) < len(p.Offsets) && pos.Offset < p.Offsets[pos.Partition]:
				rows = append(rows, event.ShelfRow{Shelf: event.ShelfPackets, Key: o.messageKey(m)})
				passed = append(passed, m)
			case m.stored != done:
				rows, changed = append(rows, o.messageRow(m, done)), append(changed, change{m, done})
			}
		}
		if !ok || d.gone || !d.keeps() || p.Cursor == d.row.Cursor {
			delete(stands, d)
			continue
		}
		v, err := json.Marshal(p)
		if err == nil {
			rows = append(rows, event.ShelfRow{Shelf: event.ShelfSessions, Key: o.cursorKey(d.key), Value: v})
		}
	}
	for m := o.flight.head; m != nil; m = m.next {
		if m.feed != nil && !m.feed.gone && m.stored != m.row() {
			m.rowed = true
			rows, changed = append(rows, o.messageRow(m, m.row())), append(changed, change{m, m.row()})
		}
	}
	return rows, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.stale = o.stale[len(stale):]
		if len(o.stale) == 0 {
			o.stale = nil
		}
		for _, m := range passed {
			delete(m.feed.done, m.pos)
		}
		for _, c := range changed {
			c.m.stored = c.to
		}
		for d, p := range stands {
			d.row = p
		}
	}
}

// restore gives an outbox that nobody has come for its subscriptions; restoreCursor and restoreMessage then a row each, whose
// key is without what is the session's.
func (o *outbox) restore(filters []*subscription) error {
	o.subs = map[string]*subscription{}
	for _, sub := range filters {
		if err := sub.parse(); err != nil {
			return fmt.Errorf("session of client %q: filter %q: %w", o.sess.clientID, sub.Filter, err)
		}
		o.subs[sub.Filter] = sub
	}
	return nil
}

func (o *outbox) restoreCursor(source string, value []byte) error {
	return json.Unmarshal(value, &o.loaded(source).row)
}

func (o *outbox) restoreMessage(key string, v []byte) error {
	source, at, ok := cutText(key)
	if !ok || len(at) != 12 || len(v) != 4 {
		return fmt.Errorf("a row of what is under way has %d bytes under %d", len(v), len(key))
	}
	m := &outgoing{feed: o.loaded(source), pos: place{Partition: binary.BigEndian.Uint32([]byte(at)), Offset: binary.BigEndian.Uint64([]byte(at[4:]))},
		state: min(state(v[0]), done), qos: min(v[1], 2), id: binary.BigEndian.Uint16(v[2:]), rowed: true, tried: true}
	m.stored = m.state
	o.stood(m)
	return nil
}

// cutText cuts off a text that appendText has appended; ok is false if none begins s.
func cutText(s string) (text, rest string, ok bool) {
	if len(s) < 2 || len(s) < 2+int(s[0])<<8+int(s[1]) {
		return "", "", false
	}
	n := 2 + int(s[0])<<8 + int(s[1])
	return s[2:n], s[n:], true
}

// loaded is a feed that is being restored.
func (o *outbox) loaded(source string) *feed {
	d := o.feeds[source]
	if d == nil {
		d = &feed{o: o, key: source}
		if o.feeds == nil {
			o.feeds = map[string]*feed{}
		}
		o.feeds[source] = d
	}
	return d
}

// stood takes a message that was under way. One packet id stands for one message: PUBLISH went out again under an id that
// was released, so the one that was only sent is the later, and the other one done.
func (o *outbox) stood(m *outgoing) {
	d := m.feed
	if d.had == nil {
		d.had = map[place]bool{}
	}
	d.had[m.pos] = true
	other := o.flight.byID[m.id]
	if m.state != done && other != nil {
		older := m
		if other.state > m.state {
			older = other
			o.flight.remove(other)
			o.flight.add(m)
		}
		m = older
		m.state = done
	}
	switch {
	case m.state != done:
		o.flight.add(m)
	case m.qos == 2:
		if m.feed.done == nil {
			m.feed.done = map[place]*outgoing{}
		}
		m.feed.done[m.pos] = m
	default:
		o.stale = append(o.stale, o.messageKey(m))
	}
}
