package filters

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/conf"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
)

// reader turns expr's syntax tree into nodes. It takes what it knows and refuses all else, so that what a
// later version of the parser adds is refused too.
type reader struct {
	src    string
	runes  []rune
	fs     *fields
	inside bool // a predicate
	hook   bool // what is read is a webhook: see CompileText
	lists  int
	nodes  int
	deep   int
}

// read parses and checks a filter.
func read(src string) (root *node, fs *fields, e *Error) {
	return readAs(&reader{}, (*reader).condition, src)
}

// readAs parses what is to be read by r as a condition or as a value.
func readAs(r *reader, as func(*reader, ast.Node) (*node, *Error), src string) (root *node, fs *fields, e *Error) {
	defer func() { // the parser is not ours: a panic of it is a refusal, not the end of the router
		if p := recover(); p != nil {
			root, fs, e = nil, nil, place(src, 0, fmt.Sprintf("the filter cannot be parsed: %v", p))
		}
	}()
	// Not conf.CreateNew, whose table of builtins is for the checker and costs as much as parsing.
	t, err := parser.ParseWithConfig(src, &conf.Config{MaxNodes: maxNodes})
	if err != nil {
		var at *file.Error
		if !errors.As(err, &at) {
			return nil, nil, place(src, 0, err.Error())
		}
		detail := at.Message
		if strings.Contains(detail, "maximum allowed nodes") {
			detail = fmt.Sprintf("the filter has too many parts; at most %d are allowed", maxNodes)
		}
		return nil, nil, place(src, at.From, detail)
	}
	r.src, r.runes, r.fs = src, []rune(src), newFields()
	root, e = as(r, t.Node)
	return root, r.fs, e
}

func (r *reader) refuse(n ast.Node, format string, args ...any) *Error {
	return place(r.src, start(n), fmt.Sprintf(format, args...))
}

// start is where a path begins; expr places it at its last step.
func start(n ast.Node) int {
	for {
		switch x := n.(type) {
		case *ast.MemberNode:
			n = x.Node
		case *ast.ChainNode:
			n = x.Node
		case *ast.SliceNode:
			n = x.Node
		default:
			return n.Location().From
		}
	}
}

// make counts and places a node.
func (r *reader) make(n ast.Node, o op, kids ...*node) *node {
	return &node{op: o, kids: kids, at: n.Location().From, src: n}
}

// enter bounds the tree: expr shares the operand b of a < b < c, so that its tree may be larger, walked
// as one, than its count of nodes.
func (r *reader) enter(n ast.Node) *Error {
	if r.nodes++; r.nodes > 2*maxNodes {
		return r.refuse(n, "the filter has too many parts; at most %d are allowed", 2*maxNodes)
	}
	if r.deep++; r.deep > maxTree {
		return r.refuse(n, "the filter nests more than %d deep", maxTree)
	}
	return nil
}

// condition reads what is true or false.
func (r *reader) condition(n ast.Node) (*node, *Error) {
	if e := r.enter(n); e != nil {
		return nil, e
	}
	defer func() { r.deep-- }()
	switch x := n.(type) {
	case *ast.BoolNode:
		if x.Value {
			return r.make(n, opTrue), nil
		}
		return r.make(n, opFalse), nil
	case *ast.UnaryNode:
		return r.negation(x)
	case *ast.BinaryNode:
		return r.binary(x)
	case *ast.ConditionalNode:
		if x.Cond == x.Exp1 {
			return nil, r.refuse(n, "?: without a middle part is refused; write a ? b : c, or a || b")
		}
		kids, e := each(r.condition, x.Cond, x.Exp1, x.Exp2)
		return r.make(n, opIf, kids...), e
	case *ast.BuiltinNode, *ast.CallNode:
		return r.call(n, true)
	case *ast.IdentifierNode, *ast.MemberNode, *ast.ChainNode, *ast.PointerNode:
		v, e := r.path(n)
		if e != nil {
			return nil, e
		}
		if v.op == opField {
			f := r.fs.list[v.field]
			if f.origin == fromAttribute {
				return nil, r.refuse(n, "%s is a string, not a condition; compare it, or ask has(%s)", f.label, f.label)
			}
			v = r.as(v, asBoolean)
		}
		return r.make(n, opIs, v), nil
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.NilNode:
		return nil, r.refuse(n, "%s is a value, not a condition: it must be compared with something", clip(n.String()))
	}
	return nil, r.unknown(n)
}

// unknown refuses a construct that has no place in a filter.
func (r *reader) unknown(n ast.Node) *Error {
	what := map[string]string{
		"*ast.SequenceNode": "a sequence (;)", "*ast.VariableDeclaratorNode": "let", "*ast.MapNode": "a map {…}",
		"*ast.SliceNode": "a slice [a:b]", "*ast.BytesNode": "a byte string", "*ast.PredicateNode": "a predicate",
	}[fmt.Sprintf("%T", n)]
	switch n.(type) {
	case *ast.ArrayNode:
		return r.refuse(n, "a list stands only to the right of in, such as type in [\"a\", \"b\"]")
	case nil:
		return place(r.src, 0, "the filter cannot be parsed")
	}
	if what == "" {
		what = fmt.Sprintf("%q", clip(n.String()))
	}
	return r.refuse(n, "%s is refused; a filter has comparisons, in, contains, startsWith, endsWith, matches, &&, ||, !, ?:, arithmetic and functions", what)
}

func each(read func(ast.Node) (*node, *Error), list ...ast.Node) ([]*node, *Error) {
	out := make([]*node, 0, len(list))
	for _, n := range list {
		k, e := read(n)
		if e != nil {
			return nil, e
		}
		out = append(out, k)
	}
	return out, nil
}

// negation reads ! and not. expr gives "a not in b" the place of its operator, which tells it from
// "not (a in b)".
func (r *reader) negation(x *ast.UnaryNode) (*node, *Error) {
	if x.Operator != "!" && x.Operator != "not" {
		return nil, r.refuse(x, "%s is a number, not a condition", clip(x.String()))
	}
	k, e := r.condition(x.Node)
	if e != nil {
		return nil, e
	}
	b, ok := x.Node.(*ast.BinaryNode)
	infix := ok && x.Operator == "not" && b.Location() == x.Location()
	if infix || ok && x.Operator == "not" && b.Operator == "in" {
		k.negated = !k.negated
		k.src = x
		return k, nil
	}
	return r.make(x, opNot, k), nil
}

func (r *reader) binary(x *ast.BinaryNode) (*node, *Error) {
	switch x.Operator {
	case "&&", "and":
		return r.connect(x, opAnd)
	case "||", "or":
		return r.connect(x, opOr)
	case "==", "!=", "<", "<=", ">", ">=":
		return r.relation(x)
	case "in":
		return r.in(x)
	case "contains":
		return r.strings(x, opContains)
	case "startsWith":
		return r.strings(x, opStarts)
	case "endsWith":
		return r.strings(x, opEnds)
	case "matches":
		return r.matches(x)
	case "+", "-", "*", "/", "%":
		return nil, r.refuse(x, "%s is a value, not a condition: it must be compared with something", clip(x.String()))
	}
	return nil, r.operator(x)
}

func (r *reader) operator(x *ast.BinaryNode) *Error {
	switch x.Operator {
	case "??":
		return r.refuse(x, "?? is refused; write has(a) ? a : b")
	case "..":
		return r.refuse(x, "a range is refused; write x >= 1 && x <= 5")
	}
	return r.refuse(x, "operator %s is refused; the operators are == != < <= > >= in, not in, contains, startsWith, endsWith, matches, && || ! ?: + - * / %%", x.Operator)
}

// connect reads a chain of one connective as one node, along the left spine without recursion.
func (r *reader) connect(x *ast.BinaryNode, o op) (*node, *Error) {
	word := map[op]string{opAnd: "and", opOr: "or"}[o]
	sign := map[op]string{opAnd: "&&", opOr: "||"}[o]
	var spine []ast.Node
	var left ast.Node = x
	for {
		b, ok := left.(*ast.BinaryNode)
		if !ok || b.Operator != word && b.Operator != sign {
			break
		}
		spine = append(spine, b.Right)
		left = b.Left
	}
	out := r.make(x, o)
	spine = append(spine, left)
	for i := len(spine) - 1; i >= 0; i-- {
		k, e := r.condition(spine[i])
		if e != nil {
			return nil, e
		}
		if k.op == o {
			out.kids = append(out.kids, k.kids...)
		} else {
			out.kids = append(out.kids, k)
		}
	}
	return out, nil
}

func (r *reader) relation(x *ast.BinaryNode) (*node, *Error) {
	kids, e := each(r.value, x.Left, x.Right)
	if e != nil {
		return nil, e
	}
	out := r.make(x, opRelate, kids...)
	out.rel = relations[x.Operator]
	for i := range kids {
		if kids[i].op == opConst && kids[i].val.kind == null && out.rel != equal {
			return nil, r.refuse(x, "%s nil is never true, since values of different types do not compare; write has(data.x) && !(data.x == nil)", x.Operator)
		}
		if kids[i].op == opConst && kids[i].val.kind == boolean && out.rel > unequal {
			return nil, r.refuse(x, "%s does not order booleans; use == or !=", x.Operator)
		}
		if kids[i], e = r.beside(kids[i], kids[1-i]); e != nil {
			return nil, e
		}
	}
	return out, nil
}

// beside settles how a value is read next to another: a constant says of which type an extension is, and
// time makes a constant a time.
func (r *reader) beside(n, other *node) (*node, *Error) {
	if n.op == opConst && n.val.kind == text && other.op == opField && r.fs.list[other.field].tag == attributes["time"] {
		v := parseInstant(n.val.s)
		if v.kind == missing {
			return nil, r.refuse(n.src, "%s is not a time; time compares with RFC 3339, such as \"2026-01-31T12:00:00Z\"", clip(n.src.String()))
		}
		c := *n
		c.val = v
		return &c, nil
	}
	if n.op != opField {
		return n, nil
	}
	f := r.fs.list[n.field]
	switch {
	case f.origin == fromData:
		return n, nil
	case f.loose():
		if other.op == opConst && other.val.isNumber() {
			return r.as(n, asNumber), nil
		}
		if other.op == opConst && other.val.kind == boolean {
			return r.as(n, asBoolean), nil
		}
		return n, nil
	}
	if other.op == opConst && other.val.kind != text && other.val.kind != instant {
		return nil, r.refuse(other.src, "%s is a string and %s is %s, so this is never true; write the value in quotes", f.label, clip(other.src.String()), kindNames[other.val.kind])
	}
	if f.label == "time" {
		return r.as(n, asInstant), nil
	}
	return n, nil
}

// as reads a field of attributes or extensions as another type.
func (r *reader) as(n *node, as reading) *node {
	f := r.fs.list[n.field]
	if f.origin == fromData {
		return n
	}
	f.reading = as
	c := *n
	c.field = r.fs.add(f)
	return &c
}

func (r *reader) in(x *ast.BinaryNode) (*node, *Error) {
	left, not := x.Left, false
	if u, ok := left.(*ast.UnaryNode); ok && u.Operator == "not" {
		// "not a in b": expr binds not to a, which has no meaning here; it is "a not in b".
		left, not = u.Node, true
	}
	a, e := r.value(left)
	if e != nil {
		return nil, e
	}
	list, ok := x.Right.(*ast.ArrayNode)
	if !ok {
		b, e := r.value(x.Right)
		if e != nil {
			return nil, e
		}
		data := b.op == opField && r.fs.list[b.field].origin == fromData
		if !data && b.op != opItem && b.op != opMap && b.op != opFilter {
			return nil, r.refuse(x.Right, "in takes a list of constants such as [\"a\", \"b\"], or a list in the data such as data.tags; %s is neither", clip(x.Right.String()))
		}
		out := r.make(x, opInList, a, b)
		out.negated = not
		return out, nil
	}
	vals := make([]value, 0, len(list.Nodes))
	same := missing // the type of all constants, if they share one
	for i, item := range list.Nodes {
		c, e := r.value(item)
		if e != nil {
			return nil, e
		}
		if c.op != opConst || c.val.kind == null {
			return nil, r.refuse(item, "%s: the list of in holds constants only: strings, numbers, true, false", clip(item.String()))
		}
		if a.op == opField && r.fs.list[a.field].origin == fromAttribute {
			if _, e := r.beside(a, c); e != nil {
				return nil, e
			}
			if c, e = r.beside(c, a); e != nil {
				return nil, e
			}
		}
		k := c.val.kind
		if k == decimal {
			k = integer
		}
		if i == 0 {
			same = k
		} else if same != k {
			same = missing
		}
		vals = append(vals, c.val)
	}
	if a.op == opField {
		switch {
		case same == instant:
			a = r.as(a, asInstant)
		case r.fs.list[a.field].loose() && same == integer:
			a = r.as(a, asNumber)
		case r.fs.list[a.field].loose() && same == boolean:
			a = r.as(a, asBoolean)
		}
	}
	out := r.make(x, opIn, a)
	out.set, out.negated = newSet(vals), not
	return out, nil
}

func (r *reader) strings(x *ast.BinaryNode, o op) (*node, *Error) {
	kids, e := each(r.value, x.Left, x.Right)
	if e != nil {
		return nil, e
	}
	for _, k := range kids {
		if k.op == opConst && k.val.kind != text {
			return nil, r.refuse(k.src, "%s compares strings; %s is %s", x.Operator, clip(k.src.String()), kindNames[k.val.kind])
		}
	}
	return r.make(x, o, kids...), nil
}

func (r *reader) matches(x *ast.BinaryNode) (*node, *Error) {
	a, e := r.value(x.Left)
	if e != nil {
		return nil, e
	}
	pattern, ok := x.Right.(*ast.StringNode)
	if !ok {
		return nil, r.refuse(x.Right, "the regular expression of matches must be a constant string, never something of the event; %s is not", clip(x.Right.String()))
	}
	out := r.make(x, opMatches, a)
	var err error
	if out.re, err = regexp.Compile(pattern.Value); err != nil {
		return nil, r.refuse(pattern, "%v (RE2 syntax)", err)
	}
	parsed, err := syntax.Parse(pattern.Value, syntax.Perl)
	if err != nil {
		return nil, r.refuse(pattern, "%v (RE2 syntax)", err)
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, r.refuse(pattern, "%v (RE2 syntax)", err)
	}
	if len(prog.Inst) > maxRegexp {
		return nil, r.refuse(pattern, "the regular expression compiles to %d instructions; at most %d are allowed", len(prog.Inst), maxRegexp)
	}
	out.cost = 1 + len(prog.Inst)/4
	return out, nil
}

// number reads a literal from the source: the parser has rounded it to a float64.
func (r *reader) number(n ast.Node) (*node, *Error) {
	out := r.make(n, opConst)
	if i, ok := n.(*ast.IntegerNode); ok {
		out.val = value{kind: integer, i: int64(i.Value)}
		return out, nil
	}
	at := n.Location()
	literal := strings.ToLower(strings.ReplaceAll(string(r.runes[at.From:at.To]), "_", ""))
	mantissa, exponent, found := strings.Cut(literal, "e")
	exp := int64(0)
	if found {
		var err error
		if exp, err = strconv.ParseInt(exponent, 10, 64); err != nil || exp > maxExponent || exp < -maxExponent {
			return nil, r.refuse(n, "the exponent of %s is out of range", clip(literal))
		}
	}
	out.val = makeNumber(false, mantissa, exp)
	return out, nil
}
