package filters

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// attributes are the names of a filter besides data and ext.
var attributes = map[string]event.Tag{
	"id": event.TagID, "source": event.TagSource, "type": event.TagType, "subject": event.TagSubject,
	"time": event.TagTime, "datacontenttype": event.TagDataContentType, "dataschema": event.TagDataSchema,
	"topic": event.TagTopic, "key": event.TagPartitionKey,
}

var names = []string{"id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "topic", "key", "ext", "data"}

// functions are what may be called, with the number of arguments; those of predicates have 2.
var functions = map[string]struct {
	op   op
	args int
}{
	"has": {opHas, 1}, "len": {opLen, 1}, "lower": {opLower, 1}, "upper": {opUpper, 1}, "trim": {opTrim, 1},
	"any": {opAny, 2}, "all": {opAll, 2}, "none": {opNone, 2},
	"count": {opCount, 2}, "filter": {opFilter, 2}, "map": {opMap, 2},
}

var functionNames = []string{"has", "len", "lower", "upper", "trim", "any", "all", "none", "count", "filter", "map"}

func unknownName(name string) string {
	return fmt.Sprintf("unknown name %q%s; the names are %s, ext.<name> and data.<path>", clip(name), suggest(name, names), strings.Join(names[:9], ", "))
}

func unknownFunction(name string) string {
	switch name {
	case "now", "date", "duration", "timezone":
		return fmt.Sprintf("%s() is refused: a filter depends on nothing but the event; compare time with a constant such as \"2026-01-31T00:00:00Z\"", name)
	case "reduce":
		return "reduce is refused: its cost has no bound; use any, all, none, count, filter or map"
	}
	for _, operator := range []string{"contains", "startsWith", "endsWith", "matches"} {
		if len(name) > 3 && strings.HasPrefix(strings.ToLower(operator), strings.ToLower(name)) {
			return fmt.Sprintf("unknown function %q; %s is an operator: a %s b; the functions are %s", clip(name), operator, operator, strings.Join(functionNames, ", "))
		}
	}
	return fmt.Sprintf("unknown function %q%s; the functions are %s", clip(name), suggest(name, functionNames), strings.Join(functionNames, ", "))
}

func clip(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "…"
	}
	return s
}

// suggest names the candidate nearest to a misspelt name, if one is near.
func suggest(name string, candidates []string) string {
	best := event.Nearest(name, candidates)
	for _, c := range candidates { // length, topicname
		if best == "" && len(c) > 2 && strings.HasPrefix(strings.ToLower(name), c) {
			best = c
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// kindOfField says how a field is read.
type reading uint8

const (
	asItIs    reading = iota
	asNumber          // an extension beside a number
	asBoolean         // an extension beside a boolean, or as a condition
	asInstant         // time beside a time
)

// origin is where a field comes from.
type origin uint8

const (
	fromAttribute origin = iota
	fromExtension
	fromData
	fromHeader // of a webhook
	fromQuery
)

// field is something of an event that a program reads.
type field struct {
	origin  origin
	tag     event.Tag
	name    string // of an extension
	path    []segment
	reading reading
	node    int32  // of the tree, for data
	label   string // as a filter writes it
}

// fields numbers what a program, or all programs of an index, read: each thing once.
type fields struct {
	list   []field
	byName map[fieldID]int
	tree   *tree
}

// fieldID is the same for fields that read the same.
type fieldID struct {
	reading reading
	label   string
}

// loose reports whether a field is a text that may stand for a number or a boolean.
func (f field) loose() bool {
	return f.origin == fromExtension || f.origin == fromHeader || f.origin == fromQuery
}

func newFields() *fields { return &fields{byName: map[fieldID]int{}, tree: newTree()} }

// add returns the number of a field.
func (fs *fields) add(f field) int {
	id := fieldID{f.reading, f.label}
	if n, ok := fs.byName[id]; ok {
		return n
	}
	if f.origin == fromData {
		f.node = fs.tree.add(f.path)
	}
	fs.list = append(fs.list, f)
	fs.byName[id] = len(fs.list) - 1
	return len(fs.list) - 1
}

// label writes a path so that equal paths have equal labels.
func label(path []segment) string {
	var b strings.Builder
	b.WriteString("data")
	for _, seg := range path {
		switch {
		case seg.index >= 0:
			fmt.Fprintf(&b, "[%d]", seg.index)
		case isWord(seg.key):
			b.WriteString("." + seg.key)
		default:
			fmt.Fprintf(&b, "[%q]", seg.key)
		}
	}
	return b.String()
}

func isWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	}) && (s[0] < '0' || s[0] > '9')
}

// union numbers the fields of several programs once and returns for each where its own went.
func union(programs []*Program) (*fields, [][]int32) {
	all := newFields()
	links := make([][]int32, len(programs))
	n := 0
	for _, p := range programs {
		if p != nil {
			n += len(p.fields.list)
		}
	}
	slab := make([]int32, n)
	for i, p := range programs {
		if p == nil {
			continue
		}
		n := len(p.fields.list)
		links[i], slab = slab[:n:n], slab[n:]
		for j, f := range p.fields.list {
			links[i][j] = int32(all.add(f))
		}
	}
	all.list = slices.Clip(all.list)
	return all, links
}
