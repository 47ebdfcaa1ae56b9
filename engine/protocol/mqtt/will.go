package mqtt

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// A will is what is published for a client that goes without saying so (3.1.2.5). It has a row for as long as it may have to
// be, so that it is published by the next process where this one dies.
type will struct {
	Owner    string `json:"owner"`
	ClientID string `json:"client"`
	Message  []byte `json:"message"` // the PUBLISH that it comes to
	Version  byte   `json:"version"`
	Retain   bool   `json:"retain,omitempty"`
	Delay    uint32 `json:"delay,omitempty"` // seconds
	Event    string `json:"event"`           // id of the event: it is published once
	Due      int64  `json:"due,omitempty"`   // Unix nanoseconds; 0: the client is connected

	caller Caller        // of the last connection; nil after a restart
	timer  *time.Timer   // until it is due; nil: it is not running
	ending chan struct{} // closed once its row is removed, as it was published; nil: it is not being
}

func (w *will) key() sessionKey { return sessionKey{w.Owner, w.ClientID} }

// size is what counts of a will: the bytes that it holds in memory, about. Its row has a third more.
func (w *will) size() int64 {
	return int64(len(w.Message)+len(w.Owner)+len(w.ClientID)) + messageCost
}

// row is its row, or what removes it.
func (w *will) row(gone bool) (event.ShelfRow, error) {
	s := session{owner: w.Owner, clientID: w.ClientID}
	r := event.ShelfRow{Shelf: event.ShelfPackets, Key: s.prefix(willRows)}
	if gone {
		return r, nil
	}
	var err error
	r.Value, err = json.Marshal(w)
	return r, err
}

// newWill is that of a CONNECT, with room among all wills; nil: it has none. Whether it may be published is asked now, when
// there is somebody to tell.
func newWill(c *conn, pk *packets.Packet) (*will, error) {
	k := &pk.Connect
	if !k.WillFlag {
		return nil, nil
	}
	m := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: k.WillQos}, PacketID: 1, ProtocolVersion: c.version, // an id says nothing here
		TopicName: k.WillTopic, Payload: k.WillPayload, Properties: k.WillProperties}
	switch {
	case k.WillTopic == "" || strings.ContainsAny(k.WillTopic, "+#"):
		return nil, &violation{packets.ErrTopicNameInvalid.Code, "the will's name is empty or has a wildcard in it"}
	case strings.ContainsAny(k.WillProperties.ResponseTopic, "+#"):
		return nil, wrong("the will's response topic has a wildcard in it")
	}
	var in intake
	var ev event.Event
	to, err := in.take(&ev, &m, c.s.o.Backend.MQTT(), c.s.o.Limits, c.s.o.Now())
	if err = mayPublish(c.caller, m.TopicName, to, err); err != nil {
		return nil, fmt.Errorf("will: %w", err)
	}
	w := &will{Owner: c.caller.Principal().Identity(), ClientID: clone(k.ClientIdentifier), Version: c.version, Retain: k.WillRetain,
		Delay: k.WillProperties.WillDelayInterval, Event: newID(), caller: c.caller}
	if w.Message, err = appendPublish(nil, &m); err == nil {
		err = c.s.wills.admit(w)
	}
	return w, err
}

// wills are those of clients that are connected, and of those that are not and whose delay has not passed.
type wills struct {
	s    *Server
	stop context.CancelFunc // of ctx, which what publishes runs under
	ctx  context.Context
	work sync.WaitGroup

	mu     sync.Mutex
	closed bool
	all    map[sessionKey]*will
	bytes  int64 // of all, of those that are to be published now and those of CONNECTs that are being answered
}

func newWills(s *Server) *wills {
	w := &wills{s: s, all: map[sessionKey]*will{}}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// admit takes room for the will of a CONNECT; free gives it back.
func (r *wills) admit(w *will) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.bytes + w.size()
	if old := r.all[w.key()]; old != nil && old.ending == nil { // it makes room
		all -= old.size()
	}
	if most := r.s.o.WillBytes; all > most {
		return event.Bad(event.ErrFull, "will", fmt.Sprintf("with it wills would take %d bytes; at most %d: connect without one, or with a shorter one", all, most))
	}
	r.bytes += w.size()
	return nil
}

func (r *wills) free(w *will) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes -= w.size()
}

// open loads what the last process left. Clients that were connected when it ended have a while to come back.
func (r *wills) open(ctx context.Context) error {
	back := r.s.o.Now().Add(r.s.o.WillGrace).UnixNano()
	return r.s.o.Backend.Rows().Scan(ctx, event.ShelfPackets, string(rune(willRows)), func(_ string, value []byte) error {
		w := new(will)
		if err := json.Unmarshal(value, w); err != nil {
			r.s.o.Log.Error("the row of a will cannot be read; it is not published", "error", err)
			return nil
		}
		if w.Due == 0 {
			w.Due = max(back, r.s.o.Now().Add(time.Duration(w.Delay)*time.Second).UnixNano())
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all[w.key()], r.bytes = w, r.bytes+w.size() // those that were taken stay, though the bound be another now
		r.wait(w, max(time.Duration(w.Due-r.s.o.Now().UnixNano()), 0))
		return nil
	})
}

// wait has a will published after a delay. The caller holds mu.
func (r *wills) wait(w *will, delay time.Duration) {
	if r.closed {
		return
	}
	r.work.Add(1)
	w.timer = time.AfterFunc(delay, func() {
		defer r.work.Done()
		r.fire(w)
	})
}

// cancel has a will not published, if it is not being; false: it is, or was. The caller holds mu.
func (r *wills) cancel(w *will) bool {
	if w.timer == nil {
		return true
	}
	if !w.timer.Stop() {
		return false
	}
	w.timer = nil
	r.work.Done()
	return true
}

// here says that a client is connected, with another will or none. What the last connection left is not to be published if its
// session goes on (3.1.3.2.2), and is published now if it does not. It returns once that would outlive the process; with an
// error next is not taken, and what was left is as if nobody had come.
func (r *wills) here(ctx context.Context, sess *session, present bool, next *will) error {
	key := sessionKey{sess.owner, sess.clientID}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.all[key]
	for ; old != nil && old.ending != nil; old = r.all[key] { // its row goes, and has the key of the next one's
		ended := old.ending
		r.mu.Unlock()
		<-ended
		r.mu.Lock()
	}
	w := cmp.Or(next, old)
	if w == nil {
		return nil
	}
	waits := old != nil && r.cancel(old) // else it is published already
	if waits && !present {               // while it has its row
		r.mu.Unlock()
		err := r.publish(old)
		r.mu.Lock()
		if again(err) {
			r.wait(old, retryWill)
			return err
		}
		r.done(old, err)
		waits = false
	}
	if next != nil {
		r.all[key] = next
	} else {
		delete(r.all, key)
	}
	r.mu.Unlock()
	row, err := w.row(next == nil)
	if err == nil {
		err = r.s.o.Backend.Rows().Keep(ctx, row)
	}
	r.mu.Lock()
	if err != nil {
		delete(r.all, key)
	}
	switch {
	case !waits:
	case err == nil:
		r.bytes -= old.size()
	default:
		if r.all[key] = old; old.Due != 0 {
			r.wait(old, time.Duration(old.Due-r.s.o.Now().UnixNano()))
		}
	}
	return err
}

// gone says that a client's connection is over: with DISCONNECT of the reason code 0, which takes the will with it
// [MQTT-3.14.4-3], because the router stops, after which clients come back, or otherwise.
func (r *wills) gone(sess *session, bye, draining bool) {
	r.mu.Lock()
	w := r.all[sessionKey{sess.owner, sess.clientID}]
	if w == nil || draining && !bye {
		r.mu.Unlock()
		return
	}
	sess.mu.Lock()
	delay := min(time.Duration(w.Delay)*time.Second, sess.expiry) // whichever ends first (3.1.3.2.2)
	sess.mu.Unlock()
	if bye {
		delete(r.all, w.key())
		r.bytes -= w.size()
	} else {
		w.Due = r.s.o.Now().Add(delay).UnixNano()
	}
	row, err := w.row(bye)
	r.mu.Unlock()
	if err == nil && (bye || delay > 0) {
		err = r.s.o.Backend.Rows().Keep(r.ctx, row)
	}
	if err != nil {
		r.s.o.Log.Warn("the row of a will is not written", "client", w.ClientID, "error", err)
	}
	if !bye {
		r.mu.Lock()
		r.wait(w, delay)
		r.mu.Unlock()
	}
}

// retry is how long a will waits that could not be stored.
const retryWill = 5 * time.Second

// again reports whether a will that was not published for err is to be tried again.
func again(err error) bool {
	return errors.Is(err, event.ErrUnavailable) || errors.Is(err, context.Canceled)
}

// done lets go of the room of a will that is published, or never will be. The caller holds mu.
func (r *wills) done(w *will, err error) {
	if r.bytes -= w.size(); err != nil {
		code, _, _ := reasonOf(err)
		r.s.stats.refused[code].Add(1)
		r.s.o.Log.Warn("a will is not published", "client", w.ClientID, "error", err)
	}
}

// fire publishes a will and forgets it.
func (r *wills) fire(w *will) {
	err := r.publish(w)
	r.mu.Lock()
	if again(err) {
		r.wait(w, retryWill)
		r.mu.Unlock()
		return
	}
	r.done(w, err)
	mine := r.all[w.key()] == w
	if mine {
		w.ending = make(chan struct{})
	}
	r.mu.Unlock()
	if !mine { // the row is another's
		return
	}
	row, err := w.row(true)
	if err == nil {
		err = r.s.o.Backend.Rows().Keep(r.ctx, row)
	}
	if err != nil {
		r.s.o.Log.Warn("the row of a will that was published is not removed", "client", w.ClientID, "error", err)
	}
	r.mu.Lock()
	delete(r.all, w.key())
	close(w.ending)
	r.mu.Unlock()
}

// publish stores a will as if its client had sent it now. Its owner's rights are asked again, after a restart by his identity:
// who is not to be found by it has no will any more.
func (r *wills) publish(w *will) error {
	h, n, bad := cutHeader(w.Message)
	if bad != nil || n == 0 {
		return malformed("the message of a will")
	}
	var pk packets.Packet
	if bad := readPublish(h, w.Message[n:], w.Version, &pk); bad != nil {
		return bad
	}
	var in intake
	evs, pos := make([]event.Event, 1), make([]event.Position, 1)
	ev := &evs[0]
	to, err := in.take(ev, &pk, r.s.o.Backend.MQTT(), r.s.o.Limits, r.s.o.Now())
	if err != nil {
		return err
	}
	caller := w.caller
	if caller == nil {
		if caller = r.s.o.Door.Known(w.Owner); caller == nil {
			return fmt.Errorf("%w: whose will it is is not known here any more, or cannot be asked for without what he showed", event.ErrDenied)
		}
	}
	if err := caller.May(access.Publish, access.Topic, to.Topic); err != nil {
		return err
	}
	ctx := caller.Context(r.ctx)
	madeBy(ev, pk.FixedHeader.Qos, w.Retain, r.s.mark(w.Owner, w.ClientID))
	if !ev.ClientID {
		ev.ID, ev.ClientID = w.Event, true
	}
	if err := r.s.o.Backend.Publish(ctx, to.Topic, evs, pos); err != nil {
		if errors.Is(err, event.ErrConflict) && ev.ID == w.Event { // a process before published it, and did not come to note it
			return nil
		}
		return err
	}
	if w.Retain {
		if err := r.s.retained.store(ctx, clone(pk.TopicName), to.Topic, pos[0], ev, len(pk.Payload) == 0); err != nil {
			r.s.o.Log.Warn("a retained message is not kept", "name", pk.TopicName, "error", err)
		}
	}
	return nil
}

// count is how many there are of clients, and the bytes of all.
func (r *wills) count() (n int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all), r.bytes
}

// close stops what waits, which the next process goes on with, and waits for what is being published.
func (r *wills) close() {
	r.mu.Lock()
	r.closed = true
	for _, w := range r.all {
		r.cancel(w)
	}
	r.mu.Unlock()
	r.stop()
	r.work.Wait()
}
