package filters

import (
	"slices"

	"github.com/millrace/millrace/engine/event"
)

// Index holds many programs and evaluates only those of which an event meets one required equality. It is
// immutable and may be used by many goroutines, each with a Scratch of its own.
//
// A program requires an equality if it stands at its top or under && only: field == constant, or
// field in [constants]. Of several the one shared with the fewest other programs is indexed; it is not
// evaluated again.
type Index struct {
	fields  *fields
	entries []entry
	keys    []indexKey
	rest    []int32 // programs that require none, ascending
}

type entry struct {
	root *node // what is left to evaluate; nil: nothing
	link []int32
}

// indexKey finds programs by the value of one field.
type indexKey struct {
	field    int
	texts    map[string][]int32
	integers map[int64][]int32
	decimals map[string][]int32
	instants map[[2]int64][]int32
	booleans [2][]int32
}

// equality is one that a program requires.
type equality struct {
	field  int // of the program
	values []value
	kid    int // of the program's root; −1: the root itself
}

// NewIndex indexes programs under their places in the slice. A nil program matches every event.
func NewIndex(programs []*Program) *Index {
	all, links := union(programs)
	x := &Index{fields: all, entries: make([]entry, len(programs))}
	counts := make(map[spot]int, len(programs))
	for i, p := range programs {
		x.entries[i].link = links[i]
		if p == nil {
			continue
		}
		x.entries[i].root = p.root
		for _, q := range p.required {
			for _, v := range q.values {
				counts[spotOf(int(links[i][q.field]), v)]++
			}
		}
	}
	byField := map[int]int{}
	for i, p := range programs {
		best, field := -1, 0
		if p != nil {
			best, field = p.selective(all, links[i], counts)
		}
		if best < 0 {
			x.rest = append(x.rest, int32(i))
			continue
		}
		q := p.required[best]
		x.entries[i].root = without(x.entries[i].root, q.kid)
		at, ok := byField[field]
		if !ok {
			at = len(x.keys)
			byField[field] = at
			x.keys = append(x.keys, indexKey{field: field})
		}
		for _, v := range q.values {
			x.keys[at].add(v, int32(i))
		}
	}
	return x
}

// selective is the place among p's required equalities of the one that it shares with the fewest other programs, −1 if it
// requires none, and that one's field in the index.
func (p *Program) selective(all *fields, link []int32, counts map[spot]int) (best, field int) {
	best, least := -1, 0
	for j, q := range p.required {
		n, at := 0, int(link[q.field])
		for _, v := range q.values {
			n += counts[spotOf(at, v)]
		}
		// Among equals an attribute wins: it needs no look at the data.
		if best < 0 || n < least || n == least && all.list[at].origin < all.list[field].origin {
			best, field, least = j, at, n
		}
	}
	return best, field
}

// equalities lists what a condition requires.
func equalities(root *node) []equality {
	if q, ok := equalityOf(root); ok {
		q.kid = -1
		return []equality{q}
	}
	var out []equality
	if root.op == opAnd {
		for i, k := range root.kids {
			if q, ok := equalityOf(k); ok {
				q.kid = i
				out = append(out, q)
			}
		}
	}
	return slices.Clip(out)
}

func equalityOf(n *node) (equality, bool) {
	switch {
	case n.op == opIs && n.kids[0].op == opField:
		return equality{field: n.kids[0].field, values: []value{{kind: boolean, b: true}}}, true
	case n.op == opRelate && n.rel == equal:
		for i, k := range n.kids {
			c := n.kids[1-i]
			if k.op == opField && c.op == opConst && c.val.kind != null {
				return equality{field: k.field, values: []value{c.val}}, true
			}
		}
	case n.op == opIn && !n.negated && n.kids[0].op == opField:
		return equality{field: n.kids[0].field, values: n.set.list}, true
	}
	return equality{}, false
}

// without is a root with one of its conditions taken out, since the index has decided it.
func without(root *node, kid int) *node {
	if kid < 0 {
		return nil
	}
	c := *root
	c.kids = slices.Delete(slices.Clone(root.kids), kid, kid+1)
	if len(c.kids) == 1 {
		return c.kids[0]
	}
	return &c
}

// spot is a field with a value, canonical: 1 and 1.0 share one.
type spot struct {
	field int
	kind  kind
	b     bool
	n     int32
	i     int64
	s     string
}

func spotOf(field int, v value) spot {
	if v.kind == decimal {
		v.s = string(v.appendDigits(nil))
	}
	return spot{field, v.kind, v.b, v.n, v.i, v.s}
}

// appendDigits appends a canonical key of a decimal: equal for equal numbers only.
func (v value) appendDigits(dst []byte) []byte {
	for i := 0; i < len(v.s); i++ {
		if v.s[i] != '.' {
			dst = append(dst, v.s[i])
		}
	}
	for shift := 0; shift < 64; shift += 8 {
		dst = append(dst, byte(uint64(v.i)>>shift))
	}
	if v.b {
		dst = append(dst, '-')
	}
	return dst
}

func (k *indexKey) add(v value, id int32) {
	put := func(list []int32) []int32 {
		if len(list) > 0 && list[len(list)-1] == id { // in [1, 1.0]
			return list
		}
		return append(list, id)
	}
	switch v.kind {
	case text:
		if k.texts == nil {
			k.texts = map[string][]int32{}
		}
		k.texts[v.s] = put(k.texts[v.s])
	case integer:
		if k.integers == nil {
			k.integers = map[int64][]int32{}
		}
		k.integers[v.i] = put(k.integers[v.i])
	case decimal:
		if k.decimals == nil {
			k.decimals = map[string][]int32{}
		}
		key := string(v.appendDigits(nil))
		k.decimals[key] = put(k.decimals[key])
	case instant:
		if k.instants == nil {
			k.instants = map[[2]int64][]int32{}
		}
		key := [2]int64{v.i, int64(v.n)}
		k.instants[key] = put(k.instants[key])
	case boolean:
		at := 0
		if v.b {
			at = 1
		}
		k.booleans[at] = put(k.booleans[at])
	}
}

// Match appends to dst the places of the programs that match, ascending, and returns it. Errors of single
// programs are counted in s and are no match of that program only.
func (x *Index) Match(rec event.Record, s *Scratch, dst []int) []int {
	s.begin(rec, x.fields)
	start := len(dst)
	for i := range x.keys {
		k := &x.keys[i]
		v := s.global(k.field)
		var list []int32
		switch v.kind {
		case text:
			list = k.texts[v.s]
		case integer:
			list = k.integers[v.i]
		case decimal:
			s.key = v.appendDigits(s.key[:0])
			list = k.decimals[string(s.key)]
		case instant:
			list = k.instants[[2]int64{v.i, int64(v.n)}]
		case boolean:
			if v.b {
				list = k.booleans[1]
			} else {
				list = k.booleans[0]
			}
		}
		dst = x.evaluate(list, s, dst)
	}
	dst = x.evaluate(x.rest, s, dst)
	if !slices.IsSorted(dst[start:]) {
		slices.Sort(dst[start:])
	}
	return dst
}

func (x *Index) evaluate(list []int32, s *Scratch, dst []int) []int {
	for _, id := range list {
		e := &x.entries[id]
		if e.root == nil || s.run(e.root, e.link) {
			dst = append(dst, int(id))
		}
	}
	return dst
}
