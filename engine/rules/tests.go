package rules

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// Test is one of a file's tests: what is given, and what is expected to come of it. Nothing in it is expanded: a
// test is the same on every machine.
type Test struct {
	Name    string
	Owner   event.Owner
	At      time.Time     // the clock's start
	For     time.Duration // how far the clock goes; 0: until nothing waits
	Given   []Given       // in the order in which they are published
	Answers map[string][]Answer
	Expect  []Expect      // of subscriptions
	Topics  []TopicExpect // of what subscriptions put into topics
	Reply   *ReplyExpect  // nil: none is asked for
}

// Given is events for a topic.
type Given struct {
	Topic  string
	After  time.Duration // since the clock's start
	Events []event.Event // published together; those without an id have none yet
	File   string        // of recorded events instead, as a path; nobody has read it
	Owner  event.Owner

	Refused bool // publishing it must fail, as by the topic's schema
}

// Answer is what a receiver says to one attempt.
type Answer struct {
	Status     int
	Timeout    bool          // it says nothing
	RetryAfter time.Duration // 0: it does not say
	Body       []byte        // nil: none
	JSON       bool          // Body is
}

// Expect is what is expected of one subscription; nil and zero members are not looked at.
type Expect struct {
	Subscription string
	Delivered    *Events
	DeadLetters  *Events
	Attempts     *Attempts
	Disabled     *bool
	Owner        event.Owner
}

// TopicExpect is what is expected in a topic, besides what the test itself published.
type TopicExpect struct {
	Topic string
	Events
	Owner event.Owner
}

// Events are expected: so many, or just these.
type Events struct {
	Count   int           // if List is nil
	List    []WantedEvent // one each, in any order
	InOrder bool          // in this one
	Exact   bool          // data has nothing that the list does not name
}

// WantedEvent is what an event must have. What is not named may be anything.
type WantedEvent struct {
	Attributes map[string]string // by the names of filters: id, key, ext.region…; reason and code of dead letters
	Data       json.RawMessage   // nil: not looked at
	Source     json.RawMessage   // as written
}

// Attempts are the requests that a subscription's receiver got: so many, or just these, in order.
type Attempts struct {
	Count int // if List is nil
	List  []Attempt
}

// Attempt is one request.
type Attempt struct {
	After  time.Duration // since the clock's start; negative: not looked at
	Answer string        // "503", "timeout"; "": not looked at
	Events int           // in it; 0: not looked at
}

// ReplyExpect is the reply that the producer of the one event given must get.
type ReplyExpect struct {
	None   bool
	Status int // 0: not looked at
	Data   json.RawMessage
	Exact  bool
}

// Bounds of tests.
const (
	maxTests  = 10_000
	maxFor    = 366 * 24 * time.Hour
	maxExpect = 10_000 // events that a test can give or name
)

// testStart is when a test's clock starts unless it says so.
var testStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var (
	testShape       = shape{keys: []string{"name", "at", "for", "given", "answers", "expect", "topics", "reply"}}
	givenShape      = shape{keys: []string{"topic", "after", "event", "events", "refused"}}
	eventKeys       = []string{"id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "key", "ext", "data"}
	eventShape      = shape{keys: eventKeys}
	deadLetterShape = shape{keys: append(slices.Clone(eventKeys), "reason", "code")}
	answerShape     = shape{keys: []string{"status", "retryAfter", "body"}}
	expectShape     = shape{keys: []string{"delivered", "inOrder", "exact", "attempts", "deadLetters", "disabled"}}
	attemptShape    = shape{keys: []string{"after", "answer", "events"}}
	replyShape      = shape{keys: []string{"status", "data", "exact"}}
)

// testDef is a test with the places of what it names.
type testDef struct {
	Test
	subscriptions, topics []*node // whose text is a name
}

// tests reads a file's tests.
func (p *parser) tests(n *node) {
	if n == nil || n.kind == null {
		return
	}
	if n.kind != list {
		p.bad(n, "is %s; want a list of tests, such as [{name: …, given: …, expect: …}]", n.kind)
		return
	}
	for _, item := range n.items {
		if len(p.testDefs) == maxTests {
			p.bad(item, "is one test too many; at most %d are allowed", maxTests)
			return
		}
		if d := p.test(item); d != nil {
			p.testDefs = append(p.testDefs, d)
		}
	}
}

func (p *parser) test(n *node) *testDef {
	f, ok := p.fields(n, testShape)
	if !ok {
		return nil
	}
	d := &testDef{Test: Test{At: testStart, Owner: p.owner(n)}}
	if v := f["name"]; v == nil {
		p.missing(n, "name", "a sentence that says what is expected")
	} else if name, ok := p.line(v, 200); ok {
		if first := p.testNames[name]; first != nil {
			p.bad(v, "test %s is there twice: here and at %s; names tell tests apart", quote(name), first.place())
		}
		p.testNames[name] = v
		d.Name = name
	}
	if v := f["at"]; v != nil {
		if s, ok := p.literal(v); ok {
			at, err := event.ParseTime(s)
			if err != nil {
				p.bad(v, "%v", err)
			} else if at.Year() < 1971 || at.Year() > 2200 { // the engine counts ns since 1970 in 64 bits
				p.bad(v, "is %s; want a year from 1971 to 2200", v.shown())
			}
			d.At = at
		}
	}
	if v := f["for"]; v != nil {
		d.For, _ = p.duration(v, time.Millisecond, maxFor)
	}
	if v := f["given"]; v == nil && d.For > 0 { // schedules publish by themselves
	} else if v == nil {
		p.missing(n, "given", "such as {topic: orders, event: {type: order.created, data: {total: 250}}}")
	} else {
		d.given(p, v)
	}
	if v := f["answers"]; v != nil {
		d.answers(p, v)
	}
	d.expectations(p, n, f)
	return d
}

// eachOf calls fn with the keys and values of a mapping.
func (p *parser) eachOf(n *node, want string, fn func(key, value *node)) {
	if n.kind != mapping {
		p.bad(n, "is %s; want a mapping from %s", n.kind, want)
		return
	}
	for i, key := range n.keys {
		if v := n.items[i]; v.kind == null {
			p.bad(v, "is empty; give it a value, or remove the key")
		} else {
			fn(key, v)
		}
	}
}

// literal is a scalar's text as it stands: in tests nothing is expanded.
func (p *parser) literal(n *node) (string, bool) {
	if n.kind != scalar {
		p.bad(n, "is %s; want a single value", n.kind)
		return "", false
	}
	return n.raw, true
}

// line is a text of one line that is not empty.
func (p *parser) line(n *node, most int) (string, bool) {
	s, ok := p.literal(n)
	if !ok {
		return "", false
	}
	if s == "" || len(s) > most || strings.ContainsAny(s, "\r\n") {
		p.bad(n, "is %s; want one line of 1 to %d bytes", n.shown(), most)
		return "", false
	}
	return s, true
}

// given reads what is published: one or several.
func (d *testDef) given(p *parser, n *node) {
	items := []*node{n}
	if n.kind == list {
		items = n.items
		if len(items) == 0 {
			p.bad(n, "is an empty list; give an event")
		}
	}
	for _, item := range items {
		f, ok := p.fields(item, givenShape)
		if !ok {
			continue
		}
		g := Given{Owner: p.owner(item)}
		if v := f["topic"]; v == nil {
			p.missing(item, "topic", "the name of a topic")
		} else if name, ok := p.literal(v); ok {
			g.Topic = name
			d.topics = append(d.topics, v)
		}
		if v := f["after"]; v != nil {
			g.After, _ = p.duration(v, 0, maxFor)
		}
		if v := f["refused"]; v != nil {
			g.Refused, _ = p.boolean(v)
		}
		g.events(p, item, f)
		d.Given = append(d.Given, g)
	}
	slices.SortStableFunc(d.Given, func(a, b Given) int { return int(min(max(a.After-b.After, -1), 1)) })
}

func (g *Given) events(p *parser, n *node, f map[string]*node) {
	one, several := f["event"], f["events"]
	switch {
	case one == nil && several == nil:
		p.missing(n, "event", "such as {type: order.created, data: {total: 250}}")
	case one != nil && several != nil:
		p.bad(several, "stands beside event; keep one of them")
	case one != nil:
		g.Events = append(g.Events, p.givenEvent(one))
	case several.kind == list:
		if len(several.items) > maxExpect {
			p.bad(several, "has %d events; at most %d are allowed: put them into a file, and name that", len(several.items), maxExpect)
			return
		}
		for _, item := range several.items {
			g.Events = append(g.Events, p.givenEvent(item))
		}
	case several.kind == scalar:
		if path, ok := p.line(several, 4096); ok {
			g.File = filepath.Join(several.src.dir, path)
			if filepath.IsAbs(path) {
				g.File = path
			}
		}
	default:
		p.bad(several, "is %s; want a list of events, or the path of a file with one a line", several.kind)
	}
}

// givenEvent reads an event as tests write it.
func (p *parser) givenEvent(n *node) event.Event {
	var ev event.Event
	f, ok := p.fields(n, eventShape)
	if !ok {
		return ev
	}
	for _, a := range []struct {
		key string
		to  *string
	}{{"id", &ev.ID}, {"source", &ev.Source}, {"type", &ev.Type}, {"subject", &ev.Subject}, {"time", &ev.Time},
		{"datacontenttype", &ev.DataContentType}, {"dataschema", &ev.DataSchema}, {"key", &ev.PartitionKey}} {
		if v := f[a.key]; v != nil {
			*a.to, _ = p.literal(v)
		}
	}
	ev.ClientID = ev.ID != ""
	if v := f["ext"]; v != nil {
		p.eachOf(v, "names of extensions to their values, such as {region: eu}", func(key, v *node) {
			a := event.Attribute{Name: key.raw}
			a.Value, _ = p.literal(v)
			switch v.tag {
			case "!!int":
				a.Kind = event.Integer
			case "!!bool":
				a.Kind = event.Boolean
			}
			switch key.raw {
			case "partitionkey":
				p.fault(key, "the extension partitionkey is the event's key; write key: %s", v.shown())
			case "traceparent":
				ev.TraceParent = a.Value
			default:
				ev.Extensions = append(ev.Extensions, a)
			}
		})
	}
	if v := n.get("data"); v != nil {
		switch t := ev.DataContentType; {
		case v.kind == scalar && v.tag == "!!str" && t != "" && !isJSON(t):
			ev.Data = []byte(v.raw)
		default:
			ev.Data = plain(v).appendJSON(nil)
		}
	}
	check := ev // as the engine would fill it in
	for _, a := range []*string{&check.ID, &check.Source, &check.Type} {
		if *a == "" {
			*a = "x"
		}
	}
	if err := check.Validate(event.Limits{}.WithDefaults()); err != nil {
		p.foreign(n, err)
	}
	return ev
}

// isJSON reports whether a content type says JSON (RFC 6839 section 3.1).
func isJSON(contentType string) bool {
	t, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	t = strings.TrimSpace(t)
	return t == "application/json" || t == "text/json" || strings.HasSuffix(t, "+json")
}

// answers reads what receivers say.
func (d *testDef) answers(p *parser, n *node) {
	d.Answers = map[string][]Answer{}
	p.eachOf(n, "subscriptions to their receivers' answers, such as {hook: [503, 200]}", func(key, v *node) {
		d.subscriptions = append(d.subscriptions, key)
		items := []*node{v}
		if v.kind == list {
			items = v.items
			if len(items) == 0 {
				p.bad(v, "is an empty list; leave it out, and every attempt is answered 200")
			}
		}
		for _, item := range items {
			d.Answers[key.raw] = append(d.Answers[key.raw], p.answer(item))
		}
	})
}

func (p *parser) answer(n *node) (a Answer) {
	if n.kind == scalar {
		if n.raw == "timeout" {
			return Answer{Timeout: true}
		}
		status, _ := p.integer(n, 200, 599, "a status, timeout, or {status: 503, retryAfter: 10s}")
		return Answer{Status: int(status)}
	}
	f, ok := p.fields(n, answerShape)
	if !ok {
		return a
	}
	if v := f["status"]; v == nil {
		p.missing(n, "status", "such as 503")
	} else {
		status, _ := p.integer(v, 200, 599, "a status")
		a.Status = int(status)
	}
	if v := f["retryAfter"]; v != nil {
		a.RetryAfter, _ = p.duration(v, time.Second, 24*time.Hour)
	}
	if v := f["body"]; v != nil {
		if a.JSON = v.kind != scalar || v.tag != "!!str"; a.JSON {
			a.Body = plain(v).appendJSON(nil)
		} else {
			a.Body = []byte(v.raw)
		}
	}
	return a
}

// checkTests checks what tests name against what is defined.
func (p *parser) checkTests() {
	if len(p.testDefs) == 0 {
		return
	}
	subs := make([]string, 0, len(p.subscriptions))
	topics := map[string]bool{}
	for _, d := range p.topics {
		topics[d.Name] = true
	}
	for _, d := range p.subscriptions {
		subs = append(subs, d.Name)
		for _, name := range []string{d.Subscription.Topic, d.Deliver.Topic, d.DeadLetter} {
			topics[name] = true
		}
	}
	for _, d := range p.schedules {
		topics[d.Topic] = true
	}
	for _, d := range p.hooks {
		topics[d.Topic] = true
	}
	delete(topics, "")
	slices.Sort(subs)
	known := nameSet(subs)
	names := make([]string, 0, len(topics))
	for name := range topics {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, d := range p.testDefs {
		for _, n := range d.subscriptions {
			if !known[n.raw] {
				p.bad(n, "no subscription %s is defined%s", quote(n.raw), suggest(n.raw, subs))
			}
		}
		for _, n := range d.topics {
			if !topics[n.raw] {
				p.bad(n, "no topic %s is defined%s", quote(n.raw), suggest(n.raw, names))
			}
		}
	}
}
