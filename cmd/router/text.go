package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// unprintable reports whether a terminal could take r as more than a letter: control characters, which
// include the escape that begins a terminal's commands, and the marks that turn the direction of text.
func unprintable(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
}

// clean makes text from outside safe to print on one line of a terminal: what is unprintable is escaped
// as in Go strings.
func clean(s string) string {
	if strings.IndexFunc(s, unprintable) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unprintable(r):
			q := fmt.Sprintf("%+q", r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// lines is clean for text that may have several lines.
func lines(s string) string {
	parts := strings.Split(s, "\n")
	for i := range parts {
		parts[i] = clean(parts[i])
	}
	return strings.Join(parts, "\n")
}

// cleanJSON makes a JSON text safe to print without changing what it says: unprintable characters can only
// stand inside its strings, where \u means the same. Newlines between tokens stay.
func cleanJSON(doc []byte) []byte {
	bad := func(r rune) bool { return r != '\n' && unprintable(r) }
	if bytes.IndexFunc(doc, bad) < 0 && utf8.Valid(doc) {
		return doc
	}
	var b bytes.Buffer
	for len(doc) > 0 {
		r, n := utf8.DecodeRune(doc)
		switch {
		case r == '\t' || r == '\r': // only between tokens: inside strings JSON forbids them raw
			b.WriteByte(' ')
		case bad(r) && r > 0xFFFF:
			hi, lo := (r-0x10000)>>10+0xD800, (r-0x10000)&0x3FF+0xDC00
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		case bad(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		doc = doc[n:]
	}
	return b.Bytes()
}

// isTerminal reports whether w (or a reader) is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// plural is "1 event" or "3 events".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// say prints one line for people; text from outside must have been cleaned.
func say(w io.Writer, format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
