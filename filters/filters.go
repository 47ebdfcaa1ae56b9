// Package filters is the router's expression dialect: programs compiled once from the syntax of
// expr-lang/expr, an index over the equalities that thousands of them require, and explanations of why
// one matched or did not. docs/filters.md is the reference; its truth table is a test of this package.
//
// Equality, in, order, string operators, has and the connectives run on a small machine of this package
// that does not allocate; arithmetic, functions and predicates run on expr's. Both stand on the same
// comparisons (value.go), and a property test holds one against the other.
package filters

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

// Bounds of a filter and of what one evaluation may cost. None depends on the event, so that a filter
// that compiles stays harmless whatever is published.
const (
	MaxSource = 4096 // bytes of a filter's source

	maxNesting = 64     // brackets within brackets
	maxNodes   = 2000   // of the syntax tree
	maxTree    = 256    // levels of the syntax tree
	maxPath    = 64     // steps of one path
	maxItems   = 10_000 // of a list that a predicate, count, filter, map or in goes through
	maxText    = 1 << 20
	maxDigits  = 1000    // that arithmetic may need to stay exact
	maxRegexp  = 500     // instructions of a compiled regular expression
	maxWork    = 8 << 20 // of one evaluation; about a byte looked at each
	maxMemory  = 1e6     // of expr's machine, in elements
)

// Error says why a filter was refused. Line and Column count characters from 1.
type Error struct {
	Line, Column int
	Source       string
	Detail       string // what is wrong, the value, what is allowed
}

// Error returns the place and the detail.
func (e *Error) Error() string {
	if e.Line > 1 {
		return fmt.Sprintf("filter, line %d, column %d: %s", e.Line, e.Column, e.Detail)
	}
	return fmt.Sprintf("filter, column %d: %s", e.Column, e.Detail)
}

// Program is a compiled filter. It is immutable and may be used by many goroutines, each with a Scratch of
// its own. A nil Program matches every event.
type Program struct {
	source string
	root   *node
	fields *fields
	hidden *strings.Replacer // of values that are not shown; nil: none

	required []equality // for an Index
}

// Compile compiles a filter. The error is an *Error.
func Compile(src string) (*Program, error) { return compile(src, false) }

// compile compiles everything for expr's machine if machine is set: the tests hold the two against each
// other.
func compile(src string, machine bool) (*Program, error) {
	if err := checkSource(src); err != nil {
		return nil, err
	}
	root, fs, err := read(src)
	if err != nil {
		return nil, err
	}
	p := &Program{source: src, root: root, fields: fs}
	if p.root, err = assemble(root, src, machine); err != nil {
		return nil, err
	}
	p.required = equalities(p.root)
	return p, nil
}

// Source returns what Compile was given.
func (p *Program) Source() string {
	if p == nil {
		return ""
	}
	return p.source
}

// Hiding returns the program with values in its source, such as a secret that a reference stood for, that Shown and
// Explain write as "***".
func (p *Program) Hiding(values ...string) *Program {
	var pairs []string
	for _, v := range values {
		quoted := strconv.Quote(v)
		for _, form := range []string{v, quoted[1 : len(quoted)-1]} {
			if form != "" {
				pairs = append(pairs, form, "***")
			}
		}
	}
	hiding := *p
	hiding.hidden = strings.NewReplacer(pairs...)
	return &hiding
}

// Shown is Source without what is hidden.
func (p *Program) Shown() string { return p.show(p.Source()) }

func (p *Program) show(text string) string {
	if p == nil || p.hidden == nil {
		return text
	}
	return p.hidden.Replace(text)
}

// Match reports whether the filter takes an event. It never fails: what cannot be answered is no match,
// and s counts it.
func (p *Program) Match(rec event.Record, s *Scratch) bool {
	if p == nil {
		return true
	}
	s.begin(rec, p.fields)
	return s.run(p.root, nil)
}

// checkSource refuses, before the parser sees it, what could cost it too much or hide its meaning from a
// reader.
func checkSource(src string) *Error {
	if len(src) > MaxSource {
		return &Error{Line: 1, Column: 1, Source: src[:64] + "…", Detail: fmt.Sprintf("the filter has %d bytes; at most %d are allowed", len(src), MaxSource)}
	}
	refuse := func(at int, format string, args ...any) *Error {
		return place(src, utf8.RuneCountInString(src[:at]), fmt.Sprintf(format, args...))
	}
	if strings.TrimSpace(src) == "" {
		return refuse(0, `the filter is empty; leave it out to match every event`)
	}
	open, quote := 0, rune(0)
	skip := false
	for i, r := range src {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(src[i:], "\uFFFD"):
			return refuse(i, "byte 0x%02x is not UTF-8", src[i])
		case r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0x7F, r >= 0x80 && r < 0xA0:
			return refuse(i, "control character %U; in a string write it as an escape such as \\u%04x", r, r)
		case r == 0x061C, r == 0x200E, r == 0x200F, r >= 0x202A && r <= 0x202E, r >= 0x2066 && r <= 0x2069:
			return refuse(i, "%U changes the direction of text and hides what the filter says; in a string write it as \\u%04x", r, r)
		}
		switch {
		case skip:
			skip = false
		case quote != 0:
			if r == '\\' && quote != '`' {
				skip = true
			} else if r == quote {
				quote = 0
			}
		case r == '\'' || r == '"' || r == '`':
			quote = r
		case r == '(' || r == '[' || r == '{':
			if open++; open > maxNesting {
				return refuse(i, "brackets nest %d deep; at most %d are allowed", open, maxNesting)
			}
		case r == ')' || r == ']' || r == '}':
			open--
		}
	}
	return nil
}

// place is an Error at a character of the source.
func place(src string, at int, detail string) *Error {
	e := &Error{Line: 1, Column: 1, Source: src, Detail: detail}
	for _, r := range src {
		if at--; at < 0 {
			break
		}
		e.Column++
		if r == '\n' {
			e.Line, e.Column = e.Line+1, 1
		}
	}
	return e
}
