package rules

import (
	"fmt"
)

// expectations reads what a test expects: without any it could not fail.
func (d *testDef) expectations(p *parser, n *node, f map[string]*node) {
	if f["expect"] == nil && f["topics"] == nil && f["reply"] == nil {
		p.missing(n, "expect", "such as {hook: 1}, a subscription and how many events it delivers")
	}
	if v := f["expect"]; v != nil {
		p.eachOf(v, "subscriptions to what is expected of them, such as {hook: 1}", func(key, n *node) {
			d.subscriptions = append(d.subscriptions, key)
			d.Expect = append(d.Expect, p.expect(key, n))
		})
	}
	if v := f["topics"]; v != nil {
		p.eachOf(v, "topics to what comes into them, such as {audit: 1}", func(key, n *node) {
			d.topics = append(d.topics, key)
			t := TopicExpect{Topic: key.raw, Owner: p.owner(key)}
			if n.kind == mapping {
				p.bad(n, "is a mapping; want a number, none or a list of events")
			} else if es := p.wanted(n, eventShape); es != nil {
				t.Events = *es
			}
			d.Topics = append(d.Topics, t)
		})
	}
	if v := f["reply"]; v != nil {
		d.Reply = p.replyExpect(v)
		switch {
		case f["given"] == nil:
		case len(d.Given) != 1 || d.Given[0].File != "" || len(d.Given[0].Events) != 1:
			p.bad(v, "is the reply to one event; give just one")
		}
	}
}

// expect reads what is expected of a subscription: short, for what it delivers, or as a mapping.
func (p *parser) expect(key, n *node) Expect {
	x := Expect{Subscription: key.raw, Owner: p.owner(key)}
	if n.kind != mapping {
		x.Delivered = p.wanted(n, eventShape)
		return x
	}
	f, ok := p.fields(n, expectShape)
	if !ok {
		return x
	}
	if v := f["delivered"]; v != nil {
		x.Delivered = p.wanted(v, eventShape)
	}
	for _, flag := range []struct {
		key string
		set func(e *Events, is bool)
	}{{"inOrder", func(e *Events, is bool) { e.InOrder = is }}, {"exact", func(e *Events, is bool) { e.Exact = is }}} {
		v := f[flag.key]
		if v == nil {
			continue
		}
		is, _ := p.boolean(v)
		if d := f["delivered"]; d == nil || d.kind != list {
			p.bad(v, "is about a list of events under delivered, and there is none")
		} else if x.Delivered != nil {
			flag.set(x.Delivered, is)
		}
	}
	if v := f["deadLetters"]; v != nil {
		x.DeadLetters = p.wanted(v, deadLetterShape)
	}
	if v := f["attempts"]; v != nil {
		x.Attempts = p.attempts(v)
	}
	if v := f["disabled"]; v != nil {
		is, _ := p.boolean(v)
		x.Disabled = &is
	}
	return x
}

// wanted reads how many events are expected, or which.
func (p *parser) wanted(n *node, s shape) *Events {
	switch {
	case n.kind == scalar && n.raw == "none":
		return &Events{}
	case n.kind == list:
		e := &Events{List: []WantedEvent{}}
		for _, item := range n.items {
			e.List = append(e.List, p.wantedEvent(item, s))
		}
		return e
	case n.kind == mapping:
		p.bad(n, "is a mapping; want a number, none or a list of events: put [ ] around a single one")
		return nil
	}
	count, ok := p.integer(n, 0, maxExpect, "a number of events, none, or a list of them")
	if !ok {
		return nil
	}
	return &Events{Count: int(count)}
}

func (p *parser) wantedEvent(n *node, s shape) WantedEvent {
	w := WantedEvent{Attributes: map[string]string{}}
	f, ok := p.fields(n, s)
	if !ok {
		return w
	}
	for _, key := range s.keys {
		v := f[key]
		switch {
		case v == nil || key == "data":
		case key == "ext":
			p.eachOf(v, "names of extensions to their values, such as {region: eu}", func(key, v *node) {
				w.Attributes["ext."+key.raw], _ = p.literal(v)
			})
		default:
			w.Attributes[key], _ = p.literal(v)
		}
	}
	if v := n.get("data"); v != nil {
		w.Data = plain(v).appendJSON(nil)
	}
	w.Source = plain(n).appendJSON(nil)
	return w
}

func (p *parser) attempts(n *node) *Attempts {
	if n.kind != list {
		count, ok := p.integer(n, 0, maxExpect, "a number of requests, or a list such as [{after: 0s, answer: 503}]")
		if !ok {
			return nil
		}
		return &Attempts{Count: int(count)}
	}
	as := &Attempts{List: []Attempt{}}
	for _, item := range n.items {
		a := Attempt{After: -1}
		f, _ := p.fields(item, attemptShape)
		if v := f["after"]; v != nil {
			a.After, _ = p.duration(v, 0, maxFor)
		}
		if v := f["answer"]; v != nil {
			switch got := p.answer(v); {
			case got.Timeout:
				a.Answer = "timeout"
			default:
				a.Answer = fmt.Sprint(got.Status)
			}
		}
		if v := f["events"]; v != nil {
			events, _ := p.integer(v, 1, maxExpect, "a number of events")
			a.Events = int(events)
		}
		as.List = append(as.List, a)
	}
	return as
}

func (p *parser) replyExpect(n *node) *ReplyExpect {
	if n.kind == scalar && n.raw == "none" {
		return &ReplyExpect{None: true}
	}
	r := &ReplyExpect{}
	f, ok := p.fields(n, replyShape)
	if !ok {
		return r
	}
	if v := f["status"]; v != nil {
		status, _ := p.integer(v, 200, 599, "a status")
		r.Status = int(status)
	}
	if v := n.get("data"); v != nil {
		r.Data = plain(v).appendJSON(nil)
	}
	if v := f["exact"]; v != nil {
		r.Exact, _ = p.boolean(v)
	}
	return r
}
