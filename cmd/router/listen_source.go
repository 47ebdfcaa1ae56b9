package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// shownSubscription is what listen needs of a subscription as the router shows it.
type shownSubscription struct {
	Name        string   `json:"name"`
	Topic       string   `json:"topic"`
	Filter      string   `json:"filter,omitempty"`
	Functions   []string `json:"functions,omitempty"`
	Order       string   `json:"order,omitempty"`
	Concurrency int      `json:"concurrency,omitempty"`
	Deliver     struct {
		Pull    json.RawMessage `json:"pull"`
		Webhook *struct {
			Format  string   `json:"format"`
			Timeout string   `json:"timeout"`
			Secrets []string `json:"secrets"` // "***" each
		} `json:"webhook"`
	} `json:"deliver"`
	State struct {
		State       string `json:"state"`
		Reason      string `json:"reason"`
		Lag         int    `json:"lag"`
		Outstanding int    `json:"outstanding"`
		Parked      int    `json:"parked"`
	} `json:"state"`
}

func (s *shownSubscription) pulls() bool { return len(s.Deliver.Pull) > 0 }

func (s *shownSubscription) secrets() []string {
	if s.Deliver.Webhook == nil {
		return nil
	}
	return s.Deliver.Webhook.Secrets
}

// waiting is how many events it has not delivered: those before its filter among them.
func (s *shownSubscription) waiting() int {
	return s.State.Lag + max(s.State.Outstanding, s.State.Parked)
}

// listened is the subscription that a listener pulls from.
type listened struct {
	name        string
	source      *shownSubscription // the one that it stands for; itself where it is used as it is
	concurrency int
	waiting     int
}

const defaultConcurrency = 16

// listenTo finds the subscription to pull from, or makes one, and moves it where --since asks.
func (p *program) listenTo(ctx context.Context, c *client, o *listening, name string) (*listened, error) {
	source, err := subscriptionNamed(ctx, c, name)
	switch {
	case err == nil && o.topic != "":
		return nil, fmt.Errorf("subscription %s exists and reads topic %s; leave --topic and --filter away, or take another name", clean(name), clean(source.Topic))
	case err == nil && source.pulls():
		return p.listenThere(ctx, c, o, &listened{name: name, source: source})
	case err == nil:
		return p.listenBeside(ctx, c, o, source)
	case !hasStatus(err, 404):
		return nil, err
	case o.topic != "":
		return p.listenBeside(ctx, c, o, &shownSubscription{Name: name, Topic: o.topic, Filter: o.filter})
	}
	as := p.listenerName(o, name)
	source, notThere := subscriptionNamed(ctx, c, as) // made with --topic, or what it stood for is gone
	if hasStatus(notThere, 404) {
		return nil, fmt.Errorf("%w\n--topic makes one", err)
	}
	if notThere != nil {
		return nil, notThere
	}
	return p.listenThere(ctx, c, o, &listened{name: as, source: source})
}

// listenerMark stands in the names of subscriptions that listen made.
const listenerMark = ".listen-"

func (p *program) listenerName(o *listening, name string) string {
	if o.as != "" {
		return name + listenerMark + o.as
	}
	return name + listenerMark + p.deskName()
}

// listenBeside pulls from a subscription of listen's own, which has the topic, filter, functions and order of source.
func (p *program) listenBeside(ctx context.Context, c *client, o *listening, source *shownSubscription) (*listened, error) {
	s := &listened{name: p.listenerName(o, source.Name), source: source}
	if err := event.CheckName("subscription", s.name); err != nil {
		return nil, &usageError{nil, fmt.Errorf("%w; --as changes its end", err)}
	}
	there, err := subscriptionNamed(ctx, c, s.name)
	switch {
	case hasStatus(err, 404):
		return p.makeListener(ctx, c, o, s)
	case err != nil:
		return nil, err
	case !there.pulls() || there.Topic != source.Topic:
		return nil, fmt.Errorf("subscription %s reads topic %s, not %s, or cannot be pulled: remove it with 'router listen %s --forget'",
			clean(s.name), clean(there.Topic), clean(source.Topic), clean(source.Name))
	case there.Filter != source.Filter || !slices.Equal(there.Functions, source.Functions) || there.Order != source.Order:
		patch := map[string]any{"filter": nil, "functions": nil, "order": nil}
		maps.Copy(patch, source.listener(s.name))
		if err := c.callJSON(ctx, "PATCH", c.path(kindSubscriptions, s.name), patch, nil); err != nil {
			return nil, err
		}
		say(p.stderr, "changed %s to the filter, functions and order of now", clean(s.name))
	}
	return p.listenThere(ctx, c, o, s)
}

// makeListener makes s, and unmakes it where --since cannot be followed.
func (p *program) makeListener(ctx context.Context, c *client, o *listening, s *listened) (*listened, error) {
	if err := c.callJSON(ctx, "POST", c.path(kindSubscriptions), s.source.listener(s.name), nil); err != nil {
		return nil, err
	}
	say(p.stderr, "made subscription %s to topic %s; it keeps what comes until 'router listen %s --forget'", clean(s.name), clean(s.source.Topic), clean(s.source.Name))
	made, err := p.listenThere(ctx, c, o, s)
	if err == nil {
		return made, nil
	}
	ctx = context.WithoutCancel(ctx)
	if _, undone := c.call(ctx, "DELETE", c.path(kindSubscriptions, s.name), nil); undone != nil {
		return nil, fmt.Errorf("%w\nand subscription %s stays: %w", err, clean(s.name), undone)
	}
	say(p.stderr, "removed subscription %s again", clean(s.name))
	return nil, err
}

// listener is the definition of listen's own subscription. Nothing of it ends in dead letters: whoever is still writing the
// program has bugs to mend before what failed can succeed.
func (s *shownSubscription) listener(as string) map[string]any {
	doc := map[string]any{"name": as, "topic": s.Topic, "deliver": map[string]any{"pull": map[string]any{"ackDeadline": leaseTime.String()}},
		"retry": map[string]any{"attempts": "unlimited", "exponential": map[string]any{"first": firstWait.String(), "max": longestWait.String()}}}
	setIf(doc, "filter", s.Filter)
	setIf(doc, "order", s.Order)
	if len(s.Functions) > 0 {
		doc["functions"] = s.Functions
	}
	return doc
}

// listenThere fills in how s stands, after moving it where --since asks.
func (p *program) listenThere(ctx context.Context, c *client, o *listening, s *listened) (*listened, error) {
	if o.since != "" {
		to := o.since
		if back, err := parseBack(to); err == nil {
			to = time.Now().Add(-back).UTC().Format(time.RFC3339Nano)
		}
		if err := c.callJSON(ctx, "POST", c.path(kindSubscriptions, s.name, "seek"), map[string]string{"to": to}, nil); err != nil {
			return nil, err
		}
		say(p.stderr, "moved %s: it goes on from %s", clean(s.name), clean(o.since))
	}
	now, err := subscriptionNamed(ctx, c, s.name)
	if err != nil {
		return nil, err
	}
	if now.State.State != "running" {
		say(p.stderr, "%s is %s%s", clean(s.name), clean(now.State.State), because(now.State.Reason))
	}
	s.waiting = now.waiting()
	s.concurrency = o.concurrency
	if s.concurrency == 0 {
		s.concurrency = s.source.Concurrency
	}
	if s.concurrency == 0 {
		s.concurrency = defaultConcurrency
	}
	s.concurrency = min(s.concurrency, maxSinkConns)
	return s, nil
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + clean(reason)
}

func subscriptionNamed(ctx context.Context, c *client, name string) (*shownSubscription, error) {
	s := &shownSubscription{}
	if err := c.callJSON(ctx, "GET", c.path(kindSubscriptions, name), nil, s); err != nil {
		return nil, err
	}
	return s, nil
}

// parseBack reads how far back: a duration, or days such as 7d.
func parseBack(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

// forgetListener removes what listen made for a subscription.
func (p *program) forgetListener(ctx context.Context, c *client, o *listening, name string) error {
	as := name
	if !strings.Contains(name, listenerMark) {
		as = p.listenerName(o, name)
	}
	if _, err := c.call(ctx, "DELETE", c.path(kindSubscriptions, as), nil); err != nil {
		return err
	}
	say(p.stderr, "removed subscription %s", clean(as))
	return nil
}
