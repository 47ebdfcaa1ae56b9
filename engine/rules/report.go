package rules

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/engine/event"
)

const (
	maxFaults = 100 // shown; the rest are counted
	maxKept   = 200 // of each file, since they are sorted by place first; a bomb has hundreds of thousands
)

// parser gathers definitions and faults over all files of one Parse.
type parser struct {
	o         Options
	api       bool                       // one definition of the API: faults are at fields
	siblings  func(path string) []string // files beside path, for suggestions; nil: not known
	files     map[string]bool            // read
	read1     map[string]attached        // by path
	sources   map[string][]byte          // by their names in a bundle
	packing   bool                       // a bundle is made: variables are those of the router that takes it
	bundled   bool                       // the rules are a bundle, or will be: they read no other files
	unset     int                        // variables that only the bundle's router has
	revision  hash.Hash
	secrets   map[string]bool    // values that no message may carry
	referred  map[*node][]string // what a node's references stand for; nil: nothing yet
	faults    []fault
	kept      map[fault]bool // those in faults
	perFile   map[string]int
	count     int       // kept or not
	looks     int       // left of maxLooks
	partial   bool      // a file was not understood: what it defines is not known
	expanded  int       // bytes that references stand for
	names     []string  // of functions, sorted, once a suggestion needs them
	scratch   []byte    // of sum
	stretches []stretch // files of subscriptions alone, for the Cache
	unread    bool      // a file was not read, for it is what it was: faults are counted only
	whole     bool      // read every file

	topics        []*topicDef
	functions     []*functionDef
	subscriptions []*subscriptionDef
	topicKeys     map[string]*node // where each was defined
	functionKeys  map[string]*node
	subKeys       map[string]*node
	hostKeys      map[string]*node
	hosts         []Host
	scheduleKeys  map[string]*node
	schedules     []Schedule
	hookKeys      map[string]*node
	hooks         []Source
	hookFunctions []*node // that verify
	mqttKeys      map[string]*node
	mappings      []MQTTMapping
	bridgeKeys    map[string]*node
	bridges       []*bridgeDef
	testDefs      []*testDef
	testNames     map[string]*node
}

type fault struct {
	src       *source
	file      string
	line, col int
	event.Fault
}

func newParser(o Options) *parser {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &parser{o: o, files: map[string]bool{}, sources: map[string][]byte{}, read1: map[string]attached{}, revision: sha256.New(),
		secrets: map[string]bool{}, kept: map[fault]bool{}, perFile: map[string]int{}, looks: maxLooks,
		topicKeys: map[string]*node{}, functionKeys: map[string]*node{}, subKeys: map[string]*node{}, hostKeys: map[string]*node{}, scheduleKeys: map[string]*node{}, hookKeys: map[string]*node{}, bridgeKeys: map[string]*node{}, mqttKeys: map[string]*node{}, testNames: map[string]*node{}}
}

// place is where a node lies, as a fault says it.
func (n *node) place() string {
	if n.src.name == "" {
		return n.path
	}
	return fmt.Sprintf("%s:%d:%d", n.src.name, n.line, n.col)
}

// fault reports what is wrong at a node.
func (p *parser) fault(n *node, format string, args ...any) {
	if p.full(n) { // to make it fine is in vain
		p.count++
		return
	}
	p.report(n, n.path, fmt.Sprintf(format, args...))
}

// bad is fault for a value: in a file its path comes first, for a line with several keys has one number.
func (p *parser) bad(n *node, format string, args ...any) {
	p.badAt(n, "", format, args...)
}

// badAt is bad about something that is not there, below n.
func (p *parser) badAt(n *node, below, format string, args ...any) {
	if p.full(n) {
		p.count++
		return
	}
	detail := fmt.Sprintf(format, args...)
	path := n.path
	switch {
	case strings.HasPrefix(below, "["), below == "":
		path += below
	case path == "":
		path = below
	default:
		path += "." + below
	}
	if n.src.name != "" && path != "" {
		detail = path + ": " + detail
	}
	p.report(n, path, detail)
}

// full reports whether another fault of n's file would only be counted: to make it fine is in vain then.
func (p *parser) full(n *node) bool { return p.unread || p.perFile[n.src.name] >= maxKept }

func (p *parser) report(n *node, path, detail string) {
	p.count++
	if p.full(n) {
		return
	}
	detail = p.withoutSecrets(detail)
	detail = strings.ReplaceAll(detail, "\n", "; ") // one fault, one line
	f := fault{src: n.src, file: n.src.name, line: n.line, col: n.col, Fault: event.Fault{At: path, Detail: detail}}
	if n.src.name != "" {
		f.At = n.place()
	}
	if p.kept[f] { // an alias shows a fault in each of its places
		p.count--
		return
	}
	p.kept[f] = true
	p.perFile[f.file]++
	p.faults = append(p.faults, f)
}

// withoutSecrets hides every value that is secret in a text, also as it stands within quotes. All are looked for before
// one is replaced: of a value that has another within it the rest would be told.
func (p *parser) withoutSecrets(text string) string {
	var spans []span
	for s := range p.secrets {
		spans = appendSpans(spans, text, s)
		if q := strconv.Quote(s); q[1:len(q)-1] != s {
			spans = appendSpans(spans, text, q[1:len(q)-1])
		}
	}
	if len(spans) == 0 {
		return text
	}
	shown, _ := veiled([]rune(text), spans, 1)
	return string(shown)
}

// foreign reports an error of another package about n: its faults each at its own field below n.
func (p *parser) foreign(n *node, err error) {
	var fs *event.Faults
	if errors.As(err, &fs) {
		for _, f := range fs.List {
			at, rest := n.at(f.At)
			p.badAt(at, rest, "%s", f.Detail)
		}
		return
	}
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		for _, err := range many.Unwrap() {
			p.foreign(n, err)
		}
		return
	}
	p.bad(n, "%v", err)
}

// err is nil where nothing is wrong, else all that is, in the order of the files.
func (p *parser) err() error {
	if len(p.faults) == 0 {
		if p.unread && p.count > 0 {
			return errUnread
		}
		return nil
	}
	slices.SortStableFunc(p.faults, func(a, b fault) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col))
	})
	out := &event.Faults{Is: event.ErrInvalid}
	for i, f := range p.faults {
		if i == maxFaults {
			out.List = append(out.List, event.Fault{Detail: fmt.Sprintf("and %d more", p.count-i)})
			break
		}
		f.Excerpt = p.excerpt(f)
		out.List = append(out.List, f.Fault)
	}
	return out
}

// quote shows what somebody wrote, bounded and without control characters.
func quote(s string) string {
	if len(s) > 60 {
		cut := 60
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return strconv.Quote(s)
}

// shown is a scalar's text for a message: references stay references.
func (n *node) shown() string {
	if n.kind != scalar {
		return n.kind.String()
	}
	return quote(n.raw)
}

// locate returns where the character at an offset (from 0) of a scalar's text stands in its file. Where the
// way from one to the other is not plain, it is the scalar's start.
func (n *node) locate(offset int) (line, col int) {
	if n.refs || n.src.name == "" || n.style&(yaml.TaggedStyle) != 0 {
		return n.line, n.col
	}
	if n.src.lines == nil {
		n.src.lines = splitLines(n.src.text)
	}
	line, col = n.line, n.col
	rest := []rune{}
	load := func() bool {
		if line > len(n.src.lines) {
			return false
		}
		rest = []rune(string(n.src.lines[line-1]))
		return true
	}
	if !load() || col-1 > len(rest) {
		return n.line, n.col
	}
	switch {
	case n.style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0: // the text begins on the next line
		line, col = line+1, 1
		if !load() {
			return n.line, n.col
		}
	case n.style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		col++
	}
	for i, want := range []rune(n.raw) {
		if unicode.IsSpace(want) { // folding changes white space: only the rest is followed
			if i == offset {
				return line, col
			}
			if col-1 < len(rest) && rest[col-1] == want {
				col++
			}
			continue
		}
		for col-1 >= len(rest) || unicode.IsSpace(rest[col-1]) {
			if col++; col-1 > len(rest) {
				line, col = line+1, 1
				if !load() {
					return n.line, n.col
				}
			}
		}
		if rest[col-1] != want {
			return n.line, n.col
		}
		if i == offset {
			return line, col
		}
		col++
		if want == '\'' && n.style&yaml.SingleQuotedStyle != 0 {
			col++ // written twice
		}
	}
	return line, col
}

func splitLines(text []byte) [][]byte {
	var lines [][]byte
	for len(text) > 0 {
		i := slices.Index(text, '\n')
		if i < 0 {
			return append(lines, text)
		}
		lines, text = append(lines, text[:i]), text[i+1:]
	}
	return lines
}

// suggest is the half sentence that names the nearest and all that is allowed.
func suggest(name string, among []string) string {
	var b strings.Builder
	if s := event.Nearest(name, among); s != "" {
		fmt.Fprintf(&b, "; did you mean %q?", s)
	}
	if len(among) > 0 && len(among) <= 20 {
		if b.Len() == 0 {
			b.WriteByte(';')
		}
		fmt.Fprintf(&b, " allowed: %s", strings.Join(among, ", "))
	}
	return b.String()
}
