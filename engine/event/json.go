package event

import (
	"fmt"
	"math/bits"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is how deep arrays and objects may nest in what clients send. Deeper documents are refused
// before anything that recurses (a filter, a schema, a function) can meet them.
const maxDepth = 1000

// CheckJSON says whether b is one JSON text in UTF-8 (RFC 8259), white space around it allowed. The
// error is an ErrInvalid that names the byte offset from 0.
func CheckJSON(b []byte) error {
	at, _, why := scanValue(b, space(b, 0))
	if why == "" {
		if at = space(b, at); at == len(b) {
			return nil
		}
		why = "more follows after the JSON text"
	}
	return brokenJSON(b, at, why)
}

// SplitJSON calls fn for each of the JSON texts that stand one after another in b, numbered from 0;
// white space (a line's end) separates them. Doc borrows b. It stops at the first error, of fn or of the
// syntax, and says at which text it was: "events[3]".
func SplitJSON(b []byte, fn func(i int, doc []byte) error) error {
	at := space(b, 0)
	for i := 0; at < len(b); i++ {
		end, _, why := scanValue(b, at)
		if why == "" && end < len(b) && space(b, end) == end && b[end-1] != '}' && b[end-1] != ']' {
			why = "want white space between two JSON texts"
		}
		var err error
		if why != "" {
			err = brokenJSON(b, end, why)
		} else {
			err = fn(i, b[at:end:end])
		}
		if err != nil {
			return At(indexed(i), err)
		}
		at = space(b, end)
	}
	return nil
}

func indexed(i int) string { return "events[" + strconv.Itoa(i) + "]" }

// brokenJSON is the error for the fault that a scan found at a byte of b.
func brokenJSON(b []byte, at int, why string) error {
	if at >= len(b) {
		return Invalid("", fmt.Sprintf("broken JSON: it ends at byte %d; %s", at, why))
	}
	return Invalid("", fmt.Sprintf("broken JSON at byte %d (%q): %s", at, b[at], why))
}

func space(b []byte, at int) int {
	for at < len(b) && (b[at] == ' ' || b[at] == '\n' || b[at] == '\r' || b[at] == '\t') {
		at++
	}
	return at
}

// scanValue finds the end of the JSON value that begins at b[at]. Plain tells of a string that it has no
// escapes. Where why is not "", end is the byte that is wrong. It keeps a bit per open array or object
// rather than calling itself, so depth costs no stack.
func scanValue(b []byte, at int) (end int, plain bool, why string) {
	var objects [maxDepth/64 + 1]uint64
	depth, isObject := 0, false
value:
	if at >= len(b) {
		return at, false, "want a value"
	}
	switch c := b[at]; {
	case c == '"':
		if at, plain, why = scanString(b, at); why != "" {
			return at, false, why
		}
	case c == '{' || c == '[':
		if depth == maxDepth {
			return at, false, "arrays and objects nest deeper than " + strconv.Itoa(maxDepth)
		}
		isObject = c == '{'
		if objects[depth/64] &^= 1 << (depth % 64); isObject {
			objects[depth/64] |= 1 << (depth % 64)
		}
		depth++
		at = space(b, at+1)
		switch {
		case at < len(b) && b[at] == c+2: // } or ]
			goto closed
		case isObject:
			goto key
		}
		goto value
	case c == '-' || c >= '0' && c <= '9':
		if at, why = scanNumber(b, at); why != "" {
			return at, false, why
		}
	default:
		word := ""
		switch c {
		case 't':
			word = "true"
		case 'f':
			word = "false"
		case 'n':
			word = "null"
		default:
			return at, false, "want a value"
		}
		for i := range len(word) {
			if at+i >= len(b) || b[at+i] != word[i] {
				return at + i, false, "want " + word
			}
		}
		at += len(word)
	}
next:
	if depth == 0 {
		return at, plain, ""
	}
	at = space(b, at)
	isObject = objects[(depth-1)/64]&(1<<((depth-1)%64)) != 0
	switch {
	case at >= len(b):
		return at, false, "an array or object is not closed"
	case b[at] == ',':
		at = space(b, at+1)
		if isObject {
			goto key
		}
		goto value
	case isObject && b[at] == '}', !isObject && b[at] == ']':
		goto closed
	case isObject:
		return at, false, "want , or }"
	}
	return at, false, "want , or ]"
key:
	if at >= len(b) || b[at] != '"' {
		return at, false, "want a name in double quotes"
	}
	if at, _, why = scanString(b, at); why != "" {
		return at, false, why
	}
	if at = space(b, at); at >= len(b) || b[at] != ':' {
		return at, false, "want : after a name"
	}
	at = space(b, at+1)
	goto value
closed:
	at++
	depth--
	goto next
}

// scanString finds the end of the string whose opening quote is b[at].
func scanString(b []byte, at int) (end int, plain bool, why string) {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	start, ascii := at+1, true
	plain = true
	for i := start; ; {
		// Eight bytes at a time; the lowest bit of m marks the first that is a control character, a
		// quote, a backslash or not ASCII. (Bits above it may be wrong: borrows run upwards.)
		for i+8 <= len(b) {
			w := le.Uint64(b[i:])
			q, s := w^(ones*'"'), w^(ones*'\\')
			m := (w | (w-ones*0x20)&^w | (q-ones)&^q | (s-ones)&^s) & tops
			if m != 0 {
				i += bits.TrailingZeros64(m) / 8
				break
			}
			i += 8
		}
		if i >= len(b) {
			return i, false, "a string is not closed"
		}
		switch c := b[i]; {
		case c == '"':
			if !ascii {
				if bad := invalidUTF8(b[start:i]); bad >= 0 {
					return start + bad, false, "want UTF-8"
				}
			}
			return i + 1, plain, ""
		case c == '\\':
			plain = false
			n := escapeSize(b[i:])
			if n == 0 {
				return i, false, `want one of \" \\ \/ \b \f \n \r \t \uXXXX`
			}
			i += n
		case c < 0x20:
			return i, false, "a control character in a string must be escaped"
		default:
			ascii = ascii && c < utf8.RuneSelf
			i++
		}
	}
}

// escapeSize is the length of the escape that b begins with, 0 if it is none.
func escapeSize(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if _, ok := hex4(b); ok {
			return 6
		}
	}
	return 0
}

// hex4 reads the \uXXXX that b begins with.
func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	for _, c := range b[2:6] {
		d, ok := unhex(c)
		if !ok {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// invalidUTF8 is where b stops being UTF-8, -1 if it does not.
func invalidUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; ; {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
}

func scanNumber(b []byte, at int) (end int, why string) {
	digits := func() bool {
		from := at
		for at < len(b) && b[at] >= '0' && b[at] <= '9' {
			at++
		}
		return at > from
	}
	if b[at] == '-' {
		at++
	}
	if at < len(b) && b[at] == '0' {
		at++
	} else if !digits() {
		return at, "want a digit"
	}
	if at < len(b) && b[at] == '.' {
		if at++; !digits() {
			return at, "want a digit after the point"
		}
	}
	if at < len(b) && (b[at] == 'e' || b[at] == 'E') {
		if at++; at < len(b) && (b[at] == '+' || b[at] == '-') {
			at++
		}
		if !digits() {
			return at, "want a digit in the exponent"
		}
	}
	return at, ""
}

// unescape appends what a scanned string's inside means to dst; ok is false if it holds half of a
// surrogate pair, which no UTF-8 can say.
func unescape(dst, in []byte) (_ []byte, ok bool) {
	for i := 0; i < len(in); {
		c := in[i]
		if c != '\\' {
			dst = append(dst, c)
			i++
			continue
		}
		c = in[i+1]
		if c == 'u' {
			r, _ := hex4(in[i:])
			i += 6
			if utf16.IsSurrogate(r) {
				low, _ := hex4(in[i:])
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					return dst, false
				}
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
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
		}
		dst = append(dst, c)
		i += 2
	}
	return dst, true
}

// appendQuoted appends s as a JSON string. What is not UTF-8 becomes U+FFFD, so that the document stays
// one whatever a function made of an attribute.
func appendQuoted(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		n := 1
		if c >= utf8.RuneSelf {
			var r rune
			if r, n = utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
		}
		dst = append(dst, s[from:i]...)
		switch {
		case c >= utf8.RuneSelf:
			dst = append(dst, "\ufffd"...)
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i += n
		from = i
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}
