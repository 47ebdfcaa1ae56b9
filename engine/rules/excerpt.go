package rules

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/event"

	"go.yaml.in/yaml/v3"
)

// Bounds of an excerpt.
const (
	maxShownLine = 4096 // bytes of a line of which a part is shown
	shownBefore  = 70   // characters before the one that is pointed at
	shownAfter   = 50
)

// span is a part of a line that is not shown: columns from 1, to excluded.
type span struct{ from, to int }

// veil is what of a file is not shown: literal secrets.
type veil struct {
	spans map[int][]span // by line
	blind bool           // the file was not understood: it is not known what is a secret
}

// excerpt is a line of a file with a mark below one of its characters, without what is secret in it; "" where that
// cannot be told or the line is too long to be read.
func (p *parser) excerpt(f fault) string {
	src := f.src
	if src == nil || src.name == "" || f.line < 1 {
		return ""
	}
	if src.lines == nil {
		src.lines = splitLines(src.text)
	}
	if f.line > len(src.lines) || len(src.lines[f.line-1]) > maxShownLine || !utf8.Valid(src.lines[f.line-1]) {
		return ""
	}
	if src.veil == nil {
		src.veil = newVeil(src)
	}
	if src.veil.blind && !harmless(src.lines, f.line-1) {
		return ""
	}
	text := strings.TrimRight(string(src.lines[f.line-1]), " \t\r")
	spans := slices.Clone(src.veil.spans[f.line])
	for s := range p.secrets { // of a reference's value that stands here as well
		if !onlyReferences(s) {
			spans = appendSpans(spans, text, s)
		}
	}
	if i := strings.Index(text, "#"); i >= 0 && secretKey(text[i:]) { // a comment is no value, but may hold an old one
		spans = append(spans, span{utf8.RuneCountInString(text[:i]) + 1, maxShownLine})
	}
	line, col := veiled([]rune(text), spans, f.col)
	return pointed(line, f.line, col)
}

// appendSpans adds where s, unless it is empty, stands in text.
func appendSpans(spans []span, text, s string) []span {
	for at := 0; s != ""; {
		i := strings.Index(text[at:], s)
		if i < 0 {
			break
		}
		from := utf8.RuneCountInString(text[:at+i]) + 1
		spans = append(spans, span{from, from + utf8.RuneCountInString(s)})
		at += i + len(s)
	}
	return spans
}

// veiled replaces spans by "***" and returns where the column has gone.
func veiled(line []rune, spans []span, col int) ([]rune, int) {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(b.to, a.to)) })
	var out []rune
	at := col
	next := 1
	for _, s := range spans {
		s.to = min(s.to, len(line)+1)
		if s.to <= next || s.from > len(line) {
			continue
		}
		s.from = max(s.from, next)
		out = append(out, line[next-1:s.from-1]...)
		if col >= s.from {
			at = len(out) + 1 + max(0, col-s.to+len(hidden))
			if col < s.to {
				at = len(out) + 1
			}
		}
		out = append(out, []rune(hidden)...)
		next = s.to
	}
	return append(out, line[min(next-1, len(line)):]...), at
}

func pointed(line []rune, number, col int) string {
	col = min(max(col, 1), len(line)+1)
	from, to := max(0, col-1-shownBefore), min(len(line), col-1+shownAfter)
	shown := slices.Clone(line[from:to])
	for i, r := range shown {
		if r == '\t' {
			shown[i] = ' '
		} else if !unicode.IsPrint(r) {
			shown[i] = '·'
		}
	}
	col -= from
	if from > 0 {
		shown, col = append([]rune("…"), shown...), col+1
	}
	if to < len(line) {
		shown = append(shown, '…')
	}
	return fmt.Sprintf("%6d | %s\n       | %s^", number, string(shown), strings.Repeat(" ", col-1))
}

// newVeil finds the literal secrets of a file: what mask hides, at its places.
func newVeil(src *source) *veil {
	v := &veil{spans: map[int][]span{}, blind: src.root == nil}
	if v.blind {
		return v
	}
	var all, secrets []*node
	var walk func(n *node, secret, target bool)
	walk = func(n *node, secret, target bool) {
		all = append(all, n)
		if n.kind == scalar && (isHidden(n, secret) || target && !plainTarget.MatchString(reference.ReplaceAllString(n.raw, "1"))) {
			secrets = append(secrets, n)
		}
		for i, item := range n.items {
			under, to := secret, target
			if n.kind == mapping {
				all = append(all, n.keys[i])
				under = secret || likeSecretKey(n.keys[i].raw)
				to = slices.Contains(targetKeys, n.keys[i].raw)
			}
			walk(item, under, to)
		}
	}
	walk(src.root, false, false)
	place := func(a, b *node) int { return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col)) }
	slices.SortFunc(all, place)
	for _, n := range secrets {
		if to, ok := endOf(src.lines, n); ok {
			v.spans[n.line] = append(v.spans[n.line], span{n.col, to})
			continue
		}
		// It goes over several lines: up to where the next node begins.
		line, col := len(src.lines)+1, 1
		if i, _ := slices.BinarySearchFunc(all, n, place); i < len(all) {
			for i < len(all) && place(all[i], n) == 0 {
				i++
			}
			if i < len(all) {
				line, col = all[i].line, all[i].col
			}
		}
		v.hide(src.lines, n.line, n.col, line, col)
	}
	return v
}

// hide covers what lies between two places, white space at the beginning of the last line aside.
func (v *veil) hide(lines [][]byte, line, col, endLine, endCol int) {
	for l := line; l <= min(endLine, len(lines)); l++ {
		from, to := 1, maxShownLine
		if l == line {
			from = col
		}
		if l == endLine {
			to = endCol
			if l > line && strings.Trim(string([]rune(string(lines[l-1]))[:min(endCol-1, utf8.RuneCount(lines[l-1]))]), " \t-") == "" {
				continue
			}
		}
		v.spans[l] = append(v.spans[l], span{from, to})
	}
}

// references and what commonly stands before one in a header.
var (
	reference  = regexp.MustCompile(`\$\{[^}]*\}`)
	authScheme = regexp.MustCompile(`(?i)^\s*(bearer|basic|token)?\s*$`)
)

// onlyReferences reports whether a secret value is written as a reference.
func onlyReferences(s string) bool {
	without := reference.ReplaceAllString(s, "")
	return without != s && authScheme.MatchString(without)
}

// brokenURL tells what is no URL, or none that is taken, and has what may be a password where one stands in a URL, or behind a #.
var brokenURL = regexp.MustCompile(`^[^\s"'/]*(//)?[^\s"'/]*:[^\s"']*@|^[A-Za-z][A-Za-z0-9+.-]*://[^\s"']*#`)

// plainTarget is a bridge's URL that has no room for a password. What is none is refused, and where in it a password stands
// cannot be told: it is not shown at all.
var plainTarget = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*://([A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]*\])(:[0-9]{0,5})?(/[A-Za-z0-9._~/-]*)?|1)?$`)

// isHidden reports whether a scalar is, or may have in it, a literal secret.
func isHidden(n *node, secret bool) bool {
	if secret {
		return !onlyReferences(n.raw)
	}
	if strings.Contains(n.raw, secretPrefix) || brokenURL.MatchString(reference.ReplaceAllString(n.raw, "x")) {
		return true
	}
	if restOfURL(n.raw) {
		return besideReferences(n.raw, false) != n.raw
	}
	plain := reference.ReplaceAllString(n.raw, "x")
	return n.tag == "!!str" && shownText(plain, false).text != plain
}

// endOf is the column after a scalar that ends on the line where it begins.
func endOf(lines [][]byte, n *node) (col int, ok bool) {
	if n.line < 1 || n.line > len(lines) {
		return 0, false
	}
	line := []rune(string(lines[n.line-1]))
	if n.col < 1 || n.col > len(line) {
		return 0, false
	}
	rest := line[n.col-1:]
	switch {
	case n.style&(yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) != 0:
		return 0, false
	case n.style&yaml.DoubleQuotedStyle != 0:
		for i := 1; i < len(rest); i++ {
			if rest[i] == '\\' {
				i++
			} else if rest[i] == '"' {
				return n.col + i + 1, true
			}
		}
		return 0, false
	case n.style&yaml.SingleQuotedStyle != 0:
		for i := 1; i < len(rest); i++ {
			if rest[i] != '\'' {
				continue
			}
			if i+1 == len(rest) || rest[i+1] != '\'' {
				return n.col + i + 1, true
			}
			i++
		}
		return 0, false
	}
	if !strings.HasPrefix(string(rest), n.raw) {
		return 0, false
	}
	return n.col + utf8.RuneCountInString(n.raw), true
}

// mayBeSecret reports whether a line has a secret's key in it, misspelt perhaps, or what looks like a secret.
func mayBeSecret(line string) bool {
	return secretKey(line) || strings.Contains(line, secretPrefix) || slices.ContainsFunc(words.FindAllString(line, 20), likeSecretKey)
}

// likeSecretKey is secretKey for keys that are misspelt.
func likeSecretKey(key string) bool {
	return secretKey(key) || event.Nearest(strings.ToLower(key), secretKeys) != ""
}

// maxAbove is how many lines above one are looked at.
const maxAbove = 200

// secretPrefix is that of secrets that sign webhooks.
const secretPrefix = "whsec_"

var (
	targetKeys = []string{"router", "mqtt"} // of the other side of a bridge
	secretKeys = []string{"secret", "secrets", "token", "password", "credential", "credentials", "headers", "authorization", "apikey", "private"}
	words      = regexp.MustCompile(`[A-Za-z_-]{4,}`)

	topLevel = regexp.MustCompile(`^[A-Za-z]+\s*:`)
	onlyRefs = regexp.MustCompile(`^\s*(-\s*)?["']?[\w-]+["']?\s*:\s*\[?\s*["']?\$\{[^}]*\}["']?\s*\]?\s*$`)
)

// harmless reports whether a line of a file that is not YAML can be shown: neither it nor what stands above it in
// its section speaks of secrets.
func harmless(lines [][]byte, at int) bool {
	for i := at; i >= 0; i-- {
		line := string(lines[i])
		if i < at-maxAbove || mayBeSecret(line) && !onlyRefs.MatchString(line) {
			return false
		}
		if _, rest, ok := strings.Cut(line, "://"); ok && i == at && strings.ContainsAny(rest, "@?") {
			return false
		}
		if topLevel.MatchString(line) {
			return true
		}
	}
	return true
}
