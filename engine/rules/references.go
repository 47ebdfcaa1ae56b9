package rules

import (
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// checkReferences checks what definitions say of each other.
func (p *parser) checkReferences() {
	known := nameSet(p.o.Functions)
	for name := range p.functionKeys {
		known[name] = true
	}
	topics := make(map[string]*topicDef, len(p.topics))
	for _, d := range p.topics {
		topics[d.Name] = d
	}
	for _, d := range p.subscriptions {
		if !p.partial { // else one that is there would be called unknown
			p.checkFunctions(d, known)
		}
		if out := topics[d.Deliver.Topic]; d.stream != nil && out != nil && !merged(&out.Retain, d.Deliver.StreamKeep) {
			p.bad(d.stream, "topic %q has other bounds at %s; keep one of them", out.Name, out.retain.place())
		}
		if t := topics[d.Subscription.Topic]; t != nil {
			p.typedFilter(d, t.typed)
		}
	}
	p.checkBridges(topics)
	p.checkHookFunctions(known)
	p.checkCase()
	subs := p.events()
	p.checkDeadLetters(subs)
	p.checkCircles(subs) // changes subs
}

// checkCase refuses names that differ in case alone: file systems, tables and people confuse them, and a topic that is
// only named, in other letters, would be made without a word.
func (p *parser) checkCase() {
	once := func(what string, names func(add func(name string, at *node))) {
		type first struct {
			name string
			at   *node
		}
		seen := map[string]first{}
		names(func(name string, at *node) {
			folded := strings.ToLower(name)
			was, ok := seen[folded]
			switch {
			case name == "" || at == nil:
			case !ok:
				seen[folded] = first{name, at}
			case was.name != name:
				p.fault(at, "%s %s differs from %s at %s in case alone; write both alike, or give one of them another name", what, quote(name), quote(was.name), was.at.place())
			}
		})
	}
	once("topic", func(add func(string, *node)) {
		for _, d := range p.topics {
			add(d.Name, p.topicKeys[d.Name])
		}
		for _, d := range p.subscriptions {
			add(d.Subscription.Topic, d.n.get("topic"))
			if d.Deliver.Face == event.ToTopic {
				add(d.Deliver.Topic, d.target())
			}
			add(d.DeadLetter, d.n.get("deadLetter"))
		}
		for i := range p.schedules {
			add(p.schedules[i].Topic, p.scheduleKeys[p.schedules[i].Name])
		}
		for i := range p.hooks {
			add(p.hooks[i].Topic, p.hookKeys[p.hooks[i].Name])
		}
		for i := range p.mappings {
			add(p.mappings[i].Topic, p.mqttKeys[p.mappings[i].Filter])
		}
		for _, b := range p.bridges {
			add(b.Topic, b.n.get("topic"))
		}
	})
	once("bridge", func(add func(string, *node)) {
		for _, b := range p.bridges {
			add(b.Name, b.key)
		}
	})
	once("source", func(add func(string, *node)) {
		for i := range p.hooks {
			add(p.hooks[i].Name, p.hookKeys[p.hooks[i].Name])
		}
	})
	once("schedule", func(add func(string, *node)) {
		for i := range p.schedules {
			add(p.schedules[i].Name, p.scheduleKeys[p.schedules[i].Name])
		}
	})
	once("function", func(add func(string, *node)) {
		for _, d := range p.functions {
			add(d.Name, p.functionKeys[d.Name])
		}
	})
	once("subscription", func(add func(string, *node)) {
		for _, d := range p.subscriptions {
			add(d.Name, p.subKeys[d.Name])
		}
	})
}

// target is where deliver says what it delivers to.
func (d *subscriptionDef) target() *node {
	if n := d.n.get("deliver"); n != nil && len(n.items) == 1 {
		return n.items[0]
	}
	return d.n
}

func (p *parser) events() []event.Subscription {
	subs := make([]event.Subscription, len(p.subscriptions))
	for i, d := range p.subscriptions {
		subs[i] = d.event()
	}
	return subs
}

// checkDeadLetters refuses dead letters that go round. One subscription alone is refused where it is read.
func (p *parser) checkDeadLetters(subs []event.Subscription) {
	if way := event.DeadLetterCircle(subs); len(way) > 1 {
		n := p.subscriptions[way[0]].n
		if dead := n.get("deadLetter"); dead != nil {
			n = dead
		}
		p.bad(n, "%s", event.TellCircle(subs, way))
	}
}

// maxCircles is how many circles are named at once.
const maxCircles = 20

// checkCircles refuses topics that are delivered into each other all round, whatever the filters on the way say: they
// may take everything. Where functions put an event into a topic of their choice, the bound of hops stops it.
func (p *parser) checkCircles(subs []event.Subscription) {
	for range maxCircles {
		way := event.DeliveryCircle(subs)
		if way == nil {
			return
		}
		last := way[len(way)-1]
		p.bad(p.subscriptions[last].target(), "%s", event.TellDeliveryCircle(subs, way))
		subs[last].Deliver = event.Deliver{} // opened there, to find the next
	}
}
