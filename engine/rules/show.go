package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/engine/event"
)

// doc is a document to show: ordered, without secrets, for JSON and YAML alike.
type doc struct {
	kind  kind
	tag   string // scalar
	text  string
	keep  bool // it is, or has in it, a reference or something hidden: a default must not stand for it
	keys  []string
	items []*doc
}

func (d *doc) get(key string) *doc {
	if d == nil {
		return nil
	}
	if i := slices.Index(d.keys, key); i >= 0 {
		return d.items[i]
	}
	return nil
}

// index is where each key is: for documents that may have many.
func (d *doc) index() map[string]int {
	at := make(map[string]int, len(d.keys))
	for i, key := range d.keys {
		at[key] = i
	}
	return at
}

func (d *doc) set(key string, v *doc) { d.keys, d.items = append(d.keys, key), append(d.items, v) }

func (d *doc) sort() { sort.Sort((*byKey)(d)) }

type byKey doc

func (d *byKey) Len() int           { return len(d.keys) }
func (d *byKey) Less(i, j int) bool { return d.keys[i] < d.keys[j] }
func (d *byKey) Swap(i, j int) {
	d.keys[i], d.keys[j] = d.keys[j], d.keys[i]
	d.items[i], d.items[j] = d.items[j], d.items[i]
}

const hidden = "***"

func text(s string) *doc { return &doc{kind: scalar, tag: "!!str", text: s} }

func number(n int64) *doc { return &doc{kind: scalar, tag: "!!int", text: strconv.FormatInt(n, 10)} }

func float(f float64) *doc {
	return &doc{kind: scalar, tag: "!!float", text: strconv.FormatFloat(f, 'g', -1, 64)}
}

func size(n int64) *doc {
	if s := formatSize(n); s[len(s)-1] == 'B' {
		return text(s)
	}
	return number(n)
}

// isURL tells a URL from a text that only has one in it, such as a filter.
var isURL = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)

func looksLikeURL(s string) bool { return strings.Contains(s, "://") && isURL.MatchString(s) }

// shownText is a text without what is secret in it: all of it, or a URL's password and query.
func shownText(s string, secret bool) *doc {
	if secret && s != "" {
		return &doc{kind: scalar, tag: "!!str", text: hidden, keep: true}
	}
	if !looksLikeURL(s) {
		return text(s)
	}
	switch u, err := url.Parse(s); {
	case err != nil:
		s = hidden // a password may be what it stumbled over
	case u.User != nil || u.RawQuery != "":
		if u.User != nil {
			u.User = url.User("USER")
		}
		if u.RawQuery != "" {
			u.RawQuery = hidden
		}
		s = strings.Replace(u.String(), "USER@", hidden+"@", 1)
	default:
		return text(s)
	}
	d := text(s)
	d.keep = true
	return d
}

// besideReferences is a text that has references, which stay, without what is secret in what is written beside them: all
// of it, or a URL's user and query.
func besideReferences(raw string, secret bool) string {
	if secret && !onlyReferences(raw) {
		return hidden
	}
	if !looksLikeURL(raw) && !restOfURL(raw) {
		return raw
	}
	target, query, _ := strings.Cut(raw, "?")
	_, rest, _ := strings.Cut(target, "://") // without a scheme: the reference has the authority
	if authority, _, _ := strings.Cut(rest, "/"); strings.Contains(reference.ReplaceAllString(authority, ""), "@") {
		return hidden
	}
	for part := range strings.SplitSeq(query, "&") {
		if _, value, _ := strings.Cut(part, "="); reference.ReplaceAllString(value, "") != "" || !strings.Contains(part, "=") && part != "" && reference.ReplaceAllString(part, "") != "" {
			return target + "?" + hidden
		}
	}
	return raw
}

// restOfURL tells the end of a URL whose beginning is a reference.
func restOfURL(raw string) bool {
	return strings.HasPrefix(raw, "${") && strings.Contains(raw, "?") && !strings.Contains(raw, " ")
}

// plain shows a node as it was written.
func plain(n *node) *doc { return toDoc(n, false, false) }

// mask shows a node as it was written, without literal secrets.
func mask(n *node) *doc { return toDoc(n, true, false) }

func toDoc(n *node, masked, secret bool) *doc {
	d := &doc{kind: n.kind}
	switch {
	case n.kind == scalar && n.refs:
		d.tag, d.text, d.keep = "!!str", n.raw, true
		if masked {
			d.text = besideReferences(n.raw, secret)
		}
	case n.kind == scalar && masked && (secret || n.tag == "!!str"):
		d = shownText(n.raw, secret)
	case n.kind == scalar:
		d.tag, d.text = n.tag, n.raw
	}
	for i, item := range n.items {
		key := ""
		if n.kind == mapping {
			key = n.keys[i].raw
			d.keys = append(d.keys, key)
		}
		child := toDoc(item, masked, secret || secretKey(key))
		d.keep = d.keep || child.keep
		d.items = append(d.items, child)
	}
	return d
}

// over puts what source has of references in the place of values.
func (d *doc) over(source *doc) *doc {
	if source == nil || !source.keep {
		return d
	}
	if d == nil || d.kind != mapping || source.kind != mapping {
		return source
	}
	out := &doc{kind: mapping, keep: true}
	at := source.index()
	for i, key := range d.keys {
		var with *doc
		if j, ok := at[key]; ok {
			with = source.items[j]
		}
		out.set(key, d.items[i].over(with))
	}
	return out
}

// named is the definition as the API shows it.
func (d *doc) named(name string) json.RawMessage {
	out := &doc{kind: mapping}
	out.set("name", text(name))
	if d != nil {
		out.keys, out.items = append(out.keys, d.keys...), append(out.items, d.items...)
	}
	return out.appendJSON(make([]byte, 0, 512))
}

func (d *doc) appendJSON(b []byte) []byte {
	switch d.kind {
	case scalar:
		if d.tag == "!!str" {
			return appendString(b, d.text)
		}
		return append(b, d.scalarJSON()...)
	case list:
		b = append(b, '[')
		for i, item := range d.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = item.appendJSON(b)
		}
		return append(b, ']')
	case mapping:
		b = append(b, '{')
		for i, item := range d.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, d.keys[i]), ':')
			b = item.appendJSON(b)
		}
		return append(b, '}')
	}
	return append(b, "null"...)
}

func (d *doc) scalarJSON() []byte {
	switch d.tag {
	case "!!bool":
		if v, err := strconv.ParseBool(strings.ToLower(d.text)); err == nil {
			return strconv.AppendBool(nil, v)
		}
	case "!!int", "!!float":
		if json.Valid([]byte(d.text)) { // exact, whatever its length
			return []byte(d.text)
		}
		if v, err := strconv.ParseInt(strings.ReplaceAll(d.text, "_", ""), 0, 64); err == nil {
			return strconv.AppendInt(nil, v, 10)
		}
		if v, err := strconv.ParseFloat(d.text, 64); err == nil {
			if b, err := json.Marshal(v); err == nil {
				return b
			}
		}
	}
	return jsonString(d.text)
}

// appendString is jsonString without a copy for what needs no escapes, as nearly everything in rules.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7F || c == '"' || c == '\\' {
			return append(b, jsonString(s)...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

func jsonString(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil { // a string cannot fail
		return []byte(`""`)
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

func (d *doc) yaml() *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: d.tag, Value: d.text}
	switch d.kind {
	case null:
		n.Tag, n.Value = "!!null", "null"
	case list:
		n.Kind, n.Tag, n.Style = yaml.SequenceNode, "!!seq", yaml.FlowStyle
		for _, item := range d.items {
			if item.kind == mapping || item.kind == scalar && len(item.text) > 40 {
				n.Style = 0
			}
			n.Content = append(n.Content, item.yaml())
		}
	case mapping:
		n.Kind, n.Tag = yaml.MappingNode, "!!map"
		if len(d.items) == 0 {
			n.Style = yaml.FlowStyle
		}
		for i, item := range d.items {
			n.Content = append(n.Content, (&yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: d.keys[i]}), item.yaml())
		}
	}
	return n
}

// ShowTopic is a topic's definition with all defaults as the API shows it: for topics that no Set has.
func ShowTopic(t event.Topic) json.RawMessage {
	source := &doc{kind: mapping}
	if t.Schema != nil {
		if n, err := readDoc(t.Schema); err == nil {
			source.set("schema", plain(n))
		}
	}
	return effectiveTopic(t.WithDefaults(), source).named(t.Name)
}

func (s *Set) doc(effective bool) *doc {
	d := &doc{kind: mapping}
	d.set("version", number(1))
	section := func(name string, n int, each func(i int) (name string, made bool, source, effective *doc)) {
		part := &doc{kind: mapping}
		for i := range n {
			name, made, src, eff := each(i)
			switch {
			case effective:
				part.set(name, eff)
			case !made:
				part.set(name, src)
			}
		}
		if len(part.keys) > 0 {
			d.set(name, part)
		}
	}
	section("topics", len(s.Topics), func(i int) (string, bool, *doc, *doc) {
		t := &s.Topics[i]
		return t.Name, t.made, t.source, t.effective
	})
	section("functions", len(s.Functions), func(i int) (string, bool, *doc, *doc) {
		f := &s.Functions[i]
		return f.Name, false, f.source, f.effective
	})
	section("subscriptions", len(s.Subscriptions), func(i int) (string, bool, *doc, *doc) {
		x := &s.Subscriptions[i]
		return x.Name, false, x.source, x.effective
	})
	section("hosts", len(s.Hosts), func(i int) (string, bool, *doc, *doc) {
		h := &s.Hosts[i]
		return h.Name, false, h.source, h.effective
	})
	section("schedules", len(s.Schedules), func(i int) (string, bool, *doc, *doc) {
		x := &s.Schedules[i]
		return x.Name, false, x.source, x.effective
	})
	section("sources", len(s.Hooks), func(i int) (string, bool, *doc, *doc) {
		x := &s.Hooks[i]
		return x.Name, false, x.source, x.effective
	})
	section("mqtt", len(s.MQTT), func(i int) (string, bool, *doc, *doc) {
		x := &s.MQTT[i]
		return x.Filter, false, x.source, x.effective
	})
	section("bridges", len(s.Bridges), func(i int) (string, bool, *doc, *doc) {
		x := &s.Bridges[i]
		return x.Name, false, x.source, x.effective
	})
	return d
}

// Show prints the rules as YAML without their comments: as they were written, or with everything that is
// implied and by default. References stay references, literal secrets are "***".
func (s *Set) Show(effective bool) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(s.doc(effective).yaml()); err != nil {
		return nil, fmt.Errorf("show rules: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("show rules: %w", err)
	}
	return b.Bytes(), nil
}

// HostsJSON is the limits of hosts with their defaults.
func (s *Set) HostsJSON() json.RawMessage {
	d := &doc{kind: mapping}
	for i := range s.Hosts {
		d.set(s.Hosts[i].Name, s.Hosts[i].effective)
	}
	return d.appendJSON(nil)
}

// JSON is Show in JSON, key for key.
func (s *Set) JSON(effective bool) json.RawMessage { return s.doc(effective).appendJSON(nil) }
