package hooks

import (
	"bytes"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// What is signed is one text. It says where each part of the webhook begins only if a part cannot give its end to the next:
// somebody on the way could otherwise move bytes between the id and the body, say, under the same signature. So parts stand
// side by side only where one of them tells its own end: {method}, which is POST; {timestamp}, whose notations have a fixed
// length; {url}, which is that of the source. A header, or the query of a {url}, ends where what the template has between it
// and the next part that may be anything stands first: texts, and any time for {timestamp}. A header behind the body begins
// where that stands last. A webhook whose parts lie otherwise is refused.

// String is the part as a template has it.
func (p part) String() string {
	switch p.kind {
	case partBody:
		return "{body}"
	case partTime:
		return "{timestamp}"
	case partMethod:
		return "{method}"
	case partURL:
		return "{url}"
	case partHeader:
		return "{header." + p.text + "}"
	}
	return p.text
}

// anything reports whether a part may be any bytes.
func (p part) anything() bool { return p.kind == partBody || p.kind == partHeader }

// runTogether finds two parts side by side neither of which tells its end.
func runTogether(parts []part) (a, b part, found bool) {
	for i := 1; i < len(parts); i++ {
		if parts[i-1].anything() && parts[i].anything() {
			return parts[i-1], parts[i], true
		}
	}
	return a, b, false
}

// apart refuses a webhook whose parts, values in the order of the template, could be told apart in another way too.
func (v *generic) apart(values [][]byte) error {
	for i, p := range v.parts {
		var before, after []byte // what stands at its side without a text between
		if i > 0 && v.parts[i-1].kind != partText {
			before = values[i-1]
		}
		if i+1 < len(v.parts) && v.parts[i+1].kind != partText {
			after = values[i+1]
		}
		switch {
		case p.kind == partTime && isDigit(last(values[i])) && (isDigit(last(before)) || isDigit(first(after))):
			return unverified(v.stamp, "the timestamp is a number, and a digit stands beside it in what is signed: it could be another time")
		case p.kind == partURL && (before != nil || after != nil) && bytes.IndexByte(values[i], '?') >= 0:
			return unverified("url", "has a query, which could be a part of what stands beside it in what is signed")
		}
	}
	for i := 0; i < len(v.parts); {
		next := i + 1
		for next < len(v.parts) && !free(v.parts[next], values[next]) {
			next++
		}
		if next < len(v.parts) && free(v.parts[i], values[i]) {
			if err := v.endsOnce(values, i, next); err != nil {
				return err
			}
		}
		i = next
	}
	return nil
}

// free reports whether a part may be any bytes, or end in some: the address of a {url} is the source's, its query is not.
func free(p part, value []byte) bool {
	return p.anything() || p.kind == partURL && bytes.IndexByte(value, '?') >= 0
}

// endsOnce refuses a webhook in which what stands between two free parts also stands before there in the first, or, where
// that is the body, after there in the second.
func (v *generic) endsOnce(values [][]byte, i, next int) error {
	between, fixed := v.parts[i+1:next], values[i+1:next]
	if v.parts[i].kind != partBody {
		at, value := v.parts[i].text, values[i]
		if v.parts[i].kind == partURL {
			at, value = "url", value[bytes.IndexByte(value, '?'):]
		}
		most := 0 // bytes of what follows that can be taken for what stands between
		for k, p := range between {
			if most += len(fixed[k]); p.kind == partTime {
				most += maxTime
			}
		}
		var room [512]byte
		text := joined(append(room[:0], value...), fixed)
		text = append(text, values[next][:min(len(values[next]), most)]...)
		return standsIn(text, 0, len(value), between, fixed, at, "after")
	}
	if v.parts[next].kind != partHeader {
		return nil
	}
	var room [512]byte
	text := append(joined(room[:0], fixed), values[next]...)
	return standsIn(text, 1, len(text), between, fixed, v.parts[next].text, "before") // at 0 it has to stand
}

// standsIn refuses a text in which, from one offset up to another, parts stand; at is where their neighbour comes from.
func standsIn(text []byte, from, to int, parts []part, values [][]byte, at, side string) error {
	for k := from; k < to; k++ {
		if begins(text[k:], parts, values) {
			var what strings.Builder
			for _, p := range parts {
				what.WriteString(p.String())
			}
			return unverified(at, "its value has %.60q in it, which stands %s it in what is signed", what.String(), side)
		}
	}
	return nil
}

func joined(dst []byte, values [][]byte) []byte {
	for _, b := range values {
		dst = append(dst, b...)
	}
	return dst
}

// maxTime is how long a notation of a time may be, in bytes.
const maxTime = len("2006-01-02T15:04:05.999999999+07:00")

// begins reports whether a text begins as parts do, with any time for {timestamp}.
func begins(text []byte, parts []part, values [][]byte) bool {
	if len(parts) == 0 {
		return true
	}
	if parts[0].kind != partTime {
		rest, ok := bytes.CutPrefix(text, values[0])
		return ok && begins(rest, parts[1:], values[1:])
	}
	digits := 0
	for digits < len(text) && isDigit(text[digits]) {
		digits++
	}
	for n := len("1700000000"); n <= min(digits, len("1700000000000")); n++ { // shorter numbers are times long past
		if begins(text[n:], parts[1:], values[1:]) {
			return true
		}
	}
	if digits != len("2006") {
		return false
	}
	for n := len("2006-01-02T15:04:05Z"); n <= min(len(text), maxTime); n++ {
		if _, err := event.ParseTime(string(text[:n])); err == nil && begins(text[n:], parts[1:], values[1:]) {
			return true
		}
	}
	return false
}

func first(b []byte) byte {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

func last(b []byte) byte {
	if len(b) == 0 {
		return 0
	}
	return b[len(b)-1]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
