package hooks

import (
	"bytes"
	"strings"
)

// What is signed is one text. It says where each part of the webhook begins only if a part cannot give its end to the next:
// somebody on the way could otherwise move bytes between the id and the body, say, under the same signature. So parts stand
// side by side only where one of them tells its own end: {method}, which is POST; {timestamp}, whose notations have a fixed
// length; {url}, which is that of the source. Where there is a text between a header and what may be anything, the header's
// value must not have that text, nor must the query of a {url} before it.

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
		case p.kind == partText && i > 0 && i+1 < len(v.parts) && v.parts[i-1].kind == partURL && v.parts[i+1].anything():
			if at := bytes.IndexByte(values[i-1], '?'); at >= 0 {
				query := string(values[i-1][at:])
				if strings.Index(query+p.text, p.text) != len(query) {
					return unverified("url", "its query has %.20q in it, which stands after it in what is signed", p.text)
				}
			}
		case p.kind == partText && i > 0 && i+1 < len(v.parts) && v.parts[i-1].anything() && v.parts[i+1].anything():
			if h := v.parts[i-1]; h.kind == partHeader {
				if strings.Index(string(values[i-1])+p.text, p.text) != len(values[i-1]) {
					return unverified(h.text, "its value has %.20q in it, which stands after it in what is signed", p.text)
				}
			} else if h := v.parts[i+1]; h.kind == partHeader && strings.LastIndex(p.text+string(values[i+1]), p.text) != 0 {
				return unverified(h.text, "its value has %.20q in it, which stands before it in what is signed", p.text)
			}
		}
	}
	return nil
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
