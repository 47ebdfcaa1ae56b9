package rules

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/millrace/millrace/filters"
)

// typeSet is a set of JSON's types; an integer is a number.
type typeSet uint8

const (
	isNull typeSet = 1 << iota
	isBoolean
	isNumber
	isString
	isArray
	isObject
	isAnything typeSet = 1<<iota - 1
)

var typeWords = []struct{ name, words string }{
	{"null", "null"}, {"boolean", "true or false"}, {"number", "a number"}, {"string", "a string"}, {"array", "a list"}, {"object", "an object"},
}

func typesNamed(names ...string) (set typeSet) {
	for _, name := range names {
		if name == "integer" {
			name = "number"
		}
		for i, t := range typeWords {
			if t.name == name {
				set |= 1 << i
			}
		}
	}
	return set
}

func (t typeSet) String() string {
	var words []string
	for i, w := range typeWords {
		if t&(1<<i) != 0 {
			words = append(words, w.words)
		}
	}
	switch len(words) {
	case 0:
		return "nothing"
	case 1:
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func typeOf(v any) typeSet {
	switch v.(type) {
	case nil:
		return isNull
	case bool:
		return isBoolean
	case string:
		return isString
	case []any:
		return isArray
	case map[string]any:
		return isObject
	}
	return isNumber
}

// look answers what a schema says, for as long as left is above 0; then it answers that anything may be.
type look struct{ left *int }

func (l look) exhausted() bool { return *l.left <= 0 }

// parts are the schemas that all hold where s does: itself, what it refers to, allOf.
func (l look) parts(s *jsonschema.Schema) []*jsonschema.Schema {
	if s == nil {
		return nil
	}
	out := []*jsonschema.Schema{s}
	for i := 0; i < len(out); i++ {
		*l.left--
		more := append([]*jsonschema.Schema{out[i].Ref, out[i].RecursiveRef}, out[i].AllOf...)
		if out[i].DynamicRef != nil {
			more = append(more, out[i].DynamicRef.Ref)
		}
		for _, m := range more {
			if m != nil && !l.exhausted() && !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
	}
	return out
}

// choices are the alternatives of a part: of each group one holds at least.
func choices(s *jsonschema.Schema) [][]*jsonschema.Schema {
	var groups [][]*jsonschema.Schema
	for _, g := range [][]*jsonschema.Schema{s.AnyOf, s.OneOf} {
		if len(g) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

// maybe are parts that hold for some of what s holds for: they tell names.
func maybe(s *jsonschema.Schema) []*jsonschema.Schema {
	out := []*jsonschema.Schema{s.If, s.Then, s.Else}
	for _, d := range s.DependentSchemas {
		out = append(out, d)
	}
	for _, d := range s.Dependencies {
		if d, ok := d.(*jsonschema.Schema); ok {
			out = append(out, d)
		}
	}
	return slices.DeleteFunc(out, func(s *jsonschema.Schema) bool { return s == nil })
}

func never(s *jsonschema.Schema) bool { return s != nil && s.Bool != nil && !*s.Bool }

// types are those that a value may have.
func (l look) types(s *jsonschema.Schema) typeSet {
	if l.exhausted() {
		return isAnything
	}
	set := isAnything
	for _, q := range l.parts(s) {
		if never(q) {
			return 0
		}
		if q.Types != nil {
			set &= typesNamed(q.Types.ToStrings()...)
		}
		if list, ok := enumOf(q); ok {
			var of typeSet
			for _, v := range list {
				of |= typeOf(v)
			}
			set &= of
		}
		for _, group := range choices(q) {
			var some typeSet
			for _, alt := range group {
				some |= l.types(alt)
			}
			set &= some
		}
	}
	return set
}

func enumOf(s *jsonschema.Schema) ([]any, bool) {
	switch {
	case s.Const != nil:
		return []any{*s.Const}, true
	case s.Enum != nil:
		return s.Enum.Values, true
	}
	return nil, false
}

// property is what a schema says of a key.
type property struct {
	schema  *jsonschema.Schema // nil: anything
	known   bool               // the schema names it
	refused bool               // it cannot be there
}

func (l look) property(s *jsonschema.Schema, name string) property {
	if l.exhausted() {
		return property{known: true}
	}
	var out property
	var all []*jsonschema.Schema
	closed := false
	for _, q := range l.parts(s) {
		own := l.ownProperty(q, name, &out)
		all = append(all, own...)
		for _, group := range choices(q) {
			alt, ok := l.choice(group, name, &out)
			if !ok {
				out.refused = true
			}
			if alt != nil {
				all = append(all, alt)
			}
		}
		for _, m := range maybe(q) {
			out.known = out.known || l.property(m, name).known
		}
		closed = closed || never(q.UnevaluatedProperties)
	}
	out.refused = out.refused || closed && !out.known
	if out.refused {
		out.known = false
	}
	out.schema = together(all)
	return out
}

// ownProperty is property of one part, without what it refers to.
func (l look) ownProperty(q *jsonschema.Schema, name string, out *property) (all []*jsonschema.Schema) {
	named := false
	if sub, ok := q.Properties[name]; ok {
		named, all = true, append(all, sub)
	}
	for re, sub := range q.PatternProperties {
		if re.MatchString(name) {
			named, all = true, append(all, sub)
		}
	}
	for _, sub := range all {
		out.refused = out.refused || never(sub)
	}
	out.known = out.known || named
	if named {
		return all
	}
	switch more := q.AdditionalProperties.(type) {
	case bool:
		out.refused = out.refused || !more
	case *jsonschema.Schema:
		out.refused = out.refused || never(more)
		all = append(all, more)
	}
	return all
}

// choice is property of alternatives; ok is false where none allows it.
func (l look) choice(group []*jsonschema.Schema, name string, out *property) (s *jsonschema.Schema, ok bool) {
	var alts []*jsonschema.Schema
	open := false
	for _, alt := range group {
		if l.types(alt)&isObject == 0 {
			continue
		}
		one := l.property(alt, name)
		if one.refused {
			continue
		}
		ok = true
		out.known = out.known || one.known
		if one.schema == nil {
			open = true
		} else {
			alts = append(alts, one.schema)
		}
	}
	if open || len(alts) == 0 {
		return nil, ok
	}
	return &jsonschema.Schema{AnyOf: alts}, ok
}

func together(all []*jsonschema.Schema) *jsonschema.Schema {
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return &jsonschema.Schema{AllOf: all}
}

// names are the keys that a schema knows, sorted.
func (l look) names(s *jsonschema.Schema) []string {
	set := map[string]bool{}
	l.addNames(s, set)
	names := make([]string, 0, len(set))
	for name := range set {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (l look) addNames(s *jsonschema.Schema, set map[string]bool) {
	if l.exhausted() {
		return
	}
	for _, q := range l.parts(s) {
		for name, sub := range q.Properties {
			if !never(sub) {
				set[name] = true
			}
		}
		for _, group := range choices(q) {
			for _, alt := range group {
				l.addNames(alt, set)
			}
		}
		for _, m := range maybe(q) {
			l.addNames(m, set)
		}
	}
}

// item is what a schema says of an item of a list, of all of them with filters.AnyItem.
func (l look) item(s *jsonschema.Schema, index int) (next *jsonschema.Schema, refused bool) {
	if l.exhausted() {
		return nil, false
	}
	var all []*jsonschema.Schema
	for _, q := range l.parts(s) {
		first, rest, closed := itemsOf(q)
		switch {
		case index >= 0 && index < len(first):
			all = append(all, first[index])
		case index >= 0 && closed, index >= 0 && q.MaxItems != nil && index >= *q.MaxItems:
			return nil, true
		case rest != nil && (index >= 0 || len(first) == 0):
			all = append(all, rest)
		case index < 0 && len(first) > 0 && (rest != nil || closed):
			alts := slices.Clone(first)
			if rest != nil {
				alts = append(alts, rest)
			}
			all = append(all, &jsonschema.Schema{AnyOf: alts})
		}
		for _, group := range choices(q) {
			var alts []*jsonschema.Schema
			open, some := false, false
			for _, alt := range group {
				if l.types(alt)&isArray == 0 {
					continue
				}
				one, no := l.item(alt, index)
				if no {
					continue
				}
				some = true
				if one == nil {
					open = true
				} else {
					alts = append(alts, one)
				}
			}
			if !some {
				return nil, true
			}
			if !open {
				all = append(all, &jsonschema.Schema{AnyOf: alts})
			}
		}
	}
	return together(all), false
}

// itemsOf reads the keywords of all drafts: the first items, the rest, and whether there is no rest.
func itemsOf(q *jsonschema.Schema) (first []*jsonschema.Schema, rest *jsonschema.Schema, closed bool) {
	first, rest = q.PrefixItems, q.Items2020
	switch items := q.Items.(type) {
	case *jsonschema.Schema:
		rest = items
	case []*jsonschema.Schema:
		first = items
		switch more := q.AdditionalItems.(type) {
		case bool:
			closed = !more
		case *jsonschema.Schema:
			rest = more
		}
	}
	if never(rest) {
		return first, nil, true
	}
	return first, rest, closed
}

// outside reports whether a schema lists its values and the constant is none of them; allowed are those of its type.
func (l look) outside(s *jsonschema.Schema, c filters.Constant) (allowed []string, is bool) {
	if l.exhausted() {
		return nil, false
	}
	for _, q := range l.parts(s) {
		if list, ok := enumOf(q); ok && !slices.ContainsFunc(list, func(v any) bool { return sameValue(v, c) }) {
			return shownValues(list), true
		}
		for _, group := range choices(q) {
			var listed []string
			some := false
			for _, alt := range group {
				if l.types(alt)&typesNamed(c.Kind) == 0 {
					continue
				}
				list, out := l.outside(alt, c)
				if some = !out; some {
					break
				}
				listed = append(listed, list...)
			}
			if !some {
				slices.Sort(listed)
				return slices.Compact(listed), true
			}
		}
	}
	return nil, false
}

func sameValue(v any, c filters.Constant) bool {
	switch v := v.(type) {
	case string:
		return c.Kind == "string" && v == c.Value
	case bool:
		return c.Kind == "boolean" && strconv.FormatBool(v) == c.Value
	case json.Number:
		if c.Kind != "number" {
			return false
		}
		a, err1 := strconv.ParseFloat(v.String(), 64)
		b, err2 := strconv.ParseFloat(c.Value, 64)
		return err1 != nil || err2 != nil || a == b // beyond what is told apart here: taken as it is
	case nil:
		return c.Kind == "null"
	}
	return false
}

// shownValues are the single values of an enum as a filter would write them, quotes aside.
func shownValues(list []any) []string {
	var out []string
	for _, v := range list {
		switch v := v.(type) {
		case string:
			out = append(out, v)
		case bool, json.Number:
			out = append(out, fmt.Sprint(v))
		}
	}
	return out
}
