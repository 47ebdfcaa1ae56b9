package mqttname

import (
	"strings"
	"sync"
	"unsafe"
)

// borrow is b as a string, for the time of a call that keeps nothing of it.
func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// A Table holds values under filters and never changes, so that looking up takes no lock. The zero value is empty.
type Table[T any] struct{ root node[T] }

// Put adds a value. It is for making a table: nobody may look up meanwhile.
func (t *Table[T]) Put(filter string, v T) { t.root.put(filter, v) }

// Match visits the values of the filters that match name, those of a more specific filter before those of a less
// specific one (MoreSpecific), until visit returns false. It allocates nothing.
func (t *Table[T]) Match(name string, visit func(T) bool) {
	t.root.match(name, strings.HasPrefix(name, "$"), visit)
}

// First returns the value of the most specific filter that matches name.
func (t *Table[T]) First(name string) (v T, ok bool) {
	t.Match(name, func(x T) bool {
		v, ok = x, true
		return false
	})
	return v, ok
}

// A Trie holds values under filters; for use by several goroutines. The zero value is empty.
type Trie[T comparable] struct {
	mu   sync.RWMutex
	root node[T]
	size int
}

// Add puts v under filter. A value may stand under several filters, and twice under one.
func (t *Trie[T]) Add(filter string, v T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.root.put(filter, v)
	t.size++
}

// Remove takes v from under filter, once, and reports whether it was there.
func (t *Trie[T]) Remove(filter string, v T) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	removed := remove(&t.root, filter, v)
	if removed {
		t.size--
	}
	return removed
}

// Len is how many values there are.
func (t *Trie[T]) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.size
}

// Match visits the values of the filters that match name until visit returns false, those of a more specific filter
// first. A value that stands under several of them is visited several times. visit must not Add or Remove. It allocates
// nothing.
func (t *Trie[T]) Match(name string, visit func(T) bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	t.root.match(name, strings.HasPrefix(name, "$"), visit)
}

// MatchBytes is Match of a name in a buffer.
func (t *Trie[T]) MatchBytes(name []byte, visit func(T) bool) { t.Match(borrow(name), visit) }

// A node is one level of the filters below it.
type node[T any] struct {
	text map[string]*node[T]
	plus *node[T]
	rest []T // of filters that go on with # here
	here []T // of filters that end here
}

func (n *node[T]) put(filter string, v T) {
	for more := true; more; {
		var level string
		if level, filter, more = strings.Cut(filter, "/"); level == "#" {
			n.rest = append(n.rest, v)
			return
		}
		n = n.child(level)
	}
	n.here = append(n.here, v)
}

func (n *node[T]) child(level string) *node[T] {
	if level == "+" {
		if n.plus == nil {
			n.plus = &node[T]{}
		}
		return n.plus
	}
	c := n.text[level]
	if c == nil {
		c = &node[T]{}
		if n.text == nil {
			n.text = map[string]*node[T]{}
		}
		n.text[strings.Clone(level)] = c // level borrows the whole filter, perhaps of a packet
	}
	return c
}

// match is deep at most as a filter, and visits a node at most once.
func (n *node[T]) match(name string, hidden bool, visit func(T) bool) bool {
	level, below, more := strings.Cut(name, "/")
	if c := n.text[level]; c != nil && !c.found(below, more, visit) {
		return false
	}
	if hidden { // [MQTT-4.7.2-1]
		return true
	}
	return (n.plus == nil || n.plus.found(below, more, visit)) && all(n.rest, visit)
}

// found is match of what is below a level that fits.
func (n *node[T]) found(below string, more bool, visit func(T) bool) bool {
	if more {
		return n.match(below, false, visit)
	}
	return all(n.here, visit) && all(n.rest, visit) // a/# matches a too (4.7.1.2)
}

func all[T any](values []T, visit func(T) bool) bool {
	for _, v := range values {
		if !visit(v) {
			return false
		}
	}
	return true
}

func (n *node[T]) empty() bool {
	return len(n.text) == 0 && n.plus == nil && len(n.rest) == 0 && len(n.here) == 0
}

// remove also drops the nodes that nothing is left under.
func remove[T comparable](n *node[T], filter string, v T) bool {
	level, below, more := strings.Cut(filter, "/")
	if level == "#" {
		return cut(&n.rest, v)
	}
	c := n.plus
	if level != "+" {
		c = n.text[level]
	}
	if c == nil {
		return false
	}
	removed := false
	if more {
		removed = remove(c, below, v)
	} else {
		removed = cut(&c.here, v)
	}
	if removed && c.empty() {
		if level == "+" {
			n.plus = nil
		} else {
			delete(n.text, level)
		}
	}
	return removed
}

// cut takes one v out of values; their order does not count.
func cut[T comparable](values *[]T, v T) bool {
	all := *values
	for i, x := range all {
		if x == v {
			last := len(all) - 1
			all[i] = all[last]
			clear(all[last:])
			if *values = all[:last]; last == 0 {
				*values = nil
			}
			return true
		}
	}
	return false
}
