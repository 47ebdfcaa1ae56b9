package rules

import (
	"fmt"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/filters"
)

// How many schemas the checks of all filters of one parser look at, and that of one path: alternatives that refer to
// alternatives multiply. Beyond it a filter is taken as it is.
const (
	maxLooks    = 2_000_000
	maxPathLook = 20_000
)

// typedFilter checks what a subscription's filter reads of the data against the schema of its topic. It refuses
// what can never be true and what is a known name misspelt; it does not refuse what a schema merely leaves out, for
// most schemas leave the door open to more.
func (p *parser) typedFilter(d *subscriptionDef, schema *jsonschema.Schema) {
	n := d.n.get("filter")
	if d.program == nil || schema == nil || n == nil {
		return
	}
	for _, read := range d.program.Reads() {
		p.typedRead(d, n, read, schema)
	}
}

// inFilter reports a fault at a character of a filter.
func (p *parser) inFilter(n *node, filter string, at int, format string, args ...any) {
	detail := fmt.Sprintf(format, args...)
	if n.src.name == "" { // an API's document has no lines
		line, col := 1, 1
		for _, r := range []rune(filter)[:at] {
			if col++; r == '\n' {
				line, col = line+1, 1
			}
		}
		p.bad(n, "%v", &filters.Error{Line: line, Column: col, Source: filter, Detail: detail})
		return
	}
	p.bad(p.within(n, at), "%s", detail)
}

func (p *parser) typedRead(d *subscriptionDef, n *node, read filters.Read, schema *jsonschema.Schema) {
	by := schemaOf(d.Topic)
	so := "data"
	left := min(p.looks, maxPathLook)
	p.looks -= left
	defer func() { p.looks += max(left, 0) }()
	l := look{left: &left}
	for _, step := range read.Path {
		types := l.types(schema)
		if types == 0 { // the schema refuses all; that is not the filter's fault
			return
		}
		if step.Index != -1 {
			if types&isArray == 0 {
				p.inFilter(n, d.Filter, read.At, "%s is %s %s, not a list", so, types, by)
				return
			}
			next, refused := l.item(schema, step.Index)
			if refused {
				p.inFilter(n, d.Filter, read.At, "%s has no item %d %s", so, step.Index, by)
				return
			}
			so += "[]"
			if step.Index >= 0 {
				so = fmt.Sprintf("%s[%d]", strings.TrimSuffix(so, "[]"), step.Index)
			}
			schema = next
		} else {
			if types&isObject == 0 {
				p.inFilter(n, d.Filter, read.At, "%s is %s %s and has no %s", so, types, by, quote(step.Key))
				return
			}
			prop := l.property(schema, step.Key)
			if !prop.known && !l.exhausted() {
				names := l.names(schema)
				if hint, near := missingName(step.Key, names, prop.refused); near {
					p.inFilter(n, d.Filter, read.At, "%s: %s has no %s %s%s", read.Name, so, quote(step.Key), by, hint)
					return
				}
			}
			so += "." + step.Key
			schema = prop.schema
		}
		if schema == nil {
			return // anything may be there
		}
	}
	p.typedUse(d, n, read, schema, by, l)
}

// missingName says whether a name that a schema has not is refused, and how: always where it allows no other names,
// else where it is near to one that it has.
func missingName(name string, names []string, refused bool) (hint string, refuse bool) {
	if refused {
		return suggest(name, names), true
	}
	near := event.Nearest(name, names)
	// A schema that allows more names may well have item1 beside item2, or id beside ip.
	if near == "" || !strings.EqualFold(near, name) && (min(len(near), len(name)) < 4 || sameButDigits(near, name)) {
		return "", false
	}
	return suggest(name, names) + "; if there are events that have both, give the schema both", true
}

func sameButDigits(a, b string) bool {
	drop := func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}
	return strings.Map(drop, a) == strings.Map(drop, b)
}

// schemaOf is the half sentence that says whose schema it is.
type schemaOf string

func (t schemaOf) String() string { return fmt.Sprintf("by the schema of topic %q", string(t)) }

// typedUse checks what is done with a value that has a schema.
func (p *parser) typedUse(d *subscriptionDef, n *node, read filters.Read, schema *jsonschema.Schema, by schemaOf, l look) {
	types := l.types(schema)
	if read.Kinds != nil && types&typesNamed(read.Kinds...) == 0 && types != 0 {
		p.inFilter(n, d.Filter, read.At, "%s is %s %s, and %s takes %s: this is never true", read.Name, types, by, read.Operator, typesNamed(read.Kinds...))
		return
	}
	for _, c := range read.Constants {
		is := typesNamed(c.Kind)
		if c.Kind == "null" { // to ask for it is caution, not a mistake
			continue
		}
		if types&is == 0 && types != 0 {
			p.inFilter(n, d.Filter, c.At, "%s is %s %s, and %s is %s: %s is never true of them", read.Name, types, by, shownConstant(c), is, read.Operator)
			continue
		}
		if read.Operator != "==" && read.Operator != "!=" && read.Operator != "in" {
			continue
		}
		if allowed, outside := l.outside(schema, c); outside && !l.exhausted() {
			p.inFilter(n, d.Filter, c.At, "%s is never %s %s%s", read.Name, shownConstant(c), by, suggest(c.Value, allowed))
		}
	}
}

func shownConstant(c filters.Constant) string {
	if c.Kind == "string" {
		return quote(c.Value)
	}
	return c.Value
}
