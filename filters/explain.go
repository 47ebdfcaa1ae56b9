package filters

import (
	"fmt"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// Explanation says why a filter took an event or did not.
type Explanation struct {
	Matched bool
	Decided string // the sub-expression that settled it; "" where there is no filter
	Parts   []Part // every condition, outermost first, in the order of the source
	Error   string // why the evaluation was given up; "" if it was not
}

// Part is one condition of a filter with what it came to.
type Part struct {
	Source string // the condition, written in expr's form
	Depth  int    // 0 is the whole filter
	Value  bool
	Values []Named // what it read of the event
}

// Missing is the value of what an event does not have; the values that are strings are quoted.
const Missing = "missing"

// Named is a path or an attribute and its value, Missing where it has none.
type Named struct {
	Name, Value string
}

// Explain evaluates every condition of the filter, also those that Match would not reach.
func (p *Program) Explain(rec event.Record) Explanation {
	if p == nil {
		return Explanation{Matched: true}
	}
	s := &Scratch{}
	e := Explanation{Matched: p.Match(rec, s)}
	if s.failed != nil {
		text, _, _ := strings.Cut(s.failed.Error(), "\n")
		e.Error = p.show(text)
	}
	e.Decided = p.show(decided(s, p.root).text())
	p.parts(s, p.root, 0, &e)
	return e
}

// decided finds the condition that settles n.
func decided(s *Scratch, n *node) *node {
	is := s.run(n, nil)
	switch n.op {
	case opAnd, opOr:
		for _, k := range n.kids {
			if s.run(k, nil) == (n.op == opOr) && is == (n.op == opOr) {
				return decided(s, k)
			}
		}
	case opIf:
		if s.run(n.kids[0], nil) {
			return decided(s, n.kids[1])
		}
		return decided(s, n.kids[2])
	}
	return n
}

func (p *Program) parts(s *Scratch, n *node, depth int, e *Explanation) {
	part := Part{Source: p.show(n.text()), Depth: depth, Value: s.run(n, nil)}
	p.values(s, n, &part, map[int]bool{})
	e.Parts = append(e.Parts, part)
	switch n.op {
	case opAnd, opOr, opNot, opIf:
		for _, k := range n.kids {
			p.parts(s, k, depth+1, e)
		}
	}
}

// values gathers what a condition reads.
func (p *Program) values(s *Scratch, n *node, part *Part, seen map[int]bool) {
	if n.op == opField && !seen[n.field] {
		seen[n.field] = true
		part.Values = append(part.Values, Named{p.fields.list[n.field].label, s.global(n.field).String()})
	}
	for _, k := range n.kids {
		p.values(s, k, part, seen)
	}
}

// String is one line, such as
//
//	no match: data.total > 100 is false (data.total is 50)
func (e Explanation) String() string {
	verdict := "no match"
	if e.Matched {
		verdict = "match"
	}
	if e.Error != "" {
		return verdict + ": given up: " + e.Error
	}
	for _, part := range e.Parts {
		if part.Source != e.Decided {
			continue
		}
		var values []string
		for _, v := range part.Values {
			values = append(values, v.Name+" is "+v.Value)
		}
		why := ""
		if len(values) > 0 {
			why = " (" + strings.Join(values, ", ") + ")"
		}
		return fmt.Sprintf("%s: %s is %t%s", verdict, part.Source, part.Value, why)
	}
	return verdict + ": there is no filter"
}
