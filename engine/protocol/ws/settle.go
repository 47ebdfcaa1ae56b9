package ws

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// Bounds of what a client may ask for: those of the calls over HTTP.
const (
	minDeadline = 10 * time.Second
	maxDeadline = 600 * time.Second
	maxDelay    = 24 * time.Hour
)

// settle acks, nacks or extends leases: of the subscription that is named, or else those that this socket was handed.
func (k *socket) settle(ctx context.Context, q *request) ([]byte, error) {
	if len(q.leases) == 0 {
		return nil, event.Invalid("leases", "is missing; give the leases of the deliveries")
	}
	how, err := q.settling()
	if err != nil {
		return nil, err
	}
	for i, id := range q.leases { // the engine may keep them
		q.leases[i] = strings.Clone(id)
	}
	var answer struct {
		Lost    []string        `json:"lost"`
		Reasons []event.LostWhy `json:"reasons,omitempty"`
	}
	answer.Lost = []string{}
	of := map[string][]string{}
	if q.subscription != "" {
		if err := event.CheckName("subscription", q.subscription); err != nil {
			return nil, err
		}
		of[strings.Clone(q.subscription)] = q.leases
	} else {
		for _, id := range k.group(q.leases, of) {
			answer.Lost, answer.Reasons = append(answer.Lost, id), append(answer.Reasons, event.LostUnknown)
		}
	}
	for name := range of {
		if err := k.s.o.May(ctx, access.Consume, access.Subscription, name); err != nil {
			return nil, err
		}
	}
	for name, leases := range of {
		lost, err := k.s.o.Backend.Settle(ctx, name, leases, how)
		if err != nil {
			return nil, err
		}
		for _, l := range lost {
			answer.Lost, answer.Reasons = append(answer.Lost, l.Lease), append(answer.Reasons, l.Why)
		}
		k.settled(how, name, leases)
	}
	doc, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	return doc[1 : len(doc)-1], nil
}

// settling is what q asks to become of leases.
func (q *request) settling() (how event.Settling, err error) {
	switch q.op {
	case "ack":
		how.Verb = event.Ack
	case "nack":
		how.Verb = event.Nack
		if q.delay != "" {
			how.Delay, err = event.ParseDuration(q.delay)
		}
		if err != nil || how.Delay < 0 || how.Delay > maxDelay {
			return how, event.Invalid("delay", fmt.Sprintf("is %.20q; want a duration of 0s to %s", q.delay, maxDelay))
		}
	case "extend":
		how.Verb = event.Extend
		how.Deadline, err = event.ParseDuration(q.deadline)
		if d := how.Deadline; err != nil || d != 0 && (d < minDeadline || d > maxDeadline) {
			return how, event.Invalid("deadline", fmt.Sprintf("is %.20q; want a duration from now of %s to %s, or 0s to give the deliveries back", q.deadline, minDeadline, maxDeadline))
		}
	}
	return how, nil
}

// group sorts leases by the subscription by which this socket was handed them; lost are those that it was not.
func (k *socket) group(leases []string, of map[string][]string) (lost []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
next:
	for _, id := range leases {
		for _, u := range k.subs {
			u.mu.Lock()
			_, held := u.leased[id]
			u.mu.Unlock()
			if held {
				of[u.name] = append(of[u.name], id)
				continue next
			}
		}
		lost = append(lost, id)
	}
	return lost
}

// settled forgets leases, which are not to be given back any more when the socket ends.
func (k *socket) settled(how event.Settling, name string, leases []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, u := range k.subs {
		if u.name != name || u.reader != nil {
			continue
		}
		u.mu.Lock()
		for _, id := range leases {
			switch _, held := u.leased[id]; {
			case held && how.Deadline > 0:
				u.leased[id] = k.s.o.Now().Add(how.Deadline)
			case held:
				delete(u.leased, id)
			}
		}
		u.wake()
		u.mu.Unlock()
	}
}
