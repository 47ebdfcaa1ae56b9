package rules

import (
	"bytes"
	"crypto/sha256"
	"errors"

	"github.com/millrace/millrace/engine/event"
)

// Cache keeps what was made of subscriptions, so that rules of which little changed are read again quickly: their
// filters are not compiled anew. It serves one set of rules that is parsed again and again with the same Options;
// Functions, Schema, Reads and Now may differ. The zero value is ready. One parse at a time uses it.
//
// Files of a folder that hold nothing but subscriptions, without references, are not even read as YAML while their bytes
// stay the same.
type Cache struct {
	subs  map[string]cached
	files map[string]cachedFile // by name
}

// cachedFile is a file all of whose subscriptions are cached.
type cachedFile struct {
	sum   [sha256.Size]byte // of its bytes
	lines []cachedLine      // in their order
}

type cachedLine struct {
	name string
	line int // of its key
}

// stretch is what a file gave to parser.subscriptions, where it gave nothing else.
type stretch struct {
	file     string
	sum      [sha256.Size]byte
	from, to int
}

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
	for _, at := range []string{"deliver.stream.retain", "deliver.mqtt.retain"} {
		if v, rest := n.at(at); rest == "" {
			d.stream = v
		}
	}
	return &d
}

// errUnread: something is wrong, and Parse is about to look where.
var errUnread = errors.New("rules: something is wrong in a file that was not read again")

// sameFile takes the subscriptions of a file that has not changed; false: read it. Of the places in it only the lines
// of definitions are known then: whoever finds a fault reads everything again (see parse).
func (p *parser) sameFile(src *source) bool {
	if p.o.Cache == nil || p.whole {
		return false
	}
	c, ok := p.o.Cache.files[src.name]
	if !ok || c.sum != sha256.Sum256(src.text) {
		return false
	}
	for _, l := range c.lines {
		if _, have := p.o.Cache.subs[l.name]; !have {
			return false
		}
	}
	p.attach(src.name, src.text)
	p.unread = true
	// What checks between definitions look for is there; where exactly does not matter.
	at := &node{kind: scalar, src: src, line: 1, col: 1}
	n := &node{kind: mapping, src: src, line: 1, col: 1}
	for _, key := range []string{"topic", "filter", "deliver", "deadLetter"} {
		n.keys, n.items = append(n.keys, &node{kind: scalar, src: src, raw: key}), append(n.items, at)
	}
	functions := map[string]*node{}
	s := stretch{src.name, c.sum, len(p.subscriptions), 0}
	for _, l := range c.lines {
		key := &node{kind: scalar, src: src, line: l.line, col: 1, raw: l.name}
		if p.subKeys[l.name] != nil {
			p.count++
			continue
		}
		p.subKeys[l.name] = key
		d := p.o.Cache.subs[l.name].again(p, key, n)
		for _, name := range d.Functions {
			if functions[name] == nil {
				functions[name] = &node{kind: scalar, src: src, line: 1, col: 1, raw: name}
			}
			d.functions = append(d.functions, functions[name])
		}
		p.subscriptions = append(p.subscriptions, d)
	}
	s.to = len(p.subscriptions)
	p.stretches = append(p.stretches, s)
	return true
}

// stretched notes that a file gave the subscriptions from a place on and nothing else, if that is so.
func (p *parser) stretched(src *source, sections map[string]*node, from, faults int) {
	if p.o.Cache == nil || p.count != faults || bytes.Contains(src.text, []byte("${")) {
		return
	}
	for name, n := range sections {
		if n != nil && name != "version" && name != "subscriptions" {
			return
		}
	}
	p.stretches = append(p.stretches, stretch{src.name, sha256.Sum256(src.text), from, len(p.subscriptions)})
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
	p.o.Cache.subs, p.o.Cache.files = next, make(map[string]cachedFile, len(p.stretches))
	for _, s := range p.stretches {
		if lines := p.linesOf(s); lines != nil {
			p.o.Cache.files[s.file] = cachedFile{s.sum, lines}
		}
	}
}

// linesOf lists a stretch's subscriptions; nil if one of them is not cached, or its places matter.
func (p *parser) linesOf(s stretch) []cachedLine {
	lines := make([]cachedLine, 0, s.to-s.from)
	for _, d := range p.subscriptions[s.from:s.to] {
		if d.sum == nil || d.Deliver.StreamKeep != (event.Retain{}) {
			return nil
		}
		lines = append(lines, cachedLine{d.Name, d.Owner.Line})
	}
	return lines
}
