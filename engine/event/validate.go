package event

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// IsJSON reports whether a content type declares JSON: the subtype json or the suffix +json, parameters
// aside (CloudEvents JSON format, 3.1). The empty one does: an event without datacontenttype is read as
// application/json.
func IsJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, _ := strings.Cut(contentType, ";")
	_, sub, ok := strings.Cut(strings.TrimSpace(media), "/")
	if n := len(sub) - len("+json"); n > 0 && sub[n] == '+' {
		sub = sub[n+1:]
	}
	return ok && strings.EqualFold(sub, "json")
}

// Validate checks that e is a complete CloudEvent 1.0 within the limits and lists everything wrong as
// Faults, each at its attribute: ErrTooLarge if only limits are passed, else ErrInvalid. That URIs are
// well-formed is left to whoever follows them.
func (e *Event) Validate(l Limits) error {
	var f faults
	e.validate(l.WithDefaults(), &f)
	return f.err()
}

func (e *Event) validate(l Limits, f *faults) {
	count, size := 0, len(e.Data)
	for tag := TagID; tag < tagEnd; tag++ {
		v := *e.field(tag)
		if tag == TagTopic {
			continue // not an attribute of the event but where it lies
		}
		if v == "" {
			if tag <= TagType && !f.has(tag.Name()) {
				f.add(ErrInvalid, tag.Name(), "is missing or empty; a CloudEvent has id, source and type")
			}
			continue
		}
		count++
		size += len(v)
		checkValue(tag.Name(), v, l, f)
	}
	if e.Time != "" && !f.has("time") {
		if _, err := ParseTime(e.Time); err != nil {
			f.add(ErrInvalid, "time", err.Error())
		}
	}
	count += len(e.Extensions)
	if count > l.Attrs {
		f.add(ErrTooLarge, "", fmt.Sprintf("the event has %d attributes; the limit is %d attributes an event", count, l.Attrs))
		return // what follows compares every extension with every other
	}
	for i := range e.Extensions {
		a := &e.Extensions[i]
		size += len(a.Name) + len(a.Value)
		if why := checkAttributeName(a.Name); why != "" {
			if at := clip(a.Name); !f.has(at) {
				f.add(ErrInvalid, at, why)
			}
			continue
		}
		for j := range i {
			if e.Extensions[j].Name == a.Name {
				f.add(ErrInvalid, a.Name, "is given twice")
				break
			}
		}
		checkValue(a.Name, a.Value, l, f)
		switch {
		case a.Kind > Timestamp:
			f.add(ErrInvalid, a.Name, fmt.Sprintf("is of kind %d; the kinds are %d to %d", a.Kind, String, Timestamp))
		case a.Kind == Boolean:
			if a.Value != "true" && a.Value != "false" {
				f.add(ErrInvalid, a.Name, fmt.Sprintf("is %.60q; a boolean is true or false", a.Value))
			}
		case a.Kind == Integer:
			if !isInt32(a.Value) {
				f.add(ErrInvalid, a.Name, fmt.Sprintf("is %.60q; an integer is %d to %d in plain digits", a.Value, math.MinInt32, math.MaxInt32))
			}
		}
	}
	if size > l.Event {
		f.add(ErrTooLarge, "", fmt.Sprintf("the event has %d bytes of data and attributes; the limit is %d bytes an event", size, l.Event))
	}
}

// checkValue holds an attribute's value to the limit and to CloudEvents' String type.
func checkValue(name, v string, l Limits, f *faults) {
	if len(v) > l.Attribute {
		f.add(ErrTooLarge, name, fmt.Sprintf("has %d bytes; the limit is %d bytes an attribute", len(v), l.Attribute))
		return
	}
	// CloudEvents 1.0, "Type System", String: no control characters, no noncharacters, no surrogates.
	for i := 0; i < len(v); {
		if c := v[i]; c >= 0x20 && c < 0x7F {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(v[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			f.add(ErrInvalid, name, fmt.Sprintf("is not UTF-8 at byte %d (0x%02X)", i, v[i]))
			return
		case r < 0x20, r >= 0x7F && r <= 0x9F, r >= 0xFDD0 && r <= 0xFDEF, r&0xFFFE == 0xFFFE:
			f.add(ErrInvalid, name, fmt.Sprintf("has %U at byte %d; control characters and noncharacters are not allowed in an attribute", r, i))
			return
		}
		i += n
	}
}

// checkAttributeName says what is wrong with the name of an extension attribute, "" if nothing is.
func checkAttributeName(name string) string {
	switch {
	case name == "":
		return "an attribute has no name"
	case len(name) > MaxName: // far below what the record's u16 can say
		return fmt.Sprintf("the attribute's name has %d bytes; the limit is %d", len(name), MaxName)
	case name == "specversion", name == "data", name == "data_base64", TagOf(name) != TagExtension:
		return "this name cannot be an extension: CloudEvents or the router gives it a meaning"
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Sprintf("the attribute's name has %q at %d; names are lower-case letters a-z and digits 0-9", c, i)
		}
	}
	return ""
}

// isInt32 reports whether s is a CloudEvents Integer in its one canonical form.
func isInt32(s string) bool {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return false
	}
	var buf [12]byte
	return string(strconv.AppendInt(buf[:0], n, 10)) == s
}

// ParseDuration reads a duration; besides time.ParseDuration's units there is d, a day.
func ParseDuration(v string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(v, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(v)
}

// ParseSince reads where a reader begins: an RFC 3339 time, or a duration back from now.
func ParseSince(v string, now time.Time) (time.Time, error) {
	// A + that was not encoded in a URL arrives as a space; no time has one there.
	if at, err := ParseTime(strings.Replace(v, " ", "+", 1)); err == nil {
		return at, nil
	}
	if back, err := ParseDuration(v); err == nil && back >= 0 {
		return now.Add(-back), nil
	}
	return time.Time{}, fmt.Errorf("%.60q is no time; want RFC 3339 (2026-01-31T12:00:00Z) or a duration back (90s, 15m, 12h, 7d)", v)
}

// ParseTime reads an RFC 3339 time: also with t and z in lower case and with a leap second, which counts
// as the second after it.
func ParseTime(s string) (time.Time, error) {
	bad := func(why string) (time.Time, error) {
		return time.Time{}, fmt.Errorf("%.40q %s; want RFC 3339, such as 2026-01-31T12:00:00Z", s, why)
	}
	num := func(at, n int) int {
		v := 0
		for _, c := range []byte(s[at : at+n]) {
			if c < '0' || c > '9' {
				return math.MaxInt32 // outside every range below
			}
			v = v*10 + int(c-'0')
		}
		return v
	}
	if len(s) < len("2006-01-02T15:04:05Z") || s[4] != '-' || s[7] != '-' || s[10]|0x20 != 't' || s[13] != ':' || s[16] != ':' {
		return bad("is not a time")
	}
	year, month, day := num(0, 4), num(5, 2), num(8, 2)
	hour, minute, sec := num(11, 2), num(14, 2), num(17, 2)
	if year > 9999 || month > 12 || day > 31 || hour > 23 || minute > 59 || sec > 60 {
		return bad("is out of range")
	}
	at, nanos := 19, 0
	if s[at] == '.' {
		unit, from := 100_000_000, at+1
		for at = from; at < len(s) && s[at] >= '0' && s[at] <= '9'; at++ {
			nanos += unit * int(s[at]-'0') // past nine digits unit is 0
			unit /= 10
		}
		if at == from {
			return bad("has no digit after the point")
		}
	}
	loc, zone := time.UTC, s[at:]
	switch {
	case zone == "Z" || zone == "z":
	case len(zone) == 6 && (zone[0] == '+' || zone[0] == '-') && zone[3] == ':':
		h, m := num(at+1, 2), num(at+4, 2)
		if h > 23 || m > 59 {
			return bad("has a zone out of range")
		}
		offset := (h*60 + m) * 60
		if zone[0] == '-' {
			offset = -offset
		}
		if offset != 0 {
			loc = time.FixedZone("", offset)
		}
	default:
		return bad("has no zone")
	}
	if t := time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC); int(t.Month()) != month {
		return bad("is no day of the calendar")
	}
	return time.Date(year, time.Month(month), day, hour, minute, sec, nanos, loc), nil
}

// clip shortens what a client sent for use in an error.
func clip(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}

// faults gathers what is wrong with one event. The zero value costs nothing until something is.
type faults struct {
	list    []Fault
	invalid bool // not only limits
}

func (f *faults) add(is error, at, detail string) {
	f.invalid = f.invalid || is == ErrInvalid
	f.list = append(f.list, Fault{At: strings.Clone(at), Detail: detail})
}

func (f *faults) has(at string) bool {
	for i := range f.list {
		if f.list[i].At == at {
			return true
		}
	}
	return false
}

func (f *faults) err() error {
	switch {
	case len(f.list) == 0:
		return nil
	case f.invalid:
		return &Faults{Is: ErrInvalid, List: f.list}
	}
	return &Faults{Is: ErrTooLarge, List: f.list}
}
