package filters

import (
	"errors"
	"strings"
	"unsafe"

	"github.com/expr-lang/expr/vm"

	"github.com/millrace/millrace/engine/event"
)

// Scratch is what matching needs besides the program: the fields read from the event so far, buffers and
// expr's machine. It belongs to one goroutine; the zero value is ready and it grows to what it is used
// for. Between calls it may borrow from the last record.
type Scratch struct {
	// Errors counts evaluations that were given up, which is no match: a list, text, number or the work
	// as a whole was beyond the bounds.
	Errors uint64
	// Missing counts comparisons that were false because a path was missing or a value of another type.
	Missing uint64

	rec    event.Record
	hook   *event.Hook // what a Text reads instead of rec
	held   bool        // Reset named rec: further calls with it are about the same event
	fields *fields
	turn   uint64 // the event's number in this Scratch
	slots  []slot
	text   []byte // unescaped strings
	key    []byte // of a decimal

	scanned uint64 // the turn in which scan ran
	isJSON  bool
	began   uint64
	scan    scanner

	failed error
	work   int
	link   []int32
	lists  []bool // by node: its list was one
	vm     vm.VM
}

type slot struct {
	turn uint64
	v    value
}

var (
	errWork  = errors.New("the evaluation costs too much")
	errItems = errors.New("a list has too many items")
	errText  = errors.New("a string is too long")
	errDigit = errors.New("a number has too many digits")
)

// Reset begins an event: until the next Reset, matches on the same rec share what is read from it. Without
// Reset every call to Match begins an event.
func (s *Scratch) Reset(rec event.Record) {
	s.rec, s.hook, s.held, s.fields = rec, nil, true, nil
}

// begin makes ready for an event and the fields of a program or an index.
func (s *Scratch) begin(rec event.Record, fs *fields) {
	same := s.held && len(rec) == len(s.rec) && unsafe.SliceData(rec) == unsafe.SliceData(s.rec)
	if same && s.fields == fs {
		return
	}
	if !same {
		s.held = false
	}
	s.rec, s.hook, s.fields = rec, nil, fs
	s.turn++
	s.text = s.text[:0]
	if len(s.slots) < len(fs.list) {
		s.slots = append(s.slots, make([]slot, len(fs.list)-len(s.slots))...)
	}
}

// run evaluates a condition; link says where the program's fields are among those of the index.
func (s *Scratch) run(n *node, link []int32) bool {
	s.link, s.failed, s.work = link, nil, 0
	is := s.is(n)
	if s.failed != nil {
		s.Errors++
		return false
	}
	return is
}

// fail gives the evaluation up.
func (s *Scratch) fail(err error) {
	if s.failed == nil {
		s.failed = err
	}
}

// spend accounts for work; false: it is too much, and the evaluation is given up.
func (s *Scratch) spend(n int) bool {
	if s.work += n; s.work > maxWork {
		s.fail(errWork)
		return false
	}
	return true
}

// field returns a field by its number in the program.
func (s *Scratch) field(n int) *value {
	if s.link != nil {
		n = int(s.link[n])
	}
	return s.global(n)
}

// global returns a field by its number in s.fields, reading it if this event has not yet.
func (s *Scratch) global(n int) *value {
	sl := &s.slots[n]
	if sl.turn != s.turn {
		sl.turn, sl.v = s.turn, s.read(&s.fields.list[n])
	}
	return &sl.v
}

func (s *Scratch) read(f *field) value {
	var v value
	switch f.origin {
	case fromAttribute:
		// CloudEvents 1.0: a string attribute is not empty, so "" is an absent one.
		if t := s.rec.Attr(f.tag); t != "" {
			v = value{kind: text, s: t}
		}
	case fromExtension:
		if a, ok := s.rec.Extension(f.name); ok {
			v = value{kind: text, s: a.Value}
		}
	case fromHeader, fromQuery:
		v = s.readHook(f)
	case fromData:
		if s.scanData() {
			if at, ok := s.scan.at(s.fields.tree, f.node, s.began); ok {
				v = s.decode(s.scan.doc[at.from:at.to], at.escaped)
			}
		}
	}
	return as(f.reading, v)
}

// as reads a text as another type.
func as(r reading, v value) value {
	if r == asItIs || v.kind != text {
		return v
	}
	switch r {
	case asNumber:
		n, _ := parseNumber(v.s)
		return n
	case asBoolean:
		if v.s == "true" || v.s == "false" {
			return value{kind: boolean, b: v.s == "true"}
		}
		return value{}
	}
	return parseInstant(v.s)
}

// scanData goes through the data once per event and reports whether it is JSON.
func (s *Scratch) scanData() bool {
	if s.scanned == s.turn {
		return s.isJSON
	}
	s.scanned, s.isJSON = s.turn, false
	if s.hook != nil {
		return s.scanHook()
	}
	data := s.rec.Data()
	if len(data) == 0 || s.rec.Flags()&event.FlagBinary != 0 || !isJSON(s.rec.Attr(event.TagDataContentType)) {
		return false
	}
	s.began = s.scan.visits
	s.isJSON = s.scan.scan(s.fields.tree, unsafe.String(unsafe.SliceData(data), len(data)))
	return s.isJSON
}

// isJSON tells JSON's media types; without one data is JSON (CloudEvents 1.0, "datacontenttype").
func isJSON(contentType string) bool {
	if contentType == "" || contentType == "application/json" {
		return true
	}
	base, _, _ := strings.Cut(contentType, ";")
	base = strings.TrimSpace(base)
	const suffix = "json"
	if len(base) <= len(suffix) || !strings.EqualFold(base[len(base)-len(suffix):], suffix) {
		return false
	}
	c := base[len(base)-len(suffix)-1]
	return c == '/' || c == '+'
}

// decode turns checked JSON text into a value; lists and objects stay text.
func (s *Scratch) decode(raw string, escaped bool) value {
	switch raw[0] {
	case '"':
		raw = raw[1 : len(raw)-1]
		if escaped {
			at := len(s.text)
			s.text = appendUnescaped(s.text, raw)
			raw = unsafe.String(unsafe.SliceData(s.text[at:]), len(s.text)-at)
		}
		return value{kind: text, s: raw}
	case '{':
		return value{kind: object, s: raw}
	case '[':
		return value{kind: array, s: raw}
	case 't', 'f':
		return value{kind: boolean, b: raw[0] == 't'}
	case 'n':
		return value{kind: null}
	}
	v, _ := parseNumber(raw)
	return v
}

// items yields the members of a list, or the values of an object, one level deep and in order.
func (s *Scratch) items(raw string, yield func(value) bool) {
	i := skipSpace(raw, 1)
	for i < len(raw)-1 {
		if raw[0] == '{' {
			end, _, _ := skipString(raw, i)
			i = skipSpace(raw, skipSpace(raw, end)+1)
		}
		end, escaped := skipValue(raw, i)
		if !yield(s.decode(raw[i:end], escaped)) {
			return
		}
		i = skipSpace(raw, end)
		if raw[i] == ',' {
			i = skipSpace(raw, i+1)
		}
	}
}

// skipValue returns where the value at raw[i] ends, in JSON that was checked.
func skipValue(raw string, i int) (end int, escaped bool) {
	if raw[i] != '{' && raw[i] != '[' {
		end, escaped, _ = skipScalar(raw, i)
		return end, escaped
	}
	depth := 0
	for ; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			end, _, _ = skipString(raw, i)
			i = end - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1, false
			}
		}
	}
	return i, false
}

// find returns what a path leads to within v.
func (s *Scratch) find(v value, path []segment) value {
	for _, seg := range path {
		want := object
		if seg.index >= 0 {
			want = array
		}
		if v.kind != want || !s.spend(len(v.s)) {
			return value{}
		}
		raw, got := v.s, value{}
		i := skipSpace(raw, 1)
		for n := 0; i < len(raw)-1; n++ {
			match := n == seg.index
			if want == object {
				end, escaped, _ := skipString(raw, i)
				if key := raw[i+1 : end-1]; escaped {
					s.key = appendUnescaped(s.key[:0], key)
					match = string(s.key) == seg.key
				} else {
					match = key == seg.key
				}
				i = skipSpace(raw, skipSpace(raw, end)+1)
			}
			end, escaped := skipValue(raw, i)
			if match {
				got = s.decode(raw[i:end], escaped) // the last of equal keys
			}
			i = skipSpace(raw, end)
			if raw[i] == ',' {
				i = skipSpace(raw, i+1)
			}
		}
		v = got
	}
	return v
}
