package millrace

import (
	"errors"
	"strconv"
	"unicode/utf8"
)

// The functions below read and change JSON by scanning it: decoding a document in WASM costs forty times
// as much. A path is names joined by points, such as "customer.email" or "items.0.price"; a number steps
// into an array and may be written "items[0].price", a backslash takes the next byte as it is ("a\.b" is
// one name; Name puts them in), and the empty path is the document. Where an object has a name twice,
// readers see the last, as nearly every decoder does, and changes act on all, so that nothing that should
// be hidden stays behind. A document that is no JSON makes them find nothing or return an error; of values
// that the path passes by they look at brackets and quotes only.

// ErrJSON is a document that is not JSON. ErrPath is a path through something that is neither object nor
// array, or past the end of an array.
var (
	ErrJSON = errors.New("millrace: the document is not JSON")
	ErrPath = errors.New("millrace: the path leads through a value that is no object, or past the end of an array")
)

// Name is the path of the member with this name, whatever bytes are in it.
func Name(name string) string {
	var b []byte
	for i := 0; i < len(name); i++ {
		if c := name[i]; c == '.' || c == '\\' || c == '[' {
			b = append(b, '\\')
		}
		b = append(b, name[i])
	}
	return string(b)
}

// IsObject reports whether the document is a JSON object, as far as a scan of it can tell.
func IsObject(doc []byte) bool {
	s := scan{doc: doc}
	if from := space(doc, 0); !s.open(from) || s.array {
		return false
	}
	for s.next() {
		if s.skip() < 0 {
			return false
		}
	}
	return !s.bad && space(doc, s.close+1) == len(doc)
}

// Get returns the value at a path as it stands in the document, which it borrows.
func Get(doc []byte, path string) (value []byte, ok bool) { return get(doc, path, false) }

// get stops at the first value if any will do.
func get(doc []byte, path string, any bool) (value []byte, ok bool) {
	from, to := space(doc, 0), 0
	if path == "" {
		to = skip(doc, from)
	}
	for more := path != ""; more; {
		var seg string
		seg, path, more = cutPath(path)
		s := scan{doc: doc}
		if !s.open(from) {
			return nil, false
		}
		found := false
		for s.next() {
			end := s.skip()
			if end < 0 {
				return nil, false
			}
			if s.is(seg) {
				from, to, found = s.from, end, true
				if any && !more {
					break
				}
			}
		}
		if !found || s.bad {
			return nil, false
		}
	}
	if to <= 0 { // a document that is cut off
		return nil, false
	}
	return doc[from:to:to], true
}

// Elements yields the elements of the array at a path as they stand in the document; none if there is no
// array. A document that is cut off ends it early: ask IsObject first.
func Elements(doc []byte, path string) func(yield func(element []byte) bool) {
	return func(yield func([]byte) bool) {
		v, ok := Get(doc, path)
		s := scan{doc: v}
		if !ok || !s.open(0) || !s.array {
			return
		}
		for s.next() {
			end := s.skip()
			if end < 0 || !yield(v[s.from:end:end]) {
				return
			}
		}
	}
}

// Has reports whether there is a value at a path, null included.
func Has(doc []byte, path string) bool {
	_, ok := get(doc, path, true)
	return ok
}

// GetString returns the string at a path. Without escapes it borrows the document.
func GetString(doc []byte, path string) (string, bool) {
	v, ok := Get(doc, path)
	if !ok || len(v) < 2 || v[0] != '"' {
		return "", false
	}
	return unquote(v[1 : len(v)-1]), true
}

// GetInt returns the integer at a path; 1.0 and 1e3 are none.
func GetInt(doc []byte, path string) (int64, bool) {
	v, ok := Get(doc, path)
	if !ok || len(v) > 0 && v[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseInt(text(v), 10, 64)
	return n, err == nil
}

// GetFloat returns the number at a path.
func GetFloat(doc []byte, path string) (float64, bool) {
	v, ok := Get(doc, path)
	if !ok || len(v) == 0 || v[0] != '-' && (v[0] < '0' || v[0] > '9') {
		return 0, false
	}
	f, err := strconv.ParseFloat(text(v), 64)
	return f, err == nil
}

// GetBool returns the boolean at a path.
func GetBool(doc []byte, path string) (value, ok bool) {
	v, ok := Get(doc, path)
	switch {
	case ok && text(v) == "true":
		return true, true
	case ok && text(v) == "false":
		return false, true
	}
	return false, false
}

// AppendString appends s as a JSON string.
func AppendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c >= utf8.RuneSelf:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		default:
			dst = append(dst, c)
		}
		i++
	}
	return append(dst, '"')
}
