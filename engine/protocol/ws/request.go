package ws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/tidwall/gjson"
)

// A request is one message of a client's. Its strings borrow the message unless they have escapes.
type request struct {
	op, ref              string
	topic, subscription  string
	after, since, filter string
	delay, deadline      string
	credit               int
	hasCredit, hasRef    bool
	leases               []string
	events               string // a JSON array
}

// members are those that an op takes besides op and ref.
func members(op string) (names []string, known bool) {
	switch op {
	case "subscribe":
		return []string{"topic", "subscription", "after", "since", "filter", "credit"}, true
	case "unsubscribe":
		return nil, true
	case "credit":
		return []string{"credit"}, true
	case "publish":
		return []string{"topic", "events"}, true
	case "ack":
		return []string{"subscription", "leases"}, true
	case "nack":
		return []string{"subscription", "leases", "delay"}, true
	case "extend":
		return []string{"subscription", "leases", "deadline"}, true
	}
	return nil, false
}

// request works on one message and answers it. Errors that the client made are answered; what is returned ends the socket.
func (k *socket) request(ctx context.Context, message []byte) error {
	var q request
	err := q.parse(message)
	var out []byte
	var begin *sub
	if err == nil {
		err = k.s.o.Spend(ctx)
	}
	if err == nil {
		switch q.op {
		case "subscribe":
			begin, out, err = k.subscribe(ctx, &q)
		case "unsubscribe":
			out, err = k.unsubscribe(&q)
		case "credit":
			out, err = k.credit(&q)
		case "publish":
			out, err = k.publish(ctx, &q)
		default:
			out, err = k.settle(ctx, &q)
		}
	}
	if err != nil {
		doc, internal := k.s.o.Problem(err)
		if internal {
			k.s.o.Log.Error("a WebSocket request failed", "op", q.op, "error", err)
		}
		return k.text(append(answer("error", &q), doc[1:]...))
	}
	reply := answer("ok", &q)
	if len(out) == 0 {
		reply = reply[:len(reply)-1] // the comma
	}
	err = k.text(append(append(reply, out...), '}'))
	if begin != nil { // its events come behind the answer
		ctx, begin.cancel = context.WithCancelCause(ctx)
		k.mu.Lock()
		k.subs[begin.ref] = begin
		k.mu.Unlock()
		k.pumps.Add(1)
		go k.pump(ctx, begin)
	}
	return err
}

// answer begins an answer: op, ref and a comma.
func answer(op string, q *request) []byte {
	out := append(append([]byte(`{"op":"`), op...), `",`...)
	if q.hasRef {
		out = append(append(append(out, `"ref":`...), quote(q.ref)...), ',')
	}
	return out
}

func quote(s string) []byte {
	b, _ := json.Marshal(s) // of a string: cannot fail
	return b
}

// parse reads a message. A ref is read wherever there is one, so that the error says to what it belongs.
func (q *request) parse(message []byte) error {
	if err := event.CheckJSON(message); err != nil {
		return event.At("message", err)
	}
	doc := gjson.Parse(unsafe.String(unsafe.SliceData(message), len(message)))
	if !doc.IsObject() {
		return event.Invalid("message", `is not a JSON object: {"op": "subscribe", …}`)
	}
	var given []string
	var err error
	doc.ForEach(func(key, v gjson.Result) bool {
		name := key.String()
		if slices.Contains(given, name) {
			err = event.Invalid(clip(name), "is given twice")
			return false
		}
		if len(given) == 16 {
			err = event.Invalid("message", "has more members than any op takes")
			return false
		}
		given = append(given, name)
		if bad := q.member(name, v); bad != nil && err == nil {
			err = bad // the ref may still come
		}
		return true
	})
	if err != nil {
		return err
	}
	takes, known := members(q.op)
	if !known {
		return event.Invalid("op", fmt.Sprintf("is %.40q; want subscribe, unsubscribe, credit, publish, ack, nack or extend", q.op))
	}
	for _, name := range given {
		if name != "op" && name != "ref" && !slices.Contains(takes, name) {
			return event.Invalid(clip(name), fmt.Sprintf("is not a member of %s; it takes %s", q.op, strings.Join(append([]string{"ref"}, takes...), ", ")))
		}
	}
	return nil
}

func clip(s string) string { return fmt.Sprintf("%.60s", s) }

func (q *request) member(name string, v gjson.Result) error {
	var at *string
	switch name {
	case "op":
		at = &q.op
	case "ref":
		if v.Type == gjson.String && len(v.Str) > maxRef {
			return event.Invalid("ref", fmt.Sprintf("has %d bytes; the limit is %d", len(v.Str), maxRef))
		}
		q.hasRef = v.Type == gjson.String
		at = &q.ref
	case "topic":
		at = &q.topic
	case "subscription":
		at = &q.subscription
	case "after":
		at = &q.after
	case "since":
		at = &q.since
	case "filter":
		at = &q.filter
	case "delay":
		at = &q.delay
	case "deadline":
		at = &q.deadline
	case "credit":
		n, err := strconv.Atoi(v.Raw)
		if v.Type != gjson.Number || err != nil || n < 0 || n > maxCredit {
			return event.Invalid("credit", fmt.Sprintf("is %.40s; want a whole number of events, 0 to %d", v.Raw, maxCredit))
		}
		q.credit, q.hasCredit = n, true
		return nil
	case "events":
		if !v.IsArray() {
			return event.Invalid("events", fmt.Sprintf("is %.40s; want an array of CloudEvents or of data", v.Raw))
		}
		q.events = v.Raw
		return nil
	case "leases":
		return q.takeLeases(v)
	default:
		return nil // parse says so
	}
	if v.Type != gjson.String {
		return event.Invalid(name, fmt.Sprintf("is %.40s; want a string", v.Raw))
	}
	*at = v.Str
	return nil
}

func (q *request) takeLeases(v gjson.Result) error {
	const most = 10_000
	bad := event.Invalid("leases", fmt.Sprintf("want an array of 1 to %d leases, strings as they were handed out", most))
	if !v.IsArray() {
		return bad
	}
	ok := true
	v.ForEach(func(_, lease gjson.Result) bool {
		if ok = lease.Type == gjson.String && len(q.leases) < most; ok {
			q.leases = append(q.leases, lease.Str)
		}
		return ok
	})
	if !ok || len(q.leases) == 0 {
		return bad
	}
	return nil
}

// subscribe opens what the client wants to read. The pump begins when the answer is sent.
func (k *socket) subscribe(ctx context.Context, q *request) (*sub, []byte, error) {
	k.mu.Lock()
	open, taken := len(k.subs), k.subs[q.ref] != nil
	k.mu.Unlock()
	switch {
	case q.ref == "":
		return nil, nil, event.Invalid("ref", "is missing or empty; events name the subscription by it")
	case taken:
		return nil, nil, event.Bad(event.ErrConflict, "ref", fmt.Sprintf("%q is a subscription of this socket; unsubscribe it first, or take another ref", q.ref))
	case open >= maxSubscriptions:
		return nil, nil, event.Bad(event.ErrUnavailable, "ref", fmt.Sprintf("%d subscriptions are open, the limit of a socket; unsubscribe one, or open another socket", open))
	case (q.topic == "") == (q.subscription == ""):
		return nil, nil, event.Invalid("topic", "give either topic or subscription")
	}
	start, err := q.start(k.s.o.Now())
	if err != nil {
		return nil, nil, err
	}
	if !q.hasCredit {
		q.credit = defaultCredit
	}
	ref := strings.Clone(q.ref)
	u := &sub{ref: ref, quoted: quote(ref), credit: q.credit, ended: make(chan struct{}), more: make(chan struct{}, 1)}
	filter := strings.Clone(q.filter)
	if q.topic != "" {
		u.kind, u.may, u.name = access.Topic, access.Read, strings.Clone(q.topic)
		if err = event.CheckName("topic", q.topic); err == nil {
			err = k.allowed(ctx, u)
		}
		if err == nil {
			u.reader, err = k.s.o.Backend.OpenTopic(ctx, u.name, start, filter)
		}
	} else {
		u.kind, u.may, u.name = access.Subscription, access.Consume, strings.Clone(q.subscription)
		if err = event.CheckName("subscription", q.subscription); err == nil {
			err = k.allowed(ctx, u)
		}
		if err != nil {
			return nil, nil, err
		}
		u.reader, err = k.s.o.Backend.OpenSubscription(ctx, u.name, start, filter)
		if errors.Is(err, event.ErrConflict) { // not streamed: pulled?
			u.reader, u.leased = nil, map[string]time.Time{}
			_, err = k.s.o.Backend.Pull(ctx, u.name, 0, 0)
			if err == nil && (q.after != "" || q.since != "" || q.filter != "") {
				err = event.Invalid("subscription", fmt.Sprintf("%q is pulled: it has its own place and filter, so leave after, since and filter out (seek moves it)", u.name))
			}
		}
	}
	if err != nil {
		return nil, nil, err
	}
	out := []byte(`"credit":` + strconv.Itoa(u.credit))
	if u.reader != nil {
		out = append(append(append(out, `,"cursor":"`...), u.reader.Cursor()...), '"')
	}
	return u, out, nil
}

// start is where a reader begins: from now on unless the client says otherwise.
func (q *request) start(now time.Time) (event.Start, error) {
	switch {
	case q.after != "" && q.since != "":
		return event.Start{}, event.Invalid("since", "is given beside after; send one of them")
	case q.after != "":
		return event.Start{At: event.AtCursor, Cursor: strings.Clone(q.after)}, nil
	case q.since != "":
		at, err := event.ParseSince(q.since, now)
		if err != nil {
			return event.Start{}, event.Invalid("since", err.Error())
		}
		return event.Start{At: event.AtTime, Time: at}, nil
	}
	return event.Start{At: event.Latest}, nil
}

func (k *socket) find(q *request) (*sub, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if u := k.subs[q.ref]; u != nil {
		return u, nil
	}
	return nil, event.Bad(event.ErrNotFound, "ref", fmt.Sprintf("%q is no open subscription of this socket", q.ref))
}

// unsubscribe ends a subscription; behind its answer none of its events follows.
func (k *socket) unsubscribe(q *request) ([]byte, error) {
	u, err := k.find(q)
	if err != nil {
		return nil, err
	}
	u.cancel(errUnsubscribed)
	<-u.ended
	if u.cursor == "" {
		return nil, nil
	}
	return []byte(`"cursor":"` + u.cursor + `"`), nil
}

func (k *socket) credit(q *request) ([]byte, error) {
	u, err := k.find(q)
	switch {
	case err != nil:
		return nil, err
	case q.credit == 0:
		return nil, event.Invalid("credit", "is missing or 0; give the number of events to add")
	case !u.grant(q.credit):
		return nil, event.Invalid("credit", fmt.Sprintf("%d more would be over the limit of %d events that are granted and not sent yet", q.credit, maxCredit))
	}
	return nil, nil
}

// publish answers when the events are durable.
func (k *socket) publish(ctx context.Context, q *request) ([]byte, error) {
	if err := event.CheckName("topic", q.topic); err != nil {
		return nil, err
	}
	defer func() {
		clear(k.events) // they borrow the message
		if k.events = k.events[:0]; cap(k.events) > 16 {
			k.events, k.pos = nil, nil
		}
	}()
	if err := k.s.o.May(ctx, access.Publish, access.Topic, q.topic); err != nil {
		return nil, err
	}
	var err error
	l := k.s.o.Limits
	gjson.Parse(q.events).ForEach(func(_, v gjson.Result) bool {
		i := len(k.events)
		at := "events[" + strconv.Itoa(i) + "]"
		if i == l.Events {
			err = event.Bad(event.ErrTooLarge, at, fmt.Sprintf("the limit is %d events a request; send the rest in another", l.Events))
			return false
		}
		k.events = append(k.events, event.Event{})
		e, doc := &k.events[i], unsafe.Slice(unsafe.StringData(v.Raw), len(v.Raw))
		if event.HasSpecVersion(doc) {
			if err = event.ParseStructured(doc, l, e); err != nil {
				err = event.At(at, err)
			}
		} else {
			e.DataContentType, e.Data = "application/json", doc
		}
		e.ClientID = e.ID != ""
		return err == nil
	})
	switch {
	case err != nil:
		return nil, err
	case len(k.events) == 0:
		return nil, event.Invalid("events", "is missing or empty; send at least one event")
	}
	k.pos = slices.Grow(k.pos[:0], len(k.events))[:len(k.events)]
	if err := k.s.o.Backend.Publish(ctx, strings.Clone(q.topic), k.events, k.pos); err != nil {
		return nil, err
	}
	out := []byte(`"accepted":` + strconv.Itoa(len(k.events)) + `,"events":[`)
	for i := range k.events {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(out, `{"id":`...), quote(k.events[i].ID)...)
		out = append(k.pos[i].Append(append(out, `,"position":"`...)), '"', '}')
	}
	return append(out, ']'), nil
}
