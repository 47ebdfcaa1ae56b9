package routerlink

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/millrace/millrace/engine/event"
)

// pull leases deliveries of the other router's subscription, stores them, and acknowledges them once they are durable. What is
// stored and not known to be acknowledged is remembered in the same commit: it may come once more, also after a kill.
func (s *Source) pull(ctx context.Context, into event.Inlet) error {
	what := "subscription " + s.o.Subscription
	path := "/v1/subscriptions/" + s.o.Subscription
	send := fmt.Appendf(nil, `{"max":%d,"wait":%q}`, pullEvents, s.o.Wait)
	r, err := s.ask(ctx, http.MethodPost, path+"/pull", send)
	if err != nil {
		return err
	}
	if r != nil {
		return s.refused(r, what, "consume")
	}
	var got struct {
		Deliveries []struct {
			Lease string          `json:"lease"`
			ID    string          `json:"id"`
			Event json.RawMessage `json:"event"`
		} `json:"deliveries"`
	}
	if err := json.Unmarshal(s.body, &got); err != nil {
		return fmt.Errorf("router %s: its answer is not that of a router's subscription", s.link.shown)
	}
	if len(got.Deliveries) == 0 {
		into.Tell(nil)
		return nil
	}
	known := map[string]bool{}
	for _, id := range s.place.Unacked {
		known[id] = true
	}
	was := s.place
	unacked := append([]string{}, was.Unacked...)
	leases := make([]string, len(got.Deliveries))
	s.events = s.events[:0]
	for i, d := range got.Deliveries {
		leases[i] = d.Lease
		if known[d.ID] {
			continue
		}
		known[d.ID] = true
		unacked = append(unacked, d.ID)
		var e event.Event
		if err := event.ParseStructured(d.Event, wide(), &e); err != nil {
			return fmt.Errorf("router %s: an event that it sent cannot be read: %w", s.link.shown, err)
		}
		_, _ = takePosition(&e)
		s.via(&e)
		s.events = append(s.events, e)
	}
	if len(s.events) > 0 {
		s.place.Unacked = unacked[max(0, len(unacked)-unackedMax):]
		if err := s.keep(ctx, into, s.events); err != nil {
			s.place = was
			return err
		}
	}
	into.Tell(nil)
	byLease := make(map[string]string, len(leases))
	for _, d := range got.Deliveries {
		byLease[d.Lease] = d.ID
	}
	return s.ack(ctx, path, what, leases, byLease)
}

// ack acknowledges leases. What was acknowledged does not come again, and is forgotten with the next place that is written.
func (s *Source) ack(ctx context.Context, path, what string, leases []string, ids map[string]string) error {
	send, err := json.Marshal(struct {
		Leases []string `json:"leases"`
	}{leases})
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	r, err := s.ask(ctx, http.MethodPost, path+"/ack", send)
	if err != nil {
		return err
	}
	if r != nil {
		return s.refused(r, what, "consume")
	}
	var answer struct {
		Lost []string `json:"lost"`
	}
	if err := json.Unmarshal(s.body, &answer); err != nil {
		return fmt.Errorf("router %s: its answer to an acknowledgement cannot be read", s.link.shown)
	}
	for _, lease := range answer.Lost { // it comes again
		delete(ids, lease)
	}
	done := make(map[string]bool, len(ids))
	for _, id := range ids {
		done[id] = true
	}
	left := []string{}
	for _, id := range s.place.Unacked {
		if !done[id] {
			left = append(left, id)
		}
	}
	s.place.Unacked = left
	return nil
}
