package filters

import (
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"github.com/expr-lang/expr/ast"

	"github.com/millrace/millrace/engine/event"
)

// Text is a compiled expression whose value is a text, over a webhook: headers["x-name"], query["name"] and data.<path>,
// in the dialect of filters. It is immutable and may be used by many goroutines, each with a Scratch of its own.
type Text struct {
	root   *node
	fields *fields
}

// CompileText compiles such an expression. The error is an *Error.
func CompileText(src string) (*Text, error) {
	if err := checkSource(src); err != nil {
		return nil, err
	}
	root, fs, err := readAs(&reader{hook: true}, (*reader).value, src)
	if err != nil {
		return nil, err
	}
	if err := assembleText(root, src); err != nil {
		return nil, err
	}
	return &Text{root: root, fields: fs}, nil
}

// assembleText makes the conditions within a value ready and refuses what is no text.
func assembleText(n *node, src string) *Error {
	switch n.op {
	case opCount, opFilter, opMap, opItem:
		return place(src, n.at, fmt.Sprintf("%s goes through a list, which an attribute of an event does not take; name one value, such as data.items[0].id", clip(n.text())))
	case opConst:
		if n.val.kind == null {
			return place(src, n.at, "nil is no text; write \"\" for none")
		}
		return nil
	case opChoose:
		var e *Error
		if n.kids[0], e = assemble(n.kids[0], src, false); e != nil {
			return e
		}
		if e = assembleText(n.kids[1], src); e != nil {
			return e
		}
		return assembleText(n.kids[2], src)
	}
	for _, k := range n.kids {
		if e := assembleText(k, src); e != nil {
			return e
		}
	}
	return nil
}

// Headers lists the headers that it reads, in lower case.
func (t *Text) Headers() (names []string) {
	for _, f := range t.fields.list {
		if f.origin == fromHeader {
			names = append(names, f.name)
		}
	}
	return names
}

// Of computes the text for a webhook. ok is false where there is none: what it names is missing or is neither a text, a
// number nor a boolean, or it costs too much. The text may borrow from h, and from s until its next use.
func (t *Text) Of(h *event.Hook, s *Scratch) (text string, ok bool) {
	s.rec, s.held, s.hook, s.fields = nil, false, h, t.fields
	s.turn++
	s.text = s.text[:0]
	if len(s.slots) < len(t.fields.list) {
		s.slots = append(s.slots, make([]slot, len(t.fields.list)-len(s.slots))...)
	}
	s.link, s.failed, s.work = nil, nil, 0
	v := s.compute(t.root)
	s.hook = nil
	if s.failed != nil {
		s.Errors++
		return "", false
	}
	text, ok = v.spell()
	return text, ok && text != ""
}

// compute is a value on the machine of this package.
func (s *Scratch) compute(n *node) value {
	switch n.op {
	case opConst, opField:
		return s.operand(n)
	case opChoose:
		if s.is(n.kids[0]) {
			return s.compute(n.kids[1])
		}
		return s.compute(n.kids[2])
	case opAdd, opSubtract, opMultiply, opDivide, opModulo:
		a, b := s.compute(n.kids[0]), s.compute(n.kids[1])
		if !s.spend(len(a.s) + len(b.s)) {
			return value{}
		}
		v, err := compute(n.op, a, b)
		if err != nil {
			s.fail(err)
		}
		return v
	case opNegate:
		a := s.compute(n.kids[0])
		if !a.isNumber() {
			return value{}
		}
		v, err := negate(a)
		if err != nil {
			s.fail(err)
		}
		return v
	case opLen:
		return s.length(nil, s.compute(n.kids[0]))
	case opLower, opUpper, opTrim:
		return s.reshape(n.op, s.compute(n.kids[0]))
	}
	return value{}
}

// spell writes a single value as text.
func (v value) spell() (string, bool) {
	switch v.kind {
	case text:
		return v.s, true
	case boolean:
		return strconv.FormatBool(v.b), true
	case integer:
		return strconv.FormatInt(v.i, 10), true
	case decimal:
		return v.spellDecimal()
	}
	return "", false
}

// maxPlaces bounds the zeros that writing a number out may take.
const maxPlaces = 40

func (v value) spellDecimal() (string, bool) {
	digits := strings.Replace(v.s, ".", "", 1)
	point := v.i // before the digit of that number
	if point < -maxPlaces || point > int64(len(digits))+maxPlaces || len(digits) > maxDigits {
		return "", false
	}
	var b strings.Builder
	if v.b {
		b.WriteByte('-')
	}
	switch {
	case point <= 0:
		b.WriteString("0." + strings.Repeat("0", int(-point)) + digits)
	case point >= int64(len(digits)):
		b.WriteString(digits + strings.Repeat("0", int(point)-len(digits)))
	default:
		b.WriteString(digits[:point] + "." + digits[point:])
	}
	return b.String(), true
}

// ofHook reads headers["x"] and query["x"].
func (r *reader) ofHook(n ast.Node, x *ast.IdentifierNode, segs []segment) (*node, *Error) {
	f := field{label: x.Value}
	switch x.Value {
	case "headers":
		f.origin = fromHeader
	case "query":
		f.origin = fromQuery
	default:
		return nil, r.refuse(x, "unknown name %q%s; the names are headers, query and data", clip(x.Value), suggest(x.Value, []string{"headers", "query", "data"}))
	}
	if len(segs) != 1 || segs[0].index >= 0 || segs[0].key == "" {
		return nil, r.refuse(n, "%s: write %s[\"name\"]", clip(n.String()), x.Value)
	}
	f.name = segs[0].key
	if f.origin == fromHeader {
		f.name = strings.ToLower(f.name)
	}
	f.label = fmt.Sprintf("%s[%q]", x.Value, f.name)
	out := r.make(n, opField)
	out.field = r.fs.add(f)
	return out, nil
}

// readHook reads a header or a parameter; one that is there twice has no value.
func (s *Scratch) readHook(f *field) value {
	read := s.hook.Header
	if f.origin == fromQuery {
		read = s.hook.QueryValue
	}
	if t, n := read(f.name); n == 1 {
		return value{kind: text, s: t}
	}
	return value{}
}

// scanHook is scanData for a webhook.
func (s *Scratch) scanHook() bool {
	data := s.hook.Data
	if len(data) == 0 || !s.hook.JSON {
		return false
	}
	s.began = s.scan.visits
	s.isJSON = s.scan.scan(s.fields.tree, unsafe.String(unsafe.SliceData(data), len(data)))
	return s.isJSON
}
