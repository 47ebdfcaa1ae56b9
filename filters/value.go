package filters

import (
	"strconv"
	"strings"
	"unsafe"
)

// kind is the type of a value. Values of different kinds are never compared with each other, except that
// a string beside a time is read as one.
type kind uint8

const (
	missing kind = iota
	null
	boolean
	integer // any number whose value is an int64, however it is written: 1, 1.0, 10e-1
	decimal // any other number
	text
	instant
	array  // JSON text of a valid array
	object // JSON text of a valid object
)

var kindNames = [...]string{"missing", "null", "a boolean", "a number", "a number", "a string", "a time", "a list", "an object"}

// value is one typed value. It borrows: s points into a record, a Scratch or a program.
//
//	boolean  b
//	integer  i
//	decimal  ±0.d₁d₂d₃… × 10^i, with b for minus and s for the digits: no zero at either end, perhaps a point within
//	text     s
//	instant  i seconds since 1970 and n nanoseconds
//	array, object  s
type value struct {
	kind kind
	b    bool
	n    int32
	i    int64
	s    string
}

func (v value) isNumber() bool { return v.kind == integer || v.kind == decimal }

// maxExponent bounds the exponents that a number may have; numbers beyond are no numbers to a filter.
const maxExponent = 1_000_000_000

// parseNumber reads a number in JSON's grammar, exactly and without allocating.
func parseNumber(raw string) (value, bool) {
	if end, ok := skipNumber(raw, 0); !ok || end != len(raw) {
		return value{}, false
	}
	neg := raw[0] == '-'
	if neg {
		raw = raw[1:]
	}
	plain := len(raw) <= 18
	var n int64
	for i := 0; plain && i < len(raw); i++ {
		c := raw[i]
		plain = c >= '0' && c <= '9'
		n = n*10 + int64(c-'0')
	}
	if plain {
		if neg {
			n = -n
		}
		return value{kind: integer, i: n}, true
	}
	exp := int64(0)
	if at := strings.IndexAny(raw, "eE"); at >= 0 {
		e, err := strconv.ParseInt(raw[at+1:], 10, 64)
		mantissa := strings.Trim(raw[:at], "0.") // zero stays zero, whatever its exponent
		if mantissa != "" && (err != nil || e > maxExponent || e < -maxExponent) {
			return value{}, false
		}
		raw, exp = raw[:at], e
	}
	return makeNumber(neg, raw, exp), true
}

// makeNumber is digits (perhaps with a point) × 10^exp.
func makeNumber(neg bool, digits string, exp int64) value {
	point := strings.IndexByte(digits, '.')
	if point < 0 {
		point = len(digits)
	} else {
		digits = strings.TrimRight(digits, "0")
	}
	lead := 0
	for lead < len(digits) && (digits[lead] == '0' || digits[lead] == '.') {
		lead++
	}
	if lead == len(digits) {
		return value{kind: integer}
	}
	adj := exp + int64(point-lead) // the point behind the first digit's place
	if lead > point {
		adj++
	}
	digits = strings.TrimRight(digits[lead:], "0.")
	v := value{kind: decimal, b: neg, i: adj, s: digits}
	if n, ok := v.int64(); ok {
		return value{kind: integer, i: n}
	}
	return v
}

// int64 returns a decimal's value if it is a whole number in range.
func (v value) int64() (int64, bool) {
	if v.i < 1 || v.i > 19 {
		return 0, false
	}
	var n uint64
	places := int64(0)
	for i := 0; i < len(v.s); i++ {
		if v.s[i] == '.' {
			continue
		}
		if places == v.i {
			return 0, false // a digit behind the point
		}
		n = n*10 + uint64(v.s[i]-'0')
		places++
	}
	for ; places < v.i; places++ {
		n *= 10
	}
	if v.b {
		return -int64(n), n <= 1<<63
	}
	return int64(n), n < 1<<63
}

// compareNumbers orders two numbers by value.
func compareNumbers(a, b value) int {
	if a.kind == integer && b.kind == integer {
		switch {
		case a.i < b.i:
			return -1
		case a.i > b.i:
			return 1
		}
		return 0
	}
	var bufA, bufB [20]byte
	a, b = spell(a, &bufA), spell(b, &bufB)
	if sa, sb := sign(a), sign(b); sa != sb || sa == 0 {
		return sa - sb
	}
	c := compareDigits(a, b)
	if a.b {
		return -c
	}
	return c
}

// spell turns an integer other than 0 into the decimal form, in buf.
func spell(v value, buf *[20]byte) value {
	if v.kind == decimal || v.i == 0 {
		return v
	}
	out := strconv.AppendInt(buf[:0], v.i, 10)
	if v.i < 0 {
		out = out[1:]
	}
	adj := len(out)
	for out[len(out)-1] == '0' {
		out = out[:len(out)-1]
	}
	return value{kind: decimal, b: v.i < 0, i: int64(adj), s: unsafe.String(&out[0], len(out))}
}

func sign(v value) int {
	switch {
	case v.kind == integer: // 0, after spell
		return 0
	case v.b:
		return -1
	}
	return 1
}

// compareDigits orders two decimals by magnitude.
func compareDigits(a, b value) int {
	if a.i != b.i {
		if a.i < b.i {
			return -1
		}
		return 1
	}
	i, j := 0, 0
	for {
		if i < len(a.s) && a.s[i] == '.' {
			i++
		}
		if j < len(b.s) && b.s[j] == '.' {
			j++
		}
		switch {
		case i == len(a.s) && j == len(b.s):
			return 0
		case i == len(a.s):
			return -1
		case j == len(b.s):
			return 1
		case a.s[i] != b.s[j]:
			return int(a.s[i]) - int(b.s[j])
		}
		i++
		j++
	}
}

// compareValues orders a and b; ok is false where they cannot be compared: one is missing or of another
// kind, or they are lists or objects. Booleans and null are only equal or not.
func compareValues(a, b value) (c int, ok bool) {
	if a.kind != b.kind {
		switch {
		case a.isNumber() && b.isNumber():
			return compareNumbers(a, b), true
		case a.kind == instant && b.kind == text:
			b = parseInstant(b.s)
		case a.kind == text && b.kind == instant:
			a = parseInstant(a.s)
		}
		if a.kind != b.kind {
			return 0, false
		}
	}
	switch a.kind {
	case null:
		return 0, true
	case boolean:
		if a.b != b.b {
			return 1, true
		}
		return 0, true
	case integer, decimal:
		return compareNumbers(a, b), true
	case text:
		return strings.Compare(a.s, b.s), true
	case instant:
		switch {
		case a.i < b.i || a.i == b.i && a.n < b.n:
			return -1, true
		case a.i == b.i && a.n == b.n:
			return 0, true
		}
		return 1, true
	}
	return 0, false
}

// relation is a comparison operator.
type relation uint8

const (
	equal relation = iota
	unequal
	less
	lessOrEqual
	more
	moreOrEqual
)

var relations = map[string]relation{"==": equal, "!=": unequal, "<": less, "<=": lessOrEqual, ">": more, ">=": moreOrEqual}

// relate answers a comparison; ok is false where a and b cannot be compared, and then it is false too.
func relate(r relation, a, b value) (is, ok bool) {
	c, ok := compareValues(a, b)
	if !ok || r > unequal && (a.kind == boolean || a.kind == null) {
		return false, false
	}
	switch r {
	case equal:
		return c == 0, true
	case unequal:
		return c != 0, true
	case less:
		return c < 0, true
	case lessOrEqual:
		return c <= 0, true
	case more:
		return c > 0, true
	}
	return c >= 0, true
}

// String shows a value as a filter would write it, shortened.
func (v value) String() string {
	switch v.kind {
	case null:
		return "nil"
	case boolean:
		return strconv.FormatBool(v.b)
	case integer:
		return strconv.FormatInt(v.i, 10)
	case decimal:
		return v.decimalString()
	case text:
		return strconv.Quote(shorten(v.s))
	case instant:
		return formatInstant(v)
	case array, object:
		return shorten(v.s)
	}
	return Missing
}

// decimalString spells a decimal: plainly where that is short, else with an exponent.
func (v value) decimalString() string {
	digits := strings.Replace(v.s, ".", "", 1)
	sign := ""
	if v.b {
		sign = "-"
	}
	switch n := int64(len(digits)); {
	case v.i > 0 && v.i < n:
		digits = digits[:v.i] + "." + digits[v.i:]
	case v.i == n:
	case v.i > n && v.i <= 30:
		digits += strings.Repeat("0", int(v.i-n))
	case v.i <= 0 && v.i > -10:
		digits = "0." + strings.Repeat("0", int(-v.i)) + digits
	default:
		digits = "0." + digits + "e" + strconv.FormatInt(v.i, 10)
	}
	return shorten(sign + digits)
}

// shorten cuts what goes into an explanation.
func shorten(s string) string {
	const most = 120
	if len(s) <= most {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
