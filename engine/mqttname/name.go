// Package mqttname is what MQTT 5.0 says of topic names and topic filters (4.7; 3.1.1 says the same), and what the
// router makes of them: which filters match a name, whether two filters share one, which is more specific, what the
// wildcards took, templates that make names, and tables of filters to look names up in. Names and filters are bounded
// well below what MQTT allows, and hold no control characters, because a name becomes an attribute of an event.
//
// Everything but ParseTemplate, CheckName and CheckFilter expects names and filters that have been checked.
package mqttname

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"
)

// Bounds of a name or filter. MQTT allows 65,535 bytes [MQTT-4.7.3-3] and as many levels.
const (
	MaxLen    = 1024 // bytes
	MaxLevels = 32
)

// CheckName says what is wrong with the name of a message, as event.ErrInvalid or event.ErrTooLarge.
func CheckName(name string) error {
	if err := check("topic name", name); err != nil {
		return err
	}
	if i := strings.IndexAny(name, "+#"); i >= 0 { // [MQTT-4.7.0-1]
		return event.Invalid("topic name", fmt.Sprintf("has the wildcard %q at byte %d; a name has none, filters have", name[i], i))
	}
	return nil
}

// ValidName reports whether CheckName has nothing to say.
func ValidName(name string) bool { return CheckName(name) == nil }

// CheckFilter says what is wrong with a topic filter, as event.ErrInvalid or event.ErrTooLarge.
func CheckFilter(filter string) error {
	if err := check("topic filter", filter); err != nil {
		return err
	}
	for rest, at := filter, 0; ; {
		level, after, more := strings.Cut(rest, "/")
		switch {
		case len(level) > 1 && strings.ContainsAny(level, "+#"): // [MQTT-4.7.1-1], [MQTT-4.7.1-2]
			return event.Invalid("topic filter", fmt.Sprintf("has the level %s at byte %d; a wildcard + or # is a whole level, such as a/+/b or a/#", shown(level), at))
		case level == "#" && more: // [MQTT-4.7.1-1]
			return event.Invalid("topic filter", fmt.Sprintf("goes on after # at byte %d; # stands last", at))
		case !more:
			return nil
		}
		rest, at = after, at+len(level)+1
	}
}

// ValidFilter reports whether CheckFilter has nothing to say.
func ValidFilter(filter string) bool { return CheckFilter(filter) == nil }

// check is what names and filters have in common.
func check(what, s string) error {
	switch {
	case s == "": // [MQTT-4.7.3-1]
		return event.Invalid(what, "is empty; it has at least one character")
	case len(s) > MaxLen:
		return event.Bad(event.ErrTooLarge, what, fmt.Sprintf("has %d bytes; the limit is %d", len(s), MaxLen))
	}
	if n := strings.Count(s, "/") + 1; n > MaxLevels {
		return event.Bad(event.ErrTooLarge, what, fmt.Sprintf("has %d levels; the limit is %d", n, MaxLevels))
	}
	for i := 0; i < len(s); {
		if c := s[i]; c >= 0x20 && c < 0x7F {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1: // [MQTT-1.5.4-1]
			return event.Invalid(what, fmt.Sprintf("is not UTF-8 at byte %d (0x%02X)", i, s[i]))
		case r < 0x20, r >= 0x7F && r <= 0x9F, r >= 0xFDD0 && r <= 0xFDEF, r&0xFFFE == 0xFFFE:
			// U+0000 is forbidden [MQTT-4.7.3-2]; 1.5.4 lets a server refuse the others.
			return event.Invalid(what, fmt.Sprintf("has %U at byte %d; control characters and noncharacters are not taken", r, i))
		}
		i += n
	}
	return nil
}

// shown is a name in an error.
func shown(s string) string {
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}

// hidden reports whether name is one that a filter which begins with a wildcard does not match [MQTT-4.7.2-1].
func hidden(filter, name string) bool {
	return strings.HasPrefix(name, "$") && (strings.HasPrefix(filter, "+") || strings.HasPrefix(filter, "#"))
}

// Match reports whether filter matches name. It allocates nothing.
func Match(filter, name string) bool {
	if hidden(filter, name) {
		return false
	}
	for {
		f, filters, moreFilter := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		n, names, moreName := strings.Cut(name, "/")
		switch {
		case f != "+" && f != n:
			return false
		case !moreName: // a/# matches a too (4.7.1.2)
			return !moreFilter || filters == "#"
		case !moreFilter:
			return false
		}
		filter, name = filters, names
	}
}

// Overlap reports whether there is a name that both filters match.
func Overlap(a, b string) bool {
	if hidden(a, b) || hidden(b, a) { // a name that the one matches begins with $ or its first level is a wildcard's
		return false
	}
	for {
		la, restA, moreA := strings.Cut(a, "/")
		lb, restB, moreB := strings.Cut(b, "/")
		switch {
		case la == "#" || lb == "#":
			return true
		case la != "+" && lb != "+" && la != lb:
			return false
		case !moreA || !moreB:
			return moreA == moreB || restA == "#" || restB == "#"
		}
		a, b = restA, restB
	}
}

// MoreSpecific reports whether a goes before b where both match a name: level by level from the left, text goes before
// +, and + before #. Of two different filters that match one name, one always does.
func MoreSpecific(a, b string) bool {
	for {
		la, restA, moreA := strings.Cut(a, "/")
		lb, restB, moreB := strings.Cut(b, "/")
		if ra, rb := rank(la), rank(lb); ra != rb {
			return ra < rb
		}
		if !moreA || !moreB { // a goes before a/#
			return !moreA && moreB
		}
		a, b = restA, restB
	}
}

func rank(level string) int {
	switch level {
	case "#":
		return 2
	case "+":
		return 1
	}
	return 0
}

// Wildcards is how many wildcards a filter has: how many pieces Capture returns.
func Wildcards(filter string) int { return strings.Count(filter, "+") + strings.Count(filter, "#") }

// Capture returns what the wildcards of filter, which matches name, took of it, in their order: a level for each +, and
// the rest with its slashes for #, "" where a/# matched a.
func Capture(filter, name string) []string { return AppendCapture(nil, filter, name) }

// AppendCapture is Capture that appends to dst. The pieces borrow name.
func AppendCapture(dst []string, filter, name string) []string {
	for more := true; more; {
		var f, n string
		f, filter, more = strings.Cut(filter, "/")
		if f == "#" {
			return append(dst, name)
		}
		n, name, _ = strings.Cut(name, "/")
		if f == "+" {
			dst = append(dst, n)
		}
	}
	return dst
}

// AppendFill appends the name that filter matches with those pieces: Capture the other way round. An empty piece of a
// last # stands for its parent level. ok is false where a piece cannot be what its wildcard took, or the name would not
// be valid.
func AppendFill(dst []byte, filter string, pieces []string) (name []byte, ok bool) {
	from := len(dst)
	for more := true; more; {
		var f string
		f, filter, more = strings.Cut(filter, "/")
		text := f
		if f == "+" || f == "#" {
			if len(pieces) == 0 {
				return dst[:from], false
			}
			text, pieces = pieces[0], pieces[1:]
			if f == "+" && strings.Contains(text, "/") || len(dst) == from && strings.HasPrefix(text, "$") {
				return dst[:from], false
			}
			if f == "#" && text == "" && len(dst) > from {
				dst = dst[:len(dst)-1] // the slash before it
			}
		}
		dst = append(dst, text...)
		if more {
			dst = append(dst, '/')
		}
	}
	return dst, validBytes(dst[from:])
}

func validBytes(name []byte) bool { return len(name) <= MaxLen && ValidName(borrow(name)) }
