package rules

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/engine"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
)

const (
	maxConcurrency = 10_000
	maxSchedule    = 100
	maxWait        = 30 * 24 * time.Hour
	minAckDeadline = 10 * time.Second
	maxAckDeadline = 600 * time.Second
)

type subscriptionDef struct {
	event.Subscription
	n         *node
	program   *filters.Program
	open      func(context.Context) (engine.Sink, error)
	sink      *doc // its options with defaults
	functions []*node
	stream    *node // its retain

	sum  *[sha256.Size]byte // see Cache; nil: not to be kept
	done *Subscription      // made before
}

func (d *subscriptionDef) event() event.Subscription { return d.Subscription }

func (p *parser) newSubscription(name string, key, n *node) *subscriptionDef {
	d := &subscriptionDef{n: n, Subscription: event.Subscription{
		Name: name, Owner: p.owner(key), Concurrency: 16, Parked: 256 << 20,
		Retry: event.RetryPolicy{Attempts: 10, Schedule: event.DefaultSchedule, Jitter: 0.2},
	}}
	f, ok := p.fields(n, subscriptionShape)
	if !ok {
		return d
	}
	if v := f["topic"]; v != nil {
		d.Topic, _ = p.name(v, "topic")
	} else {
		p.missing(n, "topic", "the name of the topic to read")
	}
	if v := f["start"]; v != nil {
		d.Start = p.start(v)
	}
	if v := f["filter"]; v != nil {
		p.filter(d, v)
	}
	if v := f["functions"]; v != nil {
		p.chain(d, v)
	}
	if v := f["deliver"]; v != nil {
		p.deliver(d, v)
	} else {
		p.missing(n, "deliver", "one of "+strings.Join(p.faces(), ", "))
	}
	if v := f["order"]; v != nil {
		p.order(d, v)
	}
	if v := f["concurrency"]; v != nil {
		i, _ := p.integer(v, 1, maxConcurrency, "a number of sends under way at once")
		d.Concurrency = int(i)
	}
	if v := f["rate"]; v != nil {
		if d.Rate = p.rate(v); d.Rate > 0 && d.Deliver.Face != event.Push {
			p.bad(v, "is %s; it bounds what is pushed, and this subscription's deliver is %s: remove it, or set it to unlimited", v.shown(), d.Deliver.Face)
		}
	}
	if v := f["retry"]; v != nil {
		p.retry(d, v)
	}
	if v := f["parked"]; v != nil {
		g, _ := p.fields(v, parkedShape)
		if v := g["bytes"]; v != nil {
			d.Parked, _ = p.size(v, 1, 1<<60)
		}
	}
	if v := f["shadow"]; v != nil {
		p.shadow(d, v)
	}
	p.deadLetter(d, key, f["deadLetter"])
	return d
}

// missing reports a key that has to be there, unless it is there and was refused already.
func (p *parser) missing(n *node, key, want string) {
	if n.get(key) == nil {
		p.badAt(n, key, "missing; want %s", want)
	}
}

func (p *parser) deadLetter(d *subscriptionDef, key, v *node) {
	switch {
	case v != nil:
		d.DeadLetter, _ = p.name(v, "topic")
		if d.DeadLetter != "" && d.DeadLetter == d.Topic {
			p.bad(v, "is %s, the topic that this subscription reads: its dead letters would come back to it; name another", v.shown())
		}
	case d.Deliver.Face == event.Pull && len(d.Functions) == 0:
	default:
		d.DeadLetter = p.derived(d, key, ".dead", "deadLetter: NAME")
	}
}

// derived is the name of a topic that is made for a subscription.
func (p *parser) derived(d *subscriptionDef, key *node, suffix, instead string) string {
	if name := d.Name + suffix; event.CheckName("topic", name) == nil {
		return name
	}
	if p.api {
		at := *key
		at.path = "name"
		key = &at
	}
	p.fault(key, "the name %s is too long for its topic %s; shorten it, or set %s", quote(d.Name), quote("…"+suffix), instead)
	return ""
}

func (p *parser) start(n *node) event.Start {
	s, ok := p.str(n)
	if !ok {
		return event.Start{}
	}
	switch s {
	case "latest":
		return event.Start{At: event.Latest}
	case "earliest":
		return event.Start{At: event.Earliest}
	}
	if back, err := parseDuration(s); err == nil {
		return event.Start{At: event.AtTime, Time: p.o.Now().Add(-back)}
	}
	t, err := event.ParseTime(s)
	if err != nil {
		p.bad(n, "is %s; want latest, earliest, a time such as 2026-01-31T12:00:00Z, or a duration back such as 24h%s", n.shown(), near(s, "latest", "earliest"))
	}
	return event.Start{At: event.AtTime, Time: t}
}

func near(s string, among ...string) string {
	if m := event.Nearest(s, among); m != "" {
		return fmt.Sprintf("; did you mean %q?", m)
	}
	return ""
}

func (p *parser) filter(d *subscriptionDef, n *node) {
	s, ok := p.str(n)
	d.Filter = s // as it is written where a value in it is not known
	if !ok {
		return
	}
	if s == "" {
		return
	}
	if d.program = p.compile(n, s); d.program != nil && n.refs {
		d.program = d.program.Hiding(p.secretsIn(s)...)
	}
}

// compile compiles the filter s that n is, and says where in it something is wrong; nil then.
func (p *parser) compile(n *node, s string) *filters.Program {
	program, err := filters.Compile(s)
	var bad *filters.Error
	switch {
	case err == nil:
		return program
	case errors.As(err, &bad) && n.src.name != "":
		p.bad(p.within(n, offset(s, bad.Line, bad.Column)), "%s", bad.Detail)
	default:
		p.bad(n, "%v", err)
	}
	return nil
}

// secretsIn are the values that no message may carry and that a text does.
func (p *parser) secretsIn(text string) []string {
	var in []string
	for v := range p.secrets {
		if strings.Contains(text, v) {
			in = append(in, v)
		}
	}
	slices.SortFunc(in, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) }) // the longer of two goes whole
	return in
}

// offset is the number of characters before a line and column of s, both from 1.
func offset(s string, line, col int) int {
	n := 0
	for _, r := range s {
		if line <= 1 {
			break
		}
		if n++; r == '\n' {
			line--
		}
	}
	return n + max(col, 1) - 1
}

func (p *parser) chain(d *subscriptionDef, n *node) {
	if n.kind != list {
		p.bad(n, "is %s; want a list of functions, such as [redact]", n.kind)
		return
	}
	if len(n.items) > maxChain {
		p.bad(n, "has %d functions; a chain has at most %d", len(n.items), maxChain)
		return
	}
	for _, v := range n.items {
		if s, ok := p.name(v, "function"); ok {
			d.Functions, d.functions = append(d.Functions, s), append(d.functions, v)
		}
	}
}

// maxShadows bounds how many versions run beside a subscription's own.
const maxShadows = 4

var shadowText = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,248}@sha256:[0-9a-f]{8,64}$`)

// shadow is one version of a function of the chain, or a list of them.
func (p *parser) shadow(d *subscriptionDef, n *node) {
	items := []*node{n}
	if n.kind == list {
		items = n.items
	}
	if len(items) > maxShadows {
		p.bad(n, "has %d versions; at most %d run beside those in force", len(items), maxShadows)
		return
	}
	for _, v := range items {
		s, ok := p.str(v)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(s, "@")
		switch {
		case !shadowText.MatchString(s):
			p.bad(v, "is %s; want a function of this subscription and a version of it, such as redact@sha256:0123abcd (8 digits or more)", v.shown())
		case !slices.Contains(d.Functions, name):
			p.bad(v, "is of function %s, which is none of this subscription's functions%s", quote(name), suggest(name, d.Functions))
		default:
			d.Shadow = append(d.Shadow, s)
		}
	}
}

// faces are the keys that may stand under deliver.
func (p *parser) faces() []string {
	return append(slices.Sorted(maps.Keys(p.o.Sinks)), "mqtt", "pull", "stream", "topic")
}

func (p *parser) deliver(d *subscriptionDef, n *node) {
	faces := p.faces()
	if n.kind != mapping || len(n.keys) != 1 {
		what := n.kind.String()
		if n.kind == mapping {
			what = strconv.Itoa(len(n.keys)) + " ways to deliver"
		}
		p.bad(n, "is %s; want exactly one of %s, such as {pull: {}}", what, strings.Join(faces, ", "))
		return
	}
	key, v := n.keys[0], n.items[0]
	switch face := key.raw; face {
	case "topic":
		d.Deliver.Face = event.ToTopic
		d.Deliver.Topic, _ = p.name(v, "topic")
	case "stream":
		d.Deliver.Face = event.Stream
		d.Deliver.Topic = p.derived(d, key, ".out", "deliver: {topic: NAME}")
		if v.kind == null {
			return
		}
		f, _ := p.fields(v, streamShape)
		if v := f["retain"]; v != nil {
			d.stream = v
			d.Deliver.StreamKeep = p.retain(v)
		}
	case "mqtt":
		p.deliverMQTT(d, key, v)
	case "pull":
		d.Deliver.Face, d.Deliver.AckDeadline = event.Pull, minAckDeadline
		if v.kind == null {
			return
		}
		f, _ := p.fields(v, pullShape)
		if v := f["ackDeadline"]; v != nil {
			d.Deliver.AckDeadline, _ = p.duration(v, minAckDeadline, maxAckDeadline)
		}
	default:
		d.Deliver.Face, d.Deliver.Kind = event.Push, face
		sink, ok := p.o.Sinks[face]
		if !ok {
			p.fault(p.keyed(key, v), "unknown sink %s%s", quote(face), suggest(face, faces))
			return
		}
		if v.kind == null {
			empty := *v
			empty.kind = mapping
			v = &empty
		}
		d.open, d.sink = sink.read(p, face, v)
	}
}

func nameSet(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}

func (p *parser) checkFunctions(d *subscriptionDef, known map[string]bool) {
	for _, n := range d.functions {
		s, _ := p.text(n)
		if known[s] {
			continue
		}
		hint := ""
		if !p.full(n) {
			if p.names == nil {
				p.names = slices.Sorted(maps.Keys(known))
			}
			hint = suggest(s, p.names)
		}
		p.bad(n, "unknown function %s%s", n.shown(), hint)
	}
}

// merged fills in what r leaves open and reports whether the two then agree.
func merged(r *event.Retain, more event.Retain) bool {
	if r.Bytes == 0 {
		r.Bytes = more.Bytes
	}
	if r.Age == 0 {
		r.Age = more.Age
	}
	if r.Events == 0 {
		r.Events = more.Events
	}
	return (more.Bytes == 0 || r.Bytes == more.Bytes) && (more.Age == 0 || r.Age == more.Age) && (more.Events == 0 || r.Events == more.Events)
}

func (d *subscriptionDef) finished(p *parser) Subscription {
	if d.done != nil {
		s := *d.done
		s.Owner = d.Owner
		return s
	}
	s := Subscription{Subscription: d.Subscription, Program: d.program, OpenSink: d.open}
	s.Values = p.referred[d.n.get("filter")]
	s.source = mask(d.n)
	s.effective = effectiveSubscription(d, s.source)
	s.Subscription.Source, s.Effective = s.source.named(s.Name), s.effective.named(s.Name)
	s.Fingerprint, s.hidden = p.fingerprint(d.n), p.hiddenOf(d.n)
	return s
}

// fingerprint is over what is in force: order of keys, comments and where a subscription once began aside.
func (p *parser) fingerprint(n *node) string {
	b := make([]byte, 0, 1024)
	var walk func(n *node, top bool)
	walk = func(n *node, top bool) {
		count := len(n.items)
		if top && n.get("start") != nil {
			count--
		}
		b = append(strconv.AppendInt(append(strconv.AppendInt(b, int64(n.kind), 10), ' '), int64(count), 10), ' ')
		if n.kind == scalar {
			s, _ := p.text(n)
			b = append(strconv.AppendQuote(b, s), ' ')
		}
		var some [16]int
		order := some[:0]
		for i := range n.items {
			order = append(order, i)
		}
		if n.kind == mapping {
			slices.SortFunc(order, func(i, j int) int { return strings.Compare(n.keys[i].raw, n.keys[j].raw) })
		}
		for _, i := range order {
			if n.kind == mapping {
				if top && n.keys[i].raw == "start" {
					continue
				}
				b = append(strconv.AppendQuote(b, n.keys[i].raw), ": "...)
			}
			walk(n.items[i], false)
		}
	}
	walk(n, true)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
