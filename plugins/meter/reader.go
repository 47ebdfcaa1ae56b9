package meter

import (
	"fmt"
	"unicode/utf8"
)

// A reader cuts an encoding apart. After the first fault it returns zeros and stays where it is.
type reader struct {
	b   []byte
	at  int
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("at byte %d: %s", r.at, fmt.Sprintf(format, args...))
	}
}

// more reports whether there is anything left to read.
func (r *reader) more() bool { return r.err == nil && r.at < len(r.b) }

func (r *reader) byte(what string) byte {
	if r.err != nil {
		return 0
	}
	if r.at >= len(r.b) {
		r.fail("%s is missing: the file is cut off", what)
		return 0
	}
	r.at++
	return r.b[r.at-1]
}

func (r *reader) u32(what string) uint32 {
	if r.err == nil && r.at < len(r.b) && r.b[r.at] < 0x80 {
		r.at++
		return uint32(r.b[r.at-1])
	}
	v := uint64(0)
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte(what)
		v |= uint64(c&0x7F) << shift
		if c&0x80 == 0 {
			if v > 0xFFFFFFFF {
				break
			}
			return uint32(v)
		}
	}
	r.fail("%s is no 32-bit number", what)
	return 0
}

// skipSigned passes over a signed number of at most the given bytes; its value is the compiler's to check.
func (r *reader) skipSigned(most int, what string) {
	for range most {
		if r.byte(what)&0x80 == 0 {
			return
		}
	}
	r.fail("%s has more than %d bytes", what, most)
}

func (r *reader) skip(n uint32, what string) span {
	if r.err == nil && uint64(n) > uint64(len(r.b)-r.at) {
		r.fail("%s has %d bytes, %d are left: the file is cut off", what, n, len(r.b)-r.at)
	}
	if r.err != nil {
		return span{r.at, r.at}
	}
	r.at += int(n)
	return span{r.at - int(n), r.at}
}

func (r *reader) name(what string) string {
	s := r.skip(r.u32("length of "+what), what)
	if !utf8.Valid(r.b[s.from:s.to]) {
		r.fail("%s is not UTF-8", what)
	}
	return string(r.b[s.from:s.to])
}

// list calls item for each element of a vector. Every element takes at least one byte, so a count that
// exceeds what is left is refused before anything is allocated for it.
func (r *reader) list(what string, most int, item func(i int)) {
	n := r.u32("number of " + what)
	if r.err == nil && uint64(n) > uint64(len(r.b)-r.at) {
		r.fail("%d %s in %d bytes: the file is cut off", n, what, len(r.b)-r.at)
	}
	if r.err == nil && uint64(n) > uint64(most) {
		r.fail("%d %s; at most %d are allowed", n, what, most)
	}
	for i := 0; i < int(n) && r.err == nil; i++ {
		item(i)
	}
}

func (r *reader) valueType(what string) byte {
	t := r.byte(what)
	switch t {
	case i32, i64, f32, f64, v128, funcref, externref:
	default:
		r.fail("%s is 0x%02x; i32, i64, f32, f64, v128, funcref and externref are known", what, t)
	}
	return t
}

// Value types.
const (
	i32       = 0x7F
	i64       = 0x7E
	f32       = 0x7D
	f64       = 0x7C
	v128      = 0x7B
	funcref   = 0x70
	externref = 0x6F
	noResult  = 0x40 // a block's type
)

func appendU32(dst []byte, v uint32) []byte {
	for ; v >= 0x80; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

func appendS64(dst []byte, v int64) []byte {
	for {
		c := byte(v & 0x7F)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(dst, c)
		}
		dst = append(dst, c|0x80)
	}
}

func appendName(dst []byte, s string) []byte {
	return append(appendU32(dst, uint32(len(s))), s...)
}

// appendSized appends body after its length.
func appendSized(dst, body []byte) []byte {
	return append(appendU32(dst, uint32(len(body))), body...)
}
