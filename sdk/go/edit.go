package millrace

import (
	"errors"
	"math/bits"
)

// An Edit is one change of a document, for Apply.
type Edit struct {
	path, value string
	do          uint8
}

// What an edit does: those up to doSetText make what is missing.
const (
	doSet = iota
	doSetText
	doReplace
	doReplaceText
	doRemove
)

// SetTo sets the value at a path, making it and the objects on the way if they are missing. Value is JSON.
func SetTo(path, value string) Edit { return Edit{path, value, doSet} }

// SetText is SetTo with a string, which it quotes.
func SetText(path, value string) Edit { return Edit{path, value, doSetText} }

// ReplaceWith sets the value at a path if there is one. Value is JSON.
func ReplaceWith(path, value string) Edit { return Edit{path, value, doReplace} }

// ReplaceText is ReplaceWith with a string, which it quotes.
func ReplaceText(path, value string) Edit { return Edit{path, value, doReplaceText} }

// Remove takes the value at a path away. That there is none is no error.
func Remove(path string) Edit { return Edit{path, "", doRemove} }

// MaxEdits is how many edits one Apply takes.
const MaxEdits = 64

// ErrEdits are more than MaxEdits edits for one Apply.
var ErrEdits = errors.New("millrace: more than 64 edits in one Apply")

// Apply appends to dst the document with changes, made in a single pass, every other byte as it was. Of two
// edits of one path the later counts; an edit inside a value that another one writes or removes does
// nothing. Missing members are appended in the order of their edits. On an error dst is returned as it
// was: ErrJSON, ErrPath where SetTo or SetText cannot get to its path, or ErrEdits.
func Apply(dst, doc []byte, edits ...Edit) ([]byte, error) {
	if len(edits) > MaxEdits {
		return dst, ErrEdits
	}
	var room [16]string
	e, p := editor{doc: doc, dst: dst}, plan{edits: edits, names: room[:0]}
	var all uint64
	whole := -1
	for i := range edits {
		path := edits[i].path
		if path == "" {
			whole = i
		}
		for more := path != ""; more; {
			var seg string
			seg, path, more = cutPath(path)
			p.names = append(p.names, seg)
		}
		p.ends[i+1] = uint32(len(p.names))
		all |= 1 << i
	}
	from := space(doc, 0)
	to, err := e.root(&p, from, whole, all)
	switch {
	case err != nil:
		return dst, err
	case to <= 0 || space(doc, to) != len(doc):
		return dst, ErrJSON
	}
	return append(e.dst, doc[e.done:]...), nil
}

// Set appends to dst the document with the value, which is JSON, at a path; objects that are missing on
// the way are made. On an error dst is returned as it was. Reuse dst from event to event.
func Set(dst, doc []byte, path string, value []byte) ([]byte, error) {
	return Apply(dst, doc, Edit{path, text(value), doSet})
}

// SetString is Set with a string, which it quotes.
func SetString(dst, doc []byte, path, value string) ([]byte, error) {
	return Apply(dst, doc, Edit{path, value, doSetText})
}

// Delete appends to dst the document without the value at a path. That there is none is no error.
func Delete(dst, doc []byte, path string) ([]byte, error) {
	return Apply(dst, doc, Edit{path, "", doRemove})
}

// plan is what shall be changed. It is apart from editor because what a struct's slices point to goes to the
// heap together: a caller's edits and the names can stay on the stack so.
type plan struct {
	edits []Edit
	names []string             // of all paths, one after the other
	ends  [MaxEdits + 1]uint32 // where the names of each path end
}

// editor copies a document with changes: what lies before done has been copied.
type editor struct {
	doc, dst []byte
	done     int
}

// name returns name number depth of an edit's path and whether it is the last.
func (p *plan) name(edit, depth int) (name string, last bool) {
	at := p.ends[edit] + uint32(depth)
	return p.names[at], at+1 == p.ends[edit+1]
}

// root changes the whole document and returns where it ends.
func (e *editor) root(p *plan, from, whole int, all uint64) (int, error) {
	if whole < 0 && from < len(e.doc) {
		switch e.doc[from] {
		case '{':
			return e.object(p, from, 0, all)
		case '[':
			return e.array(p, from, 0, all)
		}
	}
	to := skip(e.doc, from)
	switch {
	case to < 0:
		return 0, ErrJSON
	case whole >= 0 && p.edits[whole].do == doRemove:
		return 0, ErrPath
	case whole >= 0:
		e.write(p, whole, from, to)
	case p.sets(all):
		return 0, ErrPath
	}
	return to, nil
}

// sets reports whether one of the edits must find its path.
func (p *plan) sets(active uint64) bool {
	for ; active != 0; active &= active - 1 {
		if p.edits[bits.TrailingZeros64(active)].do <= doSetText {
			return true
		}
	}
	return false
}

// within changes what the edits name inside the value at from, and returns where it ends.
func (e *editor) within(p *plan, from, depth int, active uint64) (int, error) {
	if from < len(e.doc) {
		switch e.doc[from] {
		case '{':
			return e.object(p, from, depth, active)
		case '[':
			return e.array(p, from, depth, active)
		}
	}
	to := skip(e.doc, from)
	if to < 0 {
		return 0, ErrJSON
	}
	if p.sets(active) {
		return 0, ErrPath
	}
	return to, nil
}

// pick finds which of the edits mean the member at hand: the last that ends there, those that lead further,
// and all of both.
func (p *plan) pick(s *scan, depth int, active uint64) (final int, inside, hit uint64) {
	final = -1
	for m := active; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		name, last := p.name(i, depth)
		if !s.is(name) {
			continue
		}
		hit |= 1 << i
		if last {
			final = i
		} else {
			inside |= 1 << i
		}
	}
	return final, inside, hit
}

func (e *editor) object(p *plan, from, depth int, active uint64) (int, error) {
	var lengths uint64 // of the names, so that most members are told by a shift
	for m := active; m != 0; m &= m - 1 {
		name, _ := p.name(bits.TrailingZeros64(m), depth)
		lengths |= 1 << (len(name) & 63)
	}
	s := scan{doc: e.doc}
	s.open(from)
	kept, missing := 0, active
	for s.next() {
		if !s.escaped && lengths>>(len(s.key)&63)&1 == 0 {
			if s.at = skip(s.doc, s.from); s.at < 0 {
				return 0, ErrJSON
			}
			kept++
			continue
		}
		final, inside, hit := p.pick(&s, depth, active)
		missing &^= hit
		removed, err := e.member(p, &s, final, depth, inside, kept)
		if err != nil {
			return 0, err
		}
		if !removed {
			kept++
		}
	}
	if s.bad {
		return 0, ErrJSON
	}
	if missing != 0 && p.sets(missing) {
		e.copyTo(s.close)
		e.add(p, depth, missing, kept == 0)
	}
	return s.close + 1, nil
}

func (e *editor) array(p *plan, from, depth int, active uint64) (int, error) {
	s := scan{doc: e.doc}
	s.open(from)
	kept, missing := 0, active
	last := -1 // the last element that the edits mean
	for m := active; m != 0; m &= m - 1 {
		name, _ := p.name(bits.TrailingZeros64(m), depth)
		last = max(last, index(name))
	}
	for s.next() {
		final, inside, hit := -1, uint64(0), uint64(0)
		if s.count <= last+1 {
			final, inside, hit = p.pick(&s, depth, missing)
			missing &^= hit
		}
		removed, err := e.member(p, &s, final, depth, inside, kept)
		if err != nil {
			return 0, err
		}
		if !removed {
			kept++
		}
	}
	if s.bad {
		return 0, ErrJSON
	}
	if p.sets(missing) {
		return 0, ErrPath
	}
	return s.close + 1, nil
}

// member does to the member at hand what the edit called final says, or those inside, and moves past it.
func (e *editor) member(p *plan, s *scan, final, depth int, inside uint64, kept int) (removed bool, err error) {
	if final < 0 && inside != 0 {
		s.at, err = e.within(p, s.from, depth+1, inside)
		return false, err
	}
	to := s.skip()
	if to < 0 {
		return false, ErrJSON
	}
	switch {
	case final < 0:
	case p.edits[final].do != doRemove:
		e.write(p, final, s.from, to)
	case kept > 0: // with the comma before it
		e.copyTo(s.comma)
		e.done = to
		return true, nil
	default: // with the comma after it
		e.copyTo(s.start)
		e.done = space(e.doc, to)
		if e.done < len(e.doc) && e.doc[e.done] == ',' {
			e.done++
		}
		return true, nil
	}
	return false, nil
}

// add writes members of an object: one for each name that the edits have at a depth.
func (e *editor) add(p *plan, depth int, missing uint64, first bool) {
	for missing != 0 {
		name, _ := p.name(bits.TrailingZeros64(missing), depth)
		final, inside := -1, uint64(0)
		for m := missing; m != 0; m &= m - 1 {
			i := bits.TrailingZeros64(m)
			n, last := p.name(i, depth)
			if n != name {
				continue
			}
			missing &^= 1 << i
			if last {
				final = i
			} else {
				inside |= 1 << i
			}
		}
		if final >= 0 && p.edits[final].do > doSetText || final < 0 && !p.sets(inside) {
			continue
		}
		if !first {
			e.dst = append(e.dst, ',')
		}
		first = false
		e.dst = append(AppendString(e.dst, name), ':')
		if final >= 0 {
			e.put(p, final)
			continue
		}
		e.dst = append(e.dst, '{')
		e.add(p, depth+1, inside, true)
		e.dst = append(e.dst, '}')
	}
}

// write puts an edit's value in the place of what lies from from to to.
func (e *editor) write(p *plan, edit, from, to int) {
	e.copyTo(from)
	e.put(p, edit)
	e.done = to
}

// put appends an edit's value.
func (e *editor) put(p *plan, edit int) {
	switch x := &p.edits[edit]; x.do {
	case doSetText, doReplaceText:
		e.dst = AppendString(e.dst, x.value)
	default:
		e.dst = append(e.dst, x.value...)
	}
}

func (e *editor) copyTo(at int) {
	if at > e.done {
		e.dst = append(e.dst, e.doc[e.done:at]...)
		e.done = at
	}
}
