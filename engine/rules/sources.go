package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
)

// Source is a source's definition with its defaults, ready to take webhooks in.
type Source struct {
	event.Source
	Verifier event.Verifier // nil where a value is not known: see Options.Unresolved
	// Fill sets the attributes that expressions say of an event. It is safe for concurrent use.
	Fill      func(h *event.Hook, ev *event.Event) error
	Effective json.RawMessage // with all defaults
	source    *doc
	effective *doc
	hidden    hiddenValues
}

// SchemeKind reads one kind of verification: what may stand under verify by its name. SchemeOf makes it.
type SchemeKind struct {
	options  reflect.Type
	defaults reflect.Value
	about    string
	read     func(p *parser, n *node) (event.Verifier, *doc)
}

// SchemeOf makes a SchemeKind of a scheme's options and the function that makes its verifier, in the way of SinkOf. about
// says whom it is for.
func SchemeOf[O any](about string, open func(o O) (event.Verifier, error)) SchemeKind {
	var zero O
	defaults := zero
	if v, ok := any(&zero).(interface{ WithDefaults() O }); ok {
		defaults = v.WithDefaults()
	}
	return SchemeKind{options: reflect.TypeFor[O](), defaults: reflect.ValueOf(defaults), about: about, read: func(p *parser, n *node) (event.Verifier, *doc) {
		o, effective, known := readOptions[O](p, n)
		if !known {
			return nil, effective
		}
		v, err := open(o)
		if err != nil {
			p.foreign(n, err)
			return nil, effective
		}
		return v, effective
	}}
}

var sourceShape = shape{keys: []string{"topic", "verify", "url", "type", "subject", "key", "id", "time", "extensions", "form", "repeats", "origins"}}

// Bounds of a source.
const (
	maxExtensions = 32
	maxOrigins    = 100
)

// source reads one entry of `sources`.
func (p *parser) source(name string, key, n *node) Source {
	s := Source{Source: event.Source{Name: name, Owner: p.owner(key)}}
	f, ok := p.fields(n, sourceShape)
	if !ok {
		s.source = mask(n)
		return s
	}
	if v := f["topic"]; v != nil {
		s.Topic, _ = p.name(v, "topic")
	}
	p.missing(n, "topic", "the topic that its events go into")
	var options *doc
	if v := f["verify"]; v != nil {
		s.Verifier, options = p.verify(&s.Source, v)
	} else {
		p.missing(n, "verify", "how its webhooks are verified: one of "+strings.Join(p.schemes(), ", ")+"; none has to be said")
	}
	if v := f["url"]; v != nil {
		s.URL = p.publicURL(v)
	}
	provided := event.Provided{}
	if s.Verifier != nil {
		provided = s.Verifier.Provides()
	}
	expressions := p.expressions(&s, f, provided)
	if v := f["extensions"]; v != nil {
		p.extensions(&s.Source, v)
	}
	if v := f["form"]; v != nil {
		text, ok := p.str(v)
		if s.RawForm = text == "raw"; ok && !s.RawForm && text != "json" {
			p.bad(v, "is %s%s", v.shown(), suggest(text, []string{"json", "raw"}))
		}
	}
	if v := f["repeats"]; v != nil {
		text, ok := p.str(v)
		if s.ByID = text == "id"; ok && !s.ByID && text != "both" {
			p.bad(v, "is %s%s", v.shown(), suggest(text, []string{"both", "id"}))
		}
	}
	if v := f["origins"]; v != nil {
		s.Origins = p.texts(v, maxOrigins, "a sender's name as it says it in WebHook-Request-Origin, or \"*\"")
	}
	s.source, s.hidden = mask(n), p.hiddenOf(n) // by now it is known which values are references
	s.effective = effectiveSource(s.Source, options, expressions).over(s.source)
	s.Effective = s.effective.named(name)
	return s
}

// schemes are the names that may stand under verify.
func (p *parser) schemes() []string { return slices.Sorted(maps.Keys(p.o.Schemes)) }

// verify reads a scheme: its name alone where it has no options, else a mapping with one key.
func (p *parser) verify(s *event.Source, n *node) (event.Verifier, *doc) {
	key, v := n, n
	switch {
	case n.kind == scalar:
		empty := *n
		empty.kind, empty.raw = mapping, ""
		v = &empty
	case n.kind == mapping && len(n.keys) == 1:
		key, v = n.keys[0], n.items[0]
		if v.kind == null {
			empty := *v
			empty.kind = mapping
			v = &empty
		}
	default:
		what := n.kind.String()
		if n.kind == mapping {
			what = strconv.Itoa(len(n.keys)) + " schemes"
		}
		p.bad(n, "is %s; want exactly one of %s, such as {github: {secret: \"${env:NAME}\"}}", what, strings.Join(p.schemes(), ", "))
		return nil, nil
	}
	kind, ok := p.o.Schemes[key.raw]
	if !ok {
		p.fault(p.keyed(key, v), "unknown scheme %s%s", quote(key.raw), suggest(key.raw, p.schemes()))
		return nil, nil
	}
	s.Scheme = key.raw
	verifier, options := kind.read(p, v)
	if verifier != nil && verifier.Provides().Function != "" {
		at, _ := v.at("name")
		p.hookFunctions = append(p.hookFunctions, at)
	}
	return verifier, options
}

// checkHookFunctions refuses to verify by functions that there are not.
func (p *parser) checkHookFunctions(known map[string]bool) {
	if p.partial {
		return
	}
	for _, n := range p.hookFunctions {
		if s, ok := p.text(n); ok && !known[s] {
			p.bad(n, "unknown function %s%s", n.shown(), suggest(s, slices.Sorted(maps.Keys(known))))
		}
	}
}

// publicURL is what the sender calls, without a query: that is the request's.
func (p *parser) publicURL(n *node) string {
	s, ok := p.str(n)
	if !ok {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(s, "?#") {
		p.bad(n, "is %s; want the URL that the sender calls, without a query, such as https://hooks.example.com/v1/sources/sms", n.shown())
	}
	return s
}

// texts reads a list of single values.
func (p *parser) texts(n *node, most int, want string) (all []string) {
	if n.kind != list {
		p.bad(n, "is %s; want a list", n.kind)
		return nil
	}
	if len(n.items) > most {
		p.bad(n, "has %d values; at most %d are allowed", len(n.items), most)
		return nil
	}
	for _, item := range n.items {
		s, ok := p.str(item)
		switch {
		case ok && s == "":
			p.bad(item, "is empty; want %s", want)
		case ok:
			all = append(all, s)
		}
	}
	return all
}

// extensions reads the names of headers that are kept.
func (p *parser) extensions(s *event.Source, n *node) {
	names := p.texts(n, maxExtensions, "the name of a header, such as x-request-id")
	ev := event.Event{ID: "a", Source: "/a", Type: "a"}
	for _, name := range names {
		name = strings.ToLower(name)
		s.Headers = append(s.Headers, name)
		ev.Extensions = append(ev.Extensions, event.Attribute{Name: event.ExtensionName(name), Value: "a"})
	}
	if err := ev.Validate(event.Limits{}); err != nil {
		var f *event.Faults
		if errors.As(err, &f) {
			p.bad(n, "%s: %s; a header is kept under its letters and digits, such as xrequestid for x-request-id", quote(f.List[0].At), f.List[0].Detail)
		}
	}
}

// expressions compiles those that rules give and those of the scheme, and returns them in the order of
// event.Provided.Expressions.
func (p *parser) expressions(s *Source, f map[string]*node, provided event.Provided) (shown [5]string) {
	var texts [5]*filters.Text
	for i, x := range provided.Expressions() {
		v := f[x.Key]
		if shown[i] = x.Text; v != nil {
			text, ok := p.str(v)
			if !ok {
				continue
			}
			shown[i] = text
			texts[i] = p.expression(v, text)
		} else if x.Text != "" {
			t, err := filters.CompileText(x.Text)
			if err != nil { // a test compiles those of all schemes
				p.badAt(f["verify"], "", "the scheme's own %s is broken: %v", x.Key, err)
			}
			texts[i] = t
		}
	}
	fill := &filler{texts: texts}
	for i, t := range texts {
		if t != nil {
			fill.headers[i] = t.Headers()
		}
	}
	s.Fill = fill.fill
	return shown
}

func (p *parser) expression(n *node, text string) *filters.Text {
	t, err := filters.CompileText(text)
	var bad *filters.Error
	switch {
	case errors.As(err, &bad) && n.src.name != "":
		p.bad(p.within(n, offset(text, bad.Line, bad.Column)), "%s", bad.Detail)
	case err != nil:
		p.bad(n, "%v", err)
	}
	if err != nil {
		return nil
	}
	return t
}

// filler computes the attributes of events.
type filler struct {
	texts     [5]*filters.Text
	headers   [5][]string // that they read
	scratches sync.Pool   // of *filters.Scratch
}

func (f *filler) fill(h *event.Hook, ev *event.Event) error {
	s, _ := f.scratches.Get().(*filters.Scratch)
	if s == nil {
		s = new(filters.Scratch)
	}
	defer f.scratches.Put(s)
	for i, to := range [...]*string{&ev.Type, &ev.Subject, &ev.PartitionKey, &ev.ID, &ev.Time} {
		if f.texts[i] == nil {
			continue
		}
		for _, name := range f.headers[i] {
			if _, n := h.Header(name); n > 1 {
				return event.Invalid(name, fmt.Sprintf("the header is there %d times; want one, which the event's attributes are read from", n))
			}
		}
		if text, ok := f.texts[i].Of(h, s); ok {
			*to = strings.Clone(text) // s is used again
		}
	}
	return nil
}

func effectiveSource(s event.Source, options *doc, expressions [5]string) *doc {
	d := &doc{kind: mapping}
	d.set("topic", text(s.Topic))
	verify := &doc{kind: mapping}
	if options == nil {
		options = &doc{kind: mapping}
	}
	verify.set(s.Scheme, options)
	d.set("verify", verify)
	if s.URL != "" {
		d.set("url", text(s.URL))
	}
	for i, x := range (event.Provided{}).Expressions() {
		if expressions[i] != "" {
			d.set(x.Key, text(expressions[i]))
		}
	}
	form := "json"
	if s.RawForm {
		form = "raw"
	}
	d.set("form", text(form))
	repeats := "both"
	if s.ByID {
		repeats = "id"
	}
	d.set("repeats", text(repeats))
	for _, x := range []struct {
		key    string
		values []string
	}{{"extensions", s.Headers}, {"origins", s.Origins}} {
		if len(x.values) > 0 {
			all := &doc{kind: list}
			for _, v := range x.values {
				all.items = append(all.items, text(v))
			}
			d.set(x.key, all)
		}
	}
	return d
}

// describeSources is what the keys of sources mean, and the options of the schemes that a program has.
func describeSources(schemes map[string]SchemeKind) []described {
	expression := func(about string) keyDoc {
		return keyDoc{is: plainText("expression"), about: about + " `headers[\"x-name\"]`, `query[\"name\"]` and `data.path` are there, with the operators of filters.", absent: "the scheme's own, if it has one"}
	}
	verify := described{name: "verify", at: "sources.NAME.verify", one: true, about: "Exactly one scheme.", keys: map[string]keyDoc{}}
	var options []described
	for _, name := range slices.Sorted(maps.Keys(schemes)) {
		kind := schemes[name]
		verify.shape.keys = append(verify.shape.keys, name)
		verify.keys[name] = keyDoc{is: mappingNamed("verify-" + name), about: kind.about}
		options = describeStruct(options, "verify-"+name, verify.at+"."+name, kind.about, kind.options, kind.defaults)
	}
	source := described{name: "source", at: "sources.NAME", shape: sourceShape, about: "A sender whose webhooks, posted to `/v1/sources/NAME`, become events of a topic once they are verified. See [sources](sources.md).", keys: map[string]keyDoc{
		"topic":      {is: nameType(), about: "That the events go into. One that nothing else names is made with defaults.", must: true},
		"verify":     {is: either(mappingNamed("verify"), oneOf("none")), about: "How webhooks are verified; `none` for not at all.", must: true},
		"url":        {is: plainText("URL"), about: "What the sender calls, without a query, where that is signed and a proxy changes it.", absent: "that of the request"},
		"type":       expression("Of the event."),
		"subject":    expression("Of the event."),
		"key":        expression("The event's partitionkey."),
		"id":         expression("Of the event: a repeat is told by it, and by what was signed. Without one it is made of the signature."),
		"time":       expression("Of the event: RFC 3339, or seconds or milliseconds since 1970."),
		"extensions": {is: listOf(plainText("header")), about: "Headers that the event keeps, as extensions named by their letters and digits.", absent: "none"},
		"form":       {is: oneOf("json", "raw"), about: "What becomes of a form: a JSON object, or its text.", absent: "`json`", std: "json"},
		"repeats":    {is: oneOf("both", "id"), about: "What tells a repeat: the id and what was signed, or the id alone, for senders who sign the same for different webhooks.", absent: "`both`", std: "both"},
		"origins":    {is: listOf(plainText("name")), about: "CloudEvents senders that are told, when they ask by OPTIONS, that they may deliver; `*` is all.", absent: "none"},
	}}
	return append([]described{source, verify}, options...)
}
