package filters

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/checker"
	"github.com/expr-lang/expr/compiler"
	"github.com/expr-lang/expr/conf"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
)

// code carries a node through expr's machine as a constant.
type code struct{ n *node }

// assemble puts what the small machine cannot do on expr's: the smallest conditions that hold it, or all
// of the filter if whole is set.
func assemble(n *node, src string, whole bool) (*node, *Error) {
	if whole {
		return toMachine(n, src)
	}
	switch n.op {
	case opAnd, opOr, opNot, opIf:
		for i := range n.kids {
			var e *Error
			if n.kids[i], e = assemble(n.kids[i], src, false); e != nil {
				return nil, e
			}
		}
		return n, nil
	case opAny, opAll, opNone:
		return toMachine(n, src)
	}
	for _, k := range n.kids {
		if k.op != opConst && k.op != opField {
			return toMachine(n, src)
		}
	}
	return n, nil
}

func toMachine(n *node, src string) (*node, *Error) {
	config := conf.CreateNew()
	config.Optimize = false
	for name, fn := range map[string]func(...any) (any, error){"step": step, "list": list, "after": after} {
		config.Functions[name] = &builtin.Function{Name: name, Func: fn}
	}
	tree := &parser.Tree{Node: express(n), Source: file.NewSource(src)}
	if _, err := checker.Check(tree, config); err != nil {
		return nil, place(src, n.at, fmt.Sprintf("the filter cannot be compiled: %v", err))
	}
	p, err := compiler.Compile(tree, config)
	if err != nil {
		return nil, place(src, n.at, fmt.Sprintf("the filter cannot be compiled: %v", err))
	}
	return &node{op: opMachine, kids: []*node{n}, program: p, at: n.at, src: n.src}, nil
}

func callNode(name string, n *node, args ...ast.Node) ast.Node {
	return &ast.CallNode{
		Callee:    &ast.IdentifierNode{Value: name},
		Arguments: append([]ast.Node{&ast.IdentifierNode{Value: "$env"}, &ast.ConstantNode{Value: code{n}}}, args...),
	}
}

// express writes a node for expr's compiler. Connectives, ?: and the loops of predicates are expr's own;
// everything that meets a value is a call of step, so that both machines decide it in one place.
func express(n *node) ast.Node {
	switch n.op {
	case opTrue, opFalse:
		return &ast.BoolNode{Value: n.op == opTrue}
	case opAnd, opOr:
		operator := "&&"
		if n.op == opOr {
			operator = "||"
		}
		out := express(n.kids[0])
		for _, k := range n.kids[1:] {
			out = &ast.BinaryNode{Operator: operator, Left: out, Right: express(k)}
		}
		return out
	case opNot:
		return &ast.UnaryNode{Operator: "!", Node: express(n.kids[0])}
	case opIf, opChoose:
		return &ast.ConditionalNode{Ternary: true, Cond: express(n.kids[0]), Exp1: express(n.kids[1]), Exp2: express(n.kids[2])}
	case opItem:
		if len(n.path) == 0 {
			return &ast.PointerNode{}
		}
		return callNode("step", n, &ast.PointerNode{})
	case opAny, opAll, opNone, opCount, opFilter, opMap:
		name := map[op]string{opAny: "any", opAll: "all", opNone: "none", opCount: "count", opFilter: "filter", opMap: "map"}[n.op]
		return callNode("after", n, &ast.BuiltinNode{Name: name, Arguments: []ast.Node{
			callNode("list", n, express(n.kids[0])),
			&ast.PredicateNode{Node: express(n.kids[1])},
		}})
	}
	args := make([]ast.Node, len(n.kids))
	for i, k := range n.kids {
		args[i] = express(k)
	}
	return callNode("step", n, args...)
}

// onMachine evaluates a condition on expr's machine. A panic there is an error here, and that is no match.
func (s *Scratch) onMachine(n *node) bool {
	s.vm.MemoryBudget = maxMemory
	out, err := s.vm.Run(n.program, s)
	if err != nil {
		s.fail(err)
		return false
	}
	is, ok := out.(bool)
	if !ok {
		s.fail(fmt.Errorf("the condition came to %T", out))
	}
	return is
}

// operands unpacks the arguments of step, list and after.
func operands(params []any) (*Scratch, *node, []any, error) {
	s, n := params[0].(*Scratch), params[1].(code).n
	if !s.spend(16) {
		return nil, nil, nil, s.failed
	}
	return s, n, params[2:], nil
}

func toValue(x any) value {
	switch x := x.(type) {
	case value:
		return x
	case []any:
		return value{kind: array, s: "[]"} // only its being a list matters
	}
	return value{}
}

// step decides a condition about values, or computes one.
func step(params ...any) (any, error) {
	s, n, args, err := operands(params)
	if err != nil {
		return nil, err
	}
	var a, b value
	if len(args) > 0 {
		a = toValue(args[0])
	}
	if len(args) > 1 {
		b = toValue(args[1])
	}
	var out any
	switch n.op {
	case opConst:
		return n.val, nil
	case opField:
		return *s.field(n.field), nil
	case opItem:
		out = s.find(a, n.path)
	case opAdd, opSubtract, opMultiply, opDivide, opModulo:
		if !s.spend(len(a.s) + len(b.s)) {
			break
		}
		return compute(n.op, a, b)
	case opNegate:
		if a.kind == text { // 0 − text is missing as well
			return value{}, nil
		}
		return negate(a)
	case opLen:
		out = s.length(args[0], a)
	case opLower, opUpper, opTrim:
		out = s.reshape(n.op, a)
	case opInList:
		if items, ok := args[1].([]any); ok {
			out = s.among(n, a, items)
			break
		}
		out = s.test(n, a, b)
	default:
		out = s.test(n, a, b)
	}
	return out, s.failed
}

// among is in for a list that filter or map made.
func (s *Scratch) among(n *node, v value, items []any) bool {
	if v.kind == missing {
		s.Missing++
		return false
	}
	if !s.spend(len(items) * 16) {
		return false
	}
	for _, item := range items {
		if c, ok := compareValues(v, toValue(item)); ok && c == 0 {
			return !n.negated
		}
	}
	return n.negated
}

// length counts the characters of a string, the items of a list or the members of an object.
func (s *Scratch) length(x any, v value) value {
	n := int64(0)
	if items, ok := x.([]any); ok {
		return value{kind: integer, i: int64(len(items))}
	}
	if !s.spend(len(v.s)) {
		return value{}
	}
	switch v.kind {
	case text:
		n = int64(utf8.RuneCountInString(v.s))
	case array, object:
		at := len(s.text)
		s.items(v.s, func(value) bool {
			n++
			s.text = s.text[:at]
			return true
		})
	default:
		return value{}
	}
	return value{kind: integer, i: n}
}

func (s *Scratch) reshape(o op, v value) value {
	if v.kind != text || !s.spend(len(v.s)) {
		return value{}
	}
	switch o {
	case opLower:
		v.s = strings.ToLower(v.s)
	case opUpper:
		v.s = strings.ToUpper(v.s)
	default:
		v.s = strings.TrimSpace(v.s)
	}
	return v
}

// list gives the loop of a predicate its items, and notes whether there was a list at all: over no list
// any, all and none are false alike.
func list(params ...any) (any, error) {
	s, n, args, err := operands(params)
	if err != nil {
		return nil, err
	}
	for len(s.lists) <= n.id {
		s.lists = append(s.lists, false)
	}
	s.lists[n.id] = true
	if items, ok := args[0].([]any); ok {
		return items, nil
	}
	items := []any{}
	v := toValue(args[0])
	if v.kind != array {
		s.lists[n.id] = false
		s.Missing++
		return items, nil
	}
	if !s.spend(len(v.s)) {
		return nil, s.failed
	}
	s.items(v.s, func(item value) bool {
		if len(items) == maxItems {
			s.fail(errItems)
			return false
		}
		items = append(items, item)
		return s.spend(32)
	})
	return items, s.failed
}

// after gives a predicate's result, or what it comes to where there was no list.
func after(params ...any) (any, error) {
	s, n, args, err := operands(params)
	if err != nil {
		return nil, err
	}
	condition := n.op == opAny || n.op == opAll || n.op == opNone
	switch {
	case !s.lists[n.id] && condition:
		return false, nil
	case !s.lists[n.id]:
		return value{}, nil
	case n.op == opCount:
		return value{kind: integer, i: int64(args[0].(int))}, nil
	}
	return args[0], nil
}
