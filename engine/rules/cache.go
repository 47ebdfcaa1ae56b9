package rules

import "crypto/sha256"

// Cache keeps what was made of subscriptions, so that rules of which little changed are read again quickly: their
// filters are not compiled anew. It serves one set of rules that is parsed again and again with the same Options;
// Functions, Schema, Reads and Now may differ. The zero value is ready. One parse at a time uses it.
type Cache struct{ subs map[string]cached }

// cached is a subscription that was good: key is of all that it was made of.
type cached struct {
	key  [sha256.Size]byte
	def  subscriptionDef // its nodes are not of this parse
	done Subscription
}

// subscription reads a subscription, or takes what was made of the same text with the same values before.
func (p *parser) subscription(name string, key, n *node) *subscriptionDef {
	if p.o.Cache == nil {
		return p.newSubscription(name, key, n)
	}
	sum, ok := p.sum(name, n)
	if c, have := p.o.Cache.subs[name]; ok && have && c.key == sum {
		return c.again(p, key, n)
	}
	before := p.count
	d := p.newSubscription(name, key, n)
	if ok && p.count == before {
		d.sum = &sum
	}
	return d
}

// again is the subscription with the places that it has now.
func (c cached) again(p *parser, key, n *node) *subscriptionDef {
	d := c.def
	d.n, d.Owner, d.sum, d.done = n, p.owner(key), &c.key, &c.done
	if v := n.get("functions"); v != nil {
		d.functions = v.items
	}
	if v, rest := n.at("deliver.stream.retain"); rest == "" {
		d.stream = v
	}
	return &d
}

// sum is over everything that a subscription is made of, but not of where it stands; not ok where it has to be read
// in any case: it has a fault, or counts its start from now.
func (p *parser) sum(name string, n *node) (sum [sha256.Size]byte, ok bool) {
	if n.get("start") != nil {
		return sum, false
	}
	b := append(p.scratch[:0], name...)
	ok = true
	var walk func(n *node)
	walk = func(n *node) {
		b = append(b, 0, byte(n.kind), byte(len(n.items)), byte(len(n.items)>>8), byte(len(n.items)>>16))
		if n.kind == scalar {
			b = append(append(append(b, n.tag...), 0), n.raw...)
			text, good := p.text(n)
			ok = ok && good
			if n.refs {
				b = append(append(b, 0), text...)
			}
		}
		for i, item := range n.items {
			if n.kind == mapping {
				b = append(append(b, 0), n.keys[i].raw...)
			}
			walk(item)
		}
	}
	walk(n)
	p.scratch = b
	return sha256.Sum256(b), ok
}

// keep remembers the subscriptions of rules that are good as a whole, and forgets others.
func (p *parser) keep(subs []Subscription) {
	if p.o.Cache == nil {
		return
	}
	next := make(map[string]cached, len(subs))
	for i, d := range p.subscriptions {
		if d.sum == nil {
			continue
		}
		c := cached{key: *d.sum, def: *d, done: subs[i]}
		c.def.n, c.def.functions, c.def.stream, c.def.sum, c.def.done = nil, nil, nil, nil, nil
		next[d.Name] = c
	}
	p.o.Cache.subs = next
}
