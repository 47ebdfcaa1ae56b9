package main

import (
	"context"
	"encoding/json"
	"time"
)

// running names what of a router that runs wants somebody's hand: subscriptions that do not deliver, and dead letters.
// Whoever may not list subscriptions is told of none.
func (e *examination) running(ctx context.Context, c *client) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	doc, err := c.call(ctx, "GET", c.path(kindSubscriptions), nil)
	if err != nil {
		return // server has said whether it answers
	}
	list, err := listOf(kindSubscriptions, doc)
	if err != nil {
		e.find("subscriptions", "note", "", "%v", err)
		return
	}
	for _, m := range list {
		var s struct {
			Name  string
			State subscriptionState
		}
		text, err := json.Marshal(m)
		if err == nil {
			err = json.Unmarshal(text, &s)
		}
		if err != nil {
			e.find("subscriptions", "note", "", "%v", err)
			return
		}
		e.subscription(s.Name, s.State)
	}
}

func (e *examination) subscription(name string, s subscriptionState) {
	if s.State != "running" {
		why := s.Reason
		if why != "" {
			why = ": " + why
		}
		e.find("subscription", "note", "router subscriptions resume "+name, "%s is %s%s; its events wait, as long as their topic keeps them", name, s.State, why)
	}
	if s.Circuit != nil && s.Circuit.State != "closed" {
		e.find("subscription", "note", "see to its target; router subscriptions resume "+name+" tries at once", "%s: its circuit is %s: %s", name, s.Circuit.State, s.Circuit.Reason)
	}
	if s.DeadLetters > 0 {
		e.find("subscription", "note", "router deadletters list "+name, "%s has %s that nobody has redriven or purged", name, plural(int(s.DeadLetters), "dead letter"))
	}
}
