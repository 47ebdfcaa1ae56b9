package filters

import (
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is how deep JSON may nest; deeper data is not JSON to a filter. The scanner keeps a bit per
// level and does not recurse.
const maxDepth = 1024

// A segment is one step of a path: a key of an object, or an index of an array.
type segment struct {
	key   string
	index int // −1: a key
}

// A tree holds the paths that a program or an index reads from a document, so that one pass over the
// document finds them all. Node 0 is the document. It is immutable once built.
type tree struct {
	nodes []treeNode
	deep  int // levels of the longest path
}

type treeNode struct {
	parent int32
	keys   map[string]int32
	items  map[int]int32
}

func newTree() *tree { return &tree{nodes: []treeNode{{parent: -1}}} }

// add returns the node of a path.
func (t *tree) add(path []segment) int32 {
	at := int32(0)
	for _, seg := range path {
		n := &t.nodes[at]
		child, ok := n.keys[seg.key]
		if seg.index >= 0 {
			child, ok = n.items[seg.index]
		}
		if !ok {
			child = int32(len(t.nodes))
			if seg.index >= 0 {
				if n.items == nil {
					n.items = map[int]int32{}
				}
				n.items[seg.index] = child
			} else {
				if n.keys == nil {
					n.keys = map[string]int32{}
				}
				n.keys[seg.key] = child
			}
			t.nodes = append(t.nodes, treeNode{parent: at})
		}
		at = child
	}
	t.deep = max(t.deep, len(path))
	return at
}

// found is what a scan saw at a node of the tree. Of a key that occurs twice the last occurrence counts,
// as it does to encoding/json and to JavaScript: a child belongs to the occurrence of its parent whose
// visit it carries.
type found struct {
	visit, within uint64
	from, to      int
	escaped       bool // a string with escapes
}

// scanner keeps a scan's result until the next one. The zero value is ready.
type scanner struct {
	doc    string
	nodes  []found
	visits uint64
	frames []frame
	key    []byte
}

type frame struct {
	node  int32
	index int
	visit uint64
}

// scan reads doc whole and reports whether it is JSON, at most maxDepth deep.
func (sc *scanner) scan(t *tree, doc string) bool {
	sc.doc = doc
	if len(sc.nodes) < len(t.nodes) {
		sc.nodes = append(sc.nodes, make([]found, len(t.nodes)-len(sc.nodes))...)
	}
	sc.frames = sc.frames[:0]
	var lists [maxDepth / 64]uint64 // bit d: the container at depth d is an array
	depth, list := 0, false         // list: the innermost container is an array
	i := skipSpace(doc, 0)
	node := int32(0) // of the value that comes next; −1: nobody asks
	within := uint64(0)

	for {
		// A value.
		if i >= len(doc) {
			return false
		}
		from := i
		closed := false
		switch c := doc[i]; c {
		case '{', '[':
			if depth == maxDepth {
				return false
			}
			if list = c == '['; list {
				lists[depth/64] |= 1 << (depth % 64)
			} else {
				lists[depth/64] &^= 1 << (depth % 64)
			}
			depth++
			if node >= 0 {
				sc.visits++
				sc.nodes[node] = found{visit: sc.visits, within: within, from: from}
				sc.frames = append(sc.frames, frame{node: node, index: -1, visit: sc.visits})
			}
			i = skipSpace(doc, i+1)
			closed = i < len(doc) && doc[i] == c+2 // ] and }
		default:
			end, escaped, ok := skipScalar(doc, i)
			if !ok {
				return false
			}
			if node >= 0 {
				sc.visits++
				sc.nodes[node] = found{sc.visits, within, from, end, escaped}
			}
			if depth == 0 {
				return skipSpace(doc, end) == len(doc)
			}
			i = skipSpace(doc, end)
			if i >= len(doc) {
				return false
			}
			if doc[i] == ',' {
				i = skipSpace(doc, i+1)
			} else if closed = list && doc[i] == ']' || !list && doc[i] == '}'; !closed {
				return false
			}
		}
		// The ends of containers.
		for closed {
			i++
			if len(sc.frames) == depth {
				sc.nodes[sc.frames[depth-1].node].to = i
				sc.frames = sc.frames[:depth-1]
			}
			depth--
			i = skipSpace(doc, i)
			if depth == 0 {
				return i == len(doc)
			}
			if i >= len(doc) {
				return false
			}
			list = lists[(depth-1)/64]&(1<<((depth-1)%64)) != 0
			if doc[i] == ',' {
				closed = false
				i = skipSpace(doc, i+1)
			} else if closed = list && doc[i] == ']' || !list && doc[i] == '}'; !closed {
				return false
			}
		}
		// What comes next, and who asks for it.
		node = -1
		var top *frame
		if len(sc.frames) == depth {
			top = &sc.frames[depth-1]
			within = top.visit
		}
		if list {
			if top != nil {
				top.index++
				if child, ok := t.nodes[top.node].items[top.index]; ok {
					node = child
				}
			}
			continue
		}
		if i >= len(doc) || doc[i] != '"' {
			return false
		}
		end, escaped, ok := skipString(doc, i)
		if !ok {
			return false
		}
		if top != nil {
			if keys := t.nodes[top.node].keys; keys != nil {
				key := doc[i+1 : end-1]
				var child int32
				if escaped {
					sc.key = appendUnescaped(sc.key[:0], key)
					child, ok = keys[string(sc.key)]
				} else {
					child, ok = keys[key]
				}
				if ok {
					node = child
				}
			}
		}
		i = skipSpace(doc, end)
		if i >= len(doc) || doc[i] != ':' {
			return false
		}
		i = skipSpace(doc, i+1)
	}
}

// at returns what the last scan found at a node; began is sc.visits from before that scan.
func (sc *scanner) at(t *tree, node int32, began uint64) (found, bool) {
	f := sc.nodes[node]
	for n, child := node, f; ; {
		if child.visit <= began {
			return found{}, false
		}
		parent := t.nodes[n].parent
		if parent < 0 {
			return f, true
		}
		up := sc.nodes[parent]
		if child.within != up.visit {
			return found{}, false
		}
		n, child = parent, up
	}
}

func skipSpace(s string, i int) int {
	for i < len(s) && (s[i] == ' ' || s[i] == '\n' || s[i] == '\t' || s[i] == '\r') {
		i++
	}
	return i
}

func skipScalar(s string, i int) (end int, escaped, ok bool) {
	switch s[i] {
	case '"':
		return skipString(s, i)
	case 't':
		return i + 4, false, strings.HasPrefix(s[i:], "true")
	case 'f':
		return i + 5, false, strings.HasPrefix(s[i:], "false")
	case 'n':
		return i + 4, false, strings.HasPrefix(s[i:], "null")
	}
	end, ok = skipNumber(s, i)
	return end, false, ok
}

// skipString checks the string that begins at s[i] and returns where it ends.
func skipString(s string, i int) (end int, escaped, ok bool) {
	for i++; i < len(s); i++ {
		if i = skipPlain(s, i); i >= len(s) {
			break
		}
		c := s[i]
		if c > '\\' || c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		switch {
		case c == '"':
			return i + 1, escaped, true
		case c < ' ':
			return 0, false, false
		}
		escaped = true
		if i++; i >= len(s) {
			return 0, false, false
		}
		switch s[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			if i+4 >= len(s) {
				return 0, false, false
			}
			for _, h := range []byte(s[i+1 : i+5]) {
				if unhex(h) < 0 {
					return 0, false, false
				}
			}
			i += 4
		default:
			return 0, false, false
		}
	}
	return 0, false, false
}

// skipPlain passes over bytes that mean nothing in a string, eight at a time, and returns where the next one is that does,
// or where fewer than eight are left: long texts are most of what there is to scan.
func skipPlain(s string, i int) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	for ; i+8 <= len(s); i += 8 {
		b := s[i : i+8]
		w := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 | uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		quote, slash := w^'"'*ones, w^'\\'*ones
		// x-ones borrows from the high bit of a byte that is 0; what a borrow does to the bytes above does not matter, the lowest
		// is looked for.
		if found := ((quote-ones)&^quote | (slash-ones)&^slash | (w-' '*ones)&^w) & highs; found != 0 {
			return i + bits.TrailingZeros64(found)>>3
		}
	}
	return i
}

// skipNumber checks the number that begins at s[i] (RFC 8259, section 6) and returns where it ends.
func skipNumber(s string, i int) (end int, ok bool) {
	if i < len(s) && s[i] == '-' {
		i++
	}
	run := func() bool {
		from := i
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(s) && s[i] == '0' {
		i++
	} else if !run() {
		return 0, false
	}
	if i < len(s) && s[i] == '.' {
		i++
		if !run() {
			return 0, false
		}
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		i++
		if i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		if !run() {
			return 0, false
		}
	}
	return i, true
}

func unhex(c byte) rune {
	switch {
	case c >= '0' && c <= '9':
		return rune(c - '0')
	case c >= 'a' && c <= 'f':
		return rune(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return rune(c-'A') + 10
	}
	return -1
}

// appendUnescaped appends what a checked JSON string means. A lone surrogate becomes U+FFFD, as in
// encoding/json.
func appendUnescaped(dst []byte, s string) []byte {
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			dst = append(dst, s[i])
			i++
			continue
		}
		c := s[i+1]
		i += 2
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r := hex4(s[i:])
			i += 4
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if strings.HasPrefix(s[i:], `\u`) {
					low = hex4(s[i+2:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, c)
	}
	return dst
}

func hex4(s string) (r rune) {
	for i := range 4 {
		r = r<<4 | unhex(s[i])
	}
	return r
}
