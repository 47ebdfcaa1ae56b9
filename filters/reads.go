package filters

import (
	"slices"

	"github.com/expr-lang/expr/ast"
)

// A Read is one place of a filter that reads the data: for those who know what the data may be, such as a
// topic's schema, and want to say so before an event comes.
type Read struct {
	Path []Step
	Name string // the path as a filter writes it, the item of a list as []: data.items[].price
	At   int    // where it begins: characters of the source before it
	// Operator is what the value is wanted for, Kinds what it has to be for that ever to be true, by the
	// names of JSON: string, number, boolean, null, array, object. nil is anything.
	Operator  string
	Kinds     []string
	Constants []Constant // that it is compared with by Operator
}

// A Step of a path is a key, or an item of a list: Index is -1 at a key, and AnyItem where a predicate goes
// through all of them.
type Step struct {
	Key   string
	Index int
}

// AnyItem is the Index of a step that stands for every item of a list.
const AnyItem = -2

// A Constant of a filter.
type Constant struct {
	Kind  string // by the names of JSON
	Value string // of a string its text, else as JSON writes it
	At    int    // characters of the source before it
}

// Reads returns what the filter reads of the data, in the order of the source as far as it has one.
func (p *Program) Reads() []Read {
	if p == nil {
		return nil
	}
	l := lister{fields: p.fields}
	l.condition(p.root)
	return l.out
}

type lister struct {
	fields *fields
	item   []Step // of the predicate that is walked; nil where nothing is known of it
	out    []Read
}

var (
	aString = []string{"string"}
	aNumber = []string{"number"}
	aList   = []string{"array"}
	ordered = []string{"string", "number"}
	counted = []string{"string", "array", "object"}
)

func (l *lister) condition(n *node) {
	switch n.op {
	case opMachine, opAnd, opOr, opNot:
		for _, k := range n.kids {
			l.condition(k)
		}
	case opIf:
		for _, k := range n.kids {
			l.condition(k)
		}
	case opRelate:
		l.relation(n)
	case opIn:
		l.value(n.kids[0], "in", nil, constantsOf(n))
	case opInList:
		l.value(n.kids[0], "in", nil, nil)
		l.value(n.kids[1], "in", aList, nil)
		if c, list := n.kids[0], l.items(n.kids[1]); c.op == opConst && list != nil {
			l.add(list, n.kids[1], "in", nil, []Constant{constant(c)})
		}
	case opHas:
		l.value(n.kids[0], "has", nil, nil)
	case opIs:
		l.value(n.kids[0], "a condition", []string{"boolean"}, nil)
	case opContains, opStarts, opEnds:
		name := map[op]string{opContains: "contains", opStarts: "startsWith", opEnds: "endsWith"}[n.op]
		l.value(n.kids[0], name, aString, nil)
		l.value(n.kids[1], name, aString, nil)
	case opMatches:
		l.value(n.kids[0], "matches", aString, nil)
	case opAny, opAll, opNone:
		l.predicate(n, l.condition)
	}
}

// relation lists both sides of a comparison, each with the other if that is a constant.
func (l *lister) relation(n *node) {
	var kinds []string
	if n.rel > unequal {
		kinds = ordered
	}
	name := "=="
	for sign, rel := range relations {
		if rel == n.rel {
			name = sign
		}
	}
	for i, k := range n.kids {
		other := n.kids[1-i]
		if other.op == opConst {
			l.value(k, name, nil, []Constant{constant(other)})
		} else {
			l.value(k, name, kinds, nil)
		}
	}
}

// value lists what a value is made of.
func (l *lister) value(n *node, operator string, kinds []string, with []Constant) {
	switch n.op {
	case opField:
		if f := l.fields.list[n.field]; f.origin == fromData {
			l.add(steps(nil, f.path), n, operator, kinds, with)
		}
	case opItem:
		if l.item != nil {
			l.add(steps(l.item, n.path), n, operator, kinds, with)
		}
	case opAdd, opSubtract, opMultiply, opDivide, opModulo:
		name := map[op]string{opAdd: "+", opSubtract: "-", opMultiply: "*", opDivide: "/", opModulo: "%"}[n.op]
		want := aNumber
		if n.op == opAdd {
			want = ordered
		}
		l.value(n.kids[0], name, want, nil)
		l.value(n.kids[1], name, want, nil)
	case opNegate:
		l.value(n.kids[0], "-", aNumber, nil)
	case opLen:
		l.value(n.kids[0], "len", counted, nil)
	case opLower, opUpper, opTrim:
		l.value(n.kids[0], map[op]string{opLower: "lower", opUpper: "upper", opTrim: "trim"}[n.op], aString, nil)
	case opCount, opFilter:
		l.predicate(n, l.condition)
	case opMap:
		l.predicate(n, func(body *node) { l.value(body, "map", nil, nil) })
	case opChoose:
		l.condition(n.kids[0])
		l.value(n.kids[1], operator, kinds, with)
		l.value(n.kids[2], operator, kinds, with)
	}
}

func (l *lister) predicate(n *node, body func(*node)) {
	name := map[op]string{opAny: "any", opAll: "all", opNone: "none", opCount: "count", opFilter: "filter", opMap: "map"}[n.op]
	l.value(n.kids[0], name, aList, nil)
	before := l.item
	l.item = l.items(n.kids[0])
	body(n.kids[1])
	l.item = before
}

// items is the path of the items of a list; nil where they are made by the filter.
func (l *lister) items(list *node) []Step {
	switch list.op {
	case opField:
		if f := l.fields.list[list.field]; f.origin == fromData {
			return append(steps(nil, f.path), Step{Index: AnyItem})
		}
	case opItem:
		if l.item != nil {
			return append(steps(l.item, list.path), Step{Index: AnyItem})
		}
	case opFilter:
		return l.items(list.kids[0])
	}
	return nil
}

func (l *lister) add(path []Step, n *node, operator string, kinds []string, with []Constant) {
	l.out = append(l.out, Read{Path: path, Name: stepsLabel(path), At: start(n.src), Operator: operator, Kinds: kinds, Constants: with})
}

func steps(base []Step, path []segment) []Step {
	out := slices.Clone(base)
	for _, seg := range path {
		out = append(out, Step{seg.key, seg.index})
	}
	return out
}

// stepsLabel is label for steps.
func stepsLabel(path []Step) string {
	name := "data"
	for _, s := range path {
		if s.Index == AnyItem {
			name += "[]"
			continue
		}
		name += label([]segment{{s.Key, s.Index}})[len("data"):]
	}
	return name
}

func constant(n *node) Constant {
	c := Constant{Value: n.val.String(), At: n.at}
	switch n.val.kind {
	case null:
		c.Kind = "null"
	case boolean:
		c.Kind = "boolean"
	case integer, decimal:
		c.Kind = "number"
	case text:
		c.Kind, c.Value = "string", n.val.s
	}
	return c
}

// constantsOf are those of in with a list of them, each at its place.
func constantsOf(n *node) []Constant {
	src := n.src
	if u, ok := src.(*ast.UnaryNode); ok {
		src = u.Node
	}
	var list []ast.Node
	if b, ok := src.(*ast.BinaryNode); ok {
		if a, ok := b.Right.(*ast.ArrayNode); ok {
			list = a.Nodes
		}
	}
	out := make([]Constant, len(n.set.list))
	for i, v := range n.set.list {
		out[i] = constant(&node{val: v, at: n.at})
		if i < len(list) {
			out[i].At = list[i].Location().From
		}
	}
	return out
}
