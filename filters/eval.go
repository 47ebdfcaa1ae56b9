package filters

import (
	"regexp"
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm"
)

// op is what a node does.
type op uint8

const (
	// Conditions.
	opFalse op = iota
	opTrue
	opAnd
	opOr
	opNot
	opIf       // cond, then, else
	opRelate   // left, right
	opIn       // left; set
	opInList   // left, list
	opHas      // field or item
	opIs       // field or item
	opContains // left, right
	opStarts   // left, right
	opEnds     // left, right
	opMatches  // left; re
	opAny      // list, condition
	opAll
	opNone
	opMachine // a condition that runs on expr's machine; its only child says what was compiled

	// Values.
	opConst
	opField
	opItem // # in a predicate, and paths below it
	opAdd
	opSubtract
	opMultiply
	opDivide
	opModulo
	opNegate
	opLen
	opLower
	opUpper
	opTrim
	opCount
	opFilter
	opMap
	opChoose // cond, then, else
)

// node is one node of a checked filter. Nodes are immutable once compiled.
type node struct {
	op      op
	negated bool // of in and the string operators: not in, not contains…
	rel     relation
	kids    []*node
	field   int       // opField
	path    []segment // opItem
	val     value     // opConst
	set     *set
	re      *regexp.Regexp
	cost    int // opMatches: work per byte
	id      int // opAny…opMap: numbers the lists of a program
	program *vm.Program
	at      int      // character of the source
	src     ast.Node // as written, for explanations
}

// set is the right side of in: constants by type.
type set struct {
	list    []value
	texts   map[string]struct{} // where there are many
	numbers bool
	strings bool
	bools   bool
	times   bool
}

const manyTexts = 8

func newSet(list []value) *set {
	st := &set{list: list}
	for _, v := range list {
		switch v.kind {
		case boolean:
			st.bools = true
		case integer, decimal:
			st.numbers = true
		case text:
			st.strings = true
		case instant:
			st.times = true
		}
	}
	if st.strings && len(list) > manyTexts {
		st.texts = map[string]struct{}{}
		for _, v := range list {
			if v.kind == text {
				st.texts[v.s] = struct{}{}
			}
		}
	}
	return st
}

// has reports whether v is in the set; ok is false where the set holds nothing of v's type.
func (st *set) has(v value) (is, ok bool) {
	switch v.kind {
	case boolean:
		ok = st.bools
	case integer, decimal:
		ok = st.numbers
	case text:
		ok = st.strings
	case instant:
		ok = st.times
	}
	if !ok {
		return false, false
	}
	if v.kind == text && st.texts != nil {
		_, is = st.texts[v.s]
		return is, true
	}
	for i := range st.list {
		if c, ok := compareValues(v, st.list[i]); ok && c == 0 {
			return true, true
		}
	}
	return false, true
}

// is evaluates a condition on the machine of this package.
func (s *Scratch) is(n *node) bool {
	switch n.op {
	case opTrue:
		return true
	case opAnd:
		for _, k := range n.kids {
			if !s.is(k) {
				return false
			}
		}
		return true
	case opOr:
		for _, k := range n.kids {
			if s.is(k) {
				return true
			}
		}
		return false
	case opNot:
		return !s.is(n.kids[0])
	case opIf:
		if s.is(n.kids[0]) {
			return s.is(n.kids[1])
		}
		return s.is(n.kids[2])
	case opMachine:
		return s.onMachine(n)
	case opRelate:
		return s.test(n, s.operand(n.kids[0]), s.operand(n.kids[1]))
	case opContains, opStarts, opEnds, opInList:
		return s.test(n, s.operand(n.kids[0]), s.operand(n.kids[1]))
	case opIn, opMatches, opHas, opIs:
		return s.test(n, s.operand(n.kids[0]), value{})
	}
	return false
}

// operand is a value that needs no machine: a constant or a field.
func (s *Scratch) operand(n *node) value {
	if n.op == opConst {
		return n.val
	}
	return *s.field(n.field)
}

// test decides a condition about one or two values: the one place that knows what missing paths and other
// types come to, for both machines.
func (s *Scratch) test(n *node, a, b value) bool {
	var is, ok bool
	switch n.op {
	case opHas:
		return a.kind != missing
	case opIs:
		is, ok = a.b && a.kind == boolean, a.kind == boolean
	case opRelate:
		is, ok = relate(n.rel, a, b)
	case opIn:
		is, ok = n.set.has(a)
	case opInList:
		is, ok = s.inList(a, b)
	case opContains, opStarts, opEnds:
		if ok = a.kind == text && b.kind == text; ok {
			switch n.op {
			case opContains:
				is = s.spend(len(a.s)/16) && strings.Contains(a.s, b.s)
			case opStarts:
				is = strings.HasPrefix(a.s, b.s)
			default:
				is = strings.HasSuffix(a.s, b.s)
			}
		}
	case opMatches:
		if ok = a.kind == text; ok {
			is = s.spend(len(a.s)*n.cost) && n.re.MatchString(a.s)
		}
	}
	if !ok {
		s.Missing++
		return false
	}
	return is != n.negated
}

// inList looks for v in a list of the event.
func (s *Scratch) inList(v, list value) (is, ok bool) {
	if v.kind == missing || list.kind != array {
		return false, false
	}
	if !s.spend(len(list.s)) {
		return false, false
	}
	at := len(s.text)
	left := maxItems
	s.items(list.s, func(item value) bool {
		if left--; left < 0 {
			s.fail(errItems)
			return false
		}
		c, same := compareValues(v, item)
		is = same && c == 0
		s.text = s.text[:at]
		return !is
	})
	return is, true
}
