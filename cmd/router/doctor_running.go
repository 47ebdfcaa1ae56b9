package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
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
		recent, more := recentLetters(ctx, c, s.Name, s.State)
		e.subscription(s.Name, s.State, recent, more)
	}
}

// recently is how far back a dead letter says that more are coming.
const recently = time.Hour

// recentLetters counts the dead letters of the last hour, as far as one page has them, and says whether others may follow
// it; 0 where nobody says.
func recentLetters(ctx context.Context, c *client, name string, s subscriptionState) (n int, more bool) {
	if s.DeadLetters == 0 {
		return 0, false
	}
	u := c.path(kindSubscriptions, name, "deadletters")
	u.RawQuery = url.Values{"limit": {"1000"}, "since": {recently.String()}}.Encode()
	var page struct {
		DeadLetters []struct{ At time.Time }
		Next        string
	}
	if c.callJSON(ctx, "GET", u, nil, &page) != nil {
		return 0, false
	}
	return len(page.DeadLetters), page.Next != ""
}

// subscription names what of one wants a hand; recent is how many of its dead letters are of the last hour, or more.
func (e *examination) subscription(name string, s subscriptionState, recent int, more bool) {
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
		growth := "none of them of the last hour"
		if recent > 0 {
			count := fmt.Sprint(recent)
			if more {
				count += " or more"
			}
			growth = count + " of them of the last hour: they grow"
		}
		e.find("subscription", "note", "router deadletters list "+name, "%s has %s that nobody has redriven or purged, %s", name, plural(int(s.DeadLetters), "dead letter"), growth)
	}
}
