package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	maxDepth = 64        // of lists and mappings in one another
	maxNodes = 200_000   // of one document of the API, and of what a file's aliases stand for: an alias of aliases is a bomb
	maxTexts = 1_000_000 // values that a file spells out
	maxMarks = 2_000_000 // of what separates values, counted before YAML's parser makes a node of each
)

type kind uint8

const (
	null kind = iota
	scalar
	list
	mapping
)

func (k kind) String() string {
	return [...]string{"empty", "a single value", "a list", "a mapping"}[k]
}

// source is one text that is read.
type source struct {
	name, dir string
	text      []byte
	lines     [][]byte // made when first asked for
	root      *node    // nil where the text was not understood
	veil      *veil    // made when first asked for
}

// node is a value of a rules file or a document of the API: YAML and JSON look alike from here on.
type node struct {
	kind      kind
	src       *source
	line, col int // from 1, in characters; 0 in JSON
	path      string
	tag       string // scalar: !!str, !!int…
	style     yaml.Style
	raw       string  // scalar: as written
	keys      []*node // mapping
	items     []*node // list: elements; mapping: values

	text  string // scalar: with references replaced, once expanded
	state uint8  // of text
	refs  bool   // raw has references
}

// get returns the value of a key, nil if there is none.
func (n *node) get(key string) *node {
	for i, k := range n.keys {
		if k.raw == key {
			return n.items[i]
		}
	}
	return nil
}

// at returns the deepest node that there is at a path such as "secrets[0]", and what of the path is left.
func (n *node) at(path string) (*node, string) {
	for path != "" {
		if strings.HasPrefix(path, "[") {
			num, rest, ok := strings.Cut(path[1:], "]")
			i, err := strconv.Atoi(num)
			if !ok || err != nil || n.kind != list || i < 0 || i >= len(n.items) {
				return n, path
			}
			n, path = n.items[i], strings.TrimPrefix(rest, ".")
			continue
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		child := n.get(path[:end])
		if child == nil {
			if child = n.get(path); child == nil { // a key with a dot in it
				return n, path
			}
			end = len(path)
		}
		n, path = child, strings.TrimPrefix(path[end:], ".")
	}
	return n, ""
}

func join(path, key string) string {
	for i := 0; i < len(key); i++ {
		if c := key[i]; c <= ' ' || c >= 0x7F || len(key) > 249 {
			key = quote(key)
			break
		}
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// read parses a source into a tree; nil once a fault was reported. JSON, which a document of the API
// mostly is, has a reader of its own: YAML reads neither its surrogate pairs nor its tabs.
func (p *parser) read(src *source) *node {
	top := &node{src: src, line: 1, col: 1}
	if src.name == "" {
		top.line, top.col = 0, 0
	}
	limit := maxFile
	if p.api {
		limit = maxSource
	}
	if len(src.text) > limit {
		p.fault(top, "the file has %d bytes; at most %d are allowed", len(src.text), limit)
		return nil
	}
	marks := 0
	for _, mark := range []string{"\n", ",", ":", "[", "{", "- "} {
		marks += bytes.Count(src.text, []byte(mark))
	}
	if marks > maxMarks {
		p.fault(top, "the file has over %d lines, commas, colons and brackets; split it", maxMarks)
		return nil
	}
	if !utf8.Valid(src.text) {
		line, col := 1, 1
		for i := 0; i < len(src.text); {
			r, w := utf8.DecodeRune(src.text[i:])
			if r == utf8.RuneError && w == 1 {
				break
			}
			i, col = i+w, col+1
			if r == '\n' {
				line, col = line+1, 1
			}
		}
		top.line, top.col = line, col
		p.fault(top, "this is not UTF-8; rules are")
		return nil
	}
	if text := bytes.TrimLeft(src.text, " \t\r\n"); src.name == "" && len(text) > 0 && text[0] == '{' {
		return p.readJSON(src)
	}
	doc, next, err := decodeYAML(src.text)
	switch {
	case errors.Is(err, io.EOF) || err == nil && (doc.Kind != yaml.DocumentNode || len(doc.Content) == 0):
		p.fault(top, "there is nothing in it; rules have at least \"version: 1\"")
		return nil
	case err != nil:
		p.yamlFault(top, err)
		return nil
	case next != nil:
		top.line, top.col = next.Line, next.Column
		p.fault(top, "a second document (---) begins here; one file holds one: move it to a file of its own")
		return nil
	}
	c := converter{p: p, src: src}
	n := c.convert(doc.Content[0], "", 0)
	if c.failed {
		return nil
	}
	src.root = n
	return n
}

// decodeYAML returns the first document, and the second if there is one.
func decodeYAML(text []byte) (doc, next *yaml.Node, err error) {
	defer func() {
		// The package panics where it trusts its own scanner; what it was given is not to be trusted.
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: this cannot be read: %.100v", r)
		}
	}()
	d := yaml.NewDecoder(bytes.NewReader(text))
	doc = new(yaml.Node)
	if err := d.Decode(doc); err != nil {
		return nil, nil, err
	}
	second := new(yaml.Node)
	if err := d.Decode(second); err == nil {
		return doc, second, nil
	} else if !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	return doc, nil, nil
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?s:(.*))$`)

// yamlFault reports what the YAML parser says, with words for what people stumble over.
func (p *parser) yamlFault(top *node, err error) {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		p.fault(top, "%v", err)
		return
	}
	if line, err := strconv.Atoi(m[1]); err == nil {
		top.line = line
	}
	what := m[2]
	switch {
	case strings.Contains(what, "cannot start any token"):
		what += "; indent with spaces, not tabs, and quote values that begin with % @ ` or a tab"
	case strings.Contains(what, "mapping values are not allowed"):
		what += "; quote a value that has \": \" in it, and look at the indentation"
	case strings.Contains(what, "did not find expected"):
		what += "; look at the indentation, and quote ${…} inside { } and [ ]"
	}
	p.fault(top, "not YAML: %s", what)
}

// converter turns YAML's nodes into ours.
type converter struct {
	p      *parser
	src    *source
	nodes  int // spelled out
	again  int // that aliases stand for
	within int // aliases
	over   bool
	failed bool
}

// tooMany counts a value.
func (c *converter) tooMany() bool {
	if c.within > 0 {
		c.again++
	} else {
		c.nodes++
	}
	c.over = c.nodes > maxTexts || c.again > maxNodes
	return c.over
}

func (c *converter) fail(n *node, format string, args ...any) *node {
	c.failed = true
	c.p.fault(n, format, args...)
	return n
}

func (c *converter) convert(y *yaml.Node, path string, depth int) *node {
	n := &node{src: c.src, line: y.Line, col: y.Column, path: path, style: y.Style, tag: y.ShortTag(), raw: y.Value}
	if c.tooMany() {
		if !c.failed {
			c.fail(n, "the file has over %d values, or over %d that its aliases stand for; split it", maxTexts, maxNodes)
		}
		return n
	}
	if depth > maxDepth {
		return c.fail(n, "lists and mappings lie over %d deep in one another", maxDepth)
	}
	switch y.Kind {
	case yaml.AliasNode:
		c.within++
		n := c.convert(y.Alias, path, depth+1)
		c.within--
		return n
	case yaml.ScalarNode:
		switch n.tag {
		case "!!null":
			n.kind = null
		case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
			n.kind = scalar
		case "!!merge":
			n.kind, n.tag = scalar, "!!str"
		default:
			return c.fail(n, "the tag %s is not known here; leave it out", quote(n.tag))
		}
	case yaml.SequenceNode:
		n.kind = list
		for i, y := range y.Content {
			n.items = append(n.items, c.convert(y, path+"["+strconv.Itoa(i)+"]", depth+1))
			if c.failed && c.over {
				break
			}
		}
	case yaml.MappingNode:
		n.kind = mapping
		c.mapping(n, y, depth)
	}
	return n
}

func (c *converter) mapping(n *node, y *yaml.Node, depth int) {
	seen := make(map[string]*node, len(y.Content)/2)
	for i := 0; i+1 < len(y.Content); i += 2 {
		yk := y.Content[i]
		for hops := 0; yk.Kind == yaml.AliasNode && hops < maxDepth; hops++ {
			yk = yk.Alias
		}
		key := &node{kind: scalar, src: c.src, line: y.Content[i].Line, col: y.Content[i].Column, path: n.path, tag: "!!str", style: yk.Style, raw: yk.Value}
		switch {
		case yk.Kind != yaml.ScalarNode:
			c.fail(key, "a key is a single word, not a list or a mapping; quote it if it begins with [ or {")
			continue
		case yk.ShortTag() == "!!merge":
			c.fail(key, "merge keys (<<) are not read; write the keys out, or give a whole value an &anchor and name it with an *alias")
			continue
		}
		first := seen[key.raw]
		if first != nil && c.p.full(key) {
			c.p.count++
			continue
		}
		if first != nil {
			c.fail(key, "key %s is there twice: here and at %s", quote(key.raw), first.place())
			continue
		}
		seen[key.raw] = key
		n.keys = append(n.keys, key)
		n.items = append(n.items, c.convert(y.Content[i+1], join(n.path, key.raw), depth+1))
		if c.failed && c.over {
			return
		}
	}
}

// readJSON reads a document of the API.
func (p *parser) readJSON(src *source) *node {
	d := json.NewDecoder(bytes.NewReader(src.text))
	d.UseNumber()
	r := jsonReader{p: p, src: src, d: d}
	n, err := r.value("", 0)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the end of the document")
		}
	}
	if err != nil {
		p.fault(&node{src: src}, "not JSON, at byte %d: %v", d.InputOffset(), err)
	}
	if err != nil || r.failed {
		return nil
	}
	return n
}

type jsonReader struct {
	p      *parser
	src    *source
	d      *json.Decoder
	nodes  int
	failed bool
}

func (r *jsonReader) value(path string, depth int) (*node, error) {
	t, err := r.d.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if r.nodes++; r.nodes > maxNodes {
		return nil, fmt.Errorf("it has over %d values", maxNodes)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("lists and mappings lie over %d deep in one another", maxDepth)
	}
	n := &node{src: r.src, path: path, kind: scalar, style: yaml.DoubleQuotedStyle}
	switch t := t.(type) {
	case nil:
		n.kind = null
	case string:
		n.tag, n.raw = "!!str", t
	case json.Number:
		n.tag, n.raw = "!!float", t.String()
	case bool:
		n.tag, n.raw = "!!bool", strconv.FormatBool(t)
	case json.Delim:
		err = r.compound(n, t, depth)
	}
	return n, err
}

func (r *jsonReader) compound(n *node, open json.Delim, depth int) error {
	n.kind = list
	seen := map[string]bool{}
	if open == '{' {
		n.kind = mapping
	}
	for r.d.More() {
		at := fmt.Sprintf("%s[%d]", n.path, len(n.items))
		var key *node
		if n.kind == mapping {
			t, err := r.d.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string)
			key = &node{src: r.src, kind: scalar, path: n.path, tag: "!!str", raw: name}
			at = join(n.path, name)
			if seen[name] {
				r.failed = true
				r.p.fault(key, "key %s is there twice", quote(name))
			}
			seen[name] = true
		}
		item, err := r.value(at, depth+1)
		if err != nil {
			return err
		}
		if key != nil {
			n.keys = append(n.keys, key)
		}
		n.items = append(n.items, item)
	}
	_, err := r.d.Token()
	return err
}
