package millrace

import (
	"bytes"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// scan walks the members of an object or the elements of an array.
type scan struct {
	doc      []byte // up to where the value may reach
	at       int
	array    bool
	bad      bool
	count    int // members seen
	close    int // where the closing bracket is, at the end
	comma    int // before the member at hand
	start    int // of the member: its key, or its value in an array
	key      []byte
	from, to int // its value
}

func (s *scan) open(at int) bool {
	if at >= len(s.doc) || s.doc[at] != '{' && s.doc[at] != '[' {
		return false
	}
	s.array = s.doc[at] == '['
	s.at = at + 1
	return true
}

func (s *scan) next() bool {
	doc := s.doc
	at := space(doc, s.at)
	if at >= len(doc) {
		return s.fail()
	}
	if c := doc[at]; c == '}' || c == ']' {
		s.close = at
		return false
	}
	if s.count > 0 {
		if doc[at] != ',' {
			return s.fail()
		}
		s.comma = at
		at = space(doc, at+1)
	}
	s.start = at
	if !s.array {
		if at >= len(doc) || doc[at] != '"' {
			return s.fail()
		}
		end := quoted(doc, at)
		if end < 0 {
			return s.fail()
		}
		s.key = doc[at+1 : end-1]
		if at = space(doc, end); at >= len(doc) || doc[at] != ':' {
			return s.fail()
		}
		at = space(doc, at+1)
	}
	s.from = at
	if s.to = skip(doc, at); s.to <= 0 {
		return s.fail()
	}
	s.at = s.to
	s.count++
	return true
}

func (s *scan) fail() bool {
	s.bad = true
	return false
}

// is reports whether the member at hand has a name or a number.
func (s *scan) is(seg string) bool {
	if s.array {
		if seg == "" || len(seg) > 9 || seg[0] == '0' && len(seg) > 1 {
			return false
		}
		n := 0
		for i := 0; i < len(seg); i++ {
			if seg[i] < '0' || seg[i] > '9' {
				return false
			}
			n = n*10 + int(seg[i]-'0')
		}
		return n == s.count-1
	}
	if text(s.key) == seg {
		return true
	}
	return hasEscape(s.key) && unquote(s.key) == seg
}

// cutPath cuts a path's first name off. More says whether another follows, which may be empty.
func cutPath(path string) (seg, rest string, more bool) {
	for i := 0; i < len(path); i++ {
		switch path[i] {
		case '.':
			return path[:i], path[i+1:], true
		case '\\':
			return cutEscaped(path)
		}
	}
	return path, "", false
}

func cutEscaped(path string) (seg, rest string, more bool) {
	var b []byte
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '.':
			return string(b), path[i+1:], true
		case path[i] == '\\' && i+1 < len(path):
			i++
		}
		b = append(b, path[i])
	}
	return string(b), "", false
}

func space(doc []byte, at int) int {
	for at < len(doc) && (doc[at] == ' ' || doc[at] == '\n' || doc[at] == '\t' || doc[at] == '\r') {
		at++
	}
	return at
}

// quoted returns the end of the string that begins at at, -1 if it has none. IndexByte is the one loop over
// bytes that is fast in WASM.
func quoted(doc []byte, at int) int {
	at++
	for from := at; ; {
		n := bytes.IndexByte(doc[from:], '"')
		if n < 0 {
			return -1
		}
		end := from + n
		back := end
		for back > at && doc[back-1] == '\\' {
			back--
		}
		if (end-back)%2 == 0 {
			return end + 1
		}
		from = end + 1
	}
}

// skip returns the end of the value that begins at at, -1 if there is none.
func skip(doc []byte, at int) int {
	if at >= len(doc) {
		return -1
	}
	switch doc[at] {
	case '"':
		return quoted(doc, at)
	case '{', '[':
		return skipNested(doc, at)
	}
	start := at
	for at < len(doc) && classes[doc[at]]&stop == 0 {
		at++
	}
	if at == start {
		return -1
	}
	return at
}

func skipNested(doc []byte, at int) int {
	for depth := 0; at < len(doc); {
		c := classes[doc[at]]
		if c&bracket == 0 {
			at++
			continue
		}
		switch doc[at] {
		case '"':
			if at = quoted(doc, at); at < 0 {
				return -1
			}
			continue
		case '{', '[':
			depth++
		default:
			if depth--; depth == 0 {
				return at + 1
			}
		}
		at++
	}
	return -1
}

// Classes of bytes: what ends a number or a word, and what matters inside a nested value.
const (
	stop = 1 << iota
	bracket
)

var classes = func() (t [256]uint8) {
	for c := range ' ' + 1 {
		t[c] = stop
	}
	for _, c := range []byte(",:") {
		t[c] = stop
	}
	for _, c := range []byte("{}[]\"") {
		t[c] |= bracket
	}
	for _, c := range []byte("]}\"") {
		t[c] |= stop
	}
	return t
}()

func hasEscape(b []byte) bool { return bytes.IndexByte(b, '\\') >= 0 }

// unquote undoes the escapes of a string's inside; without any it borrows it.
func unquote(b []byte) string {
	if !hasEscape(b) {
		return text(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' || i+1 == len(b) {
			out = append(out, b[i])
			continue
		}
		i++
		switch b[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := hex4(b, i+1)
			i += 4
			if utf16.IsSurrogate(r) {
				second := rune(-1)
				if i+2 < len(b) && b[i+1] == '\\' && b[i+2] == 'u' {
					second = hex4(b, i+3)
				}
				if r = utf16.DecodeRune(r, second); r != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, b[i])
		}
	}
	return text(out)
}

// hex4 reads four hexadecimal digits; what is none is the replacement character.
func hex4(b []byte, at int) rune {
	if at+4 > len(b) {
		return utf8.RuneError
	}
	n, err := strconv.ParseUint(text(b[at:at+4]), 16, 32)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}
