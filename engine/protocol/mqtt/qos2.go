package mqtt

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"sync"

	"github.com/millrace/millrace/engine/event"
)

// An inbox is what a session knows of the messages of QoS 2 from its client that it has not released yet (4.3.3). Of a
// session that outlives its connection each has a row, written before the event goes out under the id that the row names:
// whatever comes in between, the client's repeat becomes the same event. The row goes before the client is told that it may
// use the packet id again, so that no other message is taken for a repeat.
type inbox struct {
	mu   sync.Mutex
	ids  map[uint16]*received // by packet id; nil: none
	next []event.ShelfRow     // changes that go with the next write: they may be lost
}

// A received is a message of QoS 2 that is not released.
type received struct {
	event  string // id of its event, where the client gave none
	kept   bool   // it has a row
	stored bool   // the event is durable: a repeat is only acknowledged
	busy   bool   // it is being stored on the connection that there is
}

// prefix begins the keys of a session's rows among those of packet ids.
func (s *session) prefix(kind byte) string {
	k := append(make([]byte, 0, 5+len(s.owner)+len(s.clientID)), kind)
	k = append(binary.BigEndian.AppendUint16(k, uint16(len(s.owner))), s.owner...)
	k = append(binary.BigEndian.AppendUint16(k, uint16(len(s.clientID))), s.clientID...)
	return string(k)
}

// Kinds of rows among those of packet ids.
const (
	inRows   = 'i' // session's prefix, packet id u16 → stored u8, the event's id
	willRows = 'w' // session's prefix → a will as JSON
)

func (s *session) inKey(id uint16) string {
	return s.prefix(inRows) + string([]byte{byte(id >> 8), byte(id)})
}

func (s *session) inRow(id uint16, r *received) event.ShelfRow {
	v := make([]byte, 1, 1+len(r.event))
	if r.stored {
		v[0] = 1
	}
	return event.ShelfRow{Shelf: event.ShelfPackets, Key: s.inKey(id), Value: append(v, r.event...)}
}

// loadInbox reads the rows that the last process left; without present the session is a new one and rows of another before it go.
func (s *session) loadInbox(ctx context.Context, rows Rows, present bool) error {
	in := &s.in
	in.mu.Lock()
	defer in.mu.Unlock()
	if present && in.ids != nil {
		for _, r := range in.ids {
			r.busy = false // of a connection that is gone
		}
		return nil
	}
	in.ids, in.next = map[uint16]*received{}, nil
	prefix := s.prefix(inRows)
	found := 0
	err := rows.Scan(ctx, event.ShelfPackets, prefix, func(key string, value []byte) error {
		found++
		if id := key[len(prefix):]; present && len(id) == 2 && len(value) > 0 {
			in.ids[binary.BigEndian.Uint16([]byte(id))] = &received{event: string(value[1:]), kept: true, stored: value[0] == 1}
		}
		return nil
	})
	if err == nil && !present && found > 0 {
		err = rows.Keep(ctx, event.ShelfRow{Shelf: event.ShelfPackets, Key: prefix, Under: true})
	}
	return err
}

// size is how many messages are not released.
func (in *inbox) size() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.ids)
}

// take finds or makes what is known of a packet id, of which a PUBLISH has come. busy: it is being stored, and nothing was
// changed; r nil otherwise: most ids are known already.
func (in *inbox) take(id uint16, most int) (r *received, busy bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if r = in.ids[id]; r == nil {
		if len(in.ids) >= most {
			return nil, false
		}
		r = &received{event: newID()}
		in.ids[id] = r
	}
	busy, r.busy = r.busy, true
	return r, busy
}

// release finds what is known of a packet id that is to be free; nil: nothing.
func (in *inbox) release(id uint16) (r *received, busy bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if r = in.ids[id]; r != nil {
		busy, r.busy = r.busy, true
	}
	return r, busy
}

// begin returns the rows that have to be durable before the messages of QoS 2 among items go out, and before those that are
// released are said to be.
func (s *session) begin(items []item) []event.ShelfRow {
	persistent, in := s.persistent(), &s.in
	in.mu.Lock()
	defer in.mu.Unlock()
	var rows []event.ShelfRow
	for i := range items {
		x := &items[i]
		switch r := x.in; {
		case r == nil || x.err != nil:
		case x.release:
			if r.kept {
				rows = append(rows, event.ShelfRow{Shelf: event.ShelfPackets, Key: s.inKey(x.id)})
			}
		case persistent && !r.kept:
			rows, r.kept = append(rows, s.inRow(x.id, r)), true
		}
	}
	if len(rows) > 0 {
		rows, in.next = append(in.next, rows...), nil // those of before first: a later row of the same key counts
	}
	return rows
}

// done notes what has become of the items' messages. With again a message that failed will come again, on another connection.
func (s *session) done(items []item, again bool) {
	in := &s.in
	in.mu.Lock()
	defer in.mu.Unlock()
	for i := range items {
		x := &items[i]
		r := x.in
		if r == nil {
			continue
		}
		r.busy = false
		switch {
		case x.release:
			if x.err == nil {
				delete(in.ids, x.id)
			}
		case x.err == nil && !r.stored:
			if r.stored = true; r.kept {
				in.next = append(in.next, s.inRow(x.id, r))
			}
		case x.err != nil && !again && !r.stored:
			// The id is free (4.3.3). A row that outlives this names an event that there is not: no harm in a repeat's using it.
			delete(in.ids, x.id)
			if r.kept {
				in.next = append(in.next, event.ShelfRow{Shelf: event.ShelfPackets, Key: s.inKey(x.id)})
			}
		}
	}
}

// settle writes what waits for the next write. Where it is lost, the router's window for repeated ids has to tell a repeat.
func (s *session) settle(ctx context.Context, rows Rows) error {
	in := &s.in
	in.mu.Lock()
	next := in.next
	in.next = nil
	in.mu.Unlock()
	return rows.Keep(ctx, next...)
}

// newID is an id for an event or a client that brought none.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
