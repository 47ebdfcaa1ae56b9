package mqttname

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// A Template is text with fields in braces: "alerts/{subject}", "{1}/{2}". {{ and }} are braces themselves. A field is
// the number of a wildcard, from 1, or the name of an attribute.
type Template struct {
	text  string
	parts []part
}

// A part is text or a field.
type part struct {
	text  string
	field string // "" for text
	n     int    // of a wildcard; 0 for an attribute
}

// ParseTemplate reads a template; errors are event.ErrInvalid. What fields there may be is for the caller to say: Max,
// Attributes.
func ParseTemplate(text string) (Template, error) {
	t := Template{text: text}
	bad := func(at int, format string, args ...any) (Template, error) {
		return Template{}, event.Invalid("", fmt.Sprintf("%s "+format, append([]any{shown(text)}, append(args, at)...)...)+
			"; a field is {1}, {subject} or another attribute's name in braces, and {{ is a brace")
	}
	if len(text) > MaxLen {
		return Template{}, event.Invalid("", fmt.Sprintf("the template has %d bytes; the limit is %d", len(text), MaxLen))
	}
	var lit []byte
	flush := func() {
		if len(lit) > 0 {
			t.parts, lit = append(t.parts, part{text: string(lit)}), nil
		}
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c != '{' && c != '}':
			lit = append(lit, c)
		case i+1 < len(text) && text[i+1] == c:
			lit = append(lit, c)
			i++
		case c == '}':
			return bad(i, "closes a brace that is not open at byte %d")
		default:
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return bad(i, "opens a brace and does not close it at byte %d")
			}
			p := part{field: text[i+1 : i+end]}
			if p.n, _ = strconv.Atoi(p.field); p.n < 0 || p.n == 0 && !isAttribute(p.field) || p.n > 0 && strconv.Itoa(p.n) != p.field {
				return bad(i, "has the field %q at byte %d", p.field)
			}
			flush()
			t.parts = append(t.parts, p)
			i += end
		}
	}
	flush()
	return t, nil
}

// isAttribute reports whether name can be an attribute's: CloudEvents allows lower-case letters and digits.
func isAttribute(name string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != "" && len(name) <= event.MaxName && (name[0] < '0' || name[0] > '9')
}

// String is the template as it was written.
func (t Template) String() string { return t.text }

// IsZero reports whether there is no template, or an empty one.
func (t Template) IsZero() bool { return len(t.parts) == 0 }

// Literal returns the template's text where it has no field.
func (t Template) Literal() (text string, ok bool) {
	switch {
	case len(t.parts) == 0:
		return "", true
	case len(t.parts) == 1 && t.parts[0].field == "":
		return t.parts[0].text, true
	}
	return "", false
}

// Max is the highest number of a wildcard among the fields; 0 if there is none.
func (t Template) Max() int {
	m := 0
	for _, p := range t.parts {
		m = max(m, p.n)
	}
	return m
}

// Attributes are the names of the attributes among the fields.
func (t Template) Attributes() (names []string) {
	for _, p := range t.parts {
		if p.field != "" && p.n == 0 && !slices.Contains(names, p.field) {
			names = append(names, p.field)
		}
	}
	return names
}

// Append appends the template with its attributes filled in by lookup; ok is false where one is not there or a field is
// a wildcard's number. It allocates nothing besides dst.
func (t Template) Append(dst []byte, lookup func(attribute string) (value string, ok bool)) (text []byte, ok bool) {
	for i := range t.parts {
		p := &t.parts[i]
		if p.field == "" {
			dst = append(dst, p.text...)
			continue
		}
		v, ok := lookup(p.field)
		if !ok || p.n > 0 {
			return dst, false
		}
		dst = append(dst, v...)
	}
	return dst, true
}

// Whole is the number of the wildcard of a template that is nothing but that field; 0 for others.
func (t Template) Whole() int {
	if len(t.parts) == 1 {
		return t.parts[0].n
	}
	return 0
}

// AppendPieces appends the template with what wildcards took filled in; Max is at most len(pieces), and there are no
// attributes.
func (t Template) AppendPieces(dst []byte, pieces []string) []byte {
	for i := range t.parts {
		if p := &t.parts[i]; p.n > 0 {
			dst = append(dst, pieces[p.n-1]...)
		} else {
			dst = append(dst, p.text...)
		}
	}
	return dst
}

// Unfill finds the pieces that text was made of and puts them into pieces, each as short as can be. Those that are
// there already have to be the same; "" is not there. It reports false where text cannot be of this template.
func (t Template) Unfill(text string, pieces []string) bool {
	for i := 0; i < len(t.parts); i++ {
		p := &t.parts[i]
		if p.n == 0 {
			after, ok := strings.CutPrefix(text, p.text)
			if !ok || p.field != "" {
				return false
			}
			text = after
			continue
		}
		if p.n > len(pieces) {
			return false
		}
		end := len(text)
		if i+1 < len(t.parts) {
			next := t.parts[i+1]
			if next.field != "" { // two fields without text between: where the one ends is not known
				return false
			}
			if i+2 < len(t.parts) {
				end = strings.Index(text, next.text)
			} else {
				end = len(text) - len(next.text)
			}
			if end < 0 {
				return false
			}
		}
		have := &pieces[p.n-1]
		if *have == "" && !t.hasField(i, p.n) {
			*have = text[:end]
		} else if *have != text[:end] {
			return false
		}
		text = text[end:]
	}
	return text == ""
}

// hasField reports whether the first parts have the field of a wildcard: its piece is known then, also one that is empty.
func (t Template) hasField(parts, wildcard int) bool {
	for i := range parts {
		if t.parts[i].n == wildcard {
			return true
		}
	}
	return false
}

// Pattern is the filter that all names lie in which the template makes: its text up to the level of the first field,
// then #.
func (t Template) Pattern() string {
	if text, ok := t.Literal(); ok {
		return text
	}
	head := ""
	if t.parts[0].field == "" {
		head = t.parts[0].text
	}
	return head[:strings.LastIndexByte(head, '/')+1] + "#"
}
