package millrace

import (
	"bytes"
	"math/bits"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Scanning goes eight bytes at a time where it can: in WASM as Go compiles it every jump costs nanoseconds,
// so a loop over bytes costs five times what the arithmetic on words does.
const (
	lows  = 0x0101010101010101
	highs = 0x8080808080808080
)

// marks sets the high bit of each byte of w that is zero, and perhaps of some after the first.
func marks(w uint64) uint64 { return (w - lows) &^ w & highs }

// scan walks the members of an object or the elements of an array.
type scan struct {
	doc     []byte
	at      int
	array   bool
	bad     bool
	escaped bool   // the key at hand has a backslash
	count   int    // members seen
	close   int    // where the closing bracket is, at the end
	comma   int    // before the member at hand
	start   int    // of the member: its key, or its value in an array
	from    int    // its value
	key     []byte // as it is written
}

func (s *scan) open(at int) bool {
	if at >= len(s.doc) || s.doc[at] != '{' && s.doc[at] != '[' {
		return false
	}
	s.array = s.doc[at] == '['
	s.at = at + 1
	return true
}

// next comes to the value of the next member. Its caller moves s.at to the value's end.
func (s *scan) next() bool {
	doc, at := s.doc, s.at
	if at < len(doc) && doc[at] <= ' ' {
		at = space(doc, at)
	}
	if at >= len(doc) {
		return s.fail()
	}
	if c := doc[at]; c == '}' || c == ']' {
		if s.array != (c == ']') {
			return s.fail()
		}
		s.close = at
		return false
	}
	if s.count > 0 {
		if doc[at] != ',' {
			return s.fail()
		}
		s.comma = at
		at++
		if at < len(doc) && doc[at] <= ' ' {
			at = space(doc, at)
		}
	}
	s.start = at
	if !s.array {
		if at >= len(doc) || doc[at] != '"' {
			return s.fail()
		}
		end, escaped := quoted(doc, at)
		if end < 0 {
			return s.fail()
		}
		s.key, s.escaped = doc[at+1:end-1], escaped
		at = end
		if at < len(doc) && doc[at] <= ' ' {
			at = space(doc, at)
		}
		if at >= len(doc) || doc[at] != ':' {
			return s.fail()
		}
		at++
		if at < len(doc) && doc[at] <= ' ' {
			at = space(doc, at)
		}
	}
	s.from = at
	s.count++
	return true
}

// skip moves past the value at hand and returns its end.
func (s *scan) skip() int {
	end := skip(s.doc, s.from)
	if end < 0 {
		s.fail()
		return end
	}
	s.at = end
	return end
}

func (s *scan) fail() bool {
	s.bad = true
	return false
}

// is reports whether the member at hand has a name or a number.
func (s *scan) is(seg string) bool {
	switch {
	case s.array:
		return index(seg) == s.count-1
	case s.escaped:
		return unquote(s.key) == seg
	}
	return len(s.key) == len(seg) && text(s.key) == seg
}

// index is the element of an array that a name of a path means, -1 for none.
func index(seg string) int {
	if seg == "" || len(seg) > 9 || seg[0] == '0' && len(seg) > 1 {
		return -1
	}
	n := 0
	for i := 0; i < len(seg); i++ {
		if seg[i] < '0' || seg[i] > '9' {
			return -1
		}
		n = n*10 + int(seg[i]-'0')
	}
	return n
}

// cutPath cuts a path's first name off. More says whether another follows, which may be empty.
func cutPath(path string) (seg, rest string, more bool) {
	for i := 0; i < len(path); i++ {
		switch path[i] {
		case '.':
			return path[:i], path[i+1:], true
		case '[':
			if end := bracketed(path, i); end > 0 {
				if i > 0 {
					return path[:i], path[i:], true
				}
				if end == len(path) {
					return path[1 : end-1], "", false
				}
				if path[end] == '.' {
					return path[1 : end-1], path[end+1:], true
				}
				return path[1 : end-1], path[end:], true
			}
		case '\\':
			return cutEscaped(path)
		}
	}
	return path, "", false
}

// bracketed returns where the "[12]" ends that begins at i, 0 if that is something else.
func bracketed(path string, i int) int {
	end := i + 1
	for end < len(path) && path[end] >= '0' && path[end] <= '9' {
		end++
	}
	if end == i+1 || end == len(path) || path[end] != ']' {
		return 0
	}
	end++
	if end < len(path) && path[end] != '.' && path[end] != '[' {
		return 0
	}
	return end
}

func cutEscaped(path string) (seg, rest string, more bool) {
	var b []byte
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '.':
			return string(b), path[i+1:], true
		case path[i] == '[' && i > 0 && bracketed(path, i) > 0:
			return string(b), path[i:], true
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

// quoted returns the end of the string that begins at at, -1 if it has none, and whether it has escapes.
func quoted(doc []byte, at int) (end int, escaped bool) {
	at++
	for last := len(doc) - 8; at <= last; {
		w := word(doc, at)
		m := marks(w^lows*'"') | marks(w^lows*'\\')
		if m == 0 {
			at += 8
			continue
		}
		at += bits.TrailingZeros64(m) >> 3
		if doc[at] == '"' {
			return at + 1, escaped
		}
		escaped = true
		at += 2
	}
	for ; at < len(doc); at++ {
		switch doc[at] {
		case '"':
			return at + 1, escaped
		case '\\':
			escaped = true
			at++
		}
	}
	return -1, escaped
}

// skip returns the end of the value that begins at at, -1 if there is none.
func skip(doc []byte, at int) int {
	if at >= len(doc) {
		return -1
	}
	word := ""
	switch c := doc[at]; {
	case c == '"':
		end, _ := quoted(doc, at)
		return end
	case c == '{' || c == '[':
		return skipNested(doc, at)
	case c == '-' || c-'0' <= 9:
		return number(doc, at)
	case c == 't':
		word = "true"
	case c == 'f':
		word = "false"
	case c == 'n':
		word = "null"
	default:
		return -1
	}
	if len(doc)-at < len(word) || text(doc[at:at+len(word)]) != word {
		return -1
	}
	return at + len(word)
}

// number returns the end of the number that begins at at, -1 if it is none.
func number(doc []byte, at int) int {
	if doc[at] == '-' {
		at++
	}
	begin := at
	for at < len(doc) && doc[at]-'0' <= 9 {
		at++
	}
	if at == begin || doc[begin] == '0' && at > begin+1 {
		return -1
	}
	if at < len(doc) && doc[at] == '.' {
		at++
		begin = at
		for at < len(doc) && doc[at]-'0' <= 9 {
			at++
		}
		if at == begin {
			return -1
		}
	}
	if at < len(doc) && doc[at]|0x20 == 'e' {
		at++
		if at < len(doc) && (doc[at] == '+' || doc[at] == '-') {
			at++
		}
		begin = at
		for at < len(doc) && doc[at]-'0' <= 9 {
			at++
		}
		if at == begin {
			return -1
		}
	}
	return at
}

// skipNested returns the end of the object or array that begins at at, -1 if it has none. It counts
// brackets, and depth costs nothing.
func skipNested(doc []byte, at int) int {
	depth, inside := 0, false // of a string
	for last := len(doc) - 8; at <= last; {
		w := word(doc, at)
		if inside {
			m := marks(w^lows*'"') | marks(w^lows*'\\')
			if m == 0 {
				at += 8
				continue
			}
			at += bits.TrailingZeros64(m)>>3 + 1
			if doc[at-1] == '"' {
				inside = false
			} else {
				at++
			}
			continue
		}
		// With two bits masked all four brackets are 'y', and so are bytes that no JSON has outside of strings.
		m := marks(w^lows*'"') | marks((w|lows*0x20)&^(lows*6)^lows*'y')
		if m == 0 {
			at += 8
			continue
		}
		at += bits.TrailingZeros64(m)>>3 + 1
		switch c := doc[at-1]; {
		case c == '"':
			inside = true
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return at
			}
		}
	}
	for ; at < len(doc); at++ {
		switch c := doc[at]; {
		case c == '"':
			inside = !inside
		case inside:
			if c == '\\' {
				at++
			}
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return at + 1
			}
		}
	}
	return -1
}

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
