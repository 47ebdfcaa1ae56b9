package millrace

import (
	"errors"
	"strconv"
	"unicode/utf8"
)

// The functions below read and change JSON by scanning it: decoding a document in WASM costs forty times
// as much. A path is names joined by points, such as "customer.email" or "items.0.price"; a number steps
// into an array, a backslash takes the next byte as it is ("a\.b" is one name), and the empty path is the
// document. Where an object has a name twice, readers see the last, as nearly every decoder does, and
// Set and Delete act on all, so that nothing that should be hidden stays behind. A document that is no
// JSON makes them find nothing or return an error; they do not validate.

// ErrJSON is a document that is not JSON. ErrPath is a path through something that is neither object nor
// array, or past the end of an array.
var (
	ErrJSON = errors.New("millrace: the document is not JSON")
	ErrPath = errors.New("millrace: the path leads through a value that is no object, or past the end of an array")
)

// Get returns the value at a path as it stands in the document, which it borrows.
func Get(doc []byte, path string) (value []byte, ok bool) { return get(doc, path, false) }

// get stops at the first value if any will do.
func get(doc []byte, path string, any bool) (value []byte, ok bool) {
	from, to := space(doc, 0), len(doc)
	if path == "" {
		to = skip(doc, from)
	}
	for more := path != ""; more; {
		var seg string
		seg, path, more = cutPath(path)
		s := scan{doc: doc[:to]}
		if !s.open(from) {
			return nil, false
		}
		found := false
		for s.next() {
			if s.is(seg) {
				from, to, found = s.from, s.to, true
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

// Set appends to dst the document with the value, which is JSON, at a path; objects that are missing on
// the way are made. On an error dst is returned as it was. Reuse dst from event to event.
func Set(dst, doc []byte, path string, value []byte) ([]byte, error) {
	return edit(dst, doc, path, editor{value: text(value)})
}

// SetString is Set with a string, which it quotes.
func SetString(dst, doc []byte, path, value string) ([]byte, error) {
	return edit(dst, doc, path, editor{value: value, quote: true})
}

// Delete appends to dst the document without the value at a path. That there is none is no error.
func Delete(dst, doc []byte, path string) ([]byte, error) {
	return edit(dst, doc, path, editor{remove: true})
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

// editor copies a document with changes: what lies before done has been copied.
type editor struct {
	doc, dst []byte
	done     int
	value    string
	quote    bool // value is the inside of a string
	remove   bool
}

func edit(dst, doc []byte, path string, e editor) ([]byte, error) {
	e.doc, e.dst = doc, dst
	from, to := space(doc, 0), 0
	if from < len(doc) && path != "" && (doc[from] == '{' || doc[from] == '[') {
		close, err := e.container(from, len(doc), path)
		if err != nil {
			return dst, err
		}
		to = close + 1
	} else {
		to = skip(doc, from)
	}
	switch {
	case to <= 0 || space(doc, to) != len(doc):
		return dst, ErrJSON
	case path == "" && !e.remove:
		e.put()
		return e.dst, nil
	case path == "", !e.remove && to > 0 && doc[from] != '{' && doc[from] != '[':
		return dst, ErrPath
	}
	return append(e.dst, doc[e.done:]...), nil
}

// container changes what path names inside the value at from, and returns where its bracket closes.
func (e *editor) container(from, to int, path string) (close int, err error) {
	seg, rest, more := cutPath(path)
	s := scan{doc: e.doc[:to]}
	if !s.open(from) {
		if e.remove {
			return 0, nil
		}
		return 0, ErrPath
	}
	hit, kept := false, 0
	for s.next() {
		if !s.is(seg) {
			kept++
			continue
		}
		hit = true
		switch {
		case more:
			kept++
			if _, err := e.container(s.from, s.to, rest); err != nil {
				return 0, err
			}
		case !e.remove:
			kept++
			e.copyTo(s.from)
			e.put()
			e.done = s.to
		case kept > 0: // with the comma before it
			e.copyTo(s.comma)
			e.done = s.to
		default: // with the comma after it
			e.copyTo(s.start)
			e.done = space(e.doc, s.to)
			if e.done < to && e.doc[e.done] == ',' {
				e.done++
			}
		}
	}
	if s.bad {
		return 0, ErrJSON
	}
	if hit || e.remove {
		return s.close, nil
	}
	if s.array {
		return 0, ErrPath
	}
	e.copyTo(s.close)
	if s.count > 0 {
		e.dst = append(e.dst, ',')
	}
	depth := 0
	for {
		e.dst = append(AppendString(e.dst, seg), ':')
		if !more {
			break
		}
		e.dst = append(e.dst, '{')
		depth++
		seg, rest, more = cutPath(rest)
	}
	e.put()
	for range depth {
		e.dst = append(e.dst, '}')
	}
	return s.close, nil
}

// put appends the value.
func (e *editor) put() {
	if e.quote {
		e.dst = AppendString(e.dst, e.value)
	} else {
		e.dst = append(e.dst, e.value...)
	}
}

func (e *editor) copyTo(at int) {
	if at > e.done {
		e.dst = append(e.dst, e.doc[e.done:at]...)
		e.done = at
	}
}
