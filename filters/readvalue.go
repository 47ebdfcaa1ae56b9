package filters

import (
	"fmt"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
)

// value reads what can be compared.
func (r *reader) value(n ast.Node) (*node, *Error) {
	if e := r.enter(n); e != nil {
		return nil, e
	}
	defer func() { r.deep-- }()
	switch x := n.(type) {
	case *ast.IntegerNode, *ast.FloatNode:
		return r.number(n)
	case *ast.StringNode:
		return r.constant(n, value{kind: text, s: x.Value}), nil
	case *ast.BoolNode:
		return r.constant(n, value{kind: boolean, b: x.Value}), nil
	case *ast.NilNode:
		return r.constant(n, value{kind: null}), nil
	case *ast.UnaryNode:
		if x.Operator == "!" || x.Operator == "not" {
			return nil, r.refuse(n, "%s binds to %s alone here; put the comparison in brackets, %s (…), or use != or not in", x.Operator, clip(x.Node.String()), x.Operator)
		}
		k, e := r.value(x.Node)
		if e != nil {
			return nil, e
		}
		if k, e = r.numeric(x.Operator, k); e != nil || x.Operator == "+" {
			return k, e
		}
		if k.op == opConst {
			v, err := negate(k.val)
			if err != nil {
				return nil, r.refuse(n, "%v", err)
			}
			return r.constant(n, v), nil
		}
		return r.make(n, opNegate, k), nil
	case *ast.BinaryNode:
		return r.arithmetic(x)
	case *ast.ConditionalNode:
		if x.Cond == x.Exp1 {
			return nil, r.refuse(n, "?: without a middle part is refused; write a ? b : c")
		}
		c, e := r.condition(x.Cond)
		if e != nil {
			return nil, e
		}
		kids, e := each(r.value, x.Exp1, x.Exp2)
		if e != nil {
			return nil, e
		}
		return r.make(n, opChoose, c, kids[0], kids[1]), nil
	case *ast.BuiltinNode, *ast.CallNode:
		return r.call(n, false)
	case *ast.IdentifierNode, *ast.MemberNode, *ast.ChainNode, *ast.PointerNode:
		return r.path(n)
	}
	return nil, r.unknown(n)
}

func (r *reader) constant(n ast.Node, v value) *node {
	out := r.make(n, opConst)
	out.val = v
	return out
}

// numeric reads an operand of arithmetic.
func (r *reader) numeric(operator string, k *node) (*node, *Error) {
	if k.op == opConst && !k.val.isNumber() && !(operator == "+" && k.val.kind == text) {
		return nil, r.refuse(k.src, "%s computes with numbers; %s is %s", operator, clip(k.src.String()), kindNames[k.val.kind])
	}
	if k.op == opField && r.fs.list[k.field].loose() && operator != "+" {
		return r.as(k, asNumber), nil
	}
	return k, nil
}

func (r *reader) arithmetic(x *ast.BinaryNode) (*node, *Error) {
	o, ok := map[string]op{"+": opAdd, "-": opSubtract, "*": opMultiply, "/": opDivide, "%": opModulo}[x.Operator]
	if !ok {
		switch x.Operator {
		case "&&", "and", "||", "or", "==", "!=", "<", "<=", ">", ">=", "in", "contains", "startsWith", "endsWith", "matches":
			return nil, r.refuse(x, "%s is a condition and stands where a value is compared; combine conditions with &&, || and !", clip(x.String()))
		}
		return nil, r.operator(x)
	}
	kids, e := each(r.value, x.Left, x.Right)
	if e != nil {
		return nil, e
	}
	for i := range kids {
		if kids[i], e = r.numeric(x.Operator, kids[i]); e != nil {
			return nil, e
		}
		// Beside a number + adds, so an extension is read as one.
		if k := kids[i]; k.op == opField && r.fs.list[k.field].loose() && kids[1-i].op == opConst && kids[1-i].val.isNumber() {
			kids[i] = r.as(k, asNumber)
		}
	}
	if kids[0].op == opConst && kids[1].op == opConst {
		v, err := compute(o, kids[0].val, kids[1].val)
		if err != nil || v.kind == missing {
			return nil, r.refuse(x, "%s cannot be computed", clip(x.String()))
		}
		return r.constant(x, v), nil
	}
	return r.make(x, o, kids...), nil
}

// call reads a function; condition says which sort is wanted.
func (r *reader) call(n ast.Node, condition bool) (*node, *Error) {
	var name string
	var args []ast.Node
	switch x := n.(type) {
	case *ast.BuiltinNode:
		name, args = x.Name, x.Arguments
	case *ast.CallNode:
		id, ok := x.Callee.(*ast.IdentifierNode)
		if !ok {
			return nil, r.refuse(n, "%s is a method; a filter has functions only: %s", clip(x.Callee.String()), strings.Join(functionNames, ", "))
		}
		name, args = id.Value, x.Arguments
	}
	f, ok := functions[name]
	if !ok {
		return nil, r.refuse(n, "%s", unknownFunction(name))
	}
	if len(args) != f.args {
		want := "1 argument"
		if f.args == 2 {
			want = "a list and a condition, such as " + name + "(data.items, .price > 10)"
		}
		return nil, r.refuse(n, "%s takes %s, not %d", name, want, len(args))
	}
	if is := slices.Contains([]op{opHas, opAny, opAll, opNone}, f.op); is != condition {
		if condition {
			return nil, r.refuse(n, "%s(…) is a value, not a condition: it must be compared with something", name)
		}
		return nil, r.refuse(n, "%s(…) is a condition and stands where a value is compared; combine conditions with &&, || and !", name)
	}
	if f.args == 2 {
		return r.predicate(n, name, f.op, args)
	}
	k, e := r.value(args[0])
	if e != nil {
		return nil, e
	}
	switch {
	case f.op == opHas && k.op != opField && k.op != opItem:
		return nil, r.refuse(args[0], "has asks for a path such as data.customer.id; %s is none", clip(args[0].String()))
	case f.op != opHas && k.op == opConst && k.val.kind != text:
		return nil, r.refuse(args[0], "%s takes a string; %s is %s", name, clip(args[0].String()), kindNames[k.val.kind])
	}
	return r.make(n, f.op, k), nil
}

func (r *reader) predicate(n ast.Node, name string, o op, args []ast.Node) (*node, *Error) {
	if r.inside {
		return nil, r.refuse(n, "%s inside a predicate is refused: the cost would be the product of both lists", name)
	}
	list, e := r.value(args[0])
	if e != nil {
		return nil, e
	}
	if list.op == opField && r.fs.list[list.field].origin != fromData || !slices.Contains([]op{opField, opFilter, opMap, opChoose}, list.op) {
		return nil, r.refuse(args[0], "%s goes through a list in the data, such as data.items; %s is none", name, clip(args[0].String()))
	}
	p, ok := args[1].(*ast.PredicateNode)
	if !ok {
		return nil, r.refuse(args[1], "%s takes a condition such as .price > 10 after the list", name)
	}
	r.inside = true
	read := r.condition
	if o == opMap {
		read = r.value
	}
	body, e := read(p.Node)
	r.inside = false
	if e != nil {
		return nil, e
	}
	out := r.make(n, o, list, body)
	out.id = r.lists
	r.lists++
	return out, nil
}

// path reads an attribute, an extension, a path in the data, or one below the item of a predicate.
func (r *reader) path(n ast.Node) (*node, *Error) {
	var segs []segment
	base := n
	for {
		if c, ok := base.(*ast.ChainNode); ok { // a?.b: every path is optional here
			base = c.Node
			continue
		}
		m, ok := base.(*ast.MemberNode)
		if !ok {
			break
		}
		switch p := m.Property.(type) {
		case *ast.StringNode:
			segs = append(segs, segment{p.Value, -1})
		case *ast.IntegerNode:
			segs = append(segs, segment{"", p.Value})
		default:
			return nil, r.refuse(m.Property, "%s: an index is a constant: a number from 0, or a key in quotes", clip(m.Property.String()))
		}
		if len(segs) > maxPath {
			return nil, r.refuse(n, "the path has more than %d steps", maxPath)
		}
		base = m.Node
	}
	slices.Reverse(segs)
	switch x := base.(type) {
	case *ast.PointerNode:
		if x.Name != "" {
			return nil, r.refuse(n, "#%s is refused; a predicate sees the item only: # or .field", clip(x.Name))
		}
		out := r.make(n, opItem)
		out.path = segs
		return out, nil
	case *ast.IdentifierNode:
		return r.named(n, x, segs)
	}
	return nil, r.refuse(n, "%s: a path begins with data or %s", clip(n.String()), map[bool]string{false: "ext", true: "headers"}[r.hook])
}

func (r *reader) named(n ast.Node, x *ast.IdentifierNode, segs []segment) (*node, *Error) {
	if r.hook && x.Value != "data" {
		return r.ofHook(n, x, segs)
	}
	f := field{label: x.Value}
	tag, known := attributes[x.Value]
	switch {
	case x.Value == "data":
		f.origin, f.path, f.label = fromData, segs, label(segs)
	case x.Value == "ext":
		if len(segs) != 1 || segs[0].index >= 0 {
			return nil, r.refuse(n, "%s: an extension is written ext.<name>", clip(n.String()))
		}
		f.origin, f.name = fromExtension, segs[0].key
		if f.name == "" || strings.ContainsFunc(f.name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') }) {
			return nil, r.refuse(n, "ext.%s: names of extensions are lower-case letters and digits (CloudEvents 1.0)", clip(f.name))
		}
		f.label = "ext." + f.name
	case known && len(segs) > 0:
		return nil, r.refuse(n, "%s is a string and has no fields; paths begin with data", x.Value)
	case known:
		f.tag = tag
	case r.inside:
		return nil, r.refuse(x, "%s; a field of the predicate's item is written .%s", unknownName(x.Value), clip(x.Value))
	default:
		return nil, r.refuse(x, "%s", unknownName(x.Value))
	}
	out := r.make(n, opField)
	out.field = r.fs.add(f)
	return out, nil
}

// text writes a node as the source did, with brackets and quotes of expr's.
func (n *node) text() string {
	if n.src == nil {
		return ""
	}
	if u, ok := n.src.(*ast.UnaryNode); ok && n.negated {
		if b, ok := u.Node.(*ast.BinaryNode); ok {
			return fmt.Sprintf("%s not %s %s", b.Left, b.Operator, b.Right)
		}
	}
	return n.src.String()
}
